"""Roaming crops: one chip stands for all places around its middle, and the true place moves with the pixels."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from geo_mvmf import progress, sphere
from geo_mvmf.errors import UsageError
from geo_mvmf.inputs import chips, scenes
from geo_mvmf.model.augmentation import Augmentation, augment
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.image_set import load_image_set
from geo_mvmf.model.preparation import prepare
from geo_mvmf.model.training import train, train_job


@pytest.fixture(scope="module")
def world_chips(tmp_path_factory):
    """Chips, 24 pixels and 2400 km wide, of a world whose colours are its directions."""
    folder = tmp_path_factory.mktemp("world")
    longitude, latitude = np.meshgrid(np.arange(-179.5, 180.0), np.arange(89.5, -90.0, -1.0))
    pixels = np.rint(127 + 120 * sphere.to_directions(longitude, latitude)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "world.png")
    world = scenes.georeference(folder / "world.png", folder / "world.tif", bounds=(-180.0, -90.0, 180.0, 90.0))
    progress.run(chips.cut_chips(world, folder / "chips", count=40, size=24, ground_km=2400.0, seed=3))
    return folder


def roaming(world_chips, out, **options):
    wanted = {
        "backbone": "chip_resnet10", "backbone_width": 8, "num_components": 18, "batch_size": 16, "steps": 4,
        "threads": 1, "device": "cpu", "validation_fraction": 0.2, "augment": Augmentation(roam=4),
    }  # fmt: skip
    table = str(world_chips / "chips" / "chips.csv")
    return TrainingConfig(stage="finetune", table=table, out=str(out), **(wanted | options))


def cut_and_target(config):
    """Pixels and true directions of the first step as the head sees them."""
    image_set = progress.run(load_image_set(config))
    prepared = progress.run(prepare(config, image_set, torch.device("cpu"), Path(config.out)))
    student, rows = prepared.learner(4), np.arange(16)
    batch = next(prepared.source.batches([rows]))
    seen = augment(batch.inputs, config.augment, size=prepared.spec.crop, seed=config.seed, step=7, rows=rows)
    return seen * 255.0, student._roamed_targets(7, batch).numpy(), prepared.spec


def test_the_true_place_roams_with_the_pixels(world_chips, tmp_path):
    """What is cut out is the chip of the place that it is said to be of: the world's colour there says so."""
    seen, places, spec = cut_and_target(roaming(world_chips, tmp_path / "run"))
    assert (spec.resize, spec.crop, spec.ground_km) == (16, 16, 1600.0)
    middle = seen[:, :, 7:9, 7:9].mean(dim=(2, 3)).numpy()
    apart_km = sphere.angle((middle - 127) / np.linalg.norm(middle - 127, axis=1, keepdims=True), places) * 6371.0088
    assert apart_km.max() < 60.0  # colours are whole numbers: half a step of 1 / 120
    # the broken twin: places that stay where the chips' middles are
    stay = sphere.to_directions(*pd.read_csv(world_chips / "chips" / "chips.csv")[["longitude", "latitude"]].T.values)
    assert np.median(sphere.angle(stay[:16], places)) * 6371.0088 > 150.0


def test_a_model_that_roamed_takes_images_of_its_own_ground(world_chips, tmp_path):
    bundle = train(roaming(world_chips, tmp_path / "run"))
    assert (bundle.spec.resize, bundle.spec.crop, bundle.spec.ground_km) == (16, 16, 1600.0)
    again = roaming(world_chips, tmp_path / "again", checkpoint_steps=1)
    job = train_job(again)
    next(event for event in job if event.stage == "train" and event.done == 2)
    job.close()
    assert train(again).digest == bundle.digest  # also after a stop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 20}, "roam 4 about a crop of 20 pixels needs images of 28 pixels; they have 24"),
        ({"resize": 24, "crop": 16}, "the ground size of these images is not known"),
        ({"stage": "head"}, "only stage finetune"),
    ],
)
def test_roaming_that_cannot_be_is_refused(world_chips, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        train(dataclasses.replace(roaming(world_chips, tmp_path / "run"), **options))
