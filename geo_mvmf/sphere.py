"""The sphere: longitude and latitude, directions, distances, areas.

The Earth is a sphere of radius `EARTH_RADIUS_KM` here and geodetic latitude is taken as spherical. Longitudes and
latitudes are degrees and always in this order; everything else is radians or kilometres.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

EARTH_RADIUS_KM = 6371.0088
"""Mean radius R1 of the Earth in kilometres (IUGG)."""

EARTH_AREA_KM2 = 4.0 * math.pi * EARTH_RADIUS_KM**2
"""Area of the sphere of that radius in square kilometres."""


def to_directions(longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> FloatArray:
    """Turn longitude and latitude into unit vectors.

    Parameters
    ----------
    longitude, latitude : array_like of float, any shapes that broadcast to (...)
        Degrees, in this order. NaN gives a direction of NaN.

    Returns
    -------
    ndarray of float64, shape (..., 3)
        x points to (0, 0), y to (90, 0), z to the north pole.

    Examples
    --------
    >>> to_directions([0.0, 90.0], 0.0).round(12).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    lam, phi = np.broadcast_arrays(np.radians(_floats(longitude)), np.radians(_floats(latitude)))
    across = np.cos(phi)
    return np.stack([across * np.cos(lam), across * np.sin(lam), np.sin(phi)], axis=-1)


