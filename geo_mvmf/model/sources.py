"""Sources: what the network is fed with at each step - pixels from files or memory, or cached features."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain, pairwise, tee
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf.errors import ImageError
from geo_mvmf.inputs import images
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.model import idle_memory
from geo_mvmf.model.features import FeatureCache
from geo_mvmf.progress import Progress

Rows = npt.NDArray[np.int64]
_CPU = torch.device("cpu")
_GROUP_ROWS = 4096  # of features, read at a time: to ask a thread for something costs as much as to read twenty rows
_AHEAD = 2  # groups read while steps are done: reading is hidden as long as steps take longer than it


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Inputs of one step.

    Parameters
    ----------
    rows : array, shape (B,), int64
        Rows of the examples.
    inputs : Tensor
        Pixels (B, channels, H, W) uint8, or features (B, D) float32 or float16, as they are cached; on the device.
    readable : array, shape (B,), bool
        False where the image could not be read; its inputs are zeros.
    """

    rows: Rows
    inputs: Tensor
    readable: npt.NDArray[np.bool_]

    def parts(self, count: int) -> list[Batch]:
        """Divide the batch into parts of the same size, or of one row less.

        Parameters
        ----------
        count : int
            Of the parts; no more than there are rows, or some are empty.

        Examples
        --------
        >>> batch = Batch(np.arange(3), torch.zeros(3, 2), np.ones(3, dtype=np.bool_))
        >>> [part.rows.tolist() for part in batch.parts(2)]
        [[0, 1], [2]]
        """
        bounds = [-(-len(self.rows) * place // count) for place in range(count + 1)]
        slices = [slice(*pair) for pair in pairwise(bounds)]
        return [Batch(self.rows[part], self.inputs[part], self.readable[part]) for part in slices]


class Source(Protocol):
    """Whatever gives the inputs of batches of rows, in order."""

    def batches(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield the inputs of batches.

        Parameters
        ----------
        batches : iterable of array
            Rows of each batch; may be endless.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSource:
    """Cached features, read ahead of time by a thread, which draws the rows, too; that changes nothing.

    Parameters
    ----------
    cache : FeatureCache
        Of the rows of the examples.
    device : torch.device
    """

    cache: FeatureCache
    device: torch.device

    def batches(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield features, shape (B, D), as they are cached."""
        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            groups = _groups(batches)  # taken by the thread alone: an epoch's order is no small thing to draw
            coming = collections.deque(reader.submit(self._read_next, groups) for _ in range(_AHEAD))
            while group := coming.popleft().result():
                coming.append(reader.submit(self._read_next, groups))
                yield from group

    def _read_next(self, groups: Iterator[list[Rows]]) -> list[Batch]:
        """Read the next group; after the last one an empty one."""
        group = next(groups, None)
        return [] if group is None else self._read(group)

    def _read(self, group: Sequence[Rows]) -> list[Batch]:
        rows = np.concatenate(group)
        width, dtype = self.cache.features.shape[1], torch.from_numpy(np.empty(0, self.cache.features.dtype)).dtype
        # Memory that goes round: new pages cost this thread its time, giving them back the loop that drops the batches.
        stored = idle_memory.empty((len(rows), width), dtype, _CPU)
        self.cache.stored(rows, out=stored.numpy())
        parts = torch.split(stored.to(self.device), [len(each) for each in group])
        return [Batch(each, part, np.ones(len(each), dtype=np.bool_)) for each, part in zip(group, parts, strict=True)]


def _groups(batches: Iterable[Rows]) -> Iterator[list[Rows]]:
    """Batches in groups of about `_GROUP_ROWS` rows."""
    group: list[Rows] = []
    for rows in batches:
        group.append(rows)
        if len(group) * len(rows) >= _GROUP_ROWS:
            yield group
            group = []
    if group:
        yield group


@dataclasses.dataclass(frozen=True, eq=False)
class MemorySource:
    """Decoded images held in memory, on the device.

    Parameters
    ----------
    pixels : Tensor, shape (N, channels, H, W), uint8
    readable : array, shape (N,), bool
    """

    pixels: Tensor
    readable: npt.NDArray[np.bool_]

    def batches(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield pixels, shape (B, channels, H, W)."""
        for rows in batches:
            index = torch.from_numpy(rows).to(self.pixels.device)
            yield Batch(rows, self.pixels[index], self.readable[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Images decoded when they are needed, ahead of time by threads; their number changes nothing.

    Parameters
    ----------
    paths : sequence of Path
    spec : ImageSpec
    workers : int
    device : torch.device
    """

    paths: Sequence[Path]
    spec: ImageSpec
    workers: int
    device: torch.device

    def batches(self, batches: Iterable[Rows]) -> Iterator[Batch]:
        """Yield pixels, shape (B, channels, H, W)."""
        ahead, wanted = tee(batches)
        paths = (self.paths[row] for row in chain.from_iterable(rows.tolist() for rows in ahead))
        stream = images.read_images(paths, self.spec, workers=self.workers)
        for rows in wanted:
            pixels, readable = stack([next(stream) for _ in rows], self.spec)
            yield Batch(rows, torch.from_numpy(pixels).to(self.device), readable)


def stack(
    found: Sequence[npt.NDArray[np.uint8] | ImageError], spec: ImageSpec
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Stack images; those that could not be read become zeros.

    Parameters
    ----------
    found : sequence of array or ImageError
        As `read_images` yields them.
    spec : ImageSpec

    Returns
    -------
    pixels : array, shape (N, channels, crop, crop), uint8
    readable : array, shape (N,), bool

    Examples
    --------
    >>> spec = ImageSpec(resize=2, crop=2)
    >>> stack([ImageError("missing", "a.jpg: no such file")], spec)[1].tolist()
    [False]
    """
    pixels = np.zeros((len(found), spec.channels, spec.crop, spec.crop), dtype=np.uint8)
    readable = np.zeros(len(found), dtype=np.bool_)
    for row, image in enumerate(found):
        if not isinstance(image, ImageError):
            pixels[row], readable[row] = image, True
    return pixels, readable


def load_into_memory(
    paths: Sequence[Path], spec: ImageSpec, *, workers: int, device: torch.device
) -> Generator[Progress, None, MemorySource]:
    """Decode all images once.

    Parameters
    ----------
    paths : sequence of Path
    spec : ImageSpec
    workers : int
    device : torch.device
        Where they are kept.

    Yields
    ------
    Progress
        Stage "load".

    Returns
    -------
    MemorySource
    """
    pixels = np.zeros((len(paths), spec.channels, spec.crop, spec.crop), dtype=np.uint8)
    readable = np.zeros(len(paths), dtype=np.bool_)
    for row, image in enumerate(images.read_images(paths, spec, workers=workers)):
        if not isinstance(image, ImageError):
            pixels[row], readable[row] = image, True
        if row % 256 == 255 or row + 1 == len(paths):
            yield Progress("load", row + 1, len(paths))
    return MemorySource(torch.from_numpy(pixels).to(device), readable)
