"""Classes that a user has already: polygons, S2 cells, mean directions."""

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from shapely.geometry import box

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs import polygons, table_columns
from geo_mvmf.inputs.class_files import read_classes
from geo_mvmf.inputs.photo_places import read_photo_places
from geo_mvmf.maps import outlines
from geo_mvmf.model.cleaning import PartitionWarning
from geo_mvmf.model.given_classes import centroid_direction, partition_by_file

TOWNS = pd.DataFrame({"town": ["Essen", "Perth", "Suva"], "lon": [7.0, 115.9, 178.4], "lat": [51.5, -32.0, -18.1]})


def layer(shapes, **columns):
    return gpd.GeoDataFrame(columns, geometry=shapes, crs="OGC:CRS84")


def read(shape):
    return polygons.read_polygons(layer([shape])).geometry.iloc[0]


def cap(longitude, latitude, radius=0.2):
    """A circle about a place, as a polygon on the map that need not be valid before it is read."""
    bearings = np.arange(0.0, 360.0, 3.0)
    x, y = sphere.destination(
        np.full(120, longitude), np.full(120, latitude), bearings, radius * sphere.EARTH_RADIUS_KM
    )
    return shapely.Polygon(np.stack([longitude + (x - longitude + 180.0) % 360.0 - 180.0, y], axis=-1)[::-1])


@pytest.mark.parametrize("place", [(10.0, 0.0), (-75.0, 60.0), (179.0, -20.0), (180.0, 45.0)])
def test_the_centroid_of_a_circle_is_its_middle_and_the_moment_that_of_a_cap(place):
    moment = centroid_direction(read(cap(*place)))
    np.testing.assert_allclose(moment / np.linalg.norm(moment), sphere.to_directions(*place), atol=2e-4)
    assert np.linalg.norm(moment) == pytest.approx(np.pi * np.sin(0.2) ** 2, rel=2e-3)


def test_a_circle_about_a_pole_and_the_twin_that_averages_longitudes_and_latitudes():
    pole = shapely.segmentize(box(-180, 70, 180, 90), 1.0)
    moment = centroid_direction(pole)
    np.testing.assert_allclose(moment / np.linalg.norm(moment), [0, 0, 1], atol=1e-9)
    assert pole.centroid.y < 81  # ten degrees off
    fiji = shapely.MultiPolygon([box(177, -20, 180, -15), box(-180, -20, -178, -15)])
    moment = centroid_direction(shapely.segmentize(fiji, 1.0))
    assert sphere.to_longitude_latitude(moment)[0] == pytest.approx(179.5, abs=0.01)
    assert abs(fiji.centroid.x) < 60  # in Africa


def test_holes_and_several_parts_add_up():
    ring = shapely.segmentize(box(0, 0, 30, 30) - box(10, 5, 25, 20), 1.0)
    whole, hole = (
        centroid_direction(shapely.segmentize(each, 1.0)) for each in (box(0, 0, 30, 30), box(10, 5, 25, 20))
    )
    np.testing.assert_allclose(centroid_direction(ring), whole - hole, atol=1e-12)
    np.testing.assert_allclose(centroid_direction(shapely.reverse(ring)), whole - hole, atol=1e-12)


def test_places_are_counted_in_polygons_by_the_value_of_a_column():
    land = layer(
        [box(0, 0, 10, 10), box(20, 0, 30, 10), box(170, -10, 180, 0), box(-180, -10, -170, 0)], land=list("abcc")
    )
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-180, 180, 4_000), generator.uniform(-15, 15, 4_000)
    found = partition_by_file(x, y, land, column="land")
    inside = {
        "a": (x > 0) & (x < 10) & (y > 0) & (y < 10),
        "b": (x > 20) & (x < 30) & (y > 0) & (y < 10),
        "c": (np.abs(x) > 170) & (y > -10) & (y < 0),
    }
    assert found.names == ("a", "b", "c")
    assert found.counts.tolist() == [int(each.sum()) for each in inside.values()]
    assert found.outside == 4_000 - found.counts.sum()
    np.testing.assert_array_equal(found.assign(x, y), np.select(list(inside.values()), [0, 1, 2], -1))
    np.testing.assert_array_equal(found.assign(x + 360.0, y), found.assign(x, y))
    middle = sphere.to_longitude_latitude(found.mean_directions)
    np.testing.assert_allclose(np.abs(middle[0]), [5, 25, 180], atol=1e-6)
    photos = partition_by_file(x, y, land, column="land", mean_direction="photos")
    sums = sphere.to_directions(x[inside["c"]], y[inside["c"]]).sum(axis=0)
    np.testing.assert_allclose(photos.mean_directions[2], sums / np.linalg.norm(sums), atol=1e-12)


