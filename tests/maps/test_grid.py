"""Grid: what it accepts, what it refuses, and that pixels and places agree."""

import affine
import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf import sphere
from geo_mvmf.maps.grid import Grid

UTM = Grid.from_bounds(300_000, 5_000_000, 400_000, 5_100_000, 1000, crs=32632)


def test_globe_covers_the_earth_from_the_north_west():
    grid = Grid.globe(0.5)
    assert grid.shape == (360, 720)
    assert grid.bounds == (-180.0, -90.0, 180.0, 90.0)
    assert grid.is_geographic
    assert grid.is_global
    assert grid.dims == ("latitude", "longitude")
    x, y = grid.edges
    assert (x[0], x[-1], y[0], y[-1]) == (-180.0, 180.0, 90.0, -90.0)


@pytest.mark.parametrize("resolution", [0.7, 1 / 3, 7.3, 90.0])
def test_globe_takes_the_nearest_resolution_that_fits(resolution):
    grid = Grid.globe(resolution)
    assert grid.bounds == pytest.approx((-180, -90, 180, 90), abs=1e-9)
    assert grid.edges[1][-1] == -90.0
    assert grid.is_global


@pytest.mark.parametrize("resolution", [0.0, -1.0, 91.0, 181.0, float("nan")])
def test_globe_refuses_resolutions(resolution):
    with pytest.raises(ValueError, match=f"resolution {resolution:g}"):
        Grid.globe(resolution)


def test_bounds_that_cross_180():
    grid = Grid.from_bounds(177.0, -20.0, -178.0, -15.0, 0.5)
    assert grid.bounds == (177.0, -20.0, 182.0, -15.0)
    longitude, latitude = grid.longitude_latitude()
    assert longitude.min() >= -180.0
    assert longitude.max() < 180.0
    assert longitude[0, 0] == 177.25
    assert longitude[0, -1] == pytest.approx(-178.25)
    assert (np.diff(latitude[:, 0]) < 0).all()  # north to south
    assert not grid.is_global


@pytest.mark.parametrize("bounds", [(0, 0, 0, 1), (0, 1, 1, 0), (0, 0, float("inf"), 1)])
def test_empty_bounds_are_refused_with_their_values(bounds):
    with pytest.raises(ValueError, match="hold nothing"):
        Grid.from_bounds(*bounds, 0.5)
    with pytest.raises(ValueError, match="resolution"):
        Grid.from_bounds(0, 0, 1, 1, -0.5)
    with pytest.raises(ValueError, match="hold nothing"):
        Grid.from_bounds(10, 0, 5, 10, 1, crs=3857)  # only longitude can go around


@pytest.mark.parametrize(
    ("bounds", "resolution", "crs", "message"),
    [
        ((-10, 35, 30, 60), 25_000, 4326, "resolution 25000: degrees of EPSG:4326 .*for metres.* --crs"),
        ((-10, 35, 30, 60), 41, 4326, "larger than the bounds, 40 by 25 degrees"),
        ((170, 0, -170, 10), (21, 11), 4326, "larger than the bounds, 20 by 10 degrees"),
        ((-180, -90, 180, 90), (1, 91), 4326, "90 at most"),
        ((0, 0, 5, 5), 1000, 3857, "larger than the bounds, 5 by 5 units$"),
        ((0, 0, 5, 5), float("inf"), 3857, "larger than the bounds"),
    ],
)
def test_a_cell_is_not_larger_than_the_bounds(bounds, resolution, crs, message):
    with pytest.raises(ValueError, match=message):
        Grid.from_bounds(*bounds, resolution, crs=crs)


def test_a_cell_may_be_as_large_as_the_bounds_and_higher_than_a_strip():
    assert Grid.from_bounds(0, 0, 0.1 + 0.2, 0.3, 0.3).shape == (1, 1)
    assert Grid.from_bounds(170, 0, -170, 1, 2.0).shape == (1, 10)
    assert Grid.globe(90.0).shape == (2, 4)


