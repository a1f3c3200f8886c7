"""Partitions of real places: tiling of the sphere at every size, evenness of the counts, and cost.

    python experiments/partitions.py --points FILE

FILE is a table with longitudes and latitudes, such as the 100,000 Flickr photos of the MP-16 set that GeoCLIP publishes
(Vivanco Cepeda, Nayak and Shah 2023, MIT licence). Writes docs/experiments/partitions.md and .png.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import record
from matplotlib import collections, colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geo_mvmf import sphere
from geo_mvmf.inputs.photo_places import read_photo_places
from geo_mvmf.model.classes import Partition, spacing
from geo_mvmf.model.kmeans import partition_by_kmeans
from geo_mvmf.model.partition import PartitionWarning, partition_by_thresholds, partition_sphere
from geo_mvmf.partition_layer import partition_layer

FloatArray = npt.NDArray[np.float64]

POWERS = range(4, 16)
THRESHOLDS = ((2000, 50), (500, 20), (100, 5))
CLASSES = (1026, 8193)
REPEATS = 5
HEAD = ["at least", "cells", "error of the area", "largest count", "median count", "empty", "levels", "CPU seconds"]
TILED = 1e-9  # relative error of the sum of areas that is allowed


def main() -> None:
    """Make all partitions, check them, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=Path, required=True, help="table with longitudes and latitudes")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of every timing")
    options = parser.parse_args()
    if not options.points.exists():
        sys.exit(f"skipped: {options.points} is not there; this experiment needs a table of places of photos")
    warnings.simplefilter("ignore", PartitionWarning)  # what thresholds drop is in the table
    begun = time.monotonic()
    places = read_photo_places(options.points)
    where = places.longitude, places.latitude
    cells = [of_cells(2**power, where, options.repeats) for power in POWERS]
    others = [*of_thresholds(where, options.repeats), *(of_kmeans(number, where) for number in CLASSES)]
    cleaning = partition_sphere(*where, 6).cleaning
    figure = draw(where)
    facts = {
        "seconds": f"{time.monotonic() - begun:.0f} in all",
        "repeats": f"{options.repeats} of S2 cells and of thresholds, k-means once",
        "inputs": record.inputs(options.points),
    }
    record.write("partitions", page(str(cleaning), cells, others), pd.DataFrame(cells, columns=HEAD), figure, facts)


def timed(make: Callable[[], Partition], repeats: int) -> tuple[Partition, str]:
    """Make a partition several times; median and range of the seconds of this process."""
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        found = make()
        seconds.append(time.process_time() - begun)
    if repeats == 1:
        return found, f"{seconds[0]:.1f}"
    return found, f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def of_cells(wanted: int, where: tuple[FloatArray, FloatArray], repeats: int) -> list[str]:
    """One row of the table of S2 cells; stops where they do not tile the sphere."""
    found, seconds = timed(lambda: partition_sphere(*where, wanted), repeats)
    error = abs(found.area_sr.sum() / (4.0 * math.pi) - 1.0)
    if not found.tiles_sphere or error > TILED or found.counts.sum() != found.cleaning.used:
        sys.exit(
            f"{len(found)} cells do not tile the sphere: areas differ by {error:.1e} from 4 pi, or places are lost"
        )
    levels = f"{found.levels.min()} to {found.levels.max()}"
    empty = int((found.counts == 0).sum())
    middle = float(np.median(found.counts[found.counts > 0]))
    return [
        f"{wanted}", f"{len(found)}", f"{error:.0e}", f"{found.counts.max()}", f"{middle:g}", f"{empty}", levels,
        seconds,
    ]  # fmt: skip


def of_thresholds(where: tuple[FloatArray, FloatArray], repeats: int) -> list[list[str]]:
    """Rows of PlaNet's rule."""
    rows = []
    for above, below in THRESHOLDS:
        make = lambda t1=above, t2=below: partition_by_thresholds(*where, split_above=t1, drop_below=t2)  # noqa: E731
        found, seconds = timed(make, repeats)
        share = found.area_sr.sum() / (4.0 * math.pi)
        left_out = f"{found.dropped_cells} cells, {found.outside} photos, {1.0 - share:.0%} of the sphere"
        rows.append([f"thresholds {above}, {below}", *summary(found), left_out, seconds])
    return rows


def of_kmeans(number: int, where: tuple[FloatArray, FloatArray]) -> list[str]:
    """One row of k-means, beside as many S2 cells."""
    found, seconds = timed(lambda: partition_by_kmeans(*where, number), 1)
    return [f"k-means, {number}", *summary(found), "nothing; no areas", seconds]


