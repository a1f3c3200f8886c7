"""One mixture of vMF components -> S2 cells with uniform density, fine where the probability is.

1. Components are dropped, and tails cut, that together hold at most a twentieth of the allowed error.
2. `patches` are found, on which the density is a polynomial; the mass and the mean derivatives of every smaller cell
   follow by small matrix products.
3. A uniform cell errs by half the integral of |density - mean|, which the mean derivatives bound (the first order
   exactly, the second by the triangle inequality; the third is neglected). The fewest cells for a given total are
   those that err equally, so there is one threshold: predicted from a quarter of each patch's side, proved by the sum
   over the cells found.
4. What was dropped or cut is spread evenly over the sphere, so that no density is zero and all sum to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from geo_mvmf import patch_density, patches, s2, s2_curve
from geo_mvmf.cell_mixture import CellMixture
from geo_mvmf.coarse_cells import warn_if_coarse
from geo_mvmf.patch_nodes import operators

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_CUT = 0.05  # share of the allowed error given to dropped components and tails
_AIM = 1.02  # share of the rest aimed at: real sums come out 2 to 11 per cent below the predicted ones
_ATTEMPTS = 6  # at lowering the threshold
_BINS_PER_LEVEL = 32  # of the histogram of errors
_THINNEST, _DENSEST, _BIN = -60.0, 40.0, 0.01  # logarithms of densities per steradian that are told apart
_DOUBT = 1.25  # third derivatives are neglected
_BAND = 0.03  # of a density that is crossed: it is known to a per cent or so
_SMOOTH_CELLS, _SMOOTHER = 3000, 25.0  # cells along borders that cost little, and how much less they then err at least
_DEEPEST = -100  # its lower end in levels: errors below 8^-100 count as that


class Tessellation(NamedTuple):
    """Cells that tile the sphere.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (T,)
        Sorted, disjoint.
    probabilities : ndarray of float64, shape (T,)
        Positive, sum to 1.
    mass_error : float
        Total variation distance to the mixture.

    Examples
    --------
    >>> Tessellation(s2.face_cells(), np.full(6, 1 / 6), 0.0).mass_error
    0.0
    """

    cell_ids: IdArray
    probabilities: FloatArray
    mass_error: float


class Pieces(NamedTuple):
    """Cells with their probabilities and their areas in steradians, each of shape (k,).

    Examples
    --------
    >>> Pieces(s2.face_cells(), np.full(6, 1 / 6), s2.area_sr(s2.face_cells())).cell_ids.size
    6
    """

    cell_ids: IdArray
    masses: FloatArray
    areas: FloatArray


class Nodes(Protocol):
    """Density and area element at the nodes of patches, a block at a time; see `patches.NodeValues`."""

    def blocks(self) -> Iterator[slice]:
        """Give ranges of patches whose values fit into one temporary array."""

    def of(self, block: slice) -> patches.Block:
        """Give the values of one of `blocks`."""


def tessellate(
    mean_directions: FloatArray,
    log_concentrations: FloatArray,
    weights: FloatArray,
    *,
    max_mass_error: float,
    max_cells: int,
    levels: Sequence[float] | None = None,
) -> Tessellation:
    """Tile the sphere with cells of uniform density close to one mixture.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa; taken as at most 36 (sigma = 0.1 m), where S2 cells end.
    weights : ndarray of float64, shape (C,)
        Mixing weights, sum 1.
    max_mass_error : float
        Largest total variation distance to the mixture, in 1e-5..0.5.
    max_cells : int
        About how many cells there may be.
    levels : sequence of float, optional
        For credible regions at these levels only: cells are fine along the borders of the regions, and only those
        count for the error, which then may exceed what was asked for by a tenth or two.

    Returns
    -------
    Tessellation
        Its `mass_error` exceeds `max_mass_error` only where `max_cells` was too few.

    Raises
    ------
    ValueError
        `max_mass_error` is outside its range, or `max_cells` is not positive.

    Examples
    --------
    >>> cells = tessellate(np.eye(3)[:1], np.zeros(1), np.ones(1), max_mass_error=0.05, max_cells=1000)
    >>> cells.mass_error <= 0.05, round(float(cells.probabilities.sum()), 12)
    (True, 1.0)
    """
    if not 1e-5 <= max_mass_error <= 0.5:
        raise ValueError(f"max_mass_error is {max_mass_error}; it must be in 1e-5..0.5")
    if max_cells < 1:
        raise ValueError(f"max_cells is {max_cells}; it must be positive")
    chosen = patches.choose_components(mean_directions, log_concentrations, weights, cut=_CUT * max_mass_error)
    nodes = patches.NodeValues(patches.find_patches(chosen), chosen)
    crossed = values_of_levels(nodes, levels) if levels is not None else None
    pieces, error = refine(nodes, (1.0 - _CUT) * max_mass_error, max_cells, crossed=crossed)
    empty = nodes.patches.empty
    return _spread([*pieces, Pieces(empty, np.zeros(empty.size), s2.area_sr(empty))], error, max_mass_error)


def refine(
    nodes: Nodes, budget: float, max_cells: int, *, crossed: FloatArray | None = None
) -> tuple[list[Pieces], float]:
    """Split patches into the fewest cells whose uniform densities err by no more than allowed.

    Parameters
    ----------
    nodes : Nodes
        Density at the nodes of patches, whose integral over all patches is about 1.
    budget : float
        Allowed half integral of |density - mean|, over all cells that count.
    max_cells : int
        About how many cells there may be.
    crossed : ndarray of float64, optional
        Densities per steradian: only cells in which the density may cross one of them count and are split, once, as
        predicted.

    Returns
    -------
    pieces : list of Pieces
        Cells that tile the patches.
    error : float
        What was reached; exceeds the budget only where `max_cells` was too few, or a little with `crossed`.

    Examples
    --------
    >>> wide = patches.choose_components(np.eye(3)[:1], np.full(1, -3.0), np.ones(1), cut=1e-6)
    >>> refine(patches.NodeValues(patches.find_patches(wide), wide), 0.01, 10_000)[1] <= 0.01
    True
    """
    threshold, enough = _threshold(nodes, _AIM * budget, max_cells, crossed)
    pieces, error = _refine(nodes, threshold, crossed)
    for _ in range(_ATTEMPTS if enough and crossed is None else 0):
        if error <= budget:
            break
        threshold *= 0.9 * (_AIM * budget / error) ** 3
        pieces, error = _refine(nodes, threshold, crossed)
    return pieces, error


def values_of_levels(nodes: Nodes, levels: Sequence[float]) -> FloatArray:
    """Find the densities above which given shares of the probability lie.

    Parameters
    ----------
    nodes : Nodes
    levels : sequence of float
        Shares of the probability of all patches, between 0 and 1.

    Returns
    -------
    ndarray of float64, shape (L,)
        Per steradian, to about a per cent: from the means of cells two levels below the patches.

    Examples
    --------
    >>> peak = patches.choose_components(np.eye(3)[:1], np.full(1, 12.0), np.ones(1), cut=1e-6)
    >>> nodes = patches.NodeValues(patches.find_patches(peak), peak)
    >>> (values_of_levels(nodes, [0.5]) / (np.exp(12.0) / (2.0 * np.pi))).round(2).tolist()
    [0.5]
    """
    masses = np.zeros(round((_DENSEST - _THINNEST) / _BIN) + 1)
    mean, _, _ = operators(2)
    for block in nodes.blocks():
        values = nodes.of(block)
        density = np.maximum(mean @ values.density @ mean.T, 1e-300)
        square = np.ldexp(1.0, -2 * (s2.level(values.cell_ids) + 2))[:, None, None]
        bins = np.clip((np.log(density) - _THINNEST) / _BIN, 0, masses.size - 1).astype(np.int64)
        held = mean @ (values.density * values.element) @ mean.T * square
        masses += np.bincount(bins.ravel(), held.ravel(), minlength=masses.size)
    above = np.cumsum(masses[::-1])[::-1]  # held from the lower edge of each bin on
    edges = _THINNEST + _BIN * np.arange(masses.size)
    return np.asarray(np.exp(np.interp(-np.asarray(levels) * above[0], -above, edges)))


def assemble(pieces: Sequence[Tessellation], max_mass_error: float) -> CellMixture:
    """Join the cells of several images into one CellMixture.

    Parameters
    ----------
    pieces : sequence of Tessellation
        One per image.
    max_mass_error : float
        What was asked for.

    Warns
    -----
    CoarseCellsWarning
        An image has a larger error.

    Examples
    --------
    >>> len(assemble([Tessellation(s2.face_cells(), np.full(6, 1 / 6), 0.0)] * 2, 1e-3))
    2
    """
    errors = np.array([piece.mass_error for piece in pieces], dtype=np.float64)
    warn_if_coarse(errors, max_mass_error)
    return CellMixture(
        np.concatenate([np.empty(0, dtype=np.uint64), *(piece.cell_ids for piece in pieces)]),
        np.concatenate([np.empty(0), *(piece.probabilities for piece in pieces)]),
        np.cumsum([0, *(piece.cell_ids.size for piece in pieces)]),
        errors,
    )


def _threshold(nodes: Nodes, target: float, max_cells: int, crossed: FloatArray | None) -> tuple[float, bool]:
    """Give the error per cell for which all errors sum to the target; larger where that needs too many cells.

    The errors of cells two levels below the patches are sorted into bins a fraction of a level wide. An error falls
    by 8 per level (it goes with side^3) while the number grows by 4, or by 2 along a line.
    """
    top, growth = 1.0, 4.0 if crossed is None else 2.0  # levels above an error of 1: none is larger
    counts = np.zeros(int((top - _DEEPEST) * _BINS_PER_LEVEL) + 1)
    for block in nodes.blocks():
        errors, matters = _errors(_near(nodes.of(block), crossed), 2, crossed)
        level = np.log2(np.maximum(errors[matters], 1e-300)) / 3.0
        bins = np.clip((level - _DEEPEST) * _BINS_PER_LEVEL, 0, counts.size - 1).astype(np.int64)
        counts += np.bincount(bins.ravel(), minlength=counts.size)
    levels = _DEEPEST + (np.arange(counts.size) + 0.5) / _BINS_PER_LEVEL
    wanted = _highest(lambda chosen: _predicted(levels, counts, chosen, growth)[0] <= target, levels)
    possible = _lowest(lambda chosen: _predicted(levels, counts, chosen, growth)[1] <= max_cells, levels)
    if crossed is not None:  # where that costs little a border is drawn finer than it must be, so that it looks smooth
        fine = _lowest(lambda chosen: _predicted(levels, counts, chosen, growth)[1] <= _SMOOTH_CELLS, levels)
        least = _highest(lambda chosen: _predicted(levels, counts, chosen, growth)[0] <= target / _SMOOTHER, levels)
        wanted = min(wanted, max(fine, least))
    return float(8.0 ** max(wanted, possible)), wanted >= possible


def _predicted(levels: FloatArray, counts: FloatArray, threshold: float, growth: float) -> tuple[float, float]:
    """Sum of errors and number of cells when every cell is split until its error is below 8^threshold."""
    splits = np.maximum(np.ceil(levels - threshold), -2.0)  # -2: the patch itself
    return float(counts @ (8.0**levels * (growth / 8.0) ** splits)), float(counts @ growth**splits)


def _highest(holds: Callable[[float], bool], levels: FloatArray) -> float:
    """Highest level for which something holds that holds for all low ones, by bisection."""
    low, high = 0, levels.size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(levels[middle]) else (low, middle)
    return float(levels[low])


def _lowest(holds: Callable[[float], bool], levels: FloatArray) -> float:
    """Lowest level for which something holds that holds for all high ones, by bisection."""
    return -_highest(lambda chosen: holds(-chosen), -levels[::-1])


def _refine(nodes: Nodes, threshold: float, crossed: FloatArray | None) -> tuple[list[Pieces], float]:
    """Split every patch until each cell that counts errs by less; the cells, and the sum of their errors."""
    pieces: list[Pieces] = []
    total = 0.0
    for block in nodes.blocks():
        values = nodes.of(block)
        finest = s2.MAX_LEVEL - s2.level(values.cell_ids)
        stack = list(_deeper(np.arange(finest.size), np.ones((finest.size, 1, 1), dtype=np.bool_), 0))
        while stack:
            depth, rows, open_ = stack.pop()
            part = patches.Block(values.cell_ids[rows], values.density[rows], values.element[rows])
            errors, matters = _errors(part, depth, crossed)
            leaf = open_ & ((errors <= threshold) | ~matters | (finest[rows] <= depth)[:, None, None])
            total += float(errors[leaf & matters].sum())
            pieces.append(_leaves(part, leaf, depth))
            stack.extend(_deeper(rows, (open_ & ~leaf).repeat(2, axis=1).repeat(2, axis=2), depth + 1))
    return pieces, total


def _deeper(rows: IntArray, open_: BoolArray, depth: int) -> Iterator[tuple[int, IntArray, BoolArray]]:
    """Work left at a depth, in portions that fit into one temporary array."""
    going = open_.any(axis=(1, 2))
    rows, open_ = rows[going], open_[going]
    step = max(1, patch_density.VALUES_AT_ONCE >> (2 * depth))
    for start in range(0, rows.size, step):
        yield depth, rows[start : start + step], open_[start : start + step]


def _leaves(values: patches.Block, leaf: BoolArray, depth: int) -> Pieces:
    """Give ids, masses and areas of the chosen cells of one depth."""
    patch, column, row = np.nonzero(leaf)
    mean, _, _ = operators(depth)
    levels = s2.level(values.cell_ids) + depth
    square = np.ldexp(1.0, -2 * levels)[patch]
    masses = (mean @ (values.density * values.element) @ mean.T)[leaf] * square
    areas = (mean @ values.element @ mean.T)[leaf] * square
    face, i, j = s2_curve.decode(values.cell_ids)
    size = np.int64(1) << (s2.MAX_LEVEL - levels)  # leaf squares along a chosen cell
    low = ~((size << depth) - 1)
    i, j = (i & low)[patch] + column * size[patch], (j & low)[patch] + row * size[patch]
    return Pieces(s2.parent(s2_curve.encode(face[patch], i, j), levels[patch]), masses, areas)


def _errors(values: patches.Block, depth: int, crossed: FloatArray | None) -> tuple[FloatArray, BoolArray]:
    """Half the integral of |density - mean| over the 2^depth x 2^depth cells of each patch, and which cells count."""
    mean, first, second = operators(depth)
    size = 1 << depth
    along_t = values.density @ np.concatenate([mean, first, second]).T  # (m, NODES, 3 size)
    plain, slope, bend = along_t[..., :size], along_t[..., size : 2 * size], along_t[..., 2 * size :]
    a, b, both = np.abs(first @ plain), np.abs(mean @ slope), np.abs(first @ slope)
    bends = np.abs(second @ plain) + np.abs(mean @ bend)
    high, low = np.maximum(np.maximum(a, b), 1e-300), np.minimum(a, b)
    # mean |a x + b y| over the unit square; then those of x^2/2 - 1/24, which is sqrt(3)/54, and of x y, 1/16
    errors = high / 4.0 + low * low / (12.0 * high) + np.sqrt(3.0) / 54.0 * bends + both / 16.0
    areas = np.ldexp(values.element.max(axis=(1, 2)), -2 * (s2.level(values.cell_ids) + depth))
    errors *= 0.5 * areas[:, None, None]
    if crossed is None:
        return errors, np.ones(errors.shape, dtype=np.bool_)
    if depth == 0:
        return errors, _crosses(values, crossed)[:, None, None]
    return errors, _within(mean @ plain, _DOUBT * (0.5 * (a + b) + bends / 8.0 + both / 4.0), crossed)


def _crosses(values: patches.Block, crossed: FloatArray) -> BoolArray:
    """Which patches the density may cross a value in: they are too large for derivatives to say, but not for nodes."""
    least, most = values.density.min(axis=(1, 2)), values.density.max(axis=(1, 2))
    return _within(0.5 * (least + most), 0.6 * (most - least), crossed)


def _within(middle: FloatArray, reach: FloatArray, crossed: FloatArray) -> BoolArray:
    result = np.zeros(middle.shape, dtype=np.bool_)
    for value in crossed:
        result |= np.abs(middle - value) <= reach + _BAND * value
    return result


def _near(values: patches.Block, crossed: FloatArray | None) -> patches.Block:
    """Those patches that a value may be crossed in."""
    if crossed is None:
        return values
    rows = _crosses(values, crossed)
    return patches.Block(values.cell_ids[rows], values.density[rows], values.element[rows])


def _spread(pieces: Sequence[Pieces], error: float, max_mass_error: float) -> Tessellation:
    """Join the cells, and spread the mass that was dropped or cut evenly over the sphere."""
    ids, masses, areas = (np.concatenate(part) for part in zip(*pieces, strict=True))
    order = np.argsort(ids)
    covered = float(masses.sum())
    rest = max(1.0 - covered, 1e-3 * _CUT * max_mass_error)  # never 0: a density of 0 would be a certainty
    probabilities = masses[order] * ((1.0 - rest) / covered) + areas[order] * (rest / float(areas.sum()))
    return Tessellation(ids[order], probabilities / probabilities.sum(), error + rest)
