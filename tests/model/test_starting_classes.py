"""Training begins with any partition: what the head, the bundle and the predictions then hold."""

import dataclasses
import types
import warnings

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from PIL import Image

import geo_mvmf
from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadBundleError, UsageError
from geo_mvmf.model import bundle_content, bundle_format
from geo_mvmf.model.bundle import load_bundle
from geo_mvmf.model.classes import initial_log_concentrations
from geo_mvmf.model.cleaning import PartitionWarning
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.kmeans import partition_by_kmeans
from geo_mvmf.model.partition import partition_by_thresholds, partition_sphere
from geo_mvmf.model.partitions import make_partition
from geo_mvmf.model.starting_classes import StartingClasses, classes_of_images
from geo_mvmf.model.training import train

CENTRES = pd.DataFrame({"lon": [0.0, 90.0, 179.0, -90.0], "lat": [0.0, 50.0, -20.0, -60.0]})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(60, 3)) + np.array(
        [1.5, 0.0, 0.0]
    )  # crowded about (0, 0), so that thresholds drop something
    x, y = sphere.to_longitude_latitude(directions)
    names = [f"{number:02d}.png" for number in range(60)]
    for name in names:
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / name)
    pd.DataFrame({"path": names, "longitude": x, "latitude": y}).to_csv(folder / "photos.csv", index=False)
    CENTRES.to_csv(folder / "centres.csv", index=False)
    boxes = [shapely.box(a, -80, a + 60, 80) for a in range(-180, 120, 60)]
    gpd.GeoDataFrame({"land": list("abbcd")}, geometry=boxes, crs="OGC:CRS84").to_file(folder / "land.gpkg")
    return folder


METHODS = {
    "s2": {"partition": "s2", "num_components": 18},
    "planet": {"partition": "planet", "split_above": 8, "drop_below": 3},
    "kmeans": {"partition": "kmeans", "num_components": 7},
    "centres": {"partition": "file", "partition_file": "centres.csv"},
    "polygons": {"partition": "file", "partition_file": "land.gpkg", "partition_column": "land"},
}


def config_of(photos, out, options, **changes):
    options = dict(options)
    if "partition_file" in options:
        options["partition_file"] = str(photos / options["partition_file"])
    plain = {"backbone": "chip_resnet10", "backbone_width": 8, "crop": 8, "resize": 8, "batch_size": 30, "steps": 1}
    table = {"stage": "finetune", "table": str(photos / "photos.csv"), "out": str(out), "validation": "none"}
    return TrainingConfig(**(table | plain | {"device": "cpu", "workers": 1} | options | changes))


def reloaded(bundle):
    return load_bundle(bundle.path, device="cpu")


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartitionWarning)
        return function(*arguments, **options)


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("kmeans", "mvmf"),
        pytest.param("polygons", "mvmf", marks=pytest.mark.hard),
        pytest.param("planet", "cross_entropy", marks=pytest.mark.hard),
        pytest.param("s2", "mvmf", marks=pytest.mark.hard),
        pytest.param("planet", "mvmf", marks=pytest.mark.hard),
        pytest.param("centres", "mvmf", marks=pytest.mark.hard),
    ],
)
def test_a_head_of_every_partition_trains_predicts_and_is_trained_on(photos, tmp_path, method, head):
    config = config_of(photos, tmp_path / "run", METHODS[method], head=head)
    table = pd.read_csv(photos / "photos.csv")
    wanted = quietly(make_partition, table["longitude"], table["latitude"], config.partition_options)
    bundle = reloaded(quietly(train, config))
    assert bundle.num_components == len(wanted)
    np.testing.assert_array_equal(bundle.training_counts, wanted.counts)
    area = bundle.training_area
    assert s2.area_sr(area.cell_ids).sum() == pytest.approx(4 * np.pi)
    assert area.counts.sum() == 60
    assert (bundle.area is None) == (method == "s2")
    if head == "mvmf":
        np.testing.assert_allclose(bundle.mean_directions, wanted.mean_directions, atol=1e-12)
        np.testing.assert_array_equal(bundle.log_concentrations, initial_log_concentrations(wanted))
    else:
        np.testing.assert_array_equal(bundle.head.cell_ids, wanted.cell_ids)
    found = geo_mvmf.predict(bundle, geo_mvmf.read_image_table(photos / "photos.csv"))
    rows = found.to_geodataframe()
    assert rows["status"].eq("ok").all()
    assert np.isfinite(rows[["longitude", "latitude", "training_density_percentile", "radius_90_km"]]).all(axis=None)
    if method == "kmeans":
        own = {"backbone": "wide_resnet50_2", "backbone_width": 64}  # the default: the bundle brings its own
        start = str(tmp_path / "run" / "bundle.safetensors")
        again = config_of(photos, tmp_path / "more", own, head=head, init_bundle=start)
        more = reloaded(quietly(train, again))
        np.testing.assert_array_equal(more.training_counts, wanted.counts)
        np.testing.assert_array_equal(more.training_area.counts, area.counts)


