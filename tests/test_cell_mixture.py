"""Densities that are uniform on S2 cells."""

import math

import numpy as np
import pytest
from scipy import stats

from geo_mvmf import cell_caps, cell_mixture, s2, sphere
from geo_mvmf.cell_mixture import CellMixture


def random_tiling(seed, rounds=5):
    generator = np.random.default_rng(seed)
    cells = s2.face_cells()
    for _ in range(rounds):
        split = generator.random(cells.size) < 0.5
        cells = np.sort(np.concatenate([cells[~split], s2.children(cells[split]).ravel()]))
    return cells


def random_cells_mixture(seed=0):
    generator = np.random.default_rng(seed)
    tilings = [random_tiling(seed), random_tiling(seed + 1), random_tiling(seed + 2)]
    tilings[1] = tilings[1][generator.random(tilings[1].size) < 0.5]  # with holes
    probabilities = [generator.dirichlet(np.ones(cells.size)) for cells in tilings]
    offsets = np.cumsum([0, *(cells.size for cells in tilings)])
    return CellMixture(np.concatenate(tilings), np.concatenate(probabilities), offsets)


UNIFORM = CellMixture(s2.face_cells(), s2.area_sr(s2.face_cells()) / (4 * math.pi), [0, 6])


def test_log_density_is_the_cell_s_and_minus_infinity_in_holes():
    mixture = random_cells_mixture()
    points = sphere.random_directions(500, np.random.default_rng(3))
    value = mixture.log_density(points)
    leaves = s2.leaf_ids(points)
    for i in range(3):
        cells, probabilities = mixture.of(i)
        held = s2.contains(cells[:, None], leaves)  # (T, M)
        expected = (probabilities / s2.area_sr(cells)) @ held
        assert np.allclose(np.exp(value[i]), expected, rtol=1e-13)
    assert np.isneginf(value[1]).any()
    assert np.isfinite(value[[0, 2]]).all()


def test_density_integrates_to_one():
    mixture = random_cells_mixture()
    points = sphere.random_directions(200_000, np.random.default_rng(4))
    assert np.allclose(np.exp(mixture.log_density(points)).mean(axis=1) * 4 * math.pi, 1.0, atol=0.03)
    mass = mixture.densities_per_sr() * s2.area_sr(mixture.cell_ids)
    assert np.allclose(np.add.reduceat(mass, mixture.offsets[:-1]), 1.0, atol=1e-14)


def test_samples_fill_cells_by_probability_and_evenly_inside():
    mixture = random_cells_mixture()
    drawn = mixture.sample(30_000, seed=0)
    assert drawn.shape == (3, 30_000, 3)
    for i in range(3):
        cells, probabilities = mixture.of(i)
        rows = cell_mixture.find_cells(cells, s2.leaf_ids(drawn[i]))
        assert rows.min() >= 0
        counts = np.bincount(rows, minlength=cells.size)
        often = probabilities * 30_000 > 5
        assert (
            stats.chisquare(
                np.append(counts[often], counts[~often].sum() + 1e-9),
                np.append(probabilities[often], probabilities[~often].sum() + 1e-9 / 30_000)
                * (30_000 + 1e-9)
                / (1 + 1e-9 / 30_000),
                sum_check=False,
            ).pvalue
            > 1e-3
        )
    points = UNIFORM.sample(50_000, seed=1)[0]
    assert stats.kstest((points[:, 2] + 1) / 2, "uniform").pvalue > 1e-3
    flat = s2.uv_directions(0, *np.random.default_rng(0).uniform(-1, 1, (2, 50_000)))  # the broken twin: even in u, v
    assert stats.kstest(np.abs(flat[:, 0]), np.abs(points[np.abs(points).argmax(axis=1) == 0][:, 0])).pvalue < 1e-6


@pytest.mark.parametrize("radius_km", [0.001, 1.0, 30.0, 500.0, 3000.0, 9000.0, 15000.0, 20015.0])
def test_caps_of_the_uniform_density_have_their_share_of_the_sphere(radius_km):
    generator = np.random.default_rng(5)
    longitude, latitude = sphere.to_longitude_latitude(
        np.concatenate([sphere.random_directions(4, generator), np.eye(3), np.ones((1, 3)) / math.sqrt(3)])
    )
    expected = math.sin(radius_km / 2 / sphere.EARTH_RADIUS_KM) ** 2
    assert np.allclose(UNIFORM.probability_within(longitude, latitude, radius_km), expected, rtol=2e-4)


def test_caps_against_samples():
    mixture = random_cells_mixture()
    centres = sphere.random_directions(5, np.random.default_rng(6))
    longitude, latitude = sphere.to_longitude_latitude(centres)
    radius = np.array([200.0, 800.0, 2000.0, 5000.0, 12000.0])
    expected = mixture.probability_within(longitude, latitude, radius)
    drawn = mixture.sample(40_000, seed=3)
    share = (sphere.angle(drawn[:, :, None], centres) * sphere.EARTH_RADIUS_KM <= radius).mean(axis=1)
    assert np.all(np.abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / 40_000) + 1e-9)


