"""The main job on real imagery: where satellite chips of NASA's Blue Marble lie, in months and blocks never seen.

    python experiments/blue_marble.py --data FOLDER --land ne_50m_land.json --out WORK

FOLDER holds world.2004MM.3x5400x2700.jpg for eight months (NASA Earth Observatory, Blue Marble Next Generation,
R. Stoeckli et al. 2005; public domain), the land is Natural Earth's. Training sees four months, and no place in the
test blocks; around a fifth of these it also keeps 475 km away. Writes docs/experiments/blue_marble.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import record
import scores
import shapely
from imagery import BLOCK, BUFFERED, NEW, ROAM, SIZE, Bar, cut_split, georeference, group_of, kept_out, land_area
from matplotlib import colors
from matplotlib.figure import Figure
from record import HERE

from geo_mvmf import durable, evaluation, metrics, predicting, predictions, progress, resampling, sphere
from geo_mvmf.inputs import images, tables
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.maps import estimates
from geo_mvmf.model import training
from geo_mvmf.model.bundle import Bundle
from geo_mvmf.model.configuration import config_from_dict
from geo_mvmf.model.neighbours import NearestNeighbours

FloatArray = npt.NDArray[np.float64]

TRAINED, UNSEEN = ("01", "04", "07", "10"), ("02", "05", "08", "11")
THRESHOLDS_KM = (25.0, 200.0, 750.0, 2500.0)
KEPT = {"places": 12000, "test_places": 1500, "steps": None}  # options of the run that is kept with the project
PARTS = ("cut chips", "train", "predict", "evaluate")


def main() -> None:
    """Run what is not done yet, and write the results."""
    options = read_options()
    options.out.mkdir(parents=True, exist_ok=True)
    clock = Clock(options.out / "seconds.json")
    months = georeference(options.data, options.out / "months")
    land = land_area(options.land)
    cut_split(months, TRAINED, options.out, land=land, places=options.places, test_places=options.test_places)
    clock.lap("cut chips")
    bundle = train(options)
    clock.lap("train")
    table = tables.read_image_table(options.out / "test" / "chips.csv")
    table["group"] = group_of(table["longitude"].to_numpy(), table["latitude"].to_numpy())
    found = predict(bundle, table, options.out / "predictions.nc")
    clock.lap("predict")
    judged = judge(found)
    judged["neighbour_error_km"], judged["nearest_km"] = yardstick(options.out)
    clock.lap("evaluate")
    table = summarise(judged)
    text = page(table, by_latitude(judged), options)
    record.write("blue_marble", text, table, picture(judged, land), facts(options, bundle, clock))


def read_options() -> argparse.Namespace:
    """Read the command line; without the data say so and stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of world.2004MM.3x5400x2700.jpg")
    parser.add_argument("--land", type=Path, required=True, help="Natural Earth's land polygons, 1:50 m")
    parser.add_argument("--out", type=Path, required=True, help="working folder; what is there is used again")
    parser.add_argument("--places", type=int, default=KEPT["places"], help="training places of each of four months")
    parser.add_argument(
        "--test-places", type=int, default=KEPT["test_places"], help="test places, each in eight months"
    )
    parser.add_argument("--steps", type=int, help="fewer training steps than blue_marble.toml says, to try it")
    options = parser.parse_args()
    for path in (options.data, options.land):
        if not path.exists():
            sys.exit(f"skipped: {path} is not there; this experiment needs the Blue Marble and Natural Earth files")
    return options


class Clock:
    """Seconds of every part, kept in a file: what a later run uses again was paid for in an earlier one."""

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.laps: dict[str, float] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        self.last = time.monotonic()

    def lap(self, name: str) -> None:
        """Note how long a part took; an interrupted one counts from where it went on."""
        now = time.monotonic()
        print(f"{name}: {now - self.last:.0f} s", flush=True)
        self.laps[name], self.last = max(now - self.last, self.laps.get(name, 0.0)), now
        durable.write_json(self.kept, self.laps, overwrite=True)


def train(options: argparse.Namespace) -> Bundle:
    """Train as blue_marble.toml says; a second run goes on, or uses what is there."""
    values = tomllib.loads((HERE / "blue_marble.toml").read_text(encoding="utf-8"))
    values |= {"table": str(options.out / "training" / "chips.csv"), "out": str(options.out / "run")}
    if options.steps:
        values["steps"] = options.steps
    return training.train(config_from_dict(values), report=Bar())


