"""What stands where in a predictions file: written here, read here, checked here.

docs/predictions_file.md is the specification; `stores` is what other modules call.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf.errors import BadInputError
from geo_mvmf.files import netcdf, store_rows
from geo_mvmf.files.weights import FloatArray, IntArray, Pruned

FORMAT = "geo_mvmf predictions"
PART_FORMAT = "geo_mvmf predictions part"
COMPONENTS_FORMAT = "geo_mvmf predictions components"
FORMAT_VERSION = 1
_KINDS = ("vmf", "cell")
_TOLERANCE = 1e-3  # by which weights may miss their sum
# To deflate the mean directions of a million takes longer than all else of a merge, and saves a fifth where trained.
_LARGE_DIRECTIONS = 1 << 23


@dataclasses.dataclass(frozen=True)
class Components:
    """The components that all images of a file share.

    Parameters
    ----------
    kind : str
        "vmf" (von Mises-Fisher components) or "cell" (probability uniform on S2 cells).
    mean_directions : ndarray of float64, (C, 3)
        For cells their centres.
    log_concentrations : ndarray of float64, (C,)
        NaN for cells.
    training_counts : ndarray of int64, (C,)
        Training images per component.
    cell_ids : ndarray of uint64, (C,)
        S2 cells of the partition.

    Examples
    --------
    >>> Components("vmf", np.eye(3), np.zeros(3), np.ones(3, int), np.zeros(3, np.uint64)).kind
    'vmf'
    """

    kind: str
    mean_directions: FloatArray
    log_concentrations: FloatArray
    training_counts: IntArray
    cell_ids: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.mean_directions)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of kind and arrays, hexadecimal: equal for components that are the same to the last bit."""
        hasher = hashlib.sha256(self.kind.encode())
        for name, values in shared_arrays(self).items():
            hasher.update(f"{name} {values.dtype.str} {values.shape}".encode())
            hasher.update(values.tobytes())
        return hasher.hexdigest()


def check_images(rows: pd.DataFrame, pruned: Pruned) -> None:
    """Make sure that rows and weights are of as many images.

    Parameters
    ----------
    rows : DataFrame
    pruned : Pruned

    Raises
    ------
    ValueError
        They are not.

    Examples
    --------
    See `stores.write_store`.
    """
    if len(rows) != len(pruned):
        raise ValueError(f"there are {len(rows)} rows and weights of {len(pruned)} images")


def check_format(path: str | os.PathLike[str], file: Any, expected: str = FORMAT) -> None:
    """Make sure that a NetCDF file is a predictions file of a known version.

    Parameters
    ----------
    path : path
        For the message.
    file : h5py.File
    expected : str
        Its format; a part's and that of shared components are others.

    Raises
    ------
    BadInputError
        It is none, or of another version.

    Examples
    --------
    See `stores.write_store`.
    """
    found, version = (_attribute(file, name) for name in ("format", "format_version"))
    if found != expected:
        is_of_part = found in (PART_FORMAT, COMPONENTS_FORMAT)
        hint = "; it is of a prediction that is not finished: predict again, and it goes on" if is_of_part else ""
        raise BadInputError(f"{path}: not a predictions file: its format is {found!r}, expected {expected!r}{hint}")
    if version != FORMAT_VERSION:
        raise BadInputError(f"{path}: format version {version!r}; this geo_mvmf reads version {FORMAT_VERSION}")


def check_offsets(file: Any, offsets: IntArray, residual: FloatArray) -> None:
    """Make sure that images, entries and residuals fit each other.

    Parameters
    ----------
    file : h5py.File
    offsets : ndarray of int64, (n + 1,)
    residual : ndarray of float64, (n,)

    Raises
    ------
    ValueError
        They do not.

    Examples
    --------
    See `stores.write_store`.
    """
    entries = netcdf.array(file, "entry_component", "u", 1).shape[0]
    weights = netcdf.array(file, "entry_log_weight", "f", 1).shape[0]
    if offsets.size != residual.size + 1 or offsets[0] != 0 or np.any(np.diff(offsets) < 0):
        raise ValueError(f"image_offset does not rise from 0 over {residual.size} images")
    if offsets[-1] != entries or entries != weights:
        raise ValueError(f"{offsets[-1]} entries are owned, {entries} components and {weights} weights are stored")
    predicted = np.diff(offsets) > 0
    if not np.all((residual[predicted] >= 0.0) & (residual[predicted] < 1.0)):
        raise ValueError("a residual is not in 0..1")


