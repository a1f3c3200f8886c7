"""One raster file, opened so that nothing but this file is read.

GDAL knows a file by its content and follows what the content says: a VRT named .jpg reads any other file, a WMS
description any address, a .msk, .ovr or .aux.xml beside a harmless TIFF any raster, and a tag inside a TIFF names
the file of its overviews. So the first bytes choose the one driver that may open the file, neighbours are
invisible, and a file that names its own overviews is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyproj
import rasterio
import rasterio.enums
import rasterio.errors
from rasterio._err import CPLE_BaseError  # GDAL's own errors, which rasterio passes on in places
from rasterio.transform import Affine

from geo_mvmf.errors import BadInputError, ImageError, OutputError, UsageError
from geo_mvmf.inputs.coordinate_systems import file_crs, parse_crs
from geo_mvmf.inputs.placement import Bounds, checked_transform, transform_of_bounds, world_file_transform
from geo_mvmf.inputs.regular_files import check_regular_file, open_regular_file, sniff_bytes

SCENE_DRIVERS: Mapping[str, str] = {"tiff": "GTiff", "jp2": "JP2OpenJPEG", "jpeg": "JPEG", "png": "PNG"}
"""What a file's first bytes say -> the only GDAL driver that may open it. JPEG and PNG need explicit bounds."""

_JP2_MAGIC = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
# The GeoJP2 box's identifier, and the label of GMLJP2: without either a JPEG 2000 file has no place.
_JP2_PLACE_MARKS = (bytes.fromhex("b14bf8bd083d4b43a5ae8cd7d5a6ce03"), b"gml.data")
_JP2_SEARCHED_BYTES = 1 << 20
_GEO_KEYS, _PIXEL_SCALE, _TRANSFORMATION = 34735, 33550, 34264  # GeoTIFF 1.1, annex B
_MOST_TIFF_ENTRIES = 4096
_MOST_BLOCK_BYTES = 1 << 30

# The warning is an error where the host says so: a file promised a place, but its tags are damaged.
_RASTER_ERRORS = (
    rasterio.errors.RasterioError,
    CPLE_BaseError,
    rasterio.errors.NotGeoreferencedWarning,
    UnicodeDecodeError,  # a CRS whose name is damaged
)

# EMPTY_DIR hides all neighbours (.msk, .ovr, .aux.xml); no place is taken from one; damage is an error.
_SAFE_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_PAM_ENABLED": "NO",
    "GDAL_GEOREF_SOURCES": "INTERNAL",
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    "USE_RRD": "NO",
}


@dataclasses.dataclass(frozen=True)
class RasterFile:
    """An open raster file and its place.

    Attributes
    ----------
    path : Path
        Absolute.
    dataset : rasterio dataset
        To be read inside `safe_environment` only.
    crs : pyproj.CRS
        The file's own, or the one that was given.
    transform : Affine
        (column, row) of raster cell corners -> (x, y) of the CRS, x to the east.
    """

    path: Path
    dataset: Any
    crs: pyproj.CRS
    transform: Affine


def safe_environment() -> Any:
    """Give the rasterio environment in which rasters are opened, read and written.

    Returns
    -------
    rasterio.Env
        A context manager; neighbouring files are neither read nor written.

    Examples
    --------
    >>> with safe_environment():
    ...     rasterio.env.getenv()["GDAL_PAM_ENABLED"]
    'NO'
    """
    return rasterio.Env(**_SAFE_OPTIONS)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Read inside `safe_environment`; what GDAL cannot decode becomes a BadInputError.

    Parameters
    ----------
    path : Path
        The file, for the message.

    Raises
    ------
    BadInputError
        If the file is truncated or damaged.

    Examples
    --------
    >>> with reading(Path("a.tif")):
    ...     raise rasterio.errors.RasterioIOError("strip 3 is missing")
    Traceback (most recent call last):
    geo_mvmf.errors.BadInputError: a.tif: cannot be read as a raster: strip 3 is missing
    """
    try:
        with safe_environment():
            yield
    except _RASTER_ERRORS as error:
        cause = error.__cause__ or error
        raise BadInputError(f"{path}: cannot be read as a raster: {cause}") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write inside `safe_environment`; what GDAL cannot write becomes an OutputError.

    Parameters
    ----------
    path : Path
        The final name, for the message.

    Raises
    ------
    OutputError
        If the disk refuses.

    Examples
    --------
    >>> with writing(Path("a.tif")):
    ...     raise rasterio.errors.RasterioIOError("no space left")
    Traceback (most recent call last):
    geo_mvmf.errors.OutputError: a.tif: cannot write: no space left
    """
    try:
        with safe_environment():
            yield
    except (rasterio.errors.RasterioError, CPLE_BaseError) as error:
        raise OutputError(f"{path}: cannot write: {error.__cause__ or error}") from error


