"""The rank of a place in a density: the probability of everything denser, uniform on 0..1 if the density is true.

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
_EQUAL = 1e-9  # densities that differ relatively by less are equal: their cells' areas are rounded


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
        Random numbers in 0..1 that choose among the ranks of equally dense places.

    Returns
    -------
    DataFrame
        N rows: log_density (nats per steradian), searched_probability, searched_area_km2. For a VmfMixture, which has
        no plateaus, as `summaries.at_truth`; for a CellMixture exact.

    Raises
    ------
    ValueError
        If there is not one place per image.

    Examples
    --------
    >>> faces = CellMixture(np.sort(s2.face_cells()), np.full(6, 1 / 6), [0, 6])
    >>> ranks(faces, [0.0], [0.0], [0.25])["searched_probability"].round(6).tolist()
    [0.25]
    """
    if isinstance(mixture, VmfMixture):
        return summaries.at_truth(mixture, longitude, latitude)
    places = sphere.to_directions(longitude, latitude)
    drawn = np.asarray(uniform, dtype=np.float64)
    if places.shape != (len(mixture), 3) or drawn.shape != (len(mixture),):
        raise ValueError(f"{len(mixture)} images need as many places and numbers, not {places.shape}, {drawn.shape}")
    rows = [_rank(mixture[i], places[i : i + 1], float(drawn[i])) for i in range(len(mixture))]
    return pd.DataFrame(rows, columns=["log_density", "searched_probability", "searched_area_km2"])


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
