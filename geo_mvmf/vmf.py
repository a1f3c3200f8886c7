"""One von Mises-Fisher component: density, caps, sampling.

The density on the unit sphere, per steradian, is ``c(kappa) exp(-kappa |y - mu|^2 / 2)``: the chord form, which keeps
its digits where ``kappa (mu.y - 1)`` loses them. Every function takes the natural logarithm of the concentration,
computes in float64 and broadcasts. Radii and offsets are radians.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from geo_mvmf import sphere

FloatArray = npt.NDArray[np.float64]

LOG_4PI = math.log(4.0 * math.pi)
SERIES_BELOW = 1e-3  # concentration below which the series of log c is used
_NODES = 40  # Gauss-Legendre nodes of one off-centre cap: their error is below 1e-14 (32 nodes: 1e-11)
_HALF_WIDTH = 8.0  # in sigma: the mass beyond is exp(-32) = 1e-14
_PAIRS_AT_ONCE = 8192  # (pairs, nodes) arrays of 4 MB stay in the cache


def log_normaliser(log_concentration: npt.ArrayLike) -> FloatArray:
    """Give log c(kappa), the log density at the mean direction.

    Parameters
    ----------
    log_concentration : array_like of float, shape (...)
        Natural logarithm of kappa; minus infinity is the uniform density.

    Returns
    -------
    ndarray of float64, shape (...)
        Nats per steradian.

    Notes
    -----
    Source: Izbicki et al. 2019, eq. 1, with the missing 1/4pi: ``log kappa - log 2pi - log(1 - exp(-2
    kappa))``; below 1e-3 the series ``-log 4pi + kappa - kappa^2/6 + kappa^4/180``.

    Examples
    --------
    >>> round(float(log_normaliser(-12.0) + math.log(4 * math.pi)), 5)
    1e-05
    """
    log_kappa = _floats(log_concentration)
    kappa = np.exp(log_kappa)
    small = kappa < SERIES_BELOW
    series = -LOG_4PI + kappa - kappa**2 / 6.0 + kappa**4 / 180.0
    safe = np.where(small, 0.0, log_kappa)
    large = safe - math.log(2.0 * math.pi) - np.log(-np.expm1(-2.0 * np.exp(safe)))
    return np.where(small, series, large)


def log_density(
    directions: npt.ArrayLike, mean_direction: npt.ArrayLike, log_concentration: npt.ArrayLike
) -> FloatArray:
    """Evaluate the log density at directions.

    Parameters
    ----------
    directions, mean_direction : array_like of float, shapes (..., 3) that broadcast
        Unit vectors.
    log_concentration : array_like of float, shape (...)
        Natural logarithm of kappa; broadcasts against the shapes without their last axis.

    Returns
    -------
    ndarray of float64, shape (...)
        Nats per steradian.

    Examples
    --------
    >>> round(float(log_density([0.0, 0.0, 1.0], [0.0, 0.0, 1.0], 16.0)), 4)
    14.1621
    """
    log_kappa = _floats(log_concentration)
    difference = _floats(directions) - _floats(mean_direction)
    chord_squared = np.einsum("...i,...i->...", difference, difference)
    return np.asarray(log_normaliser(log_kappa) - 0.5 * np.exp(log_kappa) * chord_squared)


def density_max(log_concentration: npt.ArrayLike) -> FloatArray:
    """Give the density at the mean direction, per steradian.

    Parameters
    ----------
    log_concentration : array_like of float, shape (...)
        Natural logarithm of kappa.

    Examples
    --------
    >>> round(float(density_max(16.0)), 0)
    1414268.0
    """
    return np.exp(log_normaliser(log_concentration))


def cap_probability(radius: npt.ArrayLike, log_concentration: npt.ArrayLike) -> FloatArray:
    """Give the probability of the cap about the mean direction.

    Parameters
    ----------
    radius : array_like of float, shape (...)
        Radians; below 0 counts as 0 and above pi as pi.
    log_concentration : array_like of float, shape (...)
        Natural logarithm of kappa.

    Returns
    -------
    ndarray of float64, shape (...)
        P(angle <= radius) = (1 - exp(-kappa (1 - cos r))) / (1 - exp(-2 kappa)).

    Examples
    --------
    >>> round(float(cap_probability(2.52 / 6371.0088, 16.0)), 3)
    0.501
    """
    height = 2.0 * np.sin(np.clip(_floats(radius), 0.0, math.pi) / 2.0) ** 2
    return _cap_mass(height, np.exp(_floats(log_concentration)))


def cap_quantile(probability: npt.ArrayLike, log_concentration: npt.ArrayLike) -> FloatArray:
    """Give the radius about the mean direction that holds a probability.

    Parameters
    ----------
    probability : array_like of float, shape (...)
        In 0..1.
    log_concentration : array_like of float, shape (...)
        Natural logarithm of kappa.

    Returns
    -------
    ndarray of float64, shape (...)
        Radians.

    Raises
    ------
    ValueError
        A probability is outside 0..1 or NaN.

    Examples
    --------
    >>> round(float(cap_quantile(0.5, 16.0)) * 6371.0088, 2)
    2.52
    """
    share = _probabilities(probability)
    return _radius_of_height(_height_quantile(share, np.exp(_floats(log_concentration))))


def probability_within(offset: npt.ArrayLike, radius: npt.ArrayLike, log_concentration: npt.ArrayLike) -> FloatArray:
    """Give the probability of a cap whose centre is away from the mean direction.

    Parameters
    ----------
    offset : array_like of float, shape (...)
        Angle between the cap's centre and the mean direction, radians in 0..pi.
    radius : array_like of float, shape (...)
        Radius of the cap, radians; below 0 counts as 0 and above pi as pi.
    log_concentration : array_like of float, shape (...)
        Natural logarithm of kappa. All three broadcast.

    Returns
    -------
    ndarray of float64, shape (...)
        Probabilities; absolute error below 1e-12.

    Notes
    -----
    kappa / (1 - exp(-2 kappa)) times the integral over t in 0..radius of
    exp(-2 kappa sin^2((t - offset) / 2)) i0e(kappa sin t sin offset) sin t, by Gauss-Legendre quadrature where
    |t - offset| is below 8 sigma; caps that hold the whole of that range have probability 1 to 1e-14.

    Examples
    --------
    >>> round(float(probability_within(0.0, 0.1, 5.0) - cap_probability(0.1, 5.0)), 12)
    0.0
    """
    delta, reach, log_kappa = np.broadcast_arrays(
        _floats(offset), np.clip(_floats(radius), 0.0, math.pi), _floats(log_concentration)
    )
    shape = delta.shape
    delta, reach, kappa = delta.ravel(), reach.ravel(), np.exp(log_kappa).ravel()
    # all but exp(-32) of the mass lies within this angle of the mean direction: 8 sigma, or the whole sphere
    width = _radius_of_height(np.minimum(2.0, _HALF_WIDTH**2 / (2.0 * np.maximum(kappa, 1e-300))))
    result = np.where(reach >= math.pi, 1.0, (reach - delta >= width).astype(np.float64))
    # below minus 40 sigma even the largest density times the whole cap underflows
    (todo,) = np.nonzero((result < 1.0) & (reach > 0.0) & (delta - reach < 5.0 * width))
    for start in range(0, todo.size, _PAIRS_AT_ONCE):
        block = todo[start : start + _PAIRS_AT_ONCE]
        result[block] = _off_centre(delta[block], reach[block], kappa[block], width[block])
    return np.where(np.isnan(delta + reach + kappa), np.nan, result).reshape(shape)


def sample(
    mean_direction: npt.ArrayLike, log_concentration: npt.ArrayLike, generator: np.random.Generator
) -> FloatArray:
    """Draw one direction for each mean direction.

    Parameters
    ----------
    mean_direction : array_like of float, shape (..., 3)
        Unit vectors.
    log_concentration : array_like of float, shape (...)
        Natural logarithm of kappa; broadcasts against the mean directions without their last axis.
    generator : numpy.random.Generator
        Where the randomness comes from.

    Returns
    -------
    ndarray of float64, shape (..., 3)
        Unit vectors.

    Notes
    -----
    Closed form (no rejection): the height 1 - cos(angle) is the cap quantile of a uniform number.

    Examples
    --------
    >>> drawn = sample([0.0, 0.0, 1.0], np.full(1000, 16.0), np.random.default_rng(0))
    >>> drawn.shape, bool(drawn[:, 2].min() > 0.99)
    ((1000, 3), True)
    """
    mean = _floats(mean_direction)
    kappa = np.exp(_floats(log_concentration))
    shape = np.broadcast_shapes(mean.shape[:-1], kappa.shape)
    height = _height_quantile(generator.random(shape), kappa)
    turn = generator.uniform(0.0, 2.0 * math.pi, shape)
    first, second = _frame(mean)
    across = np.cos(turn)[..., None] * first + np.sin(turn)[..., None] * second
    drawn = (1.0 - height)[..., None] * mean + np.sqrt(height * (2.0 - height))[..., None] * across
    return np.asarray(drawn / np.linalg.norm(drawn, axis=-1, keepdims=True))


def log_concentration_for(radius: npt.ArrayLike, probability: npt.ArrayLike) -> FloatArray:
    """Find the log concentration for which a cap about the mean direction holds a probability.

    Parameters
    ----------
    radius : array_like of float, shape (...)
        Radians in 0..pi.
    probability : array_like of float, shape (...)
        In 0..1, and more than the share of the sphere that the cap covers.

    Returns
    -------
    ndarray of float64, shape (...)
        Natural logarithm of kappa.

    Raises
    ------
    ValueError
        No concentration does it: the cap's share of the sphere is as large as the probability already.

    Notes
    -----
    Source: PRIOR_ART 3.3, kappa = -log1p(-s) / (2 sin^2(t/2)), is the start; Newton's steps add what that form
    neglects (1 - exp(-2 kappa)), which matters for caps of continental size only.

    Examples
    --------
    >>> round(float(log_concentration_for(5.23 / 6371.0088, 0.95)), 2)
    16.0
    """
    share = _probabilities(probability)
    height = 2.0 * np.sin(np.clip(_floats(radius), 0.0, math.pi) / 2.0) ** 2
    share, height = np.broadcast_arrays(share, height)
    wrong = ~((share < 1.0) & (share > height / 2.0) & (height > 0.0))
    if np.any(wrong):
        share_of_sphere = height[wrong].flat[0] / 2.0
        raise ValueError(
            f"no concentration puts probability {share[wrong].flat[0]} into a cap that is {share_of_sphere} of the"
            f" sphere (radius {2.0 * math.asin(math.sqrt(share_of_sphere))} rad); it must be between that and 1"
        )
    kappa = -np.log1p(-share) / height
    for _ in range(60):  # concave and started right of the root: Newton descends monotonically
        decay = np.exp(-2.0 * kappa)
        left = 1.0 - share * (1.0 - decay)
        slope = 2.0 * share * decay / (left * height) - 1.0
        kappa = np.maximum(kappa - (-np.log(left) / height - kappa) / slope, 1e-300)
    return np.log(kappa)


def entropy(log_concentration: npt.ArrayLike) -> FloatArray:
    """Give the differential entropy.

    Parameters
    ----------
    log_concentration : array_like of float, shape (...)
        Natural logarithm of kappa.

    Returns
    -------
    ndarray of float64, shape (...)
        Nats against area on the unit sphere; uniform = log 4 pi.

    Notes
    -----
    -log c + kappa (1 - A), A = coth kappa - 1/kappa, so kappa (1 - A) = 1 - 2 kappa / (exp(2 kappa) - 1).

    Examples
    --------
    >>> round(float(entropy(-12.0)), 6) == round(math.log(4 * math.pi), 6)
    True
    """
    kappa = np.exp(_floats(log_concentration))
    decay = np.exp(-2.0 * kappa)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(kappa > 0.0, 2.0 * kappa * decay / -np.expm1(-2.0 * kappa), 1.0)
    return np.asarray(1.0 - ratio - log_normaliser(log_concentration))


@functools.cache
def _gauss_legendre(nodes: int) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights on 0..1."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1.0) / 2.0, w / 2.0


def _off_centre(delta: FloatArray, reach: FloatArray, kappa: FloatArray, width: FloatArray) -> FloatArray:
    """Quadrature for P pairs; the lower end follows the cap's edge so that far tails keep their relative digits."""
    high = np.minimum(reach, delta + width)
    low = np.maximum(0.0, np.minimum(delta, reach) - width)
    x, w = _gauss_legendre(_NODES)
    t = low[:, None] + (high - low)[:, None] * x  # (P, nodes)
    sin_t = np.sin(t)
    value = np.exp(-2.0 * kappa[:, None] * np.sin((t - delta[:, None]) / 2.0) ** 2)
    value *= special.i0e((kappa * np.sin(delta))[:, None] * sin_t) * sin_t
    # row by row: BLAS would round a pair's sum differently in other company, and resumed runs must give the same bits
    integral = (value * w).sum(axis=1)
    return np.asarray(np.clip(integral * (high - low) * _kappa_over_mass(kappa), 0.0, 1.0))


