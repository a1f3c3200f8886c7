"""The command line: what it says, what it leaves behind, and what it exits with."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray
from click.testing import CliRunner
from PIL import Image

from geo_mvmf import cli, environment, errors
from geo_mvmf.model.bundle import save_bundle
from geo_mvmf.model.untrained import untrained_bundle
from geo_mvmf.predictions import open_predictions

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "geopandas", "rasterio", "pandas", "numpy", "shapely", "xarray", "matplotlib")


def run(*arguments):
    """Run a command in this process; an exception that is no exit would be a traceback to the user."""
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def house(bundle_path, tmp_path_factory):
    """An album of five pictures, its predictions, and every kind of unusable file."""
    folder = tmp_path_factory.mktemp("house")
    photos = folder / "photos"
    photos.mkdir()
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(noise).save(photos / f"{i}.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    lines = ["path,lon,lat,place", *(f"{i}.png,{7 * i},{50 - i},p{i % 2}" for i in range(4)), "broken.jpg,1,2,p0"]
    (photos / "truth.csv").write_text("\n".join(lines) + "\n")
    (folder / "empty").mkdir()
    (folder / "words").mkdir()
    (folder / "words" / "readme.md").write_text("no image")
    (folder / "taken.gpkg").write_text("somebody's")
    (folder / "taken").mkdir()
    (folder / "taken" / "report.html").write_text("somebody's")
    (folder / "pickle.safetensors").write_bytes(
        b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s."
    )
    flipped = bytearray(bundle_path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (folder / "flipped.safetensors").write_bytes(flipped)
    (folder / "short.safetensors").write_bytes(bundle_path.read_bytes()[:999])
    (folder / "nothing.csv").write_text("")
    (folder / "nopath.csv").write_text("a,b\n1,2\n")
    (folder / "rowless.csv").write_text("path,lon,lat\n")
    (folder / "xy.csv").write_text("path,x,y\nphotos/0.png,5,6\n")
    (folder / "other.csv").write_text("image_id,lon,lat\nzz,1,2\n")
    (folder / "twice.csv").write_text("image_id,lon,lat\nzz,1,2\nzz,1,2\n")
    (folder / "nowhere.csv").write_text("image_id,lon,lat\nzz,1,200\n")
    (folder / "bad.toml").write_text("stage = \n")
    (folder / "unknown.toml").write_text('stage = "head"\ntable = "a.csv"\nout = "run"\nfood = 1\n')
    (folder / "untabled.toml").write_text('stage = "head"\ntable = "nope.csv"\nout = "run"\n')
    (folder / "text.nc").write_text("hello")
    (folder / "vrt.jpg").write_text("<VRTDataset rasterXSize='1' rasterYSize='1'/>")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "model.safetensors").write_bytes(bundle_path.read_bytes())
    result = run("predict", photos / "truth.csv", "--bundle", bundle_path, "--out", folder / "album.nc")
    assert result.exit_code == 0, result.output
    return folder


# --- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"], ["evaluate", "-h"]])
def test_help_imports_nothing_heavy(arguments):
    """Imports are counted, not seconds; torch cannot be imported at all."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from geo_mvmf.cli import main\n"
        f"try:\n    main({arguments}, prog_name='geo-mvmf')\nexcept SystemExit as end:\n    assert not end.code\n"
        f"print('heavy:', [n for n in {HEAVY} if sys.modules.get(n)], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "heavy: []"
    assert "geo-mvmf" in done.stdout


def test_the_count_of_imports_notices_one():
    """The broken twin: a door that imports its views at the top."""
    code = "import sys, geo_mvmf.cli, geo_mvmf.metrics; print([n for n in ('numpy', 'torch') if sys.modules.get(n)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['numpy']"


def test_every_command_is_listed_and_has_help():
    listed = run("--help").output
    for name in cli.COMMANDS:
        assert f"\n  {name} " in listed
        assert run(name, "--help").output.startswith(f"Usage: geo-mvmf {name} ")
        options = [each for each in cli.main.get_command(None, name).params if isinstance(each, click.Option)]
        assert [each.name for each in options if not each.help and not each.hidden] == []


