"""What a density is multiplied by that is not smooth: densities on S2 cells, areas and rasters.

Each tells of any S2 cell the least, the mean and the greatest factor in it. So cells on which a factor is even are
known, a cell without any factor can be left out, and what taking the mean instead of the factor costs is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import s2, s2_curve, sphere
from geo_mvmf.maps.cell_boxes import cell_boxes
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_POINTS = 4  # along each side of an S2 cell, where the mean is that of points
_CELLS_AT_ONCE = 1 << 15  # with 16 points each, 12 MB for their directions
_SURE = 1.0 / 32.0  # a mean of 16 points is not trusted closer to its bounds than this share of their distance
_COARSEST = 3  # an S2 cell below this level is bent too much on a map for its corners to bound it


class Look(NamedTuple):
    """Least, mean and greatest factor in S2 cells, each of shape (n,).

    Examples
    --------
    >>> Look(np.zeros(1), np.full(1, 0.5), np.ones(1)).errors()
    array([0.25])
    """

    low: FloatArray
    mean: FloatArray
    high: FloatArray

    @property
    def is_even(self) -> BoolArray:
        """Where the factor is the same all over the cell."""
        return np.asarray(self.high - self.low <= 1e-12 * self.high)

    def errors(self) -> FloatArray:
        """Bound half the mean of |factor - mean|: values within bounds deviate most where they are the bounds."""
        width = np.where(self.is_even, 1.0, self.high - self.low)
        share = np.clip((self.mean - self.low) / width, _SURE, 1.0 - _SURE)
        return np.where(self.is_even, 0.0, width * share * (1.0 - share))


class Multiplier(Protocol):
    """Anything a density can be multiplied by."""

    def look(self, cells: IdArray) -> Look:
        """Look at S2 cells, (n,)."""


def look_at(multipliers: Sequence[Multiplier], cells: IdArray) -> Look:
    """Look at S2 cells through all multipliers at once.

    Parameters
    ----------
    multipliers : sequence of Multiplier
    cells : ndarray of uint64, shape (n,)

    Returns
    -------
    Look
        Of the product; its mean is the product of the means, its bounds hold whatever the factors have in common.

    Examples
    --------
    >>> look_at([], s2.face_cells()).mean.tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    result = np.ones((3, cells.size))
    for start in range(0, cells.size if multipliers else 0, _CELLS_AT_ONCE):
        block = slice(start, start + _CELLS_AT_ONCE)
        for multiplier in multipliers:
            result[:, block] *= multiplier.look(cells[block])
    low, mean, high = result
    return Look(low, np.clip(mean, low, high), high)


