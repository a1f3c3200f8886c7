"""Quantiles by bins against quantiles by a full sort."""

import numpy as np
import pytest

from geo_mvmf.maps import quantiles


def by_sorting(values, mass, share):
    order = np.argsort(values, kind="stable")
    return float(np.interp(share, np.cumsum(mass[order]) - mass[order] / 2.0, values[order]))


def sums_by_sorting(values, mass, amount, shares):
    order = np.argsort(-values, kind="stable")
    held, summed = (np.concatenate([[0.0], np.cumsum(each[order])]) for each in (mass, amount))
    return [float(np.interp(share, held, summed)) for share in shares]


def drawn(seed, kind):
    generator = np.random.default_rng(seed)
    n = int(generator.choice([1, 2, 3, 10, 500]))
    values = {
        "smooth": generator.uniform(0.0, 20000.0, n),
        "wide": np.exp(generator.uniform(-80.0, 80.0, n)),
        "close": 5.0 + 1e-6 * generator.random(n),
        "equal": np.full(n, 3.0),
        "few": generator.choice([0.0, 1e-300, 1.0, 7.0], n),
        "single": generator.uniform(0.0, 1.0, n).astype(np.float32),
    }[kind]
    mass = generator.dirichlet(np.full(n, 0.3))
    mass[generator.random(n) < 0.2] = 0.0
    mass = mass / mass.sum() if mass.sum() > 0.0 else np.full(n, 1.0 / n)
    return values, mass, generator.random(n)


@pytest.mark.parametrize("kind", ["smooth", "wide", "close", "equal", "few", "single"])
@pytest.mark.parametrize("seed", range(30))
def test_equal_to_a_full_sort(kind, seed):
    values, mass, amount = drawn(seed, kind)
    held = mass > 0.0
    for share in (1e-9, 0.1, 0.5, 0.9, 0.999999):
        expected = by_sorting(values[held], mass[held], share)
        assert quantiles.quantile(values, mass, share) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    if kind not in ("equal", "few"):  # the order of equal values is anyone's choice
        shares = (0.1, 0.5, 0.9)
        expected = sums_by_sorting(values[held], mass[held], amount[held], shares)
        assert quantiles.sums_above(values[held], mass[held], amount[held], shares) == pytest.approx(expected, rel=1e-9)


def test_the_twin_that_stops_at_bins_is_caught():
    """A bin is 1.6 per cent wide: without sorting inside it the answer would be that far off."""
    generator = np.random.default_rng(0)
    values, mass = generator.uniform(1.0, 2.0, 100_000), np.full(100_000, 1e-5)
    bins = quantiles.binned(values, mass)
    twin = values[bins.number == bins.holding(0.5)].min()
    assert abs(twin - np.median(values)) > 1e-3
    assert quantiles.quantile(values, mass, 0.5) == pytest.approx(np.median(values), abs=1e-9)


def test_bins_are_in_the_order_of_values():
    values = np.array([0.0, 1e-40, 1e-30, 0.5, 0.51, 1.0, 1e30])
    up = quantiles.binned(values, np.ones(7)).number
    down = quantiles.binned(values, np.ones(7), descending=True).number
    assert np.all(np.diff(up) >= 0)
    assert np.all(np.diff(down) <= 0)
    assert up[-1] > up[-2] > up[-3] > up[0]
