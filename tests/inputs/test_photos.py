"""One untrusted photo: what it becomes, and that a damaged or hostile one costs one row."""

import collections
import io
import json
import os
import random
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from geo_mvmf.errors import ImageError, UsageError
from geo_mvmf.inputs import photos

LOSSLESS = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "exact": True},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "big.tif": {"format": "TIFF", "big_tiff": True},
}
LOSSY = {
    "jpg": {"format": "JPEG", "quality": 90},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "jpeg.tif": {"format": "TIFF", "compression": "jpeg"},
}


def pixels(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def written(folder, data, name="a"):
    path = folder / name
    path.write_bytes(data)
    return path


# --- what is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_very_pixels(kind, tmp_path):
    image = pixels(7, 13)
    path = written(tmp_path, encoded(Image.fromarray(image), **LOSSLESS[kind]), f"a.{kind}")
    read = photos.read_photo(path)
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert read.flags.writeable
    np.testing.assert_array_equal(read, image.transpose(2, 0, 1))


def test_mpo_opens_as_its_first_jpeg(tmp_path):
    first, second = Image.fromarray(pixels(16, 16)), Image.fromarray(pixels(16, 16, seed=1))
    path = tmp_path / "a.jpg"
    first.save(path, format="MPO", save_all=True, append_images=[second])
    alone = written(tmp_path, encoded(first, format="JPEG"), "b.jpg")
    np.testing.assert_array_equal(photos.read_photo(path), photos.read_photo(alone))


def test_of_several_frames_the_first_is_read(tmp_path):
    frames = [Image.fromarray(pixels(8, 8, seed=seed)) for seed in range(3)]
    for kind in ("png", "webp", "tif"):
        path = tmp_path / f"a.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **LOSSLESS[kind])
        np.testing.assert_array_equal(photos.read_photo(path), np.asarray(frames[0]).transpose(2, 0, 1))


def test_the_name_decides_nothing(tmp_path):
    data = encoded(Image.fromarray(pixels(4, 4)), format="PNG")
    names = ("a.jpg", "a", "London.png", "51.5N 0.1W.tif", "weiß $(id) `x` 'q'.png", "a\nb.png", "-rf.png")
    reads = [photos.read_photo(written(tmp_path, data, name)) for name in names]
    for read in reads[1:]:
        np.testing.assert_array_equal(read, reads[0])


# --- orientation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "webp", "tif", "lzw.tif", "big.tif", "jpg", "jpeg.tif"])
def test_orientation_is_applied_once(kind, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(pixels(16, 32)), exif=exif, **(LOSSLESS | LOSSY)[kind])
    read = photos.read_photo(written(tmp_path, data, f"a.{kind}"))
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))  # Pillow's own, as the oracle
    np.testing.assert_array_equal(read, upright.transpose(2, 0, 1))
    assert read.shape[1:] == ((32, 16) if orientation >= 5 else (16, 32))
    metadata = photos.read_metadata(tmp_path / f"a.{kind}")
    assert (metadata.width, metadata.height) == read.shape[:0:-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_equals_the_same_photo_turned_beforehand(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels(31, 50))
    turned = written(tmp_path, encoded(image, format="PNG", exif=exif), "a.png")
    with Image.open(turned) as opened:
        plain = written(tmp_path, encoded(ImageOps.exif_transpose(opened), format="PNG"), "b.png")
    for options in ({}, {"resize": 20}, {"resize": 20, "crop": 15}, {"crop": 9}):
        np.testing.assert_array_equal(photos.read_photo(turned, **options), photos.read_photo(plain, **options))


# --- every kind of picture ------------------------------------------------------------------------------------


def sixteen_bit(kind, values):
    image = Image.fromarray(values.astype(np.uint16))
    return encoded(image, **LOSSLESS[kind])


@pytest.mark.parametrize("kind", ["png", "tif", "lzw.tif"])
def test_sixteen_bits_are_scaled_not_clipped(kind, tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).round().reshape(64, 64)
    data = sixteen_bit(kind, ramp)
    read = photos.read_photo(written(tmp_path, data))
    np.testing.assert_array_equal(read[0], np.rint(ramp / 65535 * 255))
    assert (read[0] == read[1]).all()
    assert (read[0] == read[2]).all()
    with Image.open(io.BytesIO(data)) as image:  # the broken twin: a converter that clips
        clipped = np.asarray(image.convert("I").convert("L"))
    assert (clipped != read[0]).mean() > 0.9


def test_big_endian_sixteen_bits(tmp_path):
    image = Image.frombytes("I;16B", (2, 1), bytes([0x80, 0x00, 0xFF, 0xFF]))
    for data in (encoded(image, format="PNG"), encoded(image, format="TIFF")):
        assert photos.read_photo(written(tmp_path, data))[0].tolist() == [[128, 255]]


def hand_made_tiff(values, bits, photometric=1, sample_format=1, more=()):
    """Make a minimal uncompressed little-endian TIFF of one strip."""
    values = np.ascontiguousarray(values)
    height, width, samples = (*values.shape, 1)[:3]
    depths_at = 8 + 2 + 12 * (10 + len(more)) + 4  # behind the directory
    data_at = depths_at + 8
    depth = (3, samples, depths_at) if samples > 1 else (3, 1, bits)
    tags = {256: (4, 1, width), 257: (4, 1, height), 258: depth, 259: (3, 1, 1), 262: (3, 1, photometric)}
    tags |= {273: (4, 1, data_at), 277: (3, 1, samples), 278: (4, 1, height), 279: (4, 1, values.nbytes)}
    tags |= {339: (3, 1, sample_format), **dict(more)}
    directory = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)
    return head + struct.pack("<4H", *[bits] * 4) + values.tobytes()


