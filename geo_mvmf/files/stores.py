"""The predictions file: everything that any map can be made from later, without torch and without the images.

One NetCDF-4 file (docs/predictions_file.md is its specification). Per image it holds the fewest components that hold
all but `weights.TAIL` of the mixing weight, and what was left out; beside them the row columns and the components all
images share. A long prediction writes numbered parts of the same format, which are merged at the end; that is how it
resumes: a part is there whole or not at all.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geo_mvmf import durable
from geo_mvmf.errors import BadInputError, OutputError
from geo_mvmf.files import netcdf, store_format, store_rows
from geo_mvmf.files.density_netcdf import write_density_netcdf
from geo_mvmf.files.store_format import FORMAT, FORMAT_VERSION, Components
from geo_mvmf.files.stored_predictions import StoredPredictions, open_store
from geo_mvmf.files.weights import TAIL, Pruned, prune

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "TAIL",
    "Components",
    "Pruned",
    "StoredPredictions",
    "existing_parts",
    "merge_parts",
    "open_store",
    "prune",
    "write_density_netcdf",
    "write_part",
    "write_store",
]

_PART = "part-{:06d}.nc"
_PART_NAME = re.compile(r"^part-(\d{6,})\.nc$")


def write_store(
    path: str | os.PathLike[str],
    *,
    rows: pd.DataFrame,
    pruned: Pruned,
    components: Components,
    run: Mapping[str, Any],
    overwrite: bool = False,
) -> None:
    """Write one predictions file (or one part).

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
    _write(Path(path), rows, pruned, components, run, overwrite=overwrite, compressed=True)


def write_part(
    folder: str | os.PathLike[str],
    number: int,
    *,
    rows: pd.DataFrame,
    pruned: Pruned,
    components: Components,
    run: Mapping[str, Any],
) -> None:
    """Write part `number` of a long prediction; it appears whole or not at all.

    Its weights have checksums but are not compressed: they are when parts are merged.

    Parameters
    ----------
    folder : path
        Made when missing.
    number : int
        From 0.
    rows, pruned, components, run
        As `write_store`.

    Raises
    ------
    OutputError
        If the disk refuses.

    Examples
    --------
    See `merge_parts`.
    """
    path = Path(folder) / _PART.format(number)
    _write(path, rows, pruned, components, run, overwrite=True, compressed=False)


def existing_parts(folder: str | os.PathLike[str]) -> list[int]:
    """Numbers of the parts that are already there.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of int
        Ascending; empty where the folder does not exist.

    Examples
    --------
    >>> existing_parts("no/such/folder")
    []
    """
    names = (_PART_NAME.match(path.name) for path in Path(folder).glob("part-*.nc"))
    return sorted(int(name.group(1)) for name in names if name)


def merge_parts(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    run: Mapping[str, Any],
    passthrough: pd.DataFrame | None = None,
    overwrite: bool = False,
) -> StoredPredictions:
    """Merge numbered parts into one predictions file; of the weights a few MB are in memory at a time.

    Parameters
    ----------
    folder : path
        Holds parts 0..k - 1.
    out : path
    run : mapping
        Description of the whole run.
    passthrough : DataFrame, optional
        Further columns, one row per image of all parts.
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
    rows = store_rows.joined([part.rows for part in parts])
    if passthrough is not None:
        rows = pd.concat([rows, passthrough.reset_index(drop=True)], axis=1)
    total = sum(part.n_entries for part in parts)
    with durable.replacing(out, overwrite=overwrite) as temporary:
        with netcdf.created(temporary, shown=Path(out)) as file:
            store_format.write_head(file, parts[0].components, len(rows), total)
            image = entry = 0
            for part in parts:
                for block in part.blocks():
                    store_format.write_entries(file, block, image, entry)
                    image, entry = image + len(block), entry + block.component.size
            store_format.write_header(file, parts[0].components, rows, run)
        _read_back(temporary, Path(out))
    return open_store(out)


def _write(
    path: Path,
    rows: pd.DataFrame,
    pruned: Pruned,
    components: Components,
    run: Mapping[str, Any],
    *,
    overwrite: bool,
    compressed: bool,
) -> None:
    if len(rows) != len(pruned):
        raise ValueError(f"there are {len(rows)} rows and weights of {len(pruned)} images")
    with durable.replacing(path, overwrite=overwrite) as temporary:
        with netcdf.created(temporary, shown=path) as file:
            store_format.write_head(file, components, len(rows), pruned.component.size, compressed=compressed)
            store_format.write_entries(file, pruned, 0, 0)
            store_format.write_header(file, components, rows, run)
        _read_back(temporary, path)


def _read_back(temporary: Path, shown: Path) -> None:
    try:
        open_store(temporary)
    except BadInputError as error:
        raise OutputError(f"{shown}: the file read back is damaged; is the disk full? ({error})") from error


def _parts(folder: str | os.PathLike[str]) -> Iterator[StoredPredictions]:
    numbers = existing_parts(folder)
    if not numbers:
        raise BadInputError(f"{folder}: holds no part of a prediction (part-000000.nc ...)")
    if numbers != list(range(len(numbers))):
        missing = next(i for i, number in enumerate(numbers) if i != number)
        raise BadInputError(f"{folder}: {_PART.format(missing)} is missing; predict again to fill the gap")
    first: Components | None = None
    for number in numbers:
        part = open_store(Path(folder) / _PART.format(number))
        if first is not None and not part.components.same_as(first):
            raise BadInputError(f"{part.path}: made with another bundle than {_PART.format(0)}; remove the folder")
        first = part.components if first is None else first
        # one copy of the components for all parts
        yield dataclasses.replace(part, components=first)
