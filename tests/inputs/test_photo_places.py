"""Tables of places, right or wrong: what is wrong is shown with its row, and what to do."""

from pathlib import Path

import pytest

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.photo_places import read_photo_places


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,x,y\na,1,2\n", "neither columns longitude and latitude (or lon/lat"),
        ("lon,lat\n", "has no rows of data"),
        ("path,lon,lat\n", "has no rows of data"),
        ("lon,lat\n2°E,48°51'N\n,\n", "row 1: lon '2°E' is not a number and lat \"48°51'N\" is not a number"),
        ("path,lon,lat\na.jpg,450000,5400000\n", "latitude 5400000.0 is not in -90..90; metres? degrees of EPSG:4326"),
    ],
)
def test_a_table_without_places_is_told_what_it_lacks(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError) as caught:
        read_photo_places(tmp_path / "a.csv")
    assert message in str(caught.value)


def test_images_without_positions_are_told_where_to_take_them_from():
    folder = Path(__file__).parents[2] / "sample_data" / "chips"
    with pytest.raises(BadInputError, match=r"49 images, none with a position; add --exif, or give a table"):
        read_photo_places(folder)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("2.0;48,8566", "row 2: lat '48,8566' has a decimal comma; write 48.8566"),
        (";n/a", "row 2: lon is empty and lat is 'n/a'"),
        ("2.0;inf", "row 2: lat is 'inf'"),
        ("2.0;48.8", ""),
    ],
)
def test_the_first_row_without_a_position_is_shown(tmp_path, cells, message):
    (tmp_path / "a.csv").write_text(f"lon;lat\n1.0;2.0\n{cells}\n", encoding="utf-8")
    found = read_photo_places(tmp_path / "a.csv").first_problem
    assert found.endswith(message)
    assert bool(found) == bool(message)


def test_an_image_table_whose_positions_are_exchanged_is_suspected(tmp_path):
    (tmp_path / "a.jpg").touch()
    rows = [f"a.jpg,{number},{50.0 + number % 40},{-170.0 + 4 * number}" for number in range(80)]
    (tmp_path / "a.csv").write_text("\n".join(["path,image_id,lon,lat", *rows]), encoding="utf-8")
    assert "probably the whole file has" in read_photo_places(tmp_path / "a.csv").first_problem
    (tmp_path / "b.csv").write_text("\n".join(["path,image_id,lon,lat", "a.jpg,b,120.0,5.0", *rows]), encoding="utf-8")
    assert "whole file" not in read_photo_places(tmp_path / "b.csv").first_problem
