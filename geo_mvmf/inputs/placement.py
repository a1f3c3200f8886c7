"""Affine transforms of rasters: applied, checked, and given by bounds or by a world file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.transform import Affine

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs.regular_files import open_regular_file

Bounds = tuple[float, float, float, float]

_MOST_WORLD_FILE_BYTES = 4096
_LARGEST = 1e12  # of any number of a transform, in units of a CRS
_SMALLEST_AREA = 1e-24  # of a raster cell


def apply_transform(
    transform: Affine, column: npt.ArrayLike, row: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Apply an affine transform to arrays (affine 2 and 3 want different operators, neither takes arrays).

    Parameters
    ----------
    transform : Affine
    column, row : array_like of float, shapes that broadcast to (...)

    Returns
    -------
    x, y : ndarray of float64, shape (...)

    Examples
    --------
    >>> x, y = apply_transform(Affine(2.0, 0.0, 10.0, 0.0, -2.0, 50.0), [0, 1], [0, 1])
    >>> x.tolist(), y.tolist()
    ([10.0, 12.0], [50.0, 48.0])
    """
    across, down = np.asarray(column, dtype=np.float64), np.asarray(row, dtype=np.float64)
    x = transform.a * across + transform.b * down + transform.c
    return x, transform.d * across + transform.e * down + transform.f


def shifted(transform: Affine, column: float, row: float) -> Affine:
    """Give the transform of the same grid, counted from another raster cell.

    Parameters
    ----------
    transform : Affine
    column, row : float
        What becomes (0, 0).

    Examples
    --------
    >>> shifted(Affine(2.0, 0.0, 10.0, 0.0, -2.0, 50.0), 1, 1)[2:6:3]
    (12.0, 48.0)
    """
    x, y = apply_transform(transform, column, row)
    return Affine(transform.a, transform.b, float(x), transform.d, transform.e, float(y))


def transform_of_bounds(bounds: Bounds, width: int, height: int) -> Affine:
    """Give the transform of a raster that fills a rectangle, north up.

    Parameters
    ----------
    bounds : (west, south, east, north)
        Outer edges in units of a CRS.
    width, height : int
        In raster cells.

    Raises
    ------
    UsageError
        If the bounds are not a rectangle.

    Examples
    --------
    >>> transform_of_bounds((-180.0, -90.0, 180.0, 90.0), 360, 180)[:3]
    (1.0, 0.0, -180.0)
    """
    west, south, east, north = (float(value) for value in bounds)
    if not (west < east and south < north and all(map(math.isfinite, (west, south, east, north)))):
        raise UsageError(f"bounds {tuple(bounds)} are not (west, south, east, north) with west < east, south < north")
    return Affine((east - west) / width, 0.0, west, 0.0, (south - north) / height, north)


def checked_transform(path: Path, transform: Affine) -> Affine:
    """Pass a transform on if it places a raster.

    Parameters
    ----------
    path : Path
        The raster, for the message.
    transform : Affine

    Raises
    ------
    BadInputError
        If a number is not finite, the raster has no area, or the transform is the one of unplaced pictures.

    Examples
    --------
    >>> checked_transform(Path("a.tif"), Affine(0.0, 0.0, 7.0, 0.0, -1.0, 50.0))
    Traceback (most recent call last):
    geo_mvmf.errors.BadInputError: a.tif: its transform (0.0, 0.0, 7.0, 0.0, -1.0, 50.0) is none; give bounds and crs
    """
    values = tuple(transform)[:6]
    area = transform.a * transform.e - transform.b * transform.d
    # NaN fails both comparisons; beyond these sizes the inverse has no digits left
    usable = all(abs(value) < _LARGEST for value in values) and abs(area) > _SMALLEST_AREA
    if not usable or transform == Affine.identity():
        raise BadInputError(f"{path}: its transform {values} is none; give bounds and crs")
    return transform


def world_file_transform(path: Path) -> Affine:
    """Read the world file beside a picture (.jgw, .jpgw or .wld for .jpg).

    Parameters
    ----------
    path : Path
        The picture.

    Returns
    -------
    Affine
        Of the picture's outer corner (a world file gives the centre of its first pixel).

    Raises
    ------
    BadInputError
        If there is none, or it does not hold six numbers that place a raster.

    Examples
    --------
    >>> import tempfile
    >>> picture = Path(tempfile.mkdtemp()) / "a.jpg"
    >>> _ = picture.with_suffix(".jgw").write_text("1.0 0.0 0.0 -1.0 -179.5 89.5")
    >>> world_file_transform(picture)[:6]
    (1.0, 0.0, -180.0, 0.0, -1.0, 90.0)
    """
    suffix = path.suffix
    names = [
        path.with_suffix(f".{suffix[1:2]}{suffix[-1:]}w"),
        path.with_suffix(f"{suffix}w"),
        path.with_suffix(".wld"),
    ]
    found = [name for name in names if name.is_file()]
    if not found:
        raise BadInputError(f"{path}: neither bounds nor a world file ({names[0].name}) say where it lies")
    with open_regular_file(found[0]) as file:
        text = file.read(_MOST_WORLD_FILE_BYTES)
    try:
        a, d, b, e, c, f = (float(line) for line in text.decode("ascii").split())
    except ValueError as error:  # UnicodeDecodeError too
        raise BadInputError(f"{found[0]}: a world file holds six numbers, this one {text[:60]!r}") from error
    return checked_transform(path, shifted(Affine(a, b, c, d, e, f), -0.5, -0.5))