def test_equal_by_content_and_immutable():
    a = Grid((180, 360), (1, 0, -180, 0, -1, 90), "EPSG:4326")
    b = Grid([180, 360], affine.Affine(1, 0, -180, 0, -1, 90), rasterio.crs.CRS.from_epsg(4326))
    assert a == b == Grid.globe(1.0)
    assert hash(a) == hash(b)
    assert a != Grid.globe(2.0)
    assert a != UTM
    assert a != "a grid"
    assert "360" in repr(a)
    assert "EPSG:4326" in repr(a)
    with pytest.raises(AttributeError):
        a.shape = (1, 1)


@pytest.mark.parametrize(
    ("shape", "transform", "crs", "message"),
    [
        ((0, 5), (1, 0, 0, 0, -1, 0), 4326, r"\(0, 5\)"),
        ((5,), (1, 0, 0, 0, -1, 0), 4326, r"\(5,\)"),
        ((5.5, 5), (1, 0, 0, 0, -1, 0), 4326, "5.5"),
        ((1 << 16, 1 << 15), (1, 0, 0, 0, -1, 0), 3857, "window"),
        ((5, 5), (1, 0, 0, 0, -1), 4326, "six"),
        ((5, 5), (1, 0, 0, 0, float("nan"), 0), 4326, "finite"),
        ((5, 5), (1, 1, 0, 1, 1, 0), 4326, "area"),
        ((5, 5), (1, 0, 0, 0, -1, 0), "EPSG:999999", "999999"),
        ((5, 5), (1, 0, 0, 0, -1, 91), 4326, "91"),
        ((5, 400), (1, 0, 0, 0, -1, 10), 4326, "400"),
    ],
)
def test_refusals_show_the_value(shape, transform, crs, message):
    with pytest.raises(ValueError, match=message):
        Grid(shape, transform, crs)


def test_geographic_means_degrees_of_wgs_84_and_no_rotation():
    args = ((5, 5), (1, 0, 0, 0, -1, 10))
    assert Grid(*args, "OGC:CRS84").is_geographic
    assert Grid(*args, 4258).is_geographic  # ETRS89 is within a metre
    assert Grid((5, 5), (1, 0, 0, 0, 1, 10), 4326).is_geographic  # rows from south to north
    assert not Grid(*args, 4230).is_geographic  # ED50 is 100 m away: it goes through its datum
    assert not Grid(*args, 4807).is_geographic  # grads from Paris
    assert not Grid((5, 5), (1, 0.1, 0, 0, -1, 10), 4326).is_geographic
    assert not UTM.is_geographic
    assert UTM.dims == ("y", "x")


def test_paris_meridian_and_grads_land_where_they_should():
    grid = Grid((1, 1), (0.01, 0, -0.005, 0, -0.01, 54.27), 4807)  # Paris: 0, 54.265 grads
    longitude, latitude = grid.longitude_latitude()
    assert longitude[0, 0] == pytest.approx(2.337, abs=2e-3)
    assert latitude[0, 0] == pytest.approx(48.8385, abs=2e-3)


@settings(deadline=None, max_examples=50)
@given(st.floats(-179.9, 179.9), st.floats(-80, 80))
def test_pixels_and_places_agree(longitude, latitude):
    for grid in (Grid.globe(1.0), Grid.from_bounds(150, -80, -160, 80, 2.0)):
        column, row = grid.to_pixels(longitude, latitude)
        back = sphere.to_longitude_latitude(grid.to_directions(column, row))
        assert sphere.great_circle_distance_km(longitude, latitude, *back) < 1e-6
    mercator = Grid.from_bounds(-2e7, -1.6e7, 2e7, 1.6e7, 1e5, crs=3857)
    column, row = mercator.to_pixels(longitude, latitude)
    back = sphere.to_longitude_latitude(mercator.to_directions(column, row))
    assert sphere.great_circle_distance_km(longitude, latitude, *back) < 1e-6


def test_middles_agree_with_pyproj():
    longitude, latitude = UTM.longitude_latitude()
    expected = pyproj.Transformer.from_crs(32632, 4326, always_xy=True).transform(300_500, 5_099_500)
    assert (longitude[0, 0], latitude[0, 0]) == pytest.approx(expected, abs=1e-9)


