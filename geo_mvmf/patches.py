"""Patches: S2 cells so small that a mixture's density is nearly a polynomial on each.

The components that matter are chosen, the faces of the cube are split until every cell either meets no component or is
a patch (no larger than 1.5 sigma of the narrowest component that reaches it), and the density is evaluated at 8 x 8
Gauss-Legendre nodes of each patch. So no peak can hide inside a cell, and what `tessellation` needs of any smaller
cell follows by interpolation, good to about 1e-6 of the peak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, s2_curve, vmf
from geo_mvmf.patch_nodes import NODES, member_terms, nodes_of, point_terms

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PATCH_SIGMAS = 1.5
"""Longest edge of a patch in units of the narrowest sigma."""

VALUES_AT_ONCE = 1 << 17
"""Values of a temporary array: 1 MB, which stays in the cache."""

_MAX_EDGE = 1.704897179199218  # S2 library, kMaxEdge of the quadratic projection: radians at level 0
_MAX_RADIUS = 1.219328  # half of its kMaxDiag: no point of a cell of level 0 is farther from its centre (tested)
_NARROWEST = 36.0  # log concentration whose patch, level 28, still leaves cells to split it into
_COARSEST = 2  # a patch of lower level would see the projection's area element vary too much
_KEPT_NODES = 1 << 25  # node values kept for a second pass: 512 MB of density and element; beyond, computed twice


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
    >>> choose_components(np.eye(3), np.zeros(3), np.array([0.5, 0.5, 0.0]), cut=1e-3).reach.size
    2
    """

    mean_directions: FloatArray
    log_concentrations: FloatArray
    log_weights: FloatArray
    reach: FloatArray


@dataclasses.dataclass(frozen=True, eq=False)
class Patches:
    """P patches and the components that reach each of them.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (P,)
        The patches; those that most components reach come first.
    starts : ndarray of int64, shape (P + 1,)
        ``members[starts[k]:starts[k + 1]]`` reach patch k.
    members : ndarray of int64
        Rows of `Components`.
    empty : ndarray of uint64
        The cells that tile the rest of the sphere, which no component reaches.

    Examples
    --------
    >>> peak = choose_components(np.eye(3)[:1], np.full(1, 12.0), np.ones(1), cut=1e-3)
    >>> patches = find_patches(peak)
    >>> round(float(s2.area_sr(patches.cell_ids).sum() + s2.area_sr(patches.empty).sum()), 10)
    12.5663706144
    """

    cell_ids: IdArray
    starts: IntArray
    members: IntArray
    empty: IdArray


def choose_components(
    mean_directions: FloatArray, log_concentrations: FloatArray, weights: FloatArray, *, cut: float
) -> Components:
    """Choose the components that matter, and how far each reaches.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa; taken as at most 36 (sigma = 0.1 m), where S2 cells end.
    weights : ndarray of float64, shape (C,)
        Mixing weights, sum 1.
    cut : float
        Probability that may be left out: half by dropping components, half by cutting tails.

    Returns
    -------
    Components
        The fewest components that leave out at most the first half.

    Examples
    --------
    >>> chosen = choose_components(np.eye(3), np.zeros(3), np.array([0.0001, 0.9, 0.0999]), cut=1e-3)
    >>> chosen.log_weights.round(2).tolist()
    [-0.11, -2.3]
    """
    order = np.argsort(weights)[::-1]
    from_here_on = np.cumsum(weights[order][::-1])[::-1]  # weight of this component and all lighter ones
    kept = order[: max(1, int(np.count_nonzero(from_here_on > cut / 2.0)))]
    # the same absolute tail for each, so that light components are cut nearer
    tail = np.minimum(1.0, cut / (2.0 * kept.size * weights[kept]))
    log_kappa = np.minimum(log_concentrations[kept], _NARROWEST)
    reach = 2.0 * np.sin(vmf.cap_quantile(1.0 - tail, log_kappa) / 2.0)
    return Components(mean_directions[kept], log_kappa, np.log(weights[kept]), reach)


