"""Predictions against truth: errors, accuracy at distances, likelihood, coverage, searched probability.

Everything is computed per image first, so that it can be grouped by any column, and every figure carries its
interval. An image without a prediction counts as wrong: nothing is dropped silently.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pandas.api.types import is_numeric_dtype

from geo_mvmf import baselines, measures, metrics, resampling, s2, sphere
from geo_mvmf.errors import BadInputError, UsageError, require_no_path
from geo_mvmf.inputs import point_predictions, truth_tables
from geo_mvmf.maps import estimates, ranks
from geo_mvmf.measures import COVERAGE_LEVELS
from geo_mvmf.suggestions import suggestion

if TYPE_CHECKING:
    from geo_mvmf.predictions import Predictions

__all__ = ["COVERAGE_LEVELS", "Evaluation", "evaluate"]

FloatArray = npt.NDArray[np.float64]

_BLOCK = 256  # images whose mixtures are evaluated together
_MOST_GROUPS = 24  # of a column of numbers, as of hours: of more, as of heights, hardly two images have the same
_NEARER, _MOST, _LEAST = 5.0, 0.9, 20  # swapped: so many times as near by median, so large a share, of so many images


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
        Mass of everything denser than the truth, a random rank among what is equally dense: uniform on 0..1 if the
        model is calibrated.
    searched_area_km2 : ndarray of float64, (N,)
        Area of everything denser than the truth.
    groups : ndarray of str, (N,)
        The group of each image; empty text where no grouping was asked for.
    thresholds_km : tuple of float
        Distances of the accuracy ("<=", on a sphere of 6371.0088 km).
    expected_error_km : ndarray of float64, (N,), optional
        What the densities say the error is.
    nll_training : ndarray of float64, (N,), optional
        Negative log-likelihood of the truth under the density of the training images.
    estimator : str
        Whose the errors are.
    other_errors_km : mapping of str to ndarray of float64, (N,)
        Errors of further estimators.
    clusters : ndarray, (N,), optional
        Which images belong together: then intervals count clusters.
    n_without_truth : int
        Images that are not compared.
    truth : ndarray of float64, (N, 2), optional
        True longitude and latitude, degrees.

    Examples
    --------
    >>> names, error_km = np.array(["a", "b"], object), np.array([12.0, np.nan])
    >>> evaluation = Evaluation(names, error_km, error_km, error_km, error_km, np.full(2, "", object))
    >>> evaluation.accuracy.value.tolist()
    [0.0, 0.5, 0.5, 0.5, 0.5]
    """

    image_id: npt.NDArray[np.object_]
    error_km: FloatArray
    nll: FloatArray
    searched_probability: FloatArray
    searched_area_km2: FloatArray
    groups: npt.NDArray[np.object_]
    thresholds_km: tuple[float, ...] = metrics.THRESHOLDS_KM
    expected_error_km: FloatArray | None = None
    nll_training: FloatArray | None = None
    estimator: str = ""
    other_errors_km: Mapping[str, FloatArray] = dataclasses.field(default_factory=dict)
    clusters: npt.NDArray[Any] | None = None
    n_without_truth: int = 0
    has_density: bool = True
    """Whether there are densities to judge, and not points alone."""
    truth: FloatArray | None = None

    def __repr__(self) -> str:
        return f"Evaluation({self.n} images with a truth; print or .table() shows the figures)"

    def __str__(self) -> str:
        return str(self.table().to_string(index=False, float_format="{:.4g}".format))

    @property
    def n(self) -> int:
        """Number of images with a truth."""
        return int(self.error_km.size)

    @property
    def few_clusters(self) -> int | None:
        """How many clusters there are, if too few for intervals; None if enough, or if every image is its own."""
        number = resampling.LEAST_CLUSTERS if self.clusters is None else int(np.unique(self.clusters).size)
        return number if number < resampling.LEAST_CLUSTERS else None

    @property
    def accuracy(self) -> metrics.Accuracy:
        """Share of images within each threshold, with 95 % Wilson intervals."""
        return metrics.accuracy_at_km(self.error_km, self.thresholds_km)

    @property
    def errors_by_estimator(self) -> dict[str, FloatArray]:
        """Errors in km of every estimator, the predictions' own first."""
        return {self.estimator: self.error_km, **self.other_errors_km}

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
            Columns group, measure, estimator, value, low, high (95 %), n, n_nan; accuracies are shares 0..1 of all
            images, coverages shares of those that have a prediction. docs/evaluation.md defines every measure.
        """
        return measures.tidy(self)

    def curve(self, levels: npt.ArrayLike | None = None) -> pd.DataFrame:
        """Give how many truths lie inside the region of each level: the P-P curve.

        Parameters
        ----------
        levels : array_like of float, optional
            Probabilities of regions; default 0, 0.01, ... 1.

        Returns
        -------
        DataFrame
            level, share of truths inside, and low, high: where a calibrated model has 95 % of its shares.
        """
        wanted = np.linspace(0.0, 1.0, 101) if levels is None else np.asarray(levels, dtype=np.float64)
        return measures.curve(self.searched_probability, wanted)

    def images(self) -> pd.DataFrame:
        """One row per image: image_id, group, error_km, nll, searched_probability, searched_area_km2, ..."""
        frame = pd.DataFrame(
            {
                "image_id": self.image_id,
                "group": self.groups,
                "error_km": self.error_km,
                "nll": self.nll,
                "searched_probability": self.searched_probability,
                "searched_area_km2": self.searched_area_km2,
            }
        )
        for name in ("expected_error_km", "nll_training"):
            if getattr(self, name) is not None:
                frame[name] = getattr(self, name)
        return frame.assign(**{f"error_km_{name}": error for name, error in self.other_errors_km.items()})


def evaluate(
    predictions: Predictions | pd.DataFrame,
    truth: pd.DataFrame | None = None,
    *,
    by: str | None = None,
    estimators: Sequence[str] = (),
    cluster_by: str | None = None,
    block_level: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Compare predictions with the truth.

    Parameters
    ----------
    predictions : Predictions or DataFrame
        A DataFrame holds points of any system: longitude, latitude, true_longitude, true_latitude in degrees, NaN
        where it made no prediction. Then there are figures of points only.
    truth : DataFrame, optional
        Columns image_id, longitude, latitude (degrees). Of a DataFrame of points every image of the truth counts: one
        that it does not name was not predicted. Without it the truth that came with the images is used
        (columns true_longitude, true_latitude).
    by : str, optional
        Column of the predictions, or of `truth`, to group by; "all" is no name of a group, and of numbers there are 24
        different ones at most.
    estimators : sequence of str
        Further estimators, computed from the densities, whose accuracy is wanted beside that of the predictions' own:
        as `estimate` names them; one with a radius is written as best_within@200.
    cluster_by : str, optional
        Column whose values name images that belong together; intervals then count these clusters.
    block_level : int, optional
        Clusters are the S2 cells of this level, 0..30, that the true places lie in.
    seed : int
        Of the random ranks among equally dense places.

    Returns
    -------
    Evaluation
        Over the images that have a truth.

    Raises
    ------
    BadInputError
        If no image has a truth, an image_id is in the truth twice, a column is missing, a group is named "all", a
        column of numbers has too many to group by, or a point is no place.
    UsageError
        If options contradict each other.

    Warns
    -----
    UserWarning
        If longitude and latitude of the truth may be swapped: of 20 estimates or more nine of ten are nearer to it the
        other way round, and the median distance is more than five times what it is then.
        If a layer says the places of points by its geometry alone.

    Examples
    --------
    >>> points = pd.DataFrame({"longitude": [7.0], "latitude": [50.0], "true_longitude": 7.0, "true_latitude": 51.0})
    >>> evaluate(points).error_km.round(1).tolist()
    [111.2]
    """
    require_no_path("predictions", predictions, "open_predictions reads a predictions file, pandas a table of points")
    require_no_path("truth", truth, "read_image_table makes a table of a file")
    if cluster_by is not None and block_level is not None:
        raise UsageError(f"cluster_by {cluster_by!r} and block_level {block_level}: choose one")
    if block_level is not None and not 0 <= block_level <= s2.MAX_LEVEL:
        raise UsageError(f"block_level {block_level} is not in 0..{s2.MAX_LEVEL}")
    if isinstance(predictions, pd.DataFrame):
        if estimators:
            raise UsageError(f"estimators {', '.join(estimators)} need densities, and points have none")
        table = point_predictions.read_point_predictions(predictions, needs_truth=truth is None)
        rows = truth_tables.with_truth(table, truth, outer=True)
    else:
        rows = truth_tables.with_truth(predictions.rows, truth)
    known = np.flatnonzero(rows["true_longitude"].notna() & rows["true_latitude"].notna())
    if not known.size:
        raise BadInputError(truth_tables.none_known(rows, truth))
    estimate = rows[list(point_predictions.PREDICTED)].to_numpy(float)
    shared: dict[str, Any] = {
        "image_id": rows["image_id"].to_numpy(object)[known],
        "error_km": _distance(rows, estimate)[known],
        "groups": _groups(rows.iloc[known], by),
        "clusters": _clusters(rows.iloc[known], cluster_by, block_level),
        "n_without_truth": len(rows) - known.size,
        "truth": rows[list(point_predictions.TRUE)].to_numpy(float)[known],
    }
    if swapped := _swapped(estimate[known], shared["truth"], shared["error_km"]):
        warnings.warn(swapped, stacklevel=2)
    if isinstance(predictions, pd.DataFrame):
        nothing = np.full(known.size, np.nan)
        densities: dict[str, Any] = {"nll": nothing, "searched_probability": nothing, "searched_area_km2": nothing}
        return Evaluation(**shared, **densities, has_density=False)
    judged = _Judged.of(predictions, rows, estimators, seed)
    return Evaluation(**shared, **judged.of_rows(known), estimator=_own_estimator(rows))


