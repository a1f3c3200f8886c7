"""Points from densities: eq. 7 and eq. 6."""

import numpy as np
import pytest
from scipy import optimize
from scipy.spatial.transform import Rotation

from geo_mvmf import s2, sphere
from geo_mvmf.errors import UsageError
from geo_mvmf.maps import estimates
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
    turn = Rotation.from_quat(np.random.default_rng(1).standard_normal(4)).as_matrix()
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
    with pytest.raises(UsageError, match="estimator 'middle' is not one of component, mode"):
        estimate(random_mixture(0), "middle")


def expected_distance(mixture, i, directions, samples=None):
    """Mean angle from places to the density, by an independent sum over each component's own quantiles."""
    drawn = mixture[i].sample(40_000, seed=5)[0] if samples is None else samples
    return np.array([sphere.angle(place, drawn).mean() for place in directions])


def clustered(seed, n=2, c=40, close=0.05, low=4.0, high=12.0):
    """Components in a few clusters, some of them at awkward places."""
    generator = np.random.default_rng(seed)
    towns = np.concatenate([sphere.to_directions([180.0, 0.0], [-17.0, 90.0]), sphere.random_directions(3, generator)])
    directions = towns[generator.integers(0, 5, c)] + close * generator.normal(size=(c, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = generator.dirichlet(np.full(c, 0.5), n)
    return VmfMixture(directions, generator.uniform(low, high, c), np.log(weights))


def candidates(seed, about, radius):
    generator = np.random.default_rng(seed)
    near = np.repeat(about, 60, axis=0)
    near += radius * generator.exponential(0.5, (len(near), 1)) * generator.normal(size=near.shape)
    return np.concatenate(
        [near / np.linalg.norm(near, axis=1, keepdims=True), sphere.random_directions(600, generator)]
    )


def _gain(place, other, drawn):
    """By how many standard errors another place is nearer to the same samples."""
    nearer = sphere.angle(place, drawn) - sphere.angle(other, drawn)
    return nearer.mean() / (nearer.std() / np.sqrt(len(drawn)) + 1e-6)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.hard) for seed in range(1, 20))])
def test_no_place_of_a_fine_search_is_nearer_than_the_median(seed):
    mixture = clustered(seed)
    found, caught = sphere.to_directions(*estimate(mixture, "median").T), []
    for i in range(len(mixture)):
        drawn = mixture[i].sample(8_000, seed=seed)[0]
        others = candidates(seed, np.concatenate([found[i : i + 1], mixture.mean_directions[:6]]), 0.1)
        gain = np.array([_gain(found[i], place, drawn) for place in others])
        assert gain.max() < 5.0, others[gain.argmax()]
        # the broken twin: the weighted mean of the components instead of the median
        mean = np.exp(mixture.log_mixing_weights[i]) @ mixture.mean_directions
        caught.append(_gain(mean / np.linalg.norm(mean), found[i], drawn))
    assert max(caught) > 5.0


@pytest.mark.parametrize("radius_km", [5.0, 200.0, 2500.0])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.hard) for seed in range(1, 20))])
def test_no_place_of_a_fine_search_holds_more_than_best_within(seed, radius_km):
    mixture = clustered(seed)
    found = estimate(mixture, "best_within", radius_km)
    for i in range(len(mixture)):
        about = np.concatenate([sphere.to_directions(*found[i : i + 1].T), mixture.mean_directions])
        others = candidates(seed, about, radius_km / sphere.EARTH_RADIUS_KM)
        best = mixture[i].probability_within(*found[i], radius_km)[0, 0]
        held = mixture[i].probability_within(*sphere.to_longitude_latitude(others), radius_km)[0]
        assert held.max() <= best * 1.005 + 1e-4


@pytest.mark.parametrize("kind", ["components", pytest.param("cells", marks=pytest.mark.hard)])
def test_best_within_is_never_worse_than_the_other_estimates(kind):
    mixture = clustered(7) if kind == "components" else clustered(7, n=1, high=8.0).to_cells(0.2)
    for radius_km in (20.0, 3000.0, 30000.0):
        held = {}
        for estimator in ("component", "mode", "median", "best_within"):
            places = estimate(mixture, estimator, radius_km if estimator == "best_within" else None)
            held[estimator] = np.diag(mixture.probability_within(*places.T, radius_km))
        for other in ("component", "mode", "median"):
            assert np.all(held["best_within"] >= held[other] - 2e-4)