def find_patches(components: Components) -> Patches:
    """Split the sphere until every cell is a patch or meets no component.

    Parameters
    ----------
    components : Components
        What must be resolved.

    Returns
    -------
    Patches
        Patches and empty cells tile the sphere.

    Examples
    --------
    >>> wide = choose_components(np.eye(3)[:1], np.full(1, -3.0), np.ones(1), cut=1e-6)
    >>> find_patches(wide).cell_ids.size, find_patches(wide).empty.size
    (96, 0)
    """
    root_kappa = np.exp(components.log_concentrations / 2.0)
    cells = s2.face_cells()
    owner = np.repeat(np.arange(6), components.reach.size)  # row of `cells`, ascending
    member = np.tile(np.arange(components.reach.size), 6)
    done: list[tuple[IdArray, IntArray, IntArray]] = []
    empty: list[IdArray] = []
    for level in range(s2.MAX_LEVEL + 1):
        near = _meets(cells, level, owner, member, components)
        owner, member = owner[near], member[near]
        counts = np.bincount(owner, minlength=cells.size)
        narrow = _largest(root_kappa[member], counts)
        ready = (counts > 0) & (np.ldexp(_MAX_EDGE, -level) * narrow <= PATCH_SIGMAS) & (level >= _COARSEST)
        done.append((cells[ready], counts[ready], member[ready[owner]]))
        empty.append(cells[counts == 0])
        cells, owner, member = _split(cells, counts, owner, member, (counts > 0) & ~ready)
        if not cells.size:
            break
    return _join(done, np.concatenate(empty))


def _largest(values: FloatArray, counts: IntArray) -> FloatArray:
    """Largest of each run of values, 0 for an empty run."""
    result = np.zeros(counts.size)
    filled = np.flatnonzero(counts)
    if filled.size:
        result[filled] = np.maximum.reduceat(values, (np.cumsum(counts) - counts)[filled])
    return result


def _meets(cells: IdArray, level: int, owner: IntArray, member: IntArray, components: Components) -> BoolArray:
    """Say which pairs may share a point: by chords, which obey the triangle inequality."""
    middles = s2.centre(cells)
    limit = np.ldexp(_MAX_RADIUS, -level) + components.reach[member]
    squared = np.zeros(owner.size)
    for axis in range(3):
        squared += np.square(middles[owner, axis] - components.mean_directions[member, axis])
    return np.asarray(squared <= np.square(limit))


def _split(
    cells: IdArray, counts: IntArray, owner: IntArray, member: IntArray, again: BoolArray
) -> tuple[IdArray, IntArray, IntArray]:
    """Replace the cells that go on by their children; each child inherits all members."""
    member = member[again[owner]]
    counts = counts[again]
    starts = np.cumsum(counts) - counts
    each = np.repeat(counts, 4)  # members of every child
    offset = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
    rows = np.repeat(np.repeat(starts, 4), each) + offset
    return s2.children(cells[again]).ravel(), np.repeat(np.arange(each.size), each), member[rows]


def _join(done: list[tuple[IdArray, IntArray, IntArray]], empty: IdArray) -> Patches:
    cell_ids, counts, members = (np.concatenate(part) for part in zip(*done, strict=True))
    order = np.argsort(-counts, kind="stable")
    first = (np.cumsum(counts) - counts)[order]
    counts = counts[order]
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = np.repeat(first - starts[:-1], counts) + np.arange(starts[-1])
    return Patches(cell_ids[order], starts, members[rows], empty)


class Block(NamedTuple):
    """Values at the nodes of some patches; s varies along the second axis, t along the third.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (m,)
        The patches.
    density : ndarray of float64, shape (m, NODES, NODES)
        Per steradian.
    element : ndarray of float64, shape (m, NODES, NODES)
        Steradians per unit of s and t.

    Examples
    --------
    >>> Block(s2.face_cells(), np.ones((6, NODES, NODES)), np.ones((6, NODES, NODES))).density.shape
    (6, 8, 8)
    """

    cell_ids: IdArray
    density: FloatArray
    element: FloatArray


