"""Predicting as a library: the row contract, and what never changes it."""

import collections
import dataclasses
import math
import re
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import geo_mvmf
from geo_mvmf import (
    folder_lock,
    predicting,
    prediction_densities,
    prediction_rows,
    prediction_run,
    row_contract,
    s2,
    sphere,
)
from geo_mvmf.errors import LockedError, OutputError, RowsFailedError, UsageError
from geo_mvmf.inputs.tables import read_image_table
from geo_mvmf.maps import climbs
from geo_mvmf.model import bundle as bundles
from geo_mvmf.model.untrained import untrained_bundle

NAMES = ["image_id", "path", "filename", "status", "message"]
CONTRACT = [
    *NAMES, "captured_at", "longitude", "latitude", "estimator", "component_weight", "density_max",
    "probability_25_km", "probability_200_km", "area_50_km2", "area_90_km2", "radius_90_km", "n_parts_90",
    "expected_error_km", "information_bits", "in_training_area", "training_density_percentile", "feature_distance",
]  # fmt: skip
TRUTH = ["true_longitude", "true_latitude", "error_km", "searched_probability", "searched_area_km2"]
CLAIM = ["claimed_longitude", "claimed_latitude", "claimed_level"]
TEXTS = {*NAMES, "captured_at", "estimator", "in_training_area"}


def table_of(folder, columns, **options):
    return read_image_table(pd.DataFrame(columns), root=folder, **options)


def weights_of(predictions):
    return predictions.store.log_mixing_weights(np.flatnonzero(predictions.is_predicted))


# --- what is given in place of a bundle or a table --------------------------------------------------------------


def test_a_path_is_no_bundle_and_a_frame_without_its_folder_no_table(bundle, make_album, tmp_path):
    make_album(tmp_path, 2)
    table = read_image_table(tmp_path)
    with pytest.raises(UsageError, match=r"bundle is 'a\.safetensors': load_bundle makes a bundle of a file"):
        geo_mvmf.predict("a.safetensors", table)
    with pytest.raises(UsageError, match=r"table is 'photos': read_image_table makes a table of a file or folder"):
        geo_mvmf.predict(bundle, "photos")
    merged = table.merge(pd.DataFrame({"path": table["path"], "walk": [1, 2]}), on="path")
    merged.attrs.clear()  # as some versions of pandas do
    for strict in (False, True):
        with pytest.raises(
            UsageError, match=r"read_image_table\(table, root=FOLDER\) makes one that does; a merge loses"
        ):
            geo_mvmf.predict(bundle, merged, strict=strict)
    again = read_image_table(merged, root=tmp_path)
    assert again["status"].tolist() == ["ok", "ok"]
    assert again["walk"].tolist() == [1, 2]


# --- the row contract --------------------------------------------------------------------------------------------


def test_columns_order_and_types(bundle, make_album, tmp_path):
    names = make_album(tmp_path, 4)
    rows = geo_mvmf.predict(bundle, read_image_table(tmp_path)).rows
    assert rows.columns.tolist() == CONTRACT
    assert rows["image_id"].tolist() == names
    for name in CONTRACT:
        assert pd.api.types.is_float_dtype(rows[name]) is (name not in TEXTS), name
    assert rows["estimator"].tolist() == ["component"] * 4
    assert rows["longitude"].between(-180, 180).all()
    assert rows["latitude"].between(-90, 90).all()
    assert (rows["area_50_km2"] < rows["area_90_km2"]).all()
    assert (rows["probability_25_km"] < rows["probability_200_km"]).all()
    assert set(rows["in_training_area"]) <= {"yes", "no"}
    assert rows.index.equals(pd.RangeIndex(4))


