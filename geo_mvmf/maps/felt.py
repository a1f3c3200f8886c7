"""Which components are felt where others have their nodes, and the densities there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from geo_mvmf import vmf
from geo_mvmf.maps import near

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]

HELD = 0.9999
"""Of a component's mass lies where its nodes may be."""

REACH = 10.0
"""Nats below its peak up to which a component is felt."""

_FAINT = 1e-6  # of a heavy component's peak: what adds less than this at its own peak is left out
_VALUES_AT_ONCE = 1 << 20  # densities of one component at one node
_PAIRS_AT_ONCE = 1 << 24  # of components and what may be felt at their nodes: 0.4 GB while they are found
_SAMPLE = 512  # components, at least, of which pairs are counted


@dataclasses.dataclass(frozen=True)
class _Reaches:
    """How far components are felt, and how far from their mean directions they have nodes: chords, (C,)."""

    places: FloatArray  # (C, 3), or (C, 4) where those of several images lie apart
    felt: FloatArray
    own: FloatArray

    @classmethod
    def of(
        cls,
        mean_directions: FloatArray,
        log_concentrations: FloatArray,
        image: IntArray | None,
        reach: float,
        held: float = HELD,
    ) -> _Reaches:
        places = mean_directions if image is None else near.apart(mean_directions, image)
        own = near.chord_of(log_concentrations, -float(np.log1p(-held)))
        return cls(places, near.chord_of(log_concentrations, reach), own)

    def most_pairs(self) -> float:
        """About how many pairs there are, some that are not felt among them: from a sample of the components."""
        size = len(self.own)
        where = np.arange(0, size, max(1, size // _SAMPLE))
        counts = (
            cKDTree(self.places[group]).query_ball_point(
                self.places[where], self.own[where] + self.felt[group].max(), return_length=True
            )
            for group in near.octaves(self.felt)
        )
        return float(sum(int(count.sum()) for count in counts)) * size / where.size

    def pairs(self, where: IntArray) -> Iterator[tuple[IntArray, IntArray]]:
        """Pairs of one of these components and one that may be felt where it has its nodes, in no order."""
        for group in near.octaves(self.own[where]):
            its = where[group]
            for pairs in near.near_pairs(self.places[its], self.places, self.felt + self.own[its].max()):
                owner = its[pairs.point]
                kept = pairs.chord <= self.felt[pairs.component] + self.own[owner]
                yield owner[kept], pairs.component[kept]


@dataclasses.dataclass(frozen=True)
class Felt:
    """Components, and which of them may be felt where each has its nodes.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    starts, others : ndarray of int64 (C + 1,) and of int32 (P,)
        Where component i has its nodes, components others[starts[i]:starts[i + 1]] may be felt.
    reach : float
        Nats below its peak at which a component is no longer felt.

    Examples
    --------
    >>> felt = Felt.of(np.eye(3), np.full(3, 9.0))
    >>> felt.others[felt.starts[1] : felt.starts[2]].tolist()
    [1]
    """

    mean_directions: FloatArray
    log_concentrations: FloatArray
    starts: IntArray
    others: npt.NDArray[np.int32]
    reach: float

    @classmethod
    def of(
        cls,
        mean_directions: FloatArray,
        log_concentrations: FloatArray,
        image: IntArray | None = None,
        *,
        reach: float = REACH,
    ) -> Felt:
        """Find which components may be felt where.

        Parameters
        ----------
        mean_directions : ndarray of float64, shape (C, 3)
        log_concentrations : ndarray of float64, shape (C,)
        image : ndarray of int64, shape (C,), optional
            Components of different images feel nothing of each other.
        reach : float
            Nats.

        Examples
        --------
        See `Felt`.
        """
        reaches = _Reaches.of(mean_directions, log_concentrations, image, reach)
        size = len(mean_directions)
        most = float(size**2 if image is None else np.square(np.bincount(image)).sum())
        if most > _PAIRS_AT_ONCE:  # else there is nothing to count
            most = reaches.most_pairs()
        parts = np.array_split(np.arange(size), min(max(1, -(-int(most) // _PAIRS_AT_ONCE)), size))
        counts, others = zip(*(_sorted(reaches, where) for where in parts), strict=True)
        starts = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
        return cls(mean_directions, log_concentrations, starts, np.concatenate(others), reach)

    @functools.cached_property
    def densest(self) -> FloatArray:
        """Density of each component at its mean direction, per steradian, (C,)."""
        return np.exp(vmf.log_normaliser(self.log_concentrations))

    def densities(self, peak: FloatArray, chosen: IntArray, points: FloatArray, *, is_heavy: bool) -> Singles:
        """Give the density at points of some components.

        Parameters
        ----------
        peak : ndarray of float64, shape (C,)
            Mixing weight times density at the mean direction, per steradian.
        chosen : ndarray of int64, shape (H,)
            Components whose points these are.
        points : ndarray of float64, shape (J, H, 3)
            Unit vectors.
        is_heavy : bool
            Whether what adds next to nothing at a component's own peak is left out; else what has fallen too far below
            its own peak is.

        Returns
        -------
        ndarray of float32, shape (J, H)
            Per steradian; a million densities of one component at one point are made at a time.

        Examples
        --------
        >>> felt = Felt.of(np.eye(3), np.full(3, 9.0))
        >>> felt.densities(np.ones(3), np.arange(2), np.eye(3)[None, :2], is_heavy=True).tolist()
        [[1.0, 1.0]]
        """
        result = np.empty(points.shape[:2], np.float32)
        values = np.cumsum(len(points) * (self.starts[chosen + 1] - self.starts[chosen])) // _VALUES_AT_ONCE
        for its in np.split(np.arange(chosen.size), np.flatnonzero(np.diff(values)) + 1):
            if its.size:
                result[:, its] = self._sums(peak, chosen[its], points[:, its], is_heavy=is_heavy)
        return result

    def _sums(self, peak: FloatArray, chosen: IntArray, points: FloatArray, *, is_heavy: bool) -> FloatArray:
        """Densities at points of at least one component."""
        sizes = self.starts[chosen + 1] - self.starts[chosen]
        owner = np.repeat(np.arange(chosen.size), sizes)
        first = np.cumsum(sizes) - sizes
        other = self.others[self.starts[chosen][owner] + np.arange(owner.size) - first[owner]]
        if is_heavy:
            strong = peak[other] >= _FAINT * peak[chosen][owner]  # a component itself always is
            owner, other = owner[strong], other[strong]
        squared = np.zeros((len(points), owner.size))
        for axis in range(3):
            gap = points[..., axis].take(owner, axis=1)
            gap -= self.mean_directions[other, axis]
            squared += np.square(gap, out=gap)
        below = 0.5 * np.exp(self.log_concentrations[other]) * squared  # nats
        value = peak[other] * np.exp(-below)
        if not is_heavy:
            value *= below <= self.reach
        return np.add.reduceat(value, np.searchsorted(owner, np.arange(chosen.size)), axis=1)


def pairs_of(mean_directions: FloatArray, log_concentrations: FloatArray, *, held: float = HELD) -> float:
    """Say about how many pairs of components `Felt.of` finds and keeps.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
    log_concentrations : ndarray of float64, shape (C,)
    held : float
        Of the mass of the one component, where it lies the other may be felt; 0 for what is felt at mean directions.

    Examples
    --------
    >>> pairs_of(np.eye(3), np.full(3, 9.0)), pairs_of(np.eye(3), np.full(3, 0.0))
    (3.0, 9.0)
    """
    return _Reaches.of(mean_directions, log_concentrations, None, REACH, held).most_pairs()


def _sorted(reaches: _Reaches, where: IntArray) -> tuple[IntArray, npt.NDArray[np.int32]]:
    """Number of pairs of each of some components that lie together in the list, and the other of each pair."""
    size = len(reaches.own)
    # owner and other in one number: sorted several times as fast as pairs of numbers
    key = np.concatenate([owner * size + other for owner, other in reaches.pairs(where)])
    key.sort()
    counts = np.diff(np.searchsorted(key, np.arange(where[0], where[-1] + 2) * size))
    key %= size
    return counts.astype(np.int64), key.astype(np.int32)
