"""The numbers beside a point: areas, radii, probabilities and information of a density, for whole batches.

A density is summarised on nodes. Each component is cut into rings about its mean direction between quantiles of its
mass; a ring's mass and area are closed forms, and its nodes lie where its density equals its mean density. With f
the mixture's density at a node, the node stands for the mass Gamma_i * ring mass and, because mass = density *
area, for the area mass / f. So an isolated component's areas are exact at the rings' quantiles (50 and 90 % are
among them), and overlapping components share their area as they share their density. Where more than a hundred
components matter, the nodes are a stratified sample instead (`sunflowers`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.spatial import cKDTree

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.maps import near, own_nodes, quantiles
from geo_mvmf.maps.felt import pairs_of
from geo_mvmf.maps.once import OncePerComponents
from geo_mvmf.maps.sunflowers import Nodes, Sunflowers, bytes_of
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_KM2 = sphere.EARTH_RADIUS_KM**2
_UNIFORM_BITS = float(np.log2(4.0 * np.pi))
_TAIL = 1e-4  # weight of the lightest components that a summary leaves out
_FEW = 96  # mattering components up to which they have rings
_IMAGES_AT_ONCE = 16  # densities of so many images are computed together
_CELL_POINTS = 1 << 14  # points that stand for the cells of one image of a CellMixture
_SIGMAS = 6.5  # a cap's edge further from a component than this holds all or nothing of it (1e-8)


MANY = 512
"""Mattering components beyond which an image shares its nodes with others."""

SHARED_BYTES = 1e9
"""Memory up to which images share nodes: 8 to 20 bytes for each pair of components that overlap; beyond, every image
has its own."""

_LISTED_PAIRS = 1 << 20  # of one image's components, up to which nodes of its own are made from a list of them

_COLUMNS = (
    "component_weight",
    "density_max",
    "probability_25_km",
    "probability_200_km",
    "area_50_km2",
    "area_90_km2",
    "radius_90_km",
    "expected_error_km",
    "information_bits",
)


def nodes_of(mixture: VmfMixture | CellMixture, *, is_trimmed: bool = False) -> list[Nodes]:
    """Give the nodes of every image, for several summaries of the same images.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images, at most a batch: an image's nodes take up to a few hundred kilobytes.
    is_trimmed : bool
        Whether the lightest components were left out already: no more are.

    Examples
    --------
    >>> mixture = VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
    >>> nodes = nodes_of(mixture)
    >>> at_truth(mixture, [0.0], [0.0], nodes=nodes).equals(at_truth(mixture, [0.0], [0.0]))
    True
    """
    return list(_all_nodes(mixture, 0.0 if is_trimmed else _TAIL))


def summarise(
    mixture: VmfMixture | CellMixture,
    longitude: npt.ArrayLike,
    latitude: npt.ArrayLike,
    *,
    nodes: Iterable[Nodes] | None = None,
) -> pd.DataFrame:
    """Summarise each image's density about its estimate.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    longitude, latitude : array_like of float, (N,)
        The estimates, degrees.
    nodes : iterable of Nodes, optional
        From `nodes_of` where they are at hand.

    Returns
    -------
    DataFrame
        N rows: component_weight (largest mixing weight), density_max (km-2), probability_25_km and
        probability_200_km (within that distance of the estimate), area_50_km2 and area_90_km2 (of the smallest
        regions that hold so much), radius_90_km (about the estimate), expected_error_km, information_bits (log2 4 pi
        less the differential entropy; 0 is uniform).

    Raises
    ------
    ValueError
        If there is not one estimate per image.

    Examples
    --------
    >>> mixture = VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
    >>> summarise(mixture, [0.0], [0.0])["radius_90_km"].round(1).tolist()
    [4.6]
    """
    longitude, latitude = np.atleast_1d(np.asarray(longitude, float)), np.atleast_1d(np.asarray(latitude, float))
    if longitude.shape != (len(mixture),) or latitude.shape != (len(mixture),):
        raise ValueError(f"{len(mixture)} images need as many estimates, not {longitude.shape} and {latitude.shape}")
    estimate = sphere.to_directions(longitude, latitude)
    frame = pd.DataFrame(
        [_summary(own, place) for own, place in zip(nodes or _all_nodes(mixture), estimate, strict=True)],
        columns=_COLUMNS,
    )
    within = _within(mixture, estimate, longitude, latitude, (25.0, 200.0))
    frame["probability_25_km"], frame["probability_200_km"] = within
    return frame


def at_truth(
    mixture: VmfMixture | CellMixture,
    longitude: npt.ArrayLike,
    latitude: npt.ArrayLike,
    *,
    nodes: Iterable[Nodes] | None = None,
) -> pd.DataFrame:
    """Judge each image's density at its true (or claimed) place.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    longitude, latitude : array_like of float, (N,)
        One place per image, degrees.
    nodes : iterable of Nodes, optional
        From `nodes_of` where they are at hand.

    Returns
    -------
    DataFrame
        N rows: log_density (nats per steradian), searched_probability (mass of everything denser than the place;
        of what is equally dense, half), searched_area_km2 (its area).

    Raises
    ------
    ValueError
        If there is not one place per image.

    Examples
    --------
    >>> mixture = VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
    >>> at_truth(mixture, [0.0], [0.0])["searched_probability"].round(2).tolist()
    [0.0]
    """
    longitude, latitude = np.atleast_1d(np.asarray(longitude, float)), np.atleast_1d(np.asarray(latitude, float))
    if longitude.shape != (len(mixture),) or latitude.shape != (len(mixture),):
        raise ValueError(f"{len(mixture)} images need as many places, not {longitude.shape} and {latitude.shape}")
    place = sphere.to_directions(longitude, latitude)
    rows = []
    for i, own in enumerate(nodes or _all_nodes(mixture)):
        log_density = float(mixture[i].log_density(place[i : i + 1])[0, 0])
        rows.append({"log_density": log_density, **_searched(own, log_density)})
    return pd.DataFrame(rows)


def _summary(nodes: Nodes, estimate: FloatArray) -> dict[str, float]:
    mass, density = nodes.mass, nodes.density
    area = quantiles.sums_above(density, mass, mass / density, (0.5, 0.9))
    gap = [(mine - its).astype(np.float32, copy=False) for mine, its in zip(nodes.direction, estimate, strict=True)]
    chord = np.sqrt(gap[0] * gap[0] + gap[1] * gap[1] + gap[2] * gap[2])
    distance = 2.0 * sphere.EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2.0, 1.0))
    entropy = -float(np.dot(mass, np.log(density)))
    return {
        "component_weight": nodes.heaviest,
        "density_max": nodes.density_max / _KM2,
        "area_50_km2": area[0] * _KM2,
        "area_90_km2": area[1] * _KM2,
        "radius_90_km": quantiles.quantile(distance, mass, 0.9),
        "expected_error_km": float(np.dot(mass, distance)),
        "information_bits": _UNIFORM_BITS - entropy / float(np.log(2.0)),
    }


def _searched(nodes: Nodes, log_density: float) -> dict[str, float]:
    """Mass and area above a density; the last node above and the first below are interpolated in log density."""
    order = np.argsort(nodes.density)[::-1]
    log_f, mass = np.log(nodes.density[order]), nodes.mass[order]
    area = mass / nodes.density[order]
    # nodes of one ring of a lonely component are equally dense (but for float32): they are one step, not several
    steps = np.concatenate([[0], np.flatnonzero(np.diff(log_f) < -1e-5) + 1])
    log_f, mass, area = log_f[steps], np.add.reduceat(mass, steps), np.add.reduceat(area, steps)
    # and a step stands for densities about its own: half of it lies above that
    middle, middle_area = np.cumsum(mass) - mass / 2.0, np.cumsum(area) - area / 2.0
    # from the peak, above which there is nothing, to the middle of the densest step
    log_f = np.concatenate([[max(np.log(nodes.density_max), log_f[0])], log_f])
    middle, middle_area = np.concatenate([[0.0], middle]), np.concatenate([[0.0], middle_area])
    searched = np.interp(-log_density, -log_f, middle, left=0.0, right=1.0)
    searched_area = np.interp(-log_density, -log_f, middle_area, left=0.0, right=4.0 * np.pi)
    return {"searched_probability": float(searched), "searched_area_km2": float(searched_area) * _KM2}


def _within(
    mixture: VmfMixture | CellMixture,
    estimate: FloatArray,
    longitude: FloatArray,
    latitude: FloatArray,
    radii_km: Sequence[float],
) -> FloatArray:
    """Probability within distances of each image's own estimate, (radii, N)."""
    result = np.empty((len(radii_km), len(mixture)))
    if isinstance(mixture, CellMixture):
        number = len(radii_km)
        for i in range(len(mixture)):  # all radii at once: where the cells lie is found once
            places = np.full(number, longitude[i]), np.full(number, latitude[i])
            result[:, i] = mixture[i].probability_within(*places, np.array(radii_km))[0]
        return result
    for start in range(0, len(mixture), _IMAGES_AT_ONCE):
        some = slice(start, start + _IMAGES_AT_ONCE)
        result[:, some] = _caps(mixture, some, estimate[some], np.array(radii_km) / sphere.EARTH_RADIUS_KM)
    return np.clip(result, 0.0, 1.0)


