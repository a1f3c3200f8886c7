"""Image tables: every row keeps its place, and nothing changes without a word (QUALITY P12-P14)."""

import json
import math
import re
import sqlite3
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs import table_columns, table_rows, tables
from geo_mvmf.inputs.truth_tables import read_truth

PATHS = [f"{name}.jpg" for name in "abcdef"]
FIRST_COLUMNS = ["image_id", "path", "longitude", "latitude", "weight", "status", "message"]


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A folder of six photos."""
    folder = tmp_path_factory.mktemp("photos")
    for path in PATHS:
        Image.new("RGB", (4, 3)).save(folder / path)
    return folder


def csv(folder, text, name="t.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def read(house, text, **options):
    """Read a CSV that lies beside the photos' folder."""
    return tables.read_image_table(csv(house.parent, text), root=house, **options)


def frame(**columns):
    size = len(next(iter(columns.values())))
    return pd.DataFrame({"path": PATHS[:size], **columns})


def check_contract(table, rows):
    assert isinstance(table, gpd.GeoDataFrame)
    assert list(table)[:7] == FIRST_COLUMNS
    assert list(table)[-1] == "geometry"
    assert table.crs == pyproj.CRS("OGC:CRS84")
    assert isinstance(table.index, pd.RangeIndex)
    assert len(table) == rows
    texts = {table[name].dtype for name in ("image_id", "path", "status", "message")}
    assert texts == {pd.Series(["a"]).dtype}  # str; before pandas 3, object
    assert {str(table[name].dtype) for name in ("longitude", "latitude", "weight")} == {"float64"}
    assert not table[["image_id", "path", "weight", "status", "message"]].isna().any(axis=None)
    assert set(table["status"]) <= set(tables.STATUSES)
    assert ((table["status"] == "ok") | (table["message"] != "")).all()
    known = table["longitude"].notna()
    assert (known == table["latitude"].notna()).all()
    assert (known == table.geometry.notna()).all()
    assert np.abs(table["longitude"][known]).le(180).all()
    assert np.abs(table["latitude"][known]).le(90).all()
    assert table.geometry.x[known].tolist() == table["longitude"][known].tolist()
    assert table.geometry.y[known].tolist() == table["latitude"][known].tolist()
    assert len(tables.absolute_paths(table)) == rows
    assert {"root", "source", "permitted_roots"} <= set(table.attrs)


# --- sources --------------------------------------------------------------------------------------------------


def test_a_folder(house):
    table = tables.read_image_table(house)
    check_contract(table, 6)
    assert table["path"].tolist() == table["image_id"].tolist() == PATHS
    assert set(table["status"]) == {"ok"}
    assert table["longitude"].isna().all()
    assert table.attrs["root"] == str(house)
    assert tables.absolute_paths(table) == [house / path for path in PATHS]


def test_a_folder_without_images_is_an_empty_table(tmp_path):
    check_contract(tables.read_image_table(tmp_path), 0)


def test_texts_of_many_rows_take_little_memory(tmp_path):
    """Paths that are image_ids, too, were in memory twice, and long tables are made piece by piece."""
    arrow = pytest.importorskip("pyarrow")
    names = [f"{'x' * 90}{number:05d}.jpg" for number in range(20_000)]
    before = arrow.total_allocated_bytes()
    table = tables.read_image_table(pd.DataFrame({"path": names}), root=tmp_path)
    taken = arrow.total_allocated_bytes() - before  # paths, and messages of missing files
    messages = sum(map(len, table["message"])) + 8 * len(names)
    assert table["image_id"].tolist() == table["path"].tolist() == names
    assert table.index.equals(pd.RangeIndex(len(names)))
    assert taken - messages < 1.5 * len(names) * (len(names[0]) + 8)
    own = tables.read_image_table(pd.DataFrame({"path": names[:3], "image_id": list("abc")}), root=tmp_path)
    assert own["image_id"].tolist() == list("abc")


def test_a_list_of_images_is_no_table():
    with pytest.raises(BadInputError, match=r"a path or a DataFrame, not list; of single images make pandas.DataFrame"):
        tables.read_image_table(["a.png"])


