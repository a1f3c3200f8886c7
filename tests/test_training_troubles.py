"""Signs of trouble: each is seen in curves that have it, and in no others."""

import pathlib

import numpy as np
import pandas as pd

from geo_mvmf import training_troubles
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.run_record import RunRecord

DONE = pathlib.Path("bundle.safetensors")


def record_of(losses, nlls, result=DONE, **options):
    """A run of ten steps for each number."""
    steps = pd.DataFrame({"step": 10.0 * np.arange(1, len(losses) + 1), "loss": losses, "learning_rate": 1e-3})
    validations = pd.DataFrame({"step": 10.0 * np.arange(1, len(nlls) + 1), "nll": nlls})
    config = TrainingConfig(stage="head", table="a.csv", out="run", **options)
    return RunRecord(None, config, steps, validations.assign(median_km=1.0, accuracy=np.nan), result, 0)


def found(losses, nlls, result=DONE, **options):
    return " ".join(training_troubles.troubles(record_of(losses, nlls, result, **options), 1000, 50))


def test_a_good_run_has_no_trouble():
    assert found([3.0, 2.0, 1.5, 1.4, 1.39], [3.0, 2.1, 1.52, 1.5, 1.49]) == ""


def test_learning_by_heart_is_seen():
    text = found([3.0, 2.0, 1.0, 0.9], [2.0, 1.5, 1.6, 1.8])
    assert "1.50 at step 20, 1.80 at the last step while the training loss fell from 2.00 to 0.90" in text
    assert "the state of step 20 was released" in text


def test_a_run_that_ended_too_early_is_seen():
    assert "last quarter the validation NLL still fell by 1.00 nats: train longer" in found(
        [4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]
    )
    assert "train longer" not in found([4.0, 3.0, 2.0, 1.99], [4.0, 3.0, 2.0, 1.99])


def test_losses_that_are_none_or_do_not_fall_are_seen():
    assert "not finite at step 20" in found([3.0, np.inf, 1.0], [])
    assert "did not fall, from 1.00 (step 10) to 2.00 (step 30)" in found([1.0, 3.0, 2.0], [])


def test_few_images_and_few_blocks_are_said():
    record = record_of([3.0, 1.0], [2.0, 1.0, 0.99, 0.98])
    assert "Only 40 images" in " ".join(training_troubles.troubles(record, 40, 20))
    assert "in 3 blocks of land only" in " ".join(training_troubles.troubles(record, 400, 3))
    assert training_troubles.troubles(record, 0, 0) == []


def test_a_gap_between_training_and_held_out_images_is_said():
    assert "far better than others" in found([3.0, 1.0, 0.0], [2.0, 1.9, 1.9])


def test_a_record_without_a_loss_is_no_trouble():
    assert found([np.nan, 3.0, 1.0, np.nan], []) == ""


def test_of_a_run_that_goes_on_nothing_is_said_that_only_its_end_can_show():
    falling = [4.0, 3.0, 2.0, 1.0]
    assert "train longer" in found(falling, falling)
    assert found(falling, falling, None) == ""
    assert "validate_steps" in found([2.0, 1.0], [2.0])
    assert found([2.0, 1.0], [2.0], None) == ""
    rising = found([3.0, 2.0, 1.0, 0.9], [2.0, 1.5, 1.6, 1.8], None)
    assert "1.80 at step 40" in rising
    assert "if it stays so, the state of step 20 is kept" in rising
    assert "released" not in rising
    assert "At step 30 the training loss" in found([3.0, 1.0, 0.0], [2.0, 1.9, 1.9], None)


def test_losses_of_cells_and_of_densities_are_not_compared():
    curves = [3.0, 1.0, 0.0], [2.0, 1.9, 1.9]
    assert "far better than others" not in found(*curves, head="cross_entropy")
    assert "far better than others" in found(*curves)
