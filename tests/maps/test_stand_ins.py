"""Few components that stand for very many: what they keep of them."""

import numpy as np
import pytest

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.maps import stand_ins


def crowd(c=3000, low=5.0, high=12.0, seed=0):
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.ones(c))
    return stand_ins.Components(sphere.random_directions(c, generator), generator.uniform(low, high, c), weights)


def mean_vector(components):
    kappa = np.exp(components.log_concentrations)
    return (components.weights / np.tanh(kappa) - components.weights / kappa) @ components.directions


@pytest.mark.parametrize(("low", "high"), [(5.0, 12.0), (20.0, 36.0)])
def test_weight_and_mean_vector_are_kept(low, high):
    many = crowd(low=low, high=high)
    few = stand_ins.merged(many, np.full(3000, 0.2))
    assert few.weights.size < 1500
    assert few.weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert np.linalg.norm(few.directions, axis=1) == pytest.approx(1.0, abs=1e-12)
    assert mean_vector(few) == pytest.approx(mean_vector(many), abs=1e-4)


def test_one_cell_has_the_spread_of_what_lies_in_it():
    """Against samples; the twin that keeps the concentrations is far off."""
    generator = np.random.default_rng(1)
    place = np.array([0.9, 0.3, 0.316])
    place /= np.linalg.norm(place)
    mu = vmf.sample(np.tile(place, (300, 1)), np.full(300, 9.0), generator)
    many = stand_ins.Components(mu, np.full(300, 9.5), np.full(300, 1.0 / 300))
    few = stand_ins.merged(many, np.full(300, 2.0))
    assert few.weights.size == 1
    drawn = vmf.sample(np.repeat(mu, 200, axis=0), np.full(60_000, 9.5), generator)
    spread = 1.0 - (drawn @ few.directions[0]).mean()
    assert np.exp(-few.log_concentrations[0]) == pytest.approx(spread, rel=0.02)
    assert np.exp(-9.5) < 0.5 * spread


def test_what_meets_nothing_is_as_it_was():
    many = crowd(50, -12.0, 50.0)
    edge = np.where(np.arange(50) % 2 == 0, 0.0, 1e-7)
    few = stand_ins.merged(many, edge)
    order, own = np.argsort(few.weights), np.argsort(many.weights)
    for kept, given in zip(few, many, strict=True):
        assert np.array_equal(kept[order], given[own])


def test_cells_of_other_sizes_do_not_meet():
    many = crowd(400)
    few = stand_ins.merged(many, np.where(np.arange(400) < 200, 3.0, 0.1))
    assert few.weights[np.argsort(-few.weights)[:6]].sum() == pytest.approx(many.weights[:200].sum())


@pytest.mark.parametrize("most", [6, 40, 700])
def test_the_smallest_cells_of_which_so_many_hold_components(most):
    directions = crowd(2000).directions
    level = round(np.log2(1.7048971791992 / stand_ins.edge_for(directions, most)))
    counts = [np.unique(s2.cell_ids(directions, each)).size for each in (level, level + 1)]
    assert counts[0] <= most < counts[1]
