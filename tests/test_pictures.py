"""Pictures: what must be seen is there, and degenerate albums have pictures too."""

import dataclasses
import io

import geopandas
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import geo_mvmf
from geo_mvmf import map_axes, pictures
from geo_mvmf.evaluation import Evaluation
from geo_mvmf.files import styles
from geo_mvmf.sphere import to_directions


def raster():
    latitude, longitude = np.arange(89.5, -90, -1.0), np.arange(-179.5, 180, 1.0)
    values = np.exp(-((latitude[:, None] - 40) ** 2 + longitude**2) / 200)
    return xr.DataArray(values, dims=("latitude", "longitude"), coords={"latitude": latitude, "longitude": longitude})


def album(latitude=(50.0, -20.0), radius=(100.0, 4000.0)):
    points = geopandas.GeoDataFrame({"longitude": [7.0, 170.0], "latitude": latitude, "radius_90_km": radius})
    points = points.assign(true_longitude=[9.0, -175.0], true_latitude=[49.0, np.nan])
    return points.set_geometry(geopandas.points_from_xy(points["longitude"], points["latitude"]), crs=4326)


def evaluated(error):
    error = np.asarray(error, dtype=float)
    searched = np.linspace(0.0, 1.0, error.size)
    names = np.array([str(i) for i in range(error.size)], dtype=object)
    return Evaluation(names, error, error / 1000, searched, error, names)


def pixels(picture):
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def share_of(colour, picture, tolerance=25):
    return float((np.abs(pixels(picture) - np.array(colour)).max(axis=2) < tolerance).mean())


def blended(colour):
    """The picture lays its colours over the land with an opacity of 0.8."""
    return 0.8 * np.array(colour[:3]) + 0.2 * np.array([239, 236, 228])


def test_a_density_shows_the_colours_that_qgis_shows_and_more_of_them_where_it_is_wider():
    narrow, wide = pictures.density_picture(raster()), pictures.density_picture(raster() ** 0.2)
    for colour in styles.LEVEL_COLOURS:
        assert 1e-3 < share_of(blended(colour), narrow) < share_of(blended(colour), wide)


def test_a_grid_that_holds_a_part_of_the_probability_does_not_claim_all_of_it():
    """Four tenths lie in Europe: there are raster cells of the 50 % region, and of no larger one."""
    mixture = geo_mvmf.VmfMixture(to_directions([10.0, -100.0], [48.0, 40.0]), [6.0, 6.0], np.log([[0.4, 0.6]]))
    whole = geo_mvmf.density_raster(mixture, geo_mvmf.Grid.from_bounds(-30, 20, 50, 75, 1.0))[0]
    picture, twin = pictures.density_picture(whole), pictures.density_picture(whole.drop_vars("cell_area_km2"))
    first, last = (blended(styles.LEVEL_COLOURS[i]) for i in (0, -1))
    assert share_of(first, picture) > 0.05
    assert share_of(last, picture) < 2e-3 < share_of(last, twin)  # the legend


