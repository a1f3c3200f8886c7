"""The points of a predictions file as a layer: the bytes that predict writes, whatever door is asked."""

import geopandas
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from geo_mvmf import cli
from geo_mvmf.files import geopackage

SUFFIXES = (".gpkg", ".parquet", ".geojson", ".csv")


def run(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three pictures and one that is none, which has no point."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return folder


@pytest.fixture(scope="module")
def store(photos, bundle_path, tmp_path_factory):
    """Their predictions, by the estimator that is the default."""
    path = tmp_path_factory.mktemp("store") / "album.nc"
    assert run("predict", photos, "--bundle", bundle_path, "--out", path).exit_code == 0
    return path


@pytest.fixture
def one_moment(monkeypatch):
    """A GeoPackage says when it was written; here that is always the same moment."""
    monkeypatch.setattr(geopackage, "_now", lambda: "2020-01-01T00:00:00.000Z")
    monkeypatch.setenv("OGR_CURRENT_DATE", "2020-01-01T00:00:00.000Z")


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".nc"}


def hard(*values):
    return pytest.param(*values, marks=pytest.mark.hard)


LEVELS = ("--levels", "0.5,0.9")


@pytest.mark.parametrize(
    ("suffix", "levels"),
    [(".gpkg", LEVELS), (".geojson", ())] + [hard(suffix, levels) for suffix in SUFFIXES for levels in ((), LEVELS)],
)
def test_points_are_what_predict_writes(photos, bundle_path, tmp_path, one_moment, suffix, levels):
    """The estimator's own columns too: `mode` is not what a density is asked for unless somebody says so."""
    (by_predict := tmp_path / "predict").mkdir()
    (by_points := tmp_path / "points").mkdir()
    out = by_predict / f"a{suffix}"
    done = run("predict", photos, "--bundle", bundle_path, "--estimator", "mode", "--out", out, *levels)
    assert done.exit_code == 0, done.output
    done = run("points", out.with_suffix(".nc"), "--out", by_points / f"a{suffix}", *levels)
    assert done.exit_code == 0, done.output
    assert "wrote 3 points of 4 images" in done.stdout
    assert files(by_points) == files(by_predict)
    assert len(files(by_points)) == (2 if levels and suffix != ".gpkg" else 1)


def test_the_comparison_sees_another_estimator(store, photos, bundle_path, tmp_path):
    """The broken twin: points of the estimator that is the default."""
    run("points", store, "--out", tmp_path / "a.geojson")
    run("predict", photos, "--bundle", bundle_path, "--estimator", "mode", "--out", tmp_path / "b.geojson")
    assert (tmp_path / "a.geojson").read_bytes() != (tmp_path / "b.geojson").read_bytes()


def test_nothing_of_somebody_else_is_replaced(store, tmp_path):
    (tmp_path / "a_regions.geojson").write_text("somebody's")
    refused = run("points", store, "--out", tmp_path / "a.geojson", "--levels", "0.5")
    assert refused.exit_code == 5
    assert "a_regions.geojson: exists already" in refused.stderr
    assert not (tmp_path / "a.geojson").exists()
    assert run("points", store, "--out", tmp_path / "a.geojson").exit_code == 0  # without regions it is not in the way
    again = run("points", store, "--out", tmp_path / "a.geojson", "--levels", "0.5", "--overwrite")
    assert again.exit_code == 0
    assert len(geopandas.read_file(tmp_path / "a_regions.geojson")) == 3
    assert run("points", store, "--out", tmp_path / "a.kml").exit_code == 2


@pytest.mark.parametrize("suffix", [".gpkg", hard(".geojson")])
def test_predict_gives_every_file_the_name_that_was_chosen(photos, bundle_path, tmp_path, one_moment, suffix):
    """Points and regions are those of one file for both; points know the polygons, such as their number of parts."""
    (apart := tmp_path / "apart").mkdir()
    names = {name: apart / f"{name}{suffix}" for name in ("points", "regions")}
    into = ("--out", apart / "a.nc", "--points", names["points"], "--regions", names["regions"])
    done = run("predict", photos, "--bundle", bundle_path, *into, "--levels", "0.5,0.9")
    assert done.exit_code == 0, done.output
    assert all(str(path) in done.stdout for path in (*names.values(), apart / "a.nc"))
    run("points", apart / "a.nc", "--out", tmp_path / "both.gpkg", *LEVELS)
    for layer, path in names.items():
        found = geopandas.read_file(path, **({"layer": layer} if suffix == ".gpkg" else {}))
        expected = geopandas.read_file(tmp_path / "both.gpkg", layer=layer)
        assert found["image_id"].tolist() == expected["image_id"].tolist()
        assert found.geometry.geom_equals(expected.geometry).all() or found.geometry.isna().any()
        assert layer == "regions" or found["n_parts_90"].notna().sum() == 3

    names["regions"].unlink()  # as if the run had been killed between the two
    assert run("predict", photos, "--bundle", bundle_path, *into, "--levels", "0.5,0.9").exit_code == 0
    assert len(geopandas.read_file(names["regions"], **({"layer": "regions"} if suffix == ".gpkg" else {}))) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "a.gpkg", "--points", "b.gpkg"), "--out is the predictions file and ends in .nc"),
        (("--out", "a.nc", "--regions", "b.gpkg"), "--regions b.gpkg goes with --points"),
        (("--out", "a.nc", "--points", "b.gpkg", "--regions", "b.gpkg"), "--points and --regions are both b.gpkg"),
        (("--out", "a.nc", "--points", "b.kml"), "b.kml"),
    ],
)
def test_names_that_do_not_go_together(photos, bundle_path, options, message):
    done = run("predict", photos, "--bundle", bundle_path, *options)
    assert done.exit_code == 2
    assert message in done.output
