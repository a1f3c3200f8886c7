"""Where and when a photo says it was taken; never an input of the model."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from geo_mvmf.inputs.photo_files import open_photo

_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class PhotoMetadata(NamedTuple):
    """What a photo's file says about it, apart from its pixels.

    Attributes
    ----------
    longitude, latitude : float
        Degrees, in this order, from EXIF; both NaN where either is absent or wrong.
    captured_at : str or None
        ISO 8601, the camera's local time, with the offset from UTC where the file tells it.
    width, height : int
        Pixels as displayed, that is after the orientation is applied.
    """

    longitude: float
    latitude: float
    captured_at: str | None
    width: int
    height: int


def read_metadata(path: str | os.PathLike[str], *, inside: Iterable[str | os.PathLike[str]] = ()) -> PhotoMetadata:
    """Read position, time and size of a photo without decoding it.

    Parameters
    ----------
    path : path
        One file.
    inside : iterable of path
        Folders; where given, the file must lie in one of them after all symbolic links.

    Returns
    -------
    PhotoMetadata
        Odd EXIF counts as absent: NaN and None.

    Raises
    ------
    ImageError
        If the file is no photo that can be opened.

    Notes
    -----
    Source: EXIF 2.32, GPSLongitude, GPSLatitude with their references, DateTimeOriginal, OffsetTimeOriginal.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> path = os.path.join(tempfile.mkdtemp(), "a.jpg")
    >>> Image.new("RGB", (5, 3)).save(path)
    >>> read_metadata(path)
    PhotoMetadata(longitude=nan, latitude=nan, captured_at=None, width=5, height=3)
    """
    with open_photo(path, inside=inside) as photo:
        width, height = photo.image.size
    if photo.exif.orientation in _TURNED:
        width, height = height, width
    return PhotoMetadata(photo.exif.longitude, photo.exif.latitude, photo.exif.captured_at, width, height)
