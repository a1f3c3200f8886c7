"""Methods against each other on the same images: figures side by side, and intervals of their differences.

Two methods that are judged on the same images are right and wrong together, so their intervals overlap long before they
are equally good. What tells them apart is the difference, image by image, with an interval of its own: a bootstrap that
draws the same images, or whole clusters of them, for both.
"""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import evaluation as evaluations
from geo_mvmf import metrics, resampling, sphere
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.evaluation import Evaluation
from geo_mvmf.measures import ALL, COVERAGE_LEVELS

if TYPE_CHECKING:
    from geo_mvmf.predictions import Predictions

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SAME_PLACE_KM = 0.01
"""Truths of an image that are farther apart than this are of different images."""

COLUMNS = (
    "method", "group", "measure", "estimator", "value", "low", "high", "n", "n_nan",
    "difference", "difference_low", "difference_high", "verdict",
)  # fmt: skip
"""Of the table: the figures of `Evaluation.table`, and what they are more than the first method's."""

TOO_FEW = "too few clusters to tell"
"""The verdict where a difference is of fewer clusters, or images, than `resampling.LEAST_CLUSTERS`."""

_MEDIANS = ("median_error_km", "median_searched_area_km2")
_SHARES = ("accuracy_at_", "coverage_of_")
_LESS_IS_BETTER = ("median_error_km", "mean_error_km", "median_searched_area_km2", "nll_nats")
_MORE_IS_BETTER = ("geo_score", "gain_over_training_density_nats")


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What several methods are worth on the same images.

    Parameters
    ----------
    evaluations : mapping of str to Evaluation
        By the methods' names; all of the same images in the same order, with the same clusters and groups. The first
        is what the others are compared with.
    seed : int
        Of the bootstrap.

    Examples
    --------
    >>> near = pd.DataFrame({"image_id": range(8), "longitude": 0.1, "latitude": 0.0,
    ...                      "true_longitude": 0.0, "true_latitude": 0.0})
    >>> found = compare({"near": near, "far": near.assign(longitude=30.0)}).table()
    >>> found.set_index(["method", "measure"]).loc[("far", "accuracy_at_25_km"), "verdict"]
    'worse'
    """

    evaluations: Mapping[str, Evaluation]
    seed: int = 0

    @property
    def names(self) -> list[str]:
        """The methods, in the order that they were given."""
        return list(self.evaluations)

    @property
    def n(self) -> int:
        """Number of images."""
        return next(iter(self.evaluations.values())).n

    @property
    def clusters(self) -> npt.NDArray[Any]:
        """What intervals count, (N,): clusters, or images where each is its own."""
        clusters = self.evaluations[self.names[0]].clusters
        return np.arange(self.n) if clusters is None else clusters

    @property
    def groups(self) -> dict[str, BoolArray]:
        """Which images are in each group, (N,); empty where no grouping was asked for."""
        names = self.evaluations[self.names[0]].groups
        return {str(name): names == name for name in sorted({*names} - {""})}

    @property
    def small_groups(self) -> dict[str, int]:
        """Groups of too few clusters (or images) for intervals of differences, and of how many they are."""
        sizes = {name: int(np.unique(self.clusters[chosen]).size) for name, chosen in self.groups.items()}
        return {name: size for name, size in sizes.items() if size < resampling.LEAST_CLUSTERS}

    def table(self) -> pd.DataFrame:
        """Give every figure of every method, and its difference to the first method's.

        Returns
        -------
        DataFrame
            Columns `COLUMNS`; group is "all", then each group by itself. The differences are of the images that both
            methods say something of; low and high are the ends of the 95 % interval. The verdict is "better" or
            "worse" where the interval leaves out 0 (of figures that have a better side: accuracies, errors, likelihood,
            searched area), else "not told apart"; where the group has fewer than 8 clusters (or images, where each is
            its own) "too few clusters to tell", without an interval; empty for the first method.
        """
        return self._table.copy()

    @functools.cached_property
    def _table(self) -> pd.DataFrame:
        first, rows = self.names[0], []
        single = {name: per_image(evaluation) for name, evaluation in self.evaluations.items()}
        chosen = {ALL: np.ones(self.n, dtype=bool), **self.groups}
        for name, evaluation in self.evaluations.items():
            for row in evaluation.table().to_dict("records"):
                measure, found = str(row["measure"]), (np.nan, np.nan, np.nan, "")
                if name != first and measure in single[name] and measure in single[first]:  # points have no densities
                    found = self._difference(measure, single[name], single[first], chosen[row["group"]])
                rows.append((name, *(row[column] for column in COLUMNS[1:9]), *found))
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _difference(
        self, measure: str, ours: Mapping[str, FloatArray], firsts: Mapping[str, FloatArray], chosen: BoolArray
    ) -> tuple[float, float, float, str]:
        mine, theirs, clusters = (each[chosen] for each in (ours[measure], firsts[measure], self.clusters))
        counted = clusters
        if measure in _MEDIANS:
            found = resampling.difference_of_medians(mine, theirs, clusters, seed=self.seed)
        else:
            most = _most(measure)
            found = resampling.mean_difference(mine, theirs, clusters, bounds=(-most, most), seed=self.seed)
            counted = clusters[~(np.isnan(mine) | np.isnan(theirs))]
        verdict = _verdict(measure, found.low, found.high, int(np.unique(counted).size))
        return found.value, found.low, found.high, verdict


def compare(
    methods: Mapping[str, Predictions | pd.DataFrame],
    truth: pd.DataFrame | None = None,
    *,
    by: str | None = None,
    cluster_by: str | None = None,
    block_level: int | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare methods on the same images.

    Parameters
    ----------
    methods : mapping of str to Predictions or DataFrame
        Two or more, by name: predictions, or points of any system (as `evaluate` takes them). The first is what the
        others are compared with. Names are shown as they are, and are of characters that can be.
    truth : DataFrame, optional
        As of `evaluate`.
    by : str, optional
        Column of the first method's rows, or of `truth`, to group by: every group is compared by itself, too.
    cluster_by : str, optional
        Column of the first method's rows, or of `truth`, whose values name images that belong together: intervals then
        draw whole clusters.
    block_level : int, optional
        Or: clusters are the S2 cells of this level that the true places lie in.
    seed : int
        Of the bootstrap, and of ranks among equally dense places.

    Returns
    -------
    Comparison
        Over the images that have a truth.

    Raises
    ------
    UsageError
        There are fewer than two methods, a name cannot be shown, or options contradict each other.
    BadInputError
        The methods are not of the same images with the same truth, or an image comes twice.

    Warns
    -----
    UserWarning
        As `evaluate`, with the name of the method.

    Examples
    --------
    >>> truth = {"image_id": ["a", "b"], "true_longitude": [0.0, 0.0], "true_latitude": [0.0, 0.0]}
    >>> near = pd.DataFrame({"longitude": [0.1, 0.1], "latitude": [0.0, 0.0], **truth})
    >>> compare({"near": near, "one of them": near.iloc[:1]})
    Traceback (most recent call last):
    geo_mvmf.errors.BadInputError: 'near' and 'one of them' are of different test images: 1 only of the first, like 'b';
    0 only of the other; 1 of both. Predict the same images by all methods
    """
    if not isinstance(methods, Mapping):
        raise UsageError(f"methods are {methods!r:.80}: a dictionary from names to predictions is wanted")
    if len(methods) < 2:
        raise UsageError(f"{len(methods)} method ({', '.join(methods)}): two or more are needed to compare")
    for name in methods:
        _check_name(name)
    found: dict[str, Evaluation] = {}
    for name, predictions in methods.items():
        of_first = {"by": by, "cluster_by": cluster_by, "block_level": block_level} if not found else {}
        with warnings.catch_warnings(record=True) as caught:
            try:
                found[name] = evaluations.evaluate(predictions, truth, seed=seed, **of_first)  # type: ignore[arg-type]  # two kinds of option
            except BadInputError as error:
                raise BadInputError(f"{name}: {error}") from error
        for warning in caught:
            warnings.warn(f"{name}: {warning.message}", warning.category, stacklevel=2)
    (first_name, first), *others = found.items()
    _check_once(first_name, first)
    aligned = {first_name: first}
    for name, evaluation in others:
        order = _order(first_name, first, name, evaluation)
        aligned[name] = dataclasses.replace(_taken(evaluation, order), clusters=first.clusters, groups=first.groups)
        _check_truth(first_name, first, name, aligned[name])
    return Comparison(aligned, seed)


