"""The real imagery of the experiments: chips of NASA's Blue Marble, their splits, and features of a frozen backbone.

The eight months are one year of one sensor. What training has seen is told apart in two ways: by month (a month that
it saw, one beside it, a whole season that it never saw) and by place (new places between those of training, blocks of
10 by 15 degrees left out, and some of these with a buffer, whose chips share no pixel with training).
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
import torch

from geo_mvmf import progress, sphere, terminal
from geo_mvmf.inputs import chips, places, polygons, scenes, tables
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.model import training
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.configuration import config_from_dict
from geo_mvmf.model.features import cache_features

FloatArray = npt.NDArray[np.float64]

MONTHS = ("01", "02", "04", "05", "07", "08", "10", "11")
GROUND_KM, SIZE, ROAM = 475.0, 64, 2  # of a chip; it is cut larger by ROAM on every side, where crops may roam
PIXEL_KM = GROUND_KM / SIZE
BUFFER_KM = 475.0
KM_PER_DEGREE = np.pi / 180.0 * sphere.EARTH_RADIUS_KM
NEW, BLOCK, BUFFERED, BESIDE = "new places", "test blocks", "test blocks + 475 km buffer", "in a buffer"

# Of the figures and of Table 1: three seasons are trained in one of their months each, and autumn is never seen.
TRAINED = ("01", "04", "07")
KINDS = {"02": "month unseen", "05": "month unseen", "08": "month unseen", "10": "season unseen", "11": "season unseen"}
PICTURE = "world.2004{}.3x5400x2700.jpg"  # of a month
FILES = {
    "countries": "natural_earth/ne_50m_admin_0_countries.json",
    "land": "natural_earth/ne_50m_land.json",
    "points": "photo_points/coordinates_100K.csv",
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is done.

    Parameters
    ----------
    places, test_places : int
        Training places of each of three months; test places, each cut in five months.
    backbone_steps, head_steps, finetune_steps : int
    head_batch : int
        Features of one step of a head.
    powers : tuple of int
        log2 of the numbers of components of Figure 5.
    fixed_power : int
        log2 of the number of components of Figure 4 and Table 1.
    seeds : int
    """

    places: int
    test_places: int
    backbone_steps: int
    head_steps: int
    finetune_steps: int
    head_batch: int
    powers: tuple[int, ...]
    fixed_power: int
    seeds: int


SCALES = {
    "small": Scale(8000, 1500, 1500, 800, 700, 256, (4, 5, 6, 7, 8, 9, 10, 11, 12), 11, 2),
    "full": Scale(40_000, 6000, 40_000, 20_000, 40_000, 512, tuple(range(4, 18)), 15, 5),
}


class Bar(terminal.Reporter):
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self) -> None:
        super().__init__("bar" if sys.stderr.isatty() else "none")


def missing(data: Path, needs: tuple[str, ...]) -> str:
    """Say which files a data folder lacks; empty where it has all.

    Parameters
    ----------
    data : Path
    needs : tuple of str
        "blue_marble" or keys of `FILES`.

    Returns
    -------
    str
    """
    files = [FILES[name] for name in needs if name in FILES]
    files += [f"blue_marble/{PICTURE.format(month)}" for month in MONTHS if "blue_marble" in needs]
    if not (lacking := [name for name in files if not (data / name).is_file()]):
        return ""
    return (
        f"{data} lacks {len(lacking)} of the {len(files)} files that this needs: {', '.join(lacking)}. "
        "docs/experiments/README.md says what they are and which folder to give (the one that holds blue_marble)"
    )


def read_options(text: str, *, needs: tuple[str, ...] = ()) -> argparse.Namespace:
    """Read the command line of an experiment on imagery; without the data say so and stop.

    Parameters
    ----------
    text : str
        The script's docstring.
    needs : tuple of str
        "blue_marble" or keys of `FILES`.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with blue_marble, natural_earth, photo_points")
    parser.add_argument("--out", type=Path, required=True, help="working folder; what is there is used again")
    parser.add_argument("--scale", choices=SCALES, default="small")
    options = parser.parse_args()
    if lacking := missing(options.data, needs or ("blue_marble", "countries", "land")):
        sys.exit(lacking)
    options.out /= options.scale  # what one scale left there is not the other's
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def georeference(data: Path, folder: Path, months: tuple[str, ...] = MONTHS) -> dict[str, Path]:
    """Give the pictures of the whole Earth their place."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for month in months:
        found[month] = folder / f"{month}.tif"
        if not found[month].exists():
            picture = data / PICTURE.format(month)
            scenes.georeference(picture, found[month], bounds=(-180.0, -90.0, 180.0, 90.0))
    return found


