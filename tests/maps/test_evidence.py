"""Evidence: the products are those of closed forms and of fine grids, and nothing is counted twice."""

import itertools
import math

import geopandas
import numpy as np
import pytest
import shapely

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.errors import BadInputError
from geo_mvmf.maps import combining, evidence, multipliers, products
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import CellMixture, VmfMixture


def random_mixture(seed, c=4, low=0.0, high=9.0, n=1):
    generator = np.random.default_rng(seed)
    weights = np.log(generator.dirichlet(np.ones(c), n))
    return VmfMixture(sphere.random_directions(c, generator), generator.uniform(low, high, c), weights)


def closed_product(mixtures):
    """Product of vMF mixtures, and the logarithm of its integral: every choice of components adds kappa mu."""
    directions, log_kappas, logs = [], [], []
    for chosen in itertools.product(*(range(m.num_components) for m in mixtures)):
        kappas = [math.exp(m.log_concentrations[i]) for m, i in zip(mixtures, chosen, strict=True)]
        means = [m.mean_directions[i] for m, i in zip(mixtures, chosen, strict=True)]
        vector = sum(k * mu for k, mu in zip(kappas, means, strict=True))
        kappa = float(np.linalg.norm(vector))
        # |sum|^2 - (sum of kappas)^2, without cancellation: how far the product is from its factors' peaks
        apart = sum(
            ka * kb * float(np.square(a - b).sum())
            for (ka, a), (kb, b) in itertools.combinations(zip(kappas, means, strict=True), 2)
        )
        lost = apart / (sum(kappas) + kappa)
        peaks = [
            m.log_mixing_weights[0, i] + float(vmf.log_normaliser(math.log(k)))
            for m, i, k in zip(mixtures, chosen, kappas, strict=True)
        ]
        directions.append(vector / kappa)
        log_kappas.append(math.log(kappa))
        logs.append(sum(peaks) - float(vmf.log_normaliser(math.log(kappa))) - lost)
    logs = np.array(logs)
    log_mass = float(np.logaddexp.reduce(logs))
    return VmfMixture(np.array(directions), np.array(log_kappas), logs[None] - log_mass), log_mass


def sampled_variation(exact, cells, n=10_000):
    """Total variation: mean of max(0, 1 - q / p) over draws from the exact density, and its standard error."""
    points = exact.sample(n, seed=3)[0]
    short = np.maximum(0.0, 1.0 - np.exp(cells.log_density(points)[0] - exact.log_density(points)[0]))
    return float(short.mean()), float(short.std() / math.sqrt(n))


def apart(log_kappa, sigmas, seed=0):
    """Two equally narrow peaks so many standard deviations apart."""
    first = sphere.random_directions(1, np.random.default_rng(seed))
    angle = sigmas * math.exp(-log_kappa / 2)
    second = math.cos(angle) * first + math.sin(angle) * sphere.tangent_basis(first)[0, :1]
    return [VmfMixture(mu, [log_kappa], [[0.0]]) for mu in (first, second)]


# --- the closed form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("log_kappa", "sigmas"),
    [(2.0, 0.5), (9.0, 8.0), (16.0, 0.5), (16.0, 8.0), (16.0, 100.0), (20.0, 8.0), (20.0, 100.0), (20.0, 1000.0)],
)
def test_two_peaks_far_apart_have_their_product_between_them(log_kappa, sigmas):
    pair = apart(log_kappa, sigmas)
    exact, log_mass = closed_product(pair)
    found = combining.combine(pair)
    assert found.log_mass == pytest.approx(log_mass, abs=1e-5)
    value, error = sampled_variation(exact, found.mixture)
    assert value - 4 * error <= found.mixture.mass_errors[0] <= 5e-3


