"""The predictions file: everything that any map can be made from later, without torch and without the images.

One NetCDF-4 file (docs/predictions_file.md is its specification). Per image it holds the fewest components that
hold all but `TAIL` of the mixing weight, and that residual, which counts as spread over the other components in
proportion to their training counts: so densities still integrate to one and the likelihood stays finite.
A long prediction writes numbered parts of the same format, which are merged at the end; that is how it resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import durable
from geo_mvmf.errors import BadInputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FORMAT = "geo_mvmf predictions"
FORMAT_VERSION = 1
TAIL = 1e-4
_PART = "part-{:06d}.nc"
_MISSING = "__missing"


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
    """

    kind: str
    mean_directions: FloatArray
    log_concentrations: FloatArray
    training_counts: IntArray
    cell_ids: npt.NDArray[np.uint64]


@dataclasses.dataclass(frozen=True)
class Pruned:
    """Mixing weights of n images without their tails, ragged.

    Parameters
    ----------
    component : ndarray of uint32, (T,)
        Indices, ascending within an image.
    log_weight : ndarray of float32, (T,)
        Natural logarithms of mixing weights.
    offsets : ndarray of int64, (n + 1,)
        Image i owns entries offsets[i]:offsets[i + 1]; none where it has no prediction.
    residual : ndarray of float64, (n,)
        Weight that was left out; NaN where there is no prediction.
    """

    component: npt.NDArray[np.uint32]
    log_weight: npt.NDArray[np.float32]
    offsets: IntArray
    residual: FloatArray


def prune(log_mixing_weights: npt.ArrayLike, *, tail: float = TAIL) -> Pruned:
    """Keep the fewest components that hold all but `tail` of each image's weight.

    Parameters
    ----------
    log_mixing_weights : array_like of float, (n, C)
        A row of NaN is an image without prediction.
    tail : float
        Largest weight that may be left out.

    Returns
    -------
    Pruned

    Examples
    --------
    >>> kept = prune(np.log([[0.7, 0.29999, 0.00001]]))
    >>> kept.component.tolist(), round(float(kept.residual[0]), 6)
    ([0, 1], 1e-05)
    """
    logs = np.asarray(log_mixing_weights, dtype=np.float32)
    components, weights, counts = [], [], []
    residual = np.full(len(logs), np.nan)
    for i, row in enumerate(logs):
        kept = _heaviest(row, tail) if not np.isnan(row[0]) else np.empty(0, dtype=np.int64)
        if kept.size:
            residual[i] = max(0.0, 1.0 - float(np.exp(row[kept].astype(np.float64)).sum()))
        components.append(kept.astype(np.uint32))
        weights.append(row[kept])
        counts.append(kept.size)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    empty = np.empty(0)
    return Pruned(
        np.concatenate([*components, empty]).astype(np.uint32),
        np.concatenate([*weights, empty]).astype(np.float32),
        offsets,
        residual,
    )


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
        n rows; columns of text, float, int or bool.
    pruned : Pruned
        Of the same n images.
    components : Components
    run : mapping
        JSON-able description of the run.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    OutputError
        If the file exists or the disk refuses.
    """
    with durable.replacing(path, overwrite=overwrite) as temporary, h5netcdf.File(temporary, "w") as file:
        _write_head(file, components, run, len(rows), pruned.component.size)
        _write_entries(file, pruned, 0, 0)
        _write_rows(file, rows)


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

    Parameters
    ----------
    folder : path
    number : int
        From 0.
    rows, pruned, components, run
        As `write_store`.

    Raises
    ------
    OutputError
        If the disk refuses.
    """
    path = Path(folder) / _PART.format(number)
    write_store(path, rows=rows, pruned=pruned, components=components, run=run, overwrite=True)


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
    return sorted(int(path.stem.removeprefix("part-")) for path in Path(folder).glob("part-??????.nc"))


def merge_parts(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    run: Mapping[str, Any],
    passthrough: pd.DataFrame | None = None,
    overwrite: bool = False,
) -> StoredPredictions:
    """Merge numbered parts into one predictions file, one part in memory at a time.

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
        If a part is damaged.
    OutputError
        If the file exists or the disk refuses.
    """
    parts = [open_store(Path(folder) / _PART.format(number)) for number in existing_parts(folder)]
    if not parts:
        raise BadInputError(f"{folder}: holds no part of a prediction (part-000000.nc ...)")
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    if passthrough is not None:
        rows = pd.concat([rows, passthrough.reset_index(drop=True)], axis=1)
    total = sum(part.n_entries for part in parts)
    with durable.replacing(out, overwrite=overwrite) as temporary, h5netcdf.File(temporary, "w") as file:
        _write_head(file, parts[0].components, run, len(rows), total)
        image = entry = 0
        for part in parts:
            _write_entries(file, part.pruned(), image, entry)
            image, entry = image + len(part.rows), entry + part.n_entries
        _write_rows(file, rows)
    return open_store(out)


