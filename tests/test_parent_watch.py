"""A guarded process ends when its parent is dead and its input has ended, even in native code; else it stays."""

import contextlib
import os
import subprocess
import sys
import time

import psutil
import pytest

from geo_mvmf import parent_watch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell of ended processes")
PATIENCE = 30  # seconds; a hang, not slowness, takes longer
STAYS = parent_watch.GRACE_SECONDS + 0.7

GUARDED = """
import ctypes, os, sys
from geo_mvmf import parent_watch
{guard}
os.write(1, b"%d\\n" % os.getpid())
ctypes.PyDLL(None).sleep(60)  # holds Python's lock: no thread of this process runs any more
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])  # its input and its output are ours
os.write(1, b"%d\\n" % child.pid)
child.wait() if sys.argv[2] == "stays" else os.read(0, 1)
"""


def is_gone(pid):
    """A zombie has ended, whenever its new parent asks for it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def ends(pid, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if is_gone(pid):
            return True
        time.sleep(0.02)
    return False


@contextlib.contextmanager
def guarded(parent, guard="parent_watch.guard(0)"):
    """A guarded process whose parent stays or leaves, and who writes to its input."""
    ours, theirs = os.pipe()
    command = [sys.executable, "-c", PARENT, GUARDED.format(guard=guard), parent]
    started = subprocess.Popen(command, stdin=ours, stdout=subprocess.PIPE)
    os.close(ours)
    with started, os.fdopen(theirs, "wb") as writer:
        pids = {int(started.stdout.readline()), int(started.stdout.readline())}
        assert len(pids) == 1
        pid = pids.pop()
        try:
            yield started, writer, pid
        finally:
            started.kill()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)


@pytest.mark.hard
def test_neither_a_dead_parent_nor_an_ended_input_alone_ends_it():
    with guarded("leaves") as (parent, writer, pid):
        writer.write(b"!")  # the child was heard of: it is guarded
        writer.flush()
        assert parent.wait(PATIENCE) == 0
        assert not ends(pid, STAYS)
        writer.close()
        assert ends(pid, PATIENCE)
    with guarded("stays") as (parent, writer, pid):
        writer.close()
        assert not ends(pid, STAYS)
        parent.kill()
        assert ends(pid, PATIENCE)


def test_without_the_guard_native_code_stays():
    """The broken twin."""
    with guarded("stays", guard="") as (parent, writer, pid):
        writer.close()
        parent.kill()
        assert not ends(pid, STAYS)


def test_the_guard_goes_with_what_it_guards():
    code = GUARDED.format(guard="parent_watch.guard(0)")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        guards = psutil.Process(process.pid).children()
        assert len(guards) == 1
        assert {(file.path, file.fd) for file in guards[0].open_files()} == set()
        process.kill()
        assert process.stdout.read() == b""  # nobody else holds the output
        assert ends(guards[0].pid, PATIENCE)
