"""Densities where many components overlap: all that reach an S2 cell, at all points in it at once.

To list every pair of a point and a component that reaches it takes a time and a memory that grow as the square of the
number of components. Here components of like width are taken together, and cells of about their width: what reaches a
cell is found cell by cell, and summed by matrix products. Where a cell has more points than its size asks for, the sum
is evaluated at Gauss-Legendre nodes of the cell and interpolated: broad components are smooth there, however many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, s2_curve
from geo_mvmf.maps import near, quadrature
from geo_mvmf.maps.felt import REACH
from geo_mvmf.maps.runs import spread
from geo_mvmf.patch_nodes import MAX_EDGE, MAX_RADIUS, member_terms, point_terms

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.uint64]
BoolArray = npt.NDArray[np.bool_]

INTERPOLATION = 1e-5
"""Of a component's peak, by which the polynomials on a crowded cell may miss it at most."""

# longest edge in sigma up to which so many nodes along a side keep to INTERPOLATION, on cells of level 2 and finer
_EDGES = np.array([0.4, 0.75, 1.2, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0])
_NODES = np.array([6, 7, 8, 9, 10, 11, 12, 14, 16, 18])
_COARSEST = 2

_CELLS_AT_ONCE = 1 << 14  # whose neighbours are found together: at most some hundred each
_ENTRIES_AT_ONCE = 1 << 17  # components listed together, by the cells that they may reach
_VALUES_AT_ONCE = 1 << 17  # densities of one component at one point, which stay in the cache


def densities(
    points: FloatArray, mean_directions: FloatArray, log_concentrations: FloatArray, peak: FloatArray
) -> FloatArray:
    """Sum the densities of components at points.

    Parameters
    ----------
    points : ndarray of float64, shape (M, 3)
        Unit vectors.
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    peak : ndarray of float64, shape (C,)
        Mixing weight times density at the mean direction, per steradian; positive.

    Returns
    -------
    ndarray of float64, shape (M,)
        Per steradian. Of each component at most exp(-REACH) of its peak is left out; INTERPOLATION of it and single
        precision (about 1e-5 of the density) come on top.

    Examples
    --------
    >>> densities(np.eye(3)[:2], np.eye(3), np.full(3, 9.0), np.ones(3)).tolist()
    [1.0, 1.0]
    """
    along, leaf = _along_curve(points)
    result = np.zeros(len(points))
    reach = near.chord_of(log_concentrations, REACH)
    for group in near.octaves(reach):
        narrowest = math.exp(float(log_concentrations[group].max()) / 2.0)
        crowd = _Crowd.of(mean_directions[group], log_concentrations[group], peak[group], reach[group], narrowest)
        result[along] += crowd.at(points[along], leaf)
    return result


def _along_curve(directions: FloatArray) -> tuple[IntArray, IdArray]:
    """Order directions along the curve through all S2 leaves, so that those in any cell are neighbours."""
    leaf = s2.leaf_ids(directions)
    order = np.argsort(leaf, kind="stable")
    return order, leaf[order]


@dataclasses.dataclass(frozen=True)
class _Cells:
    """S2 cells of one level and the ranges of what lies in them; G cells."""

    ids: IdArray  # (G,)
    centre: FloatArray  # (G, 3)
    first: IntArray  # (G,)
    count: IntArray  # (G,)

    @classmethod
    def of(cls, leaf: IdArray, level: int) -> _Cells:
        """Cells of leaves in ascending order."""
        ids, first = np.unique(s2.parent(leaf, level), return_index=True)
        return cls(ids, s2.centre(ids), first, np.diff(first, append=leaf.size))

    def take(self, rows: slice | IntArray) -> _Cells:
        return _Cells(self.ids[rows], self.centre[rows], self.first[rows], self.count[rows])


