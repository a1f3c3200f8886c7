"""Names of files that are being written: they say who writes them, so that what killed writers left can be told.

A name is ".geo-mvmf-<space>-<pid>-<8 hex>-" in front of the final one: the suffixes stay, because writers choose
drivers by them. A pid means something in its own space of processes alone, which is one boot of one machine, or one
container on it. Former versions wrote no space. With "~" in place of the last "-" it is an old folder that was set
aside.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import platform
import re
import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_NAME = re.compile(r"^\.geo-mvmf-(?:([0-9a-f]{8})-)?(\d+)-[0-9a-f]{8}([-~])(.+)", re.DOTALL)
_ABANDONED_S = 7 * 86400.0  # no writer pauses for a week, and the clocks of other machines are wrong by less
_STUCK_S = 60.0  # of what takes a writer that lives a moment: a folder is set aside for as long as a rename takes


def temporary_name(final: Path, *, aside: bool = False) -> Path:
    """Make a name that nothing has, in the folder of a file or folder that this process writes.

    Parameters
    ----------
    final : Path
    aside : bool
        Whether it is for the old folder, while the new one takes its name.

    Returns
    -------
    Path

    Examples
    --------
    >>> name = temporary_name(Path("maps/a.tif"))
    >>> name.parent.name, name.suffix, str(os.getpid()) in name.name
    ('maps', '.tif', True)
    """
    mark = "~" if aside else "-"
    return final.with_name(f".geo-mvmf-{_space()}-{os.getpid()}-{secrets.token_hex(4)}{mark}{final.name}")


def abandoned(folder: Path, *, held: bool = False) -> Iterator[tuple[Path, Path | None]]:
    """Find what killed writers left in a folder.

    Whether a process of another space lives (on another machine that shares the disk, in another container, or before
    a restart) cannot be known here, and on Windows of no process: what it writes counts once nothing of it has changed
    for a week; after a minute, a folder that was set aside and has no successor, and everything where nobody else
    should be writing.

    Parameters
    ----------
    folder : Path
    held : bool
        Whether this process holds the folder, so that nobody else should be writing there.

    Yields
    ------
    entry : Path
    final : Path or None
        Of an old folder that was set aside: what its name was.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> temporary_name(folder / "a").touch()
    >>> list(abandoned(folder))  # this process lives
    []
    """
    for entry in sorted(folder.iterdir()):
        match = _NAME.match(entry.name)
        if match:
            space, process, mark, name = match.groups()
            final = entry.with_name(name) if mark == "~" else None
            is_stuck = held or (final is not None and not os.path.lexists(final))
            if _is_abandoned(entry, space, int(process), _STUCK_S if is_stuck else _ABANDONED_S):
                yield entry, final


def _is_abandoned(entry: Path, space: str | None, process: int, seconds: float) -> bool:
    if space == _space() and sys.platform != "win32":  # where there is no such question: os.kill ends what it names
        return not _is_alive(process)
    limit = time.time() - seconds
    with contextlib.suppress(FileNotFoundError):  # renamed or removed just now, so somebody is at work
        # The time of change where there is one: setting a folder aside leaves that of modification as it was.
        found = (path.lstat() for path in itertools.chain([entry], entry.rglob("*")))
        return all(max(each.st_ctime, each.st_mtime) < limit for each in found)
    return False


def _space() -> str:
    parts = [platform.node()]
    with contextlib.suppress(OSError):  # of Linux; host names alone are not always different
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