# --- a user's mistakes -------------------------------------------------------------------------------------------

MISTAKES = [  # command, exit code, what its message says
    ("predict nope.csv --bundle model.safetensors --out x", 3, "nope.csv': there is no such file"),
    ("predict nothing.csv --bundle model.safetensors --out x", 3, "nothing.csv is empty"),
    ("predict nopath.csv --bundle model.safetensors --out x", 3, "no column 'path'; its columns are 'a', 'b'"),
    ("predict xy.csv --bundle model.safetensors --out x", 3, "the CRS is unknown"),
    ("predict empty --bundle model.safetensors --out x", 3, "empty: the folder holds no image"),
    ("predict words --bundle model.safetensors --out x", 3, "words: the folder holds no image"),
    ("predict pipe.jpg --bundle model.safetensors --out x", 3, "a pipe"),
    ("predict text.nc --bundle model.safetensors --out x", 3, "text.nc"),
    ("predict https://example.org/a.csv --bundle model.safetensors --out x", 3, "https:"),
    ("predict photos --bundle nope.safetensors --out x", 4, "nope.safetensors': there is no such file"),
    ("predict photos --bundle pickle.safetensors --out x", 4, "this is a pickle"),
    ("predict photos --bundle flipped.safetensors --out x", 4, "flipped.safetensors: damaged: the SHA-256"),
    ("predict photos --bundle short.safetensors --out x", 4, "short.safetensors"),
    ("predict photos --bundle photos/truth.csv --out x", 4, "not a .safetensors file"),
    ("predict photos --bundle photos --out x", 4, "is a folder"),
    ("predict photos --bundle model.safetensors --out x.kml", 2, "the suffix is '.kml'; .nc or .gpkg"),
    ("predict photos --bundle model.safetensors --out taken.gpkg", 5, "taken.gpkg: exists already"),
    ("predict photos --bundle model.safetensors --out taken", 5, "report.html: exists already"),
    ("predict photos --bundle model.safetensors --out album.nc", 5, "album.nc: exists already"),
    ("predict photos --bundle model.safetensors --out nopath.csv/x", 5, "nopath.csv is a file, not a folder"),
    ("density album.nc --out nopath.csv/x.tif", 5, "nopath.csv is a file, not a folder"),
    ("predict photos --bundle model.safetensors --out x --levels 1.5", 2, "--levels '1.5': probabilities between"),
    ("predict photos --bundle model.safetensors --out x --levels half", 2, "--levels 'half': numbers"),
    ("predict photos --bundle model.safetensors --out x --device gpu", 2, "device 'gpu' is not auto"),
    ("predict photos --bundle model.safetensors --out x --batch-size 0", 2, "0 is not in the range"),
    ("predict photos --bundle model.safetensors --out x --estimator best", 2, "'best' is not one of"),
    ("predict photos --bundle model.safetensors --out x --estimator best_within", 2, "best_within needs --radius-km"),
    (
        "predict photos --bundle m --out x --estimator best_within --radius-km -5",
        2,
        "--radius-km, kilometres above 0, not",
    ),
    ("predict photos --bundle m --out x --radius-km 5", 2, "--radius-km 5 goes with --estimator best_within"),
    ("predict photos --bundle model.safetensors --out x --frobnicate", 2, "No such option"),
    ("predict photos --out x", 2, "Missing option '--bundle'"),
    ("predict photos --bundle model.safetensors --out x --root nope", 2, "nope"),
    ("density nope.nc --out y.tif", 3, "nope.nc': there is no such file"),
    ("density text.nc --out y.tif", 3, "text.nc: not a NetCDF-4 file"),
    ("density model.safetensors --out y.tif", 3, "not a NetCDF-4 file"),
    ("density album.nc --out y.png", 2, "the suffix is '.png'; .tif"),
    ("density album.nc --out taken.gpkg", 2, "the suffix is '.gpkg'"),
    ("density album.nc --out y.tif --image-id nope", 3, "no image 'nope'"),
    ("density album.nc --out y.tif --image-id broken.jpg", 3, "'broken.jpg' has no prediction: unreadable"),
    ("density album.nc --out y.tif --crs EPSG:99999", 2, "'EPSG:99999' is not known"),
    ("density album.nc --out y.tif --grid globe --bounds 5,40,15,50", 2, "--grid globe chooses the bounds itself"),
    ("density album.nc --out y.nc --by continent", 3, "no column 'continent'"),
    ("density album.nc --out y.tif --bandwidth-km 0", 2, "--bandwidth-km 0: a number above 0"),
    ("density album.nc --out y.tif --bandwidth-km nan", 2, "--bandwidth-km nan"),
    ("density album.nc --out y.tif --bandwidth-km 1e6", 2, "--bandwidth-km 1e+06: at most 20015 is wanted"),
    ("density album.nc --out y.tif --bounds=-10,35,30,60 --resolution 25000", 2, "for metres, take a CRS in metres"),
    ("density album.nc --out y.tif --bounds=-10,35,30,60 --resolution 50", 2, "larger than the bounds, 40 by 25 deg"),
    ("density album.nc --out y.tif --resolution 91", 2, "degrees of EPSG:4326 are wanted, 90 at most"),
    ("density album.nc --out y.tif --image-id 1.pgn", 3, "5 images; did you mean '1.png'?"),
    ("density album.nc --out y.nc --by plaec", 3, "album.nc; did you mean 'place'? it has image_id"),
    ("density album.nc --out y.tif --bounds 400000,5e6,5e5,5.1e6", 2, "these are no degrees; say which CRS"),
    ("density album.nc --out y.nc --by place --crs EPSG:3857", 2, "a window is found for one: give --bounds"),
    ("density album.nc --out y.tif --grid auto --bounds 5,40,15,50", 2, "--grid auto chooses the bounds itself"),
    ("fuse album.nc --out y.nc --independence 2", 2, "'--independence': 2.0 is not in the range"),
    ("fuse nope.nc --out y.nc --max-mass-error 0", 2, "'--max-mass-error': 0.0 is not in the range"),
    ("fuse album.nc --out y.nc --by Plac", 3, "did you mean 'place'?"),
    (
        "evaluate nope.nc --estimators best_within",
        2,
        "--estimators best_within: say within how many kilometres, such as",
    ),
    ("evaluate nope.nc --estimators best_within@-3", 2, "such as best_within@200"),
    (
        "evaluate nope.nc --estimators mode,mean",
        2,
        "--estimators mean: not one of component, mode, median, best_within@",
    ),
    ("evaluate nope.nc --estimators mode@20", 2, "mode takes no distance"),
    ("evaluate album.nc --by plase", 3, "'plase'; did you mean 'place'? the columns are image_id"),
    ("density album.nc --out y.tif --crs mars", 2, "'mars' is not of the form EPSG:n"),
    ("density album.nc --out y.tif --crs 3035", 2, "did you mean EPSG:3035?"),
    ("density album.nc --out y.tif --crs EPSG:4978", 2, "EPSG:4978 (WGS 84) has no longitude and latitude"),
    ("density album.nc --out y.tif --crs EPSG:4978 --bounds 0,0,9,9", 2, "EPSG:4978 (WGS 84) has no longitude"),
    ("density album.nc --out y.tif --crs EPSG:3857 --grid globe", 2, "--grid globe is in EPSG:4326"),
    ("density album.nc --out y.tif --bounds 1,2,3", 2, "--bounds '1,2,3': four numbers"),
    ("density album.nc --out y.tif --bounds 5,8,9,4", 2, "south 8 is not below north"),
    ("density album.nc --out y.tif --crs EPSG:3035 --bounds 7e6,1e6,2e6,5e6", 2, "west 7e+06 is not west of east"),
    ("density album.nc --out y.tif --bounds 5;40;15;50", 2, "such as 5,40,15,50"),
    ("density album.nc --out y.tif --bounds 0,0,nan,9", 2, "--bounds '0,0,nan,9'"),
    ("density album.nc --out y.tif --bounds 0,0,9,200", 2, "200 are not within -90..90"),
    ("density album.nc --out y.tif --resolution -1", 2, "resolution -1"),
    ("density album.nc --out y.tif --resolution 0.0001", 2, "raster cells, more than"),
    ("regions album.nc --out y.shp", 2, "Shapefile"),
    ("regions album.nc --out y.gpkg --levels 0", 2, "--levels '0'"),
    ("regions album.nc --out y.gpkg --image-id nope", 3, "no image 'nope'"),
    ("regions album.nc --out taken.gpkg", 5, "taken.gpkg: exists already"),
    ("evaluate nope.nc", 3, "nope.nc': there is no such file"),
    ("evaluate album.nc --by nope", 3, "cannot group by 'nope': the columns are image_id"),
    ("evaluate album.nc other.csv", 3, "image_id are like '0.png', those of the truth like 'zz'"),
    ("evaluate album.nc twice.csv", 3, "image_id 'zz' more than once"),
    ("evaluate album.nc nowhere.csv", 3, "no row has a longitude and latitude"),
    ("evaluate album.nc nopath.csv", 3, "no column 'path' or 'image_id'"),
    ("evaluate album.nc --out y.pdf", 2, "the suffix is '.pdf'; .html or .csv is wanted"),
    ("info nope", 4, "nope': there is no such file"),
    ("info pickle.safetensors", 4, "this is a pickle"),
    ("info nothing.csv", 4, "; bundles (.safetensors) and predictions files (.nc) are wanted"),
    ("predict photos/0.png photos/1.png --bundle m --out x", 2, "one SOURCE is wanted, and 2 are given (photos/0.png"),
    ("info text.nc", 3, "not a NetCDF-4 file"),
    ("table empty", 3, "the folder holds no image"),
    ("table xy.csv --crs mars", 2, "'mars' is not of the form EPSG:n"),
    ("table photos/truth.csv --out y.xlsx", 2, "'.xlsx' is not written"),
    ("table photos/truth.csv --out taken.gpkg", 5, "taken.gpkg: exists already"),
    ("partition photos/truth.csv --out y.gpkg --num-cells 0", 2, "0 is not in the range"),
    ("partition photos --out y.gpkg", 3, "photos: 5 images, none with a position; add --exif"),
    ("features photos --cache y --backbone nope", 2, "backbone 'nope'"),
    ("features photos --cache y --backbone resnet18 --weights a.pth", 2, "a pickled file can run any program"),
    ("features empty --cache y --backbone chip_resnet10", 3, "the folder holds no image"),
    ("predict rowless.csv --bundle model.safetensors --out y.nc", 3, "rowless.csv: the table has no rows of data"),
    ("table rowless.csv", 3, "rowless.csv: the table has no rows of data"),
    ("train nope.toml", 2, "nope.toml: there is no such file; give the TOML file of a training"),
    ("train bad.toml", 2, "line 1"),
    ("train unknown.toml", 2, "unknown option 'food'"),
    ("train untabled.toml", 3, "nope.csv': there is no such file"),
    ("calibrate photos b.safetensors --out y.safetensors", 2, "the bundle comes first, then photos"),
    ("chips nope.tif --out y --ground-km 9", 3, "nope.tif': there is no such file"),
    ("chips photos/0.png --out y --ground-km 9", 3, "EPSG:4326 -a_ullr WEST NORTH EAST SOUTH 0.png out.tif"),
    ("chips vrt.jpg --out y --ground-km 9", 3, "holds xml, not a raster"),
    ("chips empty --out y --ground-km 9", 3, "the folder holds no raster"),
    ("chips photos --out taken --ground-km 9", 5, "taken: exists already"),
    ("chips photos --out y --ground-km 9 --bands red", 2, "--bands 'red'"),
    ("chips photos --out y --ground-km 9 --stretch 1", 2, "--stretch '1'"),
    ("chips photos --out y --ground-km 9 --season june", 2, "--season 'june': write NAME=SOURCE"),
    ("chips --out y --ground-km 9", 2, "Missing argument"),
    ("chips photos --out y --ground-km 9 --parts test", 2, "--parts 'test': 'test' is not NAME=SHARE"),
    ("chips photos --out y --ground-km 9 --parts a=1,a=2", 2, "--parts 'a=1,a=2': 'a=2' is not NAME=SHARE"),
    ("chips photos --out y --ground-km 9 --block-level 3", 2, "block_level 3 is given without parts"),
    ("fly", 2, "No such command 'fly'"),
    ("predcit photos", 2, "No such command 'predcit'; did you mean 'predict'?"),
    ("--progress loud env", 2, "'loud' is not one of"),
]


