"""Commands that make something of predictions, without torch: density, regions."""

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
