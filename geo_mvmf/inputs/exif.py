"""The five facts that are read from EXIF, and nothing else: orientation, position, time.

A reader of its own, because EXIF in the wild is often wrong: here a wrong entry means "not known", never an
exception or a warning, and no other entry is even looked at. Source: CIPA DC-008 (EXIF 2.32), TIFF 6.0 section 2.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

ReadAt = Callable[[int, int], bytes]
"""read_at(offset, count) -> at most count bytes, offset from the beginning of the TIFF header."""

_ORIENTATION, _EXIF_POINTER, _GPS_POINTER = 0x0112, 0x8769, 0x8825
_TIME_TAKEN, _TIME_OFFSET = 0x9003, 0x9011  # DateTimeOriginal, OffsetTimeOriginal
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_TYPE_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I"}
_MAX_ENTRIES = 1000  # a directory of a real camera has about 60
_MAX_VALUE_BYTES = 64  # the longest value read here is 24 bytes

_TIME = re.compile(r"(\d{4})[:-](\d\d)[:-](\d\d)[ T](\d\d):(\d\d):(\d\d)")
_OFFSET = re.compile(r"([+-])(\d\d):(\d\d)")

Directory = dict[int, tuple[int, bytes]]


class Exif(NamedTuple):
    """What an EXIF block says; the defaults mean that it does not.

    Attributes
    ----------
    orientation : int
        1..8 as EXIF counts them.
    longitude, latitude : float
        Degrees, in this order; NaN where absent or wrong.
    captured_at : str or None
        ISO 8601, local time of the camera, with the offset from UTC where it is known.
    """

    orientation: int = 1
    longitude: float = math.nan
    latitude: float = math.nan
    captured_at: str | None = None


def parse_exif(read_at: ReadAt) -> Exif:
    r"""Read an EXIF block; whatever is wrong in it counts as absent.

    Parameters
    ----------
    read_at : callable
        (offset, count) -> bytes, relative to the TIFF header ("II*\0" or "MM\0*") that begins the block.

    Examples
    --------
    >>> parse_exif(lambda offset, count: b"no EXIF at all"[offset : offset + count]).orientation
    1
    """
    head = read_at(0, 8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(head[:4])
    if order is None or len(head) < 8:
        return Exif()
    main = _directory(read_at, order, struct.unpack(order + "I", head[4:])[0])
    gps = _directory(read_at, order, _pointer(main, _GPS_POINTER, order))
    shooting = _directory(read_at, order, _pointer(main, _EXIF_POINTER, order))
    longitude = _position(gps, _LONGITUDE, _LONGITUDE_REF, order, ("E", "W"), 180.0)
    latitude = _position(gps, _LATITUDE, _LATITUDE_REF, order, ("N", "S"), 90.0)
    known = math.isfinite(longitude) and math.isfinite(latitude)
    return Exif(
        orientation=_orientation(main, order),
        longitude=longitude if known else math.nan,
        latitude=latitude if known else math.nan,
        captured_at=_captured_at(shooting),
    )


def parse_exif_bytes(block: bytes) -> Exif:
    r"""Read an EXIF block from memory, with or without the ``Exif\0\0`` that JPEG puts in front.

    Parameters
    ----------
    block : bytes
        As the image file holds it.

    Examples
    --------
    >>> parse_exif_bytes(b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0").orientation
    6
    """
    tiff = block.removeprefix(b"Exif\0\0")
    return parse_exif(lambda offset, count: tiff[offset : offset + count])


def _directory(read_at: ReadAt, order: str, offset: int) -> Directory:
    """Read one directory: tag -> (type, value bytes); an offset of 0 means that there is none."""
    found: Directory = {}
    count_bytes = read_at(offset, 2) if offset else b""
    if len(count_bytes) < 2:
        return found
    count = min(struct.unpack(order + "H", count_bytes)[0], _MAX_ENTRIES)
    entries = read_at(offset + 2, 12 * count)
    for start in range(0, len(entries) - 11, 12):
        tag, kind, number = struct.unpack(order + "HHI", entries[start : start + 8])
        size = number * _TYPE_BYTES.get(kind, 0)
        if not 0 < size <= _MAX_VALUE_BYTES:
            continue
        inline = entries[start + 8 : start + 12]
        value = inline[:size] if size <= 4 else read_at(struct.unpack(order + "I", inline)[0], size)
        if len(value) == size:
            found.setdefault(tag, (kind, value))
    return found


def _numbers(directory: Directory, tag: int, order: str) -> list[float]:
    kind, value = directory.get(tag, (0, b""))
    if kind in (5, 10):
        letter = "I" if kind == 5 else "i"
        parts = struct.unpack(f"{order}{len(value) // 4}{letter}", value)
        return [top / bottom if bottom else math.nan for top, bottom in zip(parts[::2], parts[1::2], strict=True)]
    letter = _TYPE_LETTERS.get(kind, "")
    if not letter:
        return []
    count = len(value) // _TYPE_BYTES[kind]
    return [float(number) for number in struct.unpack(f"{order}{count}{letter}", value)]


def _text(directory: Directory, tag: int) -> str:
    _, value = directory.get(tag, (0, b""))
    return value.split(b"\0", 1)[0].decode("ascii", "replace").strip()


def _pointer(directory: Directory, tag: int, order: str) -> int:
    numbers = _numbers(directory, tag, order)
    return int(numbers[0]) if numbers and math.isfinite(numbers[0]) and numbers[0] > 0 else 0


def _orientation(directory: Directory, order: str) -> int:
    numbers = _numbers(directory, _ORIENTATION, order)
    return int(numbers[0]) if numbers and numbers[0] in range(1, 9) else 1


def _position(
    directory: Directory, tag: int, reference: int, order: str, names: tuple[str, str], limit: float
) -> float:
    """Degrees, minutes and seconds with a hemisphere letter; without the letter the place is not known."""
    numbers = _numbers(directory, tag, order)
    hemisphere = _text(directory, reference).upper()[:1]
    if not 1 <= len(numbers) <= 3 or hemisphere not in names:
        return math.nan
    # a zero denominator in the degrees loses the place, and so it does in minutes or seconds: 0/0 may hide 59
    degrees = sum(number / 60.0**power for power, number in enumerate(numbers))
    if not 0.0 <= degrees <= limit or min(numbers) < 0.0:
        return math.nan
    return -degrees if hemisphere == names[1] else degrees


def _captured_at(directory: Directory) -> str | None:
    taken = _TIME.fullmatch(_text(directory, _TIME_TAKEN))
    if taken is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in taken.groups())
    try:
        moment = dt.datetime(year, month, day, hour, minute, second)  # noqa: DTZ001  a camera's local time
    except ValueError:
        return None
    return moment.isoformat() + _offset(_text(directory, _TIME_OFFSET))


def _offset(text: str) -> str:
    match = _OFFSET.fullmatch(text)
    valid = match is not None and int(match[2]) <= 14 and int(match[3]) < 60
    return text if valid else ""
