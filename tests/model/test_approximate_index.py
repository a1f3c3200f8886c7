"""The approximate index against the exact search: what it finds, what it misses, and what it never gets wrong."""

import sys

import numpy as np
import pytest

from geo_mvmf import sphere
from geo_mvmf.errors import UsageError
from geo_mvmf.model.approximate_index import ApproximateIndex, choose_probes, recall
from geo_mvmf.model.neighbour_density import Kernel, NeighbourDensity
from geo_mvmf.model.neighbours import NearestNeighbours

needs_faiss = pytest.mark.skipif("not __import__('importlib.util').util.find_spec('faiss')", reason="extra neighbours")


def searches(m=3000, d=12, k=5, **options):
    generator = np.random.default_rng(0)
    features = generator.normal(size=(m, d)).astype(np.float32)
    places = sphere.to_longitude_latitude(sphere.random_directions(m, generator))
    exact = NearestNeighbours(features, *places, k=k)
    return exact, NearestNeighbours(features, *places, k=k, index=ApproximateIndex(features, **options))


@needs_faiss
def test_recall_grows_with_probes_to_all():
    exact, search = searches()
    unseen = np.random.default_rng(1).normal(size=(150, 12))
    found = []
    for probes in (1, 8, search.index.num_lists):
        search.index.probes = probes
        found.append(recall(search, unseen))
    assert found[0] < found[1] < found[2] == 1.0
    assert found[0] > 0.1  # chance: 5 of 3000
    for mine, true in zip(search.neighbours(unseen), exact.neighbours(unseen), strict=True):
        np.testing.assert_array_equal(mine, true)  # with all lists: the same rows, the same distances, to the bit
    assert recall(exact, unseen) == 1.0


@needs_faiss
def test_what_is_found_is_measured_as_exactly():
    _, search = searches(probes=2)
    unseen = np.random.default_rng(1).normal(size=(20, 12)).astype(np.float32)
    index, distance = search.neighbours(unseen)
    expected = np.linalg.norm(search.features[index].astype(float) - unseen[:, None], axis=2)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)
    assert (np.diff(distance, axis=1) >= 0).all()


@needs_faiss
def test_probes_are_chosen_for_a_recall():
    exact, search = searches()
    reached = choose_probes(search, wanted=0.9, sample=200)
    assert reached >= 0.9
    assert search.index.probes < search.index.num_lists
    assert recall(search, np.random.default_rng(2).normal(size=(100, 12))) > 0.8
    with pytest.raises(TypeError, match=r"the search is exact \(index is None\)"):
        choose_probes(exact)


@needs_faiss
def test_lists_that_hold_too_few_are_made_up_for_exactly():
    """Broken twin: without that, a row that faiss does not find (-1) would be the last training image."""
    exact, search = searches(m=200, k=150, probes=1)
    unseen = np.random.default_rng(1).normal(size=(4, 12))
    np.testing.assert_array_equal(search.neighbours(unseen)[0], exact.neighbours(unseen)[0])
    raw = search.index._index.search(unseen.astype(np.float32), 150)[1]
    assert (raw < 0).any()


@needs_faiss
def test_the_same_features_give_the_same_index():
    unseen = np.random.default_rng(1).normal(size=(50, 12))
    once, again = (searches(probes=2)[1].neighbours(unseen)[0] for _ in range(2))
    np.testing.assert_array_equal(once, again)


@needs_faiss
def test_it_serves_the_density_too():
    exact, search = searches(probes=10**6)
    unseen, y = np.random.default_rng(1).normal(size=(3, 12)), sphere.random_directions(5, np.random.default_rng(3))
    both = [NeighbourDensity(each, Kernel(5.0)).mixture(unseen).log_density(y) for each in (exact, search)]
    np.testing.assert_array_equal(*both)


@needs_faiss
def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"shape \(3,\), probes is 8"):
        ApproximateIndex(np.zeros(3))
    with pytest.raises(ValueError, match="probes is 0"):
        ApproximateIndex(np.zeros((3, 1)), probes=0)


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match=r"pip install 'geo-mvmf\[neighbours\]'"):
        ApproximateIndex(np.zeros((3, 1)))