def test_refining_the_first_factor_only_is_noticed():
    """The broken twin: tile the first density, multiply by the second at the cells' centres."""
    pair = apart(16.0, 8.0)
    exact, _ = closed_product(pair)
    ids, masses = pair[0].to_cells(5e-3).of(0)
    masses = masses * np.exp(pair[1].log_density(s2.centre(ids))[0] - pair[1].log_density(exact.mean_directions)[0, 0])
    twin = CellMixture(ids, masses / masses.sum(), [0, ids.size])
    assert sampled_variation(exact, twin)[0] > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_mixtures_against_the_closed_form(seed):
    mixtures = [random_mixture(10 * seed + k, c=3, high=[9.0, 16.0, 20.0][seed]) for k in range(3)]
    exact, log_mass = closed_product(mixtures)
    found = combining.combine(mixtures)
    # what is left out weighs at most 3 % of the allowed error
    assert found.log_mass == pytest.approx(log_mass, abs=5e-4)
    value, error = sampled_variation(exact, found.mixture)
    assert value - 4 * error <= found.mixture.mass_errors[0] <= 5e-3


@pytest.mark.hard
@pytest.mark.parametrize("seed", range(40))
def test_many_mixtures_against_the_closed_form(seed):
    generator = np.random.default_rng(seed)
    count, high = int(generator.integers(2, 5)), float(generator.uniform(2.0, 20.0))
    mixtures = [random_mixture(1000 * seed + k, c=4, high=high) for k in range(count)]
    exact, log_mass = closed_product(mixtures)
    found = combining.combine(mixtures, max_mass_error=float(generator.choice([0.02, 5e-3, 2e-3])))
    assert found.log_mass == pytest.approx(log_mass, abs=2e-3)
    value, error = sampled_variation(exact, found.mixture)
    assert value - 4 * error <= found.mixture.mass_errors[0]


# --- a regular grid ------------------------------------------------------------------------------------------------


def on_grid(log_density, resolution=0.25):
    """Directions, areas and normalised masses of a regular grid: the second oracle."""
    grid = Grid.globe(resolution)
    longitude, latitude = grid.longitude_latitude()
    directions = sphere.to_directions(longitude.ravel(), latitude.ravel())
    areas = np.cos(np.radians(latitude.ravel()))
    values = log_density(directions)
    masses = np.exp(values - values.max()) * areas
    return directions, masses / masses.sum()


def caps_agree(cells, directions, masses, tolerance, seed=0):
    generator = np.random.default_rng(seed)
    centres = directions[generator.choice(masses.size, 12, p=masses)]
    for radius in (800.0, 3000.0):
        longitude, latitude = sphere.to_longitude_latitude(centres)
        found = cells.probability_within(longitude, latitude, radius)[0]
        inside = centres @ directions.T >= math.cos(radius / sphere.EARTH_RADIUS_KM)
        np.testing.assert_allclose(found, inside @ masses, atol=tolerance)


@pytest.mark.parametrize(
    "independence", [0.4, pytest.param(0.0, marks=pytest.mark.hard), pytest.param(1.0, marks=pytest.mark.hard)]
)
def test_the_definition_on_a_regular_grid(independence):
    images = [random_mixture(seed, c=5, high=5.0) for seed in (1, 2, 3)]
    prior = random_mixture(4, c=5, high=3.0)
    share = (1 + 2 * independence) / 3

    def log_density(y):
        log_prior = prior.log_density(y)[0]
        return log_prior + share * sum(image.log_density(y)[0] - log_prior for image in images)

    fused = evidence.fuse(images, prior=prior, independence=independence)
    caps_agree(fused, *on_grid(log_density, 1.0), tolerance=7e-3)


def test_the_training_prior_is_counted_once():
    """Images that say nothing leave the prior as it is; the twin multiplies densities and counts it three times."""
    prior = random_mixture(5, c=6, high=6.0)
    fused = evidence.fuse([prior, prior, prior], prior=prior)
    value, error = sampled_variation(prior, fused)
    assert value - 4 * error <= fused.mass_errors[0]
    twin = evidence.fuse([prior, prior, prior])
    assert sampled_variation(prior, twin)[0] > 0.1


def test_copies_of_one_image_are_worth_one_image():
    image, prior = random_mixture(6, high=12.0), random_mixture(7, high=3.0)
    fused = evidence.fuse([image, image, image], prior=prior, independence=0.0)
    value, error = sampled_variation(image, fused)
    assert value - 4 * error <= fused.mass_errors[0]
    alone = evidence.fuse(image, prior=prior)
    assert sampled_variation(image, alone)[0] <= 5e-3


