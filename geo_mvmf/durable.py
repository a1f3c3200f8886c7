"""The only code that makes bytes permanent.

Every result goes through here: written under a temporary name in its own folder, flushed to the disk, renamed
into place, and the folder flushed too. So a killed process, a full disk or a power cut leaves the old file or
the new one, never a torn one. Left-over temporary files carry a name of our own and are swept by the next writer of
the same folder once their writer is known to be gone; foreign files stay. No other module renames or flushes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from geo_mvmf.errors import OutputError
from geo_mvmf.temporary_names import abandoned, temporary_name


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Write a file so that it appears whole or not at all.

    Parameters
    ----------
    path : path
        Where the file will be. Its folder is made when missing.
    overwrite : bool
        Whether an existing file may be replaced.

    Yields
    ------
    Path
        A temporary name in the same folder, with the same suffixes, to be written by the caller. On a normal
        exit it is flushed and renamed to `path`; on an error everything written under that name is removed.

    Raises
    ------
    OutputError
        If the file exists and `overwrite` is not set, nothing was written, or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with replacing(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> (folder / "a.txt").read_text()
    'whole'
    """
    final = Path(path)
    with output_errors(final):
        _prepare(final, overwrite)
        temporary = temporary_name(final)
    try:
        with output_errors(final):
            yield temporary
            if not temporary.is_file():
                raise OutputError(f"{final}: the writer wrote nothing under {temporary.name}")
            _flush(temporary)
            _commit(temporary, final, overwrite)
    finally:
        _remove_all(final.parent, temporary.name)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder so that it appears whole or not at all.

    Parameters
    ----------
    path : path
        Where the folder will be.
    overwrite : bool
        Whether an existing folder may be replaced. The old one is set aside first and removed last; after a kill
        between the two renames `sweep` brings it back.

    Yields
    ------
    Path
        A temporary empty folder beside the final one.

    Raises
    ------
    OutputError
        As `replacing`.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "chips"
    >>> with replacing_folder(folder) as temporary:
    ...     _ = (temporary / "a.txt").write_text("whole")
    >>> [p.name for p in folder.iterdir()]
    ['a.txt']
    """
    final = Path(path)
    with output_errors(final):
        _prepare(final, overwrite)
        temporary = temporary_name(final)
        temporary.mkdir()
    try:
        with output_errors(final):
            yield temporary
            _flush_tree(temporary)
            _commit_folder(temporary, final, overwrite)
    finally:
        _remove_all(final.parent, temporary.name)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False) -> None:
    """Write bytes as a whole file.

    Parameters
    ----------
    path : path
    data : bytes
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        As `replacing`; names the number of bytes.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.bin"
    >>> write_bytes(path, b"abc")
    >>> path.read_bytes()
    b'abc'
    """
    with replacing(path, overwrite=overwrite) as temporary:
        try:
            temporary.write_bytes(data)
        except OSError as error:
            raise OutputError(f"{path}: cannot write {len(data)} bytes: {error.strerror}") from error


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = False) -> None:
    """Write UTF-8 text as a whole file.

    Parameters
    ----------
    path : path
    text : str
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        As `replacing`.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_text(path, "Ægir")
    >>> path.read_text(encoding="utf-8")
    'Ægir'
    """
    write_bytes(path, text.encode("utf-8"), overwrite=overwrite)


def write_json(path: str | os.PathLike[str], value: object, *, overwrite: bool = False) -> None:
    """Write a value as indented JSON with sorted keys.

    Parameters
    ----------
    path : path
    value : object
        Anything `json` can write; NaN is refused.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        As `replacing`.
    ValueError
        If the value holds NaN or an infinity.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.json"
    >>> write_json(path, {"b": 1, "a": 2})
    >>> json.loads(path.read_text())
    {'a': 2, 'b': 1}
    """
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n", overwrite=overwrite)


def require_new(*paths: str | os.PathLike[str]) -> None:
    """Refuse files that exist, all of them before the first is made.

    Parameters
    ----------
    *paths : path

    Raises
    ------
    OutputError
        If one exists.

    Examples
    --------
    >>> require_new("no/such/file.tif", "no/such/file_level.tif")
    """
    for path in paths:
        if os.path.lexists(path):
            raise OutputError(f"{path}: exists already; choose another name, or add the option overwrite")


def require_folder(path: str | os.PathLike[str]) -> None:
    """Refuse a place where nothing can be written, in words: libraries that write there say other things of it.

    Parameters
    ----------
    path : path
        To come, as the folders on the way to it may be.

    Raises
    ------
    OutputError
        If something else is where a folder should be, or the nearest folder that exists may not be written to.

    Examples
    --------
    >>> require_folder("no/such/file.tif")
    """
    folder = next((each for each in Path(path).parents if os.path.lexists(each)), Path())
    if not folder.is_dir():
        what = "a file, not a folder" if folder.is_file() else "no folder"
        raise OutputError(f"{path}: {folder} is {what}; choose another name")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {folder} cannot be written to; choose another, or ask for the right to")


def sweep(folder: str | os.PathLike[str], *, held: bool = False) -> list[str]:
    """Remove what killed writers left in a folder, and bring back a folder that they had set aside.

    Parameters
    ----------
    folder : path
    held : bool
        Whether this process holds it, so that nobody else should be writing there.

    Returns
    -------
    list of str
        The names that are gone: of our own pattern, and of writers that `temporary_names.abandoned` takes for gone.

    Examples
    --------
    >>> import tempfile
    >>> sweep(tempfile.mkdtemp())
    []
    """
    removed = []
    for entry, set_aside in abandoned(Path(folder), held=held):
        if set_aside is not None and not os.path.lexists(set_aside):
            entry.rename(set_aside)
        else:
            _remove(entry)
        removed.append(entry.name)
    return removed


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into one that names the file.

    Parameters
    ----------
    path : Path
        What is being written.

    Raises
    ------
    OutputError
        With the reason, and a hint where the disk is full.

    Examples
    --------
    >>> with output_errors(Path("a.tif")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    geo_mvmf.errors.OutputError: a.tif: cannot write: No space left on device; free some space
    """
    try:
        yield
    except OSError as error:
        hint = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise OutputError(f"{path}: cannot write: {error.strerror or error}{hint}") from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes.

    Parameters
    ----------
    path : path

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "empty"
    >>> path.touch()
    >>> file_sha256(path)[:8]
    'e3b0c442'
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prepare(final: Path, overwrite: bool) -> None:  # noqa: FBT001 (private, called by keyword's value)
    require_folder(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final.parent)  # first, because it may bring back what a killed writer had set aside
    if not overwrite:
        require_new(final)


