"""A density as raster files: NetCDF, or GeoTIFFs of itself and of its credible levels, tagged with what made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from geo_mvmf import durable
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.files import geotiff, stores
from geo_mvmf.maps import levels

if TYPE_CHECKING:
    import xarray as xr


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
        raise BadInputError(f"no column {name!r} in {store.path}; it has {', '.join(map(str, store.rows))}")
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


def write(path: Path, raster: xr.DataArray, run: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write a raster of densities: .nc, or the first image as .tif with a second one of credible levels.

    Parameters
    ----------
    path : Path
        The raster of levels is called <name>_level.tif.
    raster : DataArray
        From `density_raster`.
    run : mapping
        What made the predictions.
    overwrite : bool
        Whether existing files may be replaced.

    Raises
    ------
    OutputError
        If a file exists or cannot be written.

    Examples
    --------
    See `Predictions.write_density`.
    """
    if path.suffix.lower() == ".nc":
        stores.write_density_netcdf(path, raster, overwrite=overwrite)
        return
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
    geotiff.write_density(path, raster[0], tags=tags, overwrite=overwrite)
    geotiff.write_level(_level(path), levels.credible_level_raster(raster)[0], tags=tags, overwrite=overwrite)


def _level(path: Path) -> Path:
    return path.with_name(f"{path.stem}_level{path.suffix}")
