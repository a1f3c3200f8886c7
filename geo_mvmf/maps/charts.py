"""Smooth pieces of a projection: rectangles of a grid on which the direction is a polynomial of column and row.

A projection costs a microsecond a point and has poles, rims and cuts. So the grid is cut into rectangles until the
direction is, on each, a polynomial through Gauss-Legendre nodes to eight digits. Everything else (areas of raster
cells, quadrature nodes in them, pieces of them) comes from the polynomials. Towards a singular line, as the poles of an
equal-area cylinder are, rectangles halve in one direction only. What the rim of the domain cuts is bent: one side of
the rectangle becomes the rim.
"""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf.maps import quadrature, raster_parts, rims
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ORDER = rims.ORDER
"""Nodes along each side of a chart."""

_TILE = 32.0  # raster cells along the side of the first rectangles
_RELATIVE = 1e-8  # of a chart's extent: how much its last coefficients may be
_BENT = 1e2  # times as much where the rim is a side: few charts, and a kink of the rim costs many
_NOISE = 1e-11  # radians: projections iterate to about this
_CORNER = 1.0 / 1024.0  # side of a rectangle around a corner of the rim, not halved any more
_NARROW = 1e-4  # radians: where the rim is a point, even such a rectangle may be wider than components
_LEAST = 1e-9  # side of a rectangle that is not halved whatever it holds
_POINT = 1e-6  # radians: a rectangle of 6 m is not halved either; next to some poles projections shake by a millimetre
_CHARTS_AT_ONCE = 2048
_LONG_S = 20.0  # seconds after which somebody who waits is told why
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
    """

    grid: Grid
    bounds: FloatArray
    values: FloatArray

    def areas_sr(self) -> FloatArray:
        """Give the area of every raster cell inside the domain.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
            Steradians; NaN where nothing is inside.
        """
        total = np.zeros(self.grid.num_cells)
        for points in self.points(2):
            total += np.bincount(points.cell, points.areas_sr, minlength=self.grid.num_cells)
        return np.where(total > 0.0, total, np.nan).reshape(self.grid.shape)

    def points(self, nodes: int) -> Iterator[Points]:
        """Give quadrature nodes in every raster cell.

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
        Any; meant for those that are not cylindrical.

    Warns
    -----
    UserWarning
        After 20 seconds: far from what it was made for a projection may have to be cut into very many pieces.

    Examples
    --------
    >>> charts = charts_of(Grid.from_bounds(-5e5, -5e5, 5e5, 5e5, 1e5, crs=3995))
    >>> charts.areas_sr().shape
    (10, 10)
    """
    todo = _first_tiles(grid)
    bounds, values = [np.empty((0, 4))], [np.empty((0, ORDER, ORDER, 3))]
    began, is_told = time.perf_counter(), False
    while todo.size:
        halves = []
        for start in range(0, todo.shape[0], _CHARTS_AT_ONCE):
            if not is_told and time.perf_counter() - began > _LONG_S:
                warnings.warn(_tedious(grid), stacklevel=2)
                is_told = True
            tiles = todo[start : start + _CHARTS_AT_ONCE]
            directions = grid.to_directions(*_nodes_of(tiles))
            bent = rims.bend(grid, tiles, directions)
            smooth, split = _judge(grid, tiles, directions, bent)
            # a bent chart lies inside one raster cell, also where its rectangle is the whole of it
            own = np.where(bent[smooth, None], _shrunk(tiles[smooth]), tiles[smooth])
            pointed = bent[smooth] & rims.ends_in_a_point(directions[smooth])
            owner, strips = rims.strips(grid, tiles[smooth][pointed])
            whole = np.isfinite(strips).all(axis=(1, 2, 3))  # projections may fail within a metre of a rim
            owner, strips = owner[whole], strips[whole]
            bounds += [own[~pointed], own[pointed][owner]]
            corner: BoolArray = np.asarray(((tiles[:, 2:] - tiles[:, :2]) <= _CORNER).all(axis=1))
            values += [_calmed(directions[smooth], bent[smooth], corner[smooth])[~pointed], strips]
            halves.append(_halve(tiles, split, _middles(grid, tiles, directions, split)))
        todo = np.concatenate(halves)
    return Charts(grid, np.concatenate(bounds), np.concatenate(values))


def _tedious(grid: Grid) -> str:
    """Say why nothing comes yet, and what to do."""
    area = raster_parts.area_of_use(grid.crs)
    return (
        f"{raster_parts.crs_name(grid.crs)} is not smooth everywhere in {grid!r}: the raster may take minutes or more; "
        f"a window within the area that the CRS is made for{f' ({area})' if area else ''} takes seconds"
    )


def _shrunk(tiles: FloatArray) -> FloatArray:
    return tiles + 1e-9 * np.array([1.0, 1.0, -1.0, -1.0]) * np.tile(tiles[:, 2:] - tiles[:, :2], 2)


def _first_tiles(grid: Grid) -> FloatArray:
    rows, columns = grid.shape
    left, top = np.meshgrid(np.arange(0, columns, _TILE), np.arange(0, rows, _TILE))
    tiles = np.stack([left, top, np.minimum(left + _TILE, columns), np.minimum(top + _TILE, rows)], axis=-1)
    return np.asarray(tiles.reshape(-1, 4), dtype=np.float64)


def _nodes_of(tiles: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Columns and rows of the nodes of tiles, (K, ORDER, ORDER)."""
    x, _ = quadrature.gauss_legendre(ORDER)
    column = tiles[:, 0, None] + (tiles[:, 2] - tiles[:, 0])[:, None] * x
    row = tiles[:, 1, None] + (tiles[:, 3] - tiles[:, 1])[:, None] * x
    shape = (tiles.shape[0], ORDER, ORDER)
    return np.broadcast_to(column[:, None, :], shape), np.broadcast_to(row[:, :, None], shape)


