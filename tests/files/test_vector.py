import json
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from geo_mvmf.errors import OutputError, UsageError
from geo_mvmf.files import vector

ROOT = Path(__file__).parents[2]
RUN = {"root": "/photos of mine", "bundle": "0f" * 32, "levels": [0.5, 0.9], "version": "0.1.0"}


def make_points(count=6):
    longitude, latitude = np.linspace(-179.0, 179.0, count), np.linspace(-80.0, 80.0, count)
    points = geopandas.GeoDataFrame(
        {
            "image_id": [f"Ærø {i}.jpg" for i in range(count)],
            "path": [f"day 1/{i}.jpg" for i in range(count)],
            "status": ["ok"] * (count - 1) + ["unreadable"],
            "message": pd.Series([None] * (count - 1) + ["=cmd|' /C calc'!A0"], dtype=object),
            "longitude": longitude,
            "latitude": latitude,
            "radius_90_km": [0.5, 20.0, 100.0, 500.0, 9000.0, np.nan][:count],
            "area_90_km2": [1.0, 900.0, 3e4, 1e6, 2e8, np.nan][:count],
            "n_parts_90": pd.array([1, 2, 1, 1, 3, None][:count], dtype="Int64"),
            "in_training_area": pd.array([True, False, True, True, True, None][:count], dtype="boolean"),
            "Höhe (m)": np.arange(count, dtype=float),
            "fid": [f"key {i}" for i in range(count)],
            "seen": pd.to_datetime(["2024-05-01T12:00:00Z"] * count),
        },
        geometry=geopandas.points_from_xy(longitude, latitude),
        crs="OGC:CRS84",
    )
    points.loc[count - 1, "geometry"] = None
    return points


def make_regions():
    def square(west, size):
        corners = [(west, 0), (west, size), (west + size, size), (west + size, 0)]  # clockwise
        return shapely.MultiPolygon([shapely.Polygon(corners)])

    return geopandas.GeoDataFrame(
        {
            "image_id": ["a", "a", "b", "b"],
            "level": [0.5, 0.9, 0.5, 0.9],
            "probability": [0.5, 0.9, 0.5, 0.9],
            "area_km2": [1.0, 2.0, 3.0, 4.0],
            "n_parts": [1, 1, 1, 1],
        },
        geometry=[square(0, 5), square(0, 9), square(40, 5), square(40, 9)],
        crs="EPSG:4326",
    )


LAYERS = {"points": make_points(), "regions": make_regions()}
TIDY = [
    "image_id",
    "path",
    "status",
    "message",
    "longitude",
    "latitude",
    "radius_90_km",
    "area_90_km2",
    "n_parts_90",
    "in_training_area",
    "hohe_m",
    "in_fid",
    "seen",
]


@pytest.fixture
def album(tmp_path):
    return vector.write_layers(tmp_path / "album.gpkg", LAYERS, run=RUN)[0]


def query(path, sql):
    connection = sqlite3.connect(path)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_a_geopackage_holds_everything(album):
    points = geopandas.read_file(album, layer="points")
    assert [name for name in points.columns if name != "geometry"] == TIDY
    assert points.crs == "EPSG:4326"
    assert points["image_id"].tolist() == LAYERS["points"]["image_id"].tolist()
    assert points.geometry.isna().tolist() == [False] * 5 + [True]
    assert points["status"].tolist()[-1] == "unreadable"
    assert points["longitude"].dtype == np.float64
    assert dict(query(album, "SELECT key, value FROM run")) == RUN | {"levels": "[0.5, 0.9]"}
    regions = geopandas.read_file(album, layer="regions")
    assert regions["level"].tolist() == [0.9, 0.9, 0.5, 0.5]
    assert all(part.exterior.is_ccw for shape in regions.geometry for part in shape.geoms)


def test_missing_numbers_are_null_and_not_nan(album):
    assert query(album, "SELECT radius_90_km, n_parts_90, in_training_area FROM points WHERE fid = 6") == [(None,) * 3]


