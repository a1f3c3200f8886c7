"""Some images of a predictions file: what is made of them knows of no others."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from geo_mvmf import Grid, open_predictions, predict, read_image_table
from geo_mvmf.cli import main
from geo_mvmf.errors import BadInputError
from geo_mvmf.image_choice import open_some


@pytest.fixture(scope="module")
def album(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("album")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), np.uint8)).save(folder / name)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    predict(bundle, read_image_table(folder)).save(folder / "album.nc")
    return folder / "album.nc"


def test_the_chosen_keep_their_densities_and_rows(album):
    every, some = open_predictions(album), open_some(album, ["c.png", "a.png", "c.png"])
    assert some.rows["image_id"].tolist() == ["a.png", "c.png"]
    grid = Grid.globe(10.0)
    one_by_one = [every.density(grid, name).values[0] for name in ("a.png", "c.png")]
    assert np.array_equal(some.density(grid).values, one_by_one)
    assert np.allclose(some.density(grid, combine="mean").values[0], np.mean(one_by_one, axis=0), rtol=1e-5, atol=0.0)
    assert not np.allclose(some.density(grid, combine="mean"), every.density(grid, combine="mean"), rtol=1e-5, atol=0.0)
    pd.testing.assert_frame_equal(
        some.rows, every.rows[every.rows["image_id"].isin(["a.png", "c.png"])].reset_index(drop=True)
    )
    assert (some.run["images"], some.run["chosen_of"], some.run["bundle"]) == (2, 4, every.run["bundle"])


def test_fused_places_can_be_chosen_too(album):
    fused = open_predictions(album).fuse("image_id", max_mass_error=0.1)
    some = open_some(fused.store.path, ["b.png"])
    assert some.mixture_of([0]).probability_within(10.0, 50.0, 2000.0) == pytest.approx(
        fused.mixture_of([1]).probability_within(10.0, 50.0, 2000.0)
    )


def test_the_file_goes_away_with_them(album):
    some = open_some(album, ["a.png"])
    path = some.store.path
    assert path.exists()
    assert path.name == album.name
    del some
    assert not path.exists()


@pytest.mark.parametrize(("name", "words"), [("no.png", "no image 'no.png'"), ("broken.png", "has no prediction")])
def test_images_that_cannot_be_chosen_are_named(album, name, words):
    with pytest.raises(BadInputError, match=words):
        open_some(album, ["a.png", name])


def test_the_commands_take_several_images(album, tmp_path):
    def run(*words):
        done = CliRunner().invoke(main, [words[0], str(album), *words[1:]], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    zones = tmp_path / "zones.geojson"
    ring = [[0, 0], [90, 0], [90, 60], [0, 60], [0, 0]]
    feature = {"type": "Feature", "properties": {"name": "z"}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    zones.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    two = ["--image-id", "a.png", "--image-id", "b.png"]
    run("zones", "--polygons", str(zones), "--out", str(tmp_path / "z.csv"), *two)
    assert pd.read_csv(tmp_path / "z.csv")["image_id"].tolist() == ["a.png", "b.png"]
    run("fuse", "--max-mass-error", "0.1", "--out", str(tmp_path / "f.nc"), *two)
    assert open_predictions(tmp_path / "f.nc").rows["n_images"].tolist() == [2]
    run("density", "--resolution", "10", "--out", str(tmp_path / "d.nc"), *two)
    run("density", "--resolution", "10", "--out", str(tmp_path / "one.nc"), *two[:2], *two[:2])
