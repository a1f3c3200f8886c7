"""Where the cells of a raster lie on Earth: raster coordinates <-> longitude and latitude.

Raster coordinates are (column, row), (0, 0) being the outer corner of the first raster cell. Where x is a longitude,
columns go on around the Earth, so a raster has no edge at longitude 180 if it reaches all the way round.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from rasterio.transform import Affine

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.antimeridian import to_longitude_latitude_polygon
from geo_mvmf.inputs.coordinate_systems import CRS84, is_crs84, network_off
from geo_mvmf.inputs.placement import Bounds, apply_transform

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_TURN_TOLERANCE = 0.01  # raster cells: the resolution in a file is rounded
_EDGE_STEPS = 256  # points along each edge of an outline


class EarthFrame:
    """The place of a raster on Earth.

    Parameters
    ----------
    crs : pyproj.CRS
    transform : Affine
        (column, row) -> (x, y).
    height, width : int
        In raster cells.

    Attributes
    ----------
    bounds : (west, south, east, north)
        Outer edges in units of the CRS.
    turn : float or None
        Columns once around the Earth, where x is a longitude.
    wrap : int or None
        The same where the raster goes around the Earth: column c is then column c + wrap.

    Raises
    ------
    BadInputError
        If the CRS cannot be related to longitude and latitude.

    Examples
    --------
    >>> frame = EarthFrame(pyproj.CRS(CRS84), Affine(10.0, 0.0, -180.0, 0.0, -10.0, 90.0), 18, 36)
    >>> frame.wrap, frame.centre(), frame.outline().bounds
    (36, (0.0, 0.0), (-180.0, -90.0, 180.0, 90.0))
    """

    def __init__(self, crs: pyproj.CRS, transform: Affine, height: int, width: int) -> None:
        self.crs, self.transform, self.height, self.width = crs, transform, height, width
        self._to_cells = ~transform
        self._to_crs, self._from_crs = _transformers(crs)
        self.turn = _columns_around(crs, transform)
        self.wrap = _whole_turn(self.turn, width)
        x, y = apply_transform(transform, [0, width, 0, width], [0, 0, height, height])
        self.bounds: Bounds = (float(x.min()), float(y.min()), float(x.max()), float(y.max()))

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
        x, y = (lam, phi) if self._to_crs is None else self._to_crs.transform(lam, phi)
        with np.errstate(invalid="ignore"):  # infinite off the domain of the CRS
            column, row = apply_transform(self._to_cells, x, y)
        if self.turn is not None:
            column = column % self.turn
        return column, row

    def to_places(self, column: npt.ArrayLike, row: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Give the places of raster coordinates.

        Parameters
        ----------
        column, row : array_like of float, shapes that broadcast to (...)

        Returns
        -------
        longitude, latitude : ndarray of float64, shape (...)
            Degrees; longitudes of a geographic raster go on beyond 180. Not finite off the Earth.
        """
        x, y = apply_transform(self.transform, column, row)
        longitude, latitude = (x, y) if self._from_crs is None else self._from_crs.transform(x, y)
        return np.asarray(longitude), np.asarray(latitude)

    def centre(self) -> tuple[float, float]:
        """Give longitude and latitude of the raster's middle.

        Raises
        ------
        BadInputError
            If it is no place on Earth.
        """
        longitude, latitude = (float(value) for value in self.to_places(self.width / 2.0, self.height / 2.0))
        if not (math.isfinite(longitude) and -90.0 <= latitude <= 90.0):
            raise BadInputError(f"the raster's middle ({longitude}, {latitude}) is no place on Earth: wrong CRS?")
        return (longitude + 180.0) % 360.0 - 180.0, latitude

    def ground_size_km(self) -> tuple[float, float]:
        """Measure the middle row and the middle column on the sphere, in kilometres."""
        ticks, middle = np.linspace(0.0, 1.0, _EDGE_STEPS + 1), np.full(_EDGE_STEPS + 1, 0.5)
        return self._length_km(ticks, middle), self._length_km(middle, ticks)

    def cell_size_km(self) -> float:
        """Measure the side of a square as large as the raster cell in the middle, in kilometres."""
        middle, across = np.full(2, 0.5), 0.5 + np.array([-0.5, 0.5]) / self.width
        down = 0.5 + np.array([-0.5, 0.5]) / self.height
        return math.sqrt(self._length_km(across, middle) * self._length_km(middle, down))

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

    def to_cells_about(
        self, directions: FloatArray, longitude: float, latitude: float
    ) -> tuple[FloatArray, FloatArray]:
        """Give the raster coordinates of places near a centre.

        Parameters
        ----------
        directions : ndarray, shape (..., 3)
            Unit vectors.
        longitude, latitude : float
            The centre, degrees.

        Returns
        -------
        column, row : ndarray of float64, shape (...)
            Where x is a longitude, half a turn to both sides of the centre (of the raster's middle without `wrap`).
        """
        columns, rows = self.to_cells(*sphere.to_longitude_latitude(directions))
        if self.turn is not None:
            middle = self.width / 2.0 if self.wrap is None else float(self.to_cells(longitude, latitude)[0])
            columns = middle + (columns - middle + self.turn / 2.0) % self.turn - self.turn / 2.0
        return columns, rows

    def outline(self) -> shapely.Geometry:
        """Give the outline of the raster on Earth.

        Returns
        -------
        Polygon or MultiPolygon
            OGC:CRS84, split at longitude 180 and closed over a pole that lies inside; edges follow the raster's. The
            whole Earth where a corner lies off the Earth (a world map in an oval projection).
        """
        ticks = np.linspace(0.0, 1.0, _EDGE_STEPS, endpoint=False)
        zero, one = np.zeros_like(ticks), np.ones_like(ticks)
        columns = np.concatenate([ticks, one, 1.0 - ticks, zero]) * self.width
        rows = np.concatenate([zero, ticks, one, 1.0 - ticks]) * self.height
        longitude, latitude = self.to_places(columns, rows)
        if not (np.isfinite(longitude).all() and np.isfinite(latitude).all()):
            return shapely.box(-180.0, -90.0, 180.0, 90.0)
        if self.turn is not None and self.width > self.turn - _TURN_TOLERANCE:
            south, north = np.clip([latitude.min(), latitude.max()], -90.0, 90.0)
            return shapely.box(-180.0, float(south), 180.0, float(north))
        edge = shapely.Polygon(np.column_stack([columns, rows]))
        return to_longitude_latitude_polygon(edge, self.to_places, lambda _: self._pole_inside())

    def _pole_inside(self) -> float:
        inside = [pole for pole in (90.0, -90.0) if self.contains(0.0, pole)]
        return inside[0] if len(inside) == 1 else 0.0

    def _length_km(self, across: FloatArray, down: FloatArray) -> float:
        """Length of a line given in shares of width and height; what lies off the Earth does not count."""
        longitude, latitude = self.to_places(across * self.width, down * self.height)
        usable = np.isfinite(longitude) & np.isfinite(latitude)
        lam, phi = longitude[usable], latitude[usable]
        return float(sphere.great_circle_distance_km(lam[:-1], phi[:-1], lam[1:], phi[1:]).sum())