def test_the_twin_that_takes_the_mode_for_all_questions_is_caught():
    mixture = clustered(3, n=6)
    mode, best = estimate(mixture, "mode"), estimate(mixture, "best_within", 1000.0)
    held = [np.diag(mixture.probability_within(*places.T, 1000.0)) for places in (mode, best)]
    assert np.max(held[1] - held[0]) > 0.02
    i = int(np.argmax(held[1] - held[0]))
    median = estimate(mixture, "median")
    distance = expected_distance(mixture, i, sphere.to_directions(*np.stack([mode[i], median[i]]).T))
    assert distance[1] < distance[0] * 0.99


def test_a_disc_finds_two_peaks_that_only_a_place_between_them_reaches():
    """The lens in which a disc holds both is narrow: a search on a lattice would miss it."""
    peaks = sphere.to_directions([0.0, 3.55, 40.0], [0.0, 0.0, 0.0])
    mixture = VmfMixture(peaks, np.full(3, 18.0), np.log([[0.3, 0.3, 0.4]]))
    found = estimate(mixture, "best_within", 200.0)[0]
    assert mixture.probability_within(*found, 200.0)[0, 0] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("estimator", ["median", "best_within"])
@pytest.mark.parametrize("log_kappa", [-3.0, 2.0, 9.0, 18.0])
@pytest.mark.parametrize("place", [(12.0, -40.0), (180.0, 5.0), (0.0, 90.0), (33.0, -89.9)])
def test_one_component_is_estimated_by_its_mean_direction(estimator, log_kappa, place):
    mixture = VmfMixture(sphere.to_directions(*place)[None], [log_kappa], [[0.0]])
    found = estimate(mixture, estimator, 25.0 if estimator == "best_within" else None)[0]
    assert sphere.great_circle_distance_km(*found, *place) < 0.01


def test_the_median_of_two_equal_components_lies_on_their_arc():
    ends = sphere.to_directions([170.0, -160.0], [10.0, 20.0])
    found = estimate(VmfMixture(ends, [9.0, 9.0], np.log([[0.5, 0.5]])), "median")
    direction = sphere.to_directions(*found[0])
    through = sphere.angle(ends[0], direction) + sphere.angle(direction, ends[1])
    assert through == pytest.approx(sphere.angle(ends[0], ends[1]), abs=1e-5)


def test_turning_the_sphere_turns_the_median_and_keeps_what_best_within_holds():
    mixture = clustered(4)
    turn = Rotation.from_quat(np.random.default_rng(2).standard_normal(4)).as_matrix()
    turned = VmfMixture(mixture.mean_directions @ turn.T, mixture.log_concentrations, mixture.log_mixing_weights)
    expected = sphere.to_directions(*estimate(mixture, "median").T) @ turn.T
    np.testing.assert_allclose(sphere.to_directions(*estimate(turned, "median").T), expected, atol=1e-6)
    held = [np.diag(m.probability_within(*estimate(m, "best_within", 300.0).T, 300.0)) for m in (mixture, turned)]
    assert held[0] == pytest.approx(held[1], abs=2e-3)


def test_cells_and_the_components_they_stand_for_have_nearly_the_same_median():
    mixture = clustered(5, c=15, high=8.0)
    places = [estimate(each, "median") for each in (mixture, mixture.to_cells(0.1))]
    distance = sphere.great_circle_distance_km(*places[0].T, *places[1].T)
    drawn = sphere.to_directions(*places[0].T)
    spread = np.array([expected_distance(mixture, i, drawn[i : i + 1])[0] for i in range(2)]) * sphere.EARTH_RADIUS_KM
    assert np.all(distance < 0.1 * spread)


def test_a_cell_wider_than_the_radius_is_answered_by_the_densest():
    faces = s2.face_cells()
    small = s2.cell_ids(sphere.to_directions(20.0, 10.0), 5)
    ids = np.sort(np.array([small, *faces[1:4]]))
    probabilities = np.where(ids == small, 0.3, 0.7 / 3.0)
    found = estimate(CellMixture(ids, probabilities, [0, 4]), "best_within", 20.0)
    assert s2.cell_ids(sphere.to_directions(*found[0]), 5) == small


