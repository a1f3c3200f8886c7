"""The region-of-interest tutorial: what its page says is what is done, and what it promises is what comes out."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from click import UsageError

from geo_mvmf import cli, evaluation, s2, sphere
from geo_mvmf.maps.density import cell_area_km2
from geo_mvmf.maps.grid import Grid
from geo_mvmf.model.bundle_format import read_header
from geo_mvmf.model.configuration import config_from_dict
from geo_mvmf.predictions import open_predictions

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial_region.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.timeout(1500)  # the commands take two minutes of an idle core, and a busy one is no failure


def commands_of(page):
    """The commands of a page, as words."""
    text = "\n".join(re.findall(r"```sh\n(.*?)```", page, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]


def toml_of(page):
    (found,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    return found


def mistakes(page):
    """What of a page the command line does not understand."""
    found = []
    for program, name, *arguments in commands_of(page):
        if program != "geo-mvmf":
            continue
        try:
            cli.main.get_command(None, name).make_context(name, arguments)
        except UsageError as error:
            found.append(str(error))
    options = {each for name in cli.main.list_commands(None) for param in cli.main.get_command(None, name).params
               for each in param.opts}  # fmt: skip
    inline = " ".join(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page, flags=re.DOTALL)))
    return [*found, *(each for each in re.findall(r"(?<!\S)--[a-z-]+", inline) if each not in options)]


def test_there_are_fewer_than_ten_commands():
    assert 6 <= len(commands_of(PAGE)) < 10


def test_every_option_exists_and_the_twin_with_one_that_does_not_is_caught():
    assert mistakes(PAGE) == []
    assert len(mistakes(PAGE.replace("--parts calibration", "--part calibration"))) == 1
    assert mistakes(PAGE.replace("`--bands 4,3,2`", "`--bnads 4,3,2`")) == ["--bnads"]


def test_every_input_is_an_output_of_a_command_before():
    made = {f"region/{name}" for name in ("spring.tif", "summer.tif", "autumn.tif", "winter.tif", "aoi.geojson")}
    made.add("region/region.toml")  # the reader saves it
    implied = {"train": ["region/run/bundle.safetensors"]}
    for _, name, *words in commands_of(PAGE)[1:]:
        out = words[words.index("--out") + 1] if "--out" in words else None
        for word in " ".join(words).replace("=", " ").split():
            if word.startswith("region/") and word != out:
                assert word in made or any(word.startswith(f"{folder}/") for folder in made), word
        assert out not in made
        made.update([*([out] if out else []), *implied.get(name, [])])


def test_the_configuration_is_one_and_trains_what_was_looked_at():
    config = config_from_dict(tomllib.loads(toml_of(PAGE)), base="region")
    words = next(words for words in commands_of(PAGE) if words[1] == "partition")
    assert config.num_components == int(words[words.index("--num-cells") + 1])
    assert Path(config.table).parts[-2:] == ("training", "chips.csv")


def run(words, folder):
    """Run a command as a process of its own; all output is for a person who reads a failure."""
    program = {"python": [sys.executable], "geo-mvmf": [sys.executable, "-m", "geo_mvmf"]}[words[0]]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*program, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def region(tmp_path_factory):
    """The folder that somebody has who did all that the page says."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "sample_data").symlink_to(ROOT / "sample_data")
    for words in commands_of(PAGE):
        if words[1] == "train":
            (folder / "region" / "region.toml").write_text(toml_of(PAGE), encoding="utf-8")
        run(words, folder)
    return folder / "region"


def median_error_km(longitude, latitude, rows):
    found = sphere.great_circle_distance_km(longitude, latitude, rows["true_longitude"], rows["true_latitude"])
    return float(np.median(found))


def is_covered(images, level):
    """Whether the share of truths in the regions of a level is that level, at 99.9 % for images that overlap."""
    covered = (images["searched_probability"] <= level).mean()
    return abs(covered - level) < 3.3 * np.sqrt(level * (1.0 - level) / (len(images) / 3.0))


