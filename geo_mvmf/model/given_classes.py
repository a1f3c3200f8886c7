"""Classes of training places that the user has already: polygons, S2 cells, or another system's mean directions."""

from __future__ import annotations

import os
import warnings

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely
from shapely.geometry.base import BaseGeometry

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.class_files import ClassTable, read_classes
from geo_mvmf.model.classes import Partition, means_of_locations, nearest
from geo_mvmf.model.cleaning import PartitionWarning, clean_places

FloatArray = npt.NDArray[np.float64]

_FARTHER, _MOST = 10.0, 0.9  # swapped: so many times the median distance, and so large a share nearer (or inside)
_LEAST = 20  # images, and centres, that tell whether the two are swapped
_LEAST_MOMENT = 1e-12  # steradians: below it a polygon has no middle (it is empty, or as even as the whole sphere)


def partition_by_file(
    longitude: npt.ArrayLike,
    latitude: npt.ArrayLike,
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    column: str | None = None,
    mean_direction: str = "centre",
    layer: str | None = None,
    crs: str | pyproj.CRS | None = None,
) -> Partition:
    """Take classes from a layer or a table, and count training locations in them.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Degrees. Rows that are not finite or out of range are dropped and counted.
    source : path, DataFrame or GeoDataFrame
        A layer of polygons, whose classes hold the locations in them; a table or layer with S2 tokens in a column
        `cell`; or a table or layer of points with longitude and latitude, whose classes hold the locations nearest to
        them. Counts in it are another system's and are not used.
    column : str, optional
        Names the classes: polygons with the same value are one class. By default every row is one.
    mean_direction : {"centre", "photos"}
        Initial mean directions: the file's own longitude and latitude where it has such columns, else centres of S2
        cells or centroids of polygons on the sphere; or the mean of each class's locations (that where there is none).
    layer, crs
        As `read_polygons`.

    Returns
    -------
    Partition
        `outside` counts the locations in no class. In the order of the file; S2 cells ascending.

    Raises
    ------
    BadInputError
        The file cannot be used, a polygon has no centroid, or no location can be used.
    ValueError
        `mean_direction` is neither.

    Warns
    -----
    PartitionWarning
        There are more classes than locations, or longitude and latitude of classes or locations may be swapped:
        of 20 locations or more, nine of ten lie in classes only the other way round, or nine of ten are then nearer to
        their nearest of 20 centres or more, and the median of these distances is less than a tenth of what it was.

    Examples
    --------
    >>> towns = pd.DataFrame({"town": ["Essen", "Perth"], "lon": [7.0, 115.9], "lat": [51.5, -32.0]})
    >>> partition_by_file([6.9, 7.2, 116.0], [51.4, 51.6, -32.0], towns, column="town").counts.tolist()
    [2, 1]
    """
    if mean_direction not in ("centre", "photos"):
        raise ValueError(f"mean_direction {mean_direction!r} must be 'centre' or 'photos'")
    table = read_classes(source, column=column, layer=layer, crs=crs)
    used, cleaning = clean_places(longitude, latitude, stacklevel=3)
    order = np.argsort(table.cell_ids, kind="stable")
    cells = table.cell_ids[order]
    means = _mean_directions(table)
    names = tuple(table.names)
    if cells.size:
        means, names = means[order], tuple(np.array(names, dtype=object)[order]) if names else ()
    counts = np.zeros(len(means), dtype=np.int64)
    found = Partition(cells, counts, means, cleaning, "file", names, table.polygons)
    classes = found.assign(used[:, 0], used[:, 1])
    directions = sphere.to_directions(used[:, 0], used[:, 1])
    own, counts = means_of_locations(directions, classes, means)
    for remark in (_too_many(counts, len(used)), _swapped(table, found, used, classes)):
        if remark:
            warnings.warn(f"{table.source}: {remark}", PartitionWarning, stacklevel=2)
    return Partition(
        cells,
        counts,
        own if mean_direction == "photos" else means,
        cleaning,
        "file",
        names,
        table.polygons,
        outside=int((classes < 0).sum()),
    )