def test_the_percentile_counts_images_of_cells_that_are_no_denser(bundle, make_album, tmp_path):
    """Six faces of one size: 0, 0, 1, 1, 3 and 5 images in them, of ten."""
    make_album(tmp_path, 12)
    counts = np.array([0, 3, 1, 1, 0, 5])
    expected = np.array([0.0, 50.0, 20.0, 20.0, 0.0, 100.0])
    of_counts = dataclasses.replace(bundle, counts=counts)
    rows = geo_mvmf.predict(of_counts, read_image_table(tmp_path)).rows
    leaves = s2.leaf_ids(sphere.to_directions(rows["longitude"], rows["latitude"]))
    face = np.searchsorted(s2.range_max(of_counts.cell_ids), leaves)
    assert rows["training_density_percentile"].to_numpy() == pytest.approx(expected[face])
    inside = np.arange(6)[counts > 0]
    assert (rows["in_training_area"] == np.where(np.isin(face, inside), "yes", "no")).all()
    maker = prediction_rows.RowMaker(of_counts, read_image_table(tmp_path), "component")
    assert maker._percentile == pytest.approx(expected)


def test_truth_claims_and_other_columns(bundle, make_album, tmp_path):
    names = make_album(tmp_path, 3)
    columns = {
        "path": names, "lon": [7.0, None, -60.0], "lat": [50.0, None, 10.0], "land": ["DE", None, "VE"],
        "year": [2001, 2002, 2003], "status": ["theirs"] * 3, "error_km": ["x"] * 3, "in_error_km": ["y"] * 3,
    }  # fmt: skip
    rows = geo_mvmf.predict(bundle, table_of(tmp_path, columns)).rows
    assert set(rows.columns) == {*CONTRACT, *TRUTH, "land", "year", "in_status", "in_error_km", "in_in_error_km"}
    assert rows.columns.tolist()[: len(CONTRACT) + len(TRUTH)] == CONTRACT + TRUTH
    assert sorted([rows["in_error_km"][0], rows["in_in_error_km"][0]]) == ["x", "y"]
    assert rows["year"].tolist() == [2001, 2002, 2003]
    assert rows["land"].isna().tolist() == [False, True, False]
    places = (rows["longitude"], rows["latitude"], rows["true_longitude"], rows["true_latitude"])
    expected = sphere.great_circle_distance_km(*(column.to_numpy() for column in places))
    np.testing.assert_allclose(rows["error_km"], expected)
    assert rows["searched_probability"].isna().tolist() == [False, True, False]
    assert rows.loc[[0, 2], "searched_probability"].between(0, 1).all()

    claims = geo_mvmf.predict(bundle, table_of(tmp_path, columns, claimed_from="columns")).rows
    assert claims.columns.tolist()[: len(CONTRACT) + len(CLAIM)] == CONTRACT + CLAIM
    np.testing.assert_allclose(claims["claimed_level"], rows["searched_probability"])
    pd.testing.assert_frame_equal(claims[CONTRACT], rows[CONTRACT])  # a claim is judged, never used


def test_a_part_without_truth_has_its_columns_too(bundle, make_album, tmp_path, monkeypatch):
    monkeypatch.setattr(predicting, "PART_ROWS", 2)
    names = make_album(tmp_path, 5)
    rows = geo_mvmf.predict(bundle, table_of(tmp_path, {"path": names, "lon": [None] * 4 + [7.0], "lat": 50.0})).rows
    assert rows["error_km"].notna().tolist() == [False] * 4 + [True]
    assert rows["image_id"].tolist() == names


def test_every_row_keeps_its_place_whatever_is_wrong_with_it(bundle, make_album, tmp_path):
    names = make_album(tmp_path, 3)
    (tmp_path / "words.jpg").write_text("no image")
    paths = [names[2], "no.png", names[0], names[0], "words.jpg", "../up.png", names[1], ""]
    ids = ["c", "x", "a", "a", "w", "u", "b", "e"]
    found = geo_mvmf.predict(bundle, table_of(tmp_path, {"path": paths, "image_id": ids}))
    rows = found.rows
    assert rows["image_id"].tolist() == ids
    status = ["ok", "missing", "ok", "duplicate_id", "unsupported", "refused", "ok", "missing"]
    assert rows["status"].tolist()[:4] == status[:4]
    assert rows["status"].tolist()[5:] == status[5:]
    assert rows["status"][4] in ("unsupported", "unreadable")
    good = rows["status"] == "ok"
    assert found.is_predicted.tolist() == good.tolist()
    assert rows.loc[~good, "message"].str.len().gt(0).all()
    computed = [name for name in CONTRACT if name not in NAMES]
    assert rows.loc[~good, computed].isna().all(axis=None)
    alone = geo_mvmf.predict(bundle, table_of(tmp_path, {"path": names})).rows
    order = [2, 0, 1]
    np.testing.assert_allclose(rows.loc[good, "longitude"], alone.loc[order, "longitude"], rtol=0, atol=1e-4)


