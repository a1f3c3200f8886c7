"""One process holds a folder; its end, however it ends, frees it."""

import errno
import os
import signal
import subprocess
import sys

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
