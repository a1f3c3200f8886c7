"""Credible regions: the smallest sets of S2 cells that hold given probabilities, as polygons."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas
import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import s2, sphere
from geo_mvmf.maps import outlines
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]

_OVERSHOOT = 0.004  # the mass of a region exceeds its level by no more: the last cell is split
COLUMNS = ("image_id", "level", "probability", "area_km2", "n_parts", "geometry")


def credible_regions(
    mixture: VmfMixture | CellMixture,
    levels: Sequence[float] = (0.5, 0.9),
    *,
    image_ids: Sequence[str] | None = None,
    max_mass_error: float = 5e-3,
) -> geopandas.GeoDataFrame:
    """Find the smallest region that holds each probability.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    levels : sequence of float
        Probabilities, greater than 0 and less than 1.
    image_ids : sequence of str, optional
        N names; default "0", "1" ...
    max_mass_error : float
        How far the cells may be from the density, in total variation.

    Returns
    -------
    GeoDataFrame
        N x L rows, of each image the largest level first (so that small regions are drawn on top): image_id, level,
        probability (really inside), area_km2 (on the sphere), n_parts (connected on the sphere), MultiPolygon in
        EPSG:4326: valid, counter-clockwise, split at +-180, closed over the poles.

    Raises
    ------
    ValueError
        If a level is not between 0 and 1, or names do not fit the images.

    Examples
    --------
    >>> mixture = VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
    >>> credible_regions(mixture)[["level", "n_parts"]].to_numpy().tolist()
    [[0.9, 1.0], [0.5, 1.0]]
    """
    wanted = sorted({float(level) for level in levels}, reverse=True)
    if not wanted or not 0.0 < wanted[-1] <= wanted[0] < 1.0:
        raise ValueError(f"levels {tuple(levels)} must lie between 0 and 1")
    names = [str(i) for i in range(len(mixture))] if image_ids is None else list(image_ids)
    if len(names) != len(mixture):
        raise ValueError(f"{len(names)} image_ids were given for {len(mixture)} images")
    rows = []
    for i, name in enumerate(names):
        ids, probabilities = mixture[i : i + 1].to_cells(max_mass_error).of(0)
        for level in wanted:
            rows.append((name, level, *_region(ids, probabilities, level)))
    columns: dict[str, list[object]] = {key: [row[k] for row in rows] for k, key in enumerate(COLUMNS)}
    return geopandas.GeoDataFrame(columns, geometry="geometry", crs="EPSG:4326")


def smallest_set(ids: IdArray, probabilities: FloatArray, level: float) -> tuple[IdArray, float]:
    """Choose the densest cells until they hold a probability; the last one is split where it is too heavy.

    Parameters
    ----------
    ids : ndarray of uint64, (n,)
        Disjoint cells.
    probabilities : ndarray of float64, (n,)
    level : float

    Returns
    -------
    ids : ndarray of uint64
    probability : float
        At least the level, and at most 0.004 more.

    Examples
    --------
    >>> chosen, held = smallest_set(s2.face_cells(), np.full(6, 1 / 6), 0.5)
    >>> len(chosen), round(held, 3)
    (3, 0.5)
    """
    order = np.argsort(-probabilities / s2.area_sr(ids), kind="stable")
    cumulative = np.cumsum(probabilities[order])
    last = min(int(np.searchsorted(cumulative, level - 1e-12)), ids.size - 1)
    chosen, held = [ids[order[:last]]], float(cumulative[last] - probabilities[order[last]])
    cell, mass = ids[order[last]], float(probabilities[order[last]])
    while held + mass > level + _OVERSHOOT and s2.level(cell) < s2.MAX_LEVEL:
        quarters = s2.children(cell)
        share = mass * s2.area_sr(quarters) / s2.area_sr(cell)
        whole = int(np.searchsorted(held + np.cumsum(share), level - 1e-12))
        whole = min(whole, 3)
        chosen.append(quarters[:whole])
        held += float(share[:whole].sum())
        cell, mass = quarters[whole], float(share[whole])
    return np.concatenate([*chosen, np.atleast_1d(cell)]).astype(np.uint64), held + mass


def _region(ids: IdArray, probabilities: FloatArray, level: float) -> tuple[float, float, int, shapely.MultiPolygon]:
    chosen, held = smallest_set(ids, probabilities, level)
    shape = outlines.outline(chosen)
    area = float(s2.area_sr(chosen).sum()) * sphere.EARTH_RADIUS_KM**2
    return held, area, outlines.count_parts(shape), shape
