"""Densities at the nodes of patches: sums over the components that reach each, and values handed down by larger cells.

A component much wider than a patch need not be evaluated there: on a cell of its own size it is a polynomial, which is
handed down to all patches inside.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, s2_curve, vmf
from geo_mvmf.patch_nodes import NODES, member_terms, point_terms, rule

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
Nodes = tuple[IntArray, FloatArray, FloatArray, FloatArray]

VALUES_AT_ONCE = 1 << 17
"""Values of a temporary array: 1 MB, which stays in the cache."""


_SMALLEST = 2.0**-8  # parts of a side whose matrices are kept


@dataclasses.dataclass(frozen=True, eq=False)
class Components:
    """The components of one mixture that matter.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (A, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (A,)
        Natural logarithms of kappa.
    log_weights : ndarray of float64, shape (A,)
        Natural logarithms of the mixing weights.
    reach : ndarray of float64, shape (A,)
        How far each component reaches, as a chord; its tail beyond is left out.

    Examples
    --------
    >>> Components(np.eye(3), np.zeros(3), np.log(np.full(3, 1 / 3)), np.full(3, 2.0)).reach.size
    3
    """

    mean_directions: FloatArray
    log_concentrations: FloatArray
    log_weights: FloatArray
    reach: FloatArray


def sums(components: Components, nodes: Nodes, starts: IntArray, members: IntArray) -> FloatArray:
    """Add the densities of each cell's members at its nodes.

    Parameters
    ----------
    components : Components
    nodes : tuple
        From `nodes_of`, of m cells; those with most members first, as neighbours are worked on together.
    starts : ndarray of int64, shape (m + 1,)
        ``members[starts[k]:starts[k + 1]]`` are those of cell k.
    members : ndarray of int64
        Rows of `components`.

    Returns
    -------
    ndarray of float64, shape (m, NODES, NODES)
        Per steradian; s varies along the second axis, t along the third.

    Examples
    --------
    >>> even = Components(np.eye(3)[:1], np.full(1, -20.0), np.zeros(1), np.full(1, 2.0))
    >>> from geo_mvmf.patch_nodes import nodes_of
    >>> found = sums(even, nodes_of(s2.face_cells()), np.arange(7), np.zeros(6, dtype=np.int64))
    >>> found.shape, bool(abs(found * 4.0 * np.pi - 1.0).max() < 1e-6)
    ((6, 8, 8), True)
    """
    half_kappas = -0.5 * np.exp(components.log_concentrations)
    log_peaks = vmf.log_normaliser(components.log_concentrations) + components.log_weights
    result = np.zeros((starts.size - 1, NODES**2))
    for part in _parts(np.diff(starts)):
        face, local, middle = nodes[0][part], nodes[1][part], nodes[2][part]
        frames, right = s2_curve.FROM_FACE[face], point_terms(local, middle)
        first, counts = starts[part], np.diff(starts[part.start : part.stop + 1])
        step = max(1, VALUES_AT_ONCE // NODES**2)
        for low in range(0, int(counts[0]), step):
            column = np.arange(low, min(low + step, int(counts[0])))
            present = column < counts[:, None]  # (m, k)
            member = members[np.where(present, first[:, None] + column, first[:, None])]
            apart = middle[:, None] - components.mean_directions[member] @ frames  # (m, k, 3)
            exponents = member_terms(apart, half_kappas[member], log_peaks[member], present) @ right
            result[part] += np.exp(exponents, out=exponents).sum(axis=1)
    return result.reshape(-1, NODES, NODES)


def _parts(counts: IntArray) -> Iterator[slice]:
    """Ranges of cells so short that all members' values at all nodes fit into one temporary array."""
    start, stop = 0, int(np.count_nonzero(counts))
    while start < stop:
        end = min(start + max(1, VALUES_AT_ONCE // (NODES**2 * int(counts[start]))), stop)
        yield slice(start, end)
        start = end


def handed_down(values: FloatArray, owners: IdArray, cells: IdArray) -> FloatArray:
    """Interpolate values at the nodes of cells to the nodes of smaller cells inside.

    Parameters
    ----------
    values : ndarray of float64, shape (m, NODES, NODES)
        At the nodes of the owners.
    owners, cells : ndarray of uint64, shape (m,)
        Each owner contains its cell.

    Returns
    -------
    ndarray of float64, shape (m, NODES, NODES)

    Examples
    --------
    >>> face = s2.face_cells()[:1]
    >>> bool(abs(handed_down(np.full((1, NODES, NODES), 3.0), face, s2.children(face)[0, :1]) - 3.0).max() < 1e-12)
    True
    """
    _, s, t = s2.st_rectangle(owners)
    _, inner_s, inner_t = s2.st_rectangle(cells)
    along_s, along_t = _matrices(s, inner_s), _matrices(t, inner_t)
    return np.asarray(along_s @ values @ along_t.transpose(0, 2, 1))


def _matrices(outer: FloatArray, inner: FloatArray) -> FloatArray:
    """From values at the nodes of sides (m, 2) to those at the nodes of parts of them, (m, NODES, NODES)."""
    ratio = (inner[:, 1] - inner[:, 0]) / (outer[:, 1] - outer[:, 0])  # 2^-depth, exactly
    place = (inner[:, 0] - outer[:, 0]) / (outer[:, 1] - outer[:, 0])
    result = np.empty((ratio.size, NODES, NODES))
    for part in np.unique(ratio):
        own = ratio == part
        number = (place[own] / part).astype(np.int64)
        result[own] = _all_parts(float(part))[number] if part >= _SMALLEST else _parts_of(float(part), number)
    return result


@functools.cache
def _all_parts(ratio: float) -> FloatArray:
    return _parts_of(ratio, np.arange(round(1.0 / ratio)))


def _parts_of(ratio: float, number: IntArray) -> FloatArray:
    """Matrices for parts of a side that are so many times smaller, (m, NODES, NODES)."""
    x, coefficients = rule()
    at = ratio * (number[:, None] + x)
    return np.asarray(np.polynomial.legendre.legvander(2.0 * at - 1.0, NODES - 1) @ coefficients)
