"""Training: it learns, it is reproducible to the bit, it stops and says why, and it goes on where it was."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from shapely.geometry import box

from geo_mvmf import metrics, progress, sphere
from geo_mvmf.errors import (
    BadInputError,
    GeoMvmfError,
    LockedError,
    OutputError,
    TrainingError,
    UsageError,
)
from geo_mvmf.model import checkpoint, epilogue_choice, image_set, learner, sealed, training
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.bundle import load_bundle
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.image_set import ImageSet, epoch_order, load_image_set
from geo_mvmf.model.optimisation import learning_rate_factor, make_optimiser
from geo_mvmf.model.training import train, train_job


@pytest.fixture(scope="module")
def photos(make_photos):
    return make_photos(100)


@pytest.fixture
def config(photos, tmp_path):
    return TrainingConfig(
        stage="finetune",
        table=str(photos / "photos.csv"),
        out=str(tmp_path / "run"),
        backbone="chip_resnet10",
        backbone_width=8,
        crop=8,
        num_components=18,
        initial_log_concentration=3.0,
        learning_rate=5e-3,
        batch_size=16,
        steps=20,
        threads=1,
        validation_fraction=0.2,
        device="cpu",
        augment=Augmentation(channel_gain=0.05, shift=1.0, noise=0.01),
    )


def changed(config, **options):
    return dataclasses.replace(config, **options)


def log_of(config):
    return [json.loads(line) for line in Path(config.out, "log.jsonl").read_text(encoding="utf-8").splitlines()]


def stopped(config, step):
    """A run that is closed after a step, as by a cancelling door."""
    job = train_job(config)
    for event in job:
        if event.stage == "train" and event.done == step:
            job.close()
    return config


BY_COLUMN = {"validation": "column", "validation_column": "held_out", "validation_fraction": 0.05}


def test_rows_that_are_not_trained_on_are_told_and_a_swapped_table_is_refused(config, photos, tmp_path):
    table = pd.read_csv(photos / "photos.csv")
    table.loc[0, "latitude"], table.loc[1, ["longitude", "latitude"]] = 95.0, np.nan
    few = changed(config, table=str(tmp_path / "t.csv"), root=str(photos), steps=1)
    table.to_csv(few.table, index=False)
    with pytest.warns(
        UserWarning, match=r"t.csv: 98 of 100 rows are used: 1 bad_coord.*, 1 without_coord.*; .*row 1: lat"
    ):
        train(few)
    turned = {"longitude": "latitude", "latitude": "longitude"}
    pd.read_csv(photos / "photos.csv").rename(columns=turned).to_csv(few.table, index=False)
    for options in (
        {},
        {"table": config.table, "validation": "table", "validation_table": few.table, "validation_fraction": 0.05},
    ):
        swapped = changed(few, out=str(tmp_path / "swapped"), **options)
        with pytest.raises(BadInputError, match=r"t.csv: \d+ of 100 rows have no place .* exchange the two columns"):
            train(swapped)


def test_it_learns_where_the_colours_are(config, photos):
    config = changed(config, steps=100, schedule="cosine", **BY_COLUMN)
    bundle = train(config)
    uniform = np.log(4 * np.pi)
    summary = bundle.metadata["training"]
    assert summary["best"]["nll"] < uniform - 1.0
    table = pd.read_csv(photos / "photos.csv")
    table = table[table["held_out"]]
    pixels = np.stack([np.asarray(Image.open(photos / name)).transpose(2, 0, 1) for name in table["path"]])
    mixture = bundle.mixture(bundle.predict(pixels)[0])
    truth = sphere.to_directions(table["longitude"], table["latitude"])
    nll = -np.diag(mixture.log_density(truth)).mean()
    assert nll == pytest.approx(summary["best"]["nll"], abs=1e-4)  # what is released is what was measured
    best = mixture.mean_directions[np.argmax(mixture.log_mixing_weights, axis=1)]
    error_km = sphere.angle(best, truth) * sphere.EARTH_RADIUS_KM
    assert float(np.median(error_km)) == pytest.approx(summary["best"]["median_km"], rel=1e-3)
    assert metrics.median_error_km(error_km).value < 3500  # chance is 10,000


# What the configuration above says of pixels and of components, which some runs have none of, and would refuse.
FEATURES = {"stage": "head", "augment": Augmentation()}
CELLS = {"head": "cross_entropy", "initial_log_concentration": "auto"}
NONE = {"validation": "none", "validation_fraction": 0.05}
VARIANTS = {
    "plain": {},
    "running mean, trained coordinates": {
        "ema_decay": 0.9,
        "train_mean_directions": True,
        "train_log_concentrations": True,
        "validation": "blocks",
    },
    "baseline": CELLS | {"gradient_clip": 1.0, "balance": "area", "optimiser": "adamw"},
    "smoothed labels": FEATURES | CELLS | {"label_smoothing_km": 500.0},
    "dropout": {"backbone": "mobilenet_v3_small", "backbone_width": 64, "steps": 4, "crop": 32, "resize": 32},
    "head": FEATURES | {"balance": "cell"},
    "fused": FEATURES | {"fused_optimiser": "bfloat16", "ema_decay": 0.9},
    "from files": {"cache_images_gigabytes": 0.0, **NONE},
    "in parts": {"accumulate": 3, "ema_decay": 0.9, "normalisation": "image"},
}


QUICK = ("plain", "smoothed labels", "head", "fused")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.hard) for name in VARIANTS]
)
def test_a_stopped_run_goes_on_to_the_same_bits(config, tmp_path, name):
    config = changed(config, **VARIANTS[name])
    steps = config.steps
    whole = train(changed(config, out=str(tmp_path / "whole")))
    stopped(changed(config, checkpoint_steps=3), steps - 1)
    resumed = train(changed(config, checkpoint_steps=2, workers=1, log_steps=1))
    assert resumed.digest == whole.digest
    records = log_of(config)
    assert [record["event"] for record in records if record["event"] in ("start", "resume")] == ["start", "resume"]
    assert next(record for record in records if record["event"] == "resume")["step"] == (steps - 1) // 3 * 3


@pytest.mark.hard
def test_twins_that_break_purity_are_caught(config, tmp_path, monkeypatch):
    """Broken twins: augmentation, or the order of images, from torch's or numpy's running generator."""

    def running_augment(images, options, **_):
        return images.float() / 255 + torch.rand(images.shape[0], 1, 1, 1) / 50

    def running_order(weights, seed, epoch):
        return torch.randperm(len(weights)).numpy()

    for module, twin, replacement in ((learner, "augment", running_augment), (training, "epoch_order", running_order)):
        digests = []
        with monkeypatch.context() as patch, torch.random.fork_rng(devices=[]):
            patch.setattr(module, twin, replacement)
            # the running generator must be outside the step's own seed to be running at all
            patch.setattr(learner.devices, "seeded", lambda seed, device: torch.autograd.set_grad_enabled(True))
            for number, stop in enumerate((None, 13)):
                torch.default_generator.manual_seed(0)
                run = changed(config, out=str(tmp_path / f"{twin}-{number}"), checkpoint_steps=4)
                if stop is not None:
                    stopped(run, stop)
                digests.append(train(run).digest)
        assert digests[0] != digests[1], twin


@pytest.mark.hard
def test_the_number_of_workers_and_the_memory_change_nothing(config, tmp_path):
    digests = {
        train(
            changed(config, out=str(tmp_path / f"{workers}-{memory}"), workers=workers, cache_images_gigabytes=memory)
        ).digest
        for workers, memory in ((1, 1.0), (1, 0.0), (5, 0.0))
    }
    assert len(digests) == 1


def test_a_finished_run_returns_at_once(config):
    first = train(config)
    events = []
    again = train(config, report=events.append)
    assert again.digest == first.digest
    assert [event.message[:15] for event in events] == ["finished before"]


def test_other_options_in_the_same_folder_are_refused_unless_overwriting(config):
    stopped(changed(config, checkpoint_steps=2), 3)
    otherwise = r"name another folder as out, or start again with overwrite \(on the command line --overwrite\)"
    with pytest.raises(UsageError, match=f"started with batch_size = 16, now it is 8; {otherwise}"):
        train(changed(config, batch_size=8))
    bundle = train(changed(config, batch_size=8), overwrite=True)
    assert bundle.metadata["training"]["batch_size"] == 8


def test_a_run_begun_before_an_option_existed_goes_on(config, tmp_path):
    """An option that config.json lacks was as nothing; any other value is another run."""
    whole = train(changed(config, out=str(tmp_path / "whole")))
    stopped(changed(config, checkpoint_steps=2), 3)
    path = Path(config.out, "config.json")
    former = json.loads(path.read_text(encoding="utf-8"))
    del former["accumulate"], former["patience"], former["augment"]["gamma"]
    path.write_text(json.dumps(former), encoding="utf-8")
    with pytest.raises(UsageError, match="started with accumulate = 1, now it is 2"):
        train(changed(config, accumulate=2))
    with pytest.raises(UsageError, match=r"started with augment = .*'gamma': 0\.0.*'gamma': 0\.5"):
        train(changed(config, augment=dataclasses.replace(config.augment, gamma=0.5)))
    assert train(config).digest == whole.digest


def test_changed_data_are_noticed(config, photos, tmp_path):
    table = pd.read_csv(photos / "photos.csv")
    table["path"] = [str(photos / name) for name in table["path"]]
    table["path"] = [name.rsplit("/", 1)[1] for name in table["path"]]
    path = tmp_path / "photos.csv"
    table.to_csv(path, index=False)
    config = changed(config, table=str(path), root=str(photos), checkpoint_steps=2)
    stopped(config, 5)
    table.loc[3, "longitude"] += 0.5
    table.to_csv(path, index=False)
    with pytest.raises(TrainingError, match="changed since the run began"):
        train(config)


def test_images_that_were_replaced_are_noticed_and_copies_are_the_same(config, photos, tmp_path):
    copies = tmp_path / "photos"
    shutil.copytree(photos, copies)
    config = changed(config, table=str(copies / "photos.csv"), checkpoint_steps=2)
    stopped(config, 5)
    first, *others = sorted(copies.glob("*.png"))
    whole, size = first.read_bytes(), first.stat().st_size
    for replaced in (others[0].read_bytes(), bytes([*whole[:-20], whole[-20] ^ 1, *whole[-19:]])):
        first.write_bytes(replaced)
        with pytest.raises(TrainingError, match="the images changed since the run began"):
            train(config)
    assert first.stat().st_size == size
    first.write_bytes(whole)
    os.utime(first, (1e9, 1e9))
    assert train(config).metadata["training"]["steps"] == config.steps


def test_sizes_of_files_count_in_the_order_of_the_rows_and_are_asked_for_at_once(tmp_path, monkeypatch):
    paths = [tmp_path / str(row) for row in range(600)]
    for row, path in enumerate(paths[:-1]):  # the last is missing
        path.write_bytes(b"x" * (row % 7))
    nothing = np.zeros(0)
    images = ImageSet(None, paths, nothing, nothing, nothing, nothing, nothing, nothing)
    monkeypatch.setattr(image_set, "_LOOKED_INTO", 0)
    sizes = " ".join([*(str(row % 7) for row in range(599)), "none"])
    met, original = threading.Barrier(2), image_set._size
    meeting = {paths[0], paths[599]}

    def size(path):
        if path in meeting:
            met.wait(30)
        return original(path)

    monkeypatch.setattr(image_set, "_size", size)
    assert images.files_digest() == hashlib.sha256(sizes.encode()).hexdigest()


def test_a_run_that_has_not_noted_its_image_files_goes_on(config, monkeypatch):
    """As those of older versions; from then on it has."""
    stopped(changed(config, checkpoint_steps=2), 5)
    newest, _ = checkpoint.read_newest(config.out)
    facts = {name: value for name, value in newest.facts.items() if name != "files"}
    assert len(facts) == len(newest.facts) - 1
    checkpoint.write_checkpoint(config.out, checkpoint.Checkpoint(newest.step, newest.tensors, facts))
    train(changed(config, checkpoint_steps=2))
    assert len(checkpoint.read_newest(config.out)[0].facts["files"]) == 64


def ended(*_):
    raise KeyboardInterrupt


@pytest.fixture
def undisturbed(config, tmp_path):
    return train(changed(config, out=str(tmp_path / "undisturbed"))).digest


@pytest.fixture
def signalled(monkeypatch):
    """Let a signal come in the middle of something that a learner does for the n-th time."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def install(name, nth, *numbers, handler=ended):
        method, calls = getattr(learner.Learner, name), []

        def interrupted(self, *arguments):
            calls.append(name)
            if len(calls) == nth:
                [signal.raise_signal(number) for number in numbers]
            return method(self, *arguments)

        monkeypatch.setattr(learner.Learner, name, interrupted)
        for number in numbers:
            signal.signal(number, handler)
        return calls

    yield install
    for number, handler in before.items():
        signal.signal(number, handler)


