"""Climbing the density of vMF mixtures, many images and many starts at once.

A climb follows y <- normalise(sum of r_i kappa_i mu_i), r the responsibilities of the components at y: expectation
maximisation, which never loses density (Zhang and Chen 2020, arXiv 2101.10058). A start is the mean direction of a
heavy component; only components that its surroundings feel are carried along, as one ragged list for all starts.
Where too many are felt, whole matrices are used instead. A mixture may have more modes than components
(Carreira-Perpinan and Williams 2003), so the promise is "the best of its starts".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import vmf
from geo_mvmf.maps import near
from geo_mvmf.maps.once import OncePerComponents
from geo_mvmf.maps.runs import spread
from geo_mvmf.mixture import VmfMixture

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_CANDIDATES, _STARTS = 24, 8  # heaviest peaks looked at, and the densest of them climbed from
_TAIL = 1e-6  # weight of the components that cannot make a mode and are left out of the climb
_REACH = 18.0  # nats below its peak where a component is not felt any more
_LOST = 45.0  # nats below the density of a point where even all components together do not change it
_SHORT = 400.0  # components felt by a start, on average, up to which lists beat matrices
_SHARE = 1 / 16  # of all components: the same, where the starts of a few images are looked at alone
_RARE = 1000  # times as many components as candidates: then all that is felt anywhere is not worth knowing
_STEPS, _STILL = 400, 1e-11  # at most so many steps, until a start moves less than this (0.06 mm)
_VALUES_AT_ONCE = 1 << 21


class _Shape(NamedTuple):
    """What all images share."""

    mean_directions: FloatArray  # (C, 3)
    kappa: FloatArray  # (C,)
    log_normaliser: FloatArray  # (C,)


class _Lists(NamedTuple):
    """For every point the components it feels: entries ends[p]:ends[p + 1]."""

    ends: IntArray  # (P + 1,)
    component: IntArray  # (E,)
    peak: FloatArray  # (E,) log weight + log normaliser

    def take(self, rows: IntArray) -> _Lists:
        count = np.diff(self.ends)[rows]
        _, entry = spread(self.ends[rows], count)
        return _Lists(np.concatenate([[0], np.cumsum(count)]), self.component[entry], self.peak[entry])


def modes(mixture: VmfMixture) -> FloatArray:
    """Find the densest point of every image: the best of climbs from heavy components.

    Parameters
    ----------
    mixture : VmfMixture
        N images.

    Returns
    -------
    ndarray of float64, shape (N, 3)
        Unit vectors; never less dense than the mean direction of the heaviest component.

    Examples
    --------
    >>> mixture = VmfMixture([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [3.0, 3.0], np.log([[0.5, 0.5]]))
    >>> modes(mixture).shape
    (1, 3)
    """
    log_kappa = mixture.log_concentrations
    shape = _Shape(mixture.mean_directions, np.exp(log_kappa), vmf.log_normaliser(log_kappa))
    # of a few images alone the starts are looked at, which takes a moment and not seconds
    is_rare = _RARE * _CANDIDATES * len(mixture) < mixture.num_components
    felt = None if is_rare else _shared_felt(mixture.mean_directions, log_kappa)
    result = np.empty((len(mixture), 3))
    step = max(1, _VALUES_AT_ONCE // mixture.num_components)
    for start in range(0, len(mixture), step):
        block = slice(start, start + step)
        result[block] = _modes(shape, mixture.log_mixing_weights[block], felt, is_rare=is_rare)
    return result


def _modes(
    shape: _Shape, log_weights: FloatArray, felt: tuple[IntArray, IntArray] | None, *, is_rare: bool
) -> FloatArray:
    peaks = log_weights + shape.log_normaliser  # (B, C)
    heaviest = np.argmax(log_weights, axis=1)
    candidates = _largest(peaks, _CANDIDATES)
    image = np.repeat(np.arange(len(peaks)), candidates.shape[1])
    start = candidates.ravel()
    kept = peaks[image, start] > -np.inf
    image, start = image[kept], start[kept]
    if is_rare:
        most = max(_SHORT, _SHARE * shape.kappa.size)
        felt = _felt_at(np.unique(start), shape.mean_directions, np.log(shape.kappa), most)
    lists = _lists(shape, log_weights, image, start, felt)
    if lists is None:
        climbed, image = _by_matrices(shape, peaks, image, start)
    else:
        climbed, image = _by_lists(shape, lists, image, start)
    # rounding in the climb must not cost density: the component estimate is a candidate too
    points = np.concatenate([shape.mean_directions[heaviest], climbed])
    owner = np.concatenate([np.arange(len(peaks)), image])
    density = _log_densities(shape, peaks, points, owner)
    order = np.lexsort((-density, owner))
    first = np.searchsorted(owner[order], np.arange(len(peaks)))
    return points[order[first]]


def _largest(values: FloatArray, number: int) -> IntArray:
    """Columns of the largest values of each row, (B, number)."""
    if values.shape[1] <= number:
        return np.tile(np.arange(values.shape[1]), (values.shape[0], 1))
    return np.argpartition(values, -number, axis=1)[:, -number:]


def _felt_by_components(mean_directions: FloatArray, log_kappa: FloatArray) -> tuple[IntArray, IntArray] | None:
    return _felt_at(np.arange(log_kappa.size), mean_directions, log_kappa, _SHORT)


def _felt_at(
    where: IntArray, mean_directions: FloatArray, log_kappa: FloatArray, most: float
) -> tuple[IntArray, IntArray] | None:
    """Components felt at some mean directions, numbered in ascending order; None where they are too many.

    Mean direction c feels components[ends[c]:ends[c + 1]]; it feels none where it is not among them.
    """
    chords = near.chord_of(log_kappa, _REACH)
    if np.square(chords / 2.0).sum() > 4.0 * most:  # spread evenly, they would be
        return None
    limit = most * where.size
    found: list[near.Pairs] = []
    for pairs in near.near_pairs(mean_directions[where], mean_directions, chords):
        limit -= pairs.point.size
        if limit < 0.0:
            return None
        found.append(pairs)
    point = np.concatenate([pairs.point for pairs in found])
    component = np.concatenate([pairs.component for pairs in found])
    order = np.argsort(point, kind="stable")
    ends = np.searchsorted(where[point[order]], np.arange(log_kappa.size + 1)).astype(np.int64)
    return ends, component[order]


_shared_felt = OncePerComponents(_felt_by_components, kept=1)  # up to 100 MB for 2^15 components


def _lists(
    shape: _Shape,
    log_weights: FloatArray,
    image: IntArray,
    start: IntArray,
    felt: tuple[IntArray, IntArray] | None,
) -> _Lists | None:
    """Components felt by each start: those present in its image if they are few, else those near it."""
    least = np.log(_TAIL / log_weights.shape[1]) + log_weights.max(axis=1)
    present = log_weights > least[:, None]
    count = present.sum(axis=1)
    if count.mean() <= _SHORT / 4.0 or (felt is None and count.mean() <= _SHORT):
        ends = np.concatenate([[0], np.cumsum(count)])
        component = np.nonzero(present)[1]
        rows = image
    elif felt is not None:
        ends, component = felt
        rows = start
    else:
        return None
    number = np.diff(ends)[rows]
    which, entry = spread(ends[rows], number)
    own = component[entry]
    peak = log_weights[image[which], own] + shape.log_normaliser[own]
    used = (peak > least[image[which]] + shape.log_normaliser[own]) | (own == start[which])
    count = np.bincount(which[used], minlength=image.size)
    return _Lists(np.concatenate([[0], np.cumsum(count)]), own[used], peak[used])


def _by_lists(shape: _Shape, lists: _Lists, image: IntArray, start: IntArray) -> tuple[FloatArray, IntArray]:
    points = shape.mean_directions[start]
    chosen = _densest(_list_log_densities(shape, lists, points), image)
    points, image, lists = points[chosen], image[chosen], lists.take(chosen)
    moving = np.arange(image.size)
    current = lists
    for _ in range(_STEPS):
        moved = _step(shape, current, points[moving])
        distance = np.abs(moved - points[moving]).max(axis=1)
        points[moving] = moved
        going = distance > _STILL
        if not np.any(going):
            break
        if np.count_nonzero(going) < 0.8 * going.size:
            moving, current = moving[going], current.take(np.flatnonzero(going))
    return points, image


def _densest(density: FloatArray, image: IntArray) -> IntArray:
    """Rows of the densest `_STARTS` points of every image."""
    order = np.lexsort((-density, image))
    first = np.searchsorted(image[order], image[order])
    return np.sort(order[np.arange(order.size) - first < _STARTS])


def _joint(shape: _Shape, lists: _Lists, points: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Log weight plus log density of every entry less the largest of its point, and those largest (P,)."""
    count = np.diff(lists.ends)
    difference = np.repeat(points, count, axis=0) - shape.mean_directions[lists.component]
    joint = lists.peak - 0.5 * shape.kappa[lists.component] * np.einsum("ei,ei->e", difference, difference)
    top = np.maximum.reduceat(joint, lists.ends[:-1])
    return joint - np.repeat(top, count), top


def _list_log_densities(shape: _Shape, lists: _Lists, points: FloatArray) -> FloatArray:
    joint, top = _joint(shape, lists, points)
    return np.asarray(top + np.log(np.add.reduceat(np.exp(joint), lists.ends[:-1])))


def _step(shape: _Shape, lists: _Lists, points: FloatArray) -> FloatArray:
    joint, _ = _joint(shape, lists, points)
    pull = np.exp(joint) * shape.kappa[lists.component]
    total = np.add.reduceat(pull[:, None] * shape.mean_directions[lists.component], lists.ends[:-1], axis=0)
    return _normalised(total, points)


def _normalised(vectors: FloatArray, otherwise: FloatArray) -> FloatArray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 0.0, vectors / np.where(length > 0.0, length, 1.0), otherwise)


