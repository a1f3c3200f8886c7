"""Intervals of figures over images that belong together: whole clusters are drawn again, never single images.

Ten photos of one walk, or all chips of one block of land, are right or wrong together; an interval that takes them for
independent is too narrow. Without clusters every image is its own.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

from geo_mvmf.metrics import LEVEL, Estimate

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RESAMPLES = 2000

LEAST_CLUSTERS = 8
"""Clusters from which on what is drawn of them has an interval that holds: draws of fewer hardly differ."""

_DRAWN_AT_ONCE = 1 << 21


def mean_of_clusters(values: npt.ArrayLike, clusters: npt.ArrayLike, *, seed: int = 0) -> Estimate:
    """Give a mean over images with an interval over clusters.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        One number per image, also 0 and 1 for a share. NaN is left out and counted in `n_nan`.
    clusters : array_like, shape (n,)
        Which images belong together: any values that can be sorted.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        The mean with the percentile interval of 2000 resamples of whole clusters.

    Examples
    --------
    >>> mean_of_clusters([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"]).high
    1.0
    """
    given, place, n_nan = _usable(values, clusters)
    if not given.size:
        return Estimate(math.nan, math.nan, math.nan, n_nan, n_nan)
    sums, counts = np.bincount(place, given), np.bincount(place).astype(np.float64)
    drawn = [weights @ sums / (weights @ counts) for weights in _weights(counts.size, seed)]
    return _estimate(float(given.mean()), np.concatenate(drawn), given.size + n_nan, n_nan)


def median_of_clusters(values: npt.ArrayLike, clusters: npt.ArrayLike, *, seed: int = 0) -> Estimate:
    """Give a median over images with an interval over clusters.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        Distances or areas; NaN, an image without a prediction, counts as infinite and in `n_nan`.
    clusters : array_like, shape (n,)
        As `mean_of_clusters`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        The median with the percentile interval of 2000 resamples of whole clusters.

    Examples
    --------
    >>> median_of_clusters([1.0, 2.0, 6.0], [0, 1, 2]).value
    2.0
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    n_nan = int(np.isnan(numbers).sum())
    given, place, _ = _usable(np.where(np.isnan(numbers), np.inf, numbers), clusters)
    if not given.size:
        return Estimate(math.nan, math.nan, math.nan, 0, n_nan)
    order = np.argsort(given, kind="stable")
    ordered, owner = given[order], place[order]
    drawn = [_weighted_quantiles(ordered, weights[:, owner], 0.5) for weights in _weights(int(place.max()) + 1, seed)]
    middle = ordered[[(given.size - 1) // 2, given.size // 2]]
    return _estimate(float(middle.mean()), np.concatenate(drawn), given.size, n_nan)


def quantile_of_clusters(values: npt.ArrayLike, clusters: npt.ArrayLike, share: float, *, seed: int = 0) -> Estimate:
    """Give the value that a share of images do not exceed, with an interval over clusters.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        As `median_of_clusters`.
    clusters : array_like, shape (n,)
        As `mean_of_clusters`.
    share : float
        0..1, as 0.9 for the distance within which nine of ten images are.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        The least value that so many images do not exceed, with the percentile interval of 2000 resamples.

    Raises
    ------
    ValueError
        The share is none.

    Examples
    --------
    >>> quantile_of_clusters(range(1, 11), range(10), 0.9).value
    9.0
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share {share} must be between 0 and 1")
    numbers = np.asarray(values, dtype=np.float64).ravel()
    n_nan = int(np.isnan(numbers).sum())
    given, place, _ = _usable(np.where(np.isnan(numbers), np.inf, numbers), clusters)
    if not given.size:
        return Estimate(math.nan, math.nan, math.nan, 0, n_nan)
    order = np.argsort(given, kind="stable")
    ordered, owner = given[order], place[order]
    drawn = [_weighted_quantiles(ordered, weights[:, owner], share) for weights in _weights(int(place.max()) + 1, seed)]
    value = float(np.quantile(ordered, share, method="inverted_cdf"))
    return _estimate(value, np.concatenate(drawn), given.size, n_nan)


def mean_difference(
    values: npt.ArrayLike, others: npt.ArrayLike, clusters: npt.ArrayLike, *, seed: int = 0
) -> Estimate:
    """Give the mean of a paired difference with an interval over clusters.

    Parameters
    ----------
    values, others : array_like of float, shape (n,)
        Two numbers per image. An image of which one is NaN is left out, and counted in `n_nan`.
    clusters : array_like, shape (n,)
        As `mean_of_clusters`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        Values less others. The interval is the percentile one of tails so much smaller that it holds of few clusters,
        too; NaN where there are fewer than 8 clusters, or a difference is infinite.

    Examples
    --------
    >>> mean_difference([1.0, 2.0], [0.5, 1.5], [0, 1])
    Estimate(value=0.5, low=nan, high=nan, n=2, n_nan=0)
    >>> mean_difference([1.0] * 8, [0.5] * 8, range(8))
    Estimate(value=0.5, low=0.5, high=0.5, n=8, n_nan=0)
    """
    with np.errstate(invalid="ignore"):  # infinite less infinite is no number, and is counted as such
        difference = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    if np.isinf(difference).any():
        return Estimate(
            float(np.nanmean(difference)), math.nan, math.nan, difference.size, int(np.isnan(difference).sum())
        )
    given, place, n_nan = _usable(difference, clusters)
    if not given.size:
        return Estimate(math.nan, math.nan, math.nan, n_nan, n_nan)
    value, sums, counts = float(given.mean()), np.bincount(place, given), np.bincount(place).astype(np.float64)
    if counts.size < LEAST_CLUSTERS:
        return Estimate(value, math.nan, math.nan, given.size + n_nan, n_nan)
    drawn = [weights @ sums / (weights @ counts) for weights in _weights(counts.size, seed)]
    return _estimate(value, np.concatenate(drawn), given.size + n_nan, n_nan, _tail_of_few(counts.size))


def difference_of_medians(
    values: npt.ArrayLike, others: npt.ArrayLike, clusters: npt.ArrayLike, *, seed: int = 0
) -> Estimate:
    """Give the difference of two medians over the same images, with an interval over clusters.

    Parameters
    ----------
    values, others : array_like of float, shape (n,)
        Two numbers per image; NaN counts as infinite, as in `median_of_clusters`.
    clusters : array_like, shape (n,)
        As `mean_of_clusters`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        Of the median of values less that of others, with an interval of 2000 resamples that draw the same images for
        both, as `mean_difference`; NaN where there are fewer than 8 clusters or both medians are infinite.

    Examples
    --------
    >>> difference_of_medians([2.0, 3.0, 4.0], [1.0, 1.0, 1.0], [0, 1, 2]).value
    2.0
    """
    pair = [np.asarray(each, dtype=np.float64).ravel() for each in (values, others)]
    n_nan = int(np.isnan(pair).any(axis=0).sum())
    full = [np.where(np.isnan(each), np.inf, each) for each in pair]
    if not full[0].size:
        return Estimate(math.nan, math.nan, math.nan, 0, n_nan)
    _, place = np.unique(np.asarray(clusters), return_inverse=True)
    with np.errstate(invalid="ignore"):
        value = float(np.median(full[0]) - np.median(full[1]))
    number = int(place.max()) + 1
    if math.isnan(value) or number < LEAST_CLUSTERS:
        return Estimate(value, math.nan, math.nan, full[0].size, n_nan)
    orders = [np.argsort(each, kind="stable") for each in full]
    drawn = []
    for weights in _weights(number, seed):
        medians = [
            _weighted_quantiles(each[order], weights[:, place.ravel()[order]], 0.5)
            for each, order in zip(full, orders, strict=True)
        ]
        with np.errstate(invalid="ignore"):
            drawn.append(medians[0] - medians[1])
    if np.isnan(np.concatenate(drawn)).any():
        return Estimate(value, math.nan, math.nan, full[0].size, n_nan)
    return _estimate(value, np.concatenate(drawn), full[0].size, n_nan, _tail_of_few(number))


def _usable(values: npt.ArrayLike, clusters: npt.ArrayLike) -> tuple[FloatArray, IntArray, int]:
    """Values that are numbers, the numbered cluster of each, and how many were none."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    kept = ~np.isnan(numbers)
    _, place = np.unique(np.asarray(clusters)[kept], return_inverse=True)
    return numbers[kept], place.astype(np.int64).ravel(), int((~kept).sum())


def _weights(clusters: int, seed: int) -> list[FloatArray]:
    """How often each cluster is drawn in each resample, in blocks of (k, clusters)."""
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // clusters)
    even = np.full(clusters, 1.0 / clusters)
    return [
        generator.multinomial(clusters, even, min(step, RESAMPLES - done)).astype(np.float64)
        for done in range(0, RESAMPLES, step)
    ]


def _weighted_quantiles(ordered: FloatArray, weights: FloatArray, share: float) -> FloatArray:
    """Lower quantile of each resample; `weights` (k, n) in the order of the values."""
    total = np.cumsum(weights, axis=1)
    return np.asarray(ordered[np.argmax(total >= total[:, -1:] * share, axis=1)])


def _tail_of_few(clusters: int) -> float:
    """Share of the draws beyond each end, for differences (Hesterberg 2015, the expanded percentile interval).

    Draws of k clusters spread sqrt((k - 1) / k) times too little, and their normal tails are Student's in truth.
    """
    student = special.stdtrit(clusters - 1, (1.0 + LEVEL) / 2.0)
    return float(special.ndtr(-student * math.sqrt(clusters / (clusters - 1))))


def _estimate(value: float, drawn: FloatArray, n: int, n_nan: int, tail: float = (1.0 - LEVEL) / 2.0) -> Estimate:
    # the inverse of the empirical distribution: infinity has no neighbours to be interpolated with
    low, high = np.quantile(drawn, [tail, 1.0 - tail], method="inverted_cdf")
    return Estimate(value, min(float(low), value), max(float(high), value), n, n_nan)
