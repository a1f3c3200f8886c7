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

from geo_mvmf import patch_density, s2, vmf
from geo_mvmf.patch_density import Components, handed_down
from geo_mvmf.patch_nodes import MAX_EDGE, MAX_RADIUS, NODES, nodes_of

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

PATCH_SIGMAS = 1.5
"""Longest edge of a patch in units of the narrowest sigma."""

_NARROWEST = 36.0  # log concentration whose patch, level 28, still leaves cells to split it into
_COARSEST = 2  # a patch of lower level would see the projection's area element vary too much
_KEPT_NODES = 1 << 25  # node values kept for a second pass: 512 MB of density and element; beyond, computed twice


class Fields(NamedTuple):
    """Densities of components at the nodes of cells that are as small as they ask for, but larger than a patch.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (F,)
    density : ndarray of float64, shape (F, NODES, NODES)
        Per steradian, of all components that are smooth on the cell or on one around it.

    Examples
    --------
    >>> Fields(s2.face_cells(), np.ones((6, NODES, NODES))).density.shape
    (6, 8, 8)
    """

    cell_ids: IdArray
    density: FloatArray

    def at(self, rows: IntArray, cells: IdArray) -> FloatArray:
        """Interpolate fields to the nodes of cells inside, (m, NODES, NODES); 0 where the row is -1."""
        result = np.zeros((cells.size, NODES, NODES))
        (some,) = np.nonzero(rows >= 0)
        step = patch_density.VALUES_AT_ONCE // NODES**2
        for start in range(0, some.size, step):
            own = some[start : start + step]
            result[own] = handed_down(self.density[rows[own]], self.cell_ids[rows[own]], cells[own])
        return result


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
    field_of : ndarray of int64, shape (P,)
        Row of the field that a patch inherits from, -1 for none: what much wider components are there.
    fields : Fields

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
    field_of: IntArray
    fields: Fields


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
    search = _Search(components)
    for level in range(s2.MAX_LEVEL + 1):
        search.step(level)
        if not search.cells.size:
            break
    return search.found()


class _Done(NamedTuple):
    """Patches of one level."""

    cell_ids: IdArray
    counts: IntArray
    members: IntArray
    field_of: IntArray


class _Search:
    """The cells of a level, and the components that are not yet smooth on them."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._root_kappa = np.exp(components.log_concentrations / 2.0)
        self.cells = s2.face_cells()
        self._owner = np.repeat(np.arange(6), components.reach.size)  # row of `cells`, ascending
        self._member = np.tile(np.arange(components.reach.size), 6)
        self._field_of = np.full(6, -1)
        self._fields = Fields(np.empty(0, dtype=np.uint64), np.empty((0, NODES, NODES)))
        self._done: list[_Done] = []
        self._empty: list[IdArray] = []

    def step(self, level: int) -> None:
        """Sort the cells into patches, empty cells, and cells that are replaced by their children."""
        cells = self.cells
        near = _meets(cells, level, self._owner, self._member, self._components)
        owner, member = self._owner[near], self._member[near]
        smooth = np.ldexp(MAX_EDGE, -level) * self._root_kappa[member] <= PATCH_SIGMAS
        smooth = (smooth | (level == s2.MAX_LEVEL)) & (level >= _COARSEST)
        counts = np.bincount(owner, minlength=cells.size)
        again = np.bincount(owner[~smooth], minlength=cells.size) > 0
        filled = (counts > 0) | (self._field_of >= 0)
        ready = filled & ~again
        self._done.append(_Done(cells[ready], counts[ready], member[ready[owner]], self._field_of[ready]))
        self._empty.append(cells[~filled])
        kept = smooth & again[owner]
        self._keep(owner[kept], member[kept])
        rest = ~smooth
        self._split(again, owner[rest], member[rest])

    def _keep(self, owner: IntArray, member: IntArray) -> None:
        """Make fields of components that are smooth on cells which are split for narrower ones."""
        counts = np.bincount(owner, minlength=self.cells.size)
        (rows,) = np.nonzero(counts)
        if not rows.size:
            return
        order, starts, members = _ordered(counts[rows], member)
        rows = rows[order]
        cells = self.cells[rows]
        above = self._fields.at(self._field_of[rows], cells)
        density = patch_density.sums(self._components, nodes_of(cells), starts, members) + above
        self._field_of[rows] = self._fields.cell_ids.size + np.arange(rows.size)
        self._fields = Fields(*(np.concatenate(pair) for pair in zip(self._fields, (cells, density), strict=True)))

    def _split(self, again: BoolArray, owner: IntArray, member: IntArray) -> None:
        """Replace the cells that go on by their children; each child inherits all that is left."""
        counts = np.bincount(owner, minlength=again.size)[again]
        starts = np.cumsum(counts) - counts
        each = np.repeat(counts, 4)  # members of every child
        offset = np.arange(each.sum()) - np.repeat(np.cumsum(each) - each, each)
        rows = np.repeat(np.repeat(starts, 4), each) + offset
        self.cells = s2.children(self.cells[again]).ravel()
        self._owner, self._member = np.repeat(np.arange(each.size), each), member[rows]
        self._field_of = np.repeat(self._field_of[again], 4)

    def found(self) -> Patches:
        """Join the patches of all levels."""
        done = _Done(*(np.concatenate(part) for part in zip(*self._done, strict=True)))
        order, starts, members = _ordered(done.counts, done.members)
        empty = np.concatenate(self._empty)
        return Patches(done.cell_ids[order], starts, members, empty, done.field_of[order], self._fields)


def _ordered(counts: IntArray, members: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Put the cells with most members first: their order, starts of their members, members."""
    order = np.argsort(-counts, kind="stable")
    first = (np.cumsum(counts) - counts)[order]
    counts = counts[order]
    starts = np.concatenate([[0], np.cumsum(counts)])
    rows = np.repeat(first - starts[:-1], counts) + np.arange(starts[-1])
    return order, starts, members[rows]


def _meets(cells: IdArray, level: int, owner: IntArray, member: IntArray, components: Components) -> BoolArray:
    """Say which pairs may share a point: by chords, which obey the triangle inequality."""
    middles = s2.centre(cells)
    limit = np.ldexp(MAX_RADIUS, -level) + components.reach[member]
    squared = np.zeros(owner.size)
    for axis in range(3):
        squared += np.square(middles[owner, axis] - components.mean_directions[member, axis])
    return np.asarray(squared <= np.square(limit))


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
        step = patch_density.VALUES_AT_ONCE // NODES**2
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
        starts = self.patches.starts[block.start : block.stop + 1]
        nodes = nodes_of(cells)
        density = patch_density.sums(self._components, nodes, starts, self.patches.members)
        density += self.patches.fields.at(self.patches.field_of[block], cells)
        values = Block(cells, density, nodes[3])
        if self._keep:
            self._kept[block.start] = values
        return values
