"""The command that makes classes of training places: partition."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import click

from geo_mvmf.commands import options
from geo_mvmf.errors import AmbiguousInputError, BadInputError, UsageError
from geo_mvmf.model.partition_options import DEFAULT_CLASSES, DEFAULT_THRESHOLDS, METHODS
from geo_mvmf.terminal import Reporter

_OPTIONS = {
    "num_components": "--num-cells",
    "split_above": "--split-above",
    "drop_below": "--drop-below",
    "partition_file": "--file",
    "partition_column": "--column",
    "mean_direction": "--mean-direction",
    "seed": "--seed",
    "partition": "--method",
}
_THRESHOLDS = ("split_above", "drop_below")  # the options that a look at the places can find wrong


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--method", type=click.Choice(METHODS), default="s2", show_default=True, help="See docs/partitions.md.")
@click.option(
    "--num-cells",
    type=click.IntRange(1),
    help=f"s2: at least so many S2 cells; kmeans: so many classes.  [default: {DEFAULT_CLASSES}]",
)
@click.option(
    "--split-above",
    type=click.IntRange(1),
    help=f"planet: cells with more images are split.  [default: {DEFAULT_THRESHOLDS[0]}]",
)
@click.option(
    "--drop-below",
    type=click.IntRange(0),
    help=f"planet: cells with fewer images are left out.  [default: {DEFAULT_THRESHOLDS[1]}]",
)
@click.option("--file", type=click.Path(path_type=Path), help="file: layer of polygons, or table of cells or centres.")
@click.option("--column", help="file: column that names the classes. Default: every row is one.")
@click.option(
    "--mean-direction",
    type=click.Choice(["centre", "photos"]),
    help="s2, planet, file: centres of the classes, or means of their images.  [default: centre]",
)
@click.option("--seed", type=click.IntRange(0), help="kmeans: of its first classes.  [default: 0]")
@click.option("--exif", is_flag=True, help="Take positions from EXIF.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the images; relative paths begin there.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Layer to write (.gpkg ...).")
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.pass_obj
def partition(
    report: Reporter,
    *,
    source: Path,
    method: str,
    num_cells: int | None,
    split_above: int | None,
    drop_below: int | None,
    file: Path | None,
    column: str | None,
    mean_direction: str | None,
    seed: int | None,
    exif: bool,
    root: Path | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Make classes of the places of images, fine where there are many, and write them with their counts.

    SOURCE is a folder or table of images, or a table of longitudes and latitudes.
    """
    from geo_mvmf.files import vector
    from geo_mvmf.inputs.photo_places import read_photo_places
    from geo_mvmf.model.partition_options import PartitionOptions, check_given
    from geo_mvmf.model.partitions import make_partition
    from geo_mvmf.partition_layer import layer_name, partition_layer

    vector.check_suffix(out)
    try:
        check_given(method, {"mean_direction": mean_direction, "seed": seed})
        wanted = PartitionOptions(
            method=method,
            num_components=num_cells,
            split_above=split_above,
            drop_below=drop_below,
            partition_file=None if file is None else str(file),
            partition_column=column,
            mean_direction=mean_direction or "centre",
            seed=seed or 0,
        )
    except UsageError as error:
        raise UsageError(_in_words_of_the_command(str(error))) from error
    options.check_new(out, overwrite=overwrite)
    places = read_photo_places(source, exif=exif, root=root)
    try:
        found = make_partition(places.longitude, places.latitude, wanted)
    except AmbiguousInputError:  # says by itself what to do where there is no option for it
        raise
    except BadInputError as error:
        raise BadInputError(_in_words_of_the_command(str(error), _THRESHOLDS)) from error
    layers = {layer_name(found): partition_layer(found)}
    vector.write_layers(out, layers, overwrite=overwrite)
    report.wrote("layers", out)
    kind = "cells" if found.has_cells else "classes"
    cleaning = found.cleaning
    lines = [str(cleaning)]
    if places.problems:
        lines.append("of the table: " + ", ".join(f"{count} {name}" for name, count in places.problems.items()))
    if places.first_problem:
        lines.append(places.first_problem)
    if found.outside:
        lines.append(f"{found.outside} images are in no class")
    if not found.tiles_sphere:
        lines.append(f"the {kind} do not tile the sphere: {_use(found.has_cells)}")
    lines.append(f"wrote {len(found)} {kind} of {cleaning.used - found.outside} images to {out}")
    counts = {"cells": len(found), "images": cleaning.used - found.outside, "outside": found.outside}
    counts |= {name: getattr(cleaning, name) for name in ("not_finite", "out_of_range", "zero_zero", "duplicates")}
    report.result("\n".join(lines), counts=counts | {"suspected_swapped": cleaning.suspected_swapped})


def _in_words_of_the_command(message: str, names: Iterable[str] = tuple(_OPTIONS)) -> str:
    """Name options as they are written here, not as in a TOML file."""
    for name in names:
        message = re.sub(rf"\b{name}\b", _OPTIONS[name], message)
    return message


def _use(has_cells: bool) -> str:  # noqa: FBT001  (one fact, one word)
    if has_cells:
        return "a classifier (cross_entropy) has no density outside them"
    return "they can begin a mixture (mvmf), not a classifier (cross_entropy)"
