"""GeoPackages read as SQLite: the same answer as OGR's for honest files, none for files with a hidden door."""

import sqlite3

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pytest
import shapely

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.geopackages import read_geopackage


@pytest.fixture
def layer():
    frame = {
        "name": ["Essen", None, "Zürich 'q' \"d\""],
        "count": [1, 2, 3],
        "share": [0.5, np.nan, -1e300],
        "flag": [True, False, True],
        "id": ["007", "NA", ""],
    }
    points = [shapely.Point(7, 51), None, shapely.Point(8.5, 47.4)]
    return gpd.GeoDataFrame(frame, geometry=points, crs="EPSG:4326")


def test_agrees_with_ogr(layer, tmp_path):
    layer.to_file(tmp_path / "a.gpkg", layer="places", engine="pyogrio")
    ours = read_geopackage(tmp_path / "a.gpkg")
    theirs = gpd.read_file(tmp_path / "a.gpkg", engine="pyogrio")
    assert ours.name == "places"
    assert ours.crs == theirs.crs
    assert not ours.broken
    assert list(ours.frame) == [name for name in theirs if name != "geometry"]
    for name in ours.frame:
        assert ours.frame[name].isna().tolist() == theirs[name].isna().tolist()
        assert ours.frame[name].dropna().tolist() == theirs[name].dropna().tolist()
    assert shapely.equals_exact(ours.geometries[[0, 2]], theirs.geometry.to_numpy()[[0, 2]]).all()
    assert ours.geometries[1] is None


@pytest.mark.parametrize(
    "shape",
    [
        "POINT Z (1 2 3)",
        "MULTIPOINT ((1 2), (3 4))",
        "POLYGON ((0 0, 4 0, 4 4, 0 4, 0 0), (1 1, 2 1, 2 2, 1 2, 1 1))",
        "MULTIPOLYGON (((0 0, 1 0, 1 1, 0 0)))",
        "LINESTRING (0 0, 1 1)",
    ],
)
@pytest.mark.parametrize("epsg", [4326, 3857, 2154])
def test_geometries_and_crs_agree_with_ogr(shape, epsg, tmp_path):
    wanted = gpd.GeoDataFrame(geometry=[shapely.from_wkt(shape)], crs=epsg)
    wanted.to_file(tmp_path / "a.gpkg", engine="pyogrio")
    found = read_geopackage(tmp_path / "a.gpkg")
    assert shapely.equals_exact(found.geometries[0], wanted.geometry[0])
    assert found.crs.to_epsg() == epsg


def test_a_geopackage_without_srs_has_no_crs(layer, tmp_path):
    with pytest.warns(UserWarning, match="crs"):
        layer.set_crs(None, allow_override=True).to_file(tmp_path / "a.gpkg", engine="pyogrio")
    assert read_geopackage(tmp_path / "a.gpkg").crs is None


def test_the_layer_is_chosen(layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, layer="first", engine="pyogrio")
    pyogrio.write_dataframe(pd.DataFrame({"styleQML": ["x"]}), path, layer="layer_styles", append=True)
    assert read_geopackage(path).name == "first"  # what QGIS keeps beside the data is no layer
    layer.iloc[:1].to_file(path, layer="second", engine="pyogrio")
    with pytest.raises(BadInputError, match=r"'first', 'layer_styles', 'second'.*layer="):
        read_geopackage(path)
    assert len(read_geopackage(path, "SECOND").frame) == 1
    with pytest.raises(BadInputError, match="no layer 'third'"):
        read_geopackage(path, "third")


def test_a_table_of_attributes_has_no_geometry(tmp_path):
    pyogrio.write_dataframe(pd.DataFrame({"path": ["a.jpg"]}), tmp_path / "a.gpkg", layer="t")
    found = read_geopackage(tmp_path / "a.gpkg")
    assert found.geometries is None
    assert found.frame["path"].tolist() == ["a.jpg"]


def test_what_a_running_qgis_has_not_yet_written_back_is_read_too(layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, layer="places", engine="pyogrio")
    with sqlite3.connect(path) as qgis:
        qgis.execute("PRAGMA journal_mode=WAL")
        qgis.execute("CREATE TABLE IF NOT EXISTS dummy(a)")
        qgis.execute("INSERT INTO dummy VALUES (1)")
        qgis.commit()
        assert (tmp_path / "a.gpkg-wal").stat().st_size > 0
        assert len(read_geopackage(path).frame) == 3
    qgis.close()


