"""The gate every foreign file passes: an existing regular file, known by its content and not by its name.

GDAL and Pillow open far more than files: addresses, pipes, devices, driver prefixes, a text file that points
to another file. So a path is looked at here before any of them sees it, and what it holds is decided by its
first bytes. Nothing is decoded here.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import BinaryIO

from geo_mvmf.errors import ImageError

_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*:/{2}", re.IGNORECASE)
_MAX_SHOWN = 200  # characters of a hostile path that go into a message
_SNIFFED_BYTES = 4096

# O_NONBLOCK: opening a pipe that nobody writes to would hang; O_NOCTTY: never adopt a terminal
_OPEN_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"))

# The first bytes of what is read here, and of what is often mistaken for it.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"II\x2a\x00", "tiff"),
    (b"MM\x00\x2a", "tiff"),
    (b"II\x2b\x00", "tiff"),
    (b"MM\x00\x2b", "tiff"),
    (b"SQLite format 3\x00", "sqlite"),
    (b"PAR1", "parquet"),
)
_HEIF_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"])


def check_regular_file(path: str | os.PathLike[str], *, suffixes: Collection[str] | None = None) -> Path:
    """Make sure that a path names an existing regular file, and give its absolute form.

    The absolute form matters: a driver prefix such as ``GTIFF_DIR:1:a.tif`` means something to GDAL only at
    the beginning of a name.

    Parameters
    ----------
    path : path
        What the user or a table gave.
    suffixes : collection of str, optional
        Allowed suffixes, lower case with the dot; None allows any.

    Returns
    -------
    Path
        Absolute; symbolic links are not resolved.

    Raises
    ------
    ImageError
        A BadInputError that carries the row status: "missing" where there is no such file, "refused" for
        an address, a /vsi path, a NUL byte, a folder, a device, a pipe or a socket, "unsupported" for another
        suffix, "unreadable" where the system forbids to look.

    Examples
    --------
    >>> check_regular_file("https://example.org/a.jpg")
    Traceback (most recent call last):
    geo_mvmf.errors.ImageError: 'https://example.org/a.jpg' is an address, not a file: download it first
    """
    checked = _check_name(path)
    try:
        mode = checked.stat().st_mode
    except OSError as error:
        raise _system_refusal(checked, error) from error
    _check_mode(checked, mode)
    _check_suffix(checked, suffixes)
    return checked


def open_regular_file(path: str | os.PathLike[str], *, inside: Iterable[str | os.PathLike[str]] = ()) -> BinaryIO:
    """Open a regular file for reading; a pipe or a device is refused and never waited for.

    The checks are made before opening, because some devices act on being opened, and again on the open
    file, so that nothing can be exchanged between check and use.

    Parameters
    ----------
    path : path
        As `check_regular_file`.
    inside : iterable of path
        Folders; where given, the open file must lie in one of them after all symbolic links.

    Returns
    -------
    binary file
        To be closed by the caller.

    Raises
    ------
    ImageError
        As `check_regular_file`; "refused" also for a file outside the folders.

    Examples
    --------
    >>> open_regular_file("/dev/null")
    Traceback (most recent call last):
    geo_mvmf.errors.ImageError: '/dev/null' is a device, not a regular file
    """
    checked = check_regular_file(path)
    try:
        descriptor = os.open(checked, _OPEN_FLAGS)
    except OSError as error:
        raise _system_refusal(checked, error) from error
    try:
        opened = os.fstat(descriptor)
        _check_mode(checked, opened.st_mode)
        _check_inside(checked, opened, tuple(inside))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def sniff(path: str | os.PathLike[str]) -> str:
    """Tell from its first bytes what a regular file holds; the name plays no part.

    Parameters
    ----------
    path : path
        An existing regular file.

    Returns
    -------
    str
        "jpeg", "png", "webp", "tiff", "heif", "sqlite", "parquet", "json", "xml", "text" (a CSV is text) or
        "unknown" (an empty file too).

    Raises
    ------
    ImageError
        As `open_regular_file`.

    Examples
    --------
    >>> import tempfile
    >>> disguised = Path(tempfile.mkdtemp()) / "photo.jpg"
    >>> _ = disguised.write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    >>> sniff(disguised)
    'xml'
    """
    with open_regular_file(path) as file:
        return sniff_bytes(file.read(_SNIFFED_BYTES))


def sniff_bytes(head: bytes) -> str:
    r"""Tell from the first bytes of a file what it holds; see `sniff`.

    Parameters
    ----------
    head : bytes
        The first bytes, 4096 of them or the whole file.

    Examples
    --------
    >>> sniff_bytes(b"\x89PNG\r\n\x1a\n"), sniff_bytes(b"path,longitude,latitude"), sniff_bytes(b'{"type":')
    ('png', 'text', 'json')
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return "heif" if head[8:12] in _HEIF_BRANDS else "unknown"
    return _sniff_text(head)


def _sniff_text(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "text"  # UTF-16; whoever reads it says that it must be UTF-8
    stripped = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if stripped.startswith(b"<"):
        return "xml"
    if stripped.startswith((b"{", b"[")):
        return "json"
    # control characters other than tab, line feed, form feed and carriage return do not occur in text
    control = sum(head.count(bytes([code])) for code in range(32) if code not in (9, 10, 12, 13))
    return "unknown" if not head or control else "text"


def _check_name(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if not isinstance(text, str) or not text:
        raise ImageError("missing", f"{text!r} is not a file name")
    if "\0" in text:
        raise ImageError("refused", f"{_shown(text)} contains a NUL byte, so it is no file name")
    if _ADDRESS.match(text):
        raise ImageError("refused", f"{_shown(text)} is an address, not a file: download it first")
    if text.lower().startswith(("/vsi", "\\vsi")):
        raise ImageError("refused", f"{_shown(text)} is a GDAL virtual path, not a file")
    return Path(os.path.abspath(text))  # noqa: PTH100  Path.resolve would follow the symbolic links


def _check_mode(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    kind = kinds.get(stat.S_IFMT(mode), "device")
    raise ImageError("refused", f"{_shown(path)} is a {kind}, not a regular file")


def _check_suffix(path: Path, suffixes: Collection[str] | None) -> None:
    if suffixes is not None and path.suffix.lower() not in suffixes:
        allowed = ", ".join(sorted(suffixes))
        raise ImageError("unsupported", f"{_shown(path)}: the suffix {path.suffix!r} is not one of {allowed}")


def _check_inside(path: Path, opened: os.stat_result, folders: tuple[str | os.PathLike[str], ...]) -> None:
    if not folders:
        return
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):
        raise ImageError("refused", f"{_shown(path)} leads to {_shown(real)}, outside the permitted folders")
    try:
        same = os.path.samestat(opened, real.lstat())
    except OSError as error:
        raise _system_refusal(path, error) from error
    if not same:
        raise ImageError("refused", f"{_shown(path)} was exchanged while it was being opened")


def _system_refusal(path: Path, error: OSError) -> ImageError:
    absent = (errno.ENOENT, errno.ENOTDIR)
    status = "missing" if error.errno in absent else "refused" if error.errno == errno.ELOOP else "unreadable"
    reason = "there is no such file" if status == "missing" else (error.strerror or str(error)).lower()
    return ImageError(status, f"{_shown(path)}: {reason}")


def _shown(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")
