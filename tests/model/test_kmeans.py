"""k-means on the sphere, by its laws."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geo_mvmf import s2, sphere
from geo_mvmf.model import kmeans
from geo_mvmf.model.cleaning import PartitionWarning
from geo_mvmf.model.kmeans import partition_by_kmeans, spherical_kmeans


def towns(n=3000, seed=0):
    generator = np.random.default_rng(seed)
    middle = np.concatenate(
        [sphere.random_directions(20, generator), [[0, 0, 1.0], [-1.0, 0, 0]]]
    )  # a pole, 180 degrees
    near = middle[generator.integers(0, len(middle), n)] + generator.normal(size=(n, 3)) * 0.05
    return near / np.linalg.norm(near, axis=1, keepdims=True)


def broken_laws(directions, found):
    """Which laws a result breaks."""
    inertias = np.array(found.inertias)
    squares = ((directions[:, None, :] - found.mean_directions) ** 2).sum(axis=-1)  # brute force, float64
    own = squares[np.arange(len(directions)), found.classes]
    laws = {
        "inertia never rises": (np.diff(inertias) <= 1e-12 * inertias[0]).all(),
        "nearest": (own <= squares.min(axis=1) + 1e-15).all(),
        "inertia is that of the result": np.isclose(own.sum() / 2.0, inertias[-1], rtol=1e-10),
        "unit vectors": np.allclose(np.linalg.norm(found.mean_directions, axis=1), 1.0, atol=1e-14),
        "no class is empty": len(np.unique(found.classes)) == len(found.mean_directions),
    }
    return {law for law, holds in laws.items() if not holds}


@pytest.mark.parametrize(("classes", "seed"), [(1, 0), (7, 1), (60, 2), (400, 3)])
def test_laws(classes, seed):
    directions = towns(seed=seed)
    found = spherical_kmeans(directions, classes, seed=seed)
    assert len(found.mean_directions) == classes
    assert len(found.inertias) > 2
    assert broken_laws(directions, found) == set()


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (lambda f: f._replace(inertias=[*f.inertias[:-2], 2 * f.inertias[0], f.inertias[-1]]), "inertia never rises"),
        (lambda f: f._replace(classes=np.roll(f.classes, 1)), "nearest"),
        (lambda f: f._replace(inertias=[*f.inertias[:-1], 0.9 * f.inertias[-1]]), "inertia is that of the result"),
        (lambda f: f._replace(mean_directions=0.99 * f.mean_directions), "unit vectors"),
        (lambda f: f._replace(mean_directions=np.append(f.mean_directions, [[0, 0, -1.0]], 0)), "no class is empty"),
    ],
)
def test_the_laws_notice_what_breaks_them(spoil, law):
    directions = towns()
    assert law in broken_laws(directions, spoil(spherical_kmeans(directions, 30)))


def test_a_rotation_of_the_places_rotates_the_result():
    directions, turn = towns(), Rotation.from_quat(np.random.default_rng(5).standard_normal(4)).as_matrix()
    found, turned = spherical_kmeans(directions, 50, seed=1), spherical_kmeans(directions @ turn.T, 50, seed=1)
    np.testing.assert_array_equal(found.classes, turned.classes)
    np.testing.assert_allclose(found.mean_directions @ turn.T, turned.mean_directions, atol=1e-12)
    # the twin: means of longitude and latitude, which poles and 180 degrees spoil
    planar = [sphere.to_longitude_latitude(each) for each in (directions, directions @ turn.T)]
    wrong = [
        sphere.to_directions(*(np.bincount(found.classes, v) / np.bincount(found.classes) for v in p)) for p in planar
    ]
    assert np.abs(wrong[0] @ turn.T - wrong[1]).max() > 0.1


def test_the_same_seed_gives_the_same_and_another_one_another():
    directions = towns()
    first, again, other = (spherical_kmeans(directions, 30, seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.mean_directions, again.mean_directions)
    assert not np.array_equal(first.mean_directions, other.mean_directions)


def test_seeding_is_better_than_chance():
    directions = towns()
    seeded = np.mean([spherical_kmeans(directions, 22, seed=seed, max_rounds=1).inertias[0] for seed in range(5)])
    drawn = []
    for seed in range(5):
        chosen = directions[np.random.default_rng(seed).choice(len(directions), 22, replace=False)]
        drawn.append(((directions[:, None] - chosen) ** 2).sum(-1).min(1).sum() / 2)
    assert seeded < 0.5 * np.mean(drawn)


def test_more_places_than_seeding_takes(monkeypatch):
    monkeypatch.setattr(kmeans, "SEEDING_PLACES", 100)
    directions = towns()
    assert broken_laws(directions, spherical_kmeans(directions, 40)) == set()


def test_every_different_place_can_be_a_class_however_many_rows_the_others_have(monkeypatch):
    monkeypatch.setattr(kmeans, "SEEDING_PLACES", 100)
    x, y = np.full(2000, 7.0), np.full(2000, 50.0)
    x[:30] = np.arange(30) + 8.0
    for seed in range(3):  # a warning would be an error
        assert sorted(partition_by_kmeans(x, y, 31, seed=seed).counts) == [1] * 30 + [1970]
    # the twin draws rows and not places
    kept = np.random.default_rng(0).choice(2000, 100, replace=False)
    assert len(np.unique(x[kept])) < 31


def test_classes_drawn_in_batches_are_as_good_and_repeatable(monkeypatch):
    directions, seeds = towns(1500), range(4)
    singly = [spherical_kmeans(directions, 150, seed=seed, max_rounds=10).inertias for seed in seeds]
    monkeypatch.setattr(kmeans, "DRAWN_SINGLY", 16)
    batches = [spherical_kmeans(directions, 150, seed=seed, max_rounds=10) for seed in seeds]
    assert broken_laws(directions, batches[0]) == set()
    for when in (0, -1):  # of the first mean directions, and in the end
        inertias = [each.inertias[when] for each in batches]
        assert np.mean(inertias) == pytest.approx(np.mean([each[when] for each in singly]), rel=0.04)
    again = spherical_kmeans(directions, 150, seed=0, max_rounds=10)
    np.testing.assert_array_equal(again.mean_directions, batches[0].mean_directions)
    # the twin draws batches without regard to distances
    monkeypatch.setattr(kmeans, "_drawn_together", lambda shares, number, rng: rng.choice(len(shares), number))
    assert spherical_kmeans(directions, 150).inertias[0] > 1.2 * batches[0].inertias[0]


def test_batches_end_where_every_place_is_a_class(monkeypatch):
    monkeypatch.setattr(kmeans, "DRAWN_SINGLY", 4)
    directions = np.repeat(towns(60), 2, axis=0)
    assert spherical_kmeans(directions, 60).inertias[-1] < 1e-20
    assert len(spherical_kmeans(directions, 70).mean_directions) == 60


def test_a_partition_counts_its_places_and_has_no_cells():
    longitude, latitude = sphere.to_longitude_latitude(towns())
    found = partition_by_kmeans(np.append(longitude, np.nan), np.append(latitude, 1.0), 40)
    np.testing.assert_array_equal(np.bincount(found.assign(longitude, latitude)), found.counts)
    assert (found.counts.sum(), found.cleaning.dropped, found.has_cells, found.tiles_sphere) == (3000, 1, False, False)
    leaves = s2.leaf_ids(found.mean_directions)
    assert (leaves[1:] >= leaves[:-1]).all()
    with pytest.raises(ValueError, match="the 40 classes of method 'kmeans' are no S2 cells: there is no area"):
        _ = found.area_sr


def test_fewer_places_than_classes_are_said():
    with pytest.warns(PartitionWarning, match="only 2 of 5 classes"):
        assert sorted(partition_by_kmeans([1.0, 1.0, 2.0], [0.0, 0.0, 0.0], 5).counts) == [1, 2]


@pytest.mark.parametrize("option", [{"num_classes": 0}, {"max_rounds": 0}, {"seed": -1}])
def test_options_out_of_range_are_named(option):
    name, value = next(iter(option.items()))
    with pytest.raises(ValueError, match=rf"{name}.* {value}"):
        partition_by_kmeans([0.0], [0.0], **({"num_classes": 1} | option))


@pytest.mark.hard
def test_100000_places_make_8192_classes_in_little_memory():
    import tracemalloc

    directions = towns(100_000, seed=7)
    tracemalloc.start()
    found = spherical_kmeans(directions, 8192, max_rounds=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.mean_directions) == 8192
    assert peak < 100e6  # a matrix of all distances would be 6.5 GB
