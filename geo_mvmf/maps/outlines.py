"""Sets of S2 cells -> polygons in longitude and latitude: valid, split at +-180 and closed over the poles.

On a face of the cube cells are squares in whole-number coordinates, so their union is exact. Faces that the meridian
of 180 degrees or a pole lies in are cut in halves there. Edges (which are curves on the map) get vertices at a step,
smaller where polygons would cross otherwise, and along seams, where faces or halves meet, every vertex of one side is
given to the other, so that the pieces meet without slivers when they are joined on the map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from scipy import sparse

from geo_mvmf import s2, s2_curve
from geo_mvmf.maps import squares

IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
SeamKey = tuple[object, ...]

_FACE_END = np.uint64(1 << 60)  # the lowest set bit of a face: it has no parent
_SIZE = s2_curve.MAX_SIZE
_HALF = _SIZE // 2
# Between the vertices of an edge at most about 0.5 degrees (a chord is then within 0.1 km of its great circle at the
# equator, and within 1 km up to 85 degrees); the finer steps are for cells so close to a long edge that this matters.
_STEPS = (_SIZE // 256, _SIZE // 2048, _SIZE // 16384)
_TURN = np.pi / 180.0  # likewise on the faces of the poles: at most about a degree of longitude
_ON_A_PLANE = 1e-12  # on the cube of side 2: y is 0 on the meridians 0 and 180
_POLAR = (2, 5)
_DECIMALS = 9  # of degrees (0.1 mm): all vertices lie on this lattice, and pieces are joined on it
_GRID = 10.0**-_DECIMALS
# Where the plane y = 0 (the meridians 0 and 180) cuts a face: axis of the cut (0: i = half, 1: j = half), and
# whether the lower half lies in the east (y > 0). From the axes of the faces: v = -y on 2 and 3, u = y on 5.
_CUTS = {2: (1, True), 3: (1, True), 5: (0, False)}


class _Piece(NamedTuple):
    """Part of the union on one face; `east` decides whether its 180th meridian is written +180 or -180."""

    face: int
    east: bool
    rings: list[IntArray]  # the exterior and the holes, closed, (n, 2) whole-number coordinates


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
        over the poles. Edges of cells are great circles and are given a vertex every half degree or closer.

    Examples
    --------
    >>> outline(s2.face_cells()).bounds
    (-180.0, -90.0, 180.0, 90.0)
    """
    ids = np.sort(np.asarray(cell_ids, dtype=np.uint64).ravel())
    pieces = list(_pieces(_merged(ids[np.diff(ids, prepend=np.uint64(0)) > 0])))
    if not pieces:
        return shapely.MultiPolygon()
    edges = _Edges.of(pieces)
    events = _events(edges)
    for step in _STEPS:
        shape = _joined(pieces, edges, events, step)
        if shape.is_valid:
            return shape
    # what still crosses is closer than a metre: joined as it is drawn
    return _multi_polygon([shapely.union_all(shapely.make_valid(shapely.get_parts(shape)), grid_size=_GRID)])


def count_parts(shape: shapely.MultiPolygon) -> int:
    """Count the connected parts on the sphere: parts of the map that share a border at +-180 are one.

    Parameters
    ----------
    shape : MultiPolygon
        From `outline`.

    Returns
    -------
    int
        Parts that touch at a point only, also at a pole, count as several.

    Examples
    --------
    >>> fiji = s2.cell_ids([[-1.0, 0.0001, -0.3]], 6)
    >>> count_parts(outline(np.concatenate([fiji, s2.edge_neighbours(fiji)[0]])))
    1
    """
    parts = shapely.get_parts(shape)
    bounds = shapely.bounds(parts).reshape(-1, 4)
    west = [(int(i), _latitudes_at(parts[i], -180.0)) for i in np.flatnonzero(bounds[:, 0] == -180.0)]
    east = [(int(i), _latitudes_at(parts[i], 180.0)) for i in np.flatnonzero(bounds[:, 2] == 180.0)]
    pairs = [(i, j) for i, left in west for j, right in east if _overlap(left, right) > _GRID]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    links = sparse.coo_array((np.ones(rows.size), (rows, columns)), shape=(parts.size, parts.size))
    number, _ = sparse.csgraph.connected_components(links, directed=False)
    return int(number)


