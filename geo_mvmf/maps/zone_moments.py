"""Probability of wide vMF components within polygons: what the zones weigh on the nodes of patches, once for all.

On a patch, an S2 cell no larger than a wide component's standard deviation, its density times the area element is a
polynomial through 8 x 8 nodes (`patch_nodes`). So what a zone holds of it on the patch is a sum over the nodes, with
the zone's own weights there: the integrals of the nodes' polynomials over the part of the patch inside the zone. By
Green's theorem they are integrals of G dt along that part's border, G the antiderivative in s: along the zone's border
inside the patch, and up the patch's side s = 1 where the zone crosses it (G is 0 at s = 0, dt on the other sides).
Where a zone holds all of a patch they are the weights of Gauss.

The cells are those of a turned Earth, so that no border that people draw runs along theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, s2_curve, sphere, vmf
from geo_mvmf.maps import near, quadrature
from geo_mvmf.maps.borders import moving
from geo_mvmf.patch_nodes import NODES, nodes_of, rule

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Members = Callable[[FloatArray], tuple[IntArray, IntArray]]
"""From places (M, 3) to pairs (place, zone) of which the zone holds the place."""

WIDEST = 7.0
"""Log concentration up to which components are wide enough."""

_FINEST, _COARSEST = 6, 2  # levels of the patches
_EDGE = 1.7049  # radians: of no cell of level 0 is an edge longer (S2 library, kMaxEdge)
_SIGMAS = 1.1  # of the longest edge of a patch: the polynomials then err by 1e-7 of the peak
_REACH = 18.0  # nats: what is left out of a component holds 2e-8 of it
_HALVINGS, _BISECTIONS = 5, 44
_SHORT = 0.2  # of a patch: pieces of border up to this long have four nodes, longer ones ten
_ON_SIDE = 1e-7  # of a patch
_PIECES_AT_ONCE, _VALUES_AT_ONCE = 1 << 14, 1 << 22


@functools.cache
def _turned() -> FloatArray:
    """A rotation by angles that nobody draws borders at, (3, 3)."""
    angles = np.array([0.7391, 1.2345, 2.1187])
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        step = np.eye(3)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    return turn


class _Pieces(NamedTuple):
    """Parts of edges, each inside one cell of the finest level."""

    edge: IntArray
    low: FloatArray  # along the edge, 0..1
    high: FloatArray
    cell: IdArray

    def take(self, chosen: IntArray) -> _Pieces:
        return _Pieces(self.edge[chosen], self.low[chosen], self.high[chosen], self.cell[chosen])


class _Crossings(NamedTuple):
    """Where borders pass from one cell of the finest level into the next."""

    zone: IntArray
    place: FloatArray  # (K, 3), turned
    before: IdArray
    after: IdArray


class _Weights(NamedTuple):
    """What zones weigh on the patches of one level; sorted by patch."""

    patches: IdArray  # (P,) those that some zone touches
    starts: IntArray  # (P + 1,) rows of each in what follows
    zone: IntArray
    weight: FloatArray  # (K, NODES^2), times steradians per unit of s and t


class ZoneMoments:
    """Zones, ready to hold shares of any number of wide components.

    Parameters
    ----------
    zone, start, stop
        Borders as `borders.Edges` has them: zones to the left, degrees.
    number : int
        Zones in all.
    members : callable
        From places (M, 3) to pairs (place, zone).

    Examples
    --------
    >>> import shapely
    >>> from geo_mvmf.maps import borders
    >>> half = np.array([shapely.box(0, -90, 180, 90).segmentize(1.0)])
    >>> moments = ZoneMoments(*borders.edges_of(half), 1, lambda places: borders.members(half, places))
    >>> round(float(moments.shares(np.eye(3)[:1], np.array([1.0]))[0, 0]), 6)
    0.5
    """

    def __init__(self, zone: IntArray, start: FloatArray, stop: FloatArray, number: int, members: Members) -> None:
        self._zone, self._start, self._change = zone, start, stop - start
        self._number, self._members = number, members
        self._pieces, self._crossings = self._cut()
        self._weights: dict[int, _Weights] = {}

    def shares(self, mean_directions: FloatArray, log_concentrations: FloatArray) -> FloatArray:
        """Give the probability of every zone under every component.

        Parameters
        ----------
        mean_directions : ndarray of float64, shape (C, 3)
            Unit vectors.
        log_concentrations : ndarray of float64, shape (C,)
            Natural logarithms of kappa, at most `WIDEST`.

        Returns
        -------
        ndarray of float64, shape (C, Z)
            To about 1e-7; may be that much below 0 or above 1.
        """
        result = np.zeros((log_concentrations.size, self._number))
        finest = np.log2(_EDGE / _SIGMAS) + 0.5 / np.log(2.0) * log_concentrations
        level = np.clip(np.ceil(finest), _COARSEST, _FINEST).astype(np.int64)
        for each in np.unique(level).tolist():
            own = np.flatnonzero(level == each)
            if each not in self._weights:
                self._weights[each] = self._at_level(each)
            turned = mean_directions[own] @ _turned().T
            result[own] = _integrated(turned, log_concentrations[own], self._weights[each], self._number)
        return result

    def _cut(self) -> tuple[_Pieces, _Crossings]:
        """Cut the edges where they pass from one cell of the finest level into another."""
        edge = np.arange(self._zone.size)
        low, high = np.zeros(edge.size), np.ones(edge.size)
        done = []
        for _ in range(_HALVINGS):  # so that hardly any part passes through three cells
            first, last = self._cells(edge, low), self._cells(edge, high)
            inside = first == last
            done.append(_Pieces(edge[inside], low[inside], high[inside], first[inside]))
            edge, low, high = edge[~inside], low[~inside], high[~inside]
            middle = 0.5 * (low + high)
            edge, low, high = np.tile(edge, 2), np.concatenate([low, middle]), np.concatenate([middle, high])
        crossings = []
        first, last = self._cells(edge, low), self._cells(edge, high)
        while edge.size:  # once for each cell that a part leaves
            inside, outside = low.copy(), high.copy()
            for _ in range(_BISECTIONS):
                middle = 0.5 * (inside + outside)
                same = self._cells(edge, middle) == first
                inside, outside = np.where(same, middle, inside), np.where(same, outside, middle)
            ends = first == last
            done.append(_Pieces(edge, low, np.where(ends, high, inside), first))
            edge, low, high, last = edge[~ends], outside[~ends], high[~ends], last[~ends]
            following = self._cells(edge, low)
            place = self._places(edge, low)
            crossings.append(_Crossings(self._zone[edge], place, first[~ends], following))
            first = following
        nothing = _Crossings(edge, np.empty((0, 3)), first, first)
        return (
            _Pieces(*(np.concatenate(part) for part in zip(*done, strict=True))),
            _Crossings(*(np.concatenate(part) for part in zip(nothing, *crossings, strict=True))),
        )

    def _places(self, edge: IntArray, along: FloatArray) -> FloatArray:
        place = self._start[edge] + along[:, None] * self._change[edge]
        return np.asarray(sphere.to_directions(place[:, 0], place[:, 1]) @ _turned().T)

    def _cells(self, edge: IntArray, along: FloatArray) -> IdArray:
        return np.asarray(s2.cell_ids(self._places(edge, along), _FINEST))

    def _at_level(self, level: int) -> _Weights:
        """Weights on the patches of a level."""
        pieces, crossings = self._pieces, self._crossings
        zone = self._zone[pieces.edge]
        keys, row = _numbered(s2.parent(pieces.cell, level), zone, self._number)
        cells, zones = keys
        weight = np.zeros((cells.size, NODES, NODES))
        for chosen, values in self._along(pieces, level):
            order = np.argsort(row[chosen], kind="stable")
            own = row[chosen][order]
            first = np.flatnonzero(np.diff(own, prepend=-1))
            weight[own[first]] += np.add.reduceat(values[order], first)
        weight += self._up_the_sides(crossings, cells, zones, level)
        weight *= nodes_of(cells)[3]
        whole, of = self._whole(cells, zones, level)
        _, x_weights = quadrature.gauss_legendre(NODES)
        full = np.multiply.outer(x_weights, x_weights) * nodes_of(whole)[3]
        cells, zones = np.concatenate([cells, whole]), np.concatenate([zones, of])
        every = np.concatenate([weight, full]).reshape(-1, NODES**2) * np.ldexp(1.0, -2 * level)
        order = np.argsort(cells, kind="stable")
        patches, starts = np.unique(cells[order], return_index=True)
        return _Weights(patches, np.append(starts, order.size), zones[order], every[order])

    def _along(self, pieces: _Pieces, level: int) -> Iterator[tuple[IntArray, FloatArray]]:
        """Integrals of G dt along pieces of border, (n, NODES, NODES), some pieces at a time."""
        step = np.abs(self._change[pieces.edge]).max(axis=1) * (pieces.high - pieces.low)
        short = np.radians(step) <= _SHORT * np.ldexp(1.0, -_FINEST)
        for kind, number in ((short, 4), (~short, 10)):
            (chosen,) = np.nonzero(kind)
            for first in range(0, chosen.size, _PIECES_AT_ONCE):
                some = chosen[first : first + _PIECES_AT_ONCE]
                yield some, self._integral(pieces.take(some), level, number)

    def _integral(self, pieces: _Pieces, level: int, number: int) -> FloatArray:
        extent = pieces.high - pieces.low
        face, s_side, t_side = s2.st_rectangle(s2.parent(pieces.cell, level))
        frames = _turned().T @ s2_curve.FROM_FACE[face]  # from directions to (w, u, v) of the face
        total = np.zeros((pieces.edge.size, NODES, NODES))
        for node, weight in zip(*quadrature.gauss_legendre(number), strict=True):
            point, speed = moving(self._start, self._change, pieces.edge, pieces.low + node * extent)
            here, there = (np.einsum("pi,pij->pj", part, frames) for part in (point, speed))
            s, t = (s2_curve.uv_to_st(here[:, k] / here[:, 0]) for k in (1, 2))
            slope = (there[:, 2] - there[:, 0] * here[:, 2] / here[:, 0]) / here[:, 0] / s2_curve.st_slope(t)
            scale = np.ldexp(1.0, level)
            s, t = (s - s_side[:, 0]) * scale, (t - t_side[:, 0]) * scale
            values = quadrature.interpolation(NODES, t) * (weight * extent * slope * scale)[:, None]
            total += _antiderivatives(s)[:, :, None] * values[:, None, :]
        return total

    def _up_the_sides(self, crossings: _Crossings, cells: IdArray, zones: IntArray, level: int) -> FloatArray:
        """Integrals of G dt up the sides s = 1 of patches, as far as they lie in the zones, (K, NODES, NODES)."""
        patches, patch = np.unique(cells, return_inverse=True)
        face, s_side, t_side = s2.st_rectangle(patches)
        corner = s2_curve.uv_directions(face, s2_curve.st_to_uv(s_side[:, 1]), s2_curve.st_to_uv(t_side[:, 0]))
        place, zone = self._members(corner @ _turned())
        inside = np.isin(_combined(patches[patch], zones, self._number), _combined(patches[place], zone, self._number))
        along = inside[:, None] * _integrals_from(np.zeros(1))  # as if the zone went on to the top of the side
        keys = _combined(cells, zones, self._number)
        order = np.argsort(keys)
        for own, sign in ((crossings.before, 1.0), (crossings.after, -1.0)):
            other = crossings.after if sign > 0.0 else crossings.before
            mine = s2.parent(own, level)
            passing = mine != s2.parent(other, level)
            s, t = _local(crossings.place[passing], mine[passing], level)
            # and not on the side beyond the corner, if it is that close to one
            at_side = np.abs(s - 1.0) <= np.minimum(_ON_SIDE, np.minimum(np.abs(t), np.abs(1.0 - t)))
            wanted = _combined(mine[passing][at_side], crossings.zone[passing][at_side], self._number)
            row = order[np.searchsorted(keys[order], wanted)]
            np.add.at(along, row, sign * _integrals_from(t[at_side]))
        return np.asarray(_antiderivatives(np.ones(1))[0][None, :, None] * along[:, None, :])

    def _whole(self, cells: IdArray, zones: IntArray, level: int) -> tuple[IdArray, IntArray]:
        """Patches that lie in a zone whose border does not touch them: ids and zones."""
        every = s2.face_cells()
        for _ in range(level):
            every = s2.children(every).ravel()
        place, zone = self._members(s2.centre(every) @ _turned())
        touched = np.isin(_combined(every[place], zone, self._number), _combined(cells, zones, self._number))
        return every[place[~touched]], zone[~touched]


def _combined(cells: IdArray, zones: IntArray, number: int) -> IdArray:
    """One number for each pair of a cell (coarser than level 14) and a zone."""
    return (cells >> np.uint64(32)) * np.uint64(number) + zones.astype(np.uint64)


def _numbered(cells: IdArray, zones: IntArray, number: int) -> tuple[tuple[IdArray, IntArray], IntArray]:
    """Give the different pairs, and which of them each is."""
    _, first, row = np.unique(_combined(cells, zones, number), return_index=True, return_inverse=True)
    return (cells[first], zones[first]), row.ravel()


def _local(places: FloatArray, cells: IdArray, level: int) -> tuple[FloatArray, FloatArray]:
    """Where turned directions lie in cells, 0..1 each way (a little outside where they are next to them)."""
    face, s_side, t_side = s2.st_rectangle(cells)
    local = np.einsum("pi,pij->pj", places, s2_curve.FROM_FACE[face])
    s, t = (s2_curve.uv_to_st(local[:, k] / local[:, 0]) for k in (1, 2))
    scale = np.ldexp(1.0, level)
    return (s - s_side[:, 0]) * scale, (t - t_side[:, 0]) * scale


@functools.cache
def _integrated_coefficients() -> FloatArray:
    """Legendre coefficients of the polynomials' integrals from 0, (NODES + 1, NODES)."""
    _, coefficients = rule()
    return np.asarray(0.5 * np.polynomial.legendre.legint(coefficients, lbnd=-1, axis=0))


