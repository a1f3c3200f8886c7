"""Every writer, whatever goes wrong: the old file stays as it was, or there is none; nothing else is left."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pytest
import rasterio
import xarray

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


def test_the_check_finds_a_writer_that_writes_in_place(tmp_path, monkeypatch):
    # the broken twin: without the temporary name a failing writer leaves its debris
    import contextlib

    @contextlib.contextmanager
    def in_place(path, *, overwrite=False):
        del overwrite
        yield Path(path)

    with monkeypatch.context() as patch:
        patch.setattr(vector.durable, "replacing", in_place)
        patch.setattr(vector, "_write_features", fail)
        with pytest.raises(BoomError):
            write_vector(tmp_path / "a.geojson")
    assert content(tmp_path) != {}