def raster_kind(path: str | os.PathLike[str], *, inside: Iterable[str | os.PathLike[str]] = ()) -> str:
    """Tell what raster a file is by its first bytes.

    Parameters
    ----------
    path : path
        A file; never an address, a /vsi path or a driver prefix.
    inside : iterable of path
        Folders; where given, the file must lie in one of them after all symbolic links.

    Returns
    -------
    str
        A key of `SCENE_DRIVERS`, or another word (see `regular_files.sniff`) for what cannot be a raster here.

    Raises
    ------
    ImageError
        If it is not an existing regular file.

    Examples
    --------
    >>> import tempfile
    >>> disguised = Path(tempfile.mkdtemp()) / "scene.tif"
    >>> _ = disguised.write_text("<VRTDataset/>")
    >>> raster_kind(disguised)
    'xml'
    """
    with _first_bytes(path, inside) as file:
        head = file.read(4096)
    return "jp2" if head.startswith(_JP2_MAGIC) else sniff_bytes(head)


def is_georeferenced(path: str | os.PathLike[str], *, inside: Iterable[str | os.PathLike[str]] = ()) -> bool:
    """Tell whether a file is a TIFF or JPEG 2000 that carries its own place; GDAL is not asked.

    Parameters
    ----------
    path : path
    inside : iterable of path
        As `raster_kind`.

    Returns
    -------
    bool
        True where the tags of a CRS and of an affine transform (TIFF), or the box that holds them (JPEG 2000),
        are present.

    Raises
    ------
    ImageError
        If it is not an existing regular file.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> _ = path.write_text("path,longitude,latitude")
    >>> is_georeferenced(path)
    False
    """
    with _first_bytes(path, inside) as file:
        head = file.read(16)
        if head.startswith(_JP2_MAGIC):
            searched = file.read(_JP2_SEARCHED_BYTES)
            return any(mark in searched for mark in _JP2_PLACE_MARKS)
        if sniff_bytes(head) != "tiff":
            return False
        tags = _first_directory_tags(file, head)
    return _GEO_KEYS in tags and (_PIXEL_SCALE in tags or _TRANSFORMATION in tags)


def open_raster(
    path: str | os.PathLike[str], *, bounds: Bounds | None = None, crs: str | pyproj.CRS | None = None
) -> RasterFile:
    """Open one raster file.

    Parameters
    ----------
    path : path
        GeoTIFF (COG too) or JPEG 2000 with its own place; or any of `SCENE_DRIVERS` with the place given here.
    bounds : (west, south, east, north), optional
        Outer edges in units of `crs`. Without it the file's own transform is taken, or, where it has none but `crs`
        is given, the world file beside it.
    crs : str or pyproj.CRS, optional
        As `coordinate_systems.parse_crs`; replaces the file's own.

    Returns
    -------
    RasterFile
        The caller closes `.dataset`.

    Raises
    ------
    BadInputError
        If the file is not such a raster, is damaged, or has no place; ImageError if it is no regular file.
    UsageError
        If `bounds` comes without `crs`, or is not a rectangle.

    Examples
    --------
    >>> import tempfile
    >>> disguised = Path(tempfile.mkdtemp()) / "scene.tif"
    >>> _ = disguised.write_text("<VRTDataset/>")
    >>> try:
    ...     open_raster(disguised)
    ... except BadInputError as error:
    ...     print(str(error).replace(str(disguised.parent), ""))
    /scene.tif: holds xml, not a raster; allowed are tiff, jp2, jpeg, png
    """
    checked = check_regular_file(path)
    kind = raster_kind(checked)
    if kind not in SCENE_DRIVERS:
        raise BadInputError(f"{checked}: holds {kind}, not a raster; allowed are {', '.join(SCENE_DRIVERS)}")
    if crs is None:
        if bounds is not None:
            raise UsageError(f"bounds {bounds} were given without the CRS that they are in: give crs too")
        if not is_georeferenced(checked):
            raise BadInputError(
                f"{checked}: has no place on Earth in it; write one that has, such as with gdal_translate -a_srs "
                f"EPSG:4326 -a_ullr WEST NORTH EAST SOUTH {shlex.quote(checked.name)} out.tif (in Python give bounds "
                "and crs)"
            )
    dataset = _open_dataset(checked, SCENE_DRIVERS[kind], placeless=crs is not None)
    try:
        with reading(checked):
            _check_dataset(checked, dataset)
            place = _own_place(checked, dataset) if crs is None else _given_place(checked, dataset, bounds, crs)
        return RasterFile(checked, dataset, *place)
    except BaseException:
        dataset.close()
        raise


