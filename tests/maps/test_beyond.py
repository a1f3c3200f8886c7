"""Levels on windows: those of all probability, whatever part of it a window holds."""

import numpy as np
import pytest
import rasterio

from geo_mvmf import density_files, sphere
from geo_mvmf.maps import levels, stacks
from geo_mvmf.maps.beyond import Beyond, beyond
from geo_mvmf.maps.density import beyond_raster, density_raster
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import VmfMixture

KAPPA = np.exp(5.0)
ONE = VmfMixture(sphere.to_directions([10.0], [50.0]), [5.0], [[0.0]])
WINDOWS = {
    "nearly all": (-60.0, 0.0, 60.0, 85.0),
    "half": (10.0, 0.0, 60.0, 85.0),
    "beside it": (15.0, 50.0, 30.0, 60.0),
    "a crumb": (13.0, 52.0, 13.5, 52.5),
}


def exact_levels(grid):
    """Of a single component everything nearer to its mean is denser: a closed form."""
    longitude, latitude = grid.longitude_latitude()
    cosine = sphere.to_directions(longitude, latitude) @ ONE.mean_directions[0]
    return -np.expm1(KAPPA * (cosine - 1.0)) / -np.expm1(-2.0 * KAPPA)


@pytest.mark.parametrize("bounds", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("in_windows", [False, True])
def test_levels_do_not_depend_on_the_window(bounds, in_windows, monkeypatch):
    grid = Grid.from_bounds(*bounds, min(0.5, (bounds[2] - bounds[0]) / 20))
    if in_windows:
        monkeypatch.setattr(stacks, "IN_MEMORY_BYTES", 1)
        monkeypatch.setattr(stacks, "WINDOW_CELLS", 1 << 10)
        monkeypatch.setattr(stacks, "_ALIGNED", 16)
    raster = density_raster(ONE, grid)
    found = levels.credible_level_raster(raster, beyond_raster(ONE, raster))[0].to_numpy()
    assert found == pytest.approx(exact_levels(grid), abs=0.02)
    assert np.abs(found - exact_levels(grid)).mean() < 0.005


def test_the_twin_that_knows_the_window_alone_is_caught():
    grid = Grid.from_bounds(*WINDOWS["beside it"], 0.5)
    twin = levels.credible_level_raster(density_raster(ONE, grid))[0].to_numpy()
    assert np.abs(twin - exact_levels(grid)).min() > 0.1


def test_tiles_make_the_level_of_the_whole(tmp_path):
    rasters = []
    for name, (west, east) in {"whole": (-20.0, 30.0), "left": (-20.0, 5.0), "right": (5.0, 30.0)}.items():
        raster = density_raster(ONE, Grid.from_bounds(west, 35.0, east, 65.0, 0.5))
        density_files.write(tmp_path / f"{name}.tif", raster, ONE, {}, overwrite=False)
        with rasterio.open(tmp_path / f"{name}_level.tif") as file:
            rasters.append(file.read(1))
    whole, left, right = rasters
    assert np.hstack([left, right]) == pytest.approx(whole, abs=0.01)


def test_thresholds_of_a_window_are_those_of_all_probability(tmp_path):
    """The density at the border of a region of a single component: the peak times what is left outside."""
    grid = Grid.from_bounds(*WINDOWS["half"], 0.25)
    density_files.write(tmp_path / "half.tif", density_raster(ONE, grid), ONE, {}, overwrite=False)
    peak = KAPPA / (2.0 * np.pi) / sphere.EARTH_RADIUS_KM**2
    with rasterio.open(tmp_path / "half.tif") as file:
        tags = file.tags()
    for level in (0.5, 0.8, 0.9, 0.95):
        assert float(tags[f"CREDIBLE_DENSITY_{100 * level:g}"]) == pytest.approx((1.0 - level) * peak, rel=0.04)
    assert float(tags["PROBABILITY_SUM"]) == pytest.approx(0.5, abs=0.01)
    labels = (tmp_path / "half.qml").read_text()
    assert "outside the 95 % region" in labels
    assert "all that this map holds" not in labels


@pytest.mark.parametrize("kind", ["components", "cells"])
def test_what_lies_beyond_the_mean_of_an_album(kind):
    """Two places, of which the window shows one: half of the mean is beyond, at the density of the other."""
    places = sphere.to_directions([10.0, 100.0], [50.0, -20.0])
    with np.errstate(divide="ignore"):
        album = VmfMixture(places, [7.0, 7.0], np.log([[1.0, 0.0], [0.0, 1.0]]))
    if kind == "cells":
        album = album.to_cells(0.02)
    raster = density_raster(album, Grid.from_bounds(0.0, 40.0, 20.0, 60.0, 0.5), combine="mean")
    found = beyond_raster(album, raster)
    assert found.probability.sum() == pytest.approx(0.5, abs=0.01)
    peak = 0.5 * np.exp(7.0) / (2.0 * np.pi) / sphere.EARTH_RADIUS_KM**2
    assert found.densities.max() == pytest.approx(peak, rel=0.05)
    assert np.average(found.densities, weights=found.probability) == pytest.approx(0.5 * peak, rel=0.05)


def test_a_smoothed_density_is_smoothed_beyond_too():
    raster = density_raster(ONE, Grid.from_bounds(*WINDOWS["half"], 1.0), bandwidth_km=1000.0)
    sharp = beyond_raster(ONE, density_raster(ONE, Grid.from_bounds(*WINDOWS["half"], 1.0)))
    assert beyond_raster(ONE, raster).densities.max() < 0.5 * sharp.densities.max()


def test_nothing_is_beyond_the_globe_and_what_is_beyond_is_of_one_image():
    assert not beyond_raster(ONE, density_raster(ONE, Grid.globe(5.0))).densities.size
    two = VmfMixture(ONE.mean_directions, ONE.log_concentrations, np.zeros((2, 1)))
    with pytest.raises(ValueError, match="that of one image, and there are 2"):
        levels.credible_level_raster(density_raster(two, Grid.globe(30.0)), Beyond.nothing())


def test_what_a_projection_shows_twice_lies_within_once():
    """A window of the map of Switzerland that places of the far side would be projected into, too."""
    far = VmfMixture(sphere.to_directions([178.2], [-32.4]), [14.0], [[0.0]])
    grid = Grid.from_bounds(-2e7, -2e7, 2e7, 2e7, 1e6, crs="EPSG:2056")
    assert beyond(far, grid, 0.0).probability.sum() == pytest.approx(1.0)