def predict(bundle: training.Bundle, table: Any, out: Path) -> predictions.Predictions:
    """Predict the test chips, unless that was done."""
    found = predicting.finished(bundle, table, out)
    return found or progress.run(predicting.predict_job(bundle, table, out=out, overwrite=True, batch_size=128), Bar())


def judge(found: predictions.Predictions) -> pd.DataFrame:
    """One row per test image: place, month, group, errors of both estimators, NLL, searched probability."""
    rows = found.rows.reset_index(drop=True)
    judged = (
        evaluation.evaluate(found)
        .images()
        .join(rows[["true_longitude", "true_latitude", "season", "area_90_km2"]].rename(columns={"season": "month"}))
    )
    judged["group"] = rows["group"].to_numpy()
    judged["month"] = [f"{int(month):02d}" for month in judged["month"]]  # a table reads them as numbers
    mode = estimates.estimate(found.mixture, "mode")
    judged["mode_error_km"] = sphere.great_circle_distance_km(
        *mode.T, judged["true_longitude"].to_numpy(), judged["true_latitude"].to_numpy()
    )
    return judged


def yardstick(out: Path) -> tuple[FloatArray, FloatArray]:
    """Error of copying the place of the chip with the most similar thumbnail; distance to the nearest chip."""
    training_chips, test = (pd.read_csv(out / name / "chips.csv") for name in ("training", "test"))
    side = SIZE + 2 * ROAM
    features = thumbnails(out / "training", training_chips, ImageSpec(side, SIZE))
    neighbours = NearestNeighbours(features, training_chips["longitude"], training_chips["latitude"])
    copied = neighbours.predict(thumbnails(out / "test", test, ImageSpec(SIZE, SIZE)))
    truth = test["longitude"].to_numpy(), test["latitude"].to_numpy()
    once = training_chips.drop_duplicates(["longitude", "latitude"])
    corners = (sphere.to_directions(frame["longitude"], frame["latitude"]) for frame in (once, test))
    by_place = NearestNeighbours(next(corners), once["longitude"], once["latitude"]).predict(next(corners))
    distances = [sphere.great_circle_distance_km(*guess.T, *truth) for guess in (copied, by_place)]
    return distances[0], distances[1]


