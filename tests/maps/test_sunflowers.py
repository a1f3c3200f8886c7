"""Nodes of mixtures of many components: against fine rings, against the density itself, tier by tier."""

import tracemalloc

import numpy as np
import pytest

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import felt, summaries, sunflowers
from geo_mvmf.maps.once import OncePerComponents
from geo_mvmf.maps.sunflowers import Sunflowers
from geo_mvmf.mixture import VmfMixture

WITHIN = {  # what a summary on few nodes may be off, relative; bits absolute
    "area_50_km2": 0.04,
    "area_90_km2": 0.06,
    "radius_90_km": 0.006,
    "expected_error_km": 0.003,
    "information_bits": 0.04,
}


def overlapping(c, spread, seed=0):
    """Components all over the sphere, 2.4 of their sigmas apart, whose log weights spread so far."""
    generator = np.random.default_rng(seed)
    log_kappa = np.log(c / (4.0 * np.pi) * 2.4**2) + generator.uniform(-0.7, 0.7, c)
    logits = generator.normal(0.0, spread, c)
    return VmfMixture(sphere.random_directions(c, generator), log_kappa, (logits - np.logaddexp.reduce(logits))[None])


def misses(coarse, fine):
    """Columns in which a summary is farther from another than it may be."""
    off = {name: abs(coarse[name][0] - fine[name][0]) for name in WITHIN}
    relative = {name: 1.0 if name == "information_bits" else abs(fine[name][0]) for name in WITHIN}
    return {name for name in WITHIN if not off[name] <= WITHIN[name] * relative[name]}


@pytest.mark.parametrize(("c", "spread"), [(400, 0.7), (900, 2.07), (1600, 3.7)], ids=["own", "flat", "half"])
def test_summaries_are_those_of_fine_rings(monkeypatch, c, spread):
    mixture = overlapping(c, spread)
    coarse = summaries.summarise(mixture, [5.0], [1.0])
    with monkeypatch.context() as patch:  # the twin's nodes all lie at the mean directions, where it is densest
        patch.setattr(sunflowers, "HELD", 1e-9)
        patch.setattr(summaries, "_sunflowers", OncePerComponents(Sunflowers.of))
        twin = summaries.summarise(mixture, [5.0], [1.0])
    monkeypatch.setattr(summaries, "_FEW", c)
    monkeypatch.setattr(summaries, "MANY", c)
    fine = summaries.summarise(mixture, [5.0], [1.0])
    assert not misses(coarse, fine), (coarse.T, fine.T)
    assert coarse["density_max"][0] == pytest.approx(fine["density_max"][0], rel=0.03)
    assert {"area_50_km2", "area_90_km2", "information_bits"} <= misses(twin, fine)


def nodes_of(mixture):
    weights = np.exp(mixture.log_mixing_weights)
    flowers = Sunflowers.of(mixture.mean_directions, mixture.log_concentrations)
    return next(flowers.nodes(weights, [np.arange(mixture.num_components)]))


def test_densities_at_the_nodes_are_those_of_the_mixture():
    mixture = overlapping(900, 2.5)
    found = nodes_of(mixture)
    some = np.random.default_rng(1).choice(found.mass.size, 600, replace=False)
    direction = found.direction[:, some].T.astype(np.float64)
    expected = mixture.log_density(direction / np.linalg.norm(direction, axis=1, keepdims=True))[0]
    # what is not felt any more is 10 nats below a peak, which only nodes of hardly any mass notice
    assert np.average(np.abs(np.log(found.density[some]) - expected), weights=found.mass[some]) < 2e-4
    assert np.median(np.abs(np.log(found.density[some]) - expected)) < 2e-4
    assert found.mass.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("weight", "nodes"), [(1.0 / 5000.0, 1), (1.0 / 4000.0, 4), (1.0 / 200.0, 32)])
def test_the_heavier_a_component_the_more_nodes_it_has(weight, nodes):
    weights = np.array([[1.0 - 5.0 * weight, *[weight] * 5]])
    flowers = Sunflowers.of(sphere.random_directions(6, np.random.default_rng(0)), np.full(6, 9.0))
    found = next(flowers.nodes(weights, [np.arange(6)]))
    assert found.mass.size == 32 + 5 * nodes
    assert found.heaviest == weights[0, 0]
    only = next(flowers.nodes(weights, [np.array([3])]))
    assert only.mass.tolist() == pytest.approx([1.0 / nodes] * nodes)


@pytest.mark.parametrize("number", [1, 4])
def test_nodes_of_many_components_are_a_sample_without_bias(number):
    """The height above the mean direction is exponential with mean 1 / kappa, the turn about it uniform."""
    c, log_kappa = 2000, 10.0
    mu = np.tile([0.0, 0.0, 1.0], (c, 1))
    nodes = sunflowers.flowers(mu, np.full(c, log_kappa), number).reshape(-1, 3)
    height = np.exp(log_kappa) * 0.5 * ((nodes - mu[0]) ** 2).sum(axis=1)
    assert height.mean() == pytest.approx(1.0, abs=0.01)
    assert np.quantile(height, (0.1, 0.5, 0.9)) == pytest.approx(-np.log([0.9, 0.5, 0.1]), abs=0.01)
    assert np.abs(nodes[:, :2].mean(axis=0)).max() < 0.02 * np.exp(-0.5 * log_kappa)
    assert np.allclose(np.linalg.norm(nodes, axis=1), 1.0)


@pytest.mark.parametrize("log_kappa", [0.0, 1.8, 5.0, 6.5])
def test_memory_is_foretold(monkeypatch, log_kappa):
    """Pairs of the broadest components take more: all are felt at every node."""
    for module, some in ((felt, 1 << 17), (sunflowers, 1 << 14)):
        monkeypatch.setattr(module, "_PAIRS_AT_ONCE", some)
    components = sphere.random_directions(2000, np.random.default_rng(0)), np.full(2000, log_kappa)
    told = sunflowers.bytes_of(*components)
    tracemalloc.start()
    flowers = Sunflowers.of(*components)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    pairs = [flowers.felt.others]
    pairs += [each for block in (flowers.single, flowers.at_peaks) for each in (block.data, block.indices)]
    assert sum(each.nbytes for each in pairs) == pytest.approx(told, rel=0.1)
    assert held < 1.1 * told + 1e6
    assert peak < 1.5 * told + 12e6  # what is made at once comes on top


def test_a_lonely_component_keeps_its_closed_forms():
    mixture = VmfMixture(np.eye(3)[:1], [12.0], [[0.0]])
    found = nodes_of(mixture)
    bits = summaries._summary(found, np.eye(3)[0])["information_bits"]
    assert bits == pytest.approx(np.log2(4.0 * np.pi) - float(vmf.entropy(12.0)) / np.log(2.0), abs=0.03)
    assert found.density_max == pytest.approx(float(vmf.density_max(12.0)), rel=1e-6)