def land_area(file: Path) -> shapely.Geometry:
    """Land between 60 S and 70 N: further south the months are copies of each other."""
    return shapely.intersection(
        polygons.union_area(polygons.read_polygons(file)), shapely.box(-180.0, -60.0, 180.0, 70.0)
    )


def cut(seasons: Mapping[str, Path], folder: Path, **wishes: Any) -> None:
    """Cut chips, unless they are there."""
    if not folder.exists():
        progress.run(chips.cut_chips(seasons, folder, **wishes), Bar())


def cut_split(
    months: Mapping[str, Path],
    trained: tuple[str, ...],
    out: Path,
    *,
    land: shapely.Geometry,
    places: int,
    test_places: int,
    tested: tuple[str, ...] = MONTHS,
) -> None:
    """Cut OUT/training, away from the test blocks, and OUT/test, everywhere.

    Other places in every month of training: so many times as many as if each were cut in all, and a month is no copy
    of another. Test places are the same in every month.
    """
    side = SIZE + 2 * ROAM
    for_training = {"count": places, "places": "independent", "size": side, "ground_km": PIXEL_KM * side, "seed": 1}
    for_test = {"count": test_places, "size": SIZE, "ground_km": GROUND_KM, "seed": 2}
    with futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        test = other.submit(cut, {month: months[month] for month in tested}, out / "test", area=land, **for_test)
        seasons = {month: months[month] for month in trained}
        cut(seasons, out / "training", area=land.difference(kept_out()), **for_training)
        test.result()


def kept_out() -> shapely.Geometry:
    """Where no training chip may be centred, wherever its crop roams: test blocks, some of them with a buffer."""
    found = []
    for row in range(-9, 9):
        for column in range(-12, 12):
            west, south = 15.0 * column, 10.0 * row
            if places.in_test_block(west + 7.5, south + 5.0):
                pad = ROAM * PIXEL_KM + (BUFFER_KM if is_buffered(west + 7.5) else 0.0)
                found.append(padded(west, south, west + 15.0, south + 10.0, pad))
    return shapely.union_all(found)


