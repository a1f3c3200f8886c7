"""Density rasters hold integrals: their mass at any size of raster cell, the twin that samples, and what is shared."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf import sphere
from geo_mvmf.maps import density
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import VmfMixture

CYLINDER = (17367530.4451615, 7342230.1364987)  # half width and height of EPSG:6933 down to the poles


def by_sampling_the_middles(mixture, grid):
    """The broken twin: what every other system draws."""
    longitude, latitude = grid.longitude_latitude()
    values = np.exp(mixture.log_density(sphere.to_directions(longitude.ravel(), latitude.ravel())))[0]
    return values.reshape(grid.shape) * density.cell_area_km2(grid) / sphere.EARTH_RADIUS_KM**2


class TestMass:
    """Acceptance row 16: 1 within 1e-6 before any normalisation, at any size of raster cell."""

    @pytest.mark.parametrize("resolution", [1.0, 7.5, 90.0])
    @pytest.mark.parametrize("log_concentration", [20.0, 16.0, 9.0, 4.0, 0.0, -12.0])
    def test_one_on_a_globe(self, edges_of_the_earth, mass_of, mixture_of, resolution, log_concentration):
        raster = density.density_raster(mixture_of(edges_of_the_earth, log_concentration), Grid.globe(resolution))
        assert float(raster.probability_sum[0]) == pytest.approx(1.0, abs=1e-6)
        assert mass_of(raster) == pytest.approx(1.0, abs=1e-6)
        assert float(raster.min()) >= 0.0

    @pytest.mark.hard
    def test_one_on_a_fine_globe_with_mixed_concentrations(self, edges_of_the_earth, mass_of, mixture_of):
        generator = np.random.default_rng(5)
        directions = np.concatenate([edges_of_the_earth, sphere.random_directions(150, generator)])
        mixture = mixture_of(directions, generator.uniform(0.0, 20.0, len(directions)))
        raster = density.density_raster(mixture, Grid.globe(0.1))
        assert mass_of(raster) == pytest.approx(1.0, abs=1e-6)

    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 10**6), resolution=st.sampled_from([2.0, 5.0, 11.25, 30.0]))
    def test_one_for_random_mixtures(self, edges_of_the_earth, mass_of, mixture_of, seed, resolution):
        generator = np.random.default_rng(seed)
        directions = np.concatenate([sphere.random_directions(6, generator), edges_of_the_earth[:4]])
        mixture = mixture_of(directions, generator.uniform(-3.0, 20.0, 10), seed)
        assert mass_of(density.density_raster(mixture, Grid.globe(resolution))) == pytest.approx(1.0, abs=1e-6)

    def test_the_twin_that_samples_is_caught(self, edges_of_the_earth, mixture_of):
        mixture = mixture_of(edges_of_the_earth, 16.0)
        grid = Grid.globe(1.0)
        raster = density.density_raster(mixture, grid)[0]
        assert np.abs(raster * raster.cell_area_km2 - by_sampling_the_middles(mixture, grid)).sum() > 0.5
        assert abs(by_sampling_the_middles(mixture, grid).sum() - 1.0) > 0.01
        # and where the twin is right, because the components are wide, it agrees
        wide, grid = mixture_of(edges_of_the_earth[4:5], 3.0), Grid.globe(1.0)
        raster = density.density_raster(wide, grid)[0]
        twin = by_sampling_the_middles(wide, grid)
        assert np.abs(raster * raster.cell_area_km2 - twin).sum() < 2e-3

    @pytest.mark.parametrize("log_concentration", [16.0, 3.0])
    @pytest.mark.parametrize(
        ("crs", "bounds", "resolution"),
        [
            (6933, (-CYLINDER[0], -CYLINDER[1], CYLINDER[0], CYLINDER[1]), 2.5e5),
            (4087, (-20037508.3427892, -10018754.1713946, 20037508.3427892, 10018754.1713946), 2.5e5),
        ],
    )
    def test_one_on_other_global_grids(
        self, edges_of_the_earth, mass_of, mixture_of, crs, bounds, resolution, log_concentration
    ):
        grid = Grid.from_bounds(*bounds, resolution, crs=crs)
        raster = density.density_raster(mixture_of(edges_of_the_earth[:9], log_concentration), grid)
        assert mass_of(raster) == pytest.approx(1.0, abs=1e-6)


class TestSharedWork:
    """Acceptance row 19: what the images of one mixture share is made once, however many they are."""

    @pytest.mark.parametrize("make", ["CylindricalRaster", "ProjectedRaster"])
    def test_sixty_four_images_prepare_their_grid_once(self, edges_of_the_earth, monkeypatch, make):
        prepared, painted = [], []

        class Counted(getattr(density, make)):
            def __init__(self, *arguments):
                prepared.append(1)
                super().__init__(*arguments)

            def probabilities(self, weights):
                painted.append(1)
                return super().probabilities(weights)

        monkeypatch.setattr(density, make, Counted)
        weights = np.random.default_rng(0).dirichlet(np.ones(10), size=64)
        album = VmfMixture(edges_of_the_earth, np.linspace(3, 12, 10), np.log(weights))
        polar = Grid.from_bounds(-5e5, -5e5, 5e5, 5e5, 1e5, crs=3995)
        grid = Grid.globe(30.0) if make == "CylindricalRaster" else polar
        together = density.density_raster(album, grid)
        assert (len(prepared), len(painted)) == (1, 64)
        # the twin: a raster per image prepares 64 times, and gives the same
        prepared.clear()
        alone = np.concatenate([density.density_raster(album[i : i + 1], grid).to_numpy() for i in range(64)])
        assert len(prepared) == 64
        assert together.to_numpy() == pytest.approx(alone, rel=1e-5, abs=1e-12, nan_ok=True)