def checkpoints_of(config):
    return [record["step"] for record in log_of(config) if record["event"] == "checkpoint"]


HEARD = "stopping after the step in work; once more stops at once"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_checkpoint_of_the_step_in_work(config, undisturbed, signalled, number):
    steps = signalled("train_step", 7, number)
    with pytest.warns(UserWarning, match=HEARD), pytest.raises(KeyboardInterrupt):
        train(config)
    assert signal.getsignal(number) is ended
    assert (checkpoints_of(config), len(steps)) == ([7], 7)
    assert (train(config).digest, len(steps)) == (undisturbed, 20)


def test_the_second_signal_stops_at_once(config, signalled):
    signalled("train_step", 7, signal.SIGINT, signal.SIGTERM)
    with pytest.warns(UserWarning, match=HEARD), pytest.raises(KeyboardInterrupt):
        train(config)
    assert not checkpoint.checkpoint_paths(config.out)


def test_a_signal_that_ends_nothing_is_passed_on_once_and_the_run_goes_on(config, undisturbed, signalled):
    seen = []
    signalled("train_step", 7, signal.SIGTERM, handler=lambda *_: seen.append(checkpoints_of(config)))
    with pytest.warns(UserWarning, match=HEARD):
        assert train(config).digest == undisturbed
    assert (seen, checkpoints_of(config)) == ([[7]], [7])