def test_sixteen_bit_colour(tmp_path):
    values = np.array([[[0x0000, 0x8000, 0xFFFF], [0x1234, 0x00FF, 0xABCD]]], "<u2")
    read = photos.read_photo(written(tmp_path, hand_made_tiff(values, 16, photometric=2)))
    np.testing.assert_array_equal(read.transpose(1, 2, 0), values >> 8)


def test_white_is_zero_is_inverted(tmp_path):
    values = np.array([[0, 65535]], "<u2")
    assert photos.read_photo(written(tmp_path, hand_made_tiff(values, 16)))[0].tolist() == [[0, 255]]
    assert photos.read_photo(written(tmp_path, hand_made_tiff(values, 16, photometric=0)))[0].tolist() == [[255, 0]]
    values = np.array([[0, 255]], "<u1")
    assert photos.read_photo(written(tmp_path, hand_made_tiff(values, 8, photometric=0)))[0].tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("values", "sample_format", "grey"),
    [
        (np.array([[-100, 0, 100]], "<i2"), 2, [0, 128, 255]),
        (np.array([[10, 20, 30]], "<i4"), 2, [0, 128, 255]),
        (np.array([[0, 2**31, 2**32 - 1]], "<u4"), 1, [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], "<f4"), 3, [0, 128, 255]),
        (np.array([[0.25, 0.5, 0.5]], "<f4"), 3, [64, 128, 128]),
        (np.array([[-3.0, 0.0, 3.0]], "<f4"), 3, [0, 128, 255]),
        (np.array([[np.nan, 0.0, 1000.0]], "<f4"), 3, [0, 0, 255]),
        (np.array([[np.nan, np.nan, np.inf]], "<f4"), 3, [0, 0, 0]),
        (np.array([[-3e38, 0.0, 3e38]], "<f4"), 3, [0, 128, 255]),
        (np.array([[7, 7, 7]], "<i4"), 2, [0, 0, 0]),
    ],
)
def test_deep_grey_is_scaled_by_the_stated_rule(values, sample_format, grey, tmp_path):
    data = hand_made_tiff(values, values.itemsize * 8, sample_format=sample_format)
    read = photos.read_photo(written(tmp_path, data))[0, 0].astype(int)
    assert np.abs(read - grey).max() <= 1


