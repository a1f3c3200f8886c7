"""Sets of S2 cells -> polygons in longitude and latitude: valid, split at +-180 and closed over the poles.

On a face of the cube cells are squares in whole-number coordinates, so their union is planar and exact. The union
is cut along the meridian of 180 degrees and through the poles, its edges (which are curves on the map) get
vertices at a fixed step, and along seams, where faces or halves meet, every vertex of one side is given to the
other, so that the pieces meet without slivers when they are joined on the map.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import s2, s2_curve

IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

_SIZE = s2_curve.MAX_SIZE
_HALF = _SIZE // 2
_STEP = _SIZE // 128  # at most 1.1 degrees between vertices of an edge
_GRID = 1e-9  # degrees (0.1 mm): pieces are joined on this lattice
# Where the plane y = 0 (the meridians 0 and 180) cuts a face: axis of the cut (0: i = half, 1: j = half), and
# whether the lower half lies in the east (y > 0). From the axes of the faces: v = -y on 2 and 3, u = y on 5.
_CUTS = {2: (1, True), 3: (1, True), 5: (0, False)}


class _Piece(NamedTuple):
    """Part of the union on one face; `east` decides whether its 180th meridian is written +180 or -180."""

    face: int
    east: bool
    polygon: shapely.Polygon


def outline(cell_ids: npt.ArrayLike) -> shapely.MultiPolygon:
    """Join S2 cells to one shape.

    Parameters
    ----------
    cell_ids : array_like of uint64, (n,)
        Disjoint cells of any levels.

    Returns
    -------
    MultiPolygon
        Longitude, latitude in degrees; valid, exterior rings counter-clockwise (RFC 7946), split at +-180, closed
        over the poles. Edges of cells are great circles and are given a vertex about every degree.

    Examples
    --------
    >>> outline(s2.face_cells()).bounds
    (-180.0, -90.0, 180.0, 90.0)
    """
    ids = _merged(np.unique(np.asarray(cell_ids, dtype=np.uint64)))
    pieces = list(_pieces(ids))
    events = _events(pieces)
    polygons = [_on_the_map(piece, events) for piece in pieces]
    joined = shapely.union_all(polygons, grid_size=_GRID) if polygons else shapely.MultiPolygon()
    parts = [part for part in shapely.get_parts(joined) if part.geom_type == "Polygon" and part.area > 0.0]
    return shapely.orient_polygons(shapely.MultiPolygon(parts))


def count_parts(shape: shapely.MultiPolygon) -> int:
    """Count the connected parts on the sphere: halves that meet at +-180 or at a pole are one.

    Parameters
    ----------
    shape : MultiPolygon
        From `outline`.

    Returns
    -------
    int

    Examples
    --------
    >>> fiji = s2.cell_ids([[-1.0, 0.0001, -0.3]], 6)
    >>> count_parts(outline(np.concatenate([fiji, s2.edge_neighbours(fiji)[0]])))
    1
    """
    parts = list(shape.geoms)
    group = list(range(len(parts)))

    def root(index: int) -> int:
        while group[index] != index:
            index = group[index]
        return index

    west, east = ({i: _touching(p, x) for i, p in enumerate(parts)} for x in (-180.0, 180.0))
    for i, left in west.items():
        for j, right in east.items():
            if left is not None and right is not None:
                shared = shapely.intersection(left, shapely.transform(right, lambda c: c * [-1.0, 1.0]))
                if shared.length > _GRID:
                    group[root(i)] = root(j)
    for pole in (-90.0, 90.0):
        polar = [i for i, part in enumerate(parts) if pole in (part.bounds[1], part.bounds[3])]
        for i in polar[1:]:
            group[root(i)] = root(polar[0])
    return len({root(i) for i in range(len(parts))})


def cell_polygons(cell_ids: npt.ArrayLike) -> list[shapely.MultiPolygon]:
    """Give the shape of every cell.

    Parameters
    ----------
    cell_ids : array_like of uint64, (n,)

    Returns
    -------
    list of MultiPolygon, n

    Examples
    --------
    >>> len(cell_polygons(s2.face_cells()))
    6
    """
    return [outline([each]) for each in np.asarray(cell_ids, dtype=np.uint64)]


def _merged(ids: IdArray) -> IdArray:
    """Replace four sisters by their parent, as long as there are any: fewer squares to join."""
    while ids.size >= 4:
        deep = ids[s2.level(ids) > 0]
        parents, counts = np.unique(s2.parent(deep, s2.level(deep) - 1), return_counts=True)
        whole = parents[counts == 4]
        if not whole.size:
            break
        ids = np.setdiff1d(ids, s2.children(whole).ravel())
        ids = np.union1d(ids, whole)
    return ids


def _pieces(ids: IdArray) -> Iterator[_Piece]:
    face, i, j = s2_curve.decode(ids)
    size = np.left_shift(np.int64(1), s2_curve.MAX_LEVEL - s2.level(ids))
    low_i, low_j = i & -size, j & -size
    for each in np.unique(face):
        on = face == each
        squares = shapely.box(low_i[on], low_j[on], (low_i + size)[on], (low_j + size)[on])
        joined = shapely.union_all(squares)
        for east, part in _halves(int(each), joined):
            for polygon in shapely.get_parts(part):
                if polygon.geom_type == "Polygon" and polygon.area > 0:
                    yield _Piece(int(each), east, polygon)


def _halves(face: int, shape: shapely.Geometry) -> Iterator[tuple[bool, shapely.Geometry]]:
    if face not in _CUTS:
        yield True, shape
        return
    axis, lower_is_east = _CUTS[face]
    for low, high, east in ((0, _HALF, lower_is_east), (_HALF, _SIZE, not lower_is_east)):
        box = shapely.box(low, 0, high, _SIZE) if axis == 0 else shapely.box(0, low, _SIZE, high)
        yield east, shapely.intersection(shape, box)


def _rings(polygon: shapely.Polygon) -> list[IntArray]:
    return [np.rint(shapely.get_coordinates(ring)).astype(np.int64) for ring in (polygon.exterior, *polygon.interiors)]


def _seam(face: int, axis: int, fixed: int) -> tuple[tuple[object, ...], bool] | None:
    """Name of the seam on which an edge along `axis` lies, and whether positions run backwards along it."""
    if face in _CUTS and _CUTS[face][0] != axis and fixed == _HALF:
        return ("cut", face), False
    if fixed not in (0, _SIZE):
        return None
    ends = np.array([[0, fixed], [_SIZE, fixed]] if axis == 0 else [[fixed, 0], [fixed, _SIZE]])
    cube = _cube(face, ends)
    along = int(np.argmax(np.abs(cube[1] - cube[0])))
    key = ("face", along, *np.rint(np.delete(cube[0], along)).astype(int).tolist())
    return key, bool(cube[0][along] > cube[1][along])


def _cube(face: int, ij: IntArray) -> FloatArray:
    """Points on the cube of side 2, (n, 3)."""
    uv = s2_curve.st_to_uv(ij / _SIZE)
    direction = s2_curve.uv_directions(face, uv[:, 0], uv[:, 1])
    return np.asarray(direction / np.abs(direction).max(axis=1, keepdims=True))


def _edges(ring: IntArray) -> Iterator[tuple[IntArray, IntArray, int]]:
    for start, stop in itertools.pairwise(ring):
        yield start, stop, 0 if start[1] == stop[1] else 1  # the axis along which the edge runs


def _events(pieces: list[_Piece]) -> dict[tuple[object, ...], IntArray]:
    """Positions of all vertices on each seam, from both sides."""
    found: dict[tuple[object, ...], set[int]] = {}
    for piece in pieces:
        for ring in _rings(piece.polygon):
            for start, stop, axis in _edges(ring):
                seam = _seam(piece.face, axis, int(start[1 - axis]))
                if seam is not None:
                    ends = (int(start[axis]), int(stop[axis]))
                    found.setdefault(seam[0], set()).update(_SIZE - end if seam[1] else end for end in ends)
    return {key: np.array(sorted(values), dtype=np.int64) for key, values in found.items()}


def _filled(piece: _Piece, ring: IntArray, events: dict[tuple[object, ...], IntArray]) -> IntArray:
    """Give the ring all vertices that the map needs; closed, (n, 2)."""
    filled = []
    for start, stop, axis in _edges(ring):
        low, high = sorted((int(start[axis]), int(stop[axis])))
        between = np.arange(low // _STEP + 1, -(-high // _STEP)) * _STEP
        seam = _seam(piece.face, axis, int(start[1 - axis]))
        if seam is not None:
            positions = events[seam[0]]
            positions = _SIZE - positions if seam[1] else positions
            between = np.union1d(between, positions[(positions > low) & (positions < high)])
        if start[axis] > stop[axis]:
            between = between[::-1]
        points = np.repeat(start[None], between.size + 1, axis=0)
        points[1:, axis] = between
        filled.append(points)
    filled.append(ring[-1:])
    return np.concatenate(filled)


def _on_the_map(piece: _Piece, events: dict[tuple[object, ...], IntArray]) -> shapely.Geometry:
    rings = [_project(piece, _filled(piece, ring, events)) for ring in _rings(piece.polygon)]
    return shapely.make_valid(shapely.Polygon(rings[0], rings[1:]))


def _project(piece: _Piece, ij: IntArray) -> FloatArray:
    x, y, z = _cube(piece.face, ij[:-1]).T
    flat = np.abs(y) < 1e-12
    longitude = np.degrees(np.arctan2(np.where(flat, 0.0, y), x))
    longitude[flat & (x < 0.0)] = 180.0 if piece.east else -180.0
    latitude = np.degrees(np.arctan2(z, np.hypot(x, y)))
    points = np.stack([longitude, latitude], axis=1)
    pole = np.flatnonzero(np.hypot(x, y) < 1e-12)
    if pole.size:  # a pole is a line on the map: from the meridian the ring comes on to the one it leaves on
        at = int(pole[0])
        before, after = points[at - 1, 0], points[(at + 1) % len(points), 0]
        top = 90.0 if z[at] > 0.0 else -90.0
        points = np.concatenate([points[:at], [[before, top], [after, top]], points[at + 1 :]])
    return np.asarray(np.concatenate([points, points[:1]]))


def _touching(part: shapely.Polygon, longitude: float) -> shapely.Geometry | None:
    if longitude not in (part.bounds[0], part.bounds[2]):
        return None
    line = shapely.LineString([[longitude, -90.0], [longitude, 90.0]])
    return shapely.intersection(part.exterior, line)
