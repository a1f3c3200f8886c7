"""Probability of narrow components in the raster cells of a cylindrical grid, exact by rows.

Along a row of raster cells the integral over longitude is a closed form (`circle`), so only latitude needs
quadrature: Gauss-Legendre nodes between the row's edges, as many as the component's width asks for. What a component
gives to a row is a run of neighbouring raster cells; all runs together are one sparse matrix, made once for a grid and
its components and used for every image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from geo_mvmf import sphere, vmf
from geo_mvmf.maps import circle, quadrature
from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

REACH = 19.0
"""Nats below the peak where a component ends: the mass beyond is exp(-19) = 6e-9."""

_FINE = 0.5  # columns up to this many sigma: two nodes err by 4e-5 of the peak, and not at all in sum
_SUMS_AT_ONCE = 64  # values added to a raster cell in single precision, on average
_ENTRIES_AT_ONCE = 200_000  # cells of the runs worked on together; the arrays of a few MB stay near the cache


class Runs(NamedTuple):
    """What components give to raster cells: one sparse row per run.

    Parameters
    ----------
    component : ndarray of int64, shape (P,)
        Whose run it is.
    matrices : tuple of csr_array of float32, shapes (p, cells) with the p summing to P
        Values of each raster cell, numbered row by row.
    num_cells : int
        Number of raster cells.
    """

    component: IntArray
    matrices: tuple[sparse.csr_array, ...]
    num_cells: int

    def apply(self, weights: FloatArray) -> FloatArray:
        """Mix the components.

        Parameters
        ----------
        weights : ndarray of float64, shape (C,)
            Mixing weights.

        Returns
        -------
        ndarray of float64, shape (cells,)
            The weighted sum in every raster cell.
        """
        # the matrices are single precision: double weights would make scipy copy them
        of_runs = weights.astype(np.float32)[self.component]
        total = np.zeros(self.num_cells)
        start = 0
        for matrix in self.matrices:
            own = of_runs[start : start + matrix.shape[0]]
            start += matrix.shape[0]
            used = own > 0.0
            if not np.any(used):
                continue
            sparse_weights = 4 * np.count_nonzero(used) < used.size
            total += matrix[np.flatnonzero(used)].T @ own[used] if sparse_weights else matrix.T @ own
        return total

    @property
    def num_values(self) -> int:
        """How many values all runs have."""
        return sum(int(matrix.nnz) for matrix in self.matrices)


def collect_runs(
    component: IntArray,
    length: IntArray,
    cells: npt.NDArray[np.int32],
    values: npt.NDArray[np.float32],
    num_cells: int,
) -> Runs:
    """Put runs into matrices, each with few values per raster cell so that single precision sums stay exact enough.

    Parameters
    ----------
    component, length : ndarray of int64, shape (P,)
        Whose run, and how many cells it has.
    cells : ndarray of int32, shape (sum of length,)
        Raster cells of the runs one after the other.
    values : ndarray of float32, shape (sum of length,)
        What they get.
    num_cells : int
        Number of raster cells.
    """
    ends = np.concatenate([[0], np.cumsum(length)])
    parts = math.ceil(max(cells.size / (_SUMS_AT_ONCE * num_cells), cells.size / np.iinfo(np.int32).max, 1.0))
    cuts = np.unique(np.searchsorted(ends, np.linspace(0, ends[-1], parts + 1)))
    matrices = []
    for start, stop in itertools.pairwise(cuts.tolist()):
        own = slice(int(ends[start]), int(ends[stop]))
        pointers = (ends[start : stop + 1] - ends[start]).astype(np.int32)
        shape = (stop - start, num_cells)
        matrices.append(sparse.csr_array((values[own], cells[own], pointers), shape=shape))
    return Runs(component, tuple(matrices), num_cells)


class _Pairs(NamedTuple):
    """Components that reach rows of the grid."""

    component: IntArray  # (P,)
    row: IntArray  # (P,)
    low: FloatArray  # (P,) latitudes between which the component reaches the row, radians
    high: FloatArray

    def take(self, chosen: IntArray) -> _Pairs:
        return _Pairs(self.component[chosen], self.row[chosen], self.low[chosen], self.high[chosen])


class _Slices(NamedTuple):
    """The latitude nodes of pairs, each a von Mises density over longitude."""

    amplitude: FloatArray  # (P, g) integral over longitude = amplitude * integral of exp(-2 q sin^2(t / 2))
    q: FloatArray  # (P, g)
    half_width: FloatArray  # (P,) difference of longitude within which the component reaches the row, radians


class _Piece(NamedTuple):
    component: IntArray  # (P,)
    length: IntArray  # (P,)
    cells: npt.NDArray[np.int32]  # (entries,)
    values: npt.NDArray[np.float32]


def reach_angle(log_concentrations: FloatArray) -> FloatArray:
    """Give the angle from the mean direction beyond which a component counts as nothing.

    Parameters
    ----------
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.

    Returns
    -------
    ndarray of float64, shape (C,)
        Radians; pi for components that cover the sphere.

    Examples
    --------
    >>> round(float(reach_angle(np.array([16.0]))[0]) * 6371.0088, 1)
    13.2
    """
    half_height = REACH / 2.0 * np.exp(-np.asarray(log_concentrations, dtype=np.float64))
    return np.asarray(2.0 * np.arcsin(np.sqrt(np.minimum(half_height, 1.0))))


def make_runs(mean_directions: FloatArray, log_concentrations: FloatArray, components: IntArray, grid: Grid) -> Runs:
    """Integrate components over the raster cells of a cylindrical grid.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    components : ndarray of int64, shape (K,)
        Which of them.
    grid : Grid
        Cylindrical.

    Returns
    -------
    Runs
        Probabilities to about 1e-7 of each component's mass.

    Examples
    --------
    >>> runs = make_runs(np.array([[0.0, 0.0, 1.0]]), np.array([16.0]), np.array([0]), Grid.globe(90.0))
    >>> runs.apply(np.array([1.0])).round(6).tolist()
    [0.25, 0.25, 0.25, 0.25, 0.0, 0.0, 0.0, 0.0]
    """
    pairs = _find_pairs(mean_directions, log_concentrations, components, grid)
    longitude, latitude = sphere.to_longitude_latitude(mean_directions)
    none = np.empty(0, dtype=np.int64)
    pieces = [_Piece(none, none, none.astype(np.int32), none.astype(np.float32))]
    pieces += _pieces(pairs, np.radians(longitude), np.radians(latitude), log_concentrations, grid)
    return collect_runs(
        np.concatenate([piece.component for piece in pieces]),
        np.concatenate([piece.length for piece in pieces]),
        np.concatenate([piece.cells for piece in pieces]),
        np.concatenate([piece.values for piece in pieces]),
        grid.num_cells,
    )


def _find_pairs(
    mean_directions: FloatArray, log_concentrations: FloatArray, components: IntArray, grid: Grid
) -> _Pairs:
    edges = np.radians(grid.degree_edges[1])
    flipped = edges[0] > edges[-1]
    rising = edges[::-1] if flipped else edges
    _, latitude = sphere.to_longitude_latitude(mean_directions[components])
    reach = reach_angle(log_concentrations[components])
    low, high = np.radians(latitude) - reach, np.radians(latitude) + reach
    first = np.clip(np.searchsorted(rising, low, side="right") - 1, 0, rising.size - 1)
    last = np.clip(np.searchsorted(rising, high, side="left"), 0, rising.size - 1)
    which, row = spread(first, np.maximum(last - first, 0))
    inside_low, inside_high = np.maximum(rising[row], low[which]), np.minimum(rising[row + 1], high[which])
    kept = inside_high > inside_low
    row = rising.size - 2 - row if flipped else row
    return _Pairs(components[which][kept], row[kept], inside_low[kept], inside_high[kept])


def spread(first: IntArray, count: IntArray) -> tuple[IntArray, IntArray]:
    """List first[k], first[k] + 1, ... (count[k] of them) for every k: which k, and the number.

    Parameters
    ----------
    first, count : ndarray of int64, shape (K,)
        Where each range begins and how long it is.

    Returns
    -------
    which, number : ndarray of int64, shape (sum of count,)
        In order.

    Examples
    --------
    >>> which, number = spread(np.array([5, 9]), np.array([2, 1]))
    >>> which.tolist(), number.tolist()
    ([0, 0, 1], [5, 6, 9])
    """
    which = np.repeat(np.arange(count.size), count)
    start = np.cumsum(count) - count
    return which, np.arange(which.size) + np.repeat(first - start, count)


def _pieces(
    pairs: _Pairs, longitude: FloatArray, latitude: FloatArray, log_concentrations: FloatArray, grid: Grid
) -> Iterator[_Piece]:
    """Work on pairs that need equally many nodes together."""
    kappa = np.exp(log_concentrations[pairs.component])
    extent = (pairs.high - pairs.low) * np.sqrt(kappa + 4.0)  # the 4: cos(latitude) varies however wide the component
    wanted = quadrature.nodes_for(extent)
    for nodes in np.unique(wanted).tolist():
        (chosen,) = np.nonzero(wanted == nodes)
        for start in range(0, chosen.size, _ENTRIES_AT_ONCE // nodes):
            block = chosen[start : start + _ENTRIES_AT_ONCE // nodes]
            some = pairs.take(block)
            slices = _slice(some, nodes, latitude[some.component], log_concentrations[some.component])
            yield from _integrate(some, slices, longitude[some.component], grid)


def _slice(pairs: _Pairs, nodes: int, latitude: FloatArray, log_kappa: FloatArray) -> _Slices:
    x, w = quadrature.gauss_legendre(nodes)
    width = (pairs.high - pairs.low)[:, None]
    phi = pairs.low[:, None] + width * x  # (P, g)
    kappa = np.exp(log_kappa)[:, None]
    fall = 2.0 * kappa * np.square(np.sin(0.5 * (phi - latitude[:, None])))
    amplitude = np.exp(vmf.log_normaliser(log_kappa)[:, None] - fall) * np.cos(phi) * (w * width)
    q = kappa * np.cos(phi) * np.cos(latitude)[:, None]
    with np.errstate(divide="ignore"):
        room = np.maximum(REACH - fall, 0.0) / (2.0 * np.maximum(q, 1e-300))
    half_width = 2.0 * np.arcsin(np.sqrt(np.minimum(room, 1.0))).max(axis=1)
    # nodes end just inside the row: a little more than the widest of them
    return _Slices(amplitude, q, np.minimum(half_width * 1.05 + 0.3 / np.sqrt(q.max(axis=1) + 1.0), math.pi))


def _integrate(pairs: _Pairs, slices: _Slices, longitude: FloatArray, grid: Grid) -> Iterator[_Piece]:
    wide = slices.q.min(axis=1) < circle.WIDE
    if np.any(wide):
        yield from _whole_rows(*_take(pairs, slices, longitude, wide), grid)
    q = slices.q.min(axis=1)
    edges = np.radians(grid.degree_edges[0])
    fine = np.sqrt(slices.q.max(axis=1)) * (edges[1] - edges[0]) <= _FINE
    kind = np.where(fine, 0, np.searchsorted([500.0, 1e4], q) + 1)  # so that few terms serve most
    for number in range(4):
        chosen = ~wide & (kind == number)
        if np.any(chosen):
            yield from _windows(*_take(pairs, slices, longitude, chosen), grid, fine=number == 0)


def _take(
    pairs: _Pairs, slices: _Slices, longitude: FloatArray, chosen: npt.NDArray[np.bool_]
) -> tuple[_Pairs, _Slices, FloatArray]:
    return (
        pairs.take(np.flatnonzero(chosen)),
        _Slices(*(part[chosen] for part in slices)),
        longitude[chosen],
    )


def _whole_rows(pairs: _Pairs, slices: _Slices, longitude: FloatArray, grid: Grid) -> Iterator[_Piece]:
    """Near a pole, or for wide components: all columns, by the Fourier series over longitude."""
    columns = grid.shape[1]
    edges = np.radians(grid.degree_edges[0])
    step = max(1, _ENTRIES_AT_ONCE // columns)
    for start in range(0, pairs.row.size, step):
        part = slice(start, start + step)
        series = np.einsum("pg,pgn->pn", slices.amplitude[part], circle.fourier(slices.q[part]))
        orders = np.arange(1, series.shape[1])
        wave = series[:, 1:] / orders * np.exp(-1j * orders * longitude[part, None])  # (P, n)
        turns = np.exp(1j * orders[:, None] * edges)  # (n, columns + 1)
        cumulative = wave.real @ turns.imag + wave.imag @ turns.real + series[:, :1] * edges
        values = np.maximum(np.diff(cumulative, axis=1), 0.0)
        cells = (pairs.row[part, None] * columns + np.arange(columns)).astype(np.int32)
        length = np.full(values.shape[0], columns)
        yield _Piece(pairs.component[part], length, cells.ravel(), values.astype(np.float32).ravel())


def _windows(pairs: _Pairs, slices: _Slices, longitude: FloatArray, grid: Grid, *, fine: bool) -> Iterator[_Piece]:
    """Integrate over the columns within reach, on whichever turn of 360 degrees they lie."""
    edges = np.radians(grid.degree_edges[0])
    width = edges[1] - edges[0]
    columns = grid.shape[1]
    start = np.mod(longitude - edges[0], 2.0 * math.pi)
    which = np.tile(np.arange(start.size), 3)
    centre = np.concatenate([start - 2.0 * math.pi, start, start + 2.0 * math.pi])
    first = np.clip(np.floor((centre - slices.half_width[which]) / width), 0, columns).astype(np.int64)
    last = np.clip(np.ceil((centre + slices.half_width[which]) / width), 0, columns).astype(np.int64)
    used = last > first
    which, centre, first, last = which[used], centre[used], first[used], last[used]
    for block in blocks_of(last - first):
        pair, begin, count = which[block], first[block], (last - first)[block]
        amplitude, q = slices.amplitude[pair], slices.q[pair]
        if fine:
            run, column = spread(begin, count)
            values = _by_nodes(column * width - centre[block][run], width, amplitude[run], q[run])
        else:
            run, edge = spread(begin, count + 1)
            half = slices.half_width[pair][run]
            cumulative = circle.integral(np.clip(edge * width - centre[block][run], -half, half)[:, None], q[run])
            inner = np.ones(edge.size - 1, dtype=bool)
            inner[np.cumsum(count + 1)[:-1] - 1] = False  # not from the last edge of a run to the first of the next
            values = np.maximum(np.diff(np.einsum("eg,eg->e", cumulative, amplitude[run]))[inner], 0.0)
            run, column = run[:-1][inner], edge[:-1][inner]
        cells = (pairs.row[pair][run] * columns + column).astype(np.int32)
        yield _Piece(pairs.component[pair], count, cells, values.astype(np.float32))


def _by_nodes(left: FloatArray, width: float, amplitude: FloatArray, q: FloatArray) -> FloatArray:
    """Two Gauss-Legendre nodes for columns that are narrow against the component, whose peak is at longitude 0."""
    total = np.zeros(left.size)
    for x in quadrature.gauss_legendre(2)[0]:
        height = -2.0 * np.square(np.sin(0.5 * left + 0.5 * width * float(x)))
        for k in range(q.shape[1]):
            total += amplitude[:, k] * np.exp(q[:, k] * height)
    return 0.5 * width * total


def blocks_of(counts: IntArray) -> Iterator[slice]:
    """Cut a list of ranges into slices of about 200,000 entries each (a range is never cut).

    Parameters
    ----------
    counts : ndarray of int64, shape (K,)
        Entries of each range.

    Examples
    --------
    >>> list(blocks_of(np.array([150_000, 100_000, 1])))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    cuts = np.searchsorted(ends, np.arange(_ENTRIES_AT_ONCE, total, _ENTRIES_AT_ONCE), side="left") + 1
    borders = np.unique(np.concatenate([[0], cuts, [counts.size]]))
    return (slice(int(a), int(b)) for a, b in itertools.pairwise(borders))