def test_centres_take_the_places_nearest_to_them(tmp_path):
    TOWNS.to_csv(tmp_path / "towns.csv", index=False)
    found = partition_by_file(
        [7.1, 8.0, -179.0, 110.0], [51.0, 50.0, -18.0, -30.0], tmp_path / "towns.csv", column="town"
    )
    assert (found.names, found.counts.tolist()) == (("Essen", "Perth", "Suva"), [2, 1, 1])
    assert (found.has_cells, found.outside) == (False, 0)
    np.testing.assert_allclose(found.mean_directions, sphere.to_directions(TOWNS.lon, TOWNS.lat), atol=1e-15)


@pytest.mark.parametrize("names", table_columns.DEGREE_ALIASES, ids="/".join)
def test_places_of_images_and_of_classes_go_by_the_same_names(tmp_path, names):
    longitude, latitude = names
    table = TOWNS.rename(columns={"lon": longitude.upper(), "lat": latitude.title()})
    classes = read_classes(table).places
    table.to_csv(tmp_path / "places.csv", index=False)
    images = read_photo_places(tmp_path / "places.csv")
    np.testing.assert_array_equal(classes, np.stack([images.longitude, images.latitude], axis=-1))
    np.testing.assert_array_equal(classes, TOWNS[["lon", "lat"]])


def test_points_of_a_layer_are_centres_in_any_crs(tmp_path):
    points = gpd.GeoDataFrame(TOWNS[["town"]], geometry=gpd.points_from_xy(TOWNS.lon, TOWNS.lat), crs="OGC:CRS84")
    points.to_crs(3857).to_file(tmp_path / "towns.gpkg")
    found = read_classes(tmp_path / "towns.gpkg")
    np.testing.assert_allclose(found.places, TOWNS[["lon", "lat"]], atol=1e-6)


@pytest.mark.parametrize("column", ["cell", "hex_id", "S2_token"])
@pytest.mark.parametrize("mean_direction", ["centre", "photos"])
def test_tokens_are_cells(column, mean_direction):
    """As ISN publishes its classes: S2 tokens, with mean places."""
    cells = s2.children(s2.face_cells()).ravel()[::-1]
    x, y = sphere.to_longitude_latitude(sphere.random_directions(500, np.random.default_rng(0)))
    table = pd.DataFrame({"class_label": range(24), column: s2.to_token(cells)})
    found = partition_by_file(x, y, table, column="class_label", mean_direction=mean_direction)
    assert found.tiles_sphere
    assert found.names == tuple(str(23 - k) for k in range(24))
    assert found.counts.sum() == 500
    if mean_direction == "centre":
        np.testing.assert_array_equal(found.mean_directions, s2.centre(found.cell_ids))
        means = s2.centre(cells) + 0.1 * sphere.random_directions(24, np.random.default_rng(1))
        means[3] *= -1.0  # lies elsewhere, as a mean of longitudes at 180 degrees
        a, b = sphere.to_longitude_latitude(means)
        own = partition_by_file(x, y, table.assign(latitude_mean=b, longitude_mean=a))
        np.testing.assert_allclose(own.mean_directions, sphere.to_directions(a, b)[::-1], atol=1e-12)


@pytest.mark.parametrize("column", ["cell", "cell_id"])
def test_numbers_of_classes_are_no_tokens(column):
    assert read_classes(TOWNS.assign(**{column: ["0", "1", "2"]})).cell_ids.size == 0


@pytest.mark.parametrize("column", ["cell", "Token", "hex_id", "cell_id"])
@pytest.mark.parametrize("values", [["1", "3", "9"], ["8928308280fffff", "891ec902b57ffff", "89283080ddbffff"]])
def test_numbers_and_h3_cells_that_read_as_tokens_are_taken_by_where_the_classes_lie(column, values):
    table = TOWNS.assign(**{column: values})
    shapes = layer([box(x, y, x + 1, y + 1) for x, y in zip(TOWNS.lon, TOWNS.lat, strict=True)], **{column: values})
    for source in (table, shapes, shapes.set_geometry(shapes.representative_point())):
        with pytest.warns(UserWarning, match=rf"'{column}' is not taken for S2 cells: \d of 3 classes lie elsewhere"):
            found = read_classes(source, column=column)
        assert (found.cell_ids.size, found.names) == (0, values)
        assert (found.polygons is None) == (source is not shapes)
    # where a column says S2, or nothing else says where the classes are, they are cells
    assert read_classes(table.rename(columns={column: "S2_token"})).cell_ids.size == 3
    assert read_classes(table[[column]]).cell_ids.size == 3


