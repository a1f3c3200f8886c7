"""Modes against a climb from every component, one by one, in the plain form."""

import numpy as np
import pytest

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import climbs, near
from geo_mvmf.mixture import VmfMixture

POLES_AND_180 = sphere.to_directions([0.0, 50.0, 180.0, -180.0, 179.999], [90.0, -90.0, 0.0, 60.0, -17.0])


def mixture_of(seed, *, n=2, c=30, low=2.0, high=9.0, alpha=0.5, close=None):
    generator = np.random.default_rng(seed)
    directions = sphere.random_directions(c, generator)
    if close is not None:  # clusters about awkward places, so that components overlap
        directions = POLES_AND_180[generator.integers(0, 5, c)] + close * generator.normal(size=(c, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = generator.dirichlet(np.full(c, alpha), n)
    with np.errstate(divide="ignore"):
        return VmfMixture(directions, generator.uniform(low, high, c), np.log(weights))


def density_at(mixture, points):
    return np.array([mixture[i].log_density(points[i : i + 1])[0, 0] for i in range(len(mixture))])


def by_climbing_from_all(mixture, starts=None):
    """Best log density of fixed-point climbs from every component, (N,)."""
    kappa = np.exp(mixture.log_concentrations)
    best = []
    for log_weights in mixture.log_mixing_weights:
        peak = log_weights + vmf.log_normaliser(mixture.log_concentrations)
        chosen = np.arange(kappa.size) if starts is None else [int(np.argmax(log_weights))][:starts]
        y = mixture.mean_directions[chosen]
        for _ in range(400):
            joint = peak - 0.5 * kappa * np.square(y[:, None] - mixture.mean_directions).sum(axis=2)
            r = np.exp(joint - joint.max(axis=1, keepdims=True))
            pull = (r * kappa) @ mixture.mean_directions
            y = pull / np.linalg.norm(pull, axis=1, keepdims=True)
        best.append(np.max(joint.max(axis=1) + np.log(r.sum(axis=1))))
    return np.array(best)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("low", "high", "close"), [(2, 9, None), (4, 8, 0.1), (0, 3, None), (8, 14, 0.01)])
def test_as_dense_as_the_best_of_all_climbs(seed, low, high, close):
    mixture = mixture_of(seed, low=low, high=high, close=close)
    assert density_at(mixture, climbs.modes(mixture)) == pytest.approx(by_climbing_from_all(mixture), abs=1e-6)


def test_the_twin_that_climbs_from_the_heaviest_alone_is_caught():
    mixtures = [mixture_of(seed, low=4, high=8, close=0.1) for seed in range(4)]
    behind = [density_at(m, climbs.modes(m)) - by_climbing_from_all(m, starts=1) for m in mixtures]
    assert np.max(behind) > 0.05


@pytest.mark.parametrize("log_kappa", [-12.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0, 12.0, 16.0, 20.0])
@pytest.mark.parametrize("alpha", [0.1, 50.0])
def test_never_less_dense_than_the_component_estimate(log_kappa, alpha):
    mixture = mixture_of(1, n=6, c=300, low=log_kappa, high=log_kappa + 1e-9, alpha=alpha, close=0.02)
    heaviest = mixture.mean_directions[np.argmax(mixture.log_mixing_weights, axis=1)]
    found = climbs.modes(mixture)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-12)
    assert np.all(density_at(mixture, found) >= density_at(mixture, heaviest) - 1e-12)


@pytest.mark.parametrize("place", POLES_AND_180.tolist())
@pytest.mark.parametrize("log_kappa", [-12.0, 0.0, 8.0, 20.0])
def test_one_component_peaks_at_its_mean_direction(place, log_kappa):
    found = climbs.modes(VmfMixture([place], [log_kappa], [[0.0]]))
    assert found[0] == pytest.approx(place, abs=1e-12)


def test_lists_and_matrices_agree(monkeypatch):
    """Three ways to the same climbs: what is present, what is near, everything."""
    mixture = mixture_of(5, n=4, c=500, low=5.0, high=9.0, alpha=1.0)
    expected = density_at(mixture, climbs.modes(mixture))
    monkeypatch.setattr(climbs, "_lists", lambda *_: None)
    assert density_at(mixture, climbs.modes(mixture)) == pytest.approx(expected, abs=1e-6)
    monkeypatch.undo()
    monkeypatch.setattr(climbs, "_SHORT", 20.0)
    assert density_at(mixture, climbs.modes(mixture)) == pytest.approx(expected, abs=1e-6)


def test_starts_of_a_few_images_are_looked_at_alone(monkeypatch):
    """What is felt everywhere takes seconds where components are many, and is not worth it for one image."""
    mixture = mixture_of(6, n=2, c=900, low=5.0, high=7.0, alpha=1.0)
    expected = climbs.modes(mixture)
    monkeypatch.setattr(climbs, "_RARE", 10)
    monkeypatch.setattr(climbs, "_shared_felt", None)
    assert climbs.modes(mixture) == pytest.approx(expected, abs=1e-9)


def test_ties_give_one_of_the_equal_peaks():
    directions = sphere.to_directions([0.0, 90.0, 180.0], [0.0, 0.0, 0.0])
    found = climbs.modes(VmfMixture(directions, np.full(3, 9.0), np.log(np.full((2, 3), 1.0 / 3.0))))
    assert found[0].tolist() == found[1].tolist()
    assert sphere.angle(found[0], directions).min() < 1e-6


def test_opposite_equals_stay_where_they_are():
    found = climbs.modes(VmfMixture([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], [2.0, 2.0], np.log([[0.5, 0.5]])))
    assert abs(found[0, 2]) == pytest.approx(1.0)


def test_components_that_are_not_there_attract_nothing():
    log_weights = np.full((2, 5), -np.inf)
    log_weights[[0, 1], [2, 4]] = 0.0
    mixture = VmfMixture(POLES_AND_180, np.full(5, 3.0), log_weights)
    assert climbs.modes(mixture) == pytest.approx(POLES_AND_180[[2, 4]], abs=1e-12)


def test_no_images_have_no_modes():
    assert climbs.modes(mixture_of(0)[:0]).shape == (0, 3)


def test_images_do_not_change_each_other(monkeypatch):
    mixture = mixture_of(2, n=7, c=60)
    together = climbs.modes(mixture)
    monkeypatch.setattr(climbs, "_VALUES_AT_ONCE", 100)
    assert climbs.modes(mixture) == pytest.approx(together, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_near_pairs_are_those_of_a_full_table(seed, monkeypatch):
    generator = np.random.default_rng(seed)
    points, directions = sphere.random_directions(80, generator), sphere.random_directions(30, generator)
    chords = near.chord_of(generator.uniform(-5.0, 12.0, 30), 9.0)
    monkeypatch.setattr(near, "_PAIRS_AT_ONCE", 200)
    distance = np.linalg.norm(points[:, None] - directions, axis=2)
    expected = set(zip(*np.nonzero(distance <= chords), strict=True))
    found = list(near.near_pairs(points, directions, chords))
    pairs = [pair for part in found for pair in zip(part.point.tolist(), part.component.tolist(), strict=True)]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == {(int(a), int(b)) for a, b in expected}
    for part in found:
        assert part.chord == pytest.approx(distance[part.point, part.component])
    assert list(near.near_pairs(points[:0], directions, chords)) == []
