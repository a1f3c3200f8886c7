"""Looks of a multiplier, remembered: the images of an album ask an area for the same S2 cells again and again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2
from geo_mvmf.cell_mixture import find_cells
from geo_mvmf.maps.multipliers import Look, Multiplier

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_MOST = 1 << 21  # cells remembered, 32 bytes each; beyond, all is forgotten


class Remembered:
    """A multiplier that is asked about no cell twice, nor about a cell within one on which the factor is even.

    Parameters
    ----------
    multiplier : Multiplier
        Its looks depend on the cell alone.

    Examples
    --------
    >>> from geo_mvmf.maps.multipliers import CellMultiplier
    >>> half = Remembered(CellMultiplier(s2.face_cells()[:3], np.array([1.0, 2.0, 3.0])))
    >>> half.look(s2.face_cells()[2:4]).mean.tolist(), half.look(s2.face_cells()[2:4]).mean.tolist()
    ([3.0, 0.0], [3.0, 0.0])
    """

    def __init__(self, multiplier: Multiplier) -> None:
        self._multiplier = multiplier
        self._even, self._uneven = _Runs(whole=True), _Runs(whole=False)

    def look(self, cells: IdArray) -> Look:
        """Look at S2 cells."""
        values = np.zeros((3, cells.size))
        left = self._uneven.recall(cells, self._even.recall(cells, np.arange(cells.size), values), values)
        if left.size:
            found = self._multiplier.look(cells[left])
            values[:, left] = found
            if self._even.size + self._uneven.size + left.size > _MOST:
                self._even, self._uneven = _Runs(whole=True), _Runs(whole=False)
            even, every = found.is_even, np.stack(found)
            self._even.add(cells[left[even]], every[:, even])
            self._uneven.add(cells[left[~even]], every[:, ~even])
        return Look(*values)


class _Runs:
    """Cells with their looks in sorted runs, each at least twice as long as the next: cheap to add to and to search.

    Where they are `whole`, what is known of a cell is known of every cell within it.
    """

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._runs: list[tuple[IdArray, FloatArray]] = []

    @property
    def size(self) -> int:
        return sum(cells.size for cells, _ in self._runs)

    def recall(self, cells: IdArray, rows: IntArray, values: FloatArray) -> IntArray:
        """Write what is known of some rows into values, (3, n), and give the rows of which nothing is."""
        for known, looks in self._runs:
            at = find_cells(known, cells[rows]) if self._whole else _rows_of(known, cells[rows])
            values[:, rows[at >= 0]] = looks[:, at[at >= 0]]
            rows = rows[at < 0]
        return rows

    def add(self, cells: IdArray, looks: FloatArray) -> None:
        """Remember cells, (n,), and their looks, (3, n)."""
        if not cells.size:
            return
        self._runs.append(self._sorted(cells, looks))
        while len(self._runs) > 1 and self._runs[-2][0].size < 2 * self._runs[-1][0].size:
            (one, seen), (other, more) = self._runs.pop(), self._runs.pop()
            self._runs.append(self._sorted(np.concatenate([one, other]), np.concatenate([seen, more], axis=1)))

    def _sorted(self, cells: IdArray, looks: FloatArray) -> tuple[IdArray, FloatArray]:
        """Sort cells, without those that occur twice or, where larger ones speak for them, lie within another."""
        if not self._whole:
            cells, first = np.unique(cells, return_index=True)
            return cells, looks[:, first]
        begin, end = s2.range_min(cells), s2.range_max(cells)
        order = np.lexsort((~end, begin))  # of those that begin together the largest first
        reached = np.maximum.accumulate(end[order])
        kept = order[np.append(True, reached[1:] > reached[:-1])]
        return cells[kept], looks[:, kept]


def _rows_of(known: IdArray, cells: IdArray) -> IntArray:
    """Rows of the same cells among sorted ones, -1 for those that are not there."""
    rows = np.minimum(np.searchsorted(known, cells), known.size - 1)
    return np.where(known[rows] == cells, rows, -1)
