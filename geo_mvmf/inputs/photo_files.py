"""Opening one untrusted photo up to its header; no pixel is decoded here.

Pillow is used without its registry: the content decides between exactly four decoders (and HEIF, where the extra
is installed), so none of Pillow's other forty formats can be reached, and Pillow's global pixel guard is neither
needed nor changed. Nothing global is touched, so threads may read photos at the same time.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from geo_mvmf.errors import ImageError
from geo_mvmf.inputs.exif import Exif, parse_exif, parse_exif_bytes
from geo_mvmf.inputs.photo_headers import JpegLayout, check_png_chunks, jpeg_layout, webp_size
from geo_mvmf.inputs.regular_files import open_regular_file, sniff_bytes

IMAGE_SUFFIXES = (".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Suffixes, lower case, by which a folder's images are found; what a file is read as, its content decides."""

PIXEL_BUDGET = 64_000_000
"""Pixels that one image may have after reduced JPEG decoding."""

# What Pillow's decoders raise on damaged files (found by mutation; a Warning where the host makes them errors).
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    BufferError,
    struct.error,
    zlib.error,
    Warning,
)
_TIFF_TILE_SIZE = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
_MEMORY_ERRORS = (MemoryError, Image.DecompressionBombError, Image.DecompressionBombWarning)


class Photo(NamedTuple):
    """A photo opened up to its header.

    Attributes
    ----------
    image : PIL image file
        Not yet decoded.
    kind : str
        "jpeg", "png", "webp", "tiff" or "heif".
    exif : Exif
        Its orientation is what remains to be applied after decoding.
    layout : JpegLayout or None
        For JPEG only.
    """

    image: ImageFile.ImageFile
    kind: str
    exif: Exif
    layout: JpegLayout | None


@contextlib.contextmanager
def open_photo(
    path: str | os.PathLike[str],
    *,
    inside: Iterable[str | os.PathLike[str]] = (),
    pixel_budget: int = PIXEL_BUDGET,
) -> Iterator[Photo]:
    """Open a photo up to its header.

    Parameters
    ----------
    path : path
        One file.
    inside : iterable of path
        Folders; where given, the file must lie in one of them after all symbolic links.
    pixel_budget : int
        A WebP with more pixels is refused here, because its decoder allocates them on opening.

    Yields
    ------
    Photo
        Usable inside the block only.

    Raises
    ------
    ImageError
        missing, unreadable, unsupported, too_large or refused.

    Examples
    --------
    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "a.png")
    >>> Image.new("RGB", (5, 3)).save(path)
    >>> with open_photo(path) as photo:
    ...     photo.kind, photo.image.size
    ('png', (5, 3))
    """
    with open_regular_file(path, inside=inside) as file:
        with decoding(path):
            photo = _open_header(file, pixel_budget)
        yield photo


