"""The rank of a place in a density: the probability of everything denser, uniform on 0..1 if the density is true.

Among places drawn from a density the true one has no special rank: the number of draws that are denser, with a random
rank among equals, is uniform whatever the density looks like. So ranks by draws are right on average for any mixture,
where a summary by a few nodes (`summaries.at_truth`) has steps at them.

Where a place shares its density with others (an S2 cell of uniform density), every rank among them is as true as any
other. A rank drawn at random among them keeps the ranks of simulated truths uniform; the middle one would not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import s2, sphere
from geo_mvmf.maps import summaries
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]

_KM2 = sphere.EARTH_RADIUS_KM**2
_EQUAL = 1e-9  # densities that differ relatively by less are equal: they, and their cells' areas, are rounded
_DRAWS = 999  # per image: ranks in steps of a thousandth
_TAIL = 1e-5  # weight of the lightest components that draws leave out
_MANY = 2048  # components that matter, beyond which draws would cost too much and nodes are many


def ranks(
    mixture: VmfMixture | CellMixture, longitude: npt.ArrayLike, latitude: npt.ArrayLike, uniform: npt.ArrayLike
) -> pd.DataFrame:
    """Rank one place per image.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    longitude, latitude : array_like of float, (N,)
        Degrees.
    uniform : array_like of float, (N,)
        Random numbers in 0..1; each decides all that is random about its image.

    Returns
    -------
    DataFrame
        N rows: log_density (nats per steradian), searched_probability, searched_area_km2. Exact for a CellMixture. For
        a VmfMixture the probability is a rank among 999 draws from the image's density (where more than 2048 components
        matter: as `summaries.at_truth`), and the area as `summaries.at_truth`.

    Raises
    ------
    ValueError
        If there is not one place and number per image.

    Examples
    --------
    >>> faces = CellMixture(np.sort(s2.face_cells()), np.full(6, 1 / 6), [0, 6])
    >>> ranks(faces, [0.0], [0.0], [0.25])["searched_probability"].round(6).tolist()
    [0.25]
    """
    places, drawn = sphere.to_directions(longitude, latitude), np.asarray(uniform, dtype=np.float64)
    if places.shape != (len(mixture), 3) or drawn.shape != (len(mixture),):
        raise ValueError(f"{len(mixture)} images need as many places and numbers, not {places.shape}, {drawn.shape}")
    if isinstance(mixture, CellMixture):
        rows = [_rank(mixture[i], places[i : i + 1], float(drawn[i])) for i in range(len(mixture))]
        return pd.DataFrame(rows, columns=["log_density", "searched_probability", "searched_area_km2"])
    found = summaries.at_truth(mixture, longitude, latitude)
    searched = found["searched_probability"].to_numpy(copy=True)
    for i in range(len(mixture)):
        rank = _rank_among_draws(mixture, i, places[i], float(found["log_density"].iloc[i]), float(drawn[i]))
        searched[i] = searched[i] if rank is None else rank
    return found.assign(searched_probability=searched)


def _rank_among_draws(
    mixture: VmfMixture, image: int, place: FloatArray, log_density: float, uniform: float
) -> float | None:
    logs = mixture.log_mixing_weights[image]
    order = np.argsort(logs)[::-1]
    few = order[: int(np.searchsorted(np.cumsum(np.exp(logs[order])), 1.0 - _TAIL)) + 1]
    if few.size > _MANY:
        return None
    own = VmfMixture(mixture.mean_directions[few], mixture.log_concentrations[few], logs[None, few])
    generator = np.random.default_rng(int(uniform * 2.0**53))
    places = np.concatenate([place[None], own.sample(_DRAWS, seed=generator)[0]])
    values = own.log_density(places)[0]
    if log_density - values[0] > 2.0 * _TAIL:  # what is left out is more here than it is of the whole: a narrow peak
        values[0] = log_density
    # in steps, so that what is equal is so by whomever it is compared: of a flat density all is
    steps = np.rint(values / _EQUAL)
    above, equal = np.count_nonzero(steps[1:] > steps[0]), np.count_nonzero(steps[1:] == steps[0])
    return float((above + generator.random() * (equal + 1)) / (_DRAWS + 1))


def _rank(image: CellMixture, place: FloatArray, uniform: float) -> tuple[float, float, float]:
    log_density = float(image.log_density(place)[0, 0])
    ids, probability = image.of(0)
    area = s2.area_sr(ids)
    density, own = probability / area, float(np.exp(log_density))
    above = density > own * (1.0 + _EQUAL)
    equal = ~above & (density >= own * (1.0 - _EQUAL)) & (density > 0.0)
    searched = probability[above].sum() + uniform * probability[equal].sum()
    equal_area = area[equal].sum() if own > 0.0 else 4.0 * np.pi - area[above].sum()
    return log_density, float(np.clip(searched, 0.0, 1.0)), float(area[above].sum() + uniform * equal_area) * _KM2
