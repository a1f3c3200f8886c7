"""S2 cell ids as numbers: level, parent, children, ranges of leaves, tokens; nothing here knows where a cell lies.

An id is 3 bits of face, two bits per level of the Hilbert curve, one bit that marks the end, and zeros. So the lowest
set bit tells the level, and the leaves of a cell are the odd numbers of one range.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf.s2_curve import MAX_LEVEL

IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

_ONE = np.uint64(1)
_LEVEL_BITS = np.uint64(0x1555555555555555)  # where the lowest set bit of an id may be
_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8).astype(np.uint32)


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
    return _levels(_ids(ids))


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
    >>> bool(parent(range_min(face_cells()[1]), 0) == face_cells()[1])
    True
    """
    ids = _ids(ids)
    bit = _bit_of_level(level)
    if np.any(bit < _lowest_bit(ids)):
        raise ValueError(f"level {np.max(level)} is finer than the cells, whose lowest is {_levels(ids).min()}")
    return np.asarray((ids & ~((bit << _ONE) - _ONE)) | bit)


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


def is_valid(ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Say which numbers are ids of cells.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Any numbers.

    Examples
    --------
    >>> is_valid(np.array([0, 1, 2], dtype=np.uint64)).tolist()
    [False, True, False]
    """
    ids = _ids(ids)
    bit = _lowest_bit(np.where(ids == 0, _ONE << _ONE, ids))
    return np.asarray(((bit & _LEVEL_BITS) != 0) & (ids >> np.uint64(61) < 6))


def range_min(ids: npt.ArrayLike) -> IdArray:
    """Give the first leaf of each cell.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Examples
    --------
    >>> hex(int(range_min(face_cells()[1])))
    '0x2000000000000001'
    """
    ids = _ids(ids)
    return np.asarray(ids - (_lowest_bit(ids) - _ONE))


def range_max(ids: npt.ArrayLike) -> IdArray:
    """Give the last leaf of each cell.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Valid ids.

    Examples
    --------
    >>> hex(int(range_max(face_cells()[1])))
    '0x3fffffffffffffff'
    """
    ids = _ids(ids)
    return np.asarray(ids + (_lowest_bit(ids) - _ONE))


def contains(ids: npt.ArrayLike, others: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Say which cells hold the other cells (a cell holds itself).

    Parameters
    ----------
    ids, others : array_like of uint64, any shapes that broadcast to (...)
        Valid ids.

    Examples
    --------
    >>> contains(face_cells(), range_max(face_cells()[1])).tolist()
    [False, True, False, False, False, False]
    """
    others = _ids(others)
    return np.asarray((range_min(ids) <= others) & (others <= range_max(ids)))


def face_cells() -> IdArray:
    """Give the six cells of level 0, in order.

    Examples
    --------
    >>> to_token(face_cells()).tolist()
    ['1', '3', '5', '7', '9', 'b']
    """
    return (np.arange(6, dtype=np.uint64) << np.uint64(61)) | (_ONE << np.uint64(60))


def to_token(ids: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """Write ids as text: hexadecimal without trailing zeros, as the S2 library does.

    Parameters
    ----------
    ids : array_like of uint64, shape (...)
        Ids.

    Returns
    -------
    ndarray of str, shape (...)
        Tokens of up to 16 characters; "X" for the number 0, which is no cell.

    Examples
    --------
    >>> to_token(range_max(face_cells()[0])).tolist()
    '1fffffffffffffff'
    """
    ids = _ids(ids)
    shifts = np.arange(60, -4, -4, dtype=np.uint64)
    digits = _DIGITS[((ids[..., None] >> shifts) & np.uint64(15)).astype(np.int64)]
    text = np.ascontiguousarray(digits).view("U16")[..., 0]
    return np.where(ids == 0, "X", np.char.rstrip(text, "0"))


def from_token(tokens: npt.ArrayLike) -> IdArray:
    """Read ids from text.

    Parameters
    ----------
    tokens : array_like of str, shape (...)
        What `to_token` writes.

    Returns
    -------
    ndarray of uint64, shape (...)
        Valid ids.

    Raises
    ------
    ValueError
        A text is not the token of a cell.

    Examples
    --------
    >>> bool(from_token("5") == face_cells()[2])
    True
    """
    texts = np.asarray(tokens, dtype=np.str_)
    ids = np.array([_id_of_token(str(text)) for text in texts.ravel()], dtype=np.uint64).reshape(texts.shape)
    wrong = ~is_valid(ids)
    if np.any(wrong):
        raise ValueError(f"{str(texts[wrong].flat[0])!r} is not the token of an S2 cell")
    return ids


def _id_of_token(text: str) -> int:
    plain = 0 < len(text) <= 16 and all(letter in "0123456789abcdefABCDEF" for letter in text)
    return int(text.ljust(16, "0"), 16) if plain else 0


def _levels(ids: IdArray) -> IntArray:
    # a power of two is exact in float64, and its exponent says which
    exponent = np.frexp(_lowest_bit(ids).astype(np.float64))[1].astype(np.int64)
    return np.asarray(MAX_LEVEL - (exponent - 1) // 2)


def _bit_of_level(level: npt.ArrayLike) -> IdArray:
    levels = np.asarray(level, dtype=np.int64)
    wrong = (levels < 0) | (levels > MAX_LEVEL)
    if np.any(wrong):
        raise ValueError(f"level {levels[wrong].flat[0]} is not in 0..{MAX_LEVEL}")
    return np.asarray(_ONE << (2 * (MAX_LEVEL - levels)).astype(np.uint64))


def _lowest_bit(ids: IdArray) -> IdArray:
    return np.asarray(ids & ~(ids - _ONE))


def _ids(values: Any) -> IdArray:
    return np.asarray(values, dtype=np.uint64)
