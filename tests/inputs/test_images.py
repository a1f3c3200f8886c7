"""Images: what a model reads is what it was trained on, or the row says why not."""

import itertools
import json
import threading
import time
import tracemalloc

import numpy as np
import pyproj
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine

from geo_mvmf import progress, sphere
from geo_mvmf.errors import BadInputError, ImageError, UsageError
from geo_mvmf.inputs import chips, images, raster_files, scenes
from geo_mvmf.inputs.images import ImageSpec, read_image, read_images

CHIP = ImageSpec(16, 16, ground_km=80.0)


def local_crs(longitude, latitude):
    return pyproj.CRS.from_dict(
        {"proj": "aeqd", "lon_0": longitude, "lat_0": latitude, "R": sphere.EARTH_RADIUS_KM * 1000.0}
    )


def write_raster(path, pixels, *, crs, transform, **options):
    profile = {"driver": "GTiff", "count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    with raster_files.safe_environment():
        given = rasterio.crs.CRS.from_user_input(pyproj.CRS(crs).to_wkt())
        with rasterio.open(
            path, "w", dtype=pixels.dtype.name, crs=given, transform=transform, **profile, **options
        ) as dataset:
            dataset.write(pixels)
    return path


def scene_of(path, *, side_km=100.0, bands=3, kind=np.uint8, cells=50, seed=0, most=256, **options):
    """A raster of noise in UTM around 15 degrees east, 50 north."""
    pixels = np.random.default_rng(seed).integers(0, most, (bands, cells, cells)).astype(kind)
    step, half = side_km * 1000.0 / cells, side_km * 500.0
    transform = Affine(step, 0, 500e3 - half, 0, -step, 5540e3 + half)
    return write_raster(path, pixels, crs="EPSG:32633", transform=transform, **options)


# --------------------------------------------------------------------------------------------------------- spec

SPECS = [
    ImageSpec(256, 224),
    ImageSpec(64, 64, ground_km=475.0),
    ImageSpec(64, 48, bands=(4, 3, 2), stretch=((0.0, 3000.0),) * 3, ground_km=10.0),
    ImageSpec(32, 32, bands=(1,), channels=1),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_survives_json(spec):
    assert ImageSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 8}, "crop 64"),
        ({"crop": 0}, "crop 0"),
        ({"channels": 0}, "channels 0"),
        ({"bands": [1, 2]}, "bands"),
        ({"bands": [0, 1, 2]}, "bands"),
        ({"stretch": [[0, 1]]}, "1 pairs for 3 bands"),
        ({"stretch": [[0, 1], [2, 1], [0, 1]]}, "low < high"),
        ({"stretch": [[0, 1, 2]] * 3}, "incomplete or wrong"),
        ({"ground_km": 0.0}, "ground_km 0.0"),
        ({"ground_km": float("inf")}, "ground_km inf"),
        ({"resize": "x"}, "incomplete or wrong"),
        ({"resize": float("inf")}, "incomplete or wrong"),
        ({"colour": 1}, "'colour' is unknown"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        ImageSpec.from_dict(ImageSpec(64, 64).to_dict() | change)
    with pytest.raises(UsageError, match="incomplete"):
        ImageSpec.from_dict({})


def test_the_spec_of_a_folder_of_chips(tmp_path):
    source = scene_of(tmp_path / "a.tif", kind=np.uint16, most=5000)
    progress.run(chips.cut_chips(source, tmp_path / "out", count=2, size=16, ground_km=20.0, stretch="auto"))
    spec = images.spec_of_chips(tmp_path / "out", crop=12)
    assert (spec.resize, spec.crop, spec.bands, spec.ground_km, spec.channels) == (16, 12, (1, 2, 3), 20.0, 3)
    assert spec.stretch is not None
    for text in (None, "{", "[]", '{"size": 4}'):
        if text is not None:
            (tmp_path / "chips.json").write_text(text)
        with pytest.raises(BadInputError, match=r"chips\.json"):
            images.spec_of_chips(tmp_path)


# ------------------------------------------------------------------------------------------------------- photos


def test_photos_are_read_as_photos(tmp_path):
    picture = Image.new("RGB", (60, 40), (10, 20, 30))
    picture.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", ImageSpec(16, 8)).tolist() == [[[v] * 8] * 8 for v in (10, 20, 30)]
    grey = read_image(tmp_path / "a.png", ImageSpec(16, 8, channels=1))
    assert grey.shape == (1, 8, 8)
    assert set(grey.ravel()) == {round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)}
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "grey.png")
    same = read_image(tmp_path / "grey.png", ImageSpec(16, 16, channels=1))
    assert np.array_equal(same[0].ravel(), np.arange(256))
    with pytest.raises(ImageError, match="5 bands") as caught:
        read_image(tmp_path / "a.png", ImageSpec(16, 8, channels=5))
    assert caught.value.status == "refused"


