"""Features computed once per image content, kept on disk, memory-mapped.

A cache folder holds one sub-folder per backbone and way of preparing images. There, rows of features are known
by the SHA-256 of the image file, so renamed, moved and duplicate images cost nothing. Shards are committed by
rename while the job runs and merged into one array at its end; a killed job goes on after its last shard, with
the very same batches, so a resumed cache is bit-identical on one CPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import torch

from geo_mvmf import durable
from geo_mvmf.errors import BadBundleError, BadInputError, ImageError, UsageError
from geo_mvmf.inputs import images, tables
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.inputs.regular_files import open_regular_file
from geo_mvmf.model import sealed
from geo_mvmf.model.backbones import Backbone
from geo_mvmf.progress import Progress

SHARD_ROWS = 4096
_DIGEST_BYTES = 32
_DTYPES = ("float16", "float32")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureCache:
    """Features of the rows of a table.

    Parameters
    ----------
    features : memory-mapped array, shape (M, D), float16 or float32
        Features of every image content in the cache, in the order of computation.
    index : array, shape (N,), int64
        Row of `features` for every row of the table; -1 where there is none.
    status, message : list of str, length N
        The table's, with what reading the images found.

    Examples
    --------
    >>> cache = FeatureCache(np.eye(2, dtype=np.float16), np.array([1, -1]), ["ok", "missing"], ["", "no file"])
    >>> cache.rows(np.array([0])).tolist()
    [[0.0, 1.0]]
    """

    features: npt.NDArray[np.floating]
    index: npt.NDArray[np.int64]
    status: list[str]
    message: list[str]

    def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the features of rows of the table.

        Parameters
        ----------
        rows : array, shape (B,), int64

        Returns
        -------
        array, shape (B, D), float32

        Raises
        ------
        BadInputError
            If a row has no features.
        """
        where = self.index[rows]
        if (where < 0).any():
            row = int(rows[int(np.argmax(where < 0))])
            raise BadInputError(f"row {row} has no features: {self.status[row]}: {self.message[row]}")
        return np.asarray(self.features[where], dtype=np.float32)


