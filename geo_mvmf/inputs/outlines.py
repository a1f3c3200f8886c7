"""A ring of places -> a polygon in OGC:CRS84: split at longitude 180, closed over a pole."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import shapely
import shapely.affinity

_WHOLE_EARTH = shapely.box(-180.0, -90.0, 180.0, 90.0)


def outline_polygon(
    longitude: npt.ArrayLike, latitude: npt.ArrayLike, *, full_turn: bool = False, poles: tuple[float, ...] = ()
) -> shapely.Geometry:
    """Turn a closed line on Earth into the polygon that it bounds.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Places along the line, close enough that no step is longer than half a turn; the last joins the first.
        Longitudes may exceed 180.
    full_turn : bool
        The area reaches once around the Earth between its two parallels.
    poles : tuple of float
        Latitudes (-90, 90) of the poles inside.

    Returns
    -------
    Polygon or MultiPolygon
        Longitudes in -180..180. The whole Earth where a place is not finite (a world map in an oval projection has
        corners outside the Earth).

    Examples
    --------
    >>> outline_polygon([170.0, 190.0, 190.0, 170.0], [-5.0, -5.0, 5.0, 5.0]).bounds
    (-180.0, -5.0, 180.0, 5.0)
    >>> round(outline_polygon([170.0, 190.0, 190.0, 170.0], [-5.0, -5.0, 5.0, 5.0]).area, 6)
    200.0
    """
    lam, phi = np.asarray(longitude, dtype=np.float64), np.asarray(latitude, dtype=np.float64)
    if not (np.isfinite(lam).all() and np.isfinite(phi).all()):
        return _WHOLE_EARTH
    if full_turn:
        return shapely.box(-180.0, max(-90.0, float(phi.min())), 180.0, min(90.0, float(phi.max())))
    closed = np.unwrap(np.append(lam, lam[0]), period=360.0)
    ring = np.column_stack([closed, np.append(phi, phi[0])])
    if abs(closed[-1] - closed[0]) > 180.0:
        if len(poles) != 1:
            return _WHOLE_EARTH
        ring = np.vstack([ring, [closed[-1], poles[0]], [closed[0], poles[0]]])
    return _into_range(shapely.make_valid(shapely.Polygon(ring)))


def _into_range(polygon: shapely.Geometry) -> shapely.Geometry:
    west, _, east, _ = polygon.bounds
    turns = range(math.floor((west + 180.0) / 360.0), math.ceil((east + 180.0) / 360.0))
    pieces = [_piece(polygon, 360.0 * turn) for turn in turns]
    merged = shapely.union_all([piece for piece in pieces if not piece.is_empty])
    # a line is left where an edge runs along longitude 180
    areas = [part for part in shapely.get_parts(merged) if part.area > 0.0]
    return areas[0] if len(areas) == 1 else shapely.MultiPolygon(areas)


def _piece(polygon: shapely.Geometry, shift: float) -> shapely.Geometry:
    strip = shapely.box(shift - 180.0, -90.0, shift + 180.0, 90.0)
    return shapely.affinity.translate(shapely.intersection(polygon, strip), xoff=-shift)
