"""Gauss-Legendre rules: nodes, weights, how many a Gaussian needs, and the polynomials through the nodes."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# extent in sigma up to which so many nodes err by less than 1e-6 (beyond 2 sigma: 1e-7) of a Gaussian's mass
_EXTENTS = np.array([0.25, 0.7, 1.3, 2.0, 2.6, 4.0, 5.5, 7.0, 10.0, math.inf])
_NODES = np.array([2, 3, 4, 5, 6, 8, 10, 12, 16, 24])


def nodes_for(extent: npt.ArrayLike) -> IntArray:
    """Say how many nodes a Gaussian of width 1 needs over an interval.

    Parameters
    ----------
    extent : array_like of float, shape (...)
        Length of the interval in sigma.

    Examples
    --------
    >>> nodes_for([0.1, 1.0, 12.0]).tolist()
    [2, 4, 24]
    """
    return np.asarray(_NODES[np.searchsorted(_EXTENTS, np.asarray(extent, dtype=np.float64))], dtype=np.int64)


@functools.cache
def gauss_legendre(nodes: int) -> tuple[FloatArray, FloatArray]:
    """Give nodes and weights on 0..1.

    Parameters
    ----------
    nodes : int
        At least 1.

    Examples
    --------
    >>> gauss_legendre(1)[0].tolist(), gauss_legendre(1)[1].tolist()
    ([0.5], [1.0])
    """
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1.0) / 2.0, w / 2.0


@functools.cache
def to_legendre(nodes: int) -> FloatArray:
    """Give the matrix that turns values at the nodes into coefficients of Legendre's polynomials.

    Parameters
    ----------
    nodes : int
        At least 1.

    Returns
    -------
    ndarray of float64, shape (nodes, nodes)
        Coefficients = matrix @ values.

    Examples
    --------
    >>> (to_legendre(2) @ np.array([3.0, 3.0])).round(12).tolist()
    [3.0, 0.0]
    """
    x, w = gauss_legendre(nodes)
    polynomials = np.polynomial.legendre.legvander(2.0 * x - 1.0, nodes - 1)  # (x, k)
    return np.asarray((polynomials * w[:, None]).T * (2.0 * np.arange(nodes) + 1.0)[:, None])


def interpolation(nodes: int, positions: FloatArray) -> FloatArray:
    """Give the matrix that takes values at the nodes elsewhere.

    Parameters
    ----------
    nodes : int
        At least 1.
    positions : ndarray of float64, shape (..., m)
        In 0..1.

    Returns
    -------
    ndarray of float64, shape (..., m, nodes)
        Value = matrix @ values.

    Examples
    --------
    >>> (interpolation(3, np.array([0.25])) @ gauss_legendre(3)[0]).round(12).tolist()
    [0.25]
    """
    polynomials = np.polynomial.legendre.legvander(2.0 * np.asarray(positions) - 1.0, nodes - 1)
    return np.asarray(polynomials @ to_legendre(nodes))


@functools.cache
def differentiation(nodes: int) -> FloatArray:
    """Give the matrix that turns values at the nodes into derivatives at the nodes.

    Parameters
    ----------
    nodes : int
        At least 1.

    Returns
    -------
    ndarray of float64, shape (nodes, nodes)
        Along 0..1.

    Examples
    --------
    >>> (differentiation(3) @ gauss_legendre(3)[0]).round(12).tolist()
    [1.0, 1.0, 1.0]
    """
    x, _ = gauss_legendre(nodes)
    derivative = np.zeros((nodes, nodes))
    for k in range(1, nodes):
        unit = np.zeros(nodes)
        unit[k] = 1.0
        derivative[:, k] = 2.0 * np.polynomial.legendre.legval(2.0 * x - 1.0, np.polynomial.legendre.legder(unit))
    return np.asarray(derivative @ to_legendre(nodes))
