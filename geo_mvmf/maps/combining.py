"""Images, a prior, areas and rasters -> one density on S2 cells: the normalised product of all of them.

The smooth part is tiled where the product is (`products`, `tessellation`); densities on cells are laid over it
exactly; cells on the borders of areas and of raster cells are split until they no longer matter. The total variation
distance to the exact product is added up on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, tessellation
from geo_mvmf.cell_mixture import find_cells
from geo_mvmf.maps import product_nodes, products
from geo_mvmf.maps.multipliers import CellMultiplier, Multiplier, look_at
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
Mixture = VmfMixture | CellMixture

MASS_ERROR = 5e-3
"""Largest total variation distance to the exact result, unless another is asked for."""

_MOST_CELLS = 4_000_000
# shares of the allowed error: left out, misfit of polynomials, spread over what was left out so that no density is 0
_CUT, _MISFIT, _FLOOR = 0.03, 0.02, 5e-5
_SMOOTH, _BORDER = 0.6, 0.3  # uniform cells, on smooth patches and on borders; all to the first where there is none
_ATTEMPTS = 3


class Evidence(NamedTuple):
    """What some evidence leaves.

    Parameters
    ----------
    mixture : CellMixture or None
        One image; None where nothing is left, or less than was asked for.
    log_mass : float
        Natural logarithm of the integral before it was made 1: of one image in an area the probability of the area;
        of images of one place how much likelier they are together than apart (negative: they disagree).

    Examples
    --------
    >>> half = CellMultiplier(s2.children(s2.face_cells()[0])[:2], np.ones(2))
    >>> found = combine([VmfMixture([[1.0, 0.0, 0.0]], [9.0], [[0.0]])], multipliers=[half])
    >>> round(float(np.exp(found.log_mass)), 2)
    0.5
    """

    mixture: CellMixture | None
    log_mass: float


def combine(
    images: Sequence[Mixture],
    *,
    prior: Mixture | None = None,
    keep_prior: bool = True,
    independence: float = 1.0,
    multipliers: Sequence[Multiplier] = (),
    max_mass_error: float = MASS_ERROR,
    max_cells: int = _MOST_CELLS,
    least: float = 0.0,
) -> Evidence:
    """Combine images of one place, a prior and any number of areas and prior rasters in one product.

    Parameters
    ----------
    images : sequence of VmfMixture or CellMixture
        One image each.
    prior : VmfMixture or CellMixture, optional
        One image; see `fuse`.
    keep_prior : bool
        False: the multipliers take the place of the prior.
    independence : float
        See `fuse`.
    multipliers : sequence of Multiplier
        Areas, prior rasters.
    max_mass_error : float
        Largest total variation distance to the exact result.
    max_cells : int
        About how many cells there may be; where that is not enough, `mass_errors` says so and a
        `coarse_cells.CoarseCellsWarning` is given.
    least : float
        Integral of the product below which no density is made of it.

    Returns
    -------
    Evidence

    Raises
    ------
    ValueError
        If there is no image, independence is not in 0..1, or the prior is of several images.

    Examples
    --------
    See `Evidence`.
    """
    if not images or any(len(image) != 1 for image in images):
        raise ValueError(f"images of {[len(image) for image in images][:8]} densities: one or more with one each")
    if prior is not None and len(prior) != 1:
        raise ValueError(f"the prior holds {len(prior)} densities, not one")
    if not 0.0 <= independence <= 1.0:
        raise ValueError(f"independence {independence} is not in 0..1")
    share = (1.0 + (len(images) - 1) * independence) / len(images)
    powers = [share] * len(images)
    everything = list(images)
    left = float(keep_prior) - share * len(images)
    if prior is not None and abs(left) > 1e-12:
        everything, powers = [*everything, prior], [*powers, left]
    factors, cells, scale = _sorted_out(everything, powers)
    allowed, attempts = max_mass_error, _ATTEMPTS
    while True:
        piece, log_mass = _product(factors, cells, multipliers, allowed, max_cells, _log(least) - scale)
        if piece is None:
            return Evidence(None, log_mass + scale)
        attempts -= 1
        if piece.mass_error <= max_mass_error or 4 * piece.cell_ids.size > max_cells or not attempts:
            return Evidence(tessellation.assemble([piece], max_mass_error), log_mass + scale)
        allowed = max(0.8 * allowed * max_mass_error / piece.mass_error, 1e-6)


def _sorted_out(
    mixtures: Sequence[Mixture], powers: Sequence[float]
) -> tuple[list[products.Factor], list[CellMultiplier], float]:
    """Smooth factors; factors on cells, whose greatest value is made 1; and the logarithm of what that took away."""
    factors, cells, scale = [], [], 0.0
    for mixture, power in zip(mixtures, powers, strict=True):
        if isinstance(mixture, VmfMixture):
            factors.append(products.factor_of(mixture, power))
            continue
        ids, probabilities = mixture.of(0)
        held = probabilities > 0.0
        logs = power * np.log(probabilities[held] / s2.area_sr(ids[held]))
        scale += float(logs.max())
        cells.append(CellMultiplier(ids[held], np.exp(logs - logs.max())))
    return factors, cells, scale


class _Tiled(NamedTuple):
    """A product before borders: cells, their masses and how far they err together, times exp(log_scale)."""

    ids: IdArray
    masses: FloatArray
    error: float
    log_scale: float
    left_out: IdArray


def _product(
    factors: list[products.Factor],
    cells: list[CellMultiplier],
    borders: Sequence[Multiplier],
    allowed: float,
    max_cells: int,
    log_least: float,
) -> tuple[tessellation.Tessellation | None, float]:
    """Tile a product, unless its integral is too small; also the logarithm of the integral."""
    tiled = _smooth(factors, cells, borders, allowed, max_cells) if factors else _cells_alone(cells)
    log_mass = tiled.log_scale + _log(float(tiled.masses.sum()))
    if log_mass == -math.inf or log_mass < log_least - 2.0:  # clearly, though borders are not yet looked at closely
        return None, log_mass
    ids, masses, border_error = _sharpened(tiled.ids, tiled.masses, borders, _BORDER * allowed, max_cells // 4)
    total = float(masses.sum())
    log_mass = tiled.log_scale + _log(total)
    if log_mass == -math.inf or log_mass < log_least:
        return None, log_mass
    spread, shares = _left_out(tiled.left_out, [*cells, *borders])
    rest = _FLOOR * allowed if spread.size else 0.0
    ids, probabilities = np.concatenate([ids, spread]), np.concatenate([masses * ((1.0 - rest) / total), shares * rest])
    order = np.argsort(ids)
    error = (tiled.error + border_error) / total + rest
    return tessellation.Tessellation(ids[order], probabilities[order], error), log_mass


def _smooth(
    factors: list[products.Factor],
    cells: list[CellMultiplier],
    borders: Sequence[Multiplier],
    allowed: float,
    max_cells: int,
) -> _Tiled:
    """Tile smooth factors where the whole product is, and lay those on cells over them."""
    found = products.find(factors, [*cells, *borders], cut=_CUT * allowed)
    if not found.cell_ids.size:
        return _Tiled(found.cell_ids, np.empty(0), 0.0, 0.0, found.left_out)
    nodes = product_nodes.ProductNodes(factors, found, misfit=_MISFIT * allowed)
    budget = allowed * (_SMOOTH if borders else _SMOOTH + _BORDER)
    pieces, error = tessellation.refine(nodes, budget, max_cells)
    ids = np.concatenate([piece.cell_ids for piece in pieces])
    order = np.argsort(ids)
    ids, masses = ids[order], np.concatenate([piece.masses for piece in pieces])[order]
    masses = masses / nodes.high[find_cells(nodes.cell_ids, ids)]
    for multiplier in cells:
        ids, masses = _overlaid(ids, masses, multiplier)
    error += nodes.misfit + math.exp(min(found.log_left_out - nodes.log_total, 0.0))
    return _Tiled(ids, masses, error, nodes.log_total, found.left_out)


def _cells_alone(cells: list[CellMultiplier]) -> _Tiled:
    """Densities on cells are multiplied exactly."""
    ids = cells[0].cells
    masses = cells[0].values * s2.area_sr(ids)
    for multiplier in cells[1:]:
        ids, masses = _overlaid(ids, masses, multiplier)
    return _Tiled(ids, masses, 0.0, 0.0, ids[:0])


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf


def _overlaid(ids: IdArray, masses: FloatArray, multiplier: CellMultiplier) -> tuple[IdArray, FloatArray]:
    """Multiply a density on cells by one on others: the smaller cell of each pair that overlaps."""
    held = find_cells(multiplier.cells, ids)  # -1 for one that is itself larger
    whole = held >= 0
    holder = find_cells(ids, multiplier.cells)
    inner = np.flatnonzero(holder >= 0)
    inner = inner[multiplier.cells[inner] != ids[holder[inner]]]
    small, large = multiplier.cells[inner], holder[inner]
    shares = masses[large] * s2.area_sr(small) / s2.area_sr(ids[large]) * multiplier.values[inner]
    cells = np.concatenate([ids[whole], small])
    product = np.concatenate([masses[whole] * multiplier.values[held[whole]], shares])
    order = np.argsort(cells)
    return cells[order], product[order]


def _sharpened(
    ids: IdArray, masses: FloatArray, borders: Sequence[Multiplier], allowed: float, max_cells: int
) -> tuple[IdArray, FloatArray, float]:
    """Multiply cells by areas and rasters; those on borders are split until together they err by a share allowed."""
    if not borders:
        return ids, masses, 0.0
    max_cells += ids.size
    done_ids, done_masses, error, total, number = [], [], 0.0, 0.0, 0
    while ids.size:
        look = look_at(borders, ids)
        kept, errors = masses * look.mean, masses * look.errors()
        order = np.argsort(errors)
        spare = 0.5 * allowed * (total + float(kept.sum())) - error
        stays = np.zeros(ids.size, dtype=np.bool_)
        stays[order[: np.searchsorted(np.cumsum(errors[order]), max(spare, 0.0), side="right")]] = True
        crowded = number + ids.size + 3 * int((~stays).sum()) > max_cells
        enough = errors.sum() + error <= allowed * (total + kept.sum())
        stays |= enough | crowded | (s2.level(ids) == s2.MAX_LEVEL)
        held = stays & (kept > 0.0)
        done_ids.append(ids[held])
        done_masses.append(kept[held])
        error, total = error + float(errors[stays].sum()), total + float(kept[held].sum())
        number += int(held.sum())
        children = s2.children(ids[~stays])
        shares = s2.area_sr(children) / s2.area_sr(ids[~stays])[:, None]
        ids, masses = children.ravel(), (masses[~stays, None] * shares).ravel()
    return np.concatenate(done_ids), np.concatenate(done_masses), error


def _left_out(cells: IdArray, multipliers: Sequence[Multiplier]) -> tuple[IdArray, FloatArray]:
    """Cells that were left out of a product though nothing forbids them, and their shares of area."""
    allowed = look_at(multipliers, cells).low > 0.0
    areas = s2.area_sr(cells[allowed])
    return cells[allowed], areas / max(float(areas.sum()), 1e-300)
