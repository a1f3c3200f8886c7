"""Evidence: areas of interest, priors, and several images known to be of one place.

Of m images x_1 ... x_m of one place, each density p(y | x_j) contains the training prior p(y) once, so

    p(y | x_1 ... x_m) is proportional to p(y) * product over j of (p(y | x_j) / p(y))^share,

with share = (1 + (m - 1) * independence) / m: 1 for independent images, 1 / m for copies of one image. A prior raster
takes the place of the first p(y), or multiplies it; an area only restricts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, cast

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.polygons import read_polygons, union_area
from geo_mvmf.maps import estimates, summaries
from geo_mvmf.maps.combining import MASS_ERROR, Evidence, Mixture, combine
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.multipliers import AreaMultiplier, Multiplier, RasterMultiplier
from geo_mvmf.maps.remembered import Remembered
from geo_mvmf.mixture import CellMixture, require_mixture

LEAST_PROBABILITY = 1e-9
"""An area that holds less of an image's probability is refused: what is left there is no more than rounding."""


def restrict(mixture: Mixture, area: Any, *, max_mass_error: float = MASS_ERROR) -> CellMixture:
    """Restrict every image's density to an area: inside it is kept but for a factor, outside it is 0.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    area : path, GeoDataFrame, Polygon, MultiPolygon or Multiplier
        A layer of polygons in any CRS, a shape in longitude and latitude (OGC:CRS84), or a mask.
    max_mass_error : float
        Largest total variation distance to the exact result. Cells on the border keep the share of the area in them.

    Returns
    -------
    CellMixture
        N images, each summing to 1; `mass_errors` says how far each is from the exact result.

    Raises
    ------
    BadInputError
        If the area is no polygon, or holds less than 1e-9 of an image's probability; the message says how much.

    Examples
    --------
    >>> from geo_mvmf.mixture import VmfMixture
    >>> peak = VmfMixture([[1.0, 0.0, 0.0]], [9.0], [[0.0]])
    >>> north = restrict(peak, shapely.box(-180.0, 0.0, 180.0, 90.0))
    >>> round(float(north.probability_within([0.0], [90.0], 10007.5)[0, 0]), 2)
    1.0
    """
    require_mixture(mixture)
    multiplier = area_multiplier(area)
    pieces = []
    for i in range(len(mixture)):
        image = mixture[i : i + 1]
        found = combine([image], multipliers=[multiplier], max_mass_error=max_mass_error, least=LEAST_PROBABILITY)
        if found.mixture is None:
            raise BadInputError(f"image {i}: {too_little(found)}")
        pieces.append(found.mixture)
    return joined(pieces)


def fuse(
    mixtures: Mixture | Sequence[Mixture],
    *,
    prior: Mixture | None = None,
    independence: float = 1.0,
    max_mass_error: float = MASS_ERROR,
) -> CellMixture:
    """Fuse the densities of several images that are known to be of one place.

    Parameters
    ----------
    mixtures : VmfMixture, CellMixture or sequence of them
        All images of all of them are of the one place.
    prior : VmfMixture or CellMixture, optional
        One image: the training prior, which every density contains and which is counted once
        (`Predictions.training_prior`). Default: uniform.
    independence : float
        0..1. 1: the images are independent given the place. 0: they are copies, worth one image (the geometric mean).
    max_mass_error : float
        Largest total variation distance to the exact result.

    Returns
    -------
    CellMixture
        One image.

    Raises
    ------
    ValueError
        If there is no image, independence is not in 0..1, or the prior is of several images.
    BadInputError
        If no place is possible for all images (densities on cells may be 0).

    Examples
    --------
    >>> from geo_mvmf.mixture import VmfMixture
    >>> peaks = VmfMixture([[1.0, 0.0, 0.0]], [9.0], [[0.0], [0.0]])
    >>> both = fuse(peaks)  # log kappa is log 2 more
    >>> round(float(both.log_density([[1.0, 0.0, 0.0]])[0, 0]), 1)
    7.9
    """
    images = [each[i : i + 1] for each in _sequence(mixtures) for i in range(len(each))]
    found = combine(images, prior=prior, independence=independence, max_mass_error=max_mass_error)
    if found.mixture is None:
        raise BadInputError(f"the {len(images)} images have no place in common: nowhere is every density above 0")
    return found.mixture


def area_multiplier(area: Any, *, layer: str | None = None) -> Multiplier:
    """Make a multiplier of an area.

    Parameters
    ----------
    area : path, GeoDataFrame, Polygon, MultiPolygon or Multiplier
        See `restrict`.
    layer : str, optional
        Of a GeoPackage with several.

    Returns
    -------
    Multiplier

    Raises
    ------
    BadInputError
        If the layer cannot be read, or holds no area.

    Examples
    --------
    >>> from geo_mvmf import s2
    >>> area_multiplier(shapely.box(0.0, 0.0, 1.0, 1.0)).look(s2.face_cells()[:1]).high.tolist()
    [1.0]
    """
    if hasattr(area, "look"):
        return cast("Multiplier", area)
    if isinstance(area, shapely.Geometry):
        area = geopandas.GeoDataFrame(geometry=[area], crs="OGC:CRS84")
    polygons = union_area(read_polygons(area, layer=layer))
    if polygons.is_empty or not polygons.area > 0.0:
        name = area if isinstance(area, (str, os.PathLike)) else "the polygons given"
        raise BadInputError(f"{name}: the area is empty, so no place is left in it")
    return Remembered(AreaMultiplier(polygons))


