"""Vector layers as they lie in their files: GeoJSON, GeoPackage, GeoParquet, or a GeoDataFrame.

The content decides what a file is and the suffix must agree; OGR opens none of them, so a file can neither be
something else in disguise nor point to another file. What is broken in one feature is told per feature: a polygon
layer refuses it, an image table makes it the status of a row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely
import shapely.geometry
from shapely.geometry.base import BaseGeometry

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs import mistaken
from geo_mvmf.inputs.coordinate_systems import CRS84, file_crs, parse_crs
from geo_mvmf.inputs.geopackages import read_geopackage
from geo_mvmf.inputs.regular_files import check_regular_file, open_regular_file, sniff

_RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jpg", ".jpeg", ".png", ".jp2", ".nc", ".img")
_OTHER_LAYERS = (".dxf", ".gml", ".gpx", ".kml", ".mif", ".shp", ".tab")  # also where their content is text
LAYER_SUFFIXES = {
    ".geojson": "json",
    ".json": "json",
    ".gpkg": "sqlite",
    ".parquet": "parquet",
    ".geoparquet": "parquet",
}
"""Suffix -> what `sniff` must say."""
WANTED = "a layer of vectors is wanted (.gpkg .parquet .geojson)"

_MAX_ROWS = 100_000_000  # a few bytes of Parquet can claim more rows than any memory holds
_SHAPE_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    NotImplementedError,
    shapely.errors.ShapelyError,
)


class Layer(NamedTuple):
    """A vector layer in its own CRS.

    Attributes
    ----------
    frame : DataFrame
        Attributes, RangeIndex, in the order of the source.
    geometries : ndarray of object, shape (n,), or None
        Shapely geometries, None where there is none; None for a table without geometry.
    broken : dict
        Row -> why its geometry is None although there is something.
    crs : pyproj.CRS or None
        None where the source does not state it.
    name : str
        The source, for messages.
    """

    frame: pd.DataFrame
    geometries: npt.NDArray[np.object_] | None
    broken: dict[int, str]
    crs: pyproj.CRS | None
    name: str


def read_layer(
    source: str | os.PathLike[str] | gpd.GeoDataFrame,
    *,
    layer: str | None = None,
    kind: str = "",
    wanted: str = WANTED,
) -> Layer:
    """Read a vector layer without changing it.

    Parameters
    ----------
    source : path or GeoDataFrame
        A .geojson, .json, .gpkg, .parquet or .geoparquet file.
    layer : str, optional
        For a GeoPackage with several.
    kind : {"", "polygons", "points"}
        Of several the only one of such geometries is meant, unless a name is given; as `read_geopackage`.
    wanted : str
        For the message about a file of another kind.

    Raises
    ------
    BadInputError
        If it is no such file, its content disagrees with its suffix, or it is damaged.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.geojson"
    >>> _ = path.write_text('{"type": "Point", "coordinates": [7, 51]}')
    >>> read_layer(path).geometries[0].wkt
    'POINT (7 51)'
    """
    if isinstance(source, gpd.GeoDataFrame):
        return _from_geodataframe(source)
    if not isinstance(source, str | os.PathLike):
        raise BadInputError(f"a layer is a path or a GeoDataFrame, not {type(source).__name__}")
    path = check_layer_file(source, wanted)
    content = LAYER_SUFFIXES[path.suffix.lower()]
    if layer is not None and content != "sqlite":
        raise BadInputError(f"{path} has no layers to choose from; leave out the layer {layer!r}")
    if content == "sqlite":
        found = read_geopackage(path, layer, kind=kind)
        return Layer(found.frame, found.geometries, found.broken, found.crs, str(path))
    with open_regular_file(path) as file:
        return _read_geojson(file, path) if content == "json" else _read_parquet(file, path)


def check_layer_file(source: str | os.PathLike[str], wanted: str = WANTED) -> Path:
    """Make sure that a file is one of the vector formats by its suffix and its content alike.

    Parameters
    ----------
    source : path
        One file.
    wanted : str
        For the message.

    Raises
    ------
    BadInputError
        Naming what it is instead, with a hint for Shapefiles and other OGR formats.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.gpkg"
    >>> _ = path.write_text("<OGRVRTDataSource/>")
    >>> try:
    ...     check_layer_file(path)
    ... except BadInputError as error:
    ...     str(error).replace(str(path.parent), "")
    '/a.gpkg is named as a GeoPackage but holds xml content'
    """
    path = check_regular_file(source)
    suffix = path.suffix.lower()
    if suffix not in LAYER_SUFFIXES:
        raise BadInputError(f"{path}: {suffix or 'a file without suffix'} is not read; {_what_to_do(path, wanted)}")
    kind = sniff(path)
    if kind != LAYER_SUFFIXES[suffix]:
        label = {"json": "GeoJSON", "sqlite": "a GeoPackage", "parquet": "GeoParquet"}[LAYER_SUFFIXES[suffix]]
        raise BadInputError(f"{path} is named as {label} but holds {kind} content")
    return path


def _what_to_do(path: Path, wanted: str) -> str:
    suffix, words = path.suffix.lower(), mistaken.in_words(path)
    if suffix in _RASTER_SUFFIXES and words != mistaken.PREDICTIONS:
        return f"it is a raster, and {wanted}"
    if words and words != "XML" and suffix not in _OTHER_LAYERS:
        return f"it is {words}, and {wanted}"
    return f'{wanted}; convert other layers, for example with: ogr2ogr "{path.stem}.gpkg" "{path.name}"'


def _from_geodataframe(source: gpd.GeoDataFrame) -> Layer:
    frame = pd.DataFrame(source).reset_index(drop=True)
    try:
        active = source.geometry
    except AttributeError:  # a GeoDataFrame may lack its active geometry
        return Layer(frame, None, {}, None, "the GeoDataFrame")
    frame = frame.drop(columns=[active.name])
    return Layer(frame, np.asarray(active.array, dtype=object), {}, active.crs, "the GeoDataFrame")


def _read_geojson(file: BinaryIO, path: Path) -> Layer:
    try:
        document = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path} is not valid GeoJSON: {error}") from error
    features = _features(document, path)
    properties = [feature.get("properties") for feature in features]
    records = [_flat(entry) if isinstance(entry, dict) else {} for entry in properties]
    frame = pd.DataFrame(records, index=pd.RangeIndex(len(records)))
    geometries, broken = _shapes(feature.get("geometry") for feature in features)
    return Layer(frame, geometries, broken, _geojson_crs(document, path), str(path))


def _features(document: object, path: Path) -> list[dict[str, Any]]:
    """Give the features of any GeoJSON object (RFC 7946, section 3)."""
    kind = document.get("type") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(kind, str):
        raise BadInputError(f"{path} is JSON but not GeoJSON: it has no member 'type'")
    if kind == "Feature":
        return [document]
    if kind != "FeatureCollection":
        return [{"geometry": document}]
    features = document.get("features")
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise BadInputError(f"{path}: the member 'features' is not a list of features")
    return features


def _flat(properties: dict[str, Any]) -> dict[str, Any]:
    """Write nested values as JSON text: a layer has no columns of objects."""
    return {
        str(name): json.dumps(value) if isinstance(value, dict | list) else value for name, value in properties.items()
    }


def _shapes(raw: Iterable[object]) -> tuple[npt.NDArray[np.object_], dict[int, str]]:
    shapes: list[BaseGeometry | None] = []
    broken: dict[int, str] = {}
    for row, value in enumerate(raw):
        try:
            with np.errstate(invalid="ignore"):  # NaN in coordinates is judged by whoever uses them
                shapes.append(shapely.geometry.shape(value) if isinstance(value, dict) else None)
        except _SHAPE_ERRORS as error:
            shapes.append(None)
            broken[row] = f"the geometry cannot be read: {str(error)[:200]}"
        if value is not None and not isinstance(value, dict):
            broken[row] = f"the geometry {str(value)[:200]!r} is no GeoJSON object"
    geometries = np.empty(len(shapes), dtype=object)
    geometries[:] = shapes
    return geometries, broken


def _geojson_crs(document: dict[str, Any], path: Path) -> pyproj.CRS | None:
    """Read the CRS: RFC 7946 knows only OGC:CRS84; a named one of the older GeoJSON 2008 is understood."""
    if "crs" not in document:
        return parse_crs(CRS84)
    stated = document["crs"]
    if stated is None:  # GeoJSON 2008: the CRS is not known
        return None
    name = stated.get("properties", {}) if isinstance(stated, dict) and stated.get("type") == "name" else {}
    name = name.get("name") if isinstance(name, dict) else None
    if not isinstance(name, str):
        raise BadInputError(f"{path}: the member 'crs' {str(stated)[:200]!r} is refused: only a name is read")
    return file_crs(name, str(path))


def _read_parquet(file: BinaryIO, path: Path) -> Layer:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise BadInputError(f'{path}: Parquet needs the extra: pip install "geo-mvmf[parquet]"') from error
    try:
        parquet = pq.ParquetFile(file)
        if parquet.metadata.num_rows > _MAX_ROWS:
            raise BadInputError(f"{path} claims {parquet.metadata.num_rows} rows, more than {_MAX_ROWS}")
        geo = _geo_metadata(parquet.schema_arrow.metadata, path)
        schema = parquet.schema_arrow
        names = [field.name for field in schema if not pa.types.is_nested(field.type)]
        frame = parquet.read(columns=names, use_threads=False).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInputError(f"{path} cannot be read as Parquet: {error}") from error
    return _parquet_layer(frame, geo, path)


def _geo_metadata(metadata: dict[bytes, bytes] | None, path: Path) -> dict[str, Any] | None:
    if not metadata or b"geo" not in metadata:
        return None
    try:
        geo = json.loads(metadata[b"geo"])
        column = geo["columns"][geo["primary_column"]]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BadInputError(f"{path}: the GeoParquet metadata is broken: {error!r}") from error
    if not isinstance(column, dict) or column.get("encoding") != "WKB":
        raise BadInputError(f"{path}: only GeoParquet with geometries in WKB is read")
    return {"name": geo["primary_column"], **column}


def _parquet_layer(frame: pd.DataFrame, geo: dict[str, Any] | None, path: Path) -> Layer:
    geometries, broken, crs = None, {}, None
    if geo is not None:
        if geo["name"] not in frame:
            raise BadInputError(f"{path}: there is no geometry column {geo['name']!r}")
        wkb = frame.pop(geo["name"])
        geometries = np.asarray(shapely.from_wkb(wkb.to_numpy(dtype=object), on_invalid="ignore"), dtype=object)
        lost = np.flatnonzero(wkb.notna().to_numpy() & shapely.is_missing(geometries))
        broken = {int(row): "the geometry cannot be decoded" for row in lost}
        stated = geo.get("crs", CRS84)  # GeoParquet 1.1: absent means OGC:CRS84, null means unknown
        crs = None if stated is None else file_crs(stated, str(path))
    attributes = [name for name in frame if not any(isinstance(value, bytes) for value in frame[name])]
    attributes = [name for name in attributes if not str(name).startswith("__index_level_")]
    return Layer(frame[attributes], geometries, broken, crs, str(path))