def _caps(mixture: VmfMixture, images: slice, estimate: FloatArray, radii: FloatArray) -> FloatArray:
    """Probability of caps about the estimates of some images, (radii, images)."""
    margin = np.minimum(_SIGMAS * np.exp(-0.5 * mixture.log_concentrations), 2.0 * np.pi)
    # a first look by dot products (right to 1e-7 radians) leaves only the components that a cap can reach
    least = np.cos(np.minimum(radii.max() + margin + 1e-6, np.pi)) - 1e-12
    image, close = np.nonzero(estimate @ mixture.mean_directions.T >= least)
    weight = np.exp(mixture.log_mixing_weights[images][image, close])
    offset = sphere.angle(mixture.mean_directions[close], estimate[image])
    result = np.empty((radii.size, len(estimate)))
    # components that hold next to nothing together are in a cap or not as their mean directions are
    counts = weight > _TAIL / mixture.log_concentrations.size
    for k, radius in enumerate(radii):
        share = (offset < radius - np.where(counts, margin[close], 0.0)).astype(np.float64)
        (cut,) = np.nonzero((np.abs(offset - radius) <= margin[close]) & counts)
        share[cut] = vmf.probability_within(offset[cut], radius, mixture.log_concentrations[close[cut]])
        result[k] = np.bincount(image, weight * share, minlength=len(estimate))
    return result


