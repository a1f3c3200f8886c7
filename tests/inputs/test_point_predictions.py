"""Points of any system: what is missing is counted, what is wrong is refused with its row."""

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.point_predictions import read_point_predictions

HEADER = "Longitude,latitude,true_longitude,true_latitude,image_id,continent\n"


def write(tmp_path, *rows, header=HEADER):
    path = tmp_path / "points.csv"
    path.write_text(header + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_a_table_is_read_as_it_is(tmp_path):
    path = write(tmp_path, "7.5,50,8,51,007,NA", ",,8,51,b,Europe", "7,50,,,c,")
    found = read_point_predictions(path)
    assert found["image_id"].tolist() == ["007", "b", "c"]
    assert found["longitude"].isna().tolist() == [False, True, False]
    assert found["true_latitude"].isna().tolist() == [False, False, True]
    assert found["continent"].iloc[0] == "NA"
    layer = geopandas.GeoDataFrame(found, geometry=geopandas.points_from_xy(found["longitude"], found["latitude"]))
    pd.testing.assert_frame_equal(read_point_predictions(layer), found)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7.5,95,8,51,a,x", r"row 2: latitude 95\.0 is not in -90\.\.90; are longitude and latitude swapped\?"),
        ("7.5,50,8,-91,a,x", r"row 2: latitude -91\.0 .* without a truth is not compared"),
        ("7.5,,8,51,a,x", r"row 2: only one of the two coordinates"),
        ("7.5,north,8,51,a,x", r"row 2: 'north' is not a number; mend longitude, latitude"),
        ('"7,5",50,8,51,a,x', r"decimal comma; write 7\.5"),
        ("inf,50,8,51,a,x", r"row 2: "),
    ],
)
def test_what_is_no_place_is_refused_with_its_row(tmp_path, row, message):
    with pytest.raises(BadInputError, match=message):
        read_point_predictions(write(tmp_path, "7,50,8,51,z,x", row))


def test_columns_are_named_that_are_missing_or_there_twice(tmp_path):
    path = write(tmp_path, "7,50", header="lon,lat\n")
    with pytest.raises(BadInputError, match="has no column 'true_longitude'; its columns are 'lon', 'lat'"):
        read_point_predictions(path)
    path = write(tmp_path, "7,50", header="east,lat\n")
    with pytest.raises(BadInputError, match="has no column 'longitude'; its columns are 'east', 'lat'"):
        read_point_predictions(path)
    frame = pd.DataFrame({"longitude": [1.0], "Longitude": [2.0], "latitude": [3.0]})
    with pytest.raises(BadInputError, match="mean the same"):
        read_point_predictions(frame, needs_truth=False)
    with pytest.raises(BadInputError, match="no column 'true_longitude'"):
        read_point_predictions(frame[["longitude", "latitude"]])
    assert np.isfinite(read_point_predictions(frame[["longitude", "latitude"]], needs_truth=False)["latitude"]).all()


def test_a_disguised_table_is_refused(tmp_path):
    path = tmp_path / "points.csv"
    path.write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.")
    with pytest.raises(BadInputError):
        read_point_predictions(path)


def test_columns_have_the_names_that_image_tables_know(tmp_path):
    path = write(tmp_path, "a.jpg,7,50,8,51", header="path,Lng,lat,true_lon,true_lat\n")
    found = read_point_predictions(path)
    assert found[["longitude", "latitude", "true_longitude", "true_latitude"]].to_numpy().tolist() == [[7, 50, 8, 51]]
    assert found["image_id"].tolist() == ["a.jpg"]  # else row numbers would meet no image of a truth
    plain = write(tmp_path, "7,50,1,2", header="longitude,latitude,lon,lat\n")  # the plain names go first
    assert read_point_predictions(plain, needs_truth=False)["longitude"].tolist() == [7.0]


def test_a_folder_is_told_what_to_give(tmp_path):
    with pytest.raises(BadInputError, match="is a folder; give a predictions file"):
        read_point_predictions(tmp_path)
    (tmp_path / "predictions.nc").touch()
    with pytest.raises(BadInputError, match=r"give predictions\.nc in it"):
        read_point_predictions(tmp_path)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", None])
def test_points_of_a_layer_stand_for_columns_that_are_not_there(tmp_path, suffix):
    truth = {"image_id": ["a", "b"], "true_longitude": [8.0, 8.0], "true_latitude": [51.0, 51.0]}
    points = geopandas.GeoSeries([shapely.Point(7, 50), None], crs="EPSG:4326").to_crs("EPSG:32632")
    layer, source = geopandas.GeoDataFrame(truth, geometry=points), tmp_path / f"points{suffix}"
    if suffix == ".gpkg":
        layer.to_file(source, engine="pyogrio")
    elif suffix == ".parquet":
        layer.to_parquet(source)
    else:
        source = layer
    with pytest.warns(UserWarning, match="the places of its points are taken for the predictions"):
        found = read_point_predictions(source)
    assert found["longitude"].tolist() == pytest.approx([7.0, np.nan], nan_ok=True)
    assert found["latitude"].tolist() == pytest.approx([50.0, np.nan], nan_ok=True)
    given = read_point_predictions(layer.assign(lon=[1.0, 2.0], lat=3.0))  # columns go first
    assert given["longitude"].tolist() == [1.0, 2.0]


def test_layers_without_a_point_or_a_crs_are_refused():
    truth = {"true_longitude": [8.0, 8.0], "true_latitude": [51.0, 51.0]}
    shapes = [shapely.Point(7, 50), shapely.box(0, 0, 1, 1)]
    with pytest.raises(BadInputError, match="row 2: the geometry is a Polygon, not a point; mend its geometry, or"):
        read_point_predictions(geopandas.GeoDataFrame(truth, geometry=shapes, crs="EPSG:4326"))
    with pytest.raises(BadInputError, match="has no column 'longitude'"):
        read_point_predictions(geopandas.GeoDataFrame(truth, geometry=shapes[1:] * 2, crs="EPSG:4326"))
    with pytest.raises(BadInputError, match="the CRS is unknown"):
        read_point_predictions(geopandas.GeoDataFrame(truth, geometry=shapes[:1] * 2))
