"""Unions of squares against shapely's, which knows nothing of lattices."""

import numpy as np
import pytest
import shapely

from geo_mvmf.maps import squares


def random_squares(seed, *, density=0.5, depth=5, origin=0):
    """Leaves of a random quadtree on 2^depth x 2^depth, some of them."""
    generator = np.random.default_rng(seed)
    chosen, stack = [], [(0, 0, 1 << depth)]
    while stack:
        i, j, size = stack.pop()
        if size > 1 and generator.random() < 0.75:
            half = size // 2
            stack += [(i, j, half), (i + half, j, half), (i, j + half, half), (i + half, j + half, half)]
        elif generator.random() < density:
            chosen.append((i, j, size))
    table = np.array(chosen or [(0, 0, 1)], dtype=np.int64)
    return table[:, :2] + origin, table[:, 2]


def polygons_of(low, size):
    return [shapely.Polygon(rings[0], rings[1:]) for rings in squares.union(low, size)]


def by_shapely(low, size):
    return shapely.union_all(shapely.box(low[:, 0], low[:, 1], low[:, 0] + size, low[:, 1] + size))


@pytest.mark.parametrize("density", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(10))
def test_equal_to_the_union_of_boxes(seed, density):
    low, size = random_squares(seed, density=density)
    found = shapely.MultiPolygon(polygons_of(low, size))
    assert found.is_valid
    assert found.area == np.square(size).sum()
    assert found.symmetric_difference(by_shapely(low, size)).area == 0.0


def test_a_twin_that_cancels_only_equal_sides_is_caught():
    """Squares of two sizes share parts of sides: cancelling whole sides alone leaves lines inside."""
    low, size = np.array([[0, 0], [2, 0], [2, 1]]), np.array([2, 1, 1])
    sides = [shapely.box(*corner, *(corner + edge)).exterior for corner, edge in zip(low, size, strict=True)]
    edges = [
        tuple(sorted((tuple(a), tuple(b))))
        for ring in sides
        for a, b in zip(ring.coords[:-1], ring.coords[1:], strict=True)
    ]
    alone = [shapely.LineString(edge) for edge in edges if edges.count(edge) == 1]
    twin = sum(line.length for line in alone)
    [[exterior]] = squares.union(low, size)
    assert shapely.Polygon(exterior).length == 10.0
    assert twin == 14.0


@pytest.mark.parametrize("seed", range(5))
def test_rings_turn_at_every_vertex_and_are_closed(seed):
    low, size = random_squares(seed)
    for polygon in squares.union(low, size):
        for ring in polygon:
            assert ring[0].tolist() == ring[-1].tolist()
            steps = np.diff(ring, axis=0)
            assert np.all((steps == 0).sum(axis=1) == 1)
            along = steps[:, 0] == 0
            assert np.all(along != np.roll(along, 1))


def test_squares_that_meet_at_a_corner_are_two():
    assert len(squares.union(np.array([[0, 0], [1, 1]]), np.array([1, 1]))) == 2


def test_a_missing_square_is_a_hole():
    i, j = np.divmod(np.delete(np.arange(9), 4), 3)
    [[exterior, hole]] = squares.union(np.stack([i, j], axis=1), np.ones(8, dtype=np.int64))
    assert shapely.Polygon(exterior).area == 9.0
    assert shapely.Polygon(hole).bounds == (1.0, 1.0, 2.0, 2.0)


def test_coordinates_up_to_the_largest_leaf_are_exact():
    top = (1 << 30) - 32
    low, size = random_squares(3, origin=top)
    found = shapely.MultiPolygon(polygons_of(low, size))
    assert found.area == np.square(size).sum()
    assert found.bounds[2] <= 1 << 30
    whole = squares.union(np.array([[0, 0]]), np.array([1 << 30]))
    assert shapely.Polygon(whole[0][0]).bounds == (0.0, 0.0, 2.0**30, 2.0**30)


def test_nothing_gives_nothing():
    assert squares.union(np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.int64)) == []
