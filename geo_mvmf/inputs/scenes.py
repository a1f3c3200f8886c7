"""Georeferenced rasters, one file or a folder of tiles, as places to look at; the only door to rasters.

What may be opened at all is decided in `raster_files`, several files become one raster in `tiled_raster`, and how
the pixels of a chip are sampled is `ground_sampling`'s business. A scene knows where it lies on Earth.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyproj
import shapely

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs import ground_sampling
from geo_mvmf.inputs.block_reader import BlockReader
from geo_mvmf.inputs.earth_frame import EarthFrame
from geo_mvmf.inputs.georeferencing import georeference
from geo_mvmf.inputs.placement import Bounds
from geo_mvmf.inputs.raster_files import SCENE_DRIVERS, is_georeferenced, open_raster
from geo_mvmf.inputs.tiled_raster import Mask, Pixels, TiledRaster

__all__ = ["SCENE_DRIVERS", "Scene", "georeference", "is_scene", "open_scene"]

FloatArray = npt.NDArray[np.float64]
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

_MOST_GROUND_KM = 20_000.0  # the projection of a chip must not fold over the antipode
_MOST_SAMPLES_AT_ONCE = 1 << 18
_SAMPLE_WINDOW = 256  # raster cells a side
_SAMPLE_WINDOWS = 48
_MOST_WHOLE_CELLS = 40_000_000  # 320 MB; the Earth in 0.05 degrees has 26 million


def open_scene(source: Source, *, bounds: Bounds | None = None, crs: str | pyproj.CRS | None = None) -> Scene:
    """Open a georeferenced raster.

    Parameters
    ----------
    source : path or sequence of path
        A GeoTIFF or JPEG 2000 file, several, or a folder of them: these are then one raster, and must agree in
        CRS, number and type of bands, resolution and grid.
    bounds : (west, south, east, north), optional
        The place of one picture that carries none (JPEG and PNG never do), in units of `crs`.
    crs : str or pyproj.CRS, optional
        Such as "EPSG:4326"; replaces the file's own. Without `bounds` the file's own transform is taken, or a world
        file beside the picture.

    Returns
    -------
    Scene
        A context manager.

    Raises
    ------
    BadInputError
        If a file is not such a raster (a VRT or an address never is), is damaged, has no place, or the tiles do
        not agree; ImageError if it is no regular file.
    UsageError
        If `crs` is not known, or `bounds` are no rectangle.

    Examples
    --------
    >>> open_scene("https://example.org/scene.tif")
    Traceback (most recent call last):
    geo_mvmf.errors.ImageError: 'https://example.org/scene.tif' is an address, not a file: download it first
    """
    return Scene(TiledRaster(source, bounds=bounds, crs=crs))


def is_scene(path: str | os.PathLike[str], *, inside: Iterable[str | os.PathLike[str]] = ()) -> bool:
    """Tell whether a file is a raster that carries its own place.

    Parameters
    ----------
    path : path
        Any path; never raises, whatever it names.
    inside : iterable of path
        Folders; where given, a file outside them is no scene.

    Returns
    -------
    bool
        True where `open_scene(path)` works. JPEG and PNG carry no place.

    Examples
    --------
    >>> is_scene("/vsicurl/https://example.org/scene.tif")
    False
    """
    try:
        if not is_georeferenced(path, inside=inside):
            return False
        open_raster(path).dataset.close()
    except (BadInputError, UsageError):
        return False
    return True


class Scene:
    """A raster on Earth. Not to be shared between threads.

    Parameters
    ----------
    raster : TiledRaster
        See `open_scene`.

    Attributes
    ----------
    crs : pyproj.CRS
    transform : Affine
        (column, row) of raster cell corners -> (x, y) of the CRS.
    height, width : int
        In raster cells.
    count : int
        Number of bands, transparency included.
    colour_bands : tuple of int
        Numbers, from 1, of the bands that are not transparency: what is read when no bands are named.
    dtype : numpy.dtype
    nodata : float or None
    tags : dict of str to str
    bounds : (west, south, east, north)
        Outer edges in units of the CRS.
    centre : (longitude, latitude)
        Of the raster's middle, degrees.
    ground_size_km : (width, height)
        Length of the middle row and of the middle column.
    pixel_km : float
        Side of a square as large as the raster cell in the middle.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("L", (36, 18), 7).save(folder / "world.png")
    >>> path = georeference(folder / "world.png", folder / "world.tif", bounds=(-180.0, -90.0, 180.0, 90.0))
    >>> with open_scene(path) as scene:
    ...     chip, valid = scene.chip(179.0, 80.0, ground_km=2000.0, size=8)
    >>> chip.shape, chip.dtype, int(chip.min()), bool(valid.all())
    ((1, 8, 8), dtype('uint8'), 7, True)
    """

    def __init__(self, raster: TiledRaster) -> None:
        self._raster = raster
        self.crs, self.transform = raster.crs, raster.transform
        self.height, self.width = raster.height, raster.width
        self.count, self.dtype, self.nodata = raster.count, raster.dtype, raster.nodata
        self.colour_bands, self.tags = raster.colour_bands, raster.tags
        try:
            self._frame = EarthFrame(raster.crs, raster.transform, raster.height, raster.width)
            self.bounds: Bounds = self._frame.bounds
            self.centre = self._frame.centre()
        except BadInputError as error:
            self.close()
            raise BadInputError(f"{self.paths[0]}: {error}") from error
        self.ground_size_km = self._frame.ground_size_km()
        self.pixel_km = self._frame.cell_size_km()
        self._reader = BlockReader(raster, self._frame.wrap)

    def close(self) -> None:
        """Close all files."""
        self._raster.close()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files of the scene, absolute, in order."""
        return tuple(tile.path for tile in self._raster.tiles)

    def footprint(self) -> shapely.Geometry:
        """Give the outline of the raster on Earth.

        Returns
        -------
        Polygon or MultiPolygon
            OGC:CRS84; see `EarthFrame.outline`.
        """
        return self._frame.outline()

    def contains(self, longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> Mask:
        """Tell which places lie inside the raster's edges.

        Parameters
        ----------
        longitude, latitude : array_like of float, shapes that broadcast to (...)
            Degrees.

        Returns
        -------
        ndarray of bool, shape (...)
        """
        return self._frame.contains(longitude, latitude)

    def chip(
        self,
        longitude: float,
        latitude: float,
        *,
        ground_km: float,
        size: int,
        bands: Sequence[int] | None = None,
    ) -> tuple[Pixels, Mask]:
        """Cut a square of ground at true scale, north up, centred on a place.

        Over longitude 180 a geographic raster that goes around the Earth has no edge; of a projected one, half a
        raster cell beside that edge is not interpolated with the other side.

        Parameters
        ----------
        longitude, latitude : float
            Centre of the chip, degrees.
        ground_km : float
            Side of the chip in the azimuthal equidistant projection of the sphere about its centre.
        size : int
            Pixels a side.
        bands : sequence of int, optional
            Numbers from 1, in the order wanted; `colour_bands` when None.

        Returns
        -------
        pixels : ndarray of the raster's dtype, shape (B, size, size)
            First row in the north, first column in the west; means over each pixel's ground, whole numbers
            rounded; 0 where not valid.
        valid : ndarray of bool, shape (size, size)
            False outside the raster and where it holds no data.

        Raises
        ------
        UsageError
            If a number is out of range, or the scene has no such band.
        BadInputError
            If the file is damaged.
        """
        numbers = self.check_bands(bands)
        _check_chip(longitude, latitude, ground_km, size)
        footprint = self._footprint_of_pixel(longitude, latitude, ground_km, size)
        samples = size * footprint.samples_across * footprint.samples_down  # of one row of pixels
        count = max(1, min(size, _MOST_SAMPLES_AT_ONCE // samples))
        strips = []
        for first in range(0, size, count):
            lattice = ground_sampling.chip_lattice(
                ground_km, size, footprint, first=first, count=min(count, size - first)
            )
            directions = ground_sampling.turn_lattice(lattice, longitude, latitude)
            points = self._frame.to_cells_about(directions, longitude, latitude)
            strips.append(self._sample(numbers, *points, footprint))
        pixels = np.concatenate([strip[0] for strip in strips])  # (size, size, B)
        return self._to_own_type(pixels.transpose(2, 0, 1)), np.concatenate([strip[1] for strip in strips])

    def only_band(self) -> FloatArray:
        """Read a raster of one band whole, as a prior or a mask is read.

        Returns
        -------
        ndarray of float64, shape (height, width)
            NaN where there is no data.

        Raises
        ------
        BadInputError
            If it has several bands, is too large for memory, or the file is damaged.
        """
        if len(self.colour_bands) != 1:
            raise BadInputError(f"{self.paths[0]}: has {len(self.colour_bands)} bands; a prior or a mask has one")
        if self.height * self.width > _MOST_WHOLE_CELLS:
            raise BadInputError(
                f"{self.paths[0]}: {self.height} x {self.width} raster cells are more than the {_MOST_WHOLE_CELLS:.0g}"
                " that are read at once; cut out the region, or resample to larger cells"
            )
        pixels, valid = self._reader.window(self.colour_bands, 0, 0, self.height, self.width)
        values = pixels[..., 0].astype(np.float64)
        return values if valid is None else np.where(valid, values, np.nan)

    def check_bands(self, bands: Sequence[int] | None) -> tuple[int, ...]:
        """Give the bands to read.

        Parameters
        ----------
        bands : sequence of int, optional
            Numbers from 1; `colour_bands` when None.

        Returns
        -------
        tuple of int

        Raises
        ------
        UsageError
            If the scene has no such band, or none is asked for.
        """
        numbers = self.colour_bands if bands is None else tuple(int(band) for band in bands)
        if not numbers or min(numbers) < 1 or max(numbers) > self.count:
            raise UsageError(f"{self.paths[0]}: bands {list(numbers)} are not among its bands 1 to {self.count}")
        return numbers

    def percentiles(
        self, low: float, high: float, *, bands: Sequence[int] | None = None, seed: int = 0
    ) -> tuple[tuple[float, float], ...]:
        """Estimate two percentiles of each band from windows at random places of the raster.

        Parameters
        ----------
        low, high : float
            Per cent, 0..100.
        bands : sequence of int, optional
            Numbers from 1; `colour_bands` when None.
        seed : int
            Of the windows.

        Returns
        -------
        tuple of (low, high)
            One pair of values for each band.

        Raises
        ------
        BadInputError
            If none of the windows holds valid data.
        """
        numbers = self.check_bands(bands)
        generator = np.random.default_rng(seed)
        height, width = min(_SAMPLE_WINDOW, self.height), min(_SAMPLE_WINDOW, self.width)
        found = []
        for _ in range(_SAMPLE_WINDOWS):
            row = int(generator.integers(0, self.height - height + 1))
            column = int(generator.integers(0, self.width - width + 1))
            pixels, valid = self._reader.window(numbers, row, column, height, width)
            found.append(pixels.reshape(-1, len(numbers)) if valid is None else pixels[valid])
        values = np.concatenate(found)
        if not values.size:
            raise BadInputError(f"{self.paths[0]}: no valid raster cell in {_SAMPLE_WINDOWS} windows")
        pairs = np.percentile(values, [low, high], axis=0)  # (2, B)
        return tuple((float(first), float(second)) for first, second in pairs.T)

    def _footprint_of_pixel(
        self, longitude: float, latitude: float, ground_km: float, size: int
    ) -> ground_sampling.Footprint:
        east, south = ground_sampling.lattice_offsets(size)
        step = ground_km / size
        directions = ground_sampling.pixel_directions(longitude, latitude, east * step, -south * step)
        return ground_sampling.measure_footprint(*self._frame.to_cells_about(directions, longitude, latitude))

    def _sample(
        self, bands: tuple[int, ...], columns: FloatArray, rows: FloatArray, footprint: ground_sampling.Footprint
    ) -> tuple[FloatArray, Mask]:
        columns, rows = columns / footprint.block_columns, rows / footprint.block_rows
        blocks = self._reader.blocks(bands, columns, rows, footprint)
        if blocks is None:
            shape = (columns.shape[0] // footprint.samples_down, columns.shape[1] // footprint.samples_across)
            return np.zeros((*shape, len(bands))), np.zeros(shape, dtype=np.bool_)
        top, left, means, coverage = blocks
        return ground_sampling.sample(means, coverage, columns - left, rows - top, footprint)

    def _to_own_type(self, values: Pixels) -> Pixels:
        if self.dtype.kind == "f":
            return np.ascontiguousarray(values, dtype=self.dtype)
        limits = np.iinfo(self.dtype)
        return np.ascontiguousarray(np.clip(np.rint(values), limits.min, limits.max), dtype=self.dtype)


def _check_chip(longitude: float, latitude: float, ground_km: float, size: int) -> None:
    if not (math.isfinite(longitude) and -90.0 <= latitude <= 90.0):
        raise UsageError(f"chip centre ({longitude}, {latitude}) is no longitude and latitude in degrees")
    if not 0.0 < ground_km <= _MOST_GROUND_KM:
        raise UsageError(f"ground_km {ground_km} is not in 0..{_MOST_GROUND_KM}")
    if size < 1:
        raise UsageError(f"size {size} is not a positive number of pixels")
