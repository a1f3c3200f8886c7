"""S2 cells: point -> id, parent, children, centre, corners, area, neighbours; all on whole arrays.

Ids are numpy uint64 and equal those of the S2 library (face, Hilbert position, one trailing bit); `level` 0 is a face
of the cube, 30 a leaf of about a square centimetre. Ids exceed int64: write them as text with `to_token`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geo_mvmf.s2_curve import (
    MAX_LEVEL,
    MAX_SIZE,
    decode,
    encode,
    face_uv,
    st_to_ij,
    st_to_uv,
    uv_directions,
    uv_to_st,
)
from geo_mvmf.s2_ids import (
    children,
    contains,
    face_cells,
    from_token,
    is_valid,
    level,
    parent,
    range_max,
    range_min,
    to_token,
)

__all__ = [
    "MAX_LEVEL",
    "area_sr",
    "bounding_radius",
    "cell_ids",
    "cell_rectangle",
    "centre",
    "children",
    "contains",
    "corners",
    "edge_length",
    "edge_neighbours",
    "face_cells",
    "from_token",
    "is_valid",
    "leaf_ids",
    "level",
    "parent",
    "range_max",
    "range_min",
    "st_rectangle",
    "to_token",
    "uv_directions",
]

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
_Point = tuple[FloatArray, FloatArray]

_MEAN_EDGE = 1.459213746386106  # S2 library, kAvgEdge of the quadratic projection: radians at level 0


def leaf_ids(directions: npt.ArrayLike) -> IdArray:
    """Find the leaf cell of each direction.

    Parameters
    ----------
    directions : array_like of float, shape (..., 3)
        Vectors of any length but 0.

    Returns
    -------
    ndarray of uint64, shape (...)
        Ids of level 30.

    Raises
    ------
    ValueError
        A direction is not finite.

    Examples
    --------
    >>> hex(int(leaf_ids([1.0, 0.0, 0.0])))
    '0x1000000000000001'
    """
    vectors = _directions(directions)
    face, u, v = face_uv(vectors)
    return encode(face, st_to_ij(uv_to_st(u)), st_to_ij(uv_to_st(v)))


def cell_ids(directions: npt.ArrayLike, level: npt.ArrayLike) -> IdArray:
    """Find the cell of a level that holds each direction.

    Parameters
    ----------
    directions : array_like of float, shape (..., 3)
        Vectors of any length but 0.
    level : array_like of int, 0..30
        One level, or one per direction.

    Examples
    --------
    >>> to_token(cell_ids([0.0, 0.0, 1.0], 0)).tolist()
    '5'
    """
    return parent(leaf_ids(directions), level)


def cell_rectangle(ids: npt.ArrayLike) -> tuple[IntArray, FloatArray, FloatArray]:
    """Give the rectangle of each cell on its face of the cube.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Returns
    -------
    face : ndarray of int64, shape (...)
        0..5.
    u, v : ndarray of float64, shape (..., 2)
        Lower and upper bound.

    Examples
    --------
    >>> face, u, v = cell_rectangle(face_cells()[4])
    >>> int(face), u.tolist(), v.tolist()
    (4, [-1.0, 1.0], [-1.0, 1.0])
    """
    face, s, t = st_rectangle(ids)
    return face, st_to_uv(s), st_to_uv(t)


def st_rectangle(ids: npt.ArrayLike) -> tuple[IntArray, FloatArray, FloatArray]:
    """Give the square of each cell in the stretched coordinates of its face.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Returns
    -------
    face : ndarray of int64, shape (...)
        0..5.
    s, t : ndarray of float64, shape (..., 2)
        Lower and upper bound in 0..1; multiples of 2^-level, exact.

    Examples
    --------
    >>> st_rectangle(children(face_cells()[0]))[1].tolist()
    [[0.0, 0.5], [0.0, 0.5], [0.5, 1.0], [0.5, 1.0]]
    """
    ids = np.asarray(ids, dtype=np.uint64)
    face, i, j = decode(ids)
    size = np.int64(1) << (MAX_LEVEL - level(ids))
    ij = np.stack([i, j]) & ~(size - 1)
    low, high = ij / MAX_SIZE, (ij + size) / MAX_SIZE
    s, t = np.stack([low, high], axis=-1)
    return face, s, t


def centre(ids: npt.ArrayLike) -> FloatArray:
    """Give the centre of each cell (the middle in stretched coordinates, as in the S2 library).

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Returns
    -------
    ndarray of float64, shape (..., 3)
        Directions.

    Examples
    --------
    >>> centre(face_cells()[2]).tolist()
    [0.0, 0.0, 1.0]
    """
    face, s, t = st_rectangle(ids)
    return uv_directions(face, st_to_uv(s.mean(axis=-1)), st_to_uv(t.mean(axis=-1)))


def corners(ids: npt.ArrayLike) -> FloatArray:
    """Give the corners of each cell, counter-clockwise seen from outside.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Returns
    -------
    ndarray of float64, shape (..., 4, 3)
        Directions; the edges between them are great circles. A corner shared by cells of one face is the same number.

    Examples
    --------
    >>> corners(face_cells()).shape
    (6, 4, 3)
    """
    face, u, v = cell_rectangle(ids)
    return uv_directions(face[..., None], u[..., [0, 1, 1, 0]], v[..., [0, 0, 1, 1]])


def area_sr(ids: npt.ArrayLike) -> FloatArray:
    """Give the exact spherical area of each cell.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Returns
    -------
    ndarray of float64, shape (...)
        Steradians; any tiling of the sphere sums to 4 pi. Relative error about 1e-15 at every level.

    Notes
    -----
    Two triangles by tan(E/2) = a.(b x c) / (1 + a.b + b.c + c.a) (van Oosterom and Strackee 1983). On the cube's
    face the triple product is (u1 - u0) (v1 - v0) over three lengths, so that nothing cancels.

    Examples
    --------
    >>> round(float(area_sr(face_cells()[0]) * 6 / (4 * np.pi)), 12)
    1.0
    """
    _, s, t = st_rectangle(ids)
    u0, u1, v0, v1 = st_to_uv(s[..., 0]), st_to_uv(s[..., 1]), st_to_uv(t[..., 0]), st_to_uv(t[..., 1])
    determinant = _difference_uv(s) * _difference_uv(t)
    first = _half_excess((u0, v0), (u1, v0), (u1, v1), determinant)
    second = _half_excess((u0, v0), (u1, v1), (u0, v1), determinant)
    return np.asarray(2.0 * (first + second))


def edge_length(level: npt.ArrayLike) -> FloatArray:
    """Give the mean length of the edges of the cells of a level.

    Parameters
    ----------
    level : array_like of int, shape (...)
        0..30.

    Returns
    -------
    ndarray of float64, shape (...)
        Radians.

    Notes
    -----
    Source: S2 library, s2metrics (kAvgEdge, quadratic projection).

    Examples
    --------
    >>> round(float(edge_length(10)) * 6371.0088, 2)
    9.08
    """
    return np.ldexp(_MEAN_EDGE, -np.asarray(level, dtype=np.int64))


def bounding_radius(ids: npt.ArrayLike) -> FloatArray:
    """Give the largest angle between the centre of each cell and a point of it.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Returns
    -------
    ndarray of float64, shape (...)
        Radians; reached at a corner.

    Examples
    --------
    >>> round(float(np.degrees(bounding_radius(face_cells()[0]))), 3)
    54.736
    """
    difference = corners(ids) - centre(ids)[..., None, :]
    chord = np.sqrt(np.einsum("...i,...i->...", difference, difference).max(axis=-1))
    return np.asarray(2.0 * np.arcsin(chord / 2.0))


def edge_neighbours(ids: npt.ArrayLike) -> IdArray:
    """Give the four cells of the same level that share an edge with each cell.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Returns
    -------
    ndarray of uint64, shape (..., 4)
        Below, right, above, left in the face's own u and v, also across the edges of the cube.

    Examples
    --------
    >>> to_token(edge_neighbours(face_cells()[0])).tolist()
    ['b', '3', '5', '9']
    """
    ids = np.asarray(ids, dtype=np.uint64)
    face, i, j = decode(ids)
    levels = level(ids)
    size = (np.int64(1) << (MAX_LEVEL - levels))[..., None]
    i = i[..., None] + size * np.array([0, 1, 0, -1])
    j = j[..., None] + size * np.array([-1, 0, 1, 0])
    inside = (i >= 0) & (i < MAX_SIZE) & (j >= 0) & (j < MAX_SIZE)
    same = encode(face[..., None], np.clip(i, 0, MAX_SIZE - 1), np.clip(j, 0, MAX_SIZE - 1))
    return parent(np.where(inside, same, _wrapped(face[..., None], i, j)), levels[..., None])


def _wrapped(face: IntArray, i: IntArray, j: IntArray) -> IdArray:
    """Leaf ids of squares up to one cell beyond the face: S2's FromFaceIJWrap, in linear coordinates near the edge."""
    # just past the edge is enough: farther, a leaf at the cube's corner would be taken for the next one
    just_past = np.nextafter(1.0, 2.0)
    u, v = (np.clip((2 * index + 1 - MAX_SIZE) / MAX_SIZE, -just_past, just_past) for index in (i, j))
    other, u, v = face_uv(uv_directions(face, u, v))
    return encode(other, st_to_ij(0.5 * (u + 1.0)), st_to_ij(0.5 * (v + 1.0)))


