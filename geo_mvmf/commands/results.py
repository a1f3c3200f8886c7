"""Commands that make something of predictions, without torch: density, regions, evaluate."""

from __future__ import annotations

from pathlib import Path

import click

from geo_mvmf.commands import options

_RASTERS = (".tif", ".tiff", ".nc")


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help=".tif (also _level.tif and styles) or .nc")
@click.option("--image-id", help="One image. Default: the mean of all, the album's map.")
@click.option("--resolution", default=0.5, show_default=True, help="Raster cell size in units of the CRS.")
@click.option("--bounds", help="west,south,east,north in units of the CRS. Default: the globe.")
@click.option("--crs", default="EPSG:4326", show_default=True, help="EPSG:n.")
@click.option("--overwrite", is_flag=True)
def density(
    *,
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

    options.check_suffix(out, _RASTERS)
    level = out.with_name(f"{out.stem}_level{out.suffix}")  # beside a GeoTIFF
    options.check_new(out, *([] if out.suffix.lower() == ".nc" else [level]), overwrite=overwrite)
    grid = options.grid(bounds, resolution, crs)
    found = open_predictions(predictions)
    if image_id is None:
        raster = found.write_density(out, grid, combine="mean", overwrite=overwrite)
    else:
        raster = found.write_density(out, grid, image_id, overwrite=overwrite)
    click.echo(f"wrote {out}; probability inside: {float(raster['probability_sum'][0]):.6f}")


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help=".gpkg, .parquet or .geojson")
@click.option("--levels", default="0.5,0.9", show_default=True)
@click.option("--image-id", "image_ids", multiple=True, help="Repeatable. Default: all.")
@click.option("--overwrite", is_flag=True)
def regions(*, predictions: Path, out: Path, levels: str, image_ids: tuple[str, ...], overwrite: bool) -> None:
    """Write the smallest regions that hold given probabilities."""
    from geo_mvmf.files import vector
    from geo_mvmf.predictions import open_predictions

    vector.check_suffix(out)
    options.check_new(out, overwrite=overwrite)
    wanted = options.levels(levels) or ()
    layer = open_predictions(predictions).credible_regions(wanted, image_ids=image_ids or None)
    vector.write_layers(out, {"regions": layer}, overwrite=overwrite)
    click.echo(f"wrote {len(layer)} regions to {out}")


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.argument("truth", required=False, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Report page (.html) or table (.csv).")
@click.option("--by", help="Column to group by, such as continent.")
@click.option("--overwrite", is_flag=True)
def evaluate(*, predictions: Path, truth: Path | None, out: Path | None, by: str | None, overwrite: bool) -> None:
    """Compare predictions with the truth: accuracy at distances, likelihood, coverage."""
    from geo_mvmf import album_report, durable, evaluation
    from geo_mvmf.inputs import tables
    from geo_mvmf.predictions import open_predictions

    if out is not None:
        options.check_suffix(out, (".html", ".csv"))
        options.check_new(out, overwrite=overwrite)
    found = open_predictions(predictions)
    places = None if truth is None else tables.read_truth(truth)
    result = evaluation.evaluate(found, places, by=by)
    figures = result.table()
    click.echo(figures.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if out is None:
        return
    if out.suffix.lower() == ".csv":
        durable.write_text(out, figures.to_csv(index=False), overwrite=overwrite)
    else:
        album_report.write_album_report(out, found, evaluation=result, overwrite=overwrite)
    click.echo(f"wrote {out}")
