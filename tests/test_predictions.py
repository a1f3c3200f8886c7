"""Predictions opened again: the same numbers, without torch and without pickle, in every format."""

import errno
import gc
import json
import os
import subprocess
import sys

import geopandas
import h5py
import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr

import geo_mvmf
from geo_mvmf.errors import BadInputError, OutputError, UsageError
from geo_mvmf.files import stores
from geo_mvmf.inputs.tables import read_image_table
from geo_mvmf.maps import density, stacks
from geo_mvmf.sphere import to_directions
from geo_mvmf.stored_mixtures import mixture_of_components


@pytest.fixture(scope="module")
def found(bundle, tmp_path_factory):
    """Three pictures with their places and one that is missing."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        noise = np.random.default_rng(i).integers(0, 256, (36, 40, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    table = pd.DataFrame(
        {"path": ["0.png", "no.png", "1.png", "2.png"], "lon": [1.0, 2, 3, 4], "lat": 50.0, "n": "Ærø"}
    )
    return geo_mvmf.predict(bundle, read_image_table(table, root=folder), out=folder.parent / "a.nc", overwrite=True)


def test_saved_and_opened_is_the_same(found, tmp_path):
    found.save(tmp_path / "b.nc")
    again = geo_mvmf.open_predictions(tmp_path / "b.nc")
    pd.testing.assert_frame_equal(again.rows, found.rows, check_exact=True)
    assert again.run == found.run
    assert len(again) == 4
    assert again.is_predicted.tolist() == [True, False, True, True]
    places = to_directions([1.0, -70.0], [50.0, -80.0])
    np.testing.assert_array_equal(again.mixture.log_density(places), found.mixture.log_density(places))
    with pytest.raises(OutputError, match="exists already"):
        found.save(tmp_path / "b.nc")
    found.save(tmp_path / "b.nc", overwrite=True)
    again.save(tmp_path / "b.nc")  # onto itself: nothing to do
    with pytest.raises(UsageError, match=r"ends in \.nc"):
        found.save(tmp_path / "b.gpkg")


READER = """
import sys, json
for name in ("torch", "torchvision"):
    sys.modules[name] = None
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event == "pickle.find_class" else None)
import numpy as np
import geo_mvmf
found = geo_mvmf.open_predictions(sys.argv[1])
regions = found.credible_regions(image_ids=["1.png"])
points, weights = found.to_geodataframe(), found.mixture.log_mixing_weights
unpickled = list(seen)  # of the file; dask, if installed, pickles functions of its own in memory when it names arrays
raster = found.density(geo_mvmf.Grid.globe(10.0), "1.png")
"""


@pytest.mark.hard
@pytest.mark.parametrize("locking", [True, False, "best-effort", None])
def test_a_file_that_this_process_has_open_is_not_called_damaged(found, tmp_path, locking):
    found.save(tmp_path / "b.nc")
    with h5py.File(tmp_path / "b.nc", "r", locking=locking):  # as a notebook's xarray has
        again = geo_mvmf.open_predictions(tmp_path / "b.nc")
        assert again.rows["image_id"].tolist() == found.rows["image_id"].tolist()
        assert len(again.mixture) == len(found.mixture)


def test_row_18_predictions_reopen_without_torch_and_pickle(found, tmp_path):
    """In a process where torch cannot be imported and an audit hook notes every class a pickle would load."""
    code = READER + "print(json.dumps([raster.values.sum(), list(regions['area_km2']), unpickled]))"
    command = [sys.executable, "-c", code, found.store.path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    total, areas, seen = json.loads(done.stdout)
    assert seen == []
    assert total == pytest.approx(float(found.density(geo_mvmf.Grid.globe(10.0), "1.png").values.sum()), rel=1e-12)
    assert areas == pytest.approx(found.credible_regions(image_ids=["1.png"])["area_km2"].tolist(), rel=1e-12)
    # the broken twins: torch is really missing there, and a pickle is really noticed
    twin = READER + (
        "import pickle, fractions\nhalf = pickle.loads(pickle.dumps(fractions.Fraction(1, 2)))\n"
        "try:\n    import torch\nexcept ImportError:\n    print(seen)"
    )
    done = subprocess.run([sys.executable, "-c", twin, found.store.path], capture_output=True, text=True, check=True)
    assert "pickle.find_class" in done.stdout


def test_points_have_their_uncertainty_and_failures_no_place(found):
    points = found.to_geodataframe()
    assert points.crs == "EPSG:4326"
    assert points.geometry.isna().tolist() == [False, True, False, False]
    good = points[points["status"] == "ok"]
    np.testing.assert_array_equal(good.geometry.x, good["longitude"])
    np.testing.assert_array_equal(good.geometry.y, good["latitude"])
    assert good[["radius_90_km", "area_90_km2"]].notna().all(axis=None)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson", ".csv", ".nc"])
def test_every_format_says_the_same(found, tmp_path, suffix):
    path = tmp_path / f"album{suffix}"
    found.write(path)
    if suffix == ".nc":
        back = geo_mvmf.open_predictions(path).rows
    elif suffix == ".csv":
        back = pd.read_csv(path, encoding="utf-8-sig")
    elif suffix == ".parquet":
        back = geopandas.read_parquet(path)
    else:
        back = geopandas.read_file(path, **({"layer": "points"} if suffix == ".gpkg" else {}))
    assert back["image_id"].tolist() == found.rows["image_id"].tolist()
    assert back["status"].tolist() == found.rows["status"].tolist()
    assert back["n"].tolist() == ["Ærø"] * 4
    for name in ("longitude", "latitude", "radius_90_km", "error_km"):
        np.testing.assert_allclose(back[name].astype(float), found.rows[name], rtol=1e-9)
    with pytest.raises(OutputError, match="exists already"):
        found.write(path)
    found.write(path, overwrite=True)


def test_regions_go_with_the_points_where_asked_for(found, tmp_path):
    found.write(tmp_path / "a.gpkg", levels=(0.5, 0.9))
    regions = geopandas.read_file(tmp_path / "a.gpkg", layer="regions")
    points = geopandas.read_file(tmp_path / "a.gpkg", layer="points").set_index("image_id")
    assert len(regions) == 6
    largest = regions[regions["level"] == 0.9].set_index("image_id")
    np.testing.assert_allclose(points.loc[largest.index, "area_90_km2"], largest["area_km2"])
    np.testing.assert_array_equal(points.loc[largest.index, "n_parts_90"], largest["n_parts"])
    found.write(tmp_path / "a.geojson", levels=(0.5,))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.geojson", "a.gpkg", "a_regions.geojson"]
    with pytest.raises(UsageError, match="Shapefile"):
        found.write(tmp_path / "a.shp")


def test_density_of_one_of_all_and_of_the_mean(found):
    grid = geo_mvmf.Grid.globe(10.0)
    every = found.density(grid)
    assert every["image"].values.tolist() == ["0.png", "1.png", "2.png"]
    np.testing.assert_allclose(every["probability_sum"], 1.0, atol=1e-6)
    np.testing.assert_allclose(found.density(grid, "1.png").values[0], every.values[1], rtol=1e-9)
    mean = found.density(grid, combine="mean").values[0]  # of weights that are stored in float32
    np.testing.assert_allclose(mean, every.values.mean(axis=0), rtol=1e-5)


def test_density_frames_itself_groups_and_smooths_when_asked(found, tmp_path):
    framed = found.write_density(tmp_path / "auto.tif", "auto", "1.png", bandwidth_km=300.0)
    assert 0.99 <= float(framed["probability_sum"][0]) <= 1.0 + 1e-6
    with rasterio.open(tmp_path / "auto.tif") as file:
        assert file.tags()["BANDWIDTH_KM"] == "300"
    grouped = found.density(geo_mvmf.Grid.globe(30.0), combine="mean", by="status")
    assert grouped["image"].values.tolist() == ["ok"]
    assert grouped["num_images"].values.tolist() == [3]
    with pytest.raises(BadInputError, match="no column 'continent'"):
        found.density("auto", combine="mean", by="continent")
    with pytest.raises(BadInputError, match="give one image"):
        found.density("auto")


def test_write_density_returns_what_it_wrote(found, tmp_path):
    grid = geo_mvmf.Grid.globe(10.0)
    raster = found.write_density(tmp_path / "d.tif", grid, "1.png")
    with rasterio.open(tmp_path / "d.tif") as file:
        np.testing.assert_allclose(file.read(1), raster.values[0], rtol=1e-6)
        assert file.tags()["IMAGE_ID"] == "1.png"
        assert float(file.tags()["PROBABILITY_SUM"]) == pytest.approx(1.0, abs=1e-6)
    with rasterio.open(tmp_path / "d_level.tif") as file:
        assert 0.0 < np.nanmin(file.read(1)) <= np.nanmax(file.read(1)) <= 1.0
    found.write_density(tmp_path / "all.nc", grid)
    with pytest.raises(UsageError, match="a GeoTIFF holds one image"):
        found.write_density(tmp_path / "all.tif", grid)
    with pytest.raises(UsageError, match=r"ends in \.tif or \.nc"):
        found.write_density(tmp_path / "d.png", grid, "1.png")


@pytest.mark.parametrize("there", ["d.tif", "d.qml", "d_level.tif", "d_level.qml"])
def test_a_density_is_written_beside_its_levels_or_not_at_all(found, tmp_path, monkeypatch, there):
    (tmp_path / there).write_text("somebody's")
    grid = geo_mvmf.Grid.globe(30.0)
    with pytest.raises(OutputError, match=f"{there}: exists already"):
        found.write_density(tmp_path / "d.tif", grid, "1.png")
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "somebody's"
    found.write_density(tmp_path / "d.tif", grid, "1.png", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.qml", "d.tif", "d_level.qml", "d_level.tif"]


def test_samples_follow_the_density(found):
    drawn = found.sample(2000, seed=1)
    assert drawn["image_id"].value_counts().to_dict() == {"0.png": 2000, "1.png": 2000, "2.png": 2000}
    assert drawn.crs == "EPSG:4326"
    again = found.sample(2000, seed=1)
    assert drawn.geometry.equals(again.geometry)
    one = drawn[drawn["image_id"] == "1.png"]
    inside = found.credible_regions((0.5,), image_ids=["1.png"]).geometry.iloc[0].contains(one.geometry)
    assert abs(inside.mean() - 0.5) < 5 * 0.5 / np.sqrt(2000)  # five standard deviations


def test_samples_of_another_seed_share_nothing(tmp_path):
    """Also beyond the images that are drawn together: all 70 have the same density here."""
    shared = stores.Components("vmf", np.eye(3), np.zeros(3), np.ones(3, int), np.zeros(3, np.uint64))
    rows = pd.DataFrame({"image_id": [str(i) for i in range(70)]})
    kept = stores.prune(np.zeros((70, 3)) - np.log(3.0))
    stores.write_store(tmp_path / "a.nc", rows=rows, pruned=kept, components=shared, run={})
    found = geo_mvmf.open_predictions(tmp_path / "a.nc")
    samples = [set(found.sample(2, seed=seed).geometry.to_wkb()) for seed in range(70)]
    assert len(set.union(*samples)) == 70 * 70 * 2
    assert samples[3] == set(found.sample(2, seed=3).geometry.to_wkb())


def test_levels_of_regions_are_said_to_be_wrong_whoever_makes_them(found):
    for levels in (0.9, (50, 90)):
        for workers in (1, 2):
            with pytest.raises(UsageError, match=r"such as \(0.5, 0.9\)"):
                found.credible_regions(levels, workers=workers)


def test_unknown_and_failed_images_are_named(found):
    grid = geo_mvmf.Grid.globe(30.0)
    with pytest.raises(BadInputError, match=r"no image 'zz' in .*a\.nc; it holds 4 images"):
        found.density(grid, "zz")
    with pytest.raises(BadInputError, match=r"image 'no\.png' has no prediction: missing"):
        found.credible_regions(image_ids=["no.png"])
    with pytest.raises(BadInputError, match="has no prediction"):
        found.mixture_of([1])


@pytest.mark.parametrize(("name", "combine"), [("d.tif", None), ("d.tif", "mean"), ("d.nc", None)])
def test_no_density_is_written_of_failures_alone(bundle, tmp_path, name, combine):
    failures = geo_mvmf.predict(bundle, read_image_table(pd.DataFrame({"path": ["no.png"]}), root=tmp_path))
    with pytest.raises(BadInputError, match="none of its 1 images has a prediction"):
        failures.write_density(tmp_path / name, geo_mvmf.Grid.globe(30.0), combine=combine)
    assert not list(tmp_path.iterdir())


def test_predictions_without_a_file_keep_theirs_as_long_as_they_live(bundle, make_album, tmp_path):
    make_album(tmp_path, 1)
    kept = geo_mvmf.predict(bundle, read_image_table(tmp_path))
    path = kept.store.path
    assert path.exists()
    assert len(kept.mixture) == 1
    del kept
    assert not path.exists()


def test_maps_that_are_made_later_keep_the_file_they_need(bundle, make_album, tmp_path, monkeypatch):
    """Weights are read one image at a time, when a raster is asked for: the file of a passing prediction must stay."""
    make_album(tmp_path, 2)
    table = read_image_table(tmp_path)
    now = geo_mvmf.predict(bundle, table).density(geo_mvmf.Grid.globe(10.0))
    monkeypatch.setattr(stacks, "IN_MEMORY_BYTES", 1000)
    lazy = geo_mvmf.predict(bundle, table).density(geo_mvmf.Grid.globe(10.0))
    gc.collect()
    assert not isinstance(lazy.data, np.ndarray)
    np.testing.assert_allclose(lazy.to_numpy(), now.to_numpy(), rtol=1e-6, atol=1e-15)


def test_a_map_larger_than_memory_is_computed_once_for_all_its_files(found, tmp_path, monkeypatch):
    """Density, levels and their sums: the twin that asks for each by itself makes every window three times."""
    whole = found.write_density(tmp_path / "whole.tif", geo_mvmf.Grid.globe(0.5), "1.png")
    made = []

    class Counted(density.Rasteriser):
        def __init__(self, *arguments):
            made.append(arguments[-1].shape)
            super().__init__(*arguments)

    monkeypatch.setattr(density, "Rasteriser", Counted)
    monkeypatch.setattr(stacks, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(stacks, "WINDOW_CELLS", 512 * 512)
    lazy = found.write_density(tmp_path / "windows.tif", geo_mvmf.Grid.globe(0.5), "1.png")
    assert made == [(360, 512), (360, 208)]
    assert float(lazy.probability_sum[0]) == pytest.approx(float(whole.probability_sum[0]), abs=1e-6)
    for name in ("", "_level"):
        with rasterio.open(tmp_path / f"windows{name}.tif") as one, rasterio.open(tmp_path / f"whole{name}.tif") as two:
            assert float(one.tags()["PROBABILITY_SUM"]) == pytest.approx(float(two.tags()["PROBABILITY_SUM"]), abs=1e-6)
            np.testing.assert_allclose(one.read(1), two.read(1), rtol=1e-5, atol=2e-3 * two.read(1).max())
    made.clear()
    found.write_density(tmp_path / "windows.nc", geo_mvmf.Grid.globe(0.5), "1.png")
    assert made == [(360, 512), (360, 208)]
    with xr.open_dataset(tmp_path / "windows.nc", engine="h5netcdf") as back:
        np.testing.assert_allclose(back["density_per_km2"], whole, rtol=1e-5, atol=1e-8 * float(whole.max()))
        np.testing.assert_allclose(back["cell_area_km2"], whole.cell_area_km2, rtol=1e-12)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".nc", *[".qml"] * 4, *[".tif"] * 4]


def test_windows_of_several_images_are_prepared_once_for_all_of_them(found, tmp_path, monkeypatch):
    made = []

    class Counted(density.Rasteriser):
        def __init__(self, *arguments):
            made.append(arguments[-1].shape)
            super().__init__(*arguments)

    monkeypatch.setattr(density, "Rasteriser", Counted)
    monkeypatch.setattr(stacks, "WINDOW_CELLS", 512 * 512)
    monkeypatch.setattr(stacks, "IN_MEMORY_BYTES", 2 * 512 * 512 * 8)  # two of the three images at a time
    found.write_density(tmp_path / "all.nc", geo_mvmf.Grid.globe(0.25))
    assert len(made) == 6 * 2  # the twin that asks for one image after the other prepares each window three times


def test_a_full_disk_is_said_before_a_map_larger_than_memory_is_begun(found, tmp_path, monkeypatch):
    """A write into a map of a file that finds no space would end the process."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(stacks, "IN_MEMORY_BYTES", 1000)
    with pytest.raises(OutputError, match=r"big\.tif: cannot write: No space left"):
        found.write_density(tmp_path / "big.tif", geo_mvmf.Grid.globe(0.5), "1.png")
    assert not list(tmp_path.iterdir())


def test_an_album_is_mapped_without_its_weights_at_once(found, monkeypatch):
    """The twin that asks for all of them, as `mixture` does, is noticed."""
    asked = []
    given = type(found.store).log_mixing_weights

    def counted(store, images):
        asked.append(len(np.atleast_1d(images)))
        return given(store, images)

    monkeypatch.setattr(type(found.store), "log_mixing_weights", counted)
    found.density(geo_mvmf.Grid.globe(30.0), combine="mean")
    assert set(asked) == {1}
    found.mixture_of([0, 2])
    assert max(asked) > 1


def test_class_models_give_cells(found):
    shared = found.store.components
    cells = type(shared)("cell", shared.mean_directions, np.full(6, np.nan), shared.training_counts, shared.cell_ids)
    mixture = mixture_of_components(cells, np.log([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]]))
    assert isinstance(mixture, geo_mvmf.CellMixture)
    assert mixture.probability_within(0.0, 0.0, 30000.0)[0, 0] == pytest.approx(1.0)
