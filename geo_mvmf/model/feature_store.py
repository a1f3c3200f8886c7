"""FeatureStore: the files of a feature cache. A commit is one rename, so after a kill the cache can go on."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geo_mvmf import durable
from geo_mvmf.errors import BadBundleError, BadInputError
from geo_mvmf.model import sealed
from geo_mvmf.progress import Progress

SHARD_ROWS = 4096
_DIGEST_BYTES = 32
_HASHED_BYTES = 2**24  # at a time
_CHECKING = Progress("features", 0, 0, "checking the cache")
_DELETE = "delete the folder to compute it again"


@dataclasses.dataclass(frozen=True, eq=False)
class _Shard:
    path: Path
    digests: npt.NDArray[Any]  # (n, 32) uint8
    failed: npt.NDArray[Any]  # (n,) bool


class FeatureStore:
    """The files of one cache sub-folder: merged arrays `features-N.npy`, `digests-N.npy`, and newer shards.

    Made by `opened`. That and `merge` read every byte, so they yield `Progress` for each block: who waits for them sees
    signs of life.

    Examples
    --------
    >>> import tempfile
    >>> from geo_mvmf import progress
    >>> store = progress.run(FeatureStore.opened(Path(tempfile.mkdtemp()), 2, "float32"))
    >>> store.append([b"a" * 32, b"b" * 32], np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32))
    >>> features, rows = progress.run(store.merge())
    >>> features.tolist(), rows == {b"a" * 32: 0}
    ([[1.0, 2.0]], True)
    """

    def __init__(
        self, folder: Path, num_features: int, dtype: str, digests: npt.NDArray[np.uint8], shards: list[_Shard]
    ) -> None:
        self.folder, self.num_features, self.dtype = folder, num_features, np.dtype(dtype)
        self.digests, self.shards = digests, shards

    @classmethod
    def opened(cls, folder: Path, num_features: int, dtype: str) -> Generator[Progress, None, FeatureStore]:
        """Open a cache sub-folder, after a look at every byte of it.

        The features are compared with `features-N.sha256` (which caches of before lack): damaged ones would train
        models without a word, and it takes a small part of the time in which the images themselves are looked at.

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
        """
        digests = _merged_digests(folder)
        yield from _check(_path(folder, "features", len(digests)))
        shards = []
        for path in sorted(folder.glob("shard-*.safetensors")):
            # Digests and failures only: the features of a shard are read again when it is merged.
            arrays = _read_shard(path)
            shards.append(_Shard(path, arrays["digests"], arrays["failed"].astype(np.bool_)))
            yield _CHECKING
        return cls(folder, num_features, dtype, digests, shards)

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

    def merge(self) -> Generator[Progress, None, tuple[npt.NDArray[np.floating], dict[bytes, int]]]:
        """Merge the shards into the array, and map the whole; the digests are written last, as the commit."""
        fresh = [shard.digests[~shard.failed] for shard in self.shards]
        digests = np.concatenate([self.digests, *fresh])
        if len(digests) > len(self.digests):
            yield from self._write_merged(digests)
            self.digests = digests
        self._remove_stale()
        self.shards = []
        positions = {digest: row for row, digest in enumerate(_split(digests))}
        return self._merged_features(), positions

    def _write_merged(self, digests: npt.NDArray[np.uint8]) -> Generator[Progress, None, None]:
        count, old = len(digests), self._merged_features()
        with durable.replacing(_path(self.folder, "features", count), overwrite=True) as temporary:
            shape = (count, self.num_features)
            merged = np.lib.format.open_memmap(temporary, mode="w+", dtype=self.dtype, shape=shape)
            position = 0
            for rows in self._blocks(old):
                merged[position : position + len(rows)] = rows
                merged.flush()  # each by itself: all at the end would be one long silence
                position += len(rows)
                yield Progress("features", position, count, "merging the cache")
            del merged  # Windows renames no file that is mapped
        path = _path(self.folder, "features", count)
        digest = yield from _sha256(path)
        line = f"{digest}  {path.name}\n"  # as sha256sum -c reads it
        durable.write_text(path.with_suffix(".sha256"), line, overwrite=True)
        with durable.replacing(_path(self.folder, "digests", count), overwrite=True) as temporary:
            np.save(temporary, digests, allow_pickle=False)

    def _blocks(self, old: npt.NDArray[np.floating]) -> Iterator[npt.NDArray[np.floating]]:
        """Rows of the merged array: those of before, and those of the shards."""
        for begin in range(0, len(old), SHARD_ROWS):
            yield old[begin : begin + SHARD_ROWS]
        for shard in self.shards:
            yield _read_shard(shard.path)["features"][~shard.failed]

    def _merged_features(self) -> npt.NDArray[np.floating]:
        if len(self.digests) == 0:
            return np.zeros((0, self.num_features), self.dtype)
        path = _path(self.folder, "features", len(self.digests))
        features: npt.NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
        if features.shape != (len(self.digests), self.num_features):
            raise BadInputError(f"{path}: has shape {features.shape}; {_DELETE}")
        return features

    def _remove_stale(self) -> None:
        current = {_path(self.folder, kind, len(self.digests)) for kind in ("features", "digests")}
        current.add(_path(self.folder, "features", len(self.digests)).with_suffix(".sha256"))
        stale = {path for kind in ("*-*.npy", "*-*.sha256") for path in self.folder.glob(kind)} - current
        for path in [*sorted(stale), *(shard.path for shard in self.shards)]:
            with contextlib.suppress(PermissionError):  # mapped on Windows: the next merge takes it away
                path.unlink()


def _path(folder: Path, kind: str, count: int) -> Path:
    return folder / f"{kind}-{count:012d}.npy"


def _merged_digests(folder: Path) -> npt.NDArray[np.uint8]:
    for path in sorted(folder.glob("digests-*.npy"), reverse=True):
        if path.with_name(path.name.replace("digests", "features")).is_file():
            digests: npt.NDArray[np.uint8] = np.load(path, allow_pickle=False)
            return digests
    return np.zeros((0, _DIGEST_BYTES), np.uint8)


def _check(features: Path) -> Generator[Progress, None, None]:
    said = features.with_suffix(".sha256")
    if said.exists() and said.read_bytes()[:64] != (yield from _sha256(features)).encode():
        raise BadInputError(f"{features}: damaged: its SHA-256 is not that of {said.name}; {_DELETE}")


def _read_shard(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        return sealed.read_sealed(path)[1]
    except BadBundleError as error:
        raise BadInputError(f"feature cache: {error}; delete {path} to compute it again") from error


def _sha256(path: Path) -> Generator[Progress, None, str]:
    """SHA-256 of a file that takes minutes to read."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASHED_BYTES):
            hasher.update(block)
            yield _CHECKING
    return hasher.hexdigest()


def _split(digests: npt.NDArray[np.uint8]) -> list[bytes]:
    return [row.tobytes() for row in digests]


def _join(digests: Sequence[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)
