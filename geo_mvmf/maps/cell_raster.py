"""Probability of raster cells from a density that is uniform on S2 cells.

Small S2 cells are cut into pieces that go to the raster cell of their middle. Large ones are looked up from the raster
cells: one whose corners and middle lie in the same S2 cell gets its density, others the mean over points. A piece on
an edge may count for the neighbour; the probability of no S2 cell is lost or made by that on a global grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere
from geo_mvmf.cell_mixture import find_cells
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

SPLITS = 2
"""Small S2 cells are cut until their pieces are 2^2 times smaller than a raster cell."""

_POINTS = 4  # along each side of a raster cell on an edge between large S2 cells
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
    Pieces are at most a quarter of a raster cell wide, so a raster cell cut by an edge between S2 cells of densities d1
    and d2 errs by at most about |d1 - d2| / 4, and typically by a fifth of that.

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
        self._corners = _lattice(grid, 0.0, 1)
        self._fitting = _levels(np.maximum(_longest_sides(self._corners), np.sqrt(self._areas_sr)))
        self._finest = np.minimum(_levels(np.sqrt(self._areas_sr)) + SPLITS, s2.MAX_LEVEL)
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
        small = (where >= 0) & (s2.level(cell_ids) >= self._fitting[where])
        total = self._splat(cell_ids[small], probabilities[small], self._finest[where[small]])
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
        if self._is_whole:  # no S2 cell may gain or lose by the points
            for _, found, shares in self._edge_shares(edge, cells, density):
                per_cell += np.bincount(found[found >= 0], shares[found >= 0], minlength=cells.size)
            factor = np.where(per_cell > 0.0, masses / np.where(per_cell > 0.0, per_cell, 1.0), 1.0)
            total[held] *= factor[owner[0][held]]
            density = density * factor
        for raster_cells, _, shares in self._edge_shares(edge, cells, density):
            total[raster_cells] += shares.sum(axis=1)
        return total

    def _edge_shares(
        self, edge: IntArray, cells: IdArray, density: FloatArray
    ) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
        """Raster cells on edges, (n,), the S2 cells at their points and the probability there, (n, points)."""
        step = _PIECES_AT_ONCE // _POINTS**2
        for start in range(0, edge.size, step):
            raster_cells = edge[start : start + step]
            found = find_cells(cells, self._points_in(raster_cells))
            area = self._areas_sr[raster_cells, None] / found.shape[1]
            yield raster_cells, found, np.where(found >= 0, density[found], 0.0) * area

    def _corner_leaves(self) -> IdArray:
        if self._leaves is None:
            corners = _leaf_ids(self._corners)
            sides = [corners[:-1, :-1], corners[:-1, 1:], corners[1:, :-1], corners[1:, 1:]]
            middle = _leaf_ids(_lattice(self.grid, 0.5, 0))
            self._leaves = np.stack([part.ravel() for part in [middle, *sides]])
        return self._leaves

    def _points_in(self, cells: IntArray) -> IdArray:
        row, column = np.divmod(cells, self.grid.shape[1])
        inner = (np.arange(_POINTS) + 0.5) / _POINTS
        y, x = np.meshgrid(inner, inner, indexing="ij")
        return _leaf_ids(self.grid.to_directions(column[:, None] + x.ravel(), row[:, None] + y.ravel()))


def _lattice(grid: Grid, shift: float, more: int) -> FloatArray:
    """Directions of corners (shift 0, one more) or middles (shift 0.5) of all raster cells."""
    rows, columns = grid.shape
    return grid.to_directions(*np.meshgrid(np.arange(columns + more) + shift, np.arange(rows + more) + shift))


def _longest_sides(corners: FloatArray) -> FloatArray:
    """Longest side of each raster cell (chord) with both ends inside the domain, 0 where there is none."""
    across = np.linalg.norm(np.diff(corners, axis=1), axis=-1)
    down = np.linalg.norm(np.diff(corners, axis=0), axis=-1)
    sides = np.fmax.reduce([across[:-1], across[1:], down[:, :-1], down[:, 1:]])
    return np.asarray(np.nan_to_num(sides).ravel())


def _levels(sizes: FloatArray) -> IntArray:
    """Give the coarsest level whose cells are at most so wide (radians)."""
    lengths = s2.edge_length(np.arange(s2.MAX_LEVEL + 1))
    return np.minimum(np.searchsorted(-lengths, -sizes), s2.MAX_LEVEL).astype(np.int64)


def _leaf_ids(directions: FloatArray) -> IdArray:
    """Leaf cells; 0, which is none, outside the domain."""
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