@dataclasses.dataclass(frozen=True)
class StoredPredictions:
    """A predictions file that was opened and checked; mixing weights are read when asked for.

    Parameters
    ----------
    path : Path
    rows : DataFrame
        One row per image.
    components : Components
    run : dict
    offsets : ndarray of int64, (n + 1,)
    residual : ndarray of float64, (n,)
    """

    path: Path
    rows: pd.DataFrame
    components: Components
    run: dict[str, Any]
    offsets: IntArray
    residual: FloatArray

    @property
    def n_entries(self) -> int:
        """Number of stored mixing weights."""
        return int(self.offsets[-1])

    @property
    def is_predicted(self) -> npt.NDArray[np.bool_]:
        """Which images have a prediction, (n,)."""
        return np.diff(self.offsets) > 0

    def pruned(self) -> Pruned:
        """All stored weights.

        Returns
        -------
        Pruned
        """
        with _opened(self.path) as file:
            component, log_weight = file["entry_component"][...], file["entry_log_weight"][...]
        return Pruned(component, log_weight, self.offsets, self.residual)

    def log_mixing_weights(self, images: Sequence[int] | npt.NDArray[Any]) -> FloatArray:
        """Dense mixing weights of some images, residual spread in proportion to training counts.

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
            If an image has no prediction.
        """
        images = np.asarray(images, dtype=np.int64)
        result = np.empty((images.size, len(self.components.mean_directions)))
        with _opened(self.path) as file, np.errstate(divide="ignore"):
            for i, image in enumerate(images):
                start, stop = int(self.offsets[image]), int(self.offsets[image + 1])
                if start == stop:
                    raise BadInputError(f"{self.path}: image {image} has no prediction")
                entries = slice(start, stop)
                self._fill(result[i], file["entry_component"][entries], file["entry_log_weight"][entries], image)
        return result

    def _fill(self, row: FloatArray, component: Any, log_weight: Any, image: int) -> None:
        share = np.maximum(self.components.training_counts, 0).astype(np.float64)
        share[component] = 0.0
        if not share.sum() and component.size < share.size:
            share = np.ones_like(share)
            share[component] = 0.0
        spread = self.residual[image] * share / share.sum() if share.sum() else share
        spread[component] = np.exp(np.asarray(log_weight, dtype=np.float64))
        row[:] = np.log(spread / spread.sum())


def open_store(path: str | os.PathLike[str]) -> StoredPredictions:
    """Open a predictions file and check every part that is not a mixing weight.

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
    """
    path = Path(path)
    with _opened(path) as file:
        _check_format(path, file)
        try:
            components = _read_components(file)
            offsets = file["image_offset"][...].astype(np.int64)
            residual = file["residual"][...].astype(np.float64)
            rows = _read_rows(file)
            run = json.loads(file.attrs["run"])
            entries = file.dimensions["entry"].size
        except (KeyError, ValueError, OSError, TypeError) as error:
            raise BadInputError(f"{path}: damaged predictions file: {error}") from error
    ordered = offsets.size == len(rows) + 1 and offsets[0] == 0 and np.all(np.diff(offsets) >= 0)
    if not ordered or offsets[-1] != entries or residual.size != len(rows):
        raise BadInputError(f"{path}: damaged predictions file: {len(rows)} rows do not fit {entries} entries")
    return StoredPredictions(path, rows, components, run, offsets, residual)


def _heaviest(row: npt.NDArray[np.float32], tail: float) -> IntArray:
    # Sorting values alone is several times faster than sorting indices; ties at the cut stay in.
    ordered = np.sort(row)
    below = np.cumsum(np.exp(ordered.astype(np.float64)))
    cut = int(np.searchsorted(below, tail, side="right"))
    return np.flatnonzero(row >= ordered[min(cut, row.size - 1)])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise BadInputError(f"{path}: no such predictions file")
    with path.open("rb") as start:
        if start.read(8) != b"\x89HDF\r\n\x1a\n":
            raise BadInputError(f"{path}: not a predictions file (NetCDF-4); make one with `geo-mvmf predict`")
    try:
        file = h5netcdf.File(path, "r")
    except (OSError, ValueError, KeyError) as error:
        raise BadInputError(f"{path}: damaged predictions file: {error}") from error
    with file:
        yield file


