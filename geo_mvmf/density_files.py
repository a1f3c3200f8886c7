"""A density as raster files: NetCDF, or GeoTIFFs of itself and of its credible levels, tagged with what made it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geo_mvmf import durable
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.files import geotiff, stores
from geo_mvmf.maps import density as densities
from geo_mvmf.maps import levels
from geo_mvmf.suggestions import suggestion

if TYPE_CHECKING:
    import xarray as xr

    from geo_mvmf.maps.albums import Album
    from geo_mvmf.mixture import CellMixture, VmfMixture

_ZEROS = 1 << 24


def column(store: stores.StoredPredictions, name: str | None, rows: npt.NDArray[np.int64]) -> list[Any] | None:
    """Take some rows of a column, such as the one that albums are grouped by.

    Parameters
    ----------
    store : StoredPredictions
    name : str or None
        None gives None.
    rows : ndarray of int64, shape (k,)

    Raises
    ------
    BadInputError
        If there is no such column.

    Examples
    --------
    >>> column(store=None, name=None, rows=np.arange(3)) is None
    True
    """
    if name is None:
        return None
    if name not in store.rows:
        meant, has = suggestion(name, store.rows), ", ".join(map(str, store.rows))
        raise BadInputError(f"no column {name!r} in {store.path}{meant or ';'} it has {has}")
    return list(store.rows[name].to_numpy(object)[rows])


def check_files(path: Path, *, several: bool, overwrite: bool) -> None:
    """Refuse what could not be written, before it is computed.

    Parameters
    ----------
    path : Path
    several : bool
        Whether there are several images.
    overwrite : bool
        Whether existing files may be replaced.

    Raises
    ------
    UsageError
        If the suffix is another than .nc, .tif or .tiff, or a GeoTIFF would have to hold several images.
    OutputError
        If one of the files exists.

    Examples
    --------
    >>> check_files(Path("no/such/map.tif"), several=False, overwrite=False)
    """
    if path.suffix.lower() not in (".nc", ".tif", ".tiff"):
        raise UsageError(f"{path}: a density raster ends in .tif or .nc")
    if path.suffix.lower() != ".nc" and several:
        raise UsageError(f"{path}: a GeoTIFF holds one image or the mean of all; several go into one .nc")
    level = _level(path)
    beside = () if path.suffix.lower() == ".nc" else (level, path.with_suffix(".qml"), level.with_suffix(".qml"))
    if not overwrite:
        durable.require_new(path, *beside)


def write(
    path: Path,
    raster: xr.DataArray,
    mixture: VmfMixture | CellMixture | Album,
    run: Mapping[str, Any],
    *,
    overwrite: bool,
) -> xr.DataArray:
    """Write a raster of densities: .nc, or the first image as .tif with a second one of credible levels.

    Parameters
    ----------
    path : Path
        The raster of levels is called <name>_level.tif.
    raster : DataArray
        From `density_raster`.
    mixture : VmfMixture, CellMixture or Album
        What it was made of: levels are those of all probability, also where the raster is a window.
    run : mapping
        What made the predictions.
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    DataArray
        The raster, with its probability_sum computed.

    Raises
    ------
    OutputError
        If a file exists or cannot be written.

    Examples
    --------
    See `Predictions.write_density`.
    """
    with _computed_once(raster, path) as computed:
        if path.suffix.lower() == ".nc":
            stores.write_density_netcdf(path, computed, overwrite=overwrite)
        else:
            _write_tifs(path, computed, mixture, run, overwrite=overwrite)
        return raster.assign_coords(probability_sum=computed["probability_sum"])


@contextlib.contextmanager
def _computed_once(raster: xr.DataArray, path: Path) -> Iterator[xr.DataArray]:
    """Keep what is made window by window in a file that goes with the work: it is read for two rasters and a sum."""
    if raster.chunks is None:
        yield raster
        return
    import dask
    import dask.array

    of: Any = dask  # its functions carry no types
    areas = of.array.asarray(raster["cell_area_km2"].data).rechunk(raster.chunks[-2:])
    sums = np.zeros(raster.shape[0])
    with contextlib.ExitStack() as stack:
        with durable.output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            _reserve(file, raster.size * 4)
        kept = np.memmap(file, dtype=np.float32, mode="r+", shape=raster.shape)
        ends = [np.cumsum([0, *sizes]).tolist() for sizes in raster.chunks]
        for images, rows, columns in itertools.product(
            *(itertools.starmap(slice, itertools.pairwise(e)) for e in ends)
        ):
            values, area = of.compute(raster.data[images, rows, columns], areas[rows, columns])
            kept[images, rows, columns] = values
            sums[images] += np.nansum(values * area, axis=(1, 2))
        lazy = of.array.from_array(kept, chunks=raster.chunks, name=False)
        found = ("image", sums, raster["probability_sum"].attrs)
        yield raster.copy(data=lazy).assign_coords(probability_sum=found)


def _reserve(file: IO[bytes], size: int) -> None:
    """Take the space on the disk now: where it is missing later, a write into a map of the file kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, _ZEROS):
        file.write(bytes(min(_ZEROS, size - start)))
    file.flush()


def _write_tifs(
    path: Path,
    raster: xr.DataArray,
    mixture: VmfMixture | CellMixture | Album,
    run: Mapping[str, Any],
    *,
    overwrite: bool,
) -> None:
    tags = {
        "IMAGE_ID": str(raster["image"].to_numpy()[0]),
        "MODEL": run.get("bundle", ""),
        "MODEL_SHA256": run.get("bundle_sha256", ""),
        "PROBABILITY_SUM": f"{float(raster['probability_sum'][0]):.9f}",
        "LICENCE": run.get("licence", ""),
    }
    if "bandwidth_km" in raster.attrs:  # nothing is smoothed without a word
        tags["BANDWIDTH_KM"] = f"{raster.attrs['bandwidth_km']:.9g}"
    if run.get("evidence"):  # fused or restricted: an area, a prior, how independent the images were taken to be
        tags["EVIDENCE"] = json.dumps(run["evidence"], sort_keys=True)
    outside = densities.beyond_raster(mixture, raster)
    geotiff.write_density(path, raster[0], tags=tags, beyond=outside, overwrite=overwrite)
    level = levels.credible_level_raster(raster, outside)
    geotiff.write_level(_level(path), level[0], tags=tags, overwrite=overwrite)


def _level(path: Path) -> Path:
    return path.with_name(f"{path.stem}_level{path.suffix}")
