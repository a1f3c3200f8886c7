"""Frames: what `grid="auto"` shows, wherever the probability lies and however wide it is."""

import numpy as np
import pytest

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.maps import beyond, density, frames
from geo_mvmf.maps.frames import Frame
from geo_mvmf.mixture import CellMixture, VmfMixture


def frame(mixture, **wishes):
    return Frame(**wishes).of(mixture)


def peak(longitude, latitude, log_concentration):
    return VmfMixture(sphere.to_directions([longitude], [latitude]), [log_concentration], [[0.0]])


def held(mixture, grid):
    return float(density.density_raster(mixture, grid).probability_sum[0])


PLACES = {
    "tiny": (13.4, 52.5, 14.6),  # 90 % within 5 km
    "continental": (20.0, 50.0, 5.0),
    "across 180": (180.0, 0.0, 12.0),
    "west of 180": (-179.9, -60.0, 9.0),
    "north pole": (0.0, 90.0, 8.0),
    "beside the south pole": (50.0, -89.9, 9.0),
    "uniform": (0.0, 0.0, -5.0),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_a_frame_holds_99_per_cent_in_few_raster_cells(place):
    mixture = peak(*place)
    grid = frame(mixture, cells=128)
    assert 0.99 <= held(mixture, grid) <= 1.0 + 1e-6
    assert max(grid.shape) <= 128 * 4 / 3 + 2


@pytest.mark.parametrize("place", [PLACES["tiny"], PLACES["continental"], PLACES["across 180"]])
def test_a_frame_is_no_larger_than_it_need_be(place):
    """A square about a Gaussian holds 99 % at 2.81 sigma; a frame differs by its raster cells and its samples."""
    grid = frame(peak(*place))
    sigma = np.degrees(np.exp(-0.5 * place[2]))
    _, south, _, north = grid.bounds
    assert north - south == pytest.approx(2 * 2.81 * sigma, rel=0.08)
    width = abs(grid.transform.a * np.cos(np.radians(place[1])))
    assert 0.6 < width / abs(grid.transform.e) < 1.7  # about square on the ground
    assert max(grid.shape) > 150


def test_the_twin_that_is_too_small_is_caught(monkeypatch):
    """Without the spare for the samples' error, and with half of what lies outside, it holds less than it says."""
    monkeypatch.setattr(frames, "_SPARE", -10.0)
    mixture = peak(*PLACES["continental"])
    assert held(mixture, frame(mixture, cells=128)) < 0.99


def test_across_180_the_east_exceeds_180():
    grid = frame(peak(*PLACES["across 180"]))
    west, _, east, _ = grid.bounds
    assert -180.0 <= west < 180.0 < east < west + 2.0


def test_around_a_pole_a_frame_is_polar_and_elsewhere_geographic():
    assert frame(peak(0.0, 90.0, 8.0)).crs.to_epsg() == 3995
    assert frame(peak(77.0, -89.99, 9.0)).crs.to_epsg() == 3031
    assert frame(peak(77.0, -80.0, 12.0)).is_geographic
    assert frame(peak(77.0, -80.0, 2.0)).is_geographic


def test_the_globe_where_the_probability_is_everywhere():
    grid = frame(VmfMixture([[0.0, 0.0, 1.0]], [-20.0], [[0.0]]))
    assert grid.is_global
    assert grid.bounds[0] == -180.0


def test_far_crumbs_are_left_out_and_two_halves_are_not():
    directions = sphere.to_directions([2.35, 151.0], [48.86, -33.9])
    crumbs = VmfMixture(directions, [14.0, 14.0], np.log([[0.997, 0.003]]))
    halves = VmfMixture(directions, [14.0, 14.0], np.log([[0.5, 0.5]]))
    assert frame(crumbs).bounds[2] < 4.0
    west, south, east, north = frame(halves).bounds
    assert west < 2.35 < 151.0 < east
    assert south < -33.9 < 48.86 < north


def test_the_same_seed_gives_the_same_frame_and_cells_have_frames_too():
    mixture = peak(*PLACES["continental"])
    assert frame(mixture) == frame(mixture)
    cell = s2.cell_ids(sphere.to_directions(10.0, 50.0), 8)
    grid = frame(CellMixture([cell], [1.0], [0, 1]))
    column, row = grid.to_pixels(*sphere.to_longitude_latitude(s2.centre(cell)))
    assert 0 < column < grid.shape[1]
    assert 0 < row < grid.shape[0]


def test_auto_is_of_one_raster():
    two = VmfMixture(sphere.to_directions([10.0, 12.0], [50.0, 51.0]), [12.0, 12.0], np.log([[0.5, 0.5], [0.9, 0.1]]))
    one = density.density_raster(two[:1], "auto")
    assert 0.99 <= float(one.probability_sum[0]) <= 1.0
    mean = density.density_raster(two, "auto", combine="mean")
    assert 0.99 <= float(mean.probability_sum[0]) <= 1.0
    with pytest.raises(BadInputError, match="there are 2: give one image"):
        density.density_raster(two, "auto")


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (1, {"probability": 1.0}, "1.0 of a frame"),
        (1, {"cells": 4}, "frame of 4"),
        (0, {}, "frame of 0 images"),
        (1, {"resolution": 0.0}, "resolution 0.0 of a frame is not a positive number"),
        (1, {"resolution": 1000.0}, "degrees of EPSG:4326 are wanted"),
        (1, {"resolution": 0.001, "crs": "EPSG:3857"}, "take a window"),
    ],
)
def test_refusals(images, options, message):
    with pytest.raises(BadInputError, match=message):
        frame(peak(0.0, 0.0, 9.0)[:images], **options)


