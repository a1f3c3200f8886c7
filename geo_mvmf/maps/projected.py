"""Probability of every raster cell of a grid in any projection.

Wide components are summed on the same lattices of meridians and parallels as for cylindrical grids; quintic splines
take the sum from there to two nodes along each side of every raster cell. Narrow ones are integrated over each raster
cell that they reach, with as many nodes as their width asks for, in pieces where a raster cell is wider than they are:
one sparse matrix for a grid and its components.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.spatial import cKDTree

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.maps import charts, cylindrical, lattice, quadrature, runs
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_WIDE = 2.6  # sigma over the side of a raster cell from which a component is wide
_SPLIT = 4.0  # sigma along the side of a piece: beyond, it is quartered
_BENT = 6  # nodes in charts inside a raster cell, at least: area varies in them, whatever the component does
_CAUTION = 1.3  # errors of many pieces add up: nodes as for wider ones
_NODES_PER_CELL, _NODES = 8, 1 << 20  # a lattice larger than both, as around a pole, costs more than raster cells
_SPLINE = 12  # nodes of margin that a spline needs to forget its ends
_PAIRS_AT_ONCE = 1 << 19
_COMPONENTS_AT_ONCE = 2048


class _Pieces(NamedTuple):
    """Rectangles inside charts, each inside one raster cell."""

    chart: IntArray  # (P,)
    bounds: FloatArray  # (P, 4): first column, first row, last column, last row in 0..1 of the chart
    cell: IntArray  # (P,)
    centre: FloatArray  # (P, 3)
    radius: FloatArray  # (P,) chord from the centre to the farthest corner, with a little to spare


class ProjectedRaster:
    """Components integrated over the raster cells of a grid in any projection, once for all images.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    grid : Grid
        Any.

    Examples
    --------
    >>> grid = Grid.from_bounds(-1e6, -1e6, 1e6, 1e6, 5e4, crs=3995)
    >>> raster = ProjectedRaster(np.array([[0.0, 0.0, 1.0]]), np.array([12.0]), grid)
    >>> abs(float(raster.probabilities(np.array([1.0])).sum()) - 1.0) < 1e-6
    True
    """

    def __init__(self, mean_directions: FloatArray, log_concentrations: FloatArray, grid: Grid) -> None:
        self.grid = grid
        self._charts = charts.charts_of(grid)
        order = np.argsort(s2.leaf_ids(mean_directions)).astype(np.int64)
        pieces = _cells_as_pieces(self._charts)
        side = float(pieces.radius.max(initial=0.0)) * math.sqrt(2.0)
        narrow = np.exp(-0.5 * log_concentrations) < _WIDE * side
        narrow |= _lattice_nodes(log_concentrations, self._charts) > max(_NODES_PER_CELL * grid.num_cells, _NODES)
        self._narrow = _make_matrix(mean_directions, log_concentrations, order[narrow[order]], self._charts, pieces)
        wide = order[~narrow[order]]
        self._wide: _WideNodes | None = None
        if wide.size and pieces.cell.size:
            self._wide = _WideNodes(mean_directions, log_concentrations, wide, self._charts)

    def probabilities(self, weights: FloatArray) -> FloatArray:
        """Integrate one image's density over every raster cell.

        Parameters
        ----------
        weights : ndarray of float64, shape (C,)
            Mixing weights.

        Returns
        -------
        ndarray of float64, shape (rows, columns)
            Probabilities, not normalised; 0 outside the domain.
        """
        total = self._narrow.apply(weights)
        if self._wide is not None:
            total += self._wide.probabilities(weights)
        return total.reshape(self.grid.shape)

    @property
    def num_values(self) -> int:
        """How many numbers all images share."""
        return self._narrow.num_values + (self._wide.sum.num_values if self._wide is not None else 0)


class _WideNodes:
    """Where the nodes of raster cells lie on the lattice of wide components."""

    def __init__(
        self, mean_directions: FloatArray, log_concentrations: FloatArray, components: IntArray, atlas: charts.Charts
    ) -> None:
        points = list(atlas.points(2))
        self.cell, directions, self.areas = (np.concatenate(parts) for parts in zip(*points, strict=True))
        self.num_cells = atlas.grid.num_cells
        longitude, latitude = (np.radians(part) for part in sphere.to_longitude_latitude(directions))
        spacing = math.pi / int(lattice.divisions_for(log_concentrations[components]).max())
        west, east = _span(longitude)
        margin = (_SPLINE + 1) * spacing
        bounds = (west - margin, float(latitude.min()) - margin, east + margin, float(latitude.max()) + margin)
        self.sum = cylindrical.make_wide_sum(mean_directions, log_concentrations, components, bounds)
        nodes = self.sum.finest
        self.row = (latitude + 0.5 * math.pi) / spacing - 0.5 - nodes.first_row
        turned = west + np.mod(longitude - west, 2.0 * math.pi)
        self.column = turned / spacing - nodes.first_column
        self.padding = _SPLINE if nodes.closed else 0
        if nodes.closed:
            self.column = np.mod(self.column, nodes.columns) + self.padding

    def probabilities(self, weights: FloatArray) -> FloatArray:
        field = np.pad(self.sum.field(weights), ((0, 0), (self.padding, self.padding)), mode="wrap")
        spline = ndimage.spline_filter(field, order=5, mode="mirror")
        places = np.stack([self.row, self.column])
        density = ndimage.map_coordinates(spline, places, order=5, mode="mirror", prefilter=False)
        # a spline may leave -1e-7 of the peak where there is nothing
        masses = np.maximum(density, 0.0) * self.areas
        return np.bincount(self.cell, masses, minlength=self.num_cells).astype(np.float64)


def _lattice_nodes(log_concentrations: FloatArray, atlas: charts.Charts) -> FloatArray:
    """Give how many nodes the lattice of each component would have on the grid, (C,)."""
    if not atlas.values.size:
        return np.zeros(log_concentrations.size)
    longitude, latitude = (np.radians(part) for part in sphere.to_longitude_latitude(atlas.values.reshape(-1, 3)))
    west, east = _span(longitude)
    spacing = math.pi / lattice.divisions_for(log_concentrations)
    margin = 2.0 * (_SPLINE + lattice.TAPS)
    rows = (float(latitude.max()) - float(latitude.min())) / spacing + margin
    columns = np.minimum((east - west) / spacing + margin, 2.0 * math.pi / spacing)
    return np.asarray(rows * columns)


def _span(longitude: FloatArray) -> tuple[float, float]:
    """West and east of the shortest arc that holds all longitudes (radians); the circle where no gap is worth it."""
    bins = np.unique(np.floor((longitude + math.pi) * 2000.0 / math.pi).astype(np.int64))
    gaps = np.diff(np.append(bins, bins[0] + 4000))
    widest = int(np.argmax(gaps))
    if gaps[widest] < 100:
        return -math.pi, math.pi
    step = math.pi / 2000.0
    west = float(bins[(widest + 1) % bins.size]) * step - math.pi
    east = float(bins[widest] + 1) * step - math.pi
    return west, east if east > west else east + 2.0 * math.pi


def _cells_as_pieces(atlas: charts.Charts) -> _Pieces:
    """One piece for every raster cell of every chart, and for every chart inside a raster cell."""
    sizes = atlas.bounds[:, 2:] - atlas.bounds[:, :2]
    whole = np.maximum(sizes, 1.0).astype(np.int64)
    chart, number = runs.spread(np.zeros(sizes.shape[0], dtype=np.int64), whole.prod(axis=1))
    row, column = np.divmod(number, whole[chart, 0])
    steps = 1.0 / whole[chart]
    low = np.stack([column, row], axis=-1) * steps
    first = np.floor(atlas.bounds[:, :2]).astype(np.int64)[chart]
    cell = (first[:, 1] + row) * atlas.grid.shape[1] + first[:, 0] + column
    return _measure(atlas, chart, np.concatenate([low, low + steps], axis=1), cell)


def _measure(atlas: charts.Charts, chart: IntArray, bounds: FloatArray, cell: IntArray) -> _Pieces:
    centre, radius = np.empty((chart.size, 3)), np.empty(chart.size)
    for start in range(0, chart.size, _PAIRS_AT_ONCE >> 4):
        block = slice(start, start + (_PAIRS_AT_ONCE >> 4))
        at = bounds[block]
        rows = np.stack([at[:, 1], 0.5 * (at[:, 1] + at[:, 3]), at[:, 3]], axis=-1)
        columns = np.stack([at[:, 0], 0.5 * (at[:, 0] + at[:, 2]), at[:, 2]], axis=-1)
        lattice_of = charts.place(atlas.values[chart[block]], rows, columns)  # (P, 3, 3, 3)
        centre[block] = lattice_of[:, 1, 1]
        difference = lattice_of - lattice_of[:, 1:2, 1:2]
        radius[block] = 1.05 * np.sqrt(np.square(difference).sum(axis=-1).max(axis=(1, 2)))
    return _Pieces(chart, bounds, cell, centre, radius)


def _make_matrix(
    mean_directions: FloatArray,
    log_concentrations: FloatArray,
    components: IntArray,
    atlas: charts.Charts,
    pieces: _Pieces,
) -> runs.Runs:
    trees = _Trees(pieces)
    found = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))]
    for start in range(0, components.size, _COMPONENTS_AT_ONCE):
        own = components[start : start + _COMPONENTS_AT_ONCE]
        parts = list(_entries(mean_directions[own], log_concentrations[own], atlas, pieces, trees))
        component, cell, value = (np.concatenate(part) for part in zip(*parts, strict=True))
        matrix = sparse.coo_array((value, (component, cell)), shape=(own.size, atlas.grid.num_cells)).tocsr()
        row, column = matrix.nonzero()
        found.append((start + row.astype(np.int64), column.astype(np.int64), matrix.data[matrix.data != 0.0]))
    component, cell, value = (np.concatenate(part) for part in zip(*found, strict=True))
    length = np.bincount(component, minlength=components.size)
    return runs.collect_runs(components, length, cell.astype(np.int32), value.astype(np.float32), atlas.grid.num_cells)


class _Trees:
    """Pieces by size, so that a search need not reach farther than their own size beyond a component."""

    def __init__(self, pieces: _Pieces) -> None:
        octave = np.floor(np.log2(np.maximum(pieces.radius, 1e-12))).astype(np.int64)
        self.groups = [np.flatnonzero(octave == number) for number in np.unique(octave)]
        self.trees = [cKDTree(pieces.centre[group]) for group in self.groups]
        self.reach = [float(pieces.radius[group].max()) for group in self.groups]

    def pairs(self, mean_directions: FloatArray, reach: FloatArray) -> Iterator[tuple[IntArray, IntArray]]:
        """(component, piece) whose distance may be less than reach and the piece's size."""
        for component in _by_octave(reach):
            tree = cKDTree(mean_directions[component])
            for group, other, size in zip(self.groups, self.trees, self.reach, strict=True):
                limit = float(reach[component].max()) + size
                near = tree.sparse_distance_matrix(other, min(limit, 2.0), output_type="ndarray")
                yield component[near["i"]], group[near["j"]]