def test_cmyk_of_tiff_and_of_inverted_jpeg(tmp_path):
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # pure cyan
    for name, options in {"a.tif": {"format": "TIFF"}, "a.jpg": {"format": "JPEG", "quality": 95}}.items():
        read = photos.read_photo(written(tmp_path, encoded(inks, **options), name))
        assert np.abs(read[:, 8, 8].astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["png", "webp", "tif"])
def test_transparency_shows_white_paper(mode, kind, tmp_path):
    black = Image.new(mode, (3, 1))
    black.putalpha(Image.frombytes("L", (3, 1), bytes([0, 128, 255])))
    read = photos.read_photo(written(tmp_path, encoded(black, **LOSSLESS[kind]), f"a.{kind}"))
    assert np.abs(read[0, 0].astype(int) - [255, 127, 0]).max() <= 1


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("1", (2, 1), 1), {}, (255, 255, 255)),
        (Image.new("L", (2, 1), 77), {}, (77, 77, 77)),
        (Image.new("L", (2, 1), 77), {"transparency": 77}, (255, 255, 255)),
        (Image.new("RGB", (2, 1), (1, 2, 3)), {"transparency": (1, 2, 3)}, (255, 255, 255)),
        (Image.new("RGB", (2, 1), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), {}, (1, 2, 3)),
        (Image.new("P", (2, 1), 0), {"transparency": 0}, (255, 255, 255)),
        (Image.new("P", (2, 1), 0), {"transparency": bytes([0])}, (255, 255, 255)),
    ],
)
def test_simple_modes(image, options, expected, tmp_path):
    read = photos.read_photo(written(tmp_path, encoded(image, format="PNG", **options)))
    assert tuple(read[:, 0, 0].tolist()) == expected


def test_other_colour_models_are_named(tmp_path):
    path = written(tmp_path, encoded(Image.new("LAB", (2, 2)), format="TIFF"))
    with pytest.raises(ImageError, match="colour model LAB") as caught:
        photos.read_photo(path)
    assert caught.value.status == "unsupported"


# --- resize and crop ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.none() | st.integers(1, 40),
    share=st.floats(0.01, 1.0),
)
def test_sizes_are_as_promised(tmp_path_factory, width, height, resize, share):
    path = written(tmp_path_factory.mktemp("sizes"), encoded(Image.new("RGB", (width, height)), format="PNG"))
    crop = max(1, int(share * (resize or 60)))
    assert photos.read_photo(path, resize=resize, crop=crop).shape == (3, crop, crop)
    if resize:
        shape = photos.read_photo(path, resize=resize).shape[1:]
        assert min(shape) == resize
        assert abs(max(shape) - resize * max(width, height) / min(width, height)) <= 0.5 + 1e-9


@pytest.mark.parametrize(("width", "height"), [(1, 5000), (5000, 1), (1, 1), (65535, 1)])
def test_extreme_shapes(width, height, tmp_path):
    path = written(tmp_path, encoded(Image.new("L", (width, height), 9), format="PNG"))
    assert photos.read_photo(path).shape == (3, height, width)
    read = photos.read_photo(path, resize=224, crop=224)
    assert read.shape == (3, 224, 224)
    assert (read == 9).all()


def test_an_enlargement_beyond_the_budget_is_refused(tmp_path):
    path = written(tmp_path, encoded(Image.new("L", (65535, 1)), format="PNG"))
    with pytest.raises(ImageError, match="more than the allowed") as caught:
        photos.read_photo(path, resize=224)
    assert caught.value.status == "too_large"


def test_a_crop_without_scaling_copies_the_central_pixels(tmp_path):
    image = pixels(20, 31)
    path = written(tmp_path, encoded(Image.fromarray(image), format="PNG"))
    np.testing.assert_array_equal(photos.read_photo(path, crop=11), image[4:15, 10:21].transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["png", "jpg", "progressive.jpg"])
