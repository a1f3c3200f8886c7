"""Wide components on a cylindrical grid: their sum on a coarse lattice, integrated exactly from there.

A component of width sigma is sampled on the nodes of a lattice of meridians and parallels with spacing at most
sigma / 3. Between nodes the density is the polynomial of degree 15 through the nearest 16, which leaves 1.4e-7 of the
peak; over a raster cell that polynomial is integrated exactly (with the cosine of latitude, by quadrature). Both steps
are products with banded matrices. Lattices of several spacings form a cascade: the sum on a coarse one is interpolated
onto the next. Past a pole a lattice goes on, on the meridian of the other side, so a pole is a place like any other.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from geo_mvmf import sphere, vmf
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.quadrature import gauss_legendre
from geo_mvmf.maps.runs import REACH, Runs, blocks_of, collect_runs, reach_angle, spread

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TAPS = 16  # nodes of one interpolation
FINENESS = 3.0  # nodes per sigma, at least
_ROWS_AT_ONCE = 32  # of a lattice, interpolated along columns together
_COARSEST = 30  # rows of the coarsest lattice: 6 degrees serve every component, however wide
_ROOT = math.sqrt(2.0)  # ratio of spacings; a finer choice would make more lattices, a coarser one more nodes


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Nodes at the crossings of meridians and parallels.

    Parameters
    ----------
    divisions : int
        Rows from pole to pole; the spacing is pi / divisions radians both ways.
    first_row, rows : int
        Row j has latitude -90 degrees + (j + 1/2) spacings; rows below 0 or from `divisions` on lie past a pole.
    first_column, columns : int
        Column k has longitude k spacings. All 2 * divisions columns are the whole circle.
    """

    divisions: int
    first_row: int
    rows: int
    first_column: int
    columns: int

    @property
    def spacing(self) -> float:
        """Radians from node to node."""
        return math.pi / self.divisions

    @property
    def closed(self) -> bool:
        """Whether the columns are the whole circle."""
        return self.columns == 2 * self.divisions

    def latitudes(self) -> FloatArray:
        """Latitudes of the rows, shape (rows,), radians; beyond pi/2 past the poles."""
        return np.asarray((self.first_row + np.arange(self.rows) + 0.5) * self.spacing - 0.5 * math.pi)

    def longitudes(self) -> FloatArray:
        """Longitudes of the columns, shape (columns,), radians."""
        return np.asarray((self.first_column + np.arange(self.columns)) * self.spacing)


class Steps(NamedTuple):
    """Matrices that take values on a lattice elsewhere: rows (m, lattice rows) and columns (n, lattice columns)."""

    rows: sparse.csr_array
    columns: sparse.csr_array

    def apply(self, values: FloatArray) -> FloatArray:
        """Interpolate, or integrate, values (lattice rows, lattice columns) to (m, n)."""
        across = np.empty((values.shape[0], self.columns.shape[0]))
        for start in range(0, values.shape[0], _ROWS_AT_ONCE):  # turned over in the cache, not in memory
            block = slice(start, start + _ROWS_AT_ONCE)
            across[block] = (self.columns @ np.ascontiguousarray(values[block].T)).T
        return np.asarray(self.rows @ across)


def divisions_for(log_concentrations: FloatArray) -> IntArray:
    """Choose the lattice for each component.

    Parameters
    ----------
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.

    Returns
    -------
    ndarray of int64, shape (C,)
        Rows from pole to pole: the fewest in the row 30, 42, 60, 85, 120, ... with three nodes per sigma.

    Examples
    --------
    >>> divisions_for(np.array([-5.0, 4.0, 8.0])).tolist()
    [30, 85, 679]
    """
    wanted = FINENESS * math.pi * np.exp(0.5 * np.asarray(log_concentrations, dtype=np.float64))
    step = np.maximum(np.ceil(np.log(np.maximum(wanted / _COARSEST, 1.0)) / math.log(_ROOT) - 1e-9), 0.0)
    return np.ceil(_COARSEST * _ROOT**step - 1e-9).astype(np.int64)


def covering(divisions: int, south: float, north: float, west: float, east: float) -> Lattice:
    """Make the lattice whose interpolation is valid on a rectangle.

    Parameters
    ----------
    divisions : int
        Rows from pole to pole.
    south, north, west, east : float
        Radians; latitudes may lie past the poles.

    Examples
    --------
    >>> covering(30, -1.5, 1.5, -3.14, 3.14).closed
    True
    """
    spacing = math.pi / divisions
    margin = TAPS // 2
    bottom = math.floor((south + 0.5 * math.pi) / spacing - 0.5) - margin + 1
    top = math.floor((north + 0.5 * math.pi) / spacing - 0.5) + margin
    left, right = math.floor(west / spacing) - margin + 1, math.floor(east / spacing) + margin
    if right - left + 1 >= 2 * divisions:
        left, right = 0, 2 * divisions - 1
    return Lattice(divisions, bottom, top - bottom + 1, left, right - left + 1)


