"""Patience ends a run, parts of a batch give the step of the whole, and both go on to the same bits after a stop."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from geo_mvmf import cli, sphere
from geo_mvmf.errors import TrainingError, UsageError
from geo_mvmf.model import checkpoint, learner
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.sources import Batch
from geo_mvmf.model.training import train, train_job

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(make_photos):
    return make_photos(40)


@pytest.fixture
def config(photos, tmp_path):
    return TrainingConfig(
        stage="head",
        table=str(photos / "photos.csv"),
        out=str(tmp_path / "run"),
        cache_dir=str(photos / "features"),
        backbone="chip_resnet10",
        backbone_width=8,
        crop=8,
        num_components=12,
        initial_log_concentration=3.0,
        learning_rate=5e-3,
        batch_size=8,
        steps=24,
        threads=1,
        validate_steps=3,
        validation_fraction=0.2,
        device="cpu",
    )


NONE = {"validation": "none", "validation_fraction": 0.05, "validate_steps": None}


def changed(config, **options):
    return dataclasses.replace(config, **options)


def log_of(config):
    return [json.loads(line) for line in Path(config.out, "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def scored(monkeypatch):
    """Let the validation after so many steps find what is said here."""
    nll = {3: 5.0, 6: 4.0, 9: 4.5, 12: 4.0, 15: 4.2, 18: 1.0, 21: 0.5, 24: 0.4}
    original = learner.Learner.keep_if_best

    def keep_if_best(self, step, measured):
        return original(self, step, {**measured, "nll": nll[step]})

    monkeypatch.setattr(learner.Learner, "keep_if_best", keep_if_best)


def test_a_network_that_crashes_the_process_is_refused(config, photos):
    with pytest.raises(UsageError, match=r"backbone_width is 8: .* narrower than 16 channels on .* 48 pixels"):
        train(changed(config, stage="finetune", crop=64))
    assert train(changed(config, stage="finetune", crop=48, steps=1)).spec.crop == 48


def test_patience_counts_validations_without_a_new_best(config, scored):
    """After the best at 6 come 9, 12 (no lower) and 15: three."""
    bundle = train(changed(config, patience=3))
    summary = bundle.metadata["training"]
    assert (summary["stopped_early"], summary["best"]["step"], summary["steps"]) == (15, 6, 24)
    end = log_of(changed(config))[-1]
    assert (end["event"], end["step"], end["stopped_early"]) == ("end", 6, 15)
    assert [record["step"] for record in log_of(config) if record["event"] == "validation"] == [3, 6, 9, 12, 15]


def test_enough_patience_changes_nothing(config, scored, tmp_path):
    """Four validations pass before a new best comes; a run to its end is no early stop, to the byte."""
    patient, plain = changed(config, patience=4), changed(config, out=str(tmp_path / "plain"))
    assert train(patient).digest == train(plain).digest
    assert "stopped_early" not in log_of(patient)[-1]


def test_patience_goes_on_where_it_was(config, scored, tmp_path):
    """The count is part of the checkpoint: a stopped run ends at the same step, with the same bits."""
    whole = train(changed(config, out=str(tmp_path / "whole"), patience=3))
    config = changed(config, patience=3, checkpoint_steps=2)
    job = train_job(config)
    for event in job:
        if event.stage == "train" and event.done == 14:
            job.close()
    assert checkpoint.read_newest(config.out)[0].facts["waited"] == 2
    assert train(config).digest == whole.digest


@pytest.mark.hard
def test_a_count_that_is_forgotten_is_caught(config, scored, tmp_path, monkeypatch):
    """Broken twin: a run that goes on begins to count anew."""
    whole = train(changed(config, out=str(tmp_path / "whole"), patience=3))
    config = changed(config, patience=3, checkpoint_steps=2)
    job = train_job(config)
    for event in job:
        if event.stage == "train" and event.done == 14:
            job.close()
    original = checkpoint.read_newest

    def forgetful(folder):
        found, damaged = original(folder)
        return dataclasses.replace(found, facts=found.facts | {"waited": 0}), damaged

    monkeypatch.setattr(checkpoint, "read_newest", forgetful)
    assert train(config).digest != whole.digest


def test_the_command_says_that_it_stopped_early(config, scored):
    values = {name: value for name, value in changed(config, patience=3).to_dict().items() if value is not None}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items() if name != "augment")
    path = Path(config.table).parent / "early.toml"
    path.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(cli.main, ["train", str(path)])
    assert result.exit_code == 0, result.output
    wanted = "stopped early after 15 steps: no lower validation NLL in 3 validations since step 6"
    assert wanted in " ".join(result.output.split())


def make_learner(config, *, norm=None):
    """A learner on noise; with a backbone whose batch normalisation is replaced, or of a head alone."""
    rng = np.random.default_rng(2)
    targets = torch.from_numpy(sphere.random_directions(40, rng))
    backbone = None
    if norm is not None:
        backbone = build_backbone("chip_resnet10", width=8)
        for module in list(backbone.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.BatchNorm2d):
                    setattr(module, name, norm(child.num_features))
    centres = sphere.random_directions(12, rng)
    head = MvmfHead(64, centres, np.full(12, 3.0), train_mean_directions=True, train_log_concentrations=True, seed=1)
    config = changed(config, train_mean_directions=True, train_log_concentrations=True)
    return learner.Learner(config, head, backbone, targets, 8, 1.0, 100, CPU)


@pytest.mark.parametrize("start", [75.0, -75.0])
def test_concentrations_that_run_away_are_kept_where_a_bundle_may_have_them(config, start, monkeypatch):
    """After every step, and in the running mean that is released."""
    student = make_learner(changed(config, ema_decay=0.5))
    student.mean_state["head.log_concentrations"].fill_(start)
    step = student.optimiser.step

    def strides():
        step()
        student.state()["head.log_concentrations"].fill_(start)

    monkeypatch.setattr(student.optimiser, "step", strides)
    student.train_step(0, make_batch(8, pixels=False))
    assert student.head.log_concentrations.abs().max() == 60.0
    student.finish()
    assert student.head.log_concentrations.abs().max() == 60.0
    assert len(student.head.mixture(torch.zeros(2, 64))) == 2


def make_batch(count, *, pixels, unreadable=()):
    rng = np.random.default_rng(3)
    readable = ~np.isin(np.arange(count), unreadable)
    if pixels:
        inputs = torch.from_numpy(rng.integers(0, 256, (count, 3, 8, 8)).astype(np.uint8))
    else:
        inputs = torch.from_numpy(rng.standard_normal((count, 64)).astype(np.float16))
    return Batch(np.arange(count), inputs, readable)


def gradients(student, batch):
    """The loss of a step, and the gradients that it took; they stay where they were until the next."""
    loss = student.train_step(0, batch)
    parts = [student.head] if student.backbone is None else [student.head, student.backbone]
    return loss, {
        name: value.grad.clone() for part in parts for name, value in part.named_parameters() if value.grad is not None
    }


def largest_difference(one, other):
    """Relative to the largest value of each weight's gradient."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / one[name].abs().max().clamp(min=1e-12)) for name in one)