@pytest.mark.parametrize(("command", "code", "message"), MISTAKES, ids=[each[0] for each in MISTAKES])
def test_a_mistake_is_one_message_and_the_exit_code_of_its_kind(house, monkeypatch, command, code, message):
    monkeypatch.chdir(house)
    before = sorted(house.rglob("*"))
    result = run(*command.split())
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    left = [path for path in sorted(house.rglob("*")) if path not in before and path.name not in ("run", ".lock")]
    left = [path for path in left if path.parent.name != "run"]  # a run folder is made before its table is read
    assert left == []
    assert (house / "taken.gpkg").read_text() == "somebody's"


def test_every_branch_of_the_exception_tree_has_a_mistake_or_a_test_of_its_own():
    seen = {code for _, code, _ in MISTAKES}
    branches = {each.exit_code for each in vars(errors).values() if isinstance(each, type)}
    assert branches - seen == {1, 6, 7}  # the base; locked: below; training that cannot go on: tests of training


def test_a_locked_folder_is_said_at_once(house, tmp_path):
    from geo_mvmf import folder_lock

    with folder_lock.holding(tmp_path / "x.nc.parts"):
        result = run("predict", house / "photos", "--bundle", house / "model.safetensors", "--out", tmp_path / "x.nc")
    assert result.exit_code == 6
    assert "another process is working here" in result.stderr