def cell_polygons(cell_ids: npt.ArrayLike) -> list[shapely.MultiPolygon]:
    """Give the shape of every cell.

    Parameters
    ----------
    cell_ids : array_like of uint64, (n,)
        Any cells.

    Returns
    -------
    list of MultiPolygon, n
        Each as `outline` gives it.

    Examples
    --------
    >>> len(cell_polygons(s2.face_cells()))
    6
    """
    return [outline([each]) for each in np.asarray(cell_ids, dtype=np.uint64)]


def _merged(ids: IdArray) -> IdArray:
    """Replace four sisters by their parent as long as there are any; sorted, disjoint cells."""
    while ids.size >= 4:
        end = ids & (~ids + np.uint64(1))  # the lowest set bit tells the level; above it the two bits of the sister
        first, low = ids[:-3], end[:-3]
        whole = (low == end[1:-2]) & (low == end[2:-1]) & (low == end[3:]) & (low < _FACE_END)
        whole &= ((first ^ ids[3:]) & ~(low * np.uint64(6))) == 0
        starts = np.flatnonzero(whole)
        if not starts.size:
            break
        kept = np.ones(ids.size, dtype=bool)
        kept[(starts[:, None] + np.arange(1, 4)).ravel()] = False
        low = low[starts]
        ids[starts] = (ids[starts] & ~(low * np.uint64(7))) | (low * np.uint64(4))
        ids = ids[kept]
    return ids


def _pieces(ids: IdArray) -> Iterator[_Piece]:
    whole = s2.level(ids) == 0  # a face is in both of its halves
    ids = np.concatenate([ids[~whole], s2.children(ids[whole]).ravel()]).astype(np.uint64)
    face, i, j = s2_curve.decode(ids)
    size = np.left_shift(np.int64(1), s2_curve.MAX_LEVEL - s2.level(ids))
    low = np.stack([i & -size, j & -size], axis=-1)
    for each in range(6):
        on = face == each
        axis, lower_is_east = _CUTS.get(each, (0, True))
        lower = low[:, axis] < (_HALF if each in _CUTS else _SIZE)
        for half, east in ((lower, lower_is_east), (~lower, not lower_is_east)):
            chosen = on & half
            for rings in squares.union(low[chosen], size[chosen]):
                yield _Piece(each, east, rings)