def is_buffered(longitude: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Whether training keeps away from a test block by `BUFFER_KM`: every fifth column of blocks."""
    column = np.floor(((np.asarray(longitude) + 180.0) % 360.0) / 15.0)
    return np.asarray(column % 5 == 2)


def padded(west: float, south: float, east: float, north: float, pad_km: float) -> shapely.Geometry:
    """Give a block grown by some kilometres on every side, also over 180 degrees."""
    down = pad_km / KM_PER_DEGREE
    furthest = min(max(abs(south), abs(north)) + down, 85.0)
    across = down / np.cos(np.radians(furthest))
    boxes = [
        shapely.box(west - across + turn, south - down, east + across + turn, north + down) for turn in (-360, 0, 360)
    ]
    return shapely.intersection(shapely.union_all(boxes), shapely.box(-180.0, -90.0, 180.0, 90.0))


def group_of(longitude: FloatArray, latitude: FloatArray) -> npt.NDArray[np.str_]:
    """Which kind of test place each place is."""
    tested = places.in_test_block(longitude, latitude)
    near = shapely.contains_xy(kept_out(), longitude, latitude)
    return np.select([tested & is_buffered(longitude), tested, near], [BUFFERED, BLOCK, BESIDE], NEW)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Features of a backbone that learnt countries and then stays as it is, standardised by those of training.

    Parameters
    ----------
    training, test : DataFrame
        The chips' tables; of the test chips also `group` (by place) and `kind` (by month).
    features, test_features : array of float32, (N, D)
    weights : Path
        The backbone's.
    facts : mapping
        What a page says of them.
    """

    training: pd.DataFrame
    test: pd.DataFrame
    features: npt.NDArray[np.float32]
    test_features: npt.NDArray[np.float32]
    weights: Path
    facts: Mapping[str, str]

    def chosen(self, group: str, kind: str | None = None) -> npt.NDArray[np.int64]:
        """Rows of the test chips of one kind of place and, unless None, one kind of month."""
        is_kind = True if kind is None else self.test["kind"] == kind
        return np.flatnonzero((self.test["group"] == group) & is_kind)


BACKBONE = {
    "backbone": "chip_resnet10",
    "backbone_width": 32,
    "stem_stride": 2,
    "embedding": 256,
}
OPTIMISER = {
    "optimiser": "adamw",
    "learning_rate": 1.4e-3,
    "weight_decay": 5e-2,
    "gradient_clip": 5.0,
    "schedule": "cosine",
    "warmup_steps": 100,
    "batch_size": 64,
    "precision": "auto",
    "seed": 0,
    "augment": {"roam": ROAM, "channel_gain": 0.15, "channel_offset": 0.05},
}


def frozen_features(data: Path, out: Path, scale: Scale) -> Frozen:
    """Cut chips, train a backbone on countries as the paper does (section 3.1), and keep its features.

    What is in the working folder is used again.
    """
    months = georeference(data / "blue_marble", out / "months")
    land = land_area(data / FILES["land"])
    cut_split(
        months, TRAINED, out, land=land, places=scale.places, test_places=scale.test_places, tested=tuple(KINDS)
    )  # fmt: skip
    values = BACKBONE | OPTIMISER | {
        "stage": "backbone",
        "table": str(out / "training" / "chips.csv"),
        "out": str(out / "countries"),
        "polygons": str(data / FILES["countries"]),
        "label_column": "ADM0_A3",
        "steps": scale.backbone_steps,
        "validation": "none",
        "augment": {name: value for name, value in OPTIMISER["augment"].items() if name != "roam"},
    }  # fmt: skip
    progress.run(training.train_job(config_from_dict(values)), Bar())
    weights = out / "countries" / "backbone.safetensors"
    own = {name: value for name, value in BACKBONE.items() if name != "backbone"}
    backbone = build_backbone(
        BACKBONE["backbone"], weights=str(weights),
        width=own["backbone_width"], stem_stride=own["stem_stride"], embedding=own["embedding"],
    )  # fmt: skip
    tables_of, features = [], []
    for name, resize in (("training", SIZE + 2 * ROAM), ("test", SIZE)):
        table = tables.read_image_table(out / name / "chips.csv")
        cache = progress.run(cache_features(backbone, table, out / "features", spec=ImageSpec(resize, SIZE)), Bar())
        tables_of.append(pd.DataFrame(table.drop(columns="geometry")))
        features.append(cache.rows(np.arange(len(table))))
    mean, spread = features[0].mean(axis=0), features[0].std(axis=0) + 1e-6
    train_table, test = tables_of
    test["group"] = group_of(test["longitude"].to_numpy(), test["latitude"].to_numpy())
    test["kind"] = [KINDS[f"{int(month):02d}"] for month in test["season"]]
    facts = {
        "training": f"{len(train_table)} chips of {GROUND_KM:.0f} km in months {', '.join(TRAINED)}; backbone "
        f"chip_resnet10, {scale.backbone_steps} steps of 64 on countries; features {features[0].shape[1]}, frozen",
        "test": f"{scale.test_places} places in months {', '.join(KINDS)}",
    }
    standardised = [(each - mean) / spread for each in features]
    return Frozen(train_table, test, *standardised, weights, facts)


def single_thread() -> None:
    """Let a worker process compute on one core: two runs side by side are faster than one on two cores."""
    torch.set_num_threads(1)


def data_files(data: Path) -> list[Path]:
    """The files that experiments on imagery read."""
    return [*sorted((data / "blue_marble").glob(PICTURE.format("*"))), data / FILES["countries"], data / FILES["land"]]


def main() -> None:
    """Make the frozen features, for all experiments that use them."""
    options = read_options(__doc__)
    frozen = frozen_features(options.data, options.out, SCALES[options.scale])
    count, number = frozen.features.shape
    print(f"{count} training and {len(frozen.test_features)} test chips, {number} features each")


if __name__ == "__main__":
    main()