def _all_nodes(mixture: VmfMixture | CellMixture, tail: float = _TAIL) -> Iterator[Nodes]:
    """Nodes of every image, in order, a few images at a time."""
    if isinstance(mixture, CellMixture):
        yield from (_cell_nodes(*mixture.of(i)) for i in range(len(mixture)))
        return
    for start in range(0, len(mixture), _IMAGES_AT_ONCE):
        weights = np.exp(mixture.log_mixing_weights[start : start + _IMAGES_AT_ONCE])
        chosen = [_mattering(row, tail) for row in weights]
        # what was left out before is not there to be shared: of those components every image has its own
        is_broad = np.array([tail > 0.0 and few.size > MANY for few in chosen])
        flowers = _sunflowers(mixture.mean_directions, mixture.log_concentrations) if is_broad.any() else None
        is_broad &= flowers is not None
        broad = np.flatnonzero(is_broad)
        shared = flowers.nodes(weights[broad], [chosen[i] for i in broad]) if flowers else iter(())
        own = _own_nodes(mixture, weights, chosen, np.flatnonzero(~is_broad), is_whole=tail > 0.0)
        for i in range(len(chosen)):
            yield next(shared) if is_broad[i] else own[i]


def _mattering(weights: FloatArray, tail: float) -> IntArray:
    """Components that hold all but the tail of the weight."""
    weights = weights.astype(np.float32)  # which sorts in half the time
    ordered = np.sort(weights)
    cut = int(np.searchsorted(np.cumsum(ordered, dtype=np.float64), tail, side="right"))
    return np.flatnonzero(weights >= ordered[min(cut, weights.size - 1)])


def _own_nodes(
    mixture: VmfMixture, weights: FloatArray, chosen: Sequence[IntArray], images: IntArray, *, is_whole: bool
) -> dict[int, Nodes]:
    """Nodes of images over their own components; what is made of all components of a bundle is made once."""
    result: dict[int, Nodes] = {}
    together: dict[tuple[own_nodes.Maker, int], list[int]] = {}
    for i in images.tolist():
        size = chosen[i].size
        if size > _FEW:
            make: own_nodes.Maker = own_nodes.sunflowers
            if size**2 > _LISTED_PAIRS:
                pairs = pairs_of(mixture.mean_directions[chosen[i]], mixture.log_concentrations[chosen[i]])
                make = own_nodes.crowded if pairs > _LISTED_PAIRS else make
            # a large one goes alone: company would save it no time, and its memory would come on top
            together.setdefault((make, i if size > MANY else -1), []).append(i)
        elif not is_whole or size < mixture.num_components:
            together.setdefault((own_nodes.rings, -1), []).append(i)
        else:
            operator = _operators(mixture.mean_directions, mixture.log_concentrations)
            share = weights[i] / weights[i].sum()
            result[i] = operator.nodes(share, operator.density(share[:, None])[:, 0])
    for (make, _), some in together.items():
        entries = np.concatenate([chosen[i] for i in some])
        share = np.concatenate([weights[i, chosen[i]] / weights[i, chosen[i]].sum() for i in some])
        components = mixture.mean_directions[entries], mixture.log_concentrations[entries]
        made = make(*components, share, np.array([chosen[i].size for i in some]))
        result.update(zip(some, made, strict=True))
    return result