GROUPS = {"head": None, "a backbone without batch normalisation": lambda channels: torch.nn.GroupNorm(4, channels)}


@pytest.mark.parametrize("what", GROUPS)
@pytest.mark.parametrize("accumulate", [2, 5, 17])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(config, what, accumulate):
    """Also where the parts differ in size, and in how many of their images can be read: one part has none."""
    norm = GROUPS[what]
    unreadable = () if norm is None else (0, 1, 9)
    config = changed(config, stage="finetune" if norm else "head", augment=Augmentation(channel_gain=0.1, noise=0.02))
    batch = make_batch(17, pixels=norm is not None, unreadable=unreadable)
    whole_loss, whole = gradients(make_learner(config, norm=norm), batch)
    loss, parts = gradients(make_learner(changed(config, batch_size=17, accumulate=accumulate), norm=norm), batch)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert largest_difference(whole, parts) < 2e-5


def test_a_mean_of_the_means_of_uneven_parts_is_caught(config, monkeypatch):
    """Broken twin: every part counts alike."""
    batch = make_batch(17, pixels=False)
    _, whole = gradients(make_learner(config), batch)
    original = learner.Learner._parts
    monkeypatch.setattr(learner.Learner, "_parts", lambda *args: ((part, 0.2) for part, _ in original(*args)))
    _, parts = gradients(make_learner(changed(config, batch_size=17, accumulate=5)), batch)
    assert largest_difference(whole, parts) > 1e-3


