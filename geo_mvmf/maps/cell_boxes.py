"""Rectangles of longitude and latitude around S2 cells, as polygons are asked for what they meet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import s2, sphere

IdArray = npt.NDArray[np.uint64]


def cell_boxes(cells: IdArray) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.object_]]:
    """Give two rectangles that hold each S2 cell together; about the same one where no cell lies across +-180.

    Parameters
    ----------
    cells : ndarray of uint64, shape (n,)
        Valid ids.

    Returns
    -------
    one, other : ndarray of Polygon, shape (n,)
        In longitude and latitude, within -180..180 and -90..90: about the circle around each cell.

    Examples
    --------
    >>> one, other = cell_boxes(s2.leaf_ids([[-1.0, 0.0, 0.0]]))
    >>> [round(each[0].bounds[0]) for each in (one, other)]
    [-180, 180]
    """
    longitude, latitude = sphere.to_longitude_latitude(s2.centre(cells))
    radius = s2.bounding_radius(cells) + 1e-12
    south, north = latitude - np.degrees(radius), latitude + np.degrees(radius)
    ratio = np.sin(np.minimum(radius, np.pi / 2.0)) / np.maximum(np.cos(np.radians(latitude)), 1e-300)
    whole = (south <= -90.0) | (north >= 90.0) | (ratio >= 1.0)
    half = np.where(whole, 180.0, np.degrees(np.arcsin(np.minimum(ratio, 1.0))))
    west, east = np.where(whole, -180.0, longitude - half), np.where(whole, 180.0, longitude + half)
    south, north = np.maximum(south, -90.0), np.minimum(north, 90.0)
    one = shapely.box(np.maximum(west, -180.0), south, np.minimum(east, 180.0), north)
    turned_west = np.where(west < -180.0, west + 360.0, np.where(east > 180.0, -180.0, west))
    turned_east = np.where(west < -180.0, 180.0, np.where(east > 180.0, east - 360.0, east))
    other = shapely.box(turned_west, south, turned_east, north)
    return np.asarray(one, dtype=object), np.asarray(other, dtype=object)
