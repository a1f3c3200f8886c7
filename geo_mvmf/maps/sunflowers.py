"""Nodes of mixtures in which many components matter: sunflowers about the mean directions.

Where hundreds of components hold an image's mass, none needs many nodes. Each has a few that are spread evenly over
its own probability in the spiral of a sunflower (Vogel 1979), turned and shifted from component to component so that
the errors of neighbours cancel. All nodes together are a stratified sample of the mixture: sums over them have no
bias, however few nodes a component has, and a component has the more of them the more it weighs.

Images in which nearly everything matters share their nodes, and matrices that relate them to all components; others
have nodes of their own (`own_nodes`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import near
from geo_mvmf.maps.felt import HELD, Felt, pairs_of

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]

SEVERAL, MANY = 4, 32
"""Nodes of a component that is not light, and of a heavy one."""

HEAVIER = (1.0 / 4096.0, 1.0 / 256.0)
"""Mixing weights from which a component has several nodes, and many."""

TINY = np.finfo(np.float32).tiny
"""Per steradian, of nodes where the density is less: a density has a logarithm."""

_PAIRS_AT_ONCE = 1 << 22  # whose densities are computed together

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

    @classmethod
    def of_tiers(cls, tiers: Iterable[Sequence[npt.NDArray[np.floating]]], peak: float, heaviest: float) -> Nodes:
        """Put the nodes of an image's components together.

        Parameters
        ----------
        tiers : iterable of (direction, density, mass)
            As `Tier.of` gives them.
        peak : float
            Per steradian, at the densest mean direction.
        heaviest : float
            Largest mixing weight.

        Examples
        --------
        >>> tier = (np.eye(3)[:, :1], np.array([2.0]), np.array([0.5]))
        >>> Nodes.of_tiers([tier, tier], 1.0, 0.5).mass.tolist()
        [0.5, 0.5]
        """
        direction, density, mass = (np.concatenate(each, axis=-1) for each in zip(*tiers, strict=True))
        density = np.maximum(density, TINY)
        return cls(direction, density, mass / mass.sum(), max(peak, float(density.max())), heaviest)


@dataclasses.dataclass(frozen=True)
class Sunflowers:
    """Nodes of a set of components, and the matrices from mixing weights to densities at the nodes of light ones.

    Parameters
    ----------
    felt : Felt
        The components.
    direction : ndarray of float32, shape (3, C)
        One node of each component; rounded to half a metre.
    single, at_peaks : csr_array of float32, shape (C, C)
        Density of each component at the one node of each, and at the mean directions.

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
    at_peaks: sparse.csr_array

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
        return cls(felt, coordinates(one), _block(one, felt), _block(mean_directions, felt))

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
        columns = np.ascontiguousarray(weights.T, dtype=np.float32)
        density, peak = self.single @ columns, (self.at_peaks @ columns).max(axis=0)  # (C, N), (N,)
        for i, components in enumerate(chosen):
            yield self._of_image(weights[i], components, density[:, i], float(peak[i]))

    def _of_image(self, weights: FloatArray, chosen: IntArray, single: Singles, peak: float) -> Nodes:
        own = weights[chosen]
        light = chosen[own < HEAVIER[0]]
        parts = [
            (self.direction.take(light, axis=1), single[light], weights[light]),
            self._of_tier(weights, chosen[(own >= HEAVIER[0]) & (own < HEAVIER[1])], SEVERAL),
            self._of_tier(weights, chosen[own >= HEAVIER[1]], MANY),
        ]
        return Nodes.of_tiers(parts, peak, float(weights.max()))

    def _of_tier(self, weights: FloatArray, chosen: IntArray, number: int) -> tuple[npt.NDArray[np.floating], ...]:
        """Nodes of components that have several each, their densities summed over what is felt there.

        An image has at most 4096 such components: less work than matrices of all components would be, which it would
        have to pick its rows from.
        """
        alone = np.zeros(len(weights), np.int64)
        tier = Tier(self.felt.mean_directions, self.felt.log_concentrations, weights, alone, chosen, number)
        tier.feel(self.felt)
        return tier.of(0, len(weights))


