"""Classes that somebody made already: polygons, S2 cells, or mean directions, from a layer or a table.

Other systems publish their classes as tables of centres, some with S2 tokens; our own layers of partitions hold the
same columns and are read back as they were written.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely

from geo_mvmf import s2, s2_ids, sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs import table_columns, table_sources
from geo_mvmf.inputs.coordinate_systems import CRS84, parse_crs, resolve_crs
from geo_mvmf.inputs.layers import read_layer
from geo_mvmf.inputs.polygons import read_polygons
from geo_mvmf.suggestions import suggestion

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]

_CENTRES = (
    *table_columns.DEGREE_ALIASES,
    ("longitude_mean", "latitude_mean"),
    ("mean_longitude", "mean_latitude"),
    ("lon_mean", "lat_mean"),
    ("mean_lon", "mean_lat"),
    ("centre_longitude", "centre_latitude"),
    ("center_lon", "center_lat"),
    ("center_lng", "center_lat"),
)
_TOKENS = ("s2_cell", "s2_token", "cell", "token", "hex_id", "cell_id")
_SAY_S2 = ("s2_cell", "s2_token")  # the others may hold numbers of classes, or H3 cells: 1, 3 and many of H3 are tokens
_LEAST_CLASSES = 20  # of which it is said that longitude and latitude are swapped: of fewer it may be chance
_LEAST_SHARE = 0.9  # of classes whose place is at their cell; means of longitudes miss theirs at 180 degrees
_ROUNDED = 1e-6  # radians, 6 m: half of the fourth decimal of a degree
_POLYGONAL = ("Polygon", "MultiPolygon")
_WANTED = "classes are wanted: a layer of polygons or points (.gpkg .parquet .geojson), or a table of centres (.csv)"


class ClassTable(NamedTuple):
    """Classes as a file has them.

    Attributes
    ----------
    names : list of str
        Values of the column that names the classes, (C,); empty where none was named.
    places : ndarray of float64, shape (C, 2), or None
        Longitude and latitude of the mean directions; None where the file has none.
    cell_ids : ndarray of uint64, shape (C,)
        S2 cells; empty where the file has none.
    polygons : GeoDataFrame or None
        Rows in OGC:CRS84 with the index of their class in `class_index`.
    source : str
        For messages.
    """

    names: list[str]
    places: FloatArray | None
    cell_ids: IdArray
    polygons: gpd.GeoDataFrame | None
    source: str


def read_classes(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    column: str | None = None,
    layer: str | None = None,
    crs: str | pyproj.CRS | None = None,
) -> ClassTable:
    """Read classes.

    Parameters
    ----------
    source : path, DataFrame or GeoDataFrame
        A layer of polygons; a layer of points; or a table (.csv, DataFrame) with the columns longitude and latitude
        (or lon/lat, lng/lat, long/lat, longitude_mean/latitude_mean and the like). S2 tokens in a column s2_cell or
        s2_token go before polygons and points; so do those in `cell` (or token, hex_id, cell_id) where nine of ten lie
        at the place, point or polygon of their row, or there is none.
    column : str, optional
        Names the classes: polygons with the same value are one class. By default every row is one.
    layer, crs
        As `read_polygons`.

    Returns
    -------
    ClassTable
        In the order of the file, of a column's values in that of their first row.

    Raises
    ------
    BadInputError
        If the file cannot be read, has no such column, or says nowhere where its classes are; if two rows of a table
        of centres or cells have the same name; if longitude and latitude are swapped: of 20
        classes or more nine of ten lie in the S2 cell or polygon of their row, but only with the two exchanged.

    Warns
    -----
    UserWarning
        A column `cell` or the like holds what might be S2 tokens, but the classes lie elsewhere.

    Examples
    --------
    >>> read_classes(pd.DataFrame({"lon": [7.0], "lat": [51.0], "town": ["Essen"]}), column="town").names
    ['Essen']
    """
    frame, polygons, points, name = _read(source, layer, crs)
    names = _names(frame, column, name)
    cells = _cells(frame, polygons, points, name)
    if cells is None and polygons is not None:
        return _of_polygons(polygons, frame, names, name)
    if twice := [each for each, count in pd.Series(names, dtype=object).value_counts().items() if count > 1]:
        raise BadInputError(f"{name}: {twice[0]!r} stands in two rows of {column!r}; only polygons may be joined so")
    places = _places(frame, name)
    if places is None:
        places = points
    if places is None and cells is None:
        shown = table_columns.listed(frame.columns)
        has_x_y = {"x", "y"} <= {each.lower() for each in frame.columns}
        crs = f"; of x and y: {table_columns.NOT_DEGREES}" if has_x_y else ""
        raise BadInputError(
            f"{name} has neither polygons nor points nor columns longitude and latitude nor S2 tokens in 'cell'; its "
            f"columns are {shown}{crs}"
        )
    return ClassTable(names, places, np.empty(0, dtype=np.uint64) if cells is None else cells, None, name)


def _read(
    source: str | os.PathLike[str] | pd.DataFrame, layer: str | None, crs: str | pyproj.CRS | None
) -> tuple[pd.DataFrame, gpd.GeoDataFrame | None, FloatArray | None, str]:
    """Attributes, polygons or points, and the name of the source."""
    if isinstance(source, pd.DataFrame) and not isinstance(source, gpd.GeoDataFrame):
        return (
            _not_empty(source.rename(columns=str).reset_index(drop=True), "the DataFrame"),
            None,
            None,
            "the DataFrame",
        )
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in table_sources.CSV_SUFFIXES:
        texts = {*_TOKENS, *(each for pair in _CENTRES for each in pair)}
        frame = table_sources.read_csv(
            source, lambda names, _: [name for name in names if name.strip().lower() in texts]
        )
        return _not_empty(frame, str(source)), None, None, str(source)
    found = read_layer(source, layer=layer, wanted=_WANTED)
    kinds = {each.geom_type for each in (found.geometries if found.geometries is not None else ()) if each is not None}
    frame = _not_empty(found.frame.rename(columns=str).reset_index(drop=True), found.name)
    if kinds and kinds <= set(_POLYGONAL):
        return frame, read_polygons(source, layer=layer, crs=crs), None, found.name
    if kinds == {"Point"} and found.geometries is not None and None not in found.geometries.tolist():
        own = resolve_crs(found.crs, crs, found.name)
        x, y = shapely.get_coordinates(found.geometries).T
        return frame, None, _checked(x, y, own, {}, found.name), found.name
    return frame, None, None, found.name


def _not_empty(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    if not len(frame):
        raise BadInputError(f"{name} has no row, so no class")
    return frame


def _names(frame: pd.DataFrame, column: str | None, name: str) -> list[str]:
    if column is None:
        return []
    if column not in frame:
        shown = table_columns.listed(frame.columns)
        hint = suggestion(column, frame.columns)
        raise BadInputError(f"{name} has no column {column!r}; its columns are {shown}{hint}")
    return ["" if text is None else text for text in table_columns.as_text(frame[column])]


def _cells(
    frame: pd.DataFrame, polygons: gpd.GeoDataFrame | None, points: FloatArray | None, name: str
) -> IdArray | None:
    """S2 cells, where a column of the usual names holds tokens in every row."""
    lower = {column.strip().lower(): column for column in frame.columns}
    for known in _TOKENS:
        if known not in lower:
            continue
        texts = ["" if text is None else text.strip().lower() for text in table_columns.as_text(frame[lower[known]])]
        try:
            ids = s2_ids.from_token(texts)
        except ValueError:  # most numbers of classes, most H3 cells ...
            continue
        evidence = _evidence(frame, polygons, points, name)
        away = _away(ids, evidence)
        if evidence is not None:
            _check_swapped(away, _away(ids, _swapped(evidence)), evidence, "S2 cell", name)
        if known not in _SAY_S2 and away.sum() > (1.0 - _LEAST_SHARE) * len(ids):
            row = int(np.argmax(away))
            warnings.warn(
                f"{name}: {lower[known]!r} is not taken for S2 cells: {int(away.sum())} of {len(ids)} classes lie "
                f"elsewhere, first row {row + 1}, {texts[row]!r}; rename the column to s2_token if they are",
                stacklevel=3,
            )
            continue
        ordered = np.sort(ids)
        overlap = np.flatnonzero(s2_ids.range_min(ordered[1:]) <= s2_ids.range_max(ordered[:-1]))
        if overlap.size:
            pair = " and ".join(s2_ids.to_token(ordered[overlap[0] : overlap[0] + 2]).tolist())
            raise BadInputError(f"{name}: the S2 cells {pair} in {lower[known]!r} overlap; leave one out")
        return ids
    return None


def _evidence(
    frame: pd.DataFrame, polygons: gpd.GeoDataFrame | None, points: FloatArray | None, name: str
) -> FloatArray | None:
    """A longitude and latitude in each class, whatever says it, (C, 2)."""
    places = _places(frame, name)
    if places is None and polygons is not None:
        inner = shapely.point_on_surface(polygons.geometry.to_numpy())
        return np.stack([shapely.get_x(inner), shapely.get_y(inner)], axis=-1)  # NaN of an empty polygon
    return points if places is None else places


def _away(ids: IdArray, places: FloatArray | None) -> BoolArray:
    """Which places are not even in the circle about their cell; none where there are no places."""
    if places is None:
        return np.zeros(len(ids), dtype=np.bool_)
    directions = sphere.to_directions(places[:, 0], places[:, 1])
    chords = np.linalg.norm(directions - s2.centre(ids), axis=-1)
    reach = 2.0 * np.sin((s2.bounding_radius(ids) + _ROUNDED) / 2.0)
    return np.asarray(~(chords <= reach))


def _swapped(places: FloatArray) -> FloatArray:
    """Places the other way round; NaN where these are none."""
    return np.where(np.abs(places[:, :1]) <= 90.0, places[:, ::-1], np.nan)


def _check_swapped(away: BoolArray, away_swapped: BoolArray, places: FloatArray, shape: str, name: str) -> None:
    """Refuse places that lie in the cell or polygon of their row only the other way round."""
    if len(away) < _LEAST_CLASSES:
        return
    if away.mean() >= _LEAST_SHARE and (~away_swapped).mean() >= _LEAST_SHARE:
        raise BadInputError(
            f"{name}: longitude and latitude are swapped: {int((~away).sum())} of {len(away)} classes lie in the "
            f"{shape} of their row as they stand, {int((~away_swapped).sum())} the other way round; the first stands "
            f"at longitude {places[0, 0]:g}, latitude {places[0, 1]:g}; exchange the two"
        )


def _places(frame: pd.DataFrame, name: str) -> FloatArray | None:
    """Longitude and latitude in columns of the usual names."""
    lower = {column.strip().lower(): column for column in frame.columns}
    for first, second in _CENTRES:
        if first in lower and second in lower:
            x, problems = table_columns.parse_numbers(frame[lower[first]])
            y, more = table_columns.parse_numbers(frame[lower[second]])
            return _checked(x, y, parse_crs(CRS84), {**problems, **more}, name)
    return None


def _checked(x: FloatArray, y: FloatArray, crs: pyproj.CRS, problems: dict[int, str], name: str) -> FloatArray:
    """Every class needs a place; the first that has none is told."""
    checked = table_columns.check_coordinates(x, y, crs)
    problems = {**checked.problems, **problems}
    places = np.stack([checked.longitude, checked.latitude], axis=-1)
    absent = np.flatnonzero(~np.isfinite(places).all(axis=1))
    if absent.size:
        row = int(absent[0])
        fits = crs.is_geographic and (np.abs(np.stack([x, y])) <= [[90.0], [180.0]]).all()
        whole = table_columns.ALL_SWAPPED if fits and table_columns.are_several(absent.size, len(x)) else ""
        raise BadInputError(
            f"{name}: row {row + 1}: {problems.get(row, 'no longitude and latitude')}; a class needs them{whole}"
        )
    return places


def _of_polygons(polygons: gpd.GeoDataFrame, frame: pd.DataFrame, names: list[str], name: str) -> ClassTable:
    index = np.arange(len(polygons))
    if names:
        index, values = pd.factorize(np.array(names, dtype=object))
        names = [str(value) for value in values]
    # one mean direction in a row cannot be that of a class of several rows
    places = _places(frame, name) if len(np.unique(index)) == len(index) else None
    if places is not None:
        outside, swapped = (
            ~shapely.intersects_xy(polygons.geometry.to_numpy(), *each.T) for each in (places, _swapped(places))
        )
        _check_swapped(outside, swapped, places, "polygon", name)
    placed = polygons.assign(class_index=index)
    return ClassTable(names, places, np.empty(0, dtype=np.uint64), placed, name)