def _by_octave(reach: FloatArray) -> list[IntArray]:
    octave = np.floor(np.log2(np.maximum(reach, 1e-12))).astype(np.int64)
    return [np.flatnonzero(octave == number) for number in np.unique(octave)]


def _entries(
    mean_directions: FloatArray,
    log_concentrations: FloatArray,
    atlas: charts.Charts,
    pieces: _Pieces,
    trees: _Trees,
) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    """(component, raster cell, probability) of a few components."""
    reach = 2.0 * np.sin(0.5 * runs.reach_angle(log_concentrations))  # chords
    shape = (mean_directions, log_concentrations)
    empty = np.empty(0, dtype=np.int64)
    yield empty, empty, np.empty(0)
    for component, piece in trees.pairs(mean_directions, reach):
        for start in range(0, component.size, _PAIRS_AT_ONCE):
            block = slice(start, start + _PAIRS_AT_ONCE)
            yield from _integrate(shape, reach, component[block], piece[block], atlas, pieces)


def _integrate(
    shape: tuple[FloatArray, FloatArray],
    reach: FloatArray,
    component: IntArray,
    piece: IntArray,
    atlas: charts.Charts,
    pieces: _Pieces,
) -> Iterator[tuple[IntArray, IntArray, FloatArray]]:
    component, piece = _near(shape[0], reach, component, piece, pieces)
    extent = math.sqrt(2.0) * pieces.radius[piece] * np.exp(0.5 * shape[1][component])
    nodes = quadrature.nodes_for(_CAUTION * np.minimum(extent, _SPLIT))
    sides = atlas.bounds[pieces.chart[piece], 2:] - atlas.bounds[pieces.chart[piece], :2]
    inside = (sides < 1.0).any(axis=1)
    nodes = np.where(extent > _SPLIT, 0, np.where(inside, np.maximum(nodes, _BENT), nodes))
    for number in np.unique(nodes[nodes > 0]).tolist():
        chosen = nodes == number
        yield _at_nodes(shape, component[chosen], piece[chosen], atlas, pieces, int(number))
    (large,) = np.nonzero(nodes == 0)
    for start in range(0, large.size, _PAIRS_AT_ONCE >> 5):
        block = large[start : start + (_PAIRS_AT_ONCE >> 5)]
        quarters = _quarter(atlas, pieces, piece[block])
        yield from _integrate(shape, reach, np.repeat(component[block], 4), np.arange(4 * block.size), atlas, quarters)


