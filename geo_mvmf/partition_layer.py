"""A partition as a layer: its classes as polygons or points, with counts, areas and initial mean directions."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import s2, sphere
from geo_mvmf.maps import outlines
from geo_mvmf.model.classes import Partition, initial_log_concentrations


def partition_layer(partition: Partition) -> gpd.GeoDataFrame:
    """Make a layer of a partition, one row per class in its order.

    Parameters
    ----------
    partition : Partition

    Returns
    -------
    GeoDataFrame
        EPSG:4326. Columns: cell (S2 token) and level of S2 cells, name where classes have one, images, area_km2 (not
        of points), longitude and latitude of the mean direction, log_concentration (the automatic initial one).
        Geometry: outlines of S2 cells, the polygons joined by class, or else points at the mean directions. Written
        to a file it can be read again as classes.

    Examples
    --------
    >>> from geo_mvmf.model.partition import partition_sphere
    >>> partition_layer(partition_sphere([2.3], [48.8], 6)).columns.tolist()[:4]
    ['cell', 'level', 'images', 'area_km2']
    """
    longitude, latitude = sphere.to_longitude_latitude(partition.mean_directions)
    columns: dict[str, object] = {}
    if partition.has_cells:
        columns |= {"cell": s2.to_token(partition.cell_ids), "level": partition.levels}
    if partition.names:
        columns["name"] = list(partition.names)
    columns["images"] = partition.counts
    geometry: npt.NDArray[np.object_] = np.asarray(shapely.points(longitude, latitude), dtype=object)
    if partition.has_cells:
        columns["area_km2"] = partition.area_sr * sphere.EARTH_RADIUS_KM**2
        geometry = np.array(outlines.cell_polygons(partition.cell_ids), dtype=object)
    elif partition.polygons is not None:
        geometry = _joined(partition.polygons, len(partition))
        columns["area_km2"] = [_area_km2(shape) for shape in geometry]
    columns |= {"longitude": longitude, "latitude": latitude}
    columns["log_concentration"] = initial_log_concentrations(partition)
    return gpd.GeoDataFrame(columns, geometry=geometry, crs="EPSG:4326")


def layer_name(partition: Partition) -> str:
    """Name the layer: "cells" of S2 cells, "classes" of others.

    Parameters
    ----------
    partition : Partition

    Examples
    --------
    >>> from geo_mvmf.model.kmeans import partition_by_kmeans
    >>> layer_name(partition_by_kmeans([2.3], [48.8], 1))
    'classes'
    """
    return "cells" if partition.has_cells else "classes"


def _joined(polygons: gpd.GeoDataFrame, number: int) -> npt.NDArray[np.object_]:
    index = polygons["class_index"].to_numpy(np.int64)
    shapes = polygons.geometry.to_numpy()
    if len(shapes) == number:
        return np.asarray(shapes[np.argsort(index)], dtype=object)
    return np.array([shapely.union_all(shapes[index == each]) for each in range(number)], dtype=object)


def _area_km2(shape: shapely.Geometry) -> float:
    """Area on the sphere of a polygon whose edges are straight in longitude and latitude.

    The cylinder of equal area keeps areas; there an edge of a degree at most is straight enough.
    """
    equal_area = shapely.transform(
        shape, lambda xy: np.stack([np.radians(xy[:, 0]), np.sin(np.radians(xy[:, 1]))], axis=-1)
    )
    return float(shapely.area(equal_area)) * sphere.EARTH_RADIUS_KM**2