def summary(found: Partition) -> list[str]:
    """Classes, largest and median count, median distance between neighbouring mean directions."""
    km = float(np.median(spacing(found.mean_directions))) * sphere.EARTH_RADIUS_KM
    return [f"{len(found)}", f"{found.counts.max()}", f"{np.median(found.counts):g}", f"{km:.0f}"]


def page(cleaning: str, cells: list[list[str]], others: list[list[str]]) -> str:
    """The text of the page."""
    more = ["rule", "classes", "largest count", "median count", "median spacing, km", "left out", "CPU seconds"]
    return f"""# Partitions of the places of 100,000 photos

![S2 cells, thresholds and k-means on a map](partitions.png)

{cleaning}.

## S2 cells, the fullest split first

Every size tiles the sphere: the ids of the cells follow each other without gap or overlap, their areas add up to 4 pi
within {TILED:g} (the relative error is in the table), and every photo is in exactly one. The median is of cells with
photos; empty cells are kept, because a prediction must be able to say "nowhere near any photo".

{record.rows(HEAD, cells)}

## Other rules on the same photos

{record.rows(more, others)}

- **Thresholds** (PlaNet: split above the first, leave out below the second; PlaNet's own 10,000 and 50 were for 91
  million photos) leave a part of the sphere without any class, the more the smaller the cells are: a classifier of them
  has no density there.
- **k-means** puts a mean direction where photos are, none where there are none, and its classes have no areas. It evens
  out distances and not counts: towns stay one class, and their counts are far above those of as many S2 cells.
- **Spacing** is the mean distance to the four nearest mean directions, from which components without cells get their
  initial log concentration.

Photos: positions of Flickr photos from the MP-16 set, as published with GeoCLIP (Vivanco Cepeda, Nayak and Shah,
NeurIPS 2023; MIT licence). Positions only, there are no photos.
"""


def draw(where: tuple[FloatArray, FloatArray]) -> Figure:
    """Draw four partitions."""
    figure = Figure(figsize=(13, 5.9), layout="constrained")
    axes = figure.subplots(2, 2)
    show_cells(axes[0, 0], partition_sphere(*where, 2**8), "S2 cells, at least 2^8")
    show_cells(axes[0, 1], partition_sphere(*where, 2**12), "S2 cells, at least 2^12")
    show_cells(axes[1, 0], partition_by_thresholds(*where, split_above=500, drop_below=20), "thresholds 500, 20")
    show_points(axes[1, 1], partition_by_kmeans(*where, 1026), "k-means, 1026 classes")
    return figure


def show_cells(axis: Axes, partition: Partition, title: str) -> None:
    """Colour cells by their photos per area."""
    layer = partition_layer(partition)
    rings, values = [], []
    for shape, images, area in zip(layer.geometry, layer["images"], layer["area_km2"], strict=True):
        for part in shape.geoms:
            rings.append(np.asarray(part.exterior.coords))
            values.append(images / area)
    floor = min(value for value in values if value > 0.0)
    drawn = collections.PolyCollection(rings, cmap="viridis", norm=colors.LogNorm(floor, max(values)), linewidths=0.12)
    drawn.set_array(np.ma.masked_equal(values, 0.0))
    drawn.get_cmap().set_bad("0.85")
    drawn.set_edgecolor((1.0, 1.0, 1.0, 0.4))  # thin: in towns there is hardly anything but edges
    axis.add_collection(drawn)
    axis.figure.colorbar(drawn, ax=axis, label="photos per km²", shrink=0.8)
    frame(axis, f"{title}: {len(partition)}")


def show_points(axis: Axes, partition: Partition, title: str) -> None:
    """Draw mean directions, as large as they have photos."""
    x, y = sphere.to_longitude_latitude(partition.mean_directions)
    drawn = axis.scatter(x, y, s=2.0 + partition.counts / 20.0, c=partition.counts, norm=colors.LogNorm(), linewidths=0)
    axis.figure.colorbar(drawn, ax=axis, label="photos", shrink=0.8)
    frame(axis, title)


def frame(axis: Axes, title: str) -> None:
    """Show the whole sphere."""
    axis.set(xlim=(-180, 180), ylim=(-90, 90), title=title, aspect="equal")
    axis.set(xticks=range(-180, 181, 60), yticks=range(-90, 91, 30))
    axis.tick_params(labelsize=7)


if __name__ == "__main__":
    main()
