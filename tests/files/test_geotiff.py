import re
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import rasterio
import xarray
from rio_cogeo.cogeo import cog_validate

from geo_mvmf import sphere
from geo_mvmf.errors import OutputError, UsageError
from geo_mvmf.files import geotiff
from geo_mvmf.maps.density import cell_area_km2
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.levels import credible_level_raster


def bell(grid, places=((10.0, 50.0, 300.0, 1.0),)):
    """A density of bells (longitude, latitude, width in km, weight) that integrates to one on the grid."""
    longitude, latitude = grid.longitude_latitude()
    longitude, latitude = np.broadcast_arrays(longitude, latitude)
    density = np.zeros(grid.shape)
    for x, y, width, weight in places:
        distance = sphere.great_circle_distance_km(longitude, latitude, x, y)
        density += weight * np.exp(-0.5 * (distance / width) ** 2) / (2 * np.pi * width**2)
    area = np.broadcast_to(cell_area_km2(grid), grid.shape)
    return density / np.nansum(density * area), area


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    grid = Grid.globe(0.25)
    density, area = bell(grid, ((10.0, 50.0, 300.0, 0.7), (-70.0, -40.0, 900.0, 0.3)))
    path = tmp_path_factory.mktemp("world") / "album.tif"
    tags = {"model": "world", "weights_sha256": "0f" * 32, "image_id": "Ærø 1.jpg", "nothing": None}
    geotiff.write_density(path, density, grid, tags=tags)
    return path, grid, density, area


