"""The numbers beside a point, against closed forms and sampling."""

import numpy as np
import pandas as pd
import pytest

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.maps import summaries
from geo_mvmf.mixture import CellMixture, VmfMixture

R = sphere.EARTH_RADIUS_KM


@pytest.mark.parametrize("log_kappa", [-6.0, 0.0, 4.0, 10.0, 16.0, 20.0])
def test_one_component_has_closed_forms(log_kappa):
    mixture = VmfMixture(sphere.to_directions([12.0], [-40.0]), [log_kappa], [[0.0]])
    found = summaries.summarise(mixture, [12.0], [-40.0]).iloc[0]
    radius = vmf.cap_quantile(np.array([0.5, 0.9]), log_kappa)
    area = sphere.EARTH_AREA_KM2 * np.sin(radius / 2) ** 2
    assert found[["area_50_km2", "area_90_km2"]].tolist() == pytest.approx(area.tolist(), rel=1e-3)
    assert found["radius_90_km"] == pytest.approx(radius[1] * R, rel=0.012)
    assert found["probability_25_km"] == pytest.approx(float(vmf.cap_probability(25 / R, log_kappa)), abs=1e-9)
    assert found["density_max"] * R**2 == pytest.approx(float(vmf.density_max(log_kappa)), rel=1e-3)
    bits = np.log2(4 * np.pi) - float(vmf.entropy(log_kappa)) / np.log(2)
    assert found["information_bits"] == pytest.approx(bits, abs=0.012)


def random_mixture(seed, c, low, high):
    generator = np.random.default_rng(seed)
    near = np.array([1.0, 0.0, 0.0]) + 0.25 * generator.normal(size=(c, 3))
    weights = generator.dirichlet(np.full(c, 0.3))[None]
    return VmfMixture(
        near / np.linalg.norm(near, axis=1, keepdims=True), generator.uniform(low, high, c), np.log(weights)
    )


@pytest.mark.parametrize(
    ("c", "low", "high"), [(1, 5, 5), (30, 4, 9), (30, 1, 3), pytest.param(400, 5, 11, marks=pytest.mark.hard)]
)
def test_mixtures_against_forty_thousand_samples(c, low, high):
    mixture = random_mixture(c, c, low, high)
    found = summaries.summarise(mixture, [5.0], [1.0]).iloc[0]
    drawn = mixture.sample(40_000, seed=1)[0]
    log_f = np.concatenate([mixture.log_density(part)[0] for part in np.array_split(drawn, 10)])
    for level, name in ((0.5, "area_50_km2"), (0.9, "area_90_km2")):
        above = log_f > np.quantile(log_f, 1 - level)
        assert found[name] == pytest.approx(np.mean(above / np.exp(log_f)) * R**2, rel=0.05), name
    distance = sphere.angle(drawn, sphere.to_directions(5.0, 1.0)) * R
    assert found["radius_90_km"] == pytest.approx(np.quantile(distance, 0.9), rel=0.02)
    assert found["expected_error_km"] == pytest.approx(distance.mean(), rel=0.01)
    assert found["probability_200_km"] == pytest.approx((distance <= 200).mean(), abs=0.006)
    assert found["information_bits"] == pytest.approx(np.log2(4 * np.pi) + log_f.mean() / np.log(2), abs=0.05)
    truth = np.stack(sphere.to_longitude_latitude(drawn[:40]), axis=1)
    for place, value in zip(truth, log_f[:40], strict=True):
        judged = summaries.at_truth(mixture, place[:1], place[1:]).iloc[0]
        assert judged["searched_probability"] == pytest.approx((log_f > value).mean(), abs=0.03)
        assert judged["log_density"] == pytest.approx(value, abs=1e-9)


