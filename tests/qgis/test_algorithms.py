"""Every algorithm in a real QGIS with the real worker, on the sample: outputs are opened and looked at."""

import csv
import json
import re
import shlex
import shutil
import sqlite3
import sys
from pathlib import Path

import geopandas
import pytest
import rasterio
from click.testing import CliRunner

from geo_mvmf import open_predictions
from geo_mvmf.cli import main as _main  # the worker that is asked stands beside it

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data"
BUNDLE = SAMPLE / "relief.safetensors"
pytestmark = [pytest.mark.hard, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty images: spaces, quotes, odd letters, damaged ones, an empty one, one that only says it is HEIC."""
    folder = tmp_path_factory.mktemp("photos") / "Fotos für 'alle' & <b>"
    (folder / "day 1").mkdir(parents=True)
    chips = sorted(path for path in (SAMPLE / "chips").iterdir() if path.suffix in (".jpg", ".png", ".tif"))
    chips = [path for path in chips if path.name != "broken.jpg"][:16]
    names = [f"img {i}.{path.suffix[1:]}" for i, path in enumerate(chips)]
    names[:4] = ["Žabljak, two words.jpg", "day 1/日本 #1.png", "quote \"x\" 'y'.jpg", "-dash --strict.tif"]
    for path, name in zip(chips, names, strict=True):
        shutil.copyfile(path, folder / Path(name).with_suffix(path.suffix))
    (folder / "corrupt.jpg").write_bytes(chips[0].read_bytes()[:500])
    (folder / "phone.heic").write_bytes(b"not really")
    (folder / "<img src=x onerror=alert(1)>.jpg").write_bytes(b"")
    (folder / "twin.jpg").write_bytes((SAMPLE / "chips" / "broken.jpg").read_bytes())
    return folder


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Five chips of known place, predicted once by the command line."""
    folder = tmp_path_factory.mktemp("album")
    with (SAMPLE / "truth.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:5]
    with (folder / "truth.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "longitude", "latitude", "country", "continent"])
        writer.writeheader()
        writer.writerows(dict(row, path=str(SAMPLE / row["path"])) for row in rows)
    words = ["predict", folder / "truth.csv", "--root", SAMPLE, "--bundle", BUNDLE, "--out", folder / "album.gpkg"]
    done = CliRunner().invoke(_main, [*map(str, words), "--levels", "0.5,0.9"])
    assert done.exit_code == 0, done.output
    return folder


def names_of(album):
    return open_predictions(album / "album.nc").rows["image_id"].tolist()


def table_of(path):
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def layers(path):
    with sqlite3.connect(path) as database:
        return {row[0] for row in database.execute("SELECT table_name FROM gpkg_contents")}


def rows_of(path, layer):
    return geopandas.read_file(path, layer=layer)


def test_twenty_photos_of_all_kinds(process, photos, tmp_path):
    wanted = {
        "FOLDER": photos,
        "BUNDLE": BUNDLE,
        "BATCH_SIZE": "7",
        "POINTS": tmp_path / "my points.gpkg",
        "REGIONS": tmp_path / "regions.gpkg",
        "PREDICTIONS": tmp_path / "ž.nc",
        "ZONE_LAYER": SAMPLE / "countries.geojson",
        "ZONES": tmp_path / "zones.gpkg",
    }
    results, log, code = process("geomvmf:predictphotos", wanted)
    assert code == 0, log
    assert (results["COUNT"], results["FAILED"]) == ("20", "4")
    assert float(results["MEDIAN_AREA_90"]) > 1.0
    points = rows_of(wanted["POINTS"], "points")
    good = points[points["status"] == "ok"]
    assert len(points) == 20
    assert len(good) == 16
    assert good.geometry.notna().all()
    bad = points[points["status"] != "ok"]
    assert bad.geometry.isna().all()
    assert (bad["message"].str.len() > 10).all()
    assert {"points", "run", "layer_styles"} <= layers(wanted["POINTS"])
    regions = rows_of(wanted["REGIONS"], "regions")
    assert set(regions["image_id"]) == set(good["image_id"])
    assert set(regions["level"].round(6)) == {0.5, 0.9}
    zones = rows_of(wanted["ZONES"], "points")
    assert (zones.loc[zones["status"] == "ok", "zone_1_probability"] > 0).all()
    assert len(open_predictions(wanted["PREDICTIONS"])) == 20
    commands = [shlex.split(said) for said in re.findall("geo-mvmf (?:predict|points|regions|zones) .*", log)]
    assert [words[1] for words in commands] == ["predict", "zones"]  # one for three files, each under its own name
    named = [
        dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word) for words in commands
    ]
    assert [named[0][name] for name in ("out", "points", "regions")] == [
        str(wanted[name]) for name in ("PREDICTIONS", "POINTS", "REGIONS")
    ]
    assert named[1]["out"] == str(wanted["ZONES"])
    names = [wanted[name] for name in ("PREDICTIONS", "POINTS", "REGIONS", "ZONES")]
    left = {path.name for path in tmp_path.iterdir()} - {"profile", *(path.name for path in map(Path, names))}
    assert not left


def test_files_of_which_one_is_damaged_and_one_is_missing(process, photos, tmp_path):
    files = [photos / "Žabljak, two words.jpg", photos / "corrupt.jpg", photos / "gone.jpg"]
    wanted = {"FILES": files, "BUNDLE": BUNDLE, "POINTS": tmp_path / "p.gpkg", "PREDICTIONS": tmp_path / "p.nc"}
    results, log, code = process("geomvmf:predictphotos", wanted)
    assert code == 0, log
    points = rows_of(wanted["POINTS"], "points").set_index("image_id")
    assert points["status"].to_dict() == {
        "Žabljak, two words.jpg": "ok",
        "corrupt.jpg": "unreadable",
        "gone.jpg": "missing",
    }
    assert results["FAILED"] == "2"


def test_a_layer_of_photos_loads_styled_and_grouped(probe, photos, tmp_path):
    """As Import geotagged photos leaves those without a position; and as the toolbox loads results."""
    paths = [photos / "Žabljak, two words.jpg", "corrupt.jpg", photos / "day 1" / "日本 #1.png", None]
    features = [
        {"type": "Feature", "properties": {"photo": path and str(path), "n": i}, "geometry": None}
        for i, path in enumerate(paths)
    ]
    table = photos / "invalid.geojson"
    table.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    outs = {name: str(tmp_path / f"{name.lower()}.gpkg") for name in ("POINTS", "REGIONS")}
    parameters = {"PHOTO_LAYER": str(table), "BUNDLE": str(BUNDLE), "PREDICTIONS": str(tmp_path / "p.nc"), **outs}
    step = {"algorithm": "geomvmf:predictphotos", "parameters": parameters, "load": ["POINTS", "REGIONS"]}
    parameters = {"PREDICTIONS": parameters["PREDICTIONS"], "OUTPUT": str(tmp_path / "d.tif")}
    raster = {"algorithm": "geomvmf:densityraster", "parameters": parameters, "load": ["OUTPUT"]}
    answer, maps = probe({"do": "run", "steps": [step, raster]}, sys.executable, timeout=300)
    table.unlink()
    assert answer["error"] == ""
    assert (answer["results"]["COUNT"], answer["results"]["FAILED"]) == (4, 2)
    assert "reportError" not in {way for way, _ in answer["said"]}
    assert answer["layers"][0]["temporal"]
    points, regions = answer["layers"]
    assert points["name"] == "Predicted locations"
    assert regions["name"] == "Credible regions"
    assert points["group"] == regions["group"]
    assert points["group"].startswith("Geo MvMF / ")
    assert points["renderer"] == regions["renderer"] == "QgsRuleBasedRenderer"
    assert points["aliases"]["radius_90_km"] == "Radius holding 90 % (km)"
    kind, config = points["widgets"]["path"]
    assert kind == "ExternalResource"
    assert config["DefaultRoot"] == str(photos)
    assert int(config["DocumentViewer"]) == 1
    assert "<img" in points["tip"]
    assert "A region, not a proof" in points["abstract"]
    assert "bundle: relief.safetensors" in points["abstract"]
    assert "&lt;b&gt;" in points["abstract"]  # the folder's name, which is rich text where QGIS shows it
    assert "<b>" not in points["abstract"]
    assert points["licences"]
    assert rows_of(outs["POINTS"], "points")["n"].tolist() == [0, 1, 2, 3]
    level, density = (each for each in maps["layers"] if each["source"].endswith(".tif"))
    assert density["name"] == "Density, mean of all"
    assert level["source"].endswith("d_level.tif")
    assert level["group"] == density["group"]
    assert level["renderer"] == density["renderer"] == "QgsSingleBandPseudoColorRenderer"


def test_claims_of_a_layer_in_metres_and_a_folder_without_its_folders(probe, photos, tmp_path):
    """Positions of the layer are claims in degrees; only the images in the folder itself are taken."""
    layer = photos / "geotagged.gpkg"
    frame = geopandas.GeoDataFrame(
        {"photo": [str(photos / "Žabljak, two words.jpg")], "longitude": ["text"], "fraction": [float("nan")]},
        geometry=geopandas.points_from_xy([7.0], [50.0], crs="EPSG:4326").to_crs("EPSG:3857"),
    )
    frame.to_file(layer, layer="photos")
    steps = [
        {
            "algorithm": "geomvmf:predictphotos",
            "parameters": {
                "BUNDLE": str(BUNDLE),
                "POINTS": str(tmp_path / f"{name}.gpkg"),
                "PREDICTIONS": str(tmp_path / f"{name}.nc"),
                **given,
            },
        }
        for name, given in {
            "claims": {"PHOTO_LAYER": str(layer), "PHOTO_FIELD": "photo", "CLAIMS": "columns"},
            "truth": {"PHOTO_LAYER": str(layer)},
            "flat": {"FOLDER": str(photos), "RECURSIVE": "false"},
            "nested": {"FOLDER": str(photos / "day 1"), "RECURSIVE": "true"},
        }.items()
    ]
    answers = probe({"do": "run", "steps": steps}, sys.executable, timeout=280)
    layer.unlink()
    assert [answer["error"] for answer in answers] == [""] * 4
    assert [answer["results"]["COUNT"] for answer in answers] == [1, 1, 19, 1]
    claims, truth = (rows_of(tmp_path / f"{name}.gpkg", "points").iloc[0] for name in ("claims", "truth"))
    assert (claims["claimed_longitude"], claims["claimed_latitude"]) == pytest.approx((7.0, 50.0))
    assert 0.0 <= claims["claimed_level"] <= 1.0
    assert (truth["true_longitude"], truth["true_latitude"]) == pytest.approx((7.0, 50.0))
    assert truth["error_km"] > 0.0


def test_a_raster_layer_and_what_is_none(process, probe, tmp_path):
    scan = tmp_path / "a scan.tif"
    shutil.copyfile(SAMPLE / "chips" / "chip_03.tif", scan)
    outs = {"POINTS": tmp_path / "r.gpkg", "PREDICTIONS": tmp_path / "r.nc"}
    results, log, code = process("geomvmf:predictraster", {"RASTER": scan, "BUNDLE": BUNDLE, **outs})
    assert code == 0, log
    assert -180 <= float(results["LONGITUDE"]) <= 180
    assert float(results["AREA_90"]) > 1.0
    assert "CLAIMED_LEVEL" not in results
    virtual = tmp_path / "v.vrt"
    virtual.write_text(
        '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{scan}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    disguised = tmp_path / "disguised.tif"
    shutil.copyfile(virtual, disguised)
    steps = [
        {"algorithm": "geomvmf:predictraster", "parameters": {"RASTER": str(each), "BUNDLE": str(BUNDLE)} | {
            name: str(path) for name, path in outs.items()}}
        for each in (virtual, disguised)
    ]  # fmt: skip
    for answer in probe({"do": "run", "steps": steps}, sys.executable):
        assert "virtual raster" in answer["error"]
        assert "Export" in answer["error"]


def test_a_georeferenced_raster_is_judged(process, tmp_path):
    """A chip of the relief at its true place, and the same pixels at a false one."""
    words = ["chips", SAMPLE / "relief.tif", "--ground-km", 2000, "--size", 48, "--count", 1, "--format", "tif"]
    words += ["--area", SAMPLE / "countries.geojson", "--seed", 3, "--out", tmp_path / "cut"]
    assert CliRunner().invoke(_main, list(map(str, words))).exit_code == 0
    (chip,) = (tmp_path / "cut" / "chips").glob("*.tif")
    levels = []
    for name, turn in (("true", 0.0), ("false", 120.0)):
        with rasterio.open(chip) as file:
            pixels, profile, crs = file.read(), file.profile, file.crs.to_dict()
        crs["lon_0"] = (crs["lon_0"] + turn + 180.0) % 360.0 - 180.0
        with rasterio.open(tmp_path / f"{name}.tif", "w", **(profile | {"crs": crs})) as file:
            file.write(pixels)
        wanted = {"RASTER": tmp_path / f"{name}.tif", "BUNDLE": BUNDLE, "POINTS": tmp_path / f"{name}.gpkg"}
        results, log, code = process("geomvmf:predictraster", {**wanted, "PREDICTIONS": tmp_path / f"{name}.nc"})
        assert code == 0, log
        levels.append(float(results["CLAIMED_LEVEL"]))
    assert levels[0] < 0.99 < levels[1]


def test_density_of_one_of_some_of_all_and_of_each(process, album, tmp_path):
    first, second, *_ = names_of(album)
    store = album / "album.nc"
    results, log, code = process(
        "geomvmf:densityraster", {"PREDICTIONS": store, "IMAGE_IDS": first, "OUTPUT": tmp_path / "1.tif"}
    )
    assert code == 0, log
    for name in ("OUTPUT", "LEVEL"):
        with rasterio.open(results[name]) as raster:
            assert raster.crs.to_epsg() == 4326
            assert Path(results[name]).with_suffix(".qml").exists()
    extent = "2500000,7500000,1500000,5500000 [EPSG:3035]"
    wanted = {"PREDICTIONS": store, "IMAGE_IDS": f"{first};{second}", "EXTENT": extent, "OUTPUT": tmp_path / "2.tif"}
    results, log, code = process("geomvmf:densityraster", {**wanted, "BANDWIDTH_KM": "50"})
    assert code == 0, log
    with rasterio.open(results["OUTPUT"]) as raster:
        assert raster.crs.to_epsg() == 3035
        assert raster.res == (10000.0, 10000.0)
        assert float(raster.tags()["PROBABILITY_SUM"]) <= 1.0
    results, log, code = process(
        "geomvmf:densityraster", {"PREDICTIONS": store, "MODE": "each", "FOLDER": tmp_path / "each"}
    )
    assert code == 0, log
    assert len(list((tmp_path / "each").glob("*_level.tif"))) == 5
    results, log, code = process(
        "geomvmf:densityraster", {"PREDICTIONS": store, "CRS": "EPSG:3857", "OUTPUT": tmp_path / "3.tif"}
    )
    assert code == 0, log
    with rasterio.open(results["OUTPUT"]) as raster:  # the window that it chose
        assert raster.crs.to_epsg() == 3857
        assert 0.989 <= float(raster.tags()["PROBABILITY_SUM"]) <= 1.0


def test_regions_zones_and_fusing(process, album, tmp_path):
    first, second, *_ = names_of(album)
    store = album / "album.nc"
    wanted = {"PREDICTIONS": store, "IMAGE_IDS": first, "LEVELS": "0.8", "OUTPUT": tmp_path / "r.gpkg"}
    _, log, code = process("geomvmf:credibleregions", wanted)
    assert code == 0, log
    assert rows_of(wanted["OUTPUT"], "regions")[["image_id", "level"]].to_numpy().tolist() == [[first, 0.8]]

    wanted = {"PREDICTIONS": store, "ZONES": SAMPLE / "countries.geojson", "OUTPUT": tmp_path / "z.gpkg"}
    _, log, code = process("geomvmf:zoneprobabilities", {**wanted, "TABLE": tmp_path / "z.csv", "TOP": "2"})
    assert code == 0, log
    assert {"points", "zones"} <= layers(wanted["OUTPUT"])
    assert len(table_of(tmp_path / "z.csv")) == 10

    wanted = {"PREDICTIONS": store, "IMAGE_IDS": second, "BY": "image_id", "AREA": SAMPLE / "aoi.geojson"}
    outs = {"OUTPUT": tmp_path / "f.nc", "REGIONS": tmp_path / "fr.gpkg", "MAX_MASS_ERROR": "0.05"}
    _, log, code = process("geomvmf:fusepredictions", {**wanted, **outs})
    assert code == 0 or "of its probability in the area" in log.replace("\n", " "), log
    wanted = {"PREDICTIONS": store, "BY": "all", "INDEPENDENCE": "0.5", "IMAGE_IDS": f"{first};{second}"}
    _, log, code = process("geomvmf:fusepredictions", {**wanted, **outs})
    assert code == 0, log
    assert open_predictions(outs["OUTPUT"]).rows["n_images"].tolist() == [2]
    assert len(rows_of(outs["REGIONS"], "regions")) == 2


def test_evaluating_with_error_lines(process, album, tmp_path):
    outs = {"REPORT": tmp_path / "page.html", "TABLE": tmp_path / "t.csv", "ERROR_LINES": tmp_path / "lines.gpkg"}
    wanted = {"PREDICTIONS": album / "album.nc", "POINTS": album / "album.gpkg", "BY": "continent", **outs}
    results, log, code = process("geomvmf:evaluate", wanted)
    assert code == 0, log
    assert "<html" in Path(results["REPORT"]).read_text(encoding="utf-8").lower()
    lines, points = geopandas.read_file(outs["ERROR_LINES"]), rows_of(album / "album.gpkg", "points")
    assert len(lines) == len(points) == 5
    for line, point in zip(lines.geometry, points.geometry, strict=True):
        assert tuple(line.geoms[-1].coords[-1]) == pytest.approx((point.x, point.y))
    _, log, code = process("geomvmf:evaluate", {**wanted, "POINTS": SAMPLE / "truth.csv"})
    assert code != 0
    assert "true_longitude" in log


def test_chips_training_calibration_and_prediction_with_it(process, tmp_path):
    shutil.copyfile(SAMPLE / "relief.tif", tmp_path / "relief.tif")
    wanted = {"RASTERS": tmp_path / "relief.tif", "GROUND_KM": "2000", "SIZE": "32", "COUNT": "40"}
    results, log, code = process("geomvmf:cutchips", {**wanted, "OUTPUT": tmp_path / "chips"})
    assert code == 0, log
    table = results["TABLE"]
    assert len(table_of(table)) == 40
    wanted = {"TABLE": table, "COMPONENTS": "12", "EPOCHS": "1", "BATCH_SIZE": "8", "OUTPUT": tmp_path / "run"}
    results, log, code = process("geomvmf:trainmodel", {**wanted, "OPTIONS": "backbone_width = 8; pool = 2"})
    assert code == 0, log
    assert Path(results["BUNDLE"]).exists()
    wanted = {"BUNDLE": results["BUNDLE"], "TABLE": table, "OUTPUT": tmp_path / "calibrated.safetensors"}
    results, log, code = process("geomvmf:calibrate", wanted)
    assert code == 0, log
    outs = {"POINTS": tmp_path / "p.gpkg", "PREDICTIONS": tmp_path / "p.nc"}
    results, log, code = process(
        "geomvmf:predictphotos", {"FOLDER": tmp_path / "chips", "BUNDLE": results["OUTPUT"], **outs}
    )
    assert (code, results.get("COUNT")) == (0, "40"), log


def test_a_model_chains_prediction_density_and_zones(probe, photos, tmp_path):
    request = {
        "do": "chain",
        "folder": str(photos / "day 1"),
        "bundle": str(BUNDLE),
        "zones": str(SAMPLE / "countries.geojson"),
        "out": str(tmp_path),
    }
    seen = probe(request, sys.executable, timeout=300)
    assert seen["error"] == ""
    with rasterio.open(tmp_path / "density.tif") as raster:
        assert float(raster.tags()["PROBABILITY_SUM"]) == pytest.approx(1.0, abs=1e-3)
    assert "zone_1" in rows_of(tmp_path / "zones.gpkg", "points")


def test_wrong_parameters_are_said_with_what_to_do(probe, photos, tmp_path):
    outs = {name: str(tmp_path / f"{name}.gpkg") for name in ("POINTS", "REGIONS")}
    outs["PREDICTIONS"] = str(tmp_path / "p.nc")
    common = {"FOLDER": str(photos), "BUNDLE": str(BUNDLE), **outs}
    steps = [
        {"algorithm": "geomvmf:predictphotos", "parameters": {**common, **wrong}}
        for wrong in (
            {"FILES": [str(photos / "corrupt.jpg")]},
            {"BUNDLE": str(tmp_path / "no.safetensors")},
            {"LEVELS": "1.5"},
            {"ESTIMATOR": "best_within"},
            {"DEVICE": "cuda:99"},
        )
    ]
    answers = probe({"do": "run", "steps": steps}, sys.executable, timeout=280)
    for answer, words in zip(answers, ("exactly one", "no.safetensors", "1.5", "radius", "cuda:99"), strict=True):
        assert words in answer["error"]
        assert "Traceback" not in answer["error"]
    assert not Path(outs["POINTS"]).exists()
