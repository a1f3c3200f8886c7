"""Density rasters: every raster cell holds the integral of the density over it, divided by its area."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.maps import charts
from geo_mvmf.maps.cell_raster import CellRaster
from geo_mvmf.maps.geographic import GeographicRaster
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.projected import ProjectedRaster
from geo_mvmf.maps.raster_parts import crs_name
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]

NAME = "density_per_km2"
LEVEL_NAME = "credible_level"
IN_MEMORY_BYTES = 1 << 29  # more than this is made image by image when it is asked for (needs dask)


class _Raster(Protocol):
    def probabilities(self, weights: FloatArray, /) -> FloatArray: ...


class Rasteriser:
    """Components and a grid, made ready once for any number of images.

    Parameters
    ----------
    mean_directions : array_like of float, shape (C, 3)
        Unit vectors.
    log_concentrations : array_like of float, shape (C,)
        Natural logarithms of kappa.
    grid : Grid
        Where.

    Examples
    --------
    >>> rasteriser = Rasteriser([[0.0, 0.0, 1.0]], [16.0], Grid.globe(1.0))
    >>> round(float(rasteriser.probabilities([1.0]).sum()), 6)
    1.0
    """

    def __init__(self, mean_directions: npt.ArrayLike, log_concentrations: npt.ArrayLike, grid: Grid) -> None:
        self.grid = grid
        directions = np.asarray(mean_directions, dtype=np.float64).reshape(-1, 3)
        log_kappa = np.asarray(log_concentrations, dtype=np.float64).reshape(-1)
        make: Callable[[FloatArray, FloatArray, Grid], _Raster]
        make = GeographicRaster if grid.is_geographic else ProjectedRaster
        self._raster = make(directions, log_kappa, grid)

    def probabilities(self, mixing_weights: npt.ArrayLike) -> FloatArray:
        """Integrate one image's density over every raster cell.

        Parameters
        ----------
        mixing_weights : array_like of float, shape (C,)
            Not logarithms.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
            Probabilities, not normalised; 0 outside the domain of the projection.
        """
        return self._raster.probabilities(np.asarray(mixing_weights, dtype=np.float64))


def cell_area_km2(grid: Grid) -> FloatArray:
    """Give the area of every raster cell on the sphere.

    Parameters
    ----------
    grid : Grid
        Where.

    Returns
    -------
    ndarray of float64, shape (rows, columns)
        Square kilometres. Exact on geographic grids (read-only: a row is stored once); by quadrature of the projection
        elsewhere, of the part inside the domain where that cuts a cell, NaN where nothing of it is inside.

    Examples
    --------
    >>> areas = cell_area_km2(Grid.globe(10.0))
    >>> round(float(areas.sum() / sphere.EARTH_AREA_KM2), 12)
    1.0
    """
    if not grid.is_geographic:
        return charts.charts_of(grid).areas_sr() * sphere.EARTH_RADIUS_KM**2
    x, y = grid.edges
    south, north = np.minimum(y[:-1], y[1:]), np.maximum(y[:-1], y[1:])
    # the width from the transform: differences of edges would carry their rounding
    areas = sphere.rectangle_area_km2(0.0, south, grid.transform.a, north)
    return np.broadcast_to(areas[:, None], (y.size - 1, x.size - 1))


def density_raster(
    mixture: VmfMixture | CellMixture,
    grid: Grid,
    *,
    image_ids: Sequence[str] | None = None,
    combine: Literal["mean"] | None = None,
) -> xr.DataArray:
    """Make the density raster of every image.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    grid : Grid
        Where.
    image_ids : sequence of str, optional
        N names for the image dimension; numbers where not given.
    combine : {"mean"}, optional
        One raster for all images, the mean of their densities (an album's map).

    Returns
    -------
    xarray.DataArray
        Named density_per_km2, dimensions (image, latitude, longitude), or (image, y, x) on projected grids; per square
        kilometre, NaN outside the projection's domain. Coordinates: `probability_sum` (image), the probability inside
        the grid, measured on the raster and never normalised (1 within 1e-6 on a global geographic grid, within 1e-5 on
        a projected one, whose rows may end at a pole); `cell_area_km2`;
        `spatial_ref` with the CRS. Where it would need more than half a gigabyte and dask is installed, an image is
        computed when it is asked for.

    Raises
    ------
    ValueError
        `image_ids` has another length than the mixture, or `combine` is something else.
    BadInputError
        The mean of no images was asked for.

    Examples
    --------
    >>> peak = VmfMixture(sphere.to_directions([180.0], [0.0]), [16.0], [[0.0]])
    >>> density = density_raster(peak, Grid.globe(1.0))
    >>> density.dims, round(float((density * density.cell_area_km2).sum()), 6)
    (('image', 'latitude', 'longitude'), 1.0)
    """
    names = _image_names(mixture, image_ids, combine)
    areas = cell_area_km2(grid)
    values, sums = _stack(_painter(mixture, grid, areas, combine), len(names), grid.shape, areas)
    array = xr.DataArray(
        values,
        dims=("image", *grid.dims),
        coords={"image": ("image", np.asarray(names)), **_coordinates(grid, areas), "probability_sum": ("image", sums)},
        name=NAME,
        attrs={
            "units": "km-2",
            "long_name": "probability density of the location",
            "cell_methods": "area: mean",
            "cell_measures": "area: cell_area_km2",
            "earth_radius_km": sphere.EARTH_RADIUS_KM,
        },
    )
    array.coords["probability_sum"].attrs = {
        "units": "1",
        "long_name": "probability inside the grid, measured, not normalised",
    }
    array.encoding["grid_mapping"] = "spatial_ref"
    return array


def credible_level_raster(density: xr.DataArray) -> xr.DataArray:
    """Turn density into credible level: the probability of all raster cells at least as dense as each.

    Parameters
    ----------
    density : xarray.DataArray
        From `density_raster`.

    Returns
    -------
    xarray.DataArray
        Named credible_level, 0..1; the cells up to 0.9 are the 90 % region. Cells of equal density have the same level.
        On a grid that does not hold all probability the levels count what is inside. NaN as in the density.

    Examples
    --------
    >>> peak = VmfMixture(sphere.to_directions([0.5], [0.5]), [16.0], [[0.0]])
    >>> level = credible_level_raster(density_raster(peak, Grid.globe(1.0)))
    >>> round(float(level.min()), 3), round(float(level.max()), 3)
    (1.0, 1.0)
    """
    dims = density.dims[-2:]
    area = density.coords["cell_area_km2"]
    level = xr.apply_ufunc(
        _levels,
        density,
        area,
        input_core_dims=[dims, dims],
        output_core_dims=[dims],
        vectorize=True,
        dask="parallelized",
        output_dtypes=[np.float64],
    )
    level.name = LEVEL_NAME
    level.attrs = {
        "units": "1",
        "long_name": "smallest credible level whose region holds the cell",
        "valid_range": [0.0, 1.0],
        "cell_measures": "area: cell_area_km2",
    }
    level.encoding["grid_mapping"] = "spatial_ref"
    return xr.DataArray(level)


def _levels(density: FloatArray, area: FloatArray) -> FloatArray:
    result = np.full(density.shape, np.nan)
    known = np.isfinite(density) & np.isfinite(area)
    values, probabilities = density[known], (density * area)[known]
    order = np.argsort(-values, kind="stable")
    cumulative = np.cumsum(probabilities[order])
    # of equal densities the last one's sum counts for all
    last = np.searchsorted(-values[order], -values[order], side="right") - 1
    levels = np.empty(values.size)
    levels[order] = cumulative[last]
    result[known] = np.minimum(levels, 1.0)
    return result


def _image_names(mixture: VmfMixture | CellMixture, image_ids: Sequence[str] | None, combine: str | None) -> list[Any]:
    if combine not in {None, "mean"}:
        raise ValueError(f"combine is {combine!r}, not 'mean' or None")
    if image_ids is not None and len(image_ids) != len(mixture):
        raise ValueError(f"{len(image_ids)} image_ids for {len(mixture)} images")
    if combine:
        if not len(mixture):
            raise BadInputError(f"combine={combine!r} of 0 images: there is no density; give at least one image")
        return [combine]
    return list(image_ids) if image_ids is not None else list(range(len(mixture)))


def _painter(
    mixture: VmfMixture | CellMixture, grid: Grid, areas: FloatArray, combine: str | None
) -> Callable[[int], FloatArray]:
    """Prepare what all images share and return a function from image to probabilities (rows, columns)."""
    if isinstance(mixture, CellMixture):
        cells = CellRaster(grid, areas)
        if combine:
            return lambda _: np.mean([cells.probabilities(*mixture.of(i)) for i in range(len(mixture))], axis=0)
        return lambda i: cells.probabilities(*mixture.of(i))
    weights = np.exp(mixture.log_mixing_weights)
    if combine:
        weights = weights.mean(axis=0, keepdims=True)
    (present,) = np.nonzero(weights.max(axis=0, initial=0.0) > 0.0)
    rasteriser = Rasteriser(mixture.mean_directions[present], mixture.log_concentrations[present], grid)
    return lambda i: rasteriser.probabilities(weights[i, present])


def _stack(
    paint: Callable[[int], FloatArray], images: int, shape: tuple[int, int], areas: FloatArray
) -> tuple[Any, Any]:
    """Densities (N, rows, columns) and their sums (N,), at once or when asked for."""

    def density_of(i: int) -> FloatArray:
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(areas), paint(i) / areas, np.nan)

    if images > 1 and images * shape[0] * shape[1] * 8 > IN_MEMORY_BYTES:
        lazy = _lazy_stack(density_of, images, shape, areas)
        if lazy is not None:
            return lazy
    values = np.empty((images, *shape))
    for i in range(images):
        values[i] = density_of(i)
    return values, np.nansum(values * areas, axis=(1, 2))


def _lazy_stack(
    density_of: Callable[[int], FloatArray], images: int, shape: tuple[int, int], areas: FloatArray
) -> tuple[Any, Any] | None:
    try:
        from dask import array
        from dask.delayed import delayed
    except ImportError:  # the extra "dask" is not installed: all images are made at once
        return None
    paint: Any = delayed(density_of, pure=True)
    of: Any = array  # dask's functions carry no types
    values = of.stack([of.from_delayed(paint(i), shape, dtype=np.float64) for i in range(images)])
    return values, of.nansum(values * areas, axis=(1, 2))


def _coordinates(grid: Grid, areas: FloatArray) -> dict[str, Any]:
    rows, columns = grid.dims
    t = grid.transform
    transform = " ".join(repr(float(number)) for number in (t.c, t.a, t.b, t.f, t.d, t.e))
    named = {"spatial_ref": grid.crs.to_wkt(), "GeoTransform": transform, "name": crs_name(grid.crs)}
    reference = {**grid.crs.to_cf(), **named}
    result: dict[str, Any] = {
        "spatial_ref": ((), 0, reference),
        "cell_area_km2": (
            grid.dims,
            areas,
            {"standard_name": "cell_area", "units": "km2", "earth_radius_km": sphere.EARTH_RADIUS_KM},
        ),
    }
    if grid.is_rectilinear:
        x, y = grid.centres
        result[rows], result[columns] = (rows, y, _axis(grid, "Y")), (columns, x, _axis(grid, "X"))
    return result


def _axis(grid: Grid, axis: str) -> dict[str, str]:
    if grid.is_geographic:
        name, unit = ("latitude", "degrees_north") if axis == "Y" else ("longitude", "degrees_east")
        return {"standard_name": name, "units": unit, "axis": axis}
    unit = grid.crs.axis_info[0].unit_name
    return {"standard_name": f"projection_{axis.lower()}_coordinate", "units": unit, "axis": axis}
