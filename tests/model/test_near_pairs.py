"""Pairs of targets and components that can count: none that counts is missing, and few others are there."""

import numpy as np
import pytest
import torch

from geo_mvmf import s2, sphere
from geo_mvmf.model import near_pairs
from geo_mvmf.model.components import Components, log_density

F64 = torch.float64


def problem(n=40, c=700, log_kappa=(0.0, 20.0), *, ordered=True, seed=0):
    generator = np.random.default_rng(seed)
    mu = sphere.random_directions(c, generator)
    if ordered:
        mu = mu[np.argsort(s2.leaf_ids(mu))]
    y = torch.from_numpy(sphere.random_directions(n, generator))
    log_kappa = torch.from_numpy(generator.uniform(*log_kappa, c))
    return torch.from_numpy(mu), log_kappa, y


def missed(mu, log_kappa, y, depth=60.0):
    """Log densities of what has no pair, less the least that it may have: (N,), none of them above 0."""
    pairs = near_pairs.find(Components.of(mu, log_kappa), y, depth=depth, working=F64, most=1 << 40)
    log_f = log_density(y, mu, log_kappa)
    rows, columns = pairs.rows.long(), pairs.columns.long()
    np.testing.assert_allclose(pairs.best, log_f.amax(dim=1), rtol=1e-12)
    np.testing.assert_allclose(
        pairs.relative, (log_f - pairs.best[:, None])[rows, columns], atol=1e-15 * float(log_f.abs().max())
    )
    assert len(torch.unique(rows * len(mu) + columns)) == len(rows)  # no pair twice, not even of a last tile
    left = log_f.clone()
    left[rows, columns] = -torch.inf
    return left.amax(dim=1) - (pairs.best - depth), pairs


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("log_kappa", [(-8.0, -8.0), (4.0, 4.0), (9.0, 9.0), (16.0, 16.0), (0.0, 20.0), (12.0, 20.0)])
@pytest.mark.parametrize("c", [1, 127, 128, 129, 700, 5000])
def test_nothing_within_the_depth_is_missed(c, log_kappa, ordered):
    over, _ = missed(*problem(c=c, log_kappa=log_kappa, ordered=ordered, seed=c))
    assert (over < 0.0).all()


def test_targets_at_components_and_opposite_them():
    mu, log_kappa, _ = problem(c=2000, log_kappa=(20.0, 20.0))
    for y in (mu[::50], -mu[::50], mu[::50].flip(1)):
        assert (missed(mu, log_kappa, y)[0] < 0.0).all()


@pytest.mark.parametrize("log_kappa", [(9.0, 9.0), (8.0, 12.0)])
def test_balls_without_a_radius_would_miss_some(log_kappa, monkeypatch):
    cut = near_pairs._Tiles._cut

    def points(self):
        cut(self)
        self.radius = torch.zeros_like(self.radius)  # the broken twin

    monkeypatch.setattr(near_pairs._Tiles, "_cut", points)
    with pytest.raises(AssertionError):
        assert (missed(*problem(c=5000, log_kappa=log_kappa))[0] < 0.0).all()


def test_a_wide_component_far_away_is_not_missed():
    """The nearest component is narrow, and less dense than a wide one on the other side of the sphere."""
    mu, _, _ = problem(c=1000)
    log_kappa = torch.full((1000,), 18.0, dtype=F64)
    log_kappa[700] = -3.0
    over, pairs = missed(mu, log_kappa, -mu[700:701])
    assert (over < 0.0).all()
    assert 700 in pairs.columns


@pytest.mark.parametrize(("ordered", "most"), [(True, 0.04), (False, 0.1)])
def test_few_components_are_evaluated(ordered, most, monkeypatch):
    seen = []
    exact = near_pairs._Tiles.log_density

    def counted(self, y, tile):
        found = exact(self, y, tile)
        seen.append(found.numel())
        return found

    monkeypatch.setattr(near_pairs._Tiles, "log_density", counted)
    mu, log_kappa, y = problem(n=256, c=2**14, log_kappa=(16.0, 16.0), ordered=ordered)
    near_pairs.find(Components.of(mu, log_kappa), y, depth=60.0, working=F64, most=1 << 40)
    assert sum(seen) < most * 256 * 2**14
    monkeypatch.setattr(near_pairs, "_SCATTERED", 1e9)
    monkeypatch.setattr(near_pairs, "_WIDE", 1e9)  # the twin that takes any order as it is
    seen.clear()
    near_pairs.find(Components.of(mu, log_kappa), y, depth=60.0, working=F64, most=1 << 40)
    assert (sum(seen) > 0.5 * 256 * 2**14) != ordered


def test_it_gives_up_where_too_many_would_be_evaluated():
    mu, log_kappa, y = problem(log_kappa=(0.0, 0.0))
    assert near_pairs.find(Components.of(mu, log_kappa), y, depth=60.0, working=F64, most=40 * 700 // 8) is None


def test_it_gives_up_where_too_many_would_be_kept():
    mu, log_kappa, y = problem(c=5000, log_kappa=(9.0, 9.0))
    given = {"depth": 60.0, "working": F64, "most": 1 << 40}
    kept = len(near_pairs.find(Components.of(mu, log_kappa), y, **given).rows)
    assert near_pairs.find(Components.of(mu, log_kappa), y, **given, most_kept=kept) is not None
    assert near_pairs.find(Components.of(mu, log_kappa), y, **given, most_kept=kept - 1) is None


@pytest.mark.parametrize("n", [0, 1])
def test_few_targets(n):
    mu, log_kappa, y = problem(n=n, log_kappa=(12.0, 12.0))
    pairs = near_pairs.find(Components.of(mu, log_kappa), y, depth=60.0, working=torch.float32, most=1 << 20)
    assert pairs.best.shape == (n,)
    assert bool(len(pairs.rows)) == bool(n)


def test_a_target_that_is_no_number_shows():
    mu, log_kappa, y = problem(n=3, log_kappa=(12.0, 12.0))
    clean = near_pairs.find(Components.of(mu, log_kappa), y, depth=60.0, working=F64, most=1 << 20)
    y[1, 0] = torch.nan
    pairs = near_pairs.find(Components.of(mu, log_kappa), y, depth=60.0, working=F64, most=1 << 20)
    assert pairs.best.isnan().tolist() == [False, True, False]
    for row in (0, 2):
        assert torch.equal(pairs.columns[pairs.rows == row], clean.columns[clean.rows == row])


def test_what_is_worked_on_at_once_is_little_beside_few_logits_and_much_on_an_accelerator():
    few = 512 * 16384
    assert near_pairs._run_elements(torch.empty(512, 3), 16384) == few // 512
    assert near_pairs._run_elements(torch.empty(1024, 3), 1 << 16) == near_pairs.run_elements(torch.empty(1))
    on_accelerator = torch.empty(512, 3, device="meta")
    assert near_pairs._run_elements(on_accelerator, 16384) == near_pairs.run_elements(on_accelerator) > few // 4


def test_concentrations_that_are_all_alike_are_held_once():
    mu = torch.eye(3, dtype=torch.float64)
    alike = Components.of(mu, torch.full((3,), 2.0, dtype=torch.float64))
    assert alike.concentrations.stride() == alike.log_normalisers.stride() == (0,)
    mixed = Components.of(mu, torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64))
    assert mixed.log_normalisers.stride() == (1,)
    torch.testing.assert_close(mixed.log_normalisers[:2], alike.log_normalisers[:2])
