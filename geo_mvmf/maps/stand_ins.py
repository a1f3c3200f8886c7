"""Fewer components that stand for very many: those in one S2 cell become one, with their weight and their mean.

From farther away than the cell is wide, sums of functions of the distance hardly differ: a search goes over the few,
and what it finds is improved over the many.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2
from geo_mvmf.patch_nodes import MAX_EDGE

FloatArray = npt.NDArray[np.float64]

_NO_FACE = np.uint64(7 << 61)  # ids from here on are of no cell
_WIDEST, _NARROWEST = -8.0, 36.0  # log concentrations: wider is uniform, narrower a point


class Components(NamedTuple):
    """Unit vectors (C, 3), natural logarithms of kappa (C,), weights (C,).

    Examples
    --------
    >>> Components(np.eye(3), np.zeros(3), np.ones(3)).weights.size
    3
    """

    directions: FloatArray
    log_concentrations: FloatArray
    weights: FloatArray


def merged(components: Components, edge: FloatArray) -> Components:
    """Make one of all components that lie in one S2 cell.

    Parameters
    ----------
    components : Components
        C of them.
    edge : ndarray of float64, shape (C,)
        Radians: no edge of the cell that a component is merged in is longer; 0 for one that is not merged. Only those
        whose cells are of one size meet.

    Returns
    -------
    Components
        With the weights of their cells and the mean vectors (three-dimensional: mean direction and spread) of what is
        in them; where nothing meets, as they were. In the order of their cells.

    Examples
    --------
    >>> pair = Components(np.array([[0.96, 0.28, 0.0], [0.936, 0.352, 0.0]]), np.full(2, 20.0), np.full(2, 0.5))
    >>> one = merged(pair, np.full(2, 1.0))
    >>> one.directions.round(4).tolist(), one.weights.tolist(), one.log_concentrations.round(2).tolist()
    ([[0.9487, 0.3162, 0.0]], [1.0], [7.24])
    """
    directions, log_kappa, weights = components
    with np.errstate(divide="ignore"):
        level = np.clip(np.ceil(np.log2(MAX_EDGE / edge)), 0, s2.MAX_LEVEL).astype(np.int64)
    own = _NO_FACE | np.arange(level.size, dtype=np.uint64)
    cell = np.where(edge > 0.0, s2.parent(s2.leaf_ids(directions), level), own)
    _, first, group, count = np.unique(cell, return_index=True, return_inverse=True, return_counts=True)
    spread = _spread(log_kappa)
    total = np.asarray(np.bincount(group, weights), dtype=np.float64)
    sums = [np.bincount(group, weights * (1.0 - spread) * axis) for axis in directions.T]
    mean = np.stack(sums, axis=1, dtype=np.float64)
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    # 1 - mu.m is half the squared chord, which keeps its digits where all lie close together
    gap = 0.5 * np.square(directions - mean[group]).sum(axis=1)
    both = np.bincount(group, weights * (spread + (1.0 - spread) * gap)) / total
    alone = count == 1
    mean[alone] = directions[first[alone]]
    return Components(mean, np.where(alone, log_kappa[first], _log_concentration(both)), total)


def edge_for(directions: FloatArray, most: int) -> float:
    """Give the size of the smallest cells of one level of which no more than so many hold components.

    Parameters
    ----------
    directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    most : int
        Cells, at least 6.

    Returns
    -------
    float
        Radians: the longest edge of a cell of that level.

    Examples
    --------
    >>> edge_for(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), 6) < 1e-8
    True
    """
    leaf = np.sort(s2.leaf_ids(directions))
    level = 0
    while level < s2.MAX_LEVEL and np.count_nonzero(np.diff(s2.parent(leaf, level + 1))) < most:
        level += 1
    return float(np.ldexp(MAX_EDGE, -level))


def _spread(log_concentrations: FloatArray) -> FloatArray:
    """1 less the length of the mean vector: 1 + 1 / kappa - coth kappa."""
    kappa = np.exp(np.clip(log_concentrations, _WIDEST, _NARROWEST))
    return np.asarray(1.0 / kappa - 2.0 / np.expm1(np.minimum(2.0 * kappa, 700.0)))


def _log_concentration(spread: FloatArray) -> FloatArray:
    """Invert `_spread`, to a few per cent of kappa where components are wide (Banerjee et al. 2005, eq. 4.4)."""
    length = 1.0 - spread
    return np.log(length * (3.0 - length * length)) - np.log(spread * (1.0 + length))