def sample_components(
    mean_directions: FloatArray, log_concentrations: FloatArray, components: IntArray, lattice: Lattice
) -> Runs:
    """Evaluate components at the nodes of a lattice, where they reach.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    components : ndarray of int64, shape (K,)
        Which of them.
    lattice : Lattice
        Where.

    Returns
    -------
    Runs
        Its matrix holds densities per steradian, (runs, nodes row by row).
    """
    longitude, latitude = (np.radians(part) for part in sphere.to_longitude_latitude(mean_directions))
    which, row = _reached_rows(latitude[components], reach_angle(log_concentrations[components]), lattice)
    component = components[which]
    phi = lattice.latitudes()[row]
    past = np.abs(phi) > 0.5 * math.pi  # on the other side of a pole
    phi = np.where(past, np.copysign(math.pi, phi) - phi, phi)
    kappa = np.exp(log_concentrations[component])
    fall = 2.0 * kappa * np.square(np.sin(0.5 * (phi - latitude[component])))
    q = kappa * np.cos(phi) * np.cos(latitude[component])
    room = np.maximum(REACH - fall, 0.0) / (2.0 * np.maximum(q, 1e-300))
    half_width = 2.0 * np.arcsin(np.sqrt(np.minimum(room, 1.0)))
    peak = vmf.log_normaliser(log_concentrations[component]) - fall
    centre = longitude[component] + math.pi * past
    return _evaluate(component, row, centre, half_width, peak, q, lattice)


def _reached_rows(latitude: FloatArray, reach: FloatArray, lattice: Lattice) -> tuple[IntArray, IntArray]:
    """Pairs (component, row counted from the first) within reach; rows past the poles included."""
    phi = lattice.latitudes()
    inside = np.flatnonzero(np.abs(phi) <= 0.5 * math.pi)
    pieces_which, pieces_row = [], []
    if inside.size:
        first = np.asarray(inside[0] + np.searchsorted(phi[inside], latitude - reach), dtype=np.int64)
        last = np.asarray(inside[0] + np.searchsorted(phi[inside], latitude + reach, side="right"), dtype=np.int64)
        which, row = spread(first, last - first)
        pieces_which.append(which)
        pieces_row.append(row)
    for past in np.flatnonzero(np.abs(phi) > 0.5 * math.pi):
        (near,) = np.nonzero(np.abs(np.copysign(math.pi, phi[past]) - phi[past] - latitude) <= reach)
        pieces_which.append(near)
        pieces_row.append(np.full(near.size, past))
    return np.concatenate(pieces_which), np.concatenate(pieces_row)


def _evaluate(
    component: IntArray,
    row: IntArray,
    centre: FloatArray,
    half_width: FloatArray,
    peak: FloatArray,
    q: FloatArray,
    lattice: Lattice,
) -> Runs:
    run, first, count = _column_ranges(centre, half_width, lattice)
    cells = np.empty(int(count.sum()), dtype=np.int32)
    values = np.empty(cells.size, dtype=np.float32)
    ends = np.concatenate([[0], np.cumsum(count)])
    for block in blocks_of(count):
        which, column = spread(first[block], count[block])
        own = run[block][which]
        angle = (lattice.first_column + column) * lattice.spacing - centre[own]
        target = slice(int(ends[block.start]), int(ends[block.stop]))
        values[target] = np.exp(peak[own] - 2.0 * q[own] * np.square(np.sin(0.5 * angle)))
        cells[target] = row[own] * lattice.columns + column
    return collect_runs(component[run], count, cells, values, lattice.rows * lattice.columns)


def _column_ranges(centre: FloatArray, half_width: FloatArray, lattice: Lattice) -> tuple[IntArray, IntArray, IntArray]:
    """List runs of columns from the first, on whichever turn of the circle: (which pair, first, count)."""
    circle = 2 * lattice.divisions
    where = np.mod(centre / lattice.spacing - lattice.first_column, circle)
    half = half_width / lattice.spacing
    low = np.ceil(where - half).astype(np.int64)
    high = np.minimum(np.floor(where + half).astype(np.int64), low + circle - 1)
    which = np.tile(np.arange(centre.size), 3)
    turn = np.repeat(np.array([-circle, 0, circle]), centre.size)
    first = np.clip(low[which] + turn, 0, lattice.columns)
    last = np.clip(high[which] + turn + 1, 0, lattice.columns)
    used = last > first
    return which[used], first[used], (last - first)[used]