# --- what programs read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["before", "behind"])
def test_progress_json_is_one_object_a_line(house, tmp_path, place):
    style = ["--progress", "json"]
    command = ["predict", house / "photos", "--bundle", house / "model.safetensors", "--out", tmp_path / "a.nc"]
    result = run(*(style + command if place == "before" else command + style))
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert {event["event"] for event in events} == {"log", "progress", "item_error", "result"}
    predicted = [event["done"] for event in events if event.get("stage") == "predict"]
    assert predicted == sorted(predicted)
    assert predicted[-1] == 5
    assert (events[-1]["event"], events[-1]["counts"]["ok"], events[-1]["counts"]["failed"]) == ("result", 4, 1)
    (bad,) = [event for event in events if event["event"] == "item_error"]
    assert (bad["path"], bad["code"]) == ("broken.jpg", "unreadable")
    assert result.stdout.startswith("status: 4 ok, 1 unreadable\n")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("predict photos --bundle pickle.safetensors --out x", "model_missing"),
        ("predict --bogus", "bad_input"),
        ("fly", "bad_input"),
        ("predict photos --bundle model.safetensors --out x --device cuda:99", "device"),
        ("regions album.nc --out taken.gpkg", "output"),
    ],
)
def test_errors_are_json_too(house, monkeypatch, command, code):
    monkeypatch.chdir(house)
    result = run("--progress", "json", *command.split())
    assert result.exit_code == {"model_missing": 4, "output": 5}.get(code, 2)
    event = json.loads(result.stderr.splitlines()[-1])
    assert (event["event"], event["code"]) == ("error", code)
    assert event["message"]


