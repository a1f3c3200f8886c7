"""The training configuration: unknown, wrong and contradicting options are named before anything starts."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from geo_mvmf.errors import UsageError
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.configuration import TrainingConfig, config_from_dict, read_config

BASE = {"stage": "finetune", "table": "photos.csv", "out": "run"}


def test_paths_are_relative_to_the_toml_file(tmp_path):
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "train.toml"
    path.write_text(
        'stage = "head"\ntable = "../photos.csv"\nout = "run"\nweights = "a.safetensors"\n'
        'cache_dir = "/elsewhere"\n[augment]\nshift = 2\nflip = true\n'
    )
    config = read_config(path)
    assert config.table == str(tmp_path / "photos.csv")
    assert config.out == str(tmp_path / "sub" / "run")
    assert config.weights == str(tmp_path / "sub" / "a.safetensors")
    assert config.cache_dir == "/elsewhere"
    assert config.augment == Augmentation(shift=2, flip=True)


def test_names_of_torchvisions_weights_are_no_paths():
    assert config_from_dict({**BASE, "weights": "IMAGENET1K_V2"}).weights == "IMAGENET1K_V2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batchsize": 3}, r"unknown option 'batchsize'; did you mean batch_size\?"),
        ({"learning_rat": 3}, r"did you mean learning_rate\?"),
        ({"augment": {"shfit": 1}}, r"\[augment\]: unknown option 'shfit'; did you mean shift\?"),
        ({"augment": 3}, "a TOML table"),
        ({"stage": "finetuned"}, "one of backbone, head, finetune"),
        ({"batch_size": 0}, r"batch_size is 0; 1\.\.1048576"),
        ({"batch_size": 2.5}, "batch_size is 2.5; int is needed"),
        ({"batch_size": True}, "batch_size is True; int is needed"),
        ({"exif": 1}, "exif is 1; true or false is needed"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; float is needed"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"steps": 5, "epochs": 5.0}, "exclude each other"),
        ({"initial_log_concentration": "automatic"}, "auto or a number"),
        ({"initial_log_concentration": 61.0}, "is 61.0; auto or a number in -60..60"),
        ({"initial_log_concentration": float("nan")}, "is nan; auto or a number"),
        ({"drop_steps": [1.5]}, "a list of integers"),
        ({"validation": "column"}, "give both or none"),
        ({"validation_table": "a.csv"}, "give both or none"),
        ({"stage": "backbone"}, "polygons is missing"),
        ({"init_bundle": "a", "weights": "IMAGENET1K_V1"}, "exclude each other"),
        ({"init_bundle": "a", "num_components": 9}, "leave one out"),
        ({"augment": {"shift": -1}}, r"shift is -1; 0\.\.64"),
        ({"augment": {"flip": 1}}, "true or false"),
        ({"augment": {"noise": "a"}}, "noise is 'a'"),
        ({"seed": -1}, "seed is -1"),
        ({"accumulate": 65}, "accumulate is 65: a batch of 64 images has no so many parts"),
        ({"accumulate": 2, "fused_optimiser": "float32"}, "one backward pass of a step: accumulate 2 needs as many"),
        ({"patience": 0}, r"patience is 0; 1\.\."),
        ({"patience": 3, "validation": "none"}, "patience is 3, but nothing is validated"),
        ({"patience": 3, "validation_fraction": 0.0}, "patience is 3, but nothing is validated"),
        ({"normalisation": "batch"}, "normalisation is 'batch'; one of fixed, image is allowed"),
        ({"tensorboard": 1}, "tensorboard is 1; true or false is needed"),
        ({"augment": {"gamma": -0.1}}, r"gamma is -0.1; 0\.\.4 is allowed"),
        ({"augment": {"scale": 1.5}}, r"scale is 1.5; 0\.\.1 is allowed"),
    ],
)
def test_each_wrong_option_is_named(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        config_from_dict({**BASE, **options}, where="train.toml")
    assert str(caught.value).startswith("train.toml")


@pytest.mark.parametrize("name", ["stage", "table", "out"])
def test_what_is_always_needed_is_asked_for(name):
    with pytest.raises(UsageError, match=f"option {name} is missing"):
        config_from_dict({key: value for key, value in BASE.items() if key != name})


@pytest.mark.parametrize("content", [b"stage = ", b"\xff\xfe", b"[table"])
def test_what_is_no_toml_is_named(tmp_path, content):
    path = tmp_path / "train.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"train\.toml: cannot be read as TOML"):
        read_config(path)


def test_a_value_without_quotes_a_missing_file_and_a_folder_are_said_in_words(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text("half = yes")
    with pytest.raises(UsageError, match=r"line 1, column 8.*; numbers, true and false stand as they are, and all oth"):
        read_config(path)
    with pytest.raises(UsageError, match=f"^{tmp_path} is a folder; {path} lies in it$"):
        read_config(tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match=f"^{tmp_path} is a folder; give the TOML file of a training$"):
        read_config(tmp_path)
    with pytest.raises(UsageError, match=f"^{path}: there is no such file; give the TOML file of a training$"):
        read_config(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\xff", "it is a picture"),
        (b"II*\x00\xff\xff", "it is a TIFF"),
        (b"# R\xe9sum\xe9\nstage = 'head'\n", "it is no text in UTF-8"),
    ],
)
def test_another_file_given_for_the_configuration_is_told_by_its_kind(tmp_path, content, kind):
    path = tmp_path / "train.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"cannot be read as TOML: {kind}; give a text file with stage"):
        read_config(path)


def test_every_option_is_documented():
    text = str(TrainingConfig.__doc__)
    for field in dataclasses.fields(TrainingConfig):
        assert field.name in text, field.name
    for field in dataclasses.fields(Augmentation):
        assert field.name in str(Augmentation.__doc__), field.name


@pytest.mark.parametrize("page", ["many_processes.md", "huge_heads.md"])
def test_configurations_in_the_docs_are_taken(page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        config_from_dict({"stage": "head", "table": "photos.csv", "out": "run"} | tomllib.loads(block), where=page)