def test_resizing_agrees_with_box_means_and_aliasing_would_not(kind, tmp_path):
    y, x = np.mgrid[0:480, 0:640]
    chequers = np.where((x // 2 + y // 2) % 2, 200, 40).astype(np.uint8)
    smooth = (x / 640 * 255).astype(np.uint8)
    image = Image.fromarray(np.stack([chequers, smooth, smooth[:, ::-1]], axis=2))
    path = written(tmp_path, encoded(image, **(LOSSLESS | LOSSY)[kind]))
    read = photos.read_photo(path, resize=48, crop=48).astype(float)
    means = np.asarray(image, float)[:, 80:560].reshape(48, 10, 48, 10, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    interior = (slice(None), slice(2, -2), slice(2, -2))
    assert np.abs(read - means)[interior].max() < 6
    nearest = np.asarray(image.resize((64, 48), Image.Resampling.NEAREST), float)[..., 0]  # the broken twin
    assert np.abs(nearest[:, 8:56] - means[0]).max() > 40


def test_reduced_decoding_changes_little(tmp_path, monkeypatch):
    y, x = np.mgrid[0:1200, 0:1600]
    waves = [127 + 120 * np.sin(x / k + y / (k + 9)) for k in (30, 50, 90)]
    path = written(tmp_path, encoded(Image.fromarray(np.stack(waves, 2).astype(np.uint8)), format="JPEG", quality=95))
    reduced = photos.read_photo(path, resize=128, crop=112).astype(int)
    monkeypatch.setattr(photos, "_reduce", lambda *_: None)
    assert np.abs(reduced - photos.read_photo(path, resize=128, crop=112)).max() <= 6


@pytest.mark.parametrize("options", [{"resize": 0}, {"crop": -1}, {"resize": 5, "crop": 6}, {"pixel_budget": 0}])
def test_wrong_sizes_are_usage_errors(options, tmp_path):
    with pytest.raises(UsageError, match=r"\d"):
        photos.read_photo(tmp_path / "a.jpg", **options)


# --- neither metadata nor names reach the pixels (PRIOR_ART row 24) ----------------------------------------------


def planted(place):
    """EXIF, comment and colour profile that shout a place."""
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, place), 3: "E", 4: (7.0, 0.0, 0.0)})
    exif[0x010E] = f"taken in city {place}"
    text = PngImagePlugin.PngInfo()
    text.add_text("Location", f"city {place}")
    return {
        "jpg": {"format": "JPEG", "exif": exif, "comment": f"city {place}".encode(), "icc_profile": b"p" * place},
        "png": {"format": "PNG", "exif": exif, "pnginfo": text, "icc_profile": b"p" * place, "dpi": (place, place)},
        "webp": {"format": "WEBP", "lossless": True, "exif": exif, "icc_profile": b"p" * place, "xmp": b"x" * place},
        "tif": {"format": "TIFF", "exif": exif, "description": f"city {place}", "icc_profile": b"p" * place},
    }


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_pixels_do_not_depend_on_metadata_or_names(kind, tmp_path):
    image = Image.fromarray(pixels(40, 50))
    plain = {"format": planted(1)[kind]["format"]} | ({"lossless": True} if kind == "webp" else {})
    bare = photos.read_photo(written(tmp_path, encoded(image, **plain), "a"), resize=32, crop=30)
    for place in (3, 40):
        data = encoded(image, **planted(place)[kind])
        read = photos.read_photo(written(tmp_path, data, f"{place}N 7E Essen.{kind}"), resize=32, crop=30)
        np.testing.assert_array_equal(read, bare)


# --- damage ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_files():
    image = Image.fromarray(pixels(9, 14))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {
        "jpg": {"format": "JPEG", "exif": exif},
        "progressive.jpg": {"format": "JPEG", "progressive": True},
        "png": {"format": "PNG", "exif": exif},
        "webp": {"format": "WEBP", "lossless": True, "exif": exif},
        "lossy.webp": {"format": "WEBP"},
        "tif": {"format": "TIFF"},
        "deflate.tif": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    }
    return {kind: encoded(image, **chosen) for kind, chosen in options.items()}


