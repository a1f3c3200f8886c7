"""Any picture Pillow decodes -> 8-bit RGB, each kind by a stated rule.

===========================  =====================================================================
picture                      becomes
===========================  =====================================================================
transparent (any kind)       the picture over white
16-bit RGB or RGBA           the high byte of each sample (Pillow's unpacking)
16- and 12-bit grey          scaled from its whole range, never clipped: 0..65535 (0..4095) -> 0..255
32-bit integer, signed grey  scaled from the picture's own smallest..largest value
float grey                   0..1 -> 0..255 where all values lie there, else as the line above;
                             NaN and infinity are black
CMYK                         (1 - ink)(1 - black); JPEG stores it inverted, as Adobe does
palette, 1-bit, YCbCr        as displayed
===========================  =====================================================================

Colour profiles are not applied: samples are taken as sRGB, in training and in prediction alike. A profile is
foreign code for a colour engine, and the difference is small beside that between two cameras.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, TiffImagePlugin

from geo_mvmf.errors import ImageError

_BLOCK_ROWS = 256  # deep pictures are scaled block by block, so that no second full-size copy in float exists
_DEEP_MODES = frozenset(["I;16", "I;16L", "I;16B", "I;16N", "I", "F"])
_TRANSPARENT_MODES = {"LA": "LA", "PA": "PA", "RGBA": "RGBA", "La": "LA", "RGBa": "RGBA"}
_PLAIN_MODES = frozenset(["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])


def to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    """Convert a decoded picture to 8-bit RGB by the rules of this module.

    Parameters
    ----------
    image : PIL image file
        Loaded.

    Returns
    -------
    PIL image of mode RGB
        Of the same size.

    Raises
    ------
    ImageError
        "unsupported" for other colour models (LAB).

    Examples
    --------
    >>> import io
    >>> file = io.BytesIO()
    >>> Image.new("LA", (1, 1), (0, 0)).save(file, "PNG")  # black, fully transparent
    >>> to_rgb(Image.open(file)).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode in _DEEP_MODES:
        return _grey_to_rgb(image)
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        return _over_white(image)
    if image.mode not in _PLAIN_MODES:
        raise ImageError("unsupported", f"the colour model {image.mode} is not read; save the picture as RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    straight = _TRANSPARENT_MODES.get(image.mode, image.mode)
    if straight != image.mode:  # premultiplied alpha
        image = image.convert(straight)
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    paper = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(paper, rgba).convert("RGB")


def _grey_to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "I" and _tag(image, TiffImagePlugin.SAMPLEFORMAT, 1) == 1:
        values = values.view(np.uint32)  # Pillow hands unsigned 32-bit samples out as signed ones
    low, high = _range(image, values)
    grey = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        grey[block] = _scale(values[block], low, high)
    if _tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 1) == 0:  # white is zero
        np.subtract(255, grey, out=grey)
    return Image.fromarray(grey).convert("RGB")


def _range(image: ImageFile.ImageFile, values: npt.NDArray[np.generic]) -> tuple[float, float]:
    """Find the values that become black and white."""
    if image.mode.startswith("I;16"):
        return 0.0, float(2 ** min(_tag(image, TiffImagePlugin.BITSPERSAMPLE, 16), 16) - 1)
    if image.format == "PNG":  # older Pillow hands 16-bit PNG out as 32-bit integers
        return 0.0, 65535.0
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (0.0, 1.0) if image.mode == "F" and low >= 0.0 and high <= 1.0 else (low, high)


def _scale(values: npt.NDArray[np.generic], low: float, high: float) -> npt.NDArray[np.uint8]:
    # float64: the span of float32 extremes overflows float32; halves keep that of float64 finite too
    half_span = high / 2.0 - low / 2.0
    shares = (values.astype(np.float64) / 2.0 - low / 2.0) / (half_span or 1.0)
    shares = np.where(np.isfinite(shares), shares, 0.0)
    return np.rint(np.clip(shares, 0.0, 1.0) * 255.0).astype(np.uint8)


def _tag(image: ImageFile.ImageFile, tag: int, default: int) -> int:
    """First value of a TIFF tag; the default for other formats and odd values."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return default
    value = image.tag_v2.get(tag, default)
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else default
