"""The adaptive partition of the sphere by training locations (PlaNet classes), which gives the initial components.

Rule of the authors' `gpslist2classes.py`: begin with the six faces of S2 and split the most populated cell into its
four children until there are enough cells; no cell is discarded, so the cells tile the sphere and their numbers
are 6 + 3j. Leaf ids are sorted once and a split is three binary searches.
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
    cell_ids : ndarray of uint64, (C,)
        Ascending.
    counts : ndarray of int64, (C,)
        Training locations in each cell.
    mean_directions : ndarray of float64, (C, 3)
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
            Degrees, finite.

        Returns
        -------
        ndarray of int64, (n,)
            Indices into `cell_ids`.

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

    Raises
    ------
    BadInputError
        If no location is finite.
    ValueError
        If an option is out of range.

    Warns
    -----
    PartitionWarning
        If many locations are exactly (0, 0), or the locations are too few to make so many cells.

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
    places = np.stack(np.broadcast_arrays(np.asarray(longitude, float), np.asarray(latitude, float)), axis=-1)
    finite = np.isfinite(places).all(axis=-1)
    if not finite.any():
        raise BadInputError(f"none of the {len(places)} training locations has finite longitude and latitude")
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
    value : float or "auto"
        One value for all (the paper uses 16), or per component so that 95 % of its mass lies within the edge
        length of its cell.

    Returns
    -------
    ndarray of float64, (C,)
        Natural logarithms.

    Raises
    ------
    ValueError
        If the value is neither a finite number nor "auto".

    Examples
    --------
    >>> cells = partition_sphere([0.0], [0.0], 6)
    >>> initial_log_concentrations(cells, 16.0).tolist()[:1]
    [16.0]
    """
    if value == "auto":
        edge = np.minimum(s2.edge_length(partition.levels), np.pi)
        return vmf.log_concentration_for(edge, CELL_SHARE)
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"initial log concentration {value!r} must be a finite number or 'auto'")
    return np.full(len(partition), number)


def _split(leaves: IdArray, num_cells: int, max_level: int) -> tuple[IdArray, IntArray]:
    """Cells in ascending order and the index of the first location of each."""
    # Heap entries are (-count, id, level, first location, last + 1): ties go to the smaller id, so it is repeatable.
    heap: list[tuple[int, int, int, int, int]] = []
    done: list[tuple[int, int]] = []
    for cell in s2.face_cells():
        _push(heap, done, leaves, int(cell), 0, max_level)
    while len(heap) + len(done) < num_cells:
        if not heap or heap[0][0] == 0:
            warnings.warn(
                f"only {len(heap) + len(done)} of {num_cells} cells: the {leaves.size} locations fill no more "
                f"(cells of level {max_level} and empty cells are not split); ask for fewer cells",
                PartitionWarning,
                stacklevel=3,
            )
            break
        _, cell_id, level, _, _ = heapq.heappop(heap)
        for child in s2.children(np.uint64(cell_id)):
            _push(heap, done, leaves, int(child), level + 1, max_level)
    cells = sorted([(entry[1], entry[3]) for entry in heap] + done)
    ids = np.array([cell for cell, _ in cells], dtype=np.uint64)
    return ids, np.array([start for _, start in cells], dtype=np.int64)


def _push(
    heap: list[tuple[int, int, int, int, int]],
    done: list[tuple[int, int]],
    leaves: IdArray,
    cell: int,
    level: int,
    max_level: int,
) -> None:
    half = (cell & -cell) - 1  # leaves of a cell are its id minus/plus its lowest bit, less one
    start = int(np.searchsorted(leaves, np.uint64(cell - half), side="left"))
    stop = int(np.searchsorted(leaves, np.uint64(cell + half), side="right"))
    if level >= max_level:
        done.append((cell, start))
    else:
        heapq.heappush(heap, (start - stop, cell, level, start, stop))


def _means_of_locations(directions: FloatArray, starts: IntArray, counts: IntArray, centres: FloatArray) -> FloatArray:
    sums = np.concatenate([np.zeros((1, 3)), np.cumsum(directions, axis=0)])
    total = sums[starts + counts] - sums[starts]
    length = np.linalg.norm(total, axis=1, keepdims=True)
    usable = (counts[:, None] > 0) & (length > 0)
    return np.where(usable, total / np.where(length > 0, length, 1.0), centres)


def _warn_about_pile(places: FloatArray) -> None:
    zeros = int((places == 0.0).all(axis=1).sum())
    if zeros > max(_PILE_COUNT, _PILE_SHARE * len(places)):
        warnings.warn(
            f"{zeros} of {len(places)} locations are exactly (0, 0): missing positions written as zero? They would "
            "draw many cells into the Gulf of Guinea; remove them",
            PartitionWarning,
            stacklevel=3,
        )