def test_columns_of_lists_and_objects_pass_through_as_json(bundle, make_album, tmp_path):
    table = table_of(tmp_path, {"path": make_album(tmp_path, 2), "tags": [["x"], []], "facts": [{"a": 1}, None]})
    found = geo_mvmf.predict(bundle, table)
    assert found.rows[["tags", "facts"]].to_numpy().tolist() == [['["x"]', '{"a": 1}'], ["[]", None]]
    digests = {
        prediction_run.describe(bundle, each, "component", None)["images_sha256"]
        for each in (table, table.copy(), table.assign(tags=[["x"], ["y"]]))
    }
    assert len(digests) == 2
    assert found.run["images_sha256"] in digests


def test_no_rows_give_an_empty_prediction(bundle, tmp_path):
    found = geo_mvmf.predict(bundle, table_of(tmp_path, {"path": []}))
    assert len(found) == 0
    assert found.rows.columns.tolist() == CONTRACT
    assert found.to_geodataframe().crs == "EPSG:4326"


def test_estimators_differ_and_others_are_named(bundle, make_album, tmp_path):
    make_album(tmp_path, 2)
    table = read_image_table(tmp_path)
    component = geo_mvmf.predict(bundle, table)
    mode = geo_mvmf.predict(bundle, table, estimator="mode")
    assert mode.rows["estimator"].tolist() == ["mode"] * 2
    for found in (component, mode):
        expected = geo_mvmf.estimate(found.mixture, found.rows["estimator"][0])
        np.testing.assert_allclose(found.rows[["longitude", "latitude"]], expected, atol=1e-3)
    assert not np.allclose(mode.rows["longitude"], component.rows["longitude"])
    best = geo_mvmf.predict(bundle, table, estimator="best_within", radius_km=500.0)
    assert best.run["radius_km"] == 500.0
    places = geo_mvmf.estimate(best.mixture, "best_within", 500.0)
    np.testing.assert_allclose(best.rows[["longitude", "latitude"]].to_numpy(float), places, atol=0.05)
    with pytest.raises(UsageError, match="needs radius_km"):
        geo_mvmf.predict(bundle, table, estimator="best_within")
    with pytest.raises(UsageError, match="estimator 'best'"):
        geo_mvmf.predict(bundle, table, estimator="best")


def test_outputs_are_refused_before_any_image_is_read(bundle, tmp_path):
    table = table_of(tmp_path, {"path": ["no.png"]})
    with pytest.raises(UsageError, match=r"ends in \.nc"):
        geo_mvmf.predict(bundle, table, out=tmp_path / "a.gpkg")
    (tmp_path / "a.nc").write_text("somebody's")
    with pytest.raises(OutputError, match="exists already"):
        geo_mvmf.predict(bundle, table, out=tmp_path / "a.nc")
    with pytest.raises(RowsFailedError, match=r"1 of 1 rows failed.* no\.png: missing"):
        geo_mvmf.predict(bundle, table, out=tmp_path / "b.nc", strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nc"]


def test_strict_fails_before_the_network_is_asked_where_the_table_knows_already(
    bundle, make_album, tmp_path, monkeypatch
):
    names = make_album(tmp_path, 2)
    monkeypatch.setattr(bundles.Bundle, "predict", None)
    for paths, ids, status in (([*names, "no.png"], "abc", "missing"), (names, "aa", "duplicate_id")):
        table = table_of(tmp_path, {"path": paths, "image_id": list(ids)})
        with pytest.raises(RowsFailedError, match=f"^1 of {len(paths)} rows failed.*: {status}: "):
            geo_mvmf.predict(bundle, table, out=tmp_path / "new" / "a.nc", strict=True)
        assert not (tmp_path / "new").exists()


def strictly(bundle, table, out):
    """Predict with `strict`, which fails; the number of images that the network saw."""
    seen, plain = [], bundles.Bundle.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles.Bundle, "predict", lambda self, images: seen.append(len(images)) or plain(self, images))
        with pytest.raises(RowsFailedError, match=r"\.png: uns?[a-z]+: "):
            geo_mvmf.predict(bundle, table, out=out, strict=True)
    return sum(seen)


