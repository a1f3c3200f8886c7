"""The columns of an image table: which is which, and numbers out of whatever stands in the cells."""

from __future__ import annotations

import itertools
import re
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.coordinate_systems import is_crs84, to_longitude_latitude

FloatArray = npt.NDArray[np.float64]

DEGREE_ALIASES = (("longitude", "latitude"), ("lon", "lat"), ("lng", "lat"), ("long", "lat"))
"""Names of columns of longitude and latitude that are understood, in this order, whatever their case."""

COORDINATE_ALIASES = (*DEGREE_ALIASES, ("x", "y"))
"""Names of coordinate columns of images: x and y only with a CRS."""

SWAPPED = "are longitude and latitude swapped?"
"""Part of the message of a row whose values would be in range the other way round."""

ALL_SWAPPED = "; probably the whole file has longitude and latitude swapped"
"""Said where `are_several` rows are out of range, and all would be in range the other way round."""

_EXCHANGE = ", so the other rows are wrong, too; exchange the two columns"
_PERHAPS = (
    "; the other rows lie within 90 degrees both ways: if the whole file has the two swapped, exchange the columns"
)

PROJECTED = 1000.0
"""No latitude is written so large, and hardly a place of a projection so small."""

NOT_DEGREES = "degrees of EPSG:4326 are wanted, or a layer of points that states its CRS"
"""What to do with coordinates of a projection, where no option gives their CRS."""

_NOTHING = frozenset(["", "nan", "na", "n/a", "null", "none", "<na>"])
_SLIPS, _SLIPS_COUNT = 1e-2, 3  # share and number of rows
_SURE = 0.2  # share of the places: of a table of Europe fewer may be slips, of the Earth more are beyond 90 degrees
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


class Columns(NamedTuple):
    """The names that the columns of interest have in a table; None where there is no such column."""

    path: str
    image_id: str | None
    weight: str | None
    first: str | None
    second: str | None


class Coordinates(NamedTuple):
    """Positions of all rows.

    Attributes
    ----------
    longitude, latitude : ndarray of float64, shape (n,)
        Degrees in OGC:CRS84; NaN where absent or wrong.
    problems : dict
        Row -> what is wrong with its values, which are shown.
    """

    longitude: FloatArray
    latitude: FloatArray
    problems: dict[int, str]

    def swapped(self) -> tuple[str, bool]:
        """Say that the whole table seems to have longitude and latitude swapped.

        `are_several` rows are out of range then, and all would be in range the other way round.

        Returns
        -------
        told : str
            How many rows show it, the first, and what to do; empty where it does not seem so.
        is_sure : bool
            Whether a fifth of the rows with a place show it, so that these are no slips.

        Examples
        --------
        >>> from geo_mvmf.inputs.coordinate_systems import parse_crs
        >>> x, y = np.array([51.0, 48.0, -33.0]), np.array([107.0, 116.0, 151.0])
        >>> told, is_sure = check_coordinates(x, y, parse_crs("OGC:CRS84")).swapped()
        >>> told[:40], is_sure
        ('3 of 3 rows have no place that can be us', True)
        """
        known = self.longitude[np.isfinite(self.longitude)]
        exchanged, rows = sum(SWAPPED in problem for problem in self.problems.values()), len(self.longitude)
        is_all = exchanged == len(self.problems) and bool((np.abs(known) <= 90.0).all())
        if not (are_several(exchanged, rows) and is_all):
            return "", False
        row, is_sure = min(self.problems), exchanged >= _SURE * (exchanged + len(known))
        return (
            f"{exchanged} of {rows} rows have no place that can be used; the first is row {row + 1}: "
            f"{self.problems[row].removesuffix(f'; {SWAPPED}')}{ALL_SWAPPED + _EXCHANGE if is_sure else _PERHAPS}"
        ), is_sure


def find_columns(names: list[str], where: str, *, image_id_suffices: bool = False) -> Columns:
    """Find the columns of an image table by name, whatever their case.

    Parameters
    ----------
    names : list of str
        Of all columns.
    where : str
        The table, for messages.
    image_id_suffices : bool
        Whether ``image_id`` may stand for a missing ``path``: in a table of places no image is opened.

    Raises
    ------
    BadInputError
        If there is no column ``path``, or two names are the same but for their case.

    Examples
    --------
    >>> find_columns(["Path", "Lon", "LAT"], "a.csv")
    Columns(path='Path', image_id=None, weight=None, first='Lon', second='LAT')
    """
    known: dict[str, str] = {}
    wanted = {"path", "image_id", "weight", *(name for pair in COORDINATE_ALIASES for name in pair)}
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInputError(f"{where}: there are two columns {twice!r}; rename one")
    for name in names:
        lower = name.strip().lower()
        if lower in known:
            raise BadInputError(f"{where}: the columns {known[lower]!r} and {name!r} mean the same; rename one")
        if lower in wanted:
            known[lower] = name
    if image_id_suffices and "image_id" in known:
        known.setdefault("path", known["image_id"])
    if "path" not in known:
        shown = listed(names)
        wanted_names = "'path' or 'image_id'" if image_id_suffices else "'path'"
        rename = f"; rename the one that names the images to {wanted_names}" if names else ""
        raise BadInputError(f"{where} has no column {wanted_names}; its columns are {shown}{rename}")
    pair = next((pair for pair in COORDINATE_ALIASES if set(pair) <= set(known)), None)
    first, second = (known[name] for name in pair) if pair else (None, None)
    return Columns(known["path"], known.get("image_id"), known.get("weight"), first, second)


