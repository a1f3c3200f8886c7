"""CRS texts from untrusted places: codes are read, references to files and addresses are refused."""

import json

import numpy as np
import pyproj
import pytest
from pyproj.network import is_network_enabled, set_network_enabled

from geo_mvmf.errors import AmbiguousInputError, BadInputError, UsageError
from geo_mvmf.inputs import coordinate_systems as systems


@pytest.mark.parametrize(
    "text",
    [
        "", "4326", "EPSG:", "EPSG:4326 ", "EPSG:4326\n+proj=x", "urn:ogc:def:crs:EPSG::4326", "http://x/4326",
        "https://127.0.0.1/crs", "+proj=longlat", "+proj=pipeline +step +proj=x", "WGS84", "ESRI:54009", "EPSG:99999",
        "IGNF:LAMB93", "EPSG:4326+5773", "/etc/passwd", "file.prj", "a" * 1_000_000,
    ],
)  # fmt: skip
def test_users_name_a_crs_by_its_code_only(text):
    if text.strip() == "EPSG:4326":
        assert systems.parse_crs(text).to_epsg() == 4326
        return
    with pytest.raises(UsageError) as caught:
        systems.parse_crs(text)
    assert len(str(caught.value)) < 400


def test_codes_and_objects_are_understood():
    assert systems.parse_crs("epsg:3035").to_epsg() == 3035
    assert systems.parse_crs("OGC:CRS84").to_authority() == ("OGC", "CRS84")
    crs = pyproj.CRS.from_epsg(2154)
    assert systems.parse_crs(crs) is crs


@pytest.mark.parametrize(
    "definition",
    [
        "EPSG:2154",
        "urn:ogc:def:crs:EPSG::2154",
        "urn:ogc:def:crs:EPSG:10.081:2154",
        pyproj.CRS.from_epsg(2154).to_wkt(),
        pyproj.CRS.from_epsg(2154).to_wkt("WKT1_GDAL"),
        pyproj.CRS.from_epsg(2154).to_json_dict(),
        {key: value for key, value in pyproj.CRS.from_epsg(2154).to_json_dict().items() if key != "id"},
    ],
)
def test_files_state_a_crs_in_their_ways(definition):
    assert systems.file_crs(definition, "a").equals(pyproj.CRS.from_epsg(2154), ignore_axis_order=True)


BOUND = pyproj.crs.BoundCRS(
    source_crs=pyproj.CRS.from_epsg(4267),
    target_crs=pyproj.CRS.from_epsg(4326),
    transformation=pyproj.crs.coordinate_operation.ToWGS84Transformation(pyproj.CRS.from_epsg(4267), 1, 2, 3),
)


@pytest.mark.parametrize(
    "definition",
    [
        "http://127.0.0.1/crs",
        "+proj=longlat +nadgrids=/etc/passwd",
        "+init=/etc/passwd:1",
        'GEOGCS["a",EXTENSION["PROJ4","+proj=longlat +nadgrids=@/etc/passwd"]]',
        BOUND.to_wkt(),
        BOUND.to_json_dict(),
        {"type": "link", "href": "http://127.0.0.1/"},
        {"id": {"authority": "EPSG", "code": "http://127.0.0.1"}},
        "GEOGCS[" * 1000,
        'PROJCS["' + "x" * 1_000_000 + '"]',
        "nonsense",
    ],
)
def test_definitions_with_references_or_without_sense_are_refused(definition):
    with pytest.raises(BadInputError, match=r"a\.gpkg") as caught:
        systems.file_crs(definition, "a.gpkg")
    assert len(str(caught.value)) < 500


def test_a_crs_without_sense_is_mended_in_the_file():
    """Layers have no option that overrules what they state; rasters are no matter of ogr2ogr."""
    with pytest.raises(BadInputError, match=r"a\.tif: the CRS 'nonsense' is not understood; assign one of EPSG to it"):
        systems.file_crs("nonsense", "a.tif")


@pytest.mark.parametrize("definition", ["undefined", "", 'LOCAL_CS["Undefined Cartesian SRS"]'])
def test_files_may_say_that_they_do_not_know(definition):
    assert systems.file_crs(definition, "a") is None


def test_the_option_fills_a_gap_and_never_overrules():
    lambert = pyproj.CRS.from_epsg(2154)
    assert systems.resolve_crs(lambert, None, "a") is lambert
    assert systems.resolve_crs(None, "EPSG:2154", "a") == lambert
    assert systems.resolve_crs(lambert, "EPSG:2154", "a") == lambert
    systems.resolve_crs(systems.parse_crs("EPSG:4326"), "OGC:CRS84", "a")  # the same places
    with pytest.raises(UsageError, match="states the CRS"):
        systems.resolve_crs(lambert, "EPSG:4326", "a")
    with pytest.raises(AmbiguousInputError, match=r"unknown; set it to EPSG:n or OGC:CRS84 \(crs=\)") as caught:
        systems.resolve_crs(None, None, "a")
    assert caught.value.told().startswith("a: the CRS is unknown; ogr2ogr -a_srs EPSG:n")


@pytest.mark.parametrize("code", [3857, 2154, 32633, 3035, 3031, 3413, 5070, 6933])
def test_round_trips_within_a_centimetre(code):
    """P13. Places within each CRS's area of use, x before y whatever the axis order."""
    crs = pyproj.CRS.from_epsg(code)
    west, south, east, north = crs.area_of_use.bounds
    random = np.random.default_rng(code)
    longitude = random.uniform(west, east, 200)
    latitude = random.uniform(south, north, 200)
    forward = pyproj.Transformer.from_crs("OGC:CRS84", crs, always_xy=True)
    back = systems.to_longitude_latitude(*forward.transform(longitude, latitude), crs)
    apart = np.hypot((back[0] - longitude) * np.cos(np.radians(latitude)), back[1] - latitude) * 111_195
    assert apart.max() < 0.01


def test_wgs84_is_not_touched_at_all():
    values = np.array([180.0, -180.0, 1e-17, np.nan])
    for code in ("EPSG:4326", "OGC:CRS84"):
        longitude, latitude = systems.to_longitude_latitude(values, values / 2, systems.parse_crs(code))
        np.testing.assert_array_equal(longitude, values)
        np.testing.assert_array_equal(latitude, values / 2)


def test_no_answer_is_infinite_or_nan_not_a_wrong_place():
    longitude, latitude = systems.to_longitude_latitude([1e30, np.nan], [1e30, 0.0], systems.parse_crs("EPSG:3857"))
    assert not np.isfinite(latitude).any() or (np.abs(latitude[0]) <= 90 and not np.isfinite(longitude[1]))


def test_the_network_of_proj_is_off_inside_and_put_back_outside():
    before = is_network_enabled()
    set_network_enabled(active=True)
    try:
        with systems.network_off():
            assert not is_network_enabled()
        assert is_network_enabled()
    finally:
        set_network_enabled(active=before)


def test_a_crs_from_a_planet_far_away_has_no_way_here():
    moon = pyproj.CRS.from_wkt(
        'GEOGCRS["Moon",DATUM["Moon",ELLIPSOID["Moon",1737400,0]],CS[ellipsoidal,2],'
        'AXIS["latitude",north],AXIS["longitude",east],ANGLEUNIT["degree",0.0174532925199433]]'
    )
    assert json.dumps(moon.to_json_dict())
    with pytest.raises(BadInputError, match="Moon"):
        systems.to_longitude_latitude([0.0], [0.0], moon)