def test_strict_stops_at_the_first_part_that_failed_and_keeps_those_of_an_earlier_run(
    bundle, make_album, tmp_path, monkeypatch
):
    monkeypatch.setattr(predicting, "PART_ROWS", 2)
    names = make_album(tmp_path / "photos", 8)
    (tmp_path / "photos" / names[3]).write_text("no image")
    table, out, parts = (
        read_image_table(tmp_path / "photos"),
        tmp_path / "new" / "a.nc",
        tmp_path / "new" / "a.nc.parts",
    )
    assert strictly(bundle, table, out) == 3  # of the first two parts
    assert not out.parent.exists()
    job = predicting.predict_job(bundle, table, out=out)
    next(event for event in job if len(list(parts.glob("part-*.nc"))) == 1)
    job.close()
    (kept,) = parts.glob("part-*.nc")
    before = kept.stat().st_ino, kept.read_bytes()
    assert strictly(bundle, table, out) == 1  # of the second part
    assert [(path.stat().st_ino, path.read_bytes()) for path in parts.glob("part-*.nc")] == [before]
    job = predicting.predict_job(bundle, table, out=out)
    next(event for event in job if len(list(parts.glob("part-*.nc"))) == 2)
    job.close()
    assert strictly(bundle, table, out) == 0  # the failure is in a part already
    assert len(list(parts.glob("part-*.nc"))) == 2
    assert geo_mvmf.predict(bundle, table, out=out).is_predicted.sum() == 7


def test_cancelling_ends_the_threads_that_read(bundle, make_album, tmp_path):
    make_album(tmp_path, 6)
    before = threading.active_count()
    job = predicting.predict_job(bundle, read_image_table(tmp_path), batch_size=2)
    next(job)
    assert threading.active_count() > before
    job.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": -1}, {"workers": -1}])
def test_sizes_that_would_leave_images_out_are_refused(bundle, tmp_path, wrong):
    with pytest.raises(UsageError, match=f"{next(iter(wrong))} {next(iter(wrong.values()))} must be at least"):
        geo_mvmf.predict(bundle, table_of(tmp_path, {"path": ["no.png"]}), **wrong)


def test_parts_go_while_they_are_held(bundle, tmp_path, monkeypatch):
    """Otherwise another process could begin between the two, and lose its parts."""
    removed = []

    def remove(folder, **_):
        with pytest.raises(LockedError), folder_lock.holding(folder):
            pass
        removed.append(folder.name)

    monkeypatch.setattr(predicting.shutil, "rmtree", remove)
    geo_mvmf.predict(bundle, table_of(tmp_path, {"path": ["no.png"]}), out=tmp_path / "a.nc")
    assert removed == ["a.nc.parts"]


def test_batches_workers_and_parts_change_no_more_than_rounding(bundle, make_album, tmp_path, monkeypatch):
    make_album(tmp_path, 7)
    table = read_image_table(tmp_path)
    first = geo_mvmf.predict(bundle, table)
    monkeypatch.setattr(predicting, "PART_ROWS", 3)
    second = geo_mvmf.predict(bundle, table, batch_size=2, workers=1)
    np.testing.assert_allclose(weights_of(second), weights_of(first), atol=1e-5)
    numbers = first.rows.select_dtypes("number").columns
    np.testing.assert_allclose(second.rows[numbers], first.rows[numbers], rtol=1e-4, atol=1e-4)
    assert second.rows["image_id"].equals(first.rows["image_id"])


