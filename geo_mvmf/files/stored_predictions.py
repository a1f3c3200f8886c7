"""A predictions file that is open for reading: checked when opened, its mixing weights read when asked for."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf.errors import BadInputError
from geo_mvmf.files import netcdf, store_format, store_rows
from geo_mvmf.files.store_format import Components
from geo_mvmf.files.store_rows import Described
from geo_mvmf.files.weights import FloatArray, IntArray, Pruned, spread_all

_ENTRIES_AT_ONCE = 1 << 22  # 32 MiB of weights
_DIGEST = re.compile(r"^[0-9a-f]{64}\Z")


@dataclasses.dataclass(frozen=True)
class StoredPredictions:
    """A predictions file that was opened and checked; mixing weights are read, and checked, when asked for.

    Parameters
    ----------
    path : Path
    rows : DataFrame
        One row per image.
    components : Components
    run : dict
    offsets : ndarray of int64, (n + 1,)
        Image i owns entries offsets[i]:offsets[i + 1].
    residual : ndarray of float64, (n,)
        Weight that is not stored; NaN where there is no prediction.
    columns : sequence of Described
        Of the rows, in the file.

    Examples
    --------
    See `stores.write_store`.
    """

    path: Path
    rows: pd.DataFrame
    components: Components
    run: dict[str, Any]
    offsets: IntArray
    residual: FloatArray
    columns: Sequence[Described]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_entries(self) -> int:
        """Number of stored mixing weights."""
        return int(self.offsets[-1])

    @property
    def is_predicted(self) -> npt.NDArray[np.bool_]:
        """Which images have a prediction, (n,)."""
        return np.diff(self.offsets) > 0

    def pruned(self, start: int = 0, stop: int | None = None) -> Pruned:
        """Read the stored weights of some or all images.

        Parameters
        ----------
        start, stop : int
            Rows start..stop - 1; all by default.

        Returns
        -------
        Pruned

        Raises
        ------
        BadInputError
            If the stored weights are damaged.

        Examples
        --------
        See `stores.write_store`.
        """
        stop = len(self) if stop is None else stop
        with netcdf.opened(self.path) as file:
            return self._read(file, start, stop)

    def read_columns(self, names: Sequence[str]) -> list[pd.Series[Any]]:
        """Read some columns of the rows from the file.

        Parameters
        ----------
        names : sequence of str

        Returns
        -------
        list of Series
            As `rows` has them; None everywhere where the file lacks one.

        Raises
        ------
        BadInputError
            If one is damaged.

        Examples
        --------
        See `stores.merge_parts`.
        """
        known = {column.name: column for column in self.columns}
        with netcdf.opened(self.path) as file:
            rows = netcdf.subgroup(file, "rows")
            return [
                store_rows.read_column(rows, known[name], len(self))
                if name in known
                else pd.Series([None] * len(self), dtype=object)
                for name in names
            ]

    def blocks(self) -> Iterator[Pruned]:
        """Read the stored weights of all images in their order, a few MB at a time.

        Yields
        ------
        Pruned

        Raises
        ------
        BadInputError
            If the stored weights are damaged.

        Examples
        --------
        See `stores.merge_parts`.
        """
        start = 0
        while start < len(self):
            reach = np.searchsorted(self.offsets, self.offsets[start] + _ENTRIES_AT_ONCE, side="right") - 1
            stop = max(start + 1, int(reach))
            yield self.pruned(start, stop)
            start = stop

    def require_predicted(self, images: npt.NDArray[np.int64]) -> None:
        """Refuse images without a prediction.

        Parameters
        ----------
        images : ndarray of int64, (k,)
            Row numbers.

        Raises
        ------
        BadInputError
            If one has none.

        Examples
        --------
        See `stores.write_store`.
        """
        without = images[~self.is_predicted[images]]
        if without.size:
            status = self.rows["status"].iloc[without[0]] if "status" in self.rows else "no prediction"
            raise BadInputError(f"{self.path}: image {without[0]} has no prediction (status {status})")

    def log_mixing_weights(self, images: Sequence[int] | npt.NDArray[Any]) -> FloatArray:
        """Dense mixing weights of some images, the residual spread in proportion to training counts plus one.

        Parameters
        ----------
        images : sequence of int, (k,)
            Rows with a prediction.

        Returns
        -------
        ndarray of float64, (k, C)
            Natural logarithms; minus infinity where neither weight nor residual reaches.

        Raises
        ------
        BadInputError
            If an image has no prediction, or the stored weights are damaged.

        Examples
        --------
        See `stores.write_store`.
        """
        chosen = np.atleast_1d(np.asarray(images, dtype=np.int64))
        self.require_predicted(chosen)
        result = np.empty((chosen.size, len(self.components)))
        with netcdf.opened(self.path) as file:
            for places in _runs(chosen, self.offsets):
                first = int(chosen[places.start])
                block = self._read(file, first, first + places.stop - places.start)
                spread_all(block, self.components.training_counts, out=result[places])
        return result

    def _read(self, file: Any, start: int, stop: int) -> Pruned:
        entries = slice(int(self.offsets[start]), int(self.offsets[stop]))
        component = netcdf.array(file, "entry_component", "u", 1)[entries]
        log_weight = netcdf.array(file, "entry_log_weight", "f", 1)[entries]
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        found = Pruned(component.astype(np.uint32), log_weight.astype(np.float32), offsets, self.residual[start:stop])
        store_format.check_entries(found, len(self.components))
        return found


def open_store(path: str | os.PathLike[str]) -> StoredPredictions:
    """Open a predictions file and check everything that is not a mixing weight (those are checked when read).

    Parameters
    ----------
    path : path

    Returns
    -------
    StoredPredictions

    Raises
    ------
    BadInputError
        If the file is missing, is not a predictions file, is of another version, or is damaged.

    Examples
    --------
    >>> open_store("/dev/null")
    Traceback (most recent call last):
    geo_mvmf.errors.ImageError: '/dev/null' is a device, not a regular file
    """
    return _opened(path, None, with_rows=True)


def open_part(path: str | os.PathLike[str], components: Components, *, with_rows: bool = True) -> StoredPredictions:
    """Open one part of a prediction that is not finished, and check it as `open_store` does.

    Parameters
    ----------
    path : path
    components : Components
        What it must be of.
    with_rows : bool
        Whether its rows are read, and checked, now; otherwise they have no columns, which `read_columns` reads.

    Returns
    -------
    StoredPredictions

    Raises
    ------
    BadInputError
        As `open_store`, or if the part is of other components.

    Examples
    --------
    See `stores.merge_parts`.
    """
    return _opened(path, components, with_rows=with_rows)


def components_of_part(path: str | os.PathLike[str]) -> str:
    """Give the digest of a part's components.

    Parameters
    ----------
    path : path

    Raises
    ------
    BadInputError
        If the file is missing, is not a part, or is damaged.

    Examples
    --------
    See `stores.merge_parts`.
    """
    with netcdf.opened(path) as file:
        store_format.check_format(path, file, store_format.PART_FORMAT)
        return _named(store_format.read_json(file))


def _opened(path: str | os.PathLike[str], given: Components | None, *, with_rows: bool) -> StoredPredictions:
    with netcdf.opened(path) as file:
        store_format.check_format(path, file, store_format.FORMAT if given is None else store_format.PART_FORMAT)
        header = store_format.read_json(file)
        if given is None:
            components = store_format.read_components(file, str(header["kind"]))
        else:
            components = given
            if _named(header) != given.digest:
                raise BadInputError(
                    f"{path}: made with another bundle: its components have digest {_named(header)[:12]}, not "
                    f"{given.digest[:12]}; remove the folder"
                )
        offsets = netcdf.array(file, "image_offset", "i", 1)[...].astype(np.int64)
        residual = netcdf.array(file, "residual", "f", 1)[...].astype(np.float64)
        store_format.check_offsets(file, offsets, residual)
        columns = store_rows.columns_of(header["columns"])
        wanted = columns if with_rows else ()
        rows = store_rows.read_rows(netcdf.subgroup(file, "rows"), wanted, residual.size)
        run = dict(header["run"])
    return StoredPredictions(Path(path), rows, components, run, offsets, residual, columns)


def _named(header: dict[str, Any]) -> str:
    """The digest that a part gives its components; whatever else stands there is damage."""
    digest = header["components_sha256"]
    if not (isinstance(digest, str) and _DIGEST.match(digest)):
        raise ValueError(f"components_sha256 is {digest!r:.80}")
    return digest


def _runs(images: IntArray, offsets: IntArray) -> Iterator[slice]:
    """Give the places of images that follow each other in the file, a few MB of weights at a time."""
    start = 0
    for place in range(1, images.size + 1):
        first = images[start]
        ends = place == images.size or images[place] != images[place - 1] + 1
        if ends or offsets[images[place] + 1] - offsets[first] > _ENTRIES_AT_ONCE:
            yield slice(start, place)
            start = place
