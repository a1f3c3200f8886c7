"""The command that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from geo_mvmf.commands import estimators, options, prediction_outputs
from geo_mvmf.commands.prediction_outputs import Earlier, Outputs
from geo_mvmf.progress import CancelledError
from geo_mvmf.terminal import Reporter

if TYPE_CHECKING:
    from geo_mvmf.predictions import Predictions


class _OneSource(click.Command):
    """Says what to do where a pattern of the shell became many images."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take arguments apart; more than one SOURCE is an error that names the folder."""
        ctx.allow_extra_args = True
        others = super().parse_args(ctx, args)
        if others and not ctx.resilient_parsing:
            first = ctx.params["source"]
            ctx.fail(
                f"one SOURCE is wanted, and {1 + len(others)} are given ({first}, {others[0]}"
                f"{', ...' if len(others) > 1 else ''}): give the folder, such as {first.parent}, or a table of images"
            )
        return others


@click.command(cls=_OneSource)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Trained model (.safetensors).")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder, or a file: .gpkg .parquet .geojson .csv .nc"
)
@click.option("--points", type=click.Path(path_type=Path), help="With --out FILE.nc: where the layer of points goes.")
@click.option("--regions", type=click.Path(path_type=Path), help="With --points: credible regions in a file apart.")
@click.option(
    "--estimator",
    type=click.Choice(estimators.ESTIMATORS),
    default="component",
    show_default=True,
    help="How a density becomes a point: centre of the heaviest component, densest place, least expected distance, or "
    "most probability within --radius-km.",
)
@click.option("--radius-km", type=float, help="For best_within, which needs it: kilometres above 0. No default.")
@click.option("--levels", default=None, help="Also write credible regions, such as 0.5,0.9 (folders: always).")
@click.option(
    "--claims",
    type=click.Choice(["none", "columns", "exif", "raster"]),
    default="none",
    show_default=True,
    help="Where images are said to be, which is judged after predicting: the table's columns longitude and latitude "
    "(or its points), EXIF, or the place of the raster.",
)
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the images; relative paths begin there.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=32, show_default=True, help="Images at once: fewer, less memory."
)
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads: read images, compute densities."
)
@click.option("--dask", metavar="ADDRESS", help="Let the workers of this Dask scheduler predict (tcp://host:8786).")
@click.option("--strict", is_flag=True, help="Fail, and write nothing, if any row fails.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def predict(
    report: Reporter,
    *,
    source: Path,
    bundle: Path,
    out: Path,
    points: Path | None,
    regions: Path | None,
    estimator: str,
    radius_km: float | None,
    levels: str | None,
    claims: str,
    root: Path | None,
    device: str,
    batch_size: int,
    workers: int,
    dask: str | None,
    strict: bool,
    overwrite: bool,
) -> None:
    """Predict where the images of SOURCE (a file, folder or table) were taken.

    A folder as --out receives predictions.nc (everything, for later maps), predictions.gpkg (styled points and
    regions) and report.html; a layer as --out has its predictions file, .nc, beside it; with --points and --regions
    each file has the name that you choose. A killed run goes on where it was when the same command is given again:
    what an interrupted run left is replaced, what anybody else wrote is not. With --overwrite, too, images that were
    all predicted before are not predicted again while an output is missing or older than the predictions file.
    """
    estimators.radius(estimator, radius_km)
    outputs = prediction_outputs.outputs_of(out, levels, points, regions)
    interrupted = prediction_outputs.earlier(outputs, overwrite=overwrite)
    earlier = interrupted or Earlier(set(outputs.after), set())
    if interrupted is None:
        options.check_new(*(outputs.after or [outputs.store]), overwrite=overwrite)

    from geo_mvmf import predicting as module
    from geo_mvmf import row_contract
    from geo_mvmf.inputs import tables
    from geo_mvmf.model.bundle import load_bundle

    report.stage("load")
    frame = tables.read_image_table(source, root=root, claimed_from=claims)
    options.check_images(source, len(frame))
    model = load_bundle(bundle, device if dask is None else "cpu")  # of a cluster, --device is its workers'
    where = f"device {model.device}" if dask is None else f"device {device} of the workers of {dask}"
    report.say(f"{options.images(len(frame))}, bundle {bundle.name}, {where}")
    if remark := prediction_outputs.left_out(source):
        report.say(remark)
    found = None
    if interrupted is not None:
        found = module.finished(model, frame, outputs.store, estimator=estimator, radius_km=radius_km, strict=strict)
    if found is not None:
        report.say(f"{outputs.store}: predicted before, from the same images; it is used")
        report.failed(options.failures(found.rows))
    else:
        options.check_new(*(path for path in outputs.after if path not in earlier.own), overwrite=overwrite)
        job = module.predict_job(
            model,
            frame,
            estimator=estimator,
            radius_km=radius_km,
            out=outputs.store,
            overwrite=overwrite,
            batch_size=batch_size,
            workers=workers,
            strict=strict,
            dask=dask,
            dask_device=device,
        )
        found = report.run(job)
    report.wrote("predictions", outputs.store)
    if row_contract.CANCELLED in found.run:
        if outputs.layers is not None:  # the points; regions and a page would take their time
            found.write(outputs.layers, overwrite=overwrite or outputs.layers in earlier.own)
            report.wrote("layers", outputs.layers)
        raise CancelledError(len(found) - int(found.run[row_contract.CANCELLED]), len(found))
    _write_others(report, outputs, found, earlier, overwrite=overwrite)
    report.result(prediction_outputs.ending(outputs, out, found.rows), counts=options.row_counts(found.rows))


