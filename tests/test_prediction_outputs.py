"""Predict given again: what an interrupted run left is gone on with, and nobody else's file is touched."""

import json
import os
import shutil

import geopandas
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geo_mvmf import layer_origin, predicting, worker
from geo_mvmf.errors import GeoMvmfError
from geo_mvmf.files import vector
from geo_mvmf.model import bundle as bundles
from geo_mvmf.predictions import open_predictions
from geo_mvmf.progress import CancelledError
from geo_mvmf.terminal import Reporter


def some(*values, of):
    """Values of which the first are looked at by default, and the others as well by the hard tests."""
    return [*values, *(pytest.param(value, marks=pytest.mark.hard) for value in of if value not in values)]


SUFFIXES = (".gpkg", ".geojson", ".parquet", ".csv")
LEVELS = {"levels": "0.9"}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(predicting, "PART_ROWS", 2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def whole(photos, bundle_path, tmp_path_factory):
    """Predictions that were never disturbed."""
    path = tmp_path_factory.mktemp("whole") / "a.nc"
    assert predict(source=photos, bundle=bundle_path, out=path)["event"] == "result"
    return path


@pytest.fixture
def asked(photos, bundle_path):
    return {"source": photos, "bundle": bundle_path, "batch_size": 1}


def predict(stop=lambda stage, done: False, **params):
    """Last event of a request; stopped by a program once `stop` says so of an event."""
    said = []

    def check():
        event = json.loads(said[-1])
        if event["event"] == "progress" and stop(event["stage"], event["done"]):
            raise CancelledError

    report = Reporter("json", said.append, check)
    texts = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in params.items()}
    request = {"protocol": 1, "task": "predict", "params": texts}
    try:
        worker.run(*worker.understood(json.dumps(request).encode()), report)
    except CancelledError as cancelled:
        report.cancelled(cancelled)
    except GeoMvmfError as error:
        return {"event": "error", "code": error.code, "message": str(error)}
    return json.loads(said[-1])


def in_predict(stage, done):
    return stage == "predict" and done >= 2


def in_regions(stage, done):
    return stage == "regions"


@pytest.fixture
def counted(monkeypatch):
    """Images that the network is given from now on."""
    seen, plain = [], bundles.Bundle.predict
    monkeypatch.setattr(bundles.Bundle, "predict", lambda self, images: seen.append(len(images)) or plain(self, images))
    return seen


def points_of(path):
    if path.suffix == ".csv":
        return pd.read_csv(path)
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return geopandas.read_file(path, **({"layer": "points"} if path.suffix == ".gpkg" else {}))


# --- a cancelled prediction --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", some(".gpkg", ".csv", of=SUFFIXES))
def test_the_layer_of_a_cancelled_run_is_replaced_by_the_same_run(asked, tmp_path, suffix):
    out = tmp_path / f"a{suffix}"
    assert predict(in_predict, **asked, out=out)["outputs"].keys() == {"predictions", "layers"}
    assert "cancelled" in points_of(out)["status"].tolist()
    assert predict(**asked, out=out)["event"] == "result"
    assert points_of(out)["status"].tolist() == ["ok"] * 4


@pytest.mark.parametrize("suffix", some(".gpkg", of=SUFFIXES))
def test_a_file_of_somebody_else_survives_whatever_is_named(asked, tmp_path, suffix):
    """A file of another program; the same run's layer that was changed by hand; a file in place of regions."""
    store = tmp_path / "a.nc"
    ours, theirs = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    predict(in_predict, **asked, out=store, points=ours)
    theirs.write_text("precious")
    for named in ({"points": theirs}, {"points": ours, "regions": theirs}, {"points": tmp_path / "c.gpkg"}):
        if named.get("points") == tmp_path / "c.gpkg":
            (tmp_path / "c.gpkg").symlink_to(theirs)
        answer = predict(**asked, out=store, **named)
        assert (answer.get("code"), "exists already" in answer["message"]) == ("output", True)
        assert theirs.read_text() == "precious"
        assert "cancelled" in points_of(ours)["status"].tolist()
    changed = points_of(ours).assign(status="mine")
    ours.unlink()
    if suffix == ".csv":
        changed.to_csv(ours, index=False)
    elif suffix == ".parquet":
        changed.to_parquet(ours)
    else:
        changed.to_file(ours, layer="points", engine="pyogrio")
    assert predict(**asked, out=store, points=ours)["code"] == "output"
    assert set(points_of(ours)["status"]) == {"mine"}


def test_a_layer_that_a_user_added_keeps_a_geopackage(asked, tmp_path):
    out = tmp_path / "a.gpkg"
    predict(in_predict, **asked, out=out)
    points_of(out).to_file(out, layer="mine", engine="pyogrio", mode="a")
    assert predict(**asked, out=out)["code"] == "output"
    assert len(geopandas.read_file(out, layer="mine")) == 4


def test_cancelled_while_its_layer_is_written_a_whole_prediction_has_its_points(asked, tmp_path, monkeypatch):
    """Not those that an earlier try left."""
    out, written = tmp_path / "a.gpkg", []
    predict(in_predict, **asked, out=out)
    plain = vector.write_layers

    def write(path, *arguments, **options):
        if path == out:
            written.append(path)
            if len(written) == 1:
                raise CancelledError
        plain(path, *arguments, **options)

    monkeypatch.setattr(vector, "write_layers", write)
    answer = predict(**asked, out=out)
    assert (answer["event"], set(answer["outputs"])) == ("cancelled", {"predictions", "layers"})
    assert points_of(out)["status"].tolist() == ["ok"] * 4
    assert len(written) == 2


