"""Which file each row of an image table means, inside one declared root.

A table is written by others: its paths may be addresses, leave the folder by ``..``, by a symbolic link or by being
absolute, or name pipes and devices. Here each becomes a status; nothing is opened, and outside the root and the
permitted folders nothing is even looked at.
"""

from __future__ import annotations

import collections
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs.photo_files import IMAGE_SUFFIXES

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|/+vsi", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_SERVER = re.compile(r"[\\/]{2}")  # Windows tells it who the user is as soon as a file there is looked for
_PLAIN = re.compile(r"[\w.@ -][\w./@ ()+=,-]*[\w)]", re.ASCII)  # a relative path that needs no further look
_DIGITS = re.compile(r"([0-9]+)")
_SHOWN = 200  # characters of a hostile path that go into a message


class ResolvedPath(NamedTuple):
    """What a path in a table means.

    Attributes
    ----------
    path : str
        Posix, relative to the root when inside; as given where the status is not ok.
    status : str
        ok, missing, refused or unreadable.
    message : str
        Why it is not ok.
    """

    path: str
    status: str = "ok"
    message: str = ""


class _Folder(NamedTuple):
    """A folder that rows of a table lie in, looked at once."""

    shown: str  # what stands in front of the file name in the column `path`
    real: str
    refused: bool


class PathResolver:
    """Resolves the paths of a table inside one root; each folder is looked at once.

    Parameters
    ----------
    root : path
        Existing folder that relative paths start from.
    permitted_roots : iterable of path
        Further folders that absolute paths and symbolic links may lead into.

    Raises
    ------
    UsageError
        If one of them is no folder.

    Examples
    --------
    >>> import tempfile
    >>> resolver = PathResolver(tempfile.mkdtemp())
    >>> resolver.resolve("a.jpg").status, resolver.resolve("../a.jpg").status
    ('missing', 'refused')
    """

    def __init__(self, root: str | os.PathLike[str], permitted_roots: Iterable[str | os.PathLike[str]] = ()) -> None:
        self.root = absolute_folder(root, "root")
        self.permitted_roots = tuple(absolute_folder(folder, "permitted root") for folder in permitted_roots)
        self._real_root = os.path.realpath(self.root)
        self._real_roots = [self._real_root, *(os.path.realpath(folder) for folder in self.permitted_roots)]
        self._folders: dict[str, _Folder] = {}

    def resolve(self, text: object) -> ResolvedPath:
        """Resolve one path of a table.

        Parameters
        ----------
        text : object
            The cell: text, a path object, or whatever stands there.

        Returns
        -------
        ResolvedPath

        Examples
        --------
        >>> import tempfile
        >>> PathResolver(tempfile.mkdtemp()).resolve("https://example.org/a.jpg").status
        'refused'
        """
        if isinstance(text, os.PathLike):
            text = os.fspath(text)
        if not isinstance(text, str) or not text.strip():
            return ResolvedPath("", "missing", "there is no path")
        if sys.platform == "win32":
            text = text.replace("\\", "/")
        if _PLAIN.fullmatch(text):
            head, _, name = text.rpartition("/")
        elif problem := _name_problem(text):
            return ResolvedPath(_printable(text), "refused", f"{text[:_SHOWN]!r} {problem}")
        else:
            head, name = os.path.split(text)
        folder = self._folders.get(head)
        if folder is None:
            folder = self._folders[head] = self._folder(head)
        if folder.refused:
            return ResolvedPath(text, "refused", f"{text[:_SHOWN]!r} leads outside {str(self.root)!r}{_PERMIT}")
        return self._file(folder, name)

    def permits(self, real: str) -> bool:
        """Tell whether a path without symbolic links lies in the root or a permitted folder.

        Parameters
        ----------
        real : str
            From os.path.realpath.

        Examples
        --------
        >>> PathResolver("/").permits("/etc")
        True
        """
        return any(_lies_in(real, root) for root in self._real_roots)

    def _folder(self, head: str) -> _Folder:
        real = os.path.realpath(os.path.join(self.root, head))  # noqa: PTH118  Path would drop what realpath needs
        if not self.permits(real):
            return _Folder(head, real, refused=True)
        plain = not os.path.isabs(head) and not {"", ".", ".."} & set(head.split("/"))  # noqa: PTH117  a str
        if head == "" or plain:
            return _Folder(head, real, refused=False)
        if not _lies_in(real, self._real_root):
            return _Folder(Path(real).as_posix().rstrip("/"), real, refused=False)
        shown = Path(os.path.relpath(real, self._real_root)).as_posix()
        return _Folder("" if shown == "." else shown, real, refused=False)

    def _file(self, folder: _Folder, name: str) -> ResolvedPath:
        path = f"{folder.shown}/{name}" if folder.shown else name
        real = f"{folder.real}/{name}"
        try:
            mode = os.lstat(real).st_mode
            if stat.S_ISLNK(mode):
                real = os.path.realpath(real)
                if not self.permits(real):
                    return ResolvedPath(
                        path, "refused", f"{path!r} is a link that leads outside {str(self.root)!r}{_PERMIT}"
                    )
                mode = os.stat(real).st_mode  # noqa: PTH116  a million rows: no Path object each
        except (FileNotFoundError, NotADirectoryError):
            hint = "; write / instead of \\" if "\\" in name else ""
            return ResolvedPath(path, "missing", f"{path!r}: there is no such file in {str(self.root)!r}{hint}")
        except OSError as error:
            return ResolvedPath(path, "unreadable", f"{path!r}: {error.strerror}")
        if not stat.S_ISREG(mode):
            return ResolvedPath(path, "refused", f"{path!r} is not a regular file")
        return ResolvedPath(path)


