"""Georeferenced rasters, one file or a folder of tiles, as places to look at; the only door to rasters.

What may be opened at all is decided in `raster_files`, several files become one raster in `tiled_raster`, and how
the pixels of a chip are sampled is `ground_sampling`'s business. A scene knows where it lies on Earth.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
import shapely
from rasterio.transform import Affine
from rasterio.windows import Window

from geo_mvmf import durable, sphere
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs import ground_sampling
from geo_mvmf.inputs.outlines import outline_polygon
from geo_mvmf.inputs.placement import Bounds, apply_transform, parse_crs, transform_of_bounds
from geo_mvmf.inputs.raster_files import SCENE_DRIVERS, is_georeferenced, open_raster, reading, safe_environment
from geo_mvmf.inputs.tiled_raster import Mask, Pixels, TiledRaster

__all__ = ["SCENE_DRIVERS", "Scene", "georeference", "is_scene", "open_scene"]

FloatArray = npt.NDArray[np.float64]
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

CRS84 = pyproj.CRS.from_user_input("OGC:CRS84")

_MOST_GROUND_KM = 20_000.0  # the projection of a chip must not fold over the antipode
_MOST_KEPT_BYTES = 512 << 20  # a raster up to this size is kept in memory once it has been read as often
_MOST_CELLS_AT_ONCE = 1 << 24  # raster cells averaged to blocks at once
_MOST_BLOCKS = 1 << 28  # of one chip
_MOST_SAMPLES_AT_ONCE = 1 << 18
_TURN_TOLERANCE = 0.01  # raster cells: the resolution in a file is rounded
_SAMPLE_WINDOW = 256  # raster cells a side
_SAMPLE_WINDOWS = 48


def open_scene(source: Source, *, bounds: Bounds | None = None, crs: object | None = None) -> Scene:
    """Open a georeferenced raster.

    Parameters
    ----------
    source : path or sequence of path
        A GeoTIFF or JPEG 2000 file, several, or a folder of them: these are then one raster, and must agree in
        CRS, number and type of bands, resolution and grid.
    bounds : (west, south, east, north), optional
        The place of one picture that carries none (JPEG and PNG never do), in units of `crs`.
    crs : str or pyproj.CRS, optional
        Such as "EPSG:4326". Without `bounds` a world file beside the picture is read.

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
    >>> path = Path(tempfile.mkdtemp()) / "world.tif"
    >>> with safe_environment(), rasterio.open(
    ...     path, "w", driver="GTiff", width=36, height=18, count=1, dtype="uint8", crs="OGC:CRS84",
    ...     transform=Affine(10.0, 0.0, -180.0, 0.0, -10.0, 90.0),
    ... ) as dataset:
    ...     dataset.write(np.full((1, 18, 36), 7, dtype="uint8"))
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
        self._to_cells = ~raster.transform
        self._turn = _columns_around(self.crs, self.transform)
        self._wrap = _whole_turn(self._turn)
        self._cells_read = 0
        self._kept: dict[tuple[int, ...], tuple[Pixels, Mask | None]] = {}
        try:
            self._transformers = _transformers(self.crs)
            self._measure()
        except BaseException:
            self.close()
            raise

    def _measure(self) -> None:
        x, y = apply_transform(self.transform, [0, self.width, 0, self.width], [0, 0, self.height, self.height])
        self.bounds: Bounds = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))
        self.centre = self._place_of(self.width / 2.0, self.height / 2.0)
        ticks = np.linspace(0.0, 1.0, 65)
        rows = self._length_km(ticks * self.width, np.full(65, self.height / 2.0))
        columns = self._length_km(np.full(65, self.width / 2.0), ticks * self.height)
        self.ground_size_km = (rows, columns)
        across = self._length_km(self.width / 2.0 + np.array([-0.5, 0.5]), np.full(2, self.height / 2.0))
        down = self._length_km(np.full(2, self.width / 2.0), self.height / 2.0 + np.array([-0.5, 0.5]))
        self.pixel_km = math.sqrt(across * down)

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

    def to_cells(self, longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Give the raster coordinates of places.

        Parameters
        ----------
        longitude, latitude : array_like of float, shapes that broadcast to (...)
            Degrees.

        Returns
        -------
        column, row : ndarray of float64, shape (...)
            (0, 0) is the outer corner of the first raster cell. Not finite where the CRS does not reach.
        """
        lam, phi = np.broadcast_arrays(np.asarray(longitude, float), np.asarray(latitude, float))
        to_crs, _ = self._transformers
        x, y = (lam, phi) if to_crs is None else to_crs.transform(lam, phi)
        column, row = apply_transform(self._to_cells, x, y)
        if self._turn is not None:
            column = column % self._turn
        return column, row

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
        column, row = self.to_cells(longitude, latitude)
        with np.errstate(invalid="ignore"):
            inside = (column >= 0) & (column <= self.width) & (row >= 0) & (row <= self.height)
        return np.asarray(inside)

    def footprint(self) -> shapely.Geometry:
        """Give the outline of the raster on Earth.

        Returns
        -------
        Polygon or MultiPolygon
            OGC:CRS84, split at longitude 180 and closed over a pole that lies inside; edges follow the raster's.
        """
        ticks = np.linspace(0.0, 1.0, 257)[:-1]
        along, zero, one = ticks, np.zeros_like(ticks), np.ones_like(ticks)
        columns = np.concatenate([along, one, 1.0 - along, zero]) * self.width
        rows = np.concatenate([zero, along, one, 1.0 - along]) * self.height
        longitude, latitude = self._places_of(columns, rows)
        pole = [sign for sign in (-90.0, 90.0) if bool(self.contains(0.0, sign)) and not self.crs.is_geographic]
        full_turn = self._turn is not None and self.width > self._turn - _TURN_TOLERANCE
        return outline_polygon(longitude, latitude, full_turn=full_turn, poles=tuple(pole))

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
            strip = ground_sampling.chip_lattice(
                ground_km,
                size,
                footprint.samples_down,
                footprint.samples_across,
                first=first,
                count=min(count, size - first),
            )
            strips.append(self._sample(numbers, strip, longitude, latitude, footprint))
        pixels = np.concatenate([strip[0] for strip in strips])  # (size, size, B)
        return self._to_own_type(pixels.transpose(2, 0, 1)), np.concatenate([strip[1] for strip in strips])

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
            pixels, valid = self._window(numbers, row, column, height, width)
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
        return ground_sampling.measure_footprint(*self._cells_about(directions, longitude, latitude))

    def _cells_about(
        self, directions: FloatArray, longitude: float, latitude: float
    ) -> tuple[FloatArray, FloatArray]:
        """Raster coordinates; around the Earth, columns go on over the raster's edge on both sides of the centre."""
        columns, rows = self.to_cells(*sphere.to_longitude_latitude(directions))
        if self._turn is not None:
            middle = float(self.to_cells(longitude, latitude)[0])
            if self._wrap is None and middle > (self.width + self._turn) / 2.0:
                middle -= self._turn
            columns = middle + (columns - middle + self._turn / 2.0) % self._turn - self._turn / 2.0
        return columns, rows

    def _sample(
        self,
        bands: tuple[int, ...],
        lattice: FloatArray,
        longitude: float,
        latitude: float,
        footprint: ground_sampling.Footprint,
    ) -> tuple[FloatArray, Mask]:
        directions = ground_sampling.turn_lattice(lattice, longitude, latitude)
        columns, rows = self._cells_about(directions, longitude, latitude)
        columns, rows = columns / footprint.block_columns, rows / footprint.block_rows
        top, bottom = _block_range(rows, math.ceil(self.height / footprint.block_rows))
        wide = None if self._wrap else math.ceil(self.width / footprint.block_columns)
        left, right = _block_range(columns, wide)
        if top >= bottom or left >= right:
            shape = (lattice.shape[0] // footprint.samples_down, lattice.shape[1] // footprint.samples_across)
            return np.zeros((*shape, len(bands))), np.zeros(shape, dtype=np.bool_)
        means, coverage = self._blocks(bands, (top, bottom), (left, right), footprint)
        return ground_sampling.sample(
            means, coverage, columns - left, rows - top, footprint.samples_down, footprint.samples_across
        )

    def _blocks(
        self,
        bands: tuple[int, ...],
        block_rows: tuple[int, int],
        block_columns: tuple[int, int],
        footprint: ground_sampling.Footprint,
    ) -> tuple[Pixels, FloatArray | None]:
        """Read a range of blocks, so many rows at once that memory stays bounded."""
        (top, bottom), (left, right) = block_rows, block_columns
        if (bottom - top) * (right - left) * len(bands) > _MOST_BLOCKS:
            raise BadInputError(
                f"{self.paths[0]}: a chip over {bottom - top} x {right - left} raster cells is too large for memory; "
                f"choose a larger size, or less ground"
            )
        height, width = footprint.block_rows, footprint.block_columns
        count = max(1, _MOST_CELLS_AT_ONCE // ((right - left) * width * height))
        parts = []
        for first in range(top, bottom, count):
            rows = min(count, bottom - first) * height
            pixels, valid = self._around(bands, first * height, left * width, rows, (right - left) * width)
            parts.append(ground_sampling.block_means(pixels, valid, height, width))
        if len(parts) == 1:
            return parts[0]
        means = np.concatenate([part[0] for part in parts])
        if all(part[1] is None for part in parts):
            return means, None
        return means, np.concatenate([np.ones(m.shape[:2]) if c is None else c for m, c in parts])

    def _around(
        self, bands: tuple[int, ...], row: int, column: int, height: int, width: int
    ) -> tuple[Pixels, Mask | None]:
        """Read a window whose columns go on around the Earth."""
        if self._wrap is None or (column >= 0 and column + width <= self._wrap):
            return self._window(bands, row, column, height, width)
        parts = []
        done = 0
        while done < width:
            start = (column + done) % self._wrap
            step = min(width - done, self._wrap - start)
            parts.append(self._window(bands, row, start, height, step))
            done += step
        pixels = np.concatenate([part[0] for part in parts], axis=1)
        if all(part[1] is None for part in parts):
            return pixels, None
        return pixels, np.concatenate([np.ones(p.shape[:2], bool) if v is None else v for p, v in parts], axis=1)

    def _window(
        self, bands: tuple[int, ...], row: int, column: int, height: int, width: int
    ) -> tuple[Pixels, Mask | None]:
        if bands not in self._kept:
            self._cells_read += height * width
            cells = self.height * self.width
            too_large = cells * (len(bands) * self.dtype.itemsize + 1) > _MOST_KEPT_BYTES
            if too_large or self._cells_read < cells:
                return self._raster.read(bands, row, column, height, width)
            self._kept = {bands: self._raster.read(bands, 0, 0, self.height, self.width)}
        return _cut(*self._kept[bands], row, column, height, width)

    def _to_own_type(self, values: Pixels) -> Pixels:
        if self.dtype.kind == "f":
            return np.ascontiguousarray(values, dtype=self.dtype)
        limits = np.iinfo(self.dtype)
        return np.ascontiguousarray(np.clip(np.rint(values), limits.min, limits.max), dtype=self.dtype)

    def _places_of(self, column: npt.ArrayLike, row: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        x, y = apply_transform(self.transform, column, row)
        _, from_crs = self._transformers
        longitude, latitude = (x, y) if from_crs is None else from_crs.transform(x, y)
        return np.asarray(longitude), np.asarray(latitude)

    def _place_of(self, column: float, row: float) -> tuple[float, float]:
        longitude, latitude = (float(value) for value in self._places_of(column, row))
        if not (math.isfinite(longitude) and -90.0 <= latitude <= 90.0):
            raise BadInputError(
                f"{self.paths[0]}: its middle ({longitude}, {latitude}) is no place on Earth; is its CRS right?"
            )
        return (longitude + 180.0) % 360.0 - 180.0, latitude

    def _length_km(self, columns: FloatArray, rows: FloatArray) -> float:
        longitude, latitude = self._places_of(columns, rows)
        usable = np.isfinite(longitude) & np.isfinite(latitude)
        lam, phi = longitude[usable], latitude[usable]
        return float(sphere.great_circle_distance_km(lam[:-1], phi[:-1], lam[1:], phi[1:]).sum())


def georeference(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bounds: Bounds,
    crs: object = "EPSG:4326",
    overwrite: bool = False,
) -> Path:
    """Write a picture without a place as a tiled GeoTIFF that has one.

    Parameters
    ----------
    source : path
        JPEG, PNG, TIFF or JPEG 2000. A place in it is replaced.
    out : path
        The GeoTIFF (deflate, blocks of 256 x 256).
    bounds : (west, south, east, north)
        Outer edges in units of `crs`.
    crs : str or pyproj.CRS
        As `placement.parse_crs`.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    BadInputError
        If the source cannot be read.
    UsageError
        If the bounds are no rectangle, or the CRS is not known.
    OutputError
        If the file exists, or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (36, 18), (2, 5, 20)).save(folder / "world.png")
    >>> path = georeference(folder / "world.png", folder / "world.tif", bounds=(-180.0, -90.0, 180.0, 90.0))
    >>> with open_scene(path) as scene:
    ...     scene.centre, scene.count, round(scene.pixel_km)
    ((0.0, 0.0), 3, 1112)
    """
    with TiledRaster(Path(source), bounds=bounds, crs=crs) as raster:
        profile = {
            "driver": "GTiff",
            "width": raster.width,
            "height": raster.height,
            "count": raster.count,
            "dtype": raster.dtype.name,
            "crs": rasterio.crs.CRS.from_wkt(raster.crs.to_wkt()),
            "transform": raster.transform,
            "nodata": raster.nodata,
            "tiled": True,
            "blockxsize": 256,
            "blockysize": 256,
            "compress": "deflate",
            "photometric": "rgb" if raster.count in (3, 4) and raster.dtype == np.uint8 else "minisblack",
        }
        with durable.replacing(out, overwrite=overwrite) as temporary, writing(Path(out)):
            with rasterio.open(temporary, "w", **profile) as dataset:
                _copy(raster, dataset)
    return Path(out)


def _copy(raster: TiledRaster, dataset: Any) -> None:
    bands = tuple(range(1, raster.count + 1))
    for row in range(0, raster.height, 256):
        height = min(256, raster.height - row)
        pixels, _ = raster.read(bands, row, 0, height, raster.width)
        dataset.write(np.moveaxis(pixels, -1, 0), window=Window(0, row, raster.width, height))


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


def _check_chip(longitude: float, latitude: float, ground_km: float, size: int) -> None:
    if not (math.isfinite(longitude) and -90.0 <= latitude <= 90.0):
        raise UsageError(f"chip centre ({longitude}, {latitude}) is no longitude and latitude in degrees")
    if not 0.0 < ground_km <= _MOST_GROUND_KM:
        raise UsageError(f"ground_km {ground_km} is not in 0..{_MOST_GROUND_KM}")
    if size < 1:
        raise UsageError(f"size {size} is not a positive number of pixels")


def _horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    return crs.sub_crs_list[0] if crs.is_compound else crs


def _transformers(crs: pyproj.CRS) -> tuple[Any, Any]:
    """From OGC:CRS84 to the CRS and back; None where they are the same."""
    flat = _horizontal(crs)
    if flat.equals(CRS84, ignore_axis_order=True):
        return None, None
    try:
        there = pyproj.Transformer.from_crs(CRS84, flat, always_xy=True)
        return there, pyproj.Transformer.from_crs(flat, CRS84, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise BadInputError(f"CRS {crs.to_string()[:80]!r} cannot be related to longitude and latitude") from error


def _columns_around(crs: pyproj.CRS, transform: Affine) -> float | None:
    """Columns once around the Earth; None where x is no longitude."""
    flat = _horizontal(crs)
    if not flat.is_geographic or transform.b != 0.0 or transform.d != 0.0:
        return None
    return 2.0 * math.pi / flat.axis_info[0].unit_conversion_factor / abs(transform.a)


def _whole_turn(turn: float | None) -> int | None:
    """Columns once around the Earth, where that is a whole number."""
    return round(turn) if turn is not None and abs(turn - round(turn)) < _TURN_TOLERANCE else None
