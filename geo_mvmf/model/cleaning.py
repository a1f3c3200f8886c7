"""What is wrong with the places that a partition is made of: counted, and which of them are used."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs import table_columns

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_WIDEST_DEGREES = 540.0  # longitudes of any turn up to this are understood, as in polygon layers
_PILE_SHARE, _PILE_COUNT = 1e-3, 10  # more rows at exactly (0, 0) than both are a pile of missing positions
_SWAP_LEVEL, _SWAP_RATIO = 5, 100  # S2 cells of about 280 km


class PartitionWarning(UserWarning):
    """Something about the locations that spoils a partition without making it impossible."""


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """Counts of rows by what is wrong with them.

    Parameters
    ----------
    rows : int
        All.
    not_finite : int
        Longitude or latitude missing, NaN or infinite: not used.
    out_of_range : int
        Finite, but latitude not in -90..90 or longitude not in -540..540: not used.
    zero_zero : int
        Exactly (0, 0): used, and warned about where there are many.
    duplicates : int
        Used rows that stand at exactly the same place as an earlier one: used.
    suspected_swapped : int
        Rows whose latitude may be the longitude: out of range and in range the other way round, or in an S2 cell of
        level 5 with no more than a hundredth as many rows as the cell of the swapped position. Only counted: a lonely
        photo may be right.
    used : int
        Rows that the partition was made of.

    Examples
    --------
    >>> Cleaning(rows=3, not_finite=1, used=2).dropped
    1
    """

    rows: int = 0
    not_finite: int = 0
    out_of_range: int = 0
    zero_zero: int = 0
    duplicates: int = 0
    suspected_swapped: int = 0
    used: int = 0

    @property
    def dropped(self) -> int:
        """Rows that are not used."""
        return self.rows - self.used

    def __str__(self) -> str:
        return (
            f"{self.rows} rows: {self.used} used, {self.not_finite} without a finite position, {self.out_of_range} out "
            f"of range; of the used {self.duplicates} at the place of an earlier row, {self.zero_zero} exactly at "
            f"(0, 0); {self.suspected_swapped} may have longitude and latitude swapped"
        )


def clean_places(
    longitude: npt.ArrayLike, latitude: npt.ArrayLike, *, stacklevel: int = 2
) -> tuple[FloatArray, Cleaning]:
    """Take the places that can be used, and count what is wrong with the others.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Degrees.
    stacklevel : int
        Of the warnings.

    Returns
    -------
    places : ndarray of float64, shape (m, 2)
        Longitude and latitude of the rows that are used, in their order.
    cleaning : Cleaning

    Raises
    ------
    BadInputError
        No row can be used.

    Warns
    -----
    PartitionWarning
        Rows are out of range, or many are exactly (0, 0).

    Examples
    --------
    >>> places, cleaning = clean_places([7.0, 7.0, float("nan")], [50.0, 50.0, 50.0])
    >>> len(places), cleaning.not_finite, cleaning.duplicates
    (2, 1, 1)
    """
    places = np.stack(np.broadcast_arrays(*map(_row_of_floats, (longitude, latitude))), axis=-1)  # (n, 2)
    finite = np.isfinite(places).all(axis=-1)
    inside = finite & (np.abs(places) <= (_WIDEST_DEGREES, 90.0)).all(axis=-1)
    if not inside.any():
        raise BadInputError(_nothing_usable(places, finite))
    outside = finite & ~inside
    used = places[inside]
    cleaning = Cleaning(
        rows=len(places),
        not_finite=int((~finite).sum()),
        out_of_range=int(outside.sum()),
        zero_zero=int((used == 0.0).all(axis=1).sum()),
        duplicates=len(used) - len(np.unique(used, axis=0)),
        suspected_swapped=int(_fits_swapped(places[outside]).sum() + _lonely_unless_swapped(used).sum()),
        used=len(used),
    )
    _warn(cleaning, places, outside, stacklevel + 1)
    return used, cleaning


def _warn(cleaning: Cleaning, places: FloatArray, outside: BoolArray, stacklevel: int) -> None:
    if cleaning.out_of_range:
        row = int(np.argmax(outside))
        warnings.warn(
            f"{cleaning.out_of_range} of {cleaning.rows} rows are not on the Earth and are left out; the first is row "
            f"{row + 1} (data rows count from 1): {_shown(places[row])}{_in_common(places, outside)}",
            PartitionWarning,
            stacklevel=stacklevel + 1,
        )
    if cleaning.zero_zero > max(_PILE_COUNT, _PILE_SHARE * cleaning.used):
        warnings.warn(
            f"{cleaning.zero_zero} of {cleaning.used} locations are exactly (0, 0): missing positions written as zero? "
            "They would draw many cells into the Gulf of Guinea; remove them",
            PartitionWarning,
            stacklevel=stacklevel + 1,
        )


def _nothing_usable(places: FloatArray, finite: BoolArray) -> str:
    if not finite.any():
        return f"none of the {len(places)} training locations has a longitude and latitude that are finite numbers"
    row = int(np.argmax(finite))
    return (
        f"none of the {len(places)} training locations is on the Earth; row {row + 1} (data rows count from 1) "
        f"is {_shown(places[row])}{_in_common(places, finite)}"
    )


def _in_common(places: FloatArray, outside: BoolArray) -> str:
    """Say what made all these rows wrong at once, where they show it."""
    if np.median(np.abs(places[outside]).max(axis=1)) > table_columns.PROJECTED:
        return f"; they look like metres of a projection: {table_columns.NOT_DEGREES}"
    finite = places[np.isfinite(places).all(axis=1)]
    if table_columns.are_several(int(outside.sum()), len(finite)) and (np.abs(finite) <= (90.0, 180.0)).all():
        return table_columns.ALL_SWAPPED
    return ""


def _shown(place: FloatArray) -> str:
    swapped = ": swapped?" if _fits_swapped(place[None])[0] else ""
    if abs(place[1]) > 90.0:
        return f"latitude {place[1]}, not in -90..90 (longitude {place[0]}{swapped})"
    return f"longitude {place[0]}, not in -540..540 (latitude {place[1]})"


def _fits_swapped(places: FloatArray) -> BoolArray:
    """Which rows would be in range the other way round, and are not as they are."""
    x, y = np.abs(places).T
    return np.asarray((x <= 90.0) & (y > 90.0) & (y <= 180.0))


def _lonely_unless_swapped(places: FloatArray) -> BoolArray:
    """Which rows lie where hardly any others do, while the swapped position lies among very many."""
    x, y = places.T
    cells = s2.cell_ids(sphere.to_directions(x, y), _SWAP_LEVEL)
    known, own, counts = np.unique(cells, return_inverse=True, return_counts=True)
    result = np.zeros(len(places), dtype=np.bool_)
    (possible,) = np.nonzero((np.abs(x) <= 90.0) & (x != y))
    swapped = s2.cell_ids(sphere.to_directions(y[possible], x[possible]), _SWAP_LEVEL)
    there = np.minimum(np.searchsorted(known, swapped), len(known) - 1)
    others = np.where(known[there] == swapped, counts[there], 0)
    result[possible] = others >= _SWAP_RATIO * counts[own[possible]]
    return result


def _row_of_floats(values: npt.ArrayLike) -> FloatArray:
    return np.atleast_1d(np.asarray(values, dtype=np.float64))
