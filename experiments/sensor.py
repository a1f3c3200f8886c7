"""What robustness against another sensor's colours costs on the own sensor, and what it gains on recoloured chips.

    python experiments/sensor.py --data FOLDER --out WORK [--scale small|full]

FOLDER is described in docs/experiments/README.md. One small network is trained four times: with and without colour
augmentation, with images normalised by fixed numbers or each by itself. Test chips are of new places in months not
trained on, as they are and recoloured by fixed, seeded gains, offsets and powers per band, beyond what the augmentation
draws. Writes docs/experiments/sensor.{md,csv,png}.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import imagery
import numpy as np
import numpy.typing as npt
import pandas as pd
import record
import torch
from matplotlib.figure import Figure

from geo_mvmf import resampling, sphere
from geo_mvmf.inputs import images
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.model import training
from geo_mvmf.model.bundle import Bundle
from geo_mvmf.model.configuration import config_from_dict
from geo_mvmf.model.measurement import errors_of, losses_of

Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Every how many-th of the chips is used, and steps of each training."""

    every: int
    every_test: int
    steps: int
    width: int


SCALES = {"small": Scale(5, 5, 500, 16), "full": Scale(1, 1, 20_000, 64)}

ROBUST = {
    "channel_gain": 0.25,
    "channel_offset": 0.08,
    "gamma": 0.4,
    "contrast": 0.2,
    "saturation": 0.3,
    "brightness": 0.05,
    "scale": 0.05,
    "noise": 0.01,
}
ARMS = {
    "plain": ("fixed", {}),
    "colour augmentation": ("fixed", ROBUST),
    "normalised by image": ("image", {}),
    "both": ("image", ROBUST),
}
# At strength 1, per band: factors of the power and of the gain at most, and what is added, of 0..1. The augmentation
# draws no power per band, and powers to 1.4, gains to 1.25 and offsets to 0.08.
MOST_POWER, MOST_GAIN, MOST_OFFSET = 1.8, 1.5, 0.15
STRENGTHS = (0.0, 0.5, 1.0)
RECOLOURINGS = 6
MONTHS = ("02", "05", "08")


def main() -> None:
    options = imagery.read_options(__doc__)
    scale = SCALES[options.scale]
    whole = imagery.SCALES[options.scale]
    months = imagery.georeference(options.data / "blue_marble", options.out / "months")
    imagery.cut_split(
        months, imagery.TRAINED, options.out, land=imagery.land_area(options.data / imagery.FILES["land"]),
        places=whole.places, test_places=whole.test_places, tested=tuple(imagery.KINDS),
    )  # fmt: skip
    chips, test = training_chips(options, scale), test_chips(options, scale)
    pixels = read(options, test)
    parts = []
    for name, (normalisation, augment) in ARMS.items():
        bundle = train(options, scale, name, normalisation, augment)
        parts.append(measure(bundle, test, pixels).assign(arm=name))
    table = pd.concat(parts, ignore_index=True)
    facts = {
        "training": f"{chips} chips of {imagery.GROUND_KM:.0f} km in months {', '.join(imagery.TRAINED)}; "
        f"chip_resnet10 of width {scale.width}, {scale.steps} steps of 64 from random weights, 1,026 components, one "
        "seed",
        "test": f"{len(test)} chips of {test['place'].nunique()} new places in months {', '.join(MONTHS)}",
        "inputs": record.inputs(*imagery.data_files(options.data)),
    }
    summary = summarise(table)
    record.write("sensor", page(summary), summary, picture(summary, pixels), facts)


def training_chips(options: argparse.Namespace, scale: Scale) -> int:
    """Write the table of the chips that are trained on, beside the whole one, and count them."""
    folder = options.out / "training"
    chosen = pd.read_csv(folder / "chips.csv", dtype={"season": str}).iloc[:: scale.every]
    chosen.to_csv(folder / "sensor.csv", index=False)
    return len(chosen)


def test_chips(options: argparse.Namespace, scale: Scale) -> pd.DataFrame:
    """Chips of new places in months that training did not see."""
    table = pd.read_csv(options.out / "test" / "chips.csv", dtype={"season": str})
    table["place"] = table.groupby(["longitude", "latitude"]).ngroup()
    is_new = imagery.group_of(table["longitude"].to_numpy(), table["latitude"].to_numpy()) == imagery.NEW
    chosen = is_new & table["season"].isin(MONTHS) & (table["place"] % scale.every_test == 0)
    return table[chosen].reset_index(drop=True)


def read(options: argparse.Namespace, test: pd.DataFrame) -> Pixels:
    """Pixels of the test chips, (N, 3, 64, 64)."""
    paths = [options.out / "test" / path for path in test["path"]]
    return np.stack(list(images.read_images(paths, ImageSpec(imagery.SIZE, imagery.SIZE))))