def test_repeating_gives_the_same_bits(bundle, make_album, tmp_path):
    make_album(tmp_path, 5)
    table = read_image_table(tmp_path)
    first, second = (geo_mvmf.predict(bundle, table) for _ in range(2))
    pd.testing.assert_frame_equal(first.rows, second.rows, check_exact=True)
    np.testing.assert_array_equal(weights_of(first), weights_of(second))


def test_the_feature_distance_and_training_area_are_of_the_bundle(make_album, tmp_path):
    make_album(tmp_path, 3)
    bundle = untrained_bundle(seed=3)
    object.__setattr__(bundle, "counts", np.array([0, 0, 0, 5, 0, 0]))
    rows = geo_mvmf.predict(bundle, read_image_table(tmp_path)).rows
    cells = np.searchsorted(
        s2.range_max(bundle.cell_ids), s2.leaf_ids(sphere.to_directions(rows["longitude"], rows["latitude"]))
    )
    assert rows["in_training_area"].tolist() == ["yes" if cell == 3 else "no" for cell in cells]
    assert (rows["feature_distance"] > 0).all()


# --- acceptance rows ---------------------------------------------------------------------------------------------


@pytest.mark.hard
@pytest.mark.parametrize("estimator", ["component", "mode"])
def test_row_19_a_batch_repeats_no_constant_work(bundle, make_album, tmp_path, monkeypatch, estimator):
    """What does not depend on the image is done as often for 64 images as for one; calls are counted, not seconds."""
    make_album(tmp_path, 64)
    table = read_image_table(tmp_path)

    def counted(images, batch_size):
        return constant_calls(
            lambda: geo_mvmf.predict(bundle, table.iloc[:images], batch_size=batch_size, estimator=estimator)
        )

    counted(1, 64)  # what is done once per process is done
    one, many = counted(1, 64), counted(64, 64)
    assert one["forward"] > 0
    assert one["components"] == one["_unit"] == 1
    assert many == one
    # eight batches, whose densities two threads share, cost eight passes through the network and nothing else
    batches = counted(64, 8)
    network = {"forward", "log_mixing_weights"}
    assert {name: batches[name] for name in network} == {name: 8 * one[name] for name in network}
    assert {name: batches[name] for name in one.keys() - network} == {name: one[name] for name in one.keys() - network}
    assert batches.keys() == one.keys()
    # the broken twins: one image at a time; components that every share checks and pairs anew
    twin = constant_calls(lambda: [geo_mvmf.predict(bundle, table.iloc[i : i + 1]) for i in range(4)])
    assert twin["forward"] == 4 * one["forward"]
    assert twin["components"] == 4
    monkeypatch.setattr(
        prediction_densities.DensityMaker, "_mixture", lambda self, log_weights: self.bundle.mixture(log_weights)
    )
    monkeypatch.setattr(climbs, "_shared_felt", climbs._felt_by_components)
    twin = counted(64, 8)
    assert twin["_unit"] >= 15
    assert twin["_felt_by_components"] == (twin["_unit"] if estimator == "mode" else 0)


def constant_calls(job):
    """How often everything was called that needs no image: the network, its layers, and constants of the bundle."""
    counts = collections.Counter()
    watched = {
        "forward", "components", "_percentile", "area_sr", "centre", "describe", "log_mixing_weights",
        "mean_directions", "log_concentrations", "_unit", "_felt_by_components", "_felt",
    }  # fmt: skip
    lock = threading.Lock()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_name in watched:
            with lock:
                counts[frame.f_code.co_name] += 1

    threading.setprofile(note)  # of the threads that begin from now on
    sys.setprofile(note)
    try:
        job()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return counts


