"""Densities where many components overlap: against every component at every point, in double precision."""

import numpy as np
import pytest

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import crowds, near, own_nodes, summaries
from geo_mvmf.maps.once import OncePerComponents
from geo_mvmf.mixture import VmfMixture


def crowd(c, low, high, *, spread=1.0, seed=0, about=None):
    """Components all over the sphere, or about a place, of such log concentrations, and their weights."""
    generator = np.random.default_rng(seed)
    mu = sphere.random_directions(c, generator)
    if about is not None:
        mu = np.asarray(about) + 0.1 * mu
        mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    weights = np.exp(generator.normal(0.0, spread, c))
    return mu, generator.uniform(low, high, c), weights / weights.sum()


def by_all(points, mu, log_kappa, weights):
    """The density and the sum of peaks of what may have been left out of it."""
    log_peak = np.log(weights) + vmf.log_normaliser(log_kappa)
    below = 0.5 * np.exp(log_kappa) * near.squared_chords(points, mu)
    peaks = np.where(below < 200.0, np.exp(log_peak), 0.0)
    return np.exp(log_peak - below).sum(axis=1), peaks.sum(axis=1)


CASES = {
    "flat": (2000, -6.0, -6.0),
    "half the sphere": (2000, 1.0, 1.5),
    "crowded cells": (3000, 4.0, 4.0),
    "few in a cell": (3000, 7.0, 7.0),
    "all widths": (2000, 1.0, 12.0),
    "narrower than any cell": (500, 38.0, 55.0),
}


@pytest.mark.parametrize("about", [None, (1.0, 0.0, 0.0), (0.58, 0.58, 0.57)], ids=["everywhere", "edge", "corner"])
@pytest.mark.parametrize("case", CASES)
def test_densities_are_sums_over_all_components(case, about):
    """Every component misses by its tail and by the polynomial at most, and the sum by single precision."""
    mu, log_kappa, weights = crowd(*CASES[case], about=about)
    points = np.concatenate([mu[::7], vmf.sample(mu[::5], log_kappa[::5], np.random.default_rng(1))])
    found = crowds.densities(points, mu, log_kappa, weights * np.exp(vmf.log_normaliser(log_kappa)))
    exact, peaks = by_all(points, mu, log_kappa, weights)
    allowed = (np.exp(-crowds.REACH) + crowds.INTERPOLATION) * peaks + 2e-5 * exact
    assert np.all(np.abs(found - exact) <= allowed)
    assert np.average(np.abs(found / exact - 1.0)) < 1e-5


@pytest.mark.parametrize("log_kappa", [20.0, 24.0, 30.0, 40.0, 43.5, 46.0])
def test_narrow_components_in_crowded_cells(log_kappa):
    """A leaf is a part of their width or more, and cells are at most as small as leaves."""
    c, sigma = 5000, np.exp(-0.5 * log_kappa)
    mu = np.array([0.8, 0.5, 0.3]) + 4.0 * sigma * np.random.default_rng(0).normal(size=(c, 3))
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    found = crowds.densities(mu, mu[:300], np.full(300, log_kappa), np.ones(300))
    exact = np.exp(-0.5 * np.exp(log_kappa) * near.squared_chords(mu, mu[:300])).sum(axis=1)
    assert np.abs(found - exact).max() < crowds.INTERPOLATION * exact.max()
    assert np.average(np.abs(found - exact), weights=exact) < 1e-6 * exact.mean()


@pytest.mark.parametrize(
    ("name", "twin"), [("_NODES", np.full(10, 4)), ("REACH", 2.0), ("MAX_RADIUS", 0.3)], ids=["nodes", "reach", "cells"]
)
def test_every_part_of_the_error_is_needed(monkeypatch, name, twin):
    """Twins: polynomials of too low a degree, components cut too near, cells taken for smaller than they are."""
    mu, log_kappa, weights = crowd(6000, 4.0, 4.0)
    peak = weights * np.exp(vmf.log_normaliser(log_kappa))
    exact, _ = by_all(mu[:300], mu, log_kappa, weights)

    def miss():
        return np.abs(crowds.densities(mu, mu, log_kappa, peak)[:300] / exact - 1.0).max()

    assert miss() < 1e-5
    monkeypatch.setattr(crowds, name, twin)
    assert miss() > 1e-4


