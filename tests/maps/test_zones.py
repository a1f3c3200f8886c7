"""Probabilities of polygons: against samples and closed forms, and laws that they keep."""

import geopandas
import numpy as np
import pytest
import shapely

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.errors import UsageError
from geo_mvmf.maps import borders, zones
from geo_mvmf.maps.cell_shares import cell_shares
from geo_mvmf.maps.zone_moments import ZoneMoments
from geo_mvmf.maps.zones import ZoneProbabilities, Zones, zone_probabilities
from geo_mvmf.mixture import CellMixture, VmfMixture


def layer(*shapes, crs="OGC:CRS84", **columns):
    return geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)


TILES = layer(*(shapely.box(w, s, w + 45, s + 30) for w in range(-180, 180, 45) for s in range(-90, 90, 30)))
FIJI = shapely.MultiPolygon([shapely.box(177, -19, 180, -16), shapely.box(-180, -19, -178, -16)])
ANTARCTICA = shapely.Polygon([(-180, -90), (180, -90), (180, -72), (60, -66), (-60, -75), (-180, -72)])
DONUT = shapely.box(-20, 30, 30, 60).difference(shapely.box(0, 40, 10, 50))
ODD = layer(FIJI, ANTARCTICA, DONUT, shapely.box(-5, 35, 5, 45), name=["Fiji", "Antarctica", "donut", "overlap"])
AWKWARD = sphere.to_directions([0, 0, 45, 180, -180, 0, 177, 0, 30], [90, -90, -30, 0, -17, 40, -16, -72, 60])


def awkward_mixture(seed, n=2):
    """Components at poles, at +-180, on borders and vertices, and anywhere, of all widths."""
    generator = np.random.default_rng(seed)
    directions = np.concatenate([AWKWARD, sphere.random_directions(20, generator)])
    weights = generator.dirichlet(np.full(len(directions), 0.5), n)
    return VmfMixture(directions, generator.uniform(-2.0, 12.0, len(directions)), np.log(weights))


def moments_of(shapes):
    return ZoneMoments(*borders.edges_of(shapes), shapes.size, lambda places: borders.members(shapes, places))


def held_by_samples(polygons, directions):
    _, zones = borders.members(Zones.read(polygons).polygons.geometry.to_numpy(), directions)
    return np.bincount(zones, minlength=len(polygons)) / len(directions)


def agrees(probabilities, polygons, mixture, number, seed):
    """Whether all zones are within 3.5 sigma of samples; with 200 zones one in a thousand is beyond 3.3."""
    result = []
    for i, p in enumerate(probabilities):
        share = held_by_samples(polygons, mixture[i].sample(number, seed=seed)[0])
        sigma = np.sqrt(np.maximum(p * (1.0 - p), 1.0 / number) / number)
        result.append(np.abs(share - p) <= 3.5 * sigma)
    return np.array(result)


@pytest.mark.parametrize("polygons", [TILES, ODD], ids=["tiles", "odd"])
def test_zones_hold_their_share_of_samples(polygons):
    mixture = awkward_mixture(1)
    found = Zones.read(polygons).of(mixture).probabilities
    assert agrees(found, polygons, mixture, 20_000, 1).all()


@pytest.mark.hard
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("polygons", [TILES, ODD], ids=["tiles", "odd"])
def test_zones_hold_their_share_of_a_million_samples(polygons, seed):
    mixture = awkward_mixture(seed)
    found = Zones.read(polygons).of(mixture).probabilities
    assert agrees(found, polygons, mixture, 1_000_000, seed + 10).all()


@pytest.mark.hard
def test_cells_hold_their_share_of_a_million_samples():
    cells = awkward_mixture(2).to_cells(0.02)
    assert agrees(Zones.read(ODD).of(cells).probabilities, ODD, cells, 1_000_000, 3).all()


