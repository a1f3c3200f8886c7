"""Numbers with honest intervals: nothing is dropped, nothing is assumed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from geo_mvmf import metrics, sphere

ERRORS = hnp.arrays(float, st.integers(0, 60), elements=st.floats(0, 20015) | st.just(math.nan))


@given(ERRORS)
def test_accuracy_counts_every_image(error_km):
    accuracy = metrics.accuracy_at_km(error_km)
    assert accuracy.n == error_km.size
    assert accuracy.n_nan == np.isnan(error_km).sum()
    assert accuracy.value.shape == (5,)
    if error_km.size:
        expected = [np.sum(error_km <= x) / error_km.size for x in metrics.THRESHOLDS_KM]  # NaN <= x is False
        assert np.allclose(accuracy.value, expected)
        assert np.all(np.diff(accuracy.value) >= 0)
        assert np.all((accuracy.low <= accuracy.value) & (accuracy.value <= accuracy.high))
    assert np.all((accuracy.low >= 0) & (accuracy.high <= 1))


def test_missing_predictions_lower_the_accuracy():
    """PRIOR_ART row 22; the broken twin drops them."""
    error_km = np.array([0.5, 10.0, math.nan, math.nan])
    assert metrics.accuracy_at_km(error_km, [25.0]).value[0] == 0.5
    assert np.mean(error_km[~np.isnan(error_km)] <= 25.0) == 1.0
    assert metrics.median_error_km(error_km).value == math.inf
    assert metrics.median_error_km(np.append(error_km, 3.0)).value == 10.0
    assert metrics.median_error_km(error_km).n_nan == 2
    assert metrics.geo_score(error_km).tolist()[2:] == [0.0, 0.0]


def test_within_means_at_most_and_the_radius_is_stated():
    """PRIOR_ART row 23."""
    assert metrics.accuracy_at_km([25.0, np.nextafter(25.0, 26.0)], [25.0]).value[0] == 0.5
    assert sphere.EARTH_RADIUS_KM == 6371.0088
    for text in ("6371.0088", "<="):
        assert text in metrics.__doc__
    assert math.log(4 * math.pi) == metrics.UNIFORM_NLL


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (50, 237), (1, 100000)])
def test_wilson_interval_is_scipy_s(hits, n):
    theirs = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    low, high = metrics.wilson_interval(hits, n)
    assert float(low) == pytest.approx(theirs.low, abs=1e-15)
    assert float(high) == pytest.approx(theirs.high, abs=1e-15)


def test_intervals_cover_the_truth():
    """Of the accuracy and the median; the broken twin is a mean with one standard error."""
    generator = np.random.default_rng(0)
    trials, n = 400, 60
    error_km = generator.lognormal(3.0, 1.5, (trials, n))
    share = stats.lognorm(1.5, scale=math.exp(3.0)).cdf(25.0)
    caught = np.zeros(3)
    for row in error_km:
        accuracy, median = metrics.accuracy_at_km(row, [25.0]), metrics.median_error_km(row)
        logs = np.log(row)
        caught += [
            accuracy.low[0] <= share <= accuracy.high[0],
            median.low <= math.exp(3.0) <= median.high,
            abs(logs.mean() - 3.0) <= logs.std() / math.sqrt(n),
        ]
    assert np.all(caught[:2] / trials > 0.95 - 4 * math.sqrt(0.05 * 0.95 / trials))
    assert np.all(caught[:2] / trials < 0.995)
    assert caught[2] / trials < 0.8


@pytest.mark.parametrize("n", [*range(1, 40), 237, 2997, 210122])
def test_median_interval_is_the_narrowest_with_its_coverage(n):
    values = np.arange(1.0, n + 1.0)
    estimate = metrics.median_error_km(np.random.default_rng(0).permutation(values))
    assert estimate.value == np.median(values)
    rank = int(estimate.low)  # the value is its own rank; 0 stands for no lower end
    assert estimate.high == (n + 1 - rank if rank else math.inf)
    assert stats.binom.cdf(rank - 1, n, 0.5) <= 0.025
    assert stats.binom.cdf(rank, n, 0.5) > 0.025


def test_nothing_given():
    for empty in ([], np.empty(0)):
        accuracy = metrics.accuracy_at_km(empty)
        assert np.isnan(accuracy.value).all()
        assert (accuracy.low.tolist(), accuracy.high.tolist(), accuracy.n) == ([0.0] * 5, [1.0] * 5, 0)
        assert math.isnan(metrics.median_error_km(empty).value)
    assert metrics.median_error_km([5.0]) == (5.0, 0.0, math.inf, 1, 0)


def test_geo_score():
    assert metrics.geo_score(0.0) == 5000.0
    assert float(metrics.geo_score(1492.7)) == pytest.approx(5000 / math.e)


def test_negative_distances_are_refused():
    for function in (metrics.accuracy_at_km, metrics.median_error_km):
        with pytest.raises(ValueError, match="error 1 is -2"):
            function([1.0, -2.0])