def test_warnings_are_lines_without_the_code_that_raised_them(house, tmp_path):
    command = ("partition", house / "photos" / "truth.csv", "--num-cells", 2000)
    plain = run(*command, "--out", tmp_path / "a.gpkg")
    assert plain.exit_code == 0
    assert plain.stderr.startswith("warning: only ")
    assert ".py" not in plain.stderr
    said = map(json.loads, run("--progress", "json", *command, "--out", tmp_path / "b.gpkg").stderr.splitlines())
    assert [(event["event"], event.get("level")) for event in said] == [("log", "warning"), ("result", None)]


def test_info_is_one_json_document(house):
    for name, key in (("model.safetensors", "num_components"), ("album.nc", "bundle_sha256")):
        content = json.loads(run("info", house / name).stdout)
        assert key in content
        assert "region, not a proof" in content["responsible_use"]
        assert content["responsible_use_page"] == "docs/responsible_use.md"
    rows = open_predictions(house / "album.nc").rows
    assert (content["densities"], content["num_components"]) == ("mixtures of von Mises-Fisher components", 6)
    assert content["columns"] == rows.columns.tolist()
    assert (content["image_ids"], len(rows)) == (rows["image_id"].tolist(), 5)


def test_info_shows_the_statement_of_whoever_made_the_bundle(tmp_path):
    own = untrained_bundle()
    own.metadata["responsible_use"] = "Only for the hills of Wales."
    save_bundle(own, tmp_path / "own.safetensors")
    content = json.loads(run("info", tmp_path / "own.safetensors").stdout)
    assert content["responsible_use"] == "Only for the hills of Wales."


