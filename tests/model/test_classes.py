"""Classes of training places: concentrations by distances, means of locations."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.model.classes import Partition, initial_log_concentrations, means_of_locations, nearest, spacing

NO_CELLS = np.empty(0, dtype=np.uint64)


def of_directions(directions):
    return Partition(NO_CELLS, np.zeros(len(directions), dtype=np.int64), directions, method="kmeans")


def all_cells(level):
    cells = s2.face_cells()
    for _ in range(level):
        cells = s2.children(cells).ravel()
    return np.sort(cells)


def test_concentrations_by_distance_are_those_by_edge_where_the_centres_are_those_of_cells():
    cells = all_cells(5)
    by_edge = initial_log_concentrations(Partition(cells, np.zeros(cells.size, int), s2.centre(cells)))
    by_distance = initial_log_concentrations(of_directions(s2.centre(cells)))
    assert abs(np.median(by_distance - by_edge)) < 0.15
    assert np.abs(by_distance - by_edge).max() < 0.7  # cells of one level differ by a factor of 2 in area
    # the twin: the distance to the nearest of all, itself, or to all others
    for wrong in (np.full(cells.size, 1e-6), np.full(cells.size, math.pi / 2)):
        assert np.abs(vmf.log_concentration_for(wrong, 0.95) - by_edge).max() > 0.7


def test_95_percent_lie_within_the_distance_to_the_neighbours_and_a_rotation_changes_nothing():
    generator = np.random.default_rng(0)
    directions = sphere.random_directions(200, generator)
    turn = Rotation.from_quat(generator.standard_normal(4)).as_matrix()
    found = initial_log_concentrations(of_directions(directions))
    np.testing.assert_allclose(vmf.cap_probability(spacing(directions), found), 0.95, atol=1e-9)
    angles = np.sort(np.arccos(np.clip(directions @ directions.T, -1, 1)), axis=1)[:, 1:5].mean(axis=1)
    np.testing.assert_allclose(spacing(directions), angles, rtol=1e-6)
    np.testing.assert_allclose(initial_log_concentrations(of_directions(directions @ turn.T)), found, rtol=1e-9)


@pytest.mark.parametrize("directions", [np.eye(3)[:1], np.eye(3)[[0, 0]], np.array([[1.0, 0, 0], [-1.0, 0, 0]])])
def test_one_alone_two_at_one_place_and_two_opposite_are_finite(directions):
    assert np.isfinite(initial_log_concentrations(of_directions(directions))).all()


def test_nearest_is_that_of_all_distances():
    generator = np.random.default_rng(1)
    means, directions = sphere.random_directions(300, generator), sphere.random_directions(2000, generator)
    np.testing.assert_array_equal(nearest(means, directions)[0], (directions @ means.T).argmax(axis=1))
    places = sphere.to_longitude_latitude(directions)
    np.testing.assert_array_equal(of_directions(means).assign(*places), nearest(means, directions)[0])


def test_means_of_locations_leave_what_has_none():
    east_west = np.array([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])
    means, counts = means_of_locations(east_west, np.array([0, 0, -1]), np.eye(3)[[2, 0]])
    np.testing.assert_array_equal(means, np.eye(3)[[2, 0]])  # antipodes have no mean, the second class no location
    assert counts.tolist() == [2, 0]
