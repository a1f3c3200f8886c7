"""S2 cells against the reference implementation s2sphere, and against geometry."""

import itertools
import math

import numpy as np
import pytest
import s2sphere
from hypothesis import given
from hypothesis import strategies as st

from geo_mvmf import s2, s2_curve, s2_ids, sphere

LEAVES = st.builds(
    lambda face, i, j: int(s2_curve.encode(face, i, j)),
    st.integers(0, 5),
    st.integers(0, s2_curve.MAX_SIZE - 1),
    st.integers(0, s2_curve.MAX_SIZE - 1),
)


def foreign_ids(directions):
    return [s2sphere.CellId.from_point(s2sphere.Point(*map(float, direction))).id() for direction in directions]


def random_cells(n, seed=0):
    generator = np.random.default_rng(seed)
    leaves = s2.leaf_ids(sphere.random_directions(n, generator))
    return s2.parent(leaves, generator.integers(0, 31, n))


def vector(point):
    return [point[0], point[1], point[2]]


def test_ten_thousand_random_points_have_the_ids_of_s2sphere():
    directions = sphere.random_directions(10_000, np.random.default_rng(0))
    assert s2.leaf_ids(directions).tolist() == foreign_ids(directions)


def awkward_directions():
    longitude, latitude = np.meshgrid([-180.0, -135, -90, -45, 0, 45, 90, 135, 180], [-90.0, -45, 0, 45, 90])
    ends = sphere.to_directions(longitude.ravel(), latitude.ravel())
    face_edges = np.array(
        [p for p in itertools.product([-1.0, -0.3, 0.0, 0.7, 1.0], repeat=3) if max(map(abs, p)) == 1.0]
    )
    cells = random_cells(300, seed=1)
    cells = cells[s2.level(cells) < 30]
    corners = s2.corners(cells).reshape(-1, 3)
    edges = s2.corners(cells) + np.roll(s2.corners(cells), 1, axis=1)
    return np.concatenate([ends, face_edges, corners, edges.reshape(-1, 3)])


def test_awkward_points_have_that_cell_or_one_touching_it():
    """Poles, +-180, edges and corners of faces and of cells."""
    directions = awkward_directions()
    ours, theirs = s2.leaf_ids(directions), np.array(foreign_ids(directions), dtype=np.uint64)
    touching = s2.bounding_radius(ours) + s2.bounding_radius(theirs) + 1e-15
    assert np.all(sphere.angle(s2.centre(ours), s2.centre(theirs)) <= touching)
    assert np.mean(ours == theirs) > 0.99
    assert np.all(s2.is_valid(ours))


def test_parents_centres_corners_tokens_and_neighbours_are_those_of_s2sphere():
    cells = random_cells(1500)
    centres, corners, tokens, neighbours = (
        s2.centre(cells),
        s2.corners(cells),
        s2.to_token(cells),
        s2.edge_neighbours(cells),
    )
    levels = s2.level(cells)
    for row, number in enumerate(cells.tolist()):
        foreign = s2sphere.CellId(number)
        assert foreign.level() == levels[row]
        assert foreign.to_token() == tokens[row]
        assert np.allclose(vector(foreign.to_point()), centres[row], atol=5e-16, rtol=0)
        assert [cell.id() for cell in foreign.get_edge_neighbors()] == neighbours[row].tolist()
        whole = s2sphere.Cell(foreign)
        assert np.allclose([vector(whole.get_vertex(k)) for k in range(4)], corners[row], atol=5e-16, rtol=0)
        if not foreign.is_leaf():
            assert [child.id() for child in foreign.children()] == s2.children(cells[row]).tolist()
        if not foreign.is_face():
            assert foreign.parent().id() == s2.parent(cells[row], levels[row] - 1)
        assert (foreign.range_min().id(), foreign.range_max().id()) == (
            s2.range_min(cells[row]),
            s2.range_max(cells[row]),
        )


