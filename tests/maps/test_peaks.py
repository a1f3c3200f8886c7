"""The best modes of an image: maxima, in order, with the probability of the components that climb to them."""

import numpy as np
import pytest

from geo_mvmf import s2, sphere
from geo_mvmf.errors import UsageError
from geo_mvmf.maps.estimates import estimate
from geo_mvmf.maps.peaks import best_modes
from geo_mvmf.mixture import CellMixture, VmfMixture


def random_mixture(seed, n=2, c=30):
    generator = np.random.default_rng(seed)
    weights = generator.dirichlet(np.full(c, 0.5), n)
    return VmfMixture(sphere.random_directions(c, generator), generator.uniform(3.0, 8.0, c), np.log(weights))


@pytest.mark.parametrize("seed", range(3))
def test_each_is_a_maximum_and_the_first_is_the_mode(seed):
    mixture = random_mixture(seed)
    found = best_modes(mixture, 5)
    for i, rows in found.groupby("image"):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        assert rows["density_per_km2"].is_monotonic_decreasing
        directions = sphere.to_directions(rows["longitude"], rows["latitude"])
        here = mixture[i].log_density(directions)[0]
        assert np.exp(here) / sphere.EARTH_RADIUS_KM**2 == pytest.approx(rows["density_per_km2"].to_numpy(), rel=1e-3)
        basis = sphere.tangent_basis(directions)
        for sideways in (basis[:, 0], -basis[:, 0], basis[:, 1], -basis[:, 1]):
            moved = directions + 3e-3 * sideways
            there = mixture[i].log_density(moved / np.linalg.norm(moved, axis=1, keepdims=True))[0]
            assert np.all(there <= here + 1e-6)
        first = sphere.to_directions(*estimate(mixture[i], "mode")[0])
        assert sphere.angle(directions[0], first) < 1e-5


def test_all_probability_belongs_to_some_mode_and_lonely_components_to_their_own():
    mixture = random_mixture(4)
    sums = best_modes(mixture, 100).groupby("image")["probability"].sum()
    assert sums.to_numpy() == pytest.approx(1.0, abs=1.1e-4)
    places = sphere.to_directions([180.0, 0.0, 20.0], [-17.0, 90.0, 0.0])
    found = best_modes(VmfMixture(places, [12.0, 11.0, 10.0], np.log([[0.2, 0.3, 0.5]])), 9)
    assert found["probability"].tolist() == pytest.approx([0.2, 0.3, 0.5])  # kappa times weight decides the order


def test_components_that_melt_into_one_peak_share_it():
    near = sphere.to_directions([0.0, 0.4, 90.0], [0.0, 0.0, 0.0])
    found = best_modes(VmfMixture(near, [8.0, 8.0, 8.0], np.log([[0.3, 0.3, 0.4]])), 3)
    assert found["probability"].tolist() == pytest.approx([0.6, 0.4])
    assert found["longitude"][0] == pytest.approx(0.2, abs=1e-4)


def test_refusals_and_no_images():
    with pytest.raises(UsageError, match="0 modes were asked for"):
        best_modes(random_mixture(0), 0)
    with pytest.raises(UsageError, match="not of CellMixture"):
        best_modes(CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6]), 1)
    assert len(best_modes(random_mixture(0)[:0], 3)) == 0


def test_the_twin_that_takes_component_weights_for_modes_is_caught():
    """In a crowd of light components a mode holds more than any component weighs."""
    places = np.array([0.0, 0.0, 1.0]) + 0.01 * np.random.default_rng(0).normal(size=(100, 3))
    places /= np.linalg.norm(places, axis=1, keepdims=True)
    crowd = VmfMixture(places, np.full(100, 8.0), np.full((1, 100), -np.log(100.0)))
    found = best_modes(crowd, 1)
    assert found["probability"][0] > 50.0 * np.exp(crowd.log_mixing_weights[0].max())
