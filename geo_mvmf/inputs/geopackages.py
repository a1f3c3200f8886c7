"""One layer of a GeoPackage, read as the SQLite file it is.

OGR is not used: it opens virtual tables that read other files and runs SQL functions that contact the network
(`ogr_geocode` in a view). Here only ordinary tables are read, by plain SELECT, from a connection that has no
function or module reaching outside. Source: OGC 12-128r19 (GeoPackage 1.4), clauses 1.1.2, 1.1.3, 2.1.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely

from geo_mvmf.errors import AmbiguousInputError, BadInputError
from geo_mvmf.inputs.coordinate_systems import file_crs
from geo_mvmf.inputs.regular_files import open_regular_file

_ENVELOPE_BYTES = {0: 0, 1: 32, 2: 48, 3: 48, 4: 64}  # GeoPackageBinaryHeader, clause 2.1.3
_SPATIAL_INDEX = re.compile(  # of a layer of any name: quoted as SQL quotes it, or a plain word
    r'CREATE\s+VIRTUAL\s+TABLE\s+(?:"(?:[^"]|"")*"|\w+)\s+USING\s+rtree\s*\([^;]*\)\s*', re.IGNORECASE
)
_TYPES = {"polygons": ("POLYGON", "MULTIPOLYGON"), "points": ("POINT",)}
_NEVER = {  # geometry types of layers that hold none of a kind; others, such as GEOMETRY, may
    "polygons": ("POINT", "MULTIPOINT", "LINESTRING", "MULTILINESTRING"),
    "points": ("LINESTRING", "MULTILINESTRING", "POLYGON", "MULTIPOLYGON"),
}
_NOT_A_LAYER = frozenset(["layer_styles", "qgis_projects"])  # what QGIS keeps beside the data


class GeoPackageLayer(NamedTuple):
    """One layer as it lies in the file.

    Attributes
    ----------
    name : str
        Of the layer.
    frame : DataFrame
        Attributes, in the order of the file; neither row numbers (`fid`) nor binary columns.
    geometries : ndarray of object, shape (n,), or None
        Shapely geometries, None where empty or broken; None for a table without geometry.
    broken : dict
        Row -> why its geometry is None although there is something.
    crs : pyproj.CRS or None
        None where unknown.
    """

    name: str
    frame: pd.DataFrame
    geometries: npt.NDArray[np.object_] | None
    broken: dict[int, str]
    crs: pyproj.CRS | None


class _Entry(NamedTuple):
    """A line of the table of contents."""

    name: str
    geometry_column: str | None
    srs_id: int | None
    geometry_type: str = ""


def read_geopackage(path: Path, layer: str | None = None, *, kind: str = "") -> GeoPackageLayer:
    """Read one layer of a GeoPackage.

    Parameters
    ----------
    path : Path
        Checked to be a regular file that begins as SQLite files do.
    layer : str, optional
        Its name; may be left out where there is only one with geometry.
    kind : {"", "polygons", "points"}
        Of several without a name the only one of such geometries is meant; a warning says which it is, where another
        may hold such geometries, too.

    Raises
    ------
    BadInputError
        If the file is damaged or no GeoPackage, holds virtual tables, or the layer is unclear or a view.

    Examples
    --------
    >>> import tempfile, geopandas
    >>> path = Path(tempfile.mkdtemp()) / "a.gpkg"
    >>> places = geopandas.points_from_xy([7.0], [51.0])
    >>> geopandas.GeoDataFrame({"n": [1]}, geometry=places, crs="EPSG:4326").to_file(path, engine="pyogrio")
    >>> read_geopackage(path).frame["n"].tolist()
    [1]
    """
    try:
        with _connect(path) as database:
            kinds = _check_schema(database, path)
            entry = _choose(_contents(database, path, kinds), layer, path, kind)
            if kinds.get(entry.name.lower()) != "table":
                raise BadInputError(f"{path}: layer {entry.name!r} is a view; save it as a table of its own")
            return _read(database, path, entry)
    except (sqlite3.Error, ValueError, OverflowError) as error:  # ValueError: names that are not UTF-8
        raise BadInputError(f"{path} cannot be read as a GeoPackage: {error}") from error


def table_names(path: Path) -> list[str]:
    """List all tables and views of a GeoPackage, its own ones for bookkeeping among them.

    Parameters
    ----------
    path : Path
        Checked to be a regular file.

    Returns
    -------
    list of str
        In lower case.

    Raises
    ------
    BadInputError
        If the file is damaged, no SQLite file, or holds virtual tables.

    Examples
    --------
    >>> import tempfile, geopandas
    >>> path = Path(tempfile.mkdtemp()) / "a.gpkg"
    >>> places = geopandas.points_from_xy([7.0], [51.0])
    >>> geopandas.GeoDataFrame({"n": [1]}, geometry=places, crs="EPSG:4326").to_file(path, engine="pyogrio")
    >>> "a" in table_names(path)
    True
    """
    try:
        with _connect(path) as database:
            return list(_check_schema(database, path))
    except (sqlite3.Error, ValueError) as error:
        raise BadInputError(f"{path} cannot be read as a GeoPackage: {error}") from error


def decode_geometry(blob: object) -> bytes | None:
    r"""Take the WKB out of a GeoPackage geometry.

    Parameters
    ----------
    blob : object
        What the geometry column holds.

    Returns
    -------
    bytes or None
        None where it is no GeoPackage geometry.

    Examples
    --------
    >>> decode_geometry(b"GP\x00\x01\xe6\x10\x00\x00" + b"WKB")
    b'WKB'
    """
    if not isinstance(blob, bytes) or blob[:2] != b"GP" or len(blob) < 8:
        return None
    flags = blob[3]
    size = _ENVELOPE_BYTES.get(flags >> 1 & 7)
    return None if size is None or flags & 0x20 else blob[8 + size :]


@contextlib.contextmanager
def _connect(path: Path) -> Iterator[sqlite3.Connection]:
    """Open for reading only; the write-ahead log of a running QGIS is read too."""
    alone = "&immutable=1" if _logs_ahead(path) and not _log(path).exists() else ""
    database = sqlite3.connect(f"{path.as_uri()}?mode=ro{alone}", uri=True)
    try:
        database.text_factory = lambda raw: raw.decode("utf-8", "replace")
        database.execute("PRAGMA trusted_schema=OFF")
        database.execute("PRAGMA cell_size_check=ON")
        database.set_authorizer(_authorise)
        yield database
    finally:
        database.close()


def _logs_ahead(path: Path) -> bool:
    """Tell whether the file is in write-ahead mode, in which SQLite makes files beside it even for a reader."""
    with open_regular_file(path) as file:
        return file.read(20)[18:] == b"\x02\x02"


def _log(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _authorise(action: int, first: str | None, *_rest: str | None) -> int:
    """Allow to read tables and their layout, which is all that is ever needed."""
    allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ)
    layout = action == sqlite3.SQLITE_PRAGMA and first == "table_info"
    return sqlite3.SQLITE_OK if allowed or layout else sqlite3.SQLITE_DENY


def _check_schema(database: sqlite3.Connection, path: Path) -> dict[str, str]:
    """Give every table's kind by its lower-case name; refuse virtual tables other than spatial indexes."""
    kinds: dict[str, str] = {}
    for kind, name, root_page, sql in database.execute("SELECT type, name, rootpage, sql FROM sqlite_master"):
        if kind == "table" and not root_page:
            if not _SPATIAL_INDEX.fullmatch(str(sql)):
                raise BadInputError(f"{path}: the virtual table {name!r} may read other files and is refused")
            kinds[str(name).lower()] = "virtual"
        elif kind in ("table", "view"):
            kinds[str(name).lower()] = str(kind)
    return kinds


