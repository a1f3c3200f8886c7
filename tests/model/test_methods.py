"""Four methods behind one interface: normalised densities, points, regions and rasters by the same calls."""

import numpy as np
import pytest
import torch

from geo_mvmf import Grid, cell_area_km2, credible_regions, density_raster, estimate, sphere, vmf
from geo_mvmf.baselines import TrainingDensity, training_nll
from geo_mvmf.model.heads import CrossEntropyHead, MvmfHead, NearestNeighbours
from geo_mvmf.model.methods import Method
from geo_mvmf.model.neighbour_density import Kernel, NeighbourDensity, fit_kernel
from geo_mvmf.model.partition import partition_sphere


def training(n=400, noise=0.02, seed=0):
    """Features that say where, and places that they say a little wrong."""
    generator = np.random.default_rng(seed)
    features = sphere.random_directions(n, generator)
    places = features + noise * generator.normal(size=features.shape)
    return features.astype(np.float32), sphere.to_longitude_latitude(places)


def methods():
    features, (longitude, latitude) = training()
    partition = partition_sphere(longitude, latitude, 24)
    mvmf = MvmfHead(3, partition.mean_directions, np.full(len(partition), 4.0), seed=1)
    planet = CrossEntropyHead(3, partition.cell_ids, seed=1)
    search = NearestNeighbours(features, longitude, latitude, k=3)
    found: dict[str, Method] = {
        "mvmf": mvmf,
        "planet": planet,
        "neighbours": NeighbourDensity(search, Kernel(5.0, uniform_share=0.05)),
        "training": TrainingDensity(partition.cell_ids, partition.counts),
    }
    return found


@pytest.mark.parametrize("name", methods())
def test_every_method_gives_densities_points_regions_and_rasters(name):
    x = torch.from_numpy(training(2, seed=5)[0])
    mixture = methods()[name].mixture(x)
    assert len(mixture) == 2
    grid = Grid.globe(15.0)
    raster = density_raster(mixture, grid)
    mass = (raster.to_numpy() * cell_area_km2(grid)).sum(axis=(1, 2))
    np.testing.assert_allclose(mass, 1.0, atol=1e-5)
    points = estimate(mixture)
    assert points.shape == (2, 2)
    assert (mixture.probability_within(*points.T, 500.0).diagonal() > 0).all()
    regions = credible_regions(mixture, levels=(0.5, 0.9))
    assert len(regions) == 4
    assert regions.geometry.is_valid.all()
    truth = sphere.random_directions(3, np.random.default_rng(1))
    assert np.isfinite(mixture.log_density(truth)).all()


def test_neighbours_are_a_mixture_of_kernels_at_their_places():
    features, (longitude, latitude) = training()
    search = NearestNeighbours(features, longitude, latitude, k=4)
    x, y = training(5, seed=6)[0], sphere.random_directions(7, np.random.default_rng(1))
    mixture = NeighbourDensity(search, Kernel(6.0, uniform_share=0.1)).mixture(x)
    assert mixture.num_components <= 5 * 4 + 1  # of the batch alone, not of all 400
    index, distance = search.neighbours(x)
    for row in range(5):
        weight = distance[row] ** -2.0
        kernels = np.exp(vmf.log_density(y[:, None], sphere.to_directions(longitude, latitude)[index[row]], 6.0))
        expected = 0.9 * kernels @ (weight / weight.sum()) + 0.1 / (4 * np.pi)
        np.testing.assert_allclose(np.exp(mixture.log_density(y)[row]), expected, rtol=1e-9)


def test_a_batch_and_its_images_one_by_one_are_the_same_densities():
    density = methods()["neighbours"]
    x, y = torch.from_numpy(training(6, seed=6)[0]), sphere.random_directions(4, np.random.default_rng(1))
    whole = density.mixture(x).log_density(y)
    single = np.concatenate([density.mixture(x[[row]]).log_density(y) for row in range(6)])
    np.testing.assert_allclose(whole, single, rtol=1e-12)
    assert len(density.mixture(x[:0])) == 0


def test_the_same_image_leaves_no_weight_to_others():
    features, (longitude, latitude) = training()
    density = NeighbourDensity(NearestNeighbours(features, longitude, latitude, k=3), Kernel(10.0))
    points = estimate(density.mixture(features[:4]))
    np.testing.assert_allclose(points, np.stack([longitude, latitude], axis=1)[:4], atol=1e-9)


@pytest.mark.parametrize("weighting", ["equal", "distance"])
def test_the_kernel_that_is_chosen_is_the_best_of_held_out_images(weighting):
    """Broken twin beside it: a fit that finds each image among its own neighbours takes the narrowest kernel."""
    features, (longitude, latitude) = training(1000)
    search = NearestNeighbours(features, longitude, latitude, k=4, weighting=weighting)
    kernel = fit_kernel(search, sample=400)
    unseen, places = training(200, seed=9)
    y = sphere.to_directions(*places)

    def nll(log_concentration, uniform_share=kernel.uniform_share):
        mixture = NeighbourDensity(search, Kernel(log_concentration, uniform_share=uniform_share)).mixture(unseen)
        return -mixture.log_density(y).diagonal().mean()

    best = nll(kernel.log_concentration)
    assert best == pytest.approx(kernel.nll, abs=0.2)
    assert best < min(nll(kernel.log_concentration - 1.5), nll(kernel.log_concentration + 1.5))
    twin = 21.9  # what seeing oneself would choose: no kernel is too narrow
    assert nll(twin) > best + 1.0


def test_images_that_are_all_the_same_have_others():
    search = NearestNeighbours(np.zeros((9, 2)), np.arange(9.0), np.zeros(9), k=3, weighting="equal")
    assert np.isfinite(fit_kernel(search).nll)
    with pytest.raises(ValueError, match="there are 9 training images, so none has 9 others"):
        fit_kernel(search.with_k(9))


def test_places_without_any_order_are_told_by_the_uniform_density():
    generator = np.random.default_rng(4)
    places = sphere.to_longitude_latitude(sphere.random_directions(400, generator))
    kernel = fit_kernel(NearestNeighbours(generator.normal(size=(400, 3)), *places, k=2))
    assert kernel.nll == pytest.approx(np.log(4 * np.pi), abs=0.02)


def test_the_training_density_is_the_one_that_evaluation_compares_with():
    _, places = training()
    partition = partition_sphere(*places, 24)
    method = TrainingDensity(partition.cell_ids[::-1], partition.counts[::-1])  # in any order
    y = sphere.random_directions(20, np.random.default_rng(2))
    expected = training_nll(partition.cell_ids, partition.counts, *sphere.to_longitude_latitude(y))
    np.testing.assert_allclose(-method.mixture(np.zeros((2, 1))).log_density(y), [expected] * 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Kernel(np.nan), "log_concentration is nan"),
        (lambda: Kernel(4.0, uniform_share=-0.1), r"uniform_share -0\.1"),
        (lambda: TrainingDensity(np.array([1, 1], np.uint64), [1, 1]), "must be S2 cells that do not overlap"),
        (lambda: TrainingDensity(np.array([1], np.uint64), [1, 1]), r"have shapes \(1,\), \(2,\)"),
    ],
)
def test_wrong_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
