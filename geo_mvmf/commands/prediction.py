"""The command that predicts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import click

from geo_mvmf.commands import options
from geo_mvmf.terminal import Reporter

_SUFFIXES = (".nc", ".gpkg", ".parquet", ".geoparquet", ".geojson", ".csv")
_FOLDER_LEVELS = (0.5, 0.9)
_ESTIMATORS = ("component", "mode", "median", "best_within")  # not imported: --help answers at once


class Outputs(NamedTuple):
    """What one --out stands for.

    Attributes
    ----------
    store : Path
        The predictions file: everything, for later maps.
    layers : Path or None
        Points, and regions where asked for.
    page : Path or None
        The report.
    levels : tuple of float or None
        Of the credible regions.
    """

    store: Path
    layers: Path | None
    page: Path | None
    levels: tuple[float, ...] | None

    @property
    def after(self) -> list[Path]:
        """Files that are made from the predictions file."""
        found = [path for path in (self.layers, self.page) if path is not None]
        if self.layers is not None and self.levels and self.layers.suffix.lower() != ".gpkg":
            found.append(self.layers.with_name(f"{self.layers.stem}_regions{self.layers.suffix}"))
        return found


def _outputs(out: Path, levels: str | None) -> Outputs:
    wanted = options.levels(levels)
    if not out.suffix or out.is_dir():
        levels_wanted = wanted or _FOLDER_LEVELS
        return Outputs(out / "predictions.nc", out / "predictions.gpkg", out / "report.html", levels_wanted)
    options.check_suffix(out, _SUFFIXES)
    if out.suffix.lower() == ".nc":
        return Outputs(out, None, None, None)
    from geo_mvmf.files import vector

    vector.check_suffix(out)
    return Outputs(out.with_suffix(".nc"), out, None, wanted)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Trained model (.safetensors).")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder, or a file: .gpkg .parquet .geojson .csv .nc"
)
@click.option("--estimator", type=click.Choice(_ESTIMATORS), default="component", show_default=True)
@click.option("--radius-km", type=float, help="For best_within: the distance within which most probability shall lie.")
@click.option("--levels", default=None, help="Also write credible regions, such as 0.5,0.9 (folders: always).")
@click.option("--claims", type=click.Choice(["none", "columns", "exif", "raster"]), default="none", show_default=True)
@click.option("--root", type=click.Path(path_type=Path), help="Folder that relative paths begin in.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Threads: read images, compute densities."
)
@click.option("--strict", is_flag=True, help="Fail, and write nothing, if any row fails.")
@click.option("--overwrite", is_flag=True)
@click.pass_obj
def predict(
    report: Reporter,
    *,
    source: Path,
    bundle: Path,
    out: Path,
    estimator: str,
    radius_km: float | None,
    levels: str | None,
    claims: str,
    root: Path | None,
    device: str,
    batch_size: int,
    workers: int,
    strict: bool,
    overwrite: bool,
) -> None:
    """Predict where the images of SOURCE (a file, folder or table) were taken.

    A folder as --out receives predictions.nc (everything, for later maps), predictions.gpkg (styled points and
    regions) and report.html; a layer as --out has its predictions file, .nc, beside it. A killed run goes on where
    it was when the same command is given again.
    """
    outputs = _outputs(out, levels)
    waiting = [path for path in outputs.after if not path.exists()]
    if not (waiting and outputs.store.exists()):  # otherwise a run may have been killed between its files
        options.check_new(*(outputs.after or [outputs.store]), overwrite=overwrite)

    from geo_mvmf import album_report
    from geo_mvmf import predicting as module
    from geo_mvmf.inputs import tables
    from geo_mvmf.maps.estimates import check_estimator
    from geo_mvmf.model.bundle import load_bundle

    check_estimator(estimator, radius_km)

    frame = tables.read_image_table(source, root=root, claimed_from=claims)
    options.check_images(source, len(frame))
    model = load_bundle(bundle, device)
    report.say(f"{len(frame)} images, bundle {bundle.name}, device {model.device}")
    found = None
    if waiting and not overwrite:
        found = module.finished(model, frame, outputs.store, estimator=estimator, radius_km=radius_km, strict=strict)
    if found is not None:
        report.say(f"{outputs.store}: predicted before, from the same images; it is used")
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
        )
        found = report.run(job)
    if outputs.layers is not None and (overwrite or outputs.layers in waiting):
        found.write(outputs.layers, levels=outputs.levels, overwrite=overwrite)
    if outputs.page is not None and (overwrite or outputs.page in waiting):
        album_report.write_album_report(outputs.page, found, overwrite=overwrite)
    click.echo(f"status: {options.counts(found.rows['status'])}")
    written = [out] if outputs.page is not None or out == outputs.store else [out, outputs.store]
    click.echo(f"wrote {' and '.join(map(str, written))}" + (" (for further maps)" if len(written) > 1 else ""))
