"""Georeferenced rasters -> chips with a true place.

Places are drawn uniformly over area, at no fixed phase of the raster's grid; each chip is a square of ground at true
scale around its place, and its truth is the raster's own transform. Several rasters of one region are its seasons:
each place is cut in all of them.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geo_mvmf import durable, sphere
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs.chip_files import check_format, write_geotiff, write_picture
from geo_mvmf.inputs.chip_series import NAME, Area, Chip, Place, Wishes, place_series
from geo_mvmf.inputs.places import block_of, divide, in_test_block, level_of_blocks
from geo_mvmf.inputs.scenes import Scene, Source, open_scene
from geo_mvmf.inputs.stretches import Stretch, apply_stretch, check_stretch, percentile_stretch
from geo_mvmf.progress import Progress

__all__ = ["block_of", "cut_chips", "in_test_block"]

_COLUMNS = ("path", "image_id", "longitude", "latitude", "season", "source", "block")
_STRETCH_PLACES = 64  # of each series, whose values decide an automatic stretch


def cut_chips(
    sources: Source | Mapping[str, Source] | None,
    out: str | os.PathLike[str],
    *,
    count: int,
    size: int,
    ground_km: float,
    bands: Sequence[int] | None = None,
    stretch: str | Sequence[Sequence[float]] | None = None,
    area: Area | None = None,
    land: Area | None = None,
    seed: int = 0,
    seasons: Mapping[str, Source] | None = None,
    places: str = "same",
    min_valid: float = 1.0,
    min_separation_km: float | None = None,
    parts: Mapping[str, float] | None = None,
    block_level: int | None = None,
    format: str = "png",  # noqa: A002  the word users know
    overwrite: bool = False,
) -> Generator[Progress, None, Path]:
    """Cut chips from georeferenced rasters into a folder.

    The folder appears whole or not at all: ``chips/<image_id>.png``, the table ``chips.csv`` (path, image_id,
    longitude, latitude, season, source, block) and ``chips.json`` (how they were made, with the SHA-256 of every
    source, and under ``tables`` how many chips each table holds). With `parts` it also holds a table of each part, and
    the column `part`.

    Parameters
    ----------
    sources : source, or mapping of str to source, or None
        A raster file, a list or a folder of tiles of one raster; or seasons by name.
    out : path
        The folder to write.
    count : int
        Number of places (with independent places: of each season).
    size : int
        Pixels a side.
    ground_km : float
        Side of a chip on the ground.
    bands : sequence of int, optional
        Numbers from 1; all colour bands when None.
    stretch : "auto", or sequence of (low, high), optional
        What becomes 0 and 255 in each band; "auto" takes the 2nd and 98th percentile of each band over all seasons.
        None passes uint8 on, and is an error for other types.
    area, land : path, GeoDataFrame or shapely geometry, optional
        Polygons that the centres lie in, both where both are given.
    seed : int
        The same seed gives the same chips.
    seasons : mapping of str to source, optional
        Further rasters of the same region, by name; `sources` itself is then the season without a name.
    places : "same" or "independent"
        Whether each place is cut in every season.
    min_valid : float
        Least share of pixels with data, 0..1, in every season.
    min_separation_km : float, optional
        Least distance between two centres.
    parts : mapping of str to float, optional
        Divide the places by whole blocks: the name of each part, such as "training" or "test", and its share of the
        places, relatively. Chips near the edge of a block show ground of the next.
    block_level : int, optional
        The blocks are S2 cells of this level; by default the finest whose cells are as wide as a chip.
    format : "png", "jpeg" or "tif"
        PNG and JPEG hold 1 or 3 bands and carry no metadata; GeoTIFF chips lie in their own projection.
    overwrite : bool
        Whether an existing folder may be replaced.

    Yields
    ------
    Progress
        Stage "cut", in chips.

    Returns
    -------
    Path
        The table.

    Raises
    ------
    UsageError
        If an option is out of range, or a raster that is not uint8 comes without a stretch.
    BadInputError
        If a raster or a polygon layer cannot be used, too few places have data, or they lie in too few blocks.
    OutputError
        If the folder exists, or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> from geo_mvmf import progress
    >>> from geo_mvmf.inputs import scenes
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (360, 180), (10, 20, 30)).save(folder / "world.png")
    >>> world = scenes.georeference(folder / "world.png", folder / "world.tif", bounds=(-180.0, -90.0, 180.0, 90.0))
    >>> table = progress.run(cut_chips(world, folder / "chips", count=3, size=16, ground_km=2000.0))
    >>> table.read_text().splitlines()[1].split(",")[:2]
    ['chips/000000.png', '000000']
    """
    wishes = Wishes(
        count=count,
        size=size,
        ground_km=ground_km,
        bands=None if bands is None else tuple(bands),
        stretch=stretch,
        area=area,
        land=land,
        seed=seed,
        places=places,
        min_valid=min_valid,
        min_separation_km=min_separation_km,
        parts=None if parts is None else dict(parts),
        block_level=level_of_blocks(ground_km) if parts and block_level is None else block_level,
        form=format,
        overwrite=overwrite,
    )
    return _job(_named_sources(sources, seasons), Path(out), wishes)


def _named_sources(
    sources: Source | Mapping[str, Source] | None, seasons: Mapping[str, Source] | None
) -> dict[str, Source]:
    named: dict[str, Source] = {}
    if isinstance(sources, Mapping):
        named.update(sources)
    elif sources is not None:
        named[""] = sources
    for name, source in (seasons or {}).items():
        if name in named:
            raise UsageError(f"season {name!r} is named twice")
        named[name] = source
    if not named:
        raise UsageError("no raster was named to cut chips from")
    for name in named:
        if name and not NAME.fullmatch(name):
            raise UsageError(f"season {name!r} cannot be part of file names; use letters, digits, '.', '_', '-'")
    return named


def _job(sources: dict[str, Source], out: Path, wishes: Wishes) -> Generator[Progress, None, Path]:
    with contextlib.ExitStack() as stack:
        scenes = {name: stack.enter_context(open_scene(source)) for name, source in sources.items()}
        bands = _common_bands(scenes, wishes.bands)
        suffix = check_format(wishes.form, len(bands))
        series = place_series(scenes, bands, wishes)
        first = [list(itertools.islice(places, min(_STRETCH_PLACES, wishes.count))) for places in series]
        stretch = _choose_stretch(wishes.stretch, scenes, len(bands), first)
        folder = stack.enter_context(durable.replacing_folder(out, overwrite=wishes.overwrite))
        description = _describe(scenes, bands, stretch, wishes)
        (folder / "chips").mkdir()
        total = wishes.count * len(scenes)
        rows: list[list[object]] = []
        for head, tail in zip(first, series, strict=True):
            remaining = itertools.islice(tail, wishes.count - len(head))
            for number, place in enumerate(itertools.chain(head, remaining)):
                for season, chip in place.chips.items():
                    name = f"{season}-{number:06d}" if season else f"{number:06d}"
                    path = Path("chips") / (name + suffix)
                    _write(folder / path, chip, place, stretch, description)
                    rows.append(_row(path.as_posix(), name, place, season, scenes[season]))
                    yield Progress("cut", len(rows), total)
        durable.write_json(folder / "chips.json", description | {"tables": _write_tables(folder, rows, wishes)})
    return out / "chips.csv"


def _common_bands(scenes: Mapping[str, Scene], bands: tuple[int, ...] | None) -> tuple[int, ...]:
    found = {name: scene.check_bands(bands) for name, scene in scenes.items()}
    numbers = next(iter(found.values()))
    for name, other in found.items():
        if other != numbers:
            raise BadInputError(
                f"season {name!r} ({scenes[name].paths[0]}) has bands {list(other)}, the first one {list(numbers)}; "
                f"name the bands to cut"
            )
    return numbers


def _choose_stretch(
    wish: str | Sequence[Sequence[float]] | None, scenes: Mapping[str, Scene], bands: int, first: list[list[Place]]
) -> Stretch | None:
    if wish is None:
        for scene in scenes.values():
            if scene.dtype != np.uint8:
                raise UsageError(
                    f"{scene.paths[0]}: holds {scene.dtype}; give a stretch ('auto', or low and high for each band)"
                )
        return None
    if not isinstance(wish, str):
        return check_stretch(wish, bands)
    chips = [chip for places in first for place in places for chip in place.chips.values()]
    return percentile_stretch(np.concatenate([chip.pixels[:, chip.valid] for chip in chips], axis=1))


def _describe(
    scenes: Mapping[str, Scene], bands: tuple[int, ...], stretch: Stretch | None, wishes: Wishes
) -> dict[str, Any]:
    return {
        "bands": list(bands),
        "block_level": wishes.block_level,
        "channels": len(bands),
        "count": wishes.count,
        "format": wishes.form,
        "ground_km": wishes.ground_km,
        "min_separation_km": wishes.min_separation_km,
        "min_valid": wishes.min_valid,
        "parts": wishes.parts,
        "places": wishes.places,
        "projection": f"azimuthal equidistant about each centre, sphere of {sphere.EARTH_RADIUS_KM} km",
        "seed": wishes.seed,
        "size": wishes.size,
        "sources": {
            name: [{"name": path.name, "sha256": durable.file_sha256(path)} for path in scene.paths]
            for name, scene in scenes.items()
        },
        "stretch": None if stretch is None else [list(pair) for pair in stretch],
        "version": 1,
    }


def _write(path: Path, chip: Chip, place: Place, stretch: Stretch | None, description: Mapping[str, Any]) -> None:
    pixels = apply_stretch(chip.pixels, stretch)
    pixels = np.where(chip.valid, pixels, np.uint8(0))
    if path.suffix != ".tif":
        write_picture(path, pixels)
        return
    write_geotiff(
        path,
        pixels,
        chip.valid,
        longitude=place.longitude,
        latitude=place.latitude,
        ground_km=description["ground_km"],
        description={key: description[key] for key in ("bands", "ground_km", "stretch")},
    )


def _row(path: str, name: str, place: Place, season: str, scene: Scene) -> list[object]:
    source = scene.paths[0].name if len(scene.paths) == 1 else scene.paths[0].parent.name
    block = int(block_of(place.longitude, place.latitude))
    return [path, name, repr(place.longitude), repr(place.latitude), season, source, block]


def _write_tables(folder: Path, rows: list[list[object]], wishes: Wishes) -> dict[str, int]:
    """Write the table, and those of the parts; give the number of rows of each."""
    if wishes.parts is None:
        _write_table(folder / "chips.csv", _COLUMNS, rows)
        return {"chips.csv": len(rows)}
    longitude, latitude = (np.array([row[column] for row in rows], dtype=np.float64) for column in (2, 3))
    found = divide(longitude, latitude, wishes.parts, level=int(wishes.block_level or 0), seed=wishes.seed)
    columns, rows = (*_COLUMNS, "part"), [[*row, str(part)] for row, part in zip(rows, found, strict=True)]
    tables = {"chips.csv": rows} | {f"{name}.csv": [row for row in rows if row[-1] == name] for name in wishes.parts}
    for name, part in tables.items():
        _write_table(folder / name, columns, part)
    return {name: len(part) for name, part in tables.items()}


def _write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