def _horizontal(crs: pyproj.CRS) -> pyproj.CRS:
    return crs.sub_crs_list[0] if crs.is_compound else crs


def _transformers(crs: pyproj.CRS) -> tuple[Any, Any]:
    """From OGC:CRS84 to the CRS and back; None where they are the same."""
    flat = _horizontal(crs)
    if is_crs84(flat):
        return None, None
    try:
        with network_off():
            there = pyproj.Transformer.from_crs(CRS84, flat, always_xy=True)
            return there, pyproj.Transformer.from_crs(flat, CRS84, always_xy=True)
    except pyproj.exceptions.ProjError as error:
        raise BadInputError(f"CRS {crs.name!r} cannot be related to longitude and latitude") from error


def _columns_around(crs: pyproj.CRS, transform: Affine) -> float | None:
    """Columns once around the Earth; None where x is no longitude."""
    flat = _horizontal(crs)
    if not flat.is_geographic or transform.b != 0.0 or transform.d != 0.0:
        return None
    return float(2.0 * math.pi / flat.axis_info[0].unit_conversion_factor / abs(transform.a))


def _whole_turn(turn: float | None, width: int) -> int | None:
    """Columns once around the Earth, where that is a whole number and the raster is more than half of it."""
    if turn is None or abs(turn - round(turn)) > _TURN_TOLERANCE or width < turn / 2.0:
        return None
    return round(turn)
