"""Probabilities of zones on disk: tables for statistics, layers for maps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import pandas as pd

from geo_mvmf import durable
from geo_mvmf.files import columns, vector

if TYPE_CHECKING:
    from geo_mvmf.maps.zones import ZoneProbabilities, Zones
    from geo_mvmf.predictions import Predictions

_MOST_NAMED = 8  # columns in a remark
_COLUMNS = 3  # most probable zones that stand beside a point


def write_zones(
    path: Path, predictions: Predictions, zones: Zones, held: ZoneProbabilities, *, top: int | None, overwrite: bool
) -> None:
    """Write what the suffix says.

    Parameters
    ----------
    path : Path
        .csv or .parquet: one row per image and zone, or with `top` the most probable, ranked. .gpkg: layer `points`
        with the columns zone_1, zone_1_probability ... and layer `zones` with the images expected in each polygon.
        .geojson, .geoparquet: the layer `zones`.
    predictions : Predictions
    zones : Zones
    held : ZoneProbabilities
        Of these images and zones.
    top : int or None
        How many zones per image.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    UsageError
        If the suffix is unknown.
    OutputError
        If the file exists or cannot be written.

    Examples
    --------
    See the command `geo-mvmf zones`.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".parquet"):
        _write_table(path, held.tidy() if top is None else held.top(top), overwrite=overwrite)
        return
    layers = {"zones": zones.layer(held)}
    if suffix == ".gpkg":
        layers = {"points": points_with_zones(predictions, held, top or _COLUMNS), **layers}
    run = {key: str(value) for key, value in predictions.run.items()}
    vector.write_layers(path, layers, run=run, overwrite=overwrite)


def without_names(zones: Zones) -> str:
    """Say which columns may hold the names of zones that have none.

    Parameters
    ----------
    zones : Zones
        Read without a column of names.

    Returns
    -------
    str
        Empty where there is a column `name`.

    Examples
    --------
    >>> import shapely
    >>> from geo_mvmf.maps.zones import Zones
    >>> west = geopandas.GeoDataFrame({"admin": ["x"]}, geometry=[shapely.box(-9, -9, 0, 9)], crs="OGC:CRS84")
    >>> without_names(Zones.read(west))
    'no column is called name, so zones are called by their row numbers; --name-column admin names them'
    """
    table = pd.DataFrame(zones.polygons.drop(columns=zones.polygons.geometry.name))
    if any(str(name).lower() == "name" for name in table):
        return ""
    texts = [str(name) for name in table if table[name].map(lambda value: isinstance(value, str)).any()]
    named = f"; --name-column {' or '.join(texts[:_MOST_NAMED])} names them" if texts else ""
    return f"no column is called name, so zones are called by their row numbers{named}"


def points_with_zones(predictions: Predictions, held: ZoneProbabilities, number: int) -> geopandas.GeoDataFrame:
    """Put the most probable zones beside the points.

    Parameters
    ----------
    predictions : Predictions
    held : ZoneProbabilities
        Of its images.
    number : int
        How many zones.

    Returns
    -------
    GeoDataFrame
        The points; an image without prediction has no zone.

    Examples
    --------
    See the command `geo-mvmf zones`.
    """
    points = predictions.to_geodataframe()
    beside = held.columns(number).set_index(points.index[predictions.is_predicted])
    return geopandas.GeoDataFrame(pd.concat([points, beside.reindex(points.index)], axis=1), crs=points.crs)


def _write_table(path: Path, table: pd.DataFrame, *, overwrite: bool) -> None:
    with durable.replacing(path, overwrite=overwrite) as temporary:
        if path.suffix.lower() == ".csv":
            columns.without_formulas(table).to_csv(temporary, index=False, encoding="utf-8-sig", lineterminator="\r\n")
        else:
            vector.check_suffix(path)
            table.to_parquet(temporary, index=False, compression="zstd")