def listed(names: Iterable[object]) -> str:
    """Name the first columns of a table, for a message.

    Parameters
    ----------
    names : iterable

    Examples
    --------
    >>> listed(["path", "lon"]), listed([])
    ("'path', 'lon'", 'none')
    """
    return ", ".join(repr(str(name)) for name in itertools.islice(names, 20)) or "none"


def are_several(number: int, of: int) -> bool:
    """Tell whether so many rows of a table are more than a slip or two of the pen.

    Parameters
    ----------
    number, of : int
        Rows, and all rows.

    Examples
    --------
    >>> are_several(2, 10), are_several(3, 10), are_several(3, 1000)
    (False, True, False)
    """
    return number >= max(_SLIPS_COUNT, _SLIPS * of)


def parse_numbers(column: pd.Series[Any]) -> tuple[FloatArray, dict[int, str]]:
    """Read a column as numbers.

    Parameters
    ----------
    column : Series of any dtype, shape (n,)
        Cells; empty ones and the usual words for nothing are NaN.

    Returns
    -------
    values : ndarray of float64, shape (n,)
        NaN where there is none.
    problems : dict
        Row -> why the cell is no number.

    Examples
    --------
    >>> values, problems = parse_numbers(pd.Series(["7.5", "", "51,25"]))
    >>> values.tolist(), problems
    ([7.5, nan, nan], {2: "'51,25' has a decimal comma; write 51.25"})
    """
    if column.dtype.kind in "iuf":
        return np.array(column.to_numpy(dtype=np.float64, na_value=np.nan)), {}  # a copy: columns are read-only
    numbers = np.array(pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan))
    found = ~np.isnan(numbers)
    numbers[found] = column.to_numpy(dtype=object)[found].astype(np.float64)  # pandas 2 errs in the last digit
    problems = {}
    for row in np.flatnonzero(np.isnan(numbers) & column.notna().to_numpy()):
        text = str(column.iloc[int(row)]).strip()
        if text.lower() in _NOTHING:
            continue
        comma = _DECIMAL_COMMA.fullmatch(text)
        hint = f" has a decimal comma; write {text.replace(',', '.')}" if comma else " is not a number"
        problems[int(row)] = f"{text[:80]!r}{hint}"
    return numbers, problems


def check_coordinates(x: FloatArray, y: FloatArray, crs: pyproj.CRS, *, metres: str = NOT_DEGREES) -> Coordinates:
    """Bring positions to OGC:CRS84; what is out of range is told, never changed.

    Parameters
    ----------
    x, y : ndarray of float64, shape (n,)
        Easting or longitude first; NaN where absent.
    crs : pyproj.CRS
        Theirs.
    metres : str
        What to do where degrees look like metres of a projection, for messages.

    Examples
    --------
    >>> from geo_mvmf.inputs.coordinate_systems import parse_crs
    >>> check_coordinates(np.array([51.0]), np.array([107.0]), parse_crs("OGC:CRS84")).problems
    {0: 'latitude 107.0 is not in -90..90; are longitude and latitude swapped?'}
    """
    problems = _absent_halves(x, y)
    present = ~(np.isnan(x) | np.isnan(y))
    longitude, latitude = np.full(x.shape, np.nan), np.full(x.shape, np.nan)
    usable = present & np.isfinite(x) & np.isfinite(y)
    if crs.is_geographic:  # PROJ would turn 200 into -160 without a word
        usable &= (np.abs(x) <= 180.0) & (np.abs(y) <= 90.0)
    longitude[usable], latitude[usable] = to_longitude_latitude(x[usable], y[usable], crs)
    good = usable & (np.abs(longitude) <= 180.0) & (np.abs(latitude) <= 90.0)
    for row in np.flatnonzero(present & ~good):
        problems[int(row)] = _range_problem(float(x[row]), float(y[row]), crs, metres)
    longitude[~good], latitude[~good] = np.nan, np.nan
    return Coordinates(longitude, latitude, problems)


def as_text(column: pd.Series[Any]) -> list[str | None]:
    """Write a column of identifiers as text: whole numbers without a decimal point, nothing as None.

    Parameters
    ----------
    column : Series of any dtype, shape (n,)
        Cells.

    Examples
    --------
    >>> as_text(pd.Series([7.0, None])), as_text(pd.Series(["007", ""]))
    (['7', None], ['007', None])
    """
    if column.dtype.kind == "f" and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    cells: list[Hashable] = column.astype(object).where(column.notna(), None).tolist()
    return [None if cell is None or cell == "" else str(cell) for cell in cells]


def _absent_halves(x: FloatArray, y: FloatArray) -> dict[int, str]:
    rows = np.flatnonzero(np.isnan(x) != np.isnan(y))
    return {int(row): f"only one of the two coordinates ({x[row]}, {y[row]}) is given" for row in rows}


def _range_problem(x: float, y: float, crs: pyproj.CRS, metres: str) -> str:
    if not crs.is_geographic:
        return f"({x}, {y}) in {crs.name} has no longitude and latitude"
    swapped = f"; {SWAPPED}" if abs(x) <= 90.0 < abs(y) <= 180.0 else ""
    if not abs(y) <= 90.0:
        hint = f"; metres? {metres}" if abs(y) > PROJECTED else ""
        return f"latitude {y} is not in -90..90{swapped}{hint}"
    if not abs(x) <= 180.0:
        circle = "; subtract 360" if 180.0 < x <= 360.0 else ""
        return f"longitude {x} is not in -180..180{circle}"
    shown = "" if is_crs84(crs) else f" in {crs.name}"
    return f"({x}, {y}){shown} has no longitude and latitude"