def _near(
    mean_directions: FloatArray, reach: FloatArray, component: IntArray, piece: IntArray, pieces: _Pieces
) -> tuple[IntArray, IntArray]:
    difference = mean_directions[component] - pieces.centre[piece]
    distance = np.sqrt(np.einsum("pi,pi->p", difference, difference))
    kept = distance <= reach[component] + pieces.radius[piece]
    return component[kept], piece[kept]


def _at_nodes(
    shape: tuple[FloatArray, FloatArray],
    component: IntArray,
    piece: IntArray,
    atlas: charts.Charts,
    pieces: _Pieces,
    nodes: int,
) -> tuple[IntArray, IntArray, FloatArray]:
    """Probability of pairs, the nodes of a piece shared by all components that reach it."""
    own, index = np.unique(piece, return_inverse=True)
    x, w = quadrature.gauss_legendre(nodes)
    total = np.zeros(component.size)
    order = np.argsort(index, kind="stable")
    step = max(1, (_PAIRS_AT_ONCE >> 3) // (nodes * nodes))
    ends = np.searchsorted(index[order], np.arange(0, own.size + step, step))
    for k, start in enumerate(range(0, own.size, step)):
        block = own[start : start + step]
        at = pieces.bounds[block]
        size = at[:, 2:] - at[:, :2]
        rows, columns = at[:, 1, None] + size[:, 1, None] * x, at[:, 0, None] + size[:, 0, None] * x
        directions, areas = charts.evaluate(atlas.values[pieces.chart[block]], rows, columns)
        areas *= (w[:, None] * w) * size.prod(axis=1)[:, None, None]
        flat, weight = directions.reshape(block.size, -1, 3), areas.reshape(block.size, -1)
        pairs = order[ends[k] : ends[k + 1]]
        local, of = index[pairs] - start, component[pairs]
        for node in range(nodes * nodes):
            density = _density(shape[0][of], shape[1][of], flat[local, node])
            total[pairs] += density * weight[local, node]
    return component, pieces.cell[piece], total


def _density(mean_directions: FloatArray, log_concentrations: FloatArray, directions: FloatArray) -> FloatArray:
    return np.asarray(np.exp(vmf.log_density(directions, mean_directions, log_concentrations)))


def _quarter(atlas: charts.Charts, pieces: _Pieces, piece: IntArray) -> _Pieces:
    """Four pieces for each of some, in order."""
    at = pieces.bounds[piece]
    middle = 0.5 * (at[:, :2] + at[:, 2:])
    left, top, right, bottom = at.T
    x, y = middle.T
    parts = [[left, top, x, y], [x, top, right, y], [left, y, x, bottom], [x, y, right, bottom]]
    bounds = np.stack([np.stack(part, axis=-1) for part in parts], axis=1).reshape(-1, 4)
    return _measure(atlas, np.repeat(pieces.chart[piece], 4), bounds, np.repeat(pieces.cell[piece], 4))