@pytest.mark.hard
def test_row_17_searched_probability_of_simulated_truths_is_uniform():
    """A p-region covers the truth p of the time (binomial bounds, 1000 draws)."""
    mixture = random_mixture(7, 25, 5, 9)
    drawn = mixture.sample(1000, seed=2)[0]
    many = VmfMixture(
        mixture.mean_directions, mixture.log_concentrations, np.repeat(mixture.log_mixing_weights, 1000, axis=0)
    )
    searched = summaries.at_truth(many, *sphere.to_longitude_latitude(drawn))["searched_probability"]
    # the twin is sure of itself: the same mixture, sqrt(e) times narrower than what the truths are drawn from
    narrow = VmfMixture(many.mean_directions, many.log_concentrations + 1.0, many.log_mixing_weights[:200])
    twin = summaries.at_truth(narrow, *sphere.to_longitude_latitude(drawn[:200]))["searched_probability"]
    for level in (0.5, 0.8, 0.9, 0.95):
        bound = 2.58 * np.sqrt(level * (1 - level) / 1000) + 0.01
        assert abs((searched <= level).mean() - level) < bound, level
        assert abs((twin <= level).mean() - level) > bound, level


def test_images_in_which_everything_matters_use_the_shared_nodes():
    generator = np.random.default_rng(0)
    c = 2048
    mixture = VmfMixture(
        sphere.random_directions(c, generator),
        np.full(c, 7.5),
        np.log(generator.dirichlet(np.full(c, 5.0), size=2)),
    )
    found = summaries.summarise(mixture, [0.0, 0.0], [0.0, 0.0])
    drawn = mixture[0].sample(10_000, seed=0)[0]
    log_f = np.concatenate([mixture[0].log_density(part)[0] for part in np.array_split(drawn, 20)])
    above = log_f > np.quantile(log_f, 0.5)
    assert found["area_50_km2"][0] == pytest.approx(np.mean(above / np.exp(log_f)) * R**2, rel=0.07)
    assert found["information_bits"][0] == pytest.approx(np.log2(4 * np.pi) + log_f.mean() / np.log(2), abs=0.08)


@pytest.mark.parametrize(("alpha", "log_kappa"), [(0.003, 9.0), (0.1, 9.0), (5.0, 7.5)])
def test_an_image_has_the_same_bits_in_any_company(alpha, log_kappa):
    """Few, many and nearly all components matter; a resumed prediction cuts its batches elsewhere."""
    generator = np.random.default_rng(3)
    weights = np.maximum(generator.dirichlet(np.full(2048, alpha), size=7), 1e-300)
    mixture = VmfMixture(sphere.random_directions(2048, generator), np.full(2048, log_kappa), np.log(weights))
    place = sphere.to_longitude_latitude(mixture.mean_directions[weights.argmax(axis=1)])
    together = summaries.summarise(mixture, *place)
    alone = [summaries.summarise(mixture[i : i + 1], place[0][i : i + 1], place[1][i : i + 1]) for i in range(7)]
    pd.testing.assert_frame_equal(pd.concat(alone, ignore_index=True), together, check_exact=True)


def test_cells_are_exact():
    ids = s2.face_cells()
    mixture = CellMixture(ids, np.array([0.5, 0.3, 0.1, 0.05, 0.03, 0.02]), np.array([0, 6]))
    found = summaries.summarise(mixture, [0.0], [0.0]).iloc[0]
    face = sphere.EARTH_AREA_KM2 / 6
    assert found["area_50_km2"] == pytest.approx(face, rel=1e-6)
    assert found["area_90_km2"] == pytest.approx(3 * face, rel=1e-6)
    assert found["component_weight"] == 0.5
    judged = summaries.at_truth(mixture, [90.0], [0.0]).iloc[0]
    assert 0.5 < judged["searched_probability"] < 0.8


def test_one_estimate_per_image():
    with pytest.raises(ValueError, match="1 images need as many estimates"):
        summaries.summarise(random_mixture(0, 3, 5, 6), [0.0, 1.0], [0.0, 1.0])
