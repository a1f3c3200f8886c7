"""The command that compares methods on the same images: compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from geo_mvmf.commands import options, truths
from geo_mvmf.errors import UsageError
from geo_mvmf.terminal import Reporter


@click.command()
@click.argument("predictions", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--truth", type=click.Path(path_type=Path), help="Table of the true places; else what came along.")
@click.option("--truth-layer", help="Of the true places, a GeoPackage with several.")
@click.option("--truth-crs", help="Of true places in columns x and y, or in a layer that does not say it: EPSG:n.")
@click.option("--names", help="Of the methods, such as MvMF,PlaNet; else their files'.")
@click.option("--out", type=click.Path(path_type=Path), help="Report page (.html).")
@click.option("--table", type=click.Path(path_type=Path), help="All figures and differences (.csv).")
@click.option("--by", help="Column to group by, such as continent: every group is compared by itself, too.")
@click.option("--cluster-by", help="Column of images that belong together: intervals count these.")
@click.option("--block-level", type=click.IntRange(0, 30), help="Or: images in one S2 cell of this level do.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of resampling and of ranks.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def compare(
    report: Reporter,
    *,
    predictions: tuple[Path, ...],
    truth: Path | None,
    truth_layer: str | None,
    truth_crs: str | None,
    names: str | None,
    out: Path | None,
    table: Path | None,
    by: str | None,
    cluster_by: str | None,
    block_level: int | None,
    seed: int,
    overwrite: bool,
) -> None:
    """Compare methods on the same images: figures side by side, and paired intervals of their differences.

    PREDICTIONS are two or more predictions files (.nc), or tables of any system's points (.csv ...), of the same
    images; the others are compared with the first.
    """
    named = _named(predictions, names)
    for option, path, suffix in (("--out", out, ".html"), ("--table", table, ".csv")):
        if path is not None:
            options.check_suffix(path, (suffix,), option)
            options.check_new(path, overwrite=overwrite)

    from geo_mvmf import comparison as module
    from geo_mvmf import comparison_report, durable
    from geo_mvmf.inputs import point_predictions
    from geo_mvmf.measures import ALL
    from geo_mvmf.predictions import open_predictions

    places = truths.read(truth, truth_layer, truth_crs)
    found = {
        name: open_predictions(path)
        if path.suffix.lower() == ".nc"
        else point_predictions.read_point_predictions(path, needs_truth=truth is None)
        for name, path in named.items()
    }
    result = module.compare(found, places, by=by, cluster_by=cluster_by, block_level=block_level, seed=seed)
    figures = result.table()
    lines = [comparison_report.side_by_side(result).to_string(index=False)]
    differences = comparison_report.differences(result)
    written = [str(path) for path in (out, table) if path is not None]
    shown = differences[differences["Group"] == ALL].drop(columns="Group") if by and written else differences
    lines += ["", f"Differences to {result.names[0]}:", shown.to_string(index=False)]
    if len(shown) < len(differences):
        lines.append(f"{len(result.groups)} groups of {by}: in {' and '.join(written)}")
    if small := comparison_report.of_small_groups(result):
        lines.append(small)
    if out is not None:  # first: of what can fail, a table is the least
        clusters = cluster_by if block_level is None else f"S2 cells of level {block_level}"
        comparison_report.write_comparison_report(out, result, clusters=clusters or "", overwrite=overwrite)
        report.wrote("report", out)
        lines.append(f"wrote {out}")
    if table is not None:
        durable.write_text(table, figures.to_csv(index=False), overwrite=overwrite)
        report.wrote("table", table)
        lines.append(f"wrote {table}")
    report.result("\n".join(lines), counts={"compared": result.n, "methods": len(named)})


def _named(predictions: Sequence[Path], names: str | None) -> dict[str, Path]:
    """Methods by name: as they are given, or by the part of their files' names that tells them apart."""
    if len(predictions) < 2:
        raise UsageError(f"{len(predictions)} PREDICTIONS ({predictions[0]}): two or more are needed to compare")
    if names is not None:
        given = [name.strip() for name in names.split(",")]
        if len(given) != len(predictions) or not all(given):
            raise UsageError(f"--names {names!r}: {len(given)} names for {len(predictions)} PREDICTIONS; one for each")
    else:
        given = [path.stem for path in predictions]
        if len(set(given)) < len(given):  # the folders of predict all hold predictions.nc
            given = [f"{path.absolute().parent.name}/{path.stem}" for path in predictions]
    if len(set(given)) < len(given):
        raise UsageError(f"two PREDICTIONS have the name {_twice(given)!r}; tell them apart by --names")
    return dict(zip(given, predictions, strict=True))


def _twice(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])