def test_a_step_that_is_saved_anyway_is_saved_once(config, signalled):
    signalled("train_step", 7, signal.SIGINT)
    with pytest.warns(UserWarning, match=HEARD), pytest.raises(KeyboardInterrupt):
        train(changed(config, checkpoint_steps=7))
    assert checkpoints_of(config) == [7]


def test_who_stops_at_the_event_of_the_step_finds_its_checkpoint(config, undisturbed, signalled):
    """As the worker does when it is told to cancel."""
    cancelled = []

    def cancel(*_):
        cancelled.append(True)
        raise progress.CancelledError

    def report(event):
        if event.done == 7 and event.stage == "train":
            raise progress.CancelledError

    signalled("train_step", 7, signal.SIGTERM, handler=cancel)
    with pytest.warns(UserWarning, match=HEARD), pytest.raises(progress.CancelledError):
        train(config, report=report)
    assert (checkpoints_of(config), cancelled) == ([7], [True])
    assert train(config).digest == undisturbed


def test_a_signal_that_comes_between_steps_waits_for_the_checkpoint_of_the_next(config, signalled):
    def report(event):
        if event.done == 7 and event.stage == "train":
            signal.raise_signal(signal.SIGINT)

    signalled("train_step", 0, signal.SIGINT)
    with pytest.warns(UserWarning, match=HEARD), pytest.raises(KeyboardInterrupt):
        train(config, report=report)
    assert checkpoints_of(config) == [8]