def test_every_truncation_is_an_image_error(small_files, tmp_path):
    path = tmp_path / "a"
    prefixes = 0
    for kind, data in small_files.items():
        path.write_bytes(data)
        photos.read_photo(path)
        for length in range(len(data) - 1, -1, -1):
            os.truncate(path, length)
            with pytest.raises(ImageError) as caught:
                photos.read_photo(path)
            assert caught.value.status in ("unreadable", "unsupported"), (kind, length)
            prefixes += 1
    assert prefixes >= 2000


def test_broken_twin_tolerant_decoding_accepts_truncations(small_files, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = small_files["jpg"]
    path = written(tmp_path, data[:-40])
    assert photos.read_photo(path).shape == (3, 14, 9)  # the test above would notice this switch


def mutated(data, chance):
    """Change a few bytes, mostly in the header, and sometimes cut, repeat or insert."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        region = min(len(changed), 300) if chance.random() < 0.7 else len(changed)
        changed[chance.randrange(region)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    kind, at = chance.random(), chance.randrange(len(changed))
    if kind < 0.1:
        del changed[at : at + chance.randrange(1, 40)]
    elif kind < 0.2:
        changed[at:at] = changed[: chance.randrange(1, 40)]
    return bytes(changed)


def outcomes(files, path, seed, count):
    chance = random.Random(seed)
    statuses = collections.Counter()
    path.touch()
    for number in range(count):
        data = mutated(files[sorted(files)[number % len(files)]], chance)
        with path.open("r+b") as file:  # in place: making a file anew costs more than reading it
            file.write(data)
            file.truncate()
        try:
            read = photos.read_photo(path, resize=8, crop=7)
            assert read.shape == (3, 7, 7)
            photos.read_metadata(path)
            statuses["ok"] += 1
        except ImageError as error:
            statuses[error.status] += 1
    return statuses


def test_mutations_cost_one_row(small_files, tmp_path):
    statuses = outcomes(small_files, tmp_path / "a", seed=1, count=3000)
    assert set(statuses) <= {"ok", "unreadable", "unsupported", "too_large"}
    assert statuses["unreadable"] > 500
    assert statuses["ok"] > 500


@pytest.mark.hard
@pytest.mark.timeout(1200)
def test_a_hundred_thousand_mutations_neither_crash_nor_hang(small_files, tmp_path):
    statuses = collections.Counter()
    for seed in range(10):
        child = os.fork()  # a crash of a decoder ends the child, not the test
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
            resource.setrlimit(resource.RLIMIT_CPU, (600, 600))
            found = outcomes(small_files, tmp_path / f"a{seed}", seed=100 + seed, count=10_000)
            (tmp_path / f"result{seed}").write_text(json.dumps(found))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        statuses.update(json.loads((tmp_path / f"result{seed}").read_text()))
    assert sum(statuses.values()) == 100_000
    assert set(statuses) <= {"ok", "unreadable", "unsupported", "too_large"}


# --- bombs ----------------------------------------------------------------------------------------------------


def patched_jpeg_size(data, width, height):
    """Write another size into the frame header."""
    at = next(i for i in range(len(data)) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC2))
    return data[: at + 5] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 9 :]


def png_chunk(name, body):
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def black_png(width, height, bits):
    """Compress zeros without ever holding the picture."""
    squeeze = zlib.compressobj(1)
    row = bytes(1 + width * bits // 8)
    body = b"".join([*(squeeze.compress(row * 100) for _ in range(height // 100)), squeeze.flush()])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    """Files that ask for far more than they weigh."""
    folder = tmp_path_factory.mktemp("bombs")
    tiny = Image.new("RGB", (16, 16))
    png, jpeg = encoded(tiny, format="PNG"), encoded(tiny, format="JPEG")
    progressive = encoded(tiny, format="JPEG", progressive=True)
    webp = encoded(Image.new("RGBA", (16, 16)), format="WEBP", lossless=True, exif=Image.Exif(), xmp=b"x")
    at = webp.index(b"VP8X") + 12
    files = {
        "bits.png": black_png(30_000, 30_000, 1),
        "grey.png": black_png(12_000, 12_000, 8),
        "chunks.png": png[:33] + png_chunk(b"teXt", b"") * 300_000 + png[33:],
        "progressive.jpg": patched_jpeg_size(progressive, 60_000, 60_000),
        "largest.jpg": patched_jpeg_size(jpeg, 65_500, 65_500),
        "segments.jpg": jpeg[:2] + (b"\xff\xe5\xff\xff" + bytes(65_533)) * 600 + jpeg[2:],
        "small segments.jpg": jpeg[:2] + b"\xff\xe5\x00\x02" * 2_000_000 + jpeg[2:],
        "fill.jpg": jpeg[:2] + b"\xff" * 1_000_000 + jpeg[2:],
        "canvas.webp": webp[:at] + b"\xff\x3e\x00" + b"\xff\x3e\x00" + webp[at + 6 :],
        "scans.jpg": progressive[:-2] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 500 + b"\xff\xd9",
        "tiles.tif": hand_made_tiff(np.zeros((8, 8), "u1"), 8, more={322: (4, 1, 60_000), 323: (4, 1, 60_000)}),
    }
    paths = {name: written(folder, data, name) for name, data in files.items()}
    for name, at in {"text.png": len(png) - 12, "early text.png": 33}.items():
        paths[name] = written(folder, png[:at] + (100_000_000).to_bytes(4, "big") + b"tEXt", name)
        with paths[name].open("r+b") as file:  # a hole of 100 MB reads as zeros
            file.seek(100_000_004, os.SEEK_END)
            file.write(png[at:])
    return paths


PEAK = """
import sys
from geo_mvmf.inputs import photos
from geo_mvmf.errors import ImageError
for path in sys.argv[2:]:
    try:
        print("read", photos.read_photo(path, resize=int(sys.argv[1]), crop=int(sys.argv[1])).shape)
    except ImageError as error:
        print(error.status, error)
with open("/proc/self/status") as file:
    print([line for line in file if line.startswith("VmHWM")][0].split()[1])
"""


def run_and_measure(paths, size=224, script=PEAK):
    """Read in a fresh process; give its lines and its peak memory in MB."""
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(size), *map(str, paths)],
        capture_output=True, text=True, check=True, timeout=120, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    *lines, peak = child.stdout.splitlines()
    return lines, int(peak) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_bombs_are_refused_from_the_header_in_little_memory(bombs):
    lines, peak = run_and_measure(bombs.values())
    statuses = dict(zip(bombs, (line.split()[0] for line in lines), strict=True))
    assert statuses == {name: "unreadable" if name == "fill.jpg" else "too_large" for name in bombs}
    assert peak <= 250, peak  # of which numpy and Pillow are about 60


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.hard
def test_broken_twin_without_a_budget_a_bomb_goes_off(bombs):
    twin = PEAK.replace("photos.read_photo(path, resize=int(sys.argv[1]), crop=int(sys.argv[1]))", "decode(path)")
    twin = (
        "from PIL import Image\nimport numpy\ndecode = lambda p: numpy.asarray(Image.open(p).convert('RGB'))\n" + twin
    )
    lines, peak = run_and_measure([bombs["grey.png"]], script=twin)
    assert lines == ["read (12000, 12000, 3)"]
    assert peak > 400


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_phone_photo_of_200_megapixels_works_in_little_memory(tmp_path):
    path = tmp_path / "phone.jpg"
    Image.new("L", (16_320, 12_240), 99).save(path, quality=50)
    lines, peak = run_and_measure([path])
    assert lines == ["read (3, 224, 224)"]
    assert peak <= 250, peak
    with pytest.raises(ImageError, match="16320 x 12240 pixels") as caught:
        photos.read_photo(path)  # at its full size it is beyond the budget
    assert caught.value.status == "too_large"


def test_the_budget_counts_pixels_after_reduced_decoding(tmp_path):
    image = Image.new("RGB", (800, 600), (9, 9, 9))
    jpeg, png = (written(tmp_path, encoded(image, format=kind), kind) for kind in ("JPEG", "PNG"))
    assert photos.read_photo(jpeg, resize=200, pixel_budget=400 * 300).shape == (3, 200, 267)
    for path, options in ((png, {"resize": 200}), (jpeg, {}), (jpeg, {"resize": 301})):
        with pytest.raises(ImageError) as caught:
            photos.read_photo(path, pixel_budget=400 * 300, **options)
        assert caught.value.status == "too_large"


def test_the_host_keeps_its_pixel_guard_and_its_warnings(bombs, small_files, tmp_path):
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES
    opened = dict(Image.OPEN)
    photos.read_photo(written(tmp_path, small_files["jpg"]))
    with pytest.raises(ImageError):
        photos.read_photo(bombs["grey.png"])
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters), ImageFile.LOAD_TRUNCATED_IMAGES) == before
    assert opened == Image.OPEN


# --- what is no photo -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "BMP", "ICO", "PPM", "TGA", "DDS", "PDF", "JPEG2000", "SGI", "PCX"])
def test_formats_beyond_the_list_are_unsupported_though_pillow_reads_most(kind, tmp_path):
    path = written(tmp_path, encoded(Image.new("RGB", (16, 16)), format=kind), "a.jpg")
    with pytest.raises(ImageError, match="only JPEG, PNG, WebP, TIFF") as caught:
        photos.read_photo(path)
    assert caught.value.status == "unsupported"
    if kind != "PDF":  # the broken twin: Pillow without the format list
        with Image.open(path) as image:
            assert image.size == (16, 16)


def test_heic_names_the_extra_or_is_read_by_it(tmp_path, monkeypatch):
    path = written(tmp_path, b"\x00\x00\x00\x18ftypheic" + bytes(40), "a.heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match=r"geo-mvmf\[heif\]") as caught:
        photos.read_photo(path)
    assert caught.value.status == "unsupported"

    class HeifImageFile(ImageFile.ImageFile):
        """Stands for the extra's reader."""

        def _open(self):
            self._mode, self._size = "RGB", (6, 4)
            self.tile = [ImageFile._Tile("raw", (0, 0, 6, 4), 8, "RGB")]

    monkeypatch.setitem(sys.modules, "pillow_heif", type("Extra", (), {"HeifImageFile": HeifImageFile}))
    path.write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(range(80)))
    assert photos.read_photo(path).shape == (3, 4, 6)