def _commit(temporary: Path, final: Path, overwrite: bool) -> None:  # noqa: FBT001 (private)
    if overwrite:
        temporary.replace(final)
    else:
        # A hard link fails where the name exists, which a rename would not notice: two writers, one winner.
        try:
            os.link(temporary, final)
        except FileExistsError:
            raise _appeared(final) from None
        except OSError:  # file systems without hard links, where only a writer of the same instant is not noticed
            if os.path.lexists(final):
                raise _appeared(final) from None
            temporary.replace(final)
    _flush(final.parent)


def _commit_folder(temporary: Path, final: Path, overwrite: bool) -> None:  # noqa: FBT001 (private)
    aside = temporary_name(final, aside=True)
    if os.path.lexists(final):
        if not overwrite:
            raise _appeared(final)
        os.utime(final)  # says when it was set aside where a rename leaves no time (Windows)
        final.rename(aside)
    temporary.rename(final)
    _flush(final.parent)
    if os.path.lexists(aside):
        _remove(aside)


def _appeared(final: Path) -> OutputError:
    return OutputError(f"{final}: appeared while it was being written; it was left as it is")


def _flush(path: Path) -> None:
    is_folder = path.is_dir()  # flushed, it keeps the renames inside it for good (POSIX)
    if is_folder and sys.platform == "win32":  # which opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flush_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _flush(Path(parent) / name)
        _flush(Path(parent))


def _remove_all(folder: Path, beginning: str) -> None:
    # Writers leave sidecars (.aux.xml, -journal) that begin with the name they were given.
    for entry in folder.iterdir():
        if entry.name.startswith(beginning):
            _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