def _contents(database: sqlite3.Connection, path: Path, kinds: dict[str, str]) -> list[_Entry]:
    needed = ("gpkg_contents", "gpkg_spatial_ref_sys")
    if any(kinds.get(name) != "table" for name in needed):
        raise BadInputError(f"{path} is an SQLite file but no GeoPackage: it has no table {' or '.join(needed)}")
    columns: dict[str, tuple[str, int | None, str]] = {}
    if kinds.get("gpkg_geometry_columns") == "table":
        query = "SELECT table_name, column_name, srs_id, geometry_type_name FROM gpkg_geometry_columns"
        columns = {str(name).lower(): (str(one), srs, str(kind)) for name, one, srs, kind in database.execute(query)}
    query = "SELECT table_name FROM gpkg_contents WHERE data_type IN ('features', 'attributes', 'aspatial')"
    names = [str(name) for (name,) in database.execute(query)]
    return [_Entry(name, *columns.get(name.lower(), (None, None, ""))) for name in names]


def _choose(entries: list[_Entry], layer: str | None, path: Path, kind: str) -> _Entry:
    names = ", ".join(repr(entry.name) for entry in entries) or "none"
    if layer is not None:
        for entry in entries:
            if entry.name.lower() == layer.lower():
                return entry
        raise BadInputError(f"{path} has no layer {layer!r}; it has {names}")
    data = [entry for entry in entries if entry.name.lower() not in _NOT_A_LAYER]
    spatial = [entry for entry in data if entry.geometry_column is not None]
    candidates = spatial or data
    meant = [entry for entry in spatial if entry.geometry_type.upper() in _TYPES.get(kind, ())]
    if len(candidates) > 1 and len(meant) == 1:
        only = meant[0].name
        if any(entry.geometry_type.upper() not in _NEVER[kind] for entry in spatial if entry is not meant[0]):
            warnings.warn(f"{path}: of its layers ({names}) the only one of {kind} is read: {only!r}", stacklevel=2)
        return meant[0]
    if len(candidates) != 1:
        problem = f"{path} has {len(candidates)} layers ({names})"
        otherwise = "give a file that holds the right one alone"
        raise AmbiguousInputError(problem, "layer", "choose one by its name", otherwise)
    return candidates[0]


