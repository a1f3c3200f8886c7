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
