"""Frames: the grid that shows nearly all of one density's probability, with raster cells of a round size.

A frame is a rectangle of longitude and latitude whose raster cells are about square on the ground; across longitude 180
its east exceeds 180. Where the probability lies around a pole, meridians would tear it apart: there the frame is a
square of the polar stereographic map (EPSG:3995 in the north, EPSG:3031 in the south).
"""

from __future__ import annotations

import math

import affine
import numpy as np
import numpy.typing as npt

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.maps import raster_parts
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]

PROBABILITY = 0.99
"""What a frame holds, unless told otherwise."""

CELLS = 512
"""Raster cells along the longer side of a frame, about as many at most."""

_SAMPLES = 100_000  # in all: the share of probability outside is known to 3e-4
_SPARE = 3.0  # standard errors by which the samples hold more than is wanted
_TRIES = 9  # ways to divide what lies outside between longitude and latitude
_WHOLE = 0.95  # share of the sphere from which a frame is all of it
_POLAR_REACH = 40.0  # degrees from a pole within which a frame may be polar
_POLAR_ARC = 90.0  # degrees of longitude beyond which it is
_KM_PER_DEGREE = sphere.EARTH_RADIUS_KM * math.pi / 180.0
_LEAST_KM = 0.01  # a raster cell of 10 m: less than any density's width
_POLAR = {1: "EPSG:3995", -1: "EPSG:3031"}