def test_areas_are_those_of_s2sphere():
    cells = random_cells(1500, seed=2)
    foreign = np.array([s2sphere.Cell(s2sphere.CellId(number)).exact_area() for number in cells.tolist()])
    ours = s2.area_sr(cells)
    coarse = s2.level(cells) <= 10
    assert np.abs(ours / foreign - 1.0)[coarse].max() < 1e-9
    assert np.abs(ours / foreign - 1.0).max() < 1e-5  # theirs loses digits in small cells


def test_areas_of_small_cells_keep_all_digits():
    """Four children make their parent at every level: the broken twin, areas by corner angles, fails below level 20."""
    cells = s2.parent(s2.leaf_ids(sphere.random_directions(200, np.random.default_rng(3))), 29)
    assert np.abs(s2.area_sr(s2.children(cells)).sum(axis=1) / s2.area_sr(cells) - 1.0).max() < 1e-14
    a, b, c, d = np.moveaxis(s2.corners(cells), 1, 0)

    def triangle(p, q, r):
        triple = np.einsum("ni,ni->n", p, np.cross(q, r))
        return 2 * np.arctan2(triple, 1 + (p * q).sum(1) + (q * r).sum(1) + (r * p).sum(1))

    twin = triangle(a, b, c) + triangle(a, c, d)
    assert np.abs(twin / s2.area_sr(cells) - 1.0).max() > 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_any_tiling_sums_to_the_sphere(seed):
    generator = np.random.default_rng(seed)
    cells = s2.face_cells()
    for _ in range(7):
        split = generator.random(cells.size) < 0.6
        cells = np.sort(np.concatenate([cells[~split], s2.children(cells[split]).ravel()]))
    assert float(s2.area_sr(cells).sum()) == pytest.approx(4 * math.pi, rel=1e-14)
    assert np.all(s2.range_min(cells[1:]) - s2.range_max(cells[:-1]) >= 2)  # disjoint, and no leaf between them
    assert s2.range_min(cells[0]) == 1


@given(LEAVES, st.integers(0, 30), st.integers(0, 30))
def test_hierarchy_laws(leaf, one, other):
    coarse, fine = min(one, other), max(one, other)
    cell, inner = s2.parent(leaf, coarse), s2.parent(leaf, fine)
    assert s2.level(cell) == coarse
    assert s2.parent(inner, coarse) == cell
    assert s2.contains(cell, inner)
    assert s2.contains(cell, leaf)
    assert bool(s2.contains(inner, cell)) == (coarse == fine)
    assert s2.range_min(cell) <= leaf <= s2.range_max(cell)
    assert s2.is_valid(cell)
    assert s2.from_token(s2.to_token(cell)) == cell


@given(LEAVES, st.integers(0, 30))
def test_geometry_laws(leaf, level):
    cell = s2.parent(leaf, level)
    centre, corners = s2.centre(cell), s2.corners(cell)
    if level < 30:
        assert s2.cell_ids(centre, level) == cell
    reach = sphere.angle(corners, centre)
    assert abs(reach.max() - s2.bounding_radius(cell)) < 1e-15
    volume = np.einsum("ni,ni->n", corners, np.cross(np.roll(corners, -1, axis=0), np.roll(corners, -2, axis=0)))
    assert level > 24 or np.all(volume > 0)  # counter-clockwise; below a metre the triple product is all rounding
    neighbours = s2.edge_neighbours(cell)
    assert len({int(number) for number in neighbours}) == 4 or level == 0
    assert np.all(s2.level(neighbours) == level)
    assert all(cell in s2.edge_neighbours(neighbour) for neighbour in neighbours)


@given(LEAVES)
def test_the_curve_goes_there_and_back_and_its_steps_are_neighbours(leaf):
    face, i, j = s2_curve.decode(leaf)
    assert s2_curve.encode(face, i, j) == leaf
    if leaf < int(s2.range_max(s2.face_cells()[5])):
        assert leaf + 2 in s2.edge_neighbours(np.uint64(leaf))


