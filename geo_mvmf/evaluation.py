"""Predictions against truth: errors, accuracy at distances, likelihood, searched probability.

Everything is computed per image first, so that it can be grouped by any column, and every share carries its
interval. An image without a prediction counts as wrong: nothing is dropped silently.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import metrics, sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.maps import summaries

if TYPE_CHECKING:
    from geo_mvmf.predictions import Predictions

FloatArray = npt.NDArray[np.float64]

COVERAGE_LEVELS = (0.5, 0.9)
"""Credible levels whose coverage is in the table: of a calibrated model the share is the level."""

_BLOCK = 256  # images whose mixtures are evaluated together


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What predictions are worth where the truth is known.

    Parameters
    ----------
    image_id : ndarray of str, (N,)
        The images with a truth.
    error_km : ndarray of float64, (N,)
        Great-circle distance from estimate to truth; NaN where there is no prediction.
    nll : ndarray of float64, (N,)
        Negative log-likelihood of the truth in nats per unit-sphere area; uniform is log 4 pi = 2.531.
    searched_probability : ndarray of float64, (N,)
        Mass of everything denser than the truth: uniform on 0..1 if the model is calibrated.
    searched_area_km2 : ndarray of float64, (N,)
        Area of everything denser than the truth.
    groups : ndarray of str, (N,)
        The group of each image; empty text where no grouping was asked for.
    thresholds_km : tuple of float
        Distances of the accuracy ("<=", on a sphere of 6371.0088 km).
    """

    image_id: npt.NDArray[np.object_]
    error_km: FloatArray
    nll: FloatArray
    searched_probability: FloatArray
    searched_area_km2: FloatArray
    groups: npt.NDArray[np.object_]
    thresholds_km: tuple[float, ...] = metrics.THRESHOLDS_KM

    @property
    def n(self) -> int:
        """Number of images with a truth."""
        return int(self.error_km.size)

    @property
    def accuracy(self) -> metrics.Accuracy:
        """Share of images within each threshold, with 95 % Wilson intervals."""
        return metrics.accuracy_at_km(self.error_km, self.thresholds_km)

    def chance(self, radius_km: npt.ArrayLike) -> FloatArray:
        """Share that a uniformly random guess would have within a distance.

        Parameters
        ----------
        radius_km : array_like of float, shape (...)

        Returns
        -------
        ndarray of float64, shape (...)
            (1 - cos(r / R)) / 2.
        """
        angle = np.minimum(np.asarray(radius_km, dtype=np.float64) / sphere.EARTH_RADIUS_KM, np.pi)
        return np.asarray(np.sin(angle / 2.0) ** 2)

    def table(self) -> pd.DataFrame:
        """Tidy figures with intervals, for all images and for each group.

        Returns
        -------
        DataFrame
            Columns group, measure, value, low, high (95 %), n, n_nan; accuracies are shares 0..1 of all images,
            coverages shares of those that have a prediction.
        """
        rows = _figures(self, np.ones(self.n, dtype=bool), "all")
        for group in sorted(set(self.groups) - {""}):
            rows += _figures(self, self.groups == group, str(group))
        return pd.DataFrame(rows, columns=["group", "measure", "value", "low", "high", "n", "n_nan"])

    def images(self) -> pd.DataFrame:
        """One row per image: image_id, group, error_km, nll, searched_probability, searched_area_km2."""
        return pd.DataFrame(
            {
                "image_id": self.image_id,
                "group": self.groups,
                "error_km": self.error_km,
                "nll": self.nll,
                "searched_probability": self.searched_probability,
                "searched_area_km2": self.searched_area_km2,
            }
        )


def evaluate(predictions: Predictions, truth: pd.DataFrame | None = None, *, by: str | None = None) -> Evaluation:
    """Compare predictions with the truth.

    Parameters
    ----------
    predictions : Predictions
    truth : DataFrame, optional
        Columns image_id, longitude, latitude (degrees). Without it the truth that came with the images is used
        (columns true_longitude, true_latitude).
    by : str, optional
        Column of the predictions, or of `truth`, to group by.

    Returns
    -------
    Evaluation
        Over the images that have a truth.

    Raises
    ------
    BadInputError
        If no image has a truth, an image_id is in the truth twice, or `by` is not a column.

    Examples
    --------
    >>> import geo_mvmf
    >>> predictions = geo_mvmf.open_predictions("album.nc")  # doctest: +SKIP
    >>> evaluate(predictions, pd.read_csv("truth.csv")).accuracy  # doctest: +SKIP
    """
    rows = _with_truth(predictions.rows, truth)
    known = np.flatnonzero(rows["true_longitude"].notna() & rows["true_latitude"].notna())
    if not known.size:
        raise BadInputError(_no_truth(rows, truth))
    if by is not None and by not in rows:
        raise BadInputError(f"cannot group by {by!r}: the columns are {', '.join(map(str, rows.columns))}")
    at_truth = _at_truth(predictions, rows)
    rows = rows.iloc[known]
    groups = rows[by].astype(str).to_numpy(object) if by else np.full(known.size, "", dtype=object)
    error = sphere.great_circle_distance_km(
        *(rows[c].to_numpy(float) for c in ("longitude", "latitude", "true_longitude", "true_latitude"))
    )
    nll, searched, area = at_truth[known].T
    return Evaluation(rows["image_id"].to_numpy(object), error, nll, searched, area, groups)