ALONE = """
import sys, socket
def refuse(*_, **__):
    raise OSError("a socket was asked for")
socket.socket.connect = refuse
socket.create_connection = socket.getaddrinfo = refuse
seen = []
def audit(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind", "urllib.Request"):
        seen.append((event, str(arguments)))
sys.addaudithook(audit)
import geo_mvmf
bundle = geo_mvmf.load_bundle(sys.argv[1], device="cpu")
found = geo_mvmf.predict(bundle, geo_mvmf.read_image_table(sys.argv[2]), out=sys.argv[3])
assert found.is_predicted.all()
found.write(sys.argv[3].replace(".nc", ".gpkg"), levels=(0.5, 0.9))
found.density(geo_mvmf.Grid.from_bounds(2500000, 1500000, 7000000, 5500000, 200000, crs="EPSG:3035"))
"""


@pytest.mark.hard
def test_row_20_no_network_in_load_and_predict(bundle_path, make_album, tmp_path):
    """In a process whose sockets refuse and whose audit hook notes every attempt."""
    make_album(tmp_path / "photos", 2)
    command = [sys.executable, "-c", ALONE + "print(seen)", bundle_path, tmp_path / "photos", tmp_path / "a.nc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    # the broken twin asks for a name
    twin = "import _socket\ntry:\n    _socket.getaddrinfo('localhost', 1)\nexcept OSError:\n    pass\nprint(seen)"
    hook = ALONE.split("import geo_mvmf", maxsplit=1)[0]
    done = subprocess.run([sys.executable, "-c", hook + twin], capture_output=True, text=True, check=True)
    assert "getaddrinfo" in done.stdout


def test_row_21_a_truncated_jpeg_costs_one_row(bundle, tmp_path):
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)).save(tmp_path / f"{i}.jpg")
    whole = geo_mvmf.predict(bundle, read_image_table(tmp_path), batch_size=1)
    data = (tmp_path / "1.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(data[: len(data) * 2 // 3])
    found = geo_mvmf.predict(bundle, read_image_table(tmp_path), batch_size=1)
    assert found.rows["status"].tolist() == ["ok", "unreadable", "ok", "ok"]
    others = [0, 2, 3]
    pd.testing.assert_frame_equal(found.rows.loc[others], whole.rows.loc[others], check_exact=True)


def test_row_22_a_nan_of_the_network_is_a_failed_row_that_counts(make_album, tmp_path, monkeypatch):
    names = make_album(tmp_path, 4)
    bundle = untrained_bundle()
    places = {"path": names, "lon": 0.0, "lat": 0.0}
    plain = bundles.Bundle.predict

    def poisoned(self, images):
        weights, features = plain(self, images)
        weights[1], features[1], weights[2, 3] = np.nan, np.nan, np.nan
        return weights, features

    monkeypatch.setattr(bundles.Bundle, "predict", poisoned)
    found = geo_mvmf.predict(bundle, table_of(tmp_path, places))
    assert found.rows["status"].tolist() == ["ok", "failed", "failed", "ok"]
    assert "not finite (NaN or infinity); try" in found.rows["message"][1]
    result = geo_mvmf.evaluate(found)
    accuracy = result.accuracy
    assert (accuracy.n, accuracy.n_nan) == (4, 2)
    hits = np.isfinite(result.error_km).sum()
    assert hits == 2
    assert geo_mvmf.accuracy_at_km(result.error_km, [1e5]).value[0] == 0.5  # the twin that drops them says 1


def with_exif(jpeg, comment):
    """The same compressed pixels with GPS, a description and a comment in front of them."""
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = comment
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 0.0), 3: "E", 4: (2.0, 21.0, 0.0)})
    block = exif.tobytes()
    parts = [b"\xff\xe1", (len(block) + 2).to_bytes(2, "big"), block]
    words = comment.encode()
    parts += [b"\xff\xfe", (len(words) + 2).to_bytes(2, "big"), words]
    return jpeg[:2] + b"".join(parts) + jpeg[2:]


