"""Every writer, whatever goes wrong: the old file stays as it was, or there is none; nothing else is left."""

import contextlib
import functools
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import geopandas
import h5py
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import xarray

from geo_mvmf import durable
from geo_mvmf.errors import OutputError
from geo_mvmf.files import density_netcdf, geopackage, geotiff, netcdf, store_format, stores, vector
from geo_mvmf.maps.grid import Grid

ROOT = Path(__file__).parents[2]
COUNT = 1500


def make_layers():
    generator = np.random.default_rng(0)
    places = geopandas.points_from_xy(generator.uniform(-180, 180, COUNT), generator.uniform(-90, 90, COUNT))
    columns = {"image_id": [f"{i}.jpg" for i in range(COUNT)], "radius_90_km": generator.random(COUNT)}
    return {"points": geopandas.GeoDataFrame(columns, geometry=places, crs="EPSG:4326")}


def make_raster():
    values = np.random.default_rng(0).random((1, 120, 240))
    return xarray.DataArray(values, dims=("image", "latitude", "longitude"), name="density_per_km2")


def write_vector(path):
    vector.write_layers(path, make_layers(), run={"root": "/"}, overwrite=True)


def write_density(path):
    geotiff.write_density(path, make_raster().to_numpy(), Grid.from_bounds(0, 0, 24, 12, 0.1), overwrite=True)


def write_level(path):
    geotiff.write_level(path, make_raster().to_numpy(), Grid.from_bounds(0, 0, 24, 12, 0.1), overwrite=True)


def write_density_netcdf(path):
    stores.write_density_netcdf(path, make_raster(), overwrite=True)


def write_store(path):
    logs = np.full((60, 30), -np.log(30.0))
    components = stores.Components(
        "vmf", np.tile([0.0, 0.0, 1.0], (30, 1)), np.arange(30.0), np.arange(30), np.arange(30, dtype=np.uint64)
    )
    rows = pd.DataFrame({"image_id": [f"{i}.jpg" for i in range(60)]})
    stores.write_store(
        path, rows=rows, pruned=stores.prune(logs, tail=0.0), components=components, run={}, overwrite=True
    )


WRITERS = {
    "a.gpkg": write_vector,
    "a.geojson": write_vector,
    "a.parquet": write_vector,
    "a.csv": write_vector,
    "density.tif": write_density,
    "level.tif": write_level,
    "density.nc": write_density_netcdf,
    "predictions.nc": write_store,
}
# What fails, half-way through each writer.
INSIDE = {
    "a.gpkg": [(pyogrio, "write_dataframe"), (geopackage, "_add_styles"), (geopackage, "_check")],
    "a.geojson": [(vector, "_write_features")],
    "a.parquet": [(geopandas.GeoDataFrame, "to_parquet")],
    "a.csv": [(pd.DataFrame, "to_csv")],
    "density.tif": [(geotiff, "_copy_to_cog"), (geotiff, "_check_copy"), (rasterio.io.DatasetWriter, "update_tags")],
    "level.tif": [(geotiff, "_copy_to_cog"), (geotiff.styles, "level_style")],
    "density.nc": [(density_netcdf, "_write_values"), (netcdf, "add_array")],
    "predictions.nc": [(store_format, "write_entries"), (store_format, "write_header"), (stores, "open_store")],
}


class BoomError(Exception):
    pass


def fail(*_, **__):
    raise BoomError


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_failure_half_way_leaves_no_file_or_the_old_one(tmp_path, monkeypatch, name):
    write = WRITERS[name]
    for owner, function in INSIDE[name]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, fail)
            with pytest.raises(BoomError):
                write(tmp_path / name)
        assert content(tmp_path) == {}
    write(tmp_path / name)
    before = content(tmp_path)
    for owner, function in INSIDE[name]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, function, fail)
            with pytest.raises(BoomError):
                write(tmp_path / name)
        assert content(tmp_path) == before


def write_without_asking(path):
    if path.suffix == ".tif":
        geotiff.write_density(path, np.ones((2, 4)), Grid.globe(90.0))
    elif path.name == "density.nc":
        stores.write_density_netcdf(path, make_raster())
    elif path.name == "predictions.nc":
        pruned = stores.prune(np.zeros((0, 1)))
        parts = stores.Components("vmf", np.eye(3)[:1], np.ones(1), np.ones(1, int), np.ones(1, np.uint64))
        stores.write_store(path, rows=pd.DataFrame(), pruned=pruned, components=parts, run={})
    else:
        vector.write_layers(path, make_layers())


