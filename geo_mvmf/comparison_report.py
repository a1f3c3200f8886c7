"""The page of a comparison: methods side by side, their differences with intervals, their curves in one picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geo_mvmf import pictures, report, resampling
from geo_mvmf.comparison import Comparison
from geo_mvmf.map_axes import GREY, figure_of, png
from geo_mvmf.measures import ALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#7a0177", "#1b7837", "#d95f02", "#2c7fb8", "#8c6d31", "#222222", "#e7298a", "#66a61e")
_HOW_TO_READ = (
    "Two methods are told apart by the interval of their difference, in which the same images are drawn for both, and "
    "not by whether their own intervals overlap. Of twenty such differences between methods that are equally good, one "
    "is expected to leave out 0 by chance."
)
_STYLES = ("-", "--", ":", "-.")  # a second set of eight differs by these, and all of them differ without colours


def write_comparison_report(
    path: str | os.PathLike[str], comparison: Comparison, *, clusters: str = "", overwrite: bool = False
) -> None:
    """Write one self-contained page about methods on the same images.

    Parameters
    ----------
    path : path
        Ends in .html.
    comparison : Comparison
    clusters : str
        What intervals count where images belong together, in words; empty: images.
    overwrite : bool
        Whether an existing page may be replaced.

    Raises
    ------
    OutputError
        If the page exists or cannot be written.

    Examples
    --------
    >>> from geo_mvmf.comparison import compare
    >>> write_comparison_report("report.html", compare({"mvmf": ours, "planet": planet}))  # doctest: +SKIP
    """
    first, *others = comparison.names
    images = f"{comparison.n} images have a known place, and all {len(comparison.names)} methods are judged on them."
    counted = clusters or "images, as if each were independent of the others"
    pictures = [("How far the estimates are from the truth", accuracy_curves(comparison))]
    if any(evaluation.has_density for evaluation in comparison.evaluations.values()):
        pictures.append(("Is the probability true? On the diagonal it is", coverage_curves(comparison)))
    report.write_page(
        path,
        title=f"{', '.join(others)} against {first}",
        introduction=[images, _of_intervals(comparison, counted)],
        pictures=pictures,
        tables=[
            ("Figures", side_by_side(comparison)),
            (f"Differences to {first}", differences(comparison)),
        ],
        overwrite=overwrite,
    )


def _of_intervals(comparison: Comparison, counted: str) -> str:
    least, few_clusters = resampling.LEAST_CLUSTERS, comparison.evaluations[comparison.names[0]].few_clusters
    if few_clusters is not None:
        return (
            f"The images are in {few_clusters} clusters ({counted}). Intervals need {least}: of fewer "
            "nothing can be told, and none are shown."
        )
    few = f" They need {least} images: of fewer nothing can be told." if comparison.n < least else ""
    return f"Intervals hold 95 % and count {counted}.{few} {_HOW_TO_READ} {of_small_groups(comparison)}".rstrip()


def of_small_groups(comparison: Comparison) -> str:
    """Say which groups are too small for intervals of differences.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    str
        Empty where none is.

    Examples
    --------
    >>> from geo_mvmf.comparison import compare
    >>> points = pd.DataFrame({"image_id": ["a", "b"], "longitude": 0.0, "latitude": 0.0, "land": ["Mali", "Peru"],
    ...                        "true_longitude": 0.0, "true_latitude": 1.0})
    >>> of_small_groups(compare({"one": points, "two": points}, by="land"))
    'Groups of fewer than 8 images, of which nothing can be told: Mali (1), Peru (1).'
    """
    small = comparison.small_groups
    counted = "images" if comparison.evaluations[comparison.names[0]].clusters is None else "clusters"
    shown = ", ".join(f"{name} ({size})" for name, size in small.items())
    least = resampling.LEAST_CLUSTERS
    return f"Groups of fewer than {least} {counted}, of which nothing can be told: {shown}." if small else ""


def side_by_side(comparison: Comparison) -> pd.DataFrame:
    """Put the figures of all methods beside each other, in words.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    DataFrame
        Text: Measure, a column of each method with the value and its 95 % interval, To compare. The methods' columns
        have their names, whatever these are, and are those between the first and the last.

    Examples
    --------
    >>> from geo_mvmf.comparison import compare
    >>> points = pd.DataFrame({"image_id": ["a", "b"], "longitude": 0.0, "latitude": 0.0,
    ...                        "true_longitude": 0.0, "true_latitude": 1.0})
    >>> side_by_side(compare({"one": points, "two": points})).columns.tolist()
    ['Measure', 'one', 'two', 'To compare']
    """
    columns, notes = [], pd.Series(dtype=object)
    for evaluation in comparison.evaluations.values():
        figures = report.figures(evaluation)
        figures = figures[figures["Group"] == ALL] if "Group" in figures else figures
        figures = figures.set_index("Measure")
        interval = figures["95 % interval"].map(lambda text: f" ({text})" if text else "")
        columns.append(figures["Value"] + interval)
        notes = figures["To compare"].combine_first(notes)
    order = list(dict.fromkeys(measure for column in columns for measure in column.index))
    parts = [pd.Series(order, index=order), *(column.reindex(order) for column in (*columns, notes))]
    table = pd.concat(parts, axis=1, ignore_index=True).fillna("").reset_index(drop=True)
    table.columns = pd.Index(["Measure", *comparison.names, "To compare"])  # by place: a name may be that of a column
    return table


def differences(comparison: Comparison) -> pd.DataFrame:
    """Put the differences to the first method into words.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    DataFrame
        Text: Group (where there are groups; "all" first), Method, Measure, Difference, 95 % interval, Verdict; of the
        figures that have a better side.

    Examples
    --------
    >>> from geo_mvmf.comparison import compare
    >>> points = pd.DataFrame({"image_id": ["a", "b"], "longitude": 0.0, "latitude": 0.0,
    ...                        "true_longitude": 0.0, "true_latitude": 1.0})
    >>> differences(compare({"one": points, "two": points}))["Verdict"].unique().tolist()
    ['too few clusters to tell']
    """
    table = comparison.table()
    rows = [
        (
            row["group"],
            row["method"],
            words(row["measure"]),
            *_amounts(row["measure"], *(row[column] for column in _DIFFERENCE)),
            row["verdict"],
        )
        for row in table[table["verdict"] != ""].to_dict("records")
    ]
    names = ["Group", "Method", "Measure", "Difference", "95 % interval", "Verdict"]
    # the groups in their order, and in each all methods
    found = pd.DataFrame(rows, columns=names).sort_values(
        "Group", kind="stable", key=lambda group: group.map([ALL, *comparison.groups].index), ignore_index=True
    )
    return found if comparison.groups else found.drop(columns="Group")


_DIFFERENCE = ("difference", "difference_low", "difference_high")


def words(measure: str) -> str:
    """Say a measure's name in words.

    Parameters
    ----------
    measure : str
        As in `Comparison.table`.

    Returns
    -------
    str

    Examples
    --------
    >>> words("accuracy_at_25_km"), words("nll_nats")
    ('within 25 km', 'negative log-likelihood')
    """
    if measure.startswith("accuracy_at_"):
        return f"within {measure.removeprefix('accuracy_at_').removesuffix('_km')} km"
    return {"nll_nats": "negative log-likelihood", "geo_score": "GeoScore"}.get(
        measure, measure.removesuffix("_nats").removesuffix("_km2").removesuffix("_km").replace("_", " ")
    )


def _amounts(measure: str, value: float, low: float, high: float) -> tuple[str, str]:
    """A difference and its interval with their unit."""
    factor, unit = 1.0, ""
    if measure.startswith("accuracy_at_"):
        factor, unit = 100.0, "points"
    elif measure.endswith("_km2"):
        unit = "km²"
    else:
        unit = {"km": "km", "nats": "nats"}.get(measure.rpartition("_")[2], "")
    shown = [_signed(factor * each) for each in (value, low, high)]
    interval = "unknown" if np.isnan([low, high]).any() else f"{shown[1]} to {shown[2]}"
    return f"{shown[0]}\N{NO-BREAK SPACE}{unit}".rstrip(), interval


def _signed(value: float) -> str:
    digits = 0 if abs(value) >= 100.0 else 1 if abs(value) >= 10.0 else 2
    return f"{value:+,.{digits}f}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def accuracy_curves(comparison: Comparison) -> bytes:
    """Draw the share of images within each distance, a curve for each method.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> from geo_mvmf.comparison import compare
    >>> points = pd.DataFrame({"image_id": ["a", "b"], "longitude": 0.0, "latitude": 0.0,
    ...                        "true_longitude": 0.0, "true_latitude": 1.0})
    >>> accuracy_curves(compare({"one": points, "two": points}))[1:4]
    b'PNG'
    """
    figure, axes = figure_of(8.0, 4.4)
    evaluations = list(comparison.evaluations.values())
    for (colour, style), evaluation in zip(_curves(len(evaluations)), evaluations, strict=True):
        ends, share = pictures.within_distance(evaluation.error_km, evaluation.n)
        axes.step(ends, share, where="post", color=colour, lw=1.8, ls=style, label=_METHOD)
    radius = np.geomspace(0.5, 20100.0, 200)
    axes.plot(radius, evaluations[0].chance(radius), color=GREY, lw=1.0, ls="--", label="chance")
    pictures.label_distances(axes, evaluations[0].thresholds_km)
    _legend(axes, comparison.names)
    return png(figure)


def coverage_curves(comparison: Comparison) -> bytes:
    """Draw how often the truth lies inside the p-region against p, a curve for each method that has densities.

    Parameters
    ----------
    comparison : Comparison

    Returns
    -------
    bytes
        A PNG file.

    Examples
    --------
    >>> from geo_mvmf.evaluation import Evaluation
    >>> names, error_km = np.array(["a", "b"], object), np.array([12.0, 340.0])
    >>> evaluation = Evaluation(names, error_km, np.zeros(2), np.array([0.2, 0.7]), error_km, np.full(2, "", object))
    >>> coverage_curves(Comparison({"one": evaluation, "two": evaluation}))[1:4]
    b'PNG'
    """
    figure, axes = figure_of(7.8, 5.0)
    levels, drawn = np.linspace(0.0, 1.0, 401), False
    evaluations = comparison.evaluations.values()
    for (colour, style), evaluation in zip(_curves(len(evaluations)), evaluations, strict=True):
        if not evaluation.has_density:
            continue
        curve = evaluation.curve(levels)
        if not drawn:
            band = "calibrated (95 % band)"
            axes.fill_between(curve["level"], curve["low"], curve["high"], color="#dddddd", label=band)
            drawn = True
        axes.plot(curve["level"], curve["share"], color=colour, lw=1.8, ls=style, label=_METHOD)
    axes.plot([0, 1], [0, 1], color="#aaaaaa", lw=0.8)
    pictures.label_coverage(axes, 0.93)
    shown = [name for name, evaluation in comparison.evaluations.items() if evaluation.has_density]
    _legend(axes, shown, bbox_to_anchor=(1.02, 1.0))  # curves may be anywhere inside
    return png(figure)


def _curves(number: int) -> list[tuple[str, str]]:
    """Colour and line of each method's curve."""
    return [(_COLOURS[i % len(_COLOURS)], _STYLES[i % len(_STYLES)]) for i in range(number)]


_METHOD = "method"  # label of every method's curve, until its legend entry has the name


def _legend(axes: Axes, names: Sequence[str], *, bbox_to_anchor: tuple[float, float] | None = None) -> None:
    """Name the curves in their order, to the letter: matplotlib would drop "_a" and take "$5 of $10" for a formula."""
    waiting = iter(names)
    for text in axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=bbox_to_anchor).get_texts():
        if text.get_text() == _METHOD:
            text.set_parse_math(False)
            text.set_text(next(waiting))