# --- densities on cells --------------------------------------------------------------------------------------------


def uniform_on(ids, probabilities):
    probabilities = np.asarray(probabilities, dtype=float)
    return CellMixture(ids, probabilities / probabilities.sum(), [0, len(ids)])


def test_cells_of_different_levels_are_multiplied_exactly():
    generator = np.random.default_rng(0)
    faces = s2.face_cells()
    fine = np.sort(np.concatenate([s2.children(s2.children(faces[:2])).ravel(), faces[2:]]))
    one, two = uniform_on(fine, generator.random(fine.size)), uniform_on(faces, generator.random(6))
    found = combining.combine([one, two, two])
    expected = np.exp(one.log_density(s2.centre(fine))[0] + 2 * two.log_density(s2.centre(fine))[0])
    masses = expected * s2.area_sr(fine)
    value = np.exp(found.mixture.log_density(s2.centre(fine))[0])
    np.testing.assert_allclose(value, expected / masses.sum(), rtol=1e-9)
    assert found.log_mass == pytest.approx(math.log(masses.sum()), abs=1e-9)


def test_a_smooth_density_times_cells():
    cells = uniform_on(s2.children(s2.children(s2.face_cells()[0])).ravel(), 1.0 + np.arange(16.0))
    smooth = random_mixture(8, high=4.0)
    fused = evidence.fuse([smooth, cells])

    def log_density(y):
        with np.errstate(divide="ignore"):
            return smooth.log_density(y)[0] + cells.log_density(y)[0]

    caps_agree(fused, *on_grid(log_density, 0.5), tolerance=8e-3)


def test_densities_without_a_common_place_are_refused():
    faces = s2.face_cells()
    with pytest.raises(BadInputError, match="2 images have no place in common"):
        evidence.fuse([uniform_on(faces[:1], [1.0]), uniform_on(faces[1:2], [1.0])])


@pytest.mark.parametrize(
    ("mixtures", "options", "message"),
    [
        ([], {}, "one or more"),
        (random_mixture(0), {"independence": 1.5}, r"independence 1.5 is not in 0..1"),
        (random_mixture(0), {"independence": float("nan")}, "independence nan"),
        (random_mixture(0), {"prior": random_mixture(0, n=2)}, "the prior holds 2 densities"),
    ],
)
def test_wrong_options_are_named(mixtures, options, message):
    with pytest.raises(ValueError, match=message):
        evidence.fuse(mixtures, **options)


# --- areas ---------------------------------------------------------------------------------------------------------

AREAS = {
    "box": shapely.box(5.0, 40.0, 20.0, 55.0),
    "over the antimeridian": shapely.MultiPolygon([shapely.box(160, -30, 180, 10), shapely.box(-180, -30, -150, 10)]),
    "polar cap": shapely.box(-180.0, 60.0, 180.0, 90.0),
    "tiny": shapely.box(10.0, 50.0, 10.02, 50.02),
    "with a hole": shapely.box(-60, -60, 60, 60).difference(shapely.box(-20, -20, 20, 20)),
}


@pytest.mark.parametrize(
    "name",
    [
        "over the antimeridian",
        "tiny",
        *(pytest.param(name, marks=pytest.mark.hard) for name in ("box", "polar cap", "with a hole")),
    ],
)
def test_restricted_to_an_area(name):
    """The probability of the area, and the density inside, against samples; nothing far outside."""
    area = AREAS[name]
    mixture = random_mixture(9, c=6, high=5.0)
    found = combining.combine([mixture], multipliers=[evidence.area_multiplier(area)])
    points = mixture.sample(40_000, seed=1)[0]
    inside = shapely.contains_xy(area, *sphere.to_longitude_latitude(points))
    share = math.exp(found.log_mass)
    assert abs(inside.mean() - share) <= 4 * math.sqrt(share * (1 - share) / inside.size) + 5e-3 * share
    assert found.mixture.mass_errors[0] <= 5e-3
    drawn = found.mixture.sample(20_000, seed=2)[0]
    kept = shapely.contains_xy(area, *sphere.to_longitude_latitude(drawn))
    assert (~kept).mean() <= 4e-3
    if name == "tiny":
        return
    for radius in (300.0, 3000.0):
        longitude, latitude = sphere.to_longitude_latitude(drawn[:5])
        cap = found.mixture.probability_within(longitude, latitude, radius)[0]
        near = sphere.angle(points[None, inside], drawn[:5, None]) <= radius / sphere.EARTH_RADIUS_KM
        assert np.abs(cap - near.mean(axis=1)).max() <= 5e-3 + 5 * 0.5 / math.sqrt(inside.sum())


