"""Mixtures at the edges of the Earth, and the mass of a raster."""

import numpy as np
import pytest

from geo_mvmf import sphere
from geo_mvmf.mixture import VmfMixture


@pytest.fixture(scope="session")
def edges_of_the_earth():
    """Ten directions at poles and at 180 degrees, and two elsewhere."""
    directions = sphere.to_directions(
        [0.0, 77.0, 180.0, -180.0, 179.9999, -179.95, 10.0, 20.0, 0.0, 120.0],
        [90.0, -90.0, 0.0, 50.0, -30.0, 89.97, 89.5, -89.99, 0.0, 60.0],
    )
    directions.flags.writeable = False
    return directions


@pytest.fixture(scope="session")
def mixture_of():
    """Make one image's mixture of components with random weights, the same for the same seed."""

    def make(directions, log_concentrations, seed=0):
        directions = np.atleast_2d(directions)
        weights = np.random.default_rng(seed).dirichlet(np.ones(len(directions)))
        kappas = np.broadcast_to(np.asarray(log_concentrations, float), len(directions))
        return VmfMixture(directions, kappas, np.log(weights)[None])

    return make


@pytest.fixture(scope="session")
def mass_of():
    """Sum a density raster over its raster cells."""
    return lambda raster: float((raster * raster.cell_area_km2).sum())
