"""Ranks of simulated truths are uniform, also on plateaus, where the middle rank is not."""

import numpy as np
import pytest
from scipy import stats

from geo_mvmf import s2, sphere
from geo_mvmf.maps import ranks, summaries
from geo_mvmf.mixture import CellMixture, VmfMixture


def cells(n, generator):
    """Images whose probability lies on the six faces of the S2 cube: large plateaus, some of them equally dense."""
    probability = generator.dirichlet(np.ones(6), n)
    probability[:, 1] = probability[:, 0]  # cells of one shape: a tie of two cells
    probability /= probability.sum(axis=1, keepdims=True)
    faces = np.sort(s2.face_cells())
    return CellMixture(np.tile(faces, n), probability.ravel(), 6 * np.arange(n + 1))


def test_ranks_of_simulated_truths_are_uniform_on_plateaus():
    """The broken twin gives every place of a plateau its middle rank."""
    generator = np.random.default_rng(0)
    mixture = cells(600, generator)
    truth = sphere.to_longitude_latitude(mixture.sample(1, seed=1).reshape(-1, 3))
    found = ranks.ranks(mixture, *truth, generator.random(600))
    assert stats.kstest(found["searched_probability"], "uniform").pvalue > 0.01
    twin = ranks.ranks(mixture, *truth, np.full(600, 0.5))
    assert stats.kstest(twin["searched_probability"], "uniform").pvalue < 1e-4


def test_a_plateau_s_ranks_span_it():
    generator = np.random.default_rng(2)
    image = cells(1, generator)
    place = sphere.to_longitude_latitude(s2.centre(image.cell_ids[:1]))
    low, high = (ranks.ranks(image, *place, [u]).iloc[0] for u in (0.0, 1.0))
    tied = image.probabilities[0] + image.probabilities[1]
    assert high["searched_probability"] - low["searched_probability"] == pytest.approx(tied)
    area = s2.area_sr(image.cell_ids[:2]).sum() * sphere.EARTH_RADIUS_KM**2
    assert high["searched_area_km2"] - low["searched_area_km2"] == pytest.approx(area)
    assert low["log_density"] == pytest.approx(np.log(image.probabilities[0] / s2.area_sr(image.cell_ids[:1])[0]))


def test_a_place_without_density_is_searched_last():
    faces = np.sort(s2.face_cells())
    image = CellMixture(faces[:2], np.array([0.3, 0.7]), [0, 2])
    place = sphere.to_longitude_latitude(s2.centre(faces[5:6]))
    found = ranks.ranks(image, *place, [0.5]).iloc[0]
    assert found["searched_probability"] == 1.0
    assert found["log_density"] == -np.inf
    assert found["searched_area_km2"] == pytest.approx(4 * np.pi * sphere.EARTH_RADIUS_KM**2 * (1 / 3 + 1 / 3))


def components(n, generator):
    """Images of few components, most of the weight on one: the density whose nodes are steps."""
    logs = generator.normal(size=(n, 12)) * 4.0
    logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
    return VmfMixture(sphere.random_directions(12, generator), generator.uniform(1.0, 14.0, 12), logs)


def test_ranks_of_simulated_truths_are_uniform_for_components():
    """The summary by nodes agrees but for its steps; the broken twin is a sharper model."""
    generator = np.random.default_rng(3)
    mixture = components(200, generator)
    truth = sphere.to_longitude_latitude(mixture.sample(1, seed=4).reshape(-1, 3))
    uniform = generator.random(200)
    found = ranks.ranks(mixture, *truth, uniform)
    assert stats.kstest(found["searched_probability"], "uniform").pvalue > 0.01
    assert (found["searched_probability"] < 0.02).mean() < 0.05
    nodes = summaries.at_truth(mixture, *truth)
    np.testing.assert_array_equal(found["log_density"], nodes["log_density"])
    assert np.abs(found["searched_probability"] - nodes["searched_probability"]).max() < 0.12
    few = mixture[np.arange(60)]
    sharp = VmfMixture(few.mean_directions, few.log_concentrations + 2.0, few.log_mixing_weights)
    found = ranks.ranks(sharp, *(each[:60] for each in truth), uniform[:60])
    assert stats.kstest(found["searched_probability"], "uniform").pvalue < 1e-4


@pytest.mark.parametrize("log_kappa", [-60.0, -40.0, -21.0, -12.0])
def test_ranks_are_uniform_where_densities_are_flat_up_to_rounding(log_kappa):
    """What tells places apart there is how densities were rounded, and that draws leave out the lightest components."""
    generator = np.random.default_rng(7)
    directions, weights = sphere.random_directions(4, generator), [[0.5, 0.3, 0.2 - 5e-6, 5e-6]]
    mixture = VmfMixture(directions, [log_kappa] * 4, np.log(np.tile(weights, (150, 1))))
    truth = sphere.to_longitude_latitude(mixture.sample(1, seed=8).reshape(-1, 3))
    found = ranks.ranks(mixture, *truth, generator.random(150))["searched_probability"]
    assert stats.kstest(found, "uniform").pvalue > 0.01


@pytest.mark.parametrize("log_kappa", [-60.0, 2.0])
def test_a_peak_of_a_component_that_draws_leave_out_is_searched_first(log_kappa):
    """Its density is far above that of all draws; the broken twin looks at the place without it, too."""
    directions = sphere.to_directions([0.0, 90.0], [0.0, 0.0])
    image = VmfMixture(directions, [log_kappa, 18.0], np.log([[1.0 - 5e-6, 5e-6]]))
    found = ranks.ranks(image, [90.0], [0.0], [0.3]).iloc[0]
    assert found["searched_probability"] < 0.001
    assert found["searched_area_km2"] < 1.0
    beside = ranks.ranks(image, [-90.0], [0.0], [0.3]).iloc[0]
    assert beside["searched_probability"] > 0.1


def test_a_rank_is_a_function_of_its_number_alone():
    mixture = components(6, np.random.default_rng(5))
    place, uniform = (np.linspace(0, 50, 6), np.linspace(-20, 40, 6)), np.linspace(0.1, 0.9, 6)
    whole = ranks.ranks(mixture, *place, uniform)
    one = ranks.ranks(mixture[[4]], place[0][4:5], place[1][4:5], uniform[4:5])
    assert one["searched_probability"].iloc[0] == whole["searched_probability"].iloc[4]


def test_of_too_many_components_the_nodes_tell(monkeypatch):
    monkeypatch.setattr(ranks, "_MANY", 0)
    mixture = components(2, np.random.default_rng(6))
    found = ranks.ranks(mixture, [10.0, 20.0], [20.0, 30.0], [0.9, 0.1])
    np.testing.assert_array_equal(found, summaries.at_truth(mixture, [10.0, 20.0], [20.0, 30.0]))


def test_one_number_per_image_is_needed():
    with pytest.raises(ValueError, match="1 images need as many places and numbers"):
        ranks.ranks(cells(1, np.random.default_rng(0)), [1.0], [2.0], [0.1, 0.2])
