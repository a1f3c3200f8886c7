"""Zones of stored predictions, as tables and layers, from Python and from the command line."""

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from click.testing import CliRunner

import geo_mvmf
from geo_mvmf import read_image_table
from geo_mvmf.cli import main


@pytest.fixture(scope="module")
def house(bundle, tmp_path_factory):
    """An album of three images, one of them unreadable, and two zones that leave a third of the Earth out."""
    folder = tmp_path_factory.mktemp("zones")
    from PIL import Image

    for i in range(2):
        noise = np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    geo_mvmf.predict(bundle, read_image_table(folder), out=folder / "album.nc")
    shapes = [shapely.box(-180, 0, 0, 90), shapely.box(-180, -90, 180, 0)]
    zones = geopandas.GeoDataFrame({"Name": ["north-west", "=south"], "code": [1, 2]}, geometry=shapes, crs="EPSG:4326")
    zones.to_file(folder / "zones.geojson")
    return folder


def run(*arguments):
    return CliRunner().invoke(main, [str(each) for each in arguments])


def zones(house, out, *more):
    return run("zones", house / "album.nc", "--polygons", house / "zones.geojson", "--out", out, *more)


def test_a_table_holds_what_the_mixture_says(house, tmp_path):
    done = zones(house, tmp_path / "z.parquet")
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "z.parquet")
    found = geo_mvmf.open_predictions(house / "album.nc")
    expected = geo_mvmf.zone_probabilities(found.mixture, house / "zones.geojson")
    assert table["image_id"].tolist() == ["0.png", "0.png", "1.png", "1.png"]
    assert table["probability"].to_numpy() == pytest.approx(expected["probability"].to_numpy(), abs=1e-12)
    assert "of 2 images" in done.output


def test_ranked_rows_say_what_lies_in_no_zone_and_spreadsheets_run_no_name(house, tmp_path):
    assert zones(house, tmp_path / "z.csv", "--top", 1).exit_code == 0
    table = pd.read_csv(tmp_path / "z.csv")
    assert table["rank"].tolist() == [1, 1]
    assert set(table["name"]) <= {"north-west", "'=south"}
    held = geo_mvmf.open_predictions(house / "album.nc").zones(house / "zones.geojson")
    assert table["in_no_zone"].to_numpy() == pytest.approx(held.in_no_zone)
    assert held.in_no_zone == pytest.approx(1.0 - held.probabilities.sum(axis=1), abs=1e-7)


def test_a_geopackage_holds_points_with_zones_and_polygons_with_counts(house, tmp_path):
    assert zones(house, tmp_path / "z.gpkg", "--name-column", "code").exit_code == 0
    points = geopandas.read_file(tmp_path / "z.gpkg", layer="points")
    polygons = geopandas.read_file(tmp_path / "z.gpkg", layer="zones")
    failed = points["status"] != "ok"
    assert failed.sum() == 1
    assert points["zone_1"].isna().tolist() == failed.tolist()
    assert set(points["zone_1"].dropna()) <= {"1", "2"}
    assert (points["zone_1_probability"] >= points["zone_2_probability"])[~failed].all()
    held = geo_mvmf.open_predictions(house / "album.nc").zones(house / "zones.geojson")
    assert polygons["expected_images"].to_numpy() == pytest.approx(held.probabilities.sum(axis=0))


@pytest.mark.parametrize(
    ("out", "more", "code", "message"),
    [
        ("z.shp", [], 2, "the suffix is '.shp'; .csv or "),
        ("z.csv", ["--name-column", "nom"], 2, "no column 'nom'; they have Name, code"),
        ("z.csv", ["--top", "0"], 2, "0"),
        ("taken.csv", [], 5, "exists already"),
    ],
)
def test_refusals(house, tmp_path, out, more, code, message):
    (tmp_path / "taken.csv").write_text("mine")
    done = zones(house, tmp_path / out, *more)
    assert done.exit_code == code
    assert message in done.output
    assert (tmp_path / "taken.csv").read_text() == "mine"
