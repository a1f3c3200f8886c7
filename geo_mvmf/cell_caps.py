"""Probability of caps under a density that is uniform on S2 cells.

Cells wholly inside or outside a cap count by one comparison; those on its edge are subdivided until they are small
beside it, and then cut by a straight line.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]

_PAIRS_AT_ONCE = 1 << 20  # (cells, points) pairs looked at together: 8 MB an array
_FLAT = 0.01  # radius of a cell, radians, whose area element is even enough for the same
_RING = 16.0  # a cell this many times smaller than the cap is cut by a straight line


def caps(longitude: npt.ArrayLike, latitude: npt.ArrayLike, radius_km: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Check caps and turn them into directions and radians.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (M,)
        Degrees.
    radius_km : array_like of float, shape () or (M,)
        Kilometres.

    Returns
    -------
    centres : ndarray of float64, shape (M, 3)
        Directions.
    reach : ndarray of float64, shape (M,)
        Radians, at most pi.

    Raises
    ------
    ValueError
        A value is not finite, or a radius is negative.

    Examples
    --------
    >>> caps([0.0], [90.0], 6371.0088)[1].tolist()
    [1.0]
    """
    centres = sphere.to_directions(np.atleast_1d(longitude), np.atleast_1d(latitude))
    reach = np.broadcast_to(np.asarray(radius_km, dtype=np.float64) / sphere.EARTH_RADIUS_KM, centres.shape[:1])
    wrong = ~(np.isfinite(centres).all(axis=-1) & (reach >= 0.0))
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise ValueError(
            f"cap {row}: longitude {np.atleast_1d(longitude)[row]}, latitude {np.atleast_1d(latitude)[row]}, radius"
            f" {reach[row] * sphere.EARTH_RADIUS_KM} km: all must be finite and the radius not negative"
        )
    return centres, np.minimum(reach, math.pi)


def cap_probabilities(cells: IdArray, probabilities: FloatArray, centres: FloatArray, reach: FloatArray) -> FloatArray:
    """Give the probability of each cap.

    Parameters
    ----------
    cells : ndarray of uint64, shape (T,)
        Disjoint cells.
    probabilities : ndarray of float64, shape (T,)
        Probability of each, spread evenly over its area.
    centres : ndarray of float64, shape (M, 3)
        Directions of the caps' centres.
    reach : ndarray of float64, shape (M,)
        Radii, radians in 0..pi.

    Returns
    -------
    ndarray of float64, shape (M,)
        Probabilities, to a relative error of about 1e-4 for huge cells and far less for cells small beside the cap.

    Examples
    --------
    >>> half = np.array([math.pi / 2])
    >>> round(float(cap_probabilities(s2.face_cells(), np.full(6, 1 / 6), np.eye(3)[:1], half)[0]), 6)
    0.5
    """
    middles, radii = s2.centre(cells), s2.bounding_radius(cells)
    density = probabilities / s2.area_sr(cells)
    result = np.empty(reach.size)
    for block in _blocks(reach.size, cells.size):
        gap = sphere.angle(middles[:, None], centres[block]) - reach[block]  # (T, points)
        result[block] = probabilities @ (gap <= -radii[:, None])
        row, point = np.nonzero(np.abs(gap) < radii[:, None])
        np.add.at(result[block], point, _cut(cells[row], density[row], centres[block][point], reach[block][point]))
    return np.asarray(np.clip(result, 0.0, 1.0))


def _cut(cells: IdArray, density: FloatArray, centres: FloatArray, reach: FloatArray) -> FloatArray:
    """Probability that each cell shares with its cap: pairs (cell, cap) on the edge of the cap, subdivided."""
    total = np.zeros(cells.size)
    pair = np.arange(cells.size)
    while pair.size:
        radii = s2.bounding_radius(cells)
        gap = sphere.angle(s2.centre(cells), centres[pair]) - reach[pair]
        inside, edge = gap <= -radii, np.abs(gap) < radii
        fine = radii <= np.minimum(_FLAT, np.minimum(reach, math.pi - reach)[pair] / _RING)
        fine |= s2.level(cells) == s2.MAX_LEVEL
        np.add.at(total, pair[inside], (density[pair] * s2.area_sr(cells))[inside])
        last = edge & fine
        shares = _share_inside(cells[last], centres[pair[last]], reach[pair[last]])
        np.add.at(total, pair[last], density[pair[last]] * s2.area_sr(cells[last]) * shares)
        split = edge & ~fine
        cells, pair = s2.children(cells[split]).ravel(), np.repeat(pair[split], 4)
    return total


def _share_inside(cells: IdArray, centres: FloatArray, reach: FloatArray) -> FloatArray:
    """Share of each cell inside its cap, the cell taken as a square and the cap's edge as a line through it."""
    depth = reach[:, None] - sphere.angle(s2.corners(cells), centres[:, None])  # (P, 4), positive inside
    middle = reach - sphere.angle(s2.centre(cells), centres)
    mean = (2.0 * middle + depth.mean(axis=-1)) / 3.0  # of a quadratic over a square: takes the edge's curvature in
    a = np.abs(depth @ np.array([-0.5, 0.5, 0.5, -0.5]))
    b = np.abs(depth @ np.array([-0.5, -0.5, 0.5, 0.5]))
    a, b = np.maximum(a, 1e-9 * (a + b) + 1e-300), np.maximum(b, 1e-9 * (a + b) + 1e-300)
    q = mean + (a + b) / 2.0
    squares = [np.square(np.maximum(q - shift, 0.0)) for shift in (0.0, a, b, a + b)]
    return np.asarray(np.clip((squares[0] - squares[1] - squares[2] + squares[3]) / (2.0 * a * b), 0.0, 1.0))


def _blocks(points: int, cells: int) -> Iterator[slice]:
    step = max(1, _PAIRS_AT_ONCE // max(cells, 1))
    return (slice(start, start + step) for start in range(0, points, step))
