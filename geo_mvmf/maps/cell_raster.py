"""Probability of raster cells from a density that is uniform on S2 cells.

Small S2 cells are cut into pieces that go to the raster cell of their middle. Large ones are looked up from the raster
cells: one whose corners and middle lie in the same S2 cell gets its density, others the mean over points. A piece on
an edge may count for the neighbour; the probability of no S2 cell is lost or made by that on a global grid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere
from geo_mvmf.cell_mixture import find_cells
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

SPLITS = 3
"""Small S2 cells are cut until their pieces are 2^3 times smaller than a raster cell."""

_POINTS = 8  # along each side of a raster cell on an edge between large S2 cells
_PIECES_AT_ONCE = 1 << 18


class CellRaster:
    """The raster cells of a grid, ready to take the probability of S2 cells.

    Parameters
    ----------
    grid : Grid
        Where.
    cell_areas_km2 : ndarray of float64, shape (rows, columns)
        From `cell_area_km2`; NaN outside the projection's domain.

    Notes
    -----
    Pieces are at most an eighth of a raster cell wide, so a raster cell cut by an edge between S2 cells of densities d1
    and d2 errs by at most about |d1 - d2| / 8 of its area, and typically a tenth of that.

    Examples
    --------
    >>> grid = Grid.globe(30.0)
    >>> areas = sphere.rectangle_area_km2(0.0, 90.0 - 30.0 * np.arange(1, 7), 30.0, 90.0 - 30.0 * np.arange(6))
    >>> raster = CellRaster(grid, np.repeat(areas[:, None], 12, axis=1))
    >>> round(float(raster.probabilities(s2.face_cells(), np.full(6, 1 / 6)).sum()), 9)
    1.0
    """

    def __init__(self, grid: Grid, cell_areas_km2: FloatArray) -> None:
        self.grid = grid
        self._areas_sr = np.nan_to_num(cell_areas_km2).ravel() / sphere.EARTH_RADIUS_KM**2
        self._is_whole = bool(abs(self._areas_sr.sum() / (4.0 * np.pi) - 1.0) < 1e-9)
        # the coarsest level whose cells are at most as wide as each raster cell
        lengths = s2.edge_length(np.arange(s2.MAX_LEVEL + 1))
        level = np.searchsorted(-lengths, -np.sqrt(self._areas_sr))
        self._levels = np.minimum(level, s2.MAX_LEVEL - SPLITS).astype(np.int8)
        self._leaves: IdArray | None = None  # (5, cells): middle and corners, 0 outside the domain

    def probabilities(self, cell_ids: IdArray, probabilities: FloatArray) -> FloatArray:
        """Give one image's probability to the raster cells.

        Parameters
        ----------
        cell_ids : ndarray of uint64, shape (T,)
            Sorted, disjoint.
        probabilities : ndarray of float64, shape (T,)
            Of each S2 cell.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
            Probabilities, not normalised.
        """
        where = self._raster_cells(s2.centre(cell_ids))
        fitting = np.where(where >= 0, self._levels[where], s2.MAX_LEVEL).astype(np.int64)
        small = s2.level(cell_ids) >= fitting
        total = self._splat(cell_ids[small], probabilities[small], fitting[small] + SPLITS)
        if not np.all(small):
            total += self._look_up(cell_ids[~small], probabilities[~small])
        return total.reshape(self.grid.shape)

    def _splat(self, cells: IdArray, masses: FloatArray, finest: IntArray) -> FloatArray:
        total = np.zeros(self.grid.num_cells)
        ends = np.cumsum(4 ** np.maximum(finest - s2.level(cells), 0))
        for start in range(0, int(ends[-1]) if ends.size else 0, _PIECES_AT_ONCE):
            block = slice(*np.searchsorted(ends, [start, start + _PIECES_AT_ONCE], side="right"))
            total += self._bin(*_cut(cells[block], masses[block], finest[block]))
        return total

    def _bin(self, cells: IdArray, masses: FloatArray) -> FloatArray:
        where = self._raster_cells(s2.centre(cells))
        inside = where >= 0
        return np.bincount(where[inside], masses[inside], minlength=self.grid.num_cells).astype(np.float64)

    def _raster_cells(self, directions: FloatArray) -> IntArray:
        """Find the number of the raster cell of each direction, -1 outside."""
        column, row = self.grid.to_pixels(*sphere.to_longitude_latitude(directions))
        rows, columns = self.grid.shape
        with np.errstate(invalid="ignore"):
            inside = (column >= 0.0) & (column <= columns) & (row >= 0.0) & (row <= rows)
        # a point on the last edge belongs to the last cell
        column = np.minimum(np.where(inside, column, 0.0).astype(np.int64), columns - 1)
        row = np.minimum(np.where(inside, row, 0.0).astype(np.int64), rows - 1)
        return np.where(inside, row * columns + column, -1)

    def _look_up(self, cells: IdArray, masses: FloatArray) -> FloatArray:
        density = masses / s2.area_sr(cells)
        owner = np.stack([find_cells(cells, leaves) for leaves in self._corner_leaves()])  # (5, raster cells)
        same = (owner == owner[0]).all(axis=0)
        total = np.where(same & (owner[0] >= 0), density[owner[0]] * self._areas_sr, 0.0)
        held = same & (owner[0] >= 0)
        per_cell = np.bincount(owner[0][held], total[held], minlength=cells.size).astype(np.float64)
        (edge,) = np.nonzero(~same & (self._areas_sr > 0.0))
        found = find_cells(cells, self._points_in(edge))  # (edge cells, points)
        shares = self._areas_sr[edge, None] / found.shape[1] * np.where(found >= 0, density[found], 0.0)
        if self._is_whole:  # no S2 cell may gain or lose by the points
            per_cell += np.bincount(found[found >= 0], shares[found >= 0], minlength=cells.size)
            factor = np.where(per_cell > 0.0, masses / np.where(per_cell > 0.0, per_cell, 1.0), 1.0)
            total[owner[0] >= 0] *= factor[owner[0][owner[0] >= 0]]
            shares *= factor[found]
        np.add.at(total, edge, shares.sum(axis=1))
        return total

    def _corner_leaves(self) -> IdArray:
        if self._leaves is None:
            rows, columns = self.grid.shape
            corners = self._leaf_ids(*np.meshgrid(np.arange(columns + 1.0), np.arange(rows + 1.0)))
            middle = self._leaf_ids(*np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5))
            sides = [corners[:-1, :-1], corners[:-1, 1:], corners[1:, :-1], corners[1:, 1:]]
            self._leaves = np.stack([part.ravel() for part in [middle, *sides]])
        return self._leaves

    def _points_in(self, cells: IntArray) -> IdArray:
        row, column = np.divmod(cells, self.grid.shape[1])
        inner = (np.arange(_POINTS) + 0.5) / _POINTS
        y, x = np.meshgrid(inner, inner, indexing="ij")
        return self._leaf_ids(column[:, None] + x.ravel(), row[:, None] + y.ravel())

    def _leaf_ids(self, column: FloatArray, row: FloatArray) -> IdArray:
        directions = self.grid.to_directions(column, row)
        known = np.isfinite(directions[..., 0])
        ids = np.zeros(known.shape, dtype=np.uint64)
        ids[known] = s2.leaf_ids(directions[known])
        return ids


def _cut(cells: IdArray, masses: FloatArray, finest: IntArray) -> tuple[IdArray, FloatArray]:
    """Cut cells into pieces, each down to its own level; what is finer already stays."""
    done_cells, done_masses = [np.empty(0, dtype=np.uint64)], [np.empty(0)]
    density = masses / s2.area_sr(cells)
    while cells.size:
        fine = s2.level(cells) >= finest
        done_cells.append(cells[fine])
        done_masses.append(density[fine] * s2.area_sr(cells[fine]))
        cells, density = s2.children(cells[~fine]).ravel(), np.repeat(density[~fine], 4)
        finest = np.repeat(finest[~fine], 4)
    return np.concatenate(done_cells), np.concatenate(done_masses)