def bytes_of(mean_directions: FloatArray, log_concentrations: FloatArray) -> float:
    """Say about how many bytes `Sunflowers.of` takes; making them takes half as many more, and up to 0.4 GB at once.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
    log_concentrations : ndarray of float64, shape (C,)

    Examples
    --------
    >>> bytes_of(np.eye(3), np.full(3, 9.0)), bytes_of(np.eye(3), np.full(3, 0.0))
    (60.0, 180.0)
    """
    listed, felt = (pairs_of(mean_directions, log_concentrations, held=held) for held in (HELD, 0.0))
    return 4.0 * listed + 16.0 * felt  # a number; and two densities with a column each


class Tier:
    """Nodes of those components that have so many each.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
    log_concentrations, weights : ndarray of float64, shape (C,)
    first : ndarray of int64, shape (C,)
        First component of the image that each belongs to: nodes are turned as if the image were alone.
    chosen : ndarray of int64, shape (H,)
        The components of this tier, in ascending order.
    number : int
        Nodes of each: 1, SEVERAL or MANY.

    Attributes
    ----------
    points : ndarray of float64, shape (number, H, 3)
        Unit vectors.
    density : ndarray of float32, shape (number, H)
        Per steradian; to be filled.

    Examples
    --------
    >>> tier = Tier(np.eye(3), np.full(3, 9.0), np.full(3, 1 / 3), np.zeros(3, np.int64), np.arange(3), MANY)
    >>> tier.feel(Felt.of(np.eye(3), np.full(3, 9.0)))
    >>> [each.shape for each in tier.of(0, 2)]
    [(3, 64), (64,), (64,)]
    """

    def __init__(
        self,
        mean_directions: FloatArray,
        log_concentrations: FloatArray,
        weights: FloatArray,
        first: IntArray,
        chosen: IntArray,
        number: int,
    ) -> None:
        self._chosen, self._weights, self._is_heavy = chosen, weights, number == MANY
        # by its number among the image's components, or among its heavy ones
        before = np.searchsorted(chosen, first[chosen])
        component = np.arange(chosen.size) - before if self._is_heavy else chosen - first[chosen]
        mu, log_kappa = mean_directions[chosen], log_concentrations[chosen]
        self.points = flowers(mu, log_kappa, number, component, shifted=not self._is_heavy)
        self.density = np.empty(self.points.shape[:2], np.float32)
        self._mass = np.tile(weights[chosen] / number, (number, 1))

    def feel(self, felt: Felt) -> None:
        """Sum the densities at the nodes.

        Parameters
        ----------
        felt : Felt
            All components.

        Examples
        --------
        See `Tier`.
        """
        peak = self._weights * felt.densest
        self.density = felt.densities(peak, self._chosen, self.points, is_heavy=self._is_heavy)

    def of(self, start: int, stop: int) -> tuple[npt.NDArray[np.floating], ...]:
        """Give directions (3, n), densities and masses of the nodes of components start..stop - 1.

        Parameters
        ----------
        start, stop : int

        Examples
        --------
        See `Tier`.
        """
        its = slice(*np.searchsorted(self._chosen, [start, stop]))
        return coordinates(self.points[:, its]), self.density[:, its].ravel(), self._mass[:, its].ravel()


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
    radius = vmf.cap_quantile(HELD * (place + within) / number, log_kappa)  # (number, C)
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


def _block(points: FloatArray, felt: Felt) -> sparse.csr_array:
    """Density of each component at one point of each component, (C, C), made some rows at a time."""
    mu, log_kappa = felt.mean_directions, felt.log_concentrations
    limit, densest = near.chord_of(log_kappa, felt.reach) ** 2, vmf.log_normaliser(log_kappa)
    counts, columns, values = [], [], []
    for rows in np.split(np.arange(len(mu)), np.flatnonzero(np.diff(felt.starts[1:] // _PAIRS_AT_ONCE)) + 1):
        other = felt.others[felt.starts[rows[0]] : felt.starts[rows[-1] + 1]]
        owner = np.repeat(rows, np.diff(felt.starts[rows[0] : rows[-1] + 2]))
        squared = np.zeros(other.size)
        for axis in range(3):
            squared += (points[owner, axis] - mu[other, axis]) ** 2
        kept = squared <= limit[other]
        column = other[kept]
        height = -0.5 * np.exp(log_kappa)[column] * squared[kept]
        values.append(np.exp(densest[column] + height).astype(np.float32))
        columns.append(column)
        counts.append(np.bincount(owner[kept] - rows[0], minlength=rows.size))
    until = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int32)
    return sparse.csr_array((np.concatenate(values), np.concatenate(columns), until), shape=(len(mu), len(mu)))