def _no_truth(rows: pd.DataFrame, truth: pd.DataFrame | None) -> str:
    if truth is None or not len(truth) or not len(rows):
        return f"none of the {len(rows)} predictions has a truth: give a table with image_id, longitude, latitude"
    return (
        f"none of the {len(rows)} predictions has a truth: their image_id are like {rows['image_id'].iloc[0]!r}, "
        f"those of the truth like {truth['image_id'].iloc[0]!r}; both must be the same text"
    )


def _with_truth(rows: pd.DataFrame, truth: pd.DataFrame | None) -> pd.DataFrame:
    if truth is None:
        missing = {c: np.nan for c in ("true_longitude", "true_latitude") if c not in rows}
        return rows.assign(**missing)
    truth = pd.DataFrame(truth).drop(columns="geometry", errors="ignore")
    twice = truth["image_id"][truth["image_id"].duplicated()]
    if len(twice):
        raise BadInputError(f"the truth names image_id {twice.iloc[0]!r} more than once: keep one row per image")
    renamed = {"longitude": "true_longitude", "latitude": "true_latitude"}
    truth = truth.drop(columns=[new for old, new in renamed.items() if {old, new} <= set(truth)])
    truth = truth.rename(columns=renamed)
    rows = rows.drop(columns=["true_longitude", "true_latitude"], errors="ignore")
    extra = [c for c in truth if c not in rows or c == "image_id"]
    return rows.merge(truth[extra], on="image_id", how="left", validate="many_to_one")


def _at_truth(predictions: Predictions, rows: pd.DataFrame) -> FloatArray:
    """NLL, searched probability and searched area, NaN where there is no prediction or no truth; (n, 3)."""
    result = np.full((len(rows), 3), np.nan)
    place = rows[["true_longitude", "true_latitude"]].to_numpy(float)
    wanted = np.flatnonzero(predictions.is_predicted & np.isfinite(place).all(axis=1))
    for start in range(0, wanted.size, _BLOCK):
        block = wanted[start : start + _BLOCK]
        found = summaries.at_truth(predictions.mixture_of(block), place[block, 0], place[block, 1])
        result[block, 0] = -np.asarray(found["log_density"])
        result[block, 1] = found["searched_probability"]
        result[block, 2] = found["searched_area_km2"]
    return result


def _figures(evaluation: Evaluation, chosen: npt.NDArray[np.bool_], group: str) -> list[tuple[object, ...]]:
    error = evaluation.error_km[chosen]
    accuracy = metrics.accuracy_at_km(error, evaluation.thresholds_km)
    rows: list[tuple[object, ...]] = [
        (group, f"accuracy_at_{km:g}_km", value, low, high, accuracy.n, accuracy.n_nan)
        for km, value, low, high in zip(evaluation.thresholds_km, *accuracy[:3], strict=True)
    ]
    rows += [
        (group, f"coverage_of_{level:g}_region", *_coverage(evaluation.searched_probability[chosen], level))
        for level in COVERAGE_LEVELS
    ]
    rows.append((group, "median_error_km", *metrics.median_error_km(error)))
    rows.append((group, "geo_score", *metrics.mean_with_interval(metrics.geo_score(error))))
    rows.append((group, "nll_nats", *metrics.mean_with_interval(evaluation.nll[chosen])))
    return rows


def _coverage(searched: FloatArray, level: float) -> tuple[float, float, float, int, int]:
    """Share of truths inside the region of a level, its interval, and how many images have no region to be inside."""
    known = searched[np.isfinite(searched)]
    hits = int((known <= level).sum())
    low, high = metrics.wilson_interval(hits, known.size)
    value = hits / known.size if known.size else np.nan
    return value, float(low), float(high), int(searched.size), int(searched.size - known.size)
