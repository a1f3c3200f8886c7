"""NetCDF-4 files, written so that damage is found and read as if an enemy had made them.

Every array is chunked with a checksum per chunk, and the file's own structures carry checksums too. A file that is
read may name other files, unknown filters or sizes beyond its own: such arrays are refused before they are read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import numpy.typing as npt

from geo_mvmf.errors import BadInputError, OutputError
from geo_mvmf.inputs import regular_files

_MAGIC = b"\x89HDF\r\n\x1a\n"
# Structures of HDF5 1.10 carry checksums; those of the default, 1.8, do not.
_VERSION = ("v110", "v110")
_CHUNK_BYTES = 1 << 18
_FILTERS = frozenset([h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32])
# Deflate shrinks 1032 times at most, so whatever claims more was never written by it.
_MOST_SHRUNK = 1032
_ODD_FILES = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError)


@contextlib.contextmanager
def created(path: Path) -> Iterator[Any]:
    """Make a new NetCDF-4 file.

    Parameters
    ----------
    path : Path
        The caller makes it permanent.

    Yields
    ------
    h5netcdf.File

    Raises
    ------
    OutputError
        If the disk refuses.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.nc"
    >>> with created(path) as file:
    ...     file.dimensions = {"image": 2}
    ...     add_array(file, "residual", ("image",), np.zeros(2))
    >>> with opened(path) as file:
    ...     array(file, "residual", "f", 1).shape
    (2,)
    """
    try:
        with h5netcdf.File(path, "w", libver=_VERSION) as file:
            yield file
    except (OSError, RuntimeError) as error:
        # HDF5 reports a full disk as either, and at closing too.
        size = path.stat().st_size if path.exists() else 0
        raise OutputError(f"cannot write after {size} bytes: {error}; is there space on the disk?") from error


def add_array(
    group: Any,
    name: str,
    dimensions: Sequence[str],
    values: npt.NDArray[Any] | None = None,
    *,
    dtype: npt.DTypeLike | None = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Add an array with checksums, compressed.

    Parameters
    ----------
    group : h5netcdf.Group
    name : str
    dimensions : sequence of str
        Made before, with their sizes.
    values : ndarray, optional
        Left out where the array is filled later, block by block.
    dtype : dtype, optional
        Needed without values.
    attributes : mapping of str to str, optional
        Written beside it.

    Examples
    --------
    See `created`.
    """
    kind = np.dtype(dtype if values is None else values.dtype)
    shape = tuple(_size(group, dimension) for dimension in dimensions)
    packing: dict[str, Any] = {}
    if all(shape):
        width = int(np.prod(shape[1:])) * kind.itemsize
        chunks = (max(1, min(shape[0], _CHUNK_BYTES // width)), *shape[1:])
        packing = {"chunks": chunks, "compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
    variable = group.create_variable(name, tuple(dimensions), kind, **packing)
    if values is not None and all(shape):
        variable[...] = values
    for key, value in (attributes or {}).items():
        variable.attrs[key] = value


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Open a NetCDF-4 file that anyone may have made.

    Parameters
    ----------
    path : path
        An existing regular file.

    Yields
    ------
    h5py.File

    Raises
    ------
    BadInputError
        If there is no such file, it is none of this kind, or what the block reads from it turns out to be damaged.

    Examples
    --------
    See `created`.
    """
    final = regular_files.check_regular_file(path)
    with regular_files.open_regular_file(final) as start:
        if start.read(len(_MAGIC)) != _MAGIC:
            raise BadInputError(f"{path}: not a NetCDF-4 file; `geo-mvmf predict` makes predictions files")
    try:
        # Nothing here is changed in place, so locks would only fail on network drives.
        with h5py.File(final, "r", locking=False) as file:
            yield file
    except _ODD_FILES as error:
        raise BadInputError(f"{path}: damaged file: {error}") from error


def array(group: h5py.Group, name: str, kinds: str, ndim: int) -> h5py.Dataset:
    """Find an array and make sure that reading it is safe.

    Parameters
    ----------
    group : h5py.Group
    name : str
    kinds : str
        Allowed kinds of dtype, as numpy's `dtype.kind`.
    ndim : int
        Its number of dimensions.

    Returns
    -------
    h5py.Dataset

    Raises
    ------
    ValueError
        It lies in another file, has another type or number of dimensions, needs a filter that is not one of NetCDF's,
        or claims to be larger than the file can hold.

    Examples
    --------
    See `created`.
    """
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is missing or lies elsewhere")  # noqa: TRY004  about a file, not an argument
    found = group[name]
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise ValueError(f"{name} is no array of this file")
    if found.dtype.kind not in kinds or found.ndim != ndim:
        raise ValueError(f"{name} has type {found.dtype} and shape {found.shape}")
    properties = found.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if not filters <= _FILTERS:
        raise ValueError(f"{name} needs unknown filters {sorted(filters - _FILTERS)}")
    if found.size * found.dtype.itemsize > _MOST_SHRUNK * found.id.get_storage_size():
        raise ValueError(f"{name} claims {found.size} values, which the file does not hold")
    return found


def subgroup(group: h5py.Group, name: str) -> h5py.Group:
    """Find a group of the same file.

    Parameters
    ----------
    group : h5py.Group
    name : str

    Returns
    -------
    h5py.Group

    Raises
    ------
    ValueError
        It is missing or lies in another file.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.nc"
    >>> with created(path) as file:
    ...     _ = file.create_group("rows")
    >>> with opened(path) as file:
    ...     subgroup(file, "rows").name
    '/rows'
    """
    if not isinstance(group.get(name, getlink=True), h5py.HardLink) or not isinstance(group[name], h5py.Group):
        raise ValueError(f"group {name} is missing or lies elsewhere")  # noqa: TRY004  about a file
    return group[name]


def _size(group: Any, dimension: str) -> int:
    # a group inherits the dimensions of those that hold it
    while dimension not in group.dimensions:
        group = group.parent
    return int(group.dimensions[dimension].size)