def test_a_narrow_peak_outside_the_area_leaves_its_flank():
    """What is inside hugs the border; where less than 1e-9 of the probability is inside the area is refused."""
    peak = VmfMixture(sphere.to_directions([10.0], [0.0]), [16.0], [[0.0]])
    for sigmas in (2.0, 3.0):
        border = math.degrees(sigmas * math.exp(-8.0))
        left = evidence.restrict(peak, shapely.box(10.0 + border, -1.0, 11.0, 1.0), max_mass_error=0.02)
        drawn, _ = sphere.to_longitude_latitude(left.sample(2000, seed=0)[0])
        beyond = np.radians(drawn - 10.0) * math.exp(8.0) - sigmas
        tail = math.erfc(sigmas / math.sqrt(2.0)) / 2.0  # of a Gaussian, and its mean beyond the border
        mean = math.exp(-sigmas * sigmas / 2.0) / math.sqrt(2.0 * math.pi) / tail - sigmas
        assert beyond.mean() == pytest.approx(mean, abs=0.03)
    with pytest.raises(
        BadInputError, match=r"image 0: the area holds 10\^-\d+\.\d of its probability; less than 1e-09"
    ):
        evidence.restrict(peak, shapely.box(10.5, -1.0, 11.0, 1.0))


def test_an_area_in_another_crs_and_a_layer(tmp_path):
    mixture = random_mixture(9, c=6, high=5.0)
    layer = geopandas.GeoDataFrame(geometry=[AREAS["box"].segmentize(0.1)], crs="OGC:CRS84")
    layer.to_crs("EPSG:3035").to_file(tmp_path / "area.gpkg")
    from_file = evidence.restrict(mixture, tmp_path / "area.gpkg", max_mass_error=0.02)
    plain = evidence.restrict(mixture, AREAS["box"], max_mass_error=0.02)
    longitude, latitude = np.array([10.0, 15.0]), np.array([45.0, 52.0])
    wanted = plain.probability_within(longitude, latitude, 300.0)
    np.testing.assert_allclose(from_file.probability_within(longitude, latitude, 300.0), wanted, atol=0.03)


@pytest.mark.parametrize("area", [shapely.Polygon(), shapely.box(0, 0, 0, 1)])
def test_an_area_without_any_is_refused(area):
    with pytest.raises(BadInputError, match="the area is empty"):
        evidence.restrict(random_mixture(0), area)


def test_restricting_twice_is_restricting_to_both():
    mixture = random_mixture(9, c=6, high=5.0)
    west, south = shapely.box(-10, -80, 10, 80), shapely.box(-60, 0, 60, 50)
    twice = evidence.restrict(evidence.restrict(mixture, west, max_mass_error=0.02), south, max_mass_error=0.02)
    once = evidence.restrict(mixture, west.intersection(south), max_mass_error=0.02)
    longitude, latitude = np.array([0.0, 5.0]), np.array([20.0, 45.0])
    wanted = once.probability_within(longitude, latitude, 1000.0)
    np.testing.assert_allclose(twice.probability_within(longitude, latitude, 1000.0), wanted, atol=0.05)


# --- prior rasters -------------------------------------------------------------------------------------------------


def raster_density(grid, values):
    def log_density(y):
        column, row = grid.to_pixels(*sphere.to_longitude_latitude(y))
        inside = (column >= 0) & (column < grid.shape[1]) & (row >= 0) & (row < grid.shape[0])
        found = np.zeros(inside.size)
        found[inside] = values[row[inside].astype(int), column[inside].astype(int)]
        with np.errstate(divide="ignore"):
            return np.log(found)

    return log_density


