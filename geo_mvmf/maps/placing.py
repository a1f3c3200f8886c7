"""Where a sum of functions of the angle to many components is best: the median, and the most within a radius.

Each image is a list of weighted components. The median's search begins at the best of 384 places spread over the
sphere and at the heaviest components; that of the best place within a radius is a branch and bound over S2 cells: as
a component's probability in a cap only falls with distance, a cell's best place holds no more than the sum of what
each component would hold at the cell's nearest point. Both end with Newton's method on the sphere.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere
from geo_mvmf.maps import near, radial
from geo_mvmf.maps.runs import spread

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.uint64]

CARE = 0.05
"""Of the curvature that components have on their own, in a search from afar."""

_NEAR = 1e-4  # the same where a place is nearly the best
_SAME = 6  # decimals to which places found over few components are told apart
_LATTICE_LEVEL = 3  # 384 S2 cells whose centres are looked at first
_LATTICE_STARTS, _HEAVY_STARTS = 4, 6
_VALUES_AT_ONCE = 1 << 15  # functions of one component at one place, which stay in the cache
_STEPS, _STILL = 60, 1e-10  # of Newton's method, until a start moves less than this (0.6 mm)
_HALVINGS = 12  # of a step that does not improve
_ROUNDING = 1e-16  # of a sum, relatively: a step that gains less is not worth a try
_SLACK, _LEAST = 0.005, 1e-4  # the search leaves cells that could be better by less: relatively, and in probability
_CELLS = 1024  # of one image that are looked into at each level, the most promising ones
_SURE = 1e-9  # probabilities nearer to 0 or 1 than this are taken as such in the search


@dataclasses.dataclass(frozen=True)
class Weighted:
    """Components of one image: unit vectors (C, 3), weights (C,), and the numbers they have in a table (C,)."""

    directions: FloatArray
    weights: FloatArray
    numbers: IntArray

    def take(self, rows: slice | IntArray) -> Weighted:
        """Take some of the components.

        Parameters
        ----------
        rows : slice or ndarray of int64

        Returns
        -------
        Weighted

        Examples
        --------
        >>> Weighted(np.eye(3), np.ones(3), np.arange(3)).take(slice(1, 3)).numbers.tolist()
        [1, 2]
        """
        return Weighted(self.directions[rows], self.weights[rows], self.numbers[rows])


class Sum(NamedTuple):
    """Components and the table of the function that is summed over them.

    Examples
    --------
    >>> one = Sum(Weighted(np.eye(3)[:1], np.ones(1), np.zeros(1, np.int64)), radial.distance_table(np.array([9.0])))
    >>> one.table.kind
    'distance'
    """

    image: Weighted
    table: radial.Table


def median(exact: Sum, rough: Sum | None = None) -> FloatArray:
    """Find the place of least expected distance.

    Parameters
    ----------
    exact : Sum
        With a table from `radial.distance_table`.
    rough : Sum, optional
        Fewer components that stand for those of the image: the search goes over them, and the places that it finds are
        improved over all.

    Returns
    -------
    ndarray of float64, shape (3,)
        Unit vector: the best of the places that Newton's method finds from up to ten starts.

    Examples
    --------
    >>> one = Weighted(np.eye(3)[:1], np.ones(1), np.zeros(1, np.int64))
    >>> median(Sum(one, radial.distance_table(np.array([9.0])))).round(6).tolist()
    [1.0, 0.0, 0.0]
    """
    over = (rough or exact).image
    heavy = np.argsort(-over.weights, kind="stable")[:_HEAVY_STARTS]
    starts = np.concatenate([over.directions[heavy], _lattice_starts(over)])
    places, values = polish(rough or exact, starts, sign=1.0)
    if rough is not None:
        _, apart = np.unique(np.round(places, _SAME), axis=0, return_index=True)
        places, values = polish(exact, places[apart], sign=1.0, care=_NEAR)
    return np.asarray(places[np.argmin(np.round(values, 12))])


def most_within(exact: Sum, known: FloatArray, rough: Sum | None = None) -> FloatArray:
    """Find places that hold most within a radius.

    Parameters
    ----------
    exact : Sum
        With a table from `radial.cap_table`.
    known : ndarray of float64, shape (K, 3)
        Places to begin with; good ones make the search short.
    rough : Sum, optional
        As for `median`.

    Returns
    -------
    ndarray of float64, shape (K + 1, 3)
        The known places improved, and what the search found. Nowhere is there more than the best of them by over
        half a per cent and 1e-4, unless more than 1024 cells of one level promised more. With `rough` that is true of
        the sum over its components: a place where they hold less than the exact sum may be missed.

    Examples
    --------
    >>> one = Weighted(np.eye(3)[:1], np.ones(1), np.zeros(1, np.int64))
    >>> most_within(Sum(one, radial.cap_table(np.array([9.0]), 0.01)), np.eye(3)[:1]).round(6).tolist()[0]
    [1.0, 0.0, 0.0]
    """
    begun, values = polish(exact, known, sign=-1.0)
    best = begun[np.argmin(values)]
    if rough is None:
        found = _search(exact, best, -float(values.min()))
    else:
        value, _, _ = _newton(rough, best[None], -1.0, CARE)
        found = _search(rough, best, -float(value[0]))
    last, _ = polish(exact, found[None], sign=-1.0)
    return np.concatenate([begun, last])


def polish(over: Sum, starts: FloatArray, *, sign: float, care: float = CARE) -> tuple[FloatArray, FloatArray]:
    """Improve places by Newton's method, each on its own, never to the worse.

    Parameters
    ----------
    over : Sum
    starts : ndarray of float64, shape (S, 3)
        Unit vectors.
    sign : float
        1 to make the sum of the table's function least, -1 to make it largest.
    care : float
        Least curvature that is reckoned with, as a share of what the components have on their own: steps are short
        where theirs cancel out. Near the best place there is no need for that.

    Returns
    -------
    places : ndarray of float64, shape (S, 3)
    values : ndarray of float64, shape (S,)
        The sum there, times `sign`.

    Examples
    --------
    >>> one = Weighted(np.eye(3)[:1], np.ones(1), np.zeros(1, np.int64))
    >>> away = sphere.to_directions([20.0], [10.0])
    >>> places, _ = polish(Sum(one, radial.distance_table(np.array([4.0]))), away, sign=1.0)
    >>> bool(np.abs(places - np.eye(3)[:1]).max() < 1e-8)
    True
    """
    places = starts.copy()
    values, step, promise = _newton(over, places, sign, care)
    moving = np.flatnonzero(promise > _ROUNDING * np.abs(values))
    for _ in range(_STEPS):
        if not moving.size:
            break
        moved, better = places[moving].copy(), np.zeros(moving.size, dtype=np.bool_)
        length = 1.0
        for _ in range(_HALVINGS):
            todo = np.flatnonzero(~better)
            tried = _along(places[moving[todo]], step[moving[todo]] * length)
            found, *then = _newton(over, tried, sign, care)
            good = found < values[moving[todo]]
            rows = todo[good]
            moved[rows], better[rows] = tried[good], True
            values[moving[rows]], step[moving[rows]], promise[moving[rows]] = (
                found[good],
                *(each[good] for each in then),
            )
            if better.all():
                break
            length *= 0.35
        far = np.abs(moved - places[moving]).max(axis=1) > _STILL
        places[moving] = moved
        moving = moving[better & far & (promise[moving] > _ROUNDING * np.abs(values[moving]))]
    return places, values


def _newton(over: Sum, places: FloatArray, sign: float, care: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Sum at places times the sign, the step that Newton's method proposes (tangent vectors), what that would gain."""
    sums = _Sums.at(places)
    size = max(1, _VALUES_AT_ONCE // len(places))
    for start in range(0, over.image.weights.size, size):
        sums.add(over.image.take(slice(start, start + size)), over.table, sign)
    return sums.value, *sums.step(care)


@dataclasses.dataclass
class _Sums:
    """What Newton's method takes from the components, summed at S places."""

    places: FloatArray  # (S, 3)
    basis: FloatArray  # (S, 2, 3)
    value: FloatArray  # (S,)
    gradient: FloatArray  # (S, 2)
    outer: FloatArray  # (S, 2, 2)
    around: FloatArray  # (S,) of the second derivatives across the arcs to the components
    size: FloatArray  # (S,) of their absolute values

    @classmethod
    def at(cls, places: FloatArray) -> _Sums:
        count = len(places)
        parts = (np.zeros((count, *shape)) for shape in ((), (2,), (2, 2), (), ()))
        return cls(places, sphere.tangent_basis(places), *parts)

    def add(self, some: Weighted, table: radial.Table, sign: float) -> None:
        angle = _angles(self.places, some.directions)  # (S, C)
        (felt,) = np.nonzero((angle <= table.felt_within(some.numbers)).any(axis=0))
        if felt.size < some.weights.size:
            some, angle = some.take(felt), angle[:, felt]
        numbers = np.tile(some.numbers, len(angle))
        phi, slope, bend = (part.reshape(angle.shape) for part in table(numbers, angle.ravel()))
        first, second = sign * slope * some.weights, sign * bend * some.weights
        # unit tangents away from each component
        away = -(self.basis @ some.directions.T)  # (S, 2, C)
        sine = np.hypot(away[:, 0], away[:, 1])
        known = sine > 1e-12
        safe = np.where(known, sine, 1.0)
        away /= safe[:, None]
        place, component = np.nonzero(~known)
        away[place, :, component] = math.sqrt(0.5)
        around = np.where(known, first * np.cos(angle) / safe, second)
        self.value += sign * (phi @ some.weights)
        self.gradient += (away @ first[:, :, None])[:, :, 0]
        self.outer += (away * (second - around)[:, None]) @ away.transpose(0, 2, 1)
        self.around += around.sum(axis=1)
        self.size += np.abs(around).sum(axis=1)

    def step(self, care: float) -> tuple[FloatArray, FloatArray]:
        hessian = self.outer + self.around[:, None, None] * np.eye(2)
        lengths, axes = np.linalg.eigh(hessian)
        # where the sum is not convex, or hardly so, a step as for the mean of the components is safe
        lengths = np.maximum(np.abs(lengths), care * self.size[:, None] + 1e-300)
        slopes = np.einsum("skl,sk->sl", axes, self.gradient)
        step = -np.einsum("skl,sl,ska->sa", axes, slopes / lengths, self.basis)
        return step, 0.5 * (slopes * slopes / lengths).sum(axis=1)


def _along(places: FloatArray, steps: FloatArray) -> FloatArray:
    """Go along great circles, at most half a radian."""
    length = np.linalg.norm(steps, axis=1, keepdims=True)
    unit = steps / np.where(length > 0.0, length, 1.0)
    angle = np.minimum(length, 0.5)
    moved = np.cos(angle) * places + np.sin(angle) * unit
    return np.asarray(moved / np.linalg.norm(moved, axis=1, keepdims=True))


def _angles(places: FloatArray, directions: FloatArray) -> FloatArray:
    """Angles (S, C), exact also where small."""
    return np.asarray(2.0 * np.arcsin(np.minimum(0.5 * np.sqrt(near.squared_chords(places, directions)), 1.0)))


@functools.cache
def _lattice() -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Places spread over the sphere (384, 3), and which are neighbours: the same for every image."""
    cells = s2.face_cells()
    for _ in range(_LATTICE_LEVEL):
        cells = s2.children(cells).ravel()
    lattice = s2.centre(cells)
    neighbours = lattice @ lattice.T > math.cos(1.6 * float(s2.edge_length(_LATTICE_LEVEL)))
    return lattice, np.asarray(neighbours)


def _lattice_starts(image: Weighted) -> FloatArray:
    """Places of the lattice from which the mean distance is less than from their neighbours, the best of them."""
    lattice, neighbours = _lattice()
    mean = np.zeros(len(lattice))
    size = max(1, _VALUES_AT_ONCE // len(lattice))
    for start in range(0, image.weights.size, size):
        block = slice(start, start + size)
        mean += np.arccos(np.clip(lattice @ image.directions[block].T, -1.0, 1.0)) @ image.weights[block]
    lowest = np.flatnonzero(mean <= np.where(neighbours, mean, np.inf).min(axis=1))
    return np.asarray(lattice[lowest[np.argsort(mean[lowest], kind="stable")[:_LATTICE_STARTS]]])


@dataclasses.dataclass
class _Cells:
    """Cells of one level, what lies within the radius of all their places, and the components that may."""

    ids: IdArray  # (n,)
    sure: FloatArray  # (n,)
    count: IntArray  # (n,) of the entries of each cell, which follow one after the other
    entry: IntArray  # (E,)

    @property
    def ends(self) -> IntArray:
        return np.concatenate([[0], np.cumsum(self.count)])

    def blocks(self) -> Iterator[slice]:
        """Cells that are looked at together."""
        (edges,) = np.nonzero(np.diff(self.ends[1:] // _VALUES_AT_ONCE, prepend=-1, append=-1))
        return itertools.starmap(slice, itertools.pairwise(edges.tolist()))

    def children(self, kept: IntArray) -> _Cells:
        count = np.repeat(self.count[kept], 4)
        _, position = spread(np.repeat(self.ends[kept], 4), count)
        return _Cells(s2.children(self.ids[kept]).ravel(), np.repeat(self.sure[kept], 4), count, self.entry[position])


def _search(over: Sum, place: FloatArray, held: float) -> FloatArray:
    """Branch and bound from the six faces of the cube."""
    faces, size = s2.face_cells(), over.image.weights.size
    cells = _Cells(faces, np.zeros(6), np.full(6, size), np.tile(np.arange(size), 6))
    while cells.ids.size:
        centre, radius = s2.centre(cells.ids), s2.bounding_radius(cells.ids)
        cells, here, most = _look(over, cells, centre, radius)
        best = int(np.argmax(here))
        if here[best] > held:
            place, held = centre[best], float(here[best])
        kept = np.flatnonzero((most > held * (1.0 + _SLACK) + _LEAST) & (s2.level(cells.ids) < s2.MAX_LEVEL))
        kept = np.sort(kept[np.argsort(-most[kept], kind="stable")[:_CELLS]])
        cells = cells.children(kept)
    return place


def _look(over: Sum, cells: _Cells, centre: FloatArray, radius: FloatArray) -> tuple[_Cells, FloatArray, FloatArray]:
    """Cells with what is known of them now, what lies within the radius of their centres, and of any place at most."""
    image, table = over
    here, most, sure = cells.sure.copy(), cells.sure.copy(), cells.sure.copy()
    count, ends = np.zeros(cells.ids.size, np.int64), cells.ends
    entries = [np.empty(0, np.int64)]
    for block in cells.blocks():
        size = block.stop - block.start
        owner = np.repeat(np.arange(size), cells.count[block])
        entry = cells.entry[ends[block.start] : ends[block.stop]]
        gap = centre[block][owner] - image.directions[entry]
        angle = 2.0 * np.arcsin(np.minimum(0.5 * np.sqrt(np.einsum("ei,ei->e", gap, gap)), 1.0))
        number, weight, reach = image.numbers[entry], image.weights[entry], radius[block][owner]
        nearest = table.held(number, np.maximum(angle - reach, 0.0))
        here[block] += np.bincount(owner, weight * table.held(number, angle), size)
        most[block] += np.bincount(owner, weight * nearest, size)
        is_sure = nearest > 1.0 - _SURE
        (wholly,) = np.nonzero(is_sure)
        farthest = table.held(number[wholly], np.minimum(angle[wholly] + reach[wholly], math.pi))
        is_sure[wholly] = farthest > 1.0 - _SURE
        sure[block] += np.bincount(owner, weight * is_sure, size)
        is_open = (nearest > _SURE) & ~is_sure
        count[block] = np.bincount(owner[is_open], minlength=size)
        entries.append(entry[is_open])
    return _Cells(cells.ids, sure, count, np.concatenate(entries)), here, most
