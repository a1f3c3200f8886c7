"""Nearest neighbours as a density: a von Mises-Fisher kernel at the place of each, and a little everywhere.

A point says nothing of how sure it is. The places of the k most similar training images, each widened to a kernel,
are a density, which can be compared with the other methods' by likelihood, regions and maps. How wide the kernels have
to be, the training images themselves tell: each is predicted from its k nearest others.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from scipy import optimize
from torch import Tensor

from geo_mvmf import sphere, vmf
from geo_mvmf.metrics import UNIFORM_NLL
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.model.neighbours import NearestNeighbours, shares

FloatArray = npt.NDArray[np.float64]

UNIFORM_LOG_CONCENTRATION = -30.0
"""Of the component that stands for the uniform density; it differs from it by 1e-13."""

_LOG_CONCENTRATIONS = (-2.0, 22.0)  # between nearly uniform and 0.1 km
_GRID = 49
_LEAST_SHARE, _MOST_SHARE = 1e-6, 1.0 - 1e-6


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What each neighbour's place is widened to.

    Parameters
    ----------
    log_concentration : float
        Natural logarithm of kappa of every kernel.
    uniform_share : float
        Probability, 0 <= share < 1, that is spread over the whole sphere, because the truth is near none of the
        neighbours at times.
    nll : float
        Negative log-likelihood that it was chosen by, nats per unit-sphere area; NaN where it was not.

    Raises
    ------
    ValueError
        A number is outside its range.

    Examples
    --------
    >>> Kernel(16.0, uniform_share=1.0)
    Traceback (most recent call last):
    ValueError: log_concentration is 16.0 and uniform_share 1.0; a finite number and one in 0 <= share < 1 are needed
    """

    log_concentration: float
    uniform_share: float = 0.0
    nll: float = math.nan

    def __post_init__(self) -> None:
        if not (math.isfinite(self.log_concentration) and 0.0 <= self.uniform_share < 1.0):
            raise ValueError(
                f"log_concentration is {self.log_concentration} and uniform_share {self.uniform_share}; a finite "
                "number and one in 0 <= share < 1 are needed"
            )

    @classmethod
    def within(cls, radius_km: float, probability: float = 0.95, *, uniform_share: float = 0.0) -> Kernel:
        """Make a kernel of its size on the ground.

        Parameters
        ----------
        radius_km : float
            Great-circle radius about the neighbour's place.
        probability : float
            Share of the kernel's mass in it.
        uniform_share : float
            As in the class.

        Returns
        -------
        Kernel

        Examples
        --------
        >>> round(Kernel.within(5.23).log_concentration, 2)
        16.0
        """
        found = vmf.log_concentration_for(radius_km / sphere.EARTH_RADIUS_KM, probability)
        return cls(float(found), uniform_share=uniform_share)


class NeighbourDensity:
    """The density of the places of the most similar training images.

    Parameters
    ----------
    search : NearestNeighbours
        Finds them, and says how they are weighted.
    kernel : Kernel
        What each place is widened to; `fit_kernel` chooses one.

    Examples
    --------
    >>> search = NearestNeighbours([[0.0], [1.0]], [10.0, 20.0], [0.0, 0.0])
    >>> density = NeighbourDensity(search, Kernel.within(50.0))
    >>> density.mixture([[0.9]]).probability_within([20.0], [0.0], 50.0).round(3).tolist()
    [[0.95]]
    """

    def __init__(self, search: NearestNeighbours, kernel: Kernel) -> None:
        self.search, self.kernel = search, kernel

    def mixture(self, features: npt.ArrayLike | Tensor) -> VmfMixture:
        """Give the predicted densities.

        Parameters
        ----------
        features : array_like of float, shape (N, D)
            Of the images to locate.

        Returns
        -------
        VmfMixture
            Of N images. Its components are the neighbours of any of them (and the uniform one), at most N k + 1: ask
            for a batch of images at a time.

        Raises
        ------
        ValueError
            As `NearestNeighbours.neighbours`.

        Examples
        --------
        >>> search = NearestNeighbours([[0.0], [1.0], [9.0]], [10.0, 20.0, 30.0], [0.0, 0.0, 0.0], k=2)
        >>> NeighbourDensity(search, Kernel(16.0)).mixture([[0.5], [0.25]]).log_mixing_weights.shape
        (2, 2)
        """
        index, distance = self.search.neighbours(_array(features))
        used, column = np.unique(index, return_inverse=True)
        weights = np.zeros((len(index), used.size + 1))
        np.put_along_axis(weights, column.reshape(index.shape), shares(distance, self.search.weighting), axis=1)
        weights *= (1.0 - self.kernel.uniform_share) / weights.sum(axis=1, keepdims=True)
        weights[:, -1] = self.kernel.uniform_share
        places = sphere.to_directions(self.search.longitude[used], self.search.latitude[used])
        kappas = np.append(np.full(used.size, self.kernel.log_concentration), UNIFORM_LOG_CONCENTRATION)
        count = used.size + (self.kernel.uniform_share > 0.0 or not used.size)
        with np.errstate(divide="ignore"):
            logs = np.log(weights[:, :count])
        return VmfMixture(np.vstack([places, [[0.0, 0.0, 1.0]]])[:count], kappas[:count], logs)


