import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf.files import weights
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.sphere import random_directions


def log_softmax(logits):
    logits = np.asarray(logits, dtype=float)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.floats(0.0, 12.0), st.sampled_from([0.0, 1e-4, 1e-2, 0.5]), st.integers(0, 2**32 - 1))
def test_the_fewest_components_that_hold_the_mass_are_kept(size, spread, tail, seed):
    row = log_softmax(np.random.default_rng(seed).normal(size=size) * spread).astype(np.float32)
    kept = weights.prune(row[None], tail=tail)
    exact = np.exp(row.astype(float))
    total = exact.sum()
    assert np.all(np.diff(kept.component.astype(int)) > 0)
    assert exact[kept.component].sum() >= (1.0 - tail) * total - 2e-6
    assert kept.residual[0] == pytest.approx(1.0 - exact[kept.component].sum() / total, abs=2e-6)
    # brute force: fewer of the heaviest would hold less
    heaviest = np.sort(exact)[::-1]
    assert heaviest[: kept.component.size - 1].sum() < (1.0 - tail) * total + 2e-6
    assert set(exact[kept.component]) >= set(heaviest[: kept.component.size])


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.floats(0.0, 12.0), st.floats(0.0, 0.3), st.integers(0, 2**32 - 1))
def test_spreading_gives_back_a_probability_for_every_component(size, width, tail, seed):
    generator = np.random.default_rng(seed)
    logs = log_softmax(generator.normal(size=(3, size)) * width)
    kept = weights.prune(logs, tail=tail)
    counts = generator.integers(0, 5, size)
    dense = weights.spread_all(kept, counts)
    np.testing.assert_allclose(np.exp(dense).sum(axis=1), 1.0, atol=1e-12)
    for i in range(3):
        own = kept.component[kept.offsets[i] : kept.offsets[i + 1]]
        np.testing.assert_allclose(dense[i, own], logs[i, own], atol=2e-5)
        others = np.setdiff1d(np.arange(size), own)
        if others.size and kept.residual[i] > 0.0:
            assert np.isfinite(dense[i]).all()
            ratio = np.exp(dense[i, others]) / (counts[others] + 1.0)
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_nothing_is_lost_without_a_tail():
    logs = log_softmax(np.random.default_rng(0).normal(size=(4, 100)) * 5.0)
    kept = weights.prune(logs, tail=0.0)
    assert kept.component.size == 400
    np.testing.assert_allclose(weights.spread_all(kept, np.zeros(100)), logs, atol=1e-5)


def test_weights_of_zero_and_rows_of_nan():
    logs = np.array([[0.0, -np.inf, -np.inf], [np.nan] * 3, [-np.inf, np.log(0.5), np.log(0.5)]])
    kept = weights.prune(logs, tail=0.0)
    assert kept.offsets.tolist() == [0, 1, 1, 3]
    assert kept.component.tolist() == [0, 1, 2]
    assert np.isnan(kept.residual).tolist() == [False, True, False]


def test_no_images():
    kept = weights.prune(np.empty((0, 5)))
    assert len(kept) == 0
    assert kept.offsets.tolist() == [0]


@pytest.mark.parametrize("row", [[0.0, 0.0], [np.nan, 0.0], [-5.0, -5.0]])
def test_what_is_no_distribution_is_refused(row):
    with pytest.raises(ValueError, match="image 1"):
        weights.prune([[np.log(0.5), np.log(0.5)], row])


def calibrated_nll(logs, mixture_args, truth_component, generator):
    """Negative log-likelihood of truths drawn from the mixtures themselves, per image."""
    directions, concentrations = mixture_args
    mixture = VmfMixture(mean_directions=directions, log_concentrations=concentrations, log_mixing_weights=logs)
    points = VmfMixture(
        mean_directions=directions,
        log_concentrations=concentrations,
        log_mixing_weights=truth_component,
    ).sample(1, seed=generator)[:, 0]
    return -np.array([mixture[i].log_density(points[i : i + 1])[0, 0] for i in range(len(mixture))])


@pytest.mark.parametrize("width", [1.0, 3.0, 8.0])
def test_pruning_changes_the_mean_negative_log_likelihood_by_less_than_a_thousandth_nat(width):
    generator = np.random.default_rng(int(width))
    images, size = 300, 2000
    directions = random_directions(size, generator)
    concentrations = np.full(size, np.log(1e6))  # far apart: a lost component is a lost place
    logs = log_softmax(generator.normal(size=(images, size)) * width)
    counts = np.exp(generator.normal(size=size)).astype(int)
    pruned = weights.spread_all(weights.prune(logs), counts)
    exact = calibrated_nll(logs, (directions, concentrations), logs, np.random.default_rng(9))
    approximate = calibrated_nll(pruned, (directions, concentrations), logs, np.random.default_rng(9))
    assert abs(float(np.mean(approximate - exact))) < 1e-3
    # the broken twin: a residual that is thrown away costs an infinite likelihood for cells, much for components
    thrown = np.full_like(logs, -np.inf)
    kept = weights.prune(logs, tail=0.05)
    for i in range(images):
        own = slice(kept.offsets[i], kept.offsets[i + 1])
        thrown[i, kept.component[own]] = kept.log_weight[own]
    thrown -= np.log(np.exp(thrown).sum(axis=1, keepdims=True))
    twin = calibrated_nll(thrown, (directions, concentrations), logs, np.random.default_rng(9))
    assert float(np.mean(twin - exact)) > 1e-3
