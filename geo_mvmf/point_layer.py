"""Rows of the row contract as a layer of points, and what credible regions say about them."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Sequence

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import sphere
from geo_mvmf.files import stores, vector
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.progress import Progress
from geo_mvmf.region_job import regions_job


def with_points(rows: pd.DataFrame) -> geopandas.GeoDataFrame:
    """Give rows their points.

    Parameters
    ----------
    rows : DataFrame
        The row contract.

    Returns
    -------
    GeoDataFrame
        EPSG:4326; no geometry where there is no prediction.

    Examples
    --------
    >>> with_points(pd.DataFrame({"longitude": [10.0], "latitude": [50.0]})).geometry.iloc[0].wkt
    'POINT (10 50)'
    """
    points = geopandas.points_from_xy(rows["longitude"].astype(float), rows["latitude"].astype(float))
    geometry = geopandas.GeoSeries(points, index=rows.index, crs="EPSG:4326")
    geometry[rows["longitude"].isna()] = None
    return geopandas.GeoDataFrame(rows.copy(), geometry=geometry)


def with_regions(points: geopandas.GeoDataFrame, found: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Take areas and parts of the polygons, where they were made, instead of those of the summary.

    Parameters
    ----------
    points : GeoDataFrame
        The row contract.
    found : GeoDataFrame
        Credible regions.

    Returns
    -------
    GeoDataFrame
        A copy of the points.

    Examples
    --------
    See `predictions.Predictions.write`.
    """
    points = points.copy()
    first = ~points["image_id"].duplicated()
    for level, area in ((0.5, "area_50_km2"), (0.9, "area_90_km2")):
        chosen = found[np.isclose(found["level"], level)].drop_duplicates("image_id").set_index("image_id")
        exact = points["image_id"].map(chosen["area_km2"]).where(first)
        points[area] = exact.astype(float).fillna(points[area])
        if level == 0.9:
            points["n_parts_90"] = points["image_id"].map(chosen["n_parts"]).where(first).astype(float)
    return points


def write_job(
    store: stores.StoredPredictions,
    path: str | os.PathLike[str],
    levels: Sequence[float] | None = None,
    *,
    regions: str | os.PathLike[str] | None = None,
    workers: int = 1,
    overwrite: bool = False,
) -> Generator[Progress, None, geopandas.GeoDataFrame]:
    """Write points, and regions where asked for, as layers, as a job that yields its progress.

    Parameters
    ----------
    store : StoredPredictions
    path : path
        Ends as `vector.write_layers` wants it.
    levels : sequence of float, optional
        Of the regions.
    regions : path, optional
        Where these go; default: with the points.
    workers : int
        Processes that make regions, for large albums.
    overwrite : bool
        Whether existing files may be replaced.

    Yields
    ------
    Progress
        Stage "regions", in images; nothing where there are none.

    Returns
    -------
    GeoDataFrame
        The points.

    Raises
    ------
    UsageError, BadInputError, OutputError
        As `regions_job` and `vector.write_layers`.

    Examples
    --------
    See `predictions.Predictions.write`.
    """
    points, found = with_points(store.rows), None
    run = {key: str(value) for key, value in store.run.items()}
    if levels:
        found = yield from regions_job(store, np.flatnonzero(store.is_predicted), levels, workers=workers)
        points = with_regions(points, found)
    layers = {"points": points} if found is None or regions is not None else {"points": points, "regions": found}
    vector.write_layers(path, layers, run=run, overwrite=overwrite)
    if found is not None and regions is not None:
        vector.write_layers(regions, {"regions": found}, overwrite=overwrite)
    return points


def samples(
    mixtures: Iterable[VmfMixture | CellMixture], image_ids: npt.NDArray[np.object_], n: int, *, seed: int
) -> geopandas.GeoDataFrame:
    """Draw possible places of each image.

    Parameters
    ----------
    mixtures : iterable of VmfMixture or CellMixture
        Blocks of images, in order.
    image_ids : ndarray of object, shape (N,)
        Of all images of all blocks.
    n : int
        Per image.
    seed : int

    Returns
    -------
    GeoDataFrame
        image_id and a point in EPSG:4326, n rows per image.

    Examples
    --------
    >>> peak = VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
    >>> samples([peak], np.array(["a"], dtype=object), 2, seed=0)["image_id"].tolist()
    ['a', 'a']
    """
    generator = np.random.default_rng(seed)
    drawn = [mixture.sample(n, seed=generator).reshape(-1, 3) for mixture in mixtures]
    directions = np.concatenate([np.empty((0, 3)), *drawn])
    points = geopandas.points_from_xy(*sphere.to_longitude_latitude(directions))
    return geopandas.GeoDataFrame({"image_id": np.repeat(image_ids, n)}, geometry=points, crs="EPSG:4326")
