"""The partition of the sphere (acceptance rows 13, 14, 15)."""

import dataclasses
import heapq
import math
import warnings

import numpy as np
import pytest

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.errors import BadInputError
from geo_mvmf.model.partition import (
    PartitionWarning,
    initial_log_concentrations,
    partition_by_thresholds,
    partition_sphere,
)

SIZES = {2**power: 2**power + (2 if power % 2 == 0 else 1) for power in range(4, 16)}


def towns(n, seed=0):
    generator = np.random.default_rng(seed)
    middle = sphere.random_directions(40, generator)
    near = middle[generator.integers(0, 40, n)] + generator.normal(size=(n, 3)) * generator.exponential(0.02, (n, 1))
    return sphere.to_longitude_latitude(near / np.linalg.norm(near, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def places():
    return towns(60_000)


def test_row_13_the_sizes_are_those_of_the_paper():
    """PRIOR_ART row 13: 18, 33, 66, 129, 258, 513, 1026, 2049, 4098, 8193, 16386, 32769."""
    assert list(SIZES.values()) == [18, 33, 66, 129, 258, 513, 1026, 2049, 4098, 8193, 16386, 32769]


@pytest.mark.parametrize(("wanted", "size"), SIZES.items())
def test_row_13_sizes_are_the_first_6_plus_3j_above_2_to_the_k(places, wanted, size):
    """PRIOR_ART row 13."""
    cells = partition_sphere(*places, wanted)
    assert len(cells) == size == cells.counts.size == len(cells.mean_directions)


def test_at_least_so_many_cells_and_no_more_than_needed(places):
    for wanted, size in [(1, 6), (6, 6), (7, 9), (9, 9), (10, 12), (999, 999)]:
        assert len(partition_sphere(*places, wanted)) == size


@pytest.mark.parametrize("num_cells", [6, 100, 1024, 8192])
def test_row_14_cells_tile_the_sphere_and_hold_every_photo_once(places, num_cells):
    """PRIOR_ART row 14: disjoint, area sum 4 pi, each photo in one cell."""
    cells = partition_sphere(*places, num_cells)
    assert s2.area_sr(cells.cell_ids).sum() == pytest.approx(4 * math.pi, rel=1e-12)
    assert np.all(s2.range_min(cells.cell_ids)[1:] > s2.range_max(cells.cell_ids)[:-1])
    assigned = cells.assign(*places)
    leaves = s2.leaf_ids(sphere.to_directions(*places))
    assert s2.contains(cells.cell_ids[assigned], leaves).all()
    np.testing.assert_array_equal(np.bincount(assigned, minlength=len(cells)), cells.counts)
    # anywhere else, also at the poles, on the edges of faces and at 180 degrees, is in exactly one cell
    longitude = np.array([0.0, 45.0, -45.0, 135.0, 180.0, -180.0, 0.0, 17.0])
    latitude = np.array([90.0, 35.264389682754654, 0.0, 0.0, 0.0, 0.0, -90.0, -90.0])
    inside = s2.contains(cells.cell_ids, s2.leaf_ids(sphere.to_directions(longitude, latitude))[:, None])
    np.testing.assert_array_equal(inside.sum(axis=1), 1)
    np.testing.assert_array_equal(inside.argmax(axis=1), cells.assign(longitude, latitude))


def test_equals_a_heap_over_lists_of_photos():
    """The authors' rule written plainly: pop the fullest cell, push its four children."""
    places = towns(2000, seed=4)
    leaves = s2.leaf_ids(sphere.to_directions(*places))
    heap = [(-int(s2.contains(cell, leaves).sum()), int(cell)) for cell in s2.face_cells()]
    heapq.heapify(heap)
    while len(heap) < 300:
        _, fullest = heapq.heappop(heap)
        for child in s2.children(np.uint64(fullest)):
            heapq.heappush(heap, (-int(s2.contains(child, leaves).sum()), int(child)))
    cells = partition_sphere(*places, 300)
    assert dict(zip(cells.cell_ids.tolist(), cells.counts.tolist(), strict=True)) == {cell: -n for n, cell in heap}


def test_order_of_rows_does_not_matter_and_a_second_run_is_the_same(places):
    order = np.random.default_rng(1).permutation(len(places[0]))
    first, again = partition_sphere(*places, 500), partition_sphere(*places, 500)
    turned = partition_sphere(places[0][order], places[1][order], 500, mean_direction="photos")
    np.testing.assert_array_equal(first.cell_ids, again.cell_ids)
    np.testing.assert_array_equal(first.cell_ids, turned.cell_ids)
    np.testing.assert_array_equal(first.counts, turned.counts)


def test_a_full_turn_of_longitude_changes_nothing(places):
    first, turned = partition_sphere(*places, 100), partition_sphere(places[0] + 360.0, places[1], 100)
    np.testing.assert_array_equal(first.cell_ids, turned.cell_ids)


def test_row_15_dirty_rows_are_dropped_counted_and_warned_about(places):
    """PRIOR_ART row 15."""
    longitude, latitude = (np.concatenate([each, [np.nan, np.inf], np.zeros(500)]) for each in places)
    with pytest.warns(PartitionWarning, match=r"500 of 60500 locations are exactly \(0, 0\)"):
        cells = partition_sphere(longitude, latitude, 64)
    assert cells.cleaning.dropped == 2
    assert cells.counts.sum() == 60_500
    assert (cells.cleaning.zero_zero, cells.cleaning.duplicates) == (500, 499)
    with pytest.warns(
        PartitionWarning,
        match=r"1 of 60001 rows .*row 60001 .*: latitude 100\.0, not in -90\.\.90 \(longitude 10\.0: swapped",
    ):
        cells = partition_sphere(np.append(places[0], 10.0), np.append(places[1], 100.0), 64)
    assert (cells.cleaning.dropped, cells.cleaning.out_of_range, cells.counts.sum()) == (1, 1, 60_000)


def test_a_pile_of_equal_positions_does_not_eat_all_cells():
    with pytest.warns(PartitionWarning, match="only 42 of 1000 cells: the 50 locations fill no more"):
        cells = partition_sphere([10.0] * 50, [50.0] * 50, 1000, max_level=12)
    assert cells.levels.max() == 12
    assert cells.counts.max() == cells.counts.sum() == 50
    assert s2.area_sr(cells.cell_ids).sum() == pytest.approx(4 * math.pi)


def test_a_cell_of_the_deepest_level_is_not_split_but_others_are(places):
    longitude, latitude = (np.concatenate([each, np.full(30_000, 33.3)]) for each in places)
    cells = partition_sphere(longitude, latitude, 1000, max_level=9)
    assert cells.levels.max() == 9
    assert cells.counts[cells.levels == 9].max() >= 30_000
    assert len(cells) == 1002


def test_level_zero_is_allowed():
    with pytest.warns(PartitionWarning, match="only 6 of 18 cells"):
        assert len(partition_sphere([1.0], [1.0], 18, max_level=0)) == 6


def test_no_finite_location_is_an_error():
    for longitude in ([np.nan], []):
        with pytest.raises(BadInputError, match=f"none of the {len(longitude)} training locations"):
            partition_sphere(longitude, [0.0] * len(longitude), 6)


@pytest.mark.parametrize(
    "option", [{"max_level": 31}, {"max_level": -1}, {"mean_direction": "median"}, {"num_cells": 0}]
)
def test_options_out_of_range_are_named(option):
    with pytest.raises(ValueError, match=value_of(option)):
        partition_sphere([0.0], [0.0], **({"num_cells": 6} | option))


@pytest.mark.parametrize("option", [{"split_above": 0}, {"drop_below": -1}, {"max_level": 31}])
def test_options_of_the_thresholds_are_named(option):
    with pytest.raises(ValueError, match=value_of(option)):
        partition_by_thresholds([0.0], [0.0], **option)


@pytest.mark.parametrize(("split_above", "drop_below"), [(500, 0), (50, 10), (40, 1)])
def test_thresholds_keep_the_cells_that_a_plain_recursion_keeps(split_above, drop_below):
    places = towns(2000, seed=4)
    leaves = s2.leaf_ids(sphere.to_directions(*places))
    todo, expected = list(s2.face_cells()), {}
    while todo:
        cell = todo.pop()
        count = int(s2.contains(cell, leaves).sum())
        if count > split_above:
            todo += list(s2.children(cell))
        elif count >= drop_below:
            expected[int(cell)] = count
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartitionWarning)
        cells = partition_by_thresholds(*places, split_above=split_above, drop_below=drop_below)
    assert dict(zip(cells.cell_ids.tolist(), cells.counts.tolist(), strict=True)) == expected
    assert cells.tiles_sphere == (drop_below == 0)
    assigned = cells.assign(*places)
    assert (assigned < 0).sum() == cells.outside == 2000 - cells.counts.sum()
    np.testing.assert_array_equal(np.bincount(assigned[assigned >= 0], minlength=len(cells)), cells.counts)


def test_what_thresholds_discard_is_said_and_does_not_tile_the_sphere(places):
    with pytest.warns(
        PartitionWarning, match=r"hold fewer than 50 locations and are left out, with \d+ locations"
    ) as said:
        cells = partition_by_thresholds(*places, split_above=500)
    assert f"{cells.dropped_cells} of {len(cells) + cells.dropped_cells} cells" in str(said[0].message)
    assert not cells.tiles_sphere
    assert s2.area_sr(cells.cell_ids).sum() < 4 * math.pi - 0.1
    with pytest.raises(BadInputError, match="all 6 cells hold fewer than drop_below 99999"):
        partition_by_thresholds(*places, split_above=10**6, drop_below=99_999)


def test_cells_with_a_gap_do_not_tile(places):
    """The twin of tiles_sphere: one cell less, an end less, or two in place of one."""
    whole = partition_sphere(*places, 300)
    assert whole.tiles_sphere
    for kept in (np.s_[1:], np.s_[:-1], np.r_[0:100, 101:300]):
        assert not dataclasses.replace(whole, cell_ids=whole.cell_ids[kept]).tiles_sphere
    doubled = np.sort(np.append(whole.cell_ids, s2.children(whole.cell_ids[7])))
    assert not dataclasses.replace(whole, cell_ids=doubled).tiles_sphere


def value_of(option):
    name, value = next(iter(option.items()))
    return f"{name} {value!r}"


def test_mean_directions_are_cell_centres_or_means_of_photos(places):
    centre, photos = (partition_sphere(*places, 300, mean_direction=each) for each in ("centre", "photos"))
    np.testing.assert_array_equal(centre.mean_directions, s2.centre(centre.cell_ids))
    assigned, directions = photos.assign(*places), sphere.to_directions(*places)
    for cell in (photos.counts > 0).nonzero()[0][:40]:
        mean = directions[assigned == cell].sum(axis=0)
        np.testing.assert_allclose(photos.mean_directions[cell], mean / np.linalg.norm(mean), atol=1e-13)
    empty = photos.counts == 0
    assert empty.any()
    np.testing.assert_array_equal(photos.mean_directions[empty], centre.mean_directions[empty])
    np.testing.assert_allclose(np.linalg.norm(photos.mean_directions, axis=1), 1.0, atol=1e-15)


def test_automatic_concentration_puts_95_percent_within_the_cells_edge(places):
    cells = partition_sphere(*places, 1024)
    chosen = initial_log_concentrations(cells)
    np.testing.assert_allclose(vmf.cap_probability(s2.edge_length(cells.levels), chosen), 0.95, atol=1e-9)
    assert set(initial_log_concentrations(cells, 16.0)) == {16.0}
    with pytest.raises(ValueError, match="initial log concentration 'wide'"):
        initial_log_concentrations(cells, "wide")
    with pytest.raises(ValueError, match="initial log concentration nan"):
        initial_log_concentrations(cells, math.nan)


def test_automatic_concentration_is_the_table_of_prior_art():
    """PRIOR_ART 3.3: level 5 7.9, 7 10.6, 9 13.4, 10 14.9, 12 17.9, 14 20.4 (of some cell's edge)."""
    with pytest.warns(PartitionWarning, match="only"):
        cells = partition_sphere([10.0], [50.0], 100, max_level=14)
    at = dict(zip(cells.levels.tolist(), initial_log_concentrations(cells).tolist(), strict=True))
    for level, expected in {5: 7.9, 7: 10.6, 9: 13.4, 10: 14.9, 12: 17.9, 14: 20.4}.items():
        assert at[level] == pytest.approx(expected, abs=0.25)  # ours is the mean edge of the level


def test_nothing_is_warned_about_clean_data(places):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition_sphere(*places, 4096)


def test_100000_photos_make_32769_cells():
    places = towns(100_000, seed=7)
    found = partition_sphere(*places, 2**15)
    assert len(found) == 32769
    assert found.counts.sum() == 100_000