@pytest.mark.hard
def test_the_chips_are_those_that_the_page_speaks_of(region):
    (area,) = geopandas.read_file(region / "aoi.geojson").geometry
    training = pd.read_csv(region / "training" / "chips.csv")
    assert training.groupby("season").size().to_dict() == {"autumn": 1500, "spring": 1500, "summer": 1500}
    assert shapely.contains_xy(area, training["longitude"], training["latitude"]).all()
    parts = {name: pd.read_csv(region / "held_out" / f"{name}.csv") for name in ("calibration", "test")}
    assert sum(map(len, parts.values())) == 600
    blocks = {name: set(s2.cell_ids(sphere.to_directions(each["longitude"], each["latitude"]), 3).tolist())
              for name, each in parts.items()}  # fmt: skip
    assert not blocks["calibration"] & blocks["test"]
    assert {season for each in parts.values() for season in each["season"]} == {"winter"}
    assert geopandas.read_file(region / "partition.gpkg", layer="cells")["images"].sum() == 4500


@pytest.mark.hard
def test_the_bundle_is_calibrated_and_says_on_what(region):
    about = read_header(region / "calibrated.safetensors")["training"]["calibration"]
    assert about["num_images"] == len(pd.read_csv(region / "held_out" / "calibration.csv"))
    assert 0.2 < about["temperature"] < 5.0
    assert "calibration" not in read_header(region / "run" / "bundle.safetensors")["training"]


@pytest.mark.hard
def test_test_chips_are_found_and_their_regions_hold_what_they_say(region):
    found = open_predictions(region / "predicted" / "predictions.nc")
    rows = found.rows
    assert (rows["status"] == "ok").all()
    error = median_error_km(rows["longitude"], rows["latitude"], rows)
    order = np.random.default_rng(0).permutation(len(rows))
    chance = median_error_km(rows["true_longitude"].to_numpy()[order], rows["true_latitude"].to_numpy()[order], rows)
    assert error < chance / 5.0
    images = evaluation.evaluate(found).images()
    assert all(is_covered(images, level) for level in (0.5, 0.8, 0.9))
    # the twins: places that are not the chips', and regions of a model that is too sure of itself
    shuffled = median_error_km(rows["longitude"].to_numpy()[order], rows["latitude"].to_numpy()[order], rows)
    assert shuffled > chance / 5.0
    sure = images.assign(searched_probability=np.sqrt(images["searched_probability"]))
    assert not is_covered(sure, 0.5)


@pytest.mark.hard
def test_the_layers_open_where_a_gis_opens_them(region):
    points = geopandas.read_file(region / "predicted" / "predictions.gpkg", layer="points")
    regions = geopandas.read_file(region / "predicted" / "predictions.gpkg", layer="regions")
    assert set(regions["image_id"]) == set(points["image_id"])
    page = (region / "report.html").read_text(encoding="utf-8")
    assert "<img" in page or "<svg" in page
    words = commands_of(PAGE)[-1]
    image_id = words[words.index("--image-id") + 1]
    (truth,) = points[points["image_id"] == image_id][["true_longitude", "true_latitude"]].to_numpy()
    with rasterio.open(region / "density.tif") as file:
        density = file.read(1).astype(float)
        mass = float(np.nansum(density * cell_area_km2(Grid(file.shape, file.transform, file.crs.to_wkt()))))
        assert mass == pytest.approx(float(file.tags()["PROBABILITY_SUM"]), abs=1e-3)
        assert mass > 0.98
        row, column = file.index(*truth)
        assert density[row, column] > 1e-9  # per km²: of the whole Earth's land it would be 7e-9
    with rasterio.open(region / "density_level.tif") as file:
        level = float(file.read(1)[row, column])
    assert 0.0 <= level < 1.0
    assert json.loads((region / "held_out" / "chips.json").read_text())["parts"] == {"calibration": 1.0, "test": 1.0}
