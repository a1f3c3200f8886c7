"""Mixtures of components: exact, normalised, invariant under rotation, whatever the weights."""

import math

import geopandas
import numpy as np
import pytest
import shapely
from scipy import special
from scipy.spatial.transform import Rotation

import geo_mvmf
from geo_mvmf import mixture as mixture_module
from geo_mvmf import sphere, vmf
from geo_mvmf.errors import UsageError
from geo_mvmf.mixture import CellMixture, VmfMixture

BOX = shapely.box(0.0, 0.0, 1.0, 1.0)


def random_mixture(n=3, c=50, *, seed=0, low=-2.0, high=20.0):
    generator = np.random.default_rng(seed)
    weights = np.log(generator.dirichlet(np.full(c, 0.3), n) + 1e-300)
    return VmfMixture(
        mean_directions=sphere.random_directions(c, generator),
        log_concentrations=generator.uniform(low, high, c),
        log_mixing_weights=weights,
    )


def term_by_term(mixture, points):
    logs = vmf.log_density(points[:, None], mixture.mean_directions, mixture.log_concentrations)  # (M, C)
    return special.logsumexp(mixture.log_mixing_weights[:, None] + logs, axis=-1)


@pytest.mark.parametrize("seed", range(3))
def test_log_density_equals_the_sum_term_by_term(seed):
    mixture = random_mixture(seed=seed)
    generator = np.random.default_rng(seed + 10)
    points = np.concatenate(
        [sphere.random_directions(200, generator), mixture.mean_directions, -mixture.mean_directions]
    )
    assert np.allclose(mixture.log_density(points), term_by_term(mixture, points), rtol=1e-13, atol=1e-11)


def test_log_density_with_absent_and_vanishing_components():
    """Underflow of the product form, components of weight 0, one image with one component only."""
    base = random_mixture(n=4, c=60, low=12.0, high=20.0)
    weights = base.log_mixing_weights.copy()
    weights[1] = -np.inf
    weights[1, 7] = 0.0
    weights[2, ::2] = -900.0  # exp underflows to 0, the logarithm must not
    weights -= special.logsumexp(weights, axis=1, keepdims=True)
    mixture = VmfMixture(base.mean_directions, base.log_concentrations, weights)
    points = np.concatenate([mixture.mean_directions, sphere.random_directions(50, np.random.default_rng(1))])
    value = mixture.log_density(points)
    assert np.all(np.isfinite(value))
    assert np.allclose(value, term_by_term(mixture, points), rtol=1e-13, atol=1e-11)


def test_sparse_images_take_the_other_way_to_the_same_numbers():
    base = random_mixture(n=20, c=400)
    weights = base.log_mixing_weights.copy()
    weights[weights < np.sort(weights, axis=1)[:, -10:-9]] = -np.inf
    weights -= special.logsumexp(weights, axis=1, keepdims=True)
    mixture = VmfMixture(base.mean_directions, base.log_concentrations, weights)
    assert sum(1 for _ in mixture_module._groups(mixture.log_mixing_weights)) == 20
    assert sum(1 for _ in mixture_module._groups(base.log_mixing_weights)) == 1
    points = sphere.random_directions(100, np.random.default_rng(1))
    assert np.allclose(mixture.log_density(points), term_by_term(mixture, points), rtol=1e-13, atol=1e-11)


def test_blocks_change_nothing(monkeypatch):
    mixture = random_mixture(n=7, c=31)
    points = sphere.random_directions(33, np.random.default_rng(2))
    longitude, latitude = sphere.to_longitude_latitude(points)
    whole = mixture.log_density(points), mixture.probability_within(longitude, latitude, 900.0)
    monkeypatch.setattr(mixture_module, "_VALUES_AT_ONCE", 64)
    parts = mixture.log_density(points), mixture.probability_within(longitude, latitude, 900.0)
    assert np.allclose(whole[0], parts[0], rtol=1e-14, atol=1e-12)
    assert np.allclose(whole[1], parts[1], rtol=1e-14, atol=1e-14)


@pytest.mark.hard
def test_memory_of_log_density_is_bounded():
    import tracemalloc

    c, m = 20_000, 2_000
    generator = np.random.default_rng(0)
    mixture = VmfMixture(sphere.random_directions(c, generator), np.full(c, 9.0), np.full((2, c), -math.log(c)))
    points = sphere.random_directions(m, generator)
    tracemalloc.start()
    mixture.log_density(points)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # (M, C) would be 320 MB


