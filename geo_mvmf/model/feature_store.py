"""FeatureStore: the files of a feature cache. A commit is one rename, so after a kill the cache can go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf import durable
from geo_mvmf.errors import BadBundleError, BadInputError
from geo_mvmf.model import sealed

SHARD_ROWS = 4096
_DIGEST_BYTES = 32
_DELETE = "delete the folder to compute it again"


@dataclasses.dataclass(frozen=True, eq=False)
class _Shard:
    path: Path
    digests: npt.NDArray[Any]  # (n, 32) uint8
    failed: npt.NDArray[Any]  # (n,) bool


class FeatureStore:
    """The files of one cache sub-folder: merged arrays `features-N.npy`, `digests-N.npy`, and newer shards.

    Opening it compares the features with `features-N.sha256` (which caches of before lack): a damaged one would train
    models without a word, and takes a small part of the time in which the images themselves are looked at.

    Parameters
    ----------
    folder : path
        Locked by the caller.
    num_features : int
    dtype : str
        "float16" or "float32".

    Raises
    ------
    BadInputError
        If a file of the cache is damaged.

    Examples
    --------
    >>> import tempfile
    >>> store = FeatureStore(Path(tempfile.mkdtemp()), 2, "float32")
    >>> store.append([b"a" * 32, b"b" * 32], np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32))
    >>> features, rows = store.merge()
    >>> features.tolist(), rows == {b"a" * 32: 0}
    ([[1.0, 2.0]], True)
    """

    def __init__(self, folder: Path, num_features: int, dtype: str) -> None:
        self.folder, self.num_features, self.dtype = folder, num_features, np.dtype(dtype)
        self.digests = self._merged_digests()
        self._check_merged()
        # Digests and failures only: the features of a shard are read again when it is merged.
        self.shards = [self._shard(path) for path in sorted(folder.glob("shard-*.safetensors"))]

    def known(self) -> set[bytes]:
        """Digests that need no computing, also those of images that could not be read before a kill."""
        return set(_split(self.digests)).union(*(_split(shard.digests) for shard in self.shards))

    def append(self, digests: Sequence[bytes], features: npt.NDArray[np.float32]) -> None:
        """Commit one shard.

        Parameters
        ----------
        digests : sequence of bytes
            SHA-256 of each image file.
        features : array, shape (n, D), float32
            NaN where an image could not be read.

        Raises
        ------
        BadInputError
            If a value does not fit into the dtype.
        """
        failed = np.asarray(np.isnan(features).any(axis=1))
        with np.errstate(over="ignore"):
            stored = np.where(failed[:, None], 0, features).astype(self.dtype)
        if not np.isfinite(stored).all():
            largest = np.nanmax(np.abs(features))
            raise BadInputError(f"features of up to {largest:.3g} do not fit into float16; use float32")
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
                block = old[begin : begin + SHARD_ROWS]
                merged[begin : begin + len(block)] = block
            for shard in self.shards:
                rows = _read_shard(shard.path)["features"][~shard.failed]
                merged[position : position + len(rows)] = rows
                position += len(rows)
            merged.flush()
        path = self._path("features", count)
        line = f"{durable.file_sha256(path)}  {path.name}\n"  # as sha256sum -c reads it
        durable.write_text(path.with_suffix(".sha256"), line, overwrite=True)
        with durable.replacing(self._path("digests", count), overwrite=True) as temporary:
            np.save(temporary, digests, allow_pickle=False)

    def _check_merged(self) -> None:
        path = self._path("features", len(self.digests))
        said = path.with_suffix(".sha256")
        if said.exists() and said.read_bytes()[:64] != durable.file_sha256(path).encode():
            raise BadInputError(f"{path}: damaged: its SHA-256 is not that of {said.name}; {_DELETE}")

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
            raise BadInputError(f"{path}: has shape {features.shape}; {_DELETE}")
        return features

    def _shard(self, path: Path) -> _Shard:
        arrays = _read_shard(path)
        return _Shard(path, arrays["digests"], arrays["failed"].astype(np.bool_))

    def _remove_stale(self) -> None:
        current = {self._path(kind, len(self.digests)) for kind in ("features", "digests")}
        current.add(self._path("features", len(self.digests)).with_suffix(".sha256"))
        stale = {path for kind in ("*-*.npy", "*-*.sha256") for path in self.folder.glob(kind)} - current
        for path in [*sorted(stale), *(shard.path for shard in self.shards)]:
            path.unlink()


def _read_shard(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        return sealed.read_sealed(path)[1]
    except BadBundleError as error:
        raise BadInputError(f"feature cache: {error}; delete {path} to compute it again") from error


def _split(digests: npt.NDArray[np.uint8]) -> list[bytes]:
    return [row.tobytes() for row in digests]


def _join(digests: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)
