"""Intervals of figures over images that belong together: whole clusters are drawn again, never single images.

Ten photos of one walk, or all chips of one block of land, are right or wrong together; an interval that takes them for
independent is too narrow. Without clusters every image is its own.

All intervals are meant to hold 95 % and are made in one way. 2000 resamples draw whole clusters. Draws of k clusters
spread sqrt((k - 1) / k) times too little, and their normal tails are Student's in truth: the tails that are cut off are
so much smaller (the expanded percentile interval of Hesterberg 2015). Of a few clusters with skewed figures they hold
less (docs/evaluation.md has what was measured). The bootstrap-t holds more there, and is worthless where one cluster is
far from the others: draws without it have hardly any spread to be measured by. Where all clusters are alike, draws say
nothing; a figure with bounds has then what Wilson's interval allows for clusters that were not seen. Of fewer than 8
clusters there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy import special

from geo_mvmf.metrics import LEVEL, Estimate, wilson_interval

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RESAMPLES = 2000

LEAST_CLUSTERS = 8
"""Clusters from which on what is drawn of them has an interval that holds: draws of fewer hardly differ."""

_TAILS = (1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0
_ALIKE = 1e-12  # of what lies between the bounds: draws that differ less are alike, up to rounding
_DRAWN_AT_ONCE = 1 << 18


def mean_of_clusters(
    values: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> Estimate:
    """Give a mean over images with an interval over clusters.

    Parameters
    ----------
    values : array_like of float, shape (n,)
        One number per image, also 0 and 1 for a share. NaN is left out and counted in `n_nan`.
    clusters : array_like, shape (n,)
        Which images belong together: any values that can be sorted.
    bounds : (float, float)
        Between which every single value is, as (0, 1) of a share; so are the ends of the interval. Where all draws are
        alike the interval is what is possible if the clusters that Wilson's interval of 0 of k allows are at a bound.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        The interval is NaN where there are fewer than 8 clusters, or the mean is infinite.

    Examples
    --------
    >>> mean_of_clusters([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"])
    Estimate(value=0.5, low=nan, high=nan, n=4, n_nan=0)
    >>> round(mean_of_clusters([0.0, 1.0] * 8, range(16)).high, 2)
    0.75
    >>> round(mean_of_clusters([1.0] * 8, range(8), bounds=(0.0, 1.0)).low, 2)
    0.68
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    known = ~np.isnan(numbers)
    given, (place, number) = numbers[known], _numbered(np.asarray(clusters)[known])
    with np.errstate(invalid="ignore"):  # infinite less infinite
        value = float(given.mean()) if given.size else math.nan
    low, high = math.nan, math.nan
    if math.isfinite(value) and number >= LEAST_CLUSTERS:
        sums, counts = (np.bincount(place, each).astype(np.float64) for each in (given - value, None))
        drawn = np.concatenate([weights @ sums / (weights @ counts) for weights in _weights(number, seed)])
        low, high = np.clip(np.add(value, _cut(drawn, _tail_of_few(number))), *bounds).tolist()
        if high - low <= _ALIKE * (bounds[1] - bounds[0]) < math.inf:
            low, high = _unseen(value, number, bounds)
    return Estimate(value, low, high, numbers.size, int((~known).sum()))


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
        The interval is NaN where there are fewer than 8 clusters.

    Examples
    --------
    >>> median_of_clusters([1.0, 2.0, 6.0], [0, 1, 2]).value
    2.0
    """
    full, n_nan = _full(values)
    place, number = _numbered(clusters)
    return _of_draws(_median(full), _draws_of(full, place, 0.5), number, full.size, n_nan, seed)


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
        The least value that so many images do not exceed; the interval is NaN where there are fewer than 8 clusters.
        Its upper end is infinite while more than 2.5 % of all draws of so many clusters lie below the true value
        altogether (`share` to the power of the clusters; for 0.9 fewer than 36), its lower one likewise.

    Raises
    ------
    ValueError
        The share is none.

    Examples
    --------
    >>> quantile_of_clusters(range(1, 11), range(10), 0.9)
    Estimate(value=9.0, low=5.0, high=inf, n=10, n_nan=0)
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share {share} must be between 0 and 1")
    full, n_nan = _full(values)
    place, number = _numbered(clusters)
    value = float(np.quantile(full, share, method="inverted_cdf")) if full.size else math.nan
    found = _of_draws(value, _draws_of(full, place, share), number, full.size, n_nan, seed)
    if math.isnan(found.low):
        return found
    low = -math.inf if (1.0 - share) ** number > _TAILS[0] else found.low
    return found._replace(low=low, high=math.inf if share**number > _TAILS[0] else found.high)


def mean_difference(
    values: npt.ArrayLike,
    others: npt.ArrayLike,
    clusters: npt.ArrayLike,
    *,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    seed: int = 0,
) -> Estimate:
    """Give the mean of a paired difference with an interval over clusters.

    Parameters
    ----------
    values, others : array_like of float, shape (n,)
        Two numbers per image. An image of which one is NaN is left out, and counted in `n_nan`.
    clusters : array_like, shape (n,)
        As `mean_of_clusters`.
    bounds : (float, float)
        As of `mean_of_clusters`.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        Values less others. The interval is NaN where there are fewer than 8 clusters, or a difference is infinite.

    Examples
    --------
    >>> mean_difference([1.0, 2.0], [0.5, 1.5], [0, 1])
    Estimate(value=0.5, low=nan, high=nan, n=2, n_nan=0)
    >>> mean_difference([1.0] * 8, [0.5] * 8, range(8))
    Estimate(value=0.5, low=0.5, high=0.5, n=8, n_nan=0)
    """
    with np.errstate(invalid="ignore"):  # infinite less infinite is no number, and is counted as such
        difference = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    return mean_of_clusters(difference, clusters, bounds=bounds, seed=seed)


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
        Of the median of values less that of others, with an interval of resamples that draw the same images for both;
        NaN where there are fewer than 8 clusters or both medians are infinite, be it in one resample.

    Examples
    --------
    >>> difference_of_medians([2.0, 3.0, 4.0], [1.0, 1.0, 1.0], [0, 1, 2]).value
    2.0
    """
    (mine, _), (theirs, _) = _full(values), _full(others)
    place, number = _numbered(clusters)
    draws = _draws_of(mine, place, 0.5), _draws_of(theirs, place, 0.5)
    n_nan = int((np.isnan(np.asarray(values, float)) | np.isnan(np.asarray(others, float))).sum())
    with np.errstate(invalid="ignore"):
        return _of_draws(
            _median(mine) - _median(theirs),
            lambda weights: draws[0](weights) - draws[1](weights),
            number,
            mine.size,
            n_nan,
            seed,
        )


def _full(values: npt.ArrayLike) -> tuple[FloatArray, int]:
    """Values with infinity for NaN, and how many were none."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    missing = np.isnan(numbers)
    return np.where(missing, np.inf, numbers), int(missing.sum())


def _numbered(clusters: npt.ArrayLike) -> tuple[IntArray, int]:
    """The number of each image's cluster, and how many there are."""
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    return place.astype(np.int64).ravel(), names.size


def _median(full: FloatArray) -> float:
    return float(np.median(full)) if full.size else math.nan


def _weights(clusters: int, seed: int) -> Iterator[FloatArray]:
    """How often each cluster is drawn in each resample, in blocks (k, clusters) that bound the memory."""
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // clusters)
    for done in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - done)
        drawn = generator.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
        # counting takes a seventh of the time of multinomial draws, as long as what is counted fits the caches
        yield np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _unseen(value: float, clusters: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """Ends of the interval of a mean of which all clusters are alike: others are so rare that none was seen."""
    share = float(wilson_interval(0, clusters)[1])
    return value - share * (value - bounds[0]), value + share * (bounds[1] - value)


def _draws_of(full: FloatArray, place: IntArray, share: float) -> Callable[[FloatArray], FloatArray]:
    """Lower quantiles of the images by the weights of their clusters, (k, clusters) -> (k,)."""
    order = np.argsort(full, kind="stable")
    ordered, owner = full[order], place[order]

    def draw(weights: FloatArray) -> FloatArray:
        total = np.cumsum(weights[:, owner], axis=1)
        return np.asarray(ordered[np.argmax(total >= total[:, -1:] * share, axis=1)])

    return draw


def _of_draws(
    value: float, draw: Callable[[FloatArray], FloatArray], clusters: int, n: int, n_nan: int, seed: int
) -> Estimate:
    low, high = math.nan, math.nan
    if not math.isnan(value) and clusters >= LEAST_CLUSTERS:
        drawn = np.concatenate([draw(weights) for weights in _weights(clusters, seed)])
        if not np.isnan(drawn).any():
            low, high = _cut(drawn, _tail_of_few(clusters))
    return Estimate(value, min(low, value), max(high, value), n, n_nan)


def _tail_of_few(clusters: int) -> float:
    """Share of the draws beyond each end (Hesterberg 2015, the expanded percentile interval)."""
    student = special.stdtrit(clusters - 1, _TAILS[1])
    return float(special.ndtr(-student * math.sqrt(clusters / (clusters - 1))))


def _cut(drawn: FloatArray, tail: float) -> tuple[float, float]:
    # the inverse of the empirical distribution: infinity has no neighbours to be interpolated with
    low, high = np.quantile(drawn, [tail, 1.0 - tail], method="inverted_cdf")
    return float(low), float(high)
