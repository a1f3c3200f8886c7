"""What an evaluation says in numbers: one tidy row per figure, each with its interval and with what is missing.

Shares of independent images have Wilson intervals, which stay honest at 0 and 100 %, where a bootstrap's would have no
width; medians have those of the binomial distribution. Means have those of a bootstrap of whole clusters
(`resampling`; each image is its own where nothing says otherwise), and so has every figure where images belong
together: of a share of 0 or 100 % Wilson's, of so many clusters, and of fewer than 8 clusters NaN.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import metrics, resampling
from geo_mvmf.metrics import Estimate

if TYPE_CHECKING:
    from geo_mvmf.evaluation import Evaluation

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

COVERAGE_LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Credible levels whose coverage is in the table: of a calibrated model the share is the level."""

ALL = "all"
"""The group of all images."""

COLUMNS = ("group", "measure", "estimator", "value", "low", "high", "n", "n_nan")
"""Of the table; the estimator is empty where a figure is of the density and not of a point."""


def tidy(evaluation: Evaluation) -> pd.DataFrame:
    """Give all figures, of all images and of each group.

    Parameters
    ----------
    evaluation : Evaluation

    Returns
    -------
    DataFrame
        With `COLUMNS`; docs/evaluation.md defines every measure.

    Examples
    --------
    >>> from geo_mvmf.evaluation import Evaluation
    >>> names, error_km = np.array(["a", "b"], object), np.array([12.0, 340.0])
    >>> searched, group = np.array([0.2, 0.7]), np.full(2, "", object)
    >>> table = tidy(Evaluation(names, error_km, np.zeros(2), searched, error_km, group))
    >>> float(table.set_index("measure").loc["accuracy_at_200_km", "value"])
    0.5
    """
    rows = _rows(evaluation, np.ones(evaluation.n, dtype=bool), ALL)
    for group in sorted(set(evaluation.groups) - {""}):
        rows += _rows(evaluation, evaluation.groups == group, str(group))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def curve(searched_probability: FloatArray, levels: FloatArray) -> pd.DataFrame:
    """Give how many truths lie inside the region of each level (the P-P curve).

    Parameters
    ----------
    searched_probability : ndarray of float64, (N,)
        NaN is an image without a prediction: it has no region, so it is in no share.
    levels : ndarray of float64, (K,)
        Probabilities of regions, 0..1.

    Returns
    -------
    DataFrame
        K rows: level, share (of truths inside), low, high (where 95 % of calibrated models of so many images have it).

    Examples
    --------
    >>> curve(np.array([0.2, 0.7, np.nan]), np.array([0.0, 0.5, 1.0]))["share"].tolist()
    [0.0, 0.5, 1.0]
    """
    known = np.sort(searched_probability[np.isfinite(searched_probability)])
    inside = np.searchsorted(known, levels, side="right")
    from scipy import stats

    n = known.size
    band = np.asarray(stats.binom.ppf([[0.025], [0.975]], max(n, 1), levels)) / max(n, 1)
    share = inside / n if n else np.full(levels.shape, np.nan)
    return pd.DataFrame({"level": levels, "share": share, "low": np.maximum(band[0], 0.0), "high": band[1]})


def coverage(evaluation: Evaluation) -> pd.DataFrame:
    """Give the share of truths inside the regions of `COVERAGE_LEVELS`, over all images.

    Parameters
    ----------
    evaluation : Evaluation

    Returns
    -------
    DataFrame
        level, value, low, high.

    Examples
    --------
    >>> from geo_mvmf.evaluation import Evaluation
    >>> names, zero = np.array(["a", "b"], object), np.zeros(2)
    >>> found = coverage(Evaluation(names, zero, zero, np.array([0.2, 0.85]), zero, np.full(2, "", object)))
    >>> found["value"].tolist()
    [0.5, 0.5, 1.0, 1.0]
    """
    searched = evaluation.searched_probability
    intervals, known = _Intervals(evaluation.clusters), np.isfinite(searched)
    rows = [(level, *intervals.share(searched <= level, known)[:3]) for level in COVERAGE_LEVELS]
    return pd.DataFrame(rows, columns=["level", "value", "low", "high"])


