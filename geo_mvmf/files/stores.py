"""The predictions file: everything that any map can be made from later, without torch and without the images.

One NetCDF-4 file (docs/predictions_file.md is its specification). Per image it holds the fewest components that hold
all but `weights.TAIL` of the mixing weight, and what was left out; beside them the row columns and the components all
images share. A long prediction writes numbered parts (`store_parts`), which are merged at the end; that is how it
resumes: a part is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from geo_mvmf import durable
from geo_mvmf.errors import BadInputError, OutputError
from geo_mvmf.files import netcdf, store_format, store_rows
from geo_mvmf.files.density_netcdf import write_density_netcdf
from geo_mvmf.files.store_format import FORMAT, FORMAT_VERSION, Components
from geo_mvmf.files.store_parts import existing_parts, keep_components, part_path, read_components, write_part
from geo_mvmf.files.stored_predictions import StoredPredictions, components_of_part, open_part, open_store
from geo_mvmf.files.weights import TAIL, Pruned, prune

_NUMBERS_AT_ONCE = 1 << 18
"""Of the rows of a merge, read together: 2 MiB."""

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "TAIL",
    "Components",
    "Pruned",
    "StoredPredictions",
    "check_weights",
    "existing_parts",
    "keep_components",
    "merge_parts",
    "open_part",
    "open_store",
    "part_path",
    "prune",
    "write_density_netcdf",
    "write_part",
    "write_store",
]


def write_store(
    path: str | os.PathLike[str],
    *,
    rows: pd.DataFrame,
    pruned: Pruned,
    components: Components,
    run: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write one predictions file.

    Parameters
    ----------
    path : path
        Ends in .nc.
    rows : DataFrame
        n rows; columns of text, float, int or bool, the last two and text with or without missing values.
    pruned : Pruned
        Of the same n images.
    components : Components
    run : mapping
        JSON-able description of the run: bundle digest, versions, options, root.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        If the file exists or the disk refuses.
    ValueError
        If rows and weights are not of the same images.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> shared = Components("vmf", np.eye(3), np.zeros(3), np.ones(3, int), np.zeros(3, np.uint64))
    >>> path = Path(tempfile.mkdtemp()) / "a.nc"
    >>> kept = prune(np.log([[0.5, 0.25, 0.25]]))
    >>> write_store(path, rows=pd.DataFrame({"image_id": ["a"]}), pruned=kept, components=shared, run={})
    >>> np.exp(open_store(path).log_mixing_weights([0])).round(6).tolist()
    [[0.5, 0.25, 0.25]]
    """
    store_format.check_images(rows, pruned)
    with durable.replacing(path, overwrite=overwrite) as temporary:
        with netcdf.created(temporary, shown=Path(path)) as file:
            store_format.write_head(file, components, len(rows), pruned.component.size)
            store_format.write_entries(file, pruned, 0, 0)
            store_format.write_header(file, components, rows, run)
        _read_back(temporary, Path(path))


def check_weights(pruned: Pruned, images: int, components: Components) -> None:
    """Make sure that weights which came from elsewhere are of so many images and of these components.

    Parameters
    ----------
    pruned : Pruned
    images : int
    components : Components

    Raises
    ------
    ValueError
        If they are not, or do not sum to 1.

    Examples
    --------
    >>> import numpy as np
    >>> one = Components("vmf", np.eye(3)[:1], np.zeros(1), np.ones(1, int), np.zeros(1, np.uint64))
    >>> check_weights(prune(np.log([[0.5, 0.5]])), 1, one)
    Traceback (most recent call last):
    ValueError: a weight is no number below 1, or of a component beyond 1
    """
    if len(pruned) != images:
        raise ValueError(f"there are weights of {len(pruned)} images, not of {images}")
    store_format.check_entries(pruned, len(components))


