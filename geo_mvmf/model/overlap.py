"""Overlap: whether images lie at places that a model was trained on, known from a few hashes in the bundle.

A bundle keeps the smallest hashes of its training places (a bottom-k sketch, Broder 1997). Of any other images those
whose hash is below the largest kept one must be in the sketch if they are of the training; how many of them are tells
the share. A hash of 32 bits fits a hundred thousand places of the Earth to a metre, so none can be read from it.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

_KEPT = 256
_DIGITS = 8  # of a hash of 32 bits, hexadecimal


class Overlap(NamedTuple):
    """Share of images at places of the training, and how many images could be tested."""

    share: float
    tested: int


def sketch(longitude: FloatArray, latitude: FloatArray) -> str:
    """Make the sketch of training places.

    Parameters
    ----------
    longitude, latitude : ndarray of float64, (N,)
        Degrees; places that agree to five decimals, a metre, are one.

    Returns
    -------
    str
        At most 256 hashes of eight hexadecimal digits, in ascending order.

    Examples
    --------
    >>> len(sketch(np.array([7.0, 7.0, 8.0]), np.array([50.0, 50.0, 50.0])))
    16
    """
    return "".join(f"{value:0{_DIGITS}x}" for value in np.unique(_hashes(longitude, latitude))[:_KEPT])


def measure(known: str, longitude: FloatArray, latitude: FloatArray) -> Overlap:
    """Estimate how many images lie at places of the training.

    Parameters
    ----------
    known : str
        The sketch.
    longitude, latitude : ndarray of float64, (N,)
        Of other images, degrees.

    Returns
    -------
    Overlap
        With a share of NaN where no image can be tested.

    Raises
    ------
    ValueError
        If the text is no sketch.

    Examples
    --------
    >>> longitude, latitude = np.linspace(-179.0, 179.0, 90), np.linspace(-80.0, 80.0, 90)
    >>> measure(sketch(longitude, latitude), longitude[::2], latitude[::2])
    Overlap(share=1.0, tested=45)
    >>> measure(sketch(longitude, latitude), longitude, -latitude).share
    0.0
    """
    kept = {int(known[start : start + _DIGITS], 16) for start in range(0, len(known), _DIGITS)}
    # fewer than the most are all: then every image can be tested
    limit = max(kept) if len(kept) >= _KEPT else 1 << 32
    tested = [int(value) for value in _hashes(longitude, latitude) if value <= limit]
    share = sum(value in kept for value in tested) / len(tested) if tested else float("nan")
    return Overlap(share, len(tested))


def _hashes(longitude: FloatArray, latitude: FloatArray) -> npt.NDArray[np.uint32]:
    texts = (f"{x:.5f},{y:.5f}" for x, y in zip(longitude + 0.0, latitude + 0.0, strict=True))
    digests = (hashlib.sha256(text.encode()).digest()[:4] for text in texts)
    return np.array([int.from_bytes(digest, "big") for digest in digests], dtype=np.uint32)