def _judge(grid: Grid, tiles: FloatArray, directions: FloatArray, bent: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Which tiles are charts, (K,), and which to halve along columns and along rows, (K, 2)."""
    known = np.isfinite(directions[..., 0])
    full, none = np.asarray(known.all(axis=(1, 2))), np.asarray(~known.any(axis=(1, 2)))
    size = tiles[:, 2:] - tiles[:, :2]  # (K, 2): columns, rows
    none[none] = ~_reached(grid, tiles[none])
    straight = np.flatnonzero(full & ~bent & (size > 1.0).any(axis=1))  # smaller ones are bent where it matters
    full[straight[_left(grid, tiles[straight])]] = False
    tails = _tails(np.where(full[:, None, None, None], directions, 0.0)) / np.where(bent, _BENT, 1.0)[:, None]
    extent = np.ptp(np.where(full[:, None, None, None], directions, 0.0), axis=(1, 2)).max(axis=-1)  # (K,)
    tiny = (size <= _CORNER).all(axis=1) & (extent <= _NARROW) | (size <= _LEAST).any(axis=1) | (extent <= _POINT)
    rough = (tails > 1.0) & (full & ~tiny)[:, None]
    split = rough & (tails * 4.0 >= tails.max(axis=1, keepdims=True))
    cut = (~full & ~none)[:, None] & (size > _CORNER)
    return full & ~rough.any(axis=1), split | cut


def _left(grid: Grid, tiles: FloatArray) -> BoolArray:
    """Whether tiles whose nodes all lie in the domain leave it beyond them, at a corner or in the middle of a side."""
    low, high = 1e-6, 1.0 - 1e-6
    column = np.array([low, 0.5, high, low, high, low, 0.5, high])
    row = np.array([low, low, low, 0.5, 0.5, high, high, high])
    size = tiles[:, 2:] - tiles[:, :2]
    columns, rows = tiles[:, 0, None] + size[:, 0, None] * column, tiles[:, 1, None] + size[:, 1, None] * row
    return ~np.asarray(np.isfinite(grid.to_directions(columns, rows)[..., 0]).all(axis=1))


def _reached(grid: Grid, tiles: FloatArray) -> BoolArray:
    """Whether the domain reaches the border, or a corner of a raster cell, of tiles whose nodes all lie outside."""
    x = np.concatenate([[1e-6], quadrature.gauss_legendre(ORDER)[0], [1.0 - 1e-6]])
    near, far = np.full(x.size, x[0]), np.full(x.size, x[-1])
    column, row = np.concatenate([x, x, near, far]), np.concatenate([near, far, x, x])
    size = tiles[:, 2:] - tiles[:, :2]
    columns, rows = tiles[:, 0, None] + size[:, 0, None] * column, tiles[:, 1, None] + size[:, 1, None] * row
    result = np.asarray(np.isfinite(grid.to_directions(columns, rows)[..., 0]).any(axis=1))
    for k in np.flatnonzero((size > 1.0).any(axis=1) & ~result):
        left, top, right, bottom = tiles[k]
        corners = np.meshgrid(np.arange(left, right + 0.5), np.arange(top, bottom + 0.5))
        result[k] = bool(np.isfinite(grid.to_directions(*corners)[..., 0]).any())
    return result


def _calmed(directions: FloatArray, bent: BoolArray, corner: BoolArray) -> FloatArray:
    """Make charts in corners of the rim linear where they are not smooth: a polynomial through them would wave."""
    rough: BoolArray = np.asarray(corner & (_tails(directions) / np.where(bent, _BENT, 1.0)[:, None] > 1.0).any(axis=1))
    x, _ = quadrature.gauss_legendre(ORDER)
    share = (x - x[0]) / (x[-1] - x[0])
    ends = np.stack([1.0 - share, share], axis=-1)  # (ORDER, 2)
    corners = directions[rough][:, :: ORDER - 1, :: ORDER - 1]  # (K, 2, 2, 3)
    flat = np.einsum("ia,jb,kabd->kijd", ends, ends, corners)
    calmed = directions.copy()
    calmed[rough] = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
    return calmed


def _tails(directions: FloatArray) -> FloatArray:
    """Compare the last coefficients along columns and along rows with what is allowed, (K, 2)."""
    matrix = quadrature.to_legendre(ORDER)
    by_rows = np.einsum("ki,tijd->tkjd", matrix[-2:], directions)
    by_columns = np.einsum("kj,tijd->tikd", matrix[-2:], directions)
    mean = directions.mean(axis=(1, 2), keepdims=True)
    extent = np.abs(directions - mean).max(axis=(1, 2, 3))
    allowed = _RELATIVE * extent + _NOISE
    tails = np.stack([np.abs(by_columns).max(axis=(1, 2, 3)), np.abs(by_rows).max(axis=(1, 2, 3))], axis=-1)
    return np.asarray(tails / allowed[:, None])


def _middles(grid: Grid, tiles: FloatArray, directions: FloatArray, split: BoolArray) -> FloatArray:
    """Where to halve tiles, (K, 2): between raster cells; inside one that the rim cuts, where it passes a side.

    NaN along an axis that is better left whole.
    """
    low, high = tiles[:, :2], tiles[:, 2:]
    middle = np.where(high - low > 1.0, np.floor((low + high) / 2.0), (low + high) / 2.0)
    known = np.isfinite(directions[..., 0]).all(axis=(1, 2))
    (cut,) = np.nonzero(split.any(axis=1) & ~known & (high - low <= 1.0).all(axis=1))
    crossing = rims.crossings(grid, tiles[cut])
    found = np.isfinite(crossing).any(axis=1)
    middle[cut[found]] = crossing[found]
    return np.asarray(middle)


def _halve(tiles: FloatArray, split: BoolArray, middles: FloatArray) -> FloatArray:
    """Parts of tiles on both sides of their middles along columns and along rows."""
    some = split.any(axis=1)
    tiles, split, middles = tiles[some], split[some], middles[some]
    split = np.isfinite(middles) & (split | ~np.isfinite(middles).all(axis=1, keepdims=True))
    for axis in (0, 1):
        chosen = split[:, axis]
        middle = middles[chosen, axis]
        first, second = tiles[chosen].copy(), tiles[chosen].copy()
        first[:, axis + 2], second[:, axis] = middle, middle
        tiles = np.concatenate([tiles[~chosen], first, second])
        split = np.concatenate([split[~chosen], split[chosen], split[chosen]])
        middles = np.concatenate([middles[~chosen], middles[chosen], middles[chosen]])
    return tiles
