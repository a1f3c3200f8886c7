"""Commands that make something of predictions, without torch: points, density, regions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from geo_mvmf.commands import grids, options
from geo_mvmf.errors import UsageError
from geo_mvmf.terminal import Reporter

if TYPE_CHECKING:
    from geo_mvmf.maps.frames import Frame
    from geo_mvmf.maps.grid import Grid
    from geo_mvmf.predictions import Predictions

_RASTERS = (".tif", ".tiff", ".nc")


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help=".gpkg .parquet .geojson or .csv")
@click.option("--levels", help="Also write credible regions, such as 0.5,0.9.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that make regions.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def points(
    report: Reporter, *, predictions: Path, out: Path, levels: str | None, workers: int, overwrite: bool
) -> None:
    """Write the points of a predictions file as a layer, as predict does."""
    from geo_mvmf.files import vector
    from geo_mvmf.point_layer import write_job
    from geo_mvmf.predictions import open_predictions

    vector.check_suffix(out)
    wanted = options.levels(levels)
    options.check_new(*vector.paths(out, ("points", "regions") if wanted else ("points",)), overwrite=overwrite)
    store = open_predictions(predictions).store
    layer = report.run(write_job(store, out, wanted, workers=workers, overwrite=overwrite))
    number = int(layer.geometry.notna().sum())
    report.wrote("layers", out)
    message = f"wrote {number} points of {len(layer)} images to {out}"
    report.result(message, counts={"points": number, **options.row_counts(store.rows)})


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help=".tif (also _level.tif and styles) or .nc")
@click.option(
    "--image-id",
    "image_ids",
    multiple=True,
    help="One image; repeated: their mean. Default: that of all, the album's map.",
)
@click.option(
    "--grid",
    type=click.Choice(["auto", "globe"]),
    help="auto: the window that shows 99 % of the probability; so it is, unless told, for one image and with --crs.",
)
@click.option(
    "--resolution",
    type=float,
    help="Raster cell size in units of the CRS (degrees without --crs). Default: what suits the window; globe: 0.5.",
)
@click.option("--bounds", help="west,south,east,north in units of the CRS, in place of --grid.")
@click.option("--crs", help="EPSG:n. Default: EPSG:4326; polar, where a window of its own lies around a pole.")
@click.option("--by", help="A column: one mean for each of its values (.nc).")
@click.option(
    "--bandwidth-km", type=float, help="Smooth with a kernel of this standard deviation. Default: not at all."
)
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def density(
    report: Reporter,
    *,
    predictions: Path,
    out: Path,
    image_ids: tuple[str, ...],
    grid: str | None,
    resolution: float | None,
    bounds: str | None,
    crs: str | None,
    by: str | None,
    bandwidth_km: float | None,
    overwrite: bool,
) -> None:
    """Write the probability density of an image, or the mean of several, as GeoTIFF or NetCDF."""
    from geo_mvmf.image_choice import open_some
    from geo_mvmf.maps.smoothing import MOST_KM

    options.check_suffix(out, _RASTERS)
    level = out.with_name(f"{out.stem}_level{out.suffix}")  # beside a GeoTIFF
    written = {"density": out} if out.suffix.lower() == ".nc" else {"density": out, "level": level}
    options.check_new(*written.values(), overwrite=overwrite)
    one = image_ids[0] if len(set(image_ids)) == 1 else None
    if by is not None and one is not None:
        raise UsageError(f"--by {by} makes a mean of each group, and --image-id {one} is one image: choose one")
    options.positive("--bandwidth-km", bandwidth_km)
    if bandwidth_km is not None and bandwidth_km > MOST_KM:
        raise UsageError(
            f"--bandwidth-km {bandwidth_km:g}: at most {MOST_KM:.0f} is wanted, half the Earth's circumference"
        )
    options.positive("--resolution", resolution)
    where, remarks = _where(grid, bounds, resolution, crs, one=one is not None, by=by)
    for remark in remarks:
        report.say(remark)
    album = open_some(predictions, image_ids if one is None else ())
    if bandwidth_km is not None and album.store.components.kind != "vmf":
        raise UsageError(
            f"--bandwidth-km {bandwidth_km:g}: only mixtures of vMF components can be smoothed, and the densities of"
            f" {predictions} are uniform on S2 cells; leave --bandwidth-km out"
        )
    raster = album.write_density(
        out,
        where,
        one,
        combine="mean" if one is None else None,
        by=by,
        bandwidth_km=bandwidth_km,
        overwrite=overwrite,
    )
    for name, path in written.items():
        report.wrote(name, path)
    inside = float(raster["probability_sum"][0])
    if bounds is not None and inside < 0.01:
        report.say(
            f"hardly any probability lies inside --bounds {bounds} (west,south,east,north in units of "
            f"{crs or 'EPSG:4326'}){_placed(album, one)}"
        )
    report.result(f"wrote {out}; probability inside: {inside:.6f}", counts={"probability_inside": inside})


def _placed(album: Predictions, image_id: str | None) -> str:
    """Say where the image is, where there is one."""
    if image_id is None:
        return ""
    row = album.rows[album.rows["image_id"] == image_id].iloc[0]
    return f": {image_id} is placed at longitude {row['longitude']:.1f}, latitude {row['latitude']:.1f}"


def _where(
    grid: str | None, bounds: str | None, resolution: float | None, crs: str | None, *, one: bool, by: str | None
) -> tuple[Grid | Frame, list[str]]:
    """What the options describe: without bounds one image finds its own window, and so do several in another CRS."""
    if grid is not None and bounds is not None:
        raise UsageError(f"--grid {grid} chooses the bounds itself: leave it or --bounds out")
    if grid == "globe" and crs is not None:
        raise UsageError(f"--grid globe is in EPSG:4326: leave it or --crs {crs} out")
    if bounds is None and grid != "globe" and (grid == "auto" or one or crs is not None):
        if by is not None:
            raise UsageError(f"--by {by} makes several rasters, and a window is found for one: give --bounds")
        from geo_mvmf.inputs.coordinate_systems import parse_crs
        from geo_mvmf.maps.frames import Frame

        try:
            return Frame(crs=None if crs is None else parse_crs(crs), resolution=resolution), []
        except ValueError as error:
            raise UsageError(f"--crs {crs}: {error}") from error
    return grids.grid(bounds, resolution, crs)


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help=".gpkg, .parquet or .geojson")
@click.option("--levels", default="0.5,0.9", show_default=True, help="Probability inside, of each region.")
@click.option("--image-id", "image_ids", multiple=True, help="Repeatable. Default: all.")
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes, for large albums.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def regions(
    report: Reporter,
    *,
    predictions: Path,
    out: Path,
    levels: str,
    image_ids: tuple[str, ...],
    workers: int,
    overwrite: bool,
) -> None:
    """Write the smallest regions that hold given probabilities."""
    from geo_mvmf.files import vector
    from geo_mvmf.predictions import open_predictions
    from geo_mvmf.region_job import regions_job
    from geo_mvmf.stored_mixtures import rows_named

    vector.check_suffix(out)
    options.check_new(out, overwrite=overwrite)
    wanted = options.levels(levels) or ()
    store = open_predictions(predictions).store
    layer = report.run(regions_job(store, rows_named(store, image_ids or None), wanted, workers=workers))
    vector.write_layers(out, {"regions": layer}, overwrite=overwrite)
    report.wrote("layers", out)
    report.result(f"wrote {len(layer)} regions to {out}", counts={"regions": len(layer)})
