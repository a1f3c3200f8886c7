"""Great-circle errors -> numbers with intervals.

Distances are on the sphere of radius `sphere.EARTH_RADIUS_KM` (6371.0088 km), "within X km" means <= X. An image
without a prediction has the error NaN: it is counted, never dropped, and taken as farther away than any place.
Intervals hold 95 per cent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]

THRESHOLDS_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)
"""Street, city, region, country, continent: the radii of every published table (PRIOR_ART 7)."""

UNIFORM_NLL = math.log(4.0 * math.pi)
"""Negative log-likelihood of the uniform density, nats against area on the unit sphere."""

BEST_GEO_SCORE = 5000.0
"""The GeoScore of an estimate without error."""

GEO_SCORE_SCALE_KM = 1492.7
"""Distance at which the GeoScore falls to 5000 / e (PRIOR_ART 8: plonk, osv5m, PIGEON)."""

LEVEL = 0.95


class Accuracy(NamedTuple):
    """Shares of images within distances, with their intervals.

    Parameters
    ----------
    value, low, high : ndarray of float64, shape (K,)
        Share in 0..1 for each threshold and the ends of its Wilson interval.
    n : int
        Images counted, those without a prediction included.
    n_nan : int
        Images without a prediction.

    Examples
    --------
    >>> accuracy_at_km([0.5, 3.0], [1.0]).high.round(3).tolist()
    [0.905]
    """

    value: FloatArray
    low: FloatArray
    high: FloatArray
    n: int
    n_nan: int


class Estimate(NamedTuple):
    """A number with its interval.

    Parameters
    ----------
    value, low, high : float
        The number and the ends of its interval.
    n : int
        Values given.
    n_nan : int
        How many of them were NaN.

    Examples
    --------
    >>> median_error_km([4.0, 6.0])
    Estimate(value=5.0, low=0.0, high=inf, n=2, n_nan=0)
    """

    value: float
    low: float
    high: float
    n: int
    n_nan: int


def accuracy_at_km(error_km: npt.ArrayLike, thresholds_km: Sequence[float] = THRESHOLDS_KM) -> Accuracy:
    """Count the share of images whose error is at most each threshold.

    Parameters
    ----------
    error_km : array_like of float, shape (n,)
        Great-circle errors, kilometres; NaN is an image without a prediction and counts as wrong.
    thresholds_km : sequence of float, length K
        Radii X of "error <= X", kilometres.

    Returns
    -------
    Accuracy
        Shares with Wilson intervals; NaN in 0..1 where there is no image.

    Raises
    ------
    ValueError
        An error is negative.

    Examples
    --------
    >>> accuracy = accuracy_at_km([0.5, 1.0, 30.0, float("nan")], [1.0, 25.0, 200.0])
    >>> accuracy.value.tolist(), accuracy.n, accuracy.n_nan
    ([0.5, 0.5, 0.75], 4, 1)
    """
    errors, n_nan = _errors(error_km)
    hits = (errors[:, None] <= np.asarray(thresholds_km, dtype=np.float64)).sum(axis=0)
    value = hits / errors.size if errors.size else np.full(hits.shape, np.nan)
    low, high = wilson_interval(hits, errors.size)
    return Accuracy(value, low, high, errors.size, n_nan)


def median_error_km(error_km: npt.ArrayLike) -> Estimate:
    """Give the median error.

    Parameters
    ----------
    error_km : array_like of float, shape (n,)
        Great-circle errors, kilometres; NaN is an image without a prediction and counts as infinitely far.

    Returns
    -------
    Estimate
        The median and an interval that needs no assumption: two of the sorted errors, chosen by the binomial
        distribution (0 or infinity where there are too few images for 95 per cent). NaN where there is no image.

    Raises
    ------
    ValueError
        An error is negative.

    Examples
    --------
    >>> median_error_km([3.0, 1.0, 2.0]).value
    2.0
    """
    errors, n_nan = _errors(error_km)
    n = errors.size
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, n_nan)
    errors = np.concatenate([[0.0], np.sort(errors), [math.inf]])  # errors[k] is the k-th smallest
    # the largest k with P(B < k) <= 2.5 per cent for B binomial(n, 1/2): there the k-th smallest is below the median
    rank = max(0, math.ceil(float(special.bdtrik((1.0 - LEVEL) / 2.0, n, 0.5))))
    rank -= int(rank > 0 and special.bdtr(rank - 1, n, 0.5) > (1.0 - LEVEL) / 2.0)
    low, high = errors[rank], errors[n + 1 - rank]
    middle = errors[[(n + 1) // 2, n // 2 + 1]]
    return Estimate(float(middle.mean()), float(low), float(high), n, n_nan)


def geo_score(error_km: npt.ArrayLike) -> FloatArray:
    """Give the GeoScore of each error: 5000 exp(-d / 1492.7 km).

    Parameters
    ----------
    error_km : array_like of float, shape (...)
        Great-circle errors, kilometres; NaN (no prediction) scores 0.

    Returns
    -------
    ndarray of float64, shape (...)
        0..5000.

    Examples
    --------
    >>> geo_score([0.0, float("nan")]).tolist()
    [5000.0, 0.0]
    """
    errors = np.asarray(error_km, dtype=np.float64)
    return np.where(np.isnan(errors), 0.0, BEST_GEO_SCORE * np.exp(-errors / GEO_SCORE_SCALE_KM))


def wilson_interval(hits: npt.ArrayLike, n: int) -> tuple[FloatArray, FloatArray]:
    """Give the Wilson interval of a share.

    Parameters
    ----------
    hits : array_like of int, shape (...)
        Successes.
    n : int
        Trials; with none the interval is 0..1.

    Returns
    -------
    low, high : ndarray of float64, shape (...)
        Ends of the 95 per cent interval, inside 0..1.

    Notes
    -----
    Source: Wilson 1927, JASA 22, eq. for the score interval without continuity correction.

    Examples
    --------
    >>> low, high = wilson_interval(50, 100)
    >>> round(float(low), 4), round(float(high), 4)
    (0.4038, 0.5962)
    """
    count = np.asarray(hits, dtype=np.float64)
    if n == 0:
        return np.zeros(count.shape), np.ones(count.shape)
    z = float(special.ndtri((1.0 + LEVEL) / 2.0))
    share = count / n
    middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half = z / (1.0 + z * z / n) * np.sqrt(share * (1.0 - share) / n + (z / (2.0 * n)) ** 2)
    return np.where(count == 0, 0.0, middle - half), np.where(count == n, 1.0, middle + half)


def _errors(error_km: npt.ArrayLike) -> tuple[FloatArray, int]:
    """Errors with infinity for NaN, and how many there were."""
    errors = np.asarray(error_km, dtype=np.float64).ravel()
    if np.any(errors < 0.0):
        row = int(np.argmax(errors < 0.0))
        raise ValueError(f"error {row} is {errors[row]} km; a distance cannot be negative")
    missing = np.isnan(errors)
    return np.where(missing, math.inf, errors), int(missing.sum())