@pytest.mark.parametrize("name", WRITERS)
def test_an_existing_file_is_not_replaced_unless_asked(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_without_asking(tmp_path / name)
    assert content(tmp_path) == {name: b"mine"}


def on_a_full_disk(folder):
    """Outcome of each writer for each size a file may have; run in a process of its own."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    outcomes = {}
    for name, write in WRITERS.items():
        path = folder / name
        write(path)
        before = content(folder)
        size = path.stat().st_size
        for limit in sorted({0, 10, 1000, size // 3, size // 2, size - 1}):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
            try:
                write(path)
                seen = "no error"
            except OutputError as error:
                seen = "error" if name in str(error) and ".geo-mvmf" not in str(error) else str(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            outcomes[f"{name} {limit} of {size}"] = (
                seen if content(folder) == before else f"{seen}, and a changed folder"
            )
        for file in folder.iterdir():
            file.unlink()
    return outcomes


@pytest.mark.hard
def test_a_full_disk_is_an_error_that_names_the_file_and_harms_nothing(tmp_path):
    code = (
        "import json, pathlib, runpy, sys\n"
        f"module = runpy.run_path({__file__!r})\n"
        f"sys.stdout.write(json.dumps(module['on_a_full_disk'](pathlib.Path({str(tmp_path)!r}))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 5 * len(WRITERS)
    assert {key: value for key, value in outcomes.items() if value != "error"} == {}


@contextlib.contextmanager
def in_place(path, *, overwrite=False):
    """The broken twin of `durable.replacing`."""
    del overwrite
    yield Path(path)


def test_the_check_finds_a_writer_that_writes_in_place(tmp_path, monkeypatch):
    # the broken twin: without the temporary name a failing writer leaves its debris
    with monkeypatch.context() as patch:
        patch.setattr(vector.durable, "replacing", in_place)
        patch.setattr(vector, "_write_features", fail)
        with pytest.raises(BoomError):
            write_vector(tmp_path / "a.geojson")
    assert content(tmp_path) != {}


# Kills. Moments are counted in calls, not in seconds: a slow machine kills at the same places as a fast one. Writers
# and readers run in forks of one process that has the imports done and no threads.


def is_whole(path):
    """Whether a file holds all that its writer writes, as those who read it see it."""
    if path.suffix == ".gpkg":
        with contextlib.closing(sqlite3.connect(path)) as database:
            styled = database.execute("SELECT count(*) FROM layer_styles").fetchone() == (1,)
            sound = database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return styled and sound and len(geopandas.read_file(path, layer="points")) == COUNT
    if path.suffix == ".geojson":
        return len(json.loads(path.read_text(encoding="utf-8"))["features"]) == COUNT
    if path.suffix == ".parquet":
        return len(geopandas.read_parquet(path)) == COUNT
    if path.suffix == ".csv":
        return len(pd.read_csv(path)) == COUNT
    if path.suffix == ".tif":
        style = path.with_suffix(".qml")  # comes right after its raster
        with rasterio.open(path) as raster:
            same = np.array_equal(raster.read(1), make_raster().to_numpy()[0].astype(np.float32))
        return same and (not style.exists() or style.read_text(encoding="utf-8").endswith("</qgis>\n"))
    if path.name == "density.nc":
        with h5py.File(path) as file:
            return np.array_equal(file["density_per_km2"][:], make_raster().to_numpy().astype(np.float32))
    return len(stores.open_store(path)) == 60


def in_fork(work):
    """Exit status of a child that does the work: 0 for true, 1 for false or an error; negative: the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def write_and_die(write, path, moment, calls_file):
    """Die at a moment of the writer, or tell how many moments it has."""
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    write(path)
    sys.setprofile(None)
    calls_file.write_text(str(calls))
    return True


def killed(folder, kills, late, *, twin):
    """For each writer: how often it was killed, how often its file was torn afterwards, and what was left at last."""
    if twin:
        durable.replacing = in_place
    found = {}
    for name, write in WRITERS.items():
        place = folder / name.replace(".", "_")
        place.mkdir()
        found[name] = killed_writer(write, place / name, kills, late, twin=twin)
    return found


def killed_writer(write, path, kills, late, *, twin):
    calls = path.parent.parent / "calls"
    if path.suffix != ".parquet":  # do the late imports before the forks; pyarrow would start threads
        write(path)
        if twin:
            path.unlink()
    first = in_fork(lambda: write_and_die(write, path, -1, calls))
    total = int(calls.read_text()) if first == 0 else 0
    hits = torn = 0
    for moment in sorted({*np.linspace(1, total, kills, dtype=int).tolist(), *range(total - late, total)}):
        if twin:  # a writer in place begins with nothing, so that what it leaves is its own
            path.unlink(missing_ok=True)
        status = in_fork(functools.partial(write_and_die, write, path, moment, calls))
        hits += status == -signal.SIGKILL
        absent_is_right = twin and not path.exists()
        torn += not absent_is_right and in_fork(lambda: is_whole(path)) != 0
    in_fork(lambda: write(path) is None)
    return {"kills": hits, "torn": torn, "left": sorted(entry.name for entry in path.parent.iterdir())}


def kill_in_a_process_of_its_own(folder, kills, late, *, twin=False):
    code = (
        "import json, pathlib, runpy, sys\n"
        f"module = runpy.run_path({__file__!r})\n"
        f"found = module['killed'](pathlib.Path({str(folder)!r}), {kills}, {late}, twin={twin})\n"
        "sys.stdout.write(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


# What a library writes in one call is not cut between two: GeoTIFFs are copied, GeoParquet files written at once.
CAUGHT = {"a.gpkg", "a.geojson", "density.nc", "predictions.nc"}


def check_kills(found, least):
    for name, seen in found.items():
        style = [name.replace(".tif", ".qml")] if name.endswith(".tif") else []
        assert seen["left"] == sorted([name, *style]), name  # the next writer sweeps
        assert seen["torn"] == 0, name
        assert seen["kills"] >= least, name


@pytest.mark.hard
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    check_kills(kill_in_a_process_of_its_own(tmp_path, 10, 6), 12)


@pytest.mark.hard
def test_kills_find_writers_that_write_in_place(tmp_path):
    found = kill_in_a_process_of_its_own(tmp_path, 12, 0, twin=True)
    assert {name for name, seen in found.items() if seen["torn"]} >= CAUGHT