def test_projection_is_its_own_inverse_and_its_slope():
    s = np.linspace(0.0, 1.0, 1001)
    assert np.abs(s2_curve.uv_to_st(s2_curve.st_to_uv(s)) - s).max() < 1e-15
    step = 1e-6
    inside = s[1:-1][np.abs(s[1:-1] - 0.5) > 2 * step]
    slope = (s2_curve.st_to_uv(inside + step) - s2_curve.st_to_uv(inside - step)) / (2 * step)
    assert np.abs(slope - s2_curve.st_slope(inside)).max() < 1e-8


def test_rectangles_hold_their_points():
    directions = sphere.random_directions(2000, np.random.default_rng(4))
    cells = s2.cell_ids(directions, np.arange(2000) % 31)
    face, u, v = s2.cell_rectangle(cells)
    own_face, own_u, own_v = s2_curve.face_uv(directions)
    assert np.all(face == own_face)
    assert np.all((u[:, 0] <= own_u + 1e-15) & (own_u <= u[:, 1] + 1e-15))
    assert np.all((v[:, 0] <= own_v + 1e-15) & (own_v <= v[:, 1] + 1e-15))
    assert np.allclose(s2.uv_directions(own_face, own_u, own_v), directions, atol=2e-16)


def test_lengths():
    cells = s2.cell_ids(sphere.random_directions(5000, np.random.default_rng(5)), 12)
    corners = s2.corners(cells)
    edges = sphere.angle(corners, np.roll(corners, 1, axis=1))
    # random points favour large cells, hence the tolerance
    assert float(edges.mean()) == pytest.approx(float(s2.edge_length(12)), rel=0.03)
    assert np.all(s2.bounding_radius(s2.face_cells()) == s2.bounding_radius(s2.face_cells()[0]))


def test_neighbours_share_an_edge():
    cells = random_cells(2000, seed=6)
    cells = cells[s2.level(cells) < 24]
    corners = s2.corners(cells)
    for side, neighbour in enumerate(np.moveaxis(s2.edge_neighbours(cells), 1, 0)):
        one, two = corners[:, side], corners[:, (side + 1) % 4]
        for corner in (one, two):
            apart = sphere.angle(corner[:, None], s2.corners(neighbour)).min(axis=1)
            assert apart.max() < 1e-15


def test_shapes_follow_the_input():
    cells = s2.children(s2.children(s2.face_cells()))
    assert cells.shape == (6, 4, 4)
    for function, shape in [
        (s2.level, ()),
        (s2.area_sr, ()),
        (s2.bounding_radius, ()),
        (s2.to_token, ()),
        (s2.centre, (3,)),
        (s2.corners, (4, 3)),
        (s2.edge_neighbours, (4,)),
        (s2.children, (4,)),
    ]:
        assert np.shape(function(cells)) == (6, 4, 4, *shape)
        assert np.shape(function(cells[0, 0, 0])) == shape
        assert np.shape(function(cells[:0])) == (0, 4, 4, *shape)
    assert s2.leaf_ids(np.empty((0, 3))).shape == (0,)


def test_validity_and_wrong_values():
    numbers = np.array([0, 1, 2, 3, 6 << 61, (6 << 61) | 1, (5 << 61) | 1, 1 << 60, 1 << 59], dtype=np.uint64)
    expected = [s2sphere.CellId(int(number)).is_valid() for number in numbers]
    assert s2.is_valid(numbers).tolist() == expected
    assert s2.to_token(np.uint64(0)) == "X"
    for text in ("X", "", "zz", "1g", "0x10", "12345678901234567", "2", "f", "-1", "1 "):
        with pytest.raises(ValueError, match="not the token"):
            s2.from_token([text])
    with pytest.raises(ValueError, match="level 31"):
        s2.parent(s2.face_cells(), 31)
    with pytest.raises(ValueError, match="level 5 is finer"):
        s2.parent(s2.face_cells(), 5)
    with pytest.raises(ValueError, match="leaf"):
        s2.children(s2.leaf_ids([1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="direction 1 is"):
        s2.leaf_ids([[1.0, 0.0, 0.0], [math.nan, 0.0, 0.0]])


def test_exported_names_are_one_door():
    for name in s2.__all__:
        assert hasattr(s2, name)
    assert s2.parent is s2_ids.parent