@contextlib.contextmanager
def _first_bytes(path: str | os.PathLike[str], inside: Iterable[str | os.PathLike[str]]) -> Iterator[BinaryIO]:
    with open_regular_file(path, inside=inside) as file:
        try:
            yield file
        except OSError as error:
            raise ImageError("unreadable", f"{path}: {(error.strerror or str(error)).lower()}") from error


def _first_directory_tags(file: BinaryIO, head: bytes) -> frozenset[int]:
    """Tag numbers of a TIFF's first directory (TIFF 6.0 section 2; BigTIFF): no value is followed."""
    order = "<" if head.startswith(b"II") else ">"
    big = head[2:4] in (b"\x2b\x00", b"\x00\x2b")
    offset_format, count_format, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    try:
        (offset,) = struct.unpack_from(order + offset_format, head, 8 if big else 4)
        file.seek(offset)
        (count,) = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
        entries = file.read(size * min(count, _MOST_TIFF_ENTRIES))
    except (struct.error, OSError, OverflowError):
        return frozenset()
    starts = range(0, len(entries) - size + 1, size)
    return frozenset(struct.unpack_from(order + "H", entries, start)[0] for start in starts)


def _open_dataset(path: Path, driver: str, *, placeless: bool) -> Any:
    with reading(path), contextlib.ExitStack() as stack:
        if placeless:  # only here: changing the warning filters is no business of threads
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path, driver=driver)


def _check_dataset(path: Path, dataset: Any) -> None:
    if dataset.tags(ns="OVERVIEWS"):
        raise BadInputError(f"{path}: names another file as its overviews {dataset.tags(ns='OVERVIEWS')}: refused")
    kinds = {np.dtype(name).kind if name in np.sctypeDict else name for name in dataset.dtypes}
    if not kinds <= {"u", "i", "f"} or len(set(dataset.dtypes)) > 1:
        raise BadInputError(f"{path}: bands of type {', '.join(dataset.dtypes)}; all must be of one real type")
    if rasterio.enums.ColorInterp.palette in dataset.colorinterp:
        raise BadInputError(f"{path}: its values are numbers of a colour table; expand it to red, green, blue first")
    block = max(rows * columns for rows, columns in dataset.block_shapes) * np.dtype(dataset.dtypes[0]).itemsize
    if dataset.profile.get("interleave") == "pixel":
        block *= dataset.count
    if block > _MOST_BLOCK_BYTES:
        raise BadInputError(f"{path}: one block takes {block} bytes; {_MOST_BLOCK_BYTES} are allowed; tile it")


def _own_place(path: Path, dataset: Any) -> tuple[pyproj.CRS, Affine]:
    stated = dataset.crs
    code = None if stated is None else stated.to_epsg(confidence_threshold=100)
    crs = None
    if stated is not None:
        # WKT 2: the older form of EPSG:3857 names a grid file, though an empty one
        crs = file_crs(f"EPSG:{code}" if code else stated.to_wkt(version="WKT2_2019"), str(path))
    if crs is None:
        raise BadInputError(f"{path}: has no CRS that relates it to the Earth; give crs")
    return crs, checked_transform(path, dataset.transform)


def _given_place(path: Path, dataset: Any, bounds: Bounds | None, crs: str | pyproj.CRS) -> tuple[pyproj.CRS, Affine]:
    if bounds is not None:
        return parse_crs(crs), transform_of_bounds(bounds, dataset.width, dataset.height)
    own = dataset.transform
    return parse_crs(crs), world_file_transform(path) if own == Affine.identity() else checked_transform(path, own)
