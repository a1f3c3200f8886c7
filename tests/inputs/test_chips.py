"""Chips: places uniform over area, truth that is the raster's own, folders that are whole or absent."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from PIL import Image
from rasterio.transform import Affine

from geo_mvmf import durable, progress, s2, sphere
from geo_mvmf.errors import BadInputError, OutputError, UsageError
from geo_mvmf.inputs import chip_files, chip_series, chips, places, raster_files, scenes, stretches, table_rows, tables


def write_raster(path, pixels, *, crs="EPSG:4326", transform, **options):
    profile = {"driver": "GTiff", "count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    with raster_files.safe_environment():
        given = rasterio.crs.CRS.from_user_input(pyproj.CRS(crs).to_wkt())
        with rasterio.open(
            path, "w", dtype=pixels.dtype.name, crs=given, transform=transform, **profile, **options
        ) as dataset:
            dataset.write(pixels)
    return path


def direction_pixels(degrees):
    longitude, latitude = np.meshgrid(
        np.arange(-180.0 + degrees / 2, 180.0, degrees), np.arange(90.0 - degrees / 2, -90.0, -degrees)
    )
    return np.moveaxis(sphere.to_directions(longitude, latitude), -1, 0).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("chips")


@pytest.fixture(scope="module")
def world(folder):
    """A global raster whose three bands are the direction of each raster cell."""
    return write_raster(folder / "world.tif", direction_pixels(1.0), transform=Affine(1, 0, -180, 0, -1, 90))


@pytest.fixture(scope="module")
def photo_world(folder):
    """A global raster of noise, as an 8-bit picture would be."""
    pixels = np.random.default_rng(5).integers(0, 256, (3, 90, 180)).astype(np.uint8)
    return write_raster(folder / "photo.tif", pixels, transform=Affine(2, 0, -180, 0, -2, 90))


def cut(source, out, **wishes):
    options = {"count": 5, "size": 8, "ground_km": 1000.0} | wishes
    return progress.run(chips.cut_chips(source, out, **options))


def rows_of(table):
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ------------------------------------------------------------------------------------------------------- places


def band_counts(draws, bands=20):
    """How many places fall into bands of equal area."""
    _, latitude = np.array(draws).T
    edges = np.degrees(np.arcsin(np.linspace(-1.0, 1.0, bands + 1)))
    return np.histogram(latitude, edges)[0]


def chi_square(counts):
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


def take(area, count, seed=0):
    stream = places.draw_places(area, np.random.default_rng(seed))
    return [next(stream) for _ in range(count)]


def test_places_are_uniform_over_area():
    draws = take(shapely.box(-180, -90, 180, 90), 20_000)
    # 19 degrees of freedom: 43.8 is exceeded once in a thousand times
    assert chi_square(band_counts(draws)) < 43.8
    longitude = np.array(draws)[:, 0]
    assert chi_square(np.histogram(longitude, 20, (-180, 180))[0]) < 43.8


def test_places_uniform_in_latitude_are_caught():
    """The broken twin: longitude and latitude drawn as if the Earth were flat."""
    generator = np.random.default_rng(0)
    flat = np.column_stack([generator.uniform(-180, 180, 20_000), generator.uniform(-90, 90, 20_000)])
    assert chi_square(band_counts(flat)) > 1000.0


def test_every_part_of_an_area_gets_its_share():
    small = shapely.Polygon([(170, 60), (180, 60), (175, 70)])
    large = shapely.box(-60, -20, -40, 0).difference(shapely.box(-55, -15, -45, -5))
    area = shapely.MultiPolygon([small, large])
    draws = np.array(take(area, 6000))
    assert shapely.contains_xy(area, draws[:, 0], draws[:, 1]).all()
    in_small = (draws[:, 1] > 30.0).mean()
    # areas by brute force: many points in the two rectangles
    generator = np.random.default_rng(9)
    shares = []
    for part in (small, large):
        west, south, east, north = part.bounds
        lam = generator.uniform(west, east, 200_000)
        phi = np.degrees(np.arcsin(generator.uniform(*np.sin(np.radians([south, north])), 200_000)))
        shares.append(shapely.contains_xy(part, lam, phi).mean() * float(sphere.rectangle_area_km2(*part.bounds)))
    assert in_small == pytest.approx(shares[0] / sum(shares), abs=4 * np.sqrt(0.25 / 6000))


def test_areas_without_a_place_are_named():
    with pytest.raises(BadInputError, match="empty"):
        take(shapely.Polygon(), 1)
    with pytest.raises(BadInputError, match="empty"):
        take(shapely.MultiPolygon(), 1)
    needle = shapely.Polygon([(0, 0), (10, 10), (10, 10 + 1e-9)])
    with pytest.raises(BadInputError, match="too thin"):
        take(needle, 1)


def test_blocks_follow_the_rule_of_ten_and_fifteen_degrees():
    generator = np.random.default_rng(1)
    longitude, latitude = generator.uniform(-180, 180, 5000), generator.uniform(-90, 90, 5000)
    by_hand = (np.floor(latitude / 10) + np.floor(longitude / 15)) % 5 == 0
    assert np.array_equal(chips.in_test_block(longitude, latitude), by_hand)
    block = chips.block_of(longitude, latitude)
    assert set(np.unique(block)) <= set(range(18 * 24))
    for number in np.unique(block)[:50]:
        inside = block == number
        assert np.ptp(longitude[inside]) < 15
        assert np.ptp(latitude[inside]) < 10
        assert len(set(by_hand[inside])) == 1  # a block is never split
    assert int(chips.block_of(180.0, 90.0)) == int(chips.block_of(-180.0, 89.9)) == 17 * 24
    assert int(chips.block_of(np.nan, 0.0)) == -1
    assert not chips.in_test_block(np.nan, 0.0)
    with pytest.raises(UsageError, match="0"):
        chips.block_of(0.0, 0.0, height=0.0)
    with pytest.raises(UsageError, match="every 0"):
        chips.in_test_block(0.0, 0.0, every=0)


# -------------------------------------------------------------------------------------------------------- chips


def test_the_truth_of_each_chip_is_what_its_pixels_say(world, tmp_path):
    table = cut(world, tmp_path / "out", count=40, size=16, stretch=[(-1.0, 1.0)] * 3)
    assert table == tmp_path / "out" / "chips.csv"
    rows = rows_of(table)
    assert len(rows) == 40
    for row in rows:
        assert row["image_id"] == row["path"].removeprefix("chips/").removesuffix(".png")
        with Image.open(tmp_path / "out" / row["path"]) as picture:
            assert picture.size == (16, 16)
            direction = np.asarray(picture).reshape(-1, 3).mean(axis=0) / 255.0 * 2.0 - 1.0
        place = sphere.to_directions(float(row["longitude"]), float(row["latitude"]))
        away = float(sphere.angle(direction / np.linalg.norm(direction), place)) * sphere.EARTH_RADIUS_KM
        assert away < 15.0  # a raster cell is 111 km, a chip 1000 km
        assert int(row["block"]) == int(chips.block_of(float(row["longitude"]), float(row["latitude"])))


def test_phases_of_the_grid_are_continuous(photo_world, tmp_path):
    rows = rows_of(cut(photo_world, tmp_path / "out", count=60))
    phase = np.array([float(row["longitude"]) / 2.0 % 1.0 for row in rows])
    assert len(np.unique(np.round(phase, 6))) == 60
    assert chi_square(np.histogram(phase, 4, (0, 1))[0]) < 16.3


def test_how_the_chips_were_made_is_stored(photo_world, tmp_path):
    table = cut(photo_world, tmp_path / "out", seed=3, bands=(3, 1, 2))
    found = json.loads((tmp_path / "out" / "chips.json").read_text())
    assert found["bands"] == [3, 1, 2]
    assert (found["size"], found["ground_km"], found["seed"], found["stretch"]) == (8, 1000.0, 3, None)
    assert found["sources"] == {"": [{"name": "photo.tif", "sha256": durable.file_sha256(photo_world)}]}
    assert str(tmp_path) not in (tmp_path / "out" / "chips.json").read_text() + table.read_text()


def test_the_table_is_an_image_table(photo_world, tmp_path):
    table = tables.read_image_table(cut(photo_world, tmp_path / "out"))
    assert (table["status"] == "ok").all()
    assert table_rows.training_rows(table).all()
    assert all(path.is_file() for path in tables.absolute_paths(table))
    assert {"season", "source", "block"} <= set(table.columns)


def test_the_same_seed_gives_the_same_bytes(photo_world, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        cut(photo_world, tmp_path / name, seed=seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert not set(digests(tmp_path / "a").values()) & set(digests(tmp_path / "c").values())


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_pictures_carry_nothing_but_pixels(photo_world, tmp_path, form):
    table = cut(photo_world, tmp_path / "out", format=form)
    for row in rows_of(table):
        path = tmp_path / "out" / row["path"]
        with Image.open(path) as picture:
            assert not picture.getexif()
            assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert not scenes.is_scene(path)
        assert row["longitude"][:6].encode() not in path.read_bytes()


def test_geotiff_chips_lie_where_the_table_says(photo_world, tmp_path):
    options = {"count": 6, "seed": 4, "ground_km": 900.0}
    plain = rows_of(cut(photo_world, tmp_path / "png", **options))
    rows = rows_of(cut(photo_world, tmp_path / "tif", format="tif", **options))
    for row, other in zip(rows, plain, strict=True):
        assert row["longitude"] == other["longitude"]
        with scenes.open_scene(tmp_path / "tif" / row["path"]) as scene:
            assert scene.centre == pytest.approx((float(row["longitude"]), float(row["latitude"])), abs=1e-9)
            assert scene.ground_size_km == pytest.approx((900.0, 900.0), rel=1e-9)
            again, valid = scene.chip(*scene.centre, ground_km=900.0, size=8)
            assert chip_files.read_description(scene.tags)["ground_km"] == 900.0
        with Image.open(tmp_path / "png" / other["path"]) as picture:
            assert np.array_equal(np.asarray(picture).transpose(2, 0, 1), again)
        assert valid.all()


def test_chips_lie_in_the_area_and_on_land(photo_world, tmp_path):
    area, land = shapely.box(0, 0, 60, 60), gpd.GeoDataFrame(geometry=[shapely.box(30, 30, 90, 40)], crs="OGC:CRS84")
    land_file = tmp_path / "land.geojson"
    land.to_file(land_file, driver="GeoJSON")
    both = rows_of(cut(photo_world, tmp_path / "both", count=30, area=area, land=land_file))
    for row in both:
        assert 30 <= float(row["longitude"]) <= 60
        assert 30 <= float(row["latitude"]) <= 40
    again = rows_of(cut(photo_world, tmp_path / "again", count=30, area=area, land=land))
    assert [row["longitude"] for row in again] == [row["longitude"] for row in both]
    with pytest.raises(BadInputError, match="overlap"):
        cut(photo_world, tmp_path / "none", area=area, land=shapely.box(-90, -50, -80, -40))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "both", "land.geojson"]


def test_chips_of_a_projected_raster_stay_inside_it(tmp_path):
    pixels = np.full((1, 300, 300), 5, np.uint8)
    source = write_raster(
        tmp_path / "utm.tif", pixels, crs="EPSG:32633", transform=Affine(1000, 0, 350e3, 0, -1000, 6e6)
    )
    rows = rows_of(cut(source, tmp_path / "out", count=200, ground_km=60.0, size=20))
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", "EPSG:32633", always_xy=True).transform(
        [float(row["longitude"]) for row in rows], [float(row["latitude"]) for row in rows]
    )
    assert min(x) > 350e3 + 29e3
    assert max(x) < 650e3 - 29e3
    assert max(y) < 6e6 - 29e3
    counts = np.histogram2d(x, y, 2, [(380e3, 620e3), (5.73e6, 5.97e6)])[0]
    assert chi_square(counts.ravel()) < 16.3


@pytest.mark.parametrize("least", [1.0, 0.5])
def test_chips_without_data_are_passed_over(tmp_path, least):
    pixels = np.full((1, 180, 360), 200, np.uint8)
    pixels[:, 60:120] = 0
    source = write_raster(tmp_path / "a.tif", pixels, transform=Affine(1, 0, -180, 0, -1, 90), nodata=0)
    rows = rows_of(cut(source, tmp_path / "out", count=60, min_valid=least, ground_km=2000.0))
    nearest = np.abs([float(row["latitude"]) for row in rows]).min()
    # a pixel of the chip counts as valid when half of it is, and is 2.2 degrees wide
    assert nearest > (30.0 + 7.8 if least == 1.0 else 28.8)
    for row in rows:
        with Image.open(tmp_path / "out" / row["path"]) as picture:
            assert (np.asarray(picture) > 0).mean() >= least


def test_centres_keep_their_distance(photo_world, tmp_path):
    rows = rows_of(cut(photo_world, tmp_path / "out", count=50, min_separation_km=1500.0, ground_km=500.0))
    lam, phi = np.array([(float(row["longitude"]), float(row["latitude"])) for row in rows]).T
    apart = sphere.great_circle_distance_km(lam[:, None], phi[:, None], lam, phi) + 1e6 * np.eye(50)
    assert apart.min() >= 1500.0


def test_wishes_that_cannot_be_met_are_counted(photo_world, tmp_path, monkeypatch):
    monkeypatch.setattr(chip_series, "_FIRST_TRIES", 200)
    monkeypatch.setattr(chip_series, "_LEAST_ACCEPTED", 0.1)
    with pytest.raises(BadInputError, match=r"only \d+ of 500 places found in \d+ tries \(\d+ too near to another\)"):
        cut(photo_world, tmp_path / "out", count=500, min_separation_km=5000.0)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ seasons


@pytest.fixture(scope="module")
def seasons(folder):
    generator = np.random.default_rng(8)
    made = {}
    for name, brightness in (("july", 3000.0), ("january", 1000.0)):
        pixels = generator.normal(brightness, 200.0, (3, 90, 180)).clip(1, 9999).astype(np.uint16)
        pixels[:, :10] = 0
        if name == "july":
            pixels[:, -20:] = 0
        made[name] = write_raster(folder / f"{name}.tif", pixels, transform=Affine(2, 0, -180, 0, -2, 90), nodata=0)
    return made


def test_each_place_is_cut_in_every_season(seasons, tmp_path):
    table = cut(seasons, tmp_path / "out", count=30, stretch="auto")
    rows = rows_of(table)
    assert len(rows) == 60
    for july, january in zip(rows[::2], rows[1::2], strict=True):
        assert (july["season"], january["season"]) == ("july", "january")
        assert (july["source"], january["source"]) == ("july.tif", "january.tif")
        assert july["longitude"] == january["longitude"]
        assert july["latitude"] == january["latitude"]
        assert july["image_id"].removeprefix("july-") == january["image_id"].removeprefix("january-")
        assert -50.0 < float(july["latitude"]) < 70.0  # data in both seasons
        values = []
        for row in (july, january):
            with Image.open(tmp_path / "out" / row["path"]) as picture:
                values.append(np.asarray(picture).mean())
        assert values[0] > values[1] + 100


def test_an_automatic_stretch_is_one_for_all_seasons_and_stored(seasons, tmp_path):
    cut(seasons, tmp_path / "out", count=64, stretch="auto", ground_km=400.0, size=4)
    stretch = json.loads((tmp_path / "out" / "chips.json").read_text())["stretch"]
    values = []
    for path in seasons.values():
        with rasterio.open(path, driver="GTiff") as dataset:
            values.append(dataset.read())
    for band, (low, high) in enumerate(stretch):
        found = np.concatenate([season[band][season[band] > 0] for season in values])
        # chips of 400 km are means over about 1.5 raster cells, so their spread is a little less
        assert (low, high) == pytest.approx(np.percentile(found, [2, 98]), abs=200.0)


def test_independent_places_differ_between_seasons(seasons, tmp_path):
    rows = rows_of(cut(seasons, tmp_path / "out", places="independent", stretch=[(0, 5000)] * 3))
    july = {row["longitude"] for row in rows if row["season"] == "july"}
    january = {row["longitude"] for row in rows if row["season"] == "january"}
    assert len(july) == len(january) == 5
    assert not july & january


def test_a_raster_without_a_name_may_have_named_seasons(seasons, tmp_path):
    options = {"seasons": {"january": seasons["january"]}, "stretch": "auto"}
    rows = rows_of(cut(seasons["july"], tmp_path / "out", **options))
    assert [row["season"] for row in rows[:2]] == ["", "january"]
    assert [row["path"] for row in rows[:2]] == ["chips/000000.png", "chips/january-000000.png"]


def test_values_of_other_types_need_a_stretch(seasons, tmp_path):
    with pytest.raises(UsageError, match="uint16; give a stretch"):
        cut(seasons["july"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_seasons_must_have_the_same_bands(photo_world, tmp_path):
    other = write_raster(
        tmp_path / "b.tif",
        np.ones((4, 9, 18), np.uint8),
        transform=Affine(20, 0, -180, 0, -20, 90),
        photometric="minisblack",
    )
    with pytest.raises(BadInputError, match=r"\[1, 2, 3, 4\].*\[1, 2, 3\]"):
        cut({"a": photo_world, "b": other}, tmp_path / "out")
    assert cut({"a": photo_world, "b": other}, tmp_path / "out", bands=(1,)).exists()


# ------------------------------------------------------------------------------------------- whole, or nothing


def test_progress_is_told_and_closing_leaves_nothing(photo_world, tmp_path):
    job = chips.cut_chips(photo_world, tmp_path / "out", count=20, size=8, ground_km=500.0)
    events = [next(job) for _ in range(3)]
    assert [(event.stage, event.done, event.total) for event in events] == [("cut", n, 20) for n in (1, 2, 3)]
    assert not (tmp_path / "out").exists()
    job.close()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_job_leaves_nothing_that_counts_and_the_next_one_cleans_up(photo_world, tmp_path):
    out = tmp_path / "made" / "out"
    code = textwrap.dedent(
        f"""
        from geo_mvmf.inputs import chips
        for event in chips.cut_chips({str(photo_world)!r}, {str(out)!r}, count=100000, size=8, ground_km=500.0):
            print(event.done, flush=True)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        while child.stdout.readline().strip() != "20":
            assert child.poll() is None
        time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
    assert not out.exists()
    assert len(list(out.parent.iterdir())) == 1  # the killed writer's own temporary folder
    cut(photo_world, out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_existing_folder_is_kept_unless_asked(photo_world, tmp_path):
    cut(photo_world, tmp_path / "out", seed=1)
    before = digests(tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        cut(photo_world, tmp_path / "out", seed=2)
    assert digests(tmp_path / "out") == before
    cut(photo_world, tmp_path / "out", seed=2, overwrite=True)
    assert digests(tmp_path / "out") != before


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"count": 0}, "count 0"),
        ({"size": -1}, "size -1"),
        ({"ground_km": 0.0}, "ground_km 0.0"),
        ({"min_valid": 1.5}, "min_valid 1.5"),
        ({"places": "random"}, "places 'random'"),
        ({"stretch": "best"}, "stretch 'best'"),
        ({"stretch": [(0, 1)]}, "1 pairs for 3 bands"),
        ({"stretch": [(0, 1), (5, 5), (0, 1)]}, r"\(5.0, 5.0\)"),
        ({"stretch": [(0, 1, 2)] * 3}, "low < high"),
        ({"format": "gif"}, "format 'gif'"),
        ({"bands": (1, 2)}, "1 or 3 bands, not 2"),
        ({"bands": (1, 9, 2)}, r"bands \[1, 9, 2\]"),
        ({"seasons": {"../a": "x.tif"}}, "season '../a'"),
        ({"seasons": {"": "x.tif"}}, "named twice"),
    ],
)
def test_wrong_wishes_are_named_before_anything_is_written(photo_world, tmp_path, wishes, message):
    with pytest.raises(UsageError, match=message):
        cut(photo_world, tmp_path / "out", **wishes)
    assert list(tmp_path.iterdir()) == []


