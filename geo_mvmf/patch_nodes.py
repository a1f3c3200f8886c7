"""Where the nodes of patches lie: 8 x 8 Gauss-Legendre points of S2 cells, and the polynomials through them."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, s2_curve

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

NODES = 8
"""Gauss-Legendre nodes along each side of a patch."""


@functools.cache
def rule() -> tuple[FloatArray, FloatArray]:
    """Give the nodes along a side of a patch.

    Returns
    -------
    nodes : ndarray of float64, shape (NODES,)
        Gauss-Legendre nodes on 0..1.
    coefficients : ndarray of float64, shape (NODES, NODES)
        Turns values at the nodes into Legendre coefficients.

    Examples
    --------
    >>> nodes, coefficients = rule()
    >>> bool(abs((coefficients @ nodes)[:2] - 0.5).max() < 1e-12)
    True
    """
    x, _ = np.polynomial.legendre.leggauss(NODES)
    inverse = np.linalg.inv(np.polynomial.legendre.legvander(x, NODES - 1))
    return (x + 1.0) / 2.0, np.asarray(inverse, dtype=np.float64)


def nodes_of(cells: IdArray) -> tuple[IntArray, FloatArray, FloatArray, FloatArray]:
    """Give the nodes of cells, in the frame of their face of the cube.

    Parameters
    ----------
    cells : ndarray of uint64, shape (m,)
        Valid ids.

    Returns
    -------
    face : ndarray of int64, shape (m,)
        0..5.
    local : ndarray of float64, shape (m, 3, NODES^2)
        Unit vectors: the nodes, s varying slowest.
    middle : ndarray of float64, shape (m, 3)
        Unit vectors: the cells' centres.
    element : ndarray of float64, shape (m, NODES, NODES)
        Steradians per unit of s and t at the nodes.

    Examples
    --------
    >>> nodes_of(s2.face_cells())[1].shape
    (6, 3, 64)
    """
    face, s_bounds, t_bounds = s2.st_rectangle(cells)
    x, _ = rule()
    s = s_bounds[:, :1] + np.diff(s_bounds) * x
    t = t_bounds[:, :1] + np.diff(t_bounds) * x
    u, v = s2_curve.st_to_uv(s)[:, :, None], s2_curve.st_to_uv(t)[:, None, :]
    scale = 1.0 / np.sqrt(1.0 + u * u + v * v)
    local = np.stack([scale, scale * u, scale * v], axis=1).reshape(face.size, 3, -1)
    element = s2_curve.st_slope(s)[:, :, None] * s2_curve.st_slope(t)[:, None, :] * scale**3
    centre_uv = (s2_curve.st_to_uv(bounds.mean(axis=1)) for bounds in (s_bounds, t_bounds))
    middle = np.stack([np.ones(face.size), *centre_uv], axis=1)
    return face, local, middle / np.linalg.norm(middle, axis=1, keepdims=True), element
