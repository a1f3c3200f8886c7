"""Where photos were taken, and nothing else of them: what a partition is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs import table_columns, table_rows, table_sources, tables
from geo_mvmf.inputs.coordinate_systems import stated_crs, to_longitude_latitude
from geo_mvmf.inputs.layers import LAYER_SUFFIXES, read_layer

FloatArray = npt.NDArray[np.float64]

_NAMES = "longitude and latitude (or lon/lat, lng/lat, long/lat)"


class PhotoPlaces(NamedTuple):
    """Places as they stand in a table, right or wrong.

    Attributes
    ----------
    longitude, latitude : ndarray of float64, shape (n,)
        Degrees; NaN where there is none.
    problems : dict of str to int
        Of an image table: what is wrong with how many rows that are left out.
    first_problem : str
        The first row that has no position, or of an image table cannot be used, and what stands there; "" for none.
        Rows of data count from 1.
    """

    longitude: FloatArray
    latitude: FloatArray
    problems: dict[str, int]
    first_problem: str = ""


def read_photo_places(
    source: str | os.PathLike[str], *, exif: bool = False, root: str | os.PathLike[str] | None = None
) -> PhotoPlaces:
    r"""Read places from an image table, or from a table of places without images.

    Parameters
    ----------
    source : path
        What `read_image_table` takes: then the rows that can be trained on are meant. A table without the columns
        `path` and `image_id`: all rows, whose positions are columns longitude and latitude (lon/lat, lng/lat,
        long/lat) or the points of a layer.
    exif : bool
        Take positions from EXIF where the table has none.
    root : path, optional
        As `read_image_table`.

    Returns
    -------
    PhotoPlaces

    Raises
    ------
    BadInputError
        The source cannot be read as a whole, has no rows, or is a table of neither images nor places; or no image
        can be used.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "places.csv"
    >>> _ = path.write_text("LAT,LON\n51.5,7.0\n107.0,21.0\n")
    >>> read_photo_places(path).latitude.tolist()
    [51.5, 107.0]
    """
    found = None if exif or Path(source).is_dir() else _without_images(Path(source))
    return _of_images(source, exif=exif, root=root) if found is None else found


def _of_images(source: str | os.PathLike[str], *, exif: bool, root: str | os.PathLike[str] | None) -> PhotoPlaces:
    table = tables.read_image_table(source, exif=exif, root=root)
    _check_rows(len(table), source)
    good = table_rows.training_rows(table)
    problems = {name: count for name, count in table_rows.describe_problems(table).items() if count and name != "rows"}
    problems.pop("trainable", None)
    first = "" if good.all() else _first_image(table, int(np.argmin(good)))
    if not good.any():
        raise BadInputError(_no_image(source, table, problems, first, exif=exif))
    used = table[good]
    x, y = used["longitude"].to_numpy(np.float64), used["latitude"].to_numpy(np.float64)
    if table.attrs["swapped"]:
        first += table_columns.ALL_SWAPPED
    return PhotoPlaces(x, y, problems, first)


def _first_image(table: pd.DataFrame, row: int) -> str:
    wrong = "no position" if np.isnan(table["longitude"].iloc[row]) else f"weight {table['weight'].iloc[row]}"
    message = str(table["message"].iloc[row]) or f"row {row + 1}: {table['path'].iloc[row]!r} has {wrong}"
    return f"the first image that cannot be used: {message}"


def _no_image(
    source: str | os.PathLike[str], table: pd.DataFrame, problems: dict[str, int], first: str, *, exif: bool
) -> str:
    if table["status"].eq("ok").all() and problems.get("without_coordinates") == len(table):
        elsewhere = "not even in EXIF; give" if exif else "add --exif, or give"
        separator = "," if exif else ";"
        return (
            f"{os.fspath(source)}: {len(table)} images, none with a position{separator} {elsewhere} a table with "
            "longitude and latitude"
        )
    counts = ", ".join(f"{count} {name}" for name, count in problems.items())
    return f"{os.fspath(source)}: none of {len(table)} images can be used ({counts}); {first}"


def _check_rows(number: int, source: str | os.PathLike[str]) -> None:
    if not number:
        what = "holds no image" if Path(source).is_dir() else "has no rows of data"
        raise BadInputError(f"{os.fspath(source)} {what}, so no places")


def _without_images(source: Path) -> PhotoPlaces | None:
    """Positions of a table of places; None where it is one of images, or no table."""
    suffix = source.suffix.lower()
    if suffix in table_sources.CSV_SUFFIXES:
        frame = table_sources.read_csv(source, lambda names, _: names)
        return None if _names_images(frame) else _of_columns(frame, source)
    if suffix not in LAYER_SUFFIXES:
        return None
    layer = read_layer(source)
    if _names_images(layer.frame):
        return None
    _check_rows(len(layer.frame), source)
    kinds = set() if layer.geometries is None else {each.geom_type for each in layer.geometries if each is not None}
    if kinds != {"Point"}:
        return _of_columns(layer.frame, source)
    crs = stated_crs(layer.crs, layer.name)
    points: Any = layer.geometries
    x, y = to_longitude_latitude(shapely.get_x(points), shapely.get_y(points), crs)
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    row = _first_missing(x, y)
    return PhotoPlaces(x, y, {}) if row is None else _with_first(source, x, y, row, f"its geometry is {points[row]}")


def _names_images(frame: pd.DataFrame) -> bool:
    return bool({"path", "image_id"} & {str(name).strip().lower() for name in frame.columns})


def _of_columns(frame: pd.DataFrame, source: Path) -> PhotoPlaces:
    lower = {str(name).strip().lower(): name for name in frame.columns}
    for pair in table_columns.DEGREE_ALIASES:  # x and y say nothing about their CRS
        if set(pair) <= set(lower):
            _check_rows(len(frame), source)
            cells = [frame[lower[name]] for name in pair]
            (x, wrong_x), (y, wrong_y) = map(table_columns.parse_numbers, cells)
            row = _first_missing(x, y)
            if row is None:
                return PhotoPlaces(x, y, {})
            found = zip(cells, (x, y), (wrong_x, wrong_y), strict=True)
            wrong = [_cell(cell, row, problems) for cell, values, problems in found if not np.isfinite(values[row])]
            return _with_first(source, x, y, row, " and ".join(wrong))
    shown = table_columns.listed(frame.columns)
    crs = "; x and y do not say their CRS: a layer of points does" if {"x", "y"} <= set(lower) else ""
    raise BadInputError(f"{source} has neither columns {_NAMES} nor 'path' of images; its columns are {shown}{crs}")


def _with_first(source: Path, x: FloatArray, y: FloatArray, row: int, what: str) -> PhotoPlaces:
    """Keep what stands in the first row without a position, or refuse the table if no row has one."""
    first = f"the first row without a position (data rows count from 1): row {row + 1}: {what}"
    if not (np.isfinite(x) & np.isfinite(y)).any():
        raise BadInputError(f"{source}: none of its {len(x)} rows has a position that can be read; {first}")
    return PhotoPlaces(x, y, {}, first)


def _first_missing(x: FloatArray, y: FloatArray) -> int | None:
    missing = ~(np.isfinite(x) & np.isfinite(y))
    return int(np.argmax(missing)) if missing.any() else None


def _cell(column: pd.Series[Any], row: int, problems: dict[int, str]) -> str:
    value = column.iloc[row]
    shown = problems.get(row) or ("is empty" if pd.isna(value) or value == "" else f"is {value!r}")
    return f"{column.name} {shown}"
