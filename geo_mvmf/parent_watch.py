"""Processes that end with the one that started them, however that ends, and whatever they are doing.

A thread that waits for it is not enough: code of C that holds Python's lock, as the loading of torch does for a second
or more, keeps every thread waiting. So the kernel ends children of ours, and a process that does nothing but wait ends
a process whose parent is somebody else's. Where there is no Linux, threads have to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Iterable
from multiprocessing import connection

GRACE_SECONDS = 0.6
"""What a process that is guarded has to end by itself, once its parent is dead."""

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def leave_with_parent() -> None:
    """Let this process of `multiprocessing` end at once when the one that started it is gone: it may have been killed.

    To be called first, before anything heavy is imported. The thread that started the process must live as long as
    the process is needed, as one that waits for its results does.

    Examples
    --------
    >>> from concurrent.futures import ProcessPoolExecutor
    >>> pool = ProcessPoolExecutor(2, initializer=leave_with_parent)  # doctest: +SKIP
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def guard(source: int) -> None:
    """Start a process that kills this one when its parent is dead and its input has ended, and it does not end itself.

    To be called before there are threads. A parent that is alive may close the input, and one that is dead may have
    handed it to another process: neither ends anything. Nothing is started where the system does not tell of the end
    of other processes.

    Parameters
    ----------
    source : int
        Descriptor of the input, a pipe.

    Examples
    --------
    >>> guard(0)  # doctest: +SKIP
    """
    try:
        parent = os.pidfd_open(os.getppid())
    except (AttributeError, OSError):  # not Linux, an old one, or the parent is gone and the input has ended
        return
    life, _ = os.pipe()  # its other end is closed by the end of this process, and by nothing else
    guarded = os.getpid()
    if os.fork():
        os.close(parent)
        os.close(life)
        return
    try:
        _keep_only({source, parent, life})  # whoever reads to the end of our output waits for nobody else
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if _is_orphaned(source, parent, life) and os.getppid() == guarded:
            os.kill(guarded, signal.SIGKILL)
    finally:
        os._exit(0)


def _keep_only(wanted: Iterable[int]) -> None:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 (numbers)
        with contextlib.suppress(OSError):  # the one that listed them
            if int(name) not in wanted:
                os.close(int(name))


def _is_orphaned(source: int, parent: int, life: int) -> bool:
    """Wait until a process has ended, or has neither input nor parent and does not end itself."""
    is_alive = life not in _first_of({source: 0, life: 0}) and life not in _first_of({parent: select.POLLIN, life: 0})
    return is_alive and not _first_of({life: 0}, GRACE_SECONDS)


def _first_of(descriptors: dict[int, int], seconds: float | None = None) -> set[int]:
    """Wait for events of descriptors; that the other end was closed is told unasked."""
    poll = select.poll()
    for descriptor, events in descriptors.items():
        poll.register(descriptor, events)
    return {descriptor for descriptor, _ in poll.poll(None if seconds is None else 1000.0 * seconds)}
