"""The von Mises density on a circle, integrated: what a row of raster cells sees of a component on the sphere.

On a parallel a vMF component is exp(-2 q sin^2(t / 2)) times a constant, t the difference of longitude and
q = kappa cos(latitude) cos(latitude of the mean direction). `WIDE` divides the q for which a Fourier series is short
from those for which an expansion about the peak is exact.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import special

FloatArray = npt.NDArray[np.float64]

WIDE = 50.0
# coefficients of (1 - s^2)^(-1/2) in powers of s^2
_COEFFICIENTS = (1.0, 0.5, 0.375, 0.3125, 0.2734375, 0.24609375)
# how many of them leave a relative error below 1e-10, for q from this value on
_TERMS = ((1e4, 2), (500.0, 3), (WIDE, 5))


def integral(angle: FloatArray, q: FloatArray) -> FloatArray:
    """Integrate exp(-2 q sin^2(t / 2)) over t from 0 to an angle.

    Parameters
    ----------
    angle : ndarray of float64, shape (...)
        Radians in -pi..pi.
    q : ndarray of float64, shape (...) or one that broadcasts
        All at least `WIDE`.

    Returns
    -------
    ndarray of float64, shape (...)
        Relative error of the whole circle's integral below 1e-10.

    Notes
    -----
    With x = sqrt(2 q) sin(t / 2) it is 2 / sqrt(2 q) times the sum over n of a_n / (2 q)^n times the integral of
    x^(2 n) exp(-x^2), a_n the coefficients of (1 - s^2)^(-1/2); those integrals follow from erf by recursion.

    Examples
    --------
    >>> q = np.array([80.0])
    >>> round(float((2 * integral(np.array([math.pi]), q) / (2 * math.pi * special.i0e(q)))[0]), 9)
    1.0
    """
    root = np.sqrt(2.0 * q)
    x = root * np.sin(0.5 * angle)
    terms = next(count for least, count in _TERMS if float(np.min(q, initial=math.inf)) >= least)
    moment = (0.5 * math.sqrt(math.pi)) * special.erf(x)
    total = moment.copy()
    square = np.square(x)
    tail = 0.5 * x * np.exp(-square)
    power = np.ones_like(root)
    for n in range(1, terms + 1):
        moment *= n - 0.5
        moment -= tail
        power = power / (2.0 * q)
        total += (_COEFFICIENTS[n] * power) * moment
        tail = tail * square
    return np.asarray(total * (2.0 / root))


def fourier(q: FloatArray) -> FloatArray:
    """Give the Fourier series of exp(-2 q sin^2(t / 2)): a_0 + the sum over n of a_n cos(n t).

    Parameters
    ----------
    q : ndarray of float64, shape (...)
        At most about `WIDE` (larger ones make a longer series).

    Returns
    -------
    ndarray of float64, shape (..., terms)
        a_0, a_1, ...; what is left out is below 1e-12.

    Notes
    -----
    Source: Abramowitz and Stegun 9.6.34: a_0 = I_0(q) exp(-q), a_n = 2 I_n(q) exp(-q).

    Examples
    --------
    >>> series = fourier(np.array(3.0))
    >>> round(float(series.sum()), 12)
    1.0
    """
    terms = 13 + math.ceil(7.5 * math.sqrt(float(np.max(q, initial=0.0))))
    orders = np.arange(terms)
    series = special.ive(orders, np.asarray(q)[..., None])
    series[..., 1:] *= 2.0
    return np.asarray(series)
