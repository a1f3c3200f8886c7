"""Nodes of mixtures in which many components matter: sunflowers about the mean directions, shared by all images.

Where hundreds of components hold an image's mass, none needs many nodes. Each has a few that are spread evenly over
its own probability in the spiral of a sunflower (Vogel 1979), turned and shifted from component to component so that
the errors of neighbours cancel. All nodes together are a stratified sample of the mixture: sums over them have no
bias, however few nodes a component has, and a component has the more of them the more it weighs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import near

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Singles = npt.NDArray[np.float32]

_SEVERAL, _MANY = 4, 32  # nodes of a component that is not light, and of a heavy one
_HEAVIER = (1.0 / 4096.0, 1.0 / 256.0)  # mixing weights from which a component has several nodes, and many
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
class Sunflowers:
    """Nodes of a set of components, and the matrices from mixing weights to densities at the nodes.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    densest : ndarray of float64, shape (C,)
        Density of each component at its mean direction, per steradian.
    direction : ndarray of float32, shape (3, 5 C)
        One node of each component, then four of each; rounded to half a metre.
    single : csr_array of float32, shape (2 C, C)
        Density of each component at the one node of each, and at its mean direction.
    several : csr_array of float32, shape (4 C, C)
        Density of each component at the four nodes of each.
    starts, felt : ndarray of int64 (C + 1,) and of int32 (P,)
        Where component i has its nodes, components felt[starts[i]:starts[i + 1]] may be felt.

    Examples
    --------
    >>> flowers = Sunflowers.of(np.eye(3), np.full(3, 9.0))
    >>> nodes = next(flowers.nodes(np.array([[0.5, 0.3, 0.2]]), [np.arange(3)]))
    >>> nodes.direction.shape, round(float(nodes.mass.sum()), 6)
    ((3, 96), 1.0)
    """

    mean_directions: FloatArray
    log_concentrations: FloatArray
    densest: FloatArray
    direction: Singles
    single: sparse.csr_array
    several: sparse.csr_array
    starts: IntArray
    felt: npt.NDArray[np.int32]

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
        starts, felt = _felt(mean_directions, log_concentrations)
        one, four = (_flowers(mean_directions, log_concentrations, number) for number in (1, _SEVERAL))
        owner = np.repeat(np.arange(len(mean_directions)), np.diff(starts))

        def densities(points: Sequence[FloatArray]) -> sparse.csr_array:
            blocks = [_block(each, mean_directions, log_concentrations, starts, felt, owner) for each in points]
            return sparse.csr_array(sparse.vstack(blocks, format="csr"))

        direction = np.concatenate([_coordinates(one), _coordinates(four)], axis=1)
        single, several = densities([one[0], mean_directions]), densities(list(four))
        densest = np.exp(vmf.log_normaliser(log_concentrations))
        return cls(mean_directions, log_concentrations, densest, direction, single, several, starts, felt)

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
        light = chosen[own < _HEAVIER[0]]
        parts = [
            (self.direction.take(light, axis=1), single[light], weights[light]),
            self._of_several(weights, chosen[(own >= _HEAVIER[0]) & (own < _HEAVIER[1])]),
            *self._of_many(weights, chosen[own >= _HEAVIER[1]]),
        ]
        direction, density, mass = (np.concatenate(each, axis=-1) for each in zip(*parts, strict=True))
        density = np.maximum(density, np.finfo(np.float32).tiny)
        return Nodes(direction, density, mass / mass.sum(), max(peak, float(density.max())), float(weights.max()))

    def _of_several(self, weights: FloatArray, chosen: IntArray) -> tuple[Singles, Singles, FloatArray]:
        size = weights.size
        rows = (size * np.arange(_SEVERAL)[:, None] + chosen).ravel()
        density = self.several[rows] @ weights.astype(np.float32)
        return self.direction.take(size + rows, axis=1), density, np.tile(weights[chosen] / _SEVERAL, _SEVERAL)

    def _of_many(self, weights: FloatArray, chosen: IntArray) -> Iterator[tuple[Singles, Singles, FloatArray]]:
        """Nodes of heavy components, their densities summed over what is felt there, a few components at a time."""
        values = np.cumsum(_MANY * (self.starts[chosen + 1] - self.starts[chosen])) // _VALUES_AT_ONCE
        for some in np.split(chosen, np.flatnonzero(np.diff(values)) + 1):
            if some.size:
                points = _flowers(self.mean_directions[some], self.log_concentrations[some], _MANY, shifted=False)
                density = self._density(weights, some, points)  # (32, some)
                mass = np.tile(weights[some] / _MANY, _MANY)
                yield _coordinates(points), density.ravel().astype(np.float32), mass

    def _density(self, weights: FloatArray, chosen: IntArray, points: FloatArray) -> FloatArray:
        """Densities, (J, H), at points of heavy components, (J, H, 3)."""
        peak = weights * self.densest
        sizes = self.starts[chosen + 1] - self.starts[chosen]
        owner = np.repeat(np.arange(chosen.size), sizes)
        first = np.cumsum(sizes) - sizes
        other = self.felt[self.starts[chosen][owner] + np.arange(owner.size) - first[owner]]
        strong = peak[other] >= _FAINT * peak[chosen][owner]  # a component itself always is
        owner, other = owner[strong], other[strong]
        gap = points[:, owner] - self.mean_directions[other]  # (J, P, 3)
        kappa = np.exp(self.log_concentrations[other])
        value = peak[other] * np.exp(-0.5 * kappa * np.einsum("jpk,jpk->jp", gap, gap))
        return np.add.reduceat(value, np.searchsorted(owner, np.arange(chosen.size)), axis=1)


def _flowers(mu: FloatArray, log_kappa: FloatArray, number: int, *, shifted: bool = True) -> FloatArray:
    """Place nodes that hold equal shares of each component, (number, C, 3).

    Shifted, each lies somewhere in its share, elsewhere for each component; else in the middle of it, which is better
    for a component by itself.
    """
    place, component = np.arange(number)[:, None], np.arange(len(mu))
    within = (0.5 + component / _PLASTIC) % 1.0 if shifted else 0.5
    radius = vmf.cap_quantile(_HELD * (place + within) / number, log_kappa)  # (number, C)
    turn = 2.0 * np.pi * ((place * _GOLDEN + component / _PLASTIC**2) % 1.0)
    basis = sphere.tangent_basis(mu)  # (C, 2, 3)
    sideways = np.cos(turn)[..., None] * basis[:, 0] + np.sin(turn)[..., None] * basis[:, 1]
    return np.asarray(np.cos(radius)[..., None] * mu + np.sin(radius)[..., None] * sideways)


def _coordinates(points: FloatArray) -> Singles:
    """Points (..., 3) in single precision as three rows, (3, n)."""
    return np.ascontiguousarray(points.reshape(-1, 3).T, dtype=np.float32)


def _felt(mu: FloatArray, log_kappa: FloatArray) -> tuple[IntArray, npt.NDArray[np.int32]]:
    """Which components may be felt where each component has its nodes: starts (C + 1,) and components (P,)."""
    reach = near.chord_of(log_kappa, _REACH)
    own = near.chord_of(log_kappa, -float(np.log1p(-_HELD)))
    octave = np.floor(np.log2(own)).astype(np.int64)
    owners, others = [], []
    for number in np.unique(octave):
        group = np.flatnonzero(octave == number)
        for pairs in near.near_pairs(mu[group], mu, reach + own[group].max()):
            owner = group[pairs.point]
            kept = pairs.chord <= reach[pairs.component] + own[owner]
            owners.append(owner[kept].astype(np.int32))
            others.append(pairs.component[kept].astype(np.int32))
    owner, other = np.concatenate(owners), np.concatenate(others)
    order = np.lexsort((other, owner))
    starts = np.searchsorted(owner[order], np.arange(len(mu) + 1))
    return starts.astype(np.int64), other[order]


def _block(
    points: FloatArray,
    mu: FloatArray,
    log_kappa: FloatArray,
    starts: IntArray,
    felt: npt.NDArray[np.int32],
    owner: IntArray,
) -> sparse.csr_array:
    """Density of each component at one point of each component, (C, C)."""
    squared = np.zeros(felt.size)
    for axis in range(3):
        squared += (points[owner, axis] - mu[felt, axis]) ** 2
    kept = squared <= near.chord_of(log_kappa, _REACH)[felt] ** 2
    column = felt[kept]
    height = -0.5 * np.exp(log_kappa)[column] * squared[kept]
    value = np.exp(vmf.log_normaliser(log_kappa)[column] + height).astype(np.float32)
    until = np.concatenate([[0], np.cumsum(kept)])[starts].astype(np.int32)
    return sparse.csr_array((value, column, until), shape=(len(mu), len(mu)))
