"""Rims: where the domain of a projection ends inside a raster cell, nodes go from one side of it to the rim.

A rectangle that the rim cuts is bent: lines along one axis end at the rim instead of at the other side. Where the rim
is one place on Earth, as that of a map of the whole Earth about a pole is, bent rectangles are cut into strips.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf.maps import quadrature
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

ORDER = 10
"""Nodes along each side of a chart."""

_STRIPS = 16  # the last begins 10 microradians from a point, 60 m: a fifth of the narrowest component
_NUDGE = 1e-9  # of a tile: how far beside a side it is looked at
_SHORT = 1e-3  # of a tile: the rim is no farther from the side where a line of no length begins
_CLOSE = 1e-6  # of a tile: what is nearer to a corner is the corner
_BISECTIONS = 48  # to the last digit: next to a rim that is one point, angles go with the root of the distance


def bend(grid: Grid, tiles: FloatArray, directions: FloatArray) -> BoolArray:
    """Where the rim cuts a tile inside one raster cell, put its nodes between one side and the rim.

    Parameters
    ----------
    grid : Grid
        What is cut into charts.
    tiles : ndarray of float64, shape (K, 4)
        First column, first row, last column, last row of rectangles.
    directions : ndarray of float64, shape (K, ORDER, ORDER, 3)
        At their nodes; NaN outside the domain. Changed in place where a tile is bent.

    Returns
    -------
    ndarray of bool, shape (K,)
        Which are bent.
    """
    known = np.isfinite(directions[..., 0])
    inside = ((tiles[:, 2:] - tiles[:, :2]) <= 1.0).all(axis=1)
    cut = inside & ~known.all(axis=(1, 2))
    bent = np.zeros(tiles.shape[0], dtype=bool)
    for axis in (0, 1):  # along columns, then what is left along rows
        (todo,) = np.nonzero(cut & ~bent)
        lines, possible = _between(grid, tiles[todo], axis)
        done = todo[possible]
        directions[done] = grid.to_directions(*lines.nodes(0.0, 1.0))
        bent[done] = np.isfinite(directions[done]).all(axis=(1, 2, 3))
        directions[done[~bent[done]]] = np.where(known[done[~bent[done]], :, :, None], 0.0, np.nan)
    return bent


class _Lines(NamedTuple):
    """Lines along an axis from one side of tiles to the rim, one through each node of the other axis."""

    axis: int
    across: FloatArray  # (K, ORDER) where they lie
    start: FloatArray  # (K, 1) on the side
    rim: FloatArray  # (K, ORDER)

    def nodes(self, low: float, high: float) -> tuple[FloatArray, FloatArray]:
        """Columns and rows (K, ORDER, ORDER) from a share of the way to the rim to another."""
        x = low + (high - low) * quadrature.gauss_legendre(ORDER)[0]
        # nodes crowd towards the rim, where a direction may change like a square root
        along = self.start[..., None] + (self.rim - self.start)[..., None] * (x * (2.0 - x))  # (K, lines, along)
        if self.axis == 0:
            return along, np.broadcast_to(self.across[..., None], along.shape)
        along = np.swapaxes(along, 1, 2)
        return np.broadcast_to(self.across[:, None, :], along.shape), along


def crossings(grid: Grid, tiles: FloatArray) -> FloatArray:
    """Find where the rim crosses one side of tiles, for a cut that leaves it no corner to go around.

    Parameters
    ----------
    grid : Grid
        What is cut into charts.
    tiles : ndarray of float64, shape (K, 4)
        Rectangles inside one raster cell.

    Returns
    -------
    ndarray of float64, shape (K, 2)
        A column or a row, strictly inside the tile, and NaN for the other; both NaN where no side is crossed once.
    """
    result = np.full((tiles.shape[0], 2), np.nan)
    steps = np.linspace(_NUDGE, 1.0 - _NUDGE, ORDER + 2)
    for axis, end in ((0, 1), (0, 3), (1, 0), (1, 2)):
        (todo,) = np.nonzero(np.isnan(result).all(axis=1))
        size = tiles[todo, 2:] - tiles[todo, :2]
        inwards = _NUDGE * size[:, 1 - axis] * (1.0 if end < 2 else -1.0)
        side = (tiles[todo, end] + inwards)[:, None]
        along = tiles[todo, axis, None] + size[:, axis, None] * steps
        pattern = _known_at(grid, axis, along, np.broadcast_to(side, along.shape))
        once = (np.diff(pattern.astype(np.int8), axis=1) != 0).sum(axis=1) == 1
        pattern, along, side, todo = pattern[once], along[once], side[once], todo[once]
        before = np.argmax(pattern != pattern[:, :1], axis=1) - 1
        rows = np.arange(todo.size)
        inner, outer = along[rows, before], along[rows, before + 1]
        inner = _last(grid, axis, inner, outer, side[:, 0], pattern[:, 0])
        low, high = tiles[todo, axis], tiles[todo, axis + 2]
        clear = np.minimum(inner - low, high - inner) > _CLOSE * (high - low)
        result[todo[clear], axis] = inner[clear]
    return result


def ends_in_a_point(values: FloatArray) -> BoolArray:
    """Tell which bent charts have a rim that is one place on Earth, as the rim of a map about the other pole is.

    Parameters
    ----------
    values : ndarray of float64, shape (K, ORDER, ORDER, 3)
        Directions of bent charts.

    Returns
    -------
    ndarray of bool, shape (K,)
    """
    corners = values[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # (K, 4, 3)
    top, bottom = (np.linalg.norm(corners[:, k] - corners[:, k + 1], axis=-1) for k in (0, 2))
    left, right = (np.linalg.norm(corners[:, k] - corners[:, k + 2], axis=-1) for k in (0, 1))
    return np.asarray((right < 0.1 * left) | (bottom < 0.1 * top))


def strips(grid: Grid, tiles: FloatArray) -> tuple[IntArray, FloatArray]:
    """Cut tiles between one side and the rim into strips, each half as far from the rim.

    Where the rim is a point, angles from it become as small as you like: each strip has them to its own eight digits.

    Parameters
    ----------
    grid : Grid
        What is cut into charts.
    tiles : ndarray of float64, shape (K, 4)
        Bent tiles.

    Returns
    -------
    owner : ndarray of int64, shape (S,)
        Whose strip.
    values : ndarray of float64, shape (S, ORDER, ORDER, 3)
        Directions.
    """
    shares = 1.0 - 0.5 ** np.arange(_STRIPS + 1.0)
    shares[-1] = 1.0
    todo = np.arange(tiles.shape[0])
    owners, values = [np.empty(0, dtype=np.int64)], [np.empty((0, ORDER, ORDER, 3))]
    for axis in (0, 1):
        lines, possible = _between(grid, tiles[todo], axis)
        for low, high in itertools.pairwise(shares.tolist()):
            owners.append(todo[possible])
            values.append(grid.to_directions(*lines.nodes(low, high)))
        todo = todo[~possible]
    return np.concatenate(owners), np.concatenate(values)


def _between(grid: Grid, tiles: FloatArray, axis: int) -> tuple[_Lines, BoolArray]:
    """Find lines along an axis that cross the rim once, all from the same side, and which tiles have them."""
    x, _ = quadrature.gauss_legendre(ORDER)
    low, high = tiles[:, axis, None], tiles[:, axis + 2, None]
    begin, width = tiles[:, 1 - axis, None], (tiles[:, 3 - axis] - tiles[:, 1 - axis])[:, None]

    # lines crowd towards a corner in which they end as they begin: there, too, directions go with the root
    ends = [
        np.stack(
            [_known_at(grid, axis, side + nudge, begin + width * share) for share in (_CLOSE, 1.0 - _CLOSE)], axis=-1
        )
        for side, nudge in ((low, _SHORT * (high - low)), (high, -_SHORT * (high - low)))
    ]
    shut = ~(ends[0] | ends[1])[:, 0]  # (K, 2): at the first line and at the last
    share = np.where(shut[:, :1] & ~shut[:, 1:], x * x, np.where(shut[:, 1:] & ~shut[:, :1], x * (2.0 - x), x))
    across = begin + width * share  # (K, lines)
    steps = np.concatenate([[1e-6], x, [1.0 - 1e-6]])
    along = low[..., None] + (high - low)[..., None] * steps  # (K, 1, steps)
    pattern = _known_at(
        grid, axis, np.broadcast_to(along, (*across.shape, steps.size)), np.repeat(across[..., None], steps.size, -1)
    )
    # every line must cross: where some reach the other side, what they end at would have a kink
    once = (np.diff(pattern.astype(np.int8), axis=-1) != 0).sum(axis=-1) == 1
    from_low, from_high = (np.asarray(pattern[..., end].all(axis=1)) for end in (0, -1))
    possible = once.all(axis=1) & (from_low | from_high)
    start = np.where(from_low[:, None], low, high)[possible]
    end = np.where(from_low[:, None], high, low)[possible]
    lines = across[possible]
    # the rim lies after the last known of the steps, counted from the start
    steps_known = pattern[possible].sum(axis=-1)
    position = np.concatenate([[0.0], steps[1:-1], [1.0, 1.0]])
    inner = start + (end - start) * position[np.maximum(steps_known - 1, 0)]
    outer = start + (end - start) * position[steps_known]
    return _Lines(axis, lines, start, _last(grid, axis, inner, outer, lines, np.True_)), possible


def _known_at(grid: Grid, axis: int, along: FloatArray, across: FloatArray) -> BoolArray:
    """Whether points of lines along an axis lie in the domain."""
    pair = (along, across) if axis == 0 else (across, along)
    return np.asarray(np.isfinite(grid.to_directions(*pair)[..., 0]))


def _last(
    grid: Grid, axis: int, inner: FloatArray, outer: FloatArray, across: FloatArray, state: BoolArray | np.bool_
) -> FloatArray:
    """Find the last points of lines, from inner to outer, that are in the domain, or out of it, as their inner ends."""
    for _ in range(_BISECTIONS):
        middle = 0.5 * (inner + outer)
        same = _known_at(grid, axis, middle, across) == state
        inner, outer = np.where(same, middle, inner), np.where(same, outer, middle)
    return inner