def train(
    options: argparse.Namespace, scale: Scale, name: str, normalisation: str, augment: dict[str, float]
) -> Bundle:
    """Train one arm; a second run goes on, or uses what is there."""
    values = imagery.OPTIMISER | {
        "stage": "finetune",
        "table": str(options.out / "training" / "sensor.csv"),
        "out": str(options.out / "sensor" / name.replace(" ", "_")),
        "backbone": "chip_resnet10",
        "backbone_width": scale.width,
        "stem_stride": 2,
        "pool": 2,
        "normalisation": normalisation,
        "num_components": 1024,
        "train_mean_directions": True,
        "train_log_concentrations": True,
        "mean_direction_learning_rate": 1e-4,
        "concentration_learning_rate": 5e-3,
        "steps": scale.steps,
        "precision": "float32",
        "threads": 1,
        "ema_decay": 0.99,
        "validation": "none",
        "augment": {"roam": imagery.ROAM, **augment},
    }
    return training.train(config_from_dict(values), report=imagery.Bar())


def recoloured(pixels: Pixels, strength: float, number: int) -> Pixels:
    """Give all chips the colours of another sensor: a power, a gain and an offset for each band, in 8 bits."""
    generator = np.random.default_rng([7, number])
    power, gain, offset = generator.choice([-1.0, 1.0], (3, 3)) * generator.uniform(0.5, 1.0, (3, 3)) * strength
    bands = (1, 3, 1, 1)
    values = (pixels / 255.0) ** np.exp(power * np.log(MOST_POWER)).reshape(bands)
    values = values * np.exp(gain * np.log(MOST_GAIN)).reshape(bands) + (offset * MOST_OFFSET).reshape(bands)
    return np.clip(np.rint(255.0 * values), 0, 255).astype(np.uint8)


