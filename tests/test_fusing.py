"""Evidence on stored predictions: rows, files, the command line, and what users get wrong."""

import json
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from click.testing import CliRunner

import geo_mvmf
from geo_mvmf import cli, fusing, row_contract, sphere
from geo_mvmf.errors import BadInputError, OutputError, UsageError
from geo_mvmf.files import stores
from geo_mvmf.maps import estimates, summaries
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.predictions import open_predictions

PLACES = sphere.to_directions([2.35, 13.4, -0.1, 30.0], [48.9, 52.5, 51.5, 60.0])
COUNTS = np.array([400, 30, 200, 1])


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Six images over four components, one of which failed, in three places."""
    generator = np.random.default_rng(0)
    weights = np.log(generator.dirichlet(np.ones(4), 6))
    components = stores.Components("vmf", PLACES, np.full(4, 9.0), COUNTS, np.arange(4, dtype=np.uint64))
    weights[5] = np.nan
    pruned = stores.prune(weights)
    known = pruned.offsets[1:] > pruned.offsets[:-1]
    mixture = VmfMixture(PLACES, np.full(4, 9.0), weights[known] - np.logaddexp.reduce(weights[known], axis=1)[:, None])
    points = estimates.estimate(mixture)
    rows = pd.DataFrame({"image_id": list("abcdef"), "path": [f"{name}.jpg" for name in "abcdef"]})
    rows["filename"] = rows["path"]
    rows["status"], rows["message"] = np.where(known, "ok", "missing"), ""
    for name, value in row_contract.COMPUTED.items():
        rows[name] = np.full(6, value, dtype=object if value is None else float)
    found = summaries.summarise(mixture, points[:, 0], points[:, 1])
    for name in found:
        rows.loc[known, name] = found[name].to_numpy()
    rows["true_longitude"], rows["true_latitude"] = [2.35] * 3 + [13.4] * 3, [48.9] * 3 + [52.5] * 3
    for name in row_contract.TRUTH[2:]:
        rows[name] = np.nan
    rows["place"] = ["x", "x", "x", "y", "y", None]
    rows["roof"], rows["floor"], rows["lit"] = ["red"] * 6, [1, 1, 2, 3, 3, 4], [True, True, True, False, True, True]
    path = tmp_path_factory.mktemp("album") / "album.nc"
    stores.write_store(path, rows=rows, pruned=pruned, components=components, run={"bundle": "b", "root": "/r"})
    return path


COARSE = {"max_mass_error": 0.03}  # a tenth of the cells, and of the time


@pytest.fixture(scope="module")
def places(album, tmp_path_factory):
    """The album's images of one place fused."""
    out = tmp_path_factory.mktemp("places") / "places.nc"
    return open_predictions(album).fuse("place", out=out, **COARSE)