def test_polygons_of_cells_and_tokens_are_cells_also_without_columns_of_places():
    cells = s2.children(s2.face_cells()).ravel()
    shapes = layer(outlines.cell_polygons(cells), cell=s2.to_token(cells))
    np.testing.assert_array_equal(read_classes(shapes).cell_ids, cells)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (TOWNS, {"column": "twon"}, r"has no column 'twon'; its columns are 'town', 'lon', 'lat'; did you mean 'town'"),
        (TOWNS[["town"]], {}, "neither polygons nor points nor columns longitude and latitude"),
        (TOWNS.rename(columns={"lon": "X", "lat": "Y"}), {}, "x and y: degrees .*, or a layer of points that"),
        (TOWNS.assign(lat=5.4e6), {}, r"metres\? degrees .*, or a layer of points that states its CRS"),
        (TOWNS.assign(lat=[1.0, 95.0, 2.0]), {}, r"row 2: latitude 95\.0 is not in -90\.\.90"),
        (TOWNS.assign(lat=[1.0, np.nan, 2.0]), {}, "row 2: only one of the two"),
        (TOWNS.assign(town="Essen"), {"column": "town"}, "'Essen' stands in two rows of 'town'"),
        (TOWNS[:0], {}, "has no row"),
        (pd.DataFrame({"cell": ["1", "14"]}), {}, "the S2 cells 1 and 14 in 'cell' overlap"),
        (layer([box(0, 0, 1, 1), shapely.Polygon()]), {}, "class of row 2 has no centroid"),
    ],
)
def test_what_cannot_be_used_is_told(source, options, message):
    with pytest.raises(BadInputError, match=message):
        partition_by_file([0.0], [0.0], source, **options)


def test_a_mean_direction_that_is_none_is_told():
    with pytest.raises(ValueError, match="mean_direction 'median'"):
        partition_by_file([0.0], [0.0], TOWNS, mean_direction="median")


GERMANY = pd.DataFrame({"lon": [7.0, 13.4, 9.9, 11.6], "lat": [51.5, 52.5, 53.6, 48.1]})
TOWNS_OF_GERMANY = GERMANY.loc[np.repeat(GERMANY.index, 5)] + np.tile(np.arange(5)[:, None] / 10.0, (4, 1))
SWAPPED = TOWNS_OF_GERMANY.rename(columns={"lon": "lat", "lat": "lon"})


def near_germany(n=40):
    generator = np.random.default_rng(0)
    return np.resize(GERMANY.lon, n) + generator.normal(size=n), np.resize(GERMANY.lat, n) + generator.normal(size=n)


@pytest.mark.parametrize("turned", ["classes", "images"])
def test_swapped_centres_are_noticed_by_their_distances_from_the_images(turned):
    """In range either way: only the images tell. The right file, one half of whose towns are right, and few, pass."""
    x, y = near_germany()
    told = (
        r"half of the 40 images are more than \d,\d{3} km from the nearest of 20 centres, .* \d\d+ km; if .* swapped, "
    )
    with pytest.warns(PartitionWarning, match=told):
        partition_by_file(
            *((x, y) if turned == "classes" else (y, x)), SWAPPED if turned == "classes" else TOWNS_OF_GERMANY
        )
    partition_by_file(x, y, TOWNS_OF_GERMANY)
    partition_by_file(x, y, pd.concat([TOWNS_OF_GERMANY, SWAPPED]))
    partition_by_file(x, y, SWAPPED[:19])
    partition_by_file(y[:19], x[:19], TOWNS_OF_GERMANY[:19])


def test_swapped_polygons_are_noticed_by_the_images_in_them():
    x, y = near_germany()
    squares = [box(*pair, pair[0] + 10.0, pair[1] + 10.0) for pair in ((3.0, 44.0), (3.0, 54.0), (13.0, 50.0))]
    turned = layer([shapely.transform(each, lambda corners: corners[:, ::-1]) for each in squares])
    with pytest.warns(PartitionWarning, match=r"\b0 of 40 images are in a class, with the two exchanged \d\d;"):
        partition_by_file(x, y, turned)
    partition_by_file(x, y, layer(squares))


def test_swapped_places_of_cells_and_polygons_and_those_out_of_range_are_refused():
    towns = TOWNS_OF_GERMANY.reset_index(drop=True)
    swapped = towns.rename(columns={"lon": "lat", "lat": "lon"})
    tokens = s2.to_token(s2.cell_ids(sphere.to_directions(towns.lon, towns.lat), 14))
    shapes = [box(x - 1, y - 1, x + 1, y + 1) for x, y in towns.to_numpy()]
    for shape, (right, wrong) in {
        "S2 cell": (table.assign(cell=tokens) for table in (towns, swapped)),
        "polygon": (layer(shapes, **table) for table in (towns, swapped)),
    }.items():
        with pytest.raises(BadInputError, match=rf"swapped: 0 of 20 classes lie in the {shape} .* 20 the other way"):
            read_classes(wrong)
        assert len(read_classes(right).places) == 20
        if shape == "S2 cell":  # of one row it may be chance, and it is not taken for a cell
            with pytest.warns(UserWarning, match="is not taken for S2 cells: 19 of 19 classes lie elsewhere"):
                read_classes(wrong[:19])
    far = swapped[:4].assign(lat=[107.0, 113.4, 109.9, 11.6])
    with pytest.raises(BadInputError, match=r"row 1: latitude 107\.0 .*probably the whole file has longitude and lat"):
        read_classes(far)


def test_more_classes_than_images_are_said():
    with pytest.warns(PartitionWarning, match="4 classes for 2 images: 2 classes hold none"):
        partition_by_file([7.0, 13.4], [51.5, 52.5], GERMANY)