def check_entries(pruned: Pruned, size: int) -> None:
    """Make sure that weights are weights of known components.

    Parameters
    ----------
    pruned : Pruned
    size : int
        Number of components.

    Raises
    ------
    ValueError
        A component is unknown or out of order, a weight is no number, or weights and residual do not sum to 1.

    Examples
    --------
    See `stores.write_store`.
    """
    if not pruned.component.size:
        return
    if pruned.component.max() >= size or not np.all(pruned.log_weight <= _TOLERANCE):
        raise ValueError(f"a weight is no number below 1, or of a component beyond {size}")
    rises = np.diff(pruned.component.astype(np.int64)) > 0
    inner = pruned.offsets[1:-1]
    rises[inner[(inner > 0) & (inner < pruned.component.size)] - 1] = True  # the next image starts again
    owned = np.flatnonzero(np.diff(pruned.offsets))
    sums = np.add.reduceat(np.exp(pruned.log_weight.astype(np.float64)), pruned.offsets[owned])
    if not rises.all() or not np.all(np.abs(sums + pruned.residual[owned] - 1.0) <= 2.0 * _TOLERANCE):
        raise ValueError("components do not rise, or weights and residual do not sum to 1")


def write_format(file: Any, name: str, title: str) -> None:
    """Write what kind of file this is.

    Parameters
    ----------
    file : h5netcdf.File
    name : str
        Its format.
    title : str
        For people.

    Examples
    --------
    See `stores.write_store`.
    """
    file.attrs["Conventions"] = np.bytes_("CF-1.11")
    file.attrs["title"] = np.bytes_(title)
    # Of fixed length: text of variable length lies in a heap without checksum, where damage can make HDF5 hang.
    file.attrs["format"] = np.bytes_(name)
    file.attrs["format_version"] = np.int32(FORMAT_VERSION)


def write_components(file: Any, components: Components, *, compressed: bool) -> None:
    """Write the components, whose dimensions are there already.

    Parameters
    ----------
    file : h5netcdf.File
    components : Components
    compressed : bool
        Whether they are deflated, but for mean directions of 8 MiB and more.

    Examples
    --------
    See `stores.write_store`.
    """
    for name, values in shared_arrays(components).items():
        dimensions = ("component", "xyz") if values.ndim == 2 else ("component",)
        is_worth_it = name != "mean_directions" or values.nbytes < _LARGE_DIRECTIONS
        netcdf.add_array(file, name, dimensions, values, compressed=compressed and is_worth_it)


def write_head(file: Any, components: Components | None, images: int, entries: int, *, compressed: bool = True) -> None:
    """Write everything whose size is known before the weights come, and make room for them.

    Parameters
    ----------
    file : h5netcdf.File
    components : Components or None
        None in a part, which only names them.
    images, entries : int
        Number of images and of stored weights.
    compressed : bool
        Whether components, and which of them the weights belong to, are deflated.

    Examples
    --------
    See `stores.write_store`.
    """
    is_part = components is None
    write_format(file, PART_FORMAT if is_part else FORMAT, "Predicted locations of images, as mixtures on the sphere")
    own = {} if components is None else {"component": len(components), "xyz": 3}
    file.dimensions = {"image": images, "image_bound": images + 1, **own, "entry": entries}
    if components is not None:
        write_components(file, components, compressed=compressed)
    netcdf.add_array(file, "entry_component", ("entry",), dtype=np.uint32, compressed=compressed)
    # digits of weights are noise: to deflate them takes longer than all else here, and saves a seventh of their bytes
    netcdf.add_array(file, "entry_log_weight", ("entry",), dtype=np.float32, compressed=False)
    netcdf.add_array(file, "image_offset", ("image_bound",), dtype=np.int64)
    netcdf.add_array(file, "residual", ("image",), dtype=np.float64)
    file["image_offset"][0:1] = np.zeros(1, dtype=np.int64)


