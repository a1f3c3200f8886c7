"""From a density to a point: component (eq. 7) and mode (eq. 6) of Izbicki et al. 2019, median, best within a radius.

The paper calls eq. 6 prohibitive for a test set. With the fixed point y <- normalise(sum of r_i kappa_i mu_i), r the
responsibilities at y (which is expectation maximisation, so the density never falls), for all images together and
with the components near each climb only, it takes a millisecond an image. Each estimator is the best answer to one
question: the mode to "where is the density highest", the median to "which place is least far from the truth on
average", best_within to "which place is most often within X km of the truth".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import cell_caps, s2, sphere, vmf
from geo_mvmf.errors import UsageError
from geo_mvmf.maps import climbs, near, placing, radial, stand_ins
from geo_mvmf.maps.once import OncePerComponents
from geo_mvmf.mixture import CellMixture, VmfMixture, require_mixture

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.uint64]

ESTIMATORS = ("component", "mode", "median", "best_within")

CROWD = 8192
"""Components of an image beyond which its place is searched by fewer that stand for them."""

_TAIL = 1e-4  # weight of the lightest components, which the searches leave out
_PIECES = 3000  # about how many pieces stand for the cells of one image, or for very many components
_FINE = 6.0  # pieces for best_within are at most so many times smaller than the radius
_HEAVY = 1e-3  # share of the weight that a component holds which always counts on its own
_BLUNT = 4.0  # components are merged, for best_within, in cells so many times smaller than the radius, or of one sigma
_ROWS = 8.0  # for one unit of log concentration, of the tables of those fewer: every image needs its own
_DECIMALS = 9  # places whose probabilities agree so far are equal, and the first of them is taken


class _Image(NamedTuple):
    """One image for the searches: its components, fewer that stand for very many, and exact probabilities."""

    exact: placing.Sum
    rough: placing.Sum | None
    within: Callable[[FloatArray, float], FloatArray]


def estimate(
    mixture: VmfMixture | CellMixture, estimator: str = "component", radius_km: float | None = None
) -> FloatArray:
    """Estimate one place per image.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    estimator : {"component", "mode", "median", "best_within"}
        "component": the mean direction of the heaviest component (eq. 7; of equal ones the first), for cells the
        centre of the most probable one. "mode": the densest point (eq. 6), the best of climbs from the components
        that are densest; never less dense than the component estimate. For cells the centre of the densest.
        "median": the place of least expected great-circle distance. "best_within": the place with the most
        probability within `radius_km`, which is the best answer where accuracy at that distance counts; never less
        than at the other three. Where several places hold as much, any of them. Images of more than 8192
        components that matter are searched by fewer that stand for these, and what is found is improved over all.
    radius_km : float, optional
        Great-circle kilometres, more than 0: for best_within, and for no other.

    Returns
    -------
    ndarray of float64, (N, 2)
        Longitude, latitude in degrees.

    Raises
    ------
    UsageError
        If the estimator is unknown, needs a radius or takes none, or the radius is not a positive number.

    Examples
    --------
    >>> mixture = VmfMixture(sphere.to_directions([10.0, 20.0], [50.0, 60.0]), [9.0, 9.0], np.log([[0.4, 0.6]]))
    >>> estimate(mixture).round(6).tolist()
    [[20.0, 60.0]]
    """
    require_mixture(mixture)
    check_estimator(estimator, radius_km)
    if estimator == "median":
        directions = np.array([placing.median(image.exact, image.rough) for image in _images(mixture)])
    elif estimator == "best_within" and radius_km is not None:
        directions = _best_within(mixture, min(radius_km / sphere.EARTH_RADIUS_KM, math.pi))
    elif isinstance(mixture, CellMixture):
        directions = _cell_centres(mixture, densest=estimator == "mode")
    elif estimator == "mode":
        directions = climbs.modes(mixture)
    else:
        directions = mixture.mean_directions[np.argmax(mixture.log_mixing_weights, axis=1)]
    return np.stack(sphere.to_longitude_latitude(directions.reshape(-1, 3)), axis=1)


def check_estimator(estimator: str, radius_km: float | None) -> None:
    """Refuse an estimator that is unknown, or has no radius where it needs one.

    Parameters
    ----------
    estimator, radius_km
        As `estimate`.

    Raises
    ------
    UsageError
        If they do not fit.

    Examples
    --------
    >>> check_estimator("best_within", 200.0)
    """
    if estimator not in ESTIMATORS:
        raise UsageError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    if estimator != "best_within" and radius_km is not None:
        raise UsageError(f"radius_km {radius_km} was given, but estimator {estimator!r} takes none")
    if estimator == "best_within" and not (radius_km is not None and 0.0 < radius_km < math.inf):
        raise UsageError(f"estimator 'best_within' needs radius_km, a number of kilometres above 0, not {radius_km}")


def _best_within(mixture: VmfMixture | CellMixture, radius: float) -> FloatArray:
    known = [sphere.to_directions(*estimate(mixture, each).T) for each in ("component", "mode", "median")]
    result = np.empty((len(mixture), 3))

    for i, image in enumerate(_images(mixture, radius)):
        begun = np.stack([places[i] for places in known])
        places = np.concatenate([begun, placing.most_within(image.exact, begun, image.rough)])
        held = image.within(places, radius)
        result[i] = places[np.argmax(np.round(held, _DECIMALS))]
    return result


def _table(log_concentrations: FloatArray, radius: float | None) -> radial.Table:
    """What is summed: the probability within a radius, or else the distance."""
    return radial.distance_table(log_concentrations) if radius is None else radial.cap_table(log_concentrations, radius)


# the radius in the place of the directions
_shared_tables = OncePerComponents(lambda radius, each: _table(each, radius[0] if radius.size else None), kept=4)


def _images(mixture: VmfMixture | CellMixture, radius: float | None = None) -> Iterator[_Image]:
    """Every image in turn; what all share is made once."""
    if isinstance(mixture, CellMixture):
        for i in range(len(mixture)):
            yield _of_cells(*mixture.of(i), radius)
        return
    if not len(mixture):
        return
    key = np.empty(0) if radius is None else np.array([radius])
    shared = _shared_tables(key, mixture.log_concentrations)
    for log_weights in mixture.log_mixing_weights:
        yield _of_components(mixture.mean_directions, mixture.log_concentrations, np.exp(log_weights), shared, radius)


def _rough(image: stand_ins.Components, radius: float | None) -> placing.Sum | None:
    """Fewer components for a search, where there are very many.

    Also where hardly any meet: of 12,000 components of many widths 10,673 are searched in half the time of all.
    """
    if image.weights.size <= CROWD:
        return None
    if radius is None:
        is_heavy = image.weights > _HEAVY * image.weights.sum()
        edge = np.where(is_heavy, 0.0, stand_ins.edge_for(image.directions, _PIECES))
    else:
        edge = np.maximum(radius / _BLUNT, np.exp(-0.5 * image.log_concentrations))
    few = stand_ins.merged(image, edge)
    weighted = placing.Weighted(few.directions, few.weights, np.arange(few.weights.size))
    return placing.Sum(weighted, _table(np.round(few.log_concentrations * _ROWS) / _ROWS, radius))


def _of_components(
    mean_directions: FloatArray,
    log_concentrations: FloatArray,
    weights: FloatArray,
    table: radial.Table,
    radius: float | None,
) -> _Image:
    chosen = np.sort(near.heaviest(weights, _TAIL))
    directions, weights = mean_directions[chosen], weights[chosen]
    rough = _rough(stand_ins.Components(directions, log_concentrations[chosen], weights), radius)

    def within(places: FloatArray, radius: float) -> FloatArray:
        offset = sphere.angle(directions[:, None], places)  # (C, K)
        return np.asarray(weights @ vmf.probability_within(offset, radius, log_concentrations[chosen, None]))

    return _Image(placing.Sum(placing.Weighted(directions, weights, chosen), table), rough, within)


def _of_cells(cells: IdArray, probabilities: FloatArray, radius: float | None) -> _Image:
    """Pieces of cells as components of the same area: kappa = 4 pi / area has the variance of a disc."""
    pieces, masses = _pieces(cells, probabilities, math.inf if radius is None else radius / _FINE)
    log_concentrations = np.log(4.0 * math.pi / s2.area_sr(pieces))
    directions = s2.centre(pieces)
    rough = _rough(stand_ins.Components(directions, log_concentrations, masses), radius)

    def within(places: FloatArray, radius: float) -> FloatArray:
        return cell_caps.cap_probabilities(cells, probabilities, places, np.full(len(places), radius))

    weighted = placing.Weighted(directions, masses, np.arange(pieces.size))
    return _Image(placing.Sum(weighted, _table(log_concentrations, radius)), rough, within)


def _pieces(cells: IdArray, probabilities: FloatArray, largest: float) -> tuple[IdArray, FloatArray]:
    """Cut the cells of one image where much probability is spread wide, until there are enough pieces."""
    chosen = near.heaviest(probabilities, _TAIL)
    cells, masses = cells[chosen], probabilities[chosen]
    while cells.size < _PIECES:
        radius = s2.bounding_radius(cells)
        worth = np.where((s2.level(cells) < s2.MAX_LEVEL - 1) & (radius > 1e-7), masses * radius, 0.0)
        worth[radius <= largest] *= 1e-3 if math.isfinite(largest) else 1.0
        cut = np.argsort(-worth)[: max(1, min(cells.size // 2, (_PIECES - cells.size) // 3 + 1))]
        cut = cut[worth[cut] > 0.0]
        if not cut.size:
            break
        quarters = s2.children(cells[cut])
        shares = s2.area_sr(quarters) / s2.area_sr(cells[cut])[:, None]
        kept = np.ones(cells.size, dtype=np.bool_)
        kept[cut] = False
        masses = np.concatenate([masses[kept], (masses[cut, None] * shares).ravel()])
        cells = np.concatenate([cells[kept], quarters.ravel()])
    return cells, masses


def _cell_centres(mixture: CellMixture, *, densest: bool) -> FloatArray:
    value = mixture.densities_per_sr() if densest else mixture.probabilities
    ends = mixture.offsets
    best = [int(start + np.argmax(value[start:stop])) for start, stop in itertools.pairwise(ends)]
    return s2.centre(mixture.cell_ids[best])
