"""Scaling: a temperature of the logits and a shift of the log concentrations, fitted by negative log-likelihood.

With z the logits of an image, log f_i(y; k) the log density of component i at its true place y, T = exp(t) and a
shift s, the loss of an image is logsumexp(z / T) - logsumexp(z / T + log f(y; log kappa + s)). Value, gradient and
Hessian by (t, s) are closed forms, so Newton's method ends after a few passes over the logits, always the same way.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from scipy import optimize, special
from torch import Tensor

from geo_mvmf import s2, vmf
from geo_mvmf.cell_mixture import find_cells

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_ELEMENTS = 1 << 20  # logits worked on at once: 8 MB of float64 a buffer
_PRIOR_VARIANCE = 4.0  # of t and s, with the weight of one image: keeps a minimum where data say nothing
_WALL = 8.0  # |t| and |s| stay below: a factor of 3000
_LEVEL = 0.95
_FOLDS = 5


class Terms(NamedTuple):
    """Log densities of the components at the places of some images, all (B, C) float64.

    Parameters
    ----------
    log_density : Tensor
        Nats per steradian; minus infinity outside a cell.
    first, second : Tensor or None
        Derivatives by the shift; None where there is no shift.
    """

    log_density: Tensor
    first: Tensor | None
    second: Tensor | None


class Densities(Protocol):
    """What the components' densities are at the true places."""

    @property
    def has_shift(self) -> bool:
        """Whether the log concentrations can be shifted."""

    def terms(self, rows: IntArray, shift: float) -> Terms:
        """Give the terms of some images."""


class VmfDensities:
    """Of von Mises-Fisher components.

    Parameters
    ----------
    mean_directions : ndarray of float64, (C, 3)
    log_concentrations : ndarray of float64, (C,)
    places : ndarray of float64, (N, 3)
        True directions.

    Examples
    --------
    >>> densities = VmfDensities(np.eye(3), np.zeros(3), np.eye(3)[:1])
    >>> densities.terms(np.array([0]), 0.0).log_density.shape
    torch.Size([1, 3])
    """

    has_shift = True

    def __init__(self, mean_directions: FloatArray, log_concentrations: FloatArray, places: FloatArray) -> None:
        self._mu = torch.from_numpy(np.ascontiguousarray(mean_directions.T))  # (3, C)
        self._log_kappa = log_concentrations
        self._places = torch.from_numpy(np.ascontiguousarray(places))

    def terms(self, rows: IntArray, shift: float) -> Terms:
        """Give log densities and their derivatives.

        Parameters
        ----------
        rows : ndarray of int64, (B,)
        shift : float
            Added to the log concentrations.
        """
        log_kappa = self._log_kappa + shift
        y = self._places[torch.from_numpy(rows)]
        # differences of float64 coordinates: the dot product would lose the digits that count (DESIGN, section 4)
        height = (y[:, 0, None] - self._mu[0]).square_()
        for axis in (1, 2):
            difference = y[:, axis, None] - self._mu[axis]
            height.addcmul_(difference, difference)
        kappa_height = height.mul_(torch.from_numpy(0.5 * np.exp(log_kappa)))  # (B, C)
        slope, bend = _normaliser_derivatives(log_kappa)
        log_normaliser = torch.from_numpy(np.asarray(vmf.log_normaliser(log_kappa)))
        return Terms(
            log_normaliser - kappa_height,
            torch.from_numpy(slope) - kappa_height,
            torch.from_numpy(bend) - kappa_height,
        )


class CellDensities:
    """Of S2 cells with uniform density (the PlaNet baseline).

    Parameters
    ----------
    cell_ids : ndarray of uint64, (C,)
        They tile the sphere.
    places : ndarray of float64, (N, 3)
        True directions.

    Examples
    --------
    >>> densities = CellDensities(np.sort(s2.face_cells()), np.eye(3))
    >>> densities.terms(np.array([0]), 0.0).log_density.exp().sum().round(decimals=4).item()
    0.4775
    """

    has_shift = False

    def __init__(self, cell_ids: npt.NDArray[np.uint64], places: FloatArray) -> None:
        order = np.argsort(cell_ids)
        self._cell = order[find_cells(cell_ids[order], s2.leaf_ids(places))]
        self._log_density = -np.log(s2.area_sr(cell_ids))

    def terms(self, rows: IntArray, shift: float) -> Terms:
        """Give log densities.

        Parameters
        ----------
        rows : ndarray of int64, (B,)
        shift : float
            Has no meaning here.
        """
        del shift
        cell = self._cell[rows]
        log_density = torch.full((rows.size, self._log_density.size), -torch.inf, dtype=torch.float64)
        log_density[torch.arange(rows.size), torch.from_numpy(cell)] = torch.from_numpy(self._log_density[cell])
        return Terms(log_density, None, None)