def test_a_folder_inside_another_root(house):
    table = tables.read_image_table(house, root=house.parent)
    assert table["path"].tolist() == [f"{house.name}/{path}" for path in PATHS]
    elsewhere = tables.read_image_table(house, root="/usr")
    assert elsewhere["path"].tolist() == [f"{house.as_posix()}/{path}" for path in PATHS]
    assert set(elsewhere["status"]) == {"ok"}


def points(**columns):
    places = [shapely.Point(7.25, 51.5), None, shapely.Point(-0.1, -33.0)]
    return gpd.GeoDataFrame(frame(a=[1, 2, 3], **columns), geometry=places, crs="OGC:CRS84")


def stored(table, folder, suffix):
    path = folder / f"t{suffix}"
    if suffix == ".csv":
        pd.DataFrame({"path": table["path"], "a": table["a"], "Lon": table.geometry.x, "LAT": table.geometry.y}).to_csv(
            path, index=False
        )
    elif "parquet" in suffix:
        table.to_parquet(path)
    else:
        table.to_file(path, driver="GPKG" if suffix == ".gpkg" else "GeoJSON", engine="pyogrio")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".gpkg", ".parquet", ".geoparquet", ".geojson", ".json"])
def test_every_format_says_the_same(suffix, house, tmp_path):
    path = stored(points(), tmp_path, suffix)
    table = tables.read_image_table(path, root=house)
    check_contract(table, 3)
    assert table["longitude"].tolist() == pytest.approx([7.25, math.nan, -0.1], nan_ok=True)
    assert table["latitude"].tolist() == pytest.approx([51.5, math.nan, -33.0], nan_ok=True)
    assert table["a"].tolist() == [1, 2, 3]
    assert table["status"].tolist() == ["ok"] * 3
    assert table.attrs["source"] == str(path)
    assert table_rows.training_rows(table).tolist() == [True, False, True]


def test_frames_need_no_file(house):
    for source in (points(), frame(lon=[7.25, np.nan, -0.1], lat=[51.5, np.nan, -33.0], a=[1, 2, 3])):
        shuffled = source.set_index(pd.Index([9, 5, 5]))
        table = tables.read_image_table(shuffled, root=house)
        check_contract(table, 3)
        assert table["longitude"].tolist() == pytest.approx([7.25, math.nan, -0.1], nan_ok=True)


def test_an_image_table_read_again_is_the_same(house):
    source = points(kind=["x", "y", "z"], weight=[1.0, 2.0, 0.0], image_id=["1", "1", "3"])
    once = tables.read_image_table(source, root=house)
    pd.testing.assert_frame_equal(pd.DataFrame(tables.read_image_table(once)), pd.DataFrame(once))
    part = tables.read_image_table(once.iloc[[2, 0]])
    assert part["image_id"].tolist() == ["3", "1"]
    assert part["status"].tolist() == ["ok", "ok"]


@pytest.mark.parametrize(
    ("names", "crs"),
    [(("longitude", "latitude"), None), (("LON", "Lat"), None), (("lng", "lat"), None), (("x", "y"), "EPSG:4326")],
)
def test_names_of_coordinates(names, crs, house):
    table = tables.read_image_table(frame(**dict(zip(names, ([7.0], [51.0]), strict=True))), root=house, crs=crs)
    assert table.loc[0, ["longitude", "latitude"]].tolist() == [7.0, 51.0]


def test_the_first_pair_of_names_is_used_and_the_other_kept(house):
    source = frame(longitude=[7.0], latitude=[51.0], x=[1.0], y=[2.0])
    table = tables.read_image_table(source, root=house)
    assert table.loc[0, ["longitude", "latitude", "x", "y"]].tolist() == [7.0, 51.0, 1.0, 2.0]


def test_other_columns_pass_and_clashes_are_renamed(house):
    source = frame(name=["Essen", "Ulm"], status=["published", "draft"], message=["m", "n"], geometry=["P", "Q"])
    table = tables.read_image_table(source, root=house)
    assert table["name"].tolist() == ["Essen", "Ulm"]
    assert table["in_status"].tolist() == ["published", "draft"]
    assert table["in_message"].tolist() == ["m", "n"]
    assert table["in_geometry"].tolist() == ["P", "Q"]
    check_contract(table, 2)