CROWDS = {"even": (8.0, 8.0, 1.0), "a few heavy": (8.0, 8.0, 3.0), "all widths": (4.0, 13.0, 1.5)}


@pytest.fixture
def searches(monkeypatch):
    """An image of many components, and its estimates by a search over few of them and by one over all."""

    def both(case, seed, *question):
        low, high, spread = CROWDS[case]
        generator = np.random.default_rng(seed)
        logits = generator.normal(0.0, spread, 9000)
        towns = sphere.random_directions(30, generator)
        directions = sphere.random_directions(9000, generator)
        directions[::2] = towns[generator.integers(0, 30, 4500)] + 0.05 * generator.normal(size=(4500, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        weights = np.exp(logits - np.logaddexp.reduce(logits))
        mixture = VmfMixture(directions, generator.uniform(low, high, 9000), np.log(weights)[None])
        places = []
        for crowd in (1000, 10_000):
            monkeypatch.setattr(estimates, "CROWD", crowd)
            places.append(estimate(mixture, *question)[0])
        return mixture, places

    return both


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.hard) for seed in range(1, 6))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CROWDS)
def test_the_median_of_a_crowd_is_as_near_as_that_of_a_search_over_all(searches, case, seed):
    mixture, places = searches(case, seed, "median")
    image = next(estimates._images(mixture)).exact
    polished = [estimates.placing.polish(image, sphere.to_directions(*place)[None], sign=1.0) for place in places]
    few, over_all = (float(values[0]) for _, values in polished)
    assert few <= over_all * (1.0 + 1e-9)
    # what was found was at its best already
    moved = np.linalg.norm(polished[0][0][0] - sphere.to_directions(*places[0]))
    assert moved * sphere.EARTH_RADIUS_KM < 0.01


@pytest.mark.parametrize("radius_km", [100.0, 1500.0])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CROWDS)
def test_no_less_of_a_crowd_is_within_reach_than_by_a_search_over_all(searches, case, seed, radius_km):
    mixture, places = searches(case, seed, "best_within", radius_km)
    few, over_all = (mixture.probability_within(*place, radius_km)[0, 0] for place in places)
    assert few >= over_all * (1.0 - 1e-6)


def one_town(seed, c=2000):
    """Components of 1 to 70 km, thickest in the middle of a town."""
    generator = np.random.default_rng(seed)
    places = sphere.to_directions(generator.normal(10.0, 0.4, c), generator.normal(45.0, 0.4, c))
    weights = generator.gamma(2.0, size=(1, c))
    return VmfMixture(places, generator.uniform(9.0, 17.0, c), np.log(weights / weights.sum()))


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.hard) for seed in range(6)])
@pytest.mark.parametrize("radius_km", [20.0, 60.0])
def test_no_less_of_a_dense_town_is_within_a_small_radius_than_by_a_search_over_all(monkeypatch, seed, radius_km):
    mixture, held = one_town(seed), []
    for crowd in (1000, 10_000):
        monkeypatch.setattr(estimates, "CROWD", crowd)
        held.append(mixture.probability_within(*estimate(mixture, "best_within", radius_km)[0], radius_km)[0, 0])
    assert held[0] >= held[1] * (1.0 - 1e-6)


def test_radii_are_asked_for_where_they_belong():
    mixture = random_mixture(0)
    for estimator, radius, message in (
        ("best_within", None, "needs radius_km, a number of kilometres above 0, not None"),
        ("best_within", -1.0, "not -1.0"),
        ("best_within", np.nan, "not nan"),
        ("median", 25.0, "radius_km 25.0 was given, but estimator 'median' takes none"),
    ):
        with pytest.raises(UsageError, match=message):
            estimate(mixture, estimator, radius)
    for estimator in ("component", "mode", "median"):
        assert estimate(mixture[:0], estimator).shape == (0, 2)
    assert estimate(mixture[:0], "best_within", 25.0).shape == (0, 2)
