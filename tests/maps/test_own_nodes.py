"""Nodes of images over components of their own: the same in any company, and those of each image alone."""

import numpy as np
import pytest

from geo_mvmf.maps import near, own_nodes
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


def test_they_are_the_nodes_that_all_images_share_where_these_are_of_one_image():
    for found, own in zip(*of_each(own_nodes.sunflowers)[1:], strict=True):
        shared = next(Sunflowers.of(*own[:2]).nodes(own[2][None], [np.arange(len(own[2]))]))
        assert np.array_equal(found.direction, shared.direction)
        np.testing.assert_allclose(found.density, shared.density, rtol=1e-5)
        np.testing.assert_allclose(found.mass, shared.mass, rtol=1e-12)
        assert found.density_max == pytest.approx(shared.density_max, rel=1e-5)
        assert found.heaviest == shared.heaviest


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