def test_batch_normalisation_sees_a_part_at_a_time(config):
    """So the step is another one than the whole batch's, as the documentation says."""
    batch = make_batch(16, pixels=True)
    config = changed(config, stage="finetune", batch_size=16)
    _, whole = gradients(make_learner(config, norm=torch.nn.BatchNorm2d), batch)
    _, parts = gradients(make_learner(changed(config, accumulate=4), norm=torch.nn.BatchNorm2d), batch)
    assert largest_difference(whole, parts) > 1e-2


def test_a_head_that_is_trained_in_parts_ends_where_the_whole_does(config, tmp_path):
    """Adam enlarges rounding where gradients nearly vanish; what it learns is the same."""
    whole = train(changed(config, out=str(tmp_path / "whole")))
    parts = train(changed(config, accumulate=4))
    nll = [bundle.metadata["training"]["best"]["nll"] for bundle in (whole, parts)]
    assert nll[0] == pytest.approx(nll[1], abs=1e-4)
    assert whole.digest != parts.digest
    with pytest.raises(UsageError, match="started with accumulate = 4, now it is 1"):
        train(config)


def test_parts_that_are_too_small_are_refused(config):
    with pytest.raises(TrainingError, match=r"accumulate is 40: the batches have \d+ images; lower it"):
        train(changed(config, batch_size=64, accumulate=40))
    finetune = changed(config, stage="finetune", accumulate=5, cache_dir=None)
    with pytest.raises(TrainingError, match="batches of 8 images in 5 parts: the batch normalisation of this backbone"):
        train(finetune, overwrite=True)


def test_no_readable_image_in_any_part_is_an_error(config):
    student = make_learner(changed(config, stage="finetune", accumulate=2), norm=torch.nn.BatchNorm2d)
    with pytest.raises(TrainingError, match="step 0: none of the images of rows"):
        student.train_step(0, make_batch(4, pixels=True, unreadable=range(4)))


@pytest.mark.parametrize("head", ["mvmf", "cross_entropy"])
def test_the_bias_begins_at_counts_or_zero_or_is_not_there(config, tmp_path, head):
    config = changed(config, head=head, num_components=6, initial_log_concentration="auto", **NONE)
    found = {}
    for bias in ("counts", "zeros", "none"):
        whole = changed(config, bias=bias, out=str(tmp_path / bias))
        begun = changed(whole, steps=1, learning_rate=1e-12, out=str(tmp_path / f"{bias}-begun"))
        found[bias] = train(whole)
        start = train(begun).head.bias.detach()
        if bias == "counts":
            share = (found[bias].counts + 1.0) / (found[bias].counts + 1.0).sum()
            np.testing.assert_allclose(start.exp(), share, rtol=1e-5)
        else:
            assert float(start.abs().max()) < 1e-9
    assert float(found["zeros"].head.bias.detach().abs().max()) > 1e-2  # trained
    assert not bool(found["none"].head.bias.count_nonzero())
    assert float(found["none"].head.weight.detach().abs().max()) > 0.05  # the rest is
    tuned = changed(config, stage="finetune", backbone="wide_resnet50_2", num_components=None, bias="none", crop=None,
                    backbone_width=64, init_bundle=str(tmp_path / "zeros" / "bundle.safetensors"),
                    out=str(tmp_path / "tuned"))  # fmt: skip
    with pytest.raises(UsageError, match="was trained with one"):
        train(tuned)
    kept = changed(tuned, init_bundle=str(tmp_path / "none" / "bundle.safetensors"), steps=2)
    assert not bool(train(kept).head.bias.count_nonzero())


@pytest.mark.parametrize("fused", ["none", "float32"])  # fused, no parameter is left to the other optimiser
def test_a_run_without_a_bias_goes_on_to_the_same_bits(config, tmp_path, fused):
    config = changed(config, bias="none", checkpoint_steps=5, fused_optimiser=fused, **NONE)
    whole = Path(train(config).path).read_bytes()
    part = changed(config, out=str(tmp_path / "stopped"))
    job = train_job(part)
    for event in job:
        if event.stage == "train" and event.done >= 12:
            job.close()
            break
    assert not Path(part.out, "bundle.safetensors").exists()
    assert Path(train(part).path).read_bytes() == whole
