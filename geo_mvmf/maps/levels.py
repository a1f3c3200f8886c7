"""Credible levels of raster cells: which share of the probability lies in cells at least as dense."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

FloatArray = npt.NDArray[np.float64]

NAME = "credible_level"

_BITS_DROPPED = 10  # of a float32: in a raster of windows, densities within 2^-13 of each other share a level
_BINS = 1 << (31 - _BITS_DROPPED)


def credible_level_raster(density: xr.DataArray) -> xr.DataArray:
    """Turn density into credible level: the probability of all raster cells at least as dense as each.

    Parameters
    ----------
    density : xarray.DataArray
        From `density_raster`.

    Returns
    -------
    xarray.DataArray
        Named credible_level, 0..1; the cells up to 0.9 are the 90 % region. Cells of equal density have the same level
        (where one image is made of windows, cells whose densities differ by less than 1e-4 of them). On a grid that
        does not hold all probability the levels count what is inside. NaN as in the density.

    Examples
    --------
    >>> from geo_mvmf import Grid, VmfMixture, density_raster
    >>> peak = VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
    >>> level = credible_level_raster(density_raster(peak, Grid.globe(4.0)))
    >>> float(level.min().round(3)), float(level.max().round(3))
    (1.0, 1.0)
    """
    area = density.coords["cell_area_km2"]
    chunks = density.chunks
    if chunks is not None and any(len(sizes) > 1 for sizes in chunks[-2:]):
        level = density.copy(data=_levels_of_windows(density.data, area.data))
    else:
        dims = density.dims[-2:]
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
    level.name = NAME
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


def _levels_of_windows(density: Any, area: Any) -> Any:
    """Levels of a dask array (N, rows, columns) that is never whole in memory: first a table, then a look-up."""
    from dask import array
    from dask.delayed import delayed

    of: Any = array  # dask's functions carry no types
    area = of.broadcast_to(of.asarray(area), density.shape[-2:]).rechunk(density.chunks[-2:])
    images = []
    for i in range(density.shape[0]):
        total = None
        for block, own in zip(density[i].to_delayed().ravel(), area.to_delayed().ravel(), strict=True):
            total = delayed(_mass_by_bin)(block, own, total)  # one after the other: each has millions of bins
        images.append(density[i].map_blocks(_looked_up, table=delayed(_table)(total), dtype=np.float64))
    return of.stack(images)


def _bins(density: FloatArray) -> npt.NDArray[np.uint32]:
    """Numbers that rise with density: the leading bits of a float32 (abs: there is no -0)."""
    single = np.abs(np.maximum(np.nan_to_num(density), 0.0)).astype(np.float32)
    return np.asarray(single.view(np.uint32) >> _BITS_DROPPED)


def _mass_by_bin(density: FloatArray, area: FloatArray, before: FloatArray | None) -> FloatArray:
    mass = np.nan_to_num(density * area)
    found = np.bincount(_bins(density).ravel(), mass.ravel(), minlength=_BINS).astype(np.float64)
    return found if before is None else found + before


def _table(total: FloatArray) -> FloatArray:
    """Level of each bin."""
    return np.asarray(np.minimum(np.cumsum(total[::-1])[::-1], 1.0))


def _looked_up(density: FloatArray, table: FloatArray) -> FloatArray:
    return np.where(np.isfinite(density), table[_bins(density)], np.nan)
