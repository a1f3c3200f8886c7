"""The command that gives polygons their probability."""

from __future__ import annotations

from pathlib import Path

import click

from geo_mvmf.commands import options
from geo_mvmf.terminal import Reporter

_SUFFIXES = (".csv", ".parquet", ".geoparquet", ".gpkg", ".geojson")


@click.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option(
    "--polygons", required=True, type=click.Path(path_type=Path), help="Layer of zones: .geojson, .gpkg or .parquet"
)
@click.option("--layer", help="Of a GeoPackage with several. Default: the only one of polygons.")
@click.option("--name-column", help="Column that names the zones. Default: name, in whatever case, if there is one.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help=".csv or .parquet (tables), .gpkg, .geojson"
)
@click.option("--image-id", "image_ids", multiple=True, help="Repeatable. Default: all.")
@click.option("--top", type=click.IntRange(1), help="Only the most probable zones of each image. Layers: 3.")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def zones(
    report: Reporter,
    *,
    predictions: Path,
    polygons: Path,
    layer: str | None,
    name_column: str | None,
    out: Path,
    image_ids: tuple[str, ...],
    top: int | None,
    overwrite: bool,
) -> None:
    """Write the probability of every polygon, such as countries, for every image.

    A table has one row per image and zone; with --top the most probable ones, ranked, and what lies in no zone. A
    .gpkg holds the points with their most probable zones, and the polygons with the number of images expected in
    each; a .geojson the polygons.
    """
    options.check_suffix(out, _SUFFIXES)
    options.check_new(out, overwrite=overwrite)

    from geo_mvmf import zone_files
    from geo_mvmf.image_choice import open_some
    from geo_mvmf.maps.zones import Zones

    areas = Zones.read(polygons, name_column=name_column, layer=layer)
    if name_column is None and (remark := zone_files.without_names(areas)):
        report.say(f"{polygons}: {remark}")
    found = open_some(predictions, image_ids)
    held = found.zones(areas)
    zone_files.write_zones(out, found, areas, held, top=top, overwrite=overwrite)
    report.wrote("table", out)
    expected = held.expected()
    lines = [
        f"{row.name}: {row.expected_images:.2f} images expected (s.d. {row.standard_deviation:.2f})"
        for row in expected.nlargest(5, "expected_images").itertuples()
    ]
    lines.append(f"in no zone: {float(held.in_no_zone.sum()):.2f} of {len(held.image_ids)} images")
    counts = {"images": len(held.image_ids), "zones": len(expected)}
    report.result("\n".join([*lines, f"wrote {out}"]), counts=counts)