def test_the_twin_that_counts_components_whole_is_caught():
    mixture = awkward_mixture(1)
    place, zone = borders.members(TILES.geometry.to_numpy(), borders.nudged(mixture.mean_directions))
    member = np.zeros((mixture.num_components, len(TILES)))
    member[place, zone] = 1.0
    assert not agrees(np.exp(mixture.log_mixing_weights) @ member, TILES, mixture, 20_000, 1).all()


@pytest.mark.parametrize("log_kappa", [-20.0, -3.0, 0.0, 3.0, 6.0, 10.0, 16.0, 20.0, 30.0])
def test_a_parallel_cuts_what_a_cap_holds(log_kappa):
    """A component at the pole: the zone north of a parallel is a cap, whose probability is a closed form."""
    for radius in np.exp(-0.5 * max(log_kappa, 0.0)) * np.array([0.3, 1.0, 2.5]):
        cap = shapely.box(-180, 90 - np.degrees(radius), 180, 90).segmentize(1.0)
        for place in ([0.0, 0.0, 1.0], sphere.to_directions(33.0, 90.0 - 0.7 * np.degrees(radius))):
            held = borders.component_shares(np.array([place]), np.array([log_kappa]), np.array([cap])).toarray()[0, 0]
            offset = sphere.angle(np.array(place), np.array([0.0, 0.0, 1.0]))
            assert held == pytest.approx(vmf.probability_within(offset, radius, log_kappa), abs=1e-6)


@pytest.mark.parametrize(("log_kappa", "error"), [(16.0, 1e-7), (20.0, 1e-7), (26.0, 1e-7), (34.0, 1e-7), (60.0, 0.05)])
def test_borders_through_a_narrow_component_divide_it(log_kappa, error):
    """As a plane: in halves by a border, in quarters by two; every place is the mean direction of one component."""
    quarters = [((7.0, 0.0), shapely.box(7, 0, 12, 5)), ((7.0, 0.0), shapely.box(2, -5, 7, 0))]
    quarters += [((0.0, 90.0), shapely.box(0, 60, 90, 90)), ((0.0, -90.0), shapely.box(-90, -90, 0, -60))]
    halves = [((7.0, 45.0), shapely.box(7, 40, 12, 50)), ((0.0, 0.0), shapely.box(-5, -5, 0, 5))]
    halves += [((180.0, 30.0), shapely.box(170, 20, 180, 40)), ((180.0, 30.0), shapely.box(-180, 20, -170, 40))]
    for share, cases in ((0.25, quarters), (0.5, halves)):
        for place, zone in cases:
            mean = sphere.to_directions([place[0]], [place[1]])
            held = borders.component_shares(mean, np.array([log_kappa]), np.array([zone])).toarray()[0, 0]
            assert held == pytest.approx(share, abs=error), (place, zone)


