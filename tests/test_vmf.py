"""One component against 50 digits, against scipy, and against the laws of probability."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.transform import Rotation

from geo_mvmf import sphere, vmf

LOG_KAPPAS = np.arange(-12.0, 31.0, 2.0)
DISTANCES = [0.0, 1e-9, 1e-6, 1e-4, 1e-2, 1.0, 3.0, math.pi]


def exact_log_density(distance, log_kappa):
    with mpmath.workdps(50):
        kappa = mpmath.exp(mpmath.mpf(log_kappa))
        log_c = mpmath.log(kappa / (2 * mpmath.pi * (1 - mpmath.exp(-2 * kappa))))
        return log_c - 2 * kappa * mpmath.sin(mpmath.mpf(distance) / 2) ** 2


@pytest.mark.parametrize("log_kappa", LOG_KAPPAS)
def test_log_density_against_50_digits(log_kappa):
    # the pair is placed symmetrically in the x, y plane so that the chord itself is exact to rounding
    for distance in DISTANCES:
        x, y = math.cos(distance / 2), math.sin(distance / 2)
        value = float(vmf.log_density([x, y, 0.0], [x, -y, 0.0], log_kappa))
        exact = exact_log_density(distance, log_kappa)
        assert abs(value - float(exact)) <= 2e-14 + 1e-15 * abs(float(exact))


def test_float32_dot_product_twin_is_caught_where_the_chord_is_not():
    """PRIOR_ART rows 8, 9: differences in float64, then rounded, are right; a float32 dot product errs by nats."""
    generator = np.random.default_rng(0)
    mean = sphere.random_directions(2000, generator)
    for log_kappa, dot_error in ((16.0, 0.3), (20.0, 10.0)):
        point = vmf.sample(mean, log_kappa, generator)
        exact = vmf.log_density(point, mean, log_kappa)
        kappa = np.exp(log_kappa)
        difference = (point - mean).astype(np.float32)
        chord = vmf.log_normaliser(log_kappa) - 0.5 * kappa * np.square(difference).sum(axis=1)
        dot = np.sum(point.astype(np.float32) * mean.astype(np.float32), axis=1)
        twin = vmf.log_normaliser(log_kappa) + kappa * (dot.astype(np.float64) - 1.0)
        assert np.abs(chord - exact).max() < 2e-5
        assert np.abs(twin - exact).max() > dot_error


def test_log_density_is_finite_at_the_far_end():
    value = vmf.log_density([0.0, 0.0, 1.0], [0.0, 0.0, -1.0], 20.0)
    assert np.isfinite(value)
    assert value < -9e8


@pytest.mark.parametrize("log_kappa", [-4.0, 0.0, 4.0, 8.0, 12.0, 16.0, 20.0])
def test_log_density_against_scipy(log_kappa):
    generator = np.random.default_rng(1)
    mean = sphere.random_directions(1, generator)[0]
    points = vmf.sample(np.broadcast_to(mean, (200, 3)), log_kappa, generator)
    ours = vmf.log_density(points, mean, log_kappa)
    theirs = stats.vonmises_fisher(mean, math.exp(log_kappa)).logpdf(points)
    # its documented errors: the normaliser by 5e-10 at e^16 and 9e-8 at e^20, and kappa times the rounding of mu.y
    assert np.abs(ours - theirs).max() < 1e-9 + 2e-7 * math.exp(max(log_kappa - 20.0, -20.0)) + 4e-16 * math.exp(
        log_kappa
    )


def test_limits():
    """PRIOR_ART row 2: kappa -> 0 is the uniform density; the series meets the closed form."""
    assert float(vmf.log_normaliser(-12.0)) == pytest.approx(-vmf.LOG_4PI + math.exp(-12.0), abs=1e-10)
    assert float(vmf.log_normaliser(-np.inf)) == -vmf.LOG_4PI
    assert float(vmf.entropy(-np.inf)) == pytest.approx(vmf.LOG_4PI)
    edge = math.log(vmf.SERIES_BELOW)
    below, above = vmf.log_normaliser([edge - 1e-9, edge + 1e-9])
    assert abs(above - below) < 3e-12
    assert float(vmf.log_normaliser(30.0)) == pytest.approx(30.0 - math.log(2 * math.pi), abs=1e-14)


@pytest.mark.parametrize("log_kappa", np.arange(-8.0, 20.5, 1.5))
def test_derivative_is_continuous(log_kappa):
    """PRIOR_ART row 4: d log c / d log kappa = 1 - 2 kappa / (exp(2 kappa) - 1) without jumps."""
    step = 1e-4
    slope = (vmf.log_normaliser(log_kappa + step) - vmf.log_normaliser(log_kappa - step)) / (2 * step)
    kappa = math.exp(log_kappa)
    exact = 1.0 - (2 * kappa / math.expm1(2 * kappa) if kappa < 300 else 0.0)
    assert abs(float(slope) - exact) < 1e-7


@pytest.mark.parametrize("log_kappa", [-12.0, -5.0, -1.0, 2.0, 4.0, 6.0])
def test_density_integrates_to_one(log_kappa):
    """PRIOR_ART row 1: equal-area grid (the density depends on z alone, which is uniform)."""
    z, weights = np.polynomial.legendre.leggauss(400)
    points = np.stack([np.sqrt(1 - z * z), np.zeros_like(z), z], axis=-1)
    density = np.exp(vmf.log_density(points, [0.0, 0.0, 1.0], log_kappa))
    assert 2 * math.pi * float(weights @ density) == pytest.approx(1.0, abs=1e-10)
    paper = density * 4 * math.pi  # the paper's eq. 1 lacks 1 / 4 pi: the broken twin
    assert abs(2 * math.pi * float(weights @ paper) - 1.0) > 1.0


@pytest.mark.parametrize("log_kappa", [7.0, 12.0, 16.0, 20.0])
def test_density_agrees_with_the_closed_form_of_its_caps(log_kappa):
    """Row 1 above log kappa 6: the density integrated over rings is the cap's probability."""
    reach = vmf.cap_quantile(0.9, log_kappa)
    x, weights = np.polynomial.legendre.leggauss(60)
    t = (x + 1) / 2 * reach
    points = np.stack([np.sin(t), np.zeros_like(t), np.cos(t)], axis=-1)
    rings = np.exp(vmf.log_density(points, [0.0, 0.0, 1.0], log_kappa)) * 2 * math.pi * np.sin(t)
    assert float(weights @ rings * reach / 2) == pytest.approx(0.9, rel=1e-7)


