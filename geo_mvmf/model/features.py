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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import torch

from geo_mvmf import durable, folder_lock
from geo_mvmf.errors import BadInputError, ImageError, UsageError
from geo_mvmf.inputs import images, tables
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.inputs.regular_files import open_regular_file
from geo_mvmf.model.backbones import Backbone
from geo_mvmf.model.devices import choose_device
from geo_mvmf.model.feature_store import SHARD_ROWS, FeatureStore
from geo_mvmf.progress import Progress

_DTYPES = ("float16", "float32")
_Stamp = tuple[int, int]  # size and time of a file
_NO_STAMP: _Stamp = (0, 0)


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
        return np.asarray(self.stored(rows), dtype=np.float32)

    def stored(
        self, rows: npt.NDArray[np.int64], out: npt.NDArray[np.floating] | None = None
    ) -> npt.NDArray[np.floating]:
        """Return the features of rows of the table as they are kept: half the bytes, and no time for widening them.

        Parameters
        ----------
        rows : array, shape (B,), int64
        out : array, shape (B, D), of the same type, optional
            Where they are written to.

        Returns
        -------
        array, shape (B, D), float16 or float32
            A copy, or `out`.

        Raises
        ------
        BadInputError
            If a row has no features.

        Examples
        --------
        >>> FeatureCache(np.eye(2, dtype=np.float16), np.array([1]), ["ok"], [""]).stored(np.array([0])).dtype
        dtype('float16')
        """
        where = self.index[rows]
        if (where < 0).any():
            row = int(rows[int(np.argmax(where < 0))])
            raise BadInputError(f"row {row} has no features: {self.status[row]}: {self.message[row]}")
        # "clip" changes no row, and spares a copy: with "raise" numpy writes beside `out` first
        return np.take(np.asarray(self.features), where, axis=0, out=out, mode="clip")


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
    hasher = hashlib.sha256(json.dumps(backbone.config.to_dict(), sort_keys=True).encode())
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
    paths: Sequence[Path] | None = None,
    before_unlocking: Callable[[FeatureCache], None] | None = None,
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
        As `choose_device`.
    workers : int
        Threads that read images.
    dtype : str
        "float16" or "float32".
    paths : sequence of Path, optional
        Absolute paths of the rows; by default those of the table.
    before_unlocking : callable, optional
        Is given the result before another process may add to the cache, which removes the file it is mapped from.

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
    paths = tables.absolute_paths(table) if paths is None else paths
    status, message = list(table["status"]), list(table["message"])
    with folder_lock.holding(folder):
        durable.sweep(folder, held=True)
        store = yield from FeatureStore.opened(folder, backbone.num_features, dtype)
        digests, stamps = yield from _digests(paths, status, message, workers)
        wanted = _wanted(digests, zip(paths, stamps, strict=True), store.known())
        compute = _Computer(backbone, choose_device(str(device)), spec, batch_size, workers)
        yield from _fill(store, compute, wanted)
        features, known = yield from store.merge()
        index = np.array([known.get(digest, -1) for digest in digests], dtype=np.int64)
        _explain(index, paths, spec, status, message)
        cache = FeatureCache(features, index, status, message)
        if before_unlocking is not None:
            before_unlocking(cache)
    return cache


def _folder(backbone: Backbone, cache_dir: str | os.PathLike[str], spec: ImageSpec, dtype: str) -> Path:
    key = json.dumps([backbone_digest(backbone), spec.to_dict(), dtype], sort_keys=True)
    return Path(cache_dir) / hashlib.sha256(key.encode()).hexdigest()[:24]


def _digests(
    paths: Sequence[Path], status: list[str], message: list[str], workers: int
) -> Generator[Progress, None, tuple[list[bytes], list[_Stamp]]]:
    """SHA-256 and stamp of every usable file; empty where there is none."""
    digests, stamps = [b""] * len(paths), [_NO_STAMP] * len(paths)
    usable = [row for row in range(len(paths)) if status[row] == "ok"]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for begin in range(0, len(usable), 1024):
            part = usable[begin : begin + 1024]
            for row, found in zip(part, pool.map(_file_digest, [paths[row] for row in part]), strict=True):
                if isinstance(found, ImageError):
                    status[row], message[row] = found.status, str(found)
                else:
                    digests[row], stamps[row] = found
            yield Progress("features", 0, len(usable), "looking at files")
    return digests, stamps


def _file_digest(path: Path) -> tuple[bytes, _Stamp] | ImageError:
    try:
        with open_regular_file(path) as file:
            return _sha256(file), _stamp(os.fstat(file.fileno()))
    except ImageError as error:
        return error
    except OSError as error:
        return ImageError("unreadable", f"{path.name}: cannot be read: {error.strerror or error}")


def _sha256(file: BinaryIO) -> bytes:
    hasher = hashlib.sha256()
    while part := file.read(2**20):
        hasher.update(part)
    return hasher.digest()


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_size, found.st_mtime_ns


def _changed(path: Path, stamp: _Stamp) -> bool:
    try:
        return _stamp(path.stat()) != stamp
    except OSError:
        return True


def _wanted(
    digests: Sequence[bytes], files: Iterable[tuple[Path, _Stamp]], known: set[bytes]
) -> dict[bytes, tuple[Path, _Stamp]]:
    wanted: dict[bytes, tuple[Path, _Stamp]] = {}
    for digest, file in zip(digests, files, strict=True):
        if digest and digest not in known:
            wanted.setdefault(digest, file)
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


def _fill(
    store: FeatureStore, compute: _Computer, wanted: dict[bytes, tuple[Path, _Stamp]]
) -> Generator[Progress, None, None]:
    digests, files, done = list(wanted), iter(wanted.values()), 0
    # Shards end where batches end, so that a resumed job cuts the same batches.
    rows_per_shard = max(1, SHARD_ROWS // compute.batch_size) * compute.batch_size
    pending: list[npt.NDArray[np.float32]] = []
    for batch in compute.batches([path for path, _ in wanted.values()]):
        # what was read is not what was hashed: it must not be kept under that name
        batch[[_changed(*file) for file in islice(files, len(batch))]] = np.nan
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
            status[row], message[row] = (
                "failed",
                f"{paths[row].name}: could not be read a moment ago, or changed; run again",
            )
