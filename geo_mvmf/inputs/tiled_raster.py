"""Raster files of one grid as one raster, read by windows; no VRT is written or read.

Tiles that overlap: the first in the order given decides, where it is valid.
"""

from __future__ import annotations

import collections
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio.enums
from rasterio.transform import Affine
from rasterio.windows import Window

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs.placement import Bounds, apply_transform, shifted
from geo_mvmf.inputs.raster_files import RasterFile, open_raster, reading
from geo_mvmf.inputs.regular_files import check_regular_file

Pixels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_TILE_SUFFIXES = (".tif", ".tiff", ".jp2")
_MOST_OPEN_FILES = 64
_GRID_TOLERANCE = 0.01  # raster cells by which tiles may miss the common grid (rounded corner coordinates)


class Tile(NamedTuple):
    """Where one file lies in the common raster.

    Attributes
    ----------
    path : Path
    row, column : int
        Of its first raster cell.
    height, width : int
        In raster cells.
    """

    path: Path
    row: int
    column: int
    height: int
    width: int


class TiledRaster:
    """One file, or several of one grid, as one raster.

    Parameters
    ----------
    source : path or sequence of path
        One raster file, several, or a folder whose .tif, .tiff and .jp2 files are the tiles.
    bounds, crs : optional
        The place of one single picture; see `raster_files.open_raster`.

    Attributes
    ----------
    height, width : int
        In raster cells.
    transform : Affine
        (column, row) -> (x, y).
    crs : pyproj.CRS
    count : int
        Number of bands.
    dtype : numpy.dtype
        Of all bands.
    nodata : float or None
        As the first file says.
    colour_bands : tuple of int
        Numbers, from 1, of the bands that are not transparency.
    tags : dict of str to str
        Of the first file.
    tiles : tuple of Tile

    Raises
    ------
    BadInputError
        If a file cannot be used, or differs from the first in CRS, bands, type, resolution or grid.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        bounds: Bounds | None = None,
        crs: str | pyproj.CRS | None = None,
    ) -> None:
        paths = source_files(source)
        if len(paths) > 1 and crs is not None:
            raise UsageError(f"bounds and crs place one picture, but {len(paths)} files were given")
        self._place = (bounds, crs)
        self._open_files: collections.OrderedDict[Path, RasterFile] = collections.OrderedDict()
        try:
            self._describe(paths)
        except BaseException:
            self.close()
            raise

    def _describe(self, paths: list[Path]) -> None:
        first = self._file(paths[0])
        self.crs: pyproj.CRS = first.crs
        self.count = int(first.dataset.count)
        self.dtype = np.dtype(first.dataset.dtypes[0])
        self.nodata: float | None = first.dataset.nodata
        self.colour_bands = _colour_bands(first.dataset)
        with reading(paths[0]):
            self.tags: dict[str, str] = dict(first.dataset.tags())
        tiles = [_place_tile(self._file(path), first) for path in paths]
        row, column = min(tile.row for tile in tiles), min(tile.column for tile in tiles)
        self.tiles = tuple(tile._replace(row=tile.row - row, column=tile.column - column) for tile in tiles)
        self.height = max(tile.row + tile.height for tile in self.tiles)
        self.width = max(tile.column + tile.width for tile in self.tiles)
        self.transform: Affine = shifted(first.transform, column, row)

    def close(self) -> None:
        """Close all files."""
        while self._open_files:
            self._open_files.popitem()[1].dataset.close()

    def __enter__(self) -> TiledRaster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, bands: Sequence[int], row: int, column: int, height: int, width: int) -> tuple[Pixels, Mask | None]:
        """Read a window; it may reach over the edges.

        Parameters
        ----------
        bands : sequence of int
            Numbers from 1.
        row, column : int
            First raster cell; may be negative.
        height, width : int
            In raster cells.

        Returns
        -------
        pixels : ndarray, shape (height, width, B)
            Of the file's type; 0 where nothing is valid.
        valid : ndarray of bool, shape (height, width), or None
            None means that all is valid. A raster cell is valid where all bands asked for are.

        Raises
        ------
        BadInputError
            If a file is damaged.
        """
        pixels = np.zeros((height, width, len(bands)), dtype=self.dtype)  # (height, width, B)
        valid = np.zeros((height, width), dtype=np.bool_)
        for tile in self._tiles_in(row, column, height, width):
            top, left = max(row, tile.row), max(column, tile.column)
            bottom, right = min(row + height, tile.row + tile.height), min(column + width, tile.column + tile.width)
            window = Window(left - tile.column, top - tile.row, right - left, bottom - top)
            part, part_valid = self._read_tile(tile.path, bands, window)
            place = (slice(top - row, bottom - row), slice(left - column, right - column))
            free = ~valid[place]
            if free.all():
                pixels[place], valid[place] = part, part_valid
            else:
                pixels[place] = np.where((part_valid & free)[..., None], part, pixels[place])
                valid[place] |= part_valid
        if valid.all():
            return pixels, None
        pixels[~valid] = 0
        return pixels, valid

    def _tiles_in(self, row: int, column: int, height: int, width: int) -> list[Tile]:
        return [
            tile
            for tile in self.tiles
            if tile.row < row + height
            and row < tile.row + tile.height
            and tile.column < column + width
            and column < tile.column + tile.width
        ]

    def _read_tile(self, path: Path, bands: Sequence[int], window: Any) -> tuple[Pixels, Mask]:
        dataset = self._file(path).dataset
        with reading(path):
            # at full resolution always: only a decimated read looks for overviews
            pixels = np.moveaxis(dataset.read(list(bands), window=window), 0, -1)  # (h, w, B)
            valid = np.ones(pixels.shape[:2], dtype=np.bool_)
            if _has_mask(dataset, bands):
                valid = np.asarray(dataset.read_masks(list(bands), window=window).min(axis=0) > 0)
        if self.dtype.kind == "f":
            valid &= np.isfinite(pixels).all(axis=-1)
        return pixels, valid

    def _file(self, path: Path) -> RasterFile:
        """Open file of a tile; the least recently used one is closed when there are too many."""
        if path in self._open_files:
            self._open_files.move_to_end(path)
            return self._open_files[path]
        while len(self._open_files) >= _MOST_OPEN_FILES:
            self._open_files.popitem(last=False)[1].dataset.close()
        bounds, crs = self._place
        self._open_files[path] = open_raster(path, bounds=bounds, crs=crs)
        return self._open_files[path]


def source_files(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """List the raster files of a source.

    Parameters
    ----------
    source : path or sequence of path
        One file, several, or a folder (its .tif, .tiff and .jp2 files by name; not its subfolders).

    Returns
    -------
    list of Path
        Absolute, at least one; existing regular files, not yet opened.

    Raises
    ------
    BadInputError
        If there is none, or one is no regular file.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("b.tif", "a.tif", "notes.txt"):
    ...     (folder / name).touch()
    >>> [path.name for path in source_files(folder)]
    ['a.tif', 'b.tif']
    """
    if isinstance(source, str | os.PathLike):
        return _folder_files(Path(source)) if _is_folder(source) else [check_regular_file(source)]
    if not source:
        raise BadInputError("an empty list of rasters was given; name at least one file")
    return [check_regular_file(path) for path in source]


def _is_folder(source: str | os.PathLike[str]) -> bool:
    return "\0" not in os.fspath(source) and Path(source).is_dir()


def _folder_files(folder: Path) -> list[Path]:
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in _TILE_SUFFIXES and not entry.name.startswith(".")
    )
    if not names:
        wanted = ", ".join("*" + suffix for suffix in _TILE_SUFFIXES)
        raise BadInputError(f"{folder}: the folder holds no raster ({wanted})")
    return [check_regular_file(folder / name) for name in names]


def _place_tile(file: RasterFile, first: RasterFile) -> Tile:
    _check_same(file, first)
    height, width = file.dataset.height, file.dataset.width
    x, y = apply_transform(file.transform, [0, width, 0], [0, 0, height])
    columns, rows = apply_transform(~first.transform, x, y)
    column, row = round(float(columns[0])), round(float(rows[0]))
    off = np.abs([columns - [column, column + width, column], rows - [row, row, row + height]]).max()
    if off > _GRID_TOLERANCE:
        here, there = ((each.transform.c, each.transform.f) for each in (file, first))
        raise BadInputError(
            f"{file.path}: lies {off:.3g} raster cells off the grid of {first.path} (corners {here} and {there}); "
            f"resample all tiles to one grid"
        )
    return Tile(file.path, row, column, height, width)


def _check_same(file: RasterFile, first: RasterFile) -> None:
    resolutions = _resolution(file), _resolution(first)
    equal_crs = file.crs.equals(first.crs, ignore_axis_order=True)
    agreements: list[tuple[str, object, object, bool]] = [
        ("bands", file.dataset.count, first.dataset.count, file.dataset.count == first.dataset.count),
        ("type", file.dataset.dtypes[0], first.dataset.dtypes[0], file.dataset.dtypes == first.dataset.dtypes),
        ("CRS", file.crs.to_string()[:80], first.crs.to_string()[:80], equal_crs),
        ("resolution", *resolutions, bool(np.allclose(*resolutions, rtol=1e-6, atol=0.0))),
    ]
    for what, here, there, agree in agreements:
        if not agree:
            raise BadInputError(
                f"{file.path}: {what} {here} is not {there} as in {first.path}; tiles of one raster must agree"
            )


def _resolution(file: RasterFile) -> tuple[float, float]:
    matrix = file.transform
    return math.hypot(matrix.a, matrix.d), math.hypot(matrix.b, matrix.e)


def _colour_bands(dataset: Any) -> tuple[int, ...]:
    alpha = rasterio.enums.ColorInterp.alpha
    bands = tuple(number for number, use in enumerate(dataset.colorinterp, 1) if use != alpha)
    return bands or tuple(range(1, dataset.count + 1))


def _has_mask(dataset: Any, bands: Sequence[int]) -> bool:
    everything = [rasterio.enums.MaskFlags.all_valid]
    return any(dataset.mask_flag_enums[band - 1] != everything for band in bands)