def merge_parts(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    run: Mapping[str, Any],
    overwrite: bool = False,
) -> StoredPredictions:
    """Merge numbered parts into one predictions file; in memory are a few MB of weights or numbers, or a column.

    Parameters
    ----------
    folder : path
        Holds parts 0..k - 1.
    out : path
    run : mapping
        Description of the whole run.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    StoredPredictions

    Raises
    ------
    BadInputError
        If a part is missing or damaged, or parts are of different bundles.
    OutputError
        If the file exists or the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> shared = Components("vmf", np.eye(3), np.zeros(3), np.ones(3, int), np.zeros(3, np.uint64))
    >>> folder = Path(tempfile.mkdtemp())
    >>> for number in range(2):
    ...     rows = pd.DataFrame({"image_id": [f"image {number}"]})
    ...     write_part(folder, number, rows=rows, pruned=prune(np.log([[0.5, 0.3, 0.2]])), components=shared, run={})
    >>> merge_parts(folder, folder / "all.nc", run={}).rows["image_id"].tolist()
    ['image 0', 'image 1']
    """
    parts = list(_parts(folder))
    images = sum(len(part) for part in parts)
    total = sum(part.n_entries for part in parts)
    with durable.replacing(out, overwrite=overwrite) as temporary:
        with netcdf.created(temporary, shown=Path(out)) as file:
            store_format.write_head(file, parts[0].components, images, total)
            image = entry = 0
            for part in parts:
                for block in part.blocks():
                    store_format.write_entries(file, block, image, entry)
                    image, entry = image + len(block), entry + block.component.size
            store_format.write_header(file, parts[0].components, _JoinedRows(parts), run)
        found = _read_back(temporary, Path(out))
    return dataclasses.replace(found, path=Path(out))  # to open it once more would take seconds


def _read_back(temporary: Path, shown: Path) -> StoredPredictions:
    try:
        return open_store(temporary)
    except BadInputError as error:
        raise OutputError(f"{shown}: the file read back is damaged; is the disk full? ({error})") from error


class _JoinedRows:
    """The rows of parts below each other, read when they are asked for: a column of text, or a few of numbers.

    To open every part for every column took a tenth of the time of a merge; rows as a whole took 50 MiB for 100,000
    images.
    """

    def __init__(self, parts: Sequence[StoredPredictions]) -> None:
        self._parts = parts
        described = [column for part in parts for column in part.columns]
        self.columns = list(dict.fromkeys(column.name for column in described))
        self._texts = {column.name for column in described if column.kind == "text"}
        self._together = max(1, _NUMBERS_AT_ONCE // max(1, sum(len(part) for part in parts)))
        self._read: dict[str, pd.Series[Any]] = {}

    def __getitem__(self, name: str) -> pd.Series[Any]:
        if name not in self._read:
            some = self._with_those_behind(name)
            pieces = [part.read_columns(some) for part in self._parts]
            self._read = {each: store_rows.joined_column([own.pop(0) for own in pieces]) for each in some}
        return self._read.pop(name)

    def _with_those_behind(self, name: str) -> list[str]:
        """Columns to read at once: as many as the limit lets, up to the next of text."""
        start = self.columns.index(name)
        behind = itertools.takewhile(lambda each: each not in self._texts, self.columns[start + 1 :])
        return [name] if name in self._texts else [name, *itertools.islice(behind, self._together - 1)]


def _parts(folder: str | os.PathLike[str]) -> Iterator[StoredPredictions]:
    numbers = existing_parts(folder)
    if not numbers:
        raise BadInputError(f"{folder}: holds no part of a prediction (part-000000.nc ...)")
    if numbers != list(range(len(numbers))):
        missing = next(i for i, number in enumerate(numbers) if i != number)
        raise BadInputError(f"{folder}: {part_path(folder, missing).name} is missing; predict again to fill the gap")
    # one copy of the components for all parts
    components = read_components(folder, components_of_part(part_path(folder, 0)))
    for number in numbers:
        yield open_part(part_path(folder, number), components, with_rows=False)
