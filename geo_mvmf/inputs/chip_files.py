"""One chip as a file: pixels, and for GeoTIFF its place; nothing in a PNG or JPEG chip says where it was cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import rasterio
import rasterio.crs
from PIL import Image
from rasterio.transform import Affine

from geo_mvmf import sphere
from geo_mvmf.errors import UsageError
from geo_mvmf.inputs.raster_files import writing

CHIP_FORMATS: Mapping[str, str] = {"png": ".png", "jpeg": ".jpg", "tif": ".tif"}
"""Formats of chips -> suffixes."""

_TAG = "GEO_MVMF_CHIP"
_MOST_TAG_CHARACTERS = 65_536
_JPEG_QUALITY = 95
_PICTURE_BANDS = (1, 3)


def check_format(form: str, bands: int) -> str:
    """Make sure that a format can hold chips of so many bands.

    Parameters
    ----------
    form : str
        A key of `CHIP_FORMATS`.
    bands : int

    Returns
    -------
    str
        The suffix.

    Raises
    ------
    UsageError
        If the format is unknown, or holds 1 or 3 bands only.

    Examples
    --------
    >>> check_format("jpeg", 3)
    '.jpg'
    """
    if form not in CHIP_FORMATS:
        raise UsageError(f"format {form!r} is not one of {', '.join(CHIP_FORMATS)}")
    if form != "tif" and bands not in _PICTURE_BANDS:
        raise UsageError(f"format {form!r} holds 1 or 3 bands, not {bands}; name bands, or choose the format 'tif'")
    return CHIP_FORMATS[form]


def local_crs(longitude: float, latitude: float) -> pyproj.CRS:
    """Give the projection in which a chip is true to scale.

    Parameters
    ----------
    longitude, latitude : float
        Centre of the chip, degrees.

    Returns
    -------
    pyproj.CRS
        Azimuthal equidistant on the sphere, in metres.

    Examples
    --------
    >>> local_crs(10.0, 50.0).is_projected
    True
    """
    return pyproj.CRS.from_dict(
        {"proj": "aeqd", "lat_0": latitude, "lon_0": longitude, "R": sphere.EARTH_RADIUS_KM * 1000.0, "units": "m"}
    )


def write_picture(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write a chip as PNG or JPEG, by its suffix, without any metadata.

    Parameters
    ----------
    path : Path
    pixels : ndarray of uint8, shape (1 or 3, H, W)

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.png"
    >>> write_picture(path, np.zeros((3, 4, 4), np.uint8))
    >>> with Image.open(path) as picture:
    ...     picture.info
    {}
    """
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    if path.suffix == ".png":
        picture.save(path, format="PNG")
    else:
        picture.save(path, format="JPEG", quality=_JPEG_QUALITY)


def write_geotiff(
    path: Path,
    pixels: npt.NDArray[np.uint8],
    valid: npt.NDArray[np.bool_],
    *,
    longitude: float,
    latitude: float,
    ground_km: float,
    description: Mapping[str, Any],
) -> None:
    """Write a chip as GeoTIFF in its own projection.

    Parameters
    ----------
    path : Path
    pixels : ndarray of uint8, shape (B, size, size)
    valid : ndarray of bool, shape (size, size)
        Becomes a mask inside the file where some pixels are not valid.
    longitude, latitude : float
        Centre, degrees.
    ground_km : float
        Side.
    description : mapping
        JSON-able: how the chip was made; see `read_description`.

    Raises
    ------
    OutputError
        If the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.tif"
    >>> pixels, valid = np.zeros((3, 4, 4), np.uint8), np.ones((4, 4), bool)
    >>> write_geotiff(path, pixels, valid, longitude=10.0, latitude=50.0, ground_km=4.0, description={})
    >>> path.stat().st_size > 0
    True
    """
    step = ground_km * 1000.0 / pixels.shape[1]
    half = ground_km * 500.0
    profile = {
        "driver": "GTiff",
        "count": len(pixels),
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "dtype": "uint8",
        "crs": rasterio.crs.CRS.from_wkt(local_crs(longitude, latitude).to_wkt()),
        "transform": Affine(step, 0.0, -half, 0.0, -step, half),
        "compress": "deflate",
        "photometric": "rgb" if len(pixels) == 3 else "minisblack",
        "alpha": "no",
    }
    with writing(path), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "w", **profile) as dataset:
        dataset.write(pixels)
        if not valid.all():
            dataset.write_mask(valid)
        dataset.update_tags(**{_TAG: json.dumps(dict(description), sort_keys=True)})


def read_description(tags: Mapping[str, str]) -> dict[str, Any] | None:
    """Tell how a chip was made, from the tags of its file.

    Parameters
    ----------
    tags : mapping of str to str
        `Scene.tags`.

    Returns
    -------
    dict or None
        What `write_geotiff` was given; None where the raster is no chip of ours.

    Examples
    --------
    >>> read_description({"GEO_MVMF_CHIP": '{"ground_km": 475.0}'}), read_description({})
    ({'ground_km': 475.0}, None)
    """
    text = tags.get(_TAG, "")
    if not text or len(text) > _MOST_TAG_CHARACTERS:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
