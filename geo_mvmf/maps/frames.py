"""Frames: the grid that shows nearly all of one density's probability, with raster cells of a round size.

A frame is a rectangle of longitude and latitude whose raster cells are about square on the ground; across longitude 180
its east exceeds 180. Where the probability lies around a pole, meridians would tear it apart: there the frame is one of
the polar stereographic map (EPSG:3995 in the north, EPSG:3031 in the south). In a CRS that somebody chose a frame is a
rectangle of x and y.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import affine
import numpy as np
import numpy.typing as npt
import pyproj

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.maps import raster_parts
from geo_mvmf.maps.beyond import placed
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_SAMPLES = 100_000  # in all: the share of probability outside is known to 3e-4
_SPARE = 3.0  # standard errors by which the samples hold more than is wanted
_TRIES = 9  # ways to divide what lies outside between longitude and latitude
_WHOLE = 0.95  # share of the sphere from which a frame is all of it
_POLAR_REACH = 40.0  # degrees from a pole within which a frame may be polar
_POLAR_ARC = 90.0  # degrees of longitude beyond which it is
_KM_PER_DEGREE = sphere.EARTH_RADIUS_KM * math.pi / 180.0
_LEAST_KM = 0.01  # a raster cell of 10 m: less than any density's width
_POLAR = {1: "EPSG:3995", -1: "EPSG:3031"}
_UNIT = 1000.0  # of a CRS: places are projected in it, and come back to within a thousandth of it


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a grid that finds its own window is to show; `grid="auto"` is ``Frame()``.

    Parameters
    ----------
    probability : float
        What the grid has to hold, 0..0.999; of all rectangles tried the smallest is taken.
    cells : int
        About how many raster cells the longer side may have; their height is the least of 1, 2, 5, 10, 20, 50, ... that
        keeps to it.
    crs : str, int, pyproj.CRS or anything pyproj reads, optional
        Coordinate reference system; default EPSG:4326, or polar stereographic where most lies around a pole.
    resolution : float, optional
        Height and width of a raster cell in units of the CRS, in place of what follows from `cells`.
    seed : int
        The rectangle is found from samples; the same seed gives the same one.

    Raises
    ------
    BadInputError
        The probability, the number of raster cells or the resolution is out of range.
    ValueError
        pyproj does not know the CRS.

    Examples
    --------
    >>> grid = Frame().of(VmfMixture(sphere.to_directions([180.0], [0.0]), [16.0], [[0.0]]))
    >>> [round(edge, 1) for edge in grid.bounds], grid.transform.a
    ([179.9, -0.1, 180.1, 0.1], 0.0005)
    >>> Frame(crs="EPSG:3035", resolution=5000.0).of(VmfMixture(sphere.to_directions([9.0], [52.0]), [12.0], [[0.0]]))
    Grid(19 x 19, bounds (4205000, 3160000, 4300000, 3255000), EPSG:3035)
    """

    probability: float = 0.99
    cells: int = 512
    crs: Any = None
    resolution: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.probability <= 0.999:
            raise BadInputError(f"probability {self.probability!r} of a frame is not in 0..0.999")
        if self.cells < 8:
            raise BadInputError(f"a frame of {self.cells} raster cells shows nothing; 8 is the least")
        if self.crs is not None:
            object.__setattr__(self, "crs", raster_parts.parse_crs(self.crs))
        if self.resolution is not None and not 0.0 < self.resolution < math.inf:
            raise BadInputError(f"resolution {self.resolution!r} of a frame is not a positive number")

    def of(self, mixture: VmfMixture | CellMixture) -> Grid:
        """Find the grid that shows most of the probability of a density.

        Parameters
        ----------
        mixture : VmfMixture or CellMixture
            One image, or several whose mean is meant.

        Returns
        -------
        Grid
            In the CRS of the frame.

        Raises
        ------
        BadInputError
            There is no image, the CRS cannot show so much of the probability, or the raster would be too large.

        Examples
        --------
        See `Frame`.
        """
        if not len(mixture):
            raise BadInputError("a frame of 0 images: there is no density to show; give at least one image")
        directions = mixture.sample(max(_SAMPLES // len(mixture), 1), seed=self.seed).reshape(-1, 3)
        spread = math.sqrt(self.probability * (1.0 - self.probability) / len(directions))
        wanted = self.probability + _SPARE * spread
        try:
            if self.crs is not None and not self.crs.is_geographic:
                return self._projected(directions, wanted, self.crs)
            polar = self._polar(directions, wanted) if self.crs is None else None
            return polar or self._geographic(directions, wanted)
        except ValueError as error:  # a grid's own word for what a resolution makes of it
            raise BadInputError(str(error)) from error

    def _geographic(self, directions: FloatArray, wanted: float) -> Grid:
        longitude, latitude = sphere.to_longitude_latitude(directions)
        found = []
        for outside in np.linspace(0.0, 1.0 - wanted, _TRIES):
            west, east = _shortest_arc(longitude, 1.0 - float(outside))
            inside = np.mod(longitude - west, 360.0) <= east - west
            south, north = _shortest_interval(latitude[inside], wanted / float(inside.mean()))
            found.append((west, south, east, north))
        west, south, east, north = min(found, key=_area)
        narrowing = max(math.cos(math.radians(0.5 * (south + north))), 1e-3)
        least = _LEAST_KM / _KM_PER_DEGREE
        fewest = self.cells - 2
        height = _round_up(max((north - south) / fewest, (east - west) * narrowing / fewest, least))
        height = min(height, 10.0)  # of the round sizes the largest that divides both 180 and 360
        width = min(_round_up(0.75 * height / narrowing), 10.0)  # three quarters: the nearest, not the next
        size = (width, height) if self.resolution is None else (self.resolution, self.resolution)
        return _snapped((west, south, east, north), size, self.crs or raster_parts.parse_crs(4326))

    def _polar(self, directions: FloatArray, wanted: float) -> Grid | None:
        """A rectangle of the polar stereographic map, where the probability lies around a pole."""
        longitude, latitude = sphere.to_longitude_latitude(directions)
        sign = 1 if np.median(latitude) >= 0.0 else -1
        near = sign * latitude >= 90.0 - _POLAR_REACH
        west, east = _shortest_arc(longitude, wanted)
        if near.mean() < wanted or east - west <= _POLAR_ARC:
            return None
        return self._projected(directions, wanted, raster_parts.parse_crs(_POLAR[sign]), near)

    def _projected(
        self, directions: FloatArray, wanted: float, crs: pyproj.CRS, shown: BoolArray | None = None
    ) -> Grid:
        """A rectangle of x and y."""
        units = Grid.from_bounds(0.0, 0.0, _UNIT, _UNIT, _UNIT, crs=crs)
        column, row = placed(units, directions)
        shown = np.isfinite(column) if shown is None else shown
        if shown.mean() < wanted:
            raise BadInputError(_not_shown(crs, float(shown.mean()), self.probability))
        x, y = _UNIT * column[shown], _UNIT * (1.0 - row[shown])
        share = 0.5 * (1.0 + wanted / float(shown.mean()))  # what lies outside, half by x and half by y
        (left, right), (bottom, top) = _shortest_interval(x, share), _shortest_interval(y, share)
        least = 1000.0 * _LEAST_KM / crs.axis_info[0].unit_conversion_factor
        fewest = self.cells - 2
        size = self.resolution or _round_up(max((right - left) / fewest, (top - bottom) / fewest, least))
        west, south = _outwards(left, size, -1), _outwards(bottom, size, -1)
        east, north = _outwards(right, size, 1), _outwards(top, size, 1)
        return _grid((west, south, east, north), (size, size), crs)


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


def _snapped(bounds: tuple[float, float, float, float], size: tuple[float, float], crs: pyproj.CRS) -> Grid:
    """Widen bounds in degrees to whole raster cells."""
    (west, south, east, north), (width, height) = bounds, size
    west, east = _outwards(west, width, -1), _outwards(east, width, 1)
    if east - west >= 360.0:
        west, east = -180.0, 180.0
    if _area((west, south, east, north)) > _WHOLE * _area((-180.0, -90.0, 180.0, 90.0)):
        south, north = -90.0, 90.0
    south, north = max(_outwards(south, height, -1), -90.0), min(_outwards(north, height, 1), 90.0)
    if west >= 180.0:
        west, east = west - 360.0, east - 360.0
    return _grid((west, south, east, north), size, crs)


def _grid(bounds: tuple[float, float, float, float], size: tuple[float, float], crs: pyproj.CRS) -> Grid:
    """Raster cells of exactly this size, but for edges of the Earth that are no multiples of it."""
    grid = Grid.from_bounds(*bounds, size, crs=crs)
    west, _, _, north = bounds
    if not np.allclose((grid.transform.a, -grid.transform.e), size, rtol=1e-9):
        return grid
    return Grid(grid.shape, affine.Affine(size[0], 0.0, west, 0.0, -size[1], north), crs)  # without rounding


def _round_up(size: float) -> float:
    """The least of 1, 2, 5, 10, 20, ... (times any power of ten) that is not less."""
    decade = 10.0 ** math.floor(math.log10(size))
    return next(step * decade for step in (1.0, 2.0, 5.0, 10.0) if step * decade >= size * (1.0 - 1e-9))


def _outwards(edge: float, step: float, sign: int) -> float:
    """The next multiple of a step outwards; rounded, so that 0.1 + 0.2 is 0.3."""
    steps = sign * math.ceil(sign * edge / step - 1e-9)
    return round(steps * step, 12)


def _not_shown(crs: pyproj.CRS, share: float, probability: float) -> str:
    """Say how little of a density a CRS can show, and where it can."""
    area = raster_parts.area_of_use(crs)
    made_for = f"; it is made for {area}" if area else ""
    return (
        f"{raster_parts.crs_name(crs)} can show {share:.0%} of the probability, and the window has to hold "
        f"{probability:.0%}: give bounds, or another CRS{made_for}"
    )