@dataclasses.dataclass(frozen=True)
class _Crowd:
    """Components of like width, in the order of their leaves."""

    mean_directions: FloatArray  # (C, 3)
    half_kappa: FloatArray  # (C,) minus half the concentrations
    peak: FloatArray  # (C,)
    reach: FloatArray  # (C,) chords
    cells: _Cells
    radius: float  # chord from the centre of a cell to any point of it, at most
    level: int
    side: int  # nodes along a side of a cell

    @classmethod
    def of(
        cls, mean_directions: FloatArray, log_kappa: FloatArray, peak: FloatArray, reach: FloatArray, narrowest: float
    ) -> _Crowd:
        finest = math.ceil(math.log2(max(MAX_EDGE * narrowest / _EDGES[-1], 1.0)))
        level = min(max(_COARSEST, finest), s2.MAX_LEVEL)
        edge = math.ldexp(MAX_EDGE, -level) * narrowest
        along, leaf = _along_curve(mean_directions)
        return cls(
            mean_directions[along],
            -0.5 * np.exp(log_kappa[along]),
            peak[along],
            reach[along],
            _Cells.of(leaf, level),
            math.ldexp(MAX_RADIUS, -level),
            level,
            int(_NODES[np.searchsorted(_EDGES[:-1], edge)]),
        )

    def at(self, points: FloatArray, leaf: IdArray) -> FloatArray:
        """Sum densities at points in the order of their leaves."""
        result = np.zeros(leaf.size)
        cells = _Cells.of(leaf, self.level)
        for start in range(0, cells.ids.size, _CELLS_AT_ONCE):
            some = cells.take(slice(start, start + _CELLS_AT_ONCE))
            for rows, count, member in self._members(some):
                self._add(result, some.take(rows), count, member, points)
        return result

    def _members(self, cells: _Cells) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
        """Rows of cells that something reaches, how many components reach each, and these, cell by cell."""
        limit = np.full(self.cells.ids.size, float(self.reach.max()) + 2.0 * self.radius)
        found = list(near.near_pairs(cells.centre, self.cells.centre, limit))
        row = np.concatenate([pairs.point for pairs in found])
        other = np.concatenate([pairs.component for pairs in found])
        order = np.argsort(row * limit.size + other)
        row, other = row[order], other[order]
        entries = np.cumsum(self.cells.count[other])
        last = entries[np.searchsorted(row, row, side="right") - 1]  # all of a cell in one part
        for part in np.split(np.arange(row.size), np.flatnonzero(np.diff(last // _ENTRIES_AT_ONCE)) + 1):
            if part.size:
                which, member = spread(self.cells.first[other[part]], self.cells.count[other[part]])
                cell = row[part][which]
                is_met = self._meets(cells.centre, cell, member)
                rows, count = np.unique(cell[is_met], return_counts=True)
                yield rows, count, member[is_met]

    def _meets(self, centre: FloatArray, cell: IntArray, member: IntArray) -> BoolArray:
        """Say which components may be felt in which cells."""
        limit = np.square(self.reach + self.radius)
        result = np.empty(cell.size, np.bool_)
        for start in range(0, cell.size, _VALUES_AT_ONCE):
            some = slice(start, start + _VALUES_AT_ONCE)
            squared = np.zeros(cell[some].size)
            for theirs, own in zip(centre.T, self.mean_directions.T, strict=True):
                gap = theirs.take(cell[some]) - own.take(member[some])
                squared += np.square(gap, out=gap)
            result[some] = squared <= limit.take(member[some])
        return result

    def _add(self, result: FloatArray, cells: _Cells, count: IntArray, member: IntArray, points: FloatArray) -> None:
        """Add what is felt in cells, count[k] components in each, at their points."""
        first = np.cumsum(count) - count
        # leaves may be wider than polynomials are made for
        is_crowded = (cells.count > self.side**2) & (self.level < s2.MAX_LEVEL)
        where = np.flatnonzero(~is_crowded)
        for some, width in _alike(where, cells.count, count):
            column = np.arange(width)
            at = cells.first[some][:, None] + np.minimum(column, cells.count[some][:, None] - 1)
            values = self._sums(points[at], cells.centre[some], first[some], count[some], member)
            held = column < cells.count[some][:, None]
            result[at[held]] += values[held]
        where = np.flatnonzero(is_crowded)
        for some, _ in _alike(where, np.full(cells.count.size, self.side**2), count):
            values = self._sums(self._nodes(cells.ids[some]), cells.centre[some], first[some], count[some], member)
            for own, value in zip(some, values.reshape(-1, self.side, self.side), strict=True):
                its = slice(cells.first[own], cells.first[own] + cells.count[own])
                result[its] += self._interpolated(cells.ids[own], value, points[its])

    def _sums(
        self, at: FloatArray, centre: FloatArray, first: IntArray, count: IntArray, member: IntArray
    ) -> FloatArray:
        """Densities at points (T, P, 3) of cells about centres (T, 3) of members first[k] .. first[k] + count[k]."""
        # cells cannot be as small as the narrowest components there may be: differences of large numbers
        precision = np.dtype(np.float32 if self.level < s2.MAX_LEVEL else np.float64)
        right = point_terms(at.transpose(0, 2, 1), centre).astype(precision)
        result = np.zeros(at.shape[:2])
        step = max(1, _VALUES_AT_ONCE // result.size)
        for low in range(0, int(count.max()), step):
            column = np.arange(low, min(low + step, int(count.max())))
            present = column < count[:, None]
            own = member[first[:, None] + np.minimum(column, count[:, None] - 1)]
            apart = centre[:, None] - self.mean_directions[own]
            exponents = np.matmul(member_terms(apart, self.half_kappa[own]).astype(precision), right)
            peak = np.where(present, self.peak[own], 0.0).astype(precision)
            result += np.matmul(peak[:, None], np.exp(exponents, out=exponents))[:, 0]
        return result

    def _nodes(self, cells: IdArray) -> FloatArray:
        """Nodes of cells, (T, side^2, 3), s varying slowest."""
        face, s, t = s2.st_rectangle(cells)
        x, _ = quadrature.gauss_legendre(self.side)
        u = s2_curve.st_to_uv(s[:, :1] + np.diff(s) * x)
        v = s2_curve.st_to_uv(t[:, :1] + np.diff(t) * x)
        u, v = np.broadcast_arrays(u[:, :, None], v[:, None, :])
        directions = s2.uv_directions(np.broadcast_to(face[:, None, None], u.shape), u, v)
        return directions.reshape(cells.size, -1, 3)

    def _interpolated(self, cell: np.uint64, values: FloatArray, points: FloatArray) -> FloatArray:
        """Take values at the nodes of a cell to points in it."""
        _, *bounds = s2.st_rectangle(cell)
        _, *own = s2_curve.face_uv(points)
        along_s, along_t = (
            quadrature.interpolation(self.side, (s2_curve.uv_to_st(each) - low) / (high - low))
            for each, (low, high) in zip(own, bounds, strict=True)
        )
        return np.asarray(np.einsum("na,na->n", along_s @ values, along_t))


def _alike(where: IntArray, points: IntArray, members: IntArray) -> Iterator[tuple[IntArray, int]]:
    """Cells with about as many points and members, so many that their values fit into the cache; the most points."""
    wide, deep = _rounded(points[where]), _rounded(members[where])
    order = np.lexsort((deep, wide))
    ends = np.flatnonzero((np.diff(wide[order]) != 0) | (np.diff(deep[order]) != 0)) + 1
    for some in np.split(order, ends):
        if some.size:
            step = max(1, _VALUES_AT_ONCE // int(wide[some[0]] * deep[some[0]]))
            for start in range(0, some.size, step):
                own = where[some[start : start + step]]
                yield own, int(points[own].max())


def _rounded(counts: IntArray) -> IntArray:
    """Round up by a fifth at most."""
    return np.ceil(np.exp2(np.ceil(4.0 * np.log2(counts)) / 4.0)).astype(np.int64)