def test_the_last_validation_loses_nothing_when_it_is_interrupted(config, undisturbed, signalled):
    steps = signalled("train_step", 0)
    signalled("evaluate", 5, signal.SIGINT)
    with pytest.warns(UserWarning, match=HEARD), pytest.raises(KeyboardInterrupt):
        train(config)
    assert (checkpoints_of(config), len(steps)) == ([20], 20)
    assert (train(config).digest, len(steps)) == (undisturbed, 20)


def test_a_validation_that_ends_patience_loses_nothing_when_it_is_interrupted(config, tmp_path, monkeypatch, signalled):
    original, scores = learner.Learner.evaluate, iter([3.0, 1.0, 2.0, 4.0] * 2)
    monkeypatch.setattr(
        learner.Learner, "evaluate", lambda self, *given: {**original(self, *given), "nll": next(scores)}
    )
    config = changed(config, validate_steps=4, patience=2)
    whole = train(changed(config, out=str(tmp_path / "whole"))).digest
    steps = signalled("train_step", 0)
    signalled("evaluate", 4, signal.SIGINT)
    with pytest.warns(UserWarning, match=HEARD), pytest.raises(KeyboardInterrupt):
        train(config)
    assert (checkpoints_of(config), len(steps)) == ([16], 16)
    assert (train(config).digest, len(steps)) == (whole, 16)
    assert log_of(config)[-1]["stopped_early"] == 16