@pytest.mark.parametrize("high", [2.0, 6.0])
def test_density_integrates_to_one(high):
    """PRIOR_ART row 1, on an equal-area grid: longitude by the trapezium rule, z by Gauss-Legendre."""
    mixture = random_mixture(n=2, c=8, low=-6.0, high=high)
    z, weights = np.polynomial.legendre.leggauss(160)
    turn = np.arange(320) * 2 * math.pi / 320
    across = np.sqrt(1 - z * z)[:, None]
    points = np.stack([across * np.cos(turn), across * np.sin(turn), np.broadcast_to(z[:, None], (160, 320))], axis=-1)
    density = np.exp(mixture.log_density(points.reshape(-1, 3))).reshape(2, 160, 320)
    assert np.allclose(density.mean(axis=2) @ weights * 2 * math.pi, 1.0, atol=1e-10)


def test_probability_of_the_whole_sphere_and_of_caps_above_log_kappa_6():
    """Row 1 above: the closed form about each mean direction, and the whole is 1."""
    mixture = random_mixture(n=2, c=30, low=6.0, high=20.0)
    longitude, latitude = sphere.to_longitude_latitude(mixture.mean_directions)
    half = math.pi * sphere.EARTH_RADIUS_KM
    assert np.allclose(mixture.probability_within(longitude, latitude, half), 1.0, atol=1e-12)
    one = VmfMixture(mixture.mean_directions[:1], mixture.log_concentrations[:1], [[0.0]])
    radius = float(vmf.cap_quantile(0.9, one.log_concentrations[0])) * sphere.EARTH_RADIUS_KM
    assert float(one.probability_within(longitude[:1], latitude[:1], radius)[0, 0]) == pytest.approx(0.9, abs=1e-9)


def test_the_limit_of_no_concentration_is_uniform():
    """PRIOR_ART row 2."""
    mixture = VmfMixture(np.eye(3), [-12.0, -20.0, -40.0], np.log([[0.2, 0.3, 0.5]]))
    value = mixture.log_density(sphere.random_directions(100, np.random.default_rng(0)))
    assert np.abs(value + vmf.LOG_4PI).max() < 3e-6


def test_half_a_turn_differs_and_a_full_turn_does_not():
    """PRIOR_ART row 5."""
    mixture = random_mixture(n=1, c=20, high=8.0)
    longitude, latitude = np.linspace(-170, 170, 30), np.linspace(-60, 60, 30)
    here = mixture.log_density(sphere.to_directions(longitude, latitude))
    assert np.abs(here - mixture.log_density(sphere.to_directions(longitude + 180, latitude))).max() > 1.0
    assert np.abs(here - mixture.log_density(sphere.to_directions(longitude + 360, latitude))).max() < 1e-9


def test_everything_is_invariant_under_rotation():
    """PRIOR_ART row 6."""
    generator = np.random.default_rng(3)
    mixture = random_mixture(n=2, c=40, high=14.0)
    matrix = Rotation.from_quat(generator.standard_normal(4)).as_matrix()
    turned = VmfMixture(mixture.mean_directions @ matrix.T, mixture.log_concentrations, mixture.log_mixing_weights)
    points = np.concatenate([mixture.sample(100, seed=1).reshape(-1, 3), sphere.random_directions(100, generator)])
    before, after = mixture.log_density(points), turned.log_density(points @ matrix.T)
    assert np.allclose(before, after, rtol=1e-10, atol=1e-8)
    caps = [sphere.to_longitude_latitude(p) for p in (points, points @ matrix.T)]
    one, two = (m.probability_within(*cap, 100.0) for m, cap in zip((mixture, turned), caps, strict=True))
    assert np.abs(one - two).max() < 1e-9

    def in_degrees(lon, lat, lon0, lat0, kappa):  # the broken twin: a Gaussian of longitude and latitude
        return -kappa / 2 * (np.radians(lon - lon0) ** 2 + np.radians(lat - lat0) ** 2)

    (lon, lat), (lon_, lat_) = caps
    assert np.abs(in_degrees(lon, lat, lon[0], lat[0], 9.0) - in_degrees(lon_, lat_, lon_[0], lat_[0], 9.0)).max() > 1