def to_longitude_latitude(directions: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Turn vectors into longitude and latitude.

    Parameters
    ----------
    directions : array_like of float, shape (..., 3)
        Vectors of any length but 0.

    Returns
    -------
    longitude, latitude : ndarray of float64, shape (...)
        Degrees; longitude in [-180, 180), 0 at the poles' axis.

    Examples
    --------
    >>> longitude, latitude = to_longitude_latitude([-1.0, 0.0, 0.0])
    >>> float(longitude), float(latitude)
    (-180.0, 0.0)
    """
    vectors = _vectors(directions)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    longitude = np.degrees(np.arctan2(y, x))
    longitude = np.where(longitude >= 180.0, -180.0, longitude)
    return longitude, np.degrees(np.arctan2(z, np.hypot(x, y)))


def great_circle_distance_km(
    longitude1: npt.ArrayLike, latitude1: npt.ArrayLike, longitude2: npt.ArrayLike, latitude2: npt.ArrayLike
) -> FloatArray:
    """Measure the shortest way between points on the sphere.

    Accurate to about a micrometre everywhere, also for equal points and for antipodes, where the law of cosines and
    the half-versed-sine form lose half of their digits.

    Parameters
    ----------
    longitude1, latitude1, longitude2, latitude2 : array_like of float, any shapes that broadcast to (...)
        Degrees.

    Returns
    -------
    ndarray of float64, shape (...)
        Kilometres; NaN where a coordinate is NaN.

    Notes
    -----
    Source: Vincenty 1975, Survey Review 23, special case of the sphere (arctan2 form).

    Examples
    --------
    >>> round(float(great_circle_distance_km(0.0, 0.0, 180.0, 0.0)), 4)
    20015.1144
    """
    phi1, phi2 = np.radians(_floats(latitude1)), np.radians(_floats(latitude2))
    delta = np.radians(_floats(longitude2) - _floats(longitude1))
    sin1, cos1, sin2, cos2 = np.sin(phi1), np.cos(phi1), np.sin(phi2), np.cos(phi2)
    # cos1 sin2 - sin1 cos2 cos(delta), without the cancellation of two near products
    north = np.sin(phi2 - phi1) + 2.0 * sin1 * cos2 * np.sin(delta / 2) ** 2
    across = np.hypot(cos2 * np.sin(delta), north)
    along = sin1 * sin2 + cos1 * cos2 * np.cos(delta)
    return np.asarray(EARTH_RADIUS_KM * np.arctan2(across, along))


def angle(directions_a: npt.ArrayLike, directions_b: npt.ArrayLike) -> FloatArray:
    """Measure the angle between unit vectors.

    Parameters
    ----------
    directions_a, directions_b : array_like of float, shapes (..., 3) that broadcast
        Unit vectors.

    Returns
    -------
    ndarray of float64, shape (...)
        Radians in 0..pi, accurate at both ends (Kahan's form 2 arctan2(|a - b|, |a + b|)).

    Examples
    --------
    >>> round(float(angle([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])), 6)
    1.570796
    """
    a, b = _vectors(directions_a), _vectors(directions_b)
    return np.asarray(2.0 * np.arctan2(np.sqrt(_square(a - b)), np.sqrt(_square(a + b))))


def destination(
    longitude: npt.ArrayLike, latitude: npt.ArrayLike, bearing: npt.ArrayLike, distance_km: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Walk along a great circle.

    Parameters
    ----------
    longitude, latitude : array_like of float, any shapes that broadcast to (...)
        Where to start, degrees.
    bearing : array_like of float
        Degrees clockwise from north.
    distance_km : array_like of float
        How far, kilometres.

    Returns
    -------
    longitude, latitude : ndarray of float64, shape (...)
        Where one arrives, degrees.

    Examples
    --------
    >>> longitude, latitude = destination(179.0, 0.0, 90.0, 222.39)
    >>> round(float(longitude), 3), round(float(latitude), 3)
    (-179.0, 0.0)
    """
    start = to_directions(longitude, latitude)
    east, north = np.moveaxis(_east_north(_floats(longitude), start), -2, 0)
    way = np.radians(_floats(bearing))[..., None]
    arc = (_floats(distance_km) / EARTH_RADIUS_KM)[..., None]
    return to_longitude_latitude(np.cos(arc) * start + np.sin(arc) * (np.cos(way) * north + np.sin(way) * east))


def rectangle_area_km2(
    west: npt.ArrayLike, south: npt.ArrayLike, east: npt.ArrayLike, north: npt.ArrayLike
) -> FloatArray:
    """Give the area between two meridians and two parallels.

    Parameters
    ----------
    west, south, east, north : array_like of float, any shapes that broadcast to (...)
        Degrees; west > east crosses longitude 180.

    Returns
    -------
    ndarray of float64, shape (...)
        Square kilometres.

    Examples
    --------
    >>> round(float(rectangle_area_km2(-180.0, -90.0, 180.0, 90.0) / EARTH_AREA_KM2), 12)
    1.0
    >>> round(float(rectangle_area_km2(179.0, 0.0, -179.0, 1.0)), 0)
    24727.0
    """
    width = _floats(east) - _floats(west)
    width = np.where(width < 0.0, width + 360.0, width)
    middle = np.radians(_floats(north) + _floats(south)) / 2.0
    half = np.radians(_floats(north) - _floats(south)) / 2.0
    # sin(north) - sin(south) as a product keeps the digits of thin rectangles
    return np.asarray(EARTH_RADIUS_KM**2 * np.radians(width) * 2.0 * np.cos(middle) * np.sin(half))


def random_directions(n: int, generator: np.random.Generator) -> FloatArray:
    """Draw directions uniformly over the sphere.

    Parameters
    ----------
    n : int
        How many.
    generator : numpy.random.Generator
        Where the randomness comes from.

    Returns
    -------
    ndarray of float64, shape (n, 3)
        Unit vectors.

    Notes
    -----
    Source: Archimedes; z is uniform in -1..1.

    Examples
    --------
    >>> random_directions(4, np.random.default_rng(0)).shape
    (4, 3)
    """
    z = generator.uniform(-1.0, 1.0, n)
    lam = generator.uniform(-math.pi, math.pi, n)
    across = np.sqrt((1.0 - z) * (1.0 + z))
    return np.stack([across * np.cos(lam), across * np.sin(lam), z], axis=-1)


def tangent_basis(directions: npt.ArrayLike) -> FloatArray:
    """Give two unit vectors at right angles to each direction and to each other.

    Parameters
    ----------
    directions : array_like of float, shape (..., 3)
        Unit vectors.

    Returns
    -------
    ndarray of float64, shape (..., 2, 3)
        The rows and the direction form a right-handed frame (first x second = direction). No direction is singular.

    Notes
    -----
    Source: Duff et al. 2017, Journal of Computer Graphics Techniques 6(1).

    Examples
    --------
    >>> tangent_basis([0.0, 0.0, 1.0]).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    vectors = _vectors(directions)
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    sign = np.copysign(1.0, z)
    a = -1.0 / (sign + z)
    b = x * y * a
    first = np.stack([1.0 + sign * x * x * a, sign * b, -sign * x + 0.0], axis=-1)
    second = np.stack([b, sign + y * y * a, -y + 0.0], axis=-1)
    return np.stack([first, second], axis=-2)


def _east_north(longitude: FloatArray, start: FloatArray) -> FloatArray:
    """Give unit vectors to the east and to the north; at a pole the longitude still says which is which."""
    lam = np.radians(np.broadcast_to(longitude, start.shape[:-1]))
    east = np.stack([-np.sin(lam), np.cos(lam), np.zeros_like(lam)], axis=-1)
    return np.stack([east, np.cross(start, east)], axis=-2)


def _square(vectors: FloatArray) -> FloatArray:
    squares: FloatArray = np.einsum("...i,...i->...", vectors, vectors)
    return squares


def _floats(values: npt.ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)


def _vectors(values: Any) -> FloatArray:
    vectors = np.asarray(values, dtype=np.float64)
    if vectors.ndim == 0 or vectors.shape[-1] != 3:
        raise ValueError(f"directions have shape {vectors.shape}; the last axis must be 3 (x, y, z)")
    return vectors