@given(st.floats(0.0, 1.0), st.floats(-12.0, 30.0))
def test_quantile_inverts_the_cap(probability, log_kappa):
    radius = vmf.cap_quantile(probability, log_kappa)
    assert 0.0 <= radius <= math.pi
    assert abs(vmf.cap_probability(radius, log_kappa) - probability) < 1e-9


def test_table_of_radii():
    """PRIOR_ART 5: 50, 90, 95 % radii in km and peak densities per km2."""
    log_kappa = [4.0, 8.0, 16.0, 20.0]
    radius = vmf.cap_quantile(np.array([[0.5], [0.9], [0.95]]), log_kappa) * sphere.EARTH_RADIUS_KM
    assert np.allclose(radius, [[1020, 137, 2.52, 0.34], [1860, 250, 4.59, 0.62], [2120, 286, 5.23, 0.71]], rtol=7e-3)
    peak = vmf.density_max(log_kappa) / sphere.EARTH_RADIUS_KM**2
    assert np.allclose(peak, [2.1e-7, 1.2e-5, 0.035, 1.9], rtol=0.04)


@pytest.mark.parametrize("radius_scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("log_kappa", [-12.0, 0.0, 3.0, 8.0, 16.0, 20.0, 30.0])
def test_off_centre_caps_at_offset_zero(log_kappa, radius_scale):
    radius = min(math.pi, radius_scale * math.exp(-log_kappa / 2))
    closed = vmf.cap_probability(radius, log_kappa)
    for offset in (0.0, 1e-14):
        assert abs(vmf.probability_within(offset, radius, log_kappa) - closed) < 1e-13


@given(st.floats(0.0, math.pi), st.floats(0.0, math.pi), st.floats(-12.0, 12.0))
def test_a_cap_and_its_complement(offset, radius, log_kappa):
    both = vmf.probability_within([offset, math.pi - offset], [radius, math.pi - radius], log_kappa)
    # pi - x is rounded: the boundary moves by 2e-16 rad, which at log kappa 12 is worth 1e-13
    assert abs(both.sum() - 1.0) < 2e-12
    assert np.all((both >= 0.0) & (both <= 1.0))


@pytest.mark.parametrize(
    ("offset", "radius", "log_kappa"),
    [(0.5, 0.4, 1.0), (1.5, 1.2, 3.0), (3.0, 0.5, 0.0), (0.02, 0.03, 7.0), (1e-3, 9e-4, 14.0), (6e-4, 5e-4, 16.0)],
)
def test_off_centre_caps_against_many_digits(offset, radius, log_kappa):
    with mpmath.workdps(30):
        kappa = mpmath.exp(log_kappa)

        def ring(t):
            bessel = mpmath.besseli(0, kappa * mpmath.sin(t) * mpmath.sin(offset))
            return mpmath.exp(kappa * (mpmath.cos(t) * mpmath.cos(offset) - 1)) * bessel * mpmath.sin(t)

        parts = mpmath.linspace(0, radius, 9)
        exact = mpmath.quad(ring, parts) * kappa / (1 - mpmath.exp(-2 * kappa))
    assert float(vmf.probability_within(offset, radius, log_kappa)) == pytest.approx(float(exact), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("log_kappa", [-3.0, 2.0, 10.0, 18.0])
def test_off_centre_caps_against_monte_carlo(log_kappa):
    generator = np.random.default_rng(5)
    sigma = min(1.0, math.exp(-log_kappa / 2))
    mean = sphere.random_directions(1, generator)[0]
    drawn = vmf.sample(np.broadcast_to(mean, (100_000, 3)), log_kappa, generator)
    centre = math.cos(1.3 * sigma) * mean + math.sin(1.3 * sigma) * sphere.tangent_basis(mean)[0]
    for radius in (0.5 * sigma, 1.5 * sigma, 3.0 * sigma):
        expected = float(vmf.probability_within(1.3 * sigma, radius, log_kappa))
        share = np.mean(sphere.angle(drawn, centre) <= radius)
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 100_000) + 1e-12


def test_off_centre_caps_of_a_wide_grid_are_probabilities_and_grow():
    offset = np.linspace(0, math.pi, 25)[:, None, None]
    radius = np.linspace(0, math.pi, 60)[:, None]
    log_kappa = np.array([-12.0, -3.0, 0.0, 3.0, 8.0, 14.0, 20.0, 30.0])
    value = vmf.probability_within(offset, radius, log_kappa)
    assert value.shape == (25, 60, 8)
    assert np.all((value >= 0) & (value <= 1))
    assert np.diff(value, axis=1).min() > -1e-12
    assert np.all(value[:, 0] == 0)
    assert np.all(value[:, -1] == 1)
    uniform = np.sin(radius / 2) ** 2
    assert np.allclose(value[..., :1], uniform, atol=2e-6)


def test_off_centre_caps_take_odd_values():
    assert vmf.probability_within(1.0, -1.0, 3.0) == 0.0
    assert vmf.probability_within(1.0, 9.0, 3.0) == 1.0
    assert math.isnan(vmf.probability_within(math.nan, 1.0, 3.0))
    assert vmf.probability_within(np.empty((0, 2)), 1.0, 3.0).shape == (0, 2)


@pytest.mark.parametrize("log_kappa", [-6.0, 0.0, 4.0, 16.0, 22.0])
def test_samples_follow_the_cap_law_and_turn_evenly(log_kappa):
    generator = np.random.default_rng(11)
    mean = np.array([0.6, 0.0, -0.8])
    drawn = vmf.sample(np.broadcast_to(mean, (20_000, 3)), log_kappa, generator)
    share = vmf.cap_probability(sphere.angle(drawn, mean), log_kappa)
    assert stats.kstest(share, "uniform").pvalue > 1e-3
    first, second = sphere.tangent_basis(mean)
    turn = (np.arctan2(drawn @ first, drawn @ second) / (2 * math.pi)) % 1.0
    assert stats.kstest(turn, "uniform").pvalue > 1e-3
    assert np.abs(np.linalg.norm(drawn, axis=1) - 1).max() < 1e-15


def test_density_is_invariant_under_rotation():
    """PRIOR_ART row 6."""
    generator = np.random.default_rng(2)
    matrix = Rotation.from_quat(generator.standard_normal(4)).as_matrix()
    mean = sphere.random_directions(500, generator)
    for log_kappa in (-3.0, 5.0, 12.0):
        points = vmf.sample(mean, log_kappa, generator)
        before = vmf.log_density(points, mean, log_kappa)
        after = vmf.log_density(points @ matrix.T, mean @ matrix.T, log_kappa)
        assert np.abs(before - after).max() < 1e-9


@given(st.floats(1e-7, 3.0), st.floats(0.01, 0.99))
def test_log_concentration_for_inverts_the_cap(radius, probability):
    share_of_sphere = math.sin(radius / 2) ** 2
    if probability <= share_of_sphere * (1 - 1e-12):
        with pytest.raises(ValueError, match="no concentration"):
            vmf.log_concentration_for(radius, probability)
    if probability <= share_of_sphere * 1.001:  # the answer runs to minus infinity
        return
    log_kappa = vmf.log_concentration_for(radius, probability)
    assert abs(vmf.cap_probability(radius, log_kappa) - probability) < 1e-9


def test_log_concentration_for_is_the_published_form_for_small_caps():
    radius = np.array([0.04, 1e-3, 1e-5])
    published = np.log(-np.log1p(-0.95) / (2 * np.sin(radius / 2) ** 2))
    assert np.allclose(vmf.log_concentration_for(radius, 0.95), published, atol=1e-12)


def test_entropy_is_the_mean_of_minus_log_density():
    for log_kappa in (-8.0, -1.0, 2.0, 5.0, 16.0):
        z, weights = np.polynomial.legendre.leggauss(200)
        share = (z + 1) / 2
        t = vmf.cap_quantile(share, log_kappa)
        chord = vmf.log_normaliser(log_kappa) - 2 * math.exp(log_kappa) * np.sin(t / 2) ** 2
        # the integrand has a logarithmic end at share = 1, hence the tolerance
        assert float(vmf.entropy(log_kappa)) == pytest.approx(float(-weights @ chord / 2), abs=1e-4)
    assert np.all(np.diff(vmf.entropy(np.linspace(-12, 30, 100))) < 0)


def test_wrong_probabilities_are_shown():
    with pytest.raises(ValueError, match=r"1\.5"):
        vmf.cap_quantile(1.5, 3.0)
    with pytest.raises(ValueError, match=r"0\.2 into a cap that is 0\.49"):
        vmf.log_concentration_for(math.pi / 2, 0.2)
