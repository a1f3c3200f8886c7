"""The verdict on a training run, in sentences: how far to trust it, on what grounds, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from geo_mvmf import measures, metrics, resampling
from geo_mvmf.map_axes import thousands
from geo_mvmf.metrics import Estimate

if TYPE_CHECKING:
    from pathlib import Path

    from geo_mvmf.model.configuration import TrainingConfig
    from geo_mvmf.model.held_out import HeldOut
    from geo_mvmf.training_judgement import Judgement

FloatArray = npt.NDArray[np.float64]

RISE_NATS = 0.05
"""Rise of the validation NLL beyond its least, fall at the very end, or gain by a temperature, that is worth a word."""

_TOO_FEW = "too few images to tell"


def km(value: float) -> str:
    """Write a distance with two or three digits.

    Parameters
    ----------
    value : float
        Kilometres.

    Examples
    --------
    >>> km(0.1234), km(97.31), km(float("nan"))
    ('0.12 km', '97 km', 'unknown')
    """
    if not math.isfinite(value):
        return "unknown"
    return f"{value:.2g} km" if value < 10.0 else f"{thousands(value)} km"


def percent(value: float) -> str:
    """Write a share.

    Parameters
    ----------
    value : float
        0..1.

    Examples
    --------
    >>> percent(0.502)
    '50 %'
    """
    if not math.isfinite(value):
        return "unknown"
    near_an_end = 0.0 < value < 0.01 or 0.99 < value < 1.0  # where rounding would say all or none
    return f"{100.0 * value:.{1 if near_an_end else 0}f} %"


def usable_radius(judgement: Judgement) -> str:
    """Say how near to the truth the estimates are.

    Parameters
    ----------
    judgement : Judgement

    Returns
    -------
    str
    """
    half, most = judgement.within(0.5), judgement.within(0.9)
    near, far = f"within {km(half.value)} of where they are", f"nine of ten within {km(most.value)}"
    few = judgement.too_few
    if not judgement.has_intervals:
        return (
            f"Half of the held-out images looked at are placed {near}, {far}; that is too few to tell how near it "
            f"comes: {few}."
        )
    counted = " over images, not land:" if few else ""
    number, what = np.unique(judgement.clusters).size, "images" if few else "blocks"
    ends = _range(most)
    if not math.isfinite(most.high):
        ends = f"at least {km(most.low)}; {number} {what} are too few for an upper end"
    return (
        f"Half of the {judgement.evaluation.n} held-out images looked at are placed {near} (95 % interval{counted} "
        f"{_range(half)}), {far} ({ends})."
    )


def usefulness(judgement: Judgement) -> str:
    """Say whether the model uses the image at all.

    Parameters
    ----------
    judgement : Judgement

    Returns
    -------
    str
    """
    gain = judgement.gain
    if gain is None:
        return "How much it gains over the training images' density is not known: the bundle tells no counts."
    if judgement.too_few:
        return (
            f"Too few to tell whether it uses the image: {judgement.too_few}. On these its gain over the density of "
            f"the training images, which looks at no image, is {gain.value:.2f} nats."
        )
    text = f"{gain.value:.2f} nats ({gain.low:.2f} to {gain.high:.2f})"
    if not np.isfinite([gain.value, gain.low, gain.high]).all():
        return (
            f"It cannot be told whether it uses the image: its gain over the density of the training images is {text}, "
            "which is no finite number; some held-out image has no density, or none at its true place."
        )
    if gain.low <= 0.0:
        return (
            f"It is not shown to use the image: its gain over the density of the training images, which looks at no "
            f"image, is {text}."
        )
    more = math.exp(min(gain.value, 50.0))
    factor = thousands(more) if more >= 10.0 else f"{more:.1f}"
    return (
        f"It uses the image: at the true place its density is {factor} times that of the training images (the "
        f"geometric mean; a gain of {text})."
    )


def calibration(judgement: Judgement, held_out: HeldOut, bundle: Path) -> str:
    """Say whether the probabilities are true, and what would mend them: one verdict, by two measurements.

    Parameters
    ----------
    judgement : Judgement
    held_out : HeldOut
    bundle : Path
        For the command.

    Returns
    -------
    str
        Calibrated, where the regions hold what they promise and no temperature is worth its while; then none is
        advised. Not quite, where regions do but a temperature lowers the NLL by 0.05 nats or more; not at all else,
        and then a temperature is advised only where it is shown to lower the NLL.
    """
    if judgement.too_few:
        return f"Too few to tell whether it is calibrated: {judgement.too_few}."
    table = _held_together(judgement)
    missed = table[(table["level"] < table["low"]) | (table["level"] > table["high"])]
    known = table.loc[np.isfinite(table["value"]), ["level", "value", "low", "high"]].to_numpy(float).tolist()
    shares = ", ".join(
        f"{percent(level)} regions hold {percent(value)} ({percent(low)} to {percent(high)})"
        for level, value, low, high in known
    )
    best, change = _temperature(held_out)
    n, gain, is_shown = judgement.evaluation.n, 0.0, False
    if change is not None:
        gain, is_shown = -change[0], change[2] < 0.0
    shares += " of the truths (intervals that hold 95 % together)"
    if len(missed):
        verdict = f"Not calibrated, {_fault(missed)}: the {shares}. {best}"
        if is_shown:
            return f"{verdict}. {_command(bundle)}"
        unshown = "" if change is None else ", which is not shown to mend it"
        return f"{verdict}{unshown}; images that took no part would tell more."
    if gain >= RISE_NATS and is_shown:
        return (
            f"Not quite calibrated: the {shares}, as they promise as far as {n} images can tell, but the "
            f"densities can be better. {best}. {_command(bundle)}"
        )
    enough = "" if change is None else f": less than {RISE_NATS:g} nats, or not shown, so leave it as it is"
    return f"Calibrated, as far as {n} images can tell: the {shares}. {best}{enough}."


def _held_together(judgement: Judgement) -> pd.DataFrame:
    """Coverage with intervals of all levels that hold 95 % together, so that one miss is no chance.

    Bonferroni's: each holds 1 - 0.05 / levels, and is as much wider as the tails of Student's t are. None is narrower
    than Wilson's of as many independent images: blocks that happen to be alike tell no more than these.
    """
    table, known = measures.coverage(judgement.evaluation), np.isfinite(judgement.evaluation.searched_probability)
    value, number = table["value"].to_numpy(float), int(known.sum())
    single_low, single_high = metrics.wilson_interval(value * number, number)
    freedom = np.unique(judgement.clusters).size - 1
    tail = (1.0 - metrics.LEVEL) / 2.0
    wider = float(special.stdtrit(freedom, 1.0 - tail / len(table)) / special.stdtrit(freedom, 1.0 - tail))
    low = value + wider * (np.minimum(table["low"], single_low) - value)
    high = value + wider * (np.maximum(table["high"], single_high) - value)
    return table.assign(low=low.clip(lower=0.0), high=high.clip(upper=1.0))


def _fault(missed: pd.DataFrame) -> str:
    if (missed["value"] < missed["level"]).all():
        return "too sure: regions are too small"
    return "not sure enough: regions are too large" if (missed["value"] > missed["level"]).all() else "uneven"


def _temperature(held_out: HeldOut) -> tuple[str, tuple[float, float, float] | None]:
    """Tell of the temperature that fits best, and of the change of the NLL by it: value, low, high."""
    found, change = held_out.scaling, held_out.nll_change
    if found is None or change is None:
        return "There are too few images or blocks of land to try a temperature", None
    half = float(found.half_width[0])
    temperature, low, high = (math.exp(found.log_temperature + each) for each in (0.0, -half, half))
    shift = f" with a shift of the log concentrations by {found.shift:+.2f}" if found.half_width[1] else ""
    by = "{:+.2f} nats ({:+.2f} to {:+.2f})".format(*change)
    best = f"The best temperature, {temperature:.2f} ({low:.2f} to {high:.2f}){shift}"
    return f"{best}, changes the NLL of left-out blocks by {by}", change


def _command(bundle: Path) -> str:
    return (
        f"The command that fits it: geo-mvmf calibrate {shlex.quote(str(bundle))} HELD_OUT_TABLE --out "
        "calibrated.safetensors, with images of known place that took no part in this run."
    )


def split(config: TrainingConfig, held_out: HeldOut, training: int, ground_km: float | None) -> str:
    """Say which images were held out, and what figures on them mean.

    Parameters
    ----------
    config : TrainingConfig
    held_out : HeldOut
    training : int
        Training images.
    ground_km : float or None
        Side of an image on the ground, where it is known.

    Returns
    -------
    str
    """
    near = held_out.nearest_km[np.isfinite(held_out.nearest_km)]
    number = f"{thousands(held_out.num_validation)} images held out, {thousands(training)} trained on"
    parts = [f"{split_name(config)} {number}."]
    if len(held_out) < held_out.num_validation - held_out.num_unreadable - held_out.num_outside:
        parts.append(f"{thousands(len(held_out))} of these, evenly picked, were looked at.")
    if near.size:
        half, most = np.quantile(near, [0.5, 0.9])
        parts.append(
            f"The training image nearest to a held-out one is {km(half)} away in the middle, and within {km(most)} of "
            "nine of ten."
        )
        parts.append(_overlap(near, ground_km))
    if config.validation == "random":
        parts.append(
            "A random split measures memory where images overlap or were taken together; how the model does where it "
            'has no training images near, only blocks tell (validation = "blocks").'
        )
    if config.validation == "blocks":
        parts.append("Whole blocks are new to the model: this is how it does away from its training images.")
    parts.append(
        "The step that is released was chosen by these images, so all figures here are a little too good; `geo-mvmf "
        "evaluate` on images that took no part tells the truth."
    )
    return " ".join(part for part in parts if part)


def split_name(config: TrainingConfig) -> str:
    """Name the split of a run.

    Parameters
    ----------
    config : TrainingConfig

    Returns
    -------
    str
        A sentence without its end.
    """
    share = f"{100.0 * config.validation_fraction:g} %"
    names = {
        "random": f"Validation on a random {share} of the images:",
        "blocks": f"Validation on a random {share} of the blocks (whole S2 cells of level {config.block_level}):",
        "column": f"Validation on the images whose column {config.validation_column} says so:",
        "table": "Validation on the images of a table of its own:",
        "none": "No validation:",
    }
    return names.get(config.validation, f"Validation {config.validation}:")


def _overlap(near: FloatArray, ground_km: float | None) -> str:
    if ground_km is not None:
        share = float((near < ground_km).mean())
        whose = f"{percent(share)} of the held-out ones share ground with a training one"
        return f"Images are {km(ground_km)} wide: {whose}."
    share = float((near < 1.0).mean())
    return f"{percent(share)} of the held-out images lie within 1 km of a training one."


def learning_curve(images: Sequence[int], change: Estimate | None, too_few: str = "") -> str:
    """Say what more images would bring.

    Parameters
    ----------
    images : sequence of int
        Training images of each point, ascending.
    change : Estimate or None
        Of the NLL from the last point but one to the last, image by image.
    too_few : str
        Why the held-out images are too few to judge it; empty where they are enough.

    Returns
    -------
    str

    Examples
    --------
    >>> learning_curve([50, 100], Estimate(0.01, -0.02, 0.04, 9, 0))[:54]
    'From 50 to 100 images the NLL changed by +0.01 nats (-'
    """
    if change is None or len(images) < 2:
        return "There are too few training images for a learning curve."
    if too_few:
        return f"Too few to tell whether more images would help: {too_few}."
    text = (
        f"From {thousands(images[-2])} to {thousands(images[-1])} images the NLL changed by {change.value:+.2f} nats "
        f"({change.low:+.2f} to {change.high:+.2f})."
    )
    if change.high < -0.02:
        return f"{text} More images still help: another doubling may bring about as much, or somewhat less."
    if change.low > -0.02:
        return f"{text} More images of the same kind hardly help: other places, another backbone or components may."
    return f"{text} The held-out images do not tell whether more images would help."


def nats_ranges(found: Sequence[tuple[float, float, float]], *, told: bool) -> list[str]:
    """Write intervals.

    Parameters
    ----------
    found : sequence of (value, low, high)
        Nats.
    told : bool
        Whether there are images enough for any.

    Examples
    --------
    >>> nats_ranges([(1.0, 0.5, 1.5)], told=True)
    ['0.50 to 1.50']
    """
    return [f"{low:.2f} to {high:.2f}" if told else _TOO_FEW for _, low, high in found]


def summary_table(judgement: Judgement) -> pd.DataFrame:
    """Give the verdict's figures.

    Parameters
    ----------
    judgement : Judgement

    Returns
    -------
    DataFrame
        Text: Figure, Value, 95 % interval, To compare.
    """
    rows = []
    told = judgement.has_intervals
    for share, name in ((0.5, "Usable radius: half of the images within"), (0.9, "Nine of ten within")):
        found = judgement.within(share)
        rows.append((name, km(found.value), _range(found) if told else _TOO_FEW, ""))
    mean = resampling.mean_of_clusters(judgement.evaluation.nll, judgement.clusters)
    compare = f"uniform: {metrics.UNIFORM_NLL:.2f} nats"
    rows.append(("Negative log-likelihood", f"{mean.value:.2f} nats", _nats(mean) if told else _TOO_FEW, compare))
    gain, name = judgement.gain, "Gain over the training images' density"
    if gain is not None:
        rows.append((name, f"{gain.value:.2f} nats", _nats(gain) if told else _TOO_FEW, "no use: 0 nats"))
    for level, value, low, high in measures.coverage(judgement.evaluation).to_numpy(float).tolist():
        name = f"Truths inside the {percent(level)} region"
        rows.append((name, percent(value), f"{percent(low)} to {percent(high)}", f"calibrated: {percent(level)}"))
    return pd.DataFrame(rows, columns=["Figure", "Value", "95 % interval", "To compare"])


def _range(found: Estimate) -> str:
    if not math.isfinite(found.high):
        return f"{km(found.low)} or more"
    return f"{km(found.low)} to {km(found.high)}"


def _nats(found: Estimate) -> str:
    if not np.isfinite([found.low, found.high]).all():
        return "unknown"
    return f"{found.low:.2f} to {found.high:.2f} nats"
