"""Nodes of mixtures in which many components matter: sunflowers about the mean directions.

Where hundreds of components hold an image's mass, none needs many nodes. Each has a few that are spread evenly over
its own probability in the spiral of a sunflower (Vogel 1979), turned and shifted from component to component so that
the errors of neighbours cancel. All nodes together are a stratified sample of the mixture: sums over them have no
bias, however few nodes a component has, and a component has the more of them the more it weighs.

Images in which nearly everything matters share their nodes, and a matrix that relates them to all components. Images
over a few components each have nodes of their own, made for several images at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import near

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]

SEVERAL, MANY = 4, 32
"""Nodes of a component that is not light, and of a heavy one."""

HEAVIER = (1.0 / 4096.0, 1.0 / 256.0)
"""Mixing weights from which a component has several nodes, and many."""

_HELD = 0.9999  # of a component's mass lies where its nodes may be
_REACH = 10.0  # nats below its peak at which a component is no longer felt
_FAINT = 1e-6  # of a heavy component's peak: what adds less than this at its own peak is left out
_VALUES_AT_ONCE = 1 << 20  # densities of one component at one node
# Fractions of these are spread more evenly than of other numbers: over a line, and in pairs over a square.
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0
_PLASTIC = 1.324717957244746


@dataclasses.dataclass(frozen=True)
class Nodes:
    """One image's density on nodes.

    Parameters
    ----------
    direction : ndarray of float64 or float32, shape (3, n)
        Unit vectors, each coordinate in one piece.
    density : ndarray of float64 or float32, shape (n,)
        Per steradian, positive.
    mass : ndarray of float64, shape (n,)
        Sums to 1.
    density_max : float
        Per steradian, at the densest node or mean direction.
    heaviest : float
        Largest mixing weight.
    """

    direction: FloatArray | Singles
    density: FloatArray | Singles
    mass: FloatArray
    density_max: float
    heaviest: float


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
        reach: float = _REACH,
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
        places = mean_directions if image is None else near.apart(mean_directions, image)
        chord = near.chord_of(log_concentrations, reach)
        own = near.chord_of(log_concentrations, -float(np.log1p(-_HELD)))
        octave = np.floor(np.log2(own)).astype(np.int64)
        size = len(places)
        keys = []  # owner and other in one number: sorted several times as fast as pairs of numbers
        for number in np.unique(octave):
            group = np.flatnonzero(octave == number)
            for pairs in near.near_pairs(places[group], places, chord + own[group].max()):
                owner = group[pairs.point]
                kept = pairs.chord <= chord[pairs.component] + own[owner]
                keys.append(owner[kept] * size + pairs.component[kept])
        key = np.sort(np.concatenate(keys))
        starts = np.searchsorted(key, np.arange(size + 1) * size).astype(np.int64)
        return cls(mean_directions, log_concentrations, starts, (key % size).astype(np.int32), reach)

    @functools.cached_property
    def densest(self) -> FloatArray:
        """Density of each component at its mean direction, per steradian, (C,)."""
        return np.exp(vmf.log_normaliser(self.log_concentrations))

    def in_blocks(self, chosen: IntArray, number: int) -> list[IntArray]:
        """Split components so that about a million densities of one component at one node are made at a time.

        Parameters
        ----------
        chosen : ndarray of int64, shape (H,)
        number : int
            Nodes of each.

        Examples
        --------
        >>> [some.tolist() for some in Felt.of(np.eye(3), np.full(3, 9.0)).in_blocks(np.arange(3), 1 << 20)]
        [[0], [1], [2]]
        """
        values = np.cumsum(number * (self.starts[chosen + 1] - self.starts[chosen])) // _VALUES_AT_ONCE
        return [some for some in np.split(chosen, np.flatnonzero(np.diff(values)) + 1) if some.size]

    def densities(self, peak: FloatArray, chosen: IntArray, points: FloatArray, *, is_heavy: bool) -> FloatArray:
        """Give the density at points of some components.

        Parameters
        ----------
        peak : ndarray of float64, shape (C,)
            Mixing weight times density at the mean direction, per steradian.
        chosen : ndarray of int64, shape (H,)
            Components whose points these are, at least one.
        points : ndarray of float64, shape (J, H, 3)
            Unit vectors.
        is_heavy : bool
            Whether what adds next to nothing at a component's own peak is left out; else what has fallen too far below
            its own peak is.

        Returns
        -------
        ndarray of float64, shape (J, H)
            Per steradian.

        Examples
        --------
        >>> felt = Felt.of(np.eye(3), np.full(3, 9.0))
        >>> felt.densities(np.ones(3), np.arange(2), np.eye(3)[None, :2], is_heavy=True).tolist()
        [[1.0, 1.0]]
        """
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


@dataclasses.dataclass(frozen=True)
class Sunflowers:
    """Nodes of a set of components, and the matrix from mixing weights to densities at the nodes of light ones.

    Parameters
    ----------
    felt : Felt
        The components.
    direction : ndarray of float32, shape (3, C)
        One node of each component; rounded to half a metre.
    single : csr_array of float32, shape (2 C, C)
        Density of each component at the one node of each, and at its mean direction.

    Examples
    --------
    >>> flowers = Sunflowers.of(np.eye(3), np.full(3, 9.0))
    >>> nodes = next(flowers.nodes(np.array([[0.5, 0.3, 0.2]]), [np.arange(3)]))
    >>> nodes.direction.shape, round(float(nodes.mass.sum()), 6)
    ((3, 96), 1.0)
    """

    felt: Felt
    direction: Singles
    single: sparse.csr_array

    @classmethod
    def of(cls, mean_directions: FloatArray, log_concentrations: FloatArray) -> Sunflowers:
        """Place the nodes of components and relate them.

        Parameters
        ----------
        mean_directions : ndarray of float64, shape (C, 3)
        log_concentrations : ndarray of float64, shape (C,)

        Examples
        --------
        See `Sunflowers`.
        """
        felt = Felt.of(mean_directions, log_concentrations)
        (one,) = flowers(mean_directions, log_concentrations, 1)
        owner = np.repeat(np.arange(len(mean_directions)), np.diff(felt.starts))
        blocks = [_block(points, felt, owner) for points in (one, mean_directions)]
        return cls(felt, coordinates(one), sparse.csr_array(sparse.vstack(blocks, format="csr")))

    def nodes(self, weights: FloatArray, chosen: Sequence[IntArray]) -> Iterator[Nodes]:
        """Give each image's nodes.

        Parameters
        ----------
        weights : ndarray of float64, shape (N, C)
            Mixing weights.
        chosen : sequence of ndarray of int64, length N
            The components of each image that get nodes; all add to the densities.

        Yields
        ------
        Nodes

        Examples
        --------
        See `Sunflowers`.
        """
        density = self.single @ np.ascontiguousarray(weights.T, dtype=np.float32)  # (2 C, N)
        peak = density[weights.shape[1] :].max(axis=0)
        for i, components in enumerate(chosen):
            yield self._of_image(weights[i], components, density[:, i], float(peak[i]))

    def _of_image(self, weights: FloatArray, chosen: IntArray, single: Singles, peak: float) -> Nodes:
        own = weights[chosen]
        light = chosen[own < HEAVIER[0]]
        parts = [
            (self.direction.take(light, axis=1), single[light], weights[light]),
            *self._of_tier(weights, chosen[(own >= HEAVIER[0]) & (own < HEAVIER[1])], SEVERAL),
            *self._of_tier(weights, chosen[own >= HEAVIER[1]], MANY),
        ]
        direction, density, mass = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
        density = np.maximum(density, np.finfo(np.float32).tiny)
        return Nodes(direction, density, mass / mass.sum(), max(peak, float(density.max())), float(weights.max()))

    def _of_tier(
        self, weights: FloatArray, chosen: IntArray, number: int
    ) -> Iterator[tuple[Singles, Singles, FloatArray]]:
        """Nodes of components that have several each, their densities summed over what is felt there, in blocks.

        An image has at most 4096 such components: less work than matrices of all components would be, which it would
        have to pick its rows from.
        """
        felt, is_heavy = self.felt, number == MANY
        for some in felt.in_blocks(chosen, number):
            mu, log_kappa = felt.mean_directions[some], felt.log_concentrations[some]
            points = flowers(mu, log_kappa, number, None if is_heavy else some, shifted=not is_heavy)
            density = felt.densities(weights * felt.densest, some, points, is_heavy=is_heavy)  # (number, some)
            mass = np.tile(weights[some] / number, number)
            yield coordinates(points), density.ravel().astype(np.float32), mass


def flowers(
    mu: FloatArray, log_kappa: FloatArray, number: int, component: IntArray | None = None, *, shifted: bool = True
) -> FloatArray:
    """Place nodes that hold equal shares of each component.

    Shifted, each lies somewhere in its share, elsewhere for each component; else in the middle of it, which is better
    for a component by itself.

    Parameters
    ----------
    mu : ndarray of float64, shape (C, 3)
        Mean directions.
    log_kappa : ndarray of float64, shape (C,)
        Log concentrations.
    number : int
        Nodes of each component.
    component : ndarray of int64, shape (C,), optional
        Number of each, 0..C - 1 by default: those of different numbers have their nodes turned and shifted differently.
    shifted : bool

    Returns
    -------
    ndarray of float64, shape (number, C, 3)
        Unit vectors.

    Examples
    --------
    >>> flowers(np.eye(3), np.full(3, 9.0), 4).shape
    (4, 3, 3)
    """
    place = np.arange(number)[:, None]
    component = np.arange(len(mu)) if component is None else component
    within = (0.5 + component / _PLASTIC) % 1.0 if shifted else 0.5
    radius = vmf.cap_quantile(_HELD * (place + within) / number, log_kappa)  # (number, C)
    turn = 2.0 * np.pi * ((place * _GOLDEN + component / _PLASTIC**2) % 1.0)
    basis = sphere.tangent_basis(mu)  # (C, 2, 3)
    sideways = np.cos(turn)[..., None] * basis[:, 0] + np.sin(turn)[..., None] * basis[:, 1]
    return np.asarray(np.cos(radius)[..., None] * mu + np.sin(radius)[..., None] * sideways)


def coordinates(points: FloatArray) -> Singles:
    """Give points in single precision as three rows.

    Parameters
    ----------
    points : ndarray of float64, shape (..., 3)

    Returns
    -------
    ndarray of float32, shape (3, n)

    Examples
    --------
    >>> coordinates(np.eye(3)[:2]).tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    """
    return np.ascontiguousarray(points.reshape(-1, 3).T, dtype=np.float32)


def _block(points: FloatArray, felt: Felt, owner: IntArray) -> sparse.csr_array:
    """Density of each component at one point of each component, (C, C)."""
    mu, log_kappa, other = felt.mean_directions, felt.log_concentrations, felt.others
    squared = np.zeros(other.size)
    for axis in range(3):
        squared += (points[owner, axis] - mu[other, axis]) ** 2
    kept = squared <= near.chord_of(log_kappa, _REACH)[other] ** 2
    column = other[kept]
    height = -0.5 * np.exp(log_kappa)[column] * squared[kept]
    value = np.exp(vmf.log_normaliser(log_kappa)[column] + height).astype(np.float32)
    until = np.concatenate([[0], np.cumsum(kept)])[felt.starts].astype(np.int32)
    return sparse.csr_array((value, column, until), shape=(len(mu), len(mu)))
