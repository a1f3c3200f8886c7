"""Rectangles of longitude and latitude around S2 cells, as polygons are asked for what they meet."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import s2, sphere

IdArray = npt.NDArray[np.uint64]


def cell_boxes(cells: IdArray) -> tuple[npt.NDArray[np.object_], npt.NDArray[np.int64]]:
    """Give rectangles that hold S2 cells: one for each, and a second one for those that lie across +-180.

    Parameters
    ----------
    cells : ndarray of uint64, shape (n,)
        Valid ids.

    Returns
    -------
    boxes : ndarray of Polygon, shape (n + k,)
        In longitude and latitude, within -180..180 and -90..90: about the circle around each cell.
    rows : ndarray of int64, shape (n + k,)
        The cell of each: 0..n-1, and once more those of two.

    Examples
    --------
    >>> boxes, rows = cell_boxes(s2.leaf_ids([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]))
    >>> [round(box.bounds[0]) for box in boxes], rows.tolist()
    ([0, -180, 180], [0, 1, 1])
    """
    longitude, latitude = sphere.to_longitude_latitude(s2.centre(cells))
    radius = s2.bounding_radius(cells) + 1e-12
    south, north = latitude - np.degrees(radius), latitude + np.degrees(radius)
    ratio = np.sin(np.minimum(radius, np.pi / 2.0)) / np.maximum(np.cos(np.radians(latitude)), 1e-300)
    whole = (south <= -90.0) | (north >= 90.0) | (ratio >= 1.0)
    half = np.where(whole, 180.0, np.degrees(np.arcsin(np.minimum(ratio, 1.0))))
    west, east = np.where(whole, -180.0, longitude - half), np.where(whole, 180.0, longitude + half)
    south, north = np.maximum(south, -90.0), np.minimum(north, 90.0)
    beyond_west, beyond_east = np.flatnonzero(west < -180.0), np.flatnonzero(east > 180.0)
    rows = np.concatenate([np.arange(cells.size), beyond_west, beyond_east])
    left = np.concatenate([np.maximum(west, -180.0), west[beyond_west] + 360.0, np.full(beyond_east.size, -180.0)])
    right = np.concatenate([np.minimum(east, 180.0), np.full(beyond_west.size, 180.0), east[beyond_east] - 360.0])
    return np.asarray(shapely.box(left, south[rows], right, north[rows]), dtype=object), rows