def _write_others(report: Reporter, outputs: Outputs, found: Predictions, earlier: Earlier, *, overwrite: bool) -> None:
    """Write what is made from the predictions file, and is not there already."""
    report.stage("export", 0, len(outputs.after))
    options.check_new(*earlier.missing, overwrite=overwrite)  # somebody may have written there meanwhile
    if outputs.layers is not None:
        if overwrite or outputs.layers in earlier.left:
            _write_layers(report, outputs, found, overwrite=overwrite or outputs.layers in earlier.own)
        elif outputs.regions_file in earlier.left:  # a run was killed between the two
            _write_regions(report, outputs, found, overwrite=overwrite)
        report.wrote("layers", outputs.layers)
    if outputs.regions is not None:
        report.wrote("regions", outputs.regions)
    if outputs.page is not None:
        report.stage("export", 1, len(outputs.after))
        if overwrite or outputs.page in earlier.left:
            from geo_mvmf import album_report

            album_report.write_album_report(outputs.page, found, overwrite=overwrite or outputs.page in earlier.own)
        report.wrote("report", outputs.page)


def _write_layers(report: Reporter, outputs: Outputs, found: Predictions, *, overwrite: bool) -> None:
    """Write points and regions; whoever does not wait for the regions has the points."""
    from geo_mvmf import point_layer

    layers = outputs.layers or outputs.store
    job = point_layer.write_job(found.store, layers, outputs.levels, regions=outputs.regions, overwrite=overwrite)
    try:
        report.run(job)
    except CancelledError:
        if not prediction_outputs.is_made_of(layers, outputs.store):
            found.write(layers, overwrite=overwrite)
        report.wrote("layers", layers)
        raise


def _write_regions(report: Reporter, outputs: Outputs, found: Predictions, *, overwrite: bool) -> None:
    import numpy as np

    from geo_mvmf.files import vector
    from geo_mvmf.region_job import regions_job

    layer = report.run(regions_job(found.store, np.flatnonzero(found.is_predicted), outputs.levels or ()))
    run = found.run if outputs.regions is None else None
    vector.write_layers(outputs.regions_file or outputs.store, {"regions": layer}, run=run, overwrite=overwrite)
