"""The verdict: each sign of trouble is seen in curves that have it, and in no others."""

import numpy as np
import pandas as pd
import pytest

from geo_mvmf import training_verdict
from geo_mvmf.metrics import Estimate
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.run_record import RunRecord


def record_of(losses, nlls):
    """A run of ten steps for each number."""
    steps = pd.DataFrame({"step": 10.0 * np.arange(1, len(losses) + 1), "loss": losses, "learning_rate": 1e-3})
    validations = pd.DataFrame({"step": 10.0 * np.arange(1, len(nlls) + 1), "nll": nlls})
    config = TrainingConfig(stage="head", table="a.csv", out="run")
    return RunRecord(None, config, steps, validations.assign(median_km=1.0, accuracy=np.nan), None, 0)


def found(losses, nlls):
    return " ".join(training_verdict.troubles(record_of(losses, nlls), 1000, 50))


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
    assert "not finite at step 20" in found([3.0, np.nan, 1.0], [])
    assert "did not fall, from 1.00 (step 10) to 2.00 (step 30)" in found([1.0, 3.0, 2.0], [])


def test_few_images_and_few_blocks_are_said():
    record = record_of([3.0, 1.0], [2.0, 1.0, 0.99, 0.98])
    assert "Only 40 images" in " ".join(training_verdict.troubles(record, 40, 20))
    assert "in 3 blocks of land only" in " ".join(training_verdict.troubles(record, 400, 3))
    assert training_verdict.troubles(record, 0, 0) == []


def test_a_gap_between_training_and_held_out_images_is_said():
    assert "far better than others" in found([3.0, 1.0, 0.0], [2.0, 1.9, 1.9])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Estimate(-0.3, -0.4, -0.2, 9, 0), "More images still help"),
        (Estimate(0.01, -0.01, 0.03, 9, 0), "hardly help"),
        (Estimate(-0.1, -0.3, 0.1, 9, 0), "do not tell"),
        (None, "too few training images"),
    ],
)
def test_the_learning_curve_says_what_more_images_bring(change, said):
    assert said in training_verdict.learning_curve([500, 1000], change)