def centroid_direction(polygon: BaseGeometry) -> FloatArray:
    """Give the integral of the direction over a polygon on the sphere; its unit vector is the centroid.

    Parameters
    ----------
    polygon : Polygon or MultiPolygon
        In longitude and latitude, within -180..180 and -90..90; parts on both sides of 180 degrees, poles and holes
        as `read_polygons` gives them. Edges are taken as great circles.

    Returns
    -------
    ndarray of float64, shape (3,)
        Of a length up to the area in steradians.

    Notes
    -----
    By the theorem of Stokes it is half the sum over the edges of their angle times the pole of their great circle.

    Examples
    --------
    >>> octant = shapely.segmentize(shapely.box(0, 0, 90, 90), 1.0)
    >>> (centroid_direction(octant) / (np.pi / 4)).round(4).tolist()
    [1.0, 1.0, 1.0]
    """
    total = np.zeros(3)
    for part in shapely.get_parts(shapely.orient_polygons(shapely.get_parts(polygon))):
        for ring in (part.exterior, *part.interiors):
            corners = sphere.to_directions(*shapely.get_coordinates(ring).T)
            poles = np.cross(corners[:-1], corners[1:])
            length = np.linalg.norm(poles, axis=1)
            angle = np.arctan2(length, (corners[:-1] * corners[1:]).sum(axis=1))
            total += (poles * (angle / np.where(length > 0.0, length, 1.0))[:, None]).sum(axis=0) / 2.0
    return total


def _too_many(counts: npt.NDArray[np.int64], images: int) -> str:
    if len(counts) <= images:
        return ""
    return (
        f"{len(counts)} classes for {images} images: {int((counts == 0).sum())} classes hold none, and what begins "
        "there learns hardly anything; join classes, or take those of method kmeans or s2 with a smaller number"
    )


def _swapped(table: ClassTable, found: Partition, used: FloatArray, classes: npt.NDArray[np.int64]) -> str:
    """Compare the classes with the images as they stand and the other way round."""
    if len(used) < _LEAST:
        return ""
    if found.has_cells or found.polygons is not None:
        inside, possible = int((classes >= 0).sum()), used[np.abs(used[:, 0]) <= 90.0]
        if inside >= (1.0 - _MOST) * len(used) or len(possible) < _MOST * len(used):
            return ""
        swapped = int((found.assign(possible[:, 1], possible[:, 0]) >= 0).sum())
        if swapped < _MOST * len(used):
            return ""
        told = f"{inside} of {len(used)} images are in a class, with the two exchanged {swapped}"
    elif table.places is not None and len(table.places) >= _LEAST and (np.abs(table.places) <= 90.0).all():
        directions = sphere.to_directions(used[:, 0], used[:, 1])
        turned = sphere.to_directions(table.places[:, 1], table.places[:, 0])
        chords, others = (nearest(means, directions)[1] for means in (found.mean_directions, turned))
        here, there = _median_km(chords), _median_km(others)
        if here <= _FARTHER * there or (others < chords).mean() < _MOST:
            return ""
        told = (
            f"half of the {len(used)} images are more than {here:,.0f} km from the nearest of {len(turned)} centres, "
            f"with the two exchanged in the centres {there:,.0f} km"
        )
    else:
        return ""
    return f"{told}; if longitude and latitude of the classes, or of the images, are swapped, exchange the columns"


def _median_km(chords: FloatArray) -> float:
    chord = float(np.median(chords))
    return float(2.0 * np.arcsin(min(chord / 2.0, 1.0)) * sphere.EARTH_RADIUS_KM)


def _mean_directions(table: ClassTable) -> FloatArray:
    if table.places is not None:
        return sphere.to_directions(table.places[:, 0], table.places[:, 1])
    if table.polygons is None:
        return s2.centre(table.cell_ids)
    return _centroids(table.polygons, table)


def _centroids(polygons: gpd.GeoDataFrame, table: ClassTable) -> FloatArray:
    index = polygons["class_index"].to_numpy(np.int64)
    moments = np.zeros((int(index.max()) + 1, 3))
    for row, polygon in zip(index, polygons.geometry, strict=True):
        moments[row] += centroid_direction(polygon)
    length = np.linalg.norm(moments, axis=1)
    if (length < _LEAST_MOMENT).any():
        wrong = int(np.argmin(length))
        shown = repr(table.names[wrong]) if table.names else f"of row {int(np.argmax(index == wrong)) + 1}"
        raise BadInputError(
            f"{table.source}: class {shown} has no centroid: its polygon is empty, or as even as the whole sphere; "
            "give columns longitude and latitude, or leave it out"
        )
    return np.asarray(moments / length[:, None])
