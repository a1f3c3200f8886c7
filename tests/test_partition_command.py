"""`geo-mvmf partition`: every method, its report, its layer, and the way back."""

import itertools
import json
import sqlite3
import warnings

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from click.testing import CliRunner

from geo_mvmf import s2, sphere
from geo_mvmf.cli import main
from geo_mvmf.files import partition_style
from geo_mvmf.model.given_classes import partition_by_file
from geo_mvmf.model.kmeans import partition_by_kmeans
from geo_mvmf.model.partition import partition_by_thresholds, partition_sphere
from geo_mvmf.partition_layer import partition_layer


def run(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    folder = tmp_path_factory.mktemp("house")
    generator = np.random.default_rng(0)
    middle = sphere.random_directions(12, generator)
    near = middle[generator.integers(0, 12, 1500)] + 0.05 * generator.normal(size=(1500, 3))
    x, y = sphere.to_longitude_latitude(near / np.linalg.norm(near, axis=1, keepdims=True))
    pd.DataFrame({"LAT": y, "LON": x}).to_csv(folder / "clean.csv", index=False)
    dirty = pd.DataFrame({"LAT": [*y, np.nan, 107.0, 0.0, y[0]], "LON": [*x, 1.0, 21.0, 0.0, x[0]]})
    dirty.to_csv(folder / "dirty.csv", index=False)
    blocks = [shapely.box(a, b, a + 90, b + 60) for a in range(-180, 180, 90) for b in (-60, 0)]
    land = geopandas.GeoDataFrame({"land": list("aabbccdd")}, geometry=blocks, crs="OGC:CRS84")
    land.to_file(folder / "land.gpkg")
    return folder


METHODS = {
    "s2": ("--num-cells", 60),
    "planet": ("--split-above", 100, "--drop-below", 5),
    "kmeans": ("--num-cells", 60),
    "file": ("--file", "land.gpkg", "--column", "land"),
}


def made(house, method):
    """The same from Python."""
    places = pd.read_csv(house / "clean.csv")[["LON", "LAT"]].to_numpy().T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "s2": lambda: partition_sphere(*places, 60),
            "planet": lambda: partition_by_thresholds(*places, split_above=100, drop_below=5),
            "kmeans": lambda: partition_by_kmeans(*places, 60),
            "file": lambda: partition_by_file(*places, house / "land.gpkg", column="land"),
        }[method]()


@pytest.mark.parametrize(
    ("method", "suffix"), [("s2", ".gpkg"), ("planet", ".csv"), ("kmeans", ".geojson"), ("file", ".gpkg")]
)
def test_every_method_is_that_of_python_and_what_it_wrote_are_classes_again(
    house, tmp_path, monkeypatch, method, suffix
):
    monkeypatch.chdir(house)
    out = tmp_path / f"a{suffix}"
    result = run("partition", "clean.csv", "--method", method, *METHODS[method], "--out", out)
    assert result.exit_code == 0, result.output
    wanted = made(house, method)
    assert "1500 rows: 1500 used, 0 without a finite position, 0 out of range; of the used 0 at" in result.stdout
    assert f"wrote {len(wanted)} {'cells' if wanted.has_cells else 'classes'} of" in result.stdout
    assert ("do not tile the sphere" in result.stdout) == (method != "s2")
    places = pd.read_csv("clean.csv")[["LON", "LAT"]].to_numpy().T
    again = partition_by_file(*places, out)
    np.testing.assert_array_equal(again.cell_ids, wanted.cell_ids)
    np.testing.assert_array_equal(again.counts, wanted.counts)
    np.testing.assert_allclose(again.mean_directions, wanted.mean_directions, atol=1e-7)


def test_the_layer_has_counts_areas_and_mean_directions(house):
    whole = partition_layer(made(house, "s2"))
    assert whole["images"].sum() == 1500
    assert whole["area_km2"].sum() == pytest.approx(4 * np.pi * sphere.EARTH_RADIUS_KM**2, rel=1e-12)
    assert whole.geometry.is_valid.all()
    assert shapely.area(whole.geometry.to_numpy()).sum() == pytest.approx(360 * 180, rel=1e-6)
    np.testing.assert_array_equal(s2.from_token(whole["cell"].to_numpy(str)), made(house, "s2").cell_ids)
    land = partition_layer(made(house, "file"))
    band = 2 * np.pi * 2 * np.sin(np.pi / 3) * sphere.EARTH_RADIUS_KM**2  # between 60 degrees south and north
    assert land["area_km2"].sum() == pytest.approx(band, rel=1e-9)
    assert land["name"].tolist() == list("abcd")
    points = partition_layer(made(house, "kmeans"))
    assert set(points.geom_type) == {"Point"}
    assert "area_km2" not in points


