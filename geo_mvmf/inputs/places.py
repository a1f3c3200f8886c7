"""Where chips are cut: places drawn uniformly over an area of the sphere, and the blocks that split them.

A random split of places of one mosaic measures memory, because neighbouring chips share pixels; a split by blocks of
longitude and latitude, or by whole S2 cells, measures what was learnt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError, UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

DEEPEST_BLOCKS = 20  # 9 m

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


def level_of_blocks(width_km: float) -> int:
    """Give the finest S2 level whose cells are on average at least so wide.

    Parameters
    ----------
    width_km : float
        Such as the side of a chip.

    Returns
    -------
    int
        0..`DEEPEST_BLOCKS`.

    Examples
    --------
    >>> level_of_blocks(1000.0), level_of_blocks(30.0)
    (3, 8)
    """
    edges = s2.edge_length(np.arange(DEEPEST_BLOCKS + 1)) * sphere.EARTH_RADIUS_KM
    return max(int(np.count_nonzero(edges >= width_km)) - 1, 0)


def divide(
    longitude: npt.ArrayLike, latitude: npt.ArrayLike, shares: Mapping[str, float], *, level: int, seed: int
) -> npt.NDArray[np.str_]:
    """Divide places into parts by whole blocks, which are S2 cells of one level.

    The blocks come in random order, and each goes to the part that most of its share is missing from.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Degrees.
    shares : mapping of str to float
        How many of the places each part shall have, relatively; one block more or less.
    level : int
        Of the S2 cells.
    seed : int
        Decides the order of the blocks.

    Returns
    -------
    ndarray of str, shape (n,)
        The part of each place.

    Raises
    ------
    BadInputError
        If the places lie in fewer blocks than there are parts.

    Examples
    --------
    >>> lam, phi = np.meshgrid(np.arange(0.0, 40.0), np.arange(0.0, 40.0))
    >>> part = divide(lam.ravel(), phi.ravel(), {"training": 3, "test": 1}, level=5, seed=0)
    >>> float((part == "test").mean())
    0.248125
    """
    blocks, block, number = np.unique(
        s2.cell_ids(sphere.to_directions(longitude, latitude), level), return_inverse=True, return_counts=True
    )
    wanted = np.array(list(shares.values()), dtype=np.float64)
    missing = wanted / wanted.sum() * block.size
    chosen = np.empty(len(blocks), dtype=np.int64)
    has_none = np.ones(len(wanted), dtype=bool)
    for left, each in zip(range(len(blocks), 0, -1), np.random.default_rng(seed).permutation(len(blocks)), strict=True):
        # a part that is owed less than a block gets one of the last, if none came to it before
        owed = np.where(has_none, missing, -np.inf) if left <= has_none.sum() else missing
        chosen[each] = np.argmax(owed)
        missing[chosen[each]] -= number[each]
        has_none[chosen[each]] = False
    names = list(shares)
    if empty := [name for part, name in enumerate(names) if part not in chosen]:
        raise BadInputError(
            f"part {empty[0]!r} gets none of the {len(blocks)} blocks, S2 cells of level {level}, that the "
            f"{block.size} places lie in; choose smaller blocks (a larger level), a larger area, or fewer parts"
        )
    return np.array(names)[chosen][block]


def _row_and_column(
    longitude: npt.ArrayLike, latitude: npt.ArrayLike, height: float, width: float
) -> tuple[FloatArray, FloatArray]:
    """Count blocks from (0, 0); 180 degrees east is 180 degrees west, the pole belongs to the last row."""
    if not (height > 0.0 and width > 0.0):
        raise UsageError(f"a block of {height} x {width} degrees has no size")
    lam, phi = np.broadcast_arrays(np.asarray(longitude, float), np.asarray(latitude, float))
    lam = (lam + 180.0) % 360.0 - 180.0
    return np.floor(np.minimum(phi, np.nextafter(90.0, 0.0)) / height), np.floor(lam / width)