class Losses(NamedTuple):
    """Per image: loss in nats (n,), gradient (n, 2) and Hessian (n, 2, 2) by (log temperature, shift)."""

    value: FloatArray
    gradient: FloatArray
    hessian: FloatArray


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What was fitted, with 95 % intervals that hold for images in groups.

    Parameters
    ----------
    log_temperature, shift : float
        Of the logits; added to the log concentrations.
    half_width : ndarray of float64, (2,)
        Half of the interval of each; 0 for what was not fitted.
    before : ndarray of float64, (N,)
        Loss of each image as it was, nats.
    after : ndarray of float64, (N,)
        Loss of each image by a scaling that was fitted without its group.
    """

    log_temperature: float
    shift: float
    half_width: FloatArray
    before: FloatArray
    after: FloatArray


def losses(logits: npt.NDArray[np.float32], densities: Densities, rows: IntArray, theta: FloatArray) -> Losses:
    """Compute loss, gradient and Hessian of each image.

    Parameters
    ----------
    logits : ndarray of float32, (N, C)
        Up to a constant per image.
    densities : Densities
        Of N images.
    rows : ndarray of int64, (n,)
        Which images.
    theta : ndarray of float64, (2,)
        Log temperature and shift.

    Returns
    -------
    Losses

    Examples
    --------
    >>> uniform = VmfDensities(np.eye(3), np.full(3, -12.0), np.eye(3))
    >>> losses(np.zeros((3, 3), np.float32), uniform, np.arange(3), np.zeros(2)).value.round(3).tolist()
    [2.531, 2.531, 2.531]
    """
    step = max(1, _ELEMENTS // logits.shape[1])
    parts = [_block(logits, densities, rows[start : start + step], theta) for start in range(0, rows.size, step)]
    return Losses(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def fit(logits: npt.NDArray[np.float32], densities: Densities, groups: IntArray) -> Scaling:
    """Fit temperature and shift, and judge them on groups that were left out.

    Parameters
    ----------
    logits : ndarray of float32, (N, C)
        Up to a constant per image.
    densities : Densities
        Of N images.
    groups : ndarray of int64, (N,)
        Images of one group are not independent: intervals count groups, and no group is on both sides of a fold.

    Returns
    -------
    Scaling

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> mean_directions = np.concatenate([np.eye(3), -np.eye(3)])
    >>> densities = VmfDensities(mean_directions, np.full(6, 3.0), mean_directions[generator.integers(0, 6, 50)])
    >>> scaling = fit(np.zeros((50, 6), np.float32), densities, np.arange(50))
    >>> scaling.shift > 1.0  # the truths lie on the mean directions
    True
    """
    everything = np.arange(groups.size)
    theta = _minimise(logits, densities, everything, np.zeros(2))
    after = np.empty(groups.size)
    for test in _folds(groups):
        own = _minimise(logits, densities, np.setdiff1d(everything, test), theta)
        after[test] = losses(logits, densities, test, own).value
    return Scaling(
        float(theta[0]),
        float(theta[1]),
        _half_width(losses(logits, densities, everything, theta), groups, has_shift=densities.has_shift),
        losses(logits, densities, everything, np.zeros(2)).value,
        after,
    )


def mean_with_groups(values: FloatArray, groups: IntArray) -> tuple[float, float, float]:
    """Give a mean whose interval holds for images in groups.

    Parameters
    ----------
    values : ndarray of float64, (N,)
    groups : ndarray of int64, (N,)

    Returns
    -------
    value, low, high : float
        The mean over images and its 95 % interval: Student's t over the groups' sums of deviations.

    Examples
    --------
    >>> value, low, high = mean_with_groups(np.array([1.0, 1.0, 3.0, 3.0]), np.array([0, 0, 1, 1]))
    >>> value, low < value < high
    (2.0, True)
    """
    mean = float(values.mean())
    sums = _group_sums((values - mean)[:, None], groups)
    half = _quantile(len(sums)) * float(np.sqrt(_spread(sums)[0, 0])) / values.size
    return mean, mean - half, mean + half


def _normaliser_derivatives(log_kappa: FloatArray) -> tuple[FloatArray, FloatArray]:
    """First and second derivative of log c by log kappa."""
    x = 2.0 * np.exp(np.minimum(log_kappa, 5.5))  # beyond, q is 0 in float64
    q = x / np.expm1(x)
    return 1.0 - q, q * (x / -np.expm1(-x) - 1.0)


def _block(logits: npt.NDArray[np.float32], densities: Densities, rows: IntArray, theta: FloatArray) -> Losses:
    a = torch.from_numpy(np.asarray(logits[rows], dtype=np.float64)).mul_(float(np.exp(-theta[0])))  # (B, C)
    terms = densities.terms(rows, float(theta[1]))
    joint = a + terms.log_density
    value = torch.logsumexp(a, 1) - torch.logsumexp(joint, 1)
    prior, posterior = torch.softmax(a, 1), torch.softmax(joint, 1)
    mean_prior, mean = (prior * a).sum(1), (posterior * a).sum(1)
    gradient, hessian = torch.zeros(rows.size, 2).double(), torch.zeros(rows.size, 2, 2).double()
    gradient[:, 0] = mean - mean_prior
    hessian[:, 0, 0] = _variance(prior, a, mean_prior) - _variance(posterior, a, mean) - gradient[:, 0]
    if terms.first is not None and terms.second is not None:
        slope = (posterior * terms.first).sum(1)
        gradient[:, 1] = -slope
        hessian[:, 1, 1] = -_variance(posterior, terms.first, slope) - (posterior * terms.second).sum(1)
        offset = terms.first - slope[:, None]
        hessian[:, 0, 1] = hessian[:, 1, 0] = (posterior * (a - mean[:, None]) * offset).sum(1)
    else:
        hessian[:, 1, 1] = 1.0  # a shift without effect
    return Losses(value.numpy(), gradient.numpy(), hessian.numpy())


def _variance(weight: Tensor, values: Tensor, mean: Tensor) -> Tensor:
    return (weight * (values - mean[:, None]).square()).sum(1)


def _minimise(
    logits: npt.NDArray[np.float32], densities: Densities, rows: IntArray, start: FloatArray
) -> npt.NDArray[np.float64]:
    """Minimise the mean loss, a weak prior and a wall by a trust-region Newton method."""
    weight = 1.0 / (_PRIOR_VARIANCE * max(rows.size, 1))
    # truths exactly on mean directions would let the concentrations grow for ever; of no weight below |theta| = 3
    power = 10
    seen: dict[bytes, Losses] = {}

    def mean_losses(theta: FloatArray) -> Losses:
        key = theta.tobytes()
        if key not in seen:
            found = losses(logits, densities, rows, theta)
            seen[key] = Losses(*(each.mean(axis=0) for each in found))
        return seen[key]

    def value(theta: Any) -> float:
        return float(mean_losses(theta).value + 0.5 * weight * theta @ theta + ((theta / _WALL) ** power).sum())

    def gradient(theta: Any) -> Any:
        return mean_losses(theta).gradient + weight * theta + power / _WALL * (theta / _WALL) ** (power - 1)

    def hessian(theta: Any) -> Any:
        wall = power * (power - 1) / _WALL**2 * (theta / _WALL) ** (power - 2)
        return mean_losses(theta).hessian + np.diag(weight + wall)

    first: Any = start  # scipy's types know no array whose number of axes is open
    result = optimize.minimize(value, first, jac=gradient, hess=hessian, method="trust-exact", tol=1e-8)
    return np.asarray(result.x, dtype=np.float64)


def _folds(groups: IntArray) -> list[IntArray]:
    """Images of each fold; the groups are dealt out from the largest on, so that folds are of like size."""
    names, counts = np.unique(groups, return_counts=True)
    load, fold_of = np.zeros(min(_FOLDS, names.size)), np.empty(names.size, dtype=np.int64)
    for place in np.argsort(-counts, kind="stable"):
        lightest = int(np.argmin(load))
        load[lightest] += counts[place]
        fold_of[place] = lightest
    fold = fold_of[np.searchsorted(names, groups)]
    return [np.flatnonzero(fold == number) for number in range(load.size)]


def _half_width(found: Losses, groups: IntArray, *, has_shift: bool) -> FloatArray:
    """Half of the interval by the sandwich of Hessian and the groups' summed gradients."""
    number = 2 if has_shift else 1
    hessian = found.hessian.sum(axis=0)[:number, :number] + np.eye(number) / _PRIOR_VARIANCE
    inverse = np.linalg.inv(hessian)
    sums = _group_sums(found.gradient[:, :number], groups)
    covariance = inverse @ _spread(sums) @ inverse
    half = np.zeros(2)
    half[:number] = _quantile(len(sums)) * np.sqrt(np.diag(covariance))
    return half


def _group_sums(values: FloatArray, groups: IntArray) -> FloatArray:
    _, place = np.unique(groups, return_inverse=True)
    sums = np.zeros((int(place.max()) + 1, values.shape[1]))
    np.add.at(sums, place, values)
    return sums


def _spread(sums: FloatArray) -> FloatArray:
    """Covariance of a total over groups, with the factor for few of them."""
    return np.asarray(sums.T @ sums * (len(sums) / max(len(sums) - 1, 1)))


def _quantile(groups: int) -> float:
    return float(special.stdtrit(max(groups - 1, 1), (1.0 + _LEVEL) / 2.0))
