"""TensorBoard gets the numbers of the log, once each, whatever stopped the run in between; only where it is wanted."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_mvmf.errors import UsageError
from geo_mvmf.model import scalar_log
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.training import train, train_job


@pytest.fixture
def config(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"{number}.png" for number in range(12)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(tmp_path / name)
    table = pd.DataFrame({"path": names, "longitude": np.linspace(-150, 150, 12), "latitude": np.linspace(-50, 50, 12)})
    table.to_csv(tmp_path / "photos.csv", index=False)
    return TrainingConfig(
        stage="head",
        table=str(tmp_path / "photos.csv"),
        out=str(tmp_path / "run"),
        backbone="chip_resnet10",
        backbone_width=8,
        crop=8,
        num_components=6,
        batch_size=4,
        steps=12,
        threads=1,
        log_steps=1,
        validate_steps=3,
        validation_fraction=0.3,
        checkpoint_steps=4,
        device="cpu",
        tensorboard=True,
    )


def stopped(config, step):
    job = train_job(config)
    for event in job:
        if event.stage == "train" and event.done == step:
            job.close()


def shown(config):
    """Steps and values of each curve, as TensorBoard's own reader has them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(Path(config.out, scalar_log.FOLDER)))
    reader.Reload()
    return {name: [(event.step, event.value) for event in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def last_of_each_step(config, event, key):
    """What the log says last of each step: a resumed run writes some of them again."""
    records = [json.loads(line) for line in Path(config.out, "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {record["step"]: record[key] for record in records if record["event"] == event}


def test_a_resumed_run_shows_no_step_twice(config):
    pytest.importorskip("tensorboard")
    stopped(config, 7)  # the last checkpoint is of step 4, so that 5, 6 and 7 come again
    train(config)
    curves = shown(config)
    assert sorted(curves) == ["training/learning_rate", "training/loss", "validation/median_km", "validation/nll"]
    assert [step for step, _ in curves["training/loss"]] == list(range(1, 13))
    assert [step for step, _ in curves["validation/nll"]] == [3, 6, 9, 12]
    for name, event, key in (("training/loss", "step", "loss"), ("validation/median_km", "validation", "median_km")):
        wanted = last_of_each_step(config, event, key)
        assert {step: pytest.approx(value, rel=1e-6) for step, value in curves[name]} == wanted


@pytest.mark.hard
def test_files_that_are_not_purged_are_caught(config, monkeypatch):
    """Broken twin: a writer that is not told where the run goes on."""
    writers = pytest.importorskip("torch.utils.tensorboard", exc_type=ImportError)
    original = writers.SummaryWriter
    monkeypatch.setattr(writers, "SummaryWriter", lambda folder, purge_step: original(folder))
    stopped(config, 7)
    train(config)
    steps = [step for step, _ in shown(config)["training/loss"]]
    assert len(steps) > len(set(steps))


@pytest.mark.hard
def test_it_changes_no_bit_and_may_be_switched_while_a_run_goes_on(config, tmp_path):
    pytest.importorskip("tensorboard")
    plain = train(dataclasses.replace(config, out=str(tmp_path / "plain"), tensorboard=False))
    assert not (tmp_path / "plain" / scalar_log.FOLDER).exists()
    stopped(config, 7)
    assert train(dataclasses.replace(config, tensorboard=False)).digest == plain.digest


def test_without_tensorboard_the_run_says_how_to_get_it(config, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed; pip install 'geo-mvmf\[tensorboard\]', or leave the option"):
        train(config)
    assert not Path(config.out).exists()  # before anything is begun


def test_only_numbers_of_steps_and_validations_are_passed_on():
    records, scalars = [], []

    class Kept:
        def write(self, record):
            records.append(record)

        def add_scalar(self, name, value, step):
            scalars.append((name, value, step))

    log = scalar_log.ScalarLog(Kept(), Kept())
    given = [
        {"event": "start", "device": "cpu", "seed": 0},
        {"event": "step", "step": 2, "loss": 1.5, "learning_rate": 0.1, "rows_per_second": 9.0},
        {"event": "validation", "step": 2, "nll": 1.25, "accuracy": 0.5, "best": True},
        {"event": "end", "step": 2, "nll": 1.25},
    ]
    for record in given:
        log.write(record)
    assert records == given
    assert scalars == [
        ("training/loss", 1.5, 2),
        ("training/learning_rate", 0.1, 2),
        ("validation/nll", 1.25, 2),
        ("validation/accuracy", 0.5, 2),
    ]