def test_what_planet_drops_is_left_out_of_a_classifier_and_said(photos, tmp_path):
    config = config_of(photos, tmp_path / "run", METHODS["planet"], head="cross_entropy")
    with pytest.warns(PartitionWarning) as said:
        train(config)
    texts = [str(each.message) for each in said]
    assert any("are left out; the model will give such places probability 0" in text for text in texts)
    assert any("the cells that are left do not tile it" in text for text in texts)


def images(longitude, latitude):
    """What classes are made of in a set of images."""
    return types.SimpleNamespace(longitude=longitude, latitude=latitude, training=np.arange(len(longitude)))


def test_a_training_area_that_is_coarser_than_the_classes_is_said(photos, tmp_path):
    rng = np.random.default_rng(0)
    near = images(7.0 + rng.uniform(0, 1e-6, 40), 50.0 + rng.uniform(0, 1e-6, 40))
    config = config_of(photos, tmp_path, {"partition": "kmeans", "num_components": 40, "max_level": 3})
    with pytest.warns(PartitionWarning, match=r"only 15 S2 cells, .* the 40 classes: the 40 locations .* max_level 3"):
        found = classes_of_images(config, near)
    assert (len(found.classes), len(found.partition)) == (40, 15)
    found = classes_of_images(dataclasses.replace(config, num_components=14), near)  # a warning would be an error
    assert len(found.partition) == 15


def test_images_counted_anew_leave_nothing_that_was_said_of_the_old_ones():
    rng = np.random.default_rng(0)
    old, new = (images(rng.uniform(0, 40, n), rng.uniform(0, 40, n)) for n in (300, 500))
    planet = quietly(partition_by_thresholds, old.longitude, old.latitude, split_above=20, drop_below=10)
    found = StartingClasses(planet, partition_sphere(old.longitude, old.latitude, 6)).recounted(new)
    assert planet.outside != found.classes.outside > 0
    assert found.classes.outside == (planet.assign(new.longitude, new.latitude) < 0).sum()
    assert found.classes.counts.sum() + found.classes.outside == 500
    assert (found.classes.cleaning.used, found.partition.outside, found.partition.counts.sum()) == (0, 0, 500)
    nearest = partition_by_kmeans(old.longitude, old.latitude, 5)
    assert StartingClasses(nearest, nearest).recounted(new).classes.outside == 0


def test_a_classifier_of_classes_without_cells_is_refused(photos, tmp_path):
    with pytest.raises(UsageError, match="the classes of partition 'kmeans' are none"):
        config_of(photos, tmp_path, METHODS["kmeans"], head="cross_entropy")
    config = config_of(photos, tmp_path / "run", METHODS["polygons"], head="cross_entropy")
    with pytest.raises(UsageError, match="the 4 classes of partition 'file' are none; use head mvmf"):
        train(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "voronoi"}, "partition is 'voronoi'; one of s2, planet, kmeans, file is allowed"),
        ({"partition": "planet", "num_components": 9}, "num_components 9 is of partition s2 or kmeans"),
        ({"drop_below": 9}, "drop_below 9 is of partition planet, not of 's2'"),
        ({"partition": "file"}, "partition 'file': partition_file is missing; partition file needs one"),
        ({"split_above": 0, "partition": "planet"}, "split_above is 0; 1.."),
        ({"init_bundle": "a.safetensors", "partition": "kmeans"}, "partition kmeans: stage finetune takes the head of"),
    ],
)
def test_options_that_do_not_go_together_are_told(photos, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        config_of(photos, tmp_path, options)


def test_a_bundle_whose_counts_are_not_of_its_components_is_refused(photos, tmp_path):
    bundle = quietly(train, config_of(photos, tmp_path / "run", METHODS["kmeans"]))
    config, arrays = bundle_content.content(bundle)
    expected = bundle_format.expected_tensors(config)
    assert {name: arrays[name].shape for name in expected} == {name: shape for name, (_, shape) in expected.items()}
    assert expected["component_counts"][1] == (7,)
    assert expected["cell_ids"][1] == (9,)
    with pytest.raises(BadBundleError, match="hold negative values"):
        bundle_format.check_values(arrays | {"component_counts": -arrays["component_counts"]}, "a.safetensors")
    for wrong in (0, "9", True):
        with pytest.raises(BadBundleError, match="num_cells is"):
            bundle_format.check_config(config | {"num_cells": wrong}, "a.safetensors")
