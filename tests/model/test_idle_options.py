"""Options that do nothing: a new run refuses them, one that was begun with them goes on, and they do nothing indeed."""

import dataclasses
import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from geo_mvmf import cli
from geo_mvmf.errors import UsageError
from geo_mvmf.model import idle_options
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.bundle import save_bundle
from geo_mvmf.model.configuration import TrainingConfig, config_from_dict, read_config
from geo_mvmf.model.idle_options import IdleOptionWarning, check_idle
from geo_mvmf.model.run_record import read_run
from geo_mvmf.model.training import train, train_job
from geo_mvmf.model.untrained import untrained_bundle

HEAD, TUNE, BACKBONE = ({"stage": stage} for stage in ("head", "finetune", "backbone"))
PLANET = HEAD | {"head": "cross_entropy"}
COUNTRIES = BACKBONE | {"polygons": "countries.geojson"}
GOES_ON = TUNE | {"init_bundle": "a.safetensors"}
MEANS, WIDTHS = "mean_direction_learning_rate", "concentration_learning_rate"

IDLE = [
    (HEAD, {"augment": {"flip": True, "noise": 0.1}}, r"\[augment\] \(flip True, noise 0.1\) does nothing: stage head"),
    (HEAD, {"backbone_learning_rate": 1e-3}, "stage head trains no backbone; leave it out, or use stage finetune"),
    (HEAD, {"precision": "bfloat16"}, "of a backbone in training"),
    (TUNE, {"features_dtype": "float32"}, "stage finetune caches no features"),
    (COUNTRIES, {"half": True}, "half True does nothing: stage backbone classifies countries"),
    (COUNTRIES, {"bias": "zeros"}, "its head is thrown away"),
    (COUNTRIES, {"description": "mine"}, "description 'mine' does nothing: stage backbone .* makes no bundle"),
    (COUNTRIES, {"num_components": 12}, "makes cells for balance alone, which is 'none'"),
    (HEAD, {"polygons": "a.gpkg"}, "stage head has no countries"),
    (TUNE, {"label_column": "name"}, "stage finetune has no countries"),
    (GOES_ON, {"backbone_width": 32}, "the backbone is that of init_bundle"),
    (HEAD | {"init_bundle": "a.safetensors"}, {"channels": 4}, "the backbone is that of init_bundle"),
    (GOES_ON, {"mean_direction": "photos"}, "the head is that of init_bundle"),
    (GOES_ON, {"initial_log_concentration": 16.0}, "the head is that of init_bundle"),
    (GOES_ON, {"bias": "zeros"}, "the head is that of init_bundle"),
    (TUNE, {"stretch": [[0.0, 1.0]] * 3}, "of rasters of known ground size; leave it out, or give ground_km"),
    (PLANET, {"initial_log_concentration": 16.0}, "head cross_entropy has S2 cells and no components"),
    (PLANET, {"mean_direction": "photos"}, "no components"),
    (PLANET, {"train_mean_directions": True}, "no components"),
    (PLANET, {"floor": 1e-4}, "floor 0.0001 does nothing"),
    (PLANET, {MEANS: 1e-3}, "no components"),
    (HEAD, {"partition": "kmeans", "mean_direction": "photos"}, "mean_direction 'photos' does nothing: k-means has"),
    (HEAD, {MEANS: 1e-3}, "mean directions stay as they are; leave it out, or set train_mean_directions = true"),
    (HEAD, {WIDTHS: 1e-3}, "concentrations stay as they are"),
    (HEAD, {"schedule": "cosine", "drop_steps": [5]}, "schedule 'cosine' has no drops"),
    (HEAD, {"schedule": "constant", "drop_factor": 0.5}, "drop_factor 0.5 does nothing"),
    (HEAD, {"validation": "none", "validation_fraction": 0.1}, "validation 'none' draws no images"),
    (HEAD, {"validation": "none", "validate_steps": 5}, "validate_steps 5 does nothing: no images are held out"),
    (HEAD, {"validation_fraction": 0.0, "block_level": 5}, "no images are held out"),
    (TUNE, {"channels": 1, "augment": {"saturation": 0.2}}, r"\[augment\] saturation 0.2 does nothing"),
]  # fmt: skip


def config_of(*options):
    joined = {"table": "photos.csv", "out": "run"}
    for each in options:
        joined |= each
    return config_from_dict(joined)


