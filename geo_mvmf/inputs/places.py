"""Where chips are cut: places drawn uniformly over an area of the sphere, and the blocks that split them.

A random split of places of one mosaic measures memory, because neighbouring chips share pixels; a split by blocks of
longitude and latitude measures what was learnt.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError, UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_DRAWN_AT_ONCE = 4096
_MOST_DRAWS_PER_PLACE = 2_000_000  # inside its rectangle; an area thinner than that is a mistake


def draw_places(area: shapely.Geometry, generator: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Draw places uniformly over an area of the sphere, without end.

    Parameters
    ----------
    area : Polygon or MultiPolygon
        OGC:CRS84, edges straight in longitude and latitude.
    generator : numpy.random.Generator
        Where the randomness comes from.

    Yields
    ------
    longitude, latitude : float
        Degrees, inside the area.

    Raises
    ------
    BadInputError
        If the area is empty.

    Examples
    --------
    >>> places = draw_places(shapely.box(10.0, 40.0, 20.0, 50.0), np.random.default_rng(0))
    >>> longitude, latitude = next(places)
    >>> 10.0 <= longitude <= 20.0 and 40.0 <= latitude <= 50.0
    True
    """
    parts = np.array([part for part in shapely.get_parts(area) if part.area > 0.0], dtype=object)
    if not parts.size:
        raise BadInputError("the area to cut chips from is empty: do the raster and the areas overlap?")
    shapely.prepare(parts)
    west, south, east, north = shapely.bounds(parts).T
    areas = sphere.rectangle_area_km2(west, south, east, north)
    chances = areas / areas.sum()
    misses = 0
    while misses < _MOST_DRAWS_PER_PLACE:
        part = generator.choice(len(parts), size=_DRAWN_AT_ONCE, p=chances)
        longitude = generator.uniform(west[part], east[part])
        low, high = np.sin(np.radians(south[part])), np.sin(np.radians(north[part]))
        latitude = np.degrees(np.arcsin(np.clip(generator.uniform(low, high), -1.0, 1.0)))
        inside = shapely.contains_xy(parts[part], longitude, latitude)
        misses = 0 if inside.any() else misses + _DRAWN_AT_ONCE
        yield from zip(longitude[inside].tolist(), latitude[inside].tolist(), strict=True)
    raise BadInputError(f"the area to cut chips from is too thin: none of {misses} places fell into it")


def block_of(
    longitude: npt.ArrayLike, latitude: npt.ArrayLike, *, height: float = 10.0, width: float = 15.0
) -> IntArray:
    """Give the block of longitude and latitude in which a place lies.

    Parameters
    ----------
    longitude, latitude : array_like of float, shapes that broadcast to (...)
        Degrees.
    height, width : float
        Of a block, degrees of latitude and of longitude.

    Returns
    -------
    ndarray of int64, shape (...)
        Counted from (-180, -90), first to the east and then to the north; -1 where a coordinate is NaN.

    Raises
    ------
    UsageError
        If a block has no size.

    Examples
    --------
    >>> block_of([-180.0, -164.0, 180.0], [-90.0, -90.0, -79.0]).tolist()
    [0, 1, 24]
    """
    row, column = _row_and_column(longitude, latitude, height, width)
    across = np.ceil(180.0 / width) - np.floor(-180.0 / width)
    block = (row - np.floor(-90.0 / height)) * across + column - np.floor(-180.0 / width)
    return np.where(np.isfinite(block), block, -1.0).astype(np.int64)


def in_test_block(
    longitude: npt.ArrayLike,
    latitude: npt.ArrayLike,
    *,
    height: float = 10.0,
    width: float = 15.0,
    every: int = 5,
) -> npt.NDArray[np.bool_]:
    """Tell which places lie in blocks kept for testing.

    Parameters
    ----------
    longitude, latitude : array_like of float, shapes that broadcast to (...)
        Degrees; NaN is in no block.
    height, width : float
        Of a block, degrees of latitude and of longitude.
    every : int
        A block is a test block where floor(latitude / height) + floor(longitude / width) is divisible by this.

    Returns
    -------
    ndarray of bool, shape (...)

    Raises
    ------
    UsageError
        If a block has no size, or `every` is not positive.

    Examples
    --------
    >>> in_test_block([1.0, 16.0, 76.0], [1.0, 1.0, 1.0]).tolist()
    [True, False, True]
    """
    if every < 1:
        raise UsageError(f"every {every} is not a positive number of blocks")
    row, column = _row_and_column(longitude, latitude, height, width)
    return np.asarray((row + column) % every == 0)  # NaN is never 0


def _row_and_column(
    longitude: npt.ArrayLike, latitude: npt.ArrayLike, height: float, width: float
) -> tuple[FloatArray, FloatArray]:
    """Count blocks from (0, 0); 180 degrees east is 180 degrees west, the pole belongs to the last row."""
    if not (height > 0.0 and width > 0.0):
        raise UsageError(f"a block of {height} x {width} degrees has no size")
    lam, phi = np.broadcast_arrays(np.asarray(longitude, float), np.asarray(latitude, float))
    lam = (lam + 180.0) % 360.0 - 180.0
    return np.floor(np.minimum(phi, np.nextafter(90.0, 0.0)) / height), np.floor(lam / width)
