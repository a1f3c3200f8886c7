"""Nodes of images over components of their own, which no other image shares: made for several images at once.

Of a million components an image keeps some hundred. What numpy has to be told for one such image takes longer than
what it then computes, so the components of several images lie in one list, those of each image together, and an image
has the same nodes in any company. Where dozens of components matter, each is cut into rings about its mean direction;
where hundreds or more do, each has the few nodes of `sunflowers`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import crowds
from geo_mvmf.maps.felt import Felt
from geo_mvmf.maps.sunflowers import HEAVIER, MANY, SEVERAL, TINY, Nodes, Tier

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Maker = Callable[[FloatArray, FloatArray, FloatArray, IntArray], Iterator[Nodes]]
"""`rings`, `sunflowers` or `crowded`: mean directions, log concentrations, weights, counts -> nodes of every image."""

RING_REACH = 24.0
"""Nats below its peak at which a component is no longer felt on rings."""

_RINGS = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.995, 0.9999)  # quantiles between rings
_NODES = 6  # of a ring


def rings(
    mean_directions: FloatArray, log_concentrations: FloatArray, weights: FloatArray, counts: IntArray
) -> Iterator[Nodes]:
    """Give the nodes of images over components of their own, on rings.

    Parameters
    ----------
    mean_directions, log_concentrations, weights, counts
        As `sunflowers`.

    Yields
    ------
    Nodes
        Of every image.

    Examples
    --------
    >>> nodes = next(rings(np.eye(3), np.full(3, 9.0), np.array([0.5, 0.3, 0.2]), np.array([3])))
    >>> nodes.direction.shape, round(float(nodes.mass.sum()), 6)
    ((3, 234), 1.0)
    """
    felt = Felt.of(mean_directions, log_concentrations, np.repeat(np.arange(counts.size), counts), reach=RING_REACH)
    places, share = ring_nodes(mean_directions, log_concentrations)
    # the mean directions themselves hold no mass and find the peak
    points = np.concatenate([places.reshape(len(share), -1, 3), mean_directions[None]])
    density = felt.densities(weights * felt.densest, np.arange(weights.size), points, is_heavy=False)
    for start, stop in itertools.pairwise([0, *np.cumsum(counts).tolist()]):
        its = slice(start, stop)
        mass = (share * weights[its]).ravel()
        direction = points[:-1, its].reshape(-1, 3).T
        at_nodes = np.maximum(density[:-1, its].ravel(), TINY)
        yield Nodes(direction, at_nodes, mass / mass.sum(), float(density[:, its].max()), float(weights[its].max()))


def sunflowers(
    mean_directions: FloatArray, log_concentrations: FloatArray, weights: FloatArray, counts: IntArray
) -> Iterator[Nodes]:
    """Give the nodes of images over components of their own.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (T, 3)
        Unit vectors: the components of the first image, then those of the second, and so on.
    log_concentrations : ndarray of float64, shape (T,)
        Natural logarithms of kappa.
    weights : ndarray of float64, shape (T,)
        Mixing weights; those of an image sum to 1.
    counts : ndarray of int64, shape (N,)
        Components of each image, at least one.

    Yields
    ------
    Nodes
        Of every image: what `Sunflowers` of its components alone gives, to single precision.

    Examples
    --------
    >>> nodes = next(sunflowers(np.eye(3), np.full(3, 9.0), np.array([0.5, 0.3, 0.2]), np.array([3])))
    >>> nodes.direction.shape, round(float(nodes.mass.sum()), 6)
    ((3, 96), 1.0)
    """
    ends = np.concatenate([[0], np.cumsum(counts)])
    tiers = _tiers(mean_directions, log_concentrations, weights, np.repeat(ends[:-1], counts))
    felt = Felt.of(mean_directions, log_concentrations, np.repeat(np.arange(counts.size), counts))
    everything = np.arange(weights.size)
    at_peaks = felt.densities(weights * felt.densest, everything, mean_directions[None], is_heavy=False)[0]
    for tier in tiers:
        tier.feel(felt)
    for start, stop in itertools.pairwise(ends.tolist()):
        densest, heaviest = float(at_peaks[start:stop].max()), float(weights[start:stop].max())
        yield Nodes.of_tiers([tier.of(start, stop) for tier in tiers], densest, heaviest)


def crowded(
    mean_directions: FloatArray, log_concentrations: FloatArray, weights: FloatArray, counts: IntArray
) -> Iterator[Nodes]:
    """Give the nodes of images in which so many components overlap that their pairs are not listed.

    Parameters
    ----------
    mean_directions, log_concentrations, weights, counts
        As `sunflowers`.

    Yields
    ------
    Nodes
        Of every image: where those of `sunflowers` are, with densities as exact as `crowds.densities`.

    Examples
    --------
    >>> nodes = next(crowded(np.eye(3), np.full(3, 1.0), np.array([0.5, 0.3, 0.2]), np.array([3])))
    >>> nodes.direction.shape, round(float(nodes.mass.sum()), 6)
    ((3, 96), 1.0)
    """
    for start, stop in itertools.pairwise([0, *np.cumsum(counts).tolist()]):
        mu, log_kappa, share = (each[start:stop] for each in (mean_directions, log_concentrations, weights))
        tiers = _tiers(mu, log_kappa, share, np.zeros(stop - start, np.int64))
        points = np.concatenate([*(tier.points.reshape(-1, 3) for tier in tiers), mu])
        found = crowds.densities(points, mu, log_kappa, share * np.exp(vmf.log_normaliser(log_kappa)))
        *at_nodes, at_peaks = np.split(found, np.cumsum([tier.density.size for tier in tiers]))
        for tier, own in zip(tiers, at_nodes, strict=True):
            tier.density = own.reshape(tier.density.shape).astype(np.float32)
        yield Nodes.of_tiers([tier.of(0, stop - start) for tier in tiers], float(at_peaks.max()), float(share.max()))


def _tiers(
    mean_directions: FloatArray, log_concentrations: FloatArray, weights: FloatArray, first: IntArray
) -> list[Tier]:
    """Nodes of all components: one of each light one, several, or many."""
    is_heavy, is_light = weights >= HEAVIER[1], weights < HEAVIER[0]
    chosen = {1: is_light, SEVERAL: ~is_light & ~is_heavy, MANY: is_heavy}
    return [
        Tier(mean_directions, log_concentrations, weights, first, np.flatnonzero(its), number)
        for number, its in chosen.items()
    ]


def ring_nodes(mu: FloatArray, log_kappa: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Place nodes on rings about mean directions, where the density is the mean density of a ring.

    Parameters
    ----------
    mu : ndarray of float64, shape (C, 3)
        Mean directions.
    log_kappa : ndarray of float64, shape (C,)
        Log concentrations.

    Returns
    -------
    direction : ndarray of float64, shape (J * C, 3)
        Unit vectors, those of one node of all components together.
    share : ndarray of float64, shape (J, 1)
        Of its component's mass.

    Examples
    --------
    >>> direction, share = ring_nodes(np.eye(3), np.full(3, 9.0))
    >>> direction.shape, round(float(share.sum()), 4)
    ((234, 3), 0.9999)
    """
    edges = np.array(_RINGS)
    radius = vmf.cap_quantile(edges[:, None], log_kappa[None, :])  # (R + 1, C)
    height = 2.0 * np.sin(radius / 2.0) ** 2
    mass, area = np.diff(edges), 2.0 * np.pi * np.diff(height, axis=0)
    kappa = np.exp(log_kappa)
    with np.errstate(divide="ignore", invalid="ignore"):
        # where the density equals the ring's mean: log c - kappa h = log(mass / area)
        at = (vmf.log_normaliser(log_kappa) - np.log(mass[:, None] / area)) / kappa
    middle = 0.5 * (height[:-1] + height[1:])
    at = np.where((at >= height[:-1]) & (at <= height[1:]), at, middle)
    angle = 2.0 * np.arcsin(np.sqrt(np.clip(at, 0.0, 2.0) / 2.0))  # (R, C)
    basis = sphere.tangent_basis(mu)  # (C, 2, 3)
    directions, shares = [], []
    for ring in range(mass.size):
        turn = 2.0 * np.pi * (np.arange(_NODES) + 0.5 * ring) / _NODES + ring
        sideways = np.cos(turn)[:, None, None] * basis[:, 0] + np.sin(turn)[:, None, None] * basis[:, 1]
        directions.append(np.cos(angle[ring])[:, None] * mu + np.sin(angle[ring])[:, None] * sideways)
        shares.append(np.full((_NODES, 1), mass[ring] / _NODES))
    return np.concatenate(directions).reshape(-1, 3), np.concatenate(shares)
