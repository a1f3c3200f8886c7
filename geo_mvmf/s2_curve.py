"""How S2 numbers the sphere: six faces of a cube, quadratic squares on each, a Hilbert curve through them.

Source: the S2 geometry library (s2coords.h, s2cell_id.cc), "quadratic" projection. A point has a face 0..5 and
coordinates u, v in -1..1 on that face of the cube; s, t in 0..1 are u, v stretched so that squares of equal side have
similar area; i, j in 0..2^30 - 1 number the leaf squares. The Hilbert curve is walked six levels at a time by table.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

MAX_LEVEL = 30
MAX_SIZE = 1 << MAX_LEVEL  # leaf squares along an edge of a face

_STEP = 6  # levels per table look-up: 5 look-ups of a table of 4^6 entries for each of 4 orientations
_SQUARES = 1 << _STEP
# row = orientation (bit 0: axes swapped, bit 1: axes inverted), column = position 0..3 along the curve
_POSITION_TO_IJ = np.array([[0, 1, 3, 2], [0, 2, 3, 1], [3, 2, 0, 1], [3, 1, 0, 2]])
_POSITION_TO_TURN = np.array([1, 0, 0, 3])
# how x, y, z of a direction give (w, u, v) on each face: axis and sign of each
_AXES = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [0, 2, 1], [1, 2, 0], [2, 1, 0]])
_SIGNS = np.array([[1.0, 1, 1], [1, -1, 1], [1, -1, -1], [-1, -1, -1], [-1, -1, 1], [-1, 1, 1]])
# the same as matrices: (x, y, z) = FROM_FACE[face] (w, u, v), one entry of +-1 per row
FROM_FACE = np.swapaxes(np.eye(3)[_AXES] * _SIGNS[..., None], 1, 2)


def st_to_uv(s: npt.ArrayLike) -> FloatArray:
    """Turn s (or t) in 0..1 into u (or v) in -1..1.

    Parameters
    ----------
    s : array_like of float, shape (...)
        Stretched coordinate.

    Examples
    --------
    >>> st_to_uv([0.0, 0.5, 1.0]).tolist()
    [-1.0, 0.0, 1.0]
    """
    s = np.asarray(s, dtype=np.float64)
    return np.asarray(np.where(s >= 0.5, 4.0 * s * s - 1.0, 1.0 - 4.0 * (1.0 - s) ** 2) / 3.0)


def uv_to_st(u: npt.ArrayLike) -> FloatArray:
    """Turn u (or v) in -1..1 into s (or t) in 0..1.

    Parameters
    ----------
    u : array_like of float, shape (...)
        Coordinate on the cube's face.

    Examples
    --------
    >>> uv_to_st([-1.0, 0.0, 1.0]).tolist()
    [0.0, 0.5, 1.0]
    """
    u = np.asarray(u, dtype=np.float64)
    root = 0.5 * np.sqrt(1.0 + 3.0 * np.abs(u))
    return np.asarray(np.where(u >= 0.0, root, 1.0 - root))


def st_slope(s: npt.ArrayLike) -> FloatArray:
    """Give du/ds, the stretch at s.

    Parameters
    ----------
    s : array_like of float, shape (...)
        Stretched coordinate in 0..1.

    Examples
    --------
    >>> st_slope([0.0, 0.5, 1.0]).round(4).tolist()
    [2.6667, 1.3333, 2.6667]
    """
    s = np.asarray(s, dtype=np.float64)
    return np.asarray(8.0 / 3.0 * np.maximum(s, 1.0 - s), dtype=np.float64)


def uv_directions(face: npt.ArrayLike, u: npt.ArrayLike, v: npt.ArrayLike) -> FloatArray:
    """Turn points of the cube's faces into directions.

    Parameters
    ----------
    face : array_like of int, 0..5
        Face of the cube.
    u, v : array_like of float, -1..1
        Coordinates on it. All three broadcast to (...).

    Returns
    -------
    ndarray of float64, shape (..., 3)
        Unit vectors.

    Examples
    --------
    >>> uv_directions(2, 0.0, 0.0).tolist()
    [0.0, 0.0, 1.0]
    """
    rows = FROM_FACE[np.asarray(face, dtype=np.int64)]  # (..., 3, 3)
    u_, v_ = np.asarray(u, dtype=np.float64), np.asarray(v, dtype=np.float64)
    scale = 1.0 / np.sqrt(1.0 + u_ * u_ + v_ * v_)
    local = (scale, u_ * scale, v_ * scale)
    vectors = np.empty((*np.broadcast_shapes(rows.shape[:-2], scale.shape), 3))
    for axis in range(3):
        vectors[..., axis] = sum(rows[..., axis, k] * local[k] for k in range(3))
    return vectors


def face_uv(directions: npt.ArrayLike) -> tuple[IntArray, FloatArray, FloatArray]:
    """Find the face that a direction passes through, and where.

    Parameters
    ----------
    directions : array_like of float, shape (..., 3)
        Vectors of any length but 0.

    Returns
    -------
    face : ndarray of int64, shape (...)
        0..5; on an edge of the cube the later axis wins, as in the S2 library.
    u, v : ndarray of float64, shape (...)
        Coordinates on the face, -1..1.

    Examples
    --------
    >>> [float(value) for value in face_uv([0.0, 0.0, -2.0])]
    [5.0, 0.0, 0.0]
    """
    vectors = np.asarray(directions, dtype=np.float64)
    flat = np.ascontiguousarray(vectors.reshape(-1, 3).T)  # (3, n): columns are contiguous
    size = np.abs(flat)
    axis = np.where(size[0] > size[1], np.where(size[0] > size[2], 0, 2), np.where(size[1] > size[2], 1, 2))
    which = np.arange(axis.size)
    face = axis + 3 * (flat[axis, which] < 0.0)
    local = [flat[_AXES[face, k], which] * _SIGNS[face, k] for k in range(3)]
    shape = vectors.shape[:-1]
    return face.reshape(shape), (local[1] / local[0]).reshape(shape), (local[2] / local[0]).reshape(shape)


def st_to_ij(s: npt.ArrayLike) -> IntArray:
    """Find the leaf square that holds s (or t).

    Parameters
    ----------
    s : array_like of float, shape (...)
        Stretched coordinate; values outside 0..1 count as the nearest square.

    Examples
    --------
    >>> st_to_ij([0.0, 0.5, 1.0]).tolist()
    [0, 536870912, 1073741823]
    """
    scaled = np.floor(MAX_SIZE * np.asarray(s, dtype=np.float64))
    return np.clip(scaled, 0, MAX_SIZE - 1).astype(np.int64)


def encode(face: npt.ArrayLike, i: npt.ArrayLike, j: npt.ArrayLike) -> IdArray:
    """Walk the Hilbert curve from face, i, j to the id of a leaf cell.

    Parameters
    ----------
    face : array_like of int, 0..5
        Face of the cube.
    i, j : array_like of int, 0..2^30 - 1
        Leaf square along u and along v. All three broadcast to (...).

    Returns
    -------
    ndarray of uint64, shape (...)
        Leaf ids (level 30).

    Examples
    --------
    >>> hex(int(encode(0, 0, 0)))
    '0x1'
    """
    face, i, j = (np.asarray(value, dtype=np.int64) for value in (face, i, j))
    forward, _ = _tables()
    turn = face & 1
    position = np.asarray(face, dtype=np.int64)
    for shift in range(MAX_LEVEL - _STEP, -1, -_STEP):
        squares = (((i >> shift) & (_SQUARES - 1)) << _STEP) | ((j >> shift) & (_SQUARES - 1))
        entry = forward[(turn << (2 * _STEP)) | squares]
        position = (position << (2 * _STEP)) | (entry >> 2)
        turn = entry & 3
    return (position.astype(np.uint64) << np.uint64(1)) | np.uint64(1)


def decode(ids: npt.ArrayLike) -> tuple[IntArray, IntArray, IntArray]:
    """Walk the Hilbert curve from ids back to face, i, j.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Cell ids of any level.

    Returns
    -------
    face, i, j : ndarray of int64, shape (...)
        One of the leaf squares at the middle of each cell; clear the low bits of i and j for the cell's corner.

    Examples
    --------
    >>> [int(value) for value in decode(encode(3, 5, 7))]
    [3, 5, 7]
    """
    ids = np.asarray(ids, dtype=np.uint64)
    position = (ids >> np.uint64(1)).astype(np.int64)
    face = position >> (2 * MAX_LEVEL)
    _, backward = _tables()
    turn, i, j = face & 1, np.zeros_like(position), np.zeros_like(position)
    for shift in range(MAX_LEVEL - _STEP, -1, -_STEP):
        steps = (position >> (2 * shift)) & (_SQUARES * _SQUARES - 1)
        entry = backward[(turn << (2 * _STEP)) | steps]
        i = (i << _STEP) | (entry >> (_STEP + 2))
        j = (j << _STEP) | ((entry >> 2) & (_SQUARES - 1))
        turn = entry & 3
    return face, i, j


@functools.cache
def _tables() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(turn, i, j) -> (position, turn) and (turn, position) -> (i, j, turn), six levels at once.

    An entry packs its values: position or i, j above the two bits of the orientation that comes out.
    """
    start, steps = np.meshgrid(np.arange(4), np.arange(_SQUARES**2), indexing="ij")
    turn, i, j = start, np.zeros_like(steps), np.zeros_like(steps)
    for k in range(_STEP - 1, -1, -1):
        step = (steps >> (2 * k)) & 3
        square = _POSITION_TO_IJ[turn, step]
        i, j, turn = (i << 1) | (square >> 1), (j << 1) | (square & 1), turn ^ _POSITION_TO_TURN[step]
    squares = (i << _STEP) | j
    forward = np.empty(4 * _SQUARES**2, dtype=np.int64)
    forward[((start << (2 * _STEP)) | squares).ravel()] = ((steps << 2) | turn).ravel()
    return forward, ((squares << 2) | turn).ravel()
