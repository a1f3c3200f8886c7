"""Sealed files: the .safetensors format, plus a digest over every bit, written and read without torch.

Bundles and checkpoints are sealed files. The safetensors format has no checksum: of 1,500 single-bit flips 1,475
load silently. So the header's metadata carries the SHA-256 of the whole file (with the digest's own 64 digits
taken as zeros), and everything is checked against the file's true size before any memory is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from geo_mvmf import durable
from geo_mvmf.errors import BadBundleError, ImageError
from geo_mvmf.inputs import mistaken
from geo_mvmf.inputs.regular_files import open_regular_file

MAX_HEADER_BYTES = 2**20
MAX_TENSORS = 16384
MAX_DIMENSIONS = 8
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U64": "<u8", "I32": "<i4", "U8": "|u1"}

_NAMES = {np.dtype(code): name for name, code in DTYPES.items()}
_DIGEST_KEY = b'"sha256":"'
_NO_DIGEST = "0" * 64
_CHUNK = 2**24
# What people try instead: (offset, bytes, what it is, why not).
_FOREIGN = (
    (0, b"PK\x03\x04", "a zip archive (torch.save writes these)", "it may hold a pickle, which can run any program"),
    (0, b"\x80", "a pickle", "opening one can run any program"),
    (257, b"ustar", "a tar archive", "it may hold a pickle, which can run any program"),
    (0, b"\x1f\x8b", "a gzip file", "nothing is unpacked"),
    (0, b"\x89HDF", "an HDF5 file, as predictions are", "only .safetensors is read"),
)


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Parameters
    ----------
    dtype : str
        A key of `DTYPES`.
    shape : tuple of int
    begin, end : int
        Bytes, counted from the end of the header.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclasses.dataclass(frozen=True)
class SealedHeader:
    """The checked header of a sealed file.

    Parameters
    ----------
    path : str
        For messages.
    metadata : dict of str to str
        Everything but the digest.
    tensors : dict of str to TensorEntry
        In the order of their bytes.
    digest : str
        SHA-256 of the file, 64 hexadecimal digits; compared with the bytes by `read_sealed` only.
    """

    path: str
    metadata: dict[str, str]
    tensors: dict[str, TensorEntry]
    digest: str


def write_sealed(
    path: str | os.PathLike[str],
    arrays: Mapping[str, npt.NDArray[Any]],
    metadata: Mapping[str, str],
    *,
    overwrite: bool = False,
) -> str:
    """Write arrays and texts as one file, whole or not at all.

    The same content gives the same bytes, whatever the order of the mappings.

    Parameters
    ----------
    path : path
    arrays : mapping of str to array
        Of a dtype in `DTYPES`.
    metadata : mapping of str to str
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    str
        The digest.

    Raises
    ------
    OutputError
        If the file exists, or the disk refuses.
    ValueError
        If an array has a dtype that the format lacks, or there is too much of something.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> digest = write_sealed(path, {"x": np.arange(3.0)}, {"format": "example"})
    >>> read_sealed(path)[1]["x"].tolist()
    [0.0, 1.0, 2.0]
    """
    ordered = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items(), key=_by_alignment)}
    header = _header_bytes(ordered, metadata)
    digest = _digest_of(header, ordered)
    start = header.index(_DIGEST_KEY) + len(_DIGEST_KEY)
    header = header[:start] + digest.encode() + header[start + 64 :]
    with durable.replacing(path, overwrite=overwrite) as temporary, temporary.open("wb") as file:
        file.write(header)
        for array in ordered.values():
            file.write(array.reshape(-1).data.cast("B"))
    return digest


def read_sealed_header(path: str | os.PathLike[str]) -> SealedHeader:
    """Read and check the header only.

    Parameters
    ----------
    path : path

    Raises
    ------
    BadBundleError
        Naming the clause that is violated; see docs/bundle_format.md.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> digest = write_sealed(path, {"x": np.arange(3.0)}, {"format": "example"})
    >>> read_sealed_header(path).tensors["x"].shape
    (3,)
    """
    with _opened(path) as file:
        return _read_header(file, os.fspath(path))[0]


def read_sealed(
    path: str | os.PathLike[str], *, check: Callable[[SealedHeader], None] | None = None
) -> tuple[SealedHeader, dict[str, npt.NDArray[Any]]]:
    """Read a sealed file and compare every bit with its digest.

    Parameters
    ----------
    path : path
    check : callable, optional
        Called with the header before any array is made; raises to refuse.

    Returns
    -------
    header : SealedHeader
    arrays : dict of str to array
        Their memory is the size of the file.

    Raises
    ------
    BadBundleError
        Naming the clause that is violated.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> digest = write_sealed(path, {"x": np.arange(3.0)}, {"format": "example"})
    >>> header, arrays = read_sealed(path)
    >>> header.metadata, header.digest == digest
    ({'format': 'example'}, True)
    """
    name = os.fspath(path)
    with _opened(path) as file:
        header, raw = _read_header(file, name)
        if check is not None:
            check(header)
        hasher = hashlib.sha256(raw.replace(header.digest.encode(), _NO_DIGEST.encode(), 1))
        arrays = {key: _read_array(file, entry, hasher.update, name) for key, entry in header.tensors.items()}
        if file.read(1):
            raise BadBundleError(f"{name}: grew while it was read; copy it to a quiet place first")
    if hasher.hexdigest() != header.digest:
        raise BadBundleError(
            f"{name}: damaged: the SHA-256 of its bytes is {hasher.hexdigest()[:16]}..., its header says "
            f"{header.digest[:16]}...; get the file again"
        )
    return header, arrays


def loads_strict(text: str | bytes) -> Any:
    """Parse JSON that must not hide anything: no duplicate keys, no NaN or infinities, no deep nesting.

    Parameters
    ----------
    text : str or bytes

    Raises
    ------
    ValueError
        Saying what is wrong.

    Examples
    --------
    >>> loads_strict('{"a": 1}')
    {'a': 1}
    >>> loads_strict('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: key 'a' occurs twice
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _by_alignment(item: tuple[str, npt.NDArray[Any]]) -> tuple[int, str]:
    return -item[1].dtype.itemsize, item[0]  # wide ones first, so that every tensor is aligned


def _header_bytes(arrays: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {**dict(sorted(metadata.items())), "sha256": _NO_DIGEST}}
    begin = 0
    for name, array in arrays.items():
        if array.dtype not in _NAMES or array.ndim > MAX_DIMENSIONS or array.size == 0:
            raise ValueError(f"tensor {name} of dtype {array.dtype} and shape {array.shape} cannot be stored")
        end = begin + array.nbytes
        entries[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES or len(arrays) > MAX_TENSORS:
        raise ValueError(f"a header of {len(text)} bytes for {len(arrays)} tensors is too large to be read again")
    return len(text).to_bytes(8, "little") + text


def _digest_of(header: bytes, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    hasher = hashlib.sha256(header)
    for array in arrays.values():
        hasher.update(array.reshape(-1).data.cast("B"))
    return hasher.hexdigest()


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    if told := mistaken.folder_with(path, "bundle.safetensors"):
        raise BadBundleError(told)
    try:
        file = open_regular_file(path)
    except ImageError as error:
        raise BadBundleError(str(error)) from error
    with file:
        try:
            yield file
        except OSError as error:
            raise BadBundleError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error


def _read_header(file: BinaryIO, path: str) -> tuple[SealedHeader, bytes]:
    size = os.fstat(file.fileno()).st_size
    beginning = file.read(8)
    length = int.from_bytes(beginning, "little")
    if len(beginning) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        _refuse_foreign(file, path, f"by its first 8 bytes its header would be longer than the file ({size} bytes)")
    text = file.read(length)
    if len(text) < length or not text.startswith(b"{"):
        _refuse_foreign(file, path, "its header does not begin with a brace")
    try:
        entries = loads_strict(text.decode("utf-8"))
    except ValueError as error:
        raise BadBundleError(f"{path}: the header is not valid JSON: {error}") from error
    metadata = _metadata(entries, text, path)
    digest = metadata.pop("sha256")
    tensors = _entries(entries, size - 8 - length, path)
    return SealedHeader(path, metadata, tensors, digest), beginning + text


def _refuse_foreign(file: BinaryIO, path: str, why: str) -> NoReturn:
    file.seek(0)
    head = file.read(mistaken.HEAD_BYTES)
    for offset, magic, kind, reason in _FOREIGN:
        if head[offset:].startswith(magic):
            raise BadBundleError(f"{path}: this is {kind}, not a .safetensors file; {reason}, so it is refused")
    words = mistaken.words_of(head)
    told = f": {why}" if words in ("", mistaken.BUNDLE) else f" but {words}; `geo-mvmf train` makes bundles"
    raise BadBundleError(f"{path}: not a .safetensors file{told}")


def _metadata(entries: object, text: bytes, path: str) -> dict[str, str]:
    metadata = entries.pop("__metadata__", None) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadBundleError(f"{path}: the header has no __metadata__ of texts, so this is no file of geo_mvmf")
    digest = metadata.get("sha256", "")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise BadBundleError(f"{path}: the header has no SHA-256 digest ({digest[:70]!r}), so damage would go unseen")
    if text.count(_DIGEST_KEY + digest.encode()) != 1 or text.count(digest.encode()) != 1:
        raise BadBundleError(f"{path}: the digest must stand in the header once, without spaces")
    return dict(metadata)


def _entries(entries: dict[str, Any], data_bytes: int, path: str) -> dict[str, TensorEntry]:
    if not 1 <= len(entries) <= MAX_TENSORS:
        raise BadBundleError(f"{path}: {len(entries)} tensors; 1..{MAX_TENSORS} are allowed")
    found = {name: _entry(name, value, path) for name, value in entries.items()}
    ordered = dict(sorted(found.items(), key=lambda item: item[1].begin))
    position = 0
    for name, entry in ordered.items():
        if entry.begin != position:
            raise BadBundleError(
                f"{path}: tensor {name!r} begins at byte {entry.begin} instead of {position}: a gap or an overlap"
            )
        position = entry.end
    if position != data_bytes:
        raise BadBundleError(f"{path}: the header describes {position} bytes of tensors, the file has {data_bytes}")
    return ordered


def _entry(name: str, value: object, path: str) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise BadBundleError(f"{path}: tensor {name!r} must have dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise BadBundleError(f"{path}: tensor {name!r} has dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    if not _are_integers(shape, 1) or len(shape) > MAX_DIMENSIONS:
        raise BadBundleError(f"{path}: tensor {name!r} has shape {shape!r}; positive integers are needed")
    if not _are_integers(offsets, 0) or len(offsets) != 2:
        raise BadBundleError(f"{path}: tensor {name!r} has data_offsets {offsets!r}; two integers are needed")
    size = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if offsets[1] - offsets[0] != size:
        raise BadBundleError(
            f"{path}: tensor {name!r} of shape {shape} and dtype {dtype} needs {size} bytes, "
            f"its data_offsets span {offsets[1] - offsets[0]}"
        )
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _are_integers(values: object, least: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= least for value in values)


def _read_array(
    file: BinaryIO, entry: TensorEntry, hash_update: Callable[[memoryview], None], path: str
) -> npt.NDArray[Any]:
    array = np.empty(entry.shape, dtype=DTYPES[entry.dtype])
    view = array.reshape(-1).data.cast("B")
    for begin in range(0, len(view), _CHUNK):
        part = view[begin : begin + _CHUNK]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]  # a buffered reader fills the part
            raise BadBundleError(f"{path}: became shorter while it was read")
        hash_update(part)
    return array


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} occurs twice")
        result[key] = value
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
