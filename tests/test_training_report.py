"""The page of a training run: its figures are those of an independent calculation, whatever the run was."""

import base64
import dataclasses
import html
import itertools
import json
import re

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image
from shapely.geometry import box

from geo_mvmf import baselines, progress, s2, sphere, training_sections, training_verdict
from geo_mvmf.cli import main
from geo_mvmf.errors import OutputError, UsageError
from geo_mvmf.model.bundle import load_bundle
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.held_out import block_ids, evenly
from geo_mvmf.model.image_set import load_image_set
from geo_mvmf.model.learning_curve import nested
from geo_mvmf.model.moved_components import MovedComponents, moved_components
from geo_mvmf.model.training import train_job
from geo_mvmf.training_report import ReportOptions, training_report_job

HOSTILE = "<script>alert(1)</script>$x^$"
CPU = ReportOptions(device="cpu", workers=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images whose colour tells where they are, and two countries with a name that is markup."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    directions = sphere.random_directions(90, rng)
    longitude, latitude = sphere.to_longitude_latitude(directions)
    names = [f"{number:03d}.png" for number in range(90)]
    for name, direction in zip(names, directions, strict=True):
        pixels = 127 + 120 * direction + rng.normal(0, 4, (8, 8, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
    table = pd.DataFrame({"path": names, "longitude": longitude, "latitude": latitude})
    table.to_csv(folder / "photos.csv", index=False)
    halves = [box(0, -80, 180, 80), box(-180, -80, 0, 80)]
    layer = gpd.GeoDataFrame({"name": [HOSTILE, "West"]}, geometry=halves, crs="EPSG:4326")
    layer.to_file(folder / "halves.geojson")
    return folder


@pytest.fixture(scope="module")
def config(photos):
    return TrainingConfig(
        stage="finetune",
        table=str(photos / "photos.csv"),
        out=str(photos / "run"),
        backbone="chip_resnet10",
        backbone_width=8,
        crop=8,
        num_components=12,
        train_mean_directions=True,
        train_log_concentrations=True,
        mean_direction_learning_rate=1e-2,
        learning_rate=5e-3,
        batch_size=16,
        steps=12,
        log_steps=3,
        validate_steps=4,
        threads=1,
        validation_fraction=0.4,
        device="cpu",
        description=HOSTILE,
    )


NONE = {"validation": "none", "validation_fraction": 0.05, "validate_steps": None}
NO_COMPONENTS = {
    "train_mean_directions": False, "train_log_concentrations": False, "mean_direction_learning_rate": 1e-5,
}  # fmt: skip


def trained(config, **options):
    changed = dataclasses.replace(config, **options)
    progress.run(train_job(changed))
    return changed


def written(config, out, options=CPU):
    """The verdict and the page of a run."""
    found = progress.run(training_report_job(config.out, out, options, overwrite=True))
    return [*found.verdict, *found.troubles], out.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(config):
    return trained(config)


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    """The verdict and the page as the command gives them."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    done = CliRunner().invoke(main, ["report", run.out, "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith(f"wrote {out}\n")
    return done.stdout.splitlines()[:-1], out.read_text(encoding="utf-8")


def rows_of(text, heading):
    """Cells of the table below a heading."""
    section = text.split(f"<h2>{heading}</h2>")[1].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section)[1:]
    return [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def judged(config):
    """Error and NLL of every held-out image, from pixels and the bundle alone."""
    bundle = load_bundle(f"{config.out}/bundle.safetensors", device="cpu")
    images = progress.run(load_image_set(config))
    rows = images.validation
    pixels = np.stack([np.asarray(Image.open(images.paths[row])).transpose(2, 0, 1) for row in rows])
    mixture = bundle.mixture(bundle.predict(pixels)[0])
    best = mixture.mean_directions[np.argmax(mixture.log_mixing_weights, axis=1)]
    truth = images.directions[rows]
    return sphere.angle(best, truth) * sphere.EARTH_RADIUS_KM, -np.diag(mixture.log_density(truth)), images, bundle


def test_the_verdict_has_the_figures_of_an_independent_calculation(run, page):
    said, text = page
    error_km, nll, images, bundle = judged(run)
    most = np.sort(error_km)[int(np.ceil(0.9 * len(error_km))) - 1]
    assert f"are placed within {training_verdict.km(np.median(error_km))} of where they are" in said[0]
    figures = {row[0]: row[1] for row in rows_of(text, training_sections.NUMBERS)}
    assert figures["Nine of ten within"] == training_verdict.km(most)
    assert figures["Negative log-likelihood"] == f"{nll.mean():.2f} nats"
    place = images.longitude[images.validation], images.latitude[images.validation]
    gain = baselines.training_nll(bundle.cell_ids, bundle.counts, *place) - nll
    assert figures["Gain over the training images' density"] == f"{gain.mean():.2f} nats"
    assert f"nine of ten within {training_verdict.km(most)}" in said[0]
    training = images.directions[images.training]
    near = sphere.angle(images.directions[images.validation][:, None], training[None]).min(axis=1)
    assert f"is {training_verdict.km(np.median(near) * sphere.EARTH_RADIUS_KM)} away in the middle" in said[3]


def test_blocks_are_judged_by_their_own_images(run, page):
    error_km, nll, images, _ = judged(run)
    level = int(re.search(r"Blocks are S2 cells of level (\d+)", page[1])[1])
    blocks = s2.cell_ids(images.directions[images.validation], level)
    counts = np.unique(blocks, return_counts=True)[1]
    assert level < run.block_level  # there, hardly any block has two images
    assert len(counts) >= 12
    rows = rows_of(page[1], "Which blocks fail?")
    frame = pd.DataFrame({"block": blocks, "km": error_km, "nll": nll}).groupby("block")
    worst = frame["km"].median().sort_values(ascending=False, kind="stable")
    if (counts >= 3).sum() >= 10:
        worst = worst[frame.size() >= 3]
    assert [float(row[2]) for row in rows] == pytest.approx(worst.head(10).tolist(), abs=0.51)
    first = frame.get_group(worst.index[0])
    assert rows[0][1] == str(len(first))
    assert float(rows[0][3]) == pytest.approx(first["nll"].mean(), rel=1e-3, abs=1e-3)


def shift_sentence(start, end, images):
    """Weighted by images: half of the components moved less than this."""
    shift = sphere.angle(start, end) * sphere.EARTH_RADIUS_KM
    repeated = np.sort(np.repeat(shift, images))
    middle = repeated[int(np.ceil(0.5 * len(repeated))) - 1]
    return f"half of the components moved less than {training_verdict.km(middle)}"


def test_the_way_of_the_components_is_from_their_cells_to_where_they_are(run, page):
    bundle = load_bundle(f"{run.out}/bundle.safetensors", device="cpu")
    start = s2.centre(bundle.cell_ids)
    sentence = shift_sentence(start, bundle.mean_directions, bundle.counts)
    assert sentence in page[1]
    # the same page with directions in another order must not have it
    swapped = MovedComponents(start[::-1], bundle.mean_directions, *[bundle.log_concentrations] * 2, bundle.counts)
    assert sentence not in training_sections.moved_text(swapped)[0]


@pytest.mark.hard
def test_components_by_the_mean_of_their_photos_are_found_again(config, run, tmp_path):
    photos = trained(config, mean_direction="photos", out=str(tmp_path / "run"), steps=1)
    images = progress.run(load_image_set(photos))
    bundle = load_bundle(tmp_path / "run" / "bundle.safetensors", device="cpu")
    found = moved_components(photos, bundle, images)
    step_km = 1.01 * np.sqrt(3.0) * 1e-2 * sphere.EARTH_RADIUS_KM  # Adam's first step is as long along each axis
    assert 0.0 < found.shift_km.max() < step_km
    from_centres = sphere.angle(s2.centre(bundle.cell_ids), bundle.mean_directions) * sphere.EARTH_RADIUS_KM
    assert from_centres.max() > step_km  # the wrong start would be noticed
    fewer = images.without(np.arange(len(images)) % 2 == 0)
    assert "are not known" in moved_components(photos, bundle, fewer)


def test_text_of_the_run_cannot_become_markup_and_nothing_is_loaded(page):
    text = page[1]
    assert "<script" not in text
    assert html.escape(HOSTILE) in text
    sources = re.findall(r"(?:src|href|url)[=(][\"']?([^\"')>]*)", text)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(base64.b64decode(source.split(",")[1]).startswith(b"\x89PNG") for source in sources)


def test_every_option_is_there_with_its_default(run, page):
    options = {row[0]: row[1:] for row in rows_of(page[1], "Options of the run")}
    assert options["num_components"] == ["12", "none"]
    assert options["seed"] == ["0", ""]
    assert options["augment.noise"] == ["0.0", ""]
    assert "random 40 % of the images" in page[1]


@pytest.mark.hard
def test_the_learning_curve_trains_on_nested_shares(config, photos, tmp_path):
    head = trained(config, stage="head", validation="blocks", half=True, out=str(tmp_path / "head"))
    options = dataclasses.replace(CPU, learning_curve=True, curve_steps=4)
    said, text = written(head, tmp_path / "head.html", options)
    training = len(progress.run(load_image_set(head)).training)
    rows = rows_of(text, "Learning curve: how much data is needed?")
    expected = [size for size in (-(-training // 8), -(-training // 4), -(-training // 2), training) if size >= 8]
    assert [int(row[0]) for row in rows] == expected
    assert "whole S2 cells of level 4" in said[3]
    assert "uses no image" not in text


def test_shares_lie_within_each_other_and_hold_all_at_the_end():
    shares = nested(np.arange(100, 900), 3)
    assert [len(share) for share in shares] == [100, 200, 400, 800]
    for small, large in itertools.pairwise(shares):
        assert set(small) < set(large)
    assert not np.array_equal(shares[0], np.arange(100, 200))  # at random: tables are often sorted by place


@pytest.mark.hard
def test_a_classifier_is_judged_by_its_cells(config, tmp_path):
    planet = NO_COMPONENTS | {"head": "cross_entropy"}
    run = trained(config, **planet, out=str(tmp_path / "planet"), steps=4)
    said, text = written(run, tmp_path / "planet.html")
    assert said[0].startswith("Half of the")
    assert "cells do not move" in text


@pytest.mark.hard
def test_a_run_that_classified_countries_has_its_classes(config, photos, tmp_path):
    wanted = {"stage": "backbone", "polygons": str(photos / "halves.geojson"), "label_column": "name"}
    wanted["description"] = ""  # of a bundle, which there is none of
    run = trained(config, **wanted, **NO_COMPONENTS, num_components=None, out=str(tmp_path / "backbone"))
    said, text = written(run, tmp_path / "backbone.html")
    log = [json.loads(line) for line in (tmp_path / "backbone" / "log.jsonl").read_text().splitlines()]
    best = next(record for record in log if record["event"] == "end")["accuracy"]
    assert f"found for {training_verdict.percent(best)} of the" in said[0]  # what is judged is what was released
    assert "% interval " in said[0]
    few = dataclasses.replace(CPU, most_images=12)
    told = written(run, tmp_path / "few.html", few)[0][0]
    assert "of the 12 held-out images looked at; always naming" in told  # as of distances: no interval
    assert told.endswith("That is too few to tell how good it is: 12 held-out images, and 20 are needed.")
    assert "<script" not in text
    right = sum(int(row[1 + number]) for number, row in enumerate(rows_of(text, "What is taken for what")))
    held = sum(int(row[2]) for row in rows_of(text, "Accuracy of each class"))
    assert right / held == pytest.approx(best)
    (tmp_path / "backbone" / "classes.safetensors").unlink()  # as older versions leave a run
    assert "single classes cannot be judged" in written(run, tmp_path / "old.html")[1]


@pytest.mark.hard
def test_runs_without_held_out_images_or_without_an_end_say_so(config, run, tmp_path):
    alone = trained(config, **NONE, out=str(tmp_path / "alone"), steps=2)
    assert written(alone, tmp_path / "alone.html")[0][0].startswith("No images were held out")
    job = train_job(dataclasses.replace(config, out=str(tmp_path / "stopped"), checkpoint_steps=2))
    for event in job:
        if event.stage == "train" and event.done == 5:
            job.close()
    said, _ = written(dataclasses.replace(config, out=str(tmp_path / "stopped")), tmp_path / "stopped.html")
    assert said[0].startswith("This run is not finished: 3 steps of 12 are in its log")


@pytest.mark.hard
def test_images_that_are_gone_or_others_are_said(config, run, photos, tmp_path):
    table = pd.read_csv(photos / "photos.csv")
    table.loc[0, "latitude"] *= 0.5
    (photos / "photos.csv").rename(tmp_path / "before.csv")
    try:
        assert "cannot be looked at" in written(run, tmp_path / "gone.html")[1]
        table.to_csv(photos / "photos.csv", index=False)
        assert "with other names, places or weights" in written(run, tmp_path / "other.html")[1]
    finally:
        (tmp_path / "before.csv").replace(photos / "photos.csv")


@pytest.mark.hard
def test_fewer_images_are_looked_at_where_that_is_wanted(run, tmp_path):
    said, _ = written(run, tmp_path / "few.html", dataclasses.replace(CPU, most_images=20))
    assert said[0].startswith("Half of the 20 held-out images looked at")
    assert "20 of these, evenly picked, were looked at" in said[3]


def test_cancelling_writes_nothing_and_pages_are_not_replaced_unasked(run, tmp_path):
    out = tmp_path / "r.html"
    job = training_report_job(run.out, out, CPU)
    next(job)
    job.close()
    assert list(tmp_path.iterdir()) == []
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        progress.run(training_report_job(run.out, out, CPU))
    with pytest.raises(UsageError, match="most_images is 0"):
        ReportOptions(most_images=0)


def test_blocks_become_finer_where_all_images_lie_in_one_and_images_are_picked_evenly():
    directions = sphere.to_directions(np.linspace(7.0, 7.4, 80), np.linspace(50.0, 50.4, 80))
    blocks, level = block_ids(directions, 4)
    assert level > 4
    assert np.unique(blocks).size >= 12
    assert np.unique(s2.cell_ids(directions, level - 1)).size < 12  # it is the first that is fine enough
    assert evenly(np.arange(1000), 10).tolist() == list(range(0, 1000, 111))
