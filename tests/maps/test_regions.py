"""Credible regions: what they hold, how large they are, and that nothing smaller holds as much."""

import geopandas
import numpy as np
import pytest
import shapely

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.coarse_cells import CoarseCellsWarning
from geo_mvmf.errors import UsageError
from geo_mvmf.maps import outlines, regions
from geo_mvmf.maps.regions import DensestFirst, credible_regions
from geo_mvmf.mixture import CellMixture, VmfMixture

R = sphere.EARTH_RADIUS_KM
LEVELS = (0.5, 0.8, 0.9)


def random_mixture(seed, n=1, c=5, low=3.0, high=9.0):
    generator = np.random.default_rng(seed)
    return VmfMixture(
        sphere.random_directions(c, generator),
        generator.uniform(low, high, c),
        np.log(generator.dirichlet(np.ones(c), n)),
    )


def inside(shape, directions):
    shapely.prepare(shape)
    return shapely.intersects_xy(shape, *sphere.to_longitude_latitude(directions))


@pytest.mark.parametrize("log_kappa", [0.0, 4.0, 8.0, 12.0, 16.0])
@pytest.mark.parametrize("place", [(12.0, -40.0), (180.0, 5.0), (0.0, 90.0), (33.0, -89.9)])
def test_one_component_gives_a_cap(log_kappa, place):
    mixture = VmfMixture(sphere.to_directions(*place)[None], [log_kappa], [[0.0]])
    found = credible_regions(mixture, LEVELS, max_mass_error=0.02)
    assert found["level"].tolist() == [0.9, 0.8, 0.5]
    radius = vmf.cap_quantile(found["level"].to_numpy(), log_kappa)
    assert found["area_km2"].to_numpy() == pytest.approx(sphere.EARTH_AREA_KM2 * np.sin(radius / 2) ** 2, rel=0.02)
    assert found["n_parts"].tolist() == [1, 1, 1]
    assert np.all((found["probability"] >= found["level"]) & (found["probability"] <= found["level"] + 0.004))
    for shape, reach in zip(found.geometry, radius, strict=True):
        border = sphere.to_directions(*shapely.get_coordinates(shape.boundary).T)
        longitude, latitude = sphere.to_longitude_latitude(border)
        on_map_edge = (np.abs(longitude) == 180.0) | (np.abs(latitude) == 90.0)
        offset = sphere.angle(border[~on_map_edge], sphere.to_directions(*place))
        assert offset == pytest.approx(reach, rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_regions_hold_their_level_of_samples_of_the_density_itself(seed):
    """The mixture decides, not its cells: the polygons, as they are written, hold that share of its draws."""
    mixture = random_mixture(seed)
    drawn = mixture.sample(10_000, seed=seed)[0]
    for row in credible_regions(mixture, LEVELS, max_mass_error=0.02).itertuples():
        held = inside(row.geometry, drawn).mean()
        assert held == pytest.approx(row.probability, abs=4.0 * np.sqrt(0.25 / 10_000) + 0.02)


def test_nothing_smaller_holds_as_much():
    """By Neyman and Pearson the region is where the density exceeds a value: all its points do, no other does."""
    mixture = random_mixture(5)
    drawn = mixture.sample(4000, seed=0)[0]
    log_f = mixture.log_density(drawn)[0]
    for row in credible_regions(mixture, LEVELS).itertuples():
        threshold = np.quantile(log_f, 1.0 - row.probability)
        held = inside(row.geometry, drawn)
        wrong = held != (log_f >= threshold)
        assert wrong.mean() < 0.02
        assert np.abs(log_f[wrong] - threshold).max() < 0.3


def test_the_twin_that_takes_the_likeliest_cells_first_is_caught():
    """Cells differ in size: by probability instead of density the regions would be larger."""
    ids, probabilities = random_mixture(2).to_cells(0.02).of(0)
    chosen, _, _ = DensestFirst(ids, probabilities).smallest(0.5)
    order = np.argsort(-probabilities)
    twin = ids[order[: np.searchsorted(np.cumsum(probabilities[order]), 0.5) + 1]]
    assert s2.area_sr(twin).sum() > 1.05 * s2.area_sr(chosen).sum()


@pytest.mark.hard
def test_areas_are_the_least_possible_within_half_a_per_cent():
    """Cells are fine only along the borders of the regions: against all of the density in cells."""
    mixture = random_mixture(7, n=2, c=20, low=3.0, high=12.0)
    found = credible_regions(mixture, LEVELS)
    for image in range(2):
        whole = DensestFirst(*mixture[image].to_cells(2e-3).of(0))
        for row in found[found["image_id"] == str(image)].itertuples():
            _, _, least = whole.smallest(row.probability)
            assert row.area_km2 == pytest.approx(least * R**2, rel=0.01)


@pytest.mark.parametrize("level", [1e-3, 0.01, 0.99, 0.9999])
def test_levels_near_0_and_1_have_regions_of_their_own(level):
    mixture = VmfMixture(sphere.to_directions(12.0, -40.0)[None], [9.0], [[0.0]])
    [row] = credible_regions(mixture, [level]).itertuples()
    radius = float(vmf.cap_quantile(level, 9.0))
    assert row.area_km2 == pytest.approx(sphere.EARTH_AREA_KM2 * np.sin(radius / 2) ** 2, rel=0.11)


def test_images_that_need_too_many_cells_are_told(monkeypatch):
    monkeypatch.setattr(regions, "_MAX_CELLS", 50)
    with pytest.warns(CoarseCellsWarning, match="more detail than so many cells"):
        credible_regions(random_mixture(1, c=30, low=12.0, high=14.0))


def test_regions_are_nested_and_their_areas_are_those_of_their_shapes():
    found = credible_regions(random_mixture(3, n=3, c=4), LEVELS, image_ids=["a", "b", "c"], max_mass_error=0.02)
    assert found["image_id"].tolist() == ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    assert found.crs == "EPSG:4326"
    assert list(found.columns) == list(regions.COLUMNS)
    equal_area = found.geometry.segmentize(0.1).to_crs("+proj=cea +R=6371008.8 +units=m")
    assert found["area_km2"].to_numpy() == pytest.approx(equal_area.area.to_numpy() / 1e6, rel=1e-3)
    for _, rows in found.groupby("image_id"):
        large, middle, small = rows.geometry
        assert small.difference(middle).area < 1e-6
        assert middle.difference(large).area < 1e-6


def test_separate_peaks_are_parts_and_each_crosses_what_it_crosses():
    places = sphere.to_directions([180.0, 0.0, 20.0], [10.0, 90.0, -30.0])
    mixture = VmfMixture(places, np.full(3, 9.0), np.log([[0.4, 0.3, 0.3]]))
    found = credible_regions(mixture, [0.9])
    assert found["n_parts"].tolist() == [3]
    assert len(found.geometry[0].geoms) == 4
    assert found.geometry[0].is_valid


class TestSmallestSet:
    def test_the_last_cell_is_split_where_it_is_too_heavy(self):
        faces, even = s2.face_cells(), np.full(6, 1.0 / 6.0)
        for level in (0.01, 0.3, 0.5, 0.77, 0.999):
            chosen, held, area = DensestFirst(faces, even).smallest(level)
            assert level <= held <= level + 0.004
            assert s2.area_sr(chosen).sum() / (4.0 * np.pi) == pytest.approx(held, abs=1e-9)
            assert area == pytest.approx(s2.area_sr(chosen).sum())

    def test_cells_without_probability_come_last(self):
        chosen, held, _ = DensestFirst(s2.face_cells(), np.array([0.0, 0.6, 0.0, 0.4, 0.0, 0.0])).smallest(1.0 - 1e-9)
        assert held == pytest.approx(1.0)
        assert set(chosen.tolist()) <= set(s2.face_cells()[[1, 3]].tolist())


def test_cells_of_a_class_model_need_no_density():
    """PlaNet's cells are the region."""
    faces = s2.face_cells()
    mixture = CellMixture(faces, np.array([0.6, 0.3, 0.04, 0.03, 0.02, 0.01]), np.array([0, 6]))
    found = credible_regions(mixture, [0.9])
    assert found["probability"][0] == pytest.approx(0.9)
    assert found.geometry[0].equals(outlines.outline(faces[:2]))


def test_no_images_give_an_empty_layer():
    found = credible_regions(random_mixture(0, n=1)[:0])
    assert isinstance(found, geopandas.GeoDataFrame)
    assert len(found) == 0
    assert found.crs == "EPSG:4326"


@pytest.mark.parametrize(
    ("levels", "ids", "kind", "message"),
    [
        ((0.5, 1.0), None, UsageError, r"levels \(0.5, 1.0\) must lie between 0 and 1, such as \(0.5, 0.9\)"),
        ((50, 90), None, UsageError, "must lie between"),
        ((0.0,), None, UsageError, "must lie between"),
        ((), None, UsageError, "must lie between"),
        ((np.nan,), None, UsageError, "must lie between"),
        (0.9, None, UsageError, r"levels 0.9: a sequence of numbers is wanted, such as \(0.5, 0.9\)"),
        ("0.9", None, UsageError, r"levels '0.9': a sequence"),
        ((0.5,), ["a", "b"], ValueError, "2 image_ids were given for 1 images"),
    ],
)
def test_refusals(levels, ids, kind, message):
    with pytest.raises(kind, match=message):
        credible_regions(random_mixture(0), levels, image_ids=ids)
