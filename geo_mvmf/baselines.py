"""What predictions must beat: the density of the training images, which looks at no image at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sized

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, s2_ids, sphere
from geo_mvmf.cell_mixture import CellMixture, find_cells

FloatArray = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingDensity:
    """The density of the training images, as a method: every image gets it, whatever it shows.

    Parameters
    ----------
    cell_ids : array_like of uint64, shape (C,)
        Disjoint S2 cells, those of the partition (of a bundle: `bundle.cell_ids`).
    counts : array_like of int, shape (C,)
        Training images in each; one is added to every cell, so that no place in them is impossible.

    Raises
    ------
    ValueError
        Shapes differ, counts are negative, or cells overlap or are none.

    Examples
    --------
    >>> method = TrainingDensity(s2.face_cells(), [4, 0, 0, 0, 0, 0])
    >>> method.mixture([[0.3, 0.8]]).probabilities.tolist()
    [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
    """

    cell_ids: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        cells, counts = np.asarray(self.cell_ids, dtype=np.uint64), np.asarray(self.counts, dtype=np.int64)
        if cells.ndim != 1 or cells.shape != counts.shape or (counts < 0).any():
            raise ValueError(f"cell_ids and counts have shapes {cells.shape}, {counts.shape}; (C,), counts >= 0 needed")
        order = np.argsort(cells)
        if not (cells.size and _is_partition(cells[order])):
            raise ValueError(f"the {cells.size} cells must be S2 cells that do not overlap")
        object.__setattr__(self, "cell_ids", cells[order])
        object.__setattr__(self, "counts", counts[order])

    def mixture(self, features: Sized) -> CellMixture:
        """Give the density once for each image.

        Parameters
        ----------
        features : array_like, shape (N, D)
            Only counted.

        Returns
        -------
        CellMixture
            Of N images, with all C cells each.

        Examples
        --------
        >>> len(TrainingDensity(s2.face_cells(), np.ones(6)).mixture(np.zeros((3, 8))))
        3
        """
        n, share = len(features), (self.counts + 1.0) / (self.counts.sum() + self.counts.size)
        return CellMixture(np.tile(self.cell_ids, n), np.tile(share, n), np.arange(n + 1) * share.size)


def training_nll(
    cell_ids: npt.NDArray[np.uint64],
    counts: npt.NDArray[np.int64],
    longitude: npt.ArrayLike,
    latitude: npt.ArrayLike,
) -> FloatArray:
    """Give the negative log-likelihood of places under the density of the training images.

    Parameters
    ----------
    cell_ids : ndarray of uint64, (C,)
        S2 cells, those of the partition.
    counts : ndarray of int64, (C,)
        Training images in each; one is added to every cell, so that no place is impossible.
    longitude, latitude : array_like of float, (N,)
        Degrees; NaN gives NaN.

    Returns
    -------
    ndarray of float64, (N,)
        Nats per unit-sphere area; the density is uniform on each cell. NaN where no cell holds the place; everywhere
        where nothing is known of the training: no counts, or cells that are no partition (as of fused evidence).

    Examples
    --------
    >>> faces = np.sort(s2.face_cells())
    >>> training_nll(faces, np.full(6, 9), [10.0], [50.0]).round(3).tolist()  # uniform: log 4 pi
    [2.531]
    """
    x, y = np.asarray(longitude, dtype=np.float64), np.asarray(latitude, dtype=np.float64)
    result = np.full(x.shape, np.nan)
    order = np.argsort(cell_ids)
    cells, share = cell_ids[order], (counts[order] + 1.0) / (counts.sum() + counts.size)
    if not (counts.any() and _is_partition(cells)):
        return result
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    held = find_cells(cells, s2.leaf_ids(sphere.to_directions(x[known], y[known])))
    known, held = known[held >= 0], held[held >= 0]
    result[known] = -np.log(share[held] / s2.area_sr(cells[held]))
    return result


def _is_partition(cells: npt.NDArray[np.uint64]) -> bool:
    """Tell whether sorted cells are S2 cells that do not overlap."""
    if not s2_ids.is_valid(cells).all():
        return False
    return bool((s2_ids.range_max(cells[:-1]) < s2_ids.range_min(cells[1:])).all())
