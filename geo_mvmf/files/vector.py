"""Vector layers on disk: GeoPackage with styles, GeoParquet, GeoJSON, CSV.

The suffix decides. Every layer is written in EPSG:4326 with lower_snake columns, missing values as null and rings
counter-clockwise; an image that failed is a row without geometry. A file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import geopandas
import numpy as np
import pandas as pd
import shapely

from geo_mvmf import durable
from geo_mvmf.errors import OutputError, UsageError
from geo_mvmf.files import columns, geopackage

Layers = Mapping[str, geopandas.GeoDataFrame]
Run = Mapping[str, object]

SUFFIXES = (".gpkg", ".parquet", ".geoparquet", ".geojson", ".csv")
"""What `write_layers` writes."""

_LAYER_NAME = re.compile(r"^[a-z][a-z0-9_]{0,62}$")
_HINTS = {
    ".shp": "a Shapefile cuts column names at 10 characters and knows neither null nor time",
    ".json": "GeoJSON is written with the suffix .geojson",
}


def write_layers(
    path: str | os.PathLike[str],
    layers: Layers,
    *,
    styles: bool = True,
    run: Run | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write layers in the format that the suffix names.

    Parameters
    ----------
    path : path
        Ends in .gpkg (all layers in one file, with a table `run` and QGIS styles), .parquet (GeoParquet 1.1 with
        bounding boxes), .geojson (RFC 7946) or .csv (attributes only; a column `geometry` would not survive a
        spreadsheet). The last three hold one layer each: the first goes to `path`, another one called `regions`
        to ``<stem>_regions<suffix>`` beside it.
    layers : mapping of str to GeoDataFrame
        `points` first. Any CRS; `regions` may come in any order, large levels are written first.
    styles : bool
        Whether a GeoPackage brings its QGIS styles.
    run : mapping, optional
        How the layers were made: `root` (the folder that relative paths start from), bundle, versions, options.
        Kept in the GeoPackage's table `run`, in the GeoParquet's metadata and in the GeoJSON's member `run`.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    UsageError
        The suffix or a layer's name cannot be used, a layer has no CRS, or pyarrow is not installed.
    OutputError
        A file exists already, or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> points = geopandas.GeoDataFrame({"image_id": ["a"]}, geometry=geopandas.points_from_xy([7], [50]), crs=4326)
    >>> files = write_layers(Path(tempfile.mkdtemp()) / "album.gpkg", {"points": points})
    >>> geopandas.read_file(files[0], layer="points")["image_id"].tolist()
    ['a']
    """
    final = Path(path)
    suffix = check_suffix(final)
    tidy = {name: _tidy(name, layer) for name, layer in _checked(layers).items()}
    if suffix == ".gpkg":
        with durable.replacing(final, overwrite=overwrite) as temporary:
            geopackage.write_geopackage(temporary, tidy, shown=final, run=run, with_styles=styles)
        return [final]
    return _write_one_each(final, tidy, _WRITERS[suffix], run or {}, overwrite=overwrite)


