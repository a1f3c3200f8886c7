"""Point predictions of any system, with the true places beside them: a table of four numbers a row."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs import table_columns, table_sources
from geo_mvmf.inputs.coordinate_systems import CRS84, parse_crs, stated_crs
from geo_mvmf.inputs.layers import Layer, read_layer

PREDICTED = ("longitude", "latitude")
TRUE = ("true_longitude", "true_latitude")
_NAMES = {name for pair in table_columns.DEGREE_ALIASES for name in pair}


def read_point_predictions(
    source: str | os.PathLike[str] | pd.DataFrame, *, needs_truth: bool = True, layer: str | None = None
) -> pd.DataFrame:
    """Read point predictions of any system.

    Parameters
    ----------
    source : path, DataFrame or GeoDataFrame
        CSV (or .gpkg, .parquet, .geojson) with the columns longitude, latitude, true_longitude, true_latitude in
        degrees of OGC:CRS84 (or lon, lat, true_lon, true_lat, as image tables have them); image_id and any others.
        An empty prediction is an image without one. The points of a layer, in any CRS, stand for the first two where
        it has no such columns.
    needs_truth : bool
        Whether the true places must be in this table.
    layer : str, optional
        For a GeoPackage with several; the only one of points need not be named.

    Returns
    -------
    DataFrame
        image_id (text; else the path, as of image tables; else the row's number), the four columns as float64, NaN
        where empty, and all others.

    Raises
    ------
    BadInputError
        If a column is missing, or a place is not one: such rows would change the figures whether they are dropped
        or counted.

    Warns
    -----
    UserWarning
        If the points of a layer are taken for the predictions: they may be the true places of a layer whose predictions
        are in columns of other names.

    Examples
    --------
    >>> frame = pd.DataFrame({"longitude": [7.0, None], "latitude": [50.0, None], "true_longitude": 8.0,
    ...                       "true_latitude": 51.0})
    >>> read_point_predictions(frame)["image_id"].tolist()
    ['1', '2']
    >>> read_point_predictions(frame.iloc[:1].assign(longitude=200.0))
    Traceback (most recent call last):
    geo_mvmf.errors.BadInputError: the DataFrame: row 1: longitude 200.0 is not in -180..180; subtract 360; mend
    longitude, latitude, or leave both empty: an image without a prediction counts as wrong
    """
    wanted = (*PREDICTED, *TRUE) if needs_truth else PREDICTED
    frame, name = _frame(source, layer)
    shown = table_columns.listed(frame.columns)
    frame = frame.rename(columns=_plain_names(list(frame.columns)))
    found: dict[str, str] = {}
    for column in frame.columns:
        if (lower := column.strip().lower()) in found and lower in wanted:
            raise BadInputError(f"{name}: the columns {found[lower]!r} and {column!r} mean the same; rename one")
        found[lower] = column
    missing = [column for column in wanted if column not in found]
    if missing:
        raise BadInputError(f"{name} has no column {missing[0]!r}; its columns are {shown}")
    frame = frame.rename(columns={found[column]: column for column in (*PREDICTED, *TRUE) if column in found})
    for pair in (PREDICTED, TRUE) if TRUE[0] in frame and TRUE[1] in frame else (PREDICTED,):
        frame[pair[0]], frame[pair[1]] = _places(frame, pair, name)
    named = next((found[column] for column in ("image_id", "path") if column in found), None)
    ids = [None] * len(frame) if named is None else table_columns.as_text(frame[named])
    frame["image_id"] = [str(row + 1) if text is None else text for row, text in enumerate(ids)]
    return frame


def _plain_names(columns: Iterable[str]) -> dict[str, str]:
    """Columns by other names of longitude and latitude, where the plain names are not there."""
    given = {column.strip().lower(): column for column in columns}
    found: dict[str, str] = {}
    for prefix, plain in (("", PREDICTED), ("true_", TRUE)):
        for pair in table_columns.DEGREE_ALIASES:
            names = [prefix + name for name in pair]
            if not {*plain} & {*given} and {*names} <= {*given}:
                found |= {given[name]: meant for name, meant in zip(names, plain, strict=True)}
                break
    return found


def _frame(source: str | os.PathLike[str] | pd.DataFrame, layer: str | None) -> tuple[pd.DataFrame, str]:
    if isinstance(source, gpd.GeoDataFrame):
        return _of_layer(read_layer(source))
    if isinstance(source, pd.DataFrame):
        plain = pd.DataFrame(source).drop(columns="geometry", errors="ignore")
        return plain.rename(columns=str).reset_index(drop=True), "the DataFrame"
    if Path(source).is_dir():
        inside = "predictions.nc in it" if (Path(source) / "predictions.nc").is_file() else "a predictions file (.nc)"
        raise BadInputError(f"{source} is a folder; give {inside}, or a table of points")
    if Path(source).suffix.lower() in table_sources.CSV_SUFFIXES:
        if layer is not None:
            raise BadInputError(f"{source} has no layers to choose from; leave out the layer {layer!r}")
        keys = {"image_id", "path", *(prefix + name for prefix in ("", "true_") for name in _NAMES)}
        frame = table_sources.read_csv(
            source, lambda names, _: [name for name in names if name.strip().lower() in keys]
        )
        return frame, str(source)
    found = read_layer(
        source,
        layer=layer,
        kind="points",
        wanted="predictions (.nc) or a table of points (.csv .gpkg .parquet .geojson) are wanted",
    )
    return _of_layer(found)


def _of_layer(found: Layer) -> tuple[pd.DataFrame, str]:
    """The attributes, with longitude and latitude of the points where no columns say them."""
    frame = found.frame.rename(columns=str).reset_index(drop=True)
    names = {column.strip().lower() for column in frame.columns}
    has_columns = {*PREDICTED} & names or any({*pair} <= names for pair in table_columns.DEGREE_ALIASES)
    if has_columns or not np.isin(shapely.get_type_id(found.geometries), (0, 4)).any():  # points, or MultiPoints
        return frame, found.name
    x, y, problems = table_sources.points_of(found)
    checked = table_columns.check_coordinates(x, y, stated_crs(found.crs, found.name))
    _check({**checked.problems, **problems}, "mend its geometry, or leave it out", PREDICTED, found.name)
    warnings.warn(
        f"{found.name} has no columns longitude and latitude: the places of its points are taken for the predictions",
        stacklevel=2,
    )
    return frame.assign(longitude=checked.longitude, latitude=checked.latitude), found.name


def _places(frame: pd.DataFrame, pair: tuple[str, str], name: str) -> tuple[Any, Any]:
    """Check a pair of columns; the first row that is wrong is told."""
    x, problems = table_columns.parse_numbers(frame[pair[0]])
    y, more = table_columns.parse_numbers(frame[pair[1]])
    checked = table_columns.check_coordinates(x, y, parse_crs(CRS84))
    _check({**checked.problems, **more, **problems}, f"mend {pair[0]}, {pair[1]}, or leave both empty", pair, name)
    return np.asarray(checked.longitude), np.asarray(checked.latitude)


def _check(problems: dict[int, str], what_to_do: str, pair: tuple[str, str], name: str) -> None:
    if problems:
        row = min(problems)
        others = f" (and {len(problems) - 1} more such row{'s' * (len(problems) > 2)})" if len(problems) > 1 else ""
        raise BadInputError(
            f"{name}: row {row + 1}: {problems[row]}{others}; {what_to_do}: an image without "
            f"{'a prediction counts as wrong' if pair == PREDICTED else 'a truth is not compared'}"
        )