def frame(
    mixture: VmfMixture | CellMixture, *, probability: float = PROBABILITY, cells: int = CELLS, seed: int = 0
) -> Grid:
    """Find the grid that shows most of the probability of a density.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        One image, or several whose mean is meant.
    probability : float
        What the grid has to hold, 0..0.999; of all rectangles tried the smallest is taken.
    cells : int
        About how many raster cells the longer side may have; their height is the least of 1, 2, 5, 10, 20, 50, ... that
        keeps to it.
    seed : int
        The rectangle is found from samples; the same seed gives the same one.

    Returns
    -------
    Grid
        Geographic, or polar around a pole.

    Raises
    ------
    BadInputError
        There is no image, or the probability or the number of raster cells is out of range.

    Examples
    --------
    >>> grid = frame(VmfMixture(sphere.to_directions([180.0], [0.0]), [16.0], [[0.0]]))
    >>> [round(edge, 1) for edge in grid.bounds], grid.transform.a
    ([179.9, -0.1, 180.1, 0.1], 0.0005)
    """
    if not 0.0 < probability <= 0.999:
        raise BadInputError(f"probability {probability!r} of a frame is not in 0..0.999")
    if cells < 8:
        raise BadInputError(f"a frame of {cells} raster cells shows nothing; 8 is the least")
    if not len(mixture):
        raise BadInputError("a frame of 0 images: there is no density to show; give at least one image")
    drawn = mixture.sample(max(_SAMPLES // len(mixture), 1), seed=seed).reshape(-1, 3)
    wanted = probability + _SPARE * math.sqrt(probability * (1.0 - probability) / len(drawn))
    polar = _polar_frame(drawn, wanted, cells)
    return polar if polar is not None else _geographic_frame(drawn, wanted, cells)


def _geographic_frame(directions: FloatArray, wanted: float, cells: int) -> Grid:
    longitude, latitude = sphere.to_longitude_latitude(directions)
    found = []
    for outside in np.linspace(0.0, 1.0 - wanted, _TRIES):
        west, east = _shortest_arc(longitude, 1.0 - float(outside))
        inside = np.mod(longitude - west, 360.0) <= east - west
        south, north = _shortest_interval(latitude[inside], wanted / float(inside.mean()))
        found.append((west, south, east, north))
    return _snapped(min(found, key=_area), cells)


def _area(bounds: tuple[float, float, float, float]) -> float:
    west, south, east, north = bounds
    # an interval of no height still has a length
    return (east - west + 1e-9) * (math.sin(math.radians(north)) - math.sin(math.radians(south)) + 1e-12)


def _shortest_arc(longitude: FloatArray, share: float) -> tuple[float, float]:
    """West and east of the shortest arc that holds a share of longitudes; the circle where that is nearly all."""
    rising = np.sort(longitude)
    count = max(math.ceil(share * rising.size), 1)
    ends = np.concatenate([rising, rising + 360.0])
    lengths = ends[count - 1 : count - 1 + rising.size] - rising
    first = int(np.argmin(lengths))
    if lengths[first] > 350.0:
        return -180.0, 180.0
    return float(rising[first]), float(rising[first] + lengths[first])


def _shortest_interval(values: FloatArray, share: float) -> tuple[float, float]:
    rising = np.sort(values)
    count = min(max(math.ceil(share * rising.size), 1), rising.size)
    lengths = rising[count - 1 :] - rising[: rising.size - count + 1]
    first = int(np.argmin(lengths))
    return float(rising[first]), float(rising[first + count - 1])


def _snapped(bounds: tuple[float, float, float, float], cells: int) -> Grid:
    """Widen bounds to whole raster cells of a round size, about square on the ground."""
    west, south, east, north = bounds
    narrowing = max(math.cos(math.radians(0.5 * (south + north))), 1e-3)
    least = _LEAST_KM / _KM_PER_DEGREE
    height = _round_up(max((north - south) / (cells - 2), (east - west) * narrowing / (cells - 2), least))
    height = min(height, 10.0)  # of the round sizes the largest that divides both 180 and 360
    width = min(_round_up(0.75 * height / narrowing), 10.0)  # three quarters: the nearest round size, not the next
    west, east = _outwards(west, width, -1), _outwards(east, width, 1)
    if east - west >= 360.0:
        west, east = -180.0, 180.0
    if _area((west, south, east, north)) > _WHOLE * _area((-180.0, -90.0, 180.0, 90.0)):
        south, north = -90.0, 90.0
    south, north = max(_outwards(south, height, -1), -90.0), min(_outwards(north, height, 1), 90.0)
    if west >= 180.0:
        west, east = west - 360.0, east - 360.0
    return _grid((west, south, east, north), (width, height), "EPSG:4326")


def _grid(bounds: tuple[float, float, float, float], size: tuple[float, float], crs: str) -> Grid:
    """Raster cells of exactly this size: the bounds are multiples of it, but for rounding."""
    west, south, east, north = bounds
    shape = max(round((north - south) / size[1]), 1), max(round((east - west) / size[0]), 1)
    return Grid(shape, affine.Affine(size[0], 0.0, west, 0.0, -size[1], north), raster_parts.parse_crs(crs))


def _round_up(size: float) -> float:
    """The least of 1, 2, 5, 10, 20, ... (times any power of ten) that is not less."""
    decade = 10.0 ** math.floor(math.log10(size))
    return next(step * decade for step in (1.0, 2.0, 5.0, 10.0) if step * decade >= size * (1.0 - 1e-9))


def _outwards(edge: float, step: float, sign: int) -> float:
    """The next multiple of a step outwards; rounded, so that 0.1 + 0.2 is 0.3."""
    steps = sign * math.ceil(sign * edge / step - 1e-9)
    return round(steps * step, 12)


def _polar_frame(directions: FloatArray, wanted: float, cells: int) -> Grid | None:
    """A square of the polar stereographic map, where the probability lies around a pole."""
    longitude, latitude = sphere.to_longitude_latitude(directions)
    sign = 1 if np.median(latitude) >= 0.0 else -1
    near = sign * latitude >= 90.0 - _POLAR_REACH
    if near.mean() < wanted:
        return None
    west, east = _shortest_arc(longitude, wanted)
    if east - west <= _POLAR_ARC:
        return None
    empty = _grid((0.0, -1.0, 1.0, 0.0), (1.0, 1.0), _POLAR[sign])  # its columns and rows are metres
    x, down = empty.to_pixels(longitude[near], latitude[near])
    share = 0.5 * (1.0 + wanted / float(near.mean()))  # what lies outside, half by x and half by y
    left, right = _shortest_interval(x, share)
    bottom, top = _shortest_interval(-down, share)
    size = _round_up(max((right - left) / (cells - 2), (top - bottom) / (cells - 2), 1000.0 * _LEAST_KM))
    west, south = _outwards(left, size, -1), _outwards(bottom, size, -1)
    east, north = _outwards(right, size, 1), _outwards(top, size, 1)
    return _grid((west, south, east, north), (size, size), _POLAR[sign])
