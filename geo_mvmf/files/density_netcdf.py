"""Densities of many images in one NetCDF file that follows the CF conventions."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray

import geo_mvmf
from geo_mvmf import durable
from geo_mvmf.errors import OutputError, UsageError

_AXES = {
    "longitude": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"},
    "latitude": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "x": {"standard_name": "projection_x_coordinate", "long_name": "x of the projection", "axis": "X"},
    "y": {"standard_name": "projection_y_coordinate", "long_name": "y of the projection", "axis": "Y"},
}
_GLOBAL = {
    "Conventions": "CF-1.11",
    "title": "Probability density of image locations",
    "references": "Izbicki, Papalexakis, Tsotras: The MvMF Loss for Predicting Locations on the Earth's Surface",
}


def write_density_netcdf(path: str | os.PathLike[str], density: xarray.DataArray, *, overwrite: bool = False) -> Path:
    """Write a density or level raster of one or many images as NetCDF-4 with CF attributes.

    Parameters
    ----------
    path : path
        Ends in .nc.
    density : DataArray, dimensions (image, latitude | y, longitude | x)
        As `maps.density` makes it. A lazy array is computed chunk by chunk.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UsageError
        The suffix, or an array without name.
    OutputError
        The file exists already, or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> places = {"latitude": [45.0, -45.0], "longitude": [-90.0, 90.0]}
    >>> uniform = xarray.DataArray(np.full((2, 2), 1 / 5.1e8), places, name="density_per_km2")
    >>> path = write_density_netcdf(Path(tempfile.mkdtemp()) / "a.nc", uniform)
    >>> with xarray.open_dataset(path, engine="h5netcdf") as back:
    ...     back["density_per_km2"].attrs["units"], back["longitude"].attrs["units"]
    ('km-2', 'degrees_east')
    """
    final = Path(path)
    if final.suffix.lower() not in (".nc", ".nc4"):
        raise UsageError(f"{final}: a NetCDF file ends in .nc, not {final.suffix!r}")
    if density.name is None:
        raise UsageError(f"{final}: the array has no name; density.rename('density_per_km2') gives it one")
    dataset = _described(density)
    with durable.replacing(final, overwrite=overwrite) as temporary:
        try:
            with warnings.catch_warnings():
                # Half-written files are never seen here, so that warning of the writer does not apply.
                warnings.filterwarnings("ignore", category=UserWarning, module="h5netcdf")
                dataset.to_netcdf(temporary, engine="h5netcdf", format="NETCDF4", encoding=_encoding(dataset, density))
        except RuntimeError as error:
            # HDF5 reports a full disk so
            raise OutputError(f"{final}: cannot write: {error}; is there space on the disk?") from error
    return final


def _described(density: xarray.DataArray) -> xarray.Dataset:
    """Fill in the attributes that CF asks for and the array lacks."""
    named = density.copy(deep=False)
    if density.name == "density_per_km2":
        named.attrs = {
            "units": "km-2",
            "long_name": "probability density",
            "cell_methods": "area: mean",
            **density.attrs,
        }
    elif density.name == "credible_level":
        named.attrs = {
            "units": "1",
            "long_name": "credible level",
            "valid_range": np.array([0.0, 1.0]),
            **density.attrs,
        }
    for axis, attributes in _AXES.items():
        if axis in named.coords:
            named.coords[axis].attrs = {**attributes, **named.coords[axis].attrs}
    # grid_mapping belongs to the encoding; xarray refuses it twice
    mapping = named.attrs.pop("grid_mapping", None) or named.encoding.get("grid_mapping")
    if mapping is None and "spatial_ref" in named.coords:
        mapping = "spatial_ref"
    dataset = named.to_dataset()
    if mapping:
        dataset[str(density.name)].encoding = {"grid_mapping": mapping}
    dataset.attrs = {**_GLOBAL, "source": f"geo_mvmf {geo_mvmf.__version__}"}
    return dataset


def _encoding(dataset: xarray.Dataset, density: xarray.DataArray) -> dict[str, dict[str, Any]]:
    chunks = tuple(
        1 if name not in density.dims[-2:] else max(1, min(size, 512))
        for name, size in zip(density.dims, density.shape, strict=True)
    )
    name = str(density.name)
    packed: dict[str, Any] = {"dtype": "float32", "zlib": True, "complevel": 4, "shuffle": True, "fletcher32": True}
    if density.size:
        packed["chunksizes"] = chunks
    return {name: {**dataset[name].encoding, **packed, "_FillValue": np.float32(np.nan)}}
