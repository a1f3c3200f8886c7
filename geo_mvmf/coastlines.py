"""The coastline that ships with the package: a small outline (Natural Earth, public domain), for pictures."""

from __future__ import annotations

import functools
import importlib.resources
import json

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@functools.cache
def land() -> list[FloatArray]:
    """Give the rings of the land.

    Returns
    -------
    list of ndarray of float64, shape (n, 2)
        Longitude and latitude in degrees; not to be changed.

    Examples
    --------
    >>> land()[0].shape[1]
    2
    """
    text = importlib.resources.files("geo_mvmf").joinpath("coastlines.geojson").read_text(encoding="utf-8")
    rings = []
    for feature in json.loads(text)["features"]:
        shape = feature["geometry"]
        polygons = shape["coordinates"] if shape["type"] == "MultiPolygon" else [shape["coordinates"]]
        rings += [np.asarray(polygon[0], dtype=np.float64) for polygon in polygons]
    return rings
