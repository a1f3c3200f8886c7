"""Position and time of a photo: right where EXIF is right, not known where it is odd, never an exception."""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from geo_mvmf.inputs import exif, photo_metadata


def entry(order, tag, kind, count, value):
    """Make one directory entry; a value longer than four bytes is an offset already."""
    return struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")


def rationals(order, pairs):
    return b"".join(struct.pack(order + "II", *pair) for pair in pairs)


def block(
    order="<", latitude=((51, 1), (30, 1), (0, 1)), longitude=((7, 1), (0, 1), (36, 1)), refs=(b"N", b"E"), **more
):
    """Build an EXIF block by hand: GPS directory at 100, values at 300."""
    taken, offset = more.get("taken", b"2019:05:03 12:00:01\0"), more.get("offset", b"+02:00\0")
    main = [entry(order, 0x0112, 3, 1, struct.pack(order + "H", more.get("orientation", 1)))]
    main += [
        entry(order, 0x8769, 4, 1, struct.pack(order + "I", 200)),
        entry(order, 0x8825, 4, 1, struct.pack(order + "I", 100)),
    ]
    places = []
    for tag, ref, pairs, at in ((1, refs[0], latitude, 300), (3, refs[1], longitude, 340)):
        places += [entry(order, tag, 2, len(ref) + 1, ref + b"\0")] if ref is not None else []
        places += [entry(order, tag + 1, 5, len(pairs), struct.pack(order + "I", at))]
    shooting = [entry(order, 0x9003, 2, len(taken), struct.pack(order + "I", 380))]
    shooting += [entry(order, 0x9011, 2, len(offset), struct.pack(order + "I", 420))]
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    data = bytearray(500)
    for at, part in (
        (0, head), (8, struct.pack(order + "H", len(main)) + b"".join(main)),
        (100, struct.pack(order + "H", len(places)) + b"".join(places)),
        (200, struct.pack(order + "H", len(shooting)) + b"".join(shooting)),
        (300, rationals(order, latitude)), (340, rationals(order, longitude)), (380, taken), (420, offset),
    ):  # fmt: skip
        data[at : at + len(part)] = part
    return bytes(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("refs", "signs"), [((b"N", b"E"), (1, 1)), ((b"S", b"W"), (-1, -1)), ((b"s", b"e"), (1, -1))])
def test_degrees_minutes_seconds_and_hemispheres(order, refs, signs):
    found = exif.parse_exif_bytes(b"Exif\0\0" + block(order, refs=refs))
    assert (found.longitude, found.latitude) == pytest.approx((signs[0] * 7.01, signs[1] * 51.5))
    assert found.captured_at == "2019-05-03T12:00:01+02:00"


@pytest.mark.parametrize(
    "odd",
    [
        {"latitude": ((51, 0), (30, 1), (0, 1))},
        {"latitude": ((51, 1), (30, 0), (0, 1))},
        {"latitude": ((51, 1), (30, 1), (0, 0))},
        {"latitude": ((91, 1), (0, 1), (0, 1))},
        {"latitude": ((90, 1), (0, 1), (1, 1))},
        {"longitude": ((180, 1), (0, 1), (1, 100))},
        {"longitude": ((0, 0), (0, 0), (0, 0))},
        {"longitude": ((7, 1),) * 4},
        {"refs": (None, b"E")},
        {"refs": (b"N", None)},
        {"refs": (b"E", b"N")},
        {"refs": (b"?", b"E")},
    ],
)
def test_odd_positions_are_not_known_as_a_pair(odd):
    found = exif.parse_exif_bytes(block(**odd))
    assert math.isnan(found.longitude)
    assert math.isnan(found.latitude)
    assert found.captured_at is not None  # the rest is still read


def test_degrees_with_fractions_and_the_extremes():
    found = exif.parse_exif_bytes(block(latitude=((5_150_000, 100_000),), longitude=((180, 1), (0, 1), (0, 1))))
    assert (found.longitude, found.latitude) == (180.0, 51.5)