def find_images(
    folder: str | os.PathLike[str], resolver: PathResolver, *, recursive: bool = True
) -> list[ResolvedPath]:
    """List the images of a folder in natural order (img2 before img10).

    Files and folders whose names begin with a dot are skipped, and so are files without an image suffix.
    Symbolic links to folders inside the root are not followed, because their files are listed anyway; those into
    a permitted folder are; others are listed as refused.

    Parameters
    ----------
    folder : path
        Where to look.
    resolver : PathResolver
        Of the table.
    recursive : bool
        Whether to look into its folders too.

    Returns
    -------
    list of ResolvedPath

    Raises
    ------
    BadInputError
        If the folder cannot be listed.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("b10.jpg", "b2.JPG", ".hidden.jpg", "notes.txt"):
    ...     (folder / name).touch()
    >>> [found.path for found in find_images(folder, PathResolver(folder))]
    ['b2.JPG', 'b10.jpg']
    """
    top = absolute_folder(folder, "folder")
    found = sorted(_walk(top, resolver, recursive=recursive), key=lambda name: natural_key(name.path))
    real, root = os.path.realpath(top), os.path.realpath(resolver.root)
    # What lies outside may lie on another drive, to which no relative path leads.
    prefix = Path(os.path.relpath(real, root)).as_posix() if _lies_in(real, root) else top.as_posix()
    start = "" if prefix == "." else f"{prefix}/"
    for row, name in enumerate(found):  # in place: of a million images one list is enough
        is_ok = name.status == "ok"
        found[row] = resolver.resolve(start + name.path) if is_ok else name._replace(path=start + name.path)
    return found


def other_files(folder: str | os.PathLike[str]) -> collections.Counter[str]:
    """Count the files of a folder and its folders that `find_images` passes over because of their suffix.

    Parameters
    ----------
    folder : path

    Returns
    -------
    Counter
        By suffix in lower case, with its dot; empty text for none. Hidden files and folders, linked folders and
        folders that cannot be listed are left out.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("a.jpg", "raw.CR2", "notes.txt", ".hidden.txt", "README"):
    ...     (folder / name).touch()
    >>> sorted(other_files(folder).items())
    [('', 1), ('.cr2', 1), ('.txt', 1)]
    """
    found: collections.Counter[str] = collections.Counter()
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        lower = [name.lower() for name in names if not name.startswith(".")]
        found.update(os.path.splitext(name)[1] for name in lower if not name.endswith(IMAGE_SUFFIXES))  # noqa: PTH122
    return found


