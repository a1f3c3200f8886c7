"""Where the nodes of patches lie: 8 x 8 Gauss-Legendre points of S2 cells, and the polynomials through them."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, s2_curve

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

NODES = 8
"""Gauss-Legendre nodes along each side of a patch."""

MAX_EDGE = 1.704897179199218
"""Radians: the longest edge of a cell of level 0, half of it at each level more (S2 library, kMaxEdge of the quadratic
projection)."""

MAX_RADIUS = 1.219328
"""No point of a cell of level 0 is farther from its centre, half of it at each level more (half of kMaxDiag)."""


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


@functools.cache
def operators(depth: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Give what turns values at the nodes of a side into those of its parts.

    Parameters
    ----------
    depth : int
        The side is cut into 2^depth parts.

    Returns
    -------
    mean, first, second : ndarray of float64, shape (2^depth, NODES)
        Mean over each part; mean derivative times the part's length, and mean second derivative times its square.

    Examples
    --------
    >>> mean, first, _ = operators(1)
    >>> (mean @ rule()[0]).round(12).tolist(), (first @ rule()[0]).round(12).tolist()
    ([0.25, 0.75], [0.5, 0.5])
    """
    _, coefficients = rule()
    edges = np.linspace(-1.0, 1.0, (1 << depth) + 1)
    width = edges[1] - edges[0]
    legendre = np.polynomial.legendre
    basis = np.eye(NODES)
    integral = np.array([legendre.legval(edges, legendre.legint(row)) for row in basis])
    value = np.array([legendre.legval(edges, row) for row in basis])
    slope = np.array([legendre.legval(edges, legendre.legder(row)) for row in basis])
    mean, first, second = (np.diff(part, axis=1).T @ coefficients for part in (integral, value, slope))
    return mean / width, first, second * width


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
    local = np.stack([scale, scale * u, scale * v], axis=1).reshape(face.size, 3, NODES**2)
    element = s2_curve.st_slope(s)[:, :, None] * s2_curve.st_slope(t)[:, None, :] * scale**3
    centre_uv = (s2_curve.st_to_uv(bounds.mean(axis=1)) for bounds in (s_bounds, t_bounds))
    middle = np.stack([np.ones(face.size), *centre_uv], axis=1)
    return face, local, middle / np.linalg.norm(middle, axis=1, keepdims=True), element


def point_terms(local: FloatArray, middle: FloatArray) -> FloatArray:
    """Give what nodes bring to their squared chords to mean directions; the other half is `member_terms`.

    With the patch's centre c, |y - mu|^2 = |y - c|^2 + 2 (y - c).(c - mu) + |c - mu|^2: differences of near vectors
    only, and a matrix product of inner size 5 for all members of a patch.

    Parameters
    ----------
    local : ndarray of float64, shape (m, 3, K)
        Points in the frames of their faces.
    middle : ndarray of float64, shape (m, 3)
        Centres in the same frames.

    Returns
    -------
    ndarray of float64, shape (m, 5, K)

    Examples
    --------
    >>> _, local, middle, _ = nodes_of(s2.face_cells())
    >>> point_terms(local, middle).shape
    (6, 5, 64)
    """
    right = np.empty((local.shape[0], 5, local.shape[2]))
    from_middle = np.subtract(local, middle[..., None], out=right[:, 1:4])
    right[:, 0] = np.einsum("mik,mik->mk", from_middle, from_middle)
    from_middle *= 2.0
    right[:, 4] = 1.0
    return right


def member_terms(
    apart: FloatArray,
    half_kappa: FloatArray,
    log_peak: FloatArray | float = 0.0,
    present: BoolArray | None = None,
) -> FloatArray:
    """Give what components bring to log densities; times `point_terms` it is the log density of each at each point.

    Parameters
    ----------
    apart : ndarray of float64, shape (m, k, 3)
        Centre of each patch less the mean direction of each of its members, in the frame of the face.
    half_kappa, log_peak : ndarray of float64, shape (m, k)
        Minus half the concentrations; log densities at the mean directions, by default those of densities relative to
        them.
    present : ndarray of bool, shape (m, k), optional
        Where there is a member; elsewhere the density is 0.

    Returns
    -------
    ndarray of float64, shape (m, k, 5)

    Examples
    --------
    >>> member_terms(np.zeros((1, 1, 3)), np.full((1, 1), -0.5), np.zeros((1, 1)), np.ones((1, 1), bool)).tolist()
    [[[-0.5, -0.0, -0.0, -0.0, 0.0]]]
    """
    if present is not None:
        half_kappa = np.where(present, half_kappa, 0.0)
    terms = np.empty((*half_kappa.shape, 5))
    terms[..., 0] = half_kappa
    terms[..., 1:4] = half_kappa[..., None] * apart
    terms[..., 4] = half_kappa * np.einsum("mki,mki->mk", apart, apart) + log_peak
    if present is not None:
        terms[..., 4][~present] = -np.inf
    return terms
