"""Polygon layers: valid, in longitude and latitude, whatever they came in."""

import json

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs import polygons
from geo_mvmf.sphere import great_circle_distance_km

BOWTIE = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10), (0, 0)])
TWO = [shapely.box(0, 0, 10, 10), shapely.MultiPolygon([shapely.box(20, 0, 30, 10), shapely.box(40, 0, 50, 10)])]


@pytest.fixture
def two():
    return gpd.GeoDataFrame({"name": ["a", "b"], "n": [1, 2]}, geometry=TWO, crs="OGC:CRS84")


def geojson(geometries, **members):
    features = [{"type": "Feature", "properties": {"n": n}, "geometry": g} for n, g in enumerate(geometries)]
    return json.dumps({"type": "FeatureCollection", "features": features, **members})


@pytest.mark.parametrize("suffix", [".geojson", ".json", ".gpkg", ".parquet", ".geoparquet"])
@pytest.mark.parametrize("crs", ["OGC:CRS84", "EPSG:4326", "EPSG:3857", "EPSG:3035"])
def test_every_format_and_crs_gives_the_same_polygons(two, suffix, crs, tmp_path):
    path = tmp_path / f"a{suffix}"
    projected = two.set_geometry(two.geometry.segmentize(0.5)).to_crs(crs)
    if "parquet" in suffix:
        projected.to_parquet(path)
    else:
        projected.to_file(path, driver="GPKG" if suffix == ".gpkg" else "GeoJSON", engine="pyogrio")
    found = polygons.read_polygons(path)
    assert found.crs == pyproj.CRS("OGC:CRS84")
    assert found["name"].tolist() == ["a", "b"]
    assert found["n"].tolist() == [1, 2]
    assert found.index.tolist() == [0, 1]
    apart = shapely.symmetric_difference(found.geometry.to_numpy(), two.geometry.to_numpy())
    assert shapely.area(apart).max() < 0.02


def test_edges_are_divided_in_their_own_crs(tmp_path):
    """A straight edge of a conic map is no parallel; the broken twin divides after transforming."""
    square = gpd.GeoDataFrame(geometry=[shapely.box(2.5e6, 1.5e6, 6.5e6, 5.4e6)], crs="EPSG:3035")
    found = polygons.read_polygons(square).geometry[0]
    longitude, latitude = shapely.get_coordinates(found).T
    steps = great_circle_distance_km(longitude[1:], latitude[1:], longitude[:-1], latitude[:-1])
    assert steps.max() < 1.2 * 111.2  # the map is true to area, not to length
    twin = square.to_crs("OGC:CRS84").segmentize(1.0).geometry[0]
    truth = square.segmentize(1000.0).to_crs("OGC:CRS84").geometry[0]
    assert found.symmetric_difference(truth).area < 1
    assert twin.symmetric_difference(truth).area > 20


def test_edges_are_at_most_a_degree_in_crs84_too(two):
    for geometry in polygons.read_polygons(two).geometry:
        for part in shapely.get_parts(geometry):
            steps = np.diff(shapely.get_coordinates(part), axis=0)
            assert np.hypot(*steps.T).max() <= 1.0 + 1e-9


def test_invalid_polygons_are_made_valid():
    found = polygons.read_polygons(gpd.GeoDataFrame(geometry=[BOWTIE], crs="EPSG:4326"))
    assert found.is_valid.all()
    assert shapely.area(found.geometry[0]) == pytest.approx(50.0)


def test_rows_without_geometry_keep_their_place():
    frame = gpd.GeoDataFrame(geometry=[None, TWO[0], shapely.Polygon()], crs="EPSG:4326")
    found = polygons.read_polygons(frame)
    assert found.geometry.is_empty.tolist() == [True, False, True]
    assert polygons.containing(found, [5.0], [5.0]).tolist() == [1]