def measure(bundle: Bundle, test: pd.DataFrame, pixels: Pixels) -> pd.DataFrame:
    """One row for each test chip, strength and recolouring: error and NLL."""
    truth = torch.from_numpy(sphere.to_directions(test["longitude"], test["latitude"]))
    parts = []
    for strength in STRENGTHS:
        for number in range(RECOLOURINGS if strength else 1):
            changed = recoloured(pixels, strength, number)
            features = [bundle.predict(changed[at : at + 64])[1] for at in range(0, len(changed), 64)]
            given = bundle.head, torch.from_numpy(np.concatenate(features)), truth
            parts.append(
                pd.DataFrame(
                    {
                        "place": test["place"],
                        "strength": strength,
                        "recolouring": number,
                        "error_km": errors_of(*given),
                        "nll": losses_of(*given),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Median error and mean NLL of each arm and strength, and differences to plain.

    The 95 % intervals are over places: recolourings of one place are no new evidence.
    """
    lines = []
    for (strength, arm), own in table.groupby(["strength", "arm"], sort=False):
        plain = table[(table["strength"] == strength) & (table["arm"] == "plain")]  # the same chips, in the same order
        found = {
            "median_km": resampling.median_of_clusters(own["error_km"], own["place"]),
            "median_km_change": resampling.difference_of_medians(own["error_km"], plain["error_km"], own["place"]),
            "nll": resampling.mean_of_clusters(own["nll"], own["place"]),
            "nll_change": resampling.mean_difference(own["nll"], plain["nll"], own["place"]),
        }
        line = {"arm": arm, "strength": strength, "images": len(own)}
        for name, each in found.items():
            line |= {name: each.value, f"{name}_low": each.low, f"{name}_high": each.high}
        lines.append(line)
    return pd.DataFrame(lines)


TEXT = """# Colours of another sensor: what robustness costs at home, and what it gains abroad

One small network learnt four times where chips of NASA's Blue Marble lie: **plain**; with strong **colour
augmentation** (gain and offset of each band, gamma, contrast, saturation, brightness, a zoom of 5 %, noise); with each
image **normalised by itself** (`normalisation = "image"`: each band minus its mean, divided by its deviation); and with
**both**. The test chips are of months that no training chip is of, at new places between those of training, with
which they share pixels. They come as they are (the own sensor), and recoloured: {number} fixed recolourings, each a
power, a gain and an offset of its own for each band, the same for all chips, as another sensor's would be. At strength
1 powers are {half_power:.2g} to {power} times larger or smaller,
gains {half_gain:.2g} to {gain} times, offsets {half_offset:.2g} to {offset} of the range: beyond what the augmentation
draws, and each band by itself.

{table}

Median great-circle error of the heaviest component, and mean negative log-likelihood in nats (a uniform density has
2.53); in brackets 95 % intervals over resampled places. The change is to the plain network, on the same chips.

![Errors by strength of the recolouring, and what the recolourings look like](sensor.png)

## What it says

{text}

Strong recolourings cut dark chips off at black and bright ones at white, as the pictures show; what is cut off no
network can read. This is one small network, one seed, and a short training (a few passes over few chips): colours that
vary are harder to learn, so the price may be smaller after a long one; that was not tried. It is one year of one
sensor, and recolourings by formula: a real second sensor also has another sharpness, haze and viewing angles. The
intervals are over test places and say nothing of other seeds.
"""


def page(summary: pd.DataFrame) -> str:
    """Lay the results out and say what they show."""
    head = ("strength", "network", "median km", "change, km", "NLL", "change, nats")
    lines = [
        (
            f"{row.strength:g}{' (own sensor)' if row.strength == 0 else ''}", row.arm,
            *_cells(row, "median_km", "{:.0f}"), *_cells(row, "nll", "{:.2f}"),
        )
        for row in summary.itertuples()
    ]  # fmt: skip
    return TEXT.format(
        number=RECOLOURINGS, power=MOST_POWER, half_power=MOST_POWER**0.5, gain=MOST_GAIN, half_gain=MOST_GAIN**0.5,
        offset=MOST_OFFSET, half_offset=MOST_OFFSET / 2,
        table=record.rows(head, lines), text="\n".join(f"- {line}" for line in findings(summary)),
    )  # fmt: skip


def _cells(row: Any, name: str, form: str) -> tuple[str, str]:
    value, low, high = (form.format(getattr(row, f"{name}{end}")) for end in ("", "_low", "_high"))
    if row.arm == "plain":
        return f"{value} ({low} to {high})", ""
    signed = form.replace("{:", "{:+")
    change, least, most = (signed.format(getattr(row, f"{name}_change{end}")) for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})", f"{change} ({least} to {most})"


def findings(summary: pd.DataFrame) -> list[str]:
    """Sentences that follow from the table."""
    of = {(row.arm, row.strength): row for row in summary.itertuples()}
    plain, strong = of["plain", 0.0], of["plain", 1.0]
    what = f"from {plain.median_km:.0f} to {strong.median_km:.0f} km (NLL {plain.nll:.2f} to {strong.nll:.2f})"
    lines = [f"Recolouring at strength 1 takes the plain network {what}."]
    for arm in list(ARMS)[1:]:
        home, abroad = of[arm, 0.0], of[arm, 1.0]
        lines.append(
            f"**{arm}**: {_verdict(home)} on its own sensor ({home.median_km:.0f} against {plain.median_km:.0f} km), "
            f"{_verdict(abroad)} on chips recoloured at strength 1 ({abroad.median_km:.0f} against "
            f"{strong.median_km:.0f} km)."
        )
    best = min(list(ARMS), key=lambda arm: of[arm, 1.0].median_km)
    lines.append(
        f"Least hurt by strange colours is **{best}**: {of[best, 1.0].median_km:.0f} km at strength 1, "
        f"{of[best, 1.0].median_km / of[best, 0.0].median_km:.1f} times its error at home."
    )
    return lines


def _verdict(row: Any) -> str:
    if row.median_km_change_low <= 0 <= row.median_km_change_high:
        return "no better and no worse, as far as these chips tell,"
    return "better" if row.median_km_change < 0 else "worse"


def picture(summary: pd.DataFrame, pixels: Pixels) -> Figure:
    """Draw errors by strength, and some chips in all colours."""
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.0, 1.15))
    axes = left.add_subplot()
    for number, arm in enumerate(ARMS):
        own = summary[summary["arm"] == arm].sort_values("strength")
        x = own["strength"] + 0.012 * (number - 1.5)
        bars = np.abs(own[["median_km_low", "median_km_high"]].to_numpy().T - own["median_km"].to_numpy())
        axes.errorbar(x, own["median_km"], bars, marker="o", label=arm, capsize=2)
    axes.set(xlabel="strength of the recolouring", ylabel="median error, km", yscale="log", xticks=STRENGTHS)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    examples = np.linspace(0, len(pixels) - 1, 5).astype(int)[1:4]
    columns = [(0.0, 0), *((strength, number) for strength in STRENGTHS[1:] for number in range(3))]
    grid = right.subplots(len(examples), len(columns))
    for row, chip in zip(grid, examples, strict=True):
        for axis, (strength, number) in zip(row, columns, strict=True):
            axis.imshow(recoloured(pixels[chip : chip + 1], strength, number)[0].transpose(1, 2, 0))
            axis.set(xticks=[], yticks=[])
    for axis, (strength, number) in zip(grid[0], columns, strict=True):
        axis.set_title("own" if strength == 0 else f"{strength:g}, #{number + 1}", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