def test_reading_changes_nothing(layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, engine="pyogrio")
    before = path.read_bytes()
    path.chmod(0o444)
    read_geopackage(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gpkg"]


def test_reading_a_file_in_write_ahead_mode_makes_no_files_beside_it(layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, engine="pyogrio")
    changed(path, "PRAGMA journal_mode=WAL")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gpkg"]
    assert len(read_geopackage(path).frame) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.gpkg"]
    twin = sqlite3.connect(f"file:{path}?mode=ro", uri=True)  # the broken twin: a plain read-only connection
    twin.execute("SELECT count(*) FROM gpkg_contents").fetchone()
    assert len(list(tmp_path.iterdir())) > 1
    twin.close()


def changed(path, *statements):
    database = sqlite3.connect(path)
    database.execute("PRAGMA writable_schema=ON")
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


VIRTUAL = "INSERT INTO sqlite_master VALUES ('table', 'evil', 'evil', 0, '{}')"


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE VIRTUAL TABLE evil USING VirtualOGR(''/etc/passwd'')",
        "CREATE VIRTUAL TABLE evil USING VirtualText(''/etc/passwd'')",
        "CREATE VIRTUAL/**/TABLE evil USING VirtualShape(''x'')",
        "CREATE VIRTUAL TABLE evil USING fts5(a)",
        'CREATE VIRTUAL TABLE "evil" USING VirtualOGR("a" USING rtree(id))',
        'CREATE VIRTUAL TABLE "evil" USING VirtualOGR(x) -- " USING rtree(id)',
        "CREATE VIRTUAL TABLE rtree USING VirtualOGR(''rtree(a)'')",
        "CREATE VIRTUAL TABLE evil USING rtree(id, a, b); SELECT load_extension(''x'')",
    ],
)
def test_virtual_tables_are_refused(sql, layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, engine="pyogrio")
    changed(path, VIRTUAL.format(sql))
    with pytest.raises(BadInputError, match=r"virtual table 'evil'|malformed database schema"):
        read_geopackage(path)


@pytest.mark.parametrize("name", ["a", "my area", "a-b", "a.b", 'a"b', "Länder; 2024"])
def test_the_virtual_tables_of_a_spatial_index_are_not(name, layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, layer=name, engine="pyogrio", SPATIAL_INDEX="YES")
    with sqlite3.connect(path) as database:
        assert (
            database.execute("SELECT count(*) FROM sqlite_master WHERE sql LIKE '%VIRTUAL%rtree%'").fetchone()[0] == 1
        )
    database.close()
    assert len(read_geopackage(path).frame) == 3


def test_a_view_is_refused_as_a_layer_whatever_it_calls(layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, layer="a", engine="pyogrio")
    changed(
        path,
        "CREATE VIEW v AS SELECT fid, ogr_geocode('Essen') AS geom FROM a",
        "INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id) VALUES ('v', 'features', 'v', 4326)",
        "INSERT INTO gpkg_geometry_columns VALUES ('v', 'geom', 'POINT', 4326, 0, 0)",
    )
    with pytest.raises(BadInputError, match="is a view"):
        read_geopackage(path, "v")
    assert len(read_geopackage(path, "a").frame) == 3


def test_the_table_of_contents_may_not_be_a_view_either(layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, layer="a", engine="pyogrio")
    changed(
        path,
        "CREATE TABLE other AS SELECT * FROM gpkg_contents",
        "DROP TABLE gpkg_contents",
        "CREATE VIEW gpkg_contents AS SELECT * FROM other",
    )
    with pytest.raises(BadInputError, match="no GeoPackage"):
        read_geopackage(path)


def test_an_sqlite_file_that_is_no_geopackage(tmp_path):
    changed(tmp_path / "a.gpkg", "CREATE TABLE t(a)")
    with pytest.raises(BadInputError, match="no GeoPackage"):
        read_geopackage(tmp_path / "a.gpkg")


def test_names_are_quoted(layer, tmp_path):
    name = 'a"; DROP TABLE gpkg_contents; --'
    layer.to_file(tmp_path / "a.gpkg", layer="plain", engine="pyogrio")
    quoted = name.replace('"', '""')
    text = name.replace("'", "''")
    changed(
        tmp_path / "a.gpkg",
        f'CREATE TABLE "{quoted}" (fid INTEGER PRIMARY KEY, path TEXT)',
        f"INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('{text}', 'attributes', 'x')",  # noqa: S608  our own
        f"INSERT INTO \"{quoted}\" (path) VALUES ('a.jpg')",  # noqa: S608  our own
    )
    assert read_geopackage(tmp_path / "a.gpkg", name).frame["path"].tolist() == ["a.jpg"]
    assert read_geopackage(tmp_path / "a.gpkg", "plain").name == "plain"


def test_broken_blobs_are_told_per_row(layer, tmp_path):
    path = tmp_path / "a.gpkg"
    layer.to_file(path, layer="a", engine="pyogrio", SPATIAL_INDEX="NO")
    database = sqlite3.connect(path)
    for trigger in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f'DROP TRIGGER "{trigger[0]}"')
    database.execute("UPDATE a SET geom = x'00112233' WHERE fid = 1")
    database.commit()
    database.close()
    found = read_geopackage(path)
    assert found.geometries[0] is None
    assert set(found.broken) == {0}


def test_truncated_and_flipped_files_are_named_or_read(layer, tmp_path):
    layer.to_file(tmp_path / "a.gpkg", engine="pyogrio", SPATIAL_INDEX="NO")
    data = (tmp_path / "a.gpkg").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "b.gpkg"
    refused = 0
    for number in range(150):
        damaged = bytearray(data)
        if number % 2:
            damaged = damaged[: int(random.integers(16, len(data)))]
        else:
            for at in random.integers(16, len(data), 40):
                damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            read_geopackage(path)
        except BadInputError:
            refused += 1
    assert refused > 70