def _by_matrices(shape: _Shape, peaks: FloatArray, image: IntArray, start: IntArray) -> tuple[FloatArray, IntArray]:
    """Climb with every component; dot products are exact enough in double precision (kappa * 1e-16 nats)."""
    points = shape.mean_directions[start]
    chosen = _densest(_log_densities(shape, peaks, points, image), image)
    points, image = points[chosen], image[chosen]
    moving = np.arange(image.size)
    for _ in range(_STEPS):
        moved = np.empty((moving.size, 3))
        for block, joint in _joint_matrices(shape, peaks, points[moving], image[moving]):
            moved[block] = (np.exp(joint, out=joint) * shape.kappa) @ shape.mean_directions
        moved = _normalised(moved, points[moving])
        distance = np.abs(moved - points[moving]).max(axis=1)
        points[moving] = moved
        moving = moving[distance > _STILL]
        if not moving.size:
            break
    return points, image


def _log_densities(shape: _Shape, peaks: FloatArray, points: FloatArray, image: IntArray) -> FloatArray:
    """Exact log density of points, each in its own image, (P,): by chords, so that the choice among points is right.

    Dot products tell first which components can be felt at all: the others together are less than 1e-14 of it.
    """
    result = np.empty(image.size)
    for block, joint in _joint_matrices(shape, peaks, points, image):
        row, component = np.divmod(np.flatnonzero(joint.ravel() > -_LOST), joint.shape[1])
        starts = np.searchsorted(row, np.arange(joint.shape[0]))  # every point feels the component of its top
        gap = points[block][row] - shape.mean_directions[component]
        exact = peaks[image[block][row], component] - 0.5 * shape.kappa[component] * np.einsum("ei,ei->e", gap, gap)
        top = np.maximum.reduceat(exact, starts)
        result[block] = top + np.log(np.add.reduceat(np.exp(exact - top[row]), starts))
    return result


def _joint_matrices(
    shape: _Shape, peaks: FloatArray, points: FloatArray, image: IntArray
) -> Iterator[tuple[slice, FloatArray]]:
    """Log weight plus log density of every component less the largest of the point, by blocks of points."""
    step = max(1, _VALUES_AT_ONCE // shape.kappa.size)
    pole = shape.mean_directions * shape.kappa[:, None]
    for start in range(0, image.size, step):
        block = slice(start, start + step)
        joint = points[block] @ pole.T
        joint -= shape.kappa
        joint += peaks[image[block]]
        joint -= joint.max(axis=1, keepdims=True)
        yield block, joint