def test_env_says_what_is_installed(monkeypatch):
    content = json.loads(run("env", "--json").stdout)
    assert content["python"].split(".")[0] == "3"
    assert content["torch"][0].isdigit()
    assert content["devices"][0] == "cpu"
    # an installation whose torch cannot be imported is a line of the answer
    monkeypatch.setattr(environment, "_TORCH", "raise ImportError('libcudart.so is missing')")
    assert "torch        not usable: ImportError: libcudart.so is missing" in run("env").stdout


# --- what the commands make --------------------------------------------------------------------------------------


def test_a_folder_receives_everything(house, tmp_path):
    out = tmp_path / "album"
    result = run("predict", house / "photos" / "truth.csv", "--bundle", house / "model.safetensors", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["predictions.gpkg", "predictions.nc", "report.html"]
    points = geopandas.read_file(out / "predictions.gpkg", layer="points")
    regions = geopandas.read_file(out / "predictions.gpkg", layer="regions")
    assert points["image_id"].tolist() == ["0.png", "1.png", "2.png", "3.png", "broken.jpg"]
    assert points.geometry.isna().tolist() == [False] * 4 + [True]
    assert sorted(set(regions["level"])) == [0.5, 0.9]
    assert "broken.jpg" in (out / "report.html").read_text()
    lines = result.stdout.splitlines()
    assert lines[1] == f"1 image has no prediction; why is in the columns status and message of {out}/predictions.gpkg:"
    assert lines[2] == "  broken.jpg: the file ends inside its header"
    assert f"wrote into {out}: predictions.gpkg, report.html and predictions.nc (for further maps)" in lines


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson", ".csv"])
def test_a_layer_has_its_predictions_file_beside_it(house, tmp_path, suffix):
    out = tmp_path / f"album{suffix}"
    result = run("predict", house / "photos", "--bundle", house / "model.safetensors", "--out", out)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, "album.nc"])
    assert "1 other file is not taken as an image: 1 .csv" in result.stderr.splitlines()
    assert len(open_predictions(tmp_path / "album.nc")) == 5


def test_one_image_is_a_table_of_one_row(house, tmp_path):
    out = tmp_path / "one.csv"
    result = run("predict", house / "photos" / "2.png", "--bundle", house / "model.safetensors", "--out", out)
    assert result.exit_code == 0, result.output
    found, album = pd.read_csv(out), open_predictions(house / "album.nc").rows
    assert found["image_id"].tolist() == ["2.png"]
    assert found["longitude"][0] == pytest.approx(album["longitude"][2], abs=1e-5)