def steps_between(coarse: Lattice, fine: Lattice) -> Steps:
    """Make the interpolation from one lattice to the nodes of another that it covers.

    Parameters
    ----------
    coarse, fine : Lattice
        The coarse one made by `covering` for the rectangle of the fine one.
    """
    rows = _row_positions(coarse, fine.latitudes())
    columns = fine.longitudes() / coarse.spacing - coarse.first_column
    return Steps(_interpolation(rows, coarse.rows, None), _interpolation(columns, coarse.columns, _period(coarse)))


def steps_to_grid(lattice: Lattice, grid: Grid) -> Steps:
    """Make the integration over the raster cells of a cylindrical grid.

    Parameters
    ----------
    lattice : Lattice
        One that covers the grid.
    grid : Grid
        Cylindrical.

    Returns
    -------
    Steps
        From densities per steradian to probabilities.
    """
    x, y = (np.radians(edges) for edges in grid.degree_edges)
    rows = _row_positions(lattice, y)
    flip = rows[0] > rows[-1]
    shape = (grid.shape[0], lattice.rows)
    by_rows = _integration(rows[::-1] if flip else rows, lattice, shape, along_rows=True)
    columns = x / lattice.spacing - lattice.first_column
    by_columns = _integration(columns, lattice, (grid.shape[1], lattice.columns), along_rows=False)
    return Steps(by_rows[::-1] if flip else by_rows, by_columns)


def _period(lattice: Lattice) -> int | None:
    return lattice.columns if lattice.closed else None


def _row_positions(lattice: Lattice, latitude: FloatArray) -> FloatArray:
    return np.asarray((latitude + 0.5 * math.pi) / lattice.spacing - 0.5 - lattice.first_row)


def lagrange(positions: FloatArray, taps: int) -> tuple[IntArray, FloatArray]:
    """Weigh the nearest nodes of a lattice of spacing 1.

    Parameters
    ----------
    positions : ndarray of float64, shape (n,)
        Where; node k is at k.
    taps : int
        How many nodes, even.

    Returns
    -------
    first : ndarray of int64, shape (n,)
        The first of the nodes.
    weights : ndarray of float64, shape (n, taps)
        Lagrange's polynomials (barycentric form); sum to 1.

    Examples
    --------
    >>> first, weights = lagrange(np.array([2.25]), 2)
    >>> first.tolist(), weights.tolist()
    ([2], [[0.75, 0.25]])
    """
    base = np.floor(positions).astype(np.int64)
    first = base - taps // 2 + 1
    offset = positions[:, None] - (first[:, None] + np.arange(taps))
    barycentric = np.array([(-1.0) ** k * math.comb(taps - 1, k) for k in range(taps)])
    exact = np.abs(offset) < 1e-12
    terms = barycentric / np.where(exact, 1.0, offset)
    weights = terms / terms.sum(axis=1, keepdims=True)
    on_node = exact.any(axis=1)
    weights[on_node] = exact[on_node]
    return first, weights


def _interpolation(positions: FloatArray, nodes: int, period: int | None) -> sparse.csr_array:
    first, weights = lagrange(positions, TAPS)
    return _banded(np.arange(positions.size), first, weights, (positions.size, nodes), period)


def _integration(edges: FloatArray, lattice: Lattice, shape: tuple[int, int], *, along_rows: bool) -> sparse.csr_array:
    """Integrals of the interpolating polynomials between rising edges, in radians; times cos(latitude) for rows."""
    knots = np.arange(math.floor(edges[0]) + 1, math.ceil(edges[-1]))
    breaks = np.union1d(edges, knots)
    x, w = gauss_legendre(TAPS // 2 + 2)
    length = np.diff(breaks)
    positions = breaks[:-1, None] + length[:, None] * x
    cell = np.clip(np.searchsorted(edges, 0.5 * (breaks[:-1] + breaks[1:]), side="right") - 1, 0, edges.size - 2)
    weights = lattice.spacing * length[:, None] * w
    if along_rows:
        latitude = (positions + lattice.first_row + 0.5) * lattice.spacing - 0.5 * math.pi
        weights = weights * np.cos(latitude)
    first, taps = lagrange(positions.ravel(), TAPS)
    rows = np.repeat(cell, x.size)
    period = _period(lattice) if not along_rows else None
    return _banded(rows, first, taps * weights.reshape(-1, 1), shape, period)


def _banded(
    rows: IntArray, first: IntArray, weights: FloatArray, shape: tuple[int, int], period: int | None
) -> sparse.csr_array:
    columns = first[:, None] + np.arange(weights.shape[1])
    if period is not None:
        columns = np.mod(columns, period)
    entries = (weights.ravel(), (np.repeat(rows, weights.shape[1]), columns.ravel()))
    matrix = sparse.coo_array(entries, shape=shape).tocsr()
    matrix.sum_duplicates()
    return matrix
