"""docs/training.md: its TOML files are configurations, and one after the other they train."""

import json
import math
import re
import tomllib
from pathlib import Path

import pytest

from geo_mvmf import progress
from geo_mvmf.errors import UsageError
from geo_mvmf.model.bundle_format import read_header
from geo_mvmf.model.configuration import config_from_dict
from geo_mvmf.model.training import train_job

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "sample_data"
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
NAMES = ("backbone", "head", "finetune", "paper")
# what a test cannot have - a large network, its weights from the network, 20 epochs - and the data that are here
SIZE = {"backbone": "chip_resnet10", "backbone_width": 8, "resize": 32, "crop": 32}
STEPS = {"steps": 2, "batch_size": 6, "device": "cpu", "workers": 1}


def files_of(page):
    """The TOML blocks that are files, by the name in their first line."""
    blocks = re.findall(r"```toml\n# (\w+)\.toml.*?\n(.*?)```", page, re.DOTALL)
    return {name: tomllib.loads(text) for name, text in blocks}


def reduced(values):
    """The same configuration for the sample's images and a few steps of a small network."""
    values = {**values, "table": str(SAMPLE / "truth.csv")}
    if "polygons" in values:
        values["polygons"] = str(SAMPLE / "countries.geojson")
    if values.get("weights") == "IMAGENET1K_V2":
        del values["weights"]
    changes = STEPS if "init_bundle" in values else SIZE | STEPS
    values.pop("epochs", None)
    if values.get("num_components", 0) > 12:
        changes = {**changes, "num_components": 12}
    return {**values, **changes}


def test_each_block_is_a_configuration_as_it_stands():
    found = files_of(PAGE)
    assert tuple(found) == NAMES
    for name, values in found.items():
        assert config_from_dict(values, where=name).stage == {"paper": "head"}.get(name, name)
    with pytest.raises(UsageError, match="unknown option 'flor'"):  # the twin: a slip in the page
        config_from_dict(files_of(PAGE.replace("floor = 1.9e-4", "flor = 1.9e-4"))["paper"])


@pytest.mark.filterwarnings("ignore:.*48 of 49 rows are used. 1 without_coordinates")  # the sample has a broken picture
def test_the_stages_follow_each_other(tmp_path):
    for name, values in files_of(PAGE).items():
        progress.run(train_job(config_from_dict(reduced(values), where=name, base=tmp_path)))
    assert (tmp_path / "run_backbone" / "backbone.safetensors").is_file()
    resolved = json.loads((tmp_path / "run_paper" / "config.json").read_text(encoding="utf-8"))
    assert json.dumps(resolved).count("1.9e-4") + json.dumps(resolved).count("0.00019") == 1
    stages = [read_header(tmp_path / f"run_{name}" / "bundle.safetensors")["training"]["stage"] for name in NAMES[1:]]
    assert stages == ["head", "finetune", "head"]


def test_the_floor_is_that_of_the_authors():
    text = re.search(r"kappa / \(2 pi e\^2\): ([\d.e-]+), ([\d.e-]+), ([\d.e-]+) for", PAGE)
    for shown, log_concentration in zip(text.groups(), (16, 14, 10), strict=True):
        floor = 1e-9 * math.exp(log_concentration) / (2.0 * math.pi * math.e**2)
        assert float(shown) == pytest.approx(floor, rel=0.02)
    assert files_of(PAGE)["paper"]["floor"] == pytest.approx(1.9e-4)