def backbone_digest(backbone: Backbone) -> str:
    """SHA-256 of what a backbone is and of its weights.

    Parameters
    ----------
    backbone : Backbone

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> from geo_mvmf.model.backbones import build_backbone
    >>> a, b = build_backbone("chip_resnet10", width=8), build_backbone("chip_resnet10", width=8, seed=1)
    >>> backbone_digest(a) == backbone_digest(b)
    False
    """
    hasher = hashlib.sha256(json.dumps(dataclasses.asdict(backbone.config), sort_keys=True).encode())
    for name, tensor in sorted(backbone.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        hasher.update(f"{name} {array.dtype.str} {array.shape}".encode())
        hasher.update(array.reshape(-1).data.cast("B"))
    return hasher.hexdigest()


def cache_features(
    backbone: Backbone,
    table: gpd.GeoDataFrame,
    cache_dir: str | os.PathLike[str],
    *,
    spec: ImageSpec,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    workers: int = 4,
    dtype: str = "float16",
) -> Generator[Progress, None, FeatureCache]:
    """Compute the features of a table's images that the cache does not hold yet.

    Parameters
    ----------
    backbone : Backbone
        Used in evaluation mode.
    table : GeoDataFrame
        As `read_image_table` returns it; rows whose status is not ok are left out.
    cache_dir : path
        Made when missing. One process at a time.
    spec : ImageSpec
        How images are prepared.
    batch_size : int
        Every batch has this size (the last is filled up with zeros), so that results do not depend on it twice.
    device : str or torch.device
    workers : int
        Threads that read images.
    dtype : str
        "float16" or "float32".

    Yields
    ------
    Progress
        Stage "features".

    Returns
    -------
    FeatureCache

    Raises
    ------
    LockedError
        If another process fills the same cache.
    BadInputError
        If features do not fit into float16, or are not finite.
    UsageError
        If an option is out of range.

    Examples
    --------
    >>> list(cache_features(None, None, "cache", spec=None, dtype="int8"))
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: features dtype 'int8' and batch size 64: float16 or float32, and 1 or more, needed
    """
    if dtype not in _DTYPES or batch_size < 1:
        raise UsageError(
            f"features dtype {dtype!r} and batch size {batch_size}: float16 or float32, and 1 or more, needed"
        )
    folder = _folder(backbone, cache_dir, spec, dtype)
    paths = tables.absolute_paths(table)
    status, message = list(table["status"]), list(table["message"])
    with durable.lock(folder):
        durable.sweep(folder)
        digests = yield from _digests(paths, status, message, workers)
        store = _Store(folder, backbone.num_features, dtype)
        wanted = _wanted(digests, paths, store.known())
        compute = _Computer(backbone, torch.device(device), spec, batch_size, workers)
        yield from _fill(store, compute, wanted)
        features, known = store.merge()
    index = np.array([known.get(digest, -1) for digest in digests], dtype=np.int64)
    _explain(index, paths, spec, status, message)
    return FeatureCache(features, index, status, message)


def _folder(backbone: Backbone, cache_dir: str | os.PathLike[str], spec: ImageSpec, dtype: str) -> Path:
    key = json.dumps([backbone_digest(backbone), spec.to_dict(), dtype], sort_keys=True)
    return Path(cache_dir) / hashlib.sha256(key.encode()).hexdigest()[:24]


def _digests(
    paths: Sequence[Path], status: list[str], message: list[str], workers: int
) -> Generator[Progress, None, list[bytes]]:
    """SHA-256 of every usable file; empty where there is none."""
    digests: list[bytes] = [b""] * len(paths)
    usable = [row for row in range(len(paths)) if status[row] == "ok"]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for begin in range(0, len(usable), 1024):
            part = usable[begin : begin + 1024]
            for row, found in zip(part, pool.map(_file_digest, [paths[row] for row in part]), strict=True):
                if isinstance(found, ImageError):
                    status[row], message[row] = found.status, str(found)
                else:
                    digests[row] = found
            yield Progress("features", 0, len(usable), "looking at files")
    return digests


def _file_digest(path: Path) -> bytes | ImageError:
    try:
        with open_regular_file(path) as file:
            return _sha256(file)
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError("unreadable", f"{path.name}: cannot be read: {error.strerror or error}")


def _sha256(file: BinaryIO) -> bytes:
    hasher = hashlib.sha256()
    while part := file.read(2**20):
        hasher.update(part)
    return hasher.digest()


def _wanted(digests: Sequence[bytes], paths: Sequence[Path], known: set[bytes]) -> dict[bytes, Path]:
    wanted: dict[bytes, Path] = {}
    for digest, path in zip(digests, paths, strict=True):
        if digest and digest not in known:
            wanted.setdefault(digest, path)
    return wanted


class _Computer:
    """Computes the features of files, in batches of one fixed size."""

    def __init__(
        self, backbone: Backbone, device: torch.device, spec: ImageSpec, batch_size: int, workers: int
    ) -> None:
        self.backbone = backbone.to(device).eval()
        self.device, self.spec, self.batch_size, self.workers = device, spec, batch_size, workers

    def batches(self, paths: Sequence[Path]) -> Iterator[npt.NDArray[np.float32]]:
        """Yield (n, D) arrays; rows of images that cannot be read are NaN."""
        stream = images.read_images(paths, self.spec, workers=self.workers)
        while found := list(islice(stream, self.batch_size)):
            yield self._features(found)

    def _features(self, found: Sequence[npt.NDArray[np.uint8] | ImageError]) -> npt.NDArray[np.float32]:
        crop = self.spec.crop
        pixels = np.zeros((self.batch_size, self.spec.channels, crop, crop), np.uint8)
        failed = [isinstance(image, ImageError) for image in found]
        for row, image in enumerate(found):
            if not isinstance(image, ImageError):
                pixels[row] = image
        with torch.inference_mode():
            features = self.backbone(torch.from_numpy(pixels).to(self.device)).float().cpu().numpy()
        rows: npt.NDArray[np.float32] = features[: len(found)]
        if not np.isfinite(rows).all():
            raise BadInputError(f"backbone {self.backbone.name} made features that are not finite: bad weights")
        rows[failed] = np.nan
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class _Shard:
    path: Path
    digests: npt.NDArray[Any]  # (n, 32) uint8
    failed: npt.NDArray[Any]  # (n,) bool


class _Store:
    """The files of one cache sub-folder: merged arrays `features-N.npy`, `digests-N.npy`, and newer shards."""

    def __init__(self, folder: Path, num_features: int, dtype: str) -> None:
        self.folder, self.num_features, self.dtype = folder, num_features, np.dtype(dtype)
        self.digests = self._merged_digests()
        # Digests and failures only: the features of a shard are read again when it is merged.
        self.shards = [self._shard(path) for path in sorted(folder.glob("shard-*.safetensors"))]

    def known(self) -> set[bytes]:
        """Digests that need no computing, also those of images that could not be read before a kill."""
        return set(_split(self.digests)).union(*(_split(shard.digests) for shard in self.shards))

    def append(self, digests: Sequence[bytes], features: npt.NDArray[np.float32]) -> None:
        """Commit one shard."""
        failed = np.asarray(np.isnan(features).any(axis=1))
        with np.errstate(over="ignore"):
            stored = np.where(failed[:, None], 0, features).astype(self.dtype)
        if not np.isfinite(stored).all():
            raise BadInputError(f"features up to {np.nanmax(features):.3g} do not fit into float16; use float32")
        arrays = {"digests": _join(digests), "failed": failed.astype(np.uint8), "features": stored}
        path = self.folder / f"shard-{len(self.shards):06d}.safetensors"
        sealed.write_sealed(path, arrays, {"format": "geo_mvmf features"})
        self.shards.append(_Shard(path, arrays["digests"], failed))

    def merge(self) -> tuple[npt.NDArray[np.floating], dict[bytes, int]]:
        """Merge the shards into the array, and map the whole; the digests are written last, as the commit."""
        fresh = [shard.digests[~shard.failed] for shard in self.shards]
        digests = np.concatenate([self.digests, *fresh])
        if len(digests) > len(self.digests):
            self._write_merged(digests)
            self.digests = digests
        self._remove_stale()
        self.shards = []
        positions = {digest: row for row, digest in enumerate(_split(digests))}
        return self._merged_features(), positions

    def _write_merged(self, digests: npt.NDArray[np.uint8]) -> None:
        count, old = len(digests), self._merged_features()
        with durable.replacing(self._path("features", count), overwrite=True) as temporary:
            shape = (count, self.num_features)
            merged = np.lib.format.open_memmap(temporary, mode="w+", dtype=self.dtype, shape=shape)
            position = len(old)
            for begin in range(0, position, SHARD_ROWS):
                merged[begin : begin + SHARD_ROWS] = old[begin : begin + SHARD_ROWS]
            for shard in self.shards:
                rows = _read_shard(shard.path)["features"][~shard.failed]
                merged[position : position + len(rows)] = rows
                position += len(rows)
            merged.flush()
        with durable.replacing(self._path("digests", count), overwrite=True) as temporary:
            np.save(temporary, digests, allow_pickle=False)

    def _path(self, kind: str, count: int) -> Path:
        return self.folder / f"{kind}-{count:012d}.npy"

    def _merged_digests(self) -> npt.NDArray[np.uint8]:
        for path in sorted(self.folder.glob("digests-*.npy"), reverse=True):
            if path.with_name(path.name.replace("digests", "features")).is_file():
                digests: npt.NDArray[np.uint8] = np.load(path, allow_pickle=False)
                return digests
        return np.zeros((0, _DIGEST_BYTES), np.uint8)

    def _merged_features(self) -> npt.NDArray[np.floating]:
        if len(self.digests) == 0:
            return np.zeros((0, self.num_features), self.dtype)
        path = self._path("features", len(self.digests))
        features: npt.NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
        if features.shape != (len(self.digests), self.num_features):
            raise BadInputError(f"{path}: has shape {features.shape}; delete the folder to compute it again")
        return features

    def _shard(self, path: Path) -> _Shard:
        arrays = _read_shard(path)
        return _Shard(path, arrays["digests"], arrays["failed"].astype(np.bool_))

    def _remove_stale(self) -> None:
        current = {self._path(kind, len(self.digests)) for kind in ("features", "digests")}
        stale = set(self.folder.glob("*-*.npy")) - current
        for path in [*sorted(stale), *(shard.path for shard in self.shards)]:
            path.unlink()


def _read_shard(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        return sealed.read_sealed(path)[1]
    except BadBundleError as error:
        raise BadInputError(f"feature cache: {error}; delete {path} to compute it again") from error


def _fill(store: _Store, compute: _Computer, wanted: dict[bytes, Path]) -> Generator[Progress, None, None]:
    digests, done = list(wanted), 0
    # Shards end where batches end, so that a resumed job cuts the same batches.
    rows_per_shard = max(1, SHARD_ROWS // compute.batch_size) * compute.batch_size
    pending: list[npt.NDArray[np.float32]] = []
    for batch in compute.batches(list(wanted.values())):
        pending.append(batch)
        rows = sum(map(len, pending))
        if rows >= rows_per_shard or done + rows == len(digests):
            store.append(digests[done : done + rows], np.concatenate(pending))
            done, pending, rows = done + rows, [], 0
        yield Progress("features", done + rows, len(digests))


def _explain(
    index: npt.NDArray[np.int64], paths: Sequence[Path], spec: ImageSpec, status: list[str], message: list[str]
) -> None:
    """Say why rows that looked good have no features, by reading these few images again."""
    for row in np.flatnonzero(index < 0).tolist():
        if status[row] != "ok":
            continue
        try:
            images.read_image(paths[row], spec)
        except ImageError as error:
            status[row], message[row] = error.status, str(error)
        else:
            status[row], message[row] = "failed", f"{paths[row].name}: could not be read a moment ago; run again"


def _split(digests: npt.NDArray[np.uint8]) -> list[bytes]:
    return [row.tobytes() for row in digests]


def _join(digests: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)
