"""Densities of one or many images in one NetCDF-4 file that follows the CF conventions."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray

import geo_mvmf
from geo_mvmf import durable
from geo_mvmf.errors import UsageError
from geo_mvmf.files import columns, netcdf

_AXES = {
    "longitude": {"standard_name": "longitude", "long_name": "longitude", "units": "degrees_east", "axis": "X"},
    "latitude": {"standard_name": "latitude", "long_name": "latitude", "units": "degrees_north", "axis": "Y"},
    "x": {"standard_name": "projection_x_coordinate", "units": "m", "axis": "X"},
    "y": {"standard_name": "projection_y_coordinate", "units": "m", "axis": "Y"},
}
_QUANTITIES: Mapping[str, Mapping[str, Any]] = {
    "density_per_km2": {"units": "km-2", "long_name": "probability density", "cell_methods": "area: mean"},
    "credible_level": {"units": "1", "long_name": "level of the smallest credible region", "valid_range": [0.0, 1.0]},
}
_GLOBAL = {
    "Conventions": "CF-1.11",
    "title": "Probability density of image locations",
    "references": "Izbicki, Papalexakis, Tsotras: The MvMF Loss for Predicting Locations on the Earth's Surface",
}
_ROWS_AT_ONCE = 512


def write_density_netcdf(path: str | os.PathLike[str], density: xarray.DataArray, *, overwrite: bool = False) -> Path:
    """Write a raster of one or many images as NetCDF-4 with CF attributes.

    Parameters
    ----------
    path : path
        Ends in .nc.
    density : DataArray, dimensions (image, latitude | y, longitude | x)
        As `maps.density` makes it: density_per_km2 or credible_level. A lazy array is computed chunk by chunk.
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
    >>> uniform = xarray.DataArray(np.full((2, 2), 1 / 5.1e8), places, ("latitude", "longitude"), "density_per_km2")
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
    with (
        durable.replacing(final, overwrite=overwrite) as temporary,
        netcdf.created(temporary, shown=final) as file,
    ):
        for key, value in (_GLOBAL | {"source": f"geo_mvmf {geo_mvmf.__version__}"}).items():
            file.attrs[key] = value
        file.dimensions = {str(name): size for name, size in density.sizes.items()}
        for name, coordinate in density.coords.items():
            _write_coordinate(file, str(name), coordinate)
        _write_values(file, density)
    return final


def _write_coordinate(file: Any, name: str, coordinate: xarray.DataArray) -> None:
    attributes = {**_AXES.get(name, {}), **coordinate.attrs}
    if coordinate.chunks is not None:  # areas of a grid that is larger than memory
        dimensions = [str(dimension) for dimension in coordinate.dims]
        netcdf.add_array(
            file, name, dimensions, dtype=coordinate.dtype, chunk=_chunk(coordinate), attributes=_plain(attributes)
        )
        for place in _blocks(coordinate):
            file[name][place] = np.asarray(coordinate.data[place])
        return
    values = coordinate.to_numpy()
    dimensions = [str(dimension) for dimension in coordinate.dims]
    if values.dtype.kind not in "biuf":
        texts = [columns.writable(columns.as_text(value)).encode("utf-8") for value in values.ravel().tolist()]
        values = np.array(texts, dtype=f"S{max([1, *map(len, texts)])}").reshape(values.shape)
        width = values.dtype.itemsize
        values = values.view("S1").reshape(*values.shape, width)
        dimensions.append(f"{name}_width")
        file.dimensions[dimensions[-1]] = width
        attributes["_Encoding"] = "utf-8"
    if values.dtype.kind == "b":
        values, attributes = values.astype(np.int8), {**attributes, "dtype": "bool"}
    if values.ndim:
        netcdf.add_array(file, name, dimensions, np.ascontiguousarray(values), attributes=attributes)
    else:
        variable = file.create_variable(name, (), values.dtype, data=values)
        variable.attrs.update(_plain(attributes))


def _write_values(file: Any, density: xarray.DataArray) -> None:
    name = str(density.name)
    attributes: dict[str, Any] = {**_QUANTITIES.get(name, {}), **density.attrs, "_FillValue": np.float32(np.nan)}
    mapping = density.encoding.get("grid_mapping") or ("spatial_ref" if "spatial_ref" in density.coords else None)
    if mapping:
        attributes["grid_mapping"] = mapping
    others = [str(key) for key in density.coords if key not in density.dims and key != mapping]
    if others:
        attributes["coordinates"] = " ".join(others)
    dimensions = [str(dimension) for dimension in density.dims]
    netcdf.add_array(file, name, dimensions, dtype=np.float32, chunk=_chunk(density), attributes=_plain(attributes))
    for place in _blocks(density):
        block: npt.NDArray[np.float32] = np.asarray(density.data[place], dtype=np.float32)
        file[name][place] = block


def _blocks(density: xarray.DataArray) -> Iterator[tuple[slice, ...]]:
    """Give the chunks of a lazy array, each computed once, or some rows of one image at a time."""
    if density.chunks is not None:
        ends = [np.cumsum((0, *sizes)).tolist() for sizes in density.chunks]
        along = [[slice(a, b) for a, b in itertools.pairwise(each)] for each in ends]
    else:
        steps = [1] * (density.ndim - 2) + [_ROWS_AT_ONCE, max(density.shape[-1], 1)][-density.ndim :]
        sizes = zip(density.shape, steps, strict=True)
        along = [[slice(a, min(a + step, size)) for a in range(0, size, step)] for size, step in sizes]
    return itertools.product(*along)


def _chunk(density: xarray.DataArray) -> tuple[int, ...]:
    return tuple(
        1 if name not in density.dims[-2:] else max(1, min(size, 512))
        for name, size in zip(density.dims, density.shape, strict=True)
    )


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Keep what NetCDF knows: text, numbers, lists of numbers."""
    known = (str, int, float, np.number, list, tuple, np.ndarray)
    return {
        str(key): np.asarray(value) if isinstance(value, list | tuple) else value
        for key, value in attributes.items()
        if isinstance(value, known) and not isinstance(value, bool)
    }