@dataclasses.dataclass(frozen=True)
class _Judged:
    """What the densities say of every row; NaN where there is no prediction or no truth."""

    columns: Mapping[str, FloatArray]
    errors: Mapping[str, FloatArray]

    @classmethod
    def of(cls, predictions: Predictions, rows: pd.DataFrame, estimators: Sequence[str], seed: int) -> _Judged:
        place = rows[list(point_predictions.TRUE)].to_numpy(float)
        # one number per row of the predictions, whatever has a truth and in whatever order
        uniform = np.random.default_rng(seed).random(len(rows))
        names = ("log_density", "searched_probability", "searched_area_km2")
        found = {name: np.full(len(rows), np.nan) for name in names}
        points = {name: np.full((len(rows), 2), np.nan) for name in estimators}
        wanted = np.flatnonzero(predictions.is_predicted & np.isfinite(place).all(axis=1))
        for start in range(0, wanted.size, _BLOCK):
            block = wanted[start : start + _BLOCK]
            mixture = predictions.mixture_of(block)
            ranked = ranks.ranks(mixture, place[block, 0], place[block, 1], uniform[block])
            for name in names:
                found[name][block] = ranked[name]
            for name in estimators:
                points[name][block] = _estimated(mixture, name)
        components = predictions.store.components
        columns = {
            "nll": -found["log_density"],
            "searched_probability": found["searched_probability"],
            "searched_area_km2": found["searched_area_km2"],
            "nll_training": baselines.training_nll(components.cell_ids, components.training_counts, *place.T),
        }
        if "expected_error_km" in rows:
            columns["expected_error_km"] = rows["expected_error_km"].to_numpy(float)
        return cls(columns, {name: _distance(rows, estimate) for name, estimate in points.items()})

    def of_rows(self, known: npt.NDArray[np.int64]) -> dict[str, Any]:
        columns: dict[str, Any] = {name: values[known] for name, values in self.columns.items()}
        if np.isnan(columns["nll_training"]).all():  # the store does not know the training images
            columns["nll_training"] = None
        return columns | {"other_errors_km": {name: error[known] for name, error in self.errors.items()}}


