"""Folders held by one process at a time, with the kernel's lock: none is ever stale."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from geo_mvmf import durable
from geo_mvmf.errors import LockedError, OutputError


@contextlib.contextmanager
def holding(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a folder for this process alone.

    The lock is the kernel's (flock), so it ends with the process however that ends: no stale locks.

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
    folder = Path(folder)
    with durable.output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(
                f"{folder}: another process is working here; wait for it to end, or choose another folder"
            ) from error
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be locked: {error.strerror}; choose a folder on another file system"
            ) from error
        yield
    finally:
        os.close(descriptor)
