"""Looks of a multiplier, remembered: the same as without memory, and nothing is looked at twice."""

import numpy as np
import pytest
import shapely

from geo_mvmf import s2
from geo_mvmf.maps import evidence, remembered
from geo_mvmf.maps.cell_boxes import cell_boxes
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.multipliers import AreaMultiplier, RasterMultiplier
from geo_mvmf.maps.remembered import Remembered

AREA = shapely.union(shapely.Point(10.0, 50.0).buffer(8.0), shapely.box(170.0, -20.0, 180.0, 10.0))
RASTER = RasterMultiplier(np.arange(32.0).reshape(4, 8) // 6, Grid.globe(45.0))


class Counted:
    """Counts what it is asked for."""

    def __init__(self, multiplier):
        self.multiplier, self.asked = multiplier, []

    def look(self, cells):
        self.asked.extend(cells.tolist())
        return self.multiplier.look(cells)


def descents(number, seed=0):
    """Cells as the images of an album ask for them: around one place each, from the faces down."""
    generator = np.random.default_rng(seed)
    for _ in range(number):
        centre = np.array([2.0, 0.4, 2.0]) + generator.normal(size=3)
        leaves = s2.leaf_ids(centre + 0.1 * generator.normal(size=(200, 3)))
        for level in (0, 2, 4, 6, 8, 9, 10):
            yield generator.permutation(np.unique(s2.parent(leaves, level)))


@pytest.mark.parametrize("multiplier", [AreaMultiplier(AREA), RASTER], ids=["area", "raster"])
def test_looks_are_those_of_the_multiplier(multiplier):
    memory = Remembered(multiplier)
    for cells in descents(6):
        for found, direct in zip(memory.look(cells), multiplier.look(cells), strict=True):
            np.testing.assert_allclose(found, direct, rtol=1e-12, atol=0.0)


def test_no_cell_is_looked_at_twice_nor_within_an_even_one():
    counted = Counted(AreaMultiplier(AREA))
    memory = Remembered(counted)
    for cells in descents(6):
        memory.look(cells)
    asked = np.array(counted.asked, dtype=np.uint64)
    assert np.unique(asked).size == asked.size
    even = asked[AreaMultiplier(AREA).look(asked).is_even]
    for level in range(10):
        finer = asked[s2.level(asked) > level]
        assert not np.isin(s2.parent(finer, level), even).any()
    every = np.concatenate(list(descents(6)))
    assert asked.size < 0.5 * every.size
    assert not np.isin(every, asked).all()  # or the test would say nothing about even cells


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(remembered, "_MOST", 500)
    memory = Remembered(AreaMultiplier(AREA))
    for cells in descents(6):
        np.testing.assert_array_equal(memory.look(cells).mean, AreaMultiplier(AREA).look(cells).mean)
        assert memory._even.size + memory._uneven.size <= 500


def test_larger_cells_learnt_later_take_the_place_of_smaller_ones():
    counted = Counted(AreaMultiplier(shapely.box(-180.0, -90.0, 180.0, 90.0)))
    memory = Remembered(counted)
    small = s2.children(s2.children(s2.face_cells()[2:3])).ravel()
    assert memory.look(np.concatenate([small, s2.face_cells()[2:3], small])).mean.tolist() == [1.0] * 33
    assert memory._even.size == 1
    assert memory.look(s2.children(small).ravel()).mean.tolist() == [1.0] * 64
    assert len(counted.asked) == 33


def test_areas_and_priors_are_remembered():
    assert isinstance(evidence.area_multiplier(AREA), Remembered)
    assert isinstance(evidence.prior_multiplier(np.ones((4, 8)), Grid.globe(45.0)), Remembered)


def test_boxes_hold_their_cells_on_both_sides_of_the_seam():
    generator = np.random.default_rng(1)
    around = np.array([-1.0, 0.0, 0.0]) + 0.05 * generator.normal(size=(50, 3))
    cells = np.unique(s2.parent(s2.leaf_ids(np.concatenate([around, generator.normal(size=(50, 3))])), 6))
    boxes, rows = cell_boxes(cells)
    assert rows[: cells.size].tolist() == list(range(cells.size))
    assert rows.size > cells.size
    corners = s2.corners(cells)
    longitude = np.degrees(np.arctan2(corners[..., 1], corners[..., 0]))
    latitude = np.degrees(np.arcsin(corners[..., 2]))
    held = np.zeros(longitude.shape, dtype=bool)
    for box, row in zip(boxes, rows, strict=True):
        held[row] |= shapely.intersects_xy(box, longitude[row], latitude[row])
    assert held.all()