@contextlib.contextmanager
def decoding(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever a decoder raises into an ImageError that names the file.

    Parameters
    ----------
    path : path
        The file that is being decoded.

    Raises
    ------
    ImageError
        "too_large" where memory is the reason, otherwise "unreadable"; its own errors get the file's name.

    Examples
    --------
    >>> with decoding("a.png"):
    ...     raise OSError("broken data stream")
    Traceback (most recent call last):
    geo_mvmf.errors.ImageError: a.png cannot be decoded: broken data stream
    """
    name = os.fspath(path)
    try:
        yield
    except ImageError as error:
        raise ImageError(error.status, f"{name}: {error}") from error
    except _MEMORY_ERRORS as error:
        raise ImageError("too_large", f"{name} needs too much memory: {_reason(error)}") from error
    except _DECODER_ERRORS as error:
        raise ImageError("unreadable", f"{name} cannot be decoded: {_reason(error)}") from error


def check_pixels(width: int, height: int, pixel_budget: int) -> None:
    """Raise where an image has more pixels than allowed.

    Parameters
    ----------
    width, height : int
        Pixels.
    pixel_budget : int
        Allowed number of pixels.

    Raises
    ------
    ImageError
        "too_large".

    Examples
    --------
    >>> check_pixels(30_000, 30_000, 64_000_000)
    Traceback (most recent call last):
    geo_mvmf.errors.ImageError: 30000 x 30000 pixels are more than the allowed 64000000
    """
    if width * height > pixel_budget:
        raise ImageError("too_large", f"{width} x {height} pixels are more than the allowed {pixel_budget}")


def _open_header(file: BinaryIO, pixel_budget: int) -> Photo:
    head = file.read(4096)
    kind = sniff_bytes(head)
    opener = _OPENERS.get(kind)
    if opener is None:
        raise ImageError("unsupported", _unsupported(kind, head))
    file.seek(0)
    return opener(file, pixel_budget)


def _open_jpeg(file: BinaryIO, _pixel_budget: int) -> Photo:
    layout = jpeg_layout(file)
    file.seek(0)
    image = _JpegImageFile(file)
    return Photo(image, "jpeg", parse_exif_bytes(_exif_block(image)), layout)


def _open_png(file: BinaryIO, _pixel_budget: int) -> Photo:
    check_png_chunks(file)
    file.seek(0)
    image = PngImagePlugin.PngImageFile(file)
    return Photo(image, "png", parse_exif_bytes(_exif_block(image)), None)


def _open_webp(file: BinaryIO, pixel_budget: int) -> Photo:
    width, height = webp_size(file.read(30))
    check_pixels(width, height, pixel_budget)
    size = file.seek(0, os.SEEK_END)
    if size > 4 * pixel_budget:  # the decoder reads the whole file, many frames included
        raise ImageError("too_large", f"{size} bytes are more than a WebP of {pixel_budget} pixels needs")
    file.seek(0)
    image = WebPImagePlugin.WebPImageFile(file)
    return Photo(image, "webp", parse_exif_bytes(_exif_block(image)), None)


def _open_tiff(file: BinaryIO, pixel_budget: int) -> Photo:
    def read_at(offset: int, count: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    exif = parse_exif(read_at)
    file.seek(0)
    image = TiffImagePlugin.TiffImageFile(file)
    tile_width, tile_height = (image.tag_v2.get(tag, 0) for tag in _TIFF_TILE_SIZE)
    check_pixels(tile_width, tile_height, pixel_budget)  # libtiff allocates tiles whatever the picture's size
    return Photo(image, "tiff", exif._replace(orientation=1), None)  # Pillow turns a TIFF while loading it


def _open_heif(file: BinaryIO, _pixel_budget: int) -> Photo:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        hint = 'HEIC photos need the extra: pip install "geo-mvmf[heif]"'
        raise ImageError("unsupported", hint) from error
    image: ImageFile.ImageFile = HeifImageFile(file)
    exif = parse_exif_bytes(_exif_block(image))
    return Photo(image, "heif", exif._replace(orientation=1), None)  # libheif turns the picture itself


_OPENERS: dict[str, Callable[[BinaryIO, int], Photo]] = {
    "jpeg": _open_jpeg,
    "png": _open_png,
    "webp": _open_webp,
    "tiff": _open_tiff,
    "heif": _open_heif,
}


class _JpegImageFile(JpegImagePlugin.JpegImageFile):
    """Pillow's JPEG reader without its look into EXIF for the resolution, which warns on odd EXIF."""

    def _read_dpi_from_exif(self) -> None:
        return


def _exif_block(image: ImageFile.ImageFile) -> bytes:
    block = image.info.get("exif", b"")
    return block if isinstance(block, bytes) else b""


def _unsupported(kind: str, head: bytes) -> str:
    what = "an empty file" if not head else f"{kind} content" if kind != "unknown" else "content of another format"
    return f"{what}; only JPEG, PNG, WebP, TIFF and, with the extra, HEIC images are read"


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] or type(error).__name__
