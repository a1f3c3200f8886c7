"""The three parts of a grid (shape, transform, CRS), read from whatever has them and checked."""

from __future__ import annotations

import functools
import math
from typing import Any

import affine
import numpy as np
import numpy.typing as npt
import pyproj

FloatArray = npt.NDArray[np.float64]
Parts = tuple[Any, Any, Any]

MAX_CELLS = 1 << 31  # numbers of raster cells fit an int32 below this
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


def parse_shape(shape: Any) -> tuple[int, int]:
    numbers = tuple(shape)
    if len(numbers) != 2 or any(int(number) != number or number < 1 for number in numbers):
        raise ValueError(f"shape {numbers} is not (rows, columns) with at least 1 each")
    rows, columns = int(numbers[0]), int(numbers[1])
    if rows * columns >= MAX_CELLS:
        raise ValueError(f"shape {numbers} has {rows * columns} raster cells, more than {MAX_CELLS}; take a window")
    return rows, columns


def parse_transform(transform: Any) -> affine.Affine:
    numbers = [float(number) for number in tuple(transform)[:6]]
    if len(numbers) != 6 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"transform {tuple(transform)} is not six finite numbers a, b, c, d, e, f")
    result = affine.Affine(*numbers)
    if result.determinant == 0.0:
        raise ValueError(f"transform {tuple(numbers)} gives raster cells without area")
    return result


def parse_crs(crs: Any) -> pyproj.CRS:
    try:
        return pyproj.CRS.from_user_input(crs)
    except pyproj.exceptions.CRSError as error:
        raise ValueError(f"{crs!r} is not a coordinate reference system that pyproj knows: {error}") from error


@functools.lru_cache(maxsize=64)
def is_longitude_latitude(crs: pyproj.CRS) -> bool:
    """Whether a geographic CRS counts degrees from Greenwich on a datum within metres of WGS 84."""
    if not crs.is_geographic or any("degree" not in axis.unit_name for axis in crs.axis_info[:2]):
        return False
    probes = np.array([[0.0, 0.0], [10.0, 50.0], [-100.0, 40.0], [140.0, -30.0]])
    moved = pyproj.Transformer.from_crs(crs, "OGC:CRS84", always_xy=True).transform(*probes.T)
    return bool(np.all(np.abs(np.stack(moved, axis=-1) - probes) < _SAME_DATUM))


def parts_of_raster(source: Any, name: str) -> Parts:
    missing = [part for part in ("shape", "transform", "crs") if getattr(source, part, None) is None]
    if missing:
        raise ValueError(f"{name} has no {' and no '.join(missing)}: give a raster with a CRS, or a Grid")
    return tuple(source.shape[-2:]), source.transform, source.crs


def parts_of_array(array: Any) -> Parts:
    names = [str(name) for name in array.dims[-2:]]
    rows, columns = (np.asarray(array.coords[name], dtype=np.float64) for name in names)
    attributes = dict(array.coords["spatial_ref"].attrs) if "spatial_ref" in array.coords else {}
    geographic = names[0] in {"latitude", "lat"} and names[1] in {"longitude", "lon"}
    crs = attributes.get("crs_wkt", attributes.get("spatial_ref", "EPSG:4326" if geographic else None))
    if crs is None:
        raise ValueError(f"the array with dimensions {names} has no spatial_ref with a CRS: add one, or give a Grid")
    x, width = _even(columns, names[1])
    y, height = _even(rows, names[0])
    stored = str(attributes.get("GeoTransform", "")).split()
    if len(stored) == 6:  # exact where the middles are rounded, and the only source where there is one cell
        exact = affine.Affine.from_gdal(*(float(number) for number in stored))
        near = abs(exact.a - width) <= 1e-6 * abs(exact.a) or columns.size == 1
        if near and (abs(exact.e - height) <= 1e-6 * abs(exact.e) or rows.size == 1):
            return (rows.size, columns.size), exact, crs
    if not (width and height):
        raise ValueError(
            f"the array has {rows.size} x {columns.size} values and no GeoTransform: its cells have no size"
        )
    return (rows.size, columns.size), affine.Affine(width, 0, x - width / 2, 0, height, y - height / 2), crs


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