def test_empty_and_tiny_files(tmp_path):
    for data in (
        b"",
        b"\xff",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\0\0\0\0WEBP",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
    ):
        with pytest.raises(ImageError) as caught:
            photos.read_photo(written(tmp_path, data))
        assert caught.value.status in ("unreadable", "unsupported")
        assert str(tmp_path) in str(caught.value)


def test_missing_and_forbidden(tmp_path):
    with pytest.raises(ImageError) as caught:
        photos.read_photo(tmp_path / "no.jpg")
    assert caught.value.status == "missing"
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(ImageError, match="folder") as caught:
        photos.read_photo(tmp_path / "folder.jpg")
    assert caught.value.status == "refused"


def test_inside_is_kept(tmp_path, small_files):
    path = written(tmp_path, small_files["png"], "a.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.png").symlink_to(path)
    for call in (photos.read_photo, photos.read_metadata):
        with pytest.raises(ImageError) as caught:
            call(tmp_path / "root" / "link.png", inside=[tmp_path / "root"])
        assert caught.value.status == "refused"


# --- threads --------------------------------------------------------------------------------------------------


def test_threads_read_the_same(small_files, tmp_path):
    paths = [written(tmp_path, data, f"a.{kind}") for kind, data in small_files.items()] * 10
    alone = [photos.read_photo(path, resize=8, crop=8) for path in paths]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda path: photos.read_photo(path, resize=8, crop=8), paths))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
