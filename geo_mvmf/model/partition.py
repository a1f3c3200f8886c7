"""The adaptive partition of the sphere by training locations (PlaNet classes), which gives the initial components.

Rule of the authors' `gpslist2classes.py`: begin with the six faces of S2 and split the most populated cell into its
four children until there are enough cells; no cell is discarded, so the cells tile the sphere and their number
is 6 + 3j. Leaf ids are sorted once and a split is three binary searches.
"""

from __future__ import annotations

import dataclasses
import heapq
import warnings

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.errors import BadInputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.uint64]

CELL_SHARE = 0.95  # automatic concentration: this share of a component within its cell's edge (the authors' rule)
_PILE_SHARE, _PILE_COUNT = 1e-3, 10  # more rows at exactly (0, 0) than both are a pile of missing positions


class PartitionWarning(UserWarning):
    """Something about the locations that spoils a partition without making it impossible."""


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """Disjoint S2 cells that tile the sphere.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (C,)
        Ascending.
    counts : ndarray of int64, shape (C,)
        Training locations in each cell.
    mean_directions : ndarray of float64, shape (C, 3)
        Initial mean directions: cell centres, or the mean of each cell's locations.
    n_dropped : int
        Locations that were not finite.

    Examples
    --------
    >>> len(partition_sphere([2.3, 2.4, 13.4], [48.8, 48.9, 52.5], 6))
    6
    """

    cell_ids: IdArray
    counts: IntArray
    mean_directions: FloatArray
    n_dropped: int = 0

    def __len__(self) -> int:
        return int(self.cell_ids.size)

    @property
    def levels(self) -> IntArray:
        """S2 level of each cell, (C,)."""
        return s2.level(self.cell_ids)

    def assign(self, longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> IntArray:
        """Find the cell that holds each location.

        Parameters
        ----------
        longitude, latitude : array_like of float, shape (n,)
            Degrees.

        Returns
        -------
        ndarray of int64, shape (n,)
            Indices into `cell_ids`; every direction is in exactly one cell.

        Raises
        ------
        ValueError
            A location is not finite.

        Examples
        --------
        >>> partition_sphere([0.0], [0.0], 6).assign([0.0, 90.0], [0.0, 0.0]).tolist()
        [0, 1]
        """
        leaves = s2.leaf_ids(sphere.to_directions(longitude, latitude))
        return np.searchsorted(s2.range_max(self.cell_ids), leaves).astype(np.int64)


def partition_sphere(
    longitude: npt.ArrayLike,
    latitude: npt.ArrayLike,
    num_cells: int,
    *,
    mean_direction: str = "centre",
    max_level: int = 22,
) -> Partition:
    """Split the sphere into at least `num_cells` S2 cells, fine where there are many locations.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Degrees. Rows that are not finite are dropped and counted.
    num_cells : int
        At least so many cells; the number is the first 6 + 3j that reaches it.
    mean_direction : {"centre", "photos"}
        Initial mean directions: cell centres (the paper), or the mean of each cell's locations (its centre where
        there is none).
    max_level : int
        Cells of this S2 level are not split (22: about 2 m), so a pile of equal positions cannot eat all cells.

    Returns
    -------
    Partition
        Its cells tile the sphere; equal counts are split in the order of their ids, so the result is repeatable.

    Raises
    ------
    BadInputError
        No location is finite, or a latitude is not in -90..90.
    ValueError
        An option is out of range.

    Warns
    -----
    PartitionWarning
        Many locations are exactly (0, 0), or there are too few places to make so many cells.

    Notes
    -----
    Source: PRIOR_ART section 4 (Izbicki et al. 2019, `gpslist2classes.py`; classes of PlaNet, Weyand et al. 2016).

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> cells = partition_sphere(generator.uniform(-9, 30, 999), generator.uniform(36, 60, 999), 16)
    >>> len(cells), int(cells.counts.sum())
    (18, 999)
    """
    if num_cells < 1 or not 0 <= max_level <= s2.MAX_LEVEL or mean_direction not in ("centre", "photos"):
        raise ValueError(
            f"num_cells {num_cells} must be >= 1, max_level {max_level} in 0..30, "
            f"mean_direction {mean_direction!r} 'centre' or 'photos'"
        )
    places = np.stack(np.broadcast_arrays(*map(_row_of_floats, (longitude, latitude))), axis=-1)  # (n, 2)
    finite = np.isfinite(places).all(axis=-1)
    _check_places(places, finite)
    _warn_about_pile(places[finite])
    directions = sphere.to_directions(places[finite, 0], places[finite, 1])
    order = np.argsort(leaves := s2.leaf_ids(directions), kind="stable")
    cells, starts = _split(leaves[order], num_cells, max_level)
    counts = np.diff(np.append(starts, leaves.size))
    means = s2.centre(cells)
    if mean_direction == "photos":
        means = _means_of_locations(directions[order], starts, counts, means)
    return Partition(cells, counts.astype(np.int64), means, int((~finite).sum()))


def initial_log_concentrations(partition: Partition, value: float | str = "auto") -> FloatArray:
    """Choose the initial log concentration of each component.

    Parameters
    ----------
    partition : Partition
        Its levels give the edge lengths.
    value : float or "auto"
        One value for all (the paper uses 16), or per component so that 95 % of its mass lies within the edge
        length of its cell.

    Returns
    -------
    ndarray of float64, shape (C,)
        Natural logarithms of kappa.

    Raises
    ------
    ValueError
        The value is neither a finite number nor "auto".

    Examples
    --------
    >>> cells = partition_sphere([0.0], [0.0], 6)
    >>> initial_log_concentrations(cells, 16.0).tolist()[:1], round(float(initial_log_concentrations(cells)[0]), 1)
    ([16.0], 1.2)
    """
    if value == "auto":
        edge = np.minimum(s2.edge_length(partition.levels), np.pi)
        return vmf.log_concentration_for(edge, CELL_SHARE)
    if isinstance(value, str) or not np.isfinite(value):
        raise ValueError(f"initial log concentration {value!r} must be a finite number or 'auto'")
    return np.full(len(partition), float(value))


def _split(leaves: IdArray, num_cells: int, max_level: int) -> tuple[IdArray, IntArray]:
    """Find the cells, ascending, and the index of the first location of each."""
    # Entries are (-count, id, first location, last + 1): the fullest first, ties to the smaller id, so it is repeatable
    faces = [int(cell) for cell in s2.face_cells()]
    edges = np.searchsorted(leaves, s2.range_max(s2.face_cells()), side="right").tolist()
    heap = [(start - stop, cell, start, stop) for cell, start, stop in zip(faces, [0, *edges[:-1]], edges, strict=True)]
    heapq.heapify(heap)
    smallest = 1 << 2 * (s2.MAX_LEVEL - max_level)  # lowest bit of the ids of max_level
    done: list[tuple[int, int, int, int]] = []
    while len(heap) + len(done) < num_cells and heap and heap[0][0] < 0:
        entry = heapq.heappop(heap)
        if entry[1] & -entry[1] <= smallest:
            done.append(entry)
            continue
        for child in _children(leaves, entry):
            heapq.heappush(heap, child)
    cells = sorted((cell, start) for _, cell, start, _ in heap + done)
    if len(cells) < num_cells:
        warnings.warn(
            f"only {len(cells)} of {num_cells} cells: the {leaves.size} locations fill no more (cells of level "
            f"{max_level} and empty cells are not split); ask for fewer cells",
            PartitionWarning,
            stacklevel=3,
        )
    ids = np.array([cell for cell, _ in cells], dtype=np.uint64)
    return ids, np.array([start for _, start in cells], dtype=np.int64)


def _children(leaves: IdArray, entry: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    """Split a cell; in plain integers, because a cell at a time is no work for arrays."""
    _, cell, start, stop = entry
    quarter = (cell & -cell) >> 2  # lowest bit of the children, which are cell -3, -1, +1, +3 of it
    ids = [cell + step * quarter for step in (-3, -1, 1, 3)]
    last = np.array([child + quarter - 1 for child in ids[:3]], dtype=np.uint64)
    inner = (np.searchsorted(leaves[start:stop], last, side="right") + start).tolist()
    edges = [start, *inner, stop]
    return [(edges[k] - edges[k + 1], ids[k], edges[k], edges[k + 1]) for k in range(4)]


def _means_of_locations(directions: FloatArray, starts: IntArray, counts: IntArray, centres: FloatArray) -> FloatArray:
    """Average the locations of each cell; an empty cell keeps its centre."""
    means = centres.copy()
    (filled,) = np.nonzero(counts)
    totals = np.add.reduceat(directions, starts[filled])  # the locations of empty cells are none
    means[filled] = totals / np.linalg.norm(totals, axis=1, keepdims=True)  # a cell is less than a hemisphere
    return means


def _row_of_floats(values: npt.ArrayLike) -> FloatArray:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))


def _check_places(places: FloatArray, finite: npt.NDArray[np.bool_]) -> None:
    if not finite.any():
        raise BadInputError(f"none of the {len(places)} training locations has finite longitude and latitude")
    wrong = finite & (np.abs(places[:, 1]) > 90.0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise BadInputError(
            f"row {row} has latitude {places[row, 1]}, not in -90..90 (longitude {places[row, 0]}: swapped?)"
        )


def _warn_about_pile(places: FloatArray) -> None:
    zeros = int((places == 0.0).all(axis=1).sum())
    if zeros > max(_PILE_COUNT, _PILE_SHARE * len(places)):
        warnings.warn(
            f"{zeros} of {len(places)} locations are exactly (0, 0): missing positions written as zero? They would "
            "draw many cells into the Gulf of Guinea; remove them",
            PartitionWarning,
            stacklevel=3,
        )
