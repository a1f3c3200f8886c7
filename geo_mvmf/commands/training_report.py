"""The command that tells what a training run is worth: report."""

from __future__ import annotations

from pathlib import Path

import click

from geo_mvmf.commands import options
from geo_mvmf.terminal import Reporter


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Page to write (.html).")
@click.option(
    "--learning-curve", is_flag=True, help="Also train heads on shares of the images: how much data is needed?"
)
@click.option(
    "--curve-steps", type=click.IntRange(1), default=400, show_default=True, help="Of each of these heads, at most."
)
@click.option(
    "--images", type=click.IntRange(1), default=1000, show_default=True, help="Held-out images to look at, at most."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads that read images.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def report(
    report: Reporter,
    *,
    run: Path,
    out: Path,
    learning_curve: bool,
    curve_steps: int,
    images: int,
    device: str,
    workers: int,
    overwrite: bool,
) -> None:
    """Write a page about a training run (RUN is its folder): how good the model is, where it fails, what to do next."""
    options.check_suffix(out, (".html",))
    options.check_new(out, overwrite=overwrite)

    from geo_mvmf import training_report

    wanted = training_report.ReportOptions(
        most_images=images, learning_curve=learning_curve, curve_steps=curve_steps, device=device, workers=workers
    )
    found = report.run(training_report.training_report_job(run, out, wanted, overwrite=overwrite))
    report.wrote("report", out)
    report.result("\n".join([*found.verdict, *found.troubles, f"wrote {out}"]), counts={"images": found.images})
