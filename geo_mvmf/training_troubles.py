"""Signs of trouble in a training run: what its curves and the number of its held-out images give away."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from geo_mvmf.training_judgement import LEAST_BLOCKS
from geo_mvmf.training_verdict import RISE_NATS

if TYPE_CHECKING:
    from geo_mvmf.model.configuration import TrainingConfig
    from geo_mvmf.model.run_record import RunRecord

_GAP_NATS = 1.0
_FEW_IMAGES, _FEW_LOOKS = 100, 3


def troubles(record: RunRecord, n: int, blocks: int) -> list[str]:
    """Find signs of trouble in a run's curves and its held-out images.

    Parameters
    ----------
    record : RunRecord
        Of a run without a result only what is true already is said: it may still go on.
    n : int
        Held-out images that were looked at.
    blocks : int
        Blocks that these lie in.

    Returns
    -------
    list of str
        Empty where there are none.
    """
    found = _of_losses(record.steps) + _of_validations(record)
    if 0 < n < _FEW_IMAGES:
        found.append(f"Only {n} images were held out: intervals are wide. Hold out more, or look closer later.")
    if n and blocks < LEAST_BLOCKS:
        found.append(f"The held-out images lie in {blocks} blocks of land only: intervals count images, not land.")
    return found


def losses_compare(config: TrainingConfig) -> bool:
    """Say whether the training loss and the validation NLL of a run measure the same, in the same unit.

    Parameters
    ----------
    config : TrainingConfig

    Returns
    -------
    bool
        False where cells are classified: the training loss is the cross entropy of cells, the validation NLL that of a
        density per steradian, which knows how large a cell is.
    """
    return config.stage == "backbone" or config.head != "cross_entropy"


def _of_losses(steps: pd.DataFrame) -> list[str]:
    known = steps[steps["loss"].notna()]  # a record without a loss says nothing of it
    loss, step = known["loss"], known["step"]
    broken = step[~np.isfinite(loss)]
    if len(broken):
        first = f"{broken.iloc[0]:.0f}"
        return [f"The training loss is not finite at step {first}: lower learning_rate, or set gradient_clip."]
    if len(loss) > 1 and loss.iloc[-1] >= loss.iloc[0]:
        way = " to ".join(f"{loss.iloc[row]:.2f} (step {step.iloc[row]:.0f})" for row in (0, -1))
        return [f"The training loss did not fall, from {way}: change learning_rate, or look at the images."]
    return []


def _of_validations(record: RunRecord) -> list[str]:
    best = record.best
    if best is None:
        return []
    known = record.validations[np.isfinite(record.validations["nll"])]
    last = {name: float(known[name].iloc[-1]) for name in ("step", "nll")}
    found = []
    if last["nll"] - best["nll"] > RISE_NATS:
        found.append(_rise(record, best, last))
    elif record.result is not None and best["step"] == last["step"]:
        found += _early_end(known)
    if record.result is not None and len(known) < _FEW_LOOKS:
        found.append(f"The held-out images were looked at {len(known)} times only: set validate_steps lower.")
    loss_last = _loss_at(record.steps, last["step"])
    if losses_compare(record.config) and last["nll"] - loss_last > _GAP_NATS:
        when = "At the end" if record.result is not None else f"At step {last['step']:.0f}"
        found.append(
            f"{when} the training loss is {loss_last:.2f} and the validation NLL {last['nll']:.2f} nats: it knows "
            "the images it was trained on far better than others."
        )
    return found


def _rise(record: RunRecord, best: dict[str, float], last: dict[str, float]) -> str:
    """Say that a validation NLL rises, and what that means for the model that is kept."""
    loss_then, loss_last = (_loss_at(record.steps, row["step"]) for row in (best, last))
    fell = f" while the training loss fell from {loss_then:.2f} to {loss_last:.2f}" if loss_last < loss_then else ""
    where, kept = "at the last step", f"the state of step {best['step']:.0f} was released"
    if record.result is None:
        where, kept = f"at step {last['step']:.0f}", f"if it stays so, the state of step {best['step']:.0f} is kept"
    return (
        f"The validation NLL rises: {best['nll']:.2f} at step {best['step']:.0f}, {last['nll']:.2f} {where}{fell}. The "
        f"model learns its training images by heart from there on; {kept}. More images, augmentation or weight_decay "
        "would help, more steps not."
    )


def _early_end(known: pd.DataFrame) -> list[str]:
    """Tell of a finished run whose NLL still fell when it ended."""
    last = known.iloc[-1]
    before = known[known["step"] <= 0.75 * last["step"]]
    drop = float(before["nll"].min() - last["nll"]) if len(known) >= _FEW_LOOKS and len(before) else 0.0
    if drop <= RISE_NATS:
        return []
    fell = f"over the last quarter the validation NLL still fell by {drop:.2f} nats"
    return [f"The last step is the best, and {fell}: train longer."]


def _loss_at(steps: pd.DataFrame, step: float) -> float:
    """Training loss that was written last before a step, or first of all."""
    known = steps[steps["loss"].notna()]
    before = known["loss"][known["step"] <= step]
    if len(before):
        return float(before.iloc[-1])
    return float(known["loss"].iloc[0]) if len(known) else math.nan