@dataclasses.dataclass(frozen=True)
class _Intervals:
    """Figures with intervals, of images that are independent or in clusters."""

    clusters: npt.NDArray[Any] | None

    def share(self, hits: BoolArray, known: BoolArray) -> Estimate:
        """Of the known images; how many are not is counted."""
        n_nan = int((~known).sum())
        if self.clusters is not None:
            return resampling.mean_of_clusters(np.where(known, hits, np.nan), self.clusters, bounds=(0.0, 1.0))
        count, n = int(hits[known].sum()), int(known.sum())
        low, high = metrics.wilson_interval(count, n)
        return Estimate(count / n if n else np.nan, float(low), float(high), known.size, n_nan)

    def mean(self, values: FloatArray, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
        """`bounds` are those of any such mean."""
        clusters = np.arange(values.size) if self.clusters is None else self.clusters
        return resampling.mean_of_clusters(values, clusters, bounds=bounds)

    def median(self, values: FloatArray) -> Estimate:
        if self.clusters is not None:
            return resampling.median_of_clusters(values, self.clusters)
        return metrics.median_error_km(values)


def _rows(evaluation: Evaluation, chosen: BoolArray, group: str) -> list[tuple[object, ...]]:
    clusters = None if evaluation.clusters is None else evaluation.clusters[chosen]
    intervals = _Intervals(clusters)
    rows: list[tuple[object, ...]] = []
    for estimator, error in evaluation.errors_by_estimator.items():
        found = _of_points(intervals, error[chosen], evaluation.thresholds_km)
        rows += [(group, measure, estimator, *estimate) for measure, estimate in found]
    if evaluation.has_density:
        rows += [(group, measure, "", *estimate) for measure, estimate in _of_densities(intervals, evaluation, chosen)]
    return rows


def _of_points(
    intervals: _Intervals, error: FloatArray, thresholds_km: tuple[float, ...]
) -> list[tuple[str, Estimate]]:
    """Figures of one estimator; an image without a prediction is within no distance."""
    missing = np.isnan(error)
    rows = []
    for km in thresholds_km:
        share = intervals.share(error <= km, np.ones(error.size, dtype=bool))
        rows.append((f"accuracy_at_{km:g}_km", share._replace(n_nan=int(missing.sum()))))
    rows.append(("median_error_km", intervals.median(error)))
    rows.append(("mean_error_km", intervals.mean(error, (0.0, np.inf))))
    score = intervals.mean(metrics.geo_score(error), (0.0, metrics.BEST_GEO_SCORE))  # without a prediction: 0
    rows.append(("geo_score", score._replace(n_nan=int(missing.sum()))))
    return rows


def _of_densities(intervals: _Intervals, evaluation: Evaluation, chosen: BoolArray) -> list[tuple[str, Estimate]]:
    searched = evaluation.searched_probability[chosen]
    known = np.isfinite(searched)
    rows = [(f"coverage_of_{level:g}_region", intervals.share(searched <= level, known)) for level in COVERAGE_LEVELS]
    rows.append(("mean_searched_probability", intervals.mean(searched, (0.0, 1.0))))
    rows.append(("median_searched_area_km2", intervals.median(evaluation.searched_area_km2[chosen])))
    if evaluation.expected_error_km is not None:
        expected = evaluation.expected_error_km[chosen]
        rows.append(("mean_expected_error_km", intervals.mean(expected, (0.0, np.inf))))
    nll = evaluation.nll[chosen]
    rows.append(("nll_nats", intervals.mean(nll)))
    if evaluation.nll_training is not None:
        baseline = evaluation.nll_training[chosen]
        rows.append(("nll_of_training_density_nats", intervals.mean(baseline)))
        rows.append(("gain_over_training_density_nats", intervals.mean(baseline - nll)))
    return rows
