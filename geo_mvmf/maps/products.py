"""Products of mixtures, raised to powers, found where the product is and not where its factors are.

Two narrow densities that barely overlap have their product far out in the tails of both. So no tail is cut: on every
S2 cell each factor is bounded from above and below by its components' chords to the cell, the product by the product
of the bounds, and cells are split from the faces of the cube on until they hold next to nothing of the product (then
they are left out, and what they may hold is known) or are patches: smooth, and even under the multipliers where that
matters. A component goes on only into cells where it is not e^-30 of its factor. All values are logarithms, so
that products of densities hundreds of standard deviations apart are as exact as others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import patches, s2, vmf
from geo_mvmf.maps.multipliers import Look, Multiplier, look_at
from geo_mvmf.maps.runs import spread
from geo_mvmf.mixture import VmfMixture
from geo_mvmf.patch_nodes import MAX_EDGE

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_SLACK = 30.0  # nats below the others where a component is left out of a cell
_NARROWEST = 36.0  # as in `patches`: where S2 cells end
_COARSEST = 2
_UNEVEN = 0.2  # share of the product on patches that are uneven under the multipliers, above which these are split
_MOST_UNEVEN = 50_000
_MOST_CELLS = 400_000  # cells looked at on one level; beyond, those with least are left out


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
    """One mixture to a power.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    log_peaks : ndarray of float64, shape (C,)
        Log mixing weight plus log density at the mean direction; finite.
    exponent : float
        Power; negative for what is divided by.

    Examples
    --------
    >>> factor_of(VmfMixture([[1.0, 0.0, 0.0]], [9.0], [[0.0]]), 0.5).exponent
    0.5
    """

    mean_directions: FloatArray
    log_concentrations: FloatArray
    log_peaks: FloatArray
    exponent: float


def factor_of(mixture: VmfMixture, exponent: float) -> Factor:
    """Make a factor of the only image of a mixture.

    Parameters
    ----------
    mixture : VmfMixture
        One image.
    exponent : float

    Returns
    -------
    Factor
        Without the components that have no weight.

    Examples
    --------
    >>> factor_of(VmfMixture(np.eye(3), np.zeros(3), [[0.0, -np.inf, -np.inf]]), 1.0).log_peaks.size
    1
    """
    present = np.flatnonzero(mixture.log_mixing_weights[0] > -np.inf)
    log_kappa = np.minimum(mixture.log_concentrations[present], _NARROWEST)
    peaks = mixture.log_mixing_weights[0, present] + vmf.log_normaliser(log_kappa)
    return Factor(mixture.mean_directions[present], log_kappa, peaks, exponent)


class Members(NamedTuple):
    """Components that a factor has in cells: pairs, by cell.

    Parameters
    ----------
    cell : ndarray of int64, shape (K,)
        Rows of the cells, ascending; every cell has one.
    component : ndarray of int64, shape (K,)

    Examples
    --------
    >>> Members(np.array([0, 1, 1]), np.array([5, 7, 8])).take(np.array([False, True])).component.tolist()
    [7, 8]
    """

    cell: IntArray
    component: IntArray

    def take(self, chosen: BoolArray) -> Members:
        """Those of some cells, which are numbered anew."""
        number = np.cumsum(chosen) - 1
        kept = chosen[self.cell]
        return Members(number[self.cell[kept]], self.component[kept])

    def inherited(self, cells: int) -> Members:
        """Those of the four children of every cell."""
        counts = np.bincount(self.cell, minlength=cells)
        first = np.cumsum(counts) - counts
        child, row = spread(np.repeat(first, 4), np.repeat(counts, 4))
        return Members(child, self.component[row])


@dataclasses.dataclass(eq=False)
class Found:
    """Where a product is.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (P,)
        Patches, in no order.
    high : ndarray of float64, shape (P,)
        Greatest factor of the multipliers on each.
    members : list of Members
        Per factor the components of each patch.
    left_out : ndarray of uint64, shape (D,)
        Cells that hold next to nothing.
    log_left_out : float
        Logarithm of the most they hold together.
    """

    cell_ids: IdArray
    high: FloatArray
    members: list[Members]
    left_out: IdArray
    log_left_out: float


class _Level(NamedTuple):
    """Values of the product in the cells of one level, logarithms; without the multipliers."""

    middle: FloatArray
    upper: FloatArray
    steepness: FloatArray  # square root of the greatest concentration that is felt
    total_kappa: FloatArray


def find(factors: Sequence[Factor], multipliers: Sequence[Multiplier], *, cut: float) -> Found:
    """Find the patches of a product.

    Parameters
    ----------
    factors : sequence of Factor
    multipliers : sequence of Multiplier
    cut : float
        Share of the product that may be left out.

    Returns
    -------
    Found
        Without patches where the multipliers leave nothing.

    Examples
    --------
    >>> peak = factor_of(VmfMixture([[1.0, 0.0, 0.0]], [9.0], [[0.0]]), 1.0)
    >>> find([peak], [], cut=1e-4).cell_ids.size > 10
    True
    """
    search = _Search(factors, multipliers, cut)
    cells = s2.face_cells()
    members = [
        Members(np.repeat(np.arange(6), each.log_peaks.size), np.tile(np.arange(each.log_peaks.size), 6))
        for each in factors
    ]
    for level in range(s2.MAX_LEVEL + 1):
        again, members = search.step(level, cells, members)
        cells = s2.children(cells[again]).ravel() if level < s2.MAX_LEVEL else cells[:0]
        members = [each.take(again).inherited(int(again.sum())) for each in members]
        if not cells.size:
            break
    return search.found()


class _Search:
    """The state of `find`: what is known of the product so far."""

    def __init__(self, factors: Sequence[Factor], multipliers: Sequence[Multiplier], cut: float) -> None:
        self._factors, self._multipliers, self._cut = factors, multipliers, cut
        self._log_z = -np.inf  # the product holds at least about this
        self._log_done, self._log_left_out = -np.inf, -np.inf
        self._patches: list[tuple[IdArray, FloatArray, list[Members]]] = []
        self._left_out: list[IdArray] = []

    def step(self, level: int, cells: IdArray, members: list[Members]) -> tuple[BoolArray, list[Members]]:
        """Sort the cells of a level into patches, cells left out, and cells that are split, which are returned."""
        members, values = self._values(cells, members)
        look = look_at(self._multipliers, cells)
        log_area = np.log(s2.area_sr(cells))
        with np.errstate(divide="ignore"):
            mass, upper = values.middle + np.log(look.mean) + log_area, values.upper + np.log(look.high) + log_area
        smooth = (np.ldexp(MAX_EDGE, -level) * values.steepness <= patches.PATCH_SIGMAS) & (level >= _COARSEST)
        smooth |= level == s2.MAX_LEVEL
        # around any point a product of densities falls no faster than a Gaussian of all their concentrations
        one_peak = values.middle + np.minimum(log_area, np.log(2.0 * np.pi) - np.log(values.total_kappa))
        one_peak += self._log_multiplier(cells, look)
        known = np.logaddexp(self._log_done, _log_sum(mass[smooth]))
        self._log_z = max(self._log_z, float(one_peak.max(initial=-np.inf)), float(known))
        kept = self._keep(cells, upper)
        uneven = smooth & ~look.is_even & kept
        split_uneven = level < s2.MAX_LEVEL and self._is_worth_splitting(upper, uneven, kept)
        done = kept & smooth & ~(uneven & split_uneven)
        self._log_done = float(np.logaddexp(self._log_done, _log_sum(mass[done])))
        self._patches.append((cells[done], look.high[done], [each.take(done) for each in members]))
        return kept & ~done, members

    def _values(self, cells: IdArray, members: list[Members]) -> tuple[list[Members], _Level]:
        middles, reach = s2.centre(cells), 2.0 * np.sin(s2.bounding_radius(cells) / 2.0)
        total = _Level(*np.zeros((4, cells.size)))
        kept = []
        for factor, inherited in zip(self._factors, members, strict=True):
            own, found = _bounds(factor, inherited, middles, reach)
            kept.append(own)
            total.middle[:] += found.middle
            total.upper[:] += found.upper
            np.maximum(total.steepness, found.steepness, out=total.steepness)
            total.total_kappa[:] += found.total_kappa
        np.maximum(total.total_kappa, 0.5, out=total.total_kappa)  # flatter than that is spread over the sphere
        return kept, total

    def _log_multiplier(self, cells: IdArray, look: Look) -> FloatArray:
        """Logarithm of the multipliers in the middle of each cell: a mean would promise what may lie off the peak."""
        values, uneven = look.mean.copy(), np.flatnonzero(~look.is_even)
        values[uneven] = look_at(self._multipliers, s2.leaf_ids(s2.centre(cells[uneven]))).mean
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(values))

    def _keep(self, cells: IdArray, upper: FloatArray) -> BoolArray:
        """Leave out the cells that hold least, together no more than the cut."""
        order = np.argsort(upper)
        with np.errstate(over="ignore"):
            sums = np.cumsum(np.exp(np.minimum(upper[order] - self._log_z, 700.0))) if self._log_z > -np.inf else None
        spare = self._cut - np.exp(self._log_left_out - self._log_z) if sums is not None else 0.0
        number = int(np.count_nonzero(upper == -np.inf))
        if sums is not None:
            # half of what may still be left out on each level, so that some remains for finer ones
            number = max(number, int(np.searchsorted(sums, 0.5 * spare, side="right")) if spare > 0.0 else 0)
        number = max(number, cells.size - _MOST_CELLS)
        out = order[:number]
        self._log_left_out = float(np.logaddexp(self._log_left_out, _log_sum(upper[out])))
        self._left_out.append(cells[out])
        kept = np.ones(cells.size, dtype=np.bool_)
        kept[out] = False
        return kept

    def _is_worth_splitting(self, upper: FloatArray, uneven: BoolArray, kept: BoolArray) -> bool:
        log_uneven = _log_sum(upper[uneven])
        log_all = np.logaddexp(self._log_done, _log_sum(upper[kept]))
        return bool(log_uneven > np.log(_UNEVEN) + log_all) and int(uneven.sum()) <= _MOST_UNEVEN

    def found(self) -> Found:
        """Join what was found."""
        cells = np.concatenate([part[0] for part in self._patches])
        high = np.concatenate([part[1] for part in self._patches])
        starts = np.cumsum([0, *(part[0].size for part in self._patches)])
        members = []
        for number in range(len(self._factors)):
            own = [part[2][number] for part in self._patches]
            cell = np.concatenate([each.cell + start for each, start in zip(own, starts, strict=False)])
            members.append(Members(cell, np.concatenate([each.component for each in own])))
        return Found(cells, high, members, np.concatenate(self._left_out), self._log_left_out)


def _bounds(factor: Factor, members: Members, middles: FloatArray, reach: FloatArray) -> tuple[Members, _Level]:
    """Drop components that do not matter in a cell; bound what is left, and evaluate it in the middle."""
    half_kappa = 0.5 * np.exp(factor.log_concentrations)
    cell, component = members
    squared = np.zeros(cell.size)
    for axis in range(3):
        squared += np.square(middles[cell, axis] - factor.mean_directions[component, axis])
    chord, rate, peak = np.sqrt(squared), half_kappa[component], factor.log_peaks[component]
    upper = peak - rate * np.square(np.maximum(chord - reach[cell], 0.0))
    lower = peak - rate * np.square(np.minimum(chord + reach[cell], 2.0))
    best = _largest(lower, cell)
    kept = upper >= best[cell] - _SLACK
    cell, component = cell[kept], component[kept]
    middle = _log_sums(peak[kept] - rate[kept] * squared[kept], cell)
    bound = _log_sums(upper[kept] if factor.exponent > 0.0 else lower[kept], cell)
    kappa = 2.0 * _largest(rate[kept], cell)
    power = factor.exponent
    return Members(cell, component), _Level(power * middle, power * bound, np.sqrt(kappa), abs(power) * kappa)


def _starts(cell: IntArray) -> IntArray:
    return np.flatnonzero(np.diff(cell, prepend=-1))


def _largest(values: FloatArray, cell: IntArray) -> FloatArray:
    return np.asarray(np.maximum.reduceat(values, _starts(cell))) if cell.size else np.empty(0)


def _log_sums(values: FloatArray, cell: IntArray) -> FloatArray:
    if not cell.size:
        return np.empty(0)
    top = _largest(values, cell)
    return np.asarray(top + np.log(np.add.reduceat(np.exp(values - top[cell]), _starts(cell))))


def _log_sum(values: FloatArray) -> float:
    top = float(values.max(initial=-np.inf))
    return top if top == -np.inf else top + float(np.log(np.exp(values - top).sum()))