def fit_kernel(search: NearestNeighbours, *, sample: int = 2000, seed: int = 0) -> Kernel:
    """Choose the kernel by the likelihood of training images under the density of their nearest others.

    Parameters
    ----------
    search : NearestNeighbours
        With its number of neighbours and weighting.
    sample : int
        Training images that are predicted, drawn without replacement; all, where there are no more.
    seed : int
        Of the draw.

    Returns
    -------
    Kernel
        With the negative log-likelihood that it has on them.

    Raises
    ------
    ValueError
        There are no more than k training images: none has k others.

    Notes
    -----
    Images that were taken together - a walk, the chips of one scene - make each other's places look easy, and the
    kernel too narrow for images from elsewhere. Give a search over training images that are apart.

    Examples
    --------
    >>> places = sphere.random_directions(300, np.random.default_rng(0))
    >>> search = NearestNeighbours(places, *sphere.to_longitude_latitude(places))  # features that say where
    >>> fit_kernel(search).log_concentration > 3.0
    True
    """
    rows, index, distance = _others(search, sample, seed)
    weights = shares(distance, search.weighting)
    weights /= weights.sum(axis=1, keepdims=True)
    places = sphere.to_directions(search.longitude, search.latitude)
    difference = places[index] - places[rows][:, None]
    chord_squared = np.square(difference).sum(axis=2)  # (n, k)

    def nll_of(log_kappa: float) -> tuple[float, float]:
        log_f = vmf.log_normaliser(log_kappa) - 0.5 * math.exp(log_kappa) * chord_squared
        return _best_share((weights * np.exp(log_f)).sum(axis=1))

    grid = np.linspace(*_LOG_CONCENTRATIONS, _GRID)
    best = int(np.argmin([nll_of(log_kappa)[0] for log_kappa in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    found = float(optimize.minimize_scalar(lambda x: nll_of(x)[0], bounds=(low, high), method="bounded").x)
    nll, share = nll_of(found)
    return Kernel(found, uniform_share=share, nll=nll)


def _others(
    search: NearestNeighbours, sample: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], FloatArray]:
    """Give some training images, (n,), and their k nearest others with their distances, (n, k)."""
    total = len(search.features)
    if total <= search.k:
        raise ValueError(f"there are {total} training images, so none has {search.k} others; lower k")
    rows = np.sort(np.random.default_rng(seed).permutation(total)[:sample])
    index, distance = search.with_k(search.k + 1).neighbours(search.features[rows])
    own = index == rows[:, None]
    own[:, -1] |= ~own.any(axis=1)  # more than k images are the same as this one: any of them may go
    kept = (len(rows), search.k)
    return rows, index[~own].reshape(kept), distance[~own].reshape(kept)


def _best_share(density: FloatArray) -> tuple[float, float]:
    """Least negative log-likelihood of a density mixed with the uniform one, and the share of that; convex in it."""
    ratio = density * math.exp(UNIFORM_NLL) - 1.0  # the mixture is (1 + (1 - share) ratio) / 4 pi

    def nll(share: float) -> float:
        return UNIFORM_NLL - float(np.log1p((1.0 - share) * ratio).mean())

    found = optimize.minimize_scalar(nll, bounds=(_LEAST_SHARE, _MOST_SHARE), method="bounded", options={"xatol": 1e-7})
    return float(found.fun), float(found.x)


def _array(features: npt.ArrayLike | Tensor) -> npt.ArrayLike:
    return features.detach().float().cpu().numpy() if isinstance(features, Tensor) else features