def check_suffix(path: str | os.PathLike[str]) -> str:
    """Make sure that a suffix is one that `write_layers` knows, before hours are spent on what it shall hold.

    Parameters
    ----------
    path : path

    Returns
    -------
    str
        The suffix in lower case.

    Raises
    ------
    UsageError
        The suffix is unknown (the message lists those that are), or is .parquet without pyarrow.

    Examples
    --------
    >>> check_suffix("album.GPKG")
    '.gpkg'
    >>> check_suffix("a.kml")
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: a.kml: '.kml' is not written; use one of .gpkg, .parquet, .geoparquet, .geojson, .csv
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        reason = f": {_HINTS[suffix]}" if suffix in _HINTS else ""
        raise UsageError(f"{path}: {suffix!r} is not written{reason}; use one of {', '.join(SUFFIXES)}")
    if "parquet" in suffix and importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{path}: GeoParquet needs pyarrow: pip install geo-mvmf[parquet]")
    return suffix


def paths(path: str | os.PathLike[str], names: Iterable[str]) -> list[Path]:
    """Say which files `write_layers` makes of layers.

    Parameters
    ----------
    path : path
    names : iterable of str
        Of the layers, in order.

    Returns
    -------
    list of Path
        `path`, and beside it one for each further layer where the format holds one.

    Examples
    --------
    >>> [file.name for file in paths("a.geojson", ["points", "regions"])]
    ['a.geojson', 'a_regions.geojson']
    """
    final = Path(path)
    others = [] if final.suffix.lower() == ".gpkg" else list(names)[1:]
    return [final, *(final.with_name(f"{final.stem}_{name}{final.suffix}") for name in others)]


def _checked(layers: Layers) -> Layers:
    if not layers:
        raise UsageError("there is no layer to write; give at least {'points': ...}")
    for name in layers:
        if not _LAYER_NAME.match(name):
            raise UsageError(f"layer {name!r}: a name is made of a-z, 0-9 and _, begins with a letter, has at most 63")
    return layers


def _tidy(name: str, layer: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    tidy = columns.tidy_layer(name, layer)
    tidy.attrs = {}  # of the caller: may hold absolute paths; `run` says what shall be known
    return columns.large_levels_first(tidy) if name == "regions" else tidy  # elsewhere `level` is a user's own column


def _write_one_each(
    final: Path,
    layers: Layers,
    write: Callable[[Path, str, geopandas.GeoDataFrame, Run], None],
    run: Run,
    *,
    overwrite: bool,
) -> list[Path]:
    files = paths(final, layers)
    with contextlib.ExitStack() as stack:
        # All are written before the first is renamed, and the first, which people look for, is renamed last.
        temporary = [stack.enter_context(durable.replacing(each, overwrite=overwrite)) for each in files]
        for target, name in zip(temporary, layers, strict=True):
            write(target, name, layers[name], run)
    return files


def _write_geoparquet(path: Path, name: str, layer: geopandas.GeoDataFrame, run: Run) -> None:
    from pyarrow import parquet

    described = layer.copy(deep=False)
    described.attrs = {"layer": name, "run": dict(columns.key_values(run).itertuples(index=False, name=None))}
    described.to_parquet(
        path, index=False, compression="zstd", schema_version="1.1.0", write_covering_bbox=True, row_group_size=65536
    )
    count = parquet.read_metadata(path).num_rows
    if count != len(layer):
        raise OutputError(f"{path.name}: layer {name!r} holds {count} rows of {len(layer)}; is the disk full?")


def _write_geojson(path: Path, name: str, layer: geopandas.GeoDataFrame, run: Run) -> None:
    head: dict[str, object] = {"type": "FeatureCollection", "name": name}
    if run:
        head["run"] = dict(columns.key_values(run).itertuples(index=False, name=None))
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "features": [\n')
        _write_features(file, layer)
        file.write("\n]}\n")


def _write_features(file: TextIO, layer: geopandas.GeoDataFrame) -> None:
    table = _json_values(pd.DataFrame(layer.drop(columns=layer.geometry.name)))
    names = [str(name) for name in table.columns]
    shapes = shapely.to_geojson(layer.geometry.to_numpy())
    rows = zip(*(table[name] for name in names), strict=True) if names else [()] * len(layer)
    for number, (values, shape) in enumerate(zip(rows, shapes, strict=True)):
        properties = json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False, allow_nan=False)
        separator = ",\n" if number else ""
        file.write(f'{separator}{{"type": "Feature", "properties": {properties}, "geometry": {shape or "null"}}}')


def _json_values(table: pd.DataFrame) -> pd.DataFrame:
    return table.apply(_json_column) if len(table.columns) else table


def _json_column(column: pd.Series[Any]) -> pd.Series[Any]:
    missing = column.isna().to_numpy()
    times = pd.api.types.is_datetime64_any_dtype(column)
    values = [None if gone else v.isoformat() if times else v for v, gone in zip(column.tolist(), missing, strict=True)]
    return pd.Series(values, index=column.index, dtype=object)


def _write_csv(path: Path, name: str, layer: geopandas.GeoDataFrame, run: Run) -> None:
    del run  # a CSV has no place for it
    table = pd.DataFrame(layer.drop(columns=layer.geometry.name))
    if "longitude" not in table.columns and _is_points(name, layer):
        table.insert(0, "longitude", shapely.get_x(layer.geometry.to_numpy()))
        table.insert(1, "latitude", shapely.get_y(layer.geometry.to_numpy()))
    # utf-8-sig: without the mark, spreadsheets take a CSV for the code page of the machine
    columns.without_formulas(table).to_csv(path, index=False, encoding="utf-8-sig", lineterminator="\r\n")


def _is_points(name: str, layer: geopandas.GeoDataFrame) -> bool:
    kinds: np.ndarray[Any, Any] = layer.geometry.geom_type.dropna().unique()
    return name == "points" or list(kinds) == ["Point"]


_WRITERS: Mapping[str, Callable[[Path, str, geopandas.GeoDataFrame, Run], None]] = {
    ".parquet": _write_geoparquet,
    ".geoparquet": _write_geoparquet,
    ".geojson": _write_geojson,
    ".csv": _write_csv,
}
