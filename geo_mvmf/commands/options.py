"""Texts of options -> values, or a UsageError that names the option and shows what was written."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_mvmf import durable
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.progress import Failure

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_FAILURES = 3
_SHOWN_LETTERS = 200


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Read numbers with commas between them.

    Parameters
    ----------
    option : str
        Its name, for the message.
    text : str

    Returns
    -------
    tuple of float
        Finite.

    Raises
    ------
    UsageError
        If a part is not a finite number.

    Examples
    --------
    >>> numbers("--levels", "0.5,0.9")
    (0.5, 0.9)
    """
    example = "5,40,15,50" if option == "--bounds" else "0.5,0.9"
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(math.isfinite(value) for value in found):
        raise UsageError(f"{option} {text!r}: numbers with commas between them are wanted, such as {example}")
    return found


def levels(text: str | None) -> tuple[float, ...] | None:
    """Read credible levels.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    tuple of float or None
        Between 0 and 1; None for None.

    Raises
    ------
    UsageError
        If one is not strictly between 0 and 1.

    Examples
    --------
    >>> levels("0.5,0.9")
    (0.5, 0.9)
    """
    if text is None:
        return None
    found = numbers("--levels", text)
    if not all(0.0 < level < 1.0 for level in found):
        raise UsageError(f"--levels {text!r}: probabilities between 0 and 1 are wanted, such as 0.5,0.9")
    return found