def test_caps_do_not_depend_on_how_cells_are_cut():
    """The same density on finer cells; the broken twin counts cells by their centres."""
    mixture = random_cells_mixture()[0]
    cells, _ = mixture.of(0)
    children = s2.children(cells).ravel()
    density = np.repeat(mixture.densities_per_sr(), 4)
    finer = CellMixture(children, density * s2.area_sr(children), [0, children.size])
    longitude, latitude = sphere.to_longitude_latitude(sphere.random_directions(20, np.random.default_rng(7)))
    one = mixture.probability_within(longitude, latitude, 1500.0)
    assert np.abs(one - finer.probability_within(longitude, latitude, 1500.0)).max() < 1e-5
    near = sphere.angle(s2.centre(cells)[:, None], sphere.to_directions(longitude, latitude)) < 1500.0 / 6371.0088
    assert np.abs(mixture.probabilities @ near - one).max() > 1e-3


def test_blocks_change_nothing(monkeypatch):
    mixture = random_cells_mixture()
    longitude, latitude = sphere.to_longitude_latitude(sphere.random_directions(7, np.random.default_rng(8)))
    whole = mixture.probability_within(longitude, latitude, 1000.0)
    monkeypatch.setattr(cell_caps, "_PAIRS_AT_ONCE", 1)
    assert np.allclose(whole, mixture.probability_within(longitude, latitude, 1000.0), atol=1e-15)


def test_indexing():
    mixture = random_cells_mixture()
    assert len(mixture) == 3
    assert [
        len(mixture[1]),
        len(mixture[::2]),
        len(mixture[[2, 0, 2]]),
        len(mixture[np.array([True, False, True])]),
    ] == [1, 2, 3, 2]
    for index, i in ((2, 2), (-1, 2), (0, 0)):
        assert all(np.array_equal(a, b) for a, b in zip(mixture[index].of(0), mixture.of(i), strict=True))
    assert np.array_equal(mixture[[2, 0]].of(1)[1], mixture.of(0)[1])
    assert len(mixture[[]]) == len(mixture[np.zeros(3, dtype=bool)]) == 0
    empty = mixture[:0]
    assert len(empty) == 0
    assert empty.log_density(np.eye(3)).shape == (0, 3)
    assert empty.probability_within([0.0], [0.0], 1.0).shape == (0, 1)
    with pytest.raises(IndexError):
        mixture.of(3)
    with pytest.raises(IndexError):
        mixture[3]
    kept = CellMixture(mixture.cell_ids, mixture.probabilities, mixture.offsets, [0.1, 0.2, 0.3])[[2, 1]]
    assert kept.mass_errors.tolist() == [0.3, 0.2]


def test_inputs_are_checked_and_made_exact():
    faces = s2.face_cells()
    even = np.full(6, 1 / 6)
    assert float(CellMixture(faces, even * 1.0005, [0, 6]).probabilities.sum()) == pytest.approx(1.0, abs=1e-15)
    nested = np.array([faces[0], s2.children(faces[0])[3]], dtype=np.uint64)
    for cells, probabilities, offsets, words in [
        (faces, even[:5], [0, 6], "shapes"),
        (faces, even, [0, 5], "offsets"),
        (faces, even, [1, 6], "offsets"),
        (faces, even, [0, 6, 6], "image 1 has no cell"),
        (faces[::-1], even, [0, 6], "not sorted"),
        (nested, [0.5, 0.5], [0, 2], "overlap"),
        (faces + np.uint64(2), even, [0, 6], "not an S2 cell id"),
        (faces, even * 0.9, [0, 6], "sum to 0.9"),
        (faces, [1.5, -0.5, 0, 0, 0, 0], [0, 6], "probability 1 is -0.5"),
        (faces, [math.nan, 1, 0, 0, 0, 0], [0, 6], "probability 0 is nan"),
    ]:
        with pytest.raises(ValueError, match=words):
            CellMixture(cells, probabilities, offsets)
    with pytest.raises(ValueError, match="mass_errors"):
        CellMixture(faces, even, [0, 6], [0.1, 0.2])
    same_cells_twice = CellMixture(np.tile(faces, 2), np.tile(even, 2), [0, 6, 12])
    assert len(same_cells_twice) == 2
    assert np.isneginf(CellMixture(faces[:1], [1.0], [0, 1]).log_density([[0.0, 0.0, 1.0]])).all()
    assert np.isneginf(CellMixture(faces, [1.0, 0, 0, 0, 0, 0], [0, 6]).log_density([[0.0, 0.0, 1.0]])).all()