def test_columns_that_contradict_the_geometry_are_kept(house):
    source = points(longitude=[1.0, 2.0, 3.0], latitude=[51.5, np.nan, -33.0])
    table = tables.read_image_table(source, root=house)
    assert table["longitude"].tolist() == pytest.approx([7.25, math.nan, -0.1], nan_ok=True)
    assert table["in_longitude"].tolist() == [1.0, 2.0, 3.0]
    assert "in_latitude" not in table


def test_weights(house):
    table = read(house, "path,weight\na.jpg,2.5\nb.jpg,\nc.jpg,-1\nd.jpg,many\ne.jpg,inf\nf.jpg,0\n")
    assert table["weight"].tolist() == [2.5, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert set(table["status"]) == {"ok"}  # a weight is no reason not to predict
    assert table["message"].str.contains("taken as 0").tolist() == [False, False, True, True, True, False]
    assert "-1.0" in table.loc[2, "message"]
    assert "'many'" in table.loc[3, "message"]


# --- identifiers ----------------------------------------------------------------------------------------------


def test_identifiers_stay_text(house):
    table = read(house, "path,image_id,n\na.jpg,007,1\nb.jpg,NA,NA\nc.jpg,1e5,3\nd.jpg,,4\n")
    assert table["image_id"].tolist() == ["007", "NA", "1e5", "d.jpg"]
    assert table["n"].tolist() == ["1", "NA", "3", "4"]


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ([5, 6], ["5", "6"]),
        ([5.0, np.nan], ["5", "b.jpg"]),
        ([5.5, 6.0], ["5.5", "6.0"]),
        ([None, "x"], ["a.jpg", "x"]),
    ],
)
def test_identifiers_of_other_types(given, written, house):
    assert tables.read_image_table(frame(image_id=given), root=house)["image_id"].tolist() == written


def test_every_later_occurrence_of_an_identifier_is_marked(house):
    table = read(house, "path,image_id\na.jpg,x\nb.jpg,y\nc.jpg,x\nd.jpg,x\ne.jpg,y\n")
    assert table["status"].tolist() == ["ok", "ok", "duplicate_id", "duplicate_id", "duplicate_id"]
    assert "row 3" in table.loc[2, "message"]
    assert "that of row 1" in table.loc[2, "message"]
    assert table_rows.describe_problems(table)["duplicate_id"] == 3


def test_the_same_photo_twice_is_a_duplicate_by_its_path(house):
    assert read(house, "path\na.jpg\n./a.jpg\n")["status"].tolist() == ["ok", "duplicate_id"]


# --- CSV ------------------------------------------------------------------------------------------------------

OK = "path,longitude,latitude\na.jpg,7,51\nb.jpg,8,52\n"


@pytest.mark.parametrize(
    "data",
    [
        OK.encode(),
        b"\xef\xbb\xbf" + OK.encode(),
        OK.replace("\n", "\r\n").encode(),
        OK.replace(",", ";").encode(),
        OK.replace(",", "\t").encode(),
        OK.replace("\n", "\n\n").encode(),
        OK.rstrip("\n").encode(),
        OK.replace("a.jpg", '"a.jpg"').encode(),
        b"\n" + OK.encode(),
        OK.replace("path", " Path ").encode(),
        OK.replace("7,", " 7 ,").encode(),
    ],
)
def test_dialects_that_are_understood(data, house):
    table = tables.read_image_table(csv(house.parent, data), root=house)
    check_contract(table, 2)
    assert table["status"].tolist() == ["ok", "ok"]
    assert table["longitude"].tolist() == [7.0, 8.0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (OK.encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("path,name\na.jpg,Zürich\n".encode("latin-1"), r"line 2 is not UTF-8 \(byte b'\\xfc'\)"),
        (
            b"longitude,latitude\n7,51\n",
            "no column 'path'; its columns are 'longitude', 'latitude'; rename the one that names the images to",
        ),
        (b"path,Path\na,b\n", "'path' and 'Path' mean the same"),
        (b"path,lon,LON\na,1,2\n", "mean the same"),
        (b"path,a,a\nx,1,2\n", "two columns 'a'"),
        (b"path,longitude\na.jpg,7,51\nb.jpg,8,52\n", "more fields than the header"),
        (b"path,longitude\na.jpg,7\nb.jpg,8,52\n", "line 3"),
        (b'path,longitude\n"a.jpg,7\n', "cannot be read as a CSV"),
        (b"path,x,y\na.jpg,7,51\n", r"columns 'x' and 'y': the CRS is unknown; set it to EPSG:n"),
        (b"<VRTDataset/>", "holds xml content"),
        (b"SQLite format 3\0", "holds sqlite content"),
        (b'{"type": "FeatureCollection"}', "holds json content"),
    ],
)
def test_tables_that_cannot_be_read_as_a_whole_say_why(data, message, house):
    with pytest.raises(BadInputError, match=message) as caught:
        tables.read_image_table(csv(house.parent, data), root=house)
    assert "t.csv" in str(caught.value)