def natural_key(path: str) -> str:
    """Make a sort key in which numbers count as numbers and case does not matter.

    Parameters
    ----------
    path : str
        Posix, relative.

    Returns
    -------
    str
        One text, which for a million images takes a fifth of the memory of lists of numbers.

    Examples
    --------
    >>> sorted(["a/b10", "a/B2", "a/b"], key=natural_key)
    ['a/b', 'a/B2', 'a/b10']
    """
    # No file name holds \0. Each text ends with it and a sign of what follows: nothing, a part of the path, a number.
    parts = []
    for part in path.split("/"):
        pieces = _DIGITS.split(part.casefold())  # text, number, text, ...: texts never meet numbers
        pieces[1::2] = [chr(1 + len(digits)) + digits for digits in (piece.lstrip("0") for piece in pieces[1::2])]
        parts.append(
            pieces[0] + "".join(f"\0\2{number}{text}" for number, text in zip(pieces[1::2], pieces[2::2], strict=True))
        )
    return "\0\1".join(parts) + "\0\0" + path


def absolute_folder(folder: str | os.PathLike[str], what: str) -> Path:
    """Make a folder absolute and be sure that it is one.

    Parameters
    ----------
    folder : path
        From the user.
    what : str
        Its role, for the message.

    Raises
    ------
    UsageError
        If it is no existing folder.

    Examples
    --------
    >>> absolute_folder("/", "root").as_posix()
    '/'
    """
    path = Path(os.path.abspath(folder))  # noqa: PTH100  symbolic links are not resolved here
    if not path.is_dir():
        raise UsageError(f"the {what} {str(path)!r} is not an existing folder")
    return path


_PERMIT = "; if you trust the table, give a folder that holds them all (--root; in Python root or permitted_roots)"


def _walk(top: Path, resolver: PathResolver, *, recursive: bool) -> Iterator[ResolvedPath]:
    """Find image files, unsorted, relative to the top; links and odd files with their status."""
    waiting = [("", str(top))]
    seen: set[str] = set()
    while waiting:
        prefix, folder = waiting.pop()
        if (real := os.path.realpath(folder)) in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as scan:
                for entry in scan:
                    yield from _entry(entry, prefix, top, resolver, waiting, recursive=recursive)
        except OSError as error:
            if not prefix:
                raise BadInputError(f"{folder} cannot be listed: {error.strerror}") from error
            yield ResolvedPath(prefix.rstrip("/"), "unreadable", f"the folder cannot be listed: {error.strerror}")


def _entry(
    entry: os.DirEntry[str],
    prefix: str,
    top: Path,
    resolver: PathResolver,
    waiting: list[tuple[str, str]],
    *,
    recursive: bool,
) -> Iterator[ResolvedPath]:
    name = prefix + entry.name
    if entry.name.startswith("."):
        return
    if entry.is_dir(follow_symlinks=False):
        waiting += [(name + "/", entry.path)] if recursive else []
    elif entry.is_symlink() and Path(entry.path).is_dir():  # DirEntry.is_dir raises on a loop
        yield from _linked_folder(name, entry.path, top, resolver, waiting) if recursive else ()
    elif entry.name.lower().endswith(IMAGE_SUFFIXES):
        yield ResolvedPath(name)


def _linked_folder(
    name: str, path: str, top: Path, resolver: PathResolver, waiting: list[tuple[str, str]]
) -> Iterator[ResolvedPath]:
    real = os.path.realpath(path)
    if not resolver.permits(real):
        yield ResolvedPath(name, "refused", f"{name!r} is a link to a folder outside {str(top)!r}{_PERMIT}")
    elif not _lies_in(real, os.path.realpath(top)):
        waiting.append((name + "/", path))


def _name_problem(text: str) -> str:
    if "\0" in text:
        return "contains a NUL byte"
    if _ADDRESS.match(text):
        return "is an address, not a file: download it first"
    if _SERVER.match(text) or (_DRIVE.match(text) and sys.platform != "win32"):
        return "starts with a drive or a server: give paths relative to the root"
    if not text.isascii() and not _is_text(text):
        return "is not valid UTF-8: rename the file"
    return "names a folder" if text.endswith(("/", "/.", "/..")) or text in (".", "..") else ""


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _printable(text: str) -> str:
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")


def _lies_in(real: str, root: str) -> bool:
    return real == root or real.startswith(root.rstrip(os.sep) + os.sep)
