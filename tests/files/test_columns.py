import re

import geopandas
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf.errors import UsageError
from geo_mvmf.files import columns


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=90), max_size=12))
def test_any_names_become_lower_snake_and_unlike(names):
    tidy = columns.tidy_names(names)
    assert len(tidy) == len(names) == len(set(tidy))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name) for name in tidy)
    assert not {"fid", "geom", "geometry", "bbox"}.intersection(tidy)
    assert columns.tidy_names(tidy) == tidy


def test_names_of_the_row_contract_stay():
    names = ["image_id", "probability_25_km", "area_90_km2", "true_longitude", "in_altitude"]
    assert columns.tidy_names(names) == names


def test_long_names_that_begin_alike_stay_apart():
    tidy = columns.tidy_names(["a" * 80, "a" * 81, "a" * 82])
    assert len(set(tidy)) == 3
    assert max(map(len, tidy)) == columns.MAX_NAME_LENGTH


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1.5, np.nan, np.inf], "float32", [1.5, None, None]),
        ([1, 2], "uint8", [1, 2]),
        ([2**64 - 1, 0], "uint64", ["18446744073709551615", "0"]),
        ([1, None], "Int64", [1, None]),
        ([True, None], "boolean", [True, None]),
        ([True, None], object, [True, None]),
        ([1, None], object, [1, None]),
        ([1.5, None], object, [1.5, None]),
        ([2**70, None], object, [str(2**70), None]),
        ([2**60 + 1, None], object, [2**60 + 1, None]),
        (["a", None], object, ["a", None]),
        (["a", None], "category", ["a", None]),
        ([{"b": [1]}, (1, 2)], object, ['{"b": [1]}', "[1, 2]"]),
        ([np.array([1, 2]), None], object, ["[1, 2]", None]),
        (["a\0b", "\ud800"], object, ["a\N{REPLACEMENT CHARACTER}b", "\N{REPLACEMENT CHARACTER}"]),
        ([pd.Timestamp("2024-05-01"), "x"], object, ["2024-05-01T00:00:00", "x"]),
        ([pd.Timedelta("1s")], "timedelta64[ns]", ["P0DT0H0M1S"]),
        ([None, None], object, [None, None]),
        ([], object, []),
    ],
)
def test_every_kind_of_column_becomes_a_plain_one(values, dtype, expected):
    plain = columns.plain_values(pd.Series(values, dtype=dtype))
    got = [None if v is None or v is pd.NA or v != v else v for v in plain.tolist()]
    assert got == expected


def test_times_stay_times():
    times = pd.Series(pd.to_datetime(["2024-05-01T12:00:00Z", None]))
    assert columns.plain_values(times).dtype == times.dtype


def make_layer(geometry, crs="EPSG:4326", **values):
    return geopandas.GeoDataFrame(values, geometry=geometry, crs=crs)


def test_any_crs_becomes_longitude_and_latitude():
    for crs in ("OGC:CRS84", "EPSG:4326", "EPSG:3857", "EPSG:32632"):
        original = make_layer([shapely.Point(9.5, 47.25)], image_id=["a"]).to_crs(crs)
        tidy = columns.tidy_layer("points", original)
        assert tidy.crs == "EPSG:4326"
        assert tidy.geometry.x[0] == pytest.approx(9.5)
        assert tidy.geometry.y[0] == pytest.approx(47.25)


def test_rings_turn_counter_clockwise_and_holes_clockwise():
    square = shapely.Polygon([(0, 0), (0, 9), (9, 9), (9, 0)], holes=[[(1, 1), (2, 1), (2, 2), (1, 2)]])
    ring = columns.tidy_layer("regions", make_layer([shapely.MultiPolygon([square])])).geometry[0].geoms[0]
    assert ring.exterior.is_ccw
    assert not ring.interiors[0].is_ccw


def test_rows_without_geometry_and_odd_indices_stay_in_place():
    layer = make_layer([shapely.Point(1, 2), None, shapely.Point(3, 4)], image_id=["a", "b", "c"])
    layer.index = [7, 7, "x"]
    tidy = columns.tidy_layer("points", layer)
    assert tidy.index.tolist() == [0, 1, 2]
    assert tidy.geometry.isna().tolist() == [False, True, False]
    assert tidy["image_id"].tolist() == ["a", "b", "c"]


def test_other_geometry_columns_become_text():
    layer = make_layer([shapely.Point(1, 2)], seen_from=geopandas.GeoSeries([shapely.Point(5, 6)]))
    assert columns.tidy_layer("points", layer)["seen_from"].tolist() == ["POINT (5 6)"]


def test_what_is_no_layer_is_refused():
    with pytest.raises(UsageError, match="no CRS"):
        columns.tidy_layer("points", make_layer([shapely.Point(0, 0)], crs=None))
    with pytest.raises(UsageError, match="'points' is a DataFrame"):
        columns.tidy_layer("points", pd.DataFrame({"a": [1]}))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_formulas_are_escaped_in_cells_and_headings(text):
    safe = columns.without_formulas(pd.DataFrame({text: [text, "a"], "n": [-1.0, -2.0]}))
    assert safe.columns.tolist() == [f"'{text}", "n"]
    assert safe.iloc[:, 0].tolist() == [f"'{text}", "a"]
    assert safe["n"].tolist() == [-1.0, -2.0]


def test_the_largest_regions_come_first_and_images_keep_their_order():
    layer = make_layer([None] * 4, level=[0.5, 0.9, 0.5, 0.9], image_id=["a", "a", "b", "b"])
    ordered = columns.large_levels_first(layer)
    assert ordered["level"].tolist() == [0.9, 0.9, 0.5, 0.5]
    assert ordered["image_id"].tolist() == ["a", "b", "a", "b"]
