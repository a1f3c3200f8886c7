"""Points from densities: eq. 7 and eq. 6."""

import numpy as np
import pytest
from scipy import optimize

from geo_mvmf import s2, sphere
from geo_mvmf.maps.estimates import estimate
from geo_mvmf.mixture import CellMixture, VmfMixture


def random_mixture(seed, n=4, c=60, low=2.0, high=9.0):
    generator = np.random.default_rng(seed)
    return VmfMixture(
        sphere.random_directions(c, generator),
        generator.uniform(low, high, c),
        np.log(generator.dirichlet(np.full(c, 0.5), size=n)),
    )


def densities(mixture, places):
    return np.diag(mixture.log_density(sphere.to_directions(*np.asarray(places).T)))


@pytest.mark.parametrize("seed", range(6))
def test_mode_is_at_least_as_dense_as_the_component_estimate(seed):
    mixture = random_mixture(seed)
    assert np.all(densities(mixture, estimate(mixture, "mode")) >= densities(mixture, estimate(mixture)))


@pytest.mark.parametrize("seed", range(4))
def test_mode_is_a_maximum_by_scipy(seed):
    mixture = random_mixture(seed, n=1)
    longitude, latitude = estimate(mixture, "mode")[0]
    found = optimize.minimize(
        lambda p: -mixture.log_density(sphere.to_directions(p[0], p[1])[None])[0, 0],
        [longitude, latitude],
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-12},
    )
    assert sphere.great_circle_distance_km(longitude, latitude, *found.x) < 0.01


def test_mode_is_the_best_of_a_thousand_random_climbs():
    mixture = random_mixture(9, n=1, c=30)
    best = densities(mixture, estimate(mixture, "mode"))[0]
    points = mixture.sample(1000, seed=0)[0]
    assert best >= mixture.log_density(points).max() - 1e-9


def test_two_overlapping_components_peak_between_them():
    mixture = VmfMixture(sphere.to_directions([0.0, 1.0], [0.0, 0.0]), [6.0, 6.0], np.log([[0.5, 0.5]]))
    assert estimate(mixture, "mode")[0] == pytest.approx([0.5, 0.0], abs=1e-5)


def test_turning_the_sphere_turns_the_estimates():
    mixture = random_mixture(3)
    turn = sphere.rotation_matrix(np.random.default_rng(1))
    turned = VmfMixture(mixture.mean_directions @ turn.T, mixture.log_concentrations, mixture.log_mixing_weights)
    for estimator in ("component", "mode"):
        expected = sphere.to_directions(*estimate(mixture, estimator).T) @ turn.T
        np.testing.assert_allclose(sphere.to_directions(*estimate(turned, estimator).T), expected, atol=1e-7)


def test_cells_give_the_centre_of_the_likeliest_or_of_the_densest():
    faces = s2.face_cells()
    ids = np.sort(np.concatenate([faces[1:], s2.children(faces[0])]))
    probabilities = np.where(s2.level(ids) == 1, 0.05, 0.06)
    probabilities[s2.level(ids) == 0] = (1 - 0.2) / 5
    mixture = CellMixture(ids, probabilities / probabilities.sum(), np.array([0, ids.size]))
    likeliest, densest = (sphere.to_directions(*estimate(mixture, e)[0]) for e in ("component", "mode"))
    assert s2.level(ids[np.searchsorted(s2.range_max(ids), s2.leaf_ids(likeliest))]) == 0
    assert s2.level(ids[np.searchsorted(s2.range_max(ids), s2.leaf_ids(densest))]) == 1


def test_unknown_estimators_are_named():
    with pytest.raises(ValueError, match="estimator 'middle' is not one of component, mode"):
        estimate(random_mixture(0), "middle")