class TestMoments:
    """Wide components by the zones' weights on patches, against the integrals along borders: they share no integral."""

    @pytest.mark.parametrize("polygons", [TILES, ODD], ids=["tiles", "odd"])
    def test_they_agree_with_the_borders(self, polygons):
        shapes = Zones.read(polygons).polygons.geometry.to_numpy()
        generator = np.random.default_rng(3)
        directions = np.concatenate([AWKWARD, sphere.random_directions(15, generator)])
        log_kappa = np.concatenate([[-20.0, 7.0], generator.uniform(-3.0, 7.0, len(directions) - 2)])
        expected = borders.component_shares(directions, log_kappa, shapes).toarray()
        found = moments_of(shapes).shares(directions, log_kappa)
        assert np.abs(found - expected).max() < 1e-7

    def test_the_twin_without_the_sides_of_patches_is_caught(self, monkeypatch):
        shapes = Zones.read(ODD).polygons.geometry.to_numpy()
        monkeypatch.setattr(ZoneMoments, "_up_the_sides", lambda self, crossings, cells, zones, level: 0.0)
        found = moments_of(shapes).shares(np.eye(3), np.zeros(3))
        expected = borders.component_shares(np.eye(3), np.zeros(3), shapes).toarray()
        assert np.abs(found - expected).max() > 0.01

    def test_a_long_edge_through_many_cells_and_an_island_within_one(self):
        shapes = np.array([shapely.box(-170, -3, 170, 2).segmentize(30.0), shapely.box(7.1, 46.2, 7.3, 46.3)])
        mu = sphere.to_directions([0.0, 90.0, 7.2], [0.0, 1.0, 46.0])
        for log_kappa in (0.0, 3.0, 7.0):
            kappas = np.full(3, log_kappa)
            expected = borders.component_shares(mu, kappas, shapes).toarray()
            assert moments_of(shapes).shares(mu, kappas) == pytest.approx(expected, abs=1e-7)

    def test_zones_use_them_where_many_components_are_wide(self, monkeypatch):
        mixture = awkward_mixture(4)
        plain = Zones.read(ODD).of(mixture).probabilities
        monkeypatch.setattr(zones, "_MANY", 0)
        asked = []
        given = ZoneMoments.shares
        monkeypatch.setattr(ZoneMoments, "shares", lambda *arguments: asked.append(1) or given(*arguments))
        assert Zones.read(ODD).of(mixture).probabilities == pytest.approx(plain, abs=1e-6)
        assert asked

    def test_zones_nowhere_hold_nothing(self):
        empty = np.array([shapely.MultiPolygon()])
        assert moments_of(empty).shares(np.eye(3), np.zeros(3)).tolist() == [[0.0]] * 3


@pytest.mark.parametrize("log_kappa", [0.0, 6.0, 16.0])
def test_halves_and_quarters_by_symmetry(log_kappa):
    mu = np.array([[1.0, 0.0, 0.0]])
    zones = [shapely.box(0, -90, 180, 90), shapely.box(0, 0, 180, 90)]
    shares = borders.component_shares(mu, np.array([log_kappa]), np.array([z.segmentize(1.0) for z in zones]))
    assert shares.toarray()[0] == pytest.approx([0.5, 0.25], abs=1e-5)


@pytest.mark.parametrize("kind", ["components", "cells"])
def test_a_tiling_holds_all(kind):
    mixture = awkward_mixture(4, n=1)
    found = Zones.read(TILES).of(mixture.to_cells(0.2) if kind == "cells" else mixture)
    assert found.probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-9)
    assert found.in_no_zone == pytest.approx(0.0, abs=1e-9)


def test_cells_agree_with_the_components_they_stand_for():
    mixture = awkward_mixture(5, n=1)
    cells = mixture.to_cells(0.1)
    expected, found = (Zones.read(ODD).of(each) for each in (mixture, cells))
    assert found.probabilities == pytest.approx(expected.probabilities, abs=0.102)
    assert found.in_no_zone == pytest.approx(expected.in_no_zone, abs=0.102)


def test_shares_of_cells_are_areas_and_the_twin_that_counts_centres_is_caught():
    zone = layer(shapely.box(10, 20, 50, 65))
    shapes = Zones.read(zone).polygons.geometry.to_numpy()
    area = sphere.rectangle_area_km2(10.0, 20.0, 50.0, 65.0)
    cells = np.sort(s2.children(s2.children(s2.face_cells())).ravel())
    for depth, caught in ((8, False), (0, True)):
        share = cell_shares(cells, np.ones(cells.size), shapes, depth=depth).toarray()[:, 0]
        held = share @ s2.area_sr(cells) * sphere.EARTH_RADIUS_KM**2
        assert (abs(held / area - 1.0) > 1e-3) == caught


@pytest.mark.parametrize("cell", ["face", "leaf"])
def test_one_cell_wholly_inside_or_outside(cell):
    inside = s2.cell_ids(sphere.to_directions(20.0, 50.0), 8 if cell == "leaf" else 0)
    zones = Zones.read(layer(shapely.box(-180, -90, 180, 90), shapely.box(-100, -50, -90, -40)))
    found = zones.of(CellMixture(np.array([inside]), [1.0], [0, 1]))
    assert found.probabilities[0] == pytest.approx([1.0, 0.0], abs=1e-12)