GRIDS = {
    "globe": Grid.globe(30.0),
    "geographic window over 180": Grid.from_bounds(150.0, -40.0, -140.0, 60.0, 14.0),
    "Mercator": Grid.from_bounds(-2e7, -1e7, 2e7, 1e7, 4e6, crs="EPSG:3857"),
    "polar": Grid.from_bounds(-4e6, -4e6, 4e6, 4e6, 1.6e6, crs="EPSG:3413"),
}


@pytest.mark.hard
@pytest.mark.parametrize("name", GRIDS)
def test_a_prior_raster_replaces_or_multiplies(name):
    grid, image, prior = GRIDS[name], random_mixture(11, c=5, high=2.0), random_mixture(12, c=5, high=2.0)
    values = np.random.default_rng(0).random(grid.shape) ** 3
    values[::3] = 0.0
    raster = multipliers.RasterMultiplier(values, grid)
    for keep in (True, False):
        found = combining.combine([image], prior=prior, keep_prior=keep, multipliers=[raster], max_mass_error=0.02)

        def log_density(y, keep=keep):
            density = image.log_density(y)[0] - (0.0 if keep else prior.log_density(y)[0])
            return density + raster_density(grid, values)(y)

        assert found.mixture.mass_errors[0] <= 0.02
        caps_agree(found.mixture, *on_grid(log_density, 1.0), tolerance=0.03)


def test_bounds_of_multipliers_hold():
    """Of random cells, every value at random points of them lies within what `look` says, and the mean is the mean."""
    generator = np.random.default_rng(1)
    layers = {
        "area": (multipliers.AreaMultiplier(AREAS["with a hole"]), 0.2),
        "cells": (multipliers.CellMultiplier(np.sort(s2.children(s2.face_cells()[:4]).ravel()), np.arange(16.0)), 1e-9),
    }
    for name, grid in GRIDS.items():
        layers[name] = (multipliers.RasterMultiplier(generator.random(grid.shape), grid), 0.25)
    for level in (1, 3, 5, 8):
        cells = np.unique(s2.cell_ids(sphere.random_directions(60, generator), level))
        points = np.stack(
            [combining.CellMixture(cells[[k]], [1.0], [0, 1]).sample(50, seed=k)[0] for k in range(cells.size)]
        )
        leaves = s2.leaf_ids(points.reshape(-1, 3))
        for name, (layer, tolerance) in layers.items():
            look, at = layer.look(cells), layer.look(leaves).mean.reshape(cells.size, -1)
            assert (at >= look.low[:, None] - 1e-12).all(), name
            assert (at <= look.high[:, None] + 1e-12).all(), name
            assert abs((look.mean - at.mean(axis=1)).mean()) < tolerance, name


# --- what was gained -----------------------------------------------------------------------------------------------


def test_information_gained():
    pair = apart(12.0, 0.0)
    gained = evidence.information_gained(pair, evidence.fuse(pair)).iloc[0]
    assert gained["gained_bits"] == pytest.approx(1.0, abs=0.02)  # twice the concentration halves the area
    area = gained["area_90_km2"]
    assert gained["saved_area_90_km2"] == pytest.approx(area, rel=0.02)


def test_a_product_is_not_searched_where_it_is_not():
    """The number of patches of two narrow peaks does not depend on how narrow they are."""
    sizes = [
        products.find([products.factor_of(each, 1.0) for each in apart(log_kappa, 6.0)], [], cut=1e-4).cell_ids.size
        for log_kappa in (8.0, 14.0, 20.0)
    ]
    assert max(sizes) < 4 * min(sizes) < 4000


def test_an_infinite_density_is_no_prior():
    with pytest.raises(BadInputError, match=r"given: the value in row 1, column 2 is inf, one of 1 such"):
        evidence.prior_multiplier([[1.0, np.inf]], Grid((1, 2), (180, 0, -180, 0, -180, 90), 4326), name="given")