def test_row_24_exif_comments_file_and_folder_names_never_reach_the_network(bundle, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    image = Image.fromarray(noise).resize((40, 36))
    image.save(tmp_path / "plain.jpg", quality=95)
    jpeg = (tmp_path / "plain.jpg").read_bytes()
    told = tmp_path / "France" / "Paris" / "48.85N_2.35E.jpg"
    told.parent.mkdir(parents=True)
    told.write_bytes(with_exif(jpeg, "Paris 48.85 2.35"))
    np.testing.assert_array_equal(np.asarray(Image.open(told)), np.asarray(Image.open(tmp_path / "plain.jpg")))
    columns = {"path": ["plain.jpg", "France/Paris/48.85N_2.35E.jpg"]}
    found = geo_mvmf.predict(bundle, table_of(tmp_path, columns), batch_size=1)
    first, second = (found.store.pruned(i, i + 1) for i in range(2))
    assert zlib.crc32(first.log_weight.tobytes()) == zlib.crc32(second.log_weight.tobytes())
    np.testing.assert_array_equal(first.component, second.component)
    same = [name for name in CONTRACT if name not in (*NAMES, "captured_at")]
    pd.testing.assert_series_equal(
        found.rows.loc[0, same], found.rows.loc[1, same], check_names=False, check_exact=True
    )
    # a truth or a claim from EXIF changes nothing either
    judged = geo_mvmf.predict(bundle, table_of(tmp_path, columns, claimed_from="exif"), batch_size=1)
    assert judged.rows["claimed_latitude"].notna().tolist() == [False, True]
    pd.testing.assert_frame_equal(judged.rows[same], found.rows[same], check_exact=True)
    # the broken twin: a network that sees one more pixel changed, as it would see a name drawn into the picture
    pixels = np.asarray(image).copy()
    pixels[:4] = 255
    Image.fromarray(pixels).save(tmp_path / "plain.jpg", quality=95)
    changed = geo_mvmf.predict(bundle, table_of(tmp_path, columns), batch_size=1)
    assert not changed.rows.loc[0, same].equals(found.rows.loc[0, same])


def test_weights_add_up_to_one_and_the_network_is_left_in_peace(bundle, make_album, tmp_path):
    make_album(tmp_path, 3)
    before = torch.random.get_rng_state()
    found = geo_mvmf.predict(bundle, read_image_table(tmp_path))
    np.testing.assert_allclose(np.exp(weights_of(found)).sum(axis=1), 1.0, atol=1e-5)
    assert torch.equal(before, torch.random.get_rng_state())
    assert math.isfinite(found.rows["information_bits"].sum())


def test_the_contract_s_names_are_those_of_the_module():
    assert [*NAMES, *row_contract.COMPUTED] == CONTRACT
    assert list(row_contract.TRUTH) == TRUTH
    assert list(row_contract.CLAIM) == CLAIM


def test_every_column_is_explained():
    text = (Path(__file__).parents[1] / "docs" / "columns.md").read_text(encoding="utf-8")
    explained = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in text.splitlines() if line[:3] == "| `"))
    )
    columns = {"image_id", "path", "filename", "status", "message"}
    columns |= {*row_contract.COMPUTED, *row_contract.CLAIM, *row_contract.TRUTH}
    assert explained == columns


def test_a_path_instead_of_a_table_is_told_apart():
    with pytest.raises(UsageError, match=r"truth\.csv.*read_image_table"):
        predicting.predict(untrained_bundle(), "truth.csv")


def test_names_typed_in_a_session_fill_a_line_and_not_a_screen(tmp_path):
    bundle = untrained_bundle()
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    found = predicting.predict(bundle, read_image_table(tmp_path))
    assert repr(bundle) == "Bundle(chip_resnet10, 6 components, not saved)"
    assert repr(found).startswith("Predictions(1 of 1 images predicted, ")


def test_bundles_that_were_never_saved_are_told_apart_and_so_are_claims(make_album, tmp_path):
    make_album(tmp_path, 2)
    first, second = untrained_bundle(), untrained_bundle()
    with torch.no_grad():
        second.head.weight.mul_(30.0)  # what a temperature does
    table = read_image_table(tmp_path)
    geo_mvmf.predict(first, table, out=tmp_path / "a.nc")
    assert predicting.finished(first, table, tmp_path / "a.nc") is not None
    assert predicting.finished(second, table, tmp_path / "a.nc") is None
    assert predicting.finished(first, read_image_table(tmp_path, claimed_from="exif"), tmp_path / "a.nc") is None
