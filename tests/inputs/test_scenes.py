"""Scenes: where the pixels of a chip lie, what they hold, and which files are never opened.

The rasters here hold the direction (x, y, z) of each raster cell, so a chip tells by itself where it was cut; PROJ's
own azimuthal equidistant projection says where it should have been.
"""

import contextlib
import ctypes
import math
import os
import shutil
import socket
import threading
import warnings

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError, ImageError, OutputError, UsageError
from geo_mvmf.inputs import block_reader, ground_sampling, raster_files, scenes, tiled_raster

RADIUS_M = sphere.EARTH_RADIUS_KM * 1000.0
GLOBE = Affine(0.5, 0.0, -180.0, 0.0, -0.5, 90.0)


def write_raster(path, pixels, *, crs="EPSG:4326", transform=GLOBE, **options):
    """Write (B, H, W) as GeoTIFF."""
    profile = {"driver": "GTiff", "count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    with raster_files.safe_environment():
        given = rasterio.crs.CRS.from_user_input(pyproj.CRS(crs).to_wkt())
        with rasterio.open(
            path, "w", dtype=pixels.dtype.name, crs=given, transform=transform, **profile, **options
        ) as dataset:
            dataset.write(pixels)
    return path


def places_of_cells(crs, transform, height, width):
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    x = transform.a * columns + transform.b * rows + transform.c
    y = transform.d * columns + transform.e * rows + transform.f
    return pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform(x, y, errcheck=False)


def direction_raster(path, crs, transform, height, width):
    """A raster that holds the direction of each of its cells; NaN off the Earth."""
    places = places_of_cells(crs, transform, height, width)
    longitude, latitude = (np.where(np.isfinite(values), values, np.nan) for values in places)
    pixels = np.moveaxis(sphere.to_directions(longitude, latitude), -1, 0).astype(np.float32)
    return write_raster(path, pixels, crs=crs, transform=transform, nodata=math.nan)


def expected_directions(longitude, latitude, ground_km, size):
    """Directions of a chip's pixels, by PROJ."""
    step = ground_km * 1000.0 / size
    ticks = (np.arange(size) + 0.5) * step - ground_km * 500.0
    east, north = np.meshgrid(ticks, -ticks)
    local = pyproj.Proj(proj="aeqd", lon_0=longitude, lat_0=latitude, R=RADIUS_M)
    return sphere.to_directions(*local(east, north, inverse=True))


def misplacement(pixels, valid, longitude, latitude, ground_km):
    """Largest distance, in pixels of the chip, between where its pixels say they are and where they should be."""
    size = pixels.shape[1]
    found = np.moveaxis(pixels.astype(np.float64), 0, -1)[valid]
    found /= np.linalg.norm(found, axis=-1, keepdims=True)
    wanted = expected_directions(longitude, latitude, ground_km, size)[valid]
    return float(sphere.angle(found, wanted).max()) * sphere.EARTH_RADIUS_KM / (ground_km / size)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def globe(folder):
    return direction_raster(folder / "globe.tif", "EPSG:4326", GLOBE, 360, 720)


@pytest.fixture(scope="module")
def coarse(folder):
    """A global raster of 8 bits, three bands, with a little noise."""
    generator = np.random.default_rng(7)
    pixels = generator.integers(0, 256, (3, 180, 360)).astype(np.uint8)
    return write_raster(folder / "coarse.tif", pixels, transform=Affine(1.0, 0.0, -180.0, 0.0, -1.0, 90.0))


# ---------------------------------------------------------------------------------------------- where pixels lie


@pytest.mark.parametrize("latitude", [0.0, 31.4, 60.0, -75.0, 85.0, -89.3, 90.0, -90.0])
@pytest.mark.parametrize("longitude", [0.0, 123.4, 180.0, -179.97])
def test_chips_of_a_globe_lie_where_they_should(globe, longitude, latitude):
    with scenes.open_scene(globe) as scene:
        pixels, valid = scene.chip(longitude, latitude, ground_km=1200.0, size=24)
    assert valid.all()
    # the cells around a pole end at the pole: half a row has no neighbour
    assert misplacement(pixels, valid, longitude, latitude, 1200.0) < (0.1 if abs(latitude) > 84.0 else 0.02)


CASES = {
    "from 0 to 360": ("EPSG:4326", Affine(0.5, 0, 0.0, 0, -0.5, 90.0), 360, 720, [(0.1, 20.0), (180.0, 0.0)]),
    "south up": ("EPSG:4326", Affine(0.5, 0, -180.0, 0, 0.5, -90.0), 360, 720, [(10.0, 50.0), (179.9, -10.0)]),
    "over 180": ("EPSG:4326", Affine(0.25, 0, 165.0, 0, -0.25, 15.0), 120, 120, [(180.0, 0.0), (-179.0, 3.0)]),
    "another datum": ("EPSG:4267", Affine(0.1, 0, -110.0, 0, -0.1, 50.0), 200, 200, [(-100.0, 40.0)]),
    "UTM": ("EPSG:32633", Affine(4000.0, 0, 100e3, 0, -4000.0, 6.6e6), 400, 200, [(15.0, 55.0), (13.0, 53.0)]),
    "UTM turned": (
        "EPSG:32633",
        Affine(3000.0, 1500.0, 0.0, 1500.0, -3000.0, 6.3e6),
        300,
        300,
        [(15.0, 55.0)],
    ),
    "UTM over 180": ("EPSG:32601", Affine(4000.0, 0, 100e3, 0, -4000.0, 7.4e6), 200, 200, [(-179.9, 63.0)]),
    "Web Mercator": (
        "EPSG:3857",
        Affine(40075016.68 / 800, 0, -20037508.34, 0, -40075016.68 / 800, 20037508.34),
        800,
        800,
        [(10.0, 60.0), (180.0, 10.0), (-179.9, -70.0)],
    ),
    "south polar": ("EPSG:3031", Affine(2e4, 0, -4e6, 0, -2e4, 4e6), 400, 400, [(0.0, -90.0), (170.0, -75.0)]),
    "north polar": ("EPSG:3413", Affine(2e4, 0, -4e6, 0, -2e4, 4e6), 400, 400, [(-45.0, 90.0), (180.0, 71.0)]),
    "northing first": ("EPSG:31467", Affine(4000.0, 0, 3.3e6, 0, -4000.0, 5.9e6), 150, 120, [(9.5, 50.5)]),
}


@pytest.mark.parametrize("name", CASES)
def test_chips_of_any_crs_lie_where_they_should(tmp_path, name):
    crs, transform, height, width, places = CASES[name]
    path = direction_raster(tmp_path / "scene.tif", crs, transform, height, width)
    with scenes.open_scene(path) as scene:
        for longitude, latitude in places:
            ground_km = 16 * scene.pixel_km
            pixels, valid = scene.chip(longitude, latitude, ground_km=ground_km, size=16)
            assert valid.all()
            # at longitude 180 a projected raster ends; half a cell has no neighbour there
            limit = 0.25 if name == "Web Mercator" and abs(longitude) > 170.0 else 0.1
            assert misplacement(pixels, valid, longitude, latitude, ground_km) < limit


def test_a_pole_of_the_raster_is_a_place_like_any_other(tmp_path):
    """A cap of cells around the pole in longitude and latitude, seen from across the pole."""
    path = direction_raster(tmp_path / "cap.tif", "EPSG:4326", Affine(1, 0, 0, 0, -0.25, 90.0), 80, 360)
    with scenes.open_scene(path) as scene:
        pixels, valid = scene.chip(37.0, 89.0, ground_km=600.0, size=20)
    assert valid.all()
    assert misplacement(pixels, valid, 37.0, 89.0, 600.0) < 0.1


def scale_error(cut, latitude):
    """Relative error of the distance between a chip's centre and the middle of its east edge."""
    ground_km, size = 800.0, 41
    pixels = cut(0.0, latitude, ground_km, size)
    ends = [pixels[:, size // 2, column].astype(np.float64) for column in (size // 2, size - 1)]
    directions = np.array(ends) / np.linalg.norm(ends, axis=1, keepdims=True)
    distance = float(sphere.angle(*directions)) * sphere.EARTH_RADIUS_KM
    return abs(distance / (ground_km * (size // 2) / size) - 1.0)


@pytest.mark.parametrize("latitude", [0.0, 60.0, 85.0])
def test_chips_are_true_to_scale(globe, latitude):
    with scenes.open_scene(globe) as scene:

        def cut(longitude, latitude, ground_km, size):
            return scene.chip(longitude, latitude, ground_km=ground_km, size=size)[0]

        assert scale_error(cut, latitude) < 1e-3


def test_a_window_of_fixed_degrees_is_caught(globe):
    """The broken twin: what most tilers do."""
    with rasterio.open(globe, driver="GTiff") as dataset:
        pixels = dataset.read()

    def fixed_degrees(longitude, latitude, ground_km, size):
        half = ground_km / 111.19 / 2.0
        ticks = (np.arange(size) + 0.5) / size * 2.0 - 1.0
        columns = ((longitude + ticks * half + 180.0) / 0.5).astype(int)
        rows = ((90.0 - latitude - ticks[::-1] * half) / 0.5).astype(int)
        return pixels[:, rows[:, None], columns[None, :]]

    assert scale_error(fixed_degrees, 0.0) < 0.02
    assert scale_error(fixed_degrees, 60.0) > 0.4


def test_cells_and_places_are_inverse(globe):
    with scenes.open_scene(globe) as scene:
        assert scene.contains([0.0, 179.9], [89.0, -89.9]).all()
        assert scene.centre == (0.0, 0.0)
        assert scene.ground_size_km == pytest.approx((40030.23, 20015.11), abs=0.1)
        assert scene.pixel_km == pytest.approx(0.5 * math.radians(1) * sphere.EARTH_RADIUS_KM, rel=1e-4)
        assert (scene.bounds, scene.count, scene.dtype) == ((-180.0, -90.0, 180.0, 90.0), 3, np.float32)


# ------------------------------------------------------------------------------------------------ what they hold


def local_raster(path, pixels, cell_km, longitude=20.0, latitude=50.0, **options):
    """A raster in the azimuthal equidistant projection about its own centre."""
    size = pixels.shape[1]
    step, half = cell_km * 1000.0, cell_km * 500.0 * size
    crs = pyproj.CRS.from_dict({"proj": "aeqd", "lon_0": longitude, "lat_0": latitude, "R": RADIUS_M})
    return write_raster(path, pixels, crs=crs, transform=Affine(step, 0, -half, 0, -step, half), **options)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_chip_in_the_rasters_own_projection_is_its_block_mean(tmp_path, factor, kind):
    generator = np.random.default_rng(factor)
    pixels = generator.integers(0, 120, (2, 40, 40)).astype(kind)
    path = local_raster(tmp_path / "a.tif", pixels, cell_km=2.0)
    with scenes.open_scene(path) as scene:
        chip, valid = scene.chip(20.0, 50.0, ground_km=80.0, size=40 // factor)
    side = 40 // factor
    means = pixels.astype(np.float64).reshape(2, side, factor, side, factor).mean(axis=(2, 4))
    # in the raster's projection a linear interpolation at block centres is the block itself
    inner = (slice(None), slice(1, -1), slice(1, -1))
    assert valid.all()
    assert chip.dtype == kind
    tolerance = 0.500001 if np.dtype(kind).kind != "f" else 1e-3
    assert np.abs(chip[inner] - means[inner]).max() <= tolerance


def stripes(path, period, axis):
    """A global raster of sine waves along longitude or latitude; the period is in raster cells."""
    wave = 127.0 + 100.0 * np.sin(2 * np.pi * np.arange(3600 if axis else 1800) / period)
    pixels = np.broadcast_to(wave if axis else wave[:, None], (1, 1800, 3600)).astype(np.float32)
    return write_raster(path, pixels, transform=Affine(0.1, 0, -180.0, 0, -0.1, 90.0))


def ripple(cut, latitude):
    return float(cut(11.3, latitude).std())


@pytest.mark.parametrize("latitude", [0.0, 45.0, 70.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_detail_finer_than_a_pixel_does_not_alias(folder, axis, latitude):
    path = folder / f"fine{axis}.tif"
    if not path.exists():
        stripes(path, 2.6, axis)
    with scenes.open_scene(path) as scene:
        # one pixel of the chip is 8.3 raster cells at the equator
        assert ripple(lambda *p: scene.chip(*p, ground_km=92.4 * 24, size=24)[0], latitude) < 4.0
    with rasterio.open(path, driver="GTiff") as dataset:
        pixels = dataset.read(1)

    def nearest(longitude, latitude):
        """The broken twin: one raster cell for each pixel."""
        wanted = expected_directions(longitude, latitude, 92.4 * 24, 24)
        lam, phi = sphere.to_longitude_latitude(wanted)
        return pixels[((90.0 - phi) / 0.1).astype(int), ((lam + 180.0) / 0.1).astype(int)]

    assert ripple(nearest, latitude) > 50.0


def test_detail_coarser_than_a_pixel_stays(tmp_path):
    path = stripes(tmp_path / "coarse.tif", 80.0, 1)
    with scenes.open_scene(path) as scene:
        chip, _ = scene.chip(11.3, 0.0, ground_km=88.96 * 24, size=24)  # 8 cells a pixel, 10 pixels a wave
    assert float(chip.std()) == pytest.approx(100.0 / math.sqrt(2.0), rel=0.06)


def test_nodata_is_neither_mixed_in_nor_valid(tmp_path):
    pixels = np.full((2, 60, 60), 50, dtype=np.uint8)
    pixels[:, :, 30:] = 200
    pixels[0, 20:40, 10:40] = 7  # the first band's hole counts for both
    path = local_raster(tmp_path / "holes.tif", pixels, cell_km=1.0, nodata=7)
    with scenes.open_scene(path) as scene:
        chip, valid = scene.chip(20.0, 50.0, ground_km=60.0, size=60)
    hole = np.zeros((60, 60), bool)
    hole[20:40, 10:40] = True
    assert np.array_equal(valid, ~hole)
    assert set(np.unique(chip[:, valid])) == {50, 200}
    assert (chip[:, hole] == 0).all()


@pytest.mark.parametrize("how", ["alpha", "mask", "nan", "bigger blocks"])
def test_every_kind_of_missing_data_is_known(tmp_path, how):
    pixels = np.full((1, 40, 40), 90, dtype=np.float32 if how == "nan" else np.uint8)
    hole = np.zeros((40, 40), bool)
    hole[8:20, 16:32] = True
    path = tmp_path / "a.tif"
    if how == "alpha":
        alpha = np.where(hole, 0, 255).astype(np.uint8)
        local_raster(path, np.stack([pixels[0], alpha]), 1.0)
        with rasterio.open(path, "r+", driver="GTiff") as dataset:
            dataset.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
    elif how == "nan":
        pixels[:, hole] = np.nan
        local_raster(path, pixels, 1.0)
    else:
        local_raster(path, pixels, 1.0)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+", driver="GTiff") as dataset:
            dataset.write_mask(~hole)
    size = 10 if how == "bigger blocks" else 40
    with scenes.open_scene(path) as scene:
        assert scene.colour_bands == (1,)
        chip, valid = scene.chip(20.0, 50.0, ground_km=40.0, size=size)
    assert np.array_equal(valid, ~(hole[::4, ::4] if size == 10 else hole))
    assert chip.shape == (1, size, size)
    assert set(np.unique(chip[:, valid])) == {90}


def test_outside_the_raster_nothing_is_valid(tmp_path):
    path = local_raster(tmp_path / "a.tif", np.full((1, 20, 20), 9, np.uint8), 1.0)
    with scenes.open_scene(path) as scene:
        _, half = scene.chip(*sphere_point(20.0, 50.0, 90.0, 10.0), ground_km=16.0, size=16)
        _, none = scene.chip(-100.0, -20.0, ground_km=16.0, size=16)
    assert half.mean() == pytest.approx(0.5, abs=0.07)
    assert half[:, 0].all()
    assert not half[:, -1].any()
    assert not none.any()


def sphere_point(longitude, latitude, bearing, distance_km):
    return tuple(float(value) for value in sphere.destination(longitude, latitude, bearing, distance_km))


def test_bands_are_taken_in_the_order_asked(coarse):
    with scenes.open_scene(coarse) as scene:
        everything, _ = scene.chip(5.0, 5.0, ground_km=2000.0, size=8)
        two, _ = scene.chip(5.0, 5.0, ground_km=2000.0, size=8, bands=(3, 1))
    assert np.array_equal(two, everything[[2, 0]])


def test_a_raster_in_memory_gives_the_same_chips(coarse, monkeypatch):
    generator = np.random.default_rng(3)
    places = list(zip(generator.uniform(-180, 180, 60), generator.uniform(-90, 90, 60), strict=True))

    def cut():
        with scenes.open_scene(coarse) as scene:
            chips = [scene.chip(*place, ground_km=3000.0, size=12) for place in places]
            return chips, bool(scene._reader._kept)

    kept, was_kept = cut()
    monkeypatch.setattr(block_reader, "_MOST_KEPT_BYTES", 0)
    monkeypatch.setattr(block_reader, "_MOST_CELLS_AT_ONCE", 100)
    monkeypatch.setattr(scenes, "_MOST_SAMPLES_AT_ONCE", 50)
    read, was_read = cut()
    assert was_kept
    assert not was_read
    for (a, valid_a), (b, valid_b) in zip(kept, read, strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(valid_a, valid_b)


def test_percentiles_are_those_of_the_values(tmp_path):
    pixels = np.random.default_rng(0).normal(size=(2, 300, 300)).astype(np.float32)
    pixels[1] += 10.0
    path = local_raster(tmp_path / "a.tif", pixels, 1.0)
    with scenes.open_scene(path) as scene:
        found = scene.percentiles(2.0, 98.0, seed=1)
        assert found == scene.percentiles(2.0, 98.0, seed=1)
    for band, pair in zip(pixels, found, strict=True):
        assert pair == pytest.approx(np.percentile(band, [2, 98]), abs=0.05)


def test_a_footprint_is_measured_along_the_axes():
    grid = np.zeros((3, 1, 1))
    turned = ground_sampling.measure_footprint(
        grid + np.array([0.0, 5.0, 5.0])[:, None, None], grid + np.array([0.0, -5.0, 5.0])[:, None, None]
    )
    assert (turned.block_columns, turned.block_rows) == (7, 7)  # a square turned by 45 degrees, side 7.07
    unknown = ground_sampling.measure_footprint(grid + np.nan, grid + np.nan)
    assert unknown == ground_sampling.Footprint(1, 1, 1, 1)


# ---------------------------------------------------------------------------------------------------- footprints


FOOTPRINTS = {
    "a box": ("EPSG:4326", Affine(1, 0, 10, 0, -1, 50), 10, 20, (10.0, 40.0, 30.0, 50.0), 1, 200.0),
    "the globe": ("EPSG:4326", GLOBE, 360, 720, (-180.0, -90.0, 180.0, 90.0), 1, 64800.0),
    "over 180": ("EPSG:4326", Affine(1, 0, 170, 0, -1, 5), 10, 20, (-180.0, -5.0, 180.0, 5.0), 2, 200.0),
    "Fiji in UTM": ("EPSG:32760", Affine(5e3, 0, 2e5, 0, -5e3, 8.2e6), 100, 200, None, 2, None),
    "around the pole": ("EPSG:3031", Affine(2e4, 0, -2e6, 0, -2e4, 2e6), 200, 200, None, 1, None),
    "beside the pole": ("EPSG:3031", Affine(2e4, 0, 2e5, 0, -2e4, 2e6), 50, 50, None, 1, None),
}


@pytest.mark.parametrize("name", FOOTPRINTS)
def test_the_footprint_contains_what_the_raster_contains(tmp_path, name):
    crs, transform, height, width, bounds, parts, area = FOOTPRINTS[name]
    path = write_raster(tmp_path / "a.tif", np.zeros((1, height, width), np.uint8), crs=crs, transform=transform)
    with scenes.open_scene(path) as scene:
        outline = scene.footprint()
        assert outline.is_valid
        assert len(shapely.get_parts(outline)) == parts
        if bounds is not None:
            assert outline.bounds == pytest.approx(bounds)
            assert outline.area == pytest.approx(area)
        lam, phi = sphere.to_longitude_latitude(sphere.random_directions(20000, np.random.default_rng(1)))
        near = np.abs(scene.contains(lam, phi).astype(int) - shapely.contains_xy(outline, lam, phi).astype(int))
        assert near.sum() <= 4  # the outline's edges have 256 points each


def test_a_world_map_in_an_oval_projection_is_the_whole_earth(tmp_path):
    path = direction_raster(tmp_path / "m.tif", "ESRI:54009", Affine(1e5, 0, -1.8e7, 0, -1e5, 9e6), 180, 360)
    with scenes.open_scene(path) as scene:
        assert scene.footprint().area == 64800.0
        pixels, valid = scene.chip(20.0, 30.0, ground_km=2000.0, size=16)
        assert valid.all()
        assert misplacement(pixels, valid, 20.0, 30.0, 2000.0) < 0.1


# -------------------------------------------------------------------------------------------------------- tiles


def split(source, out, rows, columns, *, leave_out=()):
    """Cut a GeoTIFF into tiles."""
    out.mkdir()
    with rasterio.open(source, driver="GTiff") as dataset:
        pixels, transform, crs = dataset.read(), dataset.transform, dataset.crs
    for i, band in enumerate(np.array_split(np.arange(pixels.shape[1]), rows)):
        for j, strip in enumerate(np.array_split(np.arange(pixels.shape[2]), columns)):
            if (i, j) in leave_out:
                continue
            west, north = transform.c + transform.a * strip[0], transform.f + transform.e * band[0]
            corner = Affine(transform.a, 0, west, 0, transform.e, north)
            part = pixels[:, band[0] : band[-1] + 1, strip[0] : strip[-1] + 1]
            write_raster(out / f"tile_{j}_{i}.tif", part, crs=crs.to_wkt(), transform=corner)
    return out


@pytest.mark.parametrize("limit", [64, 2])
def test_a_folder_of_tiles_is_one_raster_bit_for_bit(coarse, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(tiled_raster, "_MOST_OPEN_FILES", limit)
    tiles = split(coarse, tmp_path / "tiles", 3, 4)
    (tiles / "readme.txt").write_text("not a tile")
    generator = np.random.default_rng(2)
    before = sorted(tiles.iterdir())
    with scenes.open_scene(coarse) as one, scenes.open_scene(tiles) as many:
        assert (many.width, many.height, many.transform) == (one.width, one.height, one.transform)
        for _ in range(30):
            place = generator.uniform(-180, 180), generator.uniform(-90, 90)
            a, valid_a = one.chip(*place, ground_km=2500.0, size=10)
            b, valid_b = many.chip(*place, ground_km=2500.0, size=10)
            assert np.array_equal(a, b)
            assert np.array_equal(valid_a, valid_b)
    assert sorted(tiles.iterdir()) == before  # no VRT, no sidecar


def test_a_missing_tile_is_no_data_and_overlaps_go_to_the_first(coarse, tmp_path):
    tiles = split(coarse, tmp_path / "tiles", 2, 3, leave_out={(0, 0)})
    other = write_raster(
        tmp_path / "over.tif", np.full((3, 90, 180), 1, np.uint8), transform=Affine(1, 0, 0, 0, -1, 90)
    )
    paths = [other, *sorted(tiles.iterdir())]
    with scenes.open_scene(paths) as scene, scenes.open_scene(coarse) as whole:
        _, nothing = scene.chip(-120.0, 45.0, ground_km=1000.0, size=6)
        first, _ = scene.chip(90.0, 45.0, ground_km=1000.0, size=6)
        south, _ = scene.chip(90.0, -45.0, ground_km=1000.0, size=6)
        assert not nothing.any()
        assert (first == 1).all()
        assert np.array_equal(south, whole.chip(90.0, -45.0, ground_km=1000.0, size=6)[0])


MISFITS = {
    "CRS": ({"crs": "EPSG:4258"}, "EPSG:4258", "EPSG:4326"),
    "bands": ({"bands": 2}, "bands 2", "is not 3"),
    "type": ({"kind": np.uint16}, "uint16", "uint8"),
    "resolution": ({"transform": Affine(0.5, 0, 10, 0, -0.5, 10)}, "(0.5, 0.5)", "(1.0, 1.0)"),
    "grid": ({"transform": Affine(1.0, 0, 10.4, 0, -1.0, 10)}, "0.4 raster cells", "(-180.0, 90.0)"),
}


@pytest.mark.parametrize("what", MISFITS)
def test_tiles_that_do_not_agree_are_refused_naming_both(coarse, tmp_path, what):
    change, here, there = MISFITS[what]
    pixels = np.zeros((change.get("bands", 3), 20, 20), change.get("kind", np.uint8))
    transform = change.get("transform", Affine(1, 0, 10, 0, -1, 10))
    odd = write_raster(tmp_path / "odd.tif", pixels, crs=change.get("crs", "EPSG:4326"), transform=transform)
    with pytest.raises(BadInputError) as caught:
        scenes.open_scene([coarse, odd])
    message = str(caught.value)
    assert here in message
    assert there in message
    assert str(odd) in message
    assert str(coarse) in message


def test_sources_without_a_raster_are_refused(tmp_path):
    with pytest.raises(BadInputError, match="holds no raster"):
        scenes.open_scene(tmp_path)
    with pytest.raises(BadInputError, match="empty list"):
        scenes.open_scene([])
    with pytest.raises(ImageError, match="no such file"):
        scenes.open_scene([tmp_path / "a.tif", tmp_path / "b.tif"])


# ------------------------------------------------------------------------------------------- giving it a place


def test_georeference_keeps_the_pixels_and_adds_the_place(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 180, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "world.png")
    out = scenes.georeference(tmp_path / "world.png", tmp_path / "w.tif", bounds=(-180, -90, 180, 90))
    with rasterio.open(out, driver="GTiff") as dataset:
        assert np.array_equal(dataset.read(), pixels.transpose(2, 0, 1))
        assert dataset.crs.to_epsg() == 4326
        assert tuple(dataset.transform)[:6] == (2.0, 0.0, -180.0, 0.0, -2.0, 90.0)
        assert dataset.profile["tiled"]
    assert scenes.is_scene(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.tif", "world.png"]
    with pytest.raises(OutputError, match="exists already"):
        scenes.georeference(tmp_path / "world.png", out, bounds=(-180, -90, 180, 90))
    with pytest.raises(UsageError, match="west < east"):
        scenes.georeference(tmp_path / "world.png", tmp_path / "x.tif", bounds=(180, -90, -180, 90))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_plain_picture_has_no_place_unless_given(tmp_path, suffix):
    path = tmp_path / f"map.{suffix}"
    Image.new("RGB", (36, 18), (9, 9, 9)).save(path)
    assert not scenes.is_scene(path)
    with pytest.raises(BadInputError, match="no place"):
        scenes.open_scene(path)
    with pytest.raises(UsageError, match="give crs too"):
        scenes.open_scene(path, bounds=(-180, -90, 180, 90))
    with scenes.open_scene(path, bounds=(-180, -90, 180, 90), crs="EPSG:4326") as scene:
        assert scene.chip(0.0, 0.0, ground_km=500.0, size=4)[0].tolist() == [[[9] * 4] * 4] * 3


def test_a_world_file_counts_only_with_a_crs(tmp_path):
    path = tmp_path / "map.jpg"
    Image.new("RGB", (36, 18)).save(path)
    path.with_suffix(".jgw").write_text("10\n0\n0\n-10\n-175\n85\n")
    assert not scenes.is_scene(path)
    with pytest.raises(BadInputError, match="no place"):
        scenes.open_scene(path)
    with scenes.open_scene(path, crs="OGC:CRS84") as scene:
        assert scene.bounds == (-180.0, -90.0, 180.0, 90.0)
    path.with_suffix(".jgw").write_text("10 0 0 -10 -175")
    with pytest.raises(BadInputError, match="six numbers"):
        scenes.open_scene(path, crs="OGC:CRS84")
    path.with_suffix(".jgw").write_text("0 0 0 -10 -175 85")
    with pytest.raises(BadInputError, match="its transform"):
        scenes.open_scene(path, crs="OGC:CRS84")
    path.with_suffix(".jgw").unlink()
    with pytest.raises(BadInputError, match="world file"):
        scenes.open_scene(path, crs="OGC:CRS84")


def test_jpeg_2000_is_a_scene(tmp_path):
    path = tmp_path / "a.jp2"
    profile = {"driver": "JP2OpenJPEG", "width": 64, "height": 64, "count": 1, "dtype": "uint8", "QUALITY": "100"}
    with raster_files.safe_environment(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path, "w", crs="EPSG:32633", transform=Affine(1000, 0, 4e5, 0, -1000, 6e6), REVERSIBLE="YES", **profile
        ) as dataset:
            dataset.write(np.full((1, 64, 64), 77, np.uint8))
    assert scenes.is_scene(path)
    with scenes.open_scene(path) as scene:
        chip, valid = scene.chip(*scene.centre, ground_km=20.0, size=8)
    assert valid.all()
    assert (chip == 77).all()


# ------------------------------------------------------------------------------------------------ hostile files


class Watched:
    """Tells whether the system opened a file, by inotify, whoever asked for it."""

    def __init__(self, path):
        self._library = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._library.inotify_init1(os.O_NONBLOCK)
        if self._descriptor < 0 or self._library.inotify_add_watch(self._descriptor, os.fsencode(path), 0x21) < 0:
            pytest.skip("no inotify here")

    def opened(self):
        try:
            return len(os.read(self._descriptor, 65536)) > 0
        except BlockingIOError:
            return False

    def close(self):
        os.close(self._descriptor)


@pytest.fixture
def secret(tmp_path):
    path = write_raster(tmp_path / "secret.tif", np.full((1, 64, 64), 42, np.uint8))
    watched = Watched(path)
    watched.path = path
    yield watched
    watched.close()


@pytest.fixture
def listener():
    """A port of this machine that counts who connects."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.05)
    hits, stop = [], threading.Event()

    def serve():
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = server.accept()
                hits.append(1)
                connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    yield server.getsockname()[1], hits
    stop.set()
    thread.join()
    server.close()


def vrt(target):
    return (
        '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:4326</SRS>'
        "<GeoTransform>-180,0.5,0,90,0,-0.5</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{target}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def wms(port):
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:{port}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>'
        "<DataWindow><UpperLeftX>-180</UpperLeftX><UpperLeftY>90</UpperLeftY><LowerRightX>180</LowerRightX>"
        "<LowerRightY>-90</LowerRightY><TileLevel>2</TileLevel></DataWindow><Projection>EPSG:4326</Projection>"
        "<BlockSizeX>256</BlockSizeX><BlockSizeY>256</BlockSizeY><BandsCount>3</BandsCount></GDAL_WMS>"
    )


@pytest.mark.parametrize("name", ["photo.jpg", "scene.tif", "scene.png", "scene.jp2", "scene.vrt"])
@pytest.mark.parametrize("kind", ["vrt", "remote vrt", "wms", "gti", "text"])
def test_disguised_files_are_refused(tmp_path, secret, listener, name, kind):
    port, hits = listener
    text = {
        "vrt": vrt(secret.path),
        "remote vrt": vrt(f"/vsicurl/http://127.0.0.1:{port}/a.tif"),
        "wms": wms(port),
        "gti": f"<GDALTileIndexDataset><IndexDataset>{secret.path}</IndexDataset></GDALTileIndexDataset>",
        "text": "path,longitude,latitude\n",
    }[kind]
    path = tmp_path / name
    path.write_text(text)
    assert not scenes.is_scene(path)
    with pytest.raises(BadInputError, match=r"not a raster"):
        scenes.open_scene(path)
    with pytest.raises(BadInputError, match=r"not a raster"):
        scenes.open_scene([path, secret.path])
    with pytest.raises(BadInputError, match=r"not a raster"):
        scenes.georeference(path, tmp_path / "out.tif", bounds=(-180, -90, 180, 90))
    assert not secret.opened()
    assert hits == []


def test_an_open_without_the_allowlist_is_caught(tmp_path, secret):
    """The broken twin: rasterio as most programs call it reads another file through a VRT named .jpg."""
    path = tmp_path / "photo.jpg"
    path.write_text(vrt(secret.path))
    with rasterio.open(path) as dataset:
        assert (dataset.read() == 42).all()
    assert secret.opened()


def overview_attack(path, target):
    write_raster(path, np.full((1, 512, 512), 7, np.uint8), transform=Affine(0.1, 0, -180, 0, -0.1, 90))
    with rasterio.open(path, "r+", driver="GTiff") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(target))


def test_a_tiff_that_names_its_overviews_is_refused(tmp_path, secret):
    path = tmp_path / "a.tif"
    overview_attack(path, secret.path)
    with rasterio.open(path, driver="GTiff") as dataset:
        dataset.read(out_shape=(1, 8, 8))
    assert secret.opened()  # the allowlist alone does not stop it
    assert not scenes.is_scene(path)
    with pytest.raises(BadInputError, match="overviews"):
        scenes.open_scene(path)
    assert not secret.opened()


@pytest.mark.parametrize("suffix", [".msk", ".ovr", ".aux.xml", ".aux"])
def test_neighbours_of_a_raster_are_invisible(tmp_path, secret, suffix):
    path = write_raster(tmp_path / "a.tif", np.full((1, 256, 256), 7, np.uint8))
    text = vrt(secret.path)
    if suffix == ".msk":
        text = text.replace("<SRS>", '<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata><SRS>')
    if suffix == ".aux.xml":
        text = (
            '<PAMDataset><SRS>EPSG:3857</SRS><GeoTransform>0,1,0,0,0,-1</GeoTransform><Metadata domain="OVERVIEWS">'
            f'<MDI key="OVERVIEW_FILE">{secret.path}</MDI></Metadata></PAMDataset>'
        )
    path.with_name(path.name + suffix).write_text(text)
    with scenes.open_scene(path) as scene:
        assert scene.bounds == (-180.0, -38.0, -52.0, 90.0)
        chip, valid = scene.chip(-120.0, 20.0, ground_km=8000.0, size=8)
    assert valid.all()
    assert (chip == 7).all()
    assert not secret.opened()


ADDRESSES = [
    "http://127.0.0.1:{port}/a.tif",
    "https://127.0.0.1:{port}/a.tif",
    "ftp://127.0.0.1:{port}/a.tif",
    "s3://bucket/a.tif",
    "zip+http://127.0.0.1:{port}/a.zip!a.tif",
    "file://{secret}",
    "/vsicurl/http://127.0.0.1:{port}/a.tif",
    "/vsizip/{secret}",
    "/vsistdin/",
    "/VSIMEM/a.tif",
    "\\vsicurl\\http://127.0.0.1:{port}/a.tif",
    "GTIFF_RAW:{secret}",
    "GTIFF_DIR:1:{secret}",
    "NETCDF:{secret}:a",
    'HDF5:"{secret}"://a',
    "VRT:{secret}",
    "WMS:http://127.0.0.1:{port}/",
    "WMTS:http://127.0.0.1:{port}/",
    "vrt://{secret}",
    "<VRTDataset/>",
    '{{"type": "TileIndex"}}',
    "",
    "a\0.tif",
    "/dev/zero",
    "/proc/self/mem",
]


@pytest.mark.parametrize("text", ADDRESSES)
def test_addresses_and_driver_prefixes_are_no_files(secret, listener, text):
    port, hits = listener
    source = text.format(port=port, secret=secret.path)
    assert not scenes.is_scene(source)
    for attempt in (source, [source]):
        with pytest.raises(BadInputError):
            scenes.open_scene(attempt)
    assert not secret.opened()
    assert hits == []


def test_pipes_and_links_out_of_a_folder_are_refused(tmp_path, coarse):
    pipe = tmp_path / "a.tif"
    os.mkfifo(pipe)
    assert not scenes.is_scene(pipe)
    with pytest.raises(ImageError, match="pipe"):
        scenes.open_scene(pipe)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.tif").symlink_to(coarse)
    assert scenes.is_scene(inside / "link.tif")
    assert not scenes.is_scene(inside / "link.tif", inside=[inside])


@pytest.mark.parametrize("crs", ["http://127.0.0.1/crs", "/etc/passwd", "+proj=longlat", "EPSG:999999", "EPSG:4326\0"])
def test_a_crs_is_a_code(tmp_path, crs):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="crs"):
        scenes.open_scene(tmp_path / "a.png", bounds=(0, 0, 1, 1), crs=crs)


def test_truncated_rasters_are_bad_input_at_any_length(coarse, tmp_path):
    data = coarse.read_bytes()
    path = tmp_path / "cut.tif"
    for length in [0, 1, 8, 100, 200, 400, 1000, len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(BadInputError), scenes.open_scene(path) as scene:
            scene.chip(0.0, 0.0, ground_km=19_000.0, size=32)


def test_a_truncated_jpeg_is_bad_input(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (180, 360, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInputError, match="cannot be read"):
        scenes.georeference(tmp_path / "a.jpg", tmp_path / "a.tif", bounds=(-180, -90, 180, 90))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def test_rasters_whose_values_are_no_measurements_are_refused(tmp_path):
    palette = write_raster(tmp_path / "p.tif", np.zeros((1, 8, 8), np.uint8))
    with rasterio.open(palette, "r+", driver="GTiff") as dataset:
        dataset.write_colormap(1, {0: (0, 0, 0), 1: (255, 0, 0)})
    with pytest.raises(BadInputError, match="colour table"):
        scenes.open_scene(palette)
    waves = write_raster(tmp_path / "c.tif", np.zeros((1, 8, 8), np.complex64))
    with pytest.raises(BadInputError, match="complex64"):
        scenes.open_scene(waves)


def test_a_file_without_crs_or_transform_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", width=4, height=4, count=1, dtype="uint8", crs="EPSG:4326"
        ) as dataset:
            dataset.write(np.zeros((1, 4, 4), np.uint8))
    with pytest.raises(BadInputError, match="no place"):
        scenes.open_scene(tmp_path / "a.tif")
    shutil.copy(tmp_path / "a.tif", tmp_path / "b.tif")
    with scenes.open_scene(tmp_path / "b.tif", bounds=(0, 0, 1, 1), crs="EPSG:4326") as scene:
        assert scene.centre == (0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ground_km": 0.0}, "ground_km 0.0"),
        ({"ground_km": 25_000.0}, "ground_km 25000"),
        ({"ground_km": math.nan}, "ground_km nan"),
        ({"size": 0}, "size 0"),
        ({"bands": (4,)}, "bands \\[4\\]"),
        ({"bands": ()}, "bands \\[\\]"),
        ({"longitude": math.nan}, "chip centre"),
        ({"latitude": 90.5}, "chip centre"),
    ],
)
def test_wrong_options_are_named(coarse, options, message):
    wishes = {"longitude": 0.0, "latitude": 0.0, "ground_km": 100.0, "size": 4} | options
    with scenes.open_scene(coarse) as scene, pytest.raises(UsageError, match=message):
        scene.chip(wishes.pop("longitude"), wishes.pop("latitude"), **wishes)
