"""The split of the experiment on real imagery keeps what it promises; the imagery itself is not needed."""

import argparse
import importlib
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from scipy import spatial

from geo_mvmf import resampling, sphere
from geo_mvmf.inputs import places


@pytest.fixture(scope="module")
def experiment():
    """Load a script of the folder by its name, as running it would."""
    folder = Path(__file__).parents[1] / "experiments"

    def load(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)
            return importlib.import_module(name)

    return load


@pytest.fixture(scope="module")
def imagery(experiment):
    return experiment("imagery")


def drawn(area, count, seed=0):
    found = places.draw_places(area, np.random.default_rng(seed))
    return np.array([next(found) for _ in range(count)]).T


@pytest.fixture(scope="module")
def training(imagery):
    """Places where training chips may be centred, many of them just outside what is kept out."""
    world = shapely.box(-180.0, -60.0, 180.0, 70.0)
    edge = shapely.difference(shapely.intersection(imagery.kept_out().buffer(0.3), world), imagery.kept_out())
    return np.concatenate([drawn(edge, 2000), drawn(shapely.difference(world, imagery.kept_out()), 2000)], axis=1)


def test_what_a_data_folder_lacks_is_said_before_anything_is_computed(imagery, tmp_path):
    (tmp_path / "blue_marble").mkdir()
    for month in imagery.MONTHS:
        (tmp_path / "blue_marble" / imagery.PICTURE.format(month)).touch()
    assert not imagery.missing(tmp_path, ("blue_marble",))
    (tmp_path / "blue_marble" / imagery.PICTURE.format("07")).unlink()
    assert "lacks 1 of the 8 files" in imagery.missing(tmp_path, ("blue_marble",))
    assert "world.200407" in imagery.missing(tmp_path, ("blue_marble", "land"))
    assert "photo_points/coordinates_100K.csv" in imagery.missing(tmp_path / "blue_marble", ("points",))


def test_no_crop_roams_into_a_test_block(imagery, training):
    reach_km = imagery.ROAM * imagery.PIXEL_KM * 0.999
    for bearing in range(0, 360, 15):  # along the border of the square over which the crop's middle roams
        side = max(abs(np.cos(np.radians(bearing))), abs(np.sin(np.radians(bearing))))
        assert not places.in_test_block(*sphere.destination(*training, bearing, reach_km / side)).any()
    # the broken twin: a crop that roams twice as far
    assert places.in_test_block(*sphere.destination(*training, 0.0, 2.0 * reach_km)).any()


def test_buffered_blocks_share_no_pixel_with_training(imagery, training):
    tested = drawn(shapely.box(-180.0, -60.0, 180.0, 70.0), 20_000, seed=1)
    tested = tested[:, imagery.group_of(*tested) == imagery.BUFFERED]
    assert tested.shape[1] > 200
    far = sphere.great_circle_distance_km(tested[0][:, None], tested[1][:, None], *training[:, None, :])
    assert far.min() > imagery.GROUND_KM
    # the broken twin: the same blocks without their buffer
    plain = drawn(imagery.padded(-150.0 + 0.01, 10.0, -135.0, 20.0, 30.0), 50)
    assert sphere.great_circle_distance_km(*plain[:, :, None], *training[:, None, :]).min() < imagery.GROUND_KM


def test_groups_cover_all_places_once(imagery):
    found = drawn(shapely.box(-180.0, -60.0, 180.0, 70.0), 5000, seed=2)
    group = imagery.group_of(*found)
    tested = places.in_test_block(*found)
    assert np.isin(group[tested], [imagery.BLOCK, imagery.BUFFERED]).all()
    assert np.isin(group[~tested], [imagery.NEW, imagery.BESIDE]).all()
    assert set(group) == {imagery.NEW, imagery.BLOCK, imagery.BUFFERED, imagery.BESIDE}


def test_training_places_are_new_places(imagery, training):
    assert (imagery.group_of(*training) == imagery.NEW).all()


# --- the paper's figures and tables ------------------------------------------------------------------------------


def test_fig2_compares_what_is_alike_only_at_the_equator(experiment):
    fig2 = experiment("fig2")
    equator, north, seam = (fig2.compared(*centre) for centre in ((10.0, 0.0), (10.0, 70.0), (179.0, 0.0)))
    assert equator["total_variation"] < 2e-3
    assert equator["nats_lost"] == pytest.approx(0.0, abs=2e-3)
    assert north["gaussian_half_width_50_km"] == pytest.approx(
        north["vmf_radius_50_km"] * np.cos(np.radians(70)), rel=0.01
    )
    assert north["total_variation"] > 0.4
    # what is beyond 180 degrees is missing, so no less than that differs
    assert seam["total_variation"] >= seam["gaussian_off_the_map"] == pytest.approx(0.363, abs=0.001)