def test_no_rows(house):
    table = read(house, "path,longitude,latitude\n")
    check_contract(table, 0)
    assert table_rows.describe_problems(table)["rows"] == 0
    assert table_rows.training_rows(table).tolist() == []


@pytest.mark.hard
def test_ten_thousand_columns(house):
    names = ",".join(f"c{n}" for n in range(10_000))
    table = read(house, f"path,{names}\na.jpg,{','.join('1' * 10_000)}\n")
    assert table.shape == (1, 10_008)


def test_nul_bytes_and_formulas_stay_in_their_row(house):
    table = read(house, 'path,note\na.jpg,=1+1\nb\0.jpg,x\nc.jpg,"@SUM(A1)"\n')
    assert table["status"].tolist() == ["ok", "refused", "ok"]
    assert table["note"].tolist() == ["=1+1", "x", "@SUM(A1)"]  # text; outputs escape it


def test_short_rows_are_filled(house):
    table = read(house, "path,longitude,latitude\na.jpg\nb.jpg,7,51\n")
    assert table["status"].tolist() == ["ok", "ok"]
    assert table["longitude"].isna().tolist() == [True, False]


# --- coordinates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("longitude", "latitude", "message"),
    [
        ("abc", "51", "'abc' is not a number"),
        ("7,5", "51,25", r"'7,5' has a decimal comma; write 7\.5; '51,25' has a decimal comma; write 51\.25"),
        ("7", "", "only one of the two"),
        ("", "51", "only one of the two"),
        ("inf", "51", "longitude inf"),
        ("7", "-inf", "latitude -inf"),
        ("7", "95", r"latitude 95\.0 is not in -90\.\.90"),
        ("51", "107", r"latitude 107.*swapped\?"),
        ("200", "51", r"longitude 200\.0 is not in -180\.\.180; subtract 360"),
        ("-181", "0", r"longitude -181\.0"),
        ("180.0000001", "0", "longitude 180.0000001"),
        ("407000", "5700000", r"latitude 5700000.*; metres\? degrees .*, or columns x and y: geo-mvmf table FILE"),
        ("51°30'N", "7", "is not a number"),
        ("1e400", "7", "longitude inf|not a number"),  # pandas 3, pandas 2
    ],
)
def test_bad_coordinates_are_told_with_their_value(longitude, latitude, message, house):
    table = read(house, f'path,longitude,latitude\na.jpg,"{longitude}","{latitude}"\nb.jpg,7,51\n')
    check_contract(table, 2)
    assert table["status"].tolist() == ["bad_coordinates", "ok"]
    assert math.isnan(table.loc[0, "longitude"])
    assert pd.Series([table.loc[0, "message"]]).str.contains(message).all(), table.loc[0, "message"]
    assert "row 1" in table.loc[0, "message"]


def test_places_at_the_edge_are_kept_as_they_are(house):
    source = frame(lon=[180.0, -180.0, 0.0, 0.0, -0.0], lat=[0.0, 0.0, 90.0, -90.0, 0.0])
    table = tables.read_image_table(source, root=house)
    assert table["longitude"].tolist() == [180.0, -180.0, 0.0, 0.0, 0.0]
    assert set(table["status"]) == {"ok"}
    assert table_rows.describe_problems(table)["near_zero_zero"] == 1


@pytest.mark.parametrize("nothing", ["", "NaN", "nan", "NULL", "None", "n/a", "NA"])
def test_words_for_nothing(nothing, house):
    table = read(house, f"path,longitude,latitude\na.jpg,{nothing},{nothing}\n")
    assert table["status"].tolist() == ["ok"]
    assert math.isnan(table.loc[0, "longitude"])


