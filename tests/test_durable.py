"""Files appear whole or not at all, and leftovers of killed writers go away."""

import errno
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from geo_mvmf import durable, temporary_names
from geo_mvmf.errors import OutputError
from geo_mvmf.model import run_folder
from geo_mvmf.model.ranks import Ranks


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_an_error_leaves_the_old_file_and_no_debris(tmp_path):
    path = tmp_path / "a.tif"
    durable.write_text(path, "old")

    def fail():
        with durable.replacing(path, overwrite=True) as temporary:
            temporary.write_text("half")
            temporary.with_name(temporary.name + ".aux.xml").write_text("sidecar")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.tif"]


def test_a_place_where_nothing_can_be_written_is_said_before_anything_is_tried(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    for path in (tmp_path / "a" / "b.gpkg", tmp_path / "a" / "b" / "c.gpkg"):
        with pytest.raises(OutputError, match=rf"^{path}: {tmp_path / 'a'} is a file, not a folder"):
            durable.write_text(path, "text")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(OutputError, match=rf"{tmp_path / 'dangling'} is no folder; choose another name"):
        durable.write_text(tmp_path / "dangling" / "b.gpkg", "text")
    for denied in (os.W_OK, os.X_OK):
        monkeypatch.setattr(durable.os, "access", lambda path, mode, no=denied: path != tmp_path or not mode & no)
        for path in (tmp_path / "b.gpkg", tmp_path / "b" / "c.gpkg"):
            with pytest.raises(OutputError, match=rf"^{path}: the folder {tmp_path} cannot be written to"):
                durable.write_text(path, "text")
    assert names(tmp_path) == ["a", "dangling"]


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    durable.write_text(tmp_path / "a", "old")
    with pytest.raises(OutputError, match=r"exists already; .* add the option overwrite$"):
        durable.write_text(tmp_path / "a", "new")
    durable.write_text(tmp_path / "a", "new", overwrite=True)
    assert (tmp_path / "a").read_text() == "new"


def refuse_links(source, target):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("link", [os.link, refuse_links])
def test_a_file_that_appears_meanwhile_is_not_lost(tmp_path, monkeypatch, link):
    monkeypatch.setattr(os, "link", link)
    durable.write_text(tmp_path / "b", "nothing is in its way")
    path = tmp_path / "a"

    def write():
        with durable.replacing(path) as temporary:
            temporary.write_text("mine")
            path.write_text("theirs")

    with pytest.raises(OutputError, match="appeared"):
        write()
    assert path.read_text() == "theirs"
    assert names(tmp_path) == ["a", "b"]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path):
    with pytest.raises(OutputError, match="wrote nothing"), durable.replacing(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def write_folder(path, text, *, overwrite=True):
    with durable.replacing_folder(path, overwrite=overwrite) as temporary:
        (temporary / text).write_text(text)


def test_folders_are_replaced_whole(tmp_path):
    for text in ("one", "two"):
        write_folder(tmp_path / "f", text)
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["two"]


def test_a_folder_that_appears_meanwhile_is_not_lost(tmp_path):
    def write():
        with durable.replacing_folder(tmp_path / "f") as temporary:
            (temporary / "mine").touch()
            (tmp_path / "f").mkdir()
            (tmp_path / "f" / "theirs").touch()

    with pytest.raises(OutputError, match="appeared"):
        write()
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["theirs"]


KILLED_BETWEEN_RENAMES = """
import os, pathlib, signal, sys
from geo_mvmf import durable
rename = pathlib.Path.rename
def rename_and_die(self, target):
    rename(self, target)
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.rename = rename_and_die
with durable.replacing_folder(sys.argv[1], overwrite=True) as temporary:
    (temporary / "new").write_text("new")
"""


def test_an_old_folder_set_aside_by_a_killed_writer_comes_back(tmp_path):
    write_folder(tmp_path / "f", "old")
    done = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_RENAMES, str(tmp_path / "f")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2  # neither under its final name
    with pytest.raises(OutputError, match="exists already"):
        write_folder(tmp_path / "f", "other", overwrite=False)
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["old"]


def left_behind(final, monkeypatch, *, aside=False):
    """The temporary name of a process that is gone."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: 999_999_999)
        return temporary_names.temporary_name(final, aside=aside)


def test_nothing_set_aside_replaces_what_is_there(tmp_path, monkeypatch):
    write_folder(tmp_path / "f", "new")
    aside = left_behind(tmp_path / "f", monkeypatch, aside=True)
    aside.mkdir()
    assert durable.sweep(tmp_path) == [aside.name]
    assert names(tmp_path / "f") == ["new"]


WRITER = """
import sys, time
from geo_mvmf import durable
with durable.replacing(sys.argv[1], overwrite=True) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_sigkill_leaves_the_old_file_and_the_next_writer_sweeps(tmp_path):
    path = tmp_path / "a"
    durable.write_text(path, "old")
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert path.read_text() == "old"
    assert len(names(tmp_path)) == 2
    (tmp_path / ".geo-mvmf-of-somebody-else").write_text("foreign")
    durable.write_text(path, "new", overwrite=True)
    assert names(tmp_path) == [".geo-mvmf-of-somebody-else", "a"]


OTHER_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", sys.executable, "-c"]
SWEEP = "import sys; from geo_mvmf import durable; print(durable.sweep(sys.argv[1]))"


def test_another_container_leaves_a_live_writer_its_file(tmp_path):
    if (
        not shutil.which("unshare")
        or subprocess.run([*OTHER_CONTAINER, ""], capture_output=True, check=False).returncode
    ):
        pytest.skip("spaces of processes cannot be made here")
    with durable.replacing(tmp_path / "a") as temporary:
        temporary.write_text("mine")
        swept = subprocess.run([*OTHER_CONTAINER, SWEEP, str(tmp_path)], capture_output=True, text=True, check=True)
        assert swept.stdout == "[]\n"
    assert names(tmp_path) == ["a"]


def left_elsewhere(final, monkeypatch, *, aside=False):
    """The temporary name of a process of another machine, or of before a restart."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(platform, "node", lambda: "elsewhere")
        return left_behind(final, monkeypatch, aside=aside)


def left_by_former_versions(final, monkeypatch, *, aside=False):
    """As `left_behind`, without the space of the process."""
    found = left_behind(final, monkeypatch, aside=aside)
    return found.with_name(re.sub(r"^\.geo-mvmf-[0-9a-f]{8}", ".geo-mvmf", found.name))


OLD = pytest.mark.parametrize("left", [left_elsewhere, left_by_former_versions])


def wait(monkeypatch, seconds):
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + seconds)


@OLD
def test_what_another_machine_left_goes_when_nothing_has_changed_for_a_week(tmp_path, monkeypatch, left):
    file, old = left(tmp_path / "a", monkeypatch), left(tmp_path / "f", monkeypatch, aside=True)
    file.touch()
    old.mkdir()
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "new").touch()
    assert durable.sweep(tmp_path) == []
    wait(monkeypatch, 6 * 86400)
    assert durable.sweep(tmp_path) == []
    wait(monkeypatch, 2 * 86400)
    assert durable.sweep(tmp_path) == sorted([file.name, old.name])
    assert names(tmp_path) == ["f"]
    assert names(tmp_path / "f") == ["new"]


@OLD
def test_a_folder_set_aside_before_a_restart_comes_back_after_a_minute(tmp_path, monkeypatch, left):
    old = left(tmp_path / "f", monkeypatch, aside=True)
    old.mkdir()
    (old / "inside").touch()
    wait(monkeypatch, 50)
    assert durable.sweep(tmp_path) == []  # its writer may be about to rename the new one
    wait(monkeypatch, 20)
    with pytest.raises(OutputError, match="exists already"):
        write_folder(tmp_path / "f", "other", overwrite=False)
    assert names(tmp_path / "f") == ["inside"]


def test_on_windows_no_process_is_asked_whether_it_lives(tmp_path, monkeypatch):
    def ask(process, number):
        raise AssertionError("os.kill ends processes there, or sends an event to their console")

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", ask)
    # its time of change is that of the creation there
    lstat = Path.lstat
    monkeypatch.setattr(Path, "lstat", lambda path: SimpleNamespace(st_ctime=0.0, st_mtime=lstat(path).st_mtime))
    file = left_behind(tmp_path / "a", monkeypatch)
    file.touch()
    for days, gone in ((6, []), (2, [file.name])):
        wait(monkeypatch, days * 86400)
        assert durable.sweep(tmp_path) == gone


def test_a_folder_that_is_set_aside_says_when_where_a_rename_leaves_no_time(tmp_path, monkeypatch):
    write_folder(tmp_path / "f", "old")
    os.utime(tmp_path / "f", (0, 0))
    rename, times = Path.rename, {}

    def keep(self, target):
        times[Path(target).name] = self.stat().st_mtime
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", keep)
    write_folder(tmp_path / "f", "new")
    assert len(times) == 2  # aside, and the new one
    assert all(time.time() - moment < 60 for moment in times.values())


@OLD
def test_where_the_folder_is_held_what_was_left_elsewhere_goes_after_a_minute(tmp_path, monkeypatch, left):
    left(tmp_path / "checkpoint", monkeypatch).touch()
    wait(monkeypatch, 50)
    with run_folder.holding(tmp_path, Ranks()):
        assert len(names(tmp_path)) == 2  # and the lock
    wait(monkeypatch, 20)
    assert durable.sweep(tmp_path) == []
    with run_folder.holding(tmp_path, Ranks()):
        assert names(tmp_path) == [".lock"]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from geo_mvmf import durable
from geo_mvmf.errors import OutputError
try:
    durable.write_bytes(sys.argv[1], b"x" * 5000, overwrite=True)
except OutputError as error:
    print(error)
"""


def test_a_full_disk_is_named_with_path_and_bytes(tmp_path):
    durable.write_text(tmp_path / "a", "old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "a")], capture_output=True, text=True, check=True
    )
    assert "5000 bytes" in done.stdout
    assert str(tmp_path / "a") in done.stdout
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


PACKAGE = Path(durable.__file__).parent
COMMIT = re.compile(r"os\.(rename|replace|link|fsync)\(|shutil\.move\(|\.rename\((?!columns|')|\.replace\([a-z]+\)")


def test_no_other_module_renames_or_flushes():
    users = {path.name for path in PACKAGE.rglob("*.py") if COMMIT.search(path.read_text(encoding="utf-8"))}
    assert users == {"durable.py"}
