"""Probability of vMF components within polygons: integrals along the borders, exact to about 1e-7.

About a component's mean direction, with angle theta and azimuth phi, the density times the area element is the
differential of P(theta) d phi / (2 pi), P the closed form of the probability of a cap (Stokes). So a zone holds

    [mean direction inside] - 1 / (2 pi) * integral along its border of (1 - P(theta)) d phi,

and only the border within six standard deviations counts. Along the border P(theta) d phi is smooth also where the
border passes the mean direction, so it is integrated by Gauss-Legendre, and d phi is a difference of azimuths.
Borders are straight in longitude and latitude, as the polygons are. Beyond log kappa 34, where a standard deviation is
less than 0.3 m, the error is 3e-15 sqrt(kappa): degrees of float64 resolve places little better.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import shapely
from scipy import sparse

from geo_mvmf import sphere
from geo_mvmf.maps import near
from geo_mvmf.maps.quadrature import gauss_legendre

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_REACH = 18.0  # nats: a border farther from a mean direction cuts off less than 2e-8
_WIDEST = 0.5  # radians: no piece of border need be shorter because of a component wider than this
_SHORT = 0.25  # pieces so many standard deviations long are integrated with two nodes, longer ones with six
_PAIRS_AT_ONCE = 1 << 16
_ASIDE = np.array([0.31, -0.57, 0.76])
_FAR_ASIDE = 1e-9  # radians
_SLIGHTLY = 3e-7  # standard deviations: 1e-7 of the probability passes a border
_RESOLVED = 1e-14  # radians: closer to a border the side of a place is a matter of rounding


class Edges(NamedTuple):
    """Borders of zones, zones to the left; without the edges at the poles, which are points.

    Parameters
    ----------
    zone : ndarray of int64, shape (E,)
        Whose border.
    start, stop : ndarray of float64, shape (E, 2)
        Longitude, latitude in degrees; straight between.
    """

    zone: IntArray
    start: FloatArray
    stop: FloatArray


class _Pieces(NamedTuple):
    """Parts of edges near components: edge, component, and where the part begins and ends along the edge, 0..1."""

    edge: IntArray
    component: IntArray
    low: FloatArray
    high: FloatArray

    def take(self, chosen: npt.NDArray[np.bool_] | slice) -> _Pieces:
        return _Pieces(self.edge[chosen], self.component[chosen], self.low[chosen], self.high[chosen])


def edges_of(zones: npt.NDArray[np.object_]) -> Edges:
    """Take the borders of polygons apart.

    Parameters
    ----------
    zones : ndarray of Polygon or MultiPolygon, shape (Z,)
        Valid, in -180..180 and -90..90; empty ones have no border.

    Returns
    -------
    Edges

    Examples
    --------
    >>> len(edges_of(np.array([shapely.box(0, 0, 1, 1), shapely.box(0, 0, 180, 90)])).zone)
    7
    """
    parts, owner = shapely.get_parts(zones, return_index=True)
    rings, part = shapely.get_rings(shapely.orient_polygons(parts), return_index=True)
    places, ring = shapely.get_coordinates(rings, return_index=True)
    joined = ring[1:] == ring[:-1]
    start, stop = places[:-1][joined], places[1:][joined]
    pole = (np.abs(start[:, 1]) == 90.0) & (start[:, 1] == stop[:, 1])
    kept = ~pole & (start != stop).any(axis=1)
    zone = owner[part[ring[:-1][joined]]].astype(np.int64)
    return Edges(zone[kept], start[kept], stop[kept])


def nudged(directions: FloatArray, radians: float | FloatArray = _FAR_ASIDE) -> FloatArray:
    """Move places by 6 mm or less, so that none lies on a border that was drawn through it.

    Parameters
    ----------
    directions : ndarray of float64, shape (M, 3)
        Unit vectors.
    radians : float or ndarray of float64, shape (M,)
        How far at most.

    Returns
    -------
    ndarray of float64, shape (M, 3)
        Unit vectors, all moved the same way.

    Examples
    --------
    >>> bool(nudged(np.eye(3))[0, 1] != 0.0)
    True
    """
    moved = directions + np.multiply.outer(radians, _ASIDE)
    return np.asarray(moved / np.linalg.norm(moved, axis=-1, keepdims=True))


def members(zones: npt.NDArray[np.object_], directions: FloatArray) -> tuple[IntArray, IntArray]:
    """Find the zones that hold each place.

    Parameters
    ----------
    zones : ndarray of Polygon or MultiPolygon, shape (Z,)
    directions : ndarray of float64, shape (M, 3)
        Unit vectors.

    Returns
    -------
    place, zone : ndarray of int64, shape (K,)
        Pairs.

    Examples
    --------
    >>> place, zone = members(np.array([shapely.box(0, 0, 10, 10)]), sphere.to_directions([5.0, 50.0], [5.0, 5.0]))
    >>> place.tolist(), zone.tolist()
    ([0], [0])
    """
    tree = shapely.STRtree(np.array(shapely.points(*sphere.to_longitude_latitude(directions)), dtype=object))
    zone, place = tree.query(zones, predicate="intersects")
    return place.astype(np.int64), zone.astype(np.int64)


def component_shares(
    mean_directions: FloatArray, log_concentrations: FloatArray, zones: npt.NDArray[np.object_]
) -> sparse.csr_array:
    """Give the probability of every zone under every component.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    zones : ndarray of Polygon or MultiPolygon, shape (Z,)
        As `edges_of` takes them.

    Returns
    -------
    csr_array of float64, shape (C, Z)
        In 0..1.

    Examples
    --------
    >>> half = np.array([shapely.box(0, -90, 180, 90).segmentize(1.0)])
    >>> round(float(component_shares(np.eye(3)[:1], np.array([4.0]), half).toarray()[0, 0]), 7)
    0.5
    """
    shape = (mean_directions.shape[0], zones.size)
    moved = nudged(mean_directions, np.clip(_SLIGHTLY * np.exp(-0.5 * log_concentrations), _RESOLVED, _FAR_ASIDE))
    component, zone = members(zones, moved)
    total = sparse.csr_array((np.ones(component.size), (component, zone)), shape=shape)
    integral = _Integral(moved, log_concentrations, edges_of(zones))
    for pieces in integral.pieces():
        lost = integral.over(pieces) / (-2.0 * np.pi)
        total = total + sparse.csr_array((lost, (pieces.component, integral.edges.zone[pieces.edge])), shape=shape)
    total.data = np.clip(total.data, 0.0, 1.0)
    return total


class _Integral:
    """The integral of (1 - P) d phi along pieces of edges."""

    def __init__(self, mean_directions: FloatArray, log_concentrations: FloatArray, edges: Edges) -> None:
        self.edges = edges
        self._mu, self._log_kappa = mean_directions, log_concentrations
        self._kappa = np.exp(log_concentrations)
        self._sigma = np.minimum(np.exp(-0.5 * log_concentrations), _WIDEST)
        self._reach = near.chord_of(log_concentrations, _REACH)
        self._places = np.stack(sphere.to_longitude_latitude(mean_directions), axis=1)  # (C, 2)
        self._change = edges.stop - edges.start  # (E, 2) degrees
        least = np.where(
            edges.start[:, 1] * edges.stop[:, 1] < 0.0, 0.0, np.abs([edges.start, edges.stop]).min(0)[:, 1]
        )
        across = self._change[:, 0] * np.cos(np.radians(least))
        self._length = np.radians(np.hypot(across, self._change[:, 1]))  # (E,) radians, or a little more

    def pieces(self) -> Iterator[_Pieces]:
        """Pieces of edges within reach of components, none longer than a standard deviation."""
        octave = np.floor(np.log2(self._length)).astype(np.int64)
        for number in np.unique(octave):
            group = np.flatnonzero(octave == number)
            middles = self._points(group, np.full(group.size, 0.5))
            reach = self._reach + 0.5 * self._length[group].max()
            for pairs in near.near_pairs(middles, self._mu, reach):
                for start in range(0, pairs.point.size, _PAIRS_AT_ONCE):
                    block = slice(start, start + _PAIRS_AT_ONCE)
                    edge, component = group[pairs.point[block]], pairs.component[block]
                    yield from self._divided(_Pieces(edge, component, np.zeros(edge.size), np.ones(edge.size)))

    def _divided(self, pieces: _Pieces) -> Iterator[_Pieces]:
        while pieces.edge.size:
            length = self._length[pieces.edge] * (pieces.high - pieces.low)
            middle = 0.5 * (pieces.low + pieces.high)
            chord = np.linalg.norm(self._points(pieces.edge, middle) - self._mu[pieces.component], axis=1)
            felt = chord <= self._reach[pieces.component] + 0.5 * length
            fine = length <= self._sigma[pieces.component]
            yield pieces.take(felt & fine)
            going = felt & ~fine
            pieces, middle = pieces.take(going), middle[going]
            edge, component = np.tile(pieces.edge, 2), np.tile(pieces.component, 2)
            low, high = np.concatenate([pieces.low, middle]), np.concatenate([middle, pieces.high])
            pieces = _Pieces(edge, component, low, high)

    def over(self, pieces: _Pieces) -> FloatArray:
        """Integral over each piece, (P,)."""
        result = np.empty(pieces.edge.size)
        length = self._length[pieces.edge] * (pieces.high - pieces.low)
        short = length <= _SHORT * self._sigma[pieces.component]
        for chosen, nodes in ((short, 2), (~short, 6)):
            result[chosen] = self._over(pieces.take(chosen), nodes)
        return result

    def _over(self, pieces: _Pieces, number: int) -> FloatArray:
        mu, kappa = self._mu[pieces.component], self._kappa[pieces.component]
        extent = pieces.high - pieces.low
        far = (
            np.square(self._points(pieces.edge, pieces.low + 0.5 * extent) - mu).sum(axis=1) > 2.0
        )  # on the other half of the sphere
        whole = -np.expm1(-2.0 * kappa)
        total = np.zeros(extent.size)
        for node, weight in zip(*gauss_legendre(number), strict=True):
            point, speed = moving(self.edges.start, self._change, pieces.edge, pieces.low + node * extent)
            gap = point - mu
            height = 0.5 * np.square(gap).sum(axis=1)  # 1 - cos theta
            held = -np.expm1(-kappa * height) / whole
            turn = np.einsum("pi,pi->p", mu, np.cross(gap, speed)) / np.maximum(height * (2.0 - height), 1e-300)
            total += weight * turn * np.where(far, 1.0 - held, held)
        total *= extent
        return np.where(far, total, self._turn(pieces) - total)

    def _turn(self, pieces: _Pieces) -> FloatArray:
        """By how much the azimuth seen from the mean direction changes along each piece; left of it is positive."""
        mu = self._mu[pieces.component]
        a, b = (self._points(pieces.edge, end) - mu for end in (pieces.low, pieces.high))
        sine = np.einsum("pi,pi->p", mu, np.cross(a, b))
        cosine = np.einsum("pi,pi->p", a, b) - 0.25 * np.square(a).sum(axis=1) * np.square(b).sum(axis=1)
        turn = np.arctan2(sine, cosine)
        # where the piece passes close by, its ends cannot tell on which side: the straight line on the map does
        change = self._change[pieces.edge]
        offset = self._places[pieces.component] - self.edges.start[pieces.edge]
        offset[:, 0] -= 360.0 * np.round(offset[:, 0] / 360.0)
        left = change[:, 0] * offset[:, 1] - change[:, 1] * offset[:, 0] > 0.0
        close = np.abs(turn) > 0.5 * np.pi
        turn += 2.0 * np.pi * (close & left & (turn < 0.0)) - 2.0 * np.pi * (close & ~left & (turn > 0.0))
        return np.asarray(turn)

    def _points(self, edge: IntArray, along: FloatArray) -> FloatArray:
        place = self.edges.start[edge] + along[:, None] * self._change[edge]
        points = sphere.to_directions(place[:, 0], place[:, 1])
        # the cosine of 90 degrees is 6e-17: by that the ends of two edges at a pole would be seen apart from close by
        points[np.abs(place[:, 1]) == 90.0, :2] = 0.0
        return points


def moving(start: FloatArray, change: FloatArray, edge: IntArray, along: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Give points of edges and their derivative along the edge.

    Parameters
    ----------
    start, change : ndarray of float64, shape (E, 2)
        Longitude, latitude in degrees: where edges begin, and their stop less that.
    edge : ndarray of int64, shape (P,)
    along : ndarray of float64, shape (P,)
        0..1.

    Returns
    -------
    point, speed : ndarray of float64, shape (P, 3)

    Examples
    --------
    >>> point, speed = moving(np.zeros((1, 2)), np.array([[90.0, 0.0]]), np.array([0]), np.array([1.0]))
    >>> point.round(9).tolist(), (speed / np.pi).round(9).tolist()
    ([[0.0, 1.0, 0.0]], [[-0.5, 0.0, 0.0]])
    """
    longitude, latitude = np.radians(start[edge] + along[:, None] * change[edge]).T
    east, north = np.radians(change[edge]).T
    sin_lon, cos_lon, sin_lat, cos_lat = np.sin(longitude), np.cos(longitude), np.sin(latitude), np.cos(latitude)
    point = np.stack([cos_lat * cos_lon, cos_lat * sin_lon, sin_lat], axis=1)
    speed = np.stack(
        [
            -sin_lon * cos_lat * east - cos_lon * sin_lat * north,
            cos_lon * cos_lat * east - sin_lon * sin_lat * north,
            cos_lat * north,
        ],
        axis=1,
    )
    return point, speed
