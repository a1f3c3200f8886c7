"""Predictions files of methods that are no bundles: what is stored is the method's density, and everything opens it."""

import geopandas
import numpy as np
import pytest

from geo_mvmf import Grid, compare, evaluate, method_predictions, s2, sphere
from geo_mvmf.baselines import TrainingDensity
from geo_mvmf.errors import BadInputError
from geo_mvmf.method_predictions import write_method_predictions
from geo_mvmf.mixture import CellMixture
from geo_mvmf.model.neighbour_density import Kernel, NeighbourDensity
from geo_mvmf.model.neighbours import NearestNeighbours

N = 12  # with one that failed still more than a comparison needs


def album():
    """Features that are the true directions, and a table of which one image failed."""
    generator = np.random.default_rng(1)
    truth = sphere.random_directions(N, generator)
    longitude, latitude = sphere.to_longitude_latitude(truth)
    table = geopandas.GeoDataFrame(
        {
            "image_id": [f"{i}.jpg" for i in range(N)],
            "path": [f"{i}.jpg" for i in range(N)],
            "status": np.where(np.arange(N) == 5, "missing", "ok"),
            "message": "",
            "longitude": longitude,
            "latitude": latitude,
            "land": "A",
        }
    )
    return truth.astype(np.float32), table


def neighbours():
    features = sphere.random_directions(300, np.random.default_rng(2))
    places = sphere.to_longitude_latitude(features)
    places = [np.concatenate([each, each[:20]]) for each in places]  # some places twice
    features = np.concatenate([features, features[:20]])
    return NeighbourDensity(NearestNeighbours(features, *places, k=4), Kernel(5.0, uniform_share=0.02))


class Cells:
    """A method whose images have cells of their own."""

    def mixture(self, features):
        cells = np.sort(s2.face_cells())
        given = np.abs(np.asarray(features, dtype=float)) @ np.ones((3, 6)) + np.arange(6)
        return CellMixture(
            np.tile(cells, len(given)), (given / given.sum(1, keepdims=True)).ravel(), np.arange(len(given) + 1) * 6
        )


METHODS = {
    "neighbours": neighbours,
    "training": lambda: TrainingDensity(s2.face_cells(), [40, 3, 0, 0, 9, 1]),
    "cells": Cells,
}


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr(method_predictions, "BLOCK", 3)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_stored_is_the_density_of_the_method(name, tmp_path):
    method, (features, table) = METHODS[name](), album()
    found = write_method_predictions(tmp_path / "a.nc", method, features, table)
    places = sphere.random_directions(9, np.random.default_rng(3))
    some = [0, 4, 6, 7]
    expected = method.mixture(features[some]).log_density(places)
    np.testing.assert_allclose(found.mixture_of(some).log_density(places), expected, atol=1e-5)
    assert found.rows["status"].tolist() == table["status"].tolist()
    assert found.is_predicted.sum() == N - 1
    assert found.rows["land"].tolist() == ["A"] * N
    assert found.rows.loc[~found.is_predicted, ["longitude", "error_km"]].isna().all(axis=None)
    errors = evaluate(found)
    assert np.isfinite(errors.nll).sum() == N - 1
    ok = found.is_predicted
    np.testing.assert_allclose(found.rows["error_km"][ok], errors.error_km[ok], rtol=1e-9)


@pytest.mark.hard
def test_regions_rasters_and_comparisons_open_them(tmp_path):
    features, table = album()
    files = {
        name: write_method_predictions(tmp_path / f"{name}.nc", METHODS[name](), features, table)
        for name in ("neighbours", "training")
    }
    table = compare(files).table().set_index(["method", "measure"])
    assert table.loc[("training", "nll_nats"), "verdict"] == "worse"
    for found in files.values():
        assert len(found.credible_regions(levels=(0.5,))) >= 1
        assert found.density(Grid.globe(20.0), image_id="0.jpg").sizes["longitude"] == 18
    training = evaluate(files["training"])
    ok = np.isfinite(training.nll)
    np.testing.assert_allclose(training.nll[ok], training.nll_training[ok], atol=1e-5)  # what others are compared with


def test_an_album_without_any_usable_image_is_a_file_too(tmp_path):
    features, table = album()
    none = table.assign(status="missing")
    for name, make in METHODS.items():
        found = write_method_predictions(tmp_path / f"{name}.nc", make(), features, none)
        assert found.is_predicted.sum() == 0


def test_features_of_other_images_are_refused(tmp_path):
    features, table = album()
    with pytest.raises(BadInputError, match="features are of 3 images, and the table of 12"):
        write_method_predictions(tmp_path / "a.nc", neighbours(), features[:3], table)