@pytest.mark.parametrize(("rows", "columns"), [(1, 9), (9, 1), (1, 1)])
def test_one_row_or_column_or_cell_is_seen_too(rows, columns):
    coordinates = {"latitude": 60.0 - np.arange(rows), "longitude": 10.0 + np.arange(columns)}
    values = np.zeros((rows, columns))
    values[rows // 2, columns // 2] = 1.0
    values[0, 0] += 0.4 * (values.size > 1)
    picture = pictures.density_picture(xr.DataArray(values, dims=("latitude", "longitude"), coords=coordinates))
    # a cell with all probability is of no region below it, so only the grid of one cell shows none
    shown = max(share_of(blended(colour), picture) for colour in styles.LEVEL_COLOURS)
    assert shown > 0.01 if values.size > 1 else shown < 0.01


def test_a_map_across_180_has_land_and_marks_on_both_sides():
    """West of Bering's strait and east of it; the same map, counted from the other side, is the same picture."""
    latitude, longitude = np.arange(74.5, 50, -1.0), np.arange(150.5, 210, 1.0)
    density = xr.DataArray(
        np.zeros((latitude.size, longitude.size)),
        dims=("latitude", "longitude"),
        coords={"latitude": latitude, "longitude": longitude},
    )
    picture = pictures.density_picture(density, estimate=(-160.0, 60.0), truth=(170.0, 60.0))
    other = pictures.density_picture(
        density.assign_coords(longitude=longitude - 360.0), estimate=(-160.0, 60.0), truth=(170.0, 60.0)
    )
    np.testing.assert_array_equal(pixels(picture), pixels(other))
    land = np.abs(pixels(picture) - np.array([239, 236, 228])).max(axis=2) < 4
    width = land.shape[1]
    assert land[:, : width // 2].mean() > 0.1
    assert land[:, 3 * width // 4 :].mean() > 0.1  # Alaska
    plain = pixels(pictures.density_picture(density))
    changed = (np.abs(plain - pixels(picture)).max(axis=2) > 60)[: land.shape[0] * 2 // 3].any(axis=0)
    assert changed[width // 4 : width // 2].any()
    assert changed[3 * width // 4 :].any()
    assert [map_axes.degrees(value, "EW") for value in (190.0, -190.0, 180.0, -180.0, 540.0)] == [
        "170° W", "170° E", "180°", "180°", "180°"
    ]  # fmt: skip


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_raster_without_probability_is_an_empty_map(value):
    picture = pictures.density_picture(raster() * value)
    assert share_of(blended(styles.LEVEL_COLOURS[0]), picture) < 2e-3  # the legend


def test_the_estimate_and_the_truth_are_marked():
    plain = pixels(pictures.density_picture(raster()))
    marked = pixels(pictures.density_picture(raster(), estimate=(-100.0, 0.0), truth=(100.0, 0.0)))
    changed = (np.abs(plain - marked).max(axis=2) > 60)[: plain.shape[0] // 2 + 40]  # the legend is below
    columns = np.flatnonzero(changed.any(axis=0)) / plain.shape[1]
    assert ((columns < 0.35) & (columns > 0.15)).any()
    assert ((columns > 0.65) & (columns < 0.85)).any()


def test_a_projected_raster_is_refused():
    with pytest.raises(ValueError, match="geographic"):
        pictures.density_picture(raster().rename(latitude="y", longitude="x"))


def test_an_album_needs_antarctica_only_where_something_is_there():
    heights = [pixels(pictures.points_picture(album(latitude=(50.0, south)))).shape[0] for south in (-20.0, -75.0)]
    assert heights[0] < heights[1]


def test_what_is_near_the_north_pole_or_truly_in_antarctica_is_in_the_picture():
    plain = pixels(pictures.points_picture(album())).shape[0]
    assert pixels(pictures.points_picture(album(latitude=(88.0, -20.0)))).shape[0] > plain
    assert pixels(pictures.points_picture(album().assign(true_latitude=-75.0))).shape[0] > plain


@pytest.mark.parametrize("radius", [(100.0, 100.0), (np.nan, 50.0), (np.nan, np.nan), (0.0, 20000.0), (1e-4, 2e-4)])
def test_any_radii_have_a_picture(radius):
    assert pixels(pictures.points_picture(album(radius=radius), title="a")).std() > 1


def test_points_outside_what_the_model_knows_are_grey():
    known = album().assign(in_training_area=["yes", "yes"], feature_distance=[1.0, 1.2])
    plain = share_of((130, 130, 130), pictures.points_picture(known), 6)
    for outside in (known.assign(in_training_area=["no", None]), known.assign(feature_distance=[1.0, 2.5])):
        assert share_of((130, 130, 130), pictures.points_picture(outside), 6) > plain


def test_points_that_are_all_outside_have_one_entry_in_the_legend_and_no_bar_of_colours(monkeypatch):
    monkeypatch.setattr(pictures, "png", lambda figure: figure)

    def legend_and_axes(distances):
        figure = pictures.points_picture(album().assign(feature_distance=distances))
        return [text.get_text() for text in figure.axes[0].get_legend().get_texts()], len(figure.axes)

    assert legend_and_axes([1.0, 2.5]) == (["true place", "estimate", "outside what the model knows"], 2)
    assert legend_and_axes([3.0, 2.5]) == (["true place", "outside what the model knows"], 1)


def test_an_album_of_failures_alone_is_an_empty_map():
    assert pixels(pictures.points_picture(album().assign(longitude=np.nan))).std() > 1


def test_regions_are_drawn_below_the_points():
    region = geopandas.GeoDataFrame({"level": [0.5]}, geometry=[album().geometry[0].buffer(30.0)], crs=4326)
    plain, with_region = (pictures.points_picture(album(), regions=regions) for regions in (None, region))
    assert share_of((122, 1, 119), with_region, 60) > share_of((122, 1, 119), plain, 60)


@pytest.mark.parametrize("error", [[10.0, 300.0, 20000.0], [np.nan, np.nan], [0.0]])
def test_evaluations_have_curves(error):
    for draw in (pictures.accuracy_picture, pictures.coverage_picture):
        assert share_of((122, 1, 119), draw(evaluated(error)), 60) > 1e-4


def test_each_estimator_has_its_curve_of_accuracy():
    alone = evaluated(np.geomspace(1.0, 15000.0, 40))
    both = dataclasses.replace(alone, estimator="component", other_errors_km={"mode": alone.error_km / 3})
    counts = [share_of((122, 1, 119), pictures.accuracy_picture(each), 60) for each in (alone, both)]
    assert counts[1] > 1.2 * counts[0]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(563.0, 9769.0, [1000, 2000, 5000]), (1.0, 1.0, [1]), (3.0, 4.0, [3, 4]), (0.2, 1.0, [0.2, 0.5, 1])],
)
def test_the_bar_has_round_numbers(low, high, expected):
    assert map_axes.round_numbers(low, high) == pytest.approx(expected)


def test_degrees_have_sides():
    assert [map_axes.degrees(v, "EW") for v in (-60.0, 0.0, 7.5, 180.0)] == ["60° W", "0°", "7.5° E", "180°"]
