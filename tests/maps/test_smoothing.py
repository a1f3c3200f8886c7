"""Smoothing: the concentration of a convolution, against its definition by Legendre's polynomials."""

import math

import mpmath
import numpy as np
import pytest
from scipy import special

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.maps import density
from geo_mvmf.maps.albums import album_of
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.smoothing import convolved_log_concentration, smoothed
from geo_mvmf.mixture import VmfMixture


def legendre(kappa, orders):
    """Coefficients of the density about its axis: ratios of Bessel functions (Mardia and Jupp 2000, 9.3.7)."""
    return special.ive(np.arange(orders) + 0.5, kappa) / special.ive(0.5, kappa)


def total_variation(a, b, kappa):
    """Half the integral of the difference between the convolution of a and b and one density of kappa."""
    orders = int(60 + 12 * math.sqrt(max(a, b)))
    difference = legendre(a, orders) * legendre(b, orders) - legendre(kappa, orders)
    cosine, weight = np.polynomial.legendre.leggauss(800)
    return 0.5 * np.abs(np.polynomial.legendre.legval(cosine, (np.arange(orders) + 0.5) * difference) * weight).sum()


def mean_resultant_length(log_kappa):
    kappa = mpmath.exp(mpmath.mpf(log_kappa))
    return mpmath.coth(kappa) - 1 / kappa


@pytest.mark.parametrize(
    ("a", "b"),
    [(-20, 16), (-12, -12), (-3.2, -2.9), (-3, 0), (0, 0), (2, 16), (3.1, 3), (5.9, 5.8), (16, 16), (20, -5), (20, 20)],
)
def test_mean_resultant_lengths_multiply(a, b):
    with mpmath.workdps(60):
        wanted = mean_resultant_length(a) * mean_resultant_length(b)
        found = float(convolved_log_concentration(a, b))
        slope = mpmath.exp(-2 * mpmath.mpf(found)) - mpmath.csch(mpmath.exp(mpmath.mpf(found))) ** 2
        error = (mean_resultant_length(found) - wanted) / slope / mpmath.exp(mpmath.mpf(found))
    assert abs(float(error)) < 1e-9  # relative, of kappa


def test_narrow_densities_add_their_variances():
    a, b = np.meshgrid(np.linspace(6.0, 20.0, 8), np.linspace(6.0, 20.0, 8))
    assert convolved_log_concentration(a, b) == pytest.approx(-np.logaddexp(-a, -b), abs=3e-3)


@pytest.mark.parametrize(
    ("bandwidth_km", "allowed"),
    [(100.0, 1e-4), (250.0, 6e-4), (500.0, 2.2e-3), pytest.param(1000.0, 8e-3, marks=pytest.mark.hard)],
)
def test_the_convolution_is_nearly_of_that_concentration(bandwidth_km, allowed):
    """The figures of the module's text, which are largest for components of log kappa 1.5 to 2."""
    kernel = (sphere.EARTH_RADIUS_KM / bandwidth_km) ** 2
    for log_kappa in (-1.0, 0.5, 1.5, 2.0, 3.0, 5.0):
        kappa = math.exp(float(convolved_log_concentration(log_kappa, math.log(kernel))))
        assert total_variation(math.exp(log_kappa), kernel, kappa) < allowed


def test_the_twin_that_adds_variances_as_on_the_plane_is_caught():
    assert total_variation(1.6, 1.6, 0.8) > 2.0 * total_variation(
        1.6, 1.6, math.exp(float(convolved_log_concentration(math.log(1.6), math.log(1.6))))
    )


def test_nothing_is_smoothed_silently_and_what_is_says_so():
    grid = Grid.globe(3.0)
    peak = VmfMixture(sphere.to_directions([20.0], [40.0]), [14.0], [[0.0]])
    plain = density.density_raster(peak, grid)
    wide = density.density_raster(peak, grid, bandwidth_km=500.0)
    assert "bandwidth_km" not in plain.attrs
    assert wide.attrs["bandwidth_km"] == 500.0
    assert float(wide.probability_sum[0]) == pytest.approx(1.0, abs=1e-6)
    by_hand = VmfMixture(
        peak.mean_directions, convolved_log_concentration(14.0, 2 * np.log(6371.0088 / 500.0))[None], [[0.0]]
    )
    assert np.array_equal(wide.to_numpy(), density.density_raster(by_hand, grid).to_numpy())
    assert float(wide.max()) < 0.2 * float(plain.max())


def test_samples_moved_by_the_kernel_are_samples_of_the_smoothed_density():
    peak = VmfMixture([[0.0, 0.0, 1.0]], [5.0], [[0.0]])
    wider = smoothed(album_of(peak), 800.0)
    moved = VmfMixture(wider.mean_directions, wider.log_concentrations, [[0.0]])
    kernel = np.full(100_000, 2.0 * math.log(sphere.EARTH_RADIUS_KM / 800.0))
    from geo_mvmf import vmf

    generator = np.random.default_rng(0)
    drawn = vmf.sample(peak.sample(100_000, seed=generator)[0], kernel, generator)
    longitude, latitude = np.zeros(5), np.full(5, 90.0)
    radius = np.array([300.0, 600.0, 1000.0, 1500.0, 2500.0])
    expected = moved.probability_within(longitude, latitude, radius)[0]
    distance = sphere.EARTH_RADIUS_KM * sphere.angle(drawn, np.array([0.0, 0.0, 1.0]))
    found = (distance[:, None] <= radius).mean(axis=0)
    assert found == pytest.approx(expected, abs=4.0 * 0.5 / math.sqrt(100_000) + 5e-4)


@pytest.mark.parametrize("bandwidth", [0.0, -3.0, math.nan, math.inf, 20_016.0])
def test_a_bandwidth_is_positive_and_on_the_earth(bandwidth):
    with pytest.raises(BadInputError, match="bandwidth_km is"):
        smoothed(album_of(VmfMixture([[0.0, 0.0, 1.0]], [5.0], [[0.0]])), bandwidth)


def test_a_density_on_cells_is_not_smoothed():
    cells = VmfMixture([[0.0, 0.0, 1.0]], [5.0], [[0.0]]).to_cells(0.2)
    with pytest.raises(BadInputError, match="only mixtures of vMF components"):
        density.density_raster(cells, Grid.globe(30.0), bandwidth_km=100.0)
