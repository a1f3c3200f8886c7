"""What the header of an image file says about its cost, read before any decoder sees the file.

Pillow reads whole chunks into memory and libjpeg keeps every coefficient of a progressive picture, so a small
file can ask for gigabytes before the number of pixels is known. These walks read a few bytes each and skip the
rest.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO, NamedTuple

from geo_mvmf.errors import ImageError

MAX_METADATA_BYTES = 32 * 1024 * 1024
"""More profile, text and EXIF than this in front of the pixels is refused."""

MAX_METADATA_BLOCKS = 10_000
"""More segments or chunks of metadata than this are refused: each costs time."""

MAX_JPEG_SCANS = 100
"""Each scan of a progressive JPEG is a pass over the whole picture; cameras and editors write about ten."""

_STANDALONE = frozenset([0x01, 0xD8, *range(0xD0, 0xD8)])  # JPEG markers without a length
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset([0xC0, 0xC1])
_SCAN_MARKER = 0xDA
_MAX_STRAY_BYTES = 65_536
_PNG_PIXELS = frozenset([b"IDAT", b"fdAT"])
_MAX_PNG_CHUNKS = 1_000_000  # 64 million pixels in chunks of the customary 8 kB are 32 000


class JpegLayout(NamedTuple):
    """How a JPEG is stored.

    Attributes
    ----------
    buffered : bool
        Whether the decoder must keep the coefficients of the whole picture (progressive, or one component per
        scan), so that reduced decoding saves no memory.
    scans : int
        Number of scans; counted only where `buffered`.
    """

    buffered: bool
    scans: int


def jpeg_layout(file: BinaryIO) -> JpegLayout:
    r"""Read how a JPEG is stored from its markers.

    Parameters
    ----------
    file : binary file
        At its beginning; left anywhere.

    Raises
    ------
    ImageError
        "unreadable" where there is no frame or no scan, "too_large" where the metadata is.

    Examples
    --------
    >>> import io
    >>> frame = b"\xff\xc0\x00\x0b\x08\x00\x01\x00\x01\x01\x01\x11\x00"  # 1 x 1, one component
    >>> jpeg_layout(io.BytesIO(b"\xff\xd8" + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"))
    JpegLayout(buffered=False, scans=1)
    """
    frame, components = 0, 0
    for _ in range(MAX_METADATA_BLOCKS):
        marker = _next_marker(file)
        if marker in _STANDALONE:
            continue
        length = int.from_bytes(_exactly(file, 2), "big")
        if marker == _SCAN_MARKER:
            break
        if marker in _FRAME_MARKERS:
            frame, components = marker, _exactly(file, 6)[5]
            length -= 6
        file.seek(max(length - 2, 0), os.SEEK_CUR)
        _check_metadata(file.tell())
    else:
        raise ImageError("too_large", f"more than {MAX_METADATA_BLOCKS} segments in front of the pixels")
    if not components:
        raise ImageError("unreadable", "a scan comes before the frame header of this JPEG")
    buffered = frame not in _SEQUENTIAL or _exactly(file, 1)[0] < components
    return JpegLayout(buffered, _count_scans(file) if buffered else 1)


def check_png_chunks(file: BinaryIO) -> None:
    r"""Refuse a PNG whose metadata would fill the memory, or that ends early.

    Parameters
    ----------
    file : binary file
        At its beginning; left anywhere.

    Raises
    ------
    ImageError
        "too_large", or "unreadable" where the file ends before its end chunk.

    Examples
    --------
    >>> import io
    >>> check_png_chunks(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"\x7f\xff\xff\xfftEXt"))
    Traceback (most recent call last):
    geo_mvmf.errors.ImageError: 2147483647 bytes of metadata, more than the 33554432 that are read
    """
    file.seek(8, os.SEEK_CUR)
    metadata, blocks = 0, 0
    while True:
        length, name = struct.unpack(">I4s", _exactly(file, 8))
        pixels = name in _PNG_PIXELS
        metadata += 0 if pixels else length
        blocks += 1 if pixels else _MAX_PNG_CHUNKS // MAX_METADATA_BLOCKS
        _check_metadata(metadata)
        if blocks > _MAX_PNG_CHUNKS:
            raise ImageError("too_large", "more chunks than a picture needs")
        file.seek(length, os.SEEK_CUR)
        _exactly(file, 4)  # the checksum: there only if the chunk is
        if name == b"IEND":
            return


def webp_size(head: bytes) -> tuple[int, int]:
    r"""Read the width and height of a WebP from its first 30 bytes.

    Parameters
    ----------
    head : bytes
        The beginning of the file.

    Returns
    -------
    (width, height) : tuple of int
        Pixels.

    Raises
    ------
    ImageError
        "unreadable" where they are not there.

    Examples
    --------
    >>> webp_size(b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0" + b"\x0f\x00\x00" + b"\x1f\x00\x00")
    (16, 32)
    """
    kind = head[12:16]
    if len(head) >= 30 and kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if len(head) >= 30 and kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if len(head) >= 25 and kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise ImageError("unreadable", f"a WebP header ends early or is of the unknown kind {kind!r}")


def _next_marker(file: BinaryIO) -> int:
    """Skip stray and fill bytes, as decoders do, up to a marker."""
    block = b""
    for _ in range(_MAX_STRAY_BYTES):
        last, block = block, _exactly(file, 1)
        if last == b"\xff" and block not in (b"\xff", b"\x00"):
            return block[0]
    raise ImageError("unreadable", f"no JPEG marker within {_MAX_STRAY_BYTES} bytes")


def _count_scans(file: BinaryIO) -> int:
    scans, last = 1, b""
    while scans <= MAX_JPEG_SCANS and (block := file.read(1 << 20)):
        scans += (last + block).count(b"\xff\xda")  # inside a scan 0xff is always followed by 0 or a restart
        last = block[-1:]
    return scans


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise ImageError("unreadable", "the file ends inside its header")
    return data


def _check_metadata(count: int) -> None:
    if count > MAX_METADATA_BYTES:
        limit = f"more than the {MAX_METADATA_BYTES} that are read"
        raise ImageError("too_large", f"{count} bytes of metadata, {limit}")