def test_a_damaged_checkpoint_falls_back_to_the_one_before(config, tmp_path):
    whole = train(changed(config, out=str(tmp_path / "whole")))
    stopped(changed(config, checkpoint_steps=4), 17)
    newest, before = checkpoint.checkpoint_paths(config.out)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert train(config).digest == whole.digest
    record = next(record for record in log_of(config) if record["event"] == "resume")
    assert record["step"] == 12
    assert "damaged" in record["damaged_checkpoints"][0]
    assert not newest.exists()
    assert before.exists()


def test_two_damaged_checkpoints_stop_the_run(config):
    stopped(changed(config, checkpoint_steps=4), 17)
    for path in checkpoint.checkpoint_paths(config.out):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"no checkpoint is whole.*overwrite"):
        train(config)


def test_checkpoints_by_time_and_only_two_are_kept(config):
    stopped(changed(config, checkpoint_seconds=0.0), 9)
    names = [path.name for path in checkpoint.checkpoint_paths(config.out)]
    assert names == ["checkpoint-0000000009.safetensors", "checkpoint-0000000008.safetensors"]


def test_a_resumed_run_uses_the_epilogues_it_began_with(config, monkeypatch):
    stopped(changed(config, checkpoint_steps=3), 3)
    assert checkpoint.read_newest(config.out)[0].facts["epilogues"] == "eager"
    monkeypatch.setattr(epilogue_choice, "available", lambda: epilogue_choice.PROVIDERS)
    monkeypatch.setattr(epilogue_choice, "chosen", lambda: "triton")  # as on a machine with a device
    used, original = set(), learner.Learner._loss

    def loss(self, step, batch):
        used.add(epilogue_choice.current())
        return original(self, step, batch)

    monkeypatch.setattr(learner.Learner, "_loss", loss)
    train(changed(config, checkpoint_steps=3))
    assert used == {"eager"}


def test_the_first_line_of_the_log_says_where_it_runs(config):
    train(changed(config, log_steps=5, validate_steps=5))
    first, *records = log_of(config)
    assert (first["event"], first["device"], first["threads"]) == ("start", "cpu", 1)
    assert first["torch"] == torch.__version__
    assert torch.__version__ in first["provider"]
    assert [record["step"] for record in records if record["event"] == "step"] == [5, 10, 15, 20]
    validations = [record for record in records if record["event"] == "validation"]
    assert [record["step"] for record in validations] == [5, 10, 15, 20]
    assert records[-1]["event"] == "end"
    assert records[-1]["nll"] == min(record["nll"] for record in validations)


def test_the_logged_loss_is_the_mean_since_the_row_before(config, monkeypatch):
    """The broken twin counts the last step of each row again in the next one: 10, 6 and 3 for single steps."""
    losses = iter(float(2**step) for step in range(20))
    monkeypatch.setattr(learner.Learner, "train_step", lambda self, step, batch: next(losses))
    train(changed(config, steps=6, log_steps=2, validate_steps=6))
    found = [record["loss"] for record in log_of(config) if record["event"] == "step"]
    assert found == [1.5, 6.0, 24.0]