def thumbnails(folder: Path, table: pd.DataFrame, spec: ImageSpec) -> npt.NDArray[np.float32]:
    """8 x 8 RGB means of chips, (N, 192)."""
    paths = [folder / path for path in table["path"]]
    found = []
    for pixels in images.read_images(paths, spec):
        blocks = pixels.reshape(3, 8, SIZE // 8, 8, SIZE // 8)
        found.append(blocks.mean(axis=(2, 4), dtype=np.float32).ravel())
    return np.array(found)


def summarise(judged: pd.DataFrame) -> pd.DataFrame:
    """One row per group and kind of month."""
    lines = []
    for group in (NEW, BLOCK, BUFFERED):
        for kind, months in (("trained", TRAINED), ("unseen", UNSEEN)):
            chosen = judged[(judged["group"] == group) & judged["month"].isin(months)]
            if len(chosen):
                lines.append({"places": group, "months": kind, **line_of(chosen)})
    return pd.DataFrame(lines)


def line_of(chosen: pd.DataFrame) -> dict[str, Any]:
    """All figures of one row."""
    test = chosen.rename(columns={"true_longitude": "longitude", "true_latitude": "latitude"})
    together = scores.clusters_of(test)
    median = resampling.median_of_clusters(chosen["error_km"], together)
    shares = metrics.accuracy_at_km(chosen["error_km"], THRESHOLDS_KM)
    nll = resampling.mean_of_clusters(chosen["nll"], together)
    return {
        "n_places": len(chosen) // chosen["month"].nunique(),
        "n_images": len(chosen),
        "median_km": median.value,
        "median_low": median.low,
        "median_high": median.high,
        "mode_median_km": float(chosen["mode_error_km"].median()),
        **{f"at_{km:.0f}_km": share for km, share in zip(THRESHOLDS_KM, shares.value, strict=True)},
        "nll": nll.value,
        "nll_low": nll.low,
        "nll_high": nll.high,
        "covered_90": float((chosen["searched_probability"] <= 0.9).mean()),
        "neighbour_median_km": float(chosen["neighbour_error_km"].median()),
        "nearest_training_km": float(chosen["nearest_km"].median()),
        "chance_median_km": chance(chosen),
    }


def chance(chosen: pd.DataFrame) -> float:
    """Median distance to the place of another, random test image."""
    longitude, latitude = (chosen[f"true_{name}"].to_numpy() for name in ("longitude", "latitude"))
    order = np.random.default_rng(0).permutation(len(chosen))
    return float(np.median(sphere.great_circle_distance_km(longitude, latitude, longitude[order], latitude[order])))


def by_latitude(judged: pd.DataFrame) -> pd.DataFrame:
    """Median error of new places in unseen months by latitude: the tropics hardly change over the year."""
    chosen = judged[(judged["group"] == NEW) & judged["month"].isin(UNSEEN)]
    bands = pd.cut(chosen["true_latitude"], [-60.0, -30.0, 0.0, 30.0, 50.0, 70.0])
    found = chosen.groupby(bands, observed=True)["error_km"].agg(["size", "median"])
    return found.reset_index(names="latitude").rename(columns={"size": "n_images", "median": "median_km"})


def facts(options: argparse.Namespace, bundle: Bundle, clock: Clock) -> dict[str, str]:
    """What a reader needs to do it again, beside what every experiment says."""
    summary = bundle.metadata["training"]
    return {
        "test": f"{options.test_places} places in every month",
        "seconds": ", ".join(f"{name} {clock.laps[name]:.0f}" for name in PARTS if name in clock.laps),
        "training": f"{summary['steps']} steps of {summary['batch_size']} images, seed {summary['seed']}",
        "inputs": record.inputs(*sorted(options.data.glob("world.2004*.jpg")), options.land),
    }


def page(table: pd.DataFrame, latitudes: pd.DataFrame, options: argparse.Namespace) -> str:
    """Lay the results out in Markdown."""
    head = (
        "places", "months", "places (images)", "median km (95 %)", "by mode", "≤ 25", "≤ 200", "≤ 750", "≤ 2500 km",
        "NLL (95 %)", "truth in the 90 % region", "nearest neighbour, km", "nearest training chip, km", "chance, km",
    )  # fmt: skip
    lines = [
        [
            row.places,
            row.months,
            f"{row.n_places} ({row.n_images})",
            f"**{row.median_km:.0f}** ({row.median_low:.0f}–{row.median_high:.0f})",
            f"{row.mode_median_km:.0f}",
            *(f"{getattr(row, f'at_{km:.0f}_km'):.2f}" for km in THRESHOLDS_KM),
            f"{row.nll:.2f} ({row.nll_low:.2f}–{row.nll_high:.2f})",
            f"{row.covered_90:.0%}",
            f"{row.neighbour_median_km:.0f}",
            f"{row.nearest_training_km:.0f}",
            f"{row.chance_median_km:.0f}",
        ]
        for row in table.itertuples()
    ]
    bands = [(row.latitude, row.n_images, f"{row.median_km:.0f}") for row in latitudes.itertuples()]
    text, reading = ((HERE / f"blue_marble_{name}.md").read_text(encoding="utf-8") for name in ("text", "reading"))
    return text.format(
        places=options.places,
        table=record.rows(head, lines),
        latitudes=record.rows(("latitude", "images", "median km"), bands),
        reading=record.reading(reading, was_read=KEPT.items() <= vars(options).items()),
    )


def picture(judged: pd.DataFrame, land: shapely.Geometry) -> Figure:
    """Draw the errors on a map, unseen months only, with the test blocks and the coasts."""
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for polygon in shapely.get_parts(kept_out()):
        axes.fill(*polygon.exterior.xy, color="#e8e4d8", zorder=0)
    for polygon in shapely.get_parts(land):
        axes.plot(*polygon.exterior.xy, color="#8a8a8a", linewidth=0.4, zorder=1)
    chosen = judged[judged["month"].isin(UNSEEN)].groupby(["true_longitude", "true_latitude"])["error_km"].median()
    longitude, latitude = np.array(chosen.index.to_list()).T
    norm = colors.LogNorm(20.0, 10_000.0)
    dots = axes.scatter(longitude, latitude, c=chosen, s=12, cmap="cividis_r", norm=norm, linewidths=0, zorder=2)
    figure.colorbar(dots, label="error, km (median of the unseen months)", shrink=0.8)
    axes.set(xlim=(-180, 180), ylim=(-60, 72), aspect="equal", xlabel="longitude", ylabel="latitude")
    axes.set_title("Blue Marble chips: error in months never trained on; shaded: no training chip is centred here")
    return figure


if __name__ == "__main__":
    main()