def _antiderivatives(s: FloatArray) -> FloatArray:
    """Integrals of the polynomials from 0 to s, (n, NODES)."""
    return np.asarray(np.polynomial.legendre.legvander(2.0 * s - 1.0, NODES) @ _integrated_coefficients())


def _integrals_from(t: FloatArray) -> FloatArray:
    """Integrals of the polynomials from t to 1, (n, NODES)."""
    return np.asarray(_antiderivatives(np.ones(1)) - _antiderivatives(t))


def _integrated(
    mean_directions: FloatArray, log_concentrations: FloatArray, weights: _Weights, number: int
) -> FloatArray:
    """Sum over the patches within reach of each component, (C, Z)."""
    result = np.zeros((log_concentrations.size, number))
    if not weights.patches.size:
        return result
    reach = near.chord_of(log_concentrations, _REACH) + float(s2.bounding_radius(weights.patches[:1])[0])
    kappa, peak = np.exp(log_concentrations), vmf.log_normaliser(log_concentrations)
    pairs = list(near.near_pairs(s2.centre(weights.patches), mean_directions, np.minimum(reach, 2.0 + 1e-9)))
    point = np.concatenate([np.empty(0, dtype=np.int64), *(part.point for part in pairs)])
    component = np.concatenate([np.empty(0, dtype=np.int64), *(part.component for part in pairs)])
    order = np.argsort(point, kind="stable")
    ends = np.searchsorted(point[order], np.arange(weights.patches.size + 1))
    face, local, _, _ = nodes_of(weights.patches)
    for patch in range(weights.patches.size):
        own = component[order[ends[patch] : ends[patch + 1]]]
        rows = slice(weights.starts[patch], weights.starts[patch + 1])
        nodes = (s2_curve.FROM_FACE[face[patch]] @ local[patch]).T  # (NODES^2, 3)
        for start in range(0, own.size, _VALUES_AT_ONCE // NODES**2):
            some = own[start : start + _VALUES_AT_ONCE // NODES**2]
            squared = near.squared_chords(nodes, mean_directions[some])
            density = np.exp(peak[some] - 0.5 * kappa[some] * squared)  # (NODES^2, k)
            result[np.ix_(some, weights.zone[rows])] += (weights.weight[rows] @ density).T
    return result
