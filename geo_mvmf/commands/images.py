"""Commands that prepare images: chips, table."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from geo_mvmf.commands import options, pairs
from geo_mvmf.terminal import Reporter


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write (chips.csv, chips/).")
@click.option("--count", default=1000, show_default=True, help="Places to cut.")
@click.option("--size", default=64, show_default=True, help="Pixels along a side.")
@click.option("--ground-km", required=True, type=float, help="Kilometres along a side, at true scale.")
@click.option("--bands", help="Band numbers from 1, such as 4,3,2. Default: all.")
@click.option("--stretch", help="auto, or low,high for every band. Default: none (8-bit sources only).")
@click.option("--area", type=click.Path(path_type=Path), help="Polygon layer: cut only inside it.")
@click.option("--layer", help="Of an area that is a GeoPackage with several. Default: the only one of polygons.")
@click.option("--season", "seasons", multiple=True, help="NAME=SOURCE, repeatable: the same places in each season.")
@click.option("--parts", help="NAME=SHARE,...: divide the places by whole blocks; NAME.csv holds each part.")
@click.option("--block-level", type=int, help="Of the S2 cells that are blocks. Default: as wide as a chip.")
@click.option("--min-valid", default=1.0, show_default=True, help="Least share of pixels with data.")
@click.option("--seed", default=0, show_default=True, help="Of the draw of places; the same one gives the same chips.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["png", "jpeg", "tif"]),
    default="png",
    show_default=True,
    help="Of the chips; tif chips say where they are.",
)
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def chips(
    report: Reporter,
    *,
    sources: tuple[Path, ...],
    out: Path,
    count: int,
    size: int,
    ground_km: float,
    bands: str | None,
    stretch: str | None,
    area: Path | None,
    layer: str | None,
    seasons: tuple[str, ...],
    parts: str | None,
    block_level: int | None,
    min_valid: float,
    seed: int,
    kind: str,
    overwrite: bool,
) -> None:
    """Cut chips with a known place from georeferenced rasters SOURCES (files, or one folder of tiles).

    Rasters of the same region at other times are its seasons: name them by --season, SOURCES are not needed then.
    """
    named, shares = pairs.seasons(seasons), pairs.parts(parts)
    if not sources and named is None:
        raise click.UsageError("Missing argument 'SOURCES...': a raster, or --season NAME=SOURCE")
    from geo_mvmf.inputs import chips as module
    from geo_mvmf.inputs import polygons

    options.check_new(out, overwrite=overwrite)
    job = module.cut_chips(
        list(sources) if len(sources) > 1 else next(iter(sources), None),
        out,
        count=count,
        size=size,
        ground_km=ground_km,
        bands=options.bands(bands),
        stretch=options.stretch(stretch),
        area=area if area is None or layer is None else polygons.read_polygons(area, layer=layer),
        seasons=named,
        parts=shares,
        block_level=block_level,
        min_valid=min_valid,
        seed=seed,
        format=kind,
        overwrite=overwrite,
    )
    found = report.run(job)
    tables = {"table": found, **{f"table_{name}": found.with_name(f"{name}.csv") for name in shares or ()}}
    for name, path in tables.items():
        report.wrote(name, path)
    report.wrote("folder", out)
    numbers = json.loads((out / "chips.json").read_text("utf-8"))["tables"]
    lines = [f"wrote {path}: {numbers[path.name]} chips" for path in tables.values()]
    report.result("\n".join(lines), counts={"chips": numbers[found.name]})


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the images; relative paths begin there.")
@click.option("--layer", help="Layer of a GeoPackage.")
@click.option("--crs", help="CRS of the coordinates where the file does not say it, such as EPSG:32632.")
@click.option("--exif", is_flag=True, help="Take positions from EXIF.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the cleaned table (.gpkg .csv .geojson .parquet).")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def table(
    report: Reporter,
    *,
    source: Path,
    root: Path | None,
    layer: str | None,
    crs: str | None,
    exif: bool,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Read an image table (folder, CSV, GeoPackage, GeoParquet, GeoJSON) and say what is wrong with it."""
    from geo_mvmf.files import vector
    from geo_mvmf.inputs import table_rows, tables

    if out is not None:
        vector.check_suffix(out)
        options.check_new(out, overwrite=overwrite)
    frame = tables.read_image_table(source, root=root, layer=layer, crs=crs, exif=exif)
    options.check_images(source, len(frame))
    table_rows.warn_if_swapped(frame)
    report.failed(options.failures(frame))
    lines = [f"{len(frame)} rows; status: {options.counts(frame['status'])}"]
    lines += [f"  {problem}: {number}" for problem, number in table_rows.describe_problems(frame).items()]
    which, first = options.first_failures(frame)
    if first:
        lines += [f"why rows cannot be used is in the column message of what --out writes{which}:", *first]
    if out is not None:
        written = tables.as_written_in(out.parent, frame)
        vector.write_layers(out, {"images": written}, overwrite=overwrite)
        report.wrote("table", out)
        lines.append(f"wrote {out}")
        if outside := list(filter(os.path.isabs, written["path"][written["status"] != "refused"])):
            root = os.path.commonpath([frame.attrs["root"], *outside])  # a folder of images may lie outside --root
            lines.append(f"not all images lie in its folder, so its paths are absolute: with it, give --root {root}")
    report.result("\n".join(lines), counts=options.row_counts(frame))
