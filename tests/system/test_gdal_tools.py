"""Files as the tools of GDAL see them: another build of the library, other versions of its drivers."""

import json
import os
import shutil
import subprocess

import geopandas
import numpy as np
import pytest
import shapely

from geo_mvmf.files import geotiff, vector
from geo_mvmf.maps.grid import Grid


def tool(name):
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed, but CI must have it (package gdal-bin)")
        pytest.skip(f"{name} is not installed (package gdal-bin)")
    return found


def run(name, *arguments):
    done = subprocess.run([tool(name), *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


@pytest.fixture
def raster(tmp_path):
    grid = Grid.globe(0.5)
    density = np.zeros(grid.shape)
    density[80:90, 360:380] = 1e-7
    tags = {"model": "world", "weights_sha256": "0f" * 32, "image_id": "a.jpg", "PROBABILITY_SUM": 0.25}
    return geotiff.write_density(tmp_path / "a_density.tif", density, grid, tags=tags)


@pytest.fixture
def album(tmp_path):
    points = geopandas.GeoDataFrame(
        {"image_id": ["a", "b"], "status": ["ok", "missing"], "radius_90_km": [1.0, np.nan]},
        geometry=[shapely.Point(8.5, 47.5), None],
        crs="EPSG:4326",
    )
    regions = geopandas.GeoDataFrame(
        {"image_id": ["a"], "level": [0.5]}, geometry=[shapely.box(8, 47, 9, 48)], crs="EPSG:4326"
    )
    layers = {"points": points, "regions": regions}
    return vector.write_layers(tmp_path / "album.gpkg", layers, run={"bundle": "0f" * 32})[0]


def test_gdalinfo_shows_tags_units_and_statistics(raster):
    text, errors = run("gdalinfo", "-json", raster)
    found = json.loads(text)
    assert errors == ""
    assert found["metadata"][""]["MODEL"] == "world"
    assert found["metadata"][""]["WEIGHTS_SHA256"] == "0f" * 32
    assert found["metadata"][""]["IMAGE_ID"] == "a.jpg"
    assert float(found["metadata"][""]["PROBABILITY_SUM"]) == 0.25
    assert found["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    (band,) = found["bands"]
    assert band["description"] == "density_per_km2"
    assert band["unit"] == "km-2"
    assert band["type"] == "Float32"
    assert float(band["metadata"][""]["STATISTICS_MAXIMUM"]) == pytest.approx(1e-7)
    assert [overview["size"] for overview in band["overviews"]] == [[360, 180]]
    assert sorted(path.name for path in raster.parent.iterdir()) == ["a_density.qml", "a_density.tif"]


def test_ogrinfo_reads_every_layer_without_a_warning(album):
    text, errors = run("ogrinfo", "-al", "-so", album)
    assert errors == ""
    assert "Warning" not in text
    for name, kind in (("points", "Point"), ("regions", "Multi Polygon"), ("run", "None"), ("layer_styles", "None")):
        assert f"Layer name: {name}\n" in text, name
        assert f"Geometry: {kind}" in text


def test_ogr2ogr_converts_points_and_keeps_rows_without_geometry(album, tmp_path):
    target = tmp_path / "points.geojson"
    _, errors = run("ogr2ogr", "-f", "GeoJSON", target, album, "points")
    assert errors == ""
    features = json.loads(target.read_text())["features"]
    assert [feature["geometry"] is None for feature in features] == [False, True]
    assert features[1]["properties"]["radius_90_km"] is None


def test_the_spatial_index_is_used(album):
    text, _ = run("ogrinfo", "-al", "-so", "-spat", 0, 0, 1, 1, album, "points")
    assert "Feature Count: 0" in text
    text, _ = run("ogrinfo", "-sql", "SELECT HasSpatialIndex('points', 'geom')", album)
    assert "HasSpatialIndex (Integer) = 1" in text