def run(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_raster(path, values, *, crs="EPSG:4326", transform=None, nodata=None):
    values = np.asarray(values)
    degrees = 180 / values.shape[-2]
    transform = transform or rasterio.Affine(degrees, 0, -180, 0, -degrees, 90)
    bands = values if values.ndim == 3 else values[None]
    with rasterio.open(
        path, "w", driver="GTiff", height=bands.shape[1], width=bands.shape[2], count=bands.shape[0],
        dtype=bands.dtype, crs=crs, transform=transform, nodata=nodata,
    ) as file:  # fmt: skip
        file.write(bands)
    return path


# --- what comes out ------------------------------------------------------------------------------------------------


def test_groups_become_rows_and_what_their_images_share_is_kept(album, places):
    predictions, rows = open_predictions(album), places.rows
    assert rows["image_id"].tolist() == ["x", "y"]
    assert rows["status"].tolist() == ["ok", "ok"]
    assert rows["n_images"].tolist() == [3, 2]
    assert rows["place"].tolist() == ["x", "y"]
    assert rows["roof"].tolist() == ["red", "red"]
    assert [None if pd.isna(value) else value for value in rows["floor"]] == [None, 3]
    assert [None if pd.isna(value) else value for value in rows["lit"]] == [True, None]
    assert rows["true_latitude"].tolist() == [48.9, 52.5]
    assert rows["error_km"].notna().all()
    assert rows["searched_probability"].between(0, 1).all()
    best = predictions.rows.groupby("place")["information_bits"].max()
    np.testing.assert_allclose(rows["gained_bits"], rows["information_bits"] - best.to_numpy())
    assert list(rows.columns[:5]) == ["image_id", "path", "filename", "status", "message"]
    assert places.run["evidence"]["by"] == "place"


def test_the_file_gives_the_same_densities_as_the_functions(album, places):
    predictions = open_predictions(album)
    direct = geo_mvmf.fuse(predictions.mixture_of([0, 1, 2]), prior=predictions.training_prior, **COARSE)
    drawn = direct.sample(2000, seed=0)[0]
    np.testing.assert_allclose(places.mixture_of([0]).log_density(drawn), direct.log_density(drawn), atol=1e-4)


def test_every_view_opens_fused_predictions(places, tmp_path):
    fused = places
    regions = fused.credible_regions((0.5, 0.9))
    assert regions["image_id"].tolist() == ["x", "x", "y", "y"]
    assert np.abs(regions["probability"] - regions["level"]).max() < 0.005
    assert np.abs(regions[regions["level"] == 0.9]["area_km2"].to_numpy() / fused.rows["area_90_km2"] - 1).max() < 0.1
    raster = fused.density(geo_mvmf.Grid.from_bounds(-10, 40, 40, 65, 0.5), "x")
    assert float(raster["probability_sum"][0]) > 0.99
    assert fused.sample(5).shape[0] == 10
    fused.write(tmp_path / "places.gpkg", levels=(0.9,))
    assert len(geopandas.read_file(tmp_path / "places.gpkg", layer="points")) == 2
    assert geo_mvmf.evaluate(fused).n == 2


@pytest.mark.hard
def test_images_that_agree_are_more_certain_and_copies_are_not(album):
    predictions = open_predictions(album)
    together = predictions.fuse("all", **COARSE).rows.iloc[0]
    assert together["n_images"] == 5
    assert together["n_left_out"] == 1
    copies = predictions.fuse("all", independence=0.0, **COARSE).rows.iloc[0]
    assert copies["information_bits"] < together["information_bits"]


@pytest.mark.hard
def test_restricted_images_stay_rows_of_their_own(album, tmp_path):
    west = geopandas.GeoDataFrame(geometry=[shapely.box(-5, 40, 8, 56)], crs="EPSG:4326")
    west.to_file(tmp_path / "west.geojson")
    predictions = open_predictions(album)
    left = predictions.fuse("image_id", area=tmp_path / "west.geojson", **COARSE)
    assert left.rows["image_id"].tolist() == list("abcdef")
    assert left.rows["path"].tolist() == predictions.rows["path"].tolist()
    assert left.rows["status"].tolist() == ["ok"] * 5 + ["failed"]
    for i in range(5):
        points = predictions.mixture_of([i]).sample(4000, seed=i)[0]
        inside = shapely.contains_xy(west.geometry[0], *sphere.to_longitude_latitude(points)).mean()
        assert left.rows["probability_in_area"][i] == pytest.approx(inside, abs=0.03)
    assert left.rows["longitude"].dropna().between(-5, 8).all()
    again = left.fuse("image_id", area=west.iloc[:1], **COARSE)
    assert again.rows["probability_in_area"][:5].to_numpy() == pytest.approx(1.0, abs=0.02)
    assert again.run["evidence"]["earlier"]["area"] == "west.geojson"


@pytest.mark.hard
def test_a_prior_raster_takes_the_place_of_the_training_prior(album, tmp_path):
    """With the training prior itself as the raster nothing changes; the twin multiplies, and counts it twice."""
    whole = open_predictions(album)
    stores.write_store(
        tmp_path / "one.nc", rows=whole.rows.iloc[:1], pruned=whole.store.pruned(0, 1),
        components=whole.store.components, run={},
    )  # fmt: skip
    predictions = open_predictions(tmp_path / "one.nc")
    grid = geo_mvmf.Grid.from_bounds(-20, 35, 50, 70, 0.5)  # beyond it there is nothing
    prior = geo_mvmf.density_raster(predictions.training_prior, grid)[0].to_numpy()
    path = write_raster(tmp_path / "prior.tif", prior.astype(np.float32), transform=grid.transform)
    points = predictions.mixture.sample(3000, seed=0)[0]
    logs, far = predictions.mixture.log_density(points)[0], {}
    for mode in fusing.PRIOR_MODES:
        found = predictions.fuse("image_id", prior=path, prior_mode=mode, max_mass_error=0.05)
        short = np.maximum(0.0, 1.0 - np.exp(found.mixture.log_density(points)[0] - logs))
        far[mode] = float(short.mean())
    assert far["replace"] < 0.15  # raster cells of half a degree beside components of 0.6 degrees
    assert far["multiply"] > 2 * far["replace"]


def test_fused_with_nothing_a_file_of_components_becomes_one_of_cells(album):
    predictions = open_predictions(album)
    found = predictions.fuse("image_id", **COARSE)
    assert found.store.components.kind == "cell"
    assert found.rows["image_id"].tolist() == list("abcdef")
    here, there = (each.mixture.probability_within([2.35], [48.9], 300.0) for each in (predictions, found))
    np.testing.assert_allclose(here, there, atol=COARSE["max_mass_error"])


@pytest.mark.hard
def test_a_mask_raster_restricts(album, tmp_path):
    mask = np.zeros((180, 360), np.uint8)
    mask[34:50, 175:188] = 1  # 40..56 north, -5..8 east
    path = write_raster(tmp_path / "mask.tif", mask)
    predictions = open_predictions(album)
    by_mask = predictions.fuse("image_id", area=path, **COARSE)
    box = geopandas.GeoDataFrame(geometry=[shapely.box(-5, 40, 8, 56)], crs="OGC:CRS84")
    by_box = predictions.fuse("image_id", area=box, **COARSE)
    np.testing.assert_allclose(by_mask.rows["probability_in_area"], by_box.rows["probability_in_area"], rtol=0.03)


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_place_of_which_nothing_is_left_says_how_much_there_was(album, tmp_path):
    predictions = open_predictions(album)
    nowhere = geopandas.GeoDataFrame(geometry=[shapely.box(100, -40, 120, -20)], crs="EPSG:4326")
    with pytest.raises(BadInputError, match=r"a: the area holds 10\^-\d+\.\d of its probability"):
        predictions.restrict(nowhere)
    assert not (tmp_path / "nothing.nc").exists()


def test_fused_predictions_hold_no_training_prior(places):
    with pytest.raises(BadInputError, match="no training prior: start from the predictions file"):
        places.fuse("all")


def test_cells_that_overlap_in_one_image_are_refused_when_read(places, tmp_path):
    components = places.store.components
    parents = np.unique((components.cell_ids >> np.uint64(61) << np.uint64(61)) | np.uint64(1 << 60))
    broken = stores.Components(
        "cell", np.r_[components.mean_directions, components.mean_directions[: parents.size]],
        np.full(len(components) + parents.size, np.nan), np.zeros(len(components) + parents.size, np.int64),
        np.r_[components.cell_ids, parents],
    )  # fmt: skip
    logs = np.full((1, len(broken)), -np.log(len(broken)))
    rows = pd.DataFrame({"image_id": ["x"], "status": ["ok"]})
    whole = stores.prune(logs, tail=0.0)
    whole = stores.Pruned(whole.component, whole.log_weight, whole.offsets, np.zeros(1))
    stores.write_store(tmp_path / "broken.nc", rows=rows, pruned=whole, components=broken, run={})
    with pytest.raises(BadInputError, match=r"broken\.nc: its cells are damaged"):
        _ = open_predictions(tmp_path / "broken.nc").mixture


MISTAKES = [
    ({"by": "colour"}, BadInputError, "no column 'colour' to group by; choose .*image_id; or all: one group"),
    ({"independence": 2.0}, UsageError, "independence 2.0 is not in 0..1"),
    ({"independence": float("nan")}, UsageError, "independence nan"),
    ({"prior_mode": "add"}, UsageError, "prior_mode 'add'"),
    ({"max_mass_error": 0.0}, UsageError, "max_mass_error 0.0"),
    ({"area": "no.geojson"}, BadInputError, "no.geojson"),
    ({"prior": "no.tif"}, BadInputError, "no.tif"),
    ({"out": "places.gpkg"}, UsageError, r"places\.gpkg: a predictions file ends in \.nc"),
]


@pytest.mark.parametrize(("options", "error", "message"), MISTAKES)
def test_mistakes_are_named(album, options, error, message):
    with pytest.raises(error, match=message):
        open_predictions(album).fuse(**options)


@pytest.mark.parametrize(
    ("values", "nodata", "message"),
    [
        (
            np.array([[1.0, -3.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0]]),
            None,
            "the value in row 1, column 2 is -3, one of 1 such",
        ),
        (np.zeros((2, 4)), None, "none of its 8 values is above 0, 0 are nodata"),
        (np.full((2, 4), -9999.0), -9999.0, "none of its 8 values is above 0, 8 are nodata"),
        (np.ones((3, 2, 4)), None, "has 3 bands; a prior or a mask has one"),
    ],
)
def test_bad_priors_are_named(album, tmp_path, values, nodata, message):
    path = write_raster(tmp_path / "prior.tif", values, nodata=nodata)
    with pytest.raises(BadInputError, match=message):
        open_predictions(album).fuse(prior=path)


def test_an_existing_file_stays(album, tmp_path):
    (tmp_path / "places.nc").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        open_predictions(album).fuse("place", out=tmp_path / "places.nc")
    assert (tmp_path / "places.nc").read_text() == "mine"


# --- the command line ----------------------------------------------------------------------------------------------


def test_the_command_writes_what_the_others_open(album, tmp_path):
    shapely_area = geopandas.GeoDataFrame(geometry=[shapely.box(-20, 35, 50, 70)], crs="EPSG:4326")
    shapely_area.to_file(tmp_path / "area.geojson")
    prior = write_raster(tmp_path / "prior.tif", np.ones((18, 36), np.float32))
    out = tmp_path / "places.nc"
    done = run(
        "fuse", album, "--out", out, "--by", "place", "--area", tmp_path / "area.geojson", "--prior", prior,
        "--independence", 0.5, "--max-mass-error", 0.1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "2 ok" in done.output
    assert run("density", out, "--image-id", "x", "--out", tmp_path / "x.tif", "--resolution", 5).exit_code == 0
    with rasterio.open(tmp_path / "x.tif") as file:
        assert json.loads(file.tags()["EVIDENCE"])["independence"] == 0.5
    assert run("regions", out, "--out", tmp_path / "regions.gpkg").exit_code == 0
    assert run("evaluate", out).exit_code == 0
    assert open_predictions(out).run["evidence"]["prior"] == "prior.tif"
    again = run("fuse", album, "--out", out)
    assert again.exit_code == 5
    assert "exists already" in again.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--by", "colour"], 3, "no column 'colour'"),
        (["--independence", "3"], 2, "3.0 is not in the range"),
        (["--area", "no.geojson"], 3, "no.geojson"),
        (["--prior", "no.tif"], 3, "no.tif"),
    ],
)
def test_mistakes_at_the_door_are_one_line(album, tmp_path, arguments, code, message):
    done = run("fuse", album, "--out", tmp_path / "out.nc", *arguments)
    assert done.exit_code == code
    assert message in done.output
    assert not (tmp_path / "out.nc").exists()