def test_zones_in_another_crs_are_the_same():
    mixture = awkward_mixture(6)
    in_degrees = layer(shapely.box(10, 40, 30, 60).segmentize(0.1))
    expected, found = (zone_probabilities(mixture, each) for each in (in_degrees, in_degrees.to_crs("EPSG:3035")))
    assert found["probability"].to_numpy() == pytest.approx(expected["probability"].to_numpy(), abs=1e-5)


def test_overlapping_zones_each_count_and_what_is_in_none_is_said():
    box = shapely.box(-30, -30, 30, 30)
    found = Zones.read(layer(box, box)).of(awkward_mixture(7))
    assert found.probabilities[:, 0] == pytest.approx(found.probabilities[:, 1], abs=1e-12)
    assert found.in_no_zone == pytest.approx(1.0 - found.probabilities[:, 0], abs=1e-12)


def test_tidy_rows_rankings_columns_and_counts():
    mixture = awkward_mixture(8, n=3)
    table = zone_probabilities(mixture, ODD, image_ids=["a", "b", "c"])
    assert table.columns.tolist() == ["image_id", "zone", "name", "probability"]
    assert table["image_id"].tolist() == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert table["name"].tolist() == ODD["name"].tolist() * 3
    found = Zones.read(ODD, name_column="name").of(mixture, ["a", "b", "c"])
    top = found.top(2)
    for name, rows in top.groupby("image_id"):
        own = table[table["image_id"] == name].sort_values("probability", ascending=False, kind="stable")
        assert rows["rank"].tolist() == [1, 2]
        assert rows["name"].tolist() == own["name"].tolist()[:2]
    columns = found.columns(9)
    assert columns.columns.tolist()[:4] == ["zone_1", "zone_1_probability", "zone_2", "zone_2_probability"]
    assert columns["zone_1"].tolist() == top[top["rank"] == 1]["name"].tolist()
    assert columns["in_no_zone"].to_numpy() == pytest.approx(found.in_no_zone)
    expected = found.expected()
    assert expected["expected_images"].sum() == pytest.approx(table["probability"].sum())


def test_counts_of_an_album_spread_as_said():
    p = np.array([[0.2], [0.9], [0.5], [0.5]])
    found = ZoneProbabilities(np.arange(4).astype(object), np.array(["x"], dtype=object), p, 1.0 - p[:, 0]).expected()
    drawn = (np.random.default_rng(0).random((100_000, 4)) < p[:, 0]).sum(axis=1)
    assert found["expected_images"][0] == pytest.approx(drawn.mean(), abs=0.02)
    assert found["standard_deviation"][0] == pytest.approx(drawn.std(), abs=0.02)


def test_names_are_rows_where_there_are_none_and_empty_zones_hold_nothing():
    zones = Zones.read(layer(shapely.box(0, 0, 1, 1), shapely.Polygon(), NAME=[None, "nowhere"]))
    assert zones.names.tolist() == ["0", "nowhere"]
    assert zones.of(awkward_mixture(0)).probabilities[:, 1].tolist() == [0.0, 0.0]
    assert Zones.read(layer(shapely.box(0, 0, 1, 1))).names.tolist() == ["0"]
    assert len(zone_probabilities(awkward_mixture(0)[:0], ODD)) == 0


def test_refusals():
    with pytest.raises(UsageError, match="no column 'nom'; they have name"):
        Zones.read(ODD, name_column="nom")
    with pytest.raises(UsageError, match="1 image_ids were given for 2 images"):
        zone_probabilities(awkward_mixture(0), ODD, image_ids=["a"])
    with pytest.raises(UsageError, match="0 zones per image"):
        Zones.read(ODD).of(awkward_mixture(0)).top(0)
