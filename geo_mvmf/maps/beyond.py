"""What lies beyond a map: the probability outside a grid, by its density, so that credible levels are those of all.

A window holds some raster cells of a density; which of them belong to the smallest region of 50 % depends on how much
of what is denser lies elsewhere.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from geo_mvmf import sphere
from geo_mvmf.maps import near
from geo_mvmf.maps.grid import Grid
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_SAMPLES = 100_000  # in all: a level errs by 0.0016 (a standard deviation) at most
_FEWEST = 10_000  # where so many components matter that their densities at all samples would take long: by 0.005
_EVALUATIONS = 2e8
_TAIL = 1e-5  # weight of the lightest components that are left out
_SAME_PLACE = 1e-5  # radians, 60 m: a place that comes back farther off is shown where another one is
_KM2 = sphere.EARTH_RADIUS_KM**2


@dataclasses.dataclass(frozen=True, eq=False)
class Beyond:
    """Probability outside a grid.

    Parameters
    ----------
    densities : ndarray of float64, shape (K,)
        At places outside, per square kilometre.
    probability : ndarray of float64, shape (K,)
        What each of them stands for.

    Examples
    --------
    See `beyond`.
    """

    densities: FloatArray
    probability: FloatArray

    @classmethod
    def nothing(cls) -> Beyond:
        """Nothing is outside, or nothing is known of it.

        Examples
        --------
        >>> Beyond.nothing().probability.sum()
        np.float64(0.0)
        """
        return cls(np.zeros(0), np.zeros(0))


def beyond(mixture: VmfMixture | CellMixture, grid: Grid, inside: float, *, seed: int = 0) -> Beyond:
    """Find the probability outside a grid by its density, from samples.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        One image, or several whose mean is meant.
    grid : Grid
    inside : float
        Probability that the grid holds, as its raster has it.
    seed : int
        The same one gives the same samples.

    Returns
    -------
    Beyond
        Of 100,000 samples those outside, whose probabilities sum to 1 - inside (10,000 where very many components
        matter).

    Examples
    --------
    >>> halves = VmfMixture([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], [9.0, 5.0], np.log([[0.5, 0.5]]))
    >>> wide = beyond(halves, Grid.from_bounds(-90.0, -90.0, 90.0, 90.0, 1.0), 0.5)
    >>> float(wide.probability.sum()), bool(wide.densities.max() < 1e-6)
    (0.5, True)
    """
    if isinstance(mixture, VmfMixture) and len(mixture) == 1:
        mixture = _without_tail(mixture)
        number = int(np.clip(_EVALUATIONS / mixture.log_concentrations.size, _FEWEST, _SAMPLES))
    else:
        number = max(_SAMPLES // len(mixture), 1)
    drawn = mixture.sample(number, seed=seed).reshape(-1, 3)
    outside = drawn[~holds(grid, drawn)]
    if not len(outside) or inside >= 1.0:
        return Beyond.nothing()
    densities = np.exp(mixture.log_density(outside)).mean(axis=0) / _KM2
    return Beyond(densities, np.full(len(outside), (1.0 - inside) / len(outside)))


def holds(grid: Grid, directions: FloatArray) -> BoolArray:
    """Tell which places lie within a grid.

    Parameters
    ----------
    grid : Grid
    directions : ndarray of float64, shape (M, 3)
        Unit vectors.

    Returns
    -------
    ndarray of bool, shape (M,)

    Examples
    --------
    >>> holds(Grid.from_bounds(-90.0, -90.0, 90.0, 90.0, 1.0), np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])).tolist()
    [True, False]
    """
    column, row = placed(grid, directions)
    rows, columns = grid.shape
    return np.asarray((column >= 0.0) & (column <= columns) & (row >= 0.0) & (row <= rows))  # False at NaN


def placed(grid: Grid, directions: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Find where a grid, or its continuation, shows places.

    Parameters
    ----------
    grid : Grid
    directions : ndarray of float64, shape (M, 3)
        Unit vectors.

    Returns
    -------
    column, row : ndarray of float64, shape (M,)
        As `Grid.to_pixels`; NaN also where the projection, far from what it was made for, would show a place where it
        shows another one.

    Examples
    --------
    >>> placed(Grid.globe(1.0), np.array([[1.0, 0.0, 0.0]]))[0].tolist()
    [180.0]
    """
    column, row = grid.to_pixels(*sphere.to_longitude_latitude(directions))
    if grid.is_geographic:
        return column, row
    back = np.linalg.norm(grid.to_directions(column, row) - directions, axis=1) <= _SAME_PLACE  # False at NaN
    return np.where(back, column, np.nan), np.where(back, row, np.nan)


def _without_tail(mixture: VmfMixture) -> VmfMixture:
    weights = np.exp(mixture.log_mixing_weights[0])
    few = np.sort(near.heaviest(weights, _TAIL))
    logs = np.log(weights[few] / weights[few].sum())
    return VmfMixture(mixture.mean_directions[few], mixture.log_concentrations[few], logs[None])
