"""Smooth pieces of a projection: rectangles of a grid on which the direction is a polynomial of column and row.

A projection costs a microsecond a point and has poles, rims and cuts. So the grid is cut into rectangles until the
direction is, on each, a polynomial through Gauss-Legendre nodes to eight digits. Everything else (areas of raster
cells, quadrature nodes in them, pieces of them) comes from the polynomials. Towards a singular line, as the poles of an
equal-area cylinder are, rectangles halve in one direction only. What the rim of the domain cuts goes down to sixteenths
of a raster cell, which then are single points with an area.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf.maps import quadrature
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

ORDER = 10
"""Nodes along each side of a chart."""

_TILE = 32.0  # raster cells along the side of the first rectangles
_RELATIVE = 1e-8  # of a chart's extent: how much its last coefficients may be
_NOISE = 1e-11  # radians: projections iterate to about this
_RIM = 1.0 / 16.0  # side of a rectangle that is cut by the rim and not halved any more
_LEAST = 1e-6  # side of a rectangle that is not halved whatever it holds
_CHARTS_AT_ONCE = 2048
_POINTS_AT_ONCE = 1 << 15


class Points(NamedTuple):
    """Quadrature nodes in raster cells.

    Parameters
    ----------
    cell : ndarray of int64, shape (M,)
        Number of the raster cell, row by row.
    directions : ndarray of float64, shape (M, 3)
        Unit vectors.
    areas_sr : ndarray of float64, shape (M,)
        Steradians that each node stands for.
    """

    cell: IntArray
    directions: FloatArray
    areas_sr: FloatArray


@dataclasses.dataclass(frozen=True, eq=False)
class Charts:
    """A grid cut into smooth pieces; made by `charts_of`.

    Parameters
    ----------
    grid : Grid
        What was cut.
    bounds : ndarray of float64, shape (K, 4)
        First column, first row, last column, last row of each chart; whole numbers or inside one raster cell.
    values : ndarray of float64, shape (K, ORDER, ORDER, 3)
        Directions at the Gauss-Legendre nodes (row, column).
    rim : Points
        Single points along the rim of the domain.
    """

    grid: Grid
    bounds: FloatArray
    values: FloatArray
    rim: Points

    def areas_sr(self) -> FloatArray:
        """Give the area of every raster cell inside the domain.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
            Steradians; NaN where nothing is inside.
        """
        total = np.zeros(self.grid.num_cells)
        total += np.bincount(self.rim.cell, self.rim.areas_sr, minlength=total.size)
        for points in self.points(2):
            total += np.bincount(points.cell, points.areas_sr, minlength=self.grid.num_cells)
        return np.where(total > 0.0, total, np.nan).reshape(self.grid.shape)

    def points(self, nodes: int) -> Iterator[Points]:
        """Give quadrature nodes in every raster cell, without those of the rim.

        Parameters
        ----------
        nodes : int
            Along each side of a raster cell, or of a chart inside a raster cell.
        """
        sizes = self.bounds[:, 2:] - self.bounds[:, :2]  # (K, 2): columns, rows
        whole = np.where(sizes >= 1.0, sizes, 0.0).astype(np.int64)
        kinds, kind = np.unique(whole, axis=0, return_inverse=True)
        for number, (wide, high) in enumerate(kinds.tolist()):
            (same,) = np.nonzero(kind.ravel() == number)
            down, across = _Nodes.of(high, nodes), _Nodes.of(wide, nodes)
            step = max(1, _POINTS_AT_ONCE // (down.cell.size * across.cell.size))
            for start in range(0, same.size, step):
                block = same[start : start + step]
                directions, areas = evaluate(self.values[block], down.position[None], across.position[None])
                areas *= down.weight[:, None] * across.weight
                first = np.floor(self.bounds[block]).astype(np.int64)
                row, column = first[:, 1, None] + down.cell, first[:, 0, None] + across.cell
                cells = row[:, :, None] * self.grid.shape[1] + column[:, None, :]
                yield Points(cells.ravel(), directions.reshape(-1, 3), areas.ravel())


class _Nodes(NamedTuple):
    """Quadrature nodes along one side of a chart."""

    position: FloatArray  # in 0..1 of the chart
    weight: FloatArray  # sum to 1
    cell: IntArray  # raster cell, counted from the chart's first

    @classmethod
    def of(cls, cells: int, nodes: int) -> _Nodes:
        """Give nodes for a side of so many raster cells; 0 is a side inside one."""
        if cells == 0:  # near singular places, where the area changes fast
            x, w = quadrature.gauss_legendre(ORDER)
            return cls(x, w, np.zeros(ORDER, dtype=np.int64))
        x, w = quadrature.gauss_legendre(nodes)
        position = (np.arange(cells)[:, None] + x).ravel() / cells
        return cls(position, np.tile(w, cells) / cells, np.repeat(np.arange(cells), nodes))


def evaluate(values: FloatArray, rows: FloatArray, columns: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Evaluate charts, each on its own lattice of positions.

    Parameters
    ----------
    values : ndarray of float64, shape (K, ORDER, ORDER, 3)
        Directions at the nodes.
    rows, columns : ndarray of float64, shapes (K or 1, a), (K or 1, b)
        Positions in 0..1 of each chart.

    Returns
    -------
    directions : ndarray of float64, shape (K, a, b, 3)
        Unit vectors.
    areas_sr : ndarray of float64, shape (K, a, b)
        Steradians per unit square of the chart.
    """
    along_rows = quadrature.interpolation(ORDER, rows)  # (K, a, n)
    along_columns = quadrature.interpolation(ORDER, columns)
    slope = quadrature.differentiation(ORDER)
    directions = _tensor(along_rows, along_columns, values)
    down = _tensor(along_rows @ slope, along_columns, values)
    across = _tensor(along_rows, along_columns @ slope, values)
    return directions, _cross_length(across, down)