def test_density_writes_a_pair_of_rasters_or_one_netcdf(house, tmp_path):
    album = house / "album.nc"
    result = run("density", album, "--out", tmp_path / "d.tif", "--image-id", "1.png", "--resolution", 5)
    assert result.exit_code == 0, result.output
    assert "probability inside: 1.000000" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.qml", "d.tif", "d_level.qml", "d_level.tif"]
    with rasterio.open(tmp_path / "d.tif") as raster:
        tags = raster.tags()
    assert tags["IMAGE_ID"] == "1.png"
    assert tags["MODEL"] == "tiny.safetensors"
    assert float(tags["PROBABILITY_SUM"]) == pytest.approx(1.0, abs=1e-6)
    again = run("density", album, "--out", tmp_path / "d.tif", "--resolution", 5)
    assert again.exit_code == 5
    assert run("density", album, "--out", tmp_path / "d.nc", "--resolution", 5).exit_code == 0
    with xarray.open_dataset(tmp_path / "d.nc", engine="h5netcdf") as found:
        assert found["density_per_km2"].shape == (1, 36, 72)
        assert found["image"].item() == "mean"


def test_a_level_raster_of_somebody_else_stops_the_pair_before_it_is_begun(house, tmp_path):
    (tmp_path / "d_level.tif").write_text("somebody's")
    result = run("density", house / "album.nc", "--out", tmp_path / "d.tif", "--resolution", 5)
    assert result.exit_code == 5
    assert [path.name for path in tmp_path.iterdir()] == ["d_level.tif"]


def test_regions_and_evaluation(house, tmp_path):
    result = run("regions", house / "album.nc", "--out", tmp_path / "r.geojson", "--image-id", "1.png", "--levels", 0.5)
    assert result.exit_code == 0, result.output
    assert geopandas.read_file(tmp_path / "r.geojson")["image_id"].tolist() == ["1.png"]
    result = run("evaluate", house / "album.nc", "--by", "place", "--out", tmp_path / "e.csv")
    figures = pd.read_csv(tmp_path / "e.csv")
    assert set(figures["group"]) == {"all", "p0", "p1"}
    whole = figures[figures["group"] == "all"].set_index("measure")
    assert whole.loc["accuracy_at_2500_km", ["n", "n_nan"]].tolist() == [5, 1]  # the broken image counts as wrong
    assert run("evaluate", house / "album.nc", "--out", tmp_path / "e.html").exit_code == 0
    assert "data:image/png" in (tmp_path / "e.html").read_text()


def test_a_truth_table_needs_neither_paths_nor_images(house, tmp_path):
    truth = tmp_path / "truth.csv"
    truth.write_text("image_id,latitude,longitude,land\n1.png,49,7,A\n3.png,47,21,B\nelsewhere.jpg,1,2,A\n")
    out = tmp_path / "e.csv"
    assert run("evaluate", house / "album.nc", truth, "--by", "land", "--out", out).exit_code == 0
    figures = pd.read_csv(out)
    assert figures.loc[figures["measure"] == "median_error_km", "n"].tolist() == [2, 1, 1]


def test_a_truth_that_cannot_be_used_is_said(house, tmp_path):
    truth = tmp_path / "truth.csv"
    truth.write_text("image_id,latitude,longitude\n1.png,49,7\n2.png,,\n3.png,107,21\n")
    result = run("evaluate", house / "album.nc", truth)
    assert result.exit_code == 0
    expected = "1 of 3 rows have no place that can be used and are not compared; the first is row 3: latitude 107"
    assert expected in result.stderr
    assert "mend them, or leave both coordinates empty" in result.stderr


