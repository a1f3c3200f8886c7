"""A GeoPackage with its QGIS styles inside: layers, a key/value table of the run, `layer_styles`."""

from __future__ import annotations

import contextlib
import datetime as dt
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import geopandas
import pandas as pd
import pyogrio

from geo_mvmf.errors import OutputError, UsageError
from geo_mvmf.files import columns, partition_style, styles

RESERVED_LAYERS = frozenset(["run", "layer_styles"])
"""Tables that are made here and cannot be layers."""

_GEOMETRY = "geom"
_GEOMETRY_TYPES = {"points": "Point", "regions": "MultiPolygon"}
# The table as QGIS makes it, so that QGIS can add styles of the user's own later.
_LAYER_STYLES = """
CREATE TABLE layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
    f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
    useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), update_time DATETIME
)"""
_RUN = "CREATE TABLE run (fid INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, key TEXT, value TEXT)"


def write_geopackage(
    path: Path,
    layers: Mapping[str, geopandas.GeoDataFrame],
    *,
    shown: Path | None = None,
    run: Mapping[str, object] | None = None,
    with_styles: bool = True,
) -> None:
    """Write layers, styles and run into a new file.

    Parameters
    ----------
    path : Path
        Does not exist; the caller makes it permanent.
    layers : mapping of str to GeoDataFrame
        As `columns.tidy_layer` makes them.
    shown : Path, optional
        What messages call the file.
    run : mapping, optional
        Written as text into a table `run`.
    with_styles : bool
        Whether QGIS shall find default styles for `points`, regions and zones.

    Raises
    ------
    UsageError
        If a layer has the name of a table that is made here.
    OutputError
        If the file cannot be written, or does not hold what was written.

    Examples
    --------
    >>> import tempfile
    >>> layer = geopandas.GeoDataFrame({"n": [1]}, geometry=geopandas.points_from_xy([1.0], [2.0]), crs="EPSG:4326")
    >>> path = Path(tempfile.mkdtemp()) / "a.gpkg"
    >>> write_geopackage(path, {"points": layer}, run={"bundle": "world"})
    >>> pyogrio.list_layers(path)[:, 0].tolist()
    ['points', 'run', 'layer_styles']
    """
    for name in sorted(RESERVED_LAYERS.intersection(layers)):
        raise UsageError(f"a layer cannot be called {name!r}: that table is written here; choose another name")
    with _errors_named(path, shown or path):
        for name, layer in layers.items():
            _write_layer(path, name, layer)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            # durable makes the file permanent; no journal may stay beside it
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("BEGIN")
            if run is not None:
                _add_run(database, columns.key_values(run))
            if with_styles:
                root = "" if run is None else str(run.get("root", ""))
                _add_styles(database, _styles(layers, root))
            database.execute("COMMIT")
            _check(shown or path, database, layers)


def _write_layer(path: Path, name: str, layer: geopandas.GeoDataFrame) -> None:
    with warnings.catch_warnings():
        # A layer of failed images alone has no geometry to look at; its type is given below.
        warnings.filterwarnings("ignore", message=".*geometry type.*", category=UserWarning)
        pyogrio.write_dataframe(
            layer,
            path,
            layer=name,
            driver="GPKG",
            geometry_type=_geometry_type(name, layer),
            promote_to_multi=_geometry_type(name, layer).startswith("Multi"),
            dataset_options={"VERSION": "1.2"},  # the newest that GDAL of QGIS 3.22 takes without a warning
            layer_options={"GEOMETRY_NAME": _GEOMETRY, "SPATIAL_INDEX": "YES"},
        )


def _geometry_type(name: str, layer: geopandas.GeoDataFrame) -> str:
    kinds = set(layer.geometry.geom_type.dropna())
    if not kinds:
        return _GEOMETRY_TYPES.get(name, "Unknown")
    if kinds <= {"Polygon", "MultiPolygon"}:
        return "MultiPolygon"
    return kinds.pop() if len(kinds) == 1 else "Unknown"


def _styles(layers: Mapping[str, geopandas.GeoDataFrame], root: str) -> dict[str, str]:
    made = {}
    for name, layer in layers.items():
        names = [str(column) for column in layer.columns if column != layer.geometry.name]
        if name == "points":
            areas = layer["area_90_km2"].dropna().tolist() if "area_90_km2" in names else []
            made[name] = styles.points_style(names, root=root, areas_km2=areas)
        elif name in partition_style.LAYERS and "images" in names:
            areas_km2 = layer["area_km2"] if "area_km2" in names else None
            made[name] = partition_style.partition_style(names, layer["images"], areas_km2)
        elif "expected_images" in names and "points" in layers:
            made[name] = styles.zones_style(names, images=int(layers["points"].geometry.notna().sum()))
        elif "level" in names and len(layer):
            made[name] = styles.regions_style(names, [float(level) for level in layer["level"].dropna().unique()])
    return made


def _add_run(database: sqlite3.Connection, run: pd.DataFrame) -> None:
    database.execute(_RUN)
    rows = zip(run["key"].tolist(), run["value"].tolist(), strict=True)
    database.executemany("INSERT INTO run (key, value) VALUES (?, ?)", rows)
    _register(database, "run", "How these layers were made")


def _add_styles(database: sqlite3.Connection, made: Mapping[str, str]) -> None:
    database.execute(_LAYER_STYLES)
    database.executemany(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName,"
        " styleQML, styleSLD, useAsDefault, description, owner, ui, update_time)"
        " VALUES ('', '', ?, ?, 'geo_mvmf', ?, '', 1, 'Made from the layer', '', NULL, ?)",
        [(name, _GEOMETRY, style, _now()) for name, style in made.items()],
    )
    _register(database, "layer_styles", "")


def _register(database: sqlite3.Connection, table: str, description: str) -> None:
    database.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, description, last_change)"
        " VALUES (?, 'attributes', ?, ?, ?)",
        (table, table, description, _now()),
    )


def _now() -> str:
    # OGR warns about any other form than YYYY-MM-DDTHH:MM:SS.sssZ
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _check(path: Path, database: sqlite3.Connection, layers: Mapping[str, geopandas.GeoDataFrame]) -> None:
    verdict = database.execute("PRAGMA quick_check").fetchone()[0]
    if verdict != "ok":
        raise OutputError(f"{path}: the file read back is damaged: {verdict}")
    for name, layer in layers.items():
        count = database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608  names are lower_snake
        if count != len(layer):
            raise OutputError(f"{path}: layer {name!r} holds {count} rows of {len(layer)}; is the disk full?")


@contextlib.contextmanager
def _errors_named(path: Path, shown: Path) -> Iterator[None]:
    gdal = pyogrio.errors
    try:
        yield
    except (sqlite3.Error, gdal.DataSourceError, gdal.DataLayerError, gdal.FeatureError) as error:
        size = path.stat().st_size if path.exists() else 0
        reason = str(error).replace(str(path), shown.name)
        raise OutputError(
            f"{shown}: cannot write more than {size} bytes: {reason}; is there space on the disk?"
        ) from error