def _estimated(mixture: Any, name: str) -> FloatArray:
    estimator, _, radius = name.partition("@")
    try:
        return estimates.estimate(mixture, estimator, float(radius) if radius else None)
    except ValueError as error:
        raise UsageError(f"estimator {name!r}: {error}") from error


def _distance(rows: pd.DataFrame, estimate: FloatArray) -> FloatArray:
    truth = (rows[name].to_numpy(float) for name in point_predictions.TRUE)
    return np.asarray(sphere.great_circle_distance_km(estimate[:, 0], estimate[:, 1], *truth))


def _swapped(estimate: FloatArray, truth: FloatArray, error_km: FloatArray) -> str:
    """Compare the estimates with the truth the other way round, (N, 2) and (N, 2)."""
    found = np.isfinite(error_km)
    if found.sum() < _LEAST or (np.abs(truth[:, 0]) > 90.0).any():
        return ""
    other_km = np.asarray(sphere.great_circle_distance_km(*estimate[found].T, *truth[found, ::-1].T))
    here, there = (float(np.median(each)) for each in (error_km[found], other_km))
    if here <= _NEARER * there or (other_km < error_km[found]).mean() < _MOST:
        return ""
    return (
        f"half of {other_km.size} estimates are more than {here:,.0f} km from the truth, with its longitude and "
        f"latitude exchanged {there:,.0f} km; if they are swapped there, or in the predictions, exchange the columns"
    )


def _own_estimator(rows: pd.DataFrame) -> str:
    names = set(rows["estimator"].dropna()) if "estimator" in rows else set()
    return str(names.pop()) if len(names) == 1 else ""


def _named(rows: pd.DataFrame, column: str) -> npt.NDArray[np.object_]:
    """Values of a column as text; what is missing has a name, too."""
    if column not in rows:
        meant, has = suggestion(column, rows.columns), ", ".join(map(str, rows.columns))
        raise BadInputError(f"cannot group by {column!r}{meant or ':'} the columns are {has}")
    values = rows[column]
    return values.astype(str).where(values.notna() & (values.astype(str) != ""), "unknown").to_numpy(object)


def _groups(rows: pd.DataFrame, by: str | None) -> npt.NDArray[np.object_]:
    if by is None:
        return np.full(len(rows), "", dtype=object)
    names = _named(rows, by)
    if measures.ALL in names:
        raise BadInputError(f"cannot group by {by!r}: {measures.ALL!r} in it stands for all images here; rename it")
    values = rows[by]
    if is_numeric_dtype(values) and (number := values.nunique()) > _MOST_GROUPS:
        raise BadInputError(
            f"cannot group by {by!r}: it holds {number} different numbers, and more than {_MOST_GROUPS} are no groups; "
            "give a column of names, such as ranges of these numbers, or codes as text (in a CSV: led by a letter)"
        )
    return names


def _clusters(rows: pd.DataFrame, cluster_by: str | None, block_level: int | None) -> npt.NDArray[Any] | None:
    if block_level is not None:
        longitude, latitude = (rows[name].to_numpy(float) for name in point_predictions.TRUE)
        return s2.cell_ids(sphere.to_directions(longitude, latitude), block_level)
    return None if cluster_by is None else _named(rows, cluster_by)
