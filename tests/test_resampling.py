"""Intervals over clusters: they cover the truth where images belong together, and those over images do not."""

import numpy as np
import pytest

from geo_mvmf import metrics, resampling


def test_copies_of_images_say_nothing_new():
    """The broken twin takes ten copies of each image for ten images."""
    values = np.random.default_rng(0).gamma(2.0, 100.0, 40)
    copies, clusters = np.repeat(values, 10), np.repeat(np.arange(40), 10)
    for clustered, naive in (
        (resampling.mean_of_clusters, metrics.mean_with_interval),
        (resampling.median_of_clusters, metrics.median_error_km),
    ):
        once, again = clustered(values, np.arange(40)), clustered(copies, clusters)
        assert again.value == pytest.approx(once.value)
        assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.05)
        twin = naive(copies)
        assert twin.high - twin.low < 0.5 * (once.high - once.low)


def test_intervals_cover_the_mean_of_clustered_images():
    """95 % intervals of 100 albums with common errors within clusters; those of single images cover far less."""
    generator = np.random.default_rng(1)
    clusters = np.repeat(np.arange(30), 8)
    hits = {"clusters": 0, "images": 0}
    for seed in range(100):
        values = generator.normal(size=30)[clusters] + 0.2 * generator.normal(size=clusters.size)
        for name, found in (
            ("clusters", resampling.mean_of_clusters(values, clusters, seed=seed)),
            ("images", metrics.mean_with_interval(values, seed=seed)),
        ):
            hits[name] += found.low <= 0.0 <= found.high
    assert hits["clusters"] > 84  # percentile intervals of 30 clusters hold about 94 %
    assert hits["images"] < 75


def test_what_is_missing_is_counted():
    values = [1.0, np.nan, 3.0]
    mean = resampling.mean_of_clusters(values, ["a", "b", "c"])
    assert (mean.value, mean.n, mean.n_nan) == (2.0, 3, 1)
    median = resampling.median_of_clusters(values, ["a", "b", "c"])  # as infinitely far
    assert (median.value, median.high, median.n, median.n_nan) == (3.0, np.inf, 3, 1)
    assert np.isnan(resampling.mean_of_clusters([np.nan], ["a"]).value)
    assert np.isnan(resampling.median_of_clusters([], []).value)


def test_the_seed_decides():
    values = np.arange(20.0)
    first, same, other = (resampling.mean_of_clusters(values, values, seed=seed) for seed in (1, 1, 2))
    assert first == same
    assert first != other