def test_it_is_a_cloud_optimized_geotiff_of_the_agreed_form(world):
    path, grid, density, _ = world
    valid, errors, warnings = cog_validate(path, strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as raster:
        assert raster.count == 1
        assert raster.dtypes == ("float32",)
        assert raster.block_shapes == [(512, 512)]
        assert raster.compression.value == "DEFLATE"
        structure = raster.tags(ns="IMAGE_STRUCTURE")
        assert (structure["LAYOUT"], structure["PREDICTOR"]) == ("COG", "3")
        assert raster.crs == "EPSG:4326"
        assert raster.transform == grid.transform
        assert raster.shape == grid.shape
        np.testing.assert_array_equal(raster.read(1), density.astype(np.float32))


def test_tags_units_and_statistics(world):
    path, _, density, _ = world
    with rasterio.open(path) as raster:
        tags = raster.tags()
        assert tags["MODEL"] == "world"
        assert tags["WEIGHTS_SHA256"] == "0f" * 32
        assert tags["IMAGE_ID"] == "Ærø 1.jpg"
        assert "NOTHING" not in tags
        assert tags["TIFFTAG_SOFTWARE"].startswith("geo_mvmf ")
        assert tags["AREA_OR_POINT"] == "Area"
        assert float(tags["PROBABILITY_SUM"]) == pytest.approx(1.0, abs=1e-6)
        assert raster.descriptions == ("density_per_km2",)
        assert raster.units == ("km-2",)
        found = {key: float(value) for key, value in raster.tags(1).items() if key.startswith("STATISTICS")}
    assert found["STATISTICS_MAXIMUM"] == pytest.approx(density.max(), rel=1e-6)
    assert found["STATISTICS_MINIMUM"] == pytest.approx(density.min(), rel=1e-6)
    assert found["STATISTICS_MEAN"] == pytest.approx(density.mean(), rel=1e-6)
    assert found["STATISTICS_STDDEV"] == pytest.approx(density.std(), rel=1e-4)
    assert found["STATISTICS_VALID_PERCENT"] == 100.0


def test_nothing_lies_beside_it_but_the_style(world):
    path, _, _, _ = world
    assert sorted(p.name for p in path.parent.iterdir()) == ["album.qml", "album.tif"]


def test_overviews_keep_the_mass_of_a_density(world):
    path, grid, density, area = world
    with rasterio.open(path, overview_level=0) as overview:
        values = overview.read(1).astype(float)
    rows, columns = values.shape
    coarse = np.broadcast_to(cell_area_km2(Grid.globe(0.5)), (rows, columns))
    assert (rows, columns) == (grid.shape[0] // 2, grid.shape[1] // 2)
    assert float((values * coarse).sum()) == pytest.approx(float((density * area).sum()), rel=0.01)


def thresholds_by_sorting(density, area, levels):
    order = np.argsort(density, axis=None)[::-1]
    mass = np.cumsum((density * area).ravel()[order])
    return {level: density.ravel()[order][np.searchsorted(mass, level)] for level in levels}


def credible_densities(path):
    with rasterio.open(path) as raster:
        beginning = "CREDIBLE_DENSITY_"
        tags = {key: value for key, value in raster.tags().items() if key.startswith(beginning)}
    return {float(key.removeprefix(beginning)) / 100.0: float(value) for key, value in tags.items()}


def items_of(path):
    document = path.with_suffix(".qml").read_text(encoding="utf-8")
    return list(ET.fromstring(document.split("\n", 1)[1]).iter("item"))  # noqa: S314  our own document


def test_thresholds_are_those_of_a_full_sort(world):
    path, _, density, area = world
    found = credible_densities(path)
    exact = thresholds_by_sorting(density.astype(np.float32).astype(float), area, geotiff.LEVELS)
    assert sorted(found) == sorted(geotiff.LEVELS)
    for level in geotiff.LEVELS:
        assert exact[level] * (1 - 6e-4) <= found[level] <= exact[level]
        inside = (density * area)[density >= found[level]].sum()
        assert level <= inside < level + 0.005


def colours_of(path, values):
    """Colour and opacity that the style gives to each value: QGIS's discrete classes end with their values."""
    items = items_of(path)
    ends = [float(item.get("value")) for item in items]
    looks = np.array([f"{item.get('color')} {item.get('alpha')}" for item in items])
    return looks[np.searchsorted(ends, values)]


@pytest.mark.parametrize(
    ("held", "tagged", "labels"),
    [
        (0.97, [0.5, 0.8, 0.9, 0.95], []),
        (0.85, [0.5, 0.8], ["all that this map holds (85 %)"]),
        (0.7, [0.5], ["all that this map holds (70 %)"]),
        (1 / 3, [], ["all that this map holds (33.33 %)"]),
    ],
)
def test_levels_are_of_all_probability_where_a_grid_holds_a_part(tmp_path, held, tagged, labels):
    grid = Grid.from_bounds(5.0, 45.0, 15.0, 55.0, 0.05)
    density, area = bell(grid)
    density *= held
    density[0, 0] = 0.0
    path = geotiff.write_density(tmp_path / "part.tif", density, grid)
    assert sorted(credible_densities(path)) == tagged
    for level, threshold in credible_densities(path).items():
        assert level <= (density * area)[density >= threshold].sum() < level + 0.005
    for item, level in zip(items_of(path)[::-1], tagged, strict=False):
        assert item.get("label") == f"densest {100.0 * level:.4g} % of the probability"
    outside = "no probability" if labels else "outside the 95 % region"
    assert [item.get("label") for item in items_of(path)[::-1]][len(tagged) :] == [*labels, outside]


@pytest.mark.parametrize("held", [1.0, 0.85, 0.7, 1 / 3])
def test_a_density_and_its_levels_have_the_same_colours(tmp_path, held):
    grid = Grid.from_bounds(5.0, 45.0, 15.0, 55.0, 0.05)
    density, area = bell(grid)
    raster = xarray.DataArray(held * density[None], dims=("image", "latitude", "longitude"))
    levels = credible_level_raster(raster.assign_coords(cell_area_km2=(("latitude", "longitude"), area)))[0].to_numpy()
    by_density = geotiff.write_density(tmp_path / "part.tif", held * density, grid)
    by_level = geotiff.write_level(tmp_path / "part_level.tif", levels, grid)
    same = colours_of(by_density, np.float32(held * density)) == colours_of(by_level, np.float32(levels))
    assert np.mean(same) > 0.999  # but for cells at the very borders


def test_the_style_has_the_thresholds_of_this_raster(world):
    path, _, density, area = world
    items = items_of(path)
    exact = thresholds_by_sorting(density, area, geotiff.LEVELS)
    uppers = [float(item.get("value")) for item in items[:-1]]
    assert uppers == pytest.approx([exact[level] for level in sorted(exact, reverse=True)], rel=1e-3)
    assert items[0].get("alpha") == "0"
    assert credible_densities(path)[0.95] == pytest.approx(uppers[0], rel=1e-6)


@pytest.mark.parametrize("values", ["zero", "minus zero", "uniform", "one cell", "nan"])
def test_degenerate_rasters_are_written(tmp_path, values):
    grid = Grid.globe(15.0)
    density = np.full(grid.shape, {"uniform": 2e-9, "nan": np.nan, "minus zero": -0.0}.get(values, 0.0))
    if values == "one cell":
        density[3, 5] = 1e-6
    path = geotiff.write_density(tmp_path / "a.tif", density, grid)
    with rasterio.open(path) as raster:
        np.testing.assert_array_equal(raster.read(1), density.astype(np.float32))
    assert np.isfinite(list(credible_densities(path).values())).all()
    style = path.with_suffix(".qml").read_text(encoding="utf-8")
    assert '"nan"' not in style
    assert '"-inf"' not in style
    if values in ("zero", "minus zero", "nan"):
        assert [(item.get("label"), item.get("alpha")) for item in items_of(path)] == [("no probability", "0")]


def test_what_is_outside_the_projection_is_nan_and_nodata(tmp_path):
    grid = Grid.from_bounds(-18e6, -9e6, 18e6, 9e6, 4e5, crs="+proj=moll")
    density, area = bell(grid)
    assert np.isnan(area).any()
    density[np.isnan(area)] = np.nan
    path = geotiff.write_density(tmp_path / "a.tif", density, grid)
    with rasterio.open(path) as raster:
        values = raster.read(1)
        assert np.isnan(raster.nodata)
        assert "Mollweide" in raster.crs.to_wkt()
        assert float(raster.tags()["PROBABILITY_SUM"]) == pytest.approx(1.0, abs=1e-5)
        assert float(raster.tags(1)["STATISTICS_VALID_PERCENT"]) < 100.0
    np.testing.assert_array_equal(np.isnan(values), np.isnan(density))


def test_a_raster_larger_than_one_window_is_written_window_by_window(tmp_path, monkeypatch):
    monkeypatch.setattr(geotiff, "_BLOCKS_AT_ONCE", 1)
    grid = Grid.from_bounds(0.0, 0.0, 13.0, 11.0, 0.01)
    density = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    asked = []

    class Lazy:
        ndim, shape = 2, grid.shape

        def __getitem__(self, place):
            asked.append(place)
            return density[place]

    path = geotiff.write_density(tmp_path / "a.tif", Lazy(), grid)
    assert len(asked) == 3 * 3
    assert max((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in asked) == 512 * 512
    with rasterio.open(path) as raster:
        np.testing.assert_array_equal(raster.read(1), density)


def test_a_data_array_brings_its_grid_and_its_mass(tmp_path):
    from geo_mvmf.maps.density import density_raster
    from geo_mvmf.mixture import VmfMixture

    mixture = VmfMixture(
        mean_directions=sphere.to_directions([11.0], [48.0]), log_concentrations=[6.0], log_mixing_weights=[[0.0]]
    )
    density = density_raster(mixture, Grid.globe(1.0), image_ids=["a"])
    path = geotiff.write_density(tmp_path / "a.tif", density[0])
    assert geotiff.write_density(tmp_path / "b.tif", density).exists()
    with rasterio.open(path) as raster:
        assert raster.transform == Grid.globe(1.0).transform
        assert float(raster.tags()["PROBABILITY_SUM"]) == pytest.approx(float(density.probability_sum[0]), rel=1e-12)
        np.testing.assert_array_equal(raster.read(1), density[0].to_numpy().astype(np.float32))


def test_levels_have_nearest_overviews_and_their_own_style(tmp_path):
    grid = Grid.globe(0.25)
    level = np.random.default_rng(0).random(grid.shape)
    path = geotiff.write_level(tmp_path / "level.tif", level, grid, levels=(0.5, 0.9), tags={"image_id": "a"})
    assert cog_validate(path, strict=True)[0]
    with rasterio.open(path) as raster:
        assert raster.units == ("1",)
        assert raster.tags()["IMAGE_ID"] == "a"
        full = raster.read(1)
    with rasterio.open(path, overview_level=0) as overview:
        assert np.isin(overview.read(1), full).all()
    assert "within the 90 % region" in path.with_suffix(".qml").read_text()


@pytest.mark.parametrize(
    ("name", "values", "grid", "message"),
    [
        ("a.jpg", np.ones((2, 4)), Grid.globe(90.0), r"written as \.tif"),
        ("a.tif", np.ones((2, 4)), None, "give its grid"),
        ("a.tif", np.ones((3, 4)), Grid.globe(90.0), r"\(3, 4\), the grid \(2, 4\)"),
        ("a.tif", np.ones((2, 2, 4)), Grid.globe(90.0), "one image at a time"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path, name, values, grid, message):
    with pytest.raises(UsageError, match=message):
        geotiff.write_density(tmp_path / name, values, grid)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_that_differs_is_an_error(tmp_path, monkeypatch):
    copy = geotiff._copy_to_cog

    def torn(tiled, cog, look):
        copy(tiled, cog, look)
        with rasterio.open(cog, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
            raster.write(np.zeros((2, 4), np.float32), 1)

    monkeypatch.setattr(geotiff, "_copy_to_cog", torn)
    with pytest.raises(OutputError, match="differs"):
        geotiff.write_density(tmp_path / "a.tif", np.ones((2, 4)), Grid.globe(90.0))
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_style_of_the_same_name_is_not_overwritten(tmp_path):
    (tmp_path / "a.qml").write_text("mine")
    with pytest.raises(OutputError, match=re.escape("a.qml: exists already")):
        geotiff.write_density(tmp_path / "a.tif", np.ones((2, 4)), Grid.globe(90.0))
    assert [path.name for path in tmp_path.iterdir()] == ["a.qml"]


def test_the_environment_of_the_caller_is_left_alone(tmp_path):
    with rasterio.Env() as before:
        options = dict(before.options)
        geotiff.write_density(tmp_path / "a.tif", xarray.DataArray(np.ones((2, 4))), Grid.globe(90.0))
        assert dict(before.options) == options
