"""The command line: one of the two doors (the other is the QGIS worker); only doors print.

Every command imports what it needs when it runs, so `--help` answers at once, also where torch cannot be imported.
Errors of the exception tree become one line on stderr and the exit code of their branch.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from geo_mvmf import __version__
from geo_mvmf.errors import GeoMvmfError, UsageError
from geo_mvmf.progress import Progress
from geo_mvmf.terminal import Reporter

if TYPE_CHECKING:
    from geo_mvmf.maps.grid import Grid
    from geo_mvmf.predictions import Predictions

Result = TypeVar("Result")

RESPONSIBLE_USE = "docs/responsible_use.md: a prediction is a region, not a proof; do not use it to find people"
_LAYERS = (".gpkg", ".parquet", ".geojson", ".csv", ".nc")


class _Group(click.Group):
    """Turns the exception tree into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except GeoMvmfError as error:
            click.echo(f"geo-mvmf: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("geo-mvmf: interrupted; the same command goes on where this one stopped", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="geo-mvmf")
@click.option(
    "--progress",
    "style",
    type=click.Choice(["auto", "bar", "json", "none"]),
    default="auto",
    help="Bar on a terminal (auto), one JSON object a line for programs, or none.",
)
@click.pass_context
def main(ctx: click.Context, style: str) -> None:
    """Predict where images were taken, as probability over the Earth's surface.

    A picture goes in; a normalised density comes out, as GIS layers. A prediction is a region, not a proof.
    """
    ctx.obj = _reporter(style)


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write (chips.csv, chips/).")
@click.option("--count", default=1000, show_default=True, help="Places to cut.")
@click.option("--size", default=64, show_default=True, help="Pixels along a side.")
@click.option("--ground-km", required=True, type=float, help="Kilometres along a side, at true scale.")
@click.option("--bands", help="Band numbers from 1, such as 4,3,2. Default: all.")
@click.option("--stretch", help="auto, or low,high per band such as 0,3000. Default: none (8-bit sources only).")
@click.option("--area", type=click.Path(path_type=Path), help="Polygon layer: cut only inside it.")
@click.option("--season", "seasons", multiple=True, help="NAME=SOURCE, repeatable: the same places in each season.")
@click.option("--min-valid", default=1.0, show_default=True, help="Least share of pixels with data.")
@click.option("--seed", default=0, show_default=True)
@click.option("--format", "kind", type=click.Choice(["png", "jpeg", "tif"]), default="png", show_default=True)
@click.option("--overwrite", is_flag=True)
@click.pass_obj
def chips(
    report: Reporter,
    sources: tuple[Path, ...],
    out: Path,
    count: int,
    size: int,
    ground_km: float,
    bands: str | None,
    stretch: str | None,
    area: Path | None,
    seasons: tuple[str, ...],
    min_valid: float,
    seed: int,
    kind: str,
    overwrite: bool,
) -> None:
    """Cut chips with a known place from georeferenced rasters SOURCES (files, or one folder of tiles)."""
    from geo_mvmf.inputs import chips as module

    named = dict(pair.split("=", 1) for pair in seasons if "=" in pair)
    if len(named) != len(seasons):
        raise UsageError(f"--season {seasons!r}: write NAME=SOURCE, each name once")
    job = module.cut_chips(
        list(sources) if len(sources) > 1 else sources[0],
        out,
        count=count,
        size=size,
        ground_km=ground_km,
        bands=None if bands is None else tuple(int(b) for b in _numbers("--bands", bands)),
        stretch=_stretch(stretch),
        area=area,
        seasons={name: Path(source) for name, source in named.items()} or None,
        min_valid=min_valid,
        seed=seed,
        format=kind,
        overwrite=overwrite,
    )
    click.echo(f"wrote {_run(job, report)}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--root", type=click.Path(path_type=Path), help="Folder that relative paths begin in.")
@click.option("--layer", help="Layer of a GeoPackage.")
@click.option("--crs", help="CRS of the coordinates where the file does not say it, such as EPSG:32632.")
@click.option("--exif", is_flag=True, help="Take positions from EXIF.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the cleaned table (.gpkg, .csv, .geojson, .parquet)."
)
@click.option("--overwrite", is_flag=True)
def table(
    source: Path, root: Path | None, layer: str | None, crs: str | None, exif: bool, out: Path | None, overwrite: bool
) -> None:
    """Read an image table (folder, CSV, GeoPackage, GeoParquet, GeoJSON) and say what is wrong with it."""
    from geo_mvmf.inputs import tables

    frame = tables.read_image_table(source, root=root, layer=layer, crs=crs, exif=exif)
    click.echo(f"{len(frame)} rows; status: {_counts(frame['status'])}")
    for problem, number in tables.describe_problems(frame).items():
        click.echo(f"  {problem}: {number}")
    if out is not None:
        from geo_mvmf.files import vector

        vector.write_layers(out, {"images": frame}, overwrite=overwrite)
        click.echo(f"wrote {out}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--backbone", default="wide_resnet50_2", show_default=True, help="A torchvision.models name.")
@click.option("--weights", help="A torchvision weight name (downloaded) or a local .safetensors file.")
@click.option("--cache", required=True, type=click.Path(path_type=Path), help="Folder of the feature cache.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.pass_obj
def features(
    report: Reporter,
    source: Path,
    backbone: str,
    weights: str | None,
    cache: Path,
    batch_size: int,
    device: str,
    workers: int,
) -> None:
    """Compute the features of a table of images once and keep them on disk."""
    from geo_mvmf.inputs import tables
    from geo_mvmf.model import backbones
    from geo_mvmf.model import features as module
    from geo_mvmf.model.devices import choose_device

    network = backbones.build_backbone(backbone, weights=weights)
    job = module.cache_features(
        network,
        tables.read_image_table(source),
        cache,
        spec=network.image_spec,
        batch_size=batch_size,
        device=choose_device(device),
        workers=workers,
    )
    found = _run(job, report)
    click.echo(f"{int((found.index >= 0).sum())} of {len(found.index)} images have features, in {cache}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--num-cells", default=1024, show_default=True, help="At least so many S2 cells.")
@click.option("--mean-direction", type=click.Choice(["centre", "photos"]), default="centre", show_default=True)
@click.option("--exif", is_flag=True, help="Take positions from EXIF.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Layer to write (.gpkg ...).")
@click.option("--overwrite", is_flag=True)
def partition(source: Path, num_cells: int, mean_direction: str, exif: bool, out: Path, overwrite: bool) -> None:
    """Split the sphere into S2 cells, fine where a table has many images, and write them with counts."""
    import geopandas

    from geo_mvmf import s2
    from geo_mvmf.files import vector
    from geo_mvmf.inputs import tables
    from geo_mvmf.maps import outlines
    from geo_mvmf.model.partition import partition_sphere

    frame = tables.read_image_table(source, exif=exif)
    used = frame[tables.training_rows(frame)]
    cells = partition_sphere(used["longitude"], used["latitude"], num_cells, mean_direction=mean_direction)
    layer = geopandas.GeoDataFrame(
        {
            "cell": s2.to_token(cells.cell_ids),
            "level": cells.levels,
            "images": cells.counts,
            "area_km2": s2.area_sr(cells.cell_ids) * 6371.0088**2,
        },
        geometry=outlines.cell_polygons(cells.cell_ids),
        crs="EPSG:4326",
    )
    vector.write_layers(out, {"cells": layer}, overwrite=overwrite)
    click.echo(f"wrote {len(cells)} cells of {len(used)} images to {out}")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Begin anew although the run folder holds a finished run.")
@click.pass_obj
def train(report: Reporter, config: Path, overwrite: bool) -> None:
    """Train as a TOML file says; after a crash the same command goes on from the last checkpoint."""
    from geo_mvmf.model import training

    bundle = training.train(config, overwrite=overwrite, report=report)
    report.close()
    click.echo(f"wrote {bundle.path}")


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="Trained model (.safetensors).")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder, or a file: .gpkg .parquet .geojson .csv .nc"
)
@click.option("--estimator", type=click.Choice(["component", "mode"]), default="component", show_default=True)
@click.option("--levels", default=None, help="Also write credible regions, such as 0.5,0.9 (folders: always).")
@click.option("--claims", type=click.Choice(["none", "columns", "exif"]), default="none", show_default=True)
@click.option("--root", type=click.Path(path_type=Path), help="Folder that relative paths begin in.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--batch-size", default=32, show_default=True)
@click.option("--workers", default=2, show_default=True, help="Threads that read images.")
@click.option("--strict", is_flag=True, help="Fail, and write nothing, if any row fails.")
@click.option("--overwrite", is_flag=True)
@click.pass_obj
def predict(
    report: Reporter,
    source: Path,
    bundle: Path,
    out: Path,
    estimator: str,
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
    regions) and report.html.
    """
    from geo_mvmf import predicting as module
    from geo_mvmf.inputs import tables
    from geo_mvmf.model.bundle import load_bundle

    _check_out(out, overwrite)
    store = out if out.suffix == ".nc" else (out.with_suffix(".nc") if out.suffix else out / "predictions.nc")
    frame = tables.read_image_table(source, root=root, claimed_from=claims)
    model = load_bundle(bundle, device)
    click.echo(f"{len(frame)} images, bundle {bundle.name}, device {model.device}", err=True)
    job = module.predict_job(
        model,
        frame,
        estimator=estimator,
        out=store,
        overwrite=overwrite,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
    )
    found = _run(job, report)
    wanted = None if levels is None else _numbers("--levels", levels)
    if not out.suffix:
        found.write(out / "predictions.gpkg", levels=wanted or (0.5, 0.9), overwrite=overwrite)
        _write_report(found, out / "report.html", overwrite=overwrite)
    elif out.suffix != ".nc":
        found.write(out, levels=wanted, overwrite=overwrite)
    click.echo(f"status: {_counts(found.rows['status'])}")
    click.echo(f"wrote {out}" + ("" if out == store or not out.suffix else f" and {store} (for further maps)"))


@main.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help=".tif (also _level.tif and styles) or .nc")
@click.option("--image-id", help="One image. Default: the mean of all, the album's map.")
@click.option("--resolution", default=0.5, show_default=True, help="Raster cell size in units of the CRS.")
@click.option("--bounds", help="west,south,east,north in units of the CRS. Default: the globe.")
@click.option("--crs", default="EPSG:4326", show_default=True)
@click.option("--overwrite", is_flag=True)
def density(
    predictions: Path,
    out: Path,
    image_id: str | None,
    resolution: float,
    bounds: str | None,
    crs: str,
    overwrite: bool,
) -> None:
    """Write the probability density of an image, or of all, as GeoTIFF or NetCDF."""
    from geo_mvmf.predictions import open_predictions

    found = open_predictions(predictions)
    if out.suffix.lower() not in (".tif", ".tiff", ".nc"):
        raise UsageError(f"--out {out}: a density raster ends in .tif or .nc")
    _check_out(out, overwrite)
    raster = found.density(_grid(bounds, resolution, crs), image_id, combine=None if image_id else "mean")
    write_density(found, raster, out, overwrite=overwrite)
    click.echo(f"wrote {out}; probability inside: {float(raster['probability_sum'][0]):.6f}")


def write_density(found: Predictions, raster: Any, out: Path, *, overwrite: bool) -> None:
    """Write the first image of a density raster as .nc, or as a pair of GeoTIFFs with their styles.

    Parameters
    ----------
    found : Predictions
        Where the raster came from.
    raster : DataArray
        From `Predictions.density`.
    out : path
    overwrite : bool
        Whether existing files may be replaced.
    """
    from geo_mvmf.files import geotiff, stores
    from geo_mvmf.maps import density as module

    if out.suffix.lower() == ".nc":
        stores.write_density_netcdf(out, raster, overwrite=overwrite)
        return
    tags = {
        "IMAGE_ID": str(raster["image"].to_numpy()[0]),
        "MODEL": found.run.get("bundle", ""),
        "MODEL_SHA256": found.run.get("bundle_sha256", ""),
        "PROBABILITY_SUM": f"{float(raster['probability_sum'][0]):.9f}",
        "LICENCE": found.run.get("licence", ""),
    }
    geotiff.write_density(out, raster[0], tags=tags, overwrite=overwrite)
    level = module.credible_level_raster(raster)
    geotiff.write_level(out.with_name(f"{out.stem}_level{out.suffix}"), level[0], tags=tags, overwrite=overwrite)


@main.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help=".gpkg, .parquet or .geojson")
@click.option("--levels", default="0.5,0.9", show_default=True)
@click.option("--image-id", "image_ids", multiple=True, help="Repeatable. Default: all.")
@click.option("--overwrite", is_flag=True)
def regions(predictions: Path, out: Path, levels: str, image_ids: tuple[str, ...], overwrite: bool) -> None:
    """Write the smallest regions that hold given probabilities."""
    from geo_mvmf.files import vector
    from geo_mvmf.predictions import open_predictions

    _check_out(out, overwrite)
    vector.check_suffix(out)
    found = open_predictions(predictions)
    layer = found.credible_regions(_numbers("--levels", levels), image_ids=image_ids or None)
    vector.write_layers(out, {"regions": layer}, overwrite=overwrite)
    click.echo(f"wrote {len(layer)} regions to {out}")


@main.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("truth", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Report page (.html) or table (.csv).")
@click.option("--by", help="Column to group by, such as continent.")
@click.option("--overwrite", is_flag=True)
def evaluate(predictions: Path, truth: Path | None, out: Path | None, by: str | None, overwrite: bool) -> None:
    """Compare predictions with the truth: accuracy at distances, likelihood, coverage."""
    from geo_mvmf import durable
    from geo_mvmf import evaluation as module
    from geo_mvmf.inputs import tables
    from geo_mvmf.predictions import open_predictions

    found = open_predictions(predictions)
    places = None if truth is None else tables.read_image_table(truth)
    result = module.evaluate(found, places, by=by)
    figures = result.table()
    click.echo(figures.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if out is not None and out.suffix == ".csv":
        durable.write_text(out, figures.to_csv(index=False), overwrite=overwrite)
    elif out is not None:
        _write_report(found, out, evaluation=result, overwrite=overwrite)
    if out is not None:
        click.echo(f"wrote {out}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def info(file: Path) -> None:
    """Say what a bundle or a predictions file is, without loading torch."""
    if file.suffix.lower() == ".nc":
        from geo_mvmf.predictions import open_predictions

        found = open_predictions(file)
        content: dict[str, Any] = {**found.run, "status": _counts(found.rows["status"])}
    else:
        from geo_mvmf.model.bundle_format import read_header

        content = read_header(file)
    click.echo(json.dumps(content, indent=2, default=str, ensure_ascii=False))
    click.echo(RESPONSIBLE_USE)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def env(as_json: bool) -> None:
    """Say which Python, libraries and devices are in use."""
    from geo_mvmf.environment import describe

    content = describe()
    if as_json:
        click.echo(json.dumps(content))
    else:
        for key, value in content.items():
            click.echo(f"{key:<12} {value}")


def _reporter(style: str) -> Reporter:
    if style == "auto":
        style = "bar" if sys.stderr.isatty() else "none"
    return Reporter(style)


def _run(job: Generator[Progress, None, Result], report: Reporter) -> Result:
    from geo_mvmf import progress

    with contextlib.closing(job), _closing(report):
        return progress.run(job, report)


@contextlib.contextmanager
def _closing(report: Reporter) -> Iterator[None]:
    try:
        yield
    finally:
        report.close()


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix and out.exists() and not overwrite:
        raise UsageError(f"{out}: exists already; choose another name, or add --overwrite")
    if out.suffix and out.suffix.lower() not in (*_LAYERS, ".tif", ".tiff"):
        raise UsageError(f"--out {out}: the suffix is not one of {', '.join(_LAYERS)}")


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text!r}: numbers with commas between them are wanted") from None


def _stretch(text: str | None) -> Any:
    if text is None or text == "auto":
        return text
    values = _numbers("--stretch", text)
    if len(values) % 2:
        raise UsageError(f"--stretch {text!r}: low,high for every band, or for all bands once")
    return tuple(zip(values[::2], values[1::2], strict=True))


def _grid(bounds: str | None, resolution: float, crs: str) -> Grid:
    from geo_mvmf.maps.grid import Grid

    if bounds is None:
        if crs != "EPSG:4326":
            raise UsageError(f"--crs {crs}: say the extent too, --bounds west,south,east,north")
        return Grid.globe(resolution)
    edges = _numbers("--bounds", bounds)
    if len(edges) != 4:
        raise UsageError(f"--bounds {bounds!r}: west,south,east,north are wanted")
    return Grid.from_bounds(*edges, resolution, crs=crs)


def _counts(status: Any) -> str:
    return ", ".join(f"{number} {name}" for name, number in status.value_counts().items())


def _write_report(found: Predictions, out: Path, *, evaluation: Any = None, overwrite: bool) -> None:
    """Write a page with the map of all predictions and, where truth is known, the evaluation."""
    from geo_mvmf import evaluation as module
    from geo_mvmf import report
    from geo_mvmf.errors import BadInputError

    if evaluation is None and "true_longitude" in found.rows:
        with contextlib.suppress(BadInputError):
            evaluation = module.evaluate(found)
    points = found.to_geodataframe()
    pictures = [("Predicted places, coloured by the radius that holds 90 %", report.points_picture(points))]
    tables: list[tuple[str, Any]] = []
    if evaluation is not None:
        pictures.append(("Share of images within a distance", report.accuracy_picture(evaluation)))
        pictures.append(("Is the probability true? On the diagonal it is", report.coverage_picture(evaluation)))
        tables.append(("Figures with 95 % intervals", evaluation.table().round(3)))
    failed = found.rows.loc[found.rows["status"] != "ok", ["path", "status", "message"]]
    if len(failed):
        tables.append(("Images without a prediction", failed))
    text = [f"{len(points)} images; status: {_counts(found.rows['status'])}."]
    report.write_page(
        out,
        title="Where were these images taken?",
        introduction=text,
        pictures=pictures,
        tables=tables,
        run=found.run,
        overwrite=overwrite,
    )