def test_it_does_not_matter_what_is_done_at_once(monkeypatch):
    mu, log_kappa, weights = crowd(900, 3.0, 6.0)
    peak = weights * np.exp(vmf.log_normaliser(log_kappa))
    whole = crowds.densities(mu, mu, log_kappa, peak)
    for name in ("_VALUES_AT_ONCE", "_ENTRIES_AT_ONCE", "_CELLS_AT_ONCE"):
        monkeypatch.setattr(crowds, name, 1 << 8)
    np.testing.assert_allclose(crowds.densities(mu, mu, log_kappa, peak), whole, rtol=1e-5)


def test_total_probability_is_one():
    """The mean of the density over points spread evenly on the sphere, times its area."""
    c = 40_000
    number = np.arange(c) + 0.5
    turn, height = np.pi * (1.0 + np.sqrt(5.0)) * number, 1.0 - 2.0 * number / c
    flat = np.sqrt(1.0 - height * height)
    points = np.stack([flat * np.cos(turn), flat * np.sin(turn), height], axis=1)
    mu, log_kappa, weights = crowd(2000, 2.0, 5.0)
    density = crowds.densities(points, mu, log_kappa, weights * np.exp(vmf.log_normaliser(log_kappa)))
    assert density.mean() * 4.0 * np.pi == pytest.approx(1.0, abs=2e-5)


def nodes(make, components):
    return next(make(*components, np.array([len(components[0])])))


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_crowded_images_have_the_nodes_of_others(spread):
    components = crowd(1500, 3.0, 9.0, spread=spread)
    crowded, listed = (nodes(make, components) for make in (own_nodes.crowded, own_nodes.sunflowers))
    assert np.array_equal(crowded.direction, listed.direction)
    assert np.array_equal(crowded.mass, listed.mass)
    assert crowded.heaviest == listed.heaviest
    assert crowded.density_max == pytest.approx(listed.density_max, rel=1e-4)
    assert np.average(np.abs(np.log(crowded.density / listed.density)), weights=listed.mass) < 1e-4


def image(c, low, high, **how):
    mu, log_kappa, weights = crowd(c, low, high, **how)
    return VmfMixture(mu, log_kappa, np.log(weights)[None])


@pytest.fixture
def made(monkeypatch):
    """By which ways nodes were made, in order."""
    ways = []
    for name in ("sunflowers", "crowded"):
        plain = getattr(own_nodes, name)

        def noted(*args, plain=plain, name=name):
            ways.append(name)
            return plain(*args)

        monkeypatch.setattr(own_nodes, name, noted)
    return ways


def test_pairs_are_listed_where_there_are_few(made, monkeypatch):
    broad, sharp = image(1100, 1.0, 1.5), image(1100, 11.0, 12.0)
    for mixture in (broad, sharp):
        summaries.nodes_of(mixture, is_trimmed=True)
    assert made == ["crowded", "sunflowers"]
    monkeypatch.setattr(summaries, "_LISTED_PAIRS", 1100**2)
    summaries.nodes_of(broad, is_trimmed=True)
    assert made[2:] == ["sunflowers"]


def test_nodes_are_shared_only_where_they_fit(made, monkeypatch):
    """Beyond, every image has nodes of its own, and a summary says the same but for where the nodes lie."""
    monkeypatch.setattr(summaries, "_sunflowers", OncePerComponents(summaries._shareable))
    mixture = image(1400, 5.0, 6.0)
    shared = summaries.summarise(mixture, [0.0], [0.0])
    assert not made
    monkeypatch.setattr(summaries, "SHARED_BYTES", 1e6)
    monkeypatch.setattr(summaries, "_LISTED_PAIRS", 100_000)
    monkeypatch.setattr(summaries, "_sunflowers", OncePerComponents(summaries._shareable))
    own = summaries.summarise(mixture, [0.0], [0.0])
    assert made == ["crowded"]
    for name in shared.columns:
        assert own[name][0] == pytest.approx(shared[name][0], rel=0.01, abs=0.02), name
