"""Unions of disjoint squares in whole-number coordinates: exact, by cancelling the sides that two squares share.

This is the plane in which S2 cells of one face lie; nothing here knows the sphere.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import shapely

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_BITS = 31  # of one coordinate, 0..2^30: a line, a position and a sign fit into one whole number, which sorts fast


def union(low: IntArray, size: IntArray) -> list[list[IntArray]]:
    """Join squares to polygons.

    Parameters
    ----------
    low : ndarray of int64, shape (n, 2)
        Lower corners (i, j), 0..2^30.
    size : ndarray of int64, shape (n,)
        Sides; the squares are disjoint, and those of one size lie on a lattice of it.

    Returns
    -------
    list of list of ndarray of int64, shape (m, 2)
        Per polygon the exterior ring and the holes, closed, with vertices at corners only. Polygons touch each other
        and themselves at corners at most.

    Examples
    --------
    >>> [[exterior]] = union(np.array([[0, 0], [2, 0]]), np.array([2, 2]))
    >>> sorted(map(tuple, exterior[:-1].tolist()))
    [(0, 0), (0, 2), (4, 0), (4, 2)]
    """
    if not size.size:
        return []
    segments = []
    for axis in (0, 1):
        across = low[:, 1 - axis]
        line, first, last, above = _uncancelled(np.concatenate([across, across + size]), low[:, axis], size)
        ends = np.stack([np.stack([first, line], axis=-1), np.stack([last, line], axis=-1)], axis=1)  # (m, 2, 2)
        segments.append(ends if axis == 0 else ends[..., ::-1])
        if axis == 0:
            covered = _packed(ends[above, 0])  # where a side begins that has squares above it
    lines = shapely.get_parts(shapely.linestrings(np.concatenate(segments).astype(np.float64)))
    faces = shapely.get_parts(shapely.polygonize(lines))
    # of the faces between the lines those are squares, and not gaps, that lie above such a side in their lowest corner
    corners, face = shapely.get_coordinates(shapely.get_exterior_ring(faces), return_index=True)
    lowest = np.minimum.reduceat(
        _packed(np.rint(corners).astype(np.int64)), np.searchsorted(face, np.arange(faces.size))
    )
    rings, owner = shapely.get_rings(faces[np.isin(lowest, covered)], return_index=True)
    corners_of = _corners(rings)
    starts = np.flatnonzero(np.diff(owner, prepend=-1)).tolist()
    return [corners_of[start:stop] for start, stop in itertools.pairwise([*starts, len(corners_of)])]


def _packed(points: IntArray) -> IntArray:
    """Whole numbers in the order of rows (j), and of columns (i) within a row."""
    return (points[:, 1] << _BITS) + points[:, 0]


def _uncancelled(lines: IntArray, start: IntArray, size: IntArray) -> tuple[IntArray, IntArray, IntArray, BoolArray]:
    """Where the lower sides (first half of `lines`) and the upper sides (second half) do not cancel.

    Returns line, first and last position, and whether the side is a lower one, (m,) each.
    """
    stop = start + size
    # along its line a lower side counts +1 from start to stop, an upper one -1: as changes +1, -1 and -1, +1
    rises = np.concatenate([(lines[: start.size] << _BITS) + start, (lines[start.size :] << _BITS) + stop])
    falls = np.concatenate([(lines[: start.size] << _BITS) + stop, (lines[start.size :] << _BITS) + start])
    events = np.sort(np.concatenate([rises * 2 + 1, falls * 2]))
    place, change = events >> 1, (events & 1) * 2 - 1
    new = np.concatenate([[0], np.flatnonzero(np.diff(place)) + 1])
    change = np.add.reduceat(change, new)
    turning = np.flatnonzero(change)
    place, level = place[new[turning]], np.cumsum(change[turning])
    inside = np.flatnonzero(level[:-1])  # each line ends at level 0, so nothing reaches from one into the next
    position = place & ((1 << _BITS) - 1)
    return place[inside] >> _BITS, position[inside], position[inside + 1], level[inside] > 0


def _corners(rings: npt.NDArray[np.object_]) -> list[IntArray]:
    """Vertices of rings at which they turn, closed."""
    coordinates, ring = shapely.get_coordinates(rings, return_index=True)
    is_open = np.diff(ring, append=-1) == 0  # all but the vertex that closes a ring
    points, ring = np.rint(coordinates).astype(np.int64), ring[is_open]
    after = (points[1:] - points[:-1])[is_open[:-1]]  # along the edge that leaves each vertex
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    comes_from = np.arange(ring.size) - 1
    comes_from[first] = np.append(first[1:], ring.size) - 1
    turns = (after[comes_from, 0] == 0) != (after[:, 0] == 0)
    points, ring = points[is_open][turns], ring[turns]
    ends = np.searchsorted(ring, np.arange(rings.size + 1))
    return [np.concatenate([points[a:b], points[a : a + 1]]) for a, b in itertools.pairwise(ends.tolist())]