def test_no_source_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no raster"):
        cut(None, tmp_path / "out")
    with pytest.raises(BadInputError):
        cut({"a": "http://127.0.0.1/a.tif"}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ stretch


def test_a_stretch_is_linear_and_rounds():
    values = np.array([[[0, 100, 150, 200, 65535]]], dtype=np.uint16)
    assert stretches.apply_stretch(values, ((100.0, 200.0),)).tolist() == [[[0, 0, 128, 255, 255]]]
    same = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(stretches.apply_stretch(same, ((0.0, 255.0),)), same)
    assert stretches.apply_stretch(same, None) is same
    assert stretches.percentile_stretch(np.full((1, 9), 7.0)) == ((7.0, 8.0),)


def test_chip_tags_of_strangers_are_not_believed():
    assert chip_files.read_description({"GEO_MVMF_CHIP": "[1]"}) is None
    assert chip_files.read_description({"GEO_MVMF_CHIP": "{" * 50_000}) is None
    assert chip_files.read_description({"GEO_MVMF_CHIP": "[" * 70_000}) is None
    assert chip_files.read_description({"GEO_MVMF_CHIP": "no json"}) is None


# -------------------------------------------------------------------------------------------------------- parts


def blocks_in_two_parts(longitude, latitude, part, level):
    """S2 cells of the level that hold places of several parts."""
    cells = s2.cell_ids(sphere.to_directions(longitude, latitude), level)
    pairs = set(zip(cells.tolist(), np.asarray(part).tolist(), strict=True))
    return len(pairs) - len(set(cells.tolist()))


def test_parts_are_whole_blocks_of_the_wanted_shares():
    longitude, latitude = sphere.to_longitude_latitude(sphere.random_directions(4000, np.random.default_rng(1)))
    shares = {"training": 7, "calibration": 1.5, "test": 1.5}
    part = places.divide(longitude, latitude, shares, level=4, seed=0)
    assert blocks_in_two_parts(longitude, latitude, part, 4) == 0
    for name, share in shares.items():
        assert (part == name).mean() == pytest.approx(share / 10, abs=0.01)  # a block of level 4 holds 0.1 % or less
    other = places.divide(longitude, latitude, shares, level=4, seed=1)
    assert 0.4 < (part == other).mean() < 0.65  # 0.7^2 + 2 * 0.15^2, were they independent
    order = np.random.default_rng(2).permutation(4000)
    again = places.divide(longitude[order], latitude[order], shares, level=4, seed=0)
    assert np.array_equal(again, part[order])
    # the broken twin: places divided one by one tear blocks apart
    assert blocks_in_two_parts(longitude, latitude, np.random.default_rng(0).permutation(part), 4) > 100


def test_a_small_part_gets_a_block_whatever_the_seed():
    longitude, latitude = np.random.default_rng(0).uniform(0.0, 60.0, (2, 1500))
    shares = {"training": 0.98, "calibration": 0.01, "test": 0.01}
    for seed in range(40):
        part = places.divide(longitude, latitude, shares, level=4, seed=seed)
        assert set(part) == set(shares)
        assert (part == "training").mean() > 0.9
    with pytest.raises(BadInputError, match="gets none of the 2 blocks"):
        places.divide([0.0, 40.0], [0.0, 40.0], shares, level=4, seed=0)


def test_blocks_are_as_wide_as_a_chip():
    for level in range(1, 15):
        edge = float(s2.edge_length(level)) * sphere.EARTH_RADIUS_KM
        assert places.level_of_blocks(edge * 0.999) == level
        assert places.level_of_blocks(edge * 1.001) == level - 1
    assert places.level_of_blocks(1e5) == 0
    assert places.level_of_blocks(1e-9) == places.DEEPEST_BLOCKS


def test_each_part_has_a_table_and_keeps_the_seasons_of_a_place(photo_world, tmp_path):
    sources = {"june": photo_world, "july": photo_world}
    table = cut(sources, tmp_path / "out", count=60, parts={"training": 2, "test": 1}, block_level=2)
    rows = rows_of(table)
    parts = {name: rows_of(tmp_path / "out" / f"{name}.csv") for name in ("training", "test")}
    assert [row for row in rows if row["part"] == "test"] == parts["test"]
    assert sorted(row["image_id"] for part in parts.values() for row in part) == sorted(row["image_id"] for row in rows)
    assert len({(row["longitude"], row["part"]) for row in rows}) == 60  # both seasons of a place in one part
    found = json.loads((tmp_path / "out" / "chips.json").read_text())
    assert (found["parts"], found["block_level"]) == ({"training": 2, "test": 1}, 2)
    assert found["tables"] == {"chips.csv": 120} | {f"{name}.csv": len(parts[name]) for name in parts}
    assert len(tables.read_image_table(tmp_path / "out" / "test.csv")) == len(parts["test"])
    plain = rows_of(cut(sources, tmp_path / "plain", count=60))
    assert [{key: row[key] for key in plain[0]} for row in rows] == plain  # the same chips, whatever they are for
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["chips", "chips.csv", "chips.json"]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"parts": {"all": 1}}, "fewer than two"),
        ({"parts": {"a": 1, "chips": 1}}, "'chips'"),
        ({"parts": {"a": 1, "../b": 1}}, "'../b'"),
        ({"parts": {"a": 1, "b": 0}}, "share 0"),
        ({"parts": {"a": 1, "b": float("nan")}}, "share nan"),
        ({"block_level": 3}, "block_level 3 is given without parts"),
        ({"parts": {"a": 1, "b": 1}, "block_level": 31}, "block_level 31"),
    ],
)
def test_parts_that_make_no_sense_are_refused(photo_world, tmp_path, wishes, message):
    with pytest.raises(UsageError, match=message):
        cut(photo_world, tmp_path / "out", **wishes)
    assert list(tmp_path.iterdir()) == []


def test_a_part_without_a_block_is_told_with_what_to_do(photo_world, tmp_path):
    area = shapely.box(10, 10, 12, 12)
    with pytest.raises(BadInputError, match=r"part 'test' gets none of the 1 blocks.* smaller blocks"):
        cut(photo_world, tmp_path / "out", area=area, ground_km=300.0, parts={"a": 1, "test": 1}, block_level=0)
    assert list(tmp_path.iterdir()) == []