def test_the_truth_of_theory_is_the_same_for_every_number_of_components(experiment):
    theory = experiment("theory")
    few, many = theory.Truth(8, 64, seed=1), theory.Truth(8, 1024, seed=1)
    nearest = torch.cdist(few.mean_directions.double(), many.mean_directions.double()).argmin(dim=1)
    assert float((few.weight - many.weight[nearest]).abs().max()) < 0.5 * float(few.weight.std())
    other = theory.Truth(8, 64, seed=2)  # the broken twin: another truth
    assert float((few.weight - other.weight).abs().max()) > 2.0 * float(few.weight.std())
    features, component, y = few.draw(20_000)
    share = torch.softmax(features @ few.weight.T, dim=1).mean(dim=0)
    drawn = torch.bincount(component, minlength=64) / 20_000
    assert float((drawn - share).abs().max()) < 0.006  # four standard errors
    angle = 1.0 - (y * few.mean_directions[component]).sum(dim=1)
    assert float(angle.mean() * math.exp(theory.LOG_KAPPA)) == pytest.approx(1.0, abs=0.03)


def test_theory_finds_the_least_of_a_loss(experiment):
    theory = experiment("theory")
    wanted = torch.tensor([[1.0, -2.0]])
    found = theory.fit(lambda weight, _: (weight - wanted).square().sum(), torch.zeros(1, 2), slice(0, 1), 0.0)
    assert torch.allclose(found, wanted, atol=1e-5)
    pulled = theory.fit(lambda weight, _: (weight - wanted).square().sum(), torch.zeros(1, 2), slice(0, 1), 2.0)
    assert torch.allclose(pulled, wanted / 2.0, atol=1e-5)


def test_voronoi_cells_of_fig3_are_those_of_the_sphere(experiment):
    """Against scipy's spherical Voronoi diagram where that works, and by nearness where points are metres apart."""
    fig3 = experiment("fig3")
    centre = sphere.to_directions(-0.13, 51.5)
    points = sphere.to_directions(*sphere.destination(-0.13, 51.5, *_drawn_around(200, 3000.0)))
    ours = fig3.voronoi(points, centre, 4000.0)
    # the ones at the rim reach round the Earth, where the two diagrams have other neighbours
    ours = [corners for corners in ours if (corners @ centre).min() > np.cos(3000.0 / sphere.EARTH_RADIUS_KM)]
    diagram = spatial.SphericalVoronoi(np.concatenate([points, -centre[None]]))
    areas = np.sort(diagram.calculate_areas()[:200])
    found = np.sort([_area(corners) for corners in ours])
    assert len(found) > 140
    assert np.abs(areas[np.searchsorted(areas, found * (1 - 1e-9))] / found - 1.0).max() < 1e-9
    close = sphere.to_directions(*sphere.destination(-0.13, 51.5, *_drawn_around(150, 0.2)))
    for corners in fig3.voronoi(close, centre):
        distance = np.sort(np.linalg.norm(corners[:, None] - close[None], axis=2), axis=1)
        assert (np.ptp(distance[:, :3], axis=1) < 1.6e-10).all()  # three are equally near, to a millimetre


def _drawn_around(count, reach_km):
    generator = np.random.default_rng(5)
    return generator.uniform(0, 360, count), reach_km * np.sqrt(generator.random(count))


def _area(corners):
    """Of a spherical polygon: the sum of its triangles (van Oosterom and Strackee 1983)."""
    a, b, c = corners[0], corners[1:-1], corners[2:]
    triple = (a * np.cross(b, c)).sum(axis=1)
    return np.abs(2.0 * np.arctan2(triple, 1.0 + b @ a + c @ a + (b * c).sum(axis=1)).sum())


def test_the_authors_floor_is_the_one_their_code_amounts_to(experiment):
    """1e-9 of their unit, in which a component lacks kappa / (2 pi) and has e^2 too much; known for three of them."""
    heads = experiment("heads")
    found = [heads.authors_floor(value) for value in (16.0, 14.0, 10.0)]
    assert found == pytest.approx([1.9e-4, 2.6e-5, 4.7e-7], rel=0.03)


