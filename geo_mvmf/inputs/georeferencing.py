"""A picture without a place -> a GeoTIFF that has one.

World maps are often published as plain JPEG files (NASA's Blue Marble is): the user says once where the edges lie.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import rasterio
import rasterio.crs
from rasterio.windows import Window

from geo_mvmf import durable
from geo_mvmf.inputs.placement import Bounds
from geo_mvmf.inputs.raster_files import writing
from geo_mvmf.inputs.tiled_raster import TiledRaster


def georeference(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bounds: Bounds,
    crs: str | pyproj.CRS = "EPSG:4326",
    overwrite: bool = False,
) -> Path:
    """Write a picture without a place as a tiled GeoTIFF that has one.

    Parameters
    ----------
    source : path
        JPEG, PNG, TIFF or JPEG 2000. A place in it is replaced.
    out : path
        The GeoTIFF (deflate, blocks of 256 x 256).
    bounds : (west, south, east, north)
        Outer edges in units of `crs`.
    crs : str or pyproj.CRS
        As `coordinate_systems.parse_crs`.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    BadInputError
        If the source cannot be read.
    UsageError
        If the bounds are no rectangle, or the CRS is not known.
    OutputError
        If the file exists, or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> folder = Path(tempfile.mkdtemp())
    >>> Image.new("RGB", (36, 18), (2, 5, 20)).save(folder / "world.png")
    >>> path = georeference(folder / "world.png", folder / "world.tif", bounds=(-180.0, -90.0, 180.0, 90.0))
    >>> with TiledRaster(path) as raster:
    ...     raster.count, raster.width, tuple(raster.transform)[:3]
    (3, 36, (10.0, 0.0, -180.0))
    """
    with TiledRaster(Path(source), bounds=bounds, crs=crs) as raster:
        profile = {
            "driver": "GTiff",
            "width": raster.width,
            "height": raster.height,
            "count": raster.count,
            "dtype": raster.dtype.name,
            "crs": rasterio.crs.CRS.from_wkt(raster.crs.to_wkt()),
            "transform": raster.transform,
            "nodata": raster.nodata,
            "tiled": True,
            "blockxsize": 256,
            "blockysize": 256,
            "compress": "deflate",
            "photometric": "rgb" if len(raster.colour_bands) == 3 else "minisblack",
            "alpha": "yes" if raster.count > len(raster.colour_bands) else "no",
        }
        with (
            durable.replacing(out, overwrite=overwrite) as temporary,
            writing(Path(out)),
            rasterio.open(temporary, "w", **profile) as dataset,
        ):
            _copy(raster, dataset)
    return Path(out)


def _copy(raster: TiledRaster, dataset: Any) -> None:
    bands = tuple(range(1, raster.count + 1))
    for row in range(0, raster.height, 256):
        height = min(256, raster.height - row)
        pixels, _ = raster.read(bands, row, 0, height, raster.width)
        dataset.write(np.moveaxis(pixels, -1, 0), window=Window(0, row, raster.width, height))