@pytest.mark.hard
def test_fusing_needs_no_torch(album, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from geo_mvmf import open_predictions\n"
        f"open_predictions({str(album)!r}).fuse(max_mass_error=0.03, out={str(tmp_path / 'out.nc')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_columns_are_documented():
    text = (Path(__file__).parents[1] / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert [name for name in fusing.COLUMNS if f"`{name}`" not in text] == []


def test_one_image_keeps_its_name(album, tmp_path):
    done = run("fuse", album, "--image-id", "b", "--max-mass-error", 0.05, "--out", tmp_path / "b.nc")
    assert done.exit_code == 0, done.output
    assert open_predictions(tmp_path / "b.nc").rows["image_id"].tolist() == ["b"]


def test_images_that_are_hardly_in_an_area_are_counted(album, tmp_path):
    area = tmp_path / "far.geojson"
    far = geopandas.GeoDataFrame(geometry=[shapely.box(5, 47, 6, 51)], crs=4326)
    far.to_file(area, driver="GeoJSON")
    options = ("--by", "image_id", "--image-id", "a", "--image-id", "b", "--max-mass-error", 0.05)
    done = run("fuse", album, "--area", area, *options, "--out", tmp_path / "far.nc")
    assert done.exit_code == 0, done.output
    held = open_predictions(tmp_path / "far.nc").rows["probability_in_area"]
    assert (held < 0.01).all()
    assert done.stderr.startswith(f"2 images, by image_id, area {area}\n")  # in a pipe there is no bar
    assert f"2 of 2 images have less than 1% of their probability in {area}" in done.stderr
    wide = geopandas.GeoDataFrame(geometry=[shapely.box(-20, 30, 60, 70)], crs=4326)
    wide.to_file(area, driver="GeoJSON")
    done = run("fuse", album, "--area", area, *options, "--out", tmp_path / "wide.nc")
    assert "warning" not in done.stderr


def test_smoothing_cells_is_refused_in_the_words_of_the_command(places, tmp_path):
    out = tmp_path / "wide.tif"
    refused = run("density", places.store.path, "--bandwidth-km", 50, "--out", out)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("geo-mvmf: --bandwidth-km 50: only mixtures of vMF components can be smoothed")
    assert refused.stderr.endswith(f"{places.store.path} are uniform on S2 cells; leave --bandwidth-km out\n")
    assert not out.exists()
