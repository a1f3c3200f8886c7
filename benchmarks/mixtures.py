"""Albums of mixtures for the benchmarks: many components that all images share, of which each image uses some."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from geo_mvmf import sphere
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.model import partition

AT_ONCE = 100
"""Images a mixture, as predictions come in batches."""


def maker(components: int, heavy: int, *, mixed: bool = False) -> Callable[[int], VmfMixture]:
    """Share components among batches of images.

    Parameters
    ----------
    components : int
        As training begins with them: cells of 3000 towns, in which about as many photos lie (there may be a few
        more); or, `mixed`, anywhere and of any width.
    heavy : int
        How many hold all but a ten-thousandth of an image's weight.
    mixed : bool
        Log kappa uniform in 0..20, directions uniform on the sphere.

    Returns
    -------
    callable
        From a seed to `AT_ONCE` images.
    """
    shared = _anywhere(components) if mixed else _towns(components)
    components = shared.mean_directions.shape[0]

    def make(seed: int) -> VmfMixture:
        return shared.with_mixing_weights(_weights(components, heavy, np.random.default_rng(seed)))

    return make


def _anywhere(components: int) -> VmfMixture:
    generator = np.random.default_rng(0)
    directions = sphere.random_directions(components, generator)
    return VmfMixture(directions, generator.uniform(0.0, 20.0, components), np.empty((0, components)))


def _towns(components: int) -> VmfMixture:
    generator = np.random.default_rng(0)
    towns = generator.uniform((-180.0, -50.0), (180.0, 65.0), (3000, 2))
    places = towns[generator.integers(0, 3000, 500_000)] + generator.normal(0.0, 1.0, (500_000, 2))
    cells = partition.partition_sphere((places[:, 0] + 180.0) % 360.0 - 180.0, places[:, 1], components)
    return VmfMixture(cells.mean_directions, partition.initial_log_concentrations(cells), np.empty((0, len(cells))))


def _weights(components: int, heavy: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Log weights of one batch: a few components with nearly all weight, the rest with a ten-thousandth together."""
    logits = np.full((AT_ONCE, components), np.log(1e-5 / components))
    for row in logits:
        row[generator.choice(components, heavy, replace=False)] = np.log(
            generator.dirichlet(np.full(heavy, 0.5)) + 1e-9
        )
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