def test_the_report_counts_what_is_wrong(house, tmp_path):
    result = run(
        "--progress", "json", "partition", house / "dirty.csv", "--num-cells", 60, "--out", tmp_path / "a.gpkg"
    )
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    expected = {"cells": 60, "images": 1502, "outside": 0, "not_finite": 1, "out_of_range": 1, "zero_zero": 1}
    assert lines[-1]["counts"] == expected | {"duplicates": 1, "suspected_swapped": 1}
    assert "(data rows count from 1): row 1501: LAT is empty" in lines[-1]["message"]
    assert any("latitude 107.0, not in -90..90 (longitude 21.0: swapped?)" in line.get("message", "") for line in lines)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            "--method planet --num-cells 5",
            2,
            "--num-cells 5 is of --method s2 or kmeans, not of 'planet'; leave it out",
        ),
        ("--split-above 5", 2, "--split-above 5 is of --method planet, not of 's2'"),
        ("--seed 0", 2, "--seed 0 is of --method kmeans, not of 's2'; leave it out"),
        ("--method file --file land.gpkg --seed 3", 2, "--seed 3 is of --method kmeans, not of 'file'"),
        (
            "--method kmeans --mean-direction centre",
            2,
            "--mean-direction centre is of --method s2 or planet or file, not of 'kmeans'; leave it out",
        ),
        ("--method file", 2, "--method 'file': --file is missing; --method file needs one, others none"),
        ("--file land.gpkg", 2, "--method 's2': --file is 'land.gpkg'; --method file needs one"),
        ("--method file --file land.gpkg --column lnd", 3, "did you mean 'land'?"),
        ("--method file --file no.gpkg", 3, "no.gpkg"),
        (
            "--method planet --split-above 1 --drop-below 9999",
            3,
            "fewer than --drop-below 9999 locations (the fullest ",
        ),
    ],
)
def test_what_does_not_go_together_is_told(house, tmp_path, monkeypatch, options, code, message):
    monkeypatch.chdir(house)
    result = run("partition", "clean.csv", *options.split(), "--out", tmp_path / "a.gpkg")
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert not (tmp_path / "a.gpkg").exists()


@pytest.mark.parametrize("method", ["s2", "kmeans"])
def test_the_style_in_a_geopackage_puts_every_class_into_one_range(house, tmp_path, monkeypatch, method):
    monkeypatch.chdir(house)
    assert (
        run("partition", "clean.csv", "--method", method, *METHODS[method], "--out", tmp_path / "a.gpkg").exit_code == 0
    )
    with sqlite3.connect(tmp_path / "a.gpkg") as database:
        style = database.execute("SELECT styleQML FROM layer_styles").fetchone()[0]
    assert ("images per km²" in style) == (method == "s2")
    layer = geopandas.read_file(tmp_path / "a.gpkg", layer="cells" if method == "s2" else "classes")
    values = layer["images"] / layer.get("area_km2", 1.0)
    filled = values[layer["images"] > 0].to_numpy()
    edges = partition_style._edges(filled)
    inside = [(filled >= low) & (filled < high) for low, high in itertools.pairwise(edges[:-1])]
    inside.append(filled >= edges[-2])
    np.testing.assert_array_equal(np.sum(inside, axis=0), 1)


def test_points_of_a_layer_are_places(house, tmp_path):
    frame = pd.read_csv(house / "clean.csv")
    points = geopandas.GeoDataFrame(geometry=geopandas.points_from_xy(frame.LON, frame.LAT), crs="OGC:CRS84")
    points.to_crs(3395).to_file(tmp_path / "p.gpkg")
    result = run("partition", tmp_path / "p.gpkg", "--num-cells", 60, "--out", tmp_path / "a.csv")
    assert result.exit_code == 0, result.output
    again = partition_by_file(frame.LON, frame.LAT, tmp_path / "a.csv")  # rows of a file stand by their level
    np.testing.assert_array_equal(again.cell_ids, made(house, "s2").cell_ids)
