"""Credible levels of raster cells: which share of the probability lies in cells at least as dense."""

from __future__ import annotations

import functools
import threading
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from geo_mvmf.maps.beyond import Beyond

FloatArray = npt.NDArray[np.float64]

NAME = "credible_level"

_BITS_DROPPED = 10  # of a float32: in a raster of windows, densities within 2^-13 of each other share a level
_BINS = 1 << (31 - _BITS_DROPPED)


def credible_level_raster(density: xr.DataArray, beyond: Beyond | None = None) -> xr.DataArray:
    """Turn density into credible level: the probability of all that is at least as dense as each raster cell.

    Parameters
    ----------
    density : xarray.DataArray
        From `density_raster`.
    beyond : Beyond, optional
        What lies outside the grid, of a density of one image. Without it the levels count what is inside.

    Returns
    -------
    xarray.DataArray
        Named credible_level, 0..1; the cells up to 0.9 are the 90 % region. Cells of equal density have the same level
        (where one image is made of windows, cells whose densities differ by less than 1e-4 of them). NaN as in the
        density.

    Raises
    ------
    ValueError
        `beyond` was given for several images.

    Examples
    --------
    >>> from geo_mvmf import Grid, VmfMixture, density_raster
    >>> peak = VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
    >>> level = credible_level_raster(density_raster(peak, Grid.globe(4.0)))
    >>> float(level.min().round(3)), float(level.max().round(3))
    (1.0, 1.0)
    """
    outside = Beyond.nothing() if beyond is None else beyond
    if beyond is not None and density.shape[0] != 1:
        raise ValueError(f"what lies beyond is that of one image, and there are {density.shape[0]}")
    area = density.coords["cell_area_km2"]
    chunks = density.chunks
    if chunks is not None and any(len(sizes) > 1 for sizes in chunks[-2:]):
        level = density.copy(data=_levels_of_windows(density.data, area.data, outside))
    else:
        dims = density.dims[-2:]
        level = xr.apply_ufunc(
            functools.partial(_levels, outside=outside),
            density,
            area,
            input_core_dims=[dims, dims],
            output_core_dims=[dims],
            vectorize=True,
            dask="parallelized",
            output_dtypes=[np.float64],
            keep_attrs=True,  # of the coordinates: older versions of xarray would leave the CRS out
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


def _levels(density: FloatArray, area: FloatArray, outside: Beyond) -> FloatArray:
    result = np.full(density.shape, np.nan)
    known = np.isfinite(density) & np.isfinite(area)
    number = np.count_nonzero(known)
    values = np.concatenate([density[known], outside.densities])
    probabilities = np.concatenate([(density * area)[known], outside.probability])
    order = np.argsort(-values, kind="stable")
    cumulative = np.cumsum(probabilities[order])
    # of equal densities the last one's sum counts for all
    last = np.searchsorted(-values[order], -values[order], side="right") - 1
    levels = np.empty(values.size)
    levels[order] = cumulative[last]
    result[known] = np.minimum(levels[:number], 1.0)
    return result


def _levels_of_windows(density: Any, area: Any, outside: Beyond) -> Any:
    """Levels of a dask array (N, rows, columns) that is never whole in memory: first a table, then a look-up."""
    from dask import array

    of: Any = array  # dask's functions carry no types
    area = of.broadcast_to(of.asarray(area), density.shape[-2:]).rechunk(density.chunks[-2:])
    images = [
        density[i].map_blocks(
            # meta: dask would try the function out, and make the table for that
            _Levels(density[i], area, outside),
            dtype=np.float64,
            meta=np.empty((0, 0)),
            name=f"level-{uuid.uuid4().hex}",
        )
        for i in range(density.shape[0])
    ]
    return of.stack(images)


class _Levels:
    """From densities to levels; the table is made when it is first needed, and once however often it is."""

    def __init__(self, density: Any, area: Any, outside: Beyond) -> None:
        self._density, self._area, self._outside = density, area, outside
        self._table: FloatArray | None = None
        self._lock = threading.Lock()
        self.token = uuid.uuid4().hex

    def __call__(self, block: FloatArray) -> FloatArray:
        with self._lock:
            if self._table is None:
                self._table = self._made()
        return np.where(np.isfinite(block), self._table[_bins(block)], np.nan)

    def __dask_tokenize__(self) -> str:
        return self.token

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_lock": None, "_table": None}  # another process makes its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _made(self) -> FloatArray:
        total = np.zeros(_BINS)
        total += np.bincount(_bins(self._outside.densities), self._outside.probability, minlength=_BINS)
        for place in np.ndindex(self._area.numblocks):  # one after the other: what is larger than memory stays outside
            density, area = (np.asarray(part.blocks[place]) for part in (self._density, self._area))
            total += np.bincount(_bins(density).ravel(), np.nan_to_num(density * area).ravel(), minlength=_BINS)
        return np.asarray(np.minimum(np.cumsum(total[::-1])[::-1], 1.0))


def _bins(density: FloatArray) -> npt.NDArray[np.uint32]:
    """Numbers that rise with density: the leading bits of a float32 (abs: there is no -0)."""
    single = np.abs(np.maximum(np.nan_to_num(density), 0.0)).astype(np.float32)
    return np.asarray(single.view(np.uint32) >> _BITS_DROPPED)
