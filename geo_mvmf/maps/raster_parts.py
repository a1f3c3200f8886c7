"""The three parts of a grid (shape, transform, CRS), read from whatever has them and checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import affine
import numpy as np
import numpy.typing as npt
import pyproj

FloatArray = npt.NDArray[np.float64]
Parts = tuple[Any, Any, Any]

MAX_CELLS = 1 << 31  # numbers of raster cells fit an int32 below this
_INSIDE = 1e-9  # of the width of a grid: bounds computed by others may lie a little beyond a map's edge
_PROBES = 17  # points along a parallel: less than half a turn from one to the next
_STRAIGHT = 1e-9  # degrees: meridians and parallels are straight lines of the grid within this, 0.1 mm
_MOST_DEGREES = 90.0  # height and width of a raster cell
_SAME_DATUM = 1e-4  # degrees: WGS 84, ETRS89, NAD83 agree within this, older datums do not


def crs_name(crs: pyproj.CRS) -> str:
    """Name a CRS briefly: its authority code where it has one.

    Examples
    --------
    >>> crs_name(pyproj.CRS(3857))
    'EPSG:3857'
    """
    authority = crs.to_authority()
    return f"{authority[0]}:{authority[1]}" if authority else crs.name


def area_of_use(crs: pyproj.CRS) -> str:
    """Say in degrees which part of the Earth a CRS is made for; empty where it does not say.

    Examples
    --------
    >>> area_of_use(pyproj.CRS(28992))
    'longitudes 3.2 to 7.22, latitudes 50.75 to 53.7'
    """
    area = crs.area_of_use
    if area is None:
        return ""
    return f"longitudes {area.west:g} to {area.east:g}, latitudes {area.south:g} to {area.north:g}"


def parse_shape(shape: Any) -> tuple[int, int]:
    """Check a shape (rows, columns).

    Raises
    ------
    ValueError
        It is not two whole numbers >= 1, or holds 2^31 raster cells or more.

    Examples
    --------
    >>> parse_shape([2, 3])
    (2, 3)
    """
    numbers = tuple(shape)
    if len(numbers) != 2 or any(int(number) != number or number < 1 for number in numbers):
        raise ValueError(f"shape {numbers} is not (rows, columns) with at least 1 each")
    rows, columns = int(numbers[0]), int(numbers[1])
    if rows * columns >= MAX_CELLS:
        raise ValueError(f"shape {numbers} has {rows * columns} raster cells, more than {MAX_CELLS}; take a window")
    return rows, columns


def check_steps(steps: tuple[float, float], sides: tuple[float, float], crs: pyproj.CRS) -> None:
    """Check the size of raster cells that somebody wrote: metres in place of degrees would make a map of one cell.

    Parameters
    ----------
    steps : (float, float)
        Width and height of a raster cell in units of the CRS.
    sides : (float, float)
        Width and height of the bounds.
    crs : pyproj.CRS

    Raises
    ------
    ValueError
        They are not positive, a cell is larger than the bounds both ways, or it is more than 90 degrees.

    Examples
    --------
    >>> check_steps((1.0, 1.0), (20.0, 0.5), pyproj.CRS(4326))
    """
    texts = [f"{step:g}" for step in steps]
    shown = texts[0] if texts[0] == texts[1] else f"({', '.join(texts)})"
    if not (steps[0] > 0.0 and steps[1] > 0.0):
        raise ValueError(f"resolution {shown} is not positive")
    unit = "degrees" if crs.is_geographic else "units"
    advice = "; for metres, take a CRS in metres (crs=, --crs), and bounds in it" if crs.is_geographic else ""
    if crs.is_geographic and max(steps) > _MOST_DEGREES:
        raise ValueError(
            f"resolution {shown}: degrees of {crs_name(crs)} are wanted, {_MOST_DEGREES:g} at most{advice}"
        )
    if all(step > side * (1.0 + _INSIDE) for step, side in zip(steps, sides, strict=True)):
        raise ValueError(
            f"resolution {shown} in {unit} of {crs_name(crs)} makes one raster cell larger than the bounds, "
            f"{sides[0]:g} by {sides[1]:g} {unit}{advice}"
        )


def parse_transform(transform: Any) -> affine.Affine:
    """Check a transform: six numbers a, b, c, d, e, f as in rasterio.

    Raises
    ------
    ValueError
        It is not six finite numbers, or raster cells would have no area.

    Examples
    --------
    >>> parse_transform((1, 0, -180, 0, -1, 90)).c
    -180.0
    """
    numbers = [float(number) for number in tuple(transform)[:6]]
    if len(numbers) != 6 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"transform {tuple(transform)} is not six finite numbers a, b, c, d, e, f")
    result = affine.Affine(*numbers)
    if result.determinant == 0.0:
        raise ValueError(f"transform {tuple(numbers)} gives raster cells without area")
    return result


def parse_crs(crs: Any) -> pyproj.CRS:
    """Read a coordinate reference system.

    Raises
    ------
    ValueError
        pyproj does not know it, or it is none of a map.

    Examples
    --------
    >>> crs_name(parse_crs("OGC:CRS84"))
    'OGC:CRS84'
    """
    try:
        found = pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(f"{crs!r} is not a coordinate reference system that pyproj knows: {error}") from error
    if found.is_geocentric or found.is_vertical or found.is_engineering:
        raise ValueError(f"{crs_name(found)} ({found.name}) has no longitude and latitude, and no x and y of a map")
    return found


@functools.lru_cache(maxsize=64)
def is_longitude_latitude(crs: pyproj.CRS) -> bool:
    """Say whether a geographic CRS counts degrees from Greenwich on a datum within metres of WGS 84.

    Examples
    --------
    >>> is_longitude_latitude(pyproj.CRS(4258)), is_longitude_latitude(pyproj.CRS(4230))
    (True, False)
    """
    if not crs.is_geographic or any("degree" not in axis.unit_name for axis in crs.axis_info[:2]):
        return False
    probes = np.array([[0.0, 0.0], [10.0, 50.0], [-100.0, 40.0], [140.0, -30.0]])
    moved = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform(*probes.T)
    return bool(np.all(np.abs(np.stack(moved, axis=-1) - probes) < _SAME_DATUM))


def cylinder_edges(
    x: FloatArray, y: FloatArray, unproject: Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]
) -> tuple[FloatArray, FloatArray] | None:
    """Find the meridians and parallels that bound the columns and rows of a cylindrical projection.

    Nothing is known of the projection but where it puts points: if longitude goes with x alone, evenly, and latitude
    with y alone, it is a cylinder.

    Parameters
    ----------
    x, y : ndarray of float64, shapes (columns + 1,), (rows + 1,)
        Edges in units of the CRS; x rising.
    unproject : callable
        From x and y (n,) to longitude and latitude (n,) in degrees, NaN outside the domain.

    Returns
    -------
    longitude, latitude : ndarray of float64, shapes as x and y, or None
        Degrees, longitude evenly spaced; edges beyond a pole are the pole. None for every other projection, where
        the grid goes on beyond the meridian at which the map ends, and where fewer than two rows' edges are on it.

    Examples
    --------
    >>> def plate_carree(x, y):
    ...     return x / 2.0, np.where(np.abs(y) <= 180.0, y / 2.0, np.nan)
    >>> cylinder_edges(np.array([0.0, 20.0]), np.array([190.0, 170.0, 0.0]), plate_carree)
    (array([ 0., 10.]), array([90., 85.,  0.]))
    """
    _, latitude = unproject(np.full(y.shape, x.mean()), y)
    known = np.isfinite(latitude)
    if known.sum() < 2:  # from one alone it is not known which way the north is
        return None
    slack = _INSIDE * (x[-1] - x[0])
    across = np.linspace(x[0] + slack, x[-1] - slack, _PROBES)
    # meridians on three parallels, parallels on three meridians: what bends shows it there
    rows = np.flatnonzero(known)[[0, -1]]
    heights = np.append(y[rows], y[rows].mean())
    turns = np.stack([unproject(across, np.full(_PROBES, height))[0] for height in heights])
    longitudes = np.unwrap(turns, period=360.0, axis=1)
    sides = np.stack([unproject(np.full(y.shape, side), y)[1] for side in across[[0, -1]]])
    slope = (longitudes[-1, -1] - longitudes[-1, 0]) / (across[-1] - across[0])
    centre = longitudes[-1, _PROBES // 2]
    # on a pole itself, where the map may show one, every longitude is right
    straight = np.append(np.abs(latitude[rows]) <= 90.0 - 1e-6, True)
    bent = np.abs(longitudes - centre - slope * (across - across[_PROBES // 2]))[straight].max()
    tilted = np.abs(sides - latitude)[:, known].max()
    longitude = centre + slope * (x - across[_PROBES // 2])
    width = longitude[-1] - longitude[0]
    if not (bent <= _STRAIGHT and tilted <= _STRAIGHT and 0.0 < width <= 360.0 * (1.0 + _INSIDE)):
        return None
    return longitude, _to_the_poles(latitude, known)


def _to_the_poles(latitude: FloatArray, known: npt.NDArray[np.bool_]) -> FloatArray:
    """Put edges beyond the domain of a cylinder at the pole where it ends."""
    (inside,) = np.nonzero(known)
    first, last = int(inside[0]), int(inside[-1])
    rises = latitude[last] > latitude[first]
    result = latitude.copy()
    result[:first] = -90.0 if rises else 90.0
    result[last + 1 :] = 90.0 if rises else -90.0
    return result


def parts_of_raster(source: Any, name: str) -> Parts:
    """Take shape, transform and CRS of something that has them.

    Parameters
    ----------
    source : object with shape, transform and crs
        An open raster, or an odc GeoBox.
    name : str
        What to call it in a message.

    Raises
    ------
    ValueError
        One is missing or None.
    """
    missing = [part for part in ("shape", "transform", "crs") if getattr(source, part, None) is None]
    if missing:
        raise ValueError(f"{name} has no {' and no '.join(missing)}: give a raster with a CRS, or a Grid")
    return tuple(source.shape[-2:]), source.transform, source.crs


def parts_of_array(array: Any) -> Parts:
    """Take shape, transform and CRS of an xarray DataArray, from its coordinates and `spatial_ref`.

    Raises
    ------
    ValueError
        It has no CRS, no coordinates, or coordinates that are not evenly spaced.
    """
    names = [str(name) for name in array.dims[-2:]]
    missing = [name for name in names if name not in array.coords]
    if missing or len(names) < 2:
        raise ValueError(f"the array with dimensions {names} has no coordinates {missing}: give a Grid")
    rows, columns = (np.asarray(array.coords[name], dtype=np.float64) for name in names)
    attributes = dict(array.coords["spatial_ref"].attrs) if "spatial_ref" in array.coords else {}
    geographic = names[0] in {"latitude", "lat"} and names[1] in {"longitude", "lon"}
    crs = attributes.get("crs_wkt", attributes.get("spatial_ref", "EPSG:4326" if geographic else None))
    if crs is None:
        raise ValueError(
            f"the array with dimensions {names} has no spatial_ref with a CRS: open its file with "
            "xarray.open_dataset(path, decode_coords='all'), add one, or give a Grid"
        )
    x, width = _even(columns, names[1])
    y, height = _even(rows, names[0])
    stored = _stored_transform(attributes, x, y, width, height)
    if stored is not None:
        return (rows.size, columns.size), stored, crs
    if not (width and height):
        shape = f"{rows.size} x {columns.size}"
        raise ValueError(f"the array has {shape} values and no fitting GeoTransform: its cells have no size")
    return (rows.size, columns.size), affine.Affine(width, 0, x - width / 2, 0, height, y - height / 2), crs


def _stored_transform(
    attributes: dict[Any, Any], x: float, y: float, width: float, height: float
) -> affine.Affine | None:
    """Give the GeoTransform where it fits the coordinates (of a cut-out array it may be that of the whole).

    It is exact where coordinates are rounded, and knows the size of a single row or column (width or height 0).
    """
    numbers = [float(number) for number in str(attributes.get("GeoTransform", "")).split()]
    if len(numbers) != 6:
        return None
    exact = affine.Affine.from_gdal(*numbers)
    steps = exact.a, exact.e
    same = all(
        found in (0.0, step) or abs(found - step) <= 1e-6 * abs(step)
        for found, step in zip((width, height), steps, strict=True)
    )
    origin = abs(exact.c + exact.a / 2 - x) <= 1e-3 * abs(exact.a) and abs(exact.f + exact.e / 2 - y) <= 1e-3 * abs(
        exact.e
    )
    return exact if same and origin and exact.b == exact.d == 0.0 else None


def _even(values: FloatArray, name: str) -> tuple[float, float]:
    """First value and step of evenly spaced coordinates; step 0 where there is one."""
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"coordinate {name} has shape {values.shape}, not (n,)")
    if values.size == 1:
        return float(values[0]), 0.0
    step = float(values[-1] - values[0]) / (values.size - 1)
    drift = np.abs(values - (values[0] + step * np.arange(values.size))).max()
    if not drift <= 1e-3 * abs(step):
        raise ValueError(f"coordinate {name} is not evenly spaced: off by {drift} of a step of {step}")
    return float(values[0]), step