@pytest.fixture
def clusters_of_chips(experiment):
    """Features that tell six places on Earth apart, 40 chips each; every third chip is a test chip."""
    heads = experiment("heads")
    generator = np.random.default_rng(0)
    which = np.repeat(np.arange(6), 40)
    places = sphere.to_directions(np.arange(6) * 60.0, np.array([50.0, -30.0, 20.0, 60.0, 0.0, -50.0]))
    features = (5.0 * np.eye(8)[which] + generator.normal(size=(240, 8))).astype(np.float32)
    directions = places[which] + 0.01 * generator.normal(size=(240, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    is_test = np.arange(240) % 3 == 0
    return heads.Data(features[~is_test], directions[~is_test], features[is_test], directions[is_test])


@pytest.mark.hard
@pytest.mark.parametrize("method", ["mvmf", "cross_entropy"])
def test_heads_learn_and_are_judged_by_their_densities(experiment, clusters_of_chips, method):
    heads = experiment("heads")
    job = heads.Job(method, 5, 250, 32, is_judged=True)
    head = heads.trained(job, clusters_of_chips)
    again = heads.trained(job, clusters_of_chips)
    assert torch.equal(head.weight, again.weight)  # a pure function of the job
    by_density = heads.judged(head, clusters_of_chips, is_judged=True)
    by_loss = heads.judged(head, clusters_of_chips, is_judged=False)
    assert by_density["error_km"].median() < 3500.0  # chance: some 10,000; these cells are thousands of km wide
    known = by_density["searched_probability"].notna().to_numpy()
    assert known.sum() == 12
    mixture = head.mixture(torch.from_numpy(clusters_of_chips.test_features[known]))
    direct = np.diag(mixture.log_density(clusters_of_chips.test_directions[known]))
    np.testing.assert_allclose(by_loss["nll"][known], -direct, atol=1e-4)
    assert by_density["nll"].mean() < math.log(4.0 * math.pi)
    if method == "mvmf":  # the judgement has no floor, whatever the training had
        head.floor = 1.0
        np.testing.assert_array_equal(heads.judged(head, clusters_of_chips, is_judged=False)["nll"], by_loss["nll"])


@pytest.mark.hard
def test_probability_of_cells_sums_to_one_and_follows_the_components(experiment, clusters_of_chips):
    fig6, heads = experiment("fig6"), experiment("heads")
    for method in ("mvmf", "cross_entropy"):
        head = heads.trained(heads.Job(method, 4, 20, 32), clusters_of_chips)
        features = clusters_of_chips.test_features[:3]
        found = fig6.masses(head, features)
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-5)
        whole = head.mixture(torch.from_numpy(features))
        cells = fig6.cells_of(fig6.HIGHLIGHTED_LEVEL)
        direct = fig6.mass_of(whole[[0]], cells)
        np.testing.assert_allclose(found[0], direct, atol=2e-3)


def test_paired_differences_are_of_the_same_chips(experiment):
    scores, imagery, pd = experiment("scores"), experiment("imagery"), pytest.importorskip("pandas")
    test = pd.DataFrame(
        {"longitude": np.repeat(np.arange(30.0), 2), "latitude": 10.0, "group": imagery.NEW, "kind": "k"}
    )
    frozen = imagery.Frozen(test, test, np.zeros((0, 1)), np.zeros((60, 1)), Path("-"), {})
    error = np.random.default_rng(0).uniform(0.0, 400.0, 60)
    own, other = pd.DataFrame({"error_km": error}), pd.DataFrame({"error_km": error + 60.0})
    found = scores.difference(own, other, frozen, imagery.NEW, "k")["at_200_km"]
    assert found.value == pytest.approx(np.mean((error <= 200.0).astype(float) - (error + 60.0 <= 200.0)))
    assert found.low > 0.0  # where unpaired intervals overlap
    alone = [
        scores.of(each, frozen, [(imagery.NEW, "k")]).set_index("measure").loc["at_200_km"] for each in (own, other)
    ]
    assert alone[0]["low"] < alone[1]["high"]
    assert len(np.unique(scores.clusters_of(frozen.test))) == 30
    in_blocks = imagery.Frozen(
        test, test.assign(group=imagery.BLOCK), np.zeros((0, 1)), np.zeros((60, 1)), Path("-"), {}
    )
    assert len(np.unique(scores.clusters_of(in_blocks.test))) == 2  # longitudes 0 to 30 are in two blocks


def test_a_recolouring_is_one_law_for_all_chips_and_stronger_than_what_is_trained_on(experiment):
    sensor = experiment("sensor")
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8), (2, 3, 4, 256))
    np.testing.assert_array_equal(sensor.recoloured(ramp, 0.0, 3), ramp)
    laws = []
    for number in range(sensor.RECOLOURINGS):
        changed = sensor.recoloured(ramp, 1.0, number)
        np.testing.assert_array_equal(changed[0], changed[1])
        np.testing.assert_array_equal(changed, sensor.recoloured(ramp, 1.0, number))
        assert all((np.diff(band.astype(int)) >= 0).all() for band in changed[0, :, 0])
        laws += [tuple(band.tolist()) for band in changed[0, :, 0]]
    assert len(set(laws)) == 3 * sensor.RECOLOURINGS  # no two bands are bent alike
    most = sensor.MOST_GAIN - 1.0, sensor.MOST_POWER - 1.0, sensor.MOST_OFFSET
    drawn_most = (sensor.ROBUST[name] for name in ("channel_gain", "gamma", "channel_offset"))
    assert all(strong > trained for strong, trained in zip(most, drawn_most, strict=True))