def test_the_geopackage_is_registered_indexed_and_sound(album):
    contents = dict(query(album, "SELECT table_name, data_type FROM gpkg_contents"))
    assert contents == {"points": "features", "regions": "features", "run": "attributes", "layer_styles": "attributes"}
    for (time,) in query(album, "SELECT last_change FROM gpkg_contents UNION SELECT update_time FROM layer_styles"):
        pd.to_datetime(time, format="%Y-%m-%dT%H:%M:%S.%fZ")
        assert len(time) == 24
    indices = query(album, "SELECT table_name FROM gpkg_extensions WHERE extension_name = 'gpkg_rtree_index'")
    assert sorted(indices) == [("points",), ("regions",)]
    assert query(album, "PRAGMA integrity_check") == [("ok",)]
    assert query(album, "PRAGMA foreign_key_check") == []
    assert query(album, "PRAGMA journal_mode") == [("delete",)]
    assert [path.name for path in album.parent.iterdir()] == ["album.gpkg"]


def test_styles_are_the_defaults_of_their_layers(album):
    rows = query(album, "SELECT f_table_name, f_geometry_column, useAsDefault, styleQML FROM layer_styles")
    assert [row[:3] for row in rows] == [("points", "geom", 1), ("regions", "geom", 1)]
    assert all(row[3].startswith("<!DOCTYPE qgis") for row in rows)
    assert "50 % of the probability" in rows[1][3]
    assert "/photos of mine/" in rows[0][3]


def test_a_geopackage_without_styles_and_run(tmp_path):
    path = vector.write_layers(tmp_path / "a.gpkg", {"points": make_points()}, styles=False)[0]
    assert pyogrio.list_layers(path)[:, 0].tolist() == ["points"]


def test_layers_of_nothing_keep_their_types(tmp_path):
    failed = make_points().iloc[[5, 5]]
    layers = {"points": failed, "regions": make_regions().iloc[:0]}
    path = vector.write_layers(tmp_path / "a.gpkg", layers, run=RUN)[0]
    assert dict(pyogrio.list_layers(path).tolist()) == {
        "points": "Point",
        "regions": "MultiPolygon",
        "run": None,
        "layer_styles": None,
    }
    assert len(geopandas.read_file(path, layer="points")) == 2
    none = {"points": make_points().iloc[:0]}
    for suffix in (".gpkg", ".parquet", ".geojson", ".csv"):
        assert vector.write_layers(tmp_path / f"none{suffix}", none)[0].exists()
    assert len(geopandas.read_parquet(tmp_path / "none.parquet")) == 0
    assert json.loads((tmp_path / "none.geojson").read_text())["features"] == []


def test_polygons_and_multipolygons_share_a_layer(tmp_path):
    regions = make_regions()
    regions.loc[0, "geometry"] = regions.geometry[0].geoms[0]
    path = vector.write_layers(tmp_path / "a.gpkg", {"regions": regions})[0]
    assert set(geopandas.read_file(path, layer="regions").geom_type) == {"MultiPolygon"}


