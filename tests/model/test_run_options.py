"""Options of runs of any age: what a run without an option did stays what it did, whatever its default becomes."""

import dataclasses
import json
import os
import pathlib
import re

import pytest

from geo_mvmf.errors import BadInputError, OutputError, UsageError
from geo_mvmf.model import run_folder, run_options
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.ranks import Ranks
from geo_mvmf.model.run_record import read_run

# Every run has written these; an option that is new belongs into run_options.ADDED, with what runs did before it.
FIRST = re.findall(
    r"\w+",
    """stage table out root layer crs exif backbone backbone_width stem_stride weights init_bundle resize crop
channels bands stretch ground_km head num_components max_level mean_direction initial_log_concentration
train_mean_directions train_log_concentrations floor optimiser learning_rate backbone_learning_rate
mean_direction_learning_rate concentration_learning_rate schedule drop_steps drop_factor
warmup_steps weight_decay gradient_clip ema_decay batch_size
steps epochs seed balance validation validation_fraction validation_column validation_table block_level validate_steps
checkpoint_steps checkpoint_seconds log_steps device precision threads workers cache_images_gigabytes features_dtype
cache_dir augment polygons label_column half description licence""",
)
FIRST_OF_AUGMENT = re.findall(
    r"\w+",
    """min_scale max_aspect flip shift rotate brightness contrast saturation channel_gain
channel_offset noise""",
)


def names(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_every_option_is_of_the_first_version_or_tells_what_runs_before_it_did():
    assert names(TrainingConfig) - set(FIRST) == set(run_options.ADDED)
    assert names(Augmentation) - set(FIRST_OF_AUGMENT) == set(run_options.ADDED_TO_AUGMENT)


@pytest.fixture
def old(tmp_path):
    """A finished run of the first version."""
    config = TrainingConfig(stage="head", table="/no/photos.csv", out=str(tmp_path))
    values = {name: value for name, value in config.to_dict().items() if name in FIRST}
    values["augment"] = {name: value for name, value in values["augment"].items() if name in FIRST_OF_AUGMENT}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "bundle.safetensors").write_bytes(b"")
    return config


def begin(config):
    result = pathlib.Path(config.out) / "bundle.safetensors"
    return run_folder.begin(config, result, Ranks(), overwrite=False)[0]


def test_an_old_run_goes_on_and_never_under_a_value_that_it_did_not_have(old, monkeypatch):
    assert begin(old)["finished"]
    monkeypatch.setitem(run_options.ADDED, "bias", "zeros")  # as if the default had become another since
    with pytest.raises(UsageError, match="started with bias = 'zeros', now it is 'counts'"):
        begin(old)
    assert read_run(old.out).config.bias == "zeros"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", r"holds \[\] where names"),
        ("null", "holds null where names"),
        ('{"stage": "head", "augment": [1]}', r"augment is \[1\]"),
        ("[" * 100_000, "nested too deeply"),
        ("", "Expecting value"),
    ],
)
def test_what_holds_no_options_is_named_by_both_commands(old, text, why):
    (pathlib.Path(old.out) / "config.json").write_text(text)
    with pytest.raises(BadInputError, match=why):
        read_run(old.out)
    with pytest.raises(OutputError, match=f"{why}.*; name another folder as out, or start again with"):
        begin(old)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(old):
    for name in ("log.jsonl", "config.json"):
        path = pathlib.Path(old.out) / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        if name == "log.jsonl":
            assert "is a pipe" in read_run(old.out).remarks[0]
            assert run_folder.end_record(pathlib.Path(old.out)) == {}
    with pytest.raises(BadInputError, match="is a pipe, not a regular file"):
        read_run(old.out)