def per_image(evaluation: Evaluation) -> dict[str, FloatArray]:
    """Give the numbers of single images that the figures are means or medians of.

    Parameters
    ----------
    evaluation : Evaluation

    Returns
    -------
    dict of str to ndarray of float64, (N,)
        By measure; NaN is an image that the figure leaves out (of a median: one that is infinitely far).

    Examples
    --------
    >>> names, error_km = np.array(["a", "b"], object), np.array([12.0, np.nan])
    >>> groups = np.full(2, "", object)
    >>> evaluation = Evaluation(names, error_km, error_km, error_km, error_km, groups, has_density=False)
    >>> per_image(evaluation)["accuracy_at_25_km"].tolist()
    [1.0, 0.0]
    """
    error = evaluation.error_km
    found = {f"accuracy_at_{km:g}_km": (error <= km).astype(float) for km in evaluation.thresholds_km}
    found |= {"median_error_km": error, "mean_error_km": error, "geo_score": metrics.geo_score(error)}
    if not evaluation.has_density:
        return found
    searched = evaluation.searched_probability
    for level in COVERAGE_LEVELS:
        found[f"coverage_of_{level:g}_region"] = np.where(np.isnan(searched), np.nan, searched <= level)
    found["mean_searched_probability"] = searched
    found["median_searched_area_km2"] = evaluation.searched_area_km2
    if evaluation.expected_error_km is not None:
        found["mean_expected_error_km"] = evaluation.expected_error_km
    found["nll_nats"] = evaluation.nll
    if evaluation.nll_training is not None:
        found["nll_of_training_density_nats"] = evaluation.nll_training
        found["gain_over_training_density_nats"] = evaluation.nll_training - evaluation.nll
    return found


