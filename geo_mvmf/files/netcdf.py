"""NetCDF-4 files, written so that damage is found and read as if an enemy had made them.

Every array is chunked with a checksum per chunk, and the file's own structures carry checksums too. A file that is
read may name other files, unknown filters or sizes beyond its own: such arrays are refused before they are read.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import numpy.typing as npt

from geo_mvmf.errors import BadInputError, OutputError
from geo_mvmf.inputs import mistaken, regular_files

_MAGIC = b"\x89HDF\r\n\x1a\n"
# Structures of HDF5 1.10 carry checksums; those of the default, 1.8, do not.
_VERSION = ("v110", "v110")
_CHUNK_BYTES = 1 << 18
_FILTERS = frozenset([h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32])
# Deflate shrinks 1032 times at most, so whatever claims more was never written by it.
_MOST_SHRUNK = 1032
_ODD_FILES = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, MemoryError)


@contextlib.contextmanager
def created(path: Path, *, shown: Path | None = None) -> Iterator[Any]:
    """Make a new NetCDF-4 file.

    Parameters
    ----------
    path : Path
        The caller makes it permanent.
    shown : Path, optional
        What messages call it.

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
    ...     _ = add_array(file, "residual", ("image",), np.zeros(2))
    >>> with opened(path) as file:
    ...     array(file, "residual", "f", 1).shape
    (2,)
    """
    with path.open("w+b", buffering=0) as raw:
        patient = _PatientFile(raw)
        try:
            with h5netcdf.File(patient, "w", libver=_VERSION) as file:
                yield file
        finally:
            patient.complain(shown or path)


def add_array(
    group: Any,
    name: str,
    dimensions: Sequence[str],
    values: npt.NDArray[Any] | None = None,
    *,
    dtype: npt.DTypeLike | None = None,
    chunk: tuple[int, ...] | None = None,
    attributes: Mapping[str, Any] | None = None,
    compressed: bool = True,
) -> Any:
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
    chunk : tuple of int, optional
        What is compressed and checked together; about 256 KiB of whole rows by default.
    attributes : mapping of str to str or number, optional
        Written beside it.
    compressed : bool
        Whether its bytes are deflated: what is soon read again and thrown away need not be.

    Returns
    -------
    h5netcdf.Variable

    Examples
    --------
    See `created`.
    """
    kind = np.dtype(dtype if values is None else values.dtype)
    # h5netcdf looks a size up in the file each time it is asked
    shape = tuple(_size(group, dimension) for dimension in dimensions) if values is None else values.shape
    packing: dict[str, Any] = {}
    if all(shape):
        width = int(np.prod(shape[1:])) * kind.itemsize
        chunks = chunk or (max(1, min(shape[0], _CHUNK_BYTES // width)), *shape[1:])
        packing = {"chunks": chunks, "fletcher32": True}
        packing |= {"compression": "gzip", "compression_opts": 1, "shuffle": True} if compressed else {}
    beside = dict(attributes or {})
    if "_FillValue" in beside:
        packing["fillvalue"] = beside.pop("_FillValue")  # an attribute that has to be there from the start
    variable = group.create_variable(name, tuple(dimensions), kind, data=values if all(shape) else None, **packing)
    if beside:
        variable.attrs.update(beside)
    return variable


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
    if told := mistaken.folder_with(path, "predictions.nc"):
        raise BadInputError(told)
    final = regular_files.check_regular_file(path)
    with regular_files.open_regular_file(final) as start:
        head = start.read(mistaken.HEAD_BYTES)
        if not head.startswith(_MAGIC):
            raise BadInputError(f"{path}: not a NetCDF-4 file{_hint(final, mistaken.words_of(head))}")
    try:
        with _opened(final) as file:
            yield file
    except _ODD_FILES as error:
        raise BadInputError(f"{path}: damaged file: {error}") from error


def _opened(path: Path) -> h5py.File:
    """Open without locks, or with those by which this process (a notebook's xarray) has the file open already."""
    # Nothing here is changed in place, so locks would only fail on network drives.
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if "locking" not in str(error):
            raise
    try:
        return h5py.File(path, "r")
    except OSError as error:
        if "locking" not in str(error):
            raise
    return h5py.File(path, "r", locking=True)


def _hint(path: Path, words: str) -> str:
    """What it is instead, and what to do."""
    told, beside = f" but {words}" if words else "", path.with_suffix(".nc")
    if words == mistaken.BUNDLE:
        make = f"`geo-mvmf predict IMAGES --bundle {path.name} --out predictions.nc` makes a predictions file with it"
        return f"{told}; {make}"
    other = beside.exists() and not beside.samefile(path)
    return f"{told}; {f'{beside} lies beside it' if other else '`geo-mvmf predict` makes predictions files'}"


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
    found = _own(group, name)
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
    found = _own(group, name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{name} is no group of this file")  # noqa: TRY004  about a file
    return found


def _own(group: h5py.Group, name: str) -> Any:
    """What lies under a name in this file itself, which no link leads out of."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is missing or lies elsewhere")  # noqa: TRY004  about a file, not an argument
    return group[name]


class _PatientFile:
    """A file that takes every write and keeps the first refusal of the disk for later.

    HDF5 cannot close a file whose writes fail: it leaves the process in a state that ends in a segmentation
    fault. So it is let to finish in peace, and the file is thrown away afterwards.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._refusal: OSError | None = None
        self._written = 0

    def complain(self, path: Path) -> None:
        """Raise what the disk refused, if anything."""
        if self._refusal is not None:
            reason = self._refusal.strerror
            raise OutputError(f"{path}: cannot write more than {self._written} bytes: {reason}; free some space")

    def write(self, data: Any) -> int:
        """Write all of the data, or nothing from the first refusal on."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self._refusal is None and done < len(view):
                done += self._raw.write(view[done:]) or 0
        except OSError as error:
            self._refusal = error
        self._written += done
        return len(view)

    def read(self, size: int = -1) -> bytes:
        """Read; h5py knows a file by this method."""
        return self._raw.read(size) or b""

    def readinto(self, buffer: Any) -> int:
        """Read; past the end there are zeros once the disk has refused."""
        view = memoryview(buffer).cast("B")
        done = self._raw.readinto(view) or 0
        if self._refusal is not None:
            view[done:] = bytes(len(view) - done)
            done = len(view)
        return done

    def truncate(self, size: int | None = None) -> int:
        """Set the size, if the disk allows."""
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self._refusal = self._refusal or error
            return size or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Tell where it is."""
        return self._raw.tell()

    def flush(self) -> None:
        """Do nothing: nothing is buffered here."""


def _size(group: Any, dimension: str) -> int:
    # a group inherits the dimensions of those that hold it
    while dimension not in group.dimensions:
        group = group.parent
    return int(group.dimensions[dimension].size)