def test_geoparquet_has_a_covering_box_and_the_run(tmp_path):
    import pyarrow.parquet

    files = vector.write_layers(tmp_path / "a.parquet", LAYERS, run=RUN)
    assert [path.name for path in files] == ["a.parquet", "a_regions.parquet"]
    metadata = pyarrow.parquet.read_metadata(files[0]).metadata
    geo = json.loads(metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert "covering" in geo["columns"]["geometry"]
    assert "0f0f" in metadata[b"PANDAS_ATTRS"].decode()
    points = geopandas.read_parquet(files[0])
    assert points.crs == "EPSG:4326"
    assert points["radius_90_km"].isna().tolist() == [False] * 5 + [True]
    box = geopandas.read_parquet(files[0], bbox=(-180, -90, 0, 0))
    assert len(box) == 3


def test_geojson_follows_rfc_7946(tmp_path):
    files = vector.write_layers(tmp_path / "a.geojson", LAYERS, run=RUN)
    assert [path.name for path in files] == ["a.geojson", "a_regions.geojson"]
    points = json.loads(files[0].read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert points["type"] == "FeatureCollection"
    assert "crs" not in points
    assert points["run"]["bundle"] == "0f" * 32
    assert points["features"][5]["geometry"] is None
    assert points["features"][5]["properties"]["radius_90_km"] is None
    assert points["features"][0]["geometry"]["coordinates"] == [-179.0, -80.0]
    assert points["features"][0]["properties"]["seen"].startswith("2024-05-01T12:00:00")
    ring = json.loads(files[1].read_text())["features"][0]["geometry"]["coordinates"][0][0]
    assert shapely.LinearRing(ring).is_ccw
    assert len(geopandas.read_file(files[0])) == 6


def test_csv_is_safe_for_spreadsheets(tmp_path):
    files = vector.write_layers(tmp_path / "a.csv", LAYERS, run=RUN)
    assert [path.name for path in files] == ["a.csv", "a_regions.csv"]
    raw = files[0].read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    table = pd.read_csv(files[0])
    assert table["message"][5] == "'=cmd|' /C calc'!A0"
    assert table["longitude"][0] == -179.0
    assert table["image_id"][0] == "Ærø 0.jpg"
    assert pd.read_csv(files[1]).columns.tolist() == ["image_id", "level", "probability", "area_km2", "n_parts"]


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson", ".csv"])
def test_a_column_called_level_of_a_users_own_leaves_points_in_their_order(tmp_path, suffix):
    layer = make_points().assign(level=["2", "ground", None, "1", "roof", "3"])
    (path,) = vector.write_layers(tmp_path / f"a{suffix}", {"points": layer}, styles=False)
    read = {".csv": pd.read_csv, ".parquet": geopandas.read_parquet}.get(suffix, geopandas.read_file)
    assert read(path)["image_id"].tolist() == layer["image_id"].tolist()


def test_csv_takes_longitude_and_latitude_from_the_points(tmp_path):
    layer = geopandas.GeoDataFrame({"a": [1, 2]}, geometry=[shapely.Point(3, 4), None], crs=4326)
    table = pd.read_csv(vector.write_layers(tmp_path / "a.csv", {"places": layer})[0])
    assert table.columns.tolist() == ["longitude", "latitude", "a"]
    assert table["longitude"].tolist()[0] == 3.0


@pytest.mark.parametrize("suffix", [".shp", ".kml", "", ".json", ".gpkg.zip"])
def test_other_formats_are_refused_with_the_list_of_those_that_are_written(tmp_path, suffix):
    with pytest.raises(UsageError, match=r"\.gpkg, \.parquet") as caught:
        vector.write_layers(tmp_path / f"a{suffix}", LAYERS)
    if suffix == ".shp":
        assert "10 characters" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run", "layer_styles", "Points", "1st", "a b", 'x"; DROP TABLE run; --', ""])
def test_names_that_cannot_be_layers_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="layer"):
        vector.write_layers(tmp_path / "a.gpkg", {name: make_points()})
    assert list(tmp_path.iterdir()) == []


def test_no_layers_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no layer"):
        vector.write_layers(tmp_path / "a.gpkg", {})


def test_an_existing_neighbour_is_not_overwritten_and_nothing_is_written(tmp_path):
    (tmp_path / "a_regions.parquet").write_text("mine")
    with pytest.raises(OutputError, match=r"a_regions\.parquet: exists already"):
        vector.write_layers(tmp_path / "a.parquet", LAYERS)
    assert [path.name for path in tmp_path.iterdir()] == ["a_regions.parquet"]


def test_the_callers_layers_are_not_changed(tmp_path):
    points = make_points()
    before = points.copy()
    vector.write_layers(tmp_path / "a.gpkg", {"points": points}, run=RUN)
    assert_geodataframe_equal(points, before)


def test_without_pyarrow_the_message_names_the_extra(tmp_path):
    code = f"""
        import importlib.util
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "pyarrow" else found(name, *rest)
        from geo_mvmf.files import vector
        from geo_mvmf.errors import UsageError
        try:
            vector.check_suffix({str(tmp_path / "a.parquet")!r})
        except UsageError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "pip install geo-mvmf[parquet]" in done.stdout


def test_the_same_layers_give_the_same_rows_in_every_format(tmp_path):
    for suffix in (".gpkg", ".parquet", ".geojson"):
        path = vector.write_layers(tmp_path / f"a{suffix}", {"points": make_points()}, run=RUN)[0]
        more = {"layer": "points"} if suffix == ".gpkg" else {}
        back = geopandas.read_parquet(path) if suffix == ".parquet" else geopandas.read_file(path, **more)
        assert back["hohe_m"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], suffix
        assert back.geometry.isna().sum() == 1
        valid = back.geometry.dropna()
        np.testing.assert_allclose(valid.x, make_points().geometry.dropna().x)