def test_problems_are_counted(house):
    text = "path,longitude,latitude\na.jpg,0,0\nb.jpg,51,107\nc.jpg,0,0\nd.jpg,,\ne.jpg,7,51\nno.jpg,7,51\n"
    assert table_rows.describe_problems(read(house, text)) == {
        "rows": 6, "missing": 1, "bad_coordinates": 1, "without_coordinates": 2, "near_zero_zero": 2,
        "suspected_swapped": 1, "without_weight": 0, "trainable": 3,
    }  # fmt: skip


@pytest.mark.parametrize(("last", "is_all"), [("7,51", True), ("107,51", False), ("7,x", False)])
def test_a_table_that_is_swapped_is_told_from_slips(last, is_all, house):
    text = f"path,longitude,latitude\na.jpg,51,107\nb.jpg,48,116\nc.jpg,-33,151\nd.jpg,40,8\ne.jpg,{last}\n"
    table = read(house, text)
    assert bool(table.attrs["swapped"]) == is_all
    if is_all:
        with pytest.raises(BadInputError, match=r"t.csv: 3 of 5 rows .* is row 1: latitude 107.* exchange the two col"):
            table_rows.require_not_swapped(table)
    else:
        table_rows.require_not_swapped(table)


@pytest.mark.parametrize(("slips", "is_sure"), [(19, False), (20, True)])
def test_a_table_of_which_few_places_are_out_of_range_is_not_refused(slips, is_sure):
    """Three wrong latitudes of 200 places of Europe kept all of them out of training."""
    latitude = np.r_[np.full(slips, 152.0), np.full(100 - slips, 50.0), np.full(300, np.nan)]
    rows = {
        "path": [f"{row}.jpg" for row in range(400)],
        "lon": np.where(np.isnan(latitude), np.nan, 7.0),
        "lat": latitude,
    }
    table = tables.read_image_table(pd.DataFrame(rows), root="/")
    told = f"{slips} of 400 rows have no place .* exchange the (two )?columns"
    with pytest.warns(UserWarning, match=told):
        table_rows.warn_if_swapped(table)
    assert re.search(told, table_rows.left_out(table, table_rows.training_rows(table)).splitlines()[1])
    if is_sure:
        for refuse in (lambda: table_rows.require_not_swapped(table), lambda: read_truth(pd.DataFrame(rows))):
            with pytest.raises(BadInputError, match=told):
                refuse()
    else:
        table_rows.require_not_swapped(table)
        with pytest.warns(
            UserWarning, match=r"19 of 400 rows .* are not compared; .*are longitude and latitude swapped"
        ):
            read_truth(pd.DataFrame(rows))


def test_rows_that_are_not_used_are_counted_by_their_reasons(house):
    text = "path,longitude,latitude,weight\na.jpg,7,51,1\nb.jpg,,,1\nc.jpg,7,95,1\nd.jpg,,,1\ne.jpg,7,51,0\n"
    table = read(house, text)
    told = table_rows.left_out(table, table_rows.training_rows(table))
    assert told == (
        f"{house.parent / 't.csv'}: 1 of 5 rows are used: 2 without_coordinates, 1 bad_coordinates, 1 without_weight; "
        "the first that is not: row 2: 'b.jpg' is without coordinates"
    )
    assert table_rows.left_out(table, np.ones(5, bool)) == ""


