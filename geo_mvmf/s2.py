"""S2 cells: point -> id, parent, children, centre, corners, area, neighbours; all on whole arrays.

Ids are numpy uint64 and equal those of the S2 library (face, Hilbert position, one trailing bit); `level` 0 is a face
of the cube, 30 a leaf of about a square centimetre. Ids exceed int64: write them as text with `to_token`.
"""

from __future__ import annotations

from typing import Any

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
    "to_token",
    "uv_directions",
]

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

_ONE = np.uint64(1)
_LEVEL_BITS = np.uint64(0x1555555555555555)  # where the lowest set bit of an id may be
_MEAN_EDGE = 1.459213746386106  # S2 library, kAvgEdge of the quadratic projection: radians at level 0
_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8).astype(np.uint32)


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


def level(ids: npt.ArrayLike) -> IntArray:
    """Give the level of each cell.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Returns
    -------
    ndarray of int64, shape (...)
        0..30.

    Examples
    --------
    >>> level(children(face_cells()[:1])).tolist()
    [[1, 1, 1, 1]]
    """
    # a power of two is exact in float64, and its exponent says which
    exponent = np.frexp(_lowest_bit(_ids(ids)).astype(np.float64))[1].astype(np.int64)
    return MAX_LEVEL - (exponent - 1) // 2


def parent(ids: npt.ArrayLike, level: npt.ArrayLike) -> IdArray:
    """Give the cell of a lower level that holds each cell.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.
    level : array_like of int, 0..30
        At most the cells' own levels; broadcasts.

    Raises
    ------
    ValueError
        A level is outside 0..30 or above the cell's own.

    Examples
    --------
    >>> bool(parent(leaf_ids([0.0, 1.0, 0.0]), 0) == face_cells()[1])
    True
    """
    ids = _ids(ids)
    bit = _bit_of_level(level)
    if np.any(bit < _lowest_bit(ids)):
        raise ValueError(f"level {np.max(level)} is finer than the cells, which have level {np.min(_level(ids))}")
    return (ids & ~(bit - _ONE) & ~bit) | bit if np.ndim(bit) or np.ndim(ids) else np.uint64((ids & -bit) | bit)


def children(ids: npt.ArrayLike) -> IdArray:
    """Give the four cells of the next level, in the order of the curve (which is the order of the ids).

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids below level 30.

    Returns
    -------
    ndarray of uint64, shape (..., 4)
        The children.

    Raises
    ------
    ValueError
        A cell is a leaf.

    Examples
    --------
    >>> to_token(children(face_cells()[0])).tolist()
    ['04', '0c', '14', '1c']
    """
    ids = _ids(ids)
    bit = _lowest_bit(ids)
    if np.any(bit == _ONE):
        raise ValueError(f"cell {to_token(ids[bit == _ONE].flat[0])} is a leaf (level 30) and has no children")
    quarter = (bit >> np.uint64(2))[..., None]
    return (ids - bit)[..., None] + quarter * np.array([1, 3, 5, 7], dtype=np.uint64)