def test_the_change_to_the_plain_network_is_of_the_same_places(experiment):
    """Two networks of which one is always 100 km better: the interval of the change is as narrow as that."""
    sensor, rng = experiment("sensor"), np.random.default_rng(0)
    error = rng.exponential(1000.0, 300)
    frames = [
        pd.DataFrame({"place": np.arange(300) // 3, "strength": 0.0, "arm": arm, "error_km": error - less, "nll": less})
        for arm, less in (("plain", 0.0), ("both", 100.0))
    ]
    both = sensor.summarise(pd.concat(frames)).set_index("arm").loc["both"]
    assert both["median_km_change"] == pytest.approx(-100.0)
    assert (both["median_km_change_low"], both["median_km_change_high"]) == pytest.approx((-100.0, -100.0))
    assert both["median_km_high"] - both["median_km_low"] > 100.0
    assert both["nll_change"] == pytest.approx(100.0)
    over_places = resampling.median_of_clusters(error - 100.0, np.arange(300) // 3)
    assert (both["median_km_low"], both["median_km_high"]) == pytest.approx((over_places.low, over_places.high))


@pytest.fixture
def judged_in_blocks(experiment):
    """Chips of four months at 20 places in each of 9 blocks, whose chips are right or wrong together."""
    rng, block = np.random.default_rng(0), np.repeat(np.arange(9), 20)
    where = {
        "true_longitude": 15.0 * block + rng.uniform(0.0, 15.0, 180),
        "true_latitude": rng.uniform(10.0, 20.0, 180),
    }
    judged = pd.DataFrame(where).assign(error_km=1000.0 * (1.0 + block), nll=block)
    others = ("mode_error_km", "searched_probability", "neighbour_error_km", "nearest_km")
    months = experiment("blue_marble").UNSEEN
    return pd.concat([judged.assign(month=month, **dict.fromkeys(others, 0.5)) for month in months])


def test_intervals_of_test_blocks_count_blocks_and_not_places(experiment, judged_in_blocks):
    blue_marble, judged = experiment("blue_marble"), judged_in_blocks
    in_blocks, alone = (
        blue_marble.line_of(judged.assign(group=group)) for group in (blue_marble.BLOCK, blue_marble.NEW)
    )
    for name, measure, values in (("median", "median_km", judged["error_km"]), ("nll", "nll", judged["nll"])):
        assert in_blocks[measure] == alone[measure] == pytest.approx(values.median())
        width, of_places = (line[f"{name}_high"] - line[f"{name}_low"] for line in (in_blocks, alone))
        assert width > 2.5 * of_places > 0.0


def test_what_was_read_from_the_kept_run_stands_on_no_other_page(experiment, judged_in_blocks):
    blue_marble = experiment("blue_marble")
    table = blue_marble.summarise(judged_in_blocks.assign(group=blue_marble.NEW))
    latitudes = blue_marble.by_latitude(judged_in_blocks.assign(group=blue_marble.NEW))
    kept, other = (
        blue_marble.page(table, latitudes, argparse.Namespace(**blue_marble.KEPT | more)) for more in ({}, {"steps": 3})
    )
    assert "the aim was 850 km" in kept
    assert "the aim was 850 km" not in other
    assert "Nobody has read this run yet" in other
    assert "| new places | unseen | 180 (720) | **5000** (" in other


@pytest.mark.parametrize("name", ["fig3", "fig4", "fig5", "fig6", "table1"])
def test_kept_pages_end_with_what_their_scripts_say_was_read(experiment, name):
    page = (Path(__file__).parents[1] / "docs" / "experiments" / f"{name}.md").read_text(encoding="utf-8")
    read = experiment("record").reading(experiment(name).READING, was_read=True)
    assert f"\n{read}\n\n| circumstances |" in page