@pytest.mark.parametrize(("run", "options", "message"), IDLE)
def test_an_option_that_does_nothing_is_named_with_its_file_and_what_to_do(run, options, message):
    config = config_of(run, options)
    with pytest.raises(UsageError, match=rf"^train.toml: .*{message}") as caught:
        check_idle(config, where="train.toml")
    assert "; leave it out" in str(caught.value)
    with pytest.warns(IdleOptionWarning, match=rf"^train.toml: .*{message}.*; this run was begun with it"):
        check_idle(config, where="train.toml", begun=True)


EFFECTIVE = [
    (HEAD, {"train_mean_directions": True, MEANS: 1e-3, "train_log_concentrations": True, WIDTHS: 1e-3}),
    (HEAD, {"precision": "float32", "features_dtype": "float32"}),
    (TUNE, {"augment": {"saturation": 0.2}, "precision": "bfloat16", "backbone_learning_rate": 1e-3}),
    (TUNE, {"stretch": [[0.0, 1.0]] * 3, "ground_km": 9.0}),
    (PLANET, {"partition": "planet", "label_smoothing_km": 75.0, "bias": "zeros"}),
    (COUNTRIES, {"balance": "cell", "num_components": 12, "label_column": "name"}),
    (GOES_ON, {"bias": "none", "floor": 1e-4, "train_mean_directions": True, MEANS: 1e-3}),
    (HEAD, {"validation": "none", "validation_fraction": 0.0}),
    (HEAD, {"validation": "blocks", "block_level": 5, "validate_steps": 5}),
    (HEAD, {"partition": "kmeans", "max_level": 9}),
    (HEAD, {"drop_steps": [5], "drop_factor": 0.5}),
    (HEAD, {"schedule": "cosine", "drop_steps": []}),
]  # fmt: skip


@pytest.mark.parametrize(("run", "options"), EFFECTIVE)
def test_options_that_do_something_are_taken(run, options):
    check_idle(config_of(run, options))


@pytest.mark.parametrize("run", [HEAD, TUNE, COUNTRIES, PLANET, GOES_ON, HEAD | {"partition": "kmeans"}])
def test_the_defaults_are_taken(run):
    check_idle(config_of(run))


def test_what_rules_name_are_options():
    known = {field.name for field in dataclasses.fields(TrainingConfig)}
    known |= {f"augment.{field.name}" for field in dataclasses.fields(Augmentation)}
    named = {name for run, options, _ in IDLE for rule in idle_options._rules(config_of(run, options))
             for name in rule.names}  # fmt: skip
    assert named <= known
    assert len(named) > 30


def test_configurations_in_the_docs_and_the_sample_are_taken():
    root = Path(__file__).parents[2]
    plain = {"stage": "head", "table": "photos.csv", "out": "run"}
    texts = [(root / "sample_data" / "train.toml").read_text(encoding="utf-8")]
    texts.append((root / "experiments" / "blue_marble.toml").read_text(encoding="utf-8"))
    for page in sorted((root / "docs").glob("*.md")):
        texts += re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(texts) > 6
    for text in texts:
        check_idle(config_from_dict(plain | tomllib.loads(text)), where=text)


@pytest.mark.parametrize("run", [TUNE, COUNTRIES])
def test_channels_are_those_of_the_bundle_to_start_from(tmp_path, run):
    plain, path = untrained_bundle(), tmp_path / "start.safetensors"
    backbone = build_backbone("chip_resnet10", width=8, channels=4)
    spec = dataclasses.replace(plain.spec, channels=4)
    config = config_of(run, {"init_bundle": str(path), "augment": {"saturation": 0.2}})
    save_bundle(plain, path)
    check_idle(config)
    save_bundle(dataclasses.replace(plain, backbone=backbone, spec=spec), path, overwrite=True)
    with pytest.raises(UsageError, match=r"^\[augment\] saturation 0.2 does nothing: images of 4 channels have no"):
        check_idle(config)
    path.unlink()  # a finished run that is started again needs it no more; any other says so where it is loaded
    check_idle(config, begun=True)


def test_centres_that_are_given_to_k_means_are_refused_although_they_are_the_default(tmp_path):
    path = tmp_path / "train.toml"
    lines = ['stage = "head"', 'table = "a.csv"', 'out = "run"', 'partition = "kmeans"']
    path.write_text("\n".join(lines))
    assert read_config(path).mean_direction == "centre"
    path.write_text("\n".join([*lines, 'mean_direction = "centre"']))
    with pytest.raises(UsageError, match=r"train.toml: mean_direction 'centre' does nothing: k-means .*; leave it out"):
        read_config(path)


@pytest.fixture(scope="module")
def photos(make_photos):
    return make_photos(40)