class _Edges(NamedTuple):
    """All edges of all rings of some pieces."""

    ring: IntArray  # (n,) number of the ring, counted through
    face: IntArray  # (n,)
    axis: IntArray  # (n,) along which it runs
    fixed: IntArray  # (n,) the coordinate that does not change
    low: IntArray  # (n,) between which values the other one does
    high: IntArray
    at_seam: BoolArray  # (n,) on the border of the face, or on its cut

    @classmethod
    def of(cls, pieces: list[_Piece]) -> _Edges:
        """Collect them."""
        rings = [ring for piece in pieces for ring in piece.rings]
        number = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
        inner = number[1:] == number[:-1]
        points = np.concatenate(rings)
        start, stop, number = points[:-1][inner], points[1:][inner], number[1:][inner]
        face = np.repeat([piece.face for piece in pieces], [len(piece.rings) for piece in pieces])[number]
        along_j = start[:, 0] == stop[:, 0]
        axis_of = along_j.astype(np.int64)
        fixed = np.where(along_j, start[:, 0], start[:, 1])
        first, last = np.where(along_j, start[:, 1], start[:, 0]), np.where(along_j, stop[:, 1], stop[:, 0])
        at_seam = (fixed == 0) | (fixed == _SIZE)
        for cut, (axis, _) in _CUTS.items():
            at_seam |= (face == cut) & (fixed == _HALF) & (along_j == (axis == 0))
        return cls(number, face, axis_of, fixed, np.minimum(first, last), np.maximum(first, last), at_seam)

    def wanting(self, step: int) -> BoolArray:
        """Which need vertices between their ends on the map."""
        wanting = self.at_seam | (self.low // step != (self.high - 1) // step)
        away = np.abs(self.fixed - _HALF)
        turn = np.arctan2(self.high - _HALF, away) - np.arctan2(self.low - _HALF, away)
        polar = np.isin(self.face, _POLAR)
        return np.asarray(wanting | (polar & (turn > _TURN * step / _STEPS[0]) & (away > 0)))


def _seam(face: int, axis: int, fixed: int) -> tuple[SeamKey, bool]:
    """Name of the seam on which an edge along `axis` lies, and whether positions run backwards along it."""
    if fixed == _HALF:
        return ("cut", face), False
    ends = np.array([[0, fixed], [_SIZE, fixed]] if axis == 0 else [[fixed, 0], [fixed, _SIZE]])
    cube = _cube(face, ends)
    along = int(np.argmax(np.abs(cube[1] - cube[0])))
    key = ("face", along, *np.rint(np.delete(cube[0], along)).astype(int).tolist())
    return key, bool(cube[0][along] > cube[1][along])


def _cube(face: int | IntArray, ij: IntArray) -> FloatArray:
    """Points on the cube of side 2, (n, 3), of one face or each of its own."""
    uv = s2_curve.st_to_uv(ij / _SIZE)
    direction = s2_curve.uv_directions(face, uv[:, 0], uv[:, 1])
    return np.asarray(direction / np.abs(direction).max(axis=1, keepdims=True))


def _events(edges: _Edges) -> dict[SeamKey, IntArray]:
    """Positions of all vertices on each seam, from both sides."""
    found: dict[SeamKey, set[int]] = {}
    for edge in np.flatnonzero(edges.at_seam).tolist():
        key, backwards = _seam(int(edges.face[edge]), int(edges.axis[edge]), int(edges.fixed[edge]))
        ends = int(edges.low[edge]), int(edges.high[edge])
        found.setdefault(key, set()).update(_SIZE - end if backwards else end for end in ends)
    return {key: np.array(sorted(values), dtype=np.int64) for key, values in found.items()}


def _filled(piece: _Piece, ring: IntArray, events: dict[SeamKey, IntArray], step: int) -> tuple[IntArray, bool]:
    """Give a ring all vertices that the map needs, (n, 2), not closed; and say whether it touches a seam."""
    edges = _Edges.of([piece._replace(rings=[ring])])
    axes, fixed, low, high = edges.axis, edges.fixed, edges.low, edges.high
    rises: BoolArray = np.asarray((ring[1:] > ring[:-1]).any(axis=1))
    turn, polar = _TURN * step / _STEPS[0], piece.face in _POLAR
    parts, done = [], 0
    for edge in np.flatnonzero(edges.wanting(step)).tolist():
        between = np.arange(low[edge] // step + 1, -(-high[edge] // step)) * step
        if edges.at_seam[edge]:
            key, backwards = _seam(piece.face, int(axes[edge]), int(fixed[edge]))
            between = np.union1d(between, _SIZE - events[key] if backwards else events[key])
        elif polar:
            between = np.union1d(between, _meridians(fixed[edge], low[edge], high[edge], turn))
        between = between[(between > low[edge]) & (between < high[edge])]
        points = np.repeat(ring[edge : edge + 1], between.size, axis=0)
        points[:, axes[edge]] = between if rises[edge] else between[::-1]
        parts += [ring[done : edge + 1], points]
        done = edge + 1
    return np.concatenate([*parts, ring[done:-1]]), bool(edges.at_seam.any())


def _meridians(fixed: np.int64, low: np.int64, high: np.int64, turn: float) -> IntArray:
    """Where an edge on a polar face crosses meridians that are `turn` radians apart.

    These edges are curves on the map that bend the more the nearer they pass the pole.
    """
    away = abs(fixed - _HALF)
    angles = np.arctan2([low - _HALF, high - _HALF], away) / turn
    tangents = np.tan(np.arange(np.ceil(angles[0]), np.floor(angles[1]) + 1.0) * turn)
    return np.unique(np.rint(_HALF + away * tangents).astype(np.int64))


def _joined(pieces: list[_Piece], edges: _Edges, events: dict[SeamKey, IntArray], step: int) -> shapely.MultiPolygon:
    """Bring pieces to the map and join those that meet at seams."""
    special = _any_of(pieces, edges.ring[edges.wanting(step)])
    lone: list[shapely.Geometry] = _as_they_are(
        [piece for piece, is_so in zip(pieces, special, strict=True) if not is_so]
    )
    meeting: list[shapely.Geometry] = []
    for piece in (piece for piece, is_so in zip(pieces, special, strict=True) if is_so):
        polygon, at_seam = _on_the_map(piece, events, step)
        (meeting if at_seam else lone).append(polygon)
    joined = [shapely.union_all(shapely.make_valid(meeting), grid_size=_GRID)] if meeting else []
    return _multi_polygon([*lone, *joined])


def _any_of(pieces: list[_Piece], rings: IntArray) -> list[bool]:
    """Say of each piece whether one of its rings is among those of some numbers."""
    counts = [len(piece.rings) for piece in pieces]
    marked = np.zeros(sum(counts), dtype=np.bool_)
    marked[rings] = True
    owner = np.repeat(np.arange(len(counts)), counts)
    found: list[bool] = (np.bincount(owner[marked], minlength=len(counts)) > 0).tolist()
    return found


def _as_they_are(pieces: list[_Piece]) -> list[shapely.Geometry]:
    """Polygons of pieces that need no further vertices and lie off all seams: most, and all of them at once."""
    if not pieces:
        return []
    rings = [ring for piece in pieces for ring in piece.rings]
    owner = np.repeat(np.arange(len(pieces)), [len(piece.rings) for piece in pieces])
    number = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    face = np.array([piece.face for piece in pieces])[owner][number]
    longitude, latitude = _degrees(_cube(face, np.concatenate(rings)))
    points = np.round(np.stack([longitude, latitude], axis=1), _DECIMALS)
    lines = np.asarray(shapely.linearrings(points, indices=number), dtype=object)
    return list(np.asarray(shapely.polygons(lines, indices=owner), dtype=object))


def _multi_polygon(shapes: list[shapely.Geometry]) -> shapely.MultiPolygon:
    parts = shapely.get_parts(shapes)
    polygons = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    return shapely.MultiPolygon(shapely.orient_polygons(polygons).tolist())


def _on_the_map(piece: _Piece, events: dict[SeamKey, IntArray], step: int) -> tuple[shapely.Polygon, bool]:
    """One polygon, valid or not, and whether it touches a seam."""
    rings, at_seam = [], False
    for ring in piece.rings:
        filled, touches = _filled(piece, ring, events, step)
        rings.append(_project(piece, filled))
        at_seam |= touches
    return shapely.Polygon(rings[0], rings[1:]), at_seam


def _project(piece: _Piece, ij: IntArray) -> FloatArray:
    cube = _cube(piece.face, ij)
    x, y, z = cube.T
    longitude, latitude = _degrees(cube)
    longitude[(np.abs(y) < _ON_A_PLANE) & (x < 0.0)] = 180.0 if piece.east else -180.0
    points = np.stack([longitude, latitude], axis=1)
    pole = np.flatnonzero(np.hypot(x, y) < _ON_A_PLANE)
    if pole.size:  # a pole is a line on the map: from the meridian the ring comes on to the one it leaves on
        at = int(pole[0])
        before, after = points[at - 1, 0], points[(at + 1) % len(points), 0]
        top = 90.0 if z[at] > 0.0 else -90.0
        points = np.concatenate([points[:at], [[before, top], [after, top]], points[at + 1 :]])
    return np.round(points, _DECIMALS)


def _degrees(cube: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Longitude and latitude of points on the cube."""
    x, y, z = cube.T
    longitude = np.degrees(np.arctan2(np.where(np.abs(y) < _ON_A_PLANE, 0.0, y), x))
    return longitude, np.degrees(np.arctan2(z, np.hypot(x, y)))


def _latitudes_at(part: shapely.Polygon, longitude: float) -> FloatArray:
    """Intervals of latitude on which the exterior runs along a meridian, (m, 2)."""
    ring = shapely.get_coordinates(part.exterior)
    along = (ring[:-1, 0] == longitude) & (ring[1:, 0] == longitude)
    return np.sort(np.stack([ring[:-1, 1][along], ring[1:, 1][along]], axis=-1), axis=1)


def _overlap(a: FloatArray, b: FloatArray) -> float:
    """Length that two sets of disjoint intervals share."""
    shared = np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0])
    return float(np.maximum(shared, 0.0).sum())