CELLS = st.one_of(
    st.floats(-200, 200).map(repr),
    st.floats().map(repr),
    st.sampled_from(
        ["", "NA", "0", "-0.0", "180", "-180", "90", "-90", "7,5", "1_000", "0x10", "1e1", " 7 ", "１２", "True", "٣"]
    ),
    st.text(alphabet="0123456789.,-+eE°'NSEW ", max_size=8),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
@example([("1_000", "7"), ("True", "7"), ("0x10", "7")])
def test_no_coordinate_changes_silently(house, cells):
    """P12: what is kept is the number that was written; what is not kept is told."""
    source = pd.DataFrame({"path": PATHS[: len(cells)], "lon": [x for x, _ in cells], "lat": [y for _, y in cells]})
    table = tables.read_image_table(source, root=house)
    check_contract(table, len(cells))
    for row, pair in enumerate(cells):
        kept = (table.loc[row, "longitude"], table.loc[row, "latitude"])
        if not math.isnan(kept[0]):
            assert kept == tuple(float(cell) for cell in pair)
        elif table.loc[row, "status"] == "ok":
            assert all(cell.strip().lower() in ("", "na", "nan") for cell in pair)


@pytest.mark.hard
@pytest.mark.timeout(3000)
@settings(max_examples=10_000, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_no_coordinate_changes_silently_in_ten_thousand_tables(house, cells):
    test_no_coordinate_changes_silently.hypothesis.inner_test(house, cells)


# --- CRS ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsg", [3857, 25832, 2154, 3035, 4258])
@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_any_stated_crs_is_transformed(epsg, suffix, house, tmp_path):
    table = tables.read_image_table(stored(points().to_crs(epsg), tmp_path, suffix), root=house)
    assert table["longitude"].tolist() == pytest.approx([7.25, math.nan, -0.1], abs=1e-7, nan_ok=True)
    assert table["latitude"].tolist() == pytest.approx([51.5, math.nan, -33.0], abs=1e-7, nan_ok=True)


def test_columns_in_another_crs(house):
    x, y = pyproj.Transformer.from_crs("OGC:CRS84", 25832, always_xy=True).transform(7.25, 51.5)
    table = tables.read_image_table(frame(X=[x, 1e30], Y=[y, 1e30]), root=house, crs="EPSG:25832")
    assert table.loc[0, ["longitude", "latitude"]].tolist() == pytest.approx([7.25, 51.5])
    assert table["status"].tolist() == ["ok", "bad_coordinates"]
    assert "1e+30" in table.loc[1, "message"]
    assert table["X"].tolist() == [x, 1e30]  # kept


def test_degrees_cannot_be_metres(house):
    with pytest.raises(UsageError, match="rename the columns to x and y"):
        tables.read_image_table(frame(lon=[7.0], lat=[51.0]), root=house, crs="EPSG:25832")


def test_unknown_crs_is_refused_naming_the_option(house, tmp_path):
    unknown = points().set_crs(None, allow_override=True)
    unknown.to_parquet(tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match="crs"):
        unknown.to_file(tmp_path / "t.gpkg", engine="pyogrio")
    for source in (unknown, tmp_path / "t.parquet", tmp_path / "t.gpkg", frame(x=[1.0], y=[2.0])):
        with pytest.raises(BadInputError, match=r"set it to EPSG:n or OGC:CRS84 \(crs=\)"):
            tables.read_image_table(source, root=house)
        assert tables.read_image_table(source, root=house, crs="OGC:CRS84")["longitude"].notna().any()


def test_a_stated_crs_is_not_overruled(house):
    with pytest.raises(UsageError, match="states the CRS"):
        tables.read_image_table(points(), root=house, crs="EPSG:3857")


@pytest.mark.parametrize("crs", ["http://127.0.0.1/x", "+proj=longlat", "PROJCS[", "4326", "/etc/passwd"])
def test_crs_texts_of_other_kinds(crs, house):
    with pytest.raises(UsageError, match="EPSG:n"):
        tables.read_image_table(frame(x=[1.0], y=[2.0]), root=house, crs=crs)


def test_geometries_that_are_no_points(house):
    shapes = [shapely.Point(7, 51), shapely.box(0, 0, 1, 1), shapely.MultiPoint([(8, 52)])]
    shapes += [shapely.MultiPoint([(1, 2), (3, 4)]), shapely.Point(), shapely.Point(500, 2)]
    table = tables.read_image_table(gpd.GeoDataFrame(frame(n=range(6)), geometry=shapes, crs="EPSG:4326"), root=house)
    check_contract(table, 6)
    bad = "bad_coordinates"
    assert table["status"].tolist() == ["ok", bad, "ok", bad, "ok", bad]
    assert "Polygon" in table.loc[1, "message"]
    assert "500" in table.loc[5, "message"]


def test_a_broken_feature_costs_one_row(house, tmp_path):
    shapes = [{"type": "Point", "coordinates": [7, 51]}, {"type": "Point", "coordinates": ["a", "b"]}, {"type": "Blob"},
              "x", None, {"type": "Point", "coordinates": [float("nan"), 1]}]  # fmt: skip
    features = [
        {"type": "Feature", "properties": {"path": p}, "geometry": g} for p, g in zip(PATHS, shapes, strict=True)
    ]
    (tmp_path / "t.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    table = tables.read_image_table(tmp_path / "t.geojson", root=house)
    check_contract(table, 6)
    bad = "bad_coordinates"
    assert table["status"].tolist() == ["ok", bad, bad, bad, "ok", bad]


def test_nested_properties_become_text(house, tmp_path):
    feature = {"type": "Feature", "properties": {"path": "a.jpg", "tags": ["x", {"y": 1}]}, "geometry": None}
    (tmp_path / "t.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    assert tables.read_image_table(tmp_path / "t.geojson", root=house)["tags"].tolist() == ['["x", {"y": 1}]']


# --- EXIF and claims --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """One photo with a position, one without, one broken."""
    folder = tmp_path_factory.mktemp("album")
    exif = Image.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 30.0, 0.0), 3: "W", 4: (7.0, 15.0, 0.0)})
    Image.new("RGB", (4, 3)).save(folder / "a.jpg", exif=exif)
    Image.new("RGB", (4, 3)).save(folder / "b.jpg")
    (folder / "c.jpg").write_text("no photo")
    return folder


def test_positions_from_exif_for_training(album):
    table = tables.read_image_table(album, exif=True)
    check_contract(table, 3)
    assert table["longitude"].tolist() == pytest.approx([-7.25, math.nan, math.nan], nan_ok=True)
    assert table["status"].tolist() == ["ok", "ok", "unsupported"]
    assert table_rows.training_rows(table).tolist() == [True, False, False]


def test_exif_does_not_overrule_columns(album):
    source = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "lon": [1.0, np.nan], "lat": [2.0, np.nan]})
    assert tables.read_image_table(source, root=album, exif=True)["longitude"].tolist()[0] == 1.0