def prior_multiplier(values: npt.ArrayLike, grid: Grid, *, name: str = "the prior") -> Multiplier:
    """Make a multiplier of a prior raster.

    Parameters
    ----------
    values : array_like of float, shape (rows, columns)
        Density per area, in any unit; NaN (no data) is 0, as is everything beyond the raster's edges. Counts per
        raster cell must be divided by `cell_area_km2(grid)` first.
    grid : Grid
        Where they lie.
    name : str
        For messages.

    Returns
    -------
    Multiplier
        Scaled so that the greatest value is 1.

    Raises
    ------
    BadInputError
        If a value is negative or infinite, or none is above 0.

    Examples
    --------
    >>> prior_multiplier([[1.0, 3.0]], Grid((1, 2), (180, 0, -180, 0, -180, 90), "EPSG:4326")).look(
    ...     np.array([1], dtype=np.uint64)
    ... ).high.round(3).tolist()
    [0.333]
    """
    found = np.asarray(values, dtype=np.float64)
    if found.shape != grid.shape:
        raise BadInputError(f"{name}: its values have shape {found.shape}, its grid {grid.shape}")
    wrong = (found < 0.0) | np.isinf(found)
    if wrong.any():
        row, column = np.unravel_index(int(np.argmax(wrong)), found.shape)
        raise BadInputError(
            f"{name}: the value in row {row + 1}, column {column + 1} is {found[row, column]:g}, one of"
            f" {int(wrong.sum())} such; a prior holds densities of at least 0: mark what is no density as nodata"
        )
    held = np.nan_to_num(found, nan=0.0)
    if not held.any():
        raise BadInputError(
            f"{name}: none of its {found.size} values is above 0, {int(np.isnan(found).sum())} are nodata, so it leaves"
            " no place"
        )
    return Remembered(RasterMultiplier(held / held.max(), grid))


def too_little(found: Evidence) -> str:
    """Say how much probability an area or a prior leaves.

    Parameters
    ----------
    found : Evidence
        Without a mixture.

    Returns
    -------
    str

    Examples
    --------
    >>> too_little(Evidence(None, -np.inf))
    'the area and the prior leave nothing of its probability; choose others'
    """
    if found.log_mass == -np.inf:
        return "the area and the prior leave nothing of its probability; choose others"
    power = found.log_mass / np.log(10.0)
    return (
        f"the area holds 10^{power:.1f} of its probability; less than {LEAST_PROBABILITY:g} says nothing about where in"
        " the area it was taken"
    )


def information_gained(before: Mixture | Sequence[Mixture], after: CellMixture) -> pd.DataFrame:
    """Tell what evidence has brought, against the best that was known before.

    Parameters
    ----------
    before : VmfMixture, CellMixture or sequence of them
        The images that were fused, or restricted.
    after : CellMixture
        One image.

    Returns
    -------
    DataFrame
        One row: information_bits and area_90_km2 of the result; gained_bits, how many more bits that is than those
        of the most informative image; saved_area_90_km2, how much smaller the 90 % region is than the smallest of the
        images'. Both are negative where the images disagree.

    Examples
    --------
    >>> from geo_mvmf.mixture import VmfMixture
    >>> peaks = VmfMixture([[1.0, 0.0, 0.0]], [9.0], [[0.0], [0.0]])
    >>> information_gained(peaks, fuse(peaks))["gained_bits"].round(1).tolist()
    [1.0]
    """
    old = pd.concat([_figures(each) for each in _sequence(before)])
    new = _figures(after).iloc[:1].reset_index(drop=True)
    return new.assign(
        gained_bits=new["information_bits"] - old["information_bits"].max(),
        saved_area_90_km2=old["area_90_km2"].min() - new["area_90_km2"],
    )


def joined(mixtures: Iterable[CellMixture]) -> CellMixture:
    """Join CellMixtures to one batch.

    Parameters
    ----------
    mixtures : iterable of CellMixture

    Returns
    -------
    CellMixture

    Examples
    --------
    >>> from geo_mvmf import s2
    >>> one = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
    >>> len(joined([one, one]))
    2
    """
    parts = list(mixtures)
    sizes = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.offsets) for part in parts)])
    errors = [np.zeros(len(part)) if part.mass_errors is None else part.mass_errors for part in parts]
    return CellMixture(
        np.concatenate([np.empty(0, np.uint64), *(part.cell_ids for part in parts)]),
        np.concatenate([np.empty(0), *(part.probabilities for part in parts)]),
        np.cumsum(sizes),
        np.concatenate([np.empty(0), *errors]),
    )


def _sequence(mixtures: Mixture | Sequence[Mixture]) -> Sequence[Mixture]:
    found = list(mixtures) if isinstance(mixtures, Iterable) else [mixtures]  # a mixture has no __iter__
    for mixture in found:
        require_mixture(mixture)
    return found


def _figures(mixture: Mixture) -> pd.DataFrame:
    places = estimates.estimate(mixture, "mode")
    return summaries.summarise(mixture, places[:, 0], places[:, 1])[["information_bits", "area_90_km2"]]