def write_entries(file: Any, pruned: Pruned, image: int, entry: int) -> None:
    """Write the weights of some images into their place.

    Parameters
    ----------
    file : h5netcdf.File
    pruned : Pruned
    image, entry : int
        Where the first image and the first weight go.

    Examples
    --------
    See `stores.write_store`.
    """
    size = pruned.component.size
    if size:
        file["entry_component"][entry : entry + size] = pruned.component
        file["entry_log_weight"][entry : entry + size] = pruned.log_weight
    if len(pruned):
        file["image_offset"][image + 1 : image + len(pruned) + 1] = pruned.offsets[1:] + entry
        file["residual"][image : image + len(pruned)] = pruned.residual


def write_header(
    file: Any, components: Components, rows: store_rows.Rows, run: Mapping[str, Any], *, is_part: bool = False
) -> None:
    """Write the row columns, and the header that says what the file holds.

    Parameters
    ----------
    file : h5netcdf.File
    components : Components
    rows : DataFrame or Rows
    run : mapping
        JSON-able.
    is_part : bool
        Whether the header has to name the components, because they lie elsewhere.

    Examples
    --------
    See `stores.write_store`.
    """
    described = store_rows.write_rows(file.create_group("rows"), rows)
    named = {"components_sha256": components.digest} if is_part else {}
    write_json(file, {"kind": components.kind, "run": dict(run), "columns": described, **named})


def write_json(file: Any, header: Mapping[str, Any]) -> None:
    """Write the header.

    Parameters
    ----------
    file : h5netcdf.File
    header : mapping
        JSON-able.

    Examples
    --------
    See `stores.write_store`.
    """
    text = np.frombuffer(json.dumps(header, sort_keys=True).encode("ascii"), dtype="S1")
    file.dimensions["header_byte"] = text.size
    netcdf.add_array(file, "header", ("header_byte",), text, attributes={"long_name": "JSON"})


def read_json(file: Any) -> dict[str, Any]:
    """Read the header.

    Parameters
    ----------
    file : h5py.File

    Raises
    ------
    ValueError
        It is none.

    Examples
    --------
    See `stores.write_store`.
    """
    return dict(json.loads(netcdf.array(file, "header", "S", 1)[...].tobytes().decode("utf-8")))


def shared_arrays(components: Components) -> dict[str, npt.NDArray[Any]]:
    """Give the arrays of components their names and types in the file.

    Parameters
    ----------
    components : Components

    Examples
    --------
    See `stores.write_store`.
    """
    return {
        "mean_directions": np.ascontiguousarray(components.mean_directions, dtype=np.float64),
        "log_concentrations": np.ascontiguousarray(components.log_concentrations, dtype=np.float64),
        "training_counts": np.ascontiguousarray(components.training_counts, dtype=np.int64),
        "cell_ids": np.ascontiguousarray(components.cell_ids, dtype=np.uint64),
    }


def read_components(file: Any, kind: str) -> Components:
    """Read and check the components.

    Parameters
    ----------
    file : h5py.File
    kind : str
        As the header says.

    Raises
    ------
    ValueError
        They are damaged.

    Examples
    --------
    See `stores.write_store`.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}, not 'vmf' or 'cell'")
    directions = netcdf.array(file, "mean_directions", "f", 2)[...].astype(np.float64)
    concentrations = netcdf.array(file, "log_concentrations", "f", 1)[...].astype(np.float64)
    counts = netcdf.array(file, "training_counts", "i", 1)[...].astype(np.int64)
    cells = netcdf.array(file, "cell_ids", "u", 1)[...].astype(np.uint64)
    size = len(directions)
    if directions.shape != (size, 3) or not {len(concentrations), len(counts), len(cells)} == {size}:
        raise ValueError(f"mean_directions have shape {directions.shape}, which other components do not fit")
    if not np.all(np.abs(np.linalg.norm(directions, axis=1) - 1.0) < 1e-6):
        raise ValueError("a mean direction is not of length 1")
    if np.any(counts < 0) or (kind == "vmf" and not np.isfinite(concentrations).all()):
        raise ValueError("a training count is negative or a log concentration not finite")
    return Components(kind, directions, concentrations, counts, cells)


def _attribute(file: Any, name: str) -> object:
    if name not in file.attrs or file.attrs.get_id(name).dtype.kind not in "Siu":
        return None
    value = np.asarray(file.attrs[name]).ravel().tolist()[:1]  # NetCDF knows no scalar attributes
    return value[0].decode("utf-8", "replace") if value and isinstance(value[0], bytes) else (value or [None])[0]
