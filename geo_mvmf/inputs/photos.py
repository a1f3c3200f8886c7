"""One untrusted photo -> RGB pixels, or an ImageError with the status of its row.

Read: JPEG (MPO too), PNG, WebP, TIFF, and HEIC with the extra ``heif``; always the first frame. The EXIF
orientation is applied, then all metadata is dropped: equal pixels give equal arrays, whatever the file says about
its place. See `photo_pixels` for what becomes of each kind of picture and `photo_files` for what is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin

from geo_mvmf.errors import ImageError, UsageError
from geo_mvmf.inputs.photo_files import IMAGE_SUFFIXES, PIXEL_BUDGET, Photo, check_pixels, decoding, open_photo
from geo_mvmf.inputs.photo_headers import MAX_JPEG_SCANS
from geo_mvmf.inputs.photo_metadata import PhotoMetadata, read_metadata
from geo_mvmf.inputs.photo_pixels import to_rgb

__all__ = ["IMAGE_SUFFIXES", "PIXEL_BUDGET", "PhotoMetadata", "read_metadata", "read_photo"]

_JPEG_FACTORS = (8, 4, 2, 1)  # libjpeg decodes at 1/8, 1/4, 1/2 or all of the size
_BUDGETS_TO_SKIM = 16  # reduced decoding still runs over every stored pixel: at most so many budgets of them
_REDUCING_GAP = 3.0  # Pillow: from 3 on, box-averaging before the filter is practically the filter alone

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_photo(
    path: str | os.PathLike[str],
    *,
    resize: int | None = None,
    crop: int | None = None,
    pixel_budget: int = PIXEL_BUDGET,
    inside: Iterable[str | os.PathLike[str]] = (),
) -> npt.NDArray[np.uint8]:
    """Read one photo as RGB.

    Parameters
    ----------
    path : path
        One file. Its name is never looked at.
    resize : int, optional
        The shorter side becomes this many pixels (smaller pictures are enlarged), antialiased, bilinear.
    crop : int, optional
        Side of the centred square that is kept, at most `resize`. Without `resize`, a picture smaller than the
        square is enlarged until its shorter side fits.
    pixel_budget : int
        Most pixels that are decoded, counted after reduced JPEG decoding, and most that are returned.
    inside : iterable of path
        Folders; where given, the file must lie in one of them after all symbolic links.

    Returns
    -------
    ndarray of uint8, shape (3, H, W)
        Red, green, blue; the same file gives the same array.

    Raises
    ------
    ImageError
        missing, unreadable (truncated or damaged), unsupported (another format), too_large, refused (not a
        regular file, outside `inside`).
    UsageError
        If a size is not positive or the crop exceeds the resized picture.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.png")
    >>> Image.new("RGB", (64, 48), (255, 0, 0)).save(path)
    >>> read_photo(path).shape, read_photo(path, resize=24, crop=16).shape
    ((3, 48, 64), (3, 16, 16))
    """
    _check_sizes(resize, crop, pixel_budget)
    with open_photo(path, inside=inside, pixel_budget=pixel_budget) as photo, decoding(path):
        _reduce(photo, resize, pixel_budget)
        check_pixels(*photo.image.size, pixel_budget)
        photo.image.load()
        upright = _turn(to_rgb(photo.image), photo.exif.orientation)
        fitted = _fit(upright, resize, crop, pixel_budget)
        return np.ascontiguousarray(np.asarray(fitted).transpose(2, 0, 1))  # (3, H, W)


def _check_sizes(resize: int | None, crop: int | None, pixel_budget: int) -> None:
    for name, value in (("resize", resize), ("crop", crop), ("pixel_budget", pixel_budget)):
        if value is not None and value < 1:
            raise UsageError(f"{name} must be at least 1 pixel, not {value}")
    if resize is not None and crop is not None and crop > resize:
        raise UsageError(f"crop {crop} exceeds the shorter side {resize} that resize gives")


def _reduce(photo: Photo, resize: int | None, pixel_budget: int) -> None:
    """Let libjpeg decode a large JPEG at a fraction of its size."""
    if photo.layout is None or not isinstance(photo.image, JpegImagePlugin.JpegImageFile):
        return
    width, height = photo.image.size
    check_pixels(width, height, pixel_budget if photo.layout.buffered else _BUDGETS_TO_SKIM * pixel_budget)
    if photo.layout.scans > MAX_JPEG_SCANS:
        raise ImageError("too_large", f"more than {MAX_JPEG_SCANS} scans: each is a pass over the picture")
    factor = _jpeg_factor(width, height, resize, pixel_budget)
    if factor > 1:
        photo.image.draft(None, (width // factor, height // factor))


def _jpeg_factor(width: int, height: int, resize: int | None, pixel_budget: int) -> int:
    """Largest factor that leaves twice the wanted size for the filter; once, where the budget asks for it."""
    if resize is None:
        return 1
    fitting = [factor for factor in _JPEG_FACTORS if min(width, height) // factor >= resize]
    comfortable = [factor for factor in fitting if min(width, height) // factor >= 2 * resize]
    chosen = comfortable[0] if comfortable else 1
    if width * height > chosen**2 * pixel_budget and fitting:
        chosen = fitting[0]
    return chosen


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _fit(image: Image.Image, resize: int | None, crop: int | None, pixel_budget: int) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    if crop is None:
        return image if resize is None else _resize_shorter(image, resize, pixel_budget)
    check_pixels(crop, crop, pixel_budget)
    side = crop * shorter / resize if resize is not None else float(min(crop, shorter))
    # whole pixels where nothing is scaled, so that they are copied
    left, top = ((extent - side) / 2.0 if side != crop else (extent - crop) // 2 for extent in (width, height))
    box = (left, top, left + side, top + side)
    return _resample(image, (crop, crop), box)


def _resize_shorter(image: Image.Image, resize: int, pixel_budget: int) -> Image.Image:
    shorter = min(image.size)
    width, height = (max(1, round(extent * resize / shorter)) for extent in image.size)
    check_pixels(width, height, pixel_budget)
    return _resample(image, (width, height), (0.0, 0.0, float(image.width), float(image.height)))


def _resample(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=_REDUCING_GAP)
