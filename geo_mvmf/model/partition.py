"""Adaptive partitions of the sphere into S2 cells by training locations (PlaNet classes): the initial components.

`partition_sphere` is the rule of the authors' `gpslist2classes.py`: begin with the six faces of S2 and split the most
populated cell into its four children until there are enough cells; no cell is discarded, so the cells tile the sphere
and their number is 6 + 3j. `partition_by_thresholds` is PlaNet's: split what holds many, discard what holds few. Leaf
ids are sorted once and a split is three binary searches.
"""

from __future__ import annotations

import heapq
import math
import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.model.classes import CELL_SHARE, Partition, initial_log_concentrations, means_of_locations
from geo_mvmf.model.cleaning import Cleaning, PartitionWarning, clean_places

__all__ = [
    "CELL_SHARE",
    "Partition",
    "PartitionWarning",
    "initial_log_concentrations",
    "partition_by_thresholds",
    "partition_sphere",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.uint64]


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
        Degrees. Rows that are not finite or out of range are dropped and counted.
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
        No location can be used.
    ValueError
        An option is out of range.

    Warns
    -----
    PartitionWarning
        Locations are out of range, many are exactly (0, 0), or there are too few places to make so many cells.

    Notes
    -----
    Source: Izbicki et al. 2019, `gpslist2classes.py`; classes of PlaNet, Weyand et al. 2016.

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> cells = partition_sphere(generator.uniform(-9, 30, 999), generator.uniform(36, 60, 999), 16)
    >>> len(cells), int(cells.counts.sum())
    (18, 999)
    """
    _check_options(mean_direction, max_level, num_cells=num_cells)
    places = _sorted(longitude, latitude)
    cells, starts = _split(places.leaves, max_level, num_cells=num_cells)
    if len(cells) < num_cells:
        warnings.warn(
            f"only {len(cells)} of {num_cells} cells: the {places.leaves.size} locations fill no more (cells of level "
            f"{max_level} and empty cells are not split); ask for fewer cells",
            PartitionWarning,
            stacklevel=2,
        )
    means, counts = _means(places, cells, starts, mean_direction)
    return Partition(cells, counts, means, places.cleaning)


def partition_by_thresholds(
    longitude: npt.ArrayLike,
    latitude: npt.ArrayLike,
    *,
    split_above: int = 10_000,
    drop_below: int = 50,
    mean_direction: str = "centre",
    max_level: int = 22,
) -> Partition:
    """Make S2 cells by PlaNet's two thresholds: split cells that hold many locations, discard those that hold few.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Degrees. Rows that are not finite or out of range are dropped and counted.
    split_above : int
        Cells with more locations than this are split (PlaNet's t1).
    drop_below : int
        Cells with fewer are discarded with their locations (PlaNet's t2); 0 keeps all.
    mean_direction, max_level
        As `partition_sphere`.

    Returns
    -------
    Partition
        `dropped_cells` and `outside` say what was discarded. Unless that is nothing the cells do not tile the sphere:
        a class-only head (cross_entropy) then has no density outside them.

    Raises
    ------
    BadInputError
        No location can be used, or every cell holds fewer than `drop_below`.
    ValueError
        An option is out of range.

    Warns
    -----
    PartitionWarning
        Cells were discarded, or as `partition_sphere`.

    Notes
    -----
    Source: PlaNet, Weyand et al. 2016; later systems use other thresholds (ISN: 5000, 2000 or 1000, and 50).

    Examples
    --------
    >>> generator = np.random.default_rng(0)
    >>> places = generator.uniform(-9, 30, 999), generator.uniform(36, 60, 999)
    >>> cells = partition_by_thresholds(*places, split_above=200, drop_below=0)
    >>> cells.tiles_sphere, int(cells.counts.max()) <= 200
    (True, True)
    """
    _check_options(mean_direction, max_level, split_above=split_above, drop_below=drop_below)
    places = _sorted(longitude, latitude)
    cells, starts = _split(places.leaves, max_level, split_above=split_above)
    means, counts = _means(places, cells, starts, mean_direction)
    kept = counts >= drop_below
    if not kept.any():
        raise BadInputError(
            f"all {len(cells)} cells hold fewer than drop_below {drop_below} locations (the fullest {counts.max()}); "
            "lower it, or raise split_above"
        )
    dropped, outside = int((~kept).sum()), int(counts[~kept].sum())
    if dropped:
        share = s2.area_sr(cells[~kept]).sum() / (4.0 * math.pi)
        warnings.warn(
            f"{dropped} of {len(cells)} cells hold fewer than {drop_below} locations and are left out, with {outside} "
            f"locations and {share:.1%} of the sphere: the cells that are left do not tile it",
            PartitionWarning,
            stacklevel=2,
        )
    return Partition(
        cells[kept], counts[kept], means[kept], places.cleaning, "planet", outside=outside, dropped_cells=dropped
    )


class _Sorted(NamedTuple):
    """Locations in the order of their leaf cells."""

    leaves: IdArray
    directions: FloatArray
    cleaning: Cleaning


def _sorted(longitude: npt.ArrayLike, latitude: npt.ArrayLike) -> _Sorted:
    used, cleaning = clean_places(longitude, latitude, stacklevel=4)
    directions = sphere.to_directions(used[:, 0], used[:, 1])
    order = np.argsort(leaves := s2.leaf_ids(directions), kind="stable")
    return _Sorted(leaves[order], directions[order], cleaning)


def _means(places: _Sorted, cells: IdArray, starts: IntArray, mean_direction: str) -> tuple[FloatArray, IntArray]:
    counts = np.diff(np.append(starts, places.leaves.size)).astype(np.int64)
    centres = s2.centre(cells)
    if mean_direction == "centre":
        return centres, counts
    return means_of_locations(places.directions, np.repeat(np.arange(cells.size), counts), centres)


def _split(
    leaves: IdArray, max_level: int, *, num_cells: float = math.inf, split_above: int = 0
) -> tuple[IdArray, IntArray]:
    """Find the cells, ascending, and the index of the first location of each."""
    # Entries are (-count, id, first location, last + 1): the fullest first, ties to the smaller id, so it is repeatable
    faces = [int(cell) for cell in s2.face_cells()]
    edges = np.searchsorted(leaves, s2.range_max(s2.face_cells()), side="right").tolist()
    heap = [(start - stop, cell, start, stop) for cell, start, stop in zip(faces, [0, *edges[:-1]], edges, strict=True)]
    heapq.heapify(heap)
    smallest = 1 << 2 * (s2.MAX_LEVEL - max_level)  # lowest bit of the ids of max_level
    done: list[tuple[int, int, int, int]] = []
    while len(heap) + len(done) < num_cells and heap and -heap[0][0] > split_above:
        entry = heapq.heappop(heap)
        if entry[1] & -entry[1] <= smallest:
            done.append(entry)
            continue
        for child in _children(leaves, entry):
            heapq.heappush(heap, child)
    cells = sorted((cell, start) for _, cell, start, _ in heap + done)
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


def _check_options(
    mean_direction: str, max_level: int, *, num_cells: int = 1, split_above: int = 1, drop_below: int = 0
) -> None:
    if (
        num_cells < 1
        or not 0 <= max_level <= s2.MAX_LEVEL
        or mean_direction not in ("centre", "photos")
        or split_above < 1
        or drop_below < 0
    ):
        raise ValueError(
            f"num_cells {num_cells} must be >= 1, max_level {max_level} in 0..30, mean_direction {mean_direction!r} "
            f"'centre' or 'photos', split_above {split_above} >= 1, drop_below {drop_below} >= 0"
        )
