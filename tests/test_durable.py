"""Files appear whole or not at all, and leftovers of killed writers go away."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geo_mvmf import durable
from geo_mvmf.errors import OutputError


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


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    durable.write_text(tmp_path / "a", "old")
    with pytest.raises(OutputError, match="exists already"):
        durable.write_text(tmp_path / "a", "new")
    durable.write_text(tmp_path / "a", "new", overwrite=True)
    assert (tmp_path / "a").read_text() == "new"


def test_a_file_that_appears_meanwhile_is_not_lost(tmp_path):
    path = tmp_path / "a"

    def write():
        with durable.replacing(path) as temporary:
            temporary.write_text("mine")
            path.write_text("theirs")

    with pytest.raises(OutputError, match="appeared"):
        write()
    assert path.read_text() == "theirs"


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


def test_nothing_set_aside_replaces_what_is_there(tmp_path):
    write_folder(tmp_path / "f", "new")
    (tmp_path / ".geo-mvmf-999999999-0123abcd~f").mkdir()
    assert durable.sweep(tmp_path) == [".geo-mvmf-999999999-0123abcd~f"]
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
