"""Functions of the angle to a component's mean direction, tabulated, with two derivatives: fast for millions of pairs.

Two are needed to place an estimate: the expected distance to a component, and the component's probability in a cap
of a fixed radius. Components of about the same concentration (within 1/128 of its logarithm) share a row.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy.interpolate import CubicSpline

from geo_mvmf import vmf
from geo_mvmf.maps.quadrature import gauss_legendre

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_STEPS_PER_NAT = 64.0  # rows of a table for one unit of log concentration
_WIDEST, _NARROWEST = -8.0, 36.0  # beyond, a component is uniform, or a point, for all that is asked here
_INTERVALS = 144
_HALF_WIDTH = 7.0  # standard deviations from a cap's edge where a component lies in or out wholly (1e-11)
_LARGEST_SCALE = 0.5  # radians: of components so wide that the sphere ends first


@dataclasses.dataclass(frozen=True)
class Table:
    """One function of the angle for each row.

    Parameters
    ----------
    kind : {"distance", "cap"}
    row : ndarray of int64, shape (C,)
        Which row belongs to each component.
    scale : ndarray of float64, shape (R,)
        Width of the row's component, radians.
    first, step : ndarray of float64, shape (R,)
        Where the row's intervals begin, and their length, in the row's own variable.
    pieces : ndarray of float64, shape (R * intervals, 4)
        Cubic on every interval, highest power first.
    radius : float
        Of the cap, radians.
    """

    kind: str
    row: IntArray
    scale: FloatArray
    first: FloatArray
    step: FloatArray
    pieces: FloatArray
    radius: float

    def __call__(self, component: IntArray, angle: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Evaluate the function and its first two derivatives by the angle.

        Parameters
        ----------
        component : ndarray of int64, shape (P,)
        angle : ndarray of float64, shape (P,)
            Radians in 0..pi.

        Returns
        -------
        value, slope, bend : ndarray of float64, shape (P,)
            Kilometres do not occur: distances are radians, probabilities 0..1.
        """
        row = self.row[component]
        if self.kind == "cap":
            scale = self.scale[row]
            value, slope, bend = self._cubic(row, (angle - self.radius) / scale)
            return value, slope / scale, bend / (scale * scale)
        return self._distance(row, angle)

    def held(self, component: IntArray, angle: FloatArray) -> FloatArray:
        """Evaluate a table of caps without its derivatives.

        Parameters
        ----------
        component : ndarray of int64, shape (P,)
        angle : ndarray of float64, shape (P,)
            Radians in 0..pi.

        Returns
        -------
        ndarray of float64, shape (P,)
            Probabilities, 0..1.

        Examples
        --------
        >>> table = cap_table(np.array([16.0]), 2.52 / 6371.0088)
        >>> table.held(np.array([0]), np.array([0.0])).round(2).tolist()
        [0.5]
        """
        row = self.row[component]
        _, t, (a, b, c, d) = self._piece(row, (angle - self.radius) / self.scale[row])
        return np.asarray(((a * t + b) * t + c) * t + d)

    def felt_within(self, component: IntArray) -> FloatArray:
        """Give the angle beyond which a component adds nothing.

        Parameters
        ----------
        component : ndarray of int64, shape (P,)

        Returns
        -------
        ndarray of float64, shape (P,)
            Radians; what a cap holds of components farther away is below 1e-11. Every distance counts.

        Examples
        --------
        >>> cap_table(np.array([16.0]), 0.01).felt_within(np.array([0])).round(4).tolist()
        [0.0123]
        """
        if self.kind == "cap":
            return np.asarray(self.radius + _HALF_WIDTH * self.scale[self.row[component]])
        return np.full(component.size, math.pi)

    def _piece(self, row: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Place among the intervals, place in the interval, and its cubic (4, P)."""
        step = self.step[row]
        at = (x - self.first[row]) / step
        interval = np.clip(at.astype(np.int64), 0, _INTERVALS - 1)
        return at, np.clip(at - interval, 0.0, 1.0) * step, self.pieces.take(row * _INTERVALS + interval, axis=0).T

    def _cubic(self, row: IntArray, x: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        at, t, (a, b, c, d) = self._piece(row, x)
        beyond = (at < 0.0) | (at > _INTERVALS)
        value = ((a * t + b) * t + c) * t + d
        slope = np.where(beyond, 0.0, (3.0 * a * t + 2.0 * b) * t + c)
        return value, slope, np.where(beyond, 0.0, 6.0 * a * t + 2.0 * b)

    def _distance(self, row: IntArray, angle: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """D = sqrt(angle^2 + sigma^2 q), q smooth in arsinh(angle / sigma); D(pi - angle) = pi - D(angle)."""
        sigma = self.scale[row]
        far = angle > 0.5 * math.pi
        near = np.where(far, math.pi - angle, angle)
        u = near / sigma
        q, dq, ddq = self._cubic(row, np.arcsinh(u))
        root = np.sqrt(1.0 + u * u)
        dq_u, ddq_u = dq / root, (ddq - dq * u / root) / (root * root)
        value = np.sqrt(np.maximum(near * near + sigma * sigma * q, 1e-300))
        slope = (near + 0.5 * sigma * dq_u) / value
        bend = (1.0 + 0.5 * ddq_u - slope * slope) / value
        return np.where(far, math.pi - value, value), slope, np.where(far, -bend, bend)


def distance_table(log_concentrations: FloatArray) -> Table:
    """Tabulate the expected distance between a place and a component.

    Parameters
    ----------
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.

    Returns
    -------
    Table
        In radians; error about 1e-5 of a standard deviation.

    Examples
    --------
    >>> table = distance_table(np.array([16.0]))
    >>> round(float(table(np.array([0]), np.array([0.0]))[0][0] * np.exp(8.0)), 4)  # Rayleigh: sqrt(pi / 2)
    1.2533
    """
    row, log_kappa = _rows(log_concentrations)
    sigma = np.exp(-0.5 * log_kappa)
    end = np.arcsinh(0.5 * math.pi / sigma)
    t = np.linspace(0.0, 1.0, _INTERVALS + 1)[:, None] * end  # (I + 1, R)
    angle = np.minimum(np.sinh(t) * sigma, 0.5 * math.pi)
    mean = _expected_angle(angle, log_kappa)
    q = (mean - angle) * (mean + angle) / (sigma * sigma)
    return _table("distance", row, sigma, np.zeros(end.size), end, q, 0.0)


def cap_table(log_concentrations: FloatArray, radius: float) -> Table:
    """Tabulate the probability of a component within a radius of a place.

    Parameters
    ----------
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    radius : float
        Radians in 0..pi.

    Returns
    -------
    Table
        In 0..1; error below 1e-5, and what the rounding of concentrations makes: below 0.003.

    Examples
    --------
    >>> table = cap_table(np.array([16.0]), 2.52 / 6371.0088)
    >>> round(float(table(np.array([0]), np.array([0.0]))[0][0]), 2)
    0.5
    """
    row, log_kappa = _rows(log_concentrations)
    scale = np.minimum(np.exp(-0.5 * log_kappa), _LARGEST_SCALE)
    x = np.linspace(-_HALF_WIDTH, _HALF_WIDTH, _INTERVALS + 1)[:, None]
    offset = np.abs(radius + x * scale)  # the function is even about 0 and about pi
    offset = np.where(offset > math.pi, np.maximum(2.0 * math.pi - offset, 0.0), offset)
    values = vmf.probability_within(offset, radius, log_kappa)
    first, extent = np.full(scale.size, -_HALF_WIDTH), np.full(scale.size, 2.0 * _HALF_WIDTH)
    return _table("cap", row, scale, first, extent, values, radius)


def _rows(log_concentrations: FloatArray) -> tuple[IntArray, FloatArray]:
    """Row of each component, and the log concentration of each row."""
    steps = np.round(np.clip(log_concentrations, _WIDEST, _NARROWEST) * _STEPS_PER_NAT).astype(np.int64)
    present, row = np.unique(steps, return_inverse=True)
    return row.astype(np.int64), present / _STEPS_PER_NAT


def _table(
    kind: str,
    row: IntArray,
    scale: FloatArray,
    first: FloatArray,
    extent: FloatArray,
    values: FloatArray,
    radius: float,
) -> Table:
    """Splines through values (I + 1, R) at even steps."""
    spline = CubicSpline(np.arange(_INTERVALS + 1.0), values, bc_type=((1, np.zeros(scale.size)), "not-a-knot"))
    step = extent / _INTERVALS
    powers = spline.c / step ** np.array([3.0, 2.0, 1.0, 0.0])[:, None, None]  # (4, I, R), in the row's variable
    pieces = np.ascontiguousarray(powers.transpose(2, 1, 0).reshape(-1, 4))
    return Table(kind, row, scale, first, step, pieces, radius)


def _expected_angle(offset: FloatArray, log_kappa: FloatArray) -> FloatArray:
    """Mean angle between a place and a component (I + 1, R), by quadrature over rings about the place."""
    kappa, sigma = np.exp(log_kappa), np.exp(-0.5 * log_kappa)
    low = np.maximum(offset - 8.0 * sigma, 0.0)
    high = np.minimum(offset + 8.0 * sigma, math.pi)
    mass, moment = np.zeros(offset.shape), np.zeros(offset.shape)
    for node, weight in zip(*gauss_legendre(64), strict=True):
        ring = low + node * (high - low)
        density = np.exp(-2.0 * kappa * np.square(np.sin(0.5 * (ring - offset))))
        density *= special.i0e(kappa * np.sin(ring) * np.sin(offset)) * np.sin(ring) * weight
        mass += density
        moment += density * (ring - offset)
    return np.asarray(offset + moment / mass)
