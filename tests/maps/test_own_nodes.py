"""Nodes of images over components of their own: the same in any company, and those of each image alone."""

import numpy as np
import pytest

from geo_mvmf.maps import felt, near, own_nodes, sunflowers
from geo_mvmf.maps.felt import Felt
from geo_mvmf.maps.sunflowers import Sunflowers

COUNTS = np.array([60, 7, 96, 1])


def images(seed=0):
    """Components of several images about one place, of all widths, and their weights: some heavy, most light."""
    generator = np.random.default_rng(seed)
    total = int(COUNTS.sum())
    places = np.array([0.6, 0.0, 0.8]) + generator.normal(0.0, 0.02, (total, 3))
    weights = np.exp(generator.normal(0.0, 2.0, total))
    for own in np.split(weights, np.cumsum(COUNTS)[:-1]):
        own /= own.sum()
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    return places, generator.uniform(5.0, 13.0, total), weights


def of_each(make):
    """Nodes of all images made together, and of each made alone."""
    parts = [np.split(each, np.cumsum(COUNTS)[:-1]) for each in images()]
    alone = [next(make(*own, np.array([len(own[0])]))) for own in zip(*parts, strict=True)]
    return list(make(*images(), COUNTS)), alone, list(zip(*parts, strict=True))


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@pytest.mark.parametrize("make", [own_nodes.rings, own_nodes.sunflowers])
def test_an_image_has_the_same_nodes_in_any_company(make, monkeypatch):
    together, alone, _ = of_each(make)
    assert all(map(same, together, alone))
    monkeypatch.setattr(near, "apart", lambda directions, image: directions)  # the twin feels its neighbours
    mixed, alone, _ = of_each(make)
    assert not all(map(same, mixed, alone))


@pytest.mark.parametrize("values", [1 << 20, 64], ids=["one block", "many blocks"])
def test_they_are_the_nodes_that_all_images_share_where_these_are_of_one_image(monkeypatch, values):
    monkeypatch.setattr(felt, "_VALUES_AT_ONCE", values)
    for found, own in zip(*of_each(own_nodes.sunflowers)[1:], strict=True):
        shared = next(Sunflowers.of(*own[:2]).nodes(own[2][None], [np.arange(len(own[2]))]))
        assert np.array_equal(found.direction, shared.direction)
        np.testing.assert_allclose(found.density, shared.density, rtol=1e-5)
        np.testing.assert_allclose(found.mass, shared.mass, rtol=1e-12)
        assert found.density_max == pytest.approx(shared.density_max, rel=1e-5)
        assert found.heaviest == shared.heaviest
    first = of_each(own_nodes.sunflowers)[2][0]
    plain = next(own_nodes.sunflowers(*first, COUNTS[:1])).direction
    place = sunflowers.flowers  # the twin begins to count anew after every third component
    monkeypatch.setattr(sunflowers, "flowers", lambda mu, kappa, n, own, **how: place(mu, kappa, n, own % 3, **how))
    assert not np.array_equal(next(own_nodes.sunflowers(*first, COUNTS[:1])).direction, plain)


def sphere_full(c, low, high):
    generator = np.random.default_rng(0)
    mu = generator.normal(size=(c, 3))
    return mu / np.linalg.norm(mu, axis=1, keepdims=True), generator.uniform(low, high, c)


def test_pairs_are_made_in_parts(monkeypatch):
    """As many at a time as are allowed, to a fifth, and the same list as if all were made at once."""
    components = sphere_full(700, 3.0, 6.0)
    whole = Felt.of(*components)
    held, plain = [], felt._sorted
    monkeypatch.setattr(felt, "_sorted", lambda *args: held.append(plain(*args)) or held[-1])
    monkeypatch.setattr(felt, "_PAIRS_AT_ONCE", 10_000)
    parts = Felt.of(*components)
    assert np.array_equal(parts.starts, whole.starts)
    assert np.array_equal(parts.others, whole.others)
    assert max(others.size for _, others in held) < 12_000 < whole.others.size / 2


@pytest.mark.parametrize(("low", "high"), [(5.0, 5.0), (3.0, 9.0), (11.0, 12.0)])
def test_pairs_are_counted_from_a_sample(low, high):
    components = sphere_full(3000, low, high)
    made = Felt.of(*components).others.size
    # as far as the farthest of an octave is felt: up to four times as many, where widths differ
    assert 0.9 * made < felt.pairs_of(*components) < (1.1 if low == high else 3.0) * made


@pytest.mark.parametrize("make", [own_nodes.rings, own_nodes.sunflowers])
def test_densities_at_the_nodes_are_sums_over_all_components(make):
    for found, (mu, log_kappa, weights) in zip(*of_each(make)[1:], strict=True):
        kappa = np.exp(log_kappa)
        at = np.asarray(found.direction, dtype=np.float64).T
        height = np.exp(-0.5 * kappa * near.squared_chords(at, mu))
        exact = height @ (weights * kappa / (2.0 * np.pi * -np.expm1(-2.0 * kappa)))
        assert np.average(np.abs(np.log(found.density / exact)), weights=found.mass) < 1e-3
        assert found.density_max == pytest.approx(found.density.max(), rel=0.5)
        assert found.mass.sum() == pytest.approx(1.0)
