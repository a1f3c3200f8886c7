"""Intervals over clusters: how often those of 95 % miss the truth, by the number of clusters and the kind of figure."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import record

from geo_mvmf import metrics, resampling

FloatArray = npt.NDArray[np.float64]

CLUSTERS = (8, 12, 20, 50)
KINDS: dict[str, tuple[Callable[[np.random.Generator, int], FloatArray], float, float]] = {
    "normal": (lambda generator, k: generator.normal(size=k), 0.0, 0.0),
    "heavy tails (Student's t, 3)": (lambda generator, k: generator.standard_t(3, size=k), 0.0, 0.0),
    "skewed (log-normal)": (lambda generator, k: generator.lognormal(size=k), math.exp(0.5), 1.0),
    "rare (15 % +1, 15 % -1, else 0)": (
        lambda generator, k: generator.choice([1.0, 0.0, -1.0], size=k, p=[0.15, 0.7, 0.15]),
        0.0,
        0.0,
    ),
}
"""What clusters are like: their values, and the true mean and median."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    options = parser.parse_args()
    rows = [_row(kind, k, options.repeats) for kind in KINDS for k in CLUSTERS]
    body = (
        f"{options.repeats} samples of clusters of 1 to 8 images that share one value. The truth is missed by, of all "
        "samples (aim: 5 %); in brackets the mean width of the interval of the mean.\n\n"
        + record.table(("clusters", "number", "mean", "mean, plain percentiles", "median"), rows)
    )
    record.write("intervals", "Intervals over clusters", body)


def _row(kind: str, k: int, repeats: int) -> list[str]:
    draw, mean, median = KINDS[kind]
    missed, width = np.zeros(3), np.zeros(2)
    for seed in range(repeats):
        generator = np.random.default_rng([k, seed])
        clusters = np.repeat(np.arange(k), generator.integers(1, 9, size=k))
        values = draw(generator, k)[clusters]
        found = (
            resampling.mean_of_clusters(values, clusters, seed=seed),
            _percentiles(values, clusters, seed),
            resampling.median_of_clusters(values, clusters, seed=seed),
        )
        truths = (mean, mean, median)
        missed += [not each.low <= truth <= each.high for each, truth in zip(found, truths, strict=True)]
        width += [each.high - each.low for each in found[:2]]
    shares = [f"{100.0 * share:.1f} %" for share in missed / repeats]
    shown = [f"{share} ({each:.2f})" for share, each in zip(shares, width / repeats, strict=False)]
    return [kind, str(k), *shown, shares[2]]


def _percentiles(values: FloatArray, clusters: npt.NDArray[np.int64], seed: int) -> metrics.Estimate:
    """What intervals over clusters are without regard to their number: 2.5 and 97.5 % of the drawn means."""
    sums, counts = np.bincount(clusters, values), np.bincount(clusters)
    weights = np.random.default_rng(seed).multinomial(counts.size, np.full(counts.size, 1.0 / counts.size), 2000)
    low, high = np.quantile(weights @ sums / (weights @ counts), [0.025, 0.975])
    return metrics.Estimate(float(values.mean()), float(low), float(high), values.size, 0)


if __name__ == "__main__":
    main()
