"""Folders held by one process at a time, with the kernel's lock: none is ever stale."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from geo_mvmf import durable
from geo_mvmf.errors import LockedError, OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_TRIES = 100  # a holder removes the file once, so one more try is nearly always the last


@contextlib.contextmanager
def holding(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder for this process alone.

    The lock is the kernel's (flock, on Windows LockFile), so it ends with the process however that ends: none is stale.

    Parameters
    ----------
    folder : path
        Made when missing.

    Raises
    ------
    LockedError
        At once, when another process holds the folder.
    OutputError
        If the folder cannot be made, or its file system has no locks.

    Examples
    --------
    >>> import tempfile
    >>> with holding(tempfile.mkdtemp()):
    ...     pass
    """
    descriptor = _locked(Path(folder))
    try:
        yield
    finally:
        _release(descriptor, Path(folder))


def _locked(folder: Path) -> int:
    """Open and lock the lock file that has its name now: one that was removed meanwhile locks nobody out."""
    for _ in range(_TRIES):
        with durable.output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, folder)
        except (LockedError, OutputError):
            os.close(descriptor)
            raise
        with contextlib.suppress(FileNotFoundError):
            if (folder / ".lock").stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
    raise LockedError(f"{folder}: its .lock went away {_TRIES} times while it was locked; try again, or choose another")


def _lock(descriptor: int, folder: Path) -> None:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # the latter on Windows
        raise LockedError(
            f"{folder}: another process is working here; wait for it to end, or choose another folder"
        ) from error
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be locked: {error.strerror}; choose a folder on another file system"
        ) from error


def _release(descriptor: int, folder: Path) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)  # closing would do, at a time of the system's choice
    os.close(descriptor)
    if sys.platform == "win32":
        with contextlib.suppress(OSError):  # the next one holds it
            if [entry.name for entry in folder.iterdir()] == [".lock"]:
                # Who held the folder may have taken it away, but no file that is open can be.
                (folder / ".lock").unlink()
                folder.rmdir()
