"""Probability of raster cells between meridians and parallels: narrow components by rows, wide ones by lattices."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2
from geo_mvmf.maps import lattice, runs
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LATTICE_WIDTH = 44.0  # nodes across a component on its lattice, typically


class _Stage:
    """One lattice of the cascade and how its sum goes on to the next."""

    def __init__(self, nodes: lattice.Lattice, samples: runs.Runs) -> None:
        self.nodes = nodes
        self.samples = samples

    def sum(self, weights: FloatArray) -> FloatArray:
        return self.samples.apply(weights).reshape(self.nodes.rows, self.nodes.columns)


@dataclasses.dataclass(frozen=True, eq=False)
class WideSum:
    """The sum of wide components on a cascade of lattices.

    Made by `make_wide_sum`; `field` is its value on the finest lattice.
    """

    stages: tuple[_Stage, ...]
    steps: tuple[lattice.Steps, ...]

    def field(self, weights: FloatArray) -> FloatArray:
        """Mix the components on the nodes of the finest lattice.

        Parameters
        ----------
        weights : ndarray of float64, shape (C,)
            Mixing weights.

        Returns
        -------
        ndarray of float64, shape (lattice rows, lattice columns)
            Density per steradian.
        """
        total = self.stages[0].sum(weights)
        for stage, step in zip(self.stages[1:], self.steps, strict=True):
            total = step.apply(total) + stage.sum(weights)
        return total

    @property
    def num_values(self) -> int:
        """How many values the lattices have of all components."""
        return sum(stage.samples.num_values for stage in self.stages)

    @property
    def finest(self) -> lattice.Lattice:
        """The lattice of `field`."""
        return self.stages[-1].nodes


def make_wide_sum(
    mean_directions: FloatArray,
    log_concentrations: FloatArray,
    components: IntArray,
    bounds: tuple[float, float, float, float],
) -> WideSum:
    """Sample components on lattices that cover a rectangle.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    components : ndarray of int64, shape (K,)
        Which of them, at least one.
    bounds : tuple of float
        West, south, east, north, radians.
    """
    west, south, east, north = bounds
    divisions = lattice.divisions_for(log_concentrations[components])
    stages: list[_Stage] = []
    for number in np.unique(divisions)[::-1]:  # the finest first: the coarser ones must cover it
        nodes = lattice.covering(int(number), south, north, west, east)
        own = components[divisions == number]
        stages.append(_Stage(nodes, lattice.sample_components(mean_directions, log_concentrations, own, nodes)))
        south, north = float(nodes.latitudes()[0]), float(nodes.latitudes()[-1])
        west, east = float(nodes.longitudes()[0]), float(nodes.longitudes()[-1])
    stages.reverse()
    pairs = itertools.pairwise(stages)
    return WideSum(tuple(stages), tuple(lattice.steps_between(coarse.nodes, fine.nodes) for coarse, fine in pairs))


class CylindricalRaster:
    """Components integrated over the raster cells of a cylindrical grid, once for all images.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    grid : Grid
        Cylindrical.

    Examples
    --------
    >>> raster = CylindricalRaster(np.array([[0.0, 0.0, 1.0]]), np.array([2.0]), Grid.globe(10.0))
    >>> abs(float(raster.probabilities(np.array([1.0])).sum()) - 1.0) < 1e-6
    True
    """

    def __init__(self, mean_directions: FloatArray, log_concentrations: FloatArray, grid: Grid) -> None:
        self.grid = grid
        # neighbours on the curve are neighbours on the map: sums stay in the cache
        order = np.argsort(s2.leaf_ids(mean_directions)).astype(np.int64)
        narrow = _by_rows(log_concentrations, grid)
        self._runs = runs.make_runs(mean_directions, log_concentrations, order[narrow[order]], grid)
        wide = order[~narrow[order]]
        self._wide: WideSum | None = None
        if wide.size:
            x, y = (np.radians(edges) for edges in grid.degree_edges)
            bounds = (float(x[0]), float(y.min()), float(x[-1]), float(y.max()))
            self._wide = make_wide_sum(mean_directions, log_concentrations, wide, bounds)
            self._to_cells = lattice.steps_to_grid(self._wide.finest, grid)

    def probabilities(self, weights: FloatArray) -> FloatArray:
        """Integrate one image's density over every raster cell.

        Parameters
        ----------
        weights : ndarray of float64, shape (C,)
            Mixing weights.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
            Probabilities, not normalised: on a global grid they sum to 1 within 1e-6.
        """
        total = self._runs.apply(weights).reshape(self.grid.shape)
        if self._wide is not None:
            # interpolation may leave -1e-8 of the peak where there is nothing
            total += np.maximum(self._to_cells.apply(self._wide.field(weights)), 0.0)
        return total

    @property
    def num_values(self) -> int:
        """How many numbers all images share."""
        return self._runs.num_values + (self._wide.num_values if self._wide is not None else 0)


def _by_rows(log_concentrations: FloatArray, grid: Grid) -> npt.NDArray[np.bool_]:
    """Which components cost less as runs of raster cells than as nodes of a lattice."""
    x, y = grid.degree_edges
    width, height = np.radians(abs(x[-1] - x[0])) / grid.shape[1], np.radians(abs(y[-1] - y[0])) / grid.shape[0]
    across = 2.0 * runs.reach_angle(log_concentrations)
    return np.asarray((across / width + 1.0) * (across / height + 1.0) <= _LATTICE_WIDTH**2)
