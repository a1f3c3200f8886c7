"""Figures of merit over test chips, with intervals over what is independent.

The months of one place are no new evidence, and in test blocks all chips of a block are right or wrong together: there
whole blocks are drawn again, elsewhere places.
"""

from __future__ import annotations

from collections.abc import Sequence

import imagery
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import resampling
from geo_mvmf.metrics import Estimate

THRESHOLDS_KM = (1.0, 25.0, 200.0, 750.0, 2500.0)
GROUPS = ((imagery.NEW, "month unseen"), (imagery.NEW, "season unseen"), (imagery.BLOCK, "month unseen"))
Columns = dict[str, tuple[npt.NDArray[np.float64], bool]]  # values, and whether their median is meant


def of(
    judged: pd.DataFrame,
    frozen: imagery.Frozen,
    groups: Sequence[tuple[str, str]] = GROUPS,
    *,
    has_interval: bool = True,
) -> pd.DataFrame:
    """One row per kind of place and month, and measure: value, low, high (95 %), images.

    Parameters
    ----------
    judged : DataFrame
        A row for every test chip: error_km, nll, and perhaps searched_probability and searched_area_km2.
    frozen : Frozen
    groups : sequence of (group, kind)
    has_interval : bool
        Whether low and high are wanted; NaN otherwise.
    """
    lines = []
    for group, kind in groups:
        rows = frozen.chosen(group, kind)
        place = clusters_of(frozen.test.iloc[rows])
        for measure, (every, is_median) in columns_of(judged.iloc[rows]).items():
            known = np.isfinite(every)  # densities are judged for some chips only
            values = every[known]
            if has_interval:
                if is_median:
                    found = resampling.median_of_clusters(values, place[known])
                else:
                    low, high = (0.0, 1.0) if is_share(measure) else (-np.inf, np.inf)
                    found = resampling.mean_of_clusters(values, place[known], bounds=(low, high))
                numbers = (found.value, found.low, found.high)
            else:
                numbers = (float((np.median if is_median else np.mean)(values)), np.nan, np.nan)
            lines.append((group, kind, measure, *numbers, len(values)))
    return pd.DataFrame(lines, columns=["places", "months", "measure", "value", "low", "high", "images"])


def columns_of(judged: pd.DataFrame) -> Columns:
    """Every measure, a number for each image."""
    error = judged["error_km"].to_numpy()
    columns: Columns = {"median_km": (error, True)}
    for km in THRESHOLDS_KM:
        columns[f"at_{km:.0f}_km"] = (error <= km).astype(float), False
    if "nll" in judged:
        columns["nll"] = judged["nll"].to_numpy(), False
    if "searched_probability" in judged:
        searched = judged["searched_probability"].to_numpy()
        columns["covered_90"] = np.where(np.isnan(searched), np.nan, searched <= 0.9), False
        columns["searched_area_km2"] = judged["searched_area_km2"].to_numpy(), True
    return columns


def is_share(measure: str) -> bool:
    """Whether a measure is a share of the chips, between 0 and 1."""
    return measure.startswith("at_") or measure == "covered_90"


def difference(
    judged: pd.DataFrame, other: pd.DataFrame, frozen: imagery.Frozen, group: str, kind: str
) -> dict[str, Estimate]:
    """How much a method is better in accuracy, worse in NLL, than another one on the same chips: paired intervals."""
    rows = frozen.chosen(group, kind)
    own, others = columns_of(judged.iloc[rows]), columns_of(other.iloc[rows])
    place = clusters_of(frozen.test.iloc[rows])
    found = {}
    for measure, (values, is_median) in own.items():
        if measure in others and not is_median:
            most = 1.0 if is_share(measure) else np.inf
            found[measure] = resampling.mean_difference(values, others[measure][0], place, bounds=(-most, most))
    return found


def clusters_of(test: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Which chips belong together: those of a block of 10 by 15 degrees in test blocks, of a place elsewhere.

    Parameters
    ----------
    test : DataFrame
        A row for every test chip: longitude, latitude, and the kind of its place as `group`.
    """
    where = test[["latitude", "longitude"]].to_numpy()
    in_block = test["group"].isin([imagery.BLOCK, imagery.BUFFERED]).to_numpy()[:, None]
    named = np.hstack([in_block, np.where(in_block, np.floor(where / (10.0, 15.0)), where)])
    return np.unique(named, axis=0, return_inverse=True)[1].ravel()


def chosen(table: pd.DataFrame, **wanted: object) -> pd.DataFrame:
    """Rows of a table whose columns have these values."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def shown(line: pd.Series, form: str = ".2f") -> str:
    """A value with its interval."""
    return f"{line['value']:{form}} ({line['low']:{form}} to {line['high']:{form}})"
