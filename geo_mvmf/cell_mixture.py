"""Probability that is uniform on each of some S2 cells of any levels.

This is PlaNet's density (one cell per class), what `VmfMixture.to_cells` gives, and what a prior or an area of
interest leaves. Regions, zones and fusion work on it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2
from geo_mvmf.cell_caps import cap_probabilities, caps

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
Seed = int | np.random.Generator | None

SUM_TOLERANCE = 1e-3  # how far the probabilities of an image may be from 1 before they are refused


@dataclasses.dataclass(frozen=True, eq=False)
class CellMixture:
    """A batch of densities, each uniform on every one of its S2 cells.

    Parameters
    ----------
    cell_ids : array_like of uint64, shape (T,)
        S2 cells of all images one after the other; within an image sorted and disjoint.
    probabilities : array_like of float, shape (T,)
        Probability of each cell, not negative; sums to 1 in each image (made exact where within 1e-3).
    offsets : array_like of int, shape (N + 1,)
        Image i owns the cells ``offsets[i]:offsets[i + 1]``.
    mass_errors : array_like of float, shape (N,), optional
        Where this stands for another density: the total variation distance to it, which is the largest error of the
        probability of any region.

    Raises
    ------
    ValueError
        Shapes do not fit, a number is no cell, cells are unsorted or overlap, or probabilities do not sum to 1.

    Examples
    --------
    >>> mixture = CellMixture(s2.face_cells(), [0.5, 0.1, 0.1, 0.1, 0.1, 0.1], [0, 6])
    >>> len(mixture), round(float(mixture.log_density([[1.0, 0.0, 0.0]])[0, 0]), 4)
    (1, -1.4324)
    """

    cell_ids: IdArray
    probabilities: FloatArray
    offsets: IntArray
    mass_errors: FloatArray | None = None

    def __post_init__(self) -> None:
        cell_ids = np.ascontiguousarray(self.cell_ids, dtype=np.uint64)
        probabilities = np.asarray(self.probabilities, dtype=np.float64)
        offsets = np.asarray(self.offsets, dtype=np.int64)
        _check_shapes(cell_ids, probabilities, offsets)
        _check_cells(cell_ids, offsets)
        self._set(cell_ids, _normalised(probabilities, offsets), offsets)
        if self.mass_errors is not None:
            errors = np.asarray(self.mass_errors, dtype=np.float64)
            if errors.shape != (len(self),):
                raise ValueError(f"mass_errors has shape {errors.shape}, not ({len(self)},)")
            object.__setattr__(self, "mass_errors", errors)

    def _set(self, cell_ids: IdArray, probabilities: FloatArray, offsets: IntArray) -> None:
        object.__setattr__(self, "cell_ids", cell_ids)
        object.__setattr__(self, "probabilities", probabilities)
        object.__setattr__(self, "offsets", offsets)

    def __len__(self) -> int:
        return int(self.offsets.size - 1)

    def __getitem__(self, index: int | slice | npt.ArrayLike) -> CellMixture:
        """Take some of the images, as a CellMixture."""
        chosen = np.atleast_1d(np.arange(len(self))[as_index(index)])
        pieces = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen]
        rows = np.concatenate([*pieces, np.empty(0, dtype=np.int64)]).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum([piece.size for piece in pieces], dtype=np.int64)])
        taken = object.__new__(CellMixture)
        taken._set(self.cell_ids[rows], self.probabilities[rows], offsets.astype(np.int64))
        errors = None if self.mass_errors is None else self.mass_errors[chosen]
        object.__setattr__(taken, "mass_errors", errors)
        return taken

    def of(self, i: int) -> tuple[IdArray, FloatArray]:
        """Give the cells and the probabilities of one image.

        Parameters
        ----------
        i : int
            Which image; negative counts from the end.

        Returns
        -------
        cell_ids : ndarray of uint64, shape (T_i,)
            Sorted, disjoint.
        probabilities : ndarray of float64, shape (T_i,)
            Sum to 1.

        Raises
        ------
        IndexError
            There is no such image.

        Examples
        --------
        >>> uniform = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
        >>> uniform.of(0)[0].size
        6
        """
        i = range(len(self))[i]
        own = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.cell_ids[own], self.probabilities[own]

    def densities_per_sr(self) -> FloatArray:
        """Give the density of every cell.

        Returns
        -------
        ndarray of float64, shape (T,)
            Per steradian, in the order of `cell_ids`.

        Examples
        --------
        >>> uniform = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
        >>> round(float(uniform.densities_per_sr()[0] * 4 * np.pi), 12)
        1.0
        """
        return self.probabilities / s2.area_sr(self.cell_ids)

    def log_density(self, directions: npt.ArrayLike) -> FloatArray:
        """Evaluate the log density of every image at directions.

        Parameters
        ----------
        directions : array_like of float, shape (M, 3)
            Unit vectors.

        Returns
        -------
        ndarray of float64, shape (N, M)
            Nats per steradian; minus infinity outside the cells.

        Examples
        --------
        >>> uniform = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
        >>> round(float(uniform.log_density([[0.0, 0.0, 1.0]])[0, 0]), 4)
        -2.531
        """
        leaves = s2.leaf_ids(np.asarray(directions, dtype=np.float64).reshape(-1, 3))
        result = np.full((len(self), leaves.size), -np.inf)
        for i in range(len(self)):
            cells, probabilities = self.of(i)
            rows = find_cells(cells, leaves)
            held = rows >= 0
            density = probabilities[rows[held]] / s2.area_sr(cells[rows[held]])
            with np.errstate(divide="ignore"):  # a cell of probability 0 has log density minus infinity
                result[i, held] = np.log(density)
        return result

    def sample(self, n: int, *, seed: Seed) -> FloatArray:
        """Draw directions from every image's density.

        Parameters
        ----------
        n : int
            How many per image.
        seed : int or numpy.random.Generator
            Where the randomness comes from.

        Returns
        -------
        ndarray of float64, shape (N, n, 3)
            Unit vectors.

        Examples
        --------
        >>> uniform = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
        >>> uniform.sample(5, seed=0).shape
        (1, 5, 3)
        """
        generator = np.random.default_rng(seed)
        drawn = np.empty((len(self), n, 3))
        for i in range(len(self)):
            cells, probabilities = self.of(i)
            chosen = np.searchsorted(np.cumsum(probabilities), generator.random(n), side="right")
            drawn[i] = random_in_cells(cells[np.minimum(chosen, cells.size - 1)], generator)
        return drawn

    def probability_within(
        self, longitude: npt.ArrayLike, latitude: npt.ArrayLike, radius_km: npt.ArrayLike
    ) -> FloatArray:
        """Give the probability within a distance of points.

        Parameters
        ----------
        longitude, latitude : array_like of float, shape (M,)
            Centres of the caps, degrees.
        radius_km : array_like of float, shape () or (M,)
            Great-circle radii, kilometres.

        Returns
        -------
        ndarray of float64, shape (N, M)
            Probabilities. Cells on a cap's edge are subdivided to a sixteenth of its radius and then cut by a straight
            line, which leaves a relative error of about 1e-4, or far less where the cells are small beside the cap.

        Examples
        --------
        >>> uniform = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
        >>> round(float(uniform.probability_within([10.0], [50.0], 6371.0088 * np.pi / 2)[0, 0]), 6)
        0.5
        """
        centres, reach = caps(longitude, latitude, radius_km)
        result = np.empty((len(self), reach.size))
        for i in range(len(self)):
            result[i] = cap_probabilities(*self.of(i), centres, reach)
        return result

    def to_cells(self, max_mass_error: float = 1e-3) -> CellMixture:
        """Return itself: the density is one of cells already, whatever the error allowed.

        Parameters
        ----------
        max_mass_error : float
            Has no effect; here so that both mixtures are called alike.

        Examples
        --------
        >>> uniform = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
        >>> uniform.to_cells(max_mass_error=0.01) is uniform
        True
        """
        del max_mass_error
        return self


def as_index(images: int | slice | npt.ArrayLike) -> int | slice | npt.NDArray[Any]:
    """Make what says which images are meant an index that numpy takes.

    Parameters
    ----------
    images : int, slice or array_like of int or bool

    Returns
    -------
    int, slice or ndarray
        An empty list, which would become an array of floats, means no image.

    Examples
    --------
    >>> np.arange(3)[as_index([])].tolist(), np.arange(3)[as_index((2, 0))].tolist()
    ([], [2, 0])
    """
    if isinstance(images, (int, slice)):
        return images
    rows = np.asarray(images)
    return rows if rows.size else rows.astype(np.int64)


def find_cells(cells: IdArray, leaves: IdArray) -> IntArray:
    """Find which of some disjoint cells holds each leaf.

    Parameters
    ----------
    cells : ndarray of uint64, shape (T,)
        Sorted, disjoint.
    leaves : ndarray of uint64, shape (...)
        Ids of level 30, or of any level finer than the cells.

    Returns
    -------
    ndarray of int64, shape (...)
        Rows of `cells`; -1 where none holds the leaf.

    Examples
    --------
    >>> find_cells(s2.face_cells()[2:], s2.leaf_ids([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])).tolist()
    [0, -1]
    """
    if not cells.size:
        return np.full(leaves.shape, -1, dtype=np.int64)
    rows = np.searchsorted(s2.range_max(cells), leaves)
    inside = np.minimum(rows, cells.size - 1)
    held = (rows < cells.size) & (s2.range_min(cells)[inside] <= leaves)
    return np.where(held, inside, -1)


def random_in_cells(ids: npt.ArrayLike, generator: np.random.Generator) -> FloatArray:
    """Draw one point uniformly over the area of each cell.

    Parameters
    ----------
    ids : array_like of uint64, shape (n,)
        Valid ids.
    generator : numpy.random.Generator
        Where the randomness comes from.

    Returns
    -------
    ndarray of float64, shape (n, 3)
        Unit vectors.

    Examples
    --------
    >>> points = random_in_cells(s2.face_cells(), np.random.default_rng(0))
    >>> bool((s2.cell_ids(points, 0) == s2.face_cells()).all())
    True
    """
    face, u, v = s2.cell_rectangle(ids)
    # the area element (1 + u^2 + v^2)^(-3/2) is largest where |u| and |v| are least: rejection against that
    least = 1.0 + np.square(_nearest_zero(u)) + np.square(_nearest_zero(v))
    chosen = np.empty((face.size, 2))
    todo = np.arange(face.size)
    while todo.size:
        a, b, level = generator.random((3, todo.size))
        x = u[todo, 0] + a * (u[todo, 1] - u[todo, 0])
        y = v[todo, 0] + b * (v[todo, 1] - v[todo, 0])
        accepted = level <= (least[todo] / (1.0 + x * x + y * y)) ** 1.5
        chosen[todo[accepted]] = np.stack([x, y], axis=-1)[accepted]
        todo = todo[~accepted]
    return s2.uv_directions(face, chosen[:, 0], chosen[:, 1])


def _nearest_zero(bounds: FloatArray) -> FloatArray:
    return np.asarray(np.clip(0.0, bounds[..., 0], bounds[..., 1]))


def _check_shapes(cell_ids: IdArray, probabilities: FloatArray, offsets: IntArray) -> None:
    if cell_ids.ndim != 1 or probabilities.shape != cell_ids.shape:
        raise ValueError(f"cell_ids and probabilities have shapes {cell_ids.shape} and {probabilities.shape}, not (T,)")
    if offsets.ndim != 1 or offsets.size < 1 or offsets[0] != 0 or offsets[-1] != cell_ids.size:
        raise ValueError(f"offsets {offsets.tolist()[:8]} must go from 0 to the number of cells, {cell_ids.size}")
    if np.any(np.diff(offsets) <= 0):
        raise ValueError(f"image {int(np.argmax(np.diff(offsets) <= 0))} has no cell")


def _check_cells(cell_ids: IdArray, offsets: IntArray) -> None:
    valid = s2.is_valid(cell_ids)
    if not np.all(valid):
        raise ValueError(f"{int(cell_ids[~valid][0])} is not an S2 cell id")
    follows = s2.range_min(cell_ids[1:]) > s2.range_max(cell_ids[:-1])
    follows[offsets[1:-1] - 1] = True  # the next image starts again
    if not np.all(follows):
        row = int(np.argmin(follows))
        pair = " and ".join(s2.to_token(cell_ids[row : row + 2]).tolist())
        raise ValueError(f"cells {row} and {row + 1} ({pair}) overlap or are not sorted")


def _normalised(probabilities: FloatArray, offsets: IntArray) -> FloatArray:
    if not np.all(probabilities >= 0.0):
        row = int(np.argmin(probabilities >= 0.0))
        raise ValueError(f"probability {row} is {probabilities[row]}, not a number >= 0")
    if offsets.size == 1:
        return probabilities
    sums = np.add.reduceat(probabilities, offsets[:-1])
    wrong = ~(np.abs(sums - 1.0) <= SUM_TOLERANCE)
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise ValueError(f"the probabilities of image {row} sum to {sums[row]}, not to 1")
    return np.asarray(probabilities / np.repeat(sums, np.diff(offsets)))
