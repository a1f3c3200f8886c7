"""Mixtures turned into cells: never off by more than was allowed, whatever the concentrations."""

import math
import warnings

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geo_mvmf import coarse_cells, patch_nodes, patches, s2, s2_curve, sphere, vmf
from geo_mvmf.mixture import VmfMixture


def nodes_of(cells, n=10):
    """Gauss-Legendre nodes (T, n * n, 3) of cells and their weights in steradians: the high-order reference."""
    x, w = np.polynomial.legendre.leggauss(n)
    face, s, t = s2.st_rectangle(cells)
    s_, t_ = (b[:, :1] + np.diff(b) * (x + 1) / 2 for b in (s, t))
    u, v = s2_curve.st_to_uv(s_)[:, :, None], s2_curve.st_to_uv(t_)[:, None, :]
    element = s2_curve.st_slope(s_)[:, :, None] * s2_curve.st_slope(t_)[:, None, :] / (1 + u * u + v * v) ** 1.5
    weights = element * np.outer(w, w) / 4 * (np.diff(s) * np.diff(t))[:, :, None]
    points = s2.uv_directions(face[:, None, None], u, v)
    return points.reshape(cells.size, -1, 3), weights.reshape(cells.size, -1)


def total_variation(mixture, cells):
    """Half the integral of |density - cells' density|, by quadrature of every cell."""
    points, weights = nodes_of(cells.cell_ids)
    density = np.exp(mixture.log_density(points.reshape(-1, 3))[0]).reshape(weights.shape)
    return 0.5 * float((weights * np.abs(density - cells.densities_per_sr()[:, None])).sum())


def sampled_variation(mixture, cells, n=100_000, seed=1):
    """The same for narrow peaks: the mean of max(0, 1 - q/p) over draws from the mixture, with its standard error."""
    points = mixture.sample(n, seed=seed)[0]
    short = np.maximum(0.0, 1.0 - np.exp(cells.log_density(points)[0] - mixture.log_density(points)[0]))
    return float(short.mean()), float(short.std() / math.sqrt(n))


def one_peak(log_kappa, seed=0):
    return VmfMixture(sphere.random_directions(1, np.random.default_rng(seed)), [log_kappa], [[0.0]])


def mixed(c=25, seed=0, low=0.0, high=20.0):
    generator = np.random.default_rng(seed)
    weights = np.log(generator.dirichlet(np.ones(c), 1))
    return VmfMixture(sphere.random_directions(c, generator), generator.uniform(low, high, c), weights)


def check_tiling(cells):
    for i in range(len(cells)):
        ids, probabilities = cells.of(i)
        assert float(s2.area_sr(ids).sum()) == pytest.approx(4 * math.pi, rel=1e-12)
        assert np.all(s2.range_min(ids[1:]) > s2.range_max(ids[:-1]))
        assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-12)
        assert probabilities.min() > 0


@pytest.mark.parametrize("max_mass_error", [0.3, 0.1, 0.03, 0.01])
@pytest.mark.parametrize("log_kappa", [-10.0, 0.0, 2.0, 5.0, 9.0, 16.0, 20.0])
def test_one_peak_within_the_allowed_error(log_kappa, max_mass_error):
    mixture = one_peak(log_kappa)
    cells = mixture.to_cells(max_mass_error)
    check_tiling(cells)
    true = total_variation(mixture, cells)
    assert true <= cells.mass_errors[0] <= max_mass_error
    # neither is the estimate idle: it is not more than a third above the truth where there is anything to resolve
    assert log_kappa < 0 or true > 0.6 * cells.mass_errors[0]


def test_one_peak_at_the_default_error():
    mixture = one_peak(13.0)
    cells = mixture.to_cells()
    assert cells.mass_errors[0] <= 1e-3
    value, error = sampled_variation(mixture, cells)
    assert value - 4 * error <= cells.mass_errors[0]
    assert value > 0.7 * cells.mass_errors[0]


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_within_the_allowed_error(seed):
    mixture = mixed(seed=seed)
    cells = mixture.to_cells(0.03)
    check_tiling(cells)
    value, error = sampled_variation(mixture, cells)
    assert value - 4 * error <= cells.mass_errors[0] <= 0.03


@pytest.mark.parametrize(
    "place", [(0.0, 90.0), (180.0, 0.0), (45.0, math.degrees(math.atan(1 / math.sqrt(2)))), (45.0, 0.0)]
)
def test_poles_the_antimeridian_and_the_cube_s_corners_and_edges(place):
    mixture = VmfMixture(sphere.to_directions([place[0]], [place[1]]), [14.0], [[0.0]])
    cells = mixture.to_cells(0.02)
    check_tiling(cells)
    assert total_variation(mixture, cells) <= 0.02