@pytest.mark.parametrize(
    ("taken", "offset", "iso"),
    [
        (b"2019:05:03 12:00:01\0", b"\0" * 7, "2019-05-03T12:00:01"),
        (b"2019-05-03T12:00:01\0", b"-11:30\0", "2019-05-03T12:00:01-11:30"),
        (b"2019:05:03 12:00:01\0", b"+99:00\0", "2019-05-03T12:00:01"),
        (b"0000:00:00 00:00:00\0", b"+02:00\0", None),
        (b"2019:02:30 12:00:01\0", b"+02:00\0", None),
        (b"    :  :     :  :  \0", b"+02:00\0", None),
        (b"\xff" * 20, b"+02:00\0", None),
    ],
)
def test_times(taken, offset, iso):
    assert exif.parse_exif_bytes(block(taken=taken, offset=offset)).captured_at == iso


@pytest.mark.parametrize(("stated", "read"), [(0, 1), (1, 1), (8, 8), (9, 1), (65535, 1)])
def test_orientations_beyond_the_eight_mean_upright(stated, read):
    assert exif.parse_exif_bytes(block(orientation=stated)).orientation == read


@given(st.binary(max_size=80) | st.binary(max_size=200).map(lambda data: b"II*\0\x08\0\0\0" + data))
def test_any_bytes_have_an_answer(data):
    found = exif.parse_exif_bytes(data)
    assert found.orientation in range(1, 9)
    assert math.isnan(found.longitude) == math.isnan(found.latitude)


@given(st.lists(st.tuples(st.integers(0, 499), st.integers(0, 255)), min_size=1, max_size=12), st.integers(0, 500))
def test_any_damage_has_an_answer(changes, length):
    data = bytearray(block())
    for at, value in changes:
        data[at] = value
    found = exif.parse_exif_bytes(bytes(data[:length]))
    assert found.orientation in range(1, 9)
    assert math.isnan(found.longitude) or abs(found.longitude) <= 180
    assert math.isnan(found.latitude) or abs(found.latitude) <= 90


def test_directories_that_point_to_each_other_end():
    data = bytearray(block())
    data[8 + 2 + 12 + 8 : 8 + 2 + 12 + 12] = struct.pack("<I", 8)  # the EXIF directory is the main one
    assert exif.parse_exif_bytes(bytes(data)).captured_at is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photos_tell_what_pillow_wrote(kind, tmp_path):
    """Pillow's EXIF writer as the foreign oracle."""
    tags = Image.Exif()
    tags.get_ifd(0x8825).update({1: "S", 2: (33.0, 51.0, 25.2), 3: "E", 4: (151.0, 12.0, 54.0)})
    tags.get_ifd(0x8769).update({0x9003: "2021:12:31 23:59:58", 0x9011: "+11:00"})
    tags[0x0112] = 6
    path = tmp_path / "a"
    Image.new("RGB", (20, 10)).save(path, format=kind, exif=tags)
    found = photo_metadata.read_metadata(path)
    assert (found.longitude, found.latitude) == pytest.approx((151.215, -33.857))
    assert found.captured_at == "2021-12-31T23:59:58+11:00"
    assert (found.width, found.height) == (10, 20)
    assert found._fields == ("longitude", "latitude", "captured_at", "width", "height")  # nothing else leaks


def test_a_tiff_tells_it_too(tmp_path):
    order, width, height = "<", 4, 2
    exif_block = block(order, refs=(b"S", b"W"))
    values = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 500), 277: (3, 1)}
    values |= {278: (4, height), 279: (4, width * height), 0x8769: (13, 200), 0x8825: (4, 100)}
    directory = b"".join(entry(order, tag, kind, 1, struct.pack("<I", value)) for tag, (kind, value) in values.items())
    pointer = struct.pack("<I", 500 + width * height)
    tiff = exif_block[:4] + pointer + exif_block[8:] + bytes(width * height)
    (tmp_path / "a.tif").write_bytes(tiff + struct.pack("<H", len(values)) + directory + bytes(4))
    found = photo_metadata.read_metadata(tmp_path / "a.tif")
    assert (found.longitude, found.latitude) == pytest.approx((-7.01, -51.5))
    assert (found.captured_at, found.width, found.height) == ("2019-05-03T12:00:01+02:00", 4, 2)


def test_a_photo_without_exif(tmp_path):
    Image.new("L", (3, 2)).save(tmp_path / "a.png")
    found = photo_metadata.read_metadata(tmp_path / "a.png")
    assert math.isnan(found.longitude)
    assert (found.captured_at, found.width, found.height) == (None, 3, 2)