def _read(database: sqlite3.Connection, path: Path, entry: _Entry) -> GeoPackageLayer:
    table = entry.name.replace('"', '""')
    layout = database.execute(f'PRAGMA table_info("{table}")').fetchall()
    cursor = database.execute(f'SELECT * FROM "{table}"')  # noqa: S608  an identifier, quoted by SQL's own rule
    names = [str(column[0]) for column in cursor.description]
    frame = pd.DataFrame(cursor.fetchall(), columns=names, dtype=object)
    geometries: npt.NDArray[np.object_] | None = None
    broken: dict[int, str] = {}
    if entry.geometry_column is not None:
        column = next((name for name in names if name.lower() == str(entry.geometry_column).lower()), None)
        if column is None:
            raise BadInputError(f"{path}: layer {entry.name!r} has no geometry column {entry.geometry_column!r}")
        geometries, broken = _geometries(frame.pop(column))
    declared = {str(row[1]): str(row[2]).upper() for row in layout}
    return GeoPackageLayer(entry.name, _typed(frame, declared), geometries, broken, _crs(database, entry, path))


def _geometries(blobs: pd.Series[Any]) -> tuple[npt.NDArray[np.object_], dict[int, str]]:
    wkb = np.empty(len(blobs), dtype=object)
    wkb[:] = [decode_geometry(blob) for blob in blobs]
    geometries = np.asarray(shapely.from_wkb(wkb, on_invalid="ignore"), dtype=object)
    lost = np.flatnonzero(blobs.notna().to_numpy() & shapely.is_missing(geometries))
    return geometries, {int(row): "the geometry cannot be decoded" for row in lost}


def _typed(frame: pd.DataFrame, declared: dict[str, str]) -> pd.DataFrame:
    """Give columns the type they have, drop row numbers and binary columns."""
    kept = {}
    for position, name in enumerate(frame.columns):
        column = frame.iloc[:, position]
        if name.lower() == "fid" or any(isinstance(value, bytes) for value in column):
            continue
        kept[name] = column.infer_objects()
        if declared.get(name) == "BOOLEAN" and column.isin([0, 1]).all():
            kept[name] = column.astype(bool)
    return pd.DataFrame(kept, index=frame.index)


def _crs(database: sqlite3.Connection, entry: _Entry, path: Path) -> pyproj.CRS | None:
    if entry.srs_id is None or entry.srs_id in (-1, 0):  # clause 1.1.2.1.2: undefined Cartesian, geographic
        return None
    query = "SELECT organization, organization_coordsys_id, definition FROM gpkg_spatial_ref_sys WHERE srs_id = ?"
    row = database.execute(query, (entry.srs_id,)).fetchone()
    if row is None:
        return None
    organisation, code, definition = (str(part) for part in row)
    if organisation.upper() in ("EPSG", "OGC"):
        return file_crs(f"{organisation}:{code}", str(path))
    return file_crs(definition, str(path))
