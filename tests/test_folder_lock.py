"""One process holds a folder; its end, however it ends, frees it."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from geo_mvmf import folder_lock
from geo_mvmf.errors import LockedError, OutputError


def test_a_lock_is_held_by_one_process_and_dies_with_it(tmp_path):
    code = (
        f"import time\nfrom geo_mvmf import folder_lock\nwith folder_lock.holding({str(tmp_path)!r}):\n"
        " print(1, flush=True)\n time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    child.stdout.readline()
    with pytest.raises(LockedError, match="another process"), folder_lock.holding(tmp_path):
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with folder_lock.holding(tmp_path):
        pass


def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "flock", refuse)
    with pytest.raises(OutputError, match="cannot be locked: No locks available"), folder_lock.holding(tmp_path):
        pass


def _removing(times, path, flock):
    """Another process ends and takes the lock file with it, between the opening and the locking of it."""
    left = iter(range(times))

    def lock(descriptor, operation):
        if next(left, None) is not None:
            path.unlink()
        flock(descriptor, operation)

    return lock


def is_held(path):
    """Whether who opens the lock file of that name now is kept out."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_a_lock_file_that_another_process_removed_is_not_what_is_held(tmp_path, monkeypatch):
    path, flock = tmp_path / ".lock", fcntl.flock
    with monkeypatch.context() as patch:
        patch.setattr(folder_lock.fcntl, "flock", _removing(2, path, flock))
        with folder_lock.holding(tmp_path):
            patch.undo()
            assert is_held(path)
    assert not is_held(path)
    # the broken twin locks whatever it has opened
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    _removing(1, path, flock)(descriptor, fcntl.LOCK_EX)
    assert not is_held(path)
    os.close(descriptor)


def test_a_lock_file_that_goes_away_for_ever_ends_in_an_error(tmp_path, monkeypatch):
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(folder_lock.fcntl, "flock", _removing(10**6, tmp_path / ".lock", fcntl.flock))
    with pytest.raises(LockedError, match="went away"), folder_lock.holding(tmp_path):
        pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before