@pytest.mark.parametrize(
    ("geometries", "message"),
    [
        ([], "no polygon"),
        ([{"type": "Point", "coordinates": [1, 2]}], r"row 1 is a Point"),
        ([{"type": "Polygon", "coordinates": "x"}], "row 1"),
        ([{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}], "row 1"),
        ([{"type": "Polygon"}], "row 1"),
        ([{"type": "Blob", "coordinates": []}], "row 1"),
        (["x"], "row 1"),
        ([{"type": "Polygon", "coordinates": [[[0, 0], [0, 95], [9, 0], [0, 0]]]}], r"\(0\.0, 95\.0\)"),
        ([{"type": "Polygon", "coordinates": [[[0, 0], [1e30, 9], [9, 0], [0, 0]]]}], "not a place"),
        ([{"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 9], [9, 0], [0, 0]]]}], "row 1"),
    ],
)
def test_rows_that_are_no_polygons_are_named(geometries, message, tmp_path):
    (tmp_path / "a.geojson").write_text(geojson(geometries))
    with pytest.raises(BadInputError, match=message):
        polygons.read_polygons(tmp_path / "a.geojson")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"type": 5}', '{"type": "FeatureCollection"}', '{"type": "FeatureCollection", "features": [1]}',
     '{"a":' * 100_000, "[" * 100_000, '{"type": "Topology", "objects": {}}'],
)  # fmt: skip
def test_json_that_is_no_geojson_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BadInputError):
        polygons.read_polygons(tmp_path / "a.json")


def test_a_named_crs_of_the_older_geojson_is_understood(tmp_path):
    square = {"type": "Polygon", "coordinates": [[[0, 0], [111_319.49, 0], [0, 111_319.49], [0, 0]]]}
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    (tmp_path / "a.geojson").write_text(geojson([square], crs=crs))
    assert polygons.read_polygons(tmp_path / "a.geojson").total_bounds[2] == pytest.approx(1.0, abs=1e-5)


def test_an_unknown_crs_needs_the_option(two, tmp_path):
    unknown = two.set_crs(None, allow_override=True)
    with pytest.raises(BadInputError, match=r"set it to EPSG:n or OGC:CRS84 \(crs=\)"):
        polygons.read_polygons(unknown)
    assert len(polygons.read_polygons(unknown, crs="OGC:CRS84")) == 2
    unknown.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadInputError, match="CRS is unknown"):
        polygons.read_polygons(tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="states the CRS"):
        polygons.read_polygons(two, crs="EPSG:3857")


@pytest.mark.parametrize("name", ["a.shp", "a.kml", "a.fgb", "a.zip", "a"])
def test_other_formats_get_a_hint(name, tmp_path):
    (tmp_path / name).write_bytes(b"\x00\x00\x27\x0a" + bytes(100))
    with pytest.raises(BadInputError, match="ogr2ogr"):
        polygons.read_polygons(tmp_path / name)


# --- the antimeridian and the poles -----------------------------------------------------------------------------


def area_km2(geometry):
    return pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.segmentize(geometry, 0.1))[0] / 1e6


@pytest.mark.parametrize(("epsg", "pole"), [(3031, -90.0), (3413, 90.0)])
def test_a_cap_around_a_pole_is_closed_over_it(epsg, pole):
    own = gpd.GeoDataFrame(geometry=[shapely.Point(0, 0).buffer(1.5e6)], crs=epsg)
    found = polygons.read_polygons(own)
    assert found.is_valid.all()
    west, south, east, north = found.total_bounds
    assert (west, east) == (-180.0, 180.0)
    assert pole in (south, north)
    inside = polygons.containing(
        found, [0, 90, 180, -180, -90, 45], [pole, pole * 0.95, pole * 0.95, pole * 0.95, pole, 0]
    )
    assert inside.tolist() == [0, 0, 0, 0, 0, -1]
    twin = own.to_crs("OGC:CRS84")  # the broken twin: transformed vertex by vertex
    assert not twin.geometry[0].covers(shapely.Point(0, pole))


def test_a_ring_around_a_pole_leaves_the_pole_out():
    disc = shapely.Point(0, 0)
    own = gpd.GeoDataFrame(geometry=[disc.buffer(2e6).difference(disc.buffer(1e6))], crs="EPSG:3413")
    found = polygons.read_polygons(own)
    assert polygons.containing(found, [0, 180, 90, 0], [90, 75, 76, 60]).tolist() == [-1, 0, 0, -1]


