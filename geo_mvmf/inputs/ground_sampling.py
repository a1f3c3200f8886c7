"""A square of ground -> pixels: where the pixels of a chip lie, and their values by antialiased sampling.

A chip is the square of `ground_km` kilometres in the azimuthal equidistant projection of the sphere about its own
centre, north up: true to scale from the centre everywhere on Earth, over longitude 180 and at the poles, where a
window of fixed degrees is not.

A pixel of the chip is the mean over its area of the raster, interpolated linearly between raster cells. Where it
spans several raster cells these are averaged first in whole blocks (along rows and columns separately, because a
degree of longitude is short far from the equator), and what is left is sampled more densely than the blocks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import sphere

FloatArray = npt.NDArray[np.float64]
Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_MOST_SAMPLES_A_SIDE = 8  # of one chip pixel; more is needed only within a few pixels of a pole
_SPARE = 0.25  # blocks by which samples may be further apart than one block
_LATTICE = 9  # points a side at which the footprint of a chip pixel is measured
_HALF = 0.5 - 1e-6  # a chip pixel is valid where at least half of its weight is; on an edge it is exactly half


class Footprint(NamedTuple):
    """How a chip's pixels lie over a raster.

    Attributes
    ----------
    block_rows, block_columns : int
        Raster cells that are averaged first.
    samples_down, samples_across : int
        Samples in one chip pixel, from north to south and from west to east.
    """

    block_rows: int
    block_columns: int
    samples_down: int
    samples_across: int


def pixel_directions(longitude: float, latitude: float, east_km: npt.ArrayLike, north_km: npt.ArrayLike) -> FloatArray:
    """Give the directions of points of the local azimuthal equidistant projection.

    Parameters
    ----------
    longitude, latitude : float
        Centre of the projection, degrees.
    east_km, north_km : array_like of float, shapes that broadcast to (...)
        Kilometres from the centre.

    Returns
    -------
    ndarray of float64, shape (..., 3)
        Unit vectors.

    Notes
    -----
    Source: Snyder 1987, Map Projections: A Working Manual, p. 195, as vectors.

    Examples
    --------
    >>> quarter = math.pi / 2 * sphere.EARTH_RADIUS_KM
    >>> pixel_directions(0.0, 0.0, quarter, 0.0).round(12).tolist()
    [0.0, 1.0, 0.0]
    """
    return _local_directions(np.asarray(east_km, float), np.asarray(north_km, float)) @ _frame(longitude, latitude)


def chip_lattice(
    ground_km: float, size: int, footprint: Footprint, *, first: int = 0, count: int | None = None
) -> FloatArray:
    """Give the sample points of a chip, or of some of its rows, in its own frame (east, north, up).

    Parameters
    ----------
    ground_km : float
        Side of the chip.
    size : int
        Pixels a side.
    footprint : Footprint
        Says how many samples a pixel has.
    first, count : int
        Rows of pixels asked for; all from `first` when `count` is None.

    Returns
    -------
    ndarray of float64, shape (count * samples_down, size * samples_across, 3)
        Read-only unit vectors; the first row is the north, the first column the west.

    Examples
    --------
    >>> chip_lattice(100.0, 2, Footprint(1, 1, 1, 1))[0, 0, :2].round(5).tolist()
    [-0.00392, 0.00392]
    """
    rows = size - first if count is None else count
    down, across = footprint.samples_down, footprint.samples_across
    return _chip_lattice(float(ground_km), int(size), down, across, first, rows)


def turn_lattice(lattice: FloatArray, longitude: float, latitude: float) -> FloatArray:
    """Move a lattice from its own frame to a place on Earth.

    Parameters
    ----------
    lattice : ndarray, shape (..., 3)
        Of `chip_lattice`.
    longitude, latitude : float
        Degrees.

    Returns
    -------
    ndarray of float64, shape (..., 3)
        Unit vectors.

    Examples
    --------
    >>> turn_lattice(np.array([0.0, 0.0, 1.0]), 90.0, 0.0).round(12).tolist()
    [0.0, 1.0, 0.0]
    """
    return lattice @ _frame(longitude, latitude)


def measure_footprint(columns: FloatArray, rows: FloatArray) -> Footprint:
    """Choose blocks and samples from where a few chip pixels lie on the raster.

    Parameters
    ----------
    columns, rows : ndarray, shape (3, L, L)
        Raster coordinates of points, of their neighbours one chip pixel to the east, and of those one to the
        south. Not finite where the raster's CRS does not reach.

    Returns
    -------
    Footprint

    Examples
    --------
    >>> points = np.zeros((3, 1, 1))
    >>> measure_footprint(points + [[[0.0]], [[7.3]], [[0.0]]], points + [[[0.0]], [[0.0]], [[1.0]]])
    Footprint(block_rows=1, block_columns=7, samples_down=1, samples_across=1)
    """
    steps_columns, steps_rows = np.abs(columns[1:] - columns[0]), np.abs(rows[1:] - rows[0])  # (2, L, L)
    block_columns, block_rows = _whole(steps_columns), _whole(steps_rows)
    blocks = np.maximum(steps_columns / block_columns, steps_rows / block_rows)  # (2, L, L) blocks a chip pixel
    across, down = (_samples(blocks[axis]) for axis in (0, 1))
    return Footprint(block_rows, block_columns, down, across)


def lattice_offsets(size: int) -> tuple[FloatArray, FloatArray]:
    """Give the chip pixels at which `measure_footprint` looks, with their neighbours.

    Parameters
    ----------
    size : int
        Pixels a side.

    Returns
    -------
    east, south : ndarray, shape (3, L, L)
        In chip pixels from the chip's centre: the points, those one pixel to the east, those one to the south.

    Examples
    --------
    >>> east, south = lattice_offsets(64)
    >>> east.shape, float(east[0].min()), float(east[0].max())
    ((3, 9, 9), -32.0, 31.0)
    """
    ticks = np.linspace(-size / 2.0, size / 2.0 - 1.0, _LATTICE)
    east, south = np.meshgrid(ticks, ticks)
    return np.stack([east, east + 1.0, east]), np.stack([south, south, south + 1.0])


def block_means(pixels: Pixels, valid: Mask | None, rows: int, columns: int) -> tuple[FloatArray, FloatArray | None]:
    """Average whole blocks of raster cells.

    Parameters
    ----------
    pixels : ndarray, shape (H, W, B)
        H and W are multiples of `rows` and `columns`.
    valid : ndarray of bool, shape (H, W), or None
        None means that all is valid.
    rows, columns : int
        Size of a block.

    Returns
    -------
    means : ndarray of float, shape (H / rows, W / columns, B)
        Over the valid raster cells; 0 where there is none.
    coverage : ndarray of float, shape (H / rows, W / columns), or None
        Share of valid raster cells; None means 1.

    Examples
    --------
    >>> means, coverage = block_means(np.arange(8.0).reshape(2, 4, 1), None, 2, 2)
    >>> means[..., 0].tolist(), coverage
    ([[2.5, 4.5]], None)
    """
    if valid is None:
        return _sums(pixels, rows, columns) / (rows * columns), None
    counts = _sums(valid[..., None], rows, columns)  # (H / rows, W / columns, 1)
    sums = _sums(np.where(valid[..., None], pixels, 0), rows, columns)
    return sums / np.maximum(counts, 1.0), counts[..., 0] / (rows * columns)


def sample(
    means: Pixels, coverage: FloatArray | None, columns: FloatArray, rows: FloatArray, footprint: Footprint
) -> tuple[FloatArray, Mask]:
    """Interpolate linearly at sample points and average them to chip pixels.

    Parameters
    ----------
    means : ndarray, shape (H, W, B)
        Blocks, or raster cells themselves.
    coverage : ndarray, shape (H, W), or None
        Valid share of each; None means 1.
    columns, rows : ndarray, shape (h * samples_down, w * samples_across)
        Where to sample, in blocks; (0, 0) is the outer corner of the first. Not finite: not valid.
    footprint : Footprint
        Says how many samples a pixel has.

    Returns
    -------
    values : ndarray of float, shape (h, w, B)
        0 where not valid.
    valid : ndarray of bool, shape (h, w)
        Where at least half of the weight is.

    Examples
    --------
    >>> points = np.array([[1.25]]), np.array([[0.5]])
    >>> values, valid = sample(np.array([[[0.0], [10.0]]]), None, *points, Footprint(1, 1, 1, 1))
    >>> float(values[0, 0, 0]), bool(valid[0, 0])
    (7.5, True)
    """
    usable = np.isfinite(columns) & np.isfinite(rows)
    if coverage is None and not usable.all():
        coverage = np.ones(means.shape[:2])
    kind = np.result_type(np.float32, means.dtype)
    flat = means.reshape(-1, means.shape[2])
    sums: Pixels = np.zeros((*columns.shape, means.shape[2]), dtype=kind)
    weights = np.zeros(columns.shape)
    for index, weight in _corners(np.where(usable, columns, 0.0), np.where(usable, rows, 0.0), means.shape):
        known = weight if coverage is None else weight * usable * coverage.reshape(-1)[index]
        sums += flat[index] * known[..., None].astype(kind)
        weights += known
    return _to_pixels(sums, weights, footprint)


@functools.lru_cache(maxsize=8)
def _chip_lattice(ground_km: float, size: int, down: int, across: int, first: int, count: int) -> FloatArray:
    east = ((np.arange(size * across) + 0.5) / (size * across) - 0.5) * ground_km
    south = ((np.arange(first * down, (first + count) * down) + 0.5) / (size * down) - 0.5) * ground_km
    lattice = _local_directions(east[None, :], -south[:, None])
    lattice.flags.writeable = False
    return lattice


def _local_directions(east_km: FloatArray, north_km: FloatArray) -> FloatArray:
    """Directions in the frame (east, north, up) of the centre."""
    east, north = np.broadcast_arrays(east_km / sphere.EARTH_RADIUS_KM, north_km / sphere.EARTH_RADIUS_KM)
    arc = np.hypot(east, north)
    stretch = np.sinc(arc / math.pi)  # sin(arc) / arc
    return np.stack([east * stretch, north * stretch, np.cos(arc)], axis=-1)


def _frame(longitude: float, latitude: float) -> FloatArray:
    """Rows: east, north, up at a place; at a pole the longitude still says where south lies."""
    lam, phi = math.radians(longitude), math.radians(latitude)
    up = [math.cos(phi) * math.cos(lam), math.cos(phi) * math.sin(lam), math.sin(phi)]
    north = [-math.sin(phi) * math.cos(lam), -math.sin(phi) * math.sin(lam), math.cos(phi)]
    return np.array([[-math.sin(lam), math.cos(lam), 0.0], north, up])


def _whole(steps: FloatArray) -> int:
    """Raster cells that even the smallest chip pixel spans along one axis of the raster."""
    spans = np.hypot(*steps)  # (L, L); not the bounding box of a turned pixel, which is larger than the pixel
    spans = spans[np.isfinite(spans)]
    return max(1, math.floor(spans.min() + 1e-3)) if spans.size else 1


def _samples(blocks: FloatArray) -> int:
    known = blocks[np.isfinite(blocks)]
    if not known.size:
        return 1
    # not the largest: beside a pole a pixel spans any number of columns, and where a CRS jumps, all of them
    return min(_MOST_SAMPLES_A_SIDE, max(1, math.ceil(float(np.quantile(known, 0.95)) - _SPARE)))


def _sums(values: Pixels, rows: int, columns: int) -> FloatArray:
    height, width, bands = values.shape
    blocks = values.reshape(height // rows, rows, width // columns, columns, bands)
    kind = np.float64 if values.dtype.kind == "f" or values.dtype.itemsize > 2 else np.int64
    return np.asarray(blocks.sum(axis=3, dtype=kind).sum(axis=1), dtype=np.float64)


def _corners(
    columns: FloatArray, rows: FloatArray, shape: tuple[int, ...]
) -> Iterator[tuple[npt.NDArray[np.intp], FloatArray]]:
    """Yield the four blocks between whose centres each point lies (flat index), with their weights."""
    row, below, weight_below = _neighbours(rows, shape[0])
    column, right, weight_right = _neighbours(columns, shape[1])
    above, left = 1.0 - weight_below, 1.0 - weight_right
    yield row * shape[1] + column, above * left
    yield row * shape[1] + right, above * weight_right
    yield below * shape[1] + column, weight_below * left
    yield below * shape[1] + right, weight_below * weight_right


def _neighbours(positions: FloatArray, count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """Find the two blocks between whose centres each position lies, and the weight of the second."""
    from_centre = positions - 0.5
    first = np.floor(from_centre)
    index = first.astype(np.intp)
    return np.clip(index, 0, count - 1), np.clip(index + 1, 0, count - 1), from_centre - first


def _to_pixels(sums: Pixels, weights: FloatArray, footprint: Footprint) -> tuple[FloatArray, Mask]:
    down, across = footprint.samples_down, footprint.samples_across
    height, width, bands = sums.shape[0] // down, sums.shape[1] // across, sums.shape[2]
    totals = sums.reshape(height, down, width, across, bands).sum(axis=(1, 3))
    weight = weights.reshape(height, down, width, across).sum(axis=(1, 3))
    valid = weight >= _HALF * (down * across)
    return np.where(valid[..., None], totals / np.maximum(weight, 1e-12)[..., None], 0.0), valid