def _kappa_over_mass(kappa: FloatArray) -> FloatArray:
    """Give kappa / (1 - exp(-2 kappa)), which is 1/2 at 0."""
    safe = np.maximum(kappa, 1e-300)
    return np.asarray(safe / -np.expm1(-2.0 * safe))


def _cap_mass(height: FloatArray, kappa: FloatArray) -> FloatArray:
    """Probability of 1 - cos(angle) <= height; height / 2 for the uniform density."""
    safe = np.maximum(kappa, 1e-12)  # below, the ratio is height / 2 to the last digit
    return np.asarray(np.expm1(-safe * height) / np.expm1(-2.0 * safe))


def _height_quantile(share: FloatArray, kappa: FloatArray) -> FloatArray:
    """Give the height 1 - cos(angle) below which a share of the mass lies."""
    safe = np.maximum(kappa, 1e-12)
    with np.errstate(divide="ignore"):  # share 1 of a narrow component: minus infinity, clipped to the antipode
        return np.clip(-np.log1p(share * np.expm1(-2.0 * safe)) / safe, 0.0, 2.0)


def _radius_of_height(height: FloatArray) -> FloatArray:
    return np.asarray(2.0 * np.arcsin(np.sqrt(height / 2.0)))


def _frame(mean: FloatArray) -> tuple[FloatArray, FloatArray]:
    basis = sphere.tangent_basis(mean)
    return basis[..., 0, :], basis[..., 1, :]


def _probabilities(values: npt.ArrayLike) -> FloatArray:
    share = _floats(values)
    wrong = ~((share >= 0.0) & (share <= 1.0))
    if np.any(wrong):
        raise ValueError(f"probability {share[wrong].flat[0]} is not in 0..1")
    return share


def _floats(values: Any) -> FloatArray:
    return np.asarray(values, dtype=np.float64)
