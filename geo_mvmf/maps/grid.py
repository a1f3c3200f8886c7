"""Grid: the shape, the transform and the CRS of a raster; all raster geometry is here.

Raster cells are numbered by row (from the top) and column (from the left). Distances along the columns are x or
longitude, along the rows y or latitude. A geographic grid is one whose columns are meridians and whose rows are
parallels of WGS 84 (or of a datum within metres of it). A cylindrical grid has meridians and parallels for edges, too,
in units of a cylindrical projection; every other grid goes through its projection.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import affine
import numpy as np
import numpy.typing as npt
import pyproj

from geo_mvmf import sphere
from geo_mvmf.maps import raster_parts

FloatArray = npt.NDArray[np.float64]

_SLACK = 1e-9  # relative: bounds computed by others are not exact


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """The raster cells of a map.

    Parameters
    ----------
    shape : tuple of int
        (rows, columns), at least 1 each.
    transform : affine.Affine or sequence of 6 float
        From (column, row) to (x, y) in units of the CRS, as in rasterio; degrees where the CRS is geographic.
    crs : str, int, pyproj.CRS or anything pyproj reads
        Coordinate reference system; its axes are taken in the order x (longitude), y (latitude) whatever it says.

    Raises
    ------
    ValueError
        The shape is not two numbers >= 1, the transform is not invertible, pyproj does not know the CRS, or a
        geographic grid leaves latitude -90..90 or is wider than 360 degrees.

    Examples
    --------
    >>> grid = Grid(shape=(180, 360), transform=(1, 0, -180, 0, -1, 90), crs="EPSG:4326")
    >>> grid == Grid.globe(1.0)
    True
    """

    shape: tuple[int, int]
    transform: affine.Affine
    crs: pyproj.CRS

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", raster_parts.parse_shape(self.shape))
        object.__setattr__(self, "transform", raster_parts.parse_transform(self.transform))
        object.__setattr__(self, "crs", raster_parts.parse_crs(self.crs))
        if self.is_geographic:
            _check_geographic(*self.edges)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        same = self.shape == other.shape and self.transform == other.transform
        return same and self.crs.equals(other.crs, ignore_axis_order=True)

    def __hash__(self) -> int:
        return hash((self.shape, tuple(self.transform)[:6]))

    def __repr__(self) -> str:
        bounds = ", ".join(f"{value:.9g}" for value in self.bounds)
        return f"Grid({self.shape[0]} x {self.shape[1]}, bounds ({bounds}), {raster_parts.crs_name(self.crs)})"

    @classmethod
    def globe(cls, resolution: float) -> Grid:
        """Cover the whole Earth: longitude -180..180, latitude 90..-90.

        Parameters
        ----------
        resolution : float
            Height and width of a raster cell, degrees; the nearest that divides 180 degrees is taken.

        Raises
        ------
        ValueError
            The resolution is not in 0..90.

        Examples
        --------
        >>> Grid.globe(0.5).shape
        (360, 720)
        """
        raster_parts.check_steps((resolution, resolution), (360.0, 180.0), raster_parts.parse_crs(4326))
        rows = max(1, round(180.0 / resolution))
        return cls(
            (rows, 2 * rows),
            affine.Affine(180.0 / rows, 0.0, -180.0, 0.0, -180.0 / rows, 90.0),
            raster_parts.parse_crs(4326),
        )

    @classmethod
    def from_bounds(
        cls,
        west: float,
        south: float,
        east: float,
        north: float,
        resolution: float | tuple[float, float],
        crs: Any = "EPSG:4326",
    ) -> Grid:
        """Cover a rectangle, rows from north to south.

        Parameters
        ----------
        west, south, east, north : float
            Bounds in units of the CRS; they are kept. On a geographic CRS west > east crosses longitude 180.
        resolution : float or (float, float)
            Width and height of a raster cell in units of the CRS; the nearest that divides the bounds is taken.
        crs : str, int, pyproj.CRS or anything pyproj reads
            Coordinate reference system.

        Raises
        ------
        ValueError
            The bounds are empty or not finite; the resolution is not positive, is larger than the bounds, or is more
            than 90 degrees.

        Examples
        --------
        >>> Grid.from_bounds(177.0, -20.0, -178.0, -15.0, 0.5).shape
        (10, 10)
        """
        parsed = raster_parts.parse_crs(crs)
        if west > east and parsed.is_geographic:
            east += 360.0
        bounds = (west, south, east, north)
        if not (all(math.isfinite(value) for value in bounds) and east > west and north > south):
            raise ValueError(f"bounds west, south, east, north = {bounds} hold nothing")
        width, height = resolution if isinstance(resolution, tuple) else (resolution, resolution)
        raster_parts.check_steps((width, height), (east - west, north - south), parsed)
        columns, rows = max(1, round((east - west) / width)), max(1, round((north - south) / height))
        steps = (east - west) / columns, (south - north) / rows
        return cls((rows, columns), affine.Affine(steps[0], 0.0, west, 0.0, steps[1], north), parsed)

    @classmethod
    def like(cls, source: Any) -> Grid:
        """Take the raster cells of something else.

        Parameters
        ----------
        source : Grid, DataArray, object with shape, transform and crs, or path
            A Grid; an xarray DataArray with evenly spaced x and y (or longitude and latitude), whose CRS is read from
            `spatial_ref` (EPSG:4326 where the dimensions are longitude and latitude and nothing says otherwise); an
            odc GeoBox or an open rasterio dataset; or the path of a raster file.

        Raises
        ------
        ValueError
            The source has no CRS, or its coordinates are not evenly spaced.

        Examples
        --------
        >>> Grid.like(Grid.globe(10.0)).shape
        (18, 36)
        """
        if isinstance(source, Grid):
            return source
        if hasattr(source, "dims") and hasattr(source, "coords"):
            return cls(*raster_parts.parts_of_array(source))
        if isinstance(source, (str, Path)):
            from geo_mvmf.inputs import scenes

            with scenes.open_scene(source) as scene:
                return cls((scene.height, scene.width), scene.transform, scene.crs)
        return cls(*raster_parts.parts_of_raster(source, type(source).__name__))

    @property
    def num_cells(self) -> int:
        """The number of raster cells."""
        return self.shape[0] * self.shape[1]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east, north of all raster cells, in units of the CRS (east may exceed 180)."""
        rows, columns = self.shape
        t = self.transform
        x = [t.c + t.a * column + t.b * row for column in (0, columns) for row in (0, rows)]
        y = [t.f + t.d * column + t.e * row for column in (0, columns) for row in (0, rows)]
        return min(x), min(y), max(x), max(y)

    @property
    def is_rectilinear(self) -> bool:
        """Whether all cells of a column share x and all cells of a row share y (no rotation, no shear)."""
        return self.transform.b == 0.0 and self.transform.d == 0.0

    @functools.cached_property
    def is_geographic(self) -> bool:
        """Whether columns are meridians and rows are parallels of WGS 84, in degrees."""
        return self.is_rectilinear and self.transform.a > 0.0 and raster_parts.is_longitude_latitude(self.crs)

    @property
    def is_cylindrical(self) -> bool:
        """Whether columns are equally wide meridian strips and rows are bounded by parallels, in whatever units.

        So are geographic grids, and those of cylindrical projections such as Web Mercator (EPSG:3857), the
        equal-area EPSG:6933 and plate carree (EPSG:4087), as long as they do not go on beyond the map's own edges in
        longitude.
        """
        return self._degree_edges is not None

    @property
    def degree_edges(self) -> tuple[FloatArray, FloatArray]:
        """Edges of columns, longitude, shape (columns + 1,), and of rows, latitude, shape (rows + 1,), degrees.

        Longitudes are evenly spaced and may exceed 180. Rows beyond a pole are empty: both edges are the pole. Only
        where the grid is cylindrical.
        """
        if self._degree_edges is None:
            raise ValueError(f"{self!r} has no meridians as columns and parallels as rows")
        return self._degree_edges

    @functools.cached_property
    def _degree_edges(self) -> tuple[FloatArray, FloatArray] | None:
        if self.is_geographic:
            return self.edges
        if not self.is_rectilinear or self.transform.a < 0.0 or self.crs.is_geographic:
            return None
        return raster_parts.cylinder_edges(*self.edges, self._unproject)

    @property
    def is_global(self) -> bool:
        """Whether a geographic grid closes around the Earth, so that its last column meets its first."""
        return self.is_geographic and abs(self.shape[1] * self.transform.a - 360.0) <= 360.0 * _SLACK

    @property
    def dims(self) -> tuple[str, str]:
        """Names of the row and the column dimension: latitude, longitude or y, x."""
        return ("latitude", "longitude") if self.is_geographic else ("y", "x")

    @property
    def edges(self) -> tuple[FloatArray, FloatArray]:
        """Edges of columns, shape (columns + 1,), and of rows, shape (rows + 1,), in units of the CRS.

        Rows from the top; latitudes are clipped to -90..90. Only where the grid is rectilinear.
        """
        return self._along(0.0, 1)

    @property
    def centres(self) -> tuple[FloatArray, FloatArray]:
        """Middles of columns, shape (columns,), and of rows, shape (rows,), in units of the CRS."""
        return self._along(0.5, 0)

    def _along(self, shift: float, more: int) -> tuple[FloatArray, FloatArray]:
        if not self.is_rectilinear:
            raise ValueError(f"a grid with transform {tuple(self.transform)[:6]} has no common x along its columns")
        rows, columns = self.shape
        x = self.transform.c + self.transform.a * (np.arange(columns + more) + shift)
        y = self.transform.f + self.transform.e * (np.arange(rows + more) + shift)
        if self.is_geographic:
            y = np.where(np.abs(np.abs(y) - 90.0) <= 90.0 * _SLACK, np.sign(y) * 90.0, y)
        return np.asarray(x), np.asarray(y)

    def window(self, rows: slice, columns: slice) -> Grid:
        """Take some rows and columns.

        Parameters
        ----------
        rows, columns : slice
            Without step.

        Raises
        ------
        ValueError
            The window is empty.

        Examples
        --------
        >>> Grid.globe(1.0).window(slice(0, 10), slice(170, 190)).bounds
        (-10.0, 80.0, 10.0, 90.0)
        """
        top, bottom, _ = rows.indices(self.shape[0])
        left, right, _ = columns.indices(self.shape[1])
        t = self.transform
        x, y = t.c + t.a * left + t.b * top, t.f + t.d * left + t.e * top
        moved = affine.Affine(t.a, t.b, x, t.d, t.e, y)
        return Grid((bottom - top, right - left), moved, self.crs)

    def to_pixels(self, longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Find where places lie on the grid.

        Parameters
        ----------
        longitude, latitude : array_like of float, shape (...)
            Degrees.

        Returns
        -------
        column, row : ndarray of float64, shape (...)
            Fractional: 0 is the left (upper) edge of the first cell. May lie outside the grid; NaN outside the domain
            of the projection. On a geographic grid the column is that of the turn of 360 degrees nearest the grid.

        Examples
        --------
        >>> column, row = Grid.globe(1.0).to_pixels(179.5, 0.0)
        >>> float(column), float(row)
        (359.5, 90.0)
        """
        longitude = np.asarray(longitude, dtype=np.float64)
        latitude = np.asarray(latitude, dtype=np.float64)
        if self.is_geographic:
            width = self.shape[1] * self.transform.a
            start = self.transform.c + width / 2.0 - 180.0
            x, y = start + np.mod(longitude - start, 360.0), latitude
        else:
            x, y = self._from_globe.transform(longitude, latitude)
            x, y = np.where(np.isfinite(x), x, np.nan), np.where(np.isfinite(y), y, np.nan)
        inverse = ~self.transform
        return inverse.a * x + inverse.b * y + inverse.c, inverse.d * x + inverse.e * y + inverse.f

    def to_directions(self, column: npt.ArrayLike, row: npt.ArrayLike) -> FloatArray:
        """Find the direction of points of the grid.

        Parameters
        ----------
        column, row : array_like of float, shapes that broadcast to (...)
            Fractional, as in `to_pixels`.

        Returns
        -------
        ndarray of float64, shape (..., 3)
            Unit vectors; NaN outside the domain of the projection, and where the projection would show a place that it
            shows elsewhere already (the far side of a map that goes on beyond longitude 180).

        Examples
        --------
        >>> Grid.globe(1.0).to_directions(180.0, 0.0).round(12).tolist()
        [0.0, 0.0, 1.0]
        """
        column, row = np.broadcast_arrays(np.asarray(column, dtype=np.float64), np.asarray(row, dtype=np.float64))
        t = self.transform
        x, y = t.a * column + t.b * row + t.c, t.d * column + t.e * row + t.f
        if self.is_geographic:
            return sphere.to_directions(x, np.clip(y, -90.0, 90.0))
        longitude, latitude = self._unproject(x, y)
        return sphere.to_directions(longitude, latitude)

    def _unproject(self, x: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        longitude, latitude = self._to_globe.transform(x, y)
        back_x, back_y = self._from_globe.transform(longitude, latitude)
        cell = math.hypot(self.transform.a, self.transform.d) + math.hypot(self.transform.b, self.transform.e)
        with np.errstate(invalid="ignore"):
            # a map that goes on beyond its domain comes back elsewhere
            returned = np.hypot(back_x - x, back_y - y) <= 1e-6 * cell + 1e-11 * (np.abs(x) + np.abs(y))
        inside = returned & (np.abs(latitude) <= 90.0)
        return np.where(inside, longitude, np.nan), np.where(inside, latitude, np.nan)

    def longitude_latitude(self) -> tuple[FloatArray, FloatArray]:
        """Give the middles of all raster cells.

        Returns
        -------
        longitude, latitude : ndarray of float64, shape (rows, columns)
            Degrees, longitude in [-180, 180); NaN outside the domain of the projection.

        Examples
        --------
        >>> longitude, latitude = Grid.globe(90.0).longitude_latitude()
        >>> longitude[0].tolist(), latitude[:, 0].tolist()
        ([-135.0, -45.0, 45.0, 135.0], [45.0, -45.0])
        """
        rows, columns = self.shape
        if self.is_geographic:
            x, y = self.centres
            wrapped = np.mod(x + 180.0, 360.0) - 180.0
            longitude, latitude = (np.asarray(part, dtype=np.float64) for part in np.meshgrid(wrapped, y))
            return longitude, latitude
        row, column = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
        return sphere.to_longitude_latitude(self.to_directions(column, row))

    @functools.cached_property
    def _to_globe(self) -> pyproj.Transformer:
        return pyproj.Transformer.from_crs(self.crs, "OGC:CRS84", always_xy=True)

    @functools.cached_property
    def _from_globe(self) -> pyproj.Transformer:
        return pyproj.Transformer.from_crs("OGC:CRS84", self.crs, always_xy=True)


def _check_geographic(x: FloatArray, y: FloatArray) -> None:
    if np.max(np.abs(y)) > 90.0:
        raise ValueError(f"the rows go from latitude {y[0]} to {y[-1]}, beyond -90..90")
    if x[-1] - x[0] > 360.0 * (1.0 + _SLACK):
        raise ValueError(f"the columns go from longitude {x[0]} to {x[-1]}, more than once around the Earth")