def _check_format(path: Path, file: Any) -> None:
    found, version = file.attrs.get("format"), file.attrs.get("format_version")
    if found != FORMAT:
        raise BadInputError(f"{path}: not a predictions file: its format is {found!r}, expected {FORMAT!r}")
    if int(version) != FORMAT_VERSION:
        raise BadInputError(f"{path}: format version {version}; this geo_mvmf reads version {FORMAT_VERSION}")


def _write_head(file: Any, components: Components, run: Mapping[str, Any], images: int, entries: int) -> None:
    file.attrs["Conventions"] = "CF-1.11"
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["kind"] = components.kind
    file.attrs["run"] = json.dumps(dict(run), sort_keys=True)
    size = len(components.mean_directions)
    file.dimensions = {"image": images, "image_bound": images + 1, "component": size, "xyz": 3, "entry": entries}
    shared = {
        "mean_directions": (("component", "xyz"), components.mean_directions.astype(np.float64)),
        "log_concentrations": (("component",), components.log_concentrations.astype(np.float64)),
        "training_counts": (("component",), components.training_counts.astype(np.int64)),
        "cell_ids": (("component",), components.cell_ids.astype(np.uint64)),
    }
    for name, (dimensions, data) in shared.items():
        file.create_variable(name, dimensions, data=data, compression="gzip", shuffle=True)
    packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if entries else {}
    file.create_variable("entry_component", ("entry",), np.uint32, **packed)
    file.create_variable("entry_log_weight", ("entry",), np.float32, **packed)
    file.create_variable("image_offset", ("image_bound",), np.int64)
    file.create_variable("residual", ("image",), np.float64)


def _write_entries(file: Any, pruned: Pruned, image: int, entry: int) -> None:
    n, size = pruned.residual.size, pruned.component.size
    if size:
        file["entry_component"][entry : entry + size] = pruned.component
        file["entry_log_weight"][entry : entry + size] = pruned.log_weight
    file["image_offset"][image : image + n + 1] = pruned.offsets + entry
    if n:
        file["residual"][image : image + n] = pruned.residual


def _write_rows(file: Any, rows: pd.DataFrame) -> None:
    group = file.create_group("rows")
    group.attrs["columns"] = json.dumps([str(name) for name in rows.columns])
    for number, name in enumerate(rows.columns):
        # Numbered variables: a column may have any name, a NetCDF variable may not.
        values, missing = _encoded(rows[name])
        variable = group.create_variable(f"column_{number}", ("image",), _dtype(values), data=values)
        variable.attrs["name"] = str(name)
        if missing is not None:
            group.create_variable(f"column_{number}{_MISSING}", ("image",), np.int8, data=missing)


def _dtype(values: npt.NDArray[Any]) -> Any:
    import h5py

    return h5py.string_dtype() if values.dtype.kind == "O" else values.dtype


def _encoded(column: pd.Series[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int8] | None]:
    missing = column.isna().to_numpy()
    if pd.api.types.is_bool_dtype(column) and not missing.any():
        return column.to_numpy(bool).astype(np.int8), np.full(len(column), -1, dtype=np.int8)
    if pd.api.types.is_integer_dtype(column) and not missing.any():
        return column.to_numpy(np.int64), None
    if pd.api.types.is_float_dtype(column):
        return column.to_numpy(np.float64), None
    text = column.astype(object).where(~missing, "").astype(str).str.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return text.to_numpy(object), missing.astype(np.int8)


def _read_rows(file: Any) -> pd.DataFrame:
    group = file.groups["rows"]
    names, columns = json.loads(group.attrs["columns"]), {}
    for number, name in enumerate(names):
        values = group[f"column_{number}"][...]
        missing = group.variables.get(f"column_{number}{_MISSING}")
        columns[name] = _decoded(values, None if missing is None else missing[...])
    return pd.DataFrame(columns, index=pd.RangeIndex(file.dimensions["image"].size))


def _decoded(values: Any, missing: Any) -> Any:
    if values.dtype.kind != "O":
        return values if missing is None else values.astype(bool)
    text = np.array([v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values], dtype=object)
    text[np.asarray(missing, dtype=bool)] = None
    return pd.Series(text, dtype=object)


def _read_components(file: Any) -> Components:
    directions = file["mean_directions"][...].astype(np.float64)
    if directions.ndim != 2 or directions.shape[1] != 3 or not np.isfinite(directions).all():
        raise ValueError(f"mean_directions have shape {directions.shape} or are not finite")
    kind = str(file.attrs["kind"])
    if kind not in ("vmf", "cell"):
        raise ValueError(f"kind is {kind!r}, not 'vmf' or 'cell'")
    return Components(
        kind,
        directions,
        file["log_concentrations"][...].astype(np.float64),
        file["training_counts"][...].astype(np.int64),
        file["cell_ids"][...].astype(np.uint64),
    )
