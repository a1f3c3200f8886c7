"""The command that predicts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from geo_mvmf.commands import estimators, options
from geo_mvmf.errors import UsageError
from geo_mvmf.progress import CancelledError
from geo_mvmf.terminal import Reporter

if TYPE_CHECKING:
    from geo_mvmf.predictions import Predictions

_SUFFIXES = (".nc", ".gpkg", ".parquet", ".geoparquet", ".geojson", ".csv")
_FOLDER_LEVELS = (0.5, 0.9)


class Outputs(NamedTuple):
    """What one --out stands for.

    Attributes
    ----------
    store : Path
        The predictions file: everything, for later maps.
    layers : Path or None
        Points, and regions where asked for.
    regions : Path or None
        Regions in a file of their own, and not with the points.
    page : Path or None
        The report.
    levels : tuple of float or None
        Of the credible regions.
    """

    store: Path
    layers: Path | None
    regions: Path | None
    page: Path | None
    levels: tuple[float, ...] | None

    @property
    def after(self) -> list[Path]:
        """Files that are made from the predictions file."""
        found = [path for path in (self.layers, self.regions, self.page) if path is not None]
        if self.layers is not None and self.levels and self.regions is None:
            from geo_mvmf.files import vector

            found += vector.paths(self.layers, ("points", "regions"))[1:]
        return found


def _outputs(out: Path, levels: str | None, points: Path | None, regions: Path | None) -> Outputs:
    wanted = options.levels(levels)
    if points is not None or regions is not None:
        return _named_outputs(out, wanted, points, regions)
    if not out.suffix or os.path.isdir(out):  # noqa: PTH112 (no error where a name is too long)
        levels_wanted = wanted or _FOLDER_LEVELS
        return Outputs(out / "predictions.nc", out / "predictions.gpkg", None, out / "report.html", levels_wanted)
    options.check_suffix(out, _SUFFIXES)
    if out.suffix.lower() == ".nc":
        return Outputs(out, None, None, None, None)
    from geo_mvmf.files import vector

    vector.check_suffix(out)
    return Outputs(out.with_suffix(".nc"), out, None, None, wanted)


def _named_outputs(out: Path, levels: tuple[float, ...] | None, points: Path | None, regions: Path | None) -> Outputs:
    """What is said by naming files one by one."""
    from geo_mvmf.files import vector

    if out.suffix.lower() != ".nc":
        raise UsageError(f"{out}: with --points and --regions, --out is the predictions file and ends in .nc")
    for path in (points, regions):
        if path is not None:
            vector.check_suffix(path)
    if points is None:
        raise UsageError(f"--regions {regions} goes with --points: `geo-mvmf regions` makes them alone")
    if regions is not None and points.absolute() == regions.absolute():
        raise UsageError(f"--points and --regions are both {points}: leave --regions out, and give --levels")
    return Outputs(out, points, regions, None, levels or (_FOLDER_LEVELS if regions is not None else None))


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Trained model (.safetensors).")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder, or a file: .gpkg .parquet .geojson .csv .nc"
)
@click.option("--points", type=click.Path(path_type=Path), help="With --out FILE.nc: where the layer of points goes.")
@click.option("--regions", type=click.Path(path_type=Path), help="With --points: credible regions in a file apart.")
@click.option("--estimator", type=click.Choice(estimators.ESTIMATORS), default="component", show_default=True)
@click.option("--radius-km", type=float, help="For best_within: the distance within which most probability shall lie.")
@click.option("--levels", default=None, help="Also write credible regions, such as 0.5,0.9 (folders: always).")
@click.option("--claims", type=click.Choice(["none", "columns", "exif", "raster"]), default="none", show_default=True)
@click.option("--root", type=click.Path(path_type=Path), help="Folder that relative paths begin in.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads: read images, compute densities."
)
@click.option("--dask", metavar="ADDRESS", help="Let the workers of this Dask scheduler predict (tcp://host:8786).")
@click.option("--strict", is_flag=True, help="Fail, and write nothing, if any row fails.")
@click.option("--overwrite", is_flag=True)
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
    each file has the name that you choose. A killed run goes on where it was when the same command is given again.
    """
    estimators.radius(estimator, radius_km)
    outputs = _outputs(out, levels, points, regions)
    waiting = {path for path in outputs.after if not os.path.lexists(path)}
    may_go_on = _may_go_on(outputs, waiting)
    if not may_go_on:
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
    report.say(f"{len(frame)} images, bundle {bundle.name}, {where}")
    found = None
    if may_go_on and not overwrite:
        found = module.finished(model, frame, outputs.store, estimator=estimator, radius_km=radius_km, strict=strict)
        if module.was_cancelled(outputs.store, model, frame, estimator=estimator, radius_km=radius_km):
            waiting |= _without_rest(outputs)
    if found is not None:
        report.say(f"{outputs.store}: predicted before, from the same images; it is used")
        report.failed(options.failures(found.rows))
    else:
        options.check_new(*outputs.after, overwrite=overwrite)
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
            found.write(outputs.layers, overwrite=overwrite)
            report.wrote("layers", outputs.layers)
        raise CancelledError(len(found) - int(found.run[row_contract.CANCELLED]), len(found))
    _write_others(report, outputs, found, waiting, overwrite=overwrite)
    written = [out] if outputs.page is not None else [*outputs.after, outputs.store]
    report.result(
        f"status: {options.counts(found.rows['status'])}\n"
        f"wrote {' and '.join(map(str, written))}" + (" (for further maps)" if len(written) > 1 else ""),
        counts=options.row_counts(found.rows),
    )


def _may_go_on(outputs: Outputs, waiting: set[Path]) -> bool:
    """Tell whether a run may have been killed between its files, or cancelled."""
    if not os.path.lexists(outputs.store):
        return False
    if waiting:
        return True
    from geo_mvmf.predicting import was_cancelled

    return was_cancelled(outputs.store)


def _without_rest(outputs: Outputs) -> set[Path]:
    """Take away the layer that a cancelled run wrote: a run that is killed now must find it missing."""
    if outputs.layers is None:
        return set()
    outputs.layers.unlink(missing_ok=True)
    return {outputs.layers}


def _write_others(
    report: Reporter, outputs: Outputs, found: Predictions, waiting: set[Path], *, overwrite: bool
) -> None:
    """Write what is made from the predictions file, and is not there already."""
    from geo_mvmf import point_layer
    from geo_mvmf.files import vector

    report.stage("export", 0, len(outputs.after))
    if outputs.layers is not None:
        if overwrite or outputs.layers in waiting:
            job = point_layer.write_job(
                found.store, outputs.layers, outputs.levels, regions=outputs.regions, overwrite=overwrite
            )
            report.run(job)
        elif outputs.regions in waiting:  # a run was killed between the two
            layer = found.credible_regions(outputs.levels or ())
            vector.write_layers(outputs.regions, {"regions": layer}, overwrite=overwrite)
        report.wrote("layers", outputs.layers)
    if outputs.regions is not None:
        report.wrote("regions", outputs.regions)
    if outputs.page is not None:
        report.stage("export", 1, len(outputs.after))
        if overwrite or outputs.page in waiting:
            from geo_mvmf import album_report

            album_report.write_album_report(outputs.page, found, overwrite=overwrite)
        report.wrote("report", outputs.page)
