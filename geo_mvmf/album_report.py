"""Reports of an album: the map of all predictions, the evaluation where truth is known, the failures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from geo_mvmf import evaluation as evaluations
from geo_mvmf import pictures as drawing
from geo_mvmf import report, resampling
from geo_mvmf.row_contract import unlike_training

if TYPE_CHECKING:
    import pandas as pd

    from geo_mvmf.evaluation import Evaluation
    from geo_mvmf.predictions import Predictions


def write_album_report(
    path: str | os.PathLike[str],
    predictions: Predictions,
    *,
    evaluation: Evaluation | None = None,
    title: str = "Where were these images taken?",
    introduction: Sequence[str] = (),
    pictures: Sequence[tuple[str, bytes]] = (),
    overwrite: bool = False,
) -> None:
    """Write one self-contained page about predictions.

    Parameters
    ----------
    path : path
        Ends in .html.
    predictions : Predictions
    evaluation : Evaluation, optional
        Default: made where the predictions came with a truth.
    title : str
    introduction : sequence of str
        Paragraphs before the one that counts the images.
    pictures : sequence of (str, bytes)
        Captions and PNG files, shown after the map of all predictions.
    overwrite : bool
        Whether an existing page may be replaced.

    Raises
    ------
    OutputError
        If the page exists or cannot be written.

    Examples
    --------
    >>> from geo_mvmf.predictions import open_predictions
    >>> write_album_report("report.html", open_predictions("album.nc"))  # doctest: +SKIP
    """
    rows = predictions.rows
    if evaluation is None and _has_truth(rows):
        evaluation = evaluations.evaluate(predictions)
    points = predictions.to_geodataframe()
    drawn = [("Predicted places, coloured by the radius that holds 90 %", drawing.points_picture(points)), *pictures]
    tables = []
    compared = []
    if evaluation is not None:
        compared.append(_compared(evaluation))
        drawn += _curves(evaluation)
        tables.append(("Figures", report.figures(evaluation)))
    failed = rows.loc[rows["status"] != "ok", ["path", "status", "message"]]
    if len(failed):
        tables.append(("Images without a prediction", failed))
    found = ", ".join(f"{number} {status}" for status, number in rows["status"].value_counts().items())
    unlike = [f"{line}." for line in [unlike_training(rows)[1]] if line]
    report.write_page(
        path,
        title=title,
        introduction=[*introduction, f"{len(rows)} images; status: {found}.", *unlike, *compared],
        pictures=drawn,
        tables=tables,
        run=predictions.run,
        overwrite=overwrite,
    )


def write_points_report(
    path: str | os.PathLike[str], evaluation: Evaluation, *, title: str, overwrite: bool = False
) -> None:
    """Write one self-contained page about point predictions, of any system.

    Parameters
    ----------
    path : path
        Ends in .html.
    evaluation : Evaluation
        Of points.
    title : str
    overwrite : bool
        Whether an existing page may be replaced.

    Raises
    ------
    OutputError
        If the page exists or cannot be written.

    Examples
    --------
    >>> from geo_mvmf.evaluation import evaluate
    >>> write_points_report("report.html", evaluate(points), title="Another system")  # doctest: +SKIP
    """
    report.write_page(
        path,
        title=title,
        introduction=[_compared(evaluation)],
        pictures=_curves(evaluation),
        tables=[("Figures", report.figures(evaluation))],
        overwrite=overwrite,
    )


def _compared(evaluation: Evaluation) -> str:
    few = evaluation.few_clusters
    said = f" They are in {few} clusters: intervals need {resampling.LEAST_CLUSTERS}." if few is not None else ""
    return f"{evaluation.n} images have a known place and are compared; {evaluation.n_without_truth} have none.{said}"


def _curves(evaluation: Evaluation) -> list[tuple[str, bytes]]:
    drawn = [("How far the estimates are from the truth", drawing.accuracy_picture(evaluation))]
    if evaluation.has_density:
        drawn.append(("Is the probability true? Inside the grey band it is", drawing.coverage_picture(evaluation)))
    return drawn


def _has_truth(rows: pd.DataFrame) -> bool:
    places = ("true_longitude", "true_latitude")
    return all(name in rows for name in places) and bool(rows[list(places)].notna().all(axis=1).any())