def test_positions_are_not_read_from_exif_unless_asked_for(album):
    assert tables.read_image_table(album)["longitude"].isna().all()


def test_claims_from_columns_leave_the_truth_empty(house):
    source = frame(lon=[7.0, 500.0, np.nan], lat=[51.0, 0.0, np.nan])
    table = tables.read_image_table(source, root=house, claimed_from="columns")
    check_contract(table, 3)
    assert table["longitude"].isna().all()
    assert table["claimed_longitude"].tolist() == pytest.approx([7.0, math.nan, math.nan], nan_ok=True)
    assert table["claimed_latitude"].tolist() == pytest.approx([51.0, math.nan, math.nan], nan_ok=True)
    assert set(table["status"]) == {"ok"}  # a wrong claim is no reason not to predict
    assert "claim is ignored: longitude 500.0" in table.loc[1, "message"]


@pytest.mark.parametrize("kind", ["names of results", "one of two", "folder"])
def test_claims_from_columns_that_are_not_there_are_refused(house, kind):
    """Every claim was NaN, without a word."""
    named = frame(claimed_longitude=[7.0] * 3, claimed_latitude=[51.0] * 3)
    source = {"names of results": named, "one of two": frame(longitude=[7.0] * 3), "folder": house}[kind]
    with pytest.raises(BadInputError, match=r"claims are read from the columns longitude and latitude, .* has neither"):
        tables.read_image_table(source, root=house, claimed_from="columns")


def test_claims_of_which_no_row_has_one_are_no_error(house):
    source = frame(lon=[None] * 3, lat=[None] * 3)
    assert tables.read_image_table(source, root=house, claimed_from="columns")["claimed_longitude"].isna().all()


def test_claims_from_exif(album):
    table = tables.read_image_table(album, claimed_from="exif")
    assert table["longitude"].isna().all()
    assert table["claimed_longitude"].tolist() == pytest.approx([-7.25, math.nan, math.nan], nan_ok=True)


@pytest.mark.parametrize(
    "options",
    [
        {"claimed_from": "name"},
        {"claimed_from": "exif", "exif": True},
        {"root": "/no/folder"},
        {"layer": "a"},
        {"crs": "EPSG:4326"},
        {"permitted_roots": ["/no/folder"]},
    ],
)
def test_options_that_contradict(options, house):
    with pytest.raises(UsageError):
        tables.read_image_table(house, **options)


# --- paths ----------------------------------------------------------------------------------------------------