@pytest.mark.parametrize("place", [(0.0, 90.0), (77.0, -90.0), (180.0, 0.0), (-180.0, 66.0), (179.9999, -12.0)])
def test_poles_and_the_antimeridian_are_places_like_others(place):
    """PRIOR_ART row 7."""
    there = VmfMixture(sphere.to_directions([place[0]], [place[1]]), [12.0], [[0.0]])
    plain = VmfMixture(sphere.to_directions([10.0], [20.0]), [12.0], [[0.0]])
    bearing = np.arange(0.0, 360.0, 30.0)
    rings = [np.stack(sphere.destination(*spot, bearing, 25.0)) for spot in (place, (10.0, 20.0))]
    values = [m.log_density(sphere.to_directions(*ring))[0] for m, ring in zip((there, plain), rings, strict=True)]
    assert np.abs(values[0] - values[1]).max() < 1e-8
    masses = [m.probability_within(*ring, 30.0)[0] for m, ring in zip((there, plain), rings, strict=True)]
    assert np.abs(masses[0] - masses[1]).max() < 1e-10
    east, west = there.probability_within([place[0] + 360.0, place[0] - 360.0], [place[1]] * 2, 20.0)[0]
    assert east == pytest.approx(west, abs=1e-9)


def test_probability_within_against_samples():
    mixture = random_mixture(n=3, c=30, high=12.0)
    drawn = mixture.sample(40_000, seed=4)
    longitude, latitude = sphere.to_longitude_latitude(drawn[:, 0])
    radius = np.array([100.0, 1000.0, 6000.0])
    expected = mixture.probability_within(longitude, latitude, radius)
    angle = sphere.angle(drawn[:, :, None], sphere.to_directions(longitude, latitude))  # (N, n, M)
    share = (angle * sphere.EARTH_RADIUS_KM <= radius).mean(axis=1)
    assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 40_000) + 1e-6)


def test_probability_within_skips_nothing_that_counts():
    mixture = random_mixture(n=4, c=300)
    generator = np.random.default_rng(0)
    longitude, latitude = sphere.to_longitude_latitude(sphere.random_directions(20, generator))
    radius = 10 ** generator.uniform(-1, 4, 20)
    offset = sphere.angle(mixture.mean_directions[:, None], sphere.to_directions(longitude, latitude))
    each = vmf.probability_within(offset, radius / sphere.EARTH_RADIUS_KM, mixture.log_concentrations[:, None])
    exact = np.exp(mixture.log_mixing_weights) @ each
    assert np.abs(mixture.probability_within(longitude, latitude, radius) - exact).max() < 2e-12


def test_samples_have_the_entropy_of_the_density():
    mixture = VmfMixture([[0.0, 0.0, 1.0]], [8.0], [[0.0]])
    drawn = mixture.sample(50_000, seed=0)[0]
    logs = mixture.log_density(drawn)[0]
    assert float(-logs.mean()) == pytest.approx(float(vmf.entropy(8.0)), abs=5 * logs.std() / math.sqrt(50_000))


def test_samples_never_come_from_absent_components_and_repeat_by_seed():
    mixture = VmfMixture(
        np.concatenate([np.eye(3), -np.eye(3)]), np.full(6, 18.0), [[-np.inf, 0, -np.inf, -np.inf, -np.inf, -np.inf]]
    )
    drawn = mixture.sample(1000, seed=7)
    assert np.all(drawn[0] @ np.eye(3)[1] > 0.999)
    assert np.array_equal(drawn, mixture.sample(1000, seed=7))
    assert np.array_equal(drawn, mixture.sample(1000, seed=np.random.default_rng(7)))
    assert not np.array_equal(drawn, mixture.sample(1000, seed=8))


def test_indexing():
    mixture = random_mixture(n=6, c=9)
    assert (len(mixture), mixture.num_components) == (6, 9)
    assert [len(mixture[2]), len(mixture[1:4]), len(mixture[[5, 0]]), len(mixture[np.arange(6) % 2 == 0])] == [
        1,
        3,
        2,
        3,
    ]
    assert len(mixture[np.int64(3)]) == 1
    assert np.array_equal(mixture[-1].log_mixing_weights[0], mixture.log_mixing_weights[5])
    assert np.array_equal(mixture[[5, 0]].log_mixing_weights, mixture.log_mixing_weights[[5, 0]])
    assert mixture[[]].log_mixing_weights.shape == mixture[np.zeros(6, dtype=bool)].log_mixing_weights.shape == (0, 9)
    assert len(mixture[:0]) == 0
    assert mixture[:0].log_density(np.eye(3)).shape == (0, 3)
    assert mixture[:0].sample(4, seed=0).shape == (0, 4, 3)
    assert mixture[:0].probability_within([0.0], [0.0], 1.0).shape == (0, 1)
    assert len(mixture[:0].to_cells(0.1)) == 0
    with pytest.raises(IndexError):
        mixture[6]
    with pytest.raises(AttributeError):
        mixture.log_concentrations = np.zeros(9)


