"""Where photos were taken, and nothing else of them: what a partition is made of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geo_mvmf.inputs import table_columns, table_sources, tables
from geo_mvmf.inputs.coordinate_systems import resolve_crs, to_longitude_latitude
from geo_mvmf.inputs.layers import LAYER_SUFFIXES, read_layer

FloatArray = npt.NDArray[np.float64]

_SET_CRS = "ogr2ogr -a_srs EPSG:n new.gpkg FILE (QGIS: Assign projection)"


class PhotoPlaces(NamedTuple):
    """Places as they stand in a table, right or wrong.

    Attributes
    ----------
    longitude, latitude : ndarray of float64, shape (n,)
        Degrees; NaN where there is none.
    problems : dict of str to int
        Of an image table: what is wrong with how many rows that are left out.
    """

    longitude: FloatArray
    latitude: FloatArray
    problems: dict[str, int]


def read_photo_places(source: str | os.PathLike[str], *, exif: bool = False) -> PhotoPlaces:
    r"""Read places from an image table, or from a table of places without images.

    Parameters
    ----------
    source : path
        What `read_image_table` takes: then the rows that can be trained on are meant. A table without the columns
        `path` and `image_id`: all rows, whose positions are columns longitude and latitude (lon/lat, lng/lat,
        long/lat) or the points of a layer.
    exif : bool
        Take positions from EXIF where the table has none.

    Returns
    -------
    PhotoPlaces

    Raises
    ------
    BadInputError
        The source cannot be read as a whole.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "places.csv"
    >>> _ = path.write_text("LAT,LON\n51.5,7.0\n107.0,21.0\n")
    >>> read_photo_places(path).latitude.tolist()
    [51.5, 107.0]
    """
    found = None if exif or Path(source).is_dir() else _without_images(Path(source))
    if found is not None:
        return PhotoPlaces(*found, {})
    table = tables.read_image_table(source, exif=exif)
    used = table[tables.training_rows(table)]
    problems = {name: count for name, count in tables.describe_problems(table).items() if count and name != "rows"}
    problems.pop("trainable", None)
    return PhotoPlaces(used["longitude"].to_numpy(np.float64), used["latitude"].to_numpy(np.float64), problems)


def _without_images(source: Path) -> tuple[FloatArray, FloatArray] | None:
    """Positions of a table of places; None where it is one of images, or nothing that is understood."""
    suffix = source.suffix.lower()
    if suffix in table_sources.CSV_SUFFIXES:
        frame = table_sources.read_csv(source, lambda names, _: names)
        return None if _names_images(frame) else _columns(frame)
    if suffix not in LAYER_SUFFIXES:
        return None
    layer = read_layer(source)
    if _names_images(layer.frame):
        return None
    kinds = set() if layer.geometries is None else {each.geom_type for each in layer.geometries if each is not None}
    if kinds != {"Point"}:
        return _columns(layer.frame)
    crs = resolve_crs(layer.crs, None, layer.name, elsewhere=_SET_CRS)
    x, y = to_longitude_latitude(shapely.get_x(layer.geometries), shapely.get_y(layer.geometries), crs)
    return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)


def _names_images(frame: pd.DataFrame) -> bool:
    return bool({"path", "image_id"} & {str(name).strip().lower() for name in frame.columns})


def _columns(frame: pd.DataFrame) -> tuple[FloatArray, FloatArray] | None:
    lower = {str(name).strip().lower(): name for name in frame.columns}
    for first, second in table_columns.COORDINATE_ALIASES[:-1]:  # x and y say nothing about their CRS
        if first in lower and second in lower:
            x, _ = table_columns.parse_numbers(frame[lower[first]])
            y, _ = table_columns.parse_numbers(frame[lower[second]])
            return x, y
    return None