def test_a_model_of_photos_takes_a_georeferenced_picture_as_a_picture(tmp_path):
    path = scene_of(tmp_path / "a.tif", cells=16)
    with rasterio.open(path, driver="GTiff") as dataset:
        pixels = dataset.read()
    assert np.array_equal(read_image(path, ImageSpec(16, 16)), pixels)
    assert images.claimed_position(path, ImageSpec(16, 16)) is None


# ------------------------------------------------------------------------------------------------------- scenes


def test_of_a_larger_scene_the_chip_at_its_centre_is_read(tmp_path):
    path = scene_of(tmp_path / "a.tif")
    with scenes.open_scene(path) as scene:
        whole, valid = scene.chip(*scene.centre, ground_km=80.0, size=16)
        centre = scene.centre
    assert valid.all()
    assert np.array_equal(read_image(path, CHIP), whole)
    cropped = read_image(path, ImageSpec(16, 10, ground_km=80.0))
    assert np.array_equal(cropped, whole[:, 3:13, 3:13])
    assert images.claimed_position(path, CHIP) == centre
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32633", always_xy=True).transform(*centre)
    assert (x, y) == pytest.approx((500e3, 5540e3), abs=0.01)


def test_bands_and_stretch_are_those_of_the_spec(tmp_path):
    path = scene_of(tmp_path / "a.tif", bands=5, kind=np.uint16, most=4000, photometric="minisblack")
    spec = ImageSpec(16, 16, bands=(4, 2, 1), stretch=((0, 4000), (1000, 2000), (0, 8000)), ground_km=80.0)
    with scenes.open_scene(path) as scene:
        raw, _ = scene.chip(*scene.centre, ground_km=80.0, size=16, bands=(4, 2, 1))
    low, high = np.array(spec.stretch, float).T[..., None, None]
    wanted = np.rint(np.clip((raw - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(read_image(path, spec), wanted)


REFUSALS = {
    "less ground": ({"side_km": 70.0}, CHIP, "refused", r"covers 69\.81 x 70\.01 km; the model takes 80 km"),
    "too few bands": (
        {"bands": 3},
        ImageSpec(16, 16, bands=(4, 3, 2), ground_km=80.0),
        "refused",
        r"has 3 bands; the model takes bands \[4, 3, 2\]",
    ),
    "too many bands": ({"bands": 5, "photometric": "minisblack"}, CHIP, "refused", "has 5 bands; the model takes 3"),
    "another type": ({"kind": np.uint16}, CHIP, "refused", "holds uint16; the model takes uint8"),
    "no data": ({"most": 1, "nodata": 0}, CHIP, "refused", "has data on 0%"),
    "too many cells": ({"side_km": 0.004}, ImageSpec(16, 16, ground_km=0.0035), "too_large", "raster cells lie under"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_scenes_that_do_not_fit_are_refused_naming_both(tmp_path, monkeypatch, name):
    if name == "too many cells":
        monkeypatch.setattr(images, "_MOST_CELLS", 1000.0)
    options, spec, status, message = REFUSALS[name]
    path = scene_of(tmp_path / "a.tif", **options)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path, spec)
    assert caught.value.status == status
    assert str(path) in str(caught.value)


def test_a_damaged_scene_is_unreadable(tmp_path):
    path = scene_of(tmp_path / "a.tif", cells=300)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError) as caught:
        read_image(path, CHIP)
    assert caught.value.status == "unreadable"
    assert images.claimed_position(tmp_path / "none.tif", CHIP) is None


def test_missing_corners_become_black(tmp_path):
    pixels = np.full((3, 100, 100), 200, np.uint8)
    transform = Affine(700.0, 0, 650e3, 0, -700.0, 7000e3)  # far off the meridian of the zone: turned by 3 degrees
    path = write_raster(tmp_path / "a.tif", pixels, crs="EPSG:32633", transform=transform)
    spec = ImageSpec(20, 20, ground_km=70.0)
    found = read_image(path, spec)
    assert set(np.unique(found)) == {0, 200}
    assert (found == 200).mean() > 0.95


def test_a_scene_larger_than_memory_is_read_by_window(tmp_path):
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "width": 200_000, "height": 200_000, "count": 3, "dtype": "uint8"}
    transform = Affine(10.0, 0, -1e6, 0, -10.0, 1e6)
    with raster_files.safe_environment():
        crs = rasterio.crs.CRS.from_wkt(local_crs(15.0, 50.0).to_wkt())
        options = {"tiled": True, "SPARSE_OK": "TRUE", "BIGTIFF": "YES"}
        with rasterio.open(path, "w", crs=crs, transform=transform, **options, **profile) as dataset:
            block = np.full((3, 4096, 4096), 77, np.uint8)
            dataset.write(block, window=rasterio.windows.Window(97952, 97952, 4096, 4096))
    tracemalloc.start()
    found = read_image(path, ImageSpec(32, 32, ground_km=20.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(np.unique(found)) == {77}
    assert peak < 200e6  # the scene has 120 GB


# -------------------------------------------------------------------------------------------------------- chips


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The same chips as PNG and as GeoTIFF, cut from a raster of 16 bits."""
    folder = tmp_path_factory.mktemp("cut")
    source = scene_of(folder / "a.tif", side_km=300.0, cells=200, kind=np.uint16, most=5000, bands=3)
    options = {"count": 4, "size": 16, "ground_km": 80.0, "stretch": [(0, 5000)] * 3, "bands": (3, 2, 1)}
    for form in ("png", "tif"):
        progress.run(chips.cut_chips(source, folder / form, format=form, **options))
    return folder


def test_geotiff_chips_are_the_same_pixels_as_png_chips(cut):
    spec = images.spec_of_chips(cut / "tif")
    assert spec == images.spec_of_chips(cut / "png")
    for path in sorted((cut / "png" / "chips").iterdir()):
        other = cut / "tif" / "chips" / (path.stem + ".tif")
        plain = read_image(path, spec)
        assert np.array_equal(read_image(other, spec), plain)
        with Image.open(path) as picture:
            assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), plain)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ImageSpec(16, 16, ground_km=60.0), "80 x 80 km; the model takes 60 km"),
        (ImageSpec(16, 16, ground_km=100.0), "80 x 80 km; the model takes 100 km"),
        (ImageSpec(16, 16, bands=(1, 2, 3), ground_km=80.0), r"bands \[3, 2, 1\]; the model takes \[1, 2, 3\]"),
        (ImageSpec(16, 16, stretch=((0, 1),) * 3, ground_km=80.0), "cut with stretch"),
        (ImageSpec(16, 16, ground_km=80.0, channels=1), "has 3 bands; the model takes 1"),
    ],
)
def test_chips_cut_otherwise_are_refused(cut, spec, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_image(cut / "tif" / "chips" / "000000.tif", spec)
    assert caught.value.status == "refused"


# --------------------------------------------------------------------------------------------------------- many


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    paths = []
    for number in range(40):
        path = folder / f"{number:02d}.png"
        if number == 7:
            path.write_bytes(b"no picture")
        elif number != 11:
            Image.new("RGB", (20, 20), (number, 0, 0)).save(path)
        paths.append(path)
    return paths


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_many_images_keep_their_order_and_errors_their_place(album, workers):
    found = list(read_images(album, ImageSpec(16, 8), workers=workers))
    assert len(found) == 40
    for number, image in enumerate(found):
        if number in (7, 11):
            assert isinstance(image, ImageError)
            assert image.status == ("unsupported" if number == 7 else "missing")
            assert image.__traceback__ is None
        else:
            assert image[:, 0, 0].tolist() == [number, 0, 0]


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read_images")]


def test_no_more_is_read_ahead_than_said(album):
    taken = itertools.count()
    endless = (album[next(taken) % 5] for _ in itertools.repeat(None))
    stream = read_images(endless, ImageSpec(16, 8), workers=2)
    for _ in range(10):
        next(stream)
    assert next(taken) <= 10 + 2 * images._AHEAD
    stream.close()
    assert readers() == []


def test_closing_stops_the_threads(album, monkeypatch):
    begun = []

    def slow(path, spec, **options):
        begun.append(path)
        time.sleep(0.05)
        return np.zeros((3, 8, 8), np.uint8)

    monkeypatch.setattr(images, "read_image", slow)
    stream = read_images(album, ImageSpec(16, 8), workers=2)
    next(stream)
    assert readers()
    stream.close()
    assert readers() == []
    count = len(begun)
    assert count < 10
    time.sleep(0.15)
    assert len(begun) == count


def test_an_error_of_the_program_is_not_an_image_error(album, monkeypatch):
    def broken(path, spec, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(images, "read_image", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(read_images(album, ImageSpec(16, 8)))
    assert readers() == []


def test_files_outside_the_permitted_folders_are_refused(album, tmp_path):
    for name, target in (("link.png", album[0]), ("link.tif", scene_of(tmp_path / "a.tif"))):
        inside = tmp_path / "inside"
        inside.mkdir(exist_ok=True)
        (inside / name).symlink_to(target)
        assert read_image(inside / name, CHIP).shape == (3, 16, 16)
        (found,) = read_images([inside / name], CHIP, inside=[inside])
        assert isinstance(found, ImageError)
        assert found.status == "refused"


@pytest.mark.parametrize("name", ["a.tif", "a.jpg"])
def test_disguised_files_get_a_status(tmp_path, name):
    path = tmp_path / name
    path.write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    with pytest.raises(ImageError) as caught:
        read_image(path, CHIP)
    assert caught.value.status == "unsupported"


def test_scenes_are_read_in_threads_too(tmp_path):
    paths = [scene_of(tmp_path / f"{number}.tif", seed=number) for number in range(12)]
    one = list(read_images(paths, CHIP, workers=0))
    many = list(read_images(paths, CHIP, workers=3))
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))


def mutations(data, generator, count):
    """Files with a few bytes changed, half of the time among the first, where the tags are."""
    for number in range(count):
        changed = bytearray(data)
        end = len(data) if number % 2 else min(len(data), 700)
        for place in generator.integers(0, end, int(generator.integers(1, 6))):
            changed[place] = int(generator.integers(0, 256))
        yield bytes(changed)


FLAVOURS = [{}, {"compress": "deflate"}, {"compress": "jpeg"}, {"compress": "lzw", "nodata": 3}]


def read_mutations(folder, count):
    """What becomes of damaged rasters: an array or a status, and never anything else."""
    path = folder / "m.tif"
    outcomes = set()
    for seed, flavour in enumerate(FLAVOURS):
        scene_of(path, **flavour)
        data = path.read_bytes()
        for mutated in mutations(data, np.random.default_rng(seed), count // len(FLAVOURS)):
            path.write_bytes(mutated)
            (found,) = read_images([path], CHIP, workers=0)
            outcomes.add(found.status if isinstance(found, ImageError) else found.shape)
    return outcomes


OUTCOMES = {(3, 16, 16), "unreadable", "refused", "unsupported", "too_large"}


def test_damaged_scenes_become_a_status(tmp_path):
    assert {(3, 16, 16), "unreadable"} <= read_mutations(tmp_path, 200) <= OUTCOMES


@pytest.mark.hard
def test_many_damaged_scenes_become_a_status(tmp_path):
    assert {(3, 16, 16), "unreadable"} <= read_mutations(tmp_path, 4_000) <= OUTCOMES
