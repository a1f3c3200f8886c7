"""What is wrong with training places: each kind is counted, and only it."""

import warnings

import numpy as np
import pytest

from geo_mvmf import sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.model.cleaning import Cleaning, PartitionWarning, clean_places

TOWN = 2.3, 48.8


def crowd(n=500):
    generator = np.random.default_rng(0)
    return TOWN[0] + generator.normal(0, 0.1, n), TOWN[1] + generator.normal(0, 0.1, n)


def counted(extra):
    """Clean a town of 500 photos and some rows more."""
    x, y = crowd()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartitionWarning)
        return clean_places(np.append(x, [row[0] for row in extra]), np.append(y, [row[1] for row in extra]))[1]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([], {"used": 500}),
        ([(np.nan, 1.0), (1.0, np.inf)], {"rows": 502, "not_finite": 2, "used": 500}),
        ([(0.0, 91.0), (600.0, 0.0)], {"rows": 502, "out_of_range": 2, "used": 500, "suspected_swapped": 1}),
        ([(0.0, 0.0), (0.0, 0.0)], {"rows": 502, "zero_zero": 2, "duplicates": 1, "used": 502}),
        ([(48.8, 2.3)], {"rows": 501, "suspected_swapped": 1, "used": 501}),  # the town, swapped: off Somalia
        ([(10.0, 60.0)], {"rows": 501, "used": 501}),  # as lonely, but nothing is where it would be swapped
        ([(2.3 + 360.0, 48.8)], {"rows": 501, "used": 501}),
    ],
)
def test_each_kind_is_counted(extra, expected):
    assert counted(extra) == Cleaning(**({"rows": 500} | expected))


def test_a_swapped_tenth_is_found_and_the_other_rows_are_not():
    x, y = crowd(5000)
    x[:40], y[:40] = y[:40].copy(), x[:40].copy()
    assert clean_places(x, y)[1].suspected_swapped == 40


def test_used_rows_keep_their_order_and_values():
    places, cleaning = clean_places([1.0, np.nan, 3.0], [4.0, 5.0, 6.0])
    np.testing.assert_array_equal(places, [[1.0, 4.0], [3.0, 6.0]])
    assert cleaning.dropped == 1
    assert "3 rows: 2 used, 1 without a finite position" in str(cleaning)


def test_nothing_usable_is_an_error_that_shows_a_row():
    with pytest.raises(
        BadInputError, match=r"none of the 2 .*row 2 \(data rows count from 1\) is latitude 120\.0, not"
    ):
        clean_places([np.nan, 30.0], [1.0, 120.0])
    with pytest.raises(BadInputError, match=r"none of the 2 .* are finite numbers$"):
        clean_places([np.nan, 30.0], [1.0, np.inf])


def test_metres_are_called_metres():
    x, y = crowd(50)
    with pytest.raises(BadInputError, match=r"none of the 50 .* is on the Earth; row 1 .*metres of a projection"):
        clean_places(x * 2e5, y * 1e5)
    with pytest.raises(BadInputError) as caught:  # degrees that are merely wrong
        clean_places(x, y + 90.0)
    assert "metres" not in str(caught.value)


def remark(x, y):
    with pytest.warns(PartitionWarning) as caught:
        clean_places(x, y)
    return str(caught[0].message)


def test_a_swapped_file_is_told_from_swapped_rows():
    x, y = sphere.to_longitude_latitude(sphere.random_directions(500, np.random.default_rng(1)))
    assert remark(y, x).endswith("; probably the whole file has longitude and latitude swapped")
    first = int(np.argmax(np.abs(x) > 90.0))
    assert f"the first is row {first + 1} (data rows count from 1): latitude {x[first]}" in remark(y, x)
    few = np.flatnonzero(np.abs(x) > 90.0)[:100]  # the others stand the right way round
    x[few], y[few] = y[few].copy(), x[few].copy()
    assert "whole file" not in remark(x, y)
    x, y = crowd(500)  # nothing says which way round a town is; two rows do not say it of a file
    assert "whole file" not in remark(np.append(x, [2.0, 3.0]), np.append(y, [99.0, 98.0]))


def test_places_all_over_the_sphere_are_not_suspected():
    places = sphere.to_longitude_latitude(sphere.random_directions(3000, np.random.default_rng(1)))
    assert clean_places(*places)[1].suspected_swapped == 0
