"""The command that compares predictions, ours or another system's points, with the truth."""

from __future__ import annotations

from pathlib import Path

import click

from geo_mvmf.commands import options, truths
from geo_mvmf.commands.estimators import estimators as estimator_names
from geo_mvmf.errors import UsageError
from geo_mvmf.terminal import Reporter


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("truth", required=False, type=click.Path(path_type=Path))
@click.option("--layer", help="Of PREDICTIONS, a GeoPackage with several. Default: the only one of points.")
@click.option("--truth-layer", help="Of TRUTH, a GeoPackage with several.")
@click.option("--truth-crs", help="Of TRUTH in columns x and y, or in a layer that does not say it: EPSG:n.")
@click.option("--out", type=click.Path(path_type=Path), help="Report page (.html) or table (.csv).")
@click.option("--by", help="Column to group by, such as continent.")
@click.option("--estimators", help="Others beside the predictions' own, such as mode,best_within@200.")
@click.option("--cluster-by", help="Column of images that belong together: intervals count these.")
@click.option("--block-level", type=click.IntRange(0, 30), help="Or: images in one S2 cell of this level do.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of ranks among equal densities.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def evaluate(
    report: Reporter,
    *,
    predictions: Path,
    truth: Path | None,
    layer: str | None,
    truth_layer: str | None,
    truth_crs: str | None,
    out: Path | None,
    by: str | None,
    estimators: str | None,
    cluster_by: str | None,
    block_level: int | None,
    seed: int,
    overwrite: bool,
) -> None:
    """Compare predictions with the truth: accuracy at distances, likelihood, coverage.

    PREDICTIONS is a predictions file (.nc), or a table of any system's points (.csv ...) with the columns longitude,
    latitude, true_longitude, true_latitude; of points there is accuracy only. TRUTH is a table with image_id (or
    path), longitude, latitude; without it the truth that came with the images is used.
    """
    others = estimator_names(estimators)
    if out is not None:
        options.check_suffix(out, (".html", ".csv"))
        options.check_new(out, overwrite=overwrite)

    from geo_mvmf import album_report, durable
    from geo_mvmf import evaluation as module
    from geo_mvmf.inputs import point_predictions
    from geo_mvmf.measures import ALL
    from geo_mvmf.predictions import open_predictions
    from geo_mvmf.resampling import LEAST_CLUSTERS

    is_store = predictions.suffix.lower() == ".nc"
    if is_store and layer is not None:
        raise UsageError(f"--layer {layer!r}: {predictions} is a predictions file, which has no layers; leave it out")
    places = truths.read(truth, truth_layer, truth_crs)
    if is_store:
        found = open_predictions(predictions)
    else:
        points = point_predictions.read_point_predictions(predictions, needs_truth=truth is None, layer=layer)
    result = module.evaluate(
        found if is_store else points,
        places,
        by=by,
        estimators=others,
        cluster_by=cluster_by,
        block_level=block_level,
        seed=seed,
    )
    figures = result.table()
    shown = figures if out is None else figures[figures["group"] == ALL]
    lines = [shown.to_string(index=False, float_format=lambda value: f"{value:.4g}")]
    if len(shown) < len(figures):
        lines.append(f"{figures['group'].nunique() - 1} groups of {by}: in {out}")
    if result.few_clusters is not None:
        lines.append(f"the images are in {result.few_clusters} clusters: intervals need {LEAST_CLUSTERS}")
    if result.n_without_truth:
        total = result.n + result.n_without_truth
        lines.append(f"{result.n_without_truth} of {total} images have no truth: they are not compared")
    if out is not None and out.suffix.lower() == ".csv":
        durable.write_text(out, figures.to_csv(index=False), overwrite=overwrite)
    elif out is not None and is_store:
        album_report.write_album_report(out, found, evaluation=result, overwrite=overwrite)
    elif out is not None:
        album_report.write_points_report(out, result, title=f"How good is {predictions.name}?", overwrite=overwrite)
    if out is not None:
        report.wrote("table" if out.suffix.lower() == ".csv" else "report", out)
        lines.append(f"wrote {out}")
    report.result("\n".join(lines), counts={"compared": result.n, "without_truth": result.n_without_truth})
