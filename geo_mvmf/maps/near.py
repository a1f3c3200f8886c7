"""Which components reach which points: pairs found by trees, component widths apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_PAIRS_AT_ONCE = 1 << 22  # pairs asked of a tree at a time, if points and components were spread evenly


class Pairs(NamedTuple):
    """Points and components that reach them.

    Parameters
    ----------
    point, component : ndarray of int64, shape (P,)
        Numbers.
    chord : ndarray of float64, shape (P,)
        Straight distance between the point and the mean direction, unit sphere.
    """

    point: IntArray
    component: IntArray
    chord: FloatArray


def chord_of(log_concentrations: npt.ArrayLike, nats: float) -> FloatArray:
    """Give the straight distance at which a component has fallen so far below its peak.

    Parameters
    ----------
    log_concentrations : array_like of float, shape (C,)
        Natural logarithms of kappa.
    nats : float
        How far.

    Returns
    -------
    ndarray of float64, shape (C,)
        At most 2 (and a little), the whole sphere.

    Examples
    --------
    >>> round(float(chord_of(16.0, 0.5)) * 6371, 2)
    2.14
    """
    return np.minimum(np.sqrt(2.0 * nats * np.exp(-np.asarray(log_concentrations, dtype=np.float64))), 2.0 + 1e-9)


def near_pairs(points: FloatArray, mean_directions: FloatArray, chords: FloatArray) -> Iterator[Pairs]:
    """Find all pairs of a point and a component not farther apart than the component's reach.

    Parameters
    ----------
    points : ndarray of float64, shape (M, 3)
        Unit vectors, or of both places from `apart`.
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    chords : ndarray of float64, shape (C,)
        Reach of each component, straight.

    Yields
    ------
    Pairs
        A few million at a time, in no order.

    Examples
    --------
    >>> pairs = list(near_pairs(np.eye(3), np.eye(3)[:1], np.array([0.1])))
    >>> [(int(part.point[0]), int(part.component[0])) for part in pairs]
    [(0, 0)]
    """
    if not points.shape[0]:
        return
    tree = cKDTree(points)
    for group in octaves(chords):
        expected = points.shape[0] * min(float(chords[group].max()) ** 2 / 4.0, 1.0) + 1.0
        step = max(1, int(_PAIRS_AT_ONCE / expected))
        for start in range(0, group.size, step):
            some = group[start : start + step]
            limit = float(chords[some].max())
            found = cKDTree(mean_directions[some]).sparse_distance_matrix(tree, limit, output_type="ndarray")
            component = some[found["i"]]
            kept = found["v"] <= chords[component]
            yield Pairs(found["j"][kept].astype(np.int64), component[kept], found["v"][kept])


def octaves(chords: FloatArray) -> list[IntArray]:
    """Group distances that differ by less than a factor of two.

    Parameters
    ----------
    chords : ndarray of float64, shape (C,)

    Returns
    -------
    list of ndarray of int64
        Numbers of those of each group, the nearest first.

    Examples
    --------
    >>> [group.tolist() for group in octaves(np.array([0.3, 1.5, 0.4]))]
    [[0, 2], [1]]
    """
    octave = np.floor(np.log2(np.maximum(chords, 1e-12))).astype(np.int64)
    return [np.flatnonzero(octave == number) for number in np.unique(octave)]


def apart(directions: FloatArray, image: IntArray) -> FloatArray:
    """Place the directions of different images so far from each other that no component reaches across.

    Parameters
    ----------
    directions : ndarray of float64, shape (P, 3)
        Unit vectors.
    image : ndarray of int64, shape (P,)
        Number of the image that each belongs to.

    Returns
    -------
    ndarray of float64, shape (P, 4)
        Distances between those of one image are as they were, to the last bit.

    Examples
    --------
    >>> apart(np.eye(3)[:2], np.array([0, 1])).tolist()
    [[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 8.0]]
    """
    return np.column_stack([directions, 8.0 * image])  # the sphere is 2 across, and two reaches are 4 at most


def squared_chords(points: FloatArray, mean_directions: FloatArray) -> FloatArray:
    """Give the squared straight distances of all points and mean directions, by differences: exact also where small.

    Parameters
    ----------
    points : ndarray of float64, shape (P, 3)
        Unit vectors.
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.

    Returns
    -------
    ndarray of float64, shape (P, C)

    Examples
    --------
    >>> squared_chords(np.eye(3)[:1], np.eye(3)).tolist()
    [[0.0, 2.0, 2.0]]
    """
    squared = np.zeros((len(points), len(mean_directions)))
    for axis in range(3):
        squared += np.square(points[:, axis, None] - mean_directions[:, axis])
    return squared


def heaviest(weights: FloatArray, tail: float) -> IntArray:
    """Find the components that hold all but a tail of an image's weight.

    Parameters
    ----------
    weights : ndarray of float64, shape (C,)
        Mixing weights.
    tail : float
        What the lightest, which are left out, hold together at most.

    Returns
    -------
    ndarray of int64, shape (k,)
        In ascending order of their weights.

    Examples
    --------
    >>> heaviest(np.array([0.5, 0.01, 0.49]), 0.02).tolist()
    [2, 0]
    """
    order = np.argsort(weights, kind="stable")
    return np.asarray(order[np.searchsorted(np.cumsum(weights[order]), tail) :])
