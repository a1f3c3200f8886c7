"""Every polygon layer: countries, zones, areas of interest.

Whatever CRS a layer is in, its polygons come out valid in OGC:CRS84, within -180..180 and -90..90, with edges of
about a degree of a great circle at most: an edge is straight in the layer's own CRS, so it is divided there, before
it is transformed.
"""

from __future__ import annotations

import os

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyproj
import shapely
from shapely.geometry.base import BaseGeometry

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.antimeridian import to_longitude_latitude_polygon, wrap
from geo_mvmf.inputs.coordinate_systems import (
    CRS84,
    is_crs84,
    network_off,
    resolve_crs,
    to_longitude_latitude,
)
from geo_mvmf.inputs.layers import Layer, read_layer

_POLYGONAL = ("Polygon", "MultiPolygon")
_LONGEST_EDGE_DEGREES = 1.0
_METRES_PER_DEGREE = 111_195.0  # of a great circle on the sphere of 6371.0088 km
_WIDEST_METRES = 1.0e8  # no projected map of the Earth is wider: beyond it dividing edges would fill the memory
_WIDEST_DEGREES = 540.0


def read_polygons(
    source: str | os.PathLike[str] | gpd.GeoDataFrame,
    *,
    layer: str | None = None,
    crs: str | pyproj.CRS | None = None,
) -> gpd.GeoDataFrame:
    """Read a layer of polygons.

    Parameters
    ----------
    source : path or GeoDataFrame
        GeoJSON (.geojson, .json), GeoPackage (.gpkg) or GeoParquet (.parquet, .geoparquet).
    layer : str, optional
        For a GeoPackage with several; the only one of polygons need not be named.
    crs : str or pyproj.CRS, optional
        "EPSG:n" or "OGC:CRS84", for a layer that does not state its own.

    Returns
    -------
    GeoDataFrame
        OGC:CRS84, one row per row of the source in its order, all attributes kept; geometries are valid Polygons or
        MultiPolygons, empty where the source has none.

    Raises
    ------
    BadInputError
        If the file is none of these, damaged, of unknown CRS, without rows, or a row is no polygon on the Earth.
    UsageError
        If `crs` contradicts the layer or is no such code.

    Examples
    --------
    >>> europe = gpd.GeoDataFrame(geometry=[shapely.box(-10, 35, 30, 70)], crs="EPSG:4326")
    >>> read_polygons(europe).total_bounds.tolist()
    [-10.0, 35.0, 30.0, 70.0]
    """
    found = read_layer(source, layer=layer, kind="polygons")
    if found.geometries is None or not len(found.geometries):
        raise BadInputError(f"{found.name} holds no polygon")
    own = resolve_crs(found.crs, crs, found.name)
    _check_polygons(found, own)
    geometries = [
        _to_crs84(geometry, own, f"{found.name}: row {row + 1}") for row, geometry in enumerate(found.geometries)
    ]
    return gpd.GeoDataFrame(found.frame, geometry=geometries, crs=CRS84)


def union_area(polygons: gpd.GeoDataFrame) -> BaseGeometry:
    """Join all polygons of a layer to one area.

    Parameters
    ----------
    polygons : GeoDataFrame
        From `read_polygons`.

    Returns
    -------
    Polygon or MultiPolygon
        Valid; empty where all rows are.

    Examples
    --------
    >>> two = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1), shapely.box(1, 0, 2, 1)], crs="OGC:CRS84")
    >>> union_area(two).area
    2.0
    """
    return _polygonal(shapely.union_all(polygons.geometry.to_numpy()))