def test_inputs_are_checked_and_made_exact():
    mean = np.array([[0.0, 0.0, 1.0 + 5e-7], [1.0, 0.0, 0.0]])
    mixture = VmfMixture(mean.tolist(), np.float32([3, 4]), np.log(np.float32([[0.25, 0.7501]])))
    assert np.abs(np.linalg.norm(mixture.mean_directions, axis=1) - 1).max() < 1e-15
    assert float(special.logsumexp(mixture.log_mixing_weights)) == pytest.approx(0.0, abs=1e-15)
    assert mixture.log_mixing_weights.dtype == np.float64
    good = {"mean_directions": np.eye(3)[:2], "log_concentrations": [1.0, 2.0], "log_mixing_weights": [[0.0, -np.inf]]}
    for name, value, words in [
        ("mean_directions", np.eye(3), "the shapes must be"),
        ("mean_directions", [[1.0, 0, 0], [0, 0.5, 0]], "mean direction 1 is .*, of length 0.5, not 1; normalise them"),
        ("mean_directions", [[1.0, 0, 0], [0, np.nan, 0]], "mean direction 1"),
        ("log_concentrations", [1.0, np.nan], "log concentration 1 is nan"),
        ("log_concentrations", [np.inf, 1.0], "log concentration 0 is inf"),
        ("log_mixing_weights", [0.0, -np.inf], "the shapes must be"),
        ("log_mixing_weights", [[0.0, 0.0]], "image 0 sum to exp"),
        ("log_mixing_weights", [[-np.inf, -np.inf]], "image 0 has log mixing weights"),
        ("log_mixing_weights", [[0.0, np.nan]], "image 0 has log mixing weights"),
    ]:
        with pytest.raises(ValueError, match=words):
            VmfMixture(**{**good, name: value})
    for radius, words in [(-1.0, "cap 0"), (np.nan, "cap 0")]:
        with pytest.raises(ValueError, match=words):
            VmfMixture(**good).probability_within([0.0], [0.0], radius)


def test_ties_give_a_mixture_not_a_sum_of_directions():
    """PRIOR_ART row 10: two equal weights are two places, and the middle between them is none."""
    mixture = VmfMixture(sphere.to_directions([0.0, 90.0], [0.0, 0.0]), [14.0, 14.0], np.log([[0.5, 0.5]]))
    mass = mixture.probability_within([0.0, 45.0, 90.0], [0.0] * 3, 100.0)[0]
    assert np.allclose(mass, [0.5, 0.0, 0.5], atol=1e-9)


def test_both_densities_answer_alike():
    mixture = random_mixture(n=2, c=12, high=8.0)
    cells = mixture.to_cells(max_mass_error=0.02)
    assert isinstance(cells, CellMixture)
    points = mixture.sample(300, seed=0).reshape(-1, 3)
    longitude, latitude = sphere.to_longitude_latitude(points[:20])
    for one, two in [
        (mixture.probability_within(longitude, latitude, 700.0), cells.probability_within(longitude, latitude, 700.0)),
    ]:
        assert one.shape == two.shape
        assert np.abs(one - two).max() < 0.02
    assert mixture.log_density(points).shape == cells.log_density(points).shape
    assert mixture.sample(5, seed=0).shape == cells.sample(5, seed=0).shape


def test_other_weights_over_the_same_components_are_checked_as_those_of_a_new_mixture():
    first = VmfMixture(np.eye(3), [3.0, 4.0, 5.0], np.empty((0, 3)))
    logs = np.log([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    made, fresh = first.with_mixing_weights(logs), VmfMixture(np.eye(3), [3.0, 4.0, 5.0], logs)
    assert made.mean_directions is first.mean_directions
    np.testing.assert_array_equal(made.log_density(np.eye(3)), fresh.log_density(np.eye(3)))
    for wrong in (logs[:, :2], logs + 1.0, logs * np.nan):
        with pytest.raises(ValueError, match=r"shapes must be|sum to exp|not a finite"):
            first.with_mixing_weights(wrong)


@pytest.mark.parametrize(
    "use",
    [
        geo_mvmf.fuse,
        lambda given: geo_mvmf.fuse([given]),
        lambda given: geo_mvmf.restrict(given, BOX),
        geo_mvmf.estimate,
        geo_mvmf.credible_regions,
        lambda given: geo_mvmf.density_raster(given, geo_mvmf.Grid.globe(30.0)),
        lambda given: geo_mvmf.zone_probabilities(given, geopandas.GeoDataFrame(geometry=[BOX], crs=4326)),
    ],
)
def test_what_is_no_density_is_refused_in_words(use):
    """Predictions have methods of the same names."""
    with pytest.raises(UsageError, match="a VmfMixture or CellMixture is wanted, not object; the `mixture` of Pred"):
        use(object())