def test_hostile_paths_cost_their_row_only(house, tmp_path):
    hostile = [
        "a.jpg",
        "../../etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1/a.jpg",
        "/vsicurl/http://x/a.jpg",
        "no.jpg",
        "",
    ]
    table = tables.read_image_table(pd.DataFrame({"path": hostile}), root=house)
    check_contract(table, 7)
    assert table["status"].tolist() == ["ok", *["refused"] * 4, "missing", "missing"]
    for path in tables.absolute_paths(table):
        assert path.is_relative_to(house) or str(path) == "/dev/null"


def test_permitted_roots(house, album):
    source = pd.DataFrame({"path": [str(album / "a.jpg"), "a.jpg"]})
    assert tables.read_image_table(source, root=house)["status"].tolist() == ["refused", "ok"]
    table = tables.read_image_table(source, root=house, permitted_roots=(folder for folder in [album]))
    assert table["status"].tolist() == ["ok", "ok"]
    assert table["path"].tolist() == [(album / "a.jpg").as_posix(), "a.jpg"]
    assert tables.absolute_paths(table) == [album / "a.jpg", house / "a.jpg"]


def test_the_root_of_a_table_is_its_folder(house):
    path = csv(house, OK)
    table = tables.read_image_table(path)
    path.unlink()
    assert table.attrs["root"] == str(house)
    assert table["status"].tolist() == ["ok", "ok"]


# --- what is no table -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [5, None, [], b"a.csv", "", "no.csv", "no.gpkg", "http://127.0.0.1/t.csv",
                                    "https://x/t.parquet", "/vsicurl/http://x/t.geojson", "t.shp", "\0"])  # fmt: skip
def test_what_is_no_table(source):
    with pytest.raises(BadInputError):
        tables.read_image_table(source)


def test_a_layer_is_chosen(house, tmp_path):
    for name in ("one", "two"):
        points().to_file(tmp_path / "t.gpkg", layer=name, engine="pyogrio")
    with pytest.raises(BadInputError, match="layer="):
        tables.read_image_table(tmp_path / "t.gpkg", root=house)
    assert len(tables.read_image_table(tmp_path / "t.gpkg", root=house, layer="two")) == 3


def test_parquet_oddities(house, tmp_path):
    path = tmp_path / "t.parquet"
    frame(lon=[7.0], lat=[51.0], nested=[[1, 2]], blob=[b"x"]).to_parquet(path)  # no GeoParquet, but a table
    table = tables.read_image_table(path, root=house)
    assert table["longitude"].tolist() == [7.0]
    assert not {"nested", "blob"} & set(table)
    data = path.read_bytes()
    for length in range(4, len(data) - 1, 211):
        path.write_bytes(data[:length])
        with pytest.raises(BadInputError, match=r"t\.parquet"):
            tables.read_image_table(path, root=house)


def test_attribute_tables_of_a_geopackage(house, tmp_path):
    pyogrio.write_dataframe(frame(lon=[7.0], lat=[51.0]), tmp_path / "t.gpkg", layer="t")
    assert tables.read_image_table(tmp_path / "t.gpkg", root=house)["longitude"].tolist() == [7.0]
    with sqlite3.connect(tmp_path / "t.gpkg") as database:
        assert database.execute("SELECT count(*) FROM t").fetchone() == (1,)
    database.close()


@pytest.mark.hard
@pytest.mark.timeout(600)
def test_a_million_rows(house, tmp_path):
    size = 1_000_000
    random = np.random.default_rng(0)
    source = pd.DataFrame({"path": np.array(PATHS)[np.arange(size) % 6], "image_id": np.arange(size)})
    source["longitude"], source["latitude"] = random.uniform(-180, 180, size), random.uniform(-90, 90, size)
    source.to_csv(tmp_path / "t.csv", index=False)
    table = tables.read_image_table(tmp_path / "t.csv", root=house)
    assert set(table["status"]) == {"ok"}
    assert np.allclose(table["longitude"], source["longitude"], rtol=0, atol=1e-12)


def test_the_page_on_image_tables_knows_every_status_and_column():
    page = (Path(__file__).parents[2] / "docs" / "image_tables.md").read_text(encoding="utf-8")
    names = {name for pair in table_columns.COORDINATE_ALIASES for name in pair} | {"path", "image_id", "weight"}
    given_here = [status for status in tables.STATUSES if status not in ("failed", "cancelled")]  # those of predictions
    assert [name for name in (*names, *given_here) if f"`{name}`" not in page] == []
