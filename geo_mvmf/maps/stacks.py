"""Stacks: the rasters of many images as one array, made at once, or piece by piece when asked for.

What fits into memory is made at once. A larger stack is a dask array: of whole rasters, one for each image, as long as
one fits; beyond that of windows, each of which prepares its own part of the grid.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
Painter = Callable[[int], FloatArray]
"""From the number of an image to its probabilities (rows, columns)."""

IN_MEMORY_BYTES = 1 << 29
"""More than this is made when it is asked for (needs dask)."""

WINDOW_CELLS = 1 << 23
"""Raster cells of a window, about: its preparation costs more than its image."""

_ALIGNED = 512  # windows begin at multiples: files are written in blocks of this


class Stack(NamedTuple):
    """Densities and what they sum to.

    Parameters
    ----------
    values : array of float64, shape (N, rows, columns)
        Per square kilometre; NaN where there is no ground. numpy's, or dask's.
    sums : array of float64, shape (N,)
        Probability inside the grid.
    areas : array of float64, shape (rows, columns)
        Square kilometres of the raster cells.
    """

    values: Any
    sums: Any
    areas: Any


def stack(
    prepare: Callable[[Grid, FloatArray], Painter], areas_of: Callable[[Grid], FloatArray], images: int, grid: Grid
) -> Stack:
    """Make the densities of all images.

    Parameters
    ----------
    prepare : callable from Grid and areas to painter
        Makes what all images share on a grid or on a window of it.
    areas_of : callable from Grid to ndarray of float64, shape (rows, columns)
        Areas of raster cells.
    images : int
        N.
    grid : Grid
        Where.

    Examples
    --------
    >>> areas_of = lambda grid: np.full(grid.shape, 2.0)
    >>> stack(lambda grid, areas: lambda i: np.full(grid.shape, 4.0), areas_of, 1, Grid.globe(90.0)).sums.tolist()
    [32.0]
    """
    size = grid.num_cells * 8
    if size > IN_MEMORY_BYTES and _dask() is not None:
        return _of_windows(prepare, areas_of, images, grid)
    areas = areas_of(grid)
    paint = _densities(prepare(grid, areas), areas)
    if images > 1 and images * size > IN_MEMORY_BYTES and _dask() is not None:
        return _of_images(paint, images, areas)
    values = np.empty((images, *grid.shape))
    sums = np.empty(images)
    for i in range(images):
        values[i] = paint(i)
        sums[i] = np.nansum(values[i] * areas)
    return Stack(values, sums, areas)


def _dask() -> Any:
    """Import the arrays of dask, or None where the extra "dask" is not installed: then all is made at once."""
    try:
        from dask import array
    except ImportError:
        return None
    return array


def _densities(probabilities: Painter, areas: FloatArray) -> Painter:
    def density_of(i: int) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(areas), probabilities(i) / areas, np.nan)

    return density_of


def _of_images(paint: Painter, images: int, areas: FloatArray) -> Stack:
    """One piece for each image."""
    array = _dask()
    name = f"density-{uuid.uuid4().hex}"  # dask's own names would need a digest of all components
    graph = {(name, i, 0, 0): (_painted, _Shared(paint), i) for i in range(images)}
    values = array.Array(graph, name, ((1,) * images, *((n,) for n in areas.shape)), dtype=np.float64)
    held = _Shared(lambda block: np.nansum(block * areas, axis=(1, 2)))
    sums = values.map_blocks(held, drop_axis=(1, 2), dtype=np.float64, name=f"sums-{uuid.uuid4().hex}")
    return Stack(values, sums, areas)


class _Shared:
    """A function that dask neither copies nor reads: it may hold gigabytes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.token = uuid.uuid4().hex

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __dask_tokenize__(self) -> str:
        return self.token


def _painted(paint: _Shared, i: int) -> FloatArray:
    return np.asarray(paint(i))[None]


def windows(grid: Grid, cells: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cut a grid into windows of about equally many raster cells: heights of their rows, widths of their columns.

    Parameters
    ----------
    grid : Grid
        What to cut.
    cells : int
        Raster cells of one window, at most (512 by 512 at least).

    Examples
    --------
    >>> windows(Grid.globe(0.1), 2**20)
    ((512, 512, 512, 264), (1536, 1536, 528))
    """
    rows, columns = grid.shape
    across = min(columns, max(int(cells**0.5) * 3 // 2 // _ALIGNED, 1) * _ALIGNED)
    down = min(rows, max(cells // across // _ALIGNED, 1) * _ALIGNED)
    return tuple(_steps(rows, down)), tuple(_steps(columns, across))


def _steps(total: int, step: int) -> Iterator[int]:
    return (min(step, total - start) for start in range(0, total, step))


def _of_windows(
    prepare: Callable[[Grid, FloatArray], Painter], areas_of: Callable[[Grid], FloatArray], images: int, grid: Grid
) -> Stack:
    """One piece for each window, of as many images as fit: what a window's images share is made once for them."""
    array = _dask()
    down, across = windows(grid, WINDOW_CELLS)
    at_once = max(1, IN_MEMORY_BYTES // (down[0] * across[0] * 8))
    several = tuple(_steps(images, at_once))
    name, areas_name = (f"{kind}-{uuid.uuid4().hex}" for kind in ("density", "area"))
    graph: dict[tuple[Any, ...], Any] = {}
    areas_graph: dict[tuple[Any, ...], Any] = {}
    paint, measure = _Shared(_Windowed(prepare, areas_of).paint), _Shared(areas_of)
    tops, lefts, firsts = (list(itertools.accumulate((0, *sizes))) for sizes in (down, across, several))
    for (r, top), (c, left) in itertools.product(enumerate(tops[:-1]), enumerate(lefts[:-1])):
        window = grid.window(slice(top, top + down[r]), slice(left, left + across[c]))
        areas_graph[(areas_name, r, c)] = (measure, window)
        for n, first in enumerate(firsts[:-1]):
            graph[(name, n, r, c)] = (paint, window, first, several[n])
    values = array.Array(graph, name, (several, down, across), dtype=np.float64)
    areas = array.Array(areas_graph, areas_name, (down, across), dtype=np.float64)
    return Stack(values, array.nansum(values * areas, axis=(1, 2)), areas)


class _Windowed:
    """Densities of some images in a window."""

    def __init__(self, prepare: Callable[[Grid, FloatArray], Painter], areas_of: Callable[[Grid], FloatArray]) -> None:
        self.prepare = prepare
        self.areas_of = areas_of

    def paint(self, window: Grid, first: int, count: int) -> FloatArray:
        areas = self.areas_of(window)
        density_of = _densities(self.prepare(window, areas), areas)
        return np.stack([density_of(i) for i in range(first, first + count)])