def bands(text: str | None) -> tuple[int, ...] | None:
    """Read band numbers.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    tuple of int or None
        From 1; None for None.

    Raises
    ------
    UsageError
        If one is not a positive whole number.

    Examples
    --------
    >>> bands("4,3,2")
    (4, 3, 2)
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--bands {text!r}: band numbers from 1 with commas between them are wanted, such as 4,3,2")
    return tuple(int(part) for part in parts)


def stretch(text: str | None) -> Any:
    """Read what becomes 0 and 255: "auto", or low,high for every band.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    None, "auto" or tuple of (low, high)

    Raises
    ------
    UsageError
        If the numbers are not in pairs.

    Examples
    --------
    >>> stretch("0,3000")
    ((0.0, 3000.0),)
    """
    if text is None or text == "auto":
        return text
    values = numbers("--stretch", text)
    if len(values) % 2:
        raise UsageError(f"--stretch {text!r}: auto, or low,high for every band, such as 0,3000,0,3000,0,3000")
    return tuple(zip(values[::2], values[1::2], strict=True))


def positive(option: str, value: float | None) -> float | None:
    """Refuse a number that is not above 0.

    Parameters
    ----------
    option : str
        Its name, for the message.
    value : float or None

    Returns
    -------
    float or None
        The same.

    Raises
    ------
    UsageError
        If it is not finite and above 0.

    Examples
    --------
    >>> positive("--bandwidth-km", 25.0)
    25.0
    """
    if value is not None and not (math.isfinite(value) and value > 0.0):
        raise UsageError(f"{option} {value:g}: a number above 0 is wanted")
    return value


def check_suffix(out: Path, allowed: Iterable[str], option: str = "--out") -> None:
    """Refuse an output whose suffix says nothing, before hours are spent on it.

    Parameters
    ----------
    out : path
    allowed : iterable of str
    option : str
        Its name on the command line.

    Raises
    ------
    UsageError
        If the suffix is another.

    Examples
    --------
    >>> check_suffix(Path("a.kml"), [".gpkg", ".csv"])
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: --out a.kml: the suffix is '.kml'; .gpkg or .csv is wanted
    """
    allowed = tuple(allowed)
    if out.suffix.lower() not in allowed:
        raise UsageError(f"{option} {out}: the suffix is {out.suffix!r}; {' or '.join(allowed)} is wanted")


def check_new(*outs: Path, overwrite: bool) -> None:
    """Refuse to replace a result, before hours are spent on another.

    Parameters
    ----------
    *outs : path
    overwrite : bool
        Whether the user asked for it.

    Raises
    ------
    OutputError
        If one exists and overwriting was not asked for, or none can be written there.

    Examples
    --------
    >>> check_new(Path("no/such/file.gpkg"), overwrite=False)
    """
    if not overwrite:
        durable.require_new(*outs)
    for out in outs:
        durable.require_folder(out)


def check_images(source: Path, found: int) -> None:
    """Refuse a folder without images, or a table without rows: a wrong one was named.

    Parameters
    ----------
    source : path
    found : int
        Number of images in it.

    Raises
    ------
    BadInputError
        If there is none.

    Examples
    --------
    >>> check_images(Path("photos"), 3)
    """
    from geo_mvmf.inputs.photo_files import IMAGE_SUFFIXES

    if not found and not source.is_dir():
        raise BadInputError(f"{source}: the table has no rows of data, so no images")
    if not found:
        raise BadInputError(f"{source}: the folder holds no image; these are looked for: {', '.join(IMAGE_SUFFIXES)}")


def images(number: int) -> str:
    """Say how many images there are.

    Parameters
    ----------
    number : int

    Examples
    --------
    >>> images(1), images(12)
    ('1 image', '12 images')
    """
    return f"{number} image{'s' if number != 1 else ''}"


def counts(status: Iterable[object]) -> str:
    """Say how often each value occurs, the most frequent first.

    Parameters
    ----------
    status : iterable

    Returns
    -------
    str

    Examples
    --------
    >>> counts(["ok", "missing", "ok"])
    '2 ok, 1 missing'
    """
    found = collections.Counter(str(value) for value in status)
    return ", ".join(f"{number} {name}" for name, number in found.most_common()) or "no images"


def failures(rows: pd.DataFrame) -> list[Failure]:
    """List the rows that could not be used.

    Parameters
    ----------
    rows : DataFrame
        With the columns path, status and message; image_id stands for a path that is not known.

    Returns
    -------
    list of Failure

    Examples
    --------
    >>> import pandas
    >>> rows = pandas.DataFrame({"path": ["a", "b"], "status": ["ok", "missing"], "message": ["", "b: no such file"]})
    >>> failures(rows)
    [Failure(path='b', status='missing', message='b: no such file')]
    """
    bad = rows[rows["status"] != "ok"]
    is_known = bad["path"].notna() & (bad["path"] != "")
    paths = bad["path"].where(is_known, bad.get("image_id", ""))
    return list(map(Failure, paths.astype(str), bad["status"].astype(str), bad["message"].astype(str)))


def first_failures(rows: pd.DataFrame) -> tuple[str, list[str]]:
    """Say of the first rows that could not be used why, in a few lines however many there are.

    Parameters
    ----------
    rows : DataFrame
        As `failures`.

    Returns
    -------
    which : str
        "; the first 3" where there are more.
    lines : list of str

    Examples
    --------
    >>> import pandas
    >>> rows = pandas.DataFrame({"path": ["a", "b"], "status": ["ok", "missing"], "message": ["", "no such file"]})
    >>> first_failures(rows)
    ('', ['  b: no such file'])
    """
    bad = rows[rows["status"] != "ok"]
    which = f"; the first {_SHOWN_FAILURES}" if len(bad) > _SHOWN_FAILURES else ""
    return which, ["  " + plain(_told(failure)) for failure in failures(bad.head(_SHOWN_FAILURES))]


def _told(failure: Failure) -> str:
    """The message of a failure, beginning with its path within the folder, which is known."""
    if not failure.path:
        return failure.message
    head, path, reason = failure.message.partition(failure.path)
    if not path:
        return f"{failure.path}: {failure.message}"
    return path + reason if head.endswith("/") else failure.message


def plain(text: str) -> str:
    """Make a text of files and tables of others one line of a terminal, without what would steer it.

    Parameters
    ----------
    text : str
        Of more than 200 letters the first are shown.

    Examples
    --------
    >>> plain("a" + chr(27) + "[31m.jpg")
    'a?[31m.jpg'
    """
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN_LETTERS])
    return shown + ("..." if len(text) > _SHOWN_LETTERS else "")


def row_counts(rows: pd.DataFrame) -> dict[str, Any]:
    """Count rows for programs.

    Parameters
    ----------
    rows : DataFrame
        With the column status, and area_90_km2 where the rows are predictions.

    Returns
    -------
    dict
        ok, failed and, where they are known, median_area_90_km2 and unlike_training (see
        `row_contract.unlike_training`).

    Examples
    --------
    >>> import pandas
    >>> row_counts(pandas.DataFrame({"status": ["ok", "missing"], "area_90_km2": [5.0, math.nan]}))
    {'ok': 1, 'failed': 1, 'median_area_90_km2': 5.0}
    """
    good = int((rows["status"] == "ok").sum())
    found: dict[str, Any] = {"ok": good, "failed": len(rows) - good}
    if "area_90_km2" in rows and rows["area_90_km2"].notna().any():
        found["median_area_90_km2"] = float(rows["area_90_km2"].median())
    if "feature_distance" in rows and rows["feature_distance"].notna().any():
        from geo_mvmf.row_contract import unlike_training

        found["unlike_training"] = unlike_training(rows)[0]
    return found
