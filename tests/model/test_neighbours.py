"""The nearest neighbours are the nearest, also where float32 cannot tell; their places are averaged on the sphere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf import sphere
from geo_mvmf.model import neighbours
from geo_mvmf.model.neighbours import NearestNeighbours


def brute(rows, queries, k):
    squared = np.square(rows.astype(np.float64) - queries.astype(np.float64)[:, None]).sum(axis=2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return order, np.sqrt(np.take_along_axis(squared, order, axis=1))


def search(rows, **options):
    places = np.linspace(-90.0, 90.0, len(rows))
    return NearestNeighbours(rows, places, places / 2.0, **options)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_blocks_give_what_the_whole_gives(k, monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 13)
    monkeypatch.setattr(neighbours, "_QUERIES", 7)
    monkeypatch.setattr(neighbours, "_MEASURED_VALUES", 100)
    generator = np.random.default_rng(0)
    rows, queries = (generator.normal(size=(n, 16)).astype(np.float32) for n in (100, 30))
    index, distance = search(rows, k=k).neighbours(queries)
    expected, expected_distance = brute(rows, queries, k)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6), st.sampled_from([0, 1, 2, 8]))
def test_ties_and_duplicates_go_to_the_earlier_row(seed, k, columns, digits):
    generator = np.random.default_rng(seed)
    rows = generator.normal(size=(60, columns)).round(digits).astype(np.float32)
    queries = generator.normal(size=(9, columns)).round(digits).astype(np.float32)
    index, _ = search(rows, k=k).neighbours(queries)
    np.testing.assert_array_equal(index, brute(rows, queries, k)[0])


def test_neighbours_that_float32_products_cannot_tell_apart():
    generator = np.random.default_rng(1)
    rows, queries = (1000.0 + 0.05 * generator.normal(size=(n, 64)) for n in (500, 40))
    rows, queries = rows.astype(np.float32), queries.astype(np.float32)
    np.testing.assert_array_equal(search(rows, k=3).neighbours(queries)[0], brute(rows, queries, 3)[0])
    score = (rows * rows).sum(axis=1) - 2.0 * queries @ rows.T  # the broken twin
    assert (score.argmin(axis=1) != brute(rows, queries, 1)[0][:, 0]).mean() > 0.2


def test_half_precision_and_memory_mapped_features(tmp_path):
    generator = np.random.default_rng(2)
    rows = generator.normal(size=(50, 4)).astype(np.float16)
    np.save(tmp_path / "features.npy", rows)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    queries = generator.normal(size=(5, 4)).astype(np.float32)
    found = search(mapped)
    assert isinstance(found.features, np.memmap)
    np.testing.assert_array_equal(found.neighbours(queries)[0], brute(rows, queries, 1)[0])


def test_the_place_is_that_of_the_nearest_row_to_the_last_bit():
    one = search(np.eye(5, dtype=np.float32)).predict(np.eye(5)[[3, 0]])
    np.testing.assert_array_equal(one, np.stack([np.linspace(-90, 90, 5), np.linspace(-45, 45, 5)], 1)[[3, 0]])


def test_several_places_are_averaged_on_the_sphere():
    across = NearestNeighbours([[0.0], [1.0], [50.0]], [179.0, -179.0, 0.0], [0.0, 0.0, 0.0], k=2)
    longitude, latitude = across.predict([[0.5]])[0]
    assert abs(longitude) == pytest.approx(180.0)
    assert latitude == pytest.approx(0.0, abs=1e-12)
    pole = NearestNeighbours([[0.0], [1.0]], [0.0, 180.0], [89.0, 89.0], k=2)
    assert pole.predict([[0.5]])[0, 1] == pytest.approx(90.0)


def test_the_nearer_counts_more_unless_asked_otherwise():
    rows, places = [[0.0], [3.0]], ([0.0, 10.0], [0.0, 0.0])
    by_distance = NearestNeighbours(rows, *places, k=2).predict([[1.0]])[0, 0]
    mean = (sphere.to_directions(*places) * np.array([[1.0], [0.25]])).sum(axis=0)
    assert by_distance == pytest.approx(float(sphere.to_longitude_latitude(mean)[0]))
    assert NearestNeighbours(rows, *places, k=2, weighting="equal").predict([[1.0]])[0, 0] == pytest.approx(5.0)
    assert NearestNeighbours(rows, *places, k=2).predict([[3.0]])[0, 0] == pytest.approx(10.0)


def test_places_that_cancel_leave_the_nearest():
    opposite = NearestNeighbours([[0.0], [1.0]], [20.0, -160.0], [0.0, 0.0], k=2, weighting="equal")
    np.testing.assert_allclose(opposite.predict([[0.1]]), [[20.0, 0.0]], atol=1e-12)


def test_no_queries_give_no_places():
    assert search(np.eye(3)).predict(np.empty((0, 3))).shape == (0, 2)
    assert search(np.eye(3), k=2).predict(np.empty((0, 3))).shape == (0, 2)


def test_coarser_products_are_searched_as_exactly():
    generator = np.random.default_rng(4)
    rows, queries = (generator.normal(size=(n, 32)).astype(np.float32) for n in (300, 20))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        index, _ = search(rows, k=2).neighbours(queries)
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(index, brute(rows, queries, 2)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"k is 0, not in 1\.\.3"),
        ({"k": 4}, r"k is 4, not in 1\.\.3"),
        ({"weighting": "kernel"}, "weighting 'kernel'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        search(np.eye(3), **options)


def test_wrong_arrays_are_named():
    with pytest.raises(ValueError, match=r"have shapes \(\(3, 3\), \(2,\), \(3,\)\)"):
        NearestNeighbours(np.eye(3), [0.0] * 2, [0.0] * 3)
    with pytest.raises(ValueError, match="place of row 1 is not finite"):
        NearestNeighbours(np.eye(3), [0.0, np.nan, 0.0], [0.0] * 3)
    with pytest.raises(ValueError, match=r"features have shape \(1, 2\), expected \(N, 3\)"):
        search(np.eye(3)).predict(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="all of them finite"):
        search(np.eye(3)).predict(np.full((1, 3), np.nan))
    rows = np.eye(3)
    rows[2, 0] = np.inf
    with pytest.raises(ValueError, match="features of training row 2 are not finite"):
        search(rows).predict(np.zeros((1, 3)))