def _shareable(mean_directions: FloatArray, log_concentrations: FloatArray) -> Sunflowers | None:
    """Nodes for all images to share; None where they would take too much memory."""
    if bytes_of(mean_directions, log_concentrations) > SHARED_BYTES:
        return None
    return Sunflowers.of(mean_directions, log_concentrations)


_sunflowers = OncePerComponents(_shareable)


@dataclasses.dataclass(frozen=True)
class _Operator:
    """Nodes of a set of components and the matrix from mixing weights to densities at the nodes.

    The last nodes, one per component, are the mean directions themselves: they hold no mass and find the peak.
    """

    direction: FloatArray  # (J * C + C, 3)
    share: FloatArray  # (J, 1), of its component's mass
    matrix: sparse.csr_array  # (J * C + C, C) float32

    @classmethod
    def of(cls, mean_directions: FloatArray, log_concentrations: FloatArray) -> _Operator:
        direction, share = own_nodes.ring_nodes(mean_directions, log_concentrations)
        direction = np.concatenate([direction, mean_directions])
        matrix = _density_matrix(direction, mean_directions, log_concentrations)
        return cls(direction, share, matrix)

    def density(self, weights: FloatArray) -> npt.NDArray[np.float32]:
        """Densities per steradian at all nodes, (n, N), of weights (C, N)."""
        return np.asarray(self.matrix @ weights.astype(np.float32))

    def nodes(self, weights: FloatArray, density: npt.NDArray[np.float32]) -> Nodes:
        mass = (self.share * weights).ravel()  # (J * C,)
        floor = np.finfo(np.float32).tiny
        return Nodes(
            self.direction[: mass.size].T,
            np.maximum(density[: mass.size], floor),
            mass / mass.sum(),
            float(density.max()),
            float(weights.max()),
        )


_operators = OncePerComponents(_Operator.of)


def _density_matrix(nodes: FloatArray, mu: FloatArray, log_kappa: FloatArray) -> sparse.csr_array:
    """Density of each component at each node it reaches, (nodes, C)."""
    chord = near.chord_of(log_kappa, own_nodes.RING_REACH)
    lists = cKDTree(nodes).query_ball_point(mu, chord)
    counts = np.array([len(found) for found in lists], dtype=np.int64)
    rows = np.concatenate([np.asarray(found, dtype=np.int64) for found in lists])
    columns = np.repeat(np.arange(len(mu)), counts)
    gap = nodes[rows] - mu[columns]
    values = np.exp(
        vmf.log_normaliser(log_kappa)[columns] - 0.5 * np.exp(log_kappa)[columns] * np.einsum("ij,ij->i", gap, gap)
    )
    shape = (len(nodes), len(mu))
    return sparse.csr_array(sparse.coo_array((values.astype(np.float32), (rows, columns)), shape=shape))


def _cell_nodes(cell_ids: npt.NDArray[np.uint64], probabilities: FloatArray) -> Nodes:
    """Points inside the cells of one image: each cell is split until there are enough points."""
    heaviest = float(probabilities.max(initial=0.0))
    held = probabilities > 0.0
    cell_ids, probabilities = cell_ids[held], probabilities[held]
    density = probabilities / s2.area_sr(cell_ids)
    while cell_ids.size * 4 <= _CELL_POINTS and s2.level(cell_ids).max() < s2.MAX_LEVEL:
        cell_ids, density = s2.children(cell_ids).ravel(), np.repeat(density, 4)
    mass = density * s2.area_sr(cell_ids)
    return Nodes(s2.centre(cell_ids).T, density, mass / mass.sum(), float(density.max()), heaviest)
