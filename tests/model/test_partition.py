"""The partition of the sphere (acceptance rows 13, 14, 15)."""

import math
import warnings

import numpy as np
import pytest

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.model.partition import PartitionWarning, initial_log_concentrations, partition_sphere


@pytest.fixture(scope="module")
def places():
    generator = np.random.default_rng(0)
    towns = sphere.random_directions(40, generator)
    near = towns[generator.integers(0, 40, 60_000)] + generator.normal(size=(60_000, 3)) * 0.02
    return sphere.to_longitude_latitude(near / np.linalg.norm(near, axis=1, keepdims=True))


@pytest.mark.parametrize(("power", "size"), [(4, 18), (5, 33), (6, 66), (7, 129), (8, 258), (10, 1026), (13, 8193)])
def test_row_13_sizes_are_the_first_6_plus_3j(places, power, size):
    assert len(partition_sphere(*places, 2**power)) == size


def test_row_14_cells_tile_the_sphere_and_hold_every_photo_once(places):
    cells = partition_sphere(*places, 1024)
    assert s2.area_sr(cells.cell_ids).sum() == pytest.approx(4 * math.pi, rel=1e-12)
    assert np.all(s2.range_min(cells.cell_ids)[1:] > s2.range_max(cells.cell_ids)[:-1])
    assigned = cells.assign(*places)
    leaves = s2.leaf_ids(sphere.to_directions(*places))
    assert s2.contains(cells.cell_ids[assigned], leaves).all()
    np.testing.assert_array_equal(np.bincount(assigned, minlength=len(cells)), cells.counts)


def test_the_fullest_cell_is_split_first(places):
    small, large = partition_sphere(*places, 200), partition_sphere(*places, 203)
    gone = np.setdiff1d(small.cell_ids, large.cell_ids)
    assert small.counts[np.isin(small.cell_ids, gone)] == small.counts.max()


def test_order_of_rows_does_not_matter(places):
    order = np.random.default_rng(1).permutation(len(places[0]))
    first, second = partition_sphere(*places, 500), partition_sphere(places[0][order], places[1][order], 500)
    np.testing.assert_array_equal(first.cell_ids, second.cell_ids)


def test_row_15_dirty_rows_are_dropped_counted_and_warned_about(places):
    longitude, latitude = (np.concatenate([each, [np.nan, np.inf], np.zeros(500)]) for each in places)
    with pytest.warns(PartitionWarning, match=r"500 of 60500 locations are exactly \(0, 0\)"):
        cells = partition_sphere(longitude, latitude, 64)
    assert cells.n_dropped == 2
    assert cells.counts.sum() == 60_500


def test_a_pile_of_equal_positions_does_not_eat_all_cells():
    with pytest.warns(PartitionWarning, match="only .* of 1000 cells"):
        cells = partition_sphere([10.0] * 50, [50.0] * 50, 1000, max_level=12)
    assert cells.levels.max() == 12


def test_no_finite_location_is_an_error():
    with pytest.raises(BadInputError, match="none of the 1 training locations"):
        partition_sphere([np.nan], [0.0], 6)


def test_mean_directions_of_photos_lie_among_the_photos(places):
    centre, photos = (partition_sphere(*places, 300, mean_direction=each) for each in ("centre", "photos"))
    np.testing.assert_array_equal(centre.cell_ids, photos.cell_ids)
    held = photos.counts > 0
    assert s2.contains(photos.cell_ids, s2.leaf_ids(photos.mean_directions))[held].mean() > 0.99
    np.testing.assert_array_equal(photos.mean_directions[~held], centre.mean_directions[~held])


def test_automatic_concentration_puts_95_percent_within_the_cells_edge(places):
    from geo_mvmf import vmf

    cells = partition_sphere(*places, 1024)
    chosen = initial_log_concentrations(cells)
    deep = cells.levels >= 2
    np.testing.assert_allclose(vmf.cap_probability(s2.edge_length(cells.levels[deep]), chosen[deep]), 0.95, atol=1e-6)
    assert set(initial_log_concentrations(cells, 16.0)) == {16.0}


def test_nothing_is_warned_about_clean_data(places):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partition_sphere(*places, 4096)