def test_the_far_side_of_a_projection_is_nan():
    beyond = Grid.from_bounds(-2.2e7, -1e6, 2.2e7, 1e6, 1e6, crs=6933)  # the cylinder is 3.47e7 wide
    longitude, _ = beyond.longitude_latitude()
    assert np.isnan(longitude[:, 0]).all()
    assert np.isfinite(longitude[:, 20:24]).all()
    mollweide = Grid.from_bounds(-18.1e6, -9.1e6, 18.1e6, 9.1e6, 1e6, crs="ESRI:54009")
    outside = np.isnan(mollweide.longitude_latitude()[0])
    assert outside[0, 0]
    assert not outside[9, 18]


def test_window_keeps_places():
    grid = UTM.window(slice(10, 30), slice(-5, None))
    assert grid.shape == (20, 5)
    whole, part = UTM.longitude_latitude(), grid.longitude_latitude()
    assert np.array_equal(part[0], whole[0][10:30, -5:])
    with pytest.raises(ValueError, match="shape"):
        UTM.window(slice(3, 3), slice(0, 5))


class TestLike:
    def test_a_grid_is_itself(self):
        assert Grid.like(UTM) is UTM

    def test_anything_with_shape_transform_and_crs(self):
        class GeoBox:
            shape, transform, crs = (100, 100), UTM.transform, "EPSG:32632"

        assert Grid.like(GeoBox()) == UTM
        GeoBox.crs = None
        with pytest.raises(ValueError, match="GeoBox has no crs"):
            Grid.like(GeoBox())

    def test_an_array_with_longitude_and_latitude(self):
        array = xr.DataArray(
            np.zeros((3, 18, 36)),
            dims=("image", "latitude", "longitude"),
            coords={"latitude": 85.0 - 10 * np.arange(18), "longitude": -175.0 + 10 * np.arange(36)},
        )
        assert Grid.like(array) == Grid.globe(10.0)
        upside_down = array.isel(latitude=slice(None, None, -1))
        assert Grid.like(upside_down).transform.e == 10.0

    def test_an_array_whose_spatial_ref_stayed_a_variable_says_how_to_open_its_file(self):
        array = xr.DataArray(np.zeros((2, 2)), dims=("y", "x"), coords={"y": [1.0, 0.0], "x": [0.0, 1.0]})
        with pytest.raises(ValueError, match="decode_coords='all'"):
            Grid.like(array)

    def test_an_array_with_spatial_ref(self):
        x, y = UTM.centres
        reference = xr.DataArray(0, attrs={"crs_wkt": UTM.crs.to_wkt()})
        array = xr.DataArray(np.zeros(UTM.shape), dims=("y", "x"), coords={"y": y, "x": x, "spatial_ref": reference})
        assert Grid.like(array) == UTM
        with pytest.raises(ValueError, match="spatial_ref"):
            Grid.like(array.drop_vars("spatial_ref"))
        with pytest.raises(ValueError, match="evenly"):
            Grid.like(array.isel(x=[0, 1, 3]))
        with pytest.raises(ValueError, match="no coordinates"):
            Grid.like(array.drop_vars("x"))

    def test_a_stale_geotransform_of_a_cut_out_array_is_not_believed(self):
        x, y = UTM.centres
        t = UTM.transform
        attributes = {"crs_wkt": UTM.crs.to_wkt(), "GeoTransform": f"{t.c} {t.a} 0 {t.f} 0 {t.e}"}
        coords = {"y": y, "x": x, "spatial_ref": xr.DataArray(0, attrs=attributes)}
        array = xr.DataArray(np.zeros(UTM.shape), dims=("y", "x"), coords=coords)
        assert Grid.like(array.isel(x=slice(10, 20))) == UTM.window(slice(None), slice(10, 20))
        assert Grid.like(array.isel(x=[0])).shape == (100, 1)
        with pytest.raises(ValueError, match="no size"):
            Grid.like(array.isel(x=[7]))

    def test_the_path_of_a_raster(self, tmp_path):
        path = tmp_path / "scene.tif"
        options = {"driver": "GTiff", "width": 100, "height": 100, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", crs="EPSG:32632", transform=UTM.transform, **options) as raster:
            raster.write(np.zeros((1, 100, 100), dtype=np.uint8))
        assert Grid.like(path) == UTM
        assert Grid.like(str(path)) == UTM
        with rasterio.open(path) as raster:
            assert Grid.like(raster) == UTM


class TestCylinders:
    """Grids whose columns are meridians and whose rows are parallels, whatever their units."""

    @pytest.mark.parametrize(
        ("crs", "bounds", "resolution"),
        [
            (4326, (-30.0, -40.0, 50.0, 70.0), 5.0),
            (3857, (-20037508.342789244, -20037508.342789244, 20037508.342789244, 20037508.342789244), 1e6),
            (3857, (1.0e6, 6.0e6, 1.2e6, 6.3e6), 1e4),
            (3395, (-2e7, -1.5e7, 2e7, 1.5e7), 1e6),
            (4087, (-1e7, -1e7, 1.5e7, 1e7), 5e5),
            (6933, (-17367530.4451615, -7342230.1364987, 17367530.4451615, 7342230.1364987), 2e6),
            (6933, (-1e6, -7e6, 1e6, 7e6), (2e6, 1.4e7)),  # one raster cell
            ("+proj=cea +lat_ts=30 +lon_0=150 +datum=WGS84", (-9e6, -5e6, 9e6, 5e6), 1e6),
        ],
    )
    def test_edges_lie_where_the_projection_puts_them(self, crs, bounds, resolution):
        grid = Grid.from_bounds(*bounds, resolution, crs=crs)
        assert grid.is_cylindrical
        longitude, latitude = grid.degree_edges
        rows, columns = grid.shape
        column, row = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
        mean_longitude = 0.5 * (longitude[1:] + longitude[:-1])
        there, _ = sphere.to_longitude_latitude(grid.to_directions(column, row))
        assert np.abs(np.mod(there - mean_longitude + 180.0, 360.0) - 180.0).max() < 1e-8
        inner = np.clip(np.arange(rows + 1.0), 1e-9 * rows, rows * (1.0 - 1e-9))
        _, at_edges = sphere.to_longitude_latitude(grid.to_directions(columns / 3.0, inner))
        assert np.abs(at_edges - latitude).max() < 0.01  # where it goes with the root of y, at a pole
        assert np.abs(at_edges - latitude)[np.abs(latitude) < 89.0].max(initial=0.0) < 1e-5

    @pytest.mark.parametrize(
        ("crs", "bounds"),
        [
            (8857, (-1e7, -5e6, 1e7, 5e6)),
            (3035, (3e6, 2e6, 5e6, 4e6)),
            (32632, (4e5, 5e6, 6e5, 5.2e6)),
            (3031, (-1e6, -1e6, 1e6, 1e6)),
            ("+proj=tmerc +lon_0=10 +datum=WGS84", (-1e4, -1e4, 1e4, 1e4)),  # within 10 km of the equator
            (6933, (-2.2e7, -1e6, 2.2e7, 1e6)),  # goes on beyond the edges of the map
        ],
    )
    def test_nothing_else_is_one(self, crs, bounds):
        grid = Grid.from_bounds(*bounds, (bounds[2] - bounds[0]) / 8, crs=crs)
        assert not grid.is_cylindrical
        with pytest.raises(ValueError, match="no meridians"):
            _ = grid.degree_edges

    def test_a_turned_grid_is_none(self):
        assert not Grid((4, 4), (1e5, 1e4, 0.0, 1e4, -1e5, 0.0), 3857).is_cylindrical

    def test_rows_beyond_a_pole_are_empty(self):
        grid = Grid.from_bounds(-1e6, -8e6, 1e6, 8e6, 2e6, crs=6933)
        assert grid.degree_edges[1][[0, -1]].tolist() == [90.0, -90.0]
        below = Grid.from_bounds(-1e6, 8e6, 1e6, 9e6, 5e5, crs=6933)
        for south in (-8e6, 0.0):  # one edge of a row is on the map: it does not say where the north is
            assert not Grid.from_bounds(-1e6, south, 1e6, 8e6, (1e6, 8e6), crs=6933).is_cylindrical
        assert not below.is_cylindrical  # nothing of it is on the map
        turned = Grid((8, 2), (1e6, 0.0, -1e6, 0.0, 2e6, -8e6), 6933)  # the south on top
        assert turned.degree_edges[1][[0, -1]].tolist() == [-90.0, 90.0]
