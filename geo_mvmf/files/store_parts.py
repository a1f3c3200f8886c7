"""Numbered parts of a long prediction, and the one file of the components that they share.

A part is a predictions file without the components: it names them by the digest of their content. They lie beside the
parts once, however many parts there are, in a file named by that digest; so a file that is there is of the right
components or damaged, and two writers at once write the same. Parts and components appear whole or not at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geo_mvmf import durable
from geo_mvmf.errors import BadInputError, OutputError
from geo_mvmf.files import netcdf, store_format
from geo_mvmf.files.store_format import Components
from geo_mvmf.files.stored_predictions import open_part
from geo_mvmf.files.weights import Pruned

_PART = "part-{:06d}.nc"
_PART_NAME = re.compile(r"^part-(\d{6,})\.nc$")
_COMPONENTS = "components-{:.32}.nc"  # as many hexadecimal digits of the digest


def part_path(folder: str | os.PathLike[str], number: int) -> Path:
    """Give the file of a part.

    Parameters
    ----------
    folder : path
    number : int

    Examples
    --------
    >>> part_path("a.nc.parts", 3).name
    'part-000003.nc'
    """
    return Path(folder) / _PART.format(number)


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


def write_part(
    folder: str | os.PathLike[str],
    number: int,
    *,
    rows: pd.DataFrame,
    pruned: Pruned,
    components: Components,
    run: Mapping[str, Any],
) -> None:
    """Write part `number` of a long prediction; it appears whole or not at all, after its components.

    Its weights have checksums but are not compressed: they are when parts are merged.

    Parameters
    ----------
    folder : path
        Made when missing.
    number : int
        From 0.
    rows, pruned, components, run
        As `stores.write_store`. The components are written where no part has brought them yet.

    Raises
    ------
    OutputError
        If the disk refuses.
    ValueError
        If rows and weights are not of the same images.

    Examples
    --------
    See `stores.merge_parts`.
    """
    store_format.check_images(rows, pruned)
    if not _components_path(folder, components.digest).is_file():
        _write_components(folder, components)

    def fill(file: Any) -> None:
        store_format.write_head(file, None, len(rows), pruned.component.size, compressed=False)
        store_format.write_entries(file, pruned, 0, 0)
        store_format.write_header(file, components, rows, run, is_part=True)

    _write(part_path(folder, number), fill, lambda path: open_part(path, components))


def keep_components(folder: str | os.PathLike[str], components: Components) -> None:
    """Make sure that the components of a run's parts lie beside them, whole: damaged ones are written again.

    Parameters
    ----------
    folder : path
        Held by this process. Components of other runs, whose parts are gone, are taken away.
    components : Components

    Raises
    ------
    OutputError
        If the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> folder = Path(tempfile.mkdtemp())
    >>> keep_components(folder, Components("vmf", np.eye(3), np.zeros(3), np.ones(3, int), np.zeros(3, np.uint64)))
    >>> [path.name[:11] for path in folder.iterdir()]
    ['components-']
    """
    own = _components_path(folder, components.digest)
    for path in Path(folder).glob("components-*.nc"):
        if path != own:
            path.unlink()
    try:
        read_components(folder, components.digest)
    except BadInputError:
        _write_components(folder, components)


def read_components(folder: str | os.PathLike[str], digest: str) -> Components:
    """Read the components that parts name.

    Parameters
    ----------
    folder : path
    digest : str
        `Components.digest`.

    Raises
    ------
    BadInputError
        If they are not there, damaged, or others than their file's name says.

    Examples
    --------
    See `stores.merge_parts`.
    """
    return _opened_components(_components_path(folder, digest), digest)


def _opened_components(path: Path, digest: str) -> Components:
    with netcdf.opened(path) as file:
        store_format.check_format(path, file, store_format.COMPONENTS_FORMAT)
        found = store_format.read_components(file, store_format.read_json(file)["kind"])
    if found.digest != digest:
        raise BadInputError(
            f"{path}: holds components of digest {found.digest[:12]}, not {digest[:12]}, which its parts are of; "
            "predict again, which writes it anew"
        )
    return found


def _components_path(folder: str | os.PathLike[str], digest: str) -> Path:
    return Path(folder) / _COMPONENTS.format(digest)


def _write_components(folder: str | os.PathLike[str], components: Components) -> None:
    def fill(file: Any) -> None:
        store_format.write_format(file, store_format.COMPONENTS_FORMAT, "Components of parts of a prediction")
        file.dimensions = {"component": len(components), "xyz": 3}
        store_format.write_components(file, components, compressed=False)
        store_format.write_json(file, {"kind": components.kind})

    path = _components_path(folder, components.digest)
    _write(path, fill, lambda written: _opened_components(written, components.digest))


def _write(path: Path, fill: Callable[[Any], None], read_back: Callable[[Path], object]) -> None:
    """Write a file so that it appears whole or not at all, after it was read back."""
    with durable.replacing(path, overwrite=True) as temporary:
        with netcdf.created(temporary, shown=path) as file:
            fill(file)
        try:
            read_back(temporary)
        except BadInputError as error:
            raise OutputError(f"{path}: the file read back is damaged; is the disk full? ({error})") from error