class CellMultiplier:
    """A factor that is even on each of some S2 cells and 0 elsewhere.

    Parameters
    ----------
    cells : ndarray of uint64, shape (T,)
        Sorted, disjoint.
    values : ndarray of float64, shape (T,)
        Not negative.

    Examples
    --------
    >>> half = CellMultiplier(s2.face_cells()[:3], np.array([1.0, 2.0, 3.0]))
    >>> half.look(s2.face_cells()[2:4]).mean.tolist()
    [3.0, 0.0]
    """

    def __init__(self, cells: IdArray, values: FloatArray) -> None:
        self.cells, self.values = cells, values
        self._first, self._last = s2.range_min(cells), s2.range_max(cells)
        self._sums = np.concatenate([[0.0], np.cumsum(values * s2.area_sr(cells))])
        leaves = (self._last - self._first) // np.uint64(2) + np.uint64(1)
        self._leaves = np.concatenate([np.zeros(1, np.uint64), np.cumsum(leaves, dtype=np.uint64)])
        self._padded = np.append(values, 0.0)

    def look(self, cells: IdArray) -> Look:
        """Look at S2 cells; least, mean and greatest factor are exact."""
        order = np.argsort(cells)
        low, mean, high = np.zeros((3, cells.size))
        low[order], mean[order], high[order] = self._look(cells[order])
        return Look(low, mean, high)

    def _look(self, cells: IdArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        first = np.searchsorted(self._last, s2.range_min(cells))
        stop = np.maximum(np.searchsorted(self._first, s2.range_max(cells), side="right"), first)
        held = stop > first
        bounds = np.stack([first, stop], axis=1).ravel()
        low, high = (ufunc.reduceat(self._padded, bounds)[::2] for ufunc in (np.minimum, np.maximum))
        own = (s2.range_max(cells) - s2.range_min(cells)) // np.uint64(2) + np.uint64(1)
        covered = self._leaves[stop] - self._leaves[first]  # more than its own where one cell holds this one
        mean = np.where(covered > own, high, (self._sums[stop] - self._sums[first]) / s2.area_sr(cells))
        low = np.where(covered >= own, low, 0.0)
        return tuple(np.where(held, part, 0.0) for part in (low, np.clip(mean, low, high), high))  # type: ignore[return-value]


class AreaMultiplier:
    """1 inside an area, 0 outside.

    Parameters
    ----------
    area : Polygon or MultiPolygon
        Valid, within -180..180 and -90..90; edges straight in longitude and latitude.

    Examples
    --------
    >>> north = AreaMultiplier(shapely.box(-180.0, 0.0, 180.0, 90.0))
    >>> north.look(s2.face_cells()).mean.round(2).tolist()
    [0.5, 0.5, 1.0, 0.5, 0.5, 0.0]
    """

    def __init__(self, area: shapely.Geometry) -> None:
        self._area = area
        shapely.prepare(area)

    def look(self, cells: IdArray) -> Look:
        """Look at S2 cells; the mean of one on the border is that of 16 points."""
        boxes, rows = cell_boxes(cells)
        met = shapely.intersects(self._area, boxes)
        touched = np.zeros(cells.size, dtype=np.bool_)
        touched[rows[met]] = True
        inside = touched.copy()
        inside[rows[~met]] = False
        inside[rows[met][~shapely.contains(self._area, boxes[met])]] = False
        mean = inside.astype(np.float64)
        border = np.flatnonzero(touched & ~inside)
        longitude, latitude = sphere.to_longitude_latitude(_points_in(cells[border], _POINTS))
        mean[border] = shapely.contains_xy(self._area, longitude, latitude).mean(axis=1)
        return Look(inside.astype(np.float64), mean, touched.astype(np.float64))


class RasterMultiplier:
    """The values of a raster, 0 beyond its edges.

    Parameters
    ----------
    values : ndarray of float64, shape (rows, columns)
        Finite, not negative, not all 0.
    grid : Grid
        Where they lie.

    Examples
    --------
    >>> raster = RasterMultiplier(np.array([[1.0, 1.0], [0.0, 3.0]]), Grid.globe(90.0).window(slice(0, 2), slice(1, 3)))
    >>> raster.look(s2.face_cells()).high.tolist()
    [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]
    """

    def __init__(self, values: FloatArray, grid: Grid) -> None:
        self._grid = grid
        self._lows, self._means, self._highs = (_Pyramid(values, how) for how in ("min", "mean", "max"))
        self._poles = s2.leaf_ids([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])

    def look(self, cells: IdArray) -> Look:
        """Look at S2 cells: bounds from blocks of raster cells, the mean from 16 points of blocks of fitting size."""
        top, bottom, left, right, beyond = self._window(cells)
        rows, columns = self._grid.shape
        outside = (bottom < 0.0) | (top > rows) | (right < 0.0) | (left > columns)
        beyond = beyond | (top < 0.0) | (bottom > rows) | (left < 0.0) | (right > columns)
        first_row, last_row = _indices(top, rows), _indices(bottom, rows)
        first_column, last_column = _indices(left, columns), _indices(right, columns)
        span = np.maximum(last_row - first_row, last_column - first_column) + 1
        coarse = np.maximum(np.ceil(np.log2(span)).astype(np.int64) - 1, 0)
        # the finest blocks of which two by two hold the window: larger ones would reach far beyond it
        wide = np.maximum(
            (last_row >> coarse) - (first_row >> coarse), (last_column >> coarse) - (first_column >> coarse)
        )
        coarse += wide > 1
        corners = [(row, column) for row in (first_row, last_row) for column in (first_column, last_column)]
        low = np.min([self._lows.at(row, column, coarse) for row, column in corners], axis=0)
        high = np.max([self._highs.at(row, column, coarse) for row, column in corners], axis=0)
        low = np.where(beyond | outside, 0.0, low)
        high = np.where(outside, 0.0, high)
        mean = np.where(high > low, low, high)
        uneven = np.flatnonzero(high > low)
        mean[uneven] = self._means_at_points(cells[uneven], np.maximum(span[uneven] // _POINTS, 1))
        return Look(low, np.clip(mean, low, high), high)

    def _window(self, cells: IdArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, BoolArray]:
        """Rows and columns that hold each S2 cell, with a margin for bent edges, and whether a part has no place."""
        rows, columns = self._grid.shape
        column, row = self._grid.to_pixels(*sphere.to_longitude_latitude(_points_in(cells, 3, edges=True)))
        known = np.isfinite(column) & np.isfinite(row)
        some = known.any(axis=1)  # a cell wholly off the projection lies beyond the raster's edges
        top, bottom = _range(row, known)
        left, right = _range(column, known)
        pole = s2.contains(cells[:, None], self._poles).any(axis=1)
        turned = self._grid.is_geographic & (right - left > 180.0 / abs(self._grid.transform.a))
        coarse = s2.level(cells) < _COARSEST
        vague = coarse | (some & (pole | ~known.all(axis=1)))
        top, bottom = np.where(vague, -1.0, top), np.where(vague, rows + 1.0, bottom)
        left, right = np.where(vague | turned, -1.0, left), np.where(vague | turned, columns + 1.0, right)
        whole = turned & self._grid.is_global & ~vague  # the seam of a raster around the Earth is no edge
        left, right = np.where(whole, 0.0, left), np.where(whole, columns, right)
        return top, bottom, left, right, vague

    def _means_at_points(self, cells: IdArray, blocks: IntArray) -> FloatArray:
        column, row = self._grid.to_pixels(*sphere.to_longitude_latitude(_points_in(cells, _POINTS)))
        rows, columns = self._grid.shape
        with np.errstate(invalid="ignore"):
            held = (row >= 0.0) & (row <= rows) & (column >= 0.0) & (column <= columns)
        coarse = np.floor(np.log2(blocks)).astype(np.int64)[:, None]
        row, column = np.where(held, row, 0.0), np.where(held, column, 0.0)
        found = self._means.at(_indices(row, rows), _indices(column, columns), np.broadcast_to(coarse, row.shape))
        return np.asarray(np.where(held, found, 0.0).mean(axis=1))


class _Pyramid:
    """Least, mean or greatest of blocks of 2^k x 2^k raster cells, all levels in one array."""

    def __init__(self, values: FloatArray, how: str) -> None:
        levels, self._starts, self._widths = [values], [0], [values.shape[1]]
        while max(levels[-1].shape) > 1:
            padded = np.pad(levels[-1], [(0, size % 2) for size in levels[-1].shape])  # beyond the edges there is 0
            blocks = padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2)
            self._starts.append(self._starts[-1] + levels[-1].size)
            levels.append(getattr(blocks, how)(axis=(1, 3)))
            self._widths.append(levels[-1].shape[1])
        self._values = np.concatenate([level.ravel() for level in levels])

    def at(self, row: IntArray, column: IntArray, level: IntArray) -> FloatArray:
        """Give the blocks of a level that hold raster cells."""
        level = np.minimum(level, len(self._starts) - 1)
        start, width = np.asarray(self._starts)[level], np.asarray(self._widths)[level]
        return np.asarray(self._values[start + (row >> level) * width + (column >> level)])


def _indices(positions: FloatArray, size: int) -> IntArray:
    return np.clip(np.floor(positions), 0, size - 1).astype(np.int64)


def _range(positions: FloatArray, known: BoolArray) -> tuple[FloatArray, FloatArray]:
    """Least and greatest of each row, with an eighth more to both sides."""
    low = np.where(known, positions, np.inf).min(axis=1)
    high = np.where(known, positions, -np.inf).max(axis=1)
    some = known.any(axis=1)
    low, high = np.where(some, low, -2.0), np.where(some, high, -2.0)
    margin = (high - low) / 8.0
    return low - margin, high + margin


def _points_in(cells: IdArray, number: int, *, edges: bool = False) -> FloatArray:
    """Points of each S2 cell, (n, number^2, 3): middles of its parts, or with `edges` a lattice from edge to edge."""
    face, s, t = s2.st_rectangle(cells)
    along = np.linspace(0.0, 1.0, number) if edges else (np.arange(number) + 0.5) / number
    u = s2_curve.st_to_uv(s[:, :1] + np.diff(s) * along)[:, :, None]
    v = s2_curve.st_to_uv(t[:, :1] + np.diff(t) * along)[:, None, :]
    return s2.uv_directions(face[:, None, None], u, v).reshape(cells.size, number**2, 3)