@pytest.mark.parametrize(
    ("place", "crs"),
    [
        ((9.0, 52.0, 9.0), "EPSG:3035"),
        ((9.0, 52.0, 9.0), "EPSG:25832"),
        ((-100.0, 40.0, 9.0), "EPSG:2163"),
        ((-75.0, 40.0, 12.0), "EPSG:2263"),  # in feet
        ((9.0, 52.0, 9.0), "EPSG:4258"),
        ((180.0, -17.0, 10.0), "EPSG:3832"),  # a Mercator map about longitude 150
        ((0.0, 90.0, 8.0), "EPSG:32661"),
    ],
)
def test_a_frame_in_a_chosen_crs_holds_99_per_cent(place, crs):
    mixture = peak(*place)
    grid = frame(mixture, crs=crs, cells=64)
    assert grid.crs.to_string() == crs
    assert 0.99 <= held(mixture, grid) <= 1.0 + 1e-3
    assert max(grid.shape) <= 64 * 4 / 3 + 2
    if not grid.is_geographic:
        assert grid.transform.a == -grid.transform.e


@pytest.mark.parametrize(("crs", "size"), [("EPSG:3035", 7000.0), ("EPSG:4326", 0.7), (None, 0.07)])
def test_a_frame_takes_the_size_of_its_raster_cells(crs, size):
    grid = frame(peak(9.0, 52.0, 10.0), crs=crs, resolution=size)
    assert (grid.transform.a, -grid.transform.e) == (size, size)
    assert all(edge / size == pytest.approx(round(edge / size), abs=1e-6) for edge in grid.bounds)


def test_the_globe_keeps_its_edges_where_the_size_does_not_divide_them():
    grid = frame(VmfMixture([[0.0, 0.0, 1.0]], [-20.0], [[0.0]]), resolution=0.7)
    assert grid.bounds == pytest.approx((-180.0, -90.0, 180.0, 90.0))
    assert grid.is_global


def test_a_crs_that_cannot_show_the_place_says_so():
    advice = "give bounds, or another CRS; it is made for longitudes 3.2 to 7.22"  # the Netherlands
    with pytest.raises(BadInputError, match=rf"EPSG:28992 can show 0% of .* has to hold 99%: {advice}"):
        frame(peak(-60.0, -10.0, 12.0), crs="EPSG:28992")
    with pytest.raises(BadInputError, match=r"EPSG:32632 can show 9[0-6]% of"):  # all but two places on the equator
        frame(peak(0.0, 0.0, -5.0), crs="EPSG:32632")


def test_a_place_that_comes_back_elsewhere_is_not_shown(monkeypatch):
    """The map of Switzerland has room for the far side of the Earth, but shows other places there."""
    mixture = peak(178.2, -32.4, 14.0)
    with pytest.raises(BadInputError, match="EPSG:2056 can show 0%"):
        frame(mixture, crs="EPSG:2056")
    monkeypatch.setattr(beyond, "_SAME_PLACE", 3.0)  # the broken twin
    assert held(mixture, frame(mixture, crs="EPSG:2056", cells=32)) < 0.01


def test_a_density_takes_a_frame_and_no_other_word():
    mixture = peak(9.0, 52.0, 10.0)
    raster = density.density_raster(mixture, Frame(crs="EPSG:3035", cells=32))
    assert raster.dims == ("image", "y", "x")
    assert 0.99 <= float(raster.probability_sum[0]) <= 1.0 + 1e-3
    with pytest.raises(UsageError, match="grid is 'globe': a Grid, a Frame or 'auto' is wanted"):
        density.density_raster(mixture, "globe")
