"""Rows of the row contract as a layer of points, and what credible regions say about them."""

from __future__ import annotations

import geopandas
import numpy as np
import pandas as pd


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