@pytest.fixture
def config(photos, tmp_path):
    return TrainingConfig(
        stage="head", table=str(photos / "photos.csv"), out=str(tmp_path / "run"), cache_dir=str(photos / "features"),
        backbone="chip_resnet10", backbone_width=8, crop=8, resize=8, num_components=12, batch_size=8, steps=6,
        learning_rate=5e-3, threads=1, validate_steps=3, validation_fraction=0.2, checkpoint_steps=2, device="cpu",
        partition="kmeans",
    )  # fmt: skip


def changed(config, **options):
    return dataclasses.replace(config, **options)


def test_a_run_that_was_begun_with_such_an_option_goes_on_and_opens(config, monkeypatch, tmp_path):
    """Its bits are those of a run without it, and of k-means the report opens the resolved configuration."""
    whole = train(changed(config, out=str(tmp_path / "whole")))
    idle = changed(config, mean_direction="photos", augment=Augmentation(noise=0.1))
    with monkeypatch.context() as patch:
        patch.setattr(idle_options, "check_idle", lambda *_, **__: None)
        job = train_job(idle)
        for event in job:
            if event.stage == "train" and event.done == 4:
                job.close()
    with pytest.warns(IdleOptionWarning) as said:
        assert train(idle).digest == whole.digest
    told = [str(each.message) for each in said]
    assert [text.split(" does nothing: ")[0] for text in told] == ["[augment] (noise 0.1)", "mean_direction 'photos'"]
    assert read_run(idle.out).config.mean_direction == "photos"
    assert read_run(whole.path.parent).config.mean_direction == "centre"


def test_a_new_run_is_refused_before_anything_is_written_or_thrown_away(config):
    idle = changed(config, augment=Augmentation(noise=0.1))
    with pytest.raises(UsageError, match=r"^\[augment\] \(noise 0.1\) does nothing"):
        train(idle)
    assert not Path(idle.out, "config.json").exists()
    Path(config.out, "bundle.safetensors").write_bytes(b"a bundle")
    with pytest.raises(UsageError, match="does nothing"):
        train(idle, overwrite=True)
    assert Path(config.out, "bundle.safetensors").read_bytes() == b"a bundle"


def test_the_file_is_named_and_read_once(config):
    """Of a pipe a second reading would find nothing."""
    values = changed(config, drop_factor=0.5, schedule="cosine").to_dict() | {"augment": {}}
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()
                   if value is not None and value != {} and name != "mean_direction")  # fmt: skip
    said = "drop_factor 0.5 does nothing: schedule 'cosine' has no drops"
    for of_command in (False, True):
        end, begin = os.pipe()
        os.write(begin, text.encode())
        os.close(begin)
        path = f"/dev/fd/{end}"
        if of_command:
            assert f"{path}: {said}" in CliRunner().invoke(cli.main, ["train", path]).stderr
        else:
            with pytest.raises(UsageError, match=f"{path}: {said}"):
                train(path)
        os.close(end)


MEASURED = [
    ({}, {"augment": Augmentation(flip=True, noise=0.1)}),
    ({}, {"backbone_learning_rate": 1e-2}),
    ({}, {"precision": "bfloat16"}),
    ({}, {"polygons": "a.gpkg", "label_column": "name"}),
    ({}, {"mean_direction": "photos"}),
    ({}, {MEANS: 1e-2, WIDTHS: 1e-2}),
    ({"schedule": "cosine"}, {"drop_steps": [2], "drop_factor": 0.5}),
    ({"validation": "none", "validate_steps": None, "validation_fraction": 0.05},
     {"validate_steps": 2, "block_level": 6, "validation_fraction": 0.1}),
    ({"head": "cross_entropy", "partition": "s2"},
     {"initial_log_concentration": 9.0, "mean_direction": "photos", "train_mean_directions": True, "floor": 1e-3,
      "train_log_concentrations": True, MEANS: 1e-2, WIDTHS: 1e-2}),
    ({"stage": "finetune"}, {"features_dtype": "float32"}),
]  # fmt: skip


@pytest.mark.hard
@pytest.mark.parametrize(("run", "idle"), MEASURED)
def test_what_is_refused_changes_no_bit(config, run, idle, monkeypatch, tmp_path):
    monkeypatch.setattr(idle_options, "check_idle", lambda *_, **__: None)
    plain = train(changed(config, **run))
    assert train(changed(config, **(run | idle), out=str(tmp_path / "idle"))).digest == plain.digest


@pytest.mark.hard
def test_an_option_that_changes_something_is_seen_to(config, tmp_path):
    """Broken twin: what does something gives other bits."""
    plain = train(config)
    assert train(changed(config, weight_decay=0.1, out=str(tmp_path / "other"))).digest != plain.digest
