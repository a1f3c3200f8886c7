"""Polygons that cross ±180 or enclose a pole, brought into the rectangle -180..180, -90..90.

A ring on the sphere whose longitudes jump is unrolled until it is continuous; one that goes once around the axis is
closed over its pole; what then lies beyond ±180 is cut off and moved by 360 degrees.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry.base import BaseGeometry

FloatArray = npt.NDArray[np.float64]
Transform = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]

_FULL_TURN = 360.0


def to_longitude_latitude_polygon(
    polygon: shapely.Polygon, transform: Transform, pole_inside: Callable[[shapely.Polygon], float]
) -> BaseGeometry:
    """Transform one polygon from its own plane to longitude and latitude.

    Parameters
    ----------
    polygon : Polygon
        Valid, with edges short enough (about a degree) that each takes the shorter way around the axis.
    transform : callable
        (x, y) -> (longitude, latitude), arrays of shape (n,).
    pole_inside : callable
        Polygon in the own plane -> latitude of the pole it encloses: 90.0, -90.0, or 0.0 for none.

    Returns
    -------
    Polygon or MultiPolygon
        In -180..180, -90..90.

    Examples
    --------
    >>> square = shapely.box(170.0, -10.0, 190.0, 10.0).segmentize(1.0)
    >>> halves = to_longitude_latitude_polygon(square, lambda x, y: ((x + 180) % 360 - 180, y), lambda _: 0.0)
    >>> [part.bounds for part in halves.geoms]
    [(-180.0, -10.0, -170.0, 10.0), (170.0, -10.0, 180.0, 10.0)]
    """

    def region(ring: shapely.LinearRing) -> BaseGeometry:
        x, y = np.asarray(ring.coords)[:, :2].T
        own = shapely.Polygon(ring)
        return wrap(_unrolled(*transform(x, y), lambda: pole_inside(own)))

    outer = region(polygon.exterior)
    holes = [region(ring) for ring in polygon.interiors]
    return outer.difference(shapely.union_all(holes)) if holes else outer


def wrap(geometry: BaseGeometry) -> BaseGeometry:
    """Move what lies beyond ±180 by 360 degrees into the rectangle.

    Parameters
    ----------
    geometry : Polygon or MultiPolygon
        Longitudes in -540..540.

    Examples
    --------
    >>> wrap(shapely.box(190.0, 0.0, 200.0, 1.0)).bounds
    (-170.0, 0.0, -160.0, 1.0)
    """
    west, _, east, _ = geometry.bounds
    if west >= -180.0 and east <= 180.0:
        return geometry
    geometry = shapely.make_valid(geometry)
    parts = []
    for turn in range(int(np.floor((west + 180.0) / _FULL_TURN)), int(np.ceil((east + 180.0) / _FULL_TURN))):
        shift = turn * _FULL_TURN
        window = shapely.box(shift - 180.0, -90.0, shift + 180.0, 90.0)
        inside = geometry.intersection(window)
        parts.append(_moved(inside, -shift))
    return shapely.union_all(parts)


def _moved(geometry: BaseGeometry, degrees: float) -> BaseGeometry:
    moved: BaseGeometry = shapely.transform(geometry, lambda places: np.add(places, (degrees, 0.0)))
    return moved


def _unrolled(longitude: FloatArray, latitude: FloatArray, pole_inside: Callable[[], float]) -> shapely.Polygon:
    """Make the longitudes of a closed ring continuous and close it over the pole it encloses."""
    places = np.column_stack([np.unwrap(longitude, period=_FULL_TURN), latitude])  # (n, 2)
    goes_round = abs(places[-1, 0] - places[0, 0]) > _FULL_TURN / 2.0
    if goes_round and (pole := pole_inside()):
        places = np.vstack([places, [places[-1, 0], pole], [places[0, 0], pole], places[:1]])
    return shapely.Polygon(places)
