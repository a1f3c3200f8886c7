"""From a raster's own values to 8 bits: fixed when chips are cut, stored, and the same ever after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf.errors import UsageError

Stretch = tuple[tuple[float, float], ...]
"""For each band the value that becomes 0 and the one that becomes 255."""


def check_stretch(stretch: Sequence[Sequence[float]], bands: int) -> Stretch:
    """Check a stretch that a user or a file gives.

    Parameters
    ----------
    stretch : sequence of (low, high)
        In the raster's own values.
    bands : int
        How many bands it is for.

    Returns
    -------
    tuple of (low, high)

    Raises
    ------
    UsageError
        If it is for another number of bands, or low < high does not hold.

    Examples
    --------
    >>> check_stretch([[0, 3000]], 1)
    ((0.0, 3000.0),)
    """
    pairs = tuple(tuple(float(value) for value in pair) for pair in stretch)
    if len(pairs) != bands:
        raise UsageError(f"stretch {list(stretch)} has {len(pairs)} pairs for {bands} bands; give one for each")
    checked = []
    for pair in pairs:
        if len(pair) != 2 or not all(map(math.isfinite, pair)) or not pair[0] < pair[1]:
            raise UsageError(f"stretch {list(stretch)}: {pair} is not (low, high) with low < high")
        checked.append((pair[0], pair[1]))
    return tuple(checked)


def apply_stretch(pixels: npt.NDArray[Any], stretch: Stretch | None) -> npt.NDArray[np.uint8]:
    """Turn a raster's values into 8 bits.

    Parameters
    ----------
    pixels : ndarray, shape (B, H, W)
    stretch : tuple of (low, high), or None
        One pair for each band; None passes uint8 on and is an error for anything else.

    Returns
    -------
    ndarray of uint8, shape (B, H, W)
        0 at low and below, 255 at high and above, rounded between.

    Raises
    ------
    UsageError
        If there is no stretch and the values are not uint8.

    Examples
    --------
    >>> apply_stretch(np.array([[[-5.0, 0.0, 5.0, 10.0, 15.0]]]), ((0.0, 10.0),)).tolist()
    [[[0, 0, 128, 255, 255]]]
    """
    if stretch is None:
        if pixels.dtype != np.uint8:
            raise UsageError(f"values of type {pixels.dtype} need a stretch to become 8 bits; give one, or 'auto'")
        return pixels
    low, high = np.asarray(stretch, dtype=np.float64).T[..., None, None]  # (B, 1, 1)
    scaled = (pixels.astype(np.float64) - low) / (high - low) * 255.0
    return np.asarray(np.rint(np.clip(scaled, 0.0, 255.0)), dtype=np.uint8)


def percentile_stretch(values: npt.NDArray[Any], low: float = 2.0, high: float = 98.0) -> Stretch:
    """Choose a stretch by percentiles.

    Parameters
    ----------
    values : ndarray, shape (B, n)
        Valid values of each band.
    low, high : float
        Per cent.

    Returns
    -------
    tuple of (low, high)
        Where a band holds one value only, high is one more than low.

    Examples
    --------
    >>> percentile_stretch(np.arange(101.0)[None])
    ((2.0, 98.0),)
    """
    pairs = np.percentile(values, [low, high], axis=1).T  # (B, 2)
    return tuple((float(first), float(last) if last > first else float(first) + 1.0) for first, last in pairs)