def containing(polygons: gpd.GeoDataFrame, longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Find the polygon that contains each place.

    Parameters
    ----------
    polygons : GeoDataFrame
        From `read_polygons`.
    longitude, latitude : array_like of float, shape (n,)
        Degrees, in this order, within -180..180 and -90..90; NaN is in no polygon.

    Returns
    -------
    ndarray of int64, shape (n,)
        Row of the first polygon that contains the place, its boundary included; -1 for none. Longitudes 180 and
        -180 are the same place.

    Examples
    --------
    >>> land = gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 10, 10)], crs="OGC:CRS84")
    >>> containing(land, [5.0, 50.0, float("nan")], [5.0, 5.0, 5.0]).tolist()
    [0, -1, -1]
    """
    longitude, latitude = np.broadcast_arrays(_floats(longitude), _floats(latitude))
    rows = _first_hits(polygons, longitude, latitude)
    on_seam = np.abs(longitude) == 180.0
    if on_seam.any():
        other = _first_hits(polygons, -longitude[on_seam], latitude[on_seam])
        here = rows[on_seam]
        rows[on_seam] = np.where((here < 0) | ((other >= 0) & (other < here)), other, here)
    return rows


def _first_hits(
    polygons: gpd.GeoDataFrame, longitude: npt.NDArray[np.float64], latitude: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    missing = len(polygons)
    rows = np.full(longitude.shape, missing, dtype=np.int64)
    known = np.flatnonzero(np.isfinite(longitude) & np.isfinite(latitude))
    # the tree holds the places, because a query prepares what it asks with: the large polygons
    places = gpd.points_from_xy(longitude[known], latitude[known])
    tree = shapely.STRtree(np.asarray(places, dtype=object))
    polygon, place = tree.query(polygons.geometry.to_numpy(), predicate="intersects")
    np.minimum.at(rows, known[place], polygon)
    rows[rows == missing] = -1
    return rows


def _floats(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def _check_polygons(layer: Layer, crs: pyproj.CRS) -> None:
    """Refuse rows that are no polygons on the Earth, before anything is computed from them."""
    if layer.broken:
        row, reason = next(iter(layer.broken.items()))
        raise BadInputError(f"{layer.name}: row {row + 1}: {reason}")
    widest = _WIDEST_DEGREES if crs.is_geographic else _WIDEST_METRES / _metres_per_unit(crs)
    for row, geometry in enumerate(layer.geometries if layer.geometries is not None else ()):
        if geometry is None:
            continue
        if geometry.geom_type not in _POLYGONAL:
            raise BadInputError(f"{layer.name}: row {row + 1} is a {geometry.geom_type}, not a polygon")
        places = shapely.get_coordinates(geometry)
        wrong = ~(np.abs(places) <= widest).all(axis=1)
        if crs.is_geographic:
            wrong |= np.abs(places[:, 1]) > 90.0
        if wrong.any():
            x, y = places[np.argmax(wrong)]
            raise BadInputError(f"{layer.name}: row {row + 1}: ({x}, {y}) is not a place in {crs.name}")


def _to_crs84(geometry: BaseGeometry | None, crs: pyproj.CRS, where: str) -> BaseGeometry:
    if geometry is None or geometry.is_empty:
        return shapely.Polygon()
    flat = _polygonal(shapely.make_valid(shapely.force_2d(geometry)))
    if flat.is_empty:  # a polygon without any width
        return shapely.Polygon()
    longest = _LONGEST_EDGE_DEGREES
    if not crs.is_geographic:
        longest *= _METRES_PER_DEGREE / _metres_per_unit(crs)
    divided = flat.segmentize(longest)
    if is_crs84(crs):
        return _polygonal(wrap(divided))
    parts = [_transform(part, crs) for part in shapely.get_parts(divided)]
    if not all(np.isfinite(shapely.get_coordinates(part)).all() for part in parts):
        raise BadInputError(f"{where}: part of the polygon has no longitude and latitude in {crs.name}")
    return _polygonal(shapely.union_all([shapely.make_valid(part) for part in parts]))


def _transform(polygon: shapely.Polygon, crs: pyproj.CRS) -> BaseGeometry:
    def pole_inside(own: shapely.Polygon) -> float:
        with network_off():
            inverse = pyproj.Transformer.from_crs(CRS84, crs, always_xy=True)
        for latitude in (90.0, -90.0):
            x, y = inverse.transform(0.0, latitude, errcheck=False)
            if np.isfinite([x, y]).all() and own.contains(shapely.Point(x, y)):
                return latitude
        return 0.0

    return to_longitude_latitude_polygon(polygon, lambda x, y: to_longitude_latitude(x, y, crs), pole_inside)


def _metres_per_unit(crs: pyproj.CRS) -> float:
    axes = crs.axis_info
    return float(axes[0].unit_conversion_factor) if axes else 1.0


def _polygonal(geometry: BaseGeometry) -> BaseGeometry:
    """Keep the polygons of what make_valid or a union returns; lines and points have no area."""
    if geometry.geom_type in _POLYGONAL:
        return geometry
    parts = shapely.get_parts(shapely.get_parts(geometry))  # a collection may hold a MultiPolygon
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon"])