class NodeValues:
    """Density and area element at the nodes of patches, by blocks; the density is kept where memory allows.

    Parameters
    ----------
    patches : Patches
        Where.
    components : Components
        Of what.

    Examples
    --------
    >>> wide = choose_components(np.eye(3)[:1], np.full(1, -3.0), np.ones(1), cut=1e-6)
    >>> nodes = NodeValues(find_patches(wide), wide)
    >>> [nodes.of(block).density.shape for block in nodes.blocks()]
    [(96, 8, 8)]
    """

    def __init__(self, patches: Patches, components: Components) -> None:
        self.patches = patches
        self._components = components
        self._half_kappas = -0.5 * np.exp(components.log_concentrations)
        self._log_peaks = vmf.log_normaliser(components.log_concentrations) + components.log_weights
        self._keep = patches.cell_ids.size * NODES**2 <= _KEPT_NODES
        self._kept: dict[int, Block] = {}

    def blocks(self) -> Iterator[slice]:
        """Give ranges of patches whose values fit into one temporary array.

        Examples
        --------
        >>> wide = choose_components(np.eye(3)[:1], np.full(1, -3.0), np.ones(1), cut=1e-6)
        >>> list(NodeValues(find_patches(wide), wide).blocks())
        [slice(0, 96, None)]
        """
        step = VALUES_AT_ONCE // NODES**2
        size = self.patches.cell_ids.size
        return (slice(start, min(start + step, size)) for start in range(0, size, step))

    def of(self, block: slice) -> Block:
        """Evaluate the density at the nodes of some patches.

        Parameters
        ----------
        block : slice
            One of `blocks`.

        Returns
        -------
        Block
            Density and area element; computed once where all fit into memory.

        Examples
        --------
        >>> wide = choose_components(np.eye(3)[:1], np.full(1, -3.0), np.ones(1), cut=1e-6)
        >>> values = NodeValues(find_patches(wide), wide).of(slice(0, 96))
        >>> bool(abs(values.density * 4 * np.pi - 1).max() < 0.06)
        True
        """
        kept = self._kept.get(block.start)
        if kept is not None:
            return kept
        cells = self.patches.cell_ids[block]
        face, local, middle, element = nodes_of(cells)
        density = np.empty((cells.size, NODES**2))
        for part in self._parts(block):
            here = slice(part.start - block.start, part.stop - block.start)
            density[here] = self._density(part, s2_curve.FROM_FACE[face[here]], local[here], middle[here])
        values = Block(cells, density.reshape(element.shape), element)
        if self._keep:
            self._kept[block.start] = values
        return values

    def _parts(self, block: slice) -> Iterator[slice]:
        """Ranges of a block so short that all members' values at all nodes fit into one temporary array."""
        start = block.start
        while start < block.stop:
            step = max(1, VALUES_AT_ONCE // (NODES**2 * self._members_of(start)))
            yield slice(start, min(start + step, block.stop))
            start += step

    def _members_of(self, patch: int) -> int:
        return int(self.patches.starts[patch + 1] - self.patches.starts[patch])

    def _density(self, part: slice, frames: FloatArray, local: FloatArray, middle: FloatArray) -> FloatArray:
        """Sum of the members' densities at points (m, 3, NODES^2) given in the faces' own frames, in the chord form."""
        right = point_terms(local, middle)
        most = self._members_of(part.start)
        step = max(1, VALUES_AT_ONCE // local.shape[2])
        total = np.zeros((local.shape[0], local.shape[2]))
        for low in range(0, most, step):
            terms = self._terms(part, frames, middle, np.arange(low, min(low + step, most)))
            exponents = terms @ right  # (m, k, NODES^2)
            total += np.exp(exponents, out=exponents).sum(axis=1)
        return total

    def _terms(self, part: slice, frames: FloatArray, middle: FloatArray, column: IntArray) -> FloatArray:
        """Coefficients (m, k, 5) of each patch's members of some columns; where it has fewer, a density of 0."""
        starts = self.patches.starts[part.start : part.stop + 1]
        present = column < np.diff(starts)[:, None]  # (m, k)
        member = self.patches.members[np.where(present, starts[:-1, None] + column, starts[:-1, None])]
        apart = middle[:, None] - self._components.mean_directions[member] @ frames  # (m, k, 3)
        return member_terms(apart, self._half_kappas[member], self._log_peaks[member], present)
