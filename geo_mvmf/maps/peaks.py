"""The k best modes of each image: how dense they are, and how much probability belongs to each.

Every component that matters climbs the density (expectation maximisation, as `climbs` does); those that end at one
place make one peak. The probability that belongs to a peak is the mixing weight of the components whose climbs end
there: each component's probability belongs to one peak, wholly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import sphere, vmf
from geo_mvmf.errors import UsageError
from geo_mvmf.maps import near
from geo_mvmf.mixture import VmfMixture

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

COLUMNS = ("image", "rank", "longitude", "latitude", "density_per_km2", "probability")

_TAIL = 1e-4  # weight of the lightest components, which belong to no peak
_CLIMBERS = 1024  # of one image, the heaviest; the weight of others belongs to no peak
_STEPS, _STILL = 2000, 1e-11
_SAME = 0.05  # standard deviations of the density about a peak within which climbs have ended at the same place


def best_modes(mixture: VmfMixture, number: int) -> pd.DataFrame:
    """Find the densest modes of every image.

    Parameters
    ----------
    mixture : VmfMixture
        N images.
    number : int
        How many of each, at most; many images have fewer.

    Returns
    -------
    DataFrame
        image (row number), rank from 1 (the densest first), longitude, latitude (degrees), density_per_km2, and
        probability: the mixing weight of the components whose climbs end at this mode. Over all modes of an image
        it sums to 1 less the weight of the lightest components (at most 1e-4) and of those beyond 1024.

    Raises
    ------
    UsageError
        If `number` is less than 1, or the mixture is one of S2 cells, whose densest places are whole cells.

    Examples
    --------
    >>> mixture = VmfMixture(sphere.to_directions([10.0, 20.0], [50.0, 60.0]), [9.0, 9.0], np.log([[0.4, 0.6]]))
    >>> best_modes(mixture, 2)[["rank", "longitude", "probability"]].round(3).to_numpy().tolist()
    [[1.0, 20.0, 0.6], [2.0, 10.0, 0.4]]
    """
    if number < 1:
        raise UsageError(f"{number} modes were asked for; it must be at least 1")
    if not isinstance(mixture, VmfMixture):
        raise UsageError(f"modes are those of a VmfMixture, not of {type(mixture).__name__}: use credible_regions")
    found = [_peaks(mixture, i, number) for i in range(len(mixture))]
    rows = [(i, rank + 1, *row) for i, peaks in enumerate(found) for rank, row in enumerate(peaks)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _peaks(mixture: VmfMixture, image: int, number: int) -> list[tuple[float, float, float, float]]:
    weights = np.exp(mixture.log_mixing_weights[image])
    chosen = near.heaviest(weights, _TAIL)[::-1]
    mu, log_kappa = mixture.mean_directions[chosen], mixture.log_concentrations[chosen]
    peak = mixture.log_mixing_weights[image, chosen] + vmf.log_normaliser(log_kappa)
    places, log_density, width = _climb(mu, np.exp(log_kappa), peak, mu[:_CLIMBERS].copy())
    own = weights[chosen[:_CLIMBERS]]
    result: list[tuple[float, float, float, float]] = []
    left = np.ones(len(places), dtype=np.bool_)
    while left.any() and len(result) < number:
        best = int(np.argmax(np.where(left, log_density, -np.inf)))
        here = left & (np.linalg.norm(places - places[best], axis=1) <= _SAME * width[best])
        longitude, latitude = sphere.to_longitude_latitude(places[best])
        density = float(np.exp(log_density[best])) / sphere.EARTH_RADIUS_KM**2
        result.append((float(longitude), float(latitude), density, float(own[here].sum())))
        left &= ~here
    return result


def _climb(
    mu: FloatArray, kappa: FloatArray, peak: FloatArray, places: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Where climbs end (S, 3), the log density there, and the width of the density about it, radians (S,)."""
    moving = np.arange(len(places))
    log_density, width = np.empty(len(places)), np.empty(len(places))
    for _ in range(_STEPS):
        joint = peak - 0.5 * kappa * near.squared_chords(places[moving], mu)
        top = joint.max(axis=1, keepdims=True)
        share = np.exp(joint - top)
        total = share.sum(axis=1)
        log_density[moving] = top[:, 0] + np.log(total)
        pull = (share * kappa) @ mu
        length = np.linalg.norm(pull, axis=1)
        width[moving] = np.sqrt(total / ((share * kappa).sum(axis=1)))
        moved = np.where(length[:, None] > 0.0, pull / np.where(length > 0.0, length, 1.0)[:, None], places[moving])
        going = np.abs(moved - places[moving]).max(axis=1) > _STILL
        places[moving] = moved
        moving = moving[going]
        if not moving.size:
            break
    return places, log_density, width