def test_the_best_state_is_released_not_the_last(config, monkeypatch):
    scores = iter([3.0, 1.0, 2.0, 4.0])
    original = learner.Learner.evaluate
    seen = []

    def evaluate(self, batches, weight):
        seen.append(float(self.head.bias.detach().sum()))
        return {**original(self, batches, weight), "nll": next(scores)}

    monkeypatch.setattr(learner.Learner, "evaluate", evaluate)
    bundle = train(changed(config, validate_steps=5))
    assert bundle.metadata["training"]["best"]["step"] == 10
    assert float(bundle.head.bias.detach().sum()) == seen[1] != seen[3]


def test_progress_tells_rate_and_time_left(config):
    events = []
    train(config, report=events.append)
    steps = [event for event in events if event.stage == "train"]
    assert [event.done for event in steps] == list(range(21))
    assert all("images/s" in event.message and "left" in event.message for event in steps[1:])
    assert {event.stage for event in events} >= {"read", "load", "train", "write"}


def test_landmarks_are_where_it_begins_or_goes_on_and_each_validation(config):
    def landmarks(events):
        return {event.done: event.message for event in events if event.is_landmark}

    config = stopped(changed(config, validate_steps=5, checkpoint_steps=7), 10)
    events = []
    train(config, report=events.append)
    found = landmarks(events)
    assert list(found) == [7, 10, 15, 20]
    assert found[7] == f"goes on from the checkpoint in {config.out}"
    assert all(", validation NLL " in found[step] for step in (10, 15, 20))
    first = next(event for event in train_job(changed(config, out=f"{config.out}2")) if event.stage == "train")
    assert (first.done, first.message, first.is_landmark) == (0, f"begins in {config.out}2", True)


def test_a_loss_that_is_not_finite_stops_naming_step_and_rows(config, monkeypatch):
    original = learner.Learner._loss

    def loss(self, step, batch):
        return original(self, step, batch) * (float("nan") if step == 7 else 1.0)

    monkeypatch.setattr(learner.Learner, "_loss", loss)
    with pytest.raises(TrainingError, match=r"step 7: the loss is nan for rows \[\d+, .*learning_rate"):
        train(changed(config, checkpoint_steps=3))
    newest, _ = checkpoint.read_newest(config.out)
    assert newest.step == 6
    assert all(bool(torch.isfinite(value).all()) for value in newest.tensors.values())


def test_a_weight_that_is_not_finite_is_not_checkpointed(config, monkeypatch):
    def update(self, step):
        with torch.no_grad():
            self.head.bias[0] = float("inf")

    monkeypatch.setattr(learner.Learner, "_update", update)
    with pytest.raises(TrainingError, match=r"model\.head\.bias is not finite any more"):
        train(changed(config, checkpoint_steps=1))
    assert checkpoint.checkpoint_paths(config.out) == []


def test_two_runs_do_not_share_a_folder(config):
    first = train_job(config)
    next(first)
    with pytest.raises(LockedError):
        train(config)
    first.close()


