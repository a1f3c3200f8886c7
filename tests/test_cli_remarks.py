"""What commands say beside their result: what was chosen where nothing was said, and what is odd."""

import dataclasses
import html
import json
import warnings
from pathlib import Path

import affine
import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from click.testing import CliRunner
from PIL import Image

from geo_mvmf import cli
from geo_mvmf.commands import grids, learning, prediction_outputs
from geo_mvmf.inputs import tables
from geo_mvmf.model.bundle import save_bundle
from geo_mvmf.predictions import open_predictions

RELIEF = Path(__file__).parents[1] / "sample_data" / "relief.tif"


def run(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def store(bundle_path, tmp_path_factory):
    """Four pictures of two places, with their truth."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    lines = ["path,lon,lat,place", *(f"{i}.png,{7 * i},{50 - i},p{i % 2}" for i in range(4))]
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    done = run("predict", folder / "t.csv", "--bundle", bundle_path, "--out", folder / "album.nc")
    assert done.exit_code == 0, done.output
    return folder / "album.nc"


def layers(path, **named):
    for name, frame in named.items():
        frame.to_file(path, layer=name, engine="pyogrio")
    return path


def boxes(names, column="name"):
    shapes = [shapely.box(60 * i, -30, 60 * i + 60, 60) for i in range(len(names))]
    return geopandas.GeoDataFrame({column: names, "id": range(len(names))}, geometry=shapes, crs=4326)


PLACES = geopandas.GeoDataFrame({"name": ["here"]}, geometry=[shapely.Point(1, 2)], crs=4326)


# --- images unlike any that were learnt from ------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_images_unlike_the_training_images_are_counted(bundle, store, tmp_path, offset):
    known = dataclasses.replace(bundle, feature_mean=bundle.feature_mean + np.float32(offset))
    save_bundle(known, tmp_path / "b.safetensors")
    photos, out = store.parent / "t.csv", tmp_path / "a.nc"
    done = run("predict", photos, "--bundle", tmp_path / "b.safetensors", "--out", out, "--progress", "json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stderr.splitlines()[-1])
    distances = open_predictions(out).rows["feature_distance"]
    assert result["counts"]["unlike_training"] == (distances > 2).sum() == (4 if offset else 0)
    line = "4 of 4 images are unlike the training images (feature_distance > 2): their densities mean little"
    assert (line in result["message"].splitlines()) == bool(offset)
    assert (line in done.stdout) == bool(offset)
    assert run("evaluate", out, "--out", tmp_path / "a.html").exit_code == 0
    assert (f"<p>{html.escape(line)}.</p>" in (tmp_path / "a.html").read_text()) == bool(offset)


# --- layers of polygons ------------------------------------------------------------------------------------------


def test_the_only_layer_of_polygons_is_taken_and_said_where_it_may_be_another(store, tmp_path):
    source = layers(tmp_path / "a.gpkg", places=PLACES, lands=boxes(["west", "east"]))
    done = run("zones", store, "--polygons", source, "--out", tmp_path / "z.csv")
    assert (done.exit_code, done.stderr) == (0, "")
    assert set(pd.read_csv(tmp_path / "z.csv")["name"]) == {"west", "east"}
    layers(source, mixed=pd.concat([PLACES, boxes(["deep"])]))
    done = run("zones", store, "--polygons", source, "--out", tmp_path / "z.csv", "--overwrite")
    assert "('places', 'lands', 'mixed') the only one of polygons is read: 'lands'" in done.stderr


def test_of_several_layers_of_polygons_one_is_named(store, tmp_path):
    source = layers(tmp_path / "a.gpkg", lands=boxes(["west", "east"]), seas=boxes(["deep"]))
    refused = run("zones", store, "--polygons", source, "--out", tmp_path / "z.csv")
    assert refused.exit_code == 3
    assert "2 layers ('lands', 'seas'); choose one by its name (--layer)\n" in refused.stderr
    refused = run("zones", store, "--polygons", source, "--layer", "sky", "--out", tmp_path / "z.csv")
    assert "no layer 'sky'; it has 'lands', 'seas'" in refused.stderr
    done = run("zones", store, "--polygons", source, "--layer", "seas", "--out", tmp_path / "z.csv")
    assert (done.exit_code, done.stderr) == (0, "")
    assert set(pd.read_csv(tmp_path / "z.csv")["name"]) == {"deep"}


@pytest.mark.hard
def test_areas_have_layers_too(store, tmp_path):
    source = layers(tmp_path / "a.gpkg", lands=boxes(["west", "east"]), seas=boxes(["deep"]))
    options = ("--by", "image_id", "--area", source, "--max-mass-error", 0.05)
    refused = run("fuse", store, *options, "--out", tmp_path / "f.nc")
    assert refused.exit_code == 3
    assert "choose one by its name" in refused.stderr
    done = run("fuse", store, *options, "--layer", "seas", "--out", tmp_path / "f.nc")
    assert done.exit_code == 0, done.output
    assert open_predictions(tmp_path / "f.nc").run["evidence"]["area"] == "a.gpkg"
    places = open_predictions(tmp_path / "f.nc").rows
    assert places["longitude"].between(0, 60).all()
    raster = tmp_path / "r.tif"
    with rasterio.open(
        raster, "w", driver="GTiff", width=90, height=60, count=1, dtype="uint8", crs="EPSG:4326",
        transform=affine.Affine(1.0, 0.0, 0.0, 0.0, -1.0, 40.0),
    ) as file:  # fmt: skip
        file.write(np.full((1, 60, 90), 9, np.uint8))
    cut = (
        "chips",
        raster,
        "--ground-km",
        300,
        "--count",
        3,
        "--size",
        8,
        "--area",
        source,
        "--out",
        tmp_path / "chips",
    )
    assert run(*cut).exit_code == 3
    assert run(*cut, "--layer", "seas").exit_code == 0
    assert pd.read_csv(tmp_path / "chips" / "chips.csv")["longitude"].between(0, 60).all()


def test_seasons_need_no_other_source_and_parts_have_tables(tmp_path):
    wishes = ("--ground-km", 1500, "--count", 8, "--size", 8, "--parts", "training=3, test=1", "--block-level", 3)
    sources = [f"--season={name}={RELIEF}" for name in ("june", "july")]
    done = run("chips", *sources, *wishes, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    names = ("chips", "training", "test")
    tables = {name: pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in names}
    said = [f"wrote {tmp_path / 'out' / name}.csv: {len(tables[name])} chips" for name in names]
    assert done.stdout.splitlines() == said
    assert sorted(tables["chips"]["season"]) == ["july"] * 8 + ["june"] * 8
    assert len(tables["training"]) + len(tables["test"]) == 16
    assert set(tables["test"]["part"]) == {"test"}


def test_zones_without_names_are_said_with_the_columns_that_may_name_them(store, tmp_path):
    boxes(["x", "y"], column="admin").to_file(tmp_path / "a.geojson", driver="GeoJSON")
    done = run("zones", store, "--polygons", tmp_path / "a.geojson", "--out", tmp_path / "z.csv")
    assert done.exit_code == 0, done.output
    assert "called by their row numbers; --name-column admin names them" in done.stderr
    wrong = run(
        "zones", store, "--polygons", tmp_path / "a.geojson", "--name-column", "amdin", "--out", tmp_path / "y.csv"
    )
    assert wrong.exit_code == 2
    assert "did you mean 'admin'?" in wrong.stderr


# --- grids -------------------------------------------------------------------------------------------------------


def test_a_projected_grid_is_never_half_a_metre(store, tmp_path):
    where = ("--crs", "EPSG:3857", "--bounds", "0,4000000,3000000,8000000")
    done = run("density", store, "--image-id", "1.png", *where, "--out", tmp_path / "d.tif")
    assert done.exit_code == 0, done.output
    assert "raster cells of 10000 in units of EPSG:3857" in done.stderr
    with rasterio.open(tmp_path / "d.tif") as raster:
        assert (raster.width, raster.height) == (300, 400)


def test_a_window_beside_the_density_says_where_the_image_is(store, tmp_path):
    where = ("--bounds", "-150,-60,-149.9,-59.9")
    done = run("density", store, "--image-id", "1.png", *where, "--out", tmp_path / "d.tif")
    assert done.exit_code == 0, done.output
    placed = open_predictions(store).rows.set_index("image_id").loc["1.png"]
    assert "inside --bounds -150,-60,-149.9,-59.9 (west,south,east,north in units of EPSG:4326)" in done.stderr
    assert f"1.png is placed at longitude {placed['longitude']:.1f}, latitude {placed['latitude']:.1f}" in done.stderr


@pytest.mark.parametrize("which", [("--image-id", "1.png"), ()], ids=["one image", "the mean"])
def test_a_crs_alone_finds_its_own_window(store, tmp_path, which):
    done = run("density", store, *which, "--crs", "EPSG:6933", "--resolution", 100000, "--out", tmp_path / "d.tif")
    assert done.exit_code == 0, done.output
    with rasterio.open(tmp_path / "d.tif") as raster:
        assert raster.crs.to_epsg() == 6933
        assert raster.res == (100000.0, 100000.0)
        assert raster.width < 400  # 347 are as wide as the map
        assert 0.99 <= float(raster.tags()["PROBABILITY_SUM"]) <= 1.0 + 1e-6


@pytest.mark.parametrize(
    ("bounds", "resolution", "crs", "shape", "remark"),
    [
        ("5,45,15,55", None, None, (500, 500), "raster cells of 0.02 in units of EPSG:4326"),
        ("-180,-90,180,90", None, None, (360, 720), None),
        ("170,-20,-170,0", 0.5, None, (40, 40), "the raster crosses longitude 180"),
        ("170,-20,-170,0", 0.5, "EPSG:4326", (40, 40), "the raster crosses longitude 180"),
        ("0,0,1000,1000", 10.0, "EPSG:3857", (100, 100), None),
        (None, None, None, (360, 720), None),
    ],
)
def test_grids_are_chosen_and_said(bounds, resolution, crs, shape, remark):
    grid, remarks = grids.grid(bounds, resolution, crs)
    assert grid.shape == shape
    assert [remark in each for each in remarks] == ([True] if remark else [])


@pytest.mark.parametrize("power", [-7, -1, 0, 3, 9])
def test_round_sizes_are_not_less_and_less_than_thrice_as_much(power):
    for least in np.geomspace(10.0**power, 10.0 ** (power + 1), 50):
        assert least * (1 - 1e-8) <= grids.round_size(float(least)) < 2.51 * least


# --- figures -----------------------------------------------------------------------------------------------------


def test_a_table_that_is_written_is_not_shown_whole(store, tmp_path):
    shown = run("evaluate", store, "--by", "place")
    assert "p0" in shown.stdout
    brief = run("evaluate", store, "--by", "place", "--out", tmp_path / "e.csv")
    assert brief.exit_code == 0, brief.output
    assert "p0 " not in brief.stdout
    assert f"2 groups of place: in {tmp_path / 'e.csv'}" in brief.stdout
    assert set(pd.read_csv(tmp_path / "e.csv")["group"]) == {"all", "p0", "p1"}


@pytest.mark.parametrize(
    ("temperature", "shift", "words"),
    [
        (1.0, 0.1, []),
        (1.0, -2.2, ["peaks become 3.0 times as wide"]),
        (6.0, 0.0, ["hardly anything is left of its choice"]),
        (0.1, -9.0, ["peaks become 90.0 times", "far sharper"]),
    ],
)
def test_an_extreme_calibration_is_said(temperature, shift, words):
    found = learning._extremes({"temperature": temperature, "log_concentration_shift": shift})
    assert [word in each for word, each in zip(words, found, strict=True)] == [True] * len(words)
    assert all("check that their places are right" in each for each in found)


@pytest.mark.parametrize(
    ("interval", "is_said"),
    [([-0.2, 0.1], True), ([0.0, 0.0], True), ([-0.2, -0.1], False), ([0.1, 0.2], False)],
)
def test_a_calibration_that_is_not_shown_to_be_better_is_said_last(interval, is_said):
    about = {"num_images": 9, "num_groups": 3, "grouped_by": "place", "num_failed": 0, "nll_before": 2, "nll_after": 2}
    for name in ("temperature", "log_concentration_shift", "nll_change"):
        about |= {name: 0.0, f"{name}_interval": interval}
    assert learning._calibration_lines(about)[-1].startswith("the interval of the change holds 0") == is_said


def test_two_problems_of_a_row_are_two_sentences():
    rows = pd.DataFrame({"path": ["no.jpg"], "longitude": [51.0], "latitude": [107.0], "weight": [-1.0]})
    message = tables.read_image_table(rows, root="/")["message"][0]
    assert "swapped? " in message
    assert "?;" not in message


def test_a_missing_bundle_is_said_once(store, tmp_path):
    refused = run(
        "predict", store.parent / "0.png", "--bundle", tmp_path / "no.safetensors", "--out", tmp_path / "a.nc"
    )
    assert refused.exit_code == 4
    assert refused.stderr.count("no.safetensors") == 1


@pytest.mark.parametrize(
    ("options", "remark"),
    [
        (("--crs", "EPSG:3035", "--bounds", "5,40,15,50"), "these look like degrees"),
        (("--bounds", "-150,-60,-149.9,-59.9"), "hardly any probability lies inside"),
    ],
)
def test_units_that_are_mixed_up_show(store, tmp_path, options, remark):
    done = run("density", store, "--out", tmp_path / "a.tif", *options)
    assert done.exit_code == 0, done.output
    assert remark in done.output


def test_files_that_are_taken_for_others(store, tmp_path):
    run("points", store, "--out", store.with_suffix(".gpkg"))
    done = run("density", store.with_suffix(".gpkg"), "--out", tmp_path / "a.tif")
    assert f"{store} lies beside it" in done.output
    (tmp_path / "a.tif").write_bytes(b"II*")
    done = run("zones", store, "--polygons", tmp_path / "a.tif", "--out", tmp_path / "z.csv")
    assert "it is a raster, and a layer of vectors is wanted" in done.output
    photo, notes = store.parent / "0.png", tmp_path / "notes.md"
    notes.write_text("# Photos of the summer\n")
    (tmp_path / "empty.nc").touch()
    bundle = tmp_path / "b.safetensors"
    bundle.write_bytes((96).to_bytes(8, "little") + b"{}" + bytes(94))
    predict = ("predict", "--out", tmp_path / "x.csv")
    points = ("points", "--out", tmp_path / "p.csv")
    zones = ("zones", store, "--out", tmp_path / "z.csv", "--polygons")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "predictions.nc").touch()
    (tmp_path / "run" / "bundle.safetensors").touch()
    for name in ("album/a.nc", "models/b.safetensors"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    image_table = "a folder of images, one image or a table of them (.csv .gpkg .parquet .geojson) is wanted"
    for arguments, told in (
        ((*points, bundle), "not a NetCDF-4 file but a .safetensors file, as bundles are; `geo-mvmf predict IMAGES"),
        ((*points, notes), "not a NetCDF-4 file but text; `geo-mvmf predict` makes predictions files"),
        ((*points, tmp_path / "empty.nc"), "not a NetCDF-4 file; `geo-mvmf predict` makes predictions files"),
        (
            (*predict, photo, "--bundle", store),
            "this is an HDF5 file, as predictions are, not a .safe",
        ),
        ((*predict, photo, "--bundle", notes), "not a .safetensors file but text; `geo-mvmf train`"),
        (
            (*predict, photo, "--bundle", store.parent / "0.png"),
            "not a .safetensors file but a picture",
        ),
        ((*predict, store, "--bundle", bundle), f"it is a NetCDF-4 (HDF5) file, as predictions are, and {image_table}"),
        ((*predict, notes, "--bundle", bundle), f".md is not read; it is text, and {image_table}"),
        (
            (*zones, bundle),
            "it is a .safetensors file, as bundles are, and a layer of vectors is wanted",
        ),
        (
            (*points, tmp_path / "run"),
            f"{tmp_path / 'run'} is a folder; {tmp_path / 'run' / 'predictions.nc'} lies in it",
        ),
        ((*predict, photo, "--bundle", tmp_path / "run"), f"{tmp_path / 'run' / 'bundle.safetensors'} lies in it"),
        (("info", tmp_path / "album"), f"album is a folder; {tmp_path / 'album' / 'a.nc'} lies in it"),
        (("info", tmp_path / "models"), f"models is a folder; {tmp_path / 'models' / 'b.safetensors'} lies in it"),
        (("evaluate", bundle), "and predictions (.nc) or a table of points (.csv .gpkg .parquet .geojson) are wanted"),
    ):
        done = run(*arguments)
        assert done.exit_code in (3, 4)
        assert told in done.stderr, done.stderr


def test_a_layer_without_crs_is_given_one(store, tmp_path):
    plain = tmp_path / "plain.gpkg"
    frame = geopandas.GeoDataFrame({"path": ["0.png"]}, geometry=[shapely.Point(400000, 5700000)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of pyogrio: the CRS is missing
        frame.to_file(plain, engine="pyogrio")
        boxes("a").set_crs(None, allow_override=True).to_file(tmp_path / "area.gpkg", engine="pyogrio")
    done = run("zones", store, "--polygons", tmp_path / "area.gpkg", "--out", tmp_path / "z.csv")
    assert "the CRS is unknown; ogr2ogr -a_srs EPSG:n new.gpkg FILE (QGIS: Assign projection)\n" in done.stderr
    done = run("table", plain, "--root", store.parent)
    assert done.exit_code == 3
    assert "the CRS is unknown; set it to EPSG:n or OGC:CRS84 (--crs)\n" in done.stderr
    done = run("partition", plain, "--out", tmp_path / "cells.gpkg")
    assert "the CRS is unknown; geo-mvmf table FILE --crs EPSG:n --out images.csv makes a table" in done.stderr
    done = run("table", plain, "--root", store.parent, "--crs", "EPSG:32632", "--out", tmp_path / "images.csv")
    assert done.exit_code == 0, done.output
    again = tables.read_image_table(tmp_path / "images.csv", root=store.parent)
    assert again["status"].tolist() == ["ok"]
    assert 7 < again.geometry.iloc[0].x < 8


# --- what failed, what was passed over, what was written ---------------------------------------------------------


def test_many_failures_are_a_few_lines(tmp_path):
    n = 20_000
    rows = pd.DataFrame({"path": [f"{i}.jpg" for i in range(n)], "feature_distance": np.nan})
    rows = rows.assign(status="missing", message="no such file").astype({"path": object})
    rows.loc[1, ["path", "message"]] = ["b\x1b[31m.jpg", "b\x1b[31m.jpg: " + "x" * 900]
    rows.loc[2, "status"] = "ok"
    outputs = prediction_outputs.outputs_of(tmp_path / "album", None, None, None)
    lines = prediction_outputs.ending(outputs, tmp_path / "album", rows).splitlines()
    where = tmp_path / "album" / "predictions.gpkg"
    assert lines[1].startswith("19999 images have no prediction; why is in the columns status and message of ")
    assert lines[1].endswith(f"{where}; the first 3:")
    assert [line[:12] for line in lines[2:5]] == ["  0.jpg: no ", "  b?[31m.jpg", "  3.jpg: no "]
    assert len(lines[3]) < 210
    assert "\x1b" not in "".join(lines)
    assert lines[5:] == [
        f"wrote into {tmp_path / 'album'}: predictions.gpkg, report.html and predictions.nc (for further maps)"
    ]


def test_a_prediction_without_failures_names_none():
    rows = pd.DataFrame({"path": ["a"], "status": ["ok"], "message": [""], "feature_distance": [np.nan]})
    out = Path("a.csv")
    said = prediction_outputs.ending(prediction_outputs.outputs_of(out, None, None, None), out, rows)
    assert said == "status: 1 ok\nwrote a.csv and a.nc (for further maps)"


def test_failed_rows_without_a_path_are_named_by_their_image_id(tmp_path):
    """A layer of photos has rows without one."""
    texts = {"path": ["", "", None], "image_id": ["b", "", "c"], "status": ["missing"] * 3, "message": ["no path"] * 3}
    rows = pd.DataFrame({**texts, "feature_distance": [0.0] * 3})
    out = tmp_path / "a.nc"
    said = prediction_outputs.ending(prediction_outputs.outputs_of(out, None, None, None), out, rows).splitlines()
    assert said[2:5] == ["  b: no path", "  no path", "  c: no path"]


def test_files_that_are_no_images_are_counted_by_extension(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a.JPG", "raw.CR2", "more/raw.cr2", "more/LICENSE", ".hidden/a.cr2", ".b.cr2"):
        (tmp_path / name).touch()
    assert prediction_outputs.left_out(tmp_path) == (
        "3 other files are not taken as images: 2 .cr2, 1 without extension"
    )
    for kind in "abcde":
        (tmp_path / f"1.{kind}").touch()
    assert prediction_outputs.left_out(tmp_path).endswith(", ...")
    assert prediction_outputs.left_out(tmp_path / "a.JPG") == ""