def _cross_length(a: FloatArray, b: FloatArray) -> FloatArray:
    """Length of the cross product over the last axis; numpy's is five times slower."""
    x = a[..., 1] * b[..., 2] - a[..., 2] * b[..., 1]
    y = a[..., 2] * b[..., 0] - a[..., 0] * b[..., 2]
    z = a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
    return np.asarray(np.sqrt(x * x + y * y + z * z))


def place(values: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Evaluate the directions of charts, each on its own lattice of positions, without areas.

    Parameters
    ----------
    values : ndarray of float64, shape (K, ORDER, ORDER, 3)
        Directions at the nodes.
    rows, columns : ndarray of float64, shapes (K or 1, a), (K or 1, b)
        Positions in 0..1 of each chart.

    Returns
    -------
    ndarray of float64, shape (K, a, b, 3)
        Unit vectors to eight digits.
    """
    return _tensor(quadrature.interpolation(ORDER, rows), quadrature.interpolation(ORDER, columns), values)


def _tensor(along_rows: FloatArray, along_columns: FloatArray, values: FloatArray) -> FloatArray:
    number, n = values.shape[0], values.shape[1]
    rows = along_rows @ values.reshape(number, n, n * 3)  # (K, a, n * 3)
    rows = rows.reshape(number, -1, n, 3)
    return np.asarray(along_columns[:, None] @ rows)  # (K, a, b, 3)


@functools.lru_cache(maxsize=4)
def charts_of(grid: Grid) -> Charts:
    """Cut a grid into smooth pieces (kept for the last few grids).

    Parameters
    ----------
    grid : Grid
        Any; meant for those that are not geographic.

    Examples
    --------
    >>> charts = charts_of(Grid.from_bounds(-5e5, -5e5, 5e5, 5e5, 1e5, crs=3995))
    >>> charts.areas_sr().shape
    (10, 10)
    """
    todo = _first_tiles(grid)
    bounds, values, rim = [np.empty((0, 4))], [np.empty((0, ORDER, ORDER, 3))], [np.empty((0, 4))]
    while todo.size:
        halves = []
        for start in range(0, todo.shape[0], _CHARTS_AT_ONCE):
            tiles = todo[start : start + _CHARTS_AT_ONCE]
            directions = _project(grid, tiles)
            smooth, split, cut = _judge(grid, tiles, directions)
            bounds.append(tiles[smooth])
            values.append(directions[smooth])
            rim.append(tiles[cut])
            halves.append(_halve(tiles, split))
        todo = np.concatenate(halves)
    return Charts(grid, np.concatenate(bounds), np.concatenate(values), _rim_points(grid, np.concatenate(rim)))


def _first_tiles(grid: Grid) -> FloatArray:
    rows, columns = grid.shape
    left, top = np.meshgrid(np.arange(0, columns, _TILE), np.arange(0, rows, _TILE))
    tiles = np.stack([left, top, np.minimum(left + _TILE, columns), np.minimum(top + _TILE, rows)], axis=-1)
    return np.asarray(tiles.reshape(-1, 4), dtype=np.float64)


def _nodes_of(tiles: FloatArray, nodes: int) -> tuple[FloatArray, FloatArray]:
    """Columns and rows of the nodes of tiles, (K, nodes, nodes)."""
    x, _ = quadrature.gauss_legendre(nodes)
    column = tiles[:, 0, None] + (tiles[:, 2] - tiles[:, 0])[:, None] * x
    row = tiles[:, 1, None] + (tiles[:, 3] - tiles[:, 1])[:, None] * x
    shape = (tiles.shape[0], nodes, nodes)
    return np.broadcast_to(column[:, None, :], shape), np.broadcast_to(row[:, :, None], shape)


def _project(grid: Grid, tiles: FloatArray) -> FloatArray:
    return grid.to_directions(*_nodes_of(tiles, ORDER))


def _judge(
    grid: Grid, tiles: FloatArray, directions: FloatArray
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which tiles are charts, which to halve (rows, columns), and which the rim cuts for good."""
    known = np.isfinite(directions[..., 0])
    full, none = known.all(axis=(1, 2)), ~known.any(axis=(1, 2))
    size = tiles[:, 2:] - tiles[:, :2]  # (K, 2): columns, rows
    none[none] = ~_reached(grid, tiles[none])
    tails = _tails(np.where(full[:, None, None, None], directions, 0.0))  # (K, 2): along columns, along rows
    tiny = (size <= _RIM).all(axis=1) | (size <= _LEAST).any(axis=1)
    too_rough = (tails > 1.0) & (full & ~tiny)[:, None]
    worst = tails.max(axis=1, keepdims=True)
    split = too_rough & (tails * 4.0 >= worst)
    # a rim along rows or columns is followed closely, a slanting one down to sixteenths
    varies = np.stack([(known != known[:, :, :1]).any(axis=(1, 2)), (known != known[:, :1]).any(axis=(1, 2))], axis=-1)
    varies |= ~known.any(axis=(1, 2))[:, None]
    least = np.where(varies.all(axis=1), _RIM, _LEAST)[:, None]
    mixed = ~full & ~none
    cut = varies & (size > least) & mixed[:, None]
    return full & ~too_rough.any(axis=1), split | cut, mixed & ~cut.any(axis=1)


def _reached(grid: Grid, tiles: FloatArray) -> npt.NDArray[np.bool_]:
    """Whether the domain reaches any corner of a raster cell of tiles whose nodes all lie outside."""
    result = np.zeros(tiles.shape[0], dtype=bool)
    for k, (left, top, right, bottom) in enumerate(tiles):
        if right - left >= 1.0 or bottom - top >= 1.0:
            corners = np.meshgrid(np.arange(left, right + 0.5), np.arange(top, bottom + 0.5))
            result[k] = bool(np.isfinite(grid.to_directions(*corners)[..., 0]).any())
    return result


def _tails(directions: FloatArray) -> FloatArray:
    """The last coefficients against what is allowed, along columns and along rows."""
    matrix = quadrature.to_legendre(ORDER)
    by_rows = np.einsum("ki,tijd->tkjd", matrix[-2:], directions)
    by_columns = np.einsum("kj,tijd->tikd", matrix[-2:], directions)
    mean = directions.mean(axis=(1, 2), keepdims=True)
    extent = np.abs(directions - mean).max(axis=(1, 2, 3))
    allowed = _RELATIVE * extent + _NOISE
    tails = np.stack([np.abs(by_columns).max(axis=(1, 2, 3)), np.abs(by_rows).max(axis=(1, 2, 3))], axis=-1)
    return np.asarray(tails / allowed[:, None])


def _halve(tiles: FloatArray, split: npt.NDArray[np.bool_]) -> FloatArray:
    """Halves of tiles along columns and along rows; never across a part of a raster cell that could be whole."""
    tiles = tiles.copy()[split.any(axis=1)]
    split = split[split.any(axis=1)]
    for axis in (0, 1):
        chosen = split[:, axis]
        low, high = tiles[chosen, axis], tiles[chosen, axis + 2]
        middle = np.where(high - low > 1.0, np.floor((low + high) / 2.0), (low + high) / 2.0)
        first, second = tiles[chosen].copy(), tiles[chosen].copy()
        first[:, axis + 2], second[:, axis] = middle, middle
        flags = split[chosen]
        flags[:, axis] = False
        tiles = np.concatenate([tiles[~chosen], first, second])
        split = np.concatenate([split[~chosen], flags, flags])
    return tiles


def _rim_points(grid: Grid, tiles: FloatArray) -> Points:
    """Points of tiles that the rim cuts; areas from differences to neighbours inside the domain."""
    nodes = 4
    _, w = quadrature.gauss_legendre(nodes)
    column, row = (part.reshape(-1) for part in _nodes_of(tiles, nodes))
    size = np.repeat(tiles[:, 2:] - tiles[:, :2], nodes * nodes, axis=0)
    directions = grid.to_directions(column, row)
    across = _difference(grid, directions, column, row, 0.01 * size[:, 0], 0)
    down = _difference(grid, directions, column, row, 0.01 * size[:, 1], 1)
    weights = np.tile((w[:, None] * w).ravel(), tiles.shape[0]) * size.prod(axis=1)
    areas = _cross_length(across, down) * weights
    known = np.isfinite(areas) & np.isfinite(directions[:, 0])
    cell = np.floor(row).astype(np.int64) * grid.shape[1] + np.floor(column).astype(np.int64)
    return Points(cell[known], directions[known], areas[known])


def _difference(
    grid: Grid, directions: FloatArray, column: FloatArray, row: FloatArray, step: FloatArray, axis: int
) -> FloatArray:
    """Derivative by column (axis 0) or row (axis 1), from whichever neighbours are inside the domain."""
    shift_column, shift_row = (step, 0.0) if axis == 0 else (0.0, step)
    ahead = grid.to_directions(column + shift_column, row + shift_row)
    behind = grid.to_directions(column - shift_column, row - shift_row)
    no_ahead, no_behind = ~np.isfinite(ahead[:, 0]), ~np.isfinite(behind[:, 0])
    spans = (2.0 - no_ahead - no_behind) * step
    ahead, behind = np.where(no_ahead[:, None], directions, ahead), np.where(no_behind[:, None], directions, behind)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((ahead - behind) / spans[:, None])