@pytest.mark.hard
def test_cell_masses_are_integrals():
    """Against quadrature of the exact density; the broken twin takes the density at the centres."""
    mixture = mixed(c=6, low=0.0, high=9.0, seed=4)
    cells = mixture.to_cells(0.01)
    points, weights = nodes_of(cells.cell_ids)
    density = np.exp(mixture.log_density(points.reshape(-1, 3))[0]).reshape(weights.shape)
    exact = (density * weights).sum(axis=1)
    # what was cut (a twentieth of 0.01 at most) is spread evenly; all else is exact to the interpolation's 1e-6
    spread = s2.area_sr(cells.cell_ids) / (4 * math.pi)
    cut = np.maximum(exact - cells.probabilities, 0).sum()
    assert cut < 5e-4
    assert np.abs(cells.probabilities - exact - cut * (spread - exact)).sum() < 2 * cut + 1e-5
    uniform_grid = s2.cell_ids(sphere.random_directions(20_000, np.random.default_rng(0)), 5)
    grid = np.unique(uniform_grid)
    peak = one_peak(16.0, seed=3)
    twin = np.exp(peak.log_density(s2.centre(grid))[0]) * s2.area_sr(grid)
    assert not 0.5 < twin.sum() < 2.0  # a peak of 5 km between centres 300 km apart


@pytest.mark.parametrize("weight", [0.02, 0.2])
def test_a_narrow_peak_in_a_wide_one_is_never_missed(weight):
    generator = np.random.default_rng(9)
    for log_kappa in (16.0, 20.0, 26.0):
        mean = sphere.random_directions(2, generator)
        mixture = VmfMixture(mean, [0.0, log_kappa], np.log([[1 - weight, weight]]))
        cells = mixture.to_cells(0.01)
        longitude, latitude = sphere.to_longitude_latitude(mean[1:])
        radius = float(vmf.cap_quantile(0.99, log_kappa)) * sphere.EARTH_RADIUS_KM
        there = float(cells.probability_within(longitude, latitude, radius)[0, 0])
        assert there == pytest.approx(0.99 * weight, abs=0.01)
        assert there > 0.5 * weight