@pytest.mark.parametrize(("box", "epsg"), [((200_000, 5e6, 900_000, 5.5e6), 32601), ((-3.5e6, -5e5, 3.5e6, 5e5), 3832)])
def test_polygons_across_180_are_split_and_keep_their_area(box, epsg):
    own = gpd.GeoDataFrame(geometry=[shapely.box(*box)], crs=epsg)
    found = polygons.read_polygons(own).geometry[0]
    assert found.is_valid
    assert len(shapely.get_parts(found)) == 2
    centre = pyproj.Transformer.from_crs(epsg, "OGC:CRS84", always_xy=True).transform(
        (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    )
    assert found.covers(shapely.Point(centre))
    to_local = pyproj.Transformer.from_crs("OGC:CRS84", epsg, always_xy=True)
    total = 0.0
    for part in shapely.get_parts(found):
        inner = shapely.transform(shapely.segmentize(part, 0.1), lambda p: np.column_stack(to_local.transform(*p.T)))
        total += shapely.make_valid(inner).area
    assert total == pytest.approx(own.area[0], rel=2e-3)


def test_longitudes_beyond_180_are_wrapped():
    frame = gpd.GeoDataFrame(geometry=[shapely.box(170, -10, 190, 10), shapely.box(190, 0, 200, 5)], crs="EPSG:4326")
    found = polygons.read_polygons(frame)
    assert shapely.area(found.geometry.to_numpy()) == pytest.approx([400.0, 50.0])
    assert polygons.containing(found, [-175, 175, 180, -180, -165, 0], [0, 0, 0, 0, 2, 0]).tolist() == [
        0,
        0,
        0,
        0,
        1,
        -1,
    ]


# --- containing -------------------------------------------------------------------------------------------------


def test_boundaries_belong_and_the_first_row_wins():
    frame = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1), shapely.box(1, 0, 2, 1)], crs="OGC:CRS84")
    found = polygons.containing(frame, [0.0, 1.0, 2.0, 2.1, np.nan, 0.5], [0.0, 0.5, 1.0, 0.5, 0.5, np.inf])
    assert found.dtype == np.int64
    assert found.tolist() == [0, 0, 1, -1, -1, -1]


def test_180_and_minus_180_are_one_place():
    frame = gpd.GeoDataFrame(geometry=[shapely.box(-180, 0, -170, 1), shapely.box(170, 0, 180, 1)], crs="OGC:CRS84")
    assert polygons.containing(frame, [180, -180], [0.5, 0.5]).tolist() == [0, 0]
    assert polygons.containing(frame.iloc[1:], [180, -180], [0.5, 0.5]).tolist() == [0, 0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_containing_agrees_with_looking_at_every_pair(seed):
    random = np.random.default_rng(seed)
    corners = random.uniform([-170, -80], [150, 70], (12, 2))
    sizes = random.uniform(1, 20, (12, 2))
    shapes = [shapely.box(*corner, *(corner + size)) for corner, size in zip(corners, sizes, strict=True)]
    frame = gpd.GeoDataFrame(geometry=shapes, crs="OGC:CRS84")
    longitude, latitude = random.uniform(-180, 180, 200), random.uniform(-90, 90, 200)
    pairs = np.array(
        [[shape.covers(shapely.Point(*place)) for shape in shapes] for place in zip(longitude, latitude, strict=True)]
    )
    expected = np.where(pairs.any(axis=1), pairs.argmax(axis=1), -1)
    np.testing.assert_array_equal(polygons.containing(frame, longitude, latitude), expected)


def test_no_places_and_no_polygons():
    frame = gpd.GeoDataFrame(geometry=[shapely.Polygon()], crs="OGC:CRS84")
    assert polygons.containing(frame, [], []).tolist() == []
    assert polygons.containing(frame, [1.0], [1.0]).tolist() == [-1]


def test_union_area(two):
    joined = polygons.union_area(polygons.read_polygons(two))
    assert joined.is_valid
    assert joined.area == pytest.approx(300.0)
    assert polygons.union_area(gpd.GeoDataFrame(geometry=[shapely.Polygon()], crs="OGC:CRS84")).is_empty
