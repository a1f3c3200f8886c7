"""Windows and blocks of a raster: around the Earth, from memory where that pays, averaged without limit of size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs import ground_sampling
from geo_mvmf.inputs.tiled_raster import Mask, Pixels, TiledRaster

FloatArray = npt.NDArray[np.float64]

_MOST_KEPT_BYTES = 512 << 20  # a raster up to this size is kept in memory once it has been read as often
_MOST_CELLS_AT_ONCE = 1 << 24  # raster cells averaged to blocks at once
_MOST_BLOCKS = 1 << 28  # of one chip


class BlockReader:
    """A reader of one raster.

    Parameters
    ----------
    raster : TiledRaster
    wrap : int, optional
        Columns once around the Earth, where column c + wrap is column c.
    """

    def __init__(self, raster: TiledRaster, wrap: int | None = None) -> None:
        self._raster = raster
        self._wrap = wrap
        self._cells_read = 0
        self._kept: dict[tuple[int, ...], tuple[Pixels, Mask | None]] = {}

    def window(
        self, bands: tuple[int, ...], row: int, column: int, height: int, width: int
    ) -> tuple[Pixels, Mask | None]:
        """Read a window as `TiledRaster.read`; a small raster is read whole once that is no more work.

        Parameters
        ----------
        bands : tuple of int
            Numbers from 1.
        row, column : int
            First raster cell; may be negative.
        height, width : int
            In raster cells.

        Returns
        -------
        pixels : ndarray, shape (height, width, B)
            Not to be written to.
        valid : ndarray of bool, shape (height, width), or None
            None means that all is valid.
        """
        if bands not in self._kept:
            self._cells_read += height * width
            cells = self._raster.height * self._raster.width
            too_large = cells * (len(bands) * self._raster.dtype.itemsize + 1) > _MOST_KEPT_BYTES
            if too_large or self._cells_read < cells:
                return self._raster.read(bands, row, column, height, width)
            self._kept = {bands: self._raster.read(bands, 0, 0, self._raster.height, self._raster.width)}
        return _cut(*self._kept[bands], row, column, height, width)

    def blocks(
        self, bands: tuple[int, ...], columns: FloatArray, rows: FloatArray, footprint: ground_sampling.Footprint
    ) -> tuple[int, int, Pixels, FloatArray | None] | None:
        """Average the blocks around sample points, reading so many rows at once that memory stays bounded.

        Parameters
        ----------
        bands : tuple of int
            Numbers from 1.
        columns, rows : ndarray
            Sample points in blocks: block i holds the raster's rows from i times the block's height on.
        footprint : Footprint
            Says how large a block is.

        Returns
        -------
        top, left : int
            The first block.
        means : ndarray, shape (height, width, B)
            Raster cells as they are where a block is one of them.
        coverage : ndarray of float64, shape (height, width), or None
            Valid share; None means 1. All of it None where no point is near the raster.

        Raises
        ------
        BadInputError
            If the blocks are too many for memory.
        """
        top, bottom = _block_range(rows, math.ceil(self._raster.height / footprint.block_rows))
        wide = None if self._wrap else math.ceil(self._raster.width / footprint.block_columns)
        left, right = _block_range(columns, wide)
        if top >= bottom or left >= right:
            return None
        return top, left, *self._averaged(bands, (top, bottom), (left, right), footprint)

    def _averaged(
        self,
        bands: tuple[int, ...],
        block_rows: tuple[int, int],
        block_columns: tuple[int, int],
        footprint: ground_sampling.Footprint,
    ) -> tuple[Pixels, FloatArray | None]:
        (top, bottom), (left, right) = block_rows, block_columns
        if (bottom - top) * (right - left) * len(bands) > _MOST_BLOCKS:
            raise BadInputError(
                f"{self._raster.tiles[0].path}: a chip over {bottom - top} x {right - left} raster cells is too large "
                f"for memory; choose a smaller size in pixels, or less ground"
            )
        height, width = footprint.block_rows, footprint.block_columns
        count = max(1, _MOST_CELLS_AT_ONCE // ((right - left) * width * height))
        parts = []
        for first in range(top, bottom, count):
            rows = min(count, bottom - first) * height
            pixels, valid = self._around_earth(bands, first * height, left * width, rows, (right - left) * width)
            parts.append(ground_sampling.block_means(pixels, valid, height, width))
        return _joined(parts, axis=0)

    def _around_earth(
        self, bands: tuple[int, ...], row: int, column: int, height: int, width: int
    ) -> tuple[Pixels, Mask | None]:
        """Read a window whose columns go on around the Earth."""
        if self._wrap is None or (column >= 0 and column + width <= self._wrap):
            return self.window(bands, row, column, height, width)
        parts = []
        done = 0
        while done < width:
            start = (column + done) % self._wrap
            step = min(width - done, self._wrap - start)
            parts.append(self.window(bands, row, start, height, step))
            done += step
        return _joined(parts, axis=1)


def _cut(
    pixels: Pixels, valid: Mask | None, row: int, column: int, height: int, width: int
) -> tuple[Pixels, Mask | None]:
    """Take a window of a raster in memory; it may reach over the edges."""
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + height, pixels.shape[0]), min(column + width, pixels.shape[1])
    part = (slice(top, max(top, bottom)), slice(left, max(left, right)))
    if bottom - top == height and right - left == width:
        return pixels[part], None if valid is None else valid[part]
    whole = np.zeros((height, width, pixels.shape[2]), dtype=pixels.dtype)
    whole_valid = np.zeros((height, width), dtype=np.bool_)
    place = (slice(top - row, bottom - row), slice(left - column, right - column))
    if bottom > top and right > left:
        whole[place] = pixels[part]
        whole_valid[place] = True if valid is None else valid[part]
    return whole, whole_valid


def _block_range(positions: FloatArray, count: int | None) -> tuple[int, int]:
    """First block needed and the first not needed any more, at most one outside the raster on each side."""
    known = positions[np.isfinite(positions)]
    if not known.size:
        return 0, 0
    first, last = math.floor(float(known.min()) - 0.5), math.floor(float(known.max()) - 0.5) + 2
    return (first, last) if count is None else (max(first, -1), min(last, count + 1))


def _joined(parts: list[tuple[Pixels, Any]], *, axis: int) -> tuple[Pixels, Any]:
    """Join parts and their validity (None means all) along rows or columns."""
    if len(parts) == 1:
        return parts[0]
    pixels = np.concatenate([part[0] for part in parts], axis=axis)
    if all(part[1] is None for part in parts):
        return pixels, None
    known = [np.ones(part.shape[:2]) if valid is None else valid for part, valid in parts]
    return pixels, np.concatenate(known, axis=axis, dtype=known[0].dtype, casting="unsafe")