def test_prepare_and_train(tmp_path):
    """chips, table, partition, features, train for a few steps, predict: on the sample's raster."""
    chips = tmp_path / "chips"
    wishes = ("--count", 12, "--size", 16, "--ground-km", 1500)
    cut = run("chips", ROOT / "sample_data" / "relief.tif", "--out", chips, *wishes)
    assert cut.exit_code == 0, cut.output
    assert cut.stdout == f"wrote {chips / 'chips.csv'}: 12 chips\n"
    assert "12 rows; status: 12 ok" in run("table", chips / "chips.csv", "--out", tmp_path / "clean.gpkg").stdout
    assert run("partition", chips / "chips.csv", "--num-cells", 12, "--out", tmp_path / "cells.gpkg").exit_code == 0
    assert geopandas.read_file(tmp_path / "cells.gpkg", layer="cells")["images"].sum() == 12
    cached = run("features", chips / "chips.csv", "--backbone", "chip_resnet10", "--cache", tmp_path / "features")
    assert cached.stdout.startswith("12 of 12 images have features"), cached.output
    lines = [
        'stage = "finetune"', 'table = "chips/chips.csv"', 'out = "run"', 'backbone = "chip_resnet10"',
        "backbone_width = 8", "resize = 16", "crop = 16", "num_components = 12", "batch_size = 6", "steps = 2",
        'device = "cpu"',
    ]  # fmt: skip
    (tmp_path / "train.toml").write_text("\n".join(lines))
    trained = run("train", tmp_path / "train.toml")
    assert trained.exit_code == 0, trained.output
    model = Path(trained.stdout.removeprefix("wrote ").strip())
    assert f"geo-mvmf report {model.parent} --out" in trained.stderr
    assert f"train 0/2: begins in {model.parent}\ntrain 2/2: loss " in trained.stderr
    assert json.loads(run("info", model).stdout)["training"]["steps"] == 2
    result = run("predict", chips / "chips.csv", "--bundle", model, "--out", tmp_path / "p.nc")
    assert result.stdout.startswith("status: 12 ok"), result.output
    written = model.stat().st_mtime_ns
    again = run("train", tmp_path / "train.toml")
    complete, further, longer, anew = again.stdout.splitlines()
    assert re.match(rf"{model}: this run was complete already \(2 steps, [12] epochs?\); nothing was trained", complete)
    assert further.endswith(f'stage = "finetune" with init_bundle = "{model}"')
    assert f"raise steps in {tmp_path / 'train.toml'}, and name another out there or add --overwrite" in longer
    assert anew.endswith("add --overwrite")
    assert model.stat().st_mtime_ns == written
    assert run("train", tmp_path / "train.toml", "--overwrite").stdout == trained.stdout


def lines_of(page):
    """The commands in the blocks of a page, as words."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("geo-mvmf ")]


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_docs_are_understood(page):
    for _, name, *arguments in lines_of(page):
        command = cli.main.get_command(None, name)
        assert command is not None, name
        command.make_context(name, [each for each in arguments if each != "..."])  # no option is unknown or missing


def test_a_command_with_a_wrong_option_is_not_understood():
    with pytest.raises(click.UsageError, match="No such option"):
        cli.main.get_command(None, "fuse").make_context("fuse", ["a.nc", "--out", "b.nc", "--areas", "c.geojson"])


def test_the_readme_can_be_followed_after_the_demo():
    lines = lines_of(ROOT / "README.md")
    assert len(lines) > 8
    again = [words for words in lines if words[1] == "chips" and "demo_output/training" in words]
    assert [words[-1] for words in again] == ["--overwrite"]
    outputs = [words[words.index("--out") + 1] for words in lines if "--out" in words]
    assert len(set(outputs)) == len(outputs)


def test_the_package_is_the_command_too(tmp_path):
    command = [sys.executable, "-m", "geo_mvmf", "density"]
    wrong = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("Usage: geo-mvmf density [OPTIONS] PREDICTIONS\n")


def test_choices_are_those_there_are():
    """They are written out in the commands, so that --help imports nothing."""
    from geo_mvmf import fusing
    from geo_mvmf.commands import evidence, prediction
    from geo_mvmf.inputs import tables
    from geo_mvmf.maps import estimates

    def choices(command, name):
        return tuple(next(each for each in command.params if each.name == name).type.choices)

    assert choices(prediction.predict, "estimator") == estimates.ESTIMATORS
    assert choices(prediction.predict, "claims") == tables._CLAIM_SOURCES
    assert choices(evidence.fuse, "prior_mode") == fusing.PRIOR_MODES