def _most(measure: str) -> float:
    """The largest difference that there can be: ends of intervals are not beyond it."""
    if measure.startswith(_SHARES) or measure == "mean_searched_probability":
        return 1.0
    return metrics.BEST_GEO_SCORE if measure == "geo_score" else np.inf


def _verdict(measure: str, low: float, high: float, clusters: int) -> str:
    less = measure in _LESS_IS_BETTER
    if not (less or measure in _MORE_IS_BETTER or measure.startswith("accuracy_at_")):
        return ""
    if clusters < resampling.LEAST_CLUSTERS:
        return TOO_FEW
    if np.isnan([low, high]).any():
        return ""
    if low <= 0.0 <= high:
        return "not told apart"
    return "better" if (high < 0.0) == less else "worse"


def _check_name(name: str) -> None:
    hidden = [
        each for each in name if unicodedata.category(each) in ("Cc", "Cs")
    ]  # control characters, half characters
    if hidden or not name.strip():
        why = f"{hidden[0]!r} in it cannot be shown" if hidden else "nothing can be seen of it"
        raise UsageError(f"method's name {name!r}: {why}; give a name of visible characters")


def _check_once(name: str, evaluation: Evaluation) -> None:
    ids = pd.Series(evaluation.image_id)
    twice = ids[ids.duplicated()]
    if len(twice):
        raise BadInputError(
            f"{name!r} names {len(twice)} images more than once, like {twice.iloc[0]!r}: which are compared with which "
            "cannot be known; keep one row per image_id"
        )


def _order(first_name: str, first: Evaluation, name: str, other: Evaluation) -> IntArray:
    """Where the first method's images stand in another one's rows."""
    _check_once(name, other)
    index = pd.Index(other.image_id)
    place = index.get_indexer(pd.Index(first.image_id))
    both = int((place >= 0).sum())
    if both < first.n or both < other.n:
        alone, others = first.image_id[place < 0], other.image_id[~index.isin(first.image_id)]
        raise BadInputError(
            f"{first_name!r} and {name!r} are of different test images: {len(alone)} only of the first{_like(alone)}; "
            f"{len(others)} only of the other{_like(others)}; {both} of both. Predict the same images by all methods"
        )
    return place.astype(np.int64)


def _like(ids: npt.NDArray[np.object_]) -> str:
    return f", like {ids[0]!r}" if len(ids) else ""


def _taken(evaluation: Evaluation, order: IntArray) -> Evaluation:
    """The same evaluation with its images in another order."""
    changed: dict[str, Any] = {
        field.name: value[order]
        for field in dataclasses.fields(evaluation)
        if isinstance(value := getattr(evaluation, field.name), np.ndarray)
    }
    others = {name: error[order] for name, error in evaluation.other_errors_km.items()}
    return dataclasses.replace(evaluation, **changed, other_errors_km=others)


def _check_truth(first_name: str, first: Evaluation, name: str, other: Evaluation) -> None:
    if first.truth is None or other.truth is None:
        return
    apart = np.asarray(sphere.great_circle_distance_km(*first.truth.T, *other.truth.T))
    wrong = np.flatnonzero(apart > SAME_PLACE_KM)
    if wrong.size:
        row = int(wrong[0])
        raise BadInputError(
            f"{first_name!r} and {name!r} have different truths for {wrong.size} of {first.n} images: that of "
            f"{first.image_id[row]!r} is {first.truth[row].tolist()} and {other.truth[row].tolist()}, "
            f"{apart[row]:.3g} km apart; give one truth for all"
        )