def test_the_narrowest_allowed_components_end_at_leaf_cells():
    for log_kappa in (30.0, 36.0):
        mixture = one_peak(log_kappa)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", coarse_cells.CoarseCellsWarning)
            cells = mixture.to_cells(0.05)
        check_tiling(cells)
        value, error = sampled_variation(mixture, cells, n=20_000)
        assert value - 4 * error <= cells.mass_errors[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", coarse_cells.CoarseCellsWarning)
        check_tiling(one_peak(45.0).to_cells(0.05))


def test_probabilities_of_regions_err_no_more_than_the_mass_error():
    mixture = mixed(c=15, seed=2, high=14.0)
    cells = mixture.to_cells(0.01)
    longitude, latitude = sphere.to_longitude_latitude(mixture.sample(30, seed=0)[0])
    for radius in (5.0, 100.0, 2000.0):
        difference = mixture.probability_within(longitude, latitude, radius) - cells.probability_within(
            longitude, latitude, radius
        )
        assert np.abs(difference).max() <= cells.mass_errors[0] + 1e-6


def test_rotation_changes_the_cells_but_not_the_promise():
    """PRIOR_ART row 6."""
    generator = np.random.default_rng(12)
    mixture = mixed(c=5, high=10.0, seed=5)
    for _ in range(3):
        matrix = Rotation.from_quat(generator.standard_normal(4)).as_matrix()
        turned = VmfMixture(mixture.mean_directions @ matrix.T, mixture.log_concentrations, mixture.log_mixing_weights)
        assert total_variation(turned, turned.to_cells(0.05)) <= 0.05


def test_finer_errors_take_the_cells_that_theory_says():
    """The best possible piecewise uniform density of one peak has 0.674 / error^2 cells; ours at most twice that."""
    mixture = one_peak(12.0)
    for max_mass_error in (0.02, 0.01, 0.005):
        cells = mixture.to_cells(max_mass_error)
        assert 0.5 < cells.cell_ids.size * max_mass_error**2 / 0.674 < 2.2


def test_log_density_is_finite_everywhere():
    cells = one_peak(18.0).to_cells(0.05)
    points = sphere.random_directions(1000, np.random.default_rng(0))
    assert np.isfinite(cells.log_density(points)).all()


def test_a_uniform_mixture_needs_few_cells():
    cells = one_peak(-12.0).to_cells(1e-3)
    assert cells.cell_ids.size <= 96
    assert np.allclose(cells.densities_per_sr() * 4 * math.pi, 1.0, atol=2e-5)


def test_too_few_cells_are_told():
    mixture = mixed(c=40, low=14.0, high=20.0)
    with pytest.warns(coarse_cells.CoarseCellsWarning, match=r"1 of 1 images reach a mass error of 0\.\d"):
        cells = mixture.to_cells(0.01, max_cells=20_000)
    assert cells.cell_ids.size < 40_000
    assert cells.mass_errors[0] > 0.01
    value, error = sampled_variation(mixture, cells)
    assert value - 4 * error <= cells.mass_errors[0]


def test_a_hundred_components_need_a_bounded_number_of_cells():
    generator = np.random.default_rng(0)
    mean = sphere.to_directions(generator.normal(10, 3, 100), generator.normal(50, 2, 100))
    near = VmfMixture(mean, generator.uniform(8, 16, 100), np.log(generator.dirichlet(np.ones(100), 1)))
    cells = near.to_cells(0.01)
    assert cells.mass_errors[0] <= 0.01
    assert cells.cell_ids.size < 500_000


@pytest.mark.hard
def test_thirty_thousand_flat_components_take_bounded_memory():
    import tracemalloc

    cells = s2.children(s2.face_cells()).ravel()
    for _ in range(5):
        cells = s2.children(cells).ravel()
    c = cells.size
    log_kappa = vmf.log_concentration_for(s2.edge_length(6), 0.95)
    mixture = VmfMixture(s2.centre(cells), np.full(c, float(log_kappa)), np.full((1, c), -math.log(c)))
    tracemalloc.start()
    result = mixture.to_cells(0.01)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.mass_errors[0] <= 0.01
    assert peak < 1e9


@pytest.mark.hard
@pytest.mark.parametrize("seed", range(3))
def test_patches_hold_every_component_that_reaches_them(seed):
    """At its nodes a patch has the density of the whole mixture, however few of its components it was told of."""
    mixture = mixed(c=60, seed=seed)
    weights = np.exp(mixture.log_mixing_weights[0])
    chosen = patches.choose_components(mixture.mean_directions, mixture.log_concentrations, weights, cut=1e-9)
    found = patches.find_patches(chosen)
    assert found.members.size < 0.5 * found.cell_ids.size * 60  # most of them are handed down
    values = patches.NodeValues(found, chosen)
    # a polynomial errs by a millionth of a component's peak wherever the component is near
    wider = VmfMixture(mixture.mean_directions, mixture.log_concentrations - 3.0, mixture.log_mixing_weights)
    for block in values.blocks():
        cells, density, _ = values.of(block)
        face, local, _, _ = patch_nodes.nodes_of(cells)
        places = np.einsum("mij,mjk->mki", s2_curve.FROM_FACE[face], local)
        expected = np.exp(mixture.log_density(places.reshape(-1, 3))[0]).reshape(density.shape)
        near = np.exp(wider.log_density(places.reshape(-1, 3))[0]).reshape(density.shape)
        assert np.all(np.abs(density - expected) <= 3e-6 * math.exp(3.0) * near)


def test_patches_are_no_larger_than_what_reaches_them_asks_for():
    """No narrow component reaches a patch that is wide beside it, and none a cell that was declared free of it."""
    mixture = mixed(c=30, seed=6)
    chosen = patches.choose_components(
        mixture.mean_directions, mixture.log_concentrations, np.exp(mixture.log_mixing_weights[0]), cut=1e-3
    )
    found = patches.find_patches(chosen)
    cells = np.concatenate([found.cell_ids, found.empty])
    drawn = vmf.sample(
        np.repeat(chosen.mean_directions, 200, axis=0),
        np.repeat(chosen.log_concentrations, 200),
        np.random.default_rng(0),
    )
    member = np.repeat(np.arange(chosen.reach.size), 200)
    inside = np.linalg.norm(drawn - chosen.mean_directions[member], axis=1) < chosen.reach[member]
    order = np.argsort(cells)
    row = order[np.searchsorted(s2.range_max(cells[order]), s2.leaf_ids(drawn[inside]))]
    assert row.max() < found.cell_ids.size  # what is drawn lies on patches, not on empty cells
    size = np.ldexp(1.7049, -s2.level(cells[row]))
    assert np.all(size * np.exp(chosen.log_concentrations[member[inside]] / 2) <= patches.PATCH_SIGMAS * 1.001)


def test_the_bound_on_a_cell_s_radius_holds():
    cells = s2.cell_ids(sphere.random_directions(100_000, np.random.default_rng(0)), np.arange(100_000) % 25)
    corners = s2.leaf_ids(np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float))
    cells = np.concatenate([cells, s2.parent(corners[:, None], np.arange(25)).ravel()])
    chord = 2 * np.sin(s2.bounding_radius(cells) / 2)
    assert np.all(chord <= np.ldexp(patch_nodes.MAX_RADIUS, -s2.level(cells)) * (1 + 1e-7))


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, math.nan, 1e-6])
def test_a_wrong_error_is_shown(value):
    with pytest.raises(ValueError, match="max_mass_error is"):
        one_peak(3.0).to_cells(value)
    with pytest.raises(ValueError, match="max_cells is 0"):
        one_peak(3.0).to_cells(0.1, max_cells=0)
