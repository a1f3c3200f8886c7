"""The values of a product at the nodes of its patches; patches on which polynomials do not fit are split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from geo_mvmf import patch_density, patches, s2, s2_curve
from geo_mvmf.maps.products import Factor, Found, Members
from geo_mvmf.patch_nodes import NODES, member_terms, nodes_of, point_terms, rule

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_VALUES_AT_ONCE = 1 << 19
_ROUNDS = 4  # of splitting patches on which the polynomials do not fit


class ProductNodes:
    """The product at the nodes of patches; as `tessellation.Nodes`.

    The values are those of the product times the greatest factor of the multipliers, over their integral.

    Parameters
    ----------
    factors : sequence of Factor
    found : Found
        With patches.
    misfit : float
        Share of the product by which the polynomials through the nodes may be wrong before patches are split.

    Attributes
    ----------
    cell_ids, high : ndarray, shape (P,)
        Patches and greatest factors, by id.
    log_total : float
        Logarithm of the integral.
    misfit : float
        What was reached.

    Examples
    --------
    >>> from geo_mvmf.maps import products
    >>> peak = Factor(np.eye(3)[:1], np.array([9.0]), np.array([9.0 - np.log(2.0 * np.pi)]), 1.0)
    >>> round(ProductNodes([peak], products.find([peak], [], cut=1e-5), misfit=1e-4).log_total, 3)
    0.0
    """

    def __init__(self, factors: Sequence[Factor], found: Found, *, misfit: float) -> None:
        self._factors = factors
        cells, high, members = found.cell_ids, found.high, found.members
        logs = self._log_values(cells, members)
        masses, errors, top = _masses(cells, logs, high)
        for _ in range(_ROUNDS):
            bad = _worst(errors, misfit * masses.sum()) & (s2.level(cells) < s2.MAX_LEVEL - 2)
            if not bad.any():
                break
            children, inherited = s2.children(cells[bad]).ravel(), [_children(each, bad) for each in members]
            members = [_joined(each.take(~bad), new) for each, new in zip(members, inherited, strict=True)]
            cells = np.concatenate([cells[~bad], children])
            logs = np.concatenate([logs[~bad], self._log_values(children, inherited)])
            high = np.concatenate([high[~bad], np.repeat(high[bad], 4)])
            masses, errors, top = _masses(cells, logs, high)
        order = np.argsort(cells)
        self.cell_ids, self.high = cells[order], high[order]
        self.log_total = float(np.log(masses.sum()) + top)
        self.misfit = float(errors.sum() / masses.sum())
        self._density = np.exp(logs[order] - self.log_total) * self.high[:, None]

    def blocks(self) -> Iterator[slice]:
        """Give ranges of patches whose values fit into one temporary array."""
        step = patch_density.VALUES_AT_ONCE // NODES**2
        return (slice(start, start + step) for start in range(0, self.cell_ids.size, step))

    def of(self, block: slice) -> patches.Block:
        """Give the values of one of `blocks`."""
        cells = self.cell_ids[block]
        element = nodes_of(cells)[3]
        return patches.Block(cells, self._density[block].reshape(element.shape), element)

    def _log_values(self, cells: IdArray, members: Sequence[Members]) -> FloatArray:
        """Logarithm of the product at all nodes, (P, NODES^2)."""
        total = np.zeros((cells.size, NODES**2))
        for factor, own in zip(self._factors, members, strict=True):
            counts = np.bincount(own.cell, minlength=cells.size)
            first = np.cumsum(counts) - counts
            order = np.argsort(-counts, kind="stable")
            start = 0
            while start < cells.size:
                step = max(1, _VALUES_AT_ONCE // (NODES**2 * int(counts[order[start]])))
                rows = order[start : start + step]
                total[rows] += factor.exponent * _log_mix(factor, cells[rows], first[rows], counts[rows], own.component)
                start += step
        return total


def _children(members: Members, split: BoolArray) -> Members:
    return members.take(split).inherited(int(split.sum()))


def _joined(first: Members, second: Members) -> Members:
    cells = int(first.cell[-1]) + 1 if first.cell.size else 0
    return Members(
        np.concatenate([first.cell, second.cell + cells]), np.concatenate([first.component, second.component])
    )


def _log_mix(factor: Factor, cells: IdArray, first: IntArray, counts: IntArray, component: IntArray) -> FloatArray:
    """Log density of one factor at the nodes, (m, NODES^2), its terms summed as logarithms."""
    face, local, middle, _ = nodes_of(cells)
    column = np.arange(int(counts.max()))
    present = column < counts[:, None]  # (m, k)
    member = component[np.where(present, first[:, None] + column, first[:, None])]
    half_kappa = -0.5 * np.exp(factor.log_concentrations)[member]
    apart = middle[:, None] - factor.mean_directions[member] @ s2_curve.FROM_FACE[face]  # (m, k, 3)
    terms = member_terms(apart, half_kappa, factor.log_peaks[member], present)
    exponents = terms @ point_terms(local, middle)  # (m, k, NODES^2)
    top = exponents.max(axis=1)
    exponents -= top[:, None]
    return np.asarray(top + np.log(np.exp(exponents, out=exponents).sum(axis=1)))


def _masses(cells: IdArray, logs: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray, float]:
    """Integrals over patches, how far the polynomials may be off, and the logarithm both are relative to."""
    _, coefficients = rule()
    masses, errors = np.empty((2, cells.size))
    with np.errstate(divide="ignore"):
        top = float((logs.max(axis=1) + np.log(high)).max())
    weights = coefficients[0]  # the mean over a side
    step = patch_density.VALUES_AT_ONCE // NODES**2
    for start in range(0, cells.size, step):
        block = slice(start, start + step)
        element = nodes_of(cells[block])[3] * np.ldexp(1.0, -2 * s2.level(cells[block]))[:, None, None]
        values = np.exp(logs[block] - top).reshape(element.shape) * element * high[block, None, None]
        masses[block] = values @ weights @ weights
        shape = np.abs(coefficients @ values @ coefficients.T)
        errors[block] = shape.sum(axis=(1, 2)) - shape[:, : NODES - 2, : NODES - 2].sum(axis=(1, 2))
    return masses, errors, top


def _worst(errors: FloatArray, allowed: float) -> BoolArray:
    """The fewest that have to go so that the others together err by no more than allowed."""
    order = np.argsort(errors)
    bad = np.zeros(errors.size, dtype=np.bool_)
    bad[order[int(np.searchsorted(np.cumsum(errors[order]), allowed, side="right")) :]] = True
    return bad