def _difference_uv(s: FloatArray) -> FloatArray:
    """u(s1) - u(s0) without cancellation; a cell that is not a face lies on one side of s = 1/2."""
    low, high = s[..., 0], s[..., 1]
    stretch = np.where(low >= 0.5, low + high, 2.0 - low - high)
    return np.where(high - low == 1.0, 2.0, 4.0 / 3.0 * (high - low) * stretch)


def _half_excess(a: _Point, b: _Point, c: _Point, determinant: FloatArray) -> FloatArray:
    """Half the spherical excess of triangles with corners (1, u, v)."""
    length_a, length_b, length_c = (np.sqrt(1.0 + u * u + v * v) for u, v in (a, b, c))
    total = length_a * length_b * length_c
    for (one, other), length in (((a, b), length_c), ((b, c), length_a), ((c, a), length_b)):
        total += (1.0 + one[0] * other[0] + one[1] * other[1]) * length
    return np.asarray(np.arctan2(determinant, total))


def _directions(values: npt.ArrayLike) -> FloatArray:
    vectors = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(vectors).all(axis=-1)
    if not np.all(finite):
        (row,) = np.nonzero(~finite.ravel())
        raise ValueError(f"direction {row[0]} is {vectors.reshape(-1, 3)[row[0]].tolist()}, not three finite numbers")
    return vectors