def test_unreadable_images_are_left_out_and_do_not_change_the_others(config, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    table = pd.read_csv(photos / "photos.csv")
    for name in table["path"]:
        (folder / name).write_bytes((photos / name).read_bytes()[: 60 if name == "004.png" else None])
    table.to_csv(folder / "photos.csv", index=False)
    for memory, out in ((1.0, "a"), (0.0, "b")):
        run = changed(config, table=str(folder / "photos.csv"), out=str(tmp_path / out), cache_images_gigabytes=memory)
        assert train(run).metadata["training"]["best"]["nll"] < 3
    head = changed(config, table=str(folder / "photos.csv"), out=str(tmp_path / "head"), **FEATURES)
    count = train(head).metadata["training"]
    assert count["num_training"] + count["num_validation"] == 99


def test_no_readable_image_is_an_error(config, tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    (tmp_path / "table.csv").write_text("path,longitude,latitude\na.png,1,2\n")
    for memory in (1.0, 0.0):
        run = changed(config, table=str(tmp_path / "table.csv"), cache_images_gigabytes=memory, **NONE)
        with pytest.raises(TrainingError, match=r"can be read|left to train|batches of 1 image"):
            train(run, overwrite=True)
    (tmp_path / "table.csv").write_text("path,longitude,latitude\na.png,,\n")
    with pytest.raises(TrainingError, match="none of 1 rows"):
        train(changed(config, table=str(tmp_path / "table.csv")), overwrite=True)


def test_a_second_table_can_be_the_validation(config, photos, tmp_path):
    table = pd.read_csv(photos / "photos.csv")
    table.iloc[:30].to_csv(photos / "first.csv", index=False)
    table.iloc[30:40].to_csv(photos / "second.csv", index=False)
    second = {"validation": "table", "validation_table": str(photos / "second.csv"), "validation_fraction": 0.05}
    config = changed(config, table=str(photos / "first.csv"), **second)
    summary = train(config).metadata["training"]
    assert (summary["num_training"], summary["num_validation"]) == (30, 10)


def test_blocks_hold_out_whole_cells(config):
    from geo_mvmf import s2

    config = changed(config, validation="blocks", block_level=2, validation_fraction=0.4)
    images = progress.run(load_image_set(config))
    cells = s2.cell_ids(images.directions, 2)
    assert 0 < len(images.validation) < 100
    assert not set(cells[images.validation]) & set(cells[images.training])


def test_an_unclear_validation_column_is_refused(config, photos):
    with pytest.raises(BadInputError, match="true or false"):
        train(changed(config, **BY_COLUMN | {"validation_column": "longitude"}))
    with pytest.raises(BadInputError, match="not in the table"):
        train(changed(config, **BY_COLUMN | {"validation_column": "nothing"}))


def test_finetuning_starts_from_a_bundle_with_its_head(config, tmp_path):
    first = train(changed(config, out=str(tmp_path / "first")))
    config = changed(
        config,
        num_components=None,
        initial_log_concentration="auto",
        backbone="wide_resnet50_2",
        backbone_width=64,
        crop=None,
        init_bundle=str(tmp_path / "first" / "bundle.safetensors"),
        learning_rate=0.0,
        steps=1,
        weight_decay=0.0,
        train_mean_directions=True,
        mean_direction_learning_rate=0.0,
    )
    cells = {"head": "cross_entropy", "train_mean_directions": False, "mean_direction_learning_rate": 1e-5}
    for options, message in (({"crop": 9}, "trained with 8"), (cells, "is mvmf")):
        with pytest.raises(UsageError, match=message):
            train(changed(config, **options))
    second = train(config)
    np.testing.assert_array_equal(second.cell_ids, first.cell_ids)
    torch.testing.assert_close(second.head.weight.detach(), first.head.weight.detach())
    assert second.spec == first.spec
    assert isinstance(second.head.mean_directions, torch.nn.Parameter)
    assert int(second.counts.sum()) == second.metadata["training"]["num_training"]


def test_stage_backbone_learns_countries_and_its_weights_start_a_next_stage(config, tmp_path):
    layer = gpd.GeoDataFrame(
        {"name": ["West", "East", "East"]},
        geometry=[box(-180, -60, 0, 60), box(0, -60, 90, 60), box(90, -60, 180, 60)],
        crs="OGC:CRS84",
    )
    layer.to_file(tmp_path / "countries.gpkg")
    head = config
    config = changed(
        config,
        stage="backbone",
        num_components=None,
        initial_log_concentration="auto",
        polygons=str(tmp_path / "countries.gpkg"),
        label_column="name",
        steps=40,
        out=str(tmp_path / "countries"),
    )
    stopped(changed(config, checkpoint_steps=10), 15)
    path = progress.run(train_job(config))
    whole = progress.run(train_job(changed(config, out=str(tmp_path / "whole"))))
    assert path.read_bytes() == whole.read_bytes()
    best = log_of(config)[-1]
    assert best["accuracy"] > 0.6  # the largest class has 0.43
    backbone = build_backbone("chip_resnet10", width=8, weights=str(path))
    state = sealed.read_sealed(path)[1]
    np.testing.assert_array_equal(backbone.network[0].weight.detach().numpy(), state["network.0.weight"])
    head = changed(head, **FEATURES, steps=40, weights=str(path), out=str(tmp_path / "head"))
    assert train(head).num_components == 18
    with pytest.raises(BadInputError, match="no column 'nome'"):
        progress.run(train_job(changed(config, label_column="nome"), overwrite=True))


def test_order_of_an_epoch_follows_the_weights():
    weights = np.array([1.0, 2.0, 5.0, 0.0])
    counts = np.bincount(np.concatenate([epoch_order(weights, 0, epoch) for epoch in range(500)]), minlength=4)
    np.testing.assert_allclose(counts / 2000, weights / 8, atol=0.01)
    orders = {tuple(epoch_order(np.ones(6), 0, epoch)) for epoch in range(50)}
    assert len(orders) > 40


def test_the_schedules(config):
    drops = changed(config, schedule="drops", drop_steps=[10, 20], warmup_steps=4)
    assert [round(learning_rate_factor(drops, step, 30), 4) for step in (0, 4, 9, 10, 20)] == [0.2, 1, 1, 0.1, 0.01]
    cosine = changed(config, schedule="cosine")
    factors = [learning_rate_factor(cosine, step, 100) for step in range(101)]
    assert (factors[0], round(factors[50], 6), round(factors[100], 6)) == (1.0, 0.5, 0.0)
    assert all(a >= b for a, b in itertools.pairwise(factors))


def test_balance_by_cell_draws_lonely_places_as_often_as_crowded_ones(config, photos, tmp_path):
    from geo_mvmf.model.image_set import sampling_weights
    from geo_mvmf.model.partition import partition_sphere

    images = progress.run(load_image_set(changed(config, validation="none")))
    partition = partition_sphere(images.longitude, images.latitude, 18)
    cells = partition.assign(images.longitude, images.latitude)
    weights = sampling_weights(changed(config, balance="cell"), images, partition)
    sums = np.bincount(cells, weights=weights, minlength=len(partition))
    np.testing.assert_allclose(sums[sums > 0], 1.0)
    plain = sampling_weights(config, images, partition)
    assert set(plain) == {1.0}


def test_a_folder_with_a_bundle_of_unknown_origin_is_left_alone(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "bundle.safetensors").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"without config\.json"):
        train(config)
    assert (tmp_path / "run" / "bundle.safetensors").read_bytes() == b"precious"


def test_the_released_bundle_can_be_loaded_anywhere(config):
    train(config)
    bundle = load_bundle(f"{config.out}/bundle.safetensors", device="cpu")
    assert bundle.metadata["training"]["versions"]["torch"] in torch.__version__
    assert bundle.feature_std.min() >= 0
    assert str(config.out) not in json.dumps(bundle.metadata)


def test_every_error_is_one_of_ours(config, tmp_path):
    for options in (
        {"table": str(tmp_path / "none.csv")},
        {"device": "cuda:77"},
        {"init_bundle": str(tmp_path / "no")},
    ):
        with pytest.raises(GeoMvmfError):
            train(
                changed(config, **options, **({"num_components": None} if "init_bundle" in options else {})),
                overwrite=True,
            )


def test_bfloat16_on_a_cpu_trains_nearly_the_same(config, tmp_path):
    exact = train(config)
    rounded = train(changed(config, out=str(tmp_path / "rounded"), precision="bfloat16"))
    nll = [bundle.metadata["training"]["best"]["nll"] for bundle in (exact, rounded)]
    assert nll[0] != nll[1]
    assert nll[0] == pytest.approx(nll[1], abs=0.1)


@pytest.mark.parametrize(("kind", "decaying"), [("adam", "all"), ("adamw", "matrices")])
def test_what_decays(config, kind, decaying):
    """AdamW leaves scales and biases alone; Adam's L2 is the authors', on everything."""
    head = torch.nn.Linear(3, 2)
    optimiser = make_optimiser(changed(config, optimiser=kind, weight_decay=0.1), torch.nn.BatchNorm2d(4), head)
    for group in optimiser.param_groups:
        for weight in group["params"]:
            decays = decaying == "all" or weight.ndim > 1
            assert group["weight_decay"] == (0.1 if decays else 0.0)
