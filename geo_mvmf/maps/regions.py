"""Credible regions: the smallest sets of S2 cells that hold given probabilities, as polygons."""

from __future__ import annotations

from collections.abc import Sequence

import geopandas
import numpy as np
import numpy.typing as npt
import shapely

from geo_mvmf import s2, sphere, tessellation
from geo_mvmf.coarse_cells import warn_if_coarse
from geo_mvmf.errors import UsageError
from geo_mvmf.maps import outlines
from geo_mvmf.mixture import CellMixture, VmfMixture, require_mixture

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]

_MAX_CELLS = 4_000_000
_SHARE = 0.05  # of the level, or of what is left of 1, by which a region may hold too much
_LEAST_OVERSHOOT, _OVERSHOOT = 1e-4, 0.004  # the mass of a region exceeds its level by no more: the last cell is split
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
        How far the cells along the borders of the regions may be from the density, in total variation.

    Returns
    -------
    GeoDataFrame
        N x L rows, of each image the largest level first (so that small regions are drawn on top): image_id, level,
        probability (really inside), area_km2 (on the sphere), n_parts (connected on the sphere), MultiPolygon in
        EPSG:4326: valid, counter-clockwise, split at +-180, closed over the poles.

    Raises
    ------
    UsageError
        If a level is not between 0 and 1.
    ValueError
        If names do not fit the images.

    Examples
    --------
    >>> mixture = VmfMixture([[1.0, 0.0, 0.0]], [16.0], [[0.0]])
    >>> credible_regions(mixture)[["level", "n_parts"]].to_numpy().tolist()
    [[0.9, 1.0], [0.5, 1.0]]
    """
    require_mixture(mixture)
    wanted = checked_levels(levels)
    names = [str(i) for i in range(len(mixture))] if image_ids is None else list(image_ids)
    if len(names) != len(mixture):
        raise ValueError(f"{len(names)} image_ids were given for {len(mixture)} images")
    rows = []
    for i, name in enumerate(names):
        densest = DensestFirst(*_cells_of(mixture, i, wanted, max_mass_error))
        rows += [(name, level, *_region(densest, level)) for level in wanted]
    columns: dict[str, list[object]] = {key: [row[k] for row in rows] for k, key in enumerate(COLUMNS)}
    return geopandas.GeoDataFrame(columns, geometry="geometry", crs="EPSG:4326")


def checked_levels(levels: Sequence[float]) -> list[float]:
    """Give each level once, the largest first.

    Parameters
    ----------
    levels : sequence of float

    Raises
    ------
    UsageError
        If it is no sequence, there is none, or one is not greater than 0 and less than 1.

    Examples
    --------
    >>> checked_levels((0.5, 0.9, 0.5))
    [0.9, 0.5]
    """
    try:
        wanted = sorted({float(level) for level in levels}, reverse=True)
    except (TypeError, ValueError) as error:
        raise UsageError(f"levels {levels!r:.80}: a sequence of numbers is wanted, such as (0.5, 0.9)") from error
    if not wanted or not 0.0 < wanted[-1] <= wanted[0] < 1.0:
        raise UsageError(f"levels {tuple(levels)} must lie between 0 and 1, such as (0.5, 0.9)")
    return wanted


def _cells_of(
    mixture: VmfMixture | CellMixture, image: int, levels: list[float], max_mass_error: float
) -> tuple[IdArray, FloatArray]:
    """Cells of one image and their probabilities, fine where the density crosses the regions' borders."""
    if isinstance(mixture, CellMixture):
        return mixture.of(image)
    allowed = float(np.clip(max_mass_error, 1e-5, max(1e-5, 0.5 * (1.0 - max(levels)))))  # tails, of high levels
    found = tessellation.tessellate(
        mixture.mean_directions,
        mixture.log_concentrations,
        np.exp(mixture.log_mixing_weights[image]),
        max_mass_error=allowed,
        max_cells=_MAX_CELLS,
        levels=levels,
    )
    warn_if_coarse(np.array([found.mass_error]), max(1.25 * allowed, max_mass_error))
    return found.cell_ids, found.probabilities


class DensestFirst:
    """Cells in the order in which regions take them.

    Parameters
    ----------
    ids : ndarray of uint64, (n,)
        Disjoint cells.
    probabilities : ndarray of float64, (n,)

    Examples
    --------
    >>> chosen, held, area = DensestFirst(s2.face_cells(), np.full(6, 1 / 6)).smallest(0.5)
    >>> len(chosen), round(held, 3), round(area / np.pi, 3)
    (3, 0.5, 2.0)
    """

    def __init__(self, ids: IdArray, probabilities: FloatArray) -> None:
        areas = s2.area_sr(ids)
        order = np.argsort(-probabilities / areas, kind="stable")
        self._ids, self._probabilities, self._areas = ids[order], probabilities[order], areas[order]
        self._held = np.cumsum(self._probabilities)

    def smallest(self, level: float) -> tuple[IdArray, float, float]:
        """Choose the densest cells until they hold a probability; the last one is split where it is too heavy.

        Parameters
        ----------
        level : float

        Returns
        -------
        ids : ndarray of uint64
        probability : float
            At least the level, and at most 0.004 more (less for levels close to 0 or 1).
        area_sr : float
            Steradians.
        """
        last = min(int(np.searchsorted(self._held, level - 1e-12)), self._ids.size - 1)
        mass, area, cell = float(self._probabilities[last]), float(self._areas[last]), self._ids[last]
        chosen, held, covered = [self._ids[:last]], float(self._held[last]) - mass, float(self._areas[:last].sum())
        most = level + max(_LEAST_OVERSHOOT, min(_OVERSHOOT, _SHARE * level, _SHARE * (1.0 - level)))
        while held + mass > most and s2.level(cell) < s2.MAX_LEVEL:
            quarters = s2.children(cell)
            areas = s2.area_sr(quarters)
            shares = mass * areas / area
            whole = min(int(np.searchsorted(held + np.cumsum(shares), level - 1e-12)), 3)
            chosen.append(quarters[:whole])
            held, covered = held + float(shares[:whole].sum()), covered + float(areas[:whole].sum())
            cell, mass, area = quarters[whole], float(shares[whole]), float(areas[whole])
        return np.concatenate([*chosen, np.atleast_1d(cell)]).astype(np.uint64), held + mass, covered + area


def _region(densest: DensestFirst, level: float) -> tuple[float, float, int, shapely.MultiPolygon]:
    chosen, held, area = densest.smallest(level)
    shape = outlines.outline(chosen)
    return held, area * sphere.EARTH_RADIUS_KM**2, outlines.count_parts(shape), shape