@pytest.mark.parametrize("suffix", some(".csv", of=SUFFIXES))
@pytest.mark.hard
def test_a_kill_between_the_two_files_is_gone_on_with(asked, tmp_path, counted, suffix):
    """The predictions file is the new one, the layer is still that of the cancelled run."""
    out = tmp_path / f"a{suffix}"
    predict(in_predict, **asked, out=out)
    shutil.copy2(out, kept := tmp_path / f"kept{suffix}")
    predict(**asked, out=out)
    kept.replace(out)
    counted.clear()
    assert predict(**asked, out=out)["event"] == "result"
    assert points_of(out)["status"].tolist() == ["ok"] * 4
    assert counted == []


def test_the_layer_stays_until_the_new_one_is_there(asked, tmp_path):
    out = tmp_path / "a.gpkg"
    predict(in_predict, **asked, out=out)
    before = out.read_bytes()
    answer = predict(lambda stage, done: stage == "predict" and out.read_bytes() != before, **asked, out=out)
    assert answer["event"] == "result"
    assert points_of(out)["status"].tolist() == ["ok"] * 4


# --- a finished prediction whose outputs are missing ----------------------------------------------------------------


@pytest.mark.hard
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_cancel_during_regions_keeps_the_points_and_the_prediction(asked, tmp_path, counted, overwrite):
    store, points, regions = tmp_path / "a.nc", tmp_path / "p.gpkg", tmp_path / "r.gpkg"
    asked |= {"out": store, "points": points, "regions": regions, "overwrite": overwrite, **LEVELS}
    if overwrite:  # of something else
        regions.write_text("old")
        points.write_text("old")
    answer = predict(in_regions, **asked)
    assert answer["event"] == "cancelled"
    assert answer["outputs"] == {"predictions": str(store), "layers": str(points)}
    assert points_of(points)["status"].tolist() == ["ok"] * 4
    counted.clear()
    before = store.stat()
    assert predict(**asked)["event"] == "result"
    assert (store.stat().st_ino, counted) == (before.st_ino, [])
    assert len(geopandas.read_file(regions, layer="regions")) == 4
    assert points_of(points)["n_parts_90"].notna().all()
    answer = predict(**asked)  # nothing is missing
    assert (answer["event"] == "result", len(counted)) == (overwrite, 4 if overwrite else 0)


def test_another_question_is_never_answered_by_what_is_there(asked, tmp_path, counted):
    out = tmp_path / "a.csv"
    predict(**asked, out=out)
    out.unlink()
    counted.clear()
    assert predict(**asked, out=out, estimator="mode", overwrite=True)["event"] == "result"
    assert len(counted) == 4


@pytest.mark.parametrize("suffix", some(".gpkg", ".geojson", of=SUFFIXES))
def test_regions_that_are_asked_for_later_are_written(asked, tmp_path, suffix):
    out = tmp_path / f"a{suffix}"
    predict(**asked, out=out)
    bare = points_of(out)
    assert predict(**asked, out=out, **LEVELS)["event"] == "result"
    names = {} if suffix != ".gpkg" else {"layer": "regions"}
    regions = out if suffix == ".gpkg" else tmp_path / f"a_regions{suffix}"
    read = {".csv": pd.read_csv, ".parquet": geopandas.read_parquet}.get(suffix, geopandas.read_file)
    assert len(read(regions, **names)) == 4
    assert points_of(out)["area_90_km2"].tolist() != bare["area_90_km2"].tolist()  # those of the polygons
    assert predict(**asked, out=out, **LEVELS)["code"] == "output"  # nothing is missing


def test_a_layer_of_something_else_is_no_place_for_regions(asked, tmp_path):
    out = tmp_path / "a.gpkg"
    predict(**asked, out=out)
    points_of(out).assign(note="mine").to_file(out, layer="points", engine="pyogrio")
    assert predict(**asked, out=out, **LEVELS)["code"] == "output"
    assert "note" in points_of(out)


# --- whose a layer is --------------------------------------------------------------------------------------------


def test_origins(whole, tmp_path):
    found = open_predictions(whole)
    path = tmp_path / "a.gpkg"
    found.write(path)
    assert layer_origin.origin(found.store, path) == "plain"
    assert layer_origin.origin(found.store, path, with_regions=True) == "plain"
    found.write(path, levels=(0.9,), overwrite=True)
    assert layer_origin.origin(found.store, path, with_regions=True) == "same"
    os.mkfifo(tmp_path / "b.gpkg")
    assert layer_origin.origin(found.store, tmp_path / "b.gpkg") == "foreign"


# --- names -------------------------------------------------------------------------------------------------------


def test_one_file_by_two_names_and_levels_without_a_layer(asked, tmp_path):
    (tmp_path / "folder").mkdir()
    twice = {"points": tmp_path / "p.geojson", "regions": tmp_path / "folder" / ".." / "p.geojson"}
    assert "are both" in predict(**asked, out=tmp_path / "a.nc", **twice)["message"]
    (tmp_path / "p.geojson").write_text("")
    (tmp_path / "q.geojson").hardlink_to(tmp_path / "p.geojson")
    twice["regions"] = tmp_path / "q.geojson"
    assert "are both" in predict(**asked, out=tmp_path / "a.nc", **twice)["message"]
    answer = predict(**asked, out=tmp_path / "a.nc", **LEVELS)
    assert answer["code"] == "bad_input"
    assert "--levels 0.9" in answer["message"]
    assert "--points" in answer["message"]
