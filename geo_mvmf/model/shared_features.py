"""Features that one rank caches and all ranks read: the others wait, and map the same file."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geo_mvmf.errors import TrainingError
from geo_mvmf.model.features import FeatureCache
from geo_mvmf.model.ranks import PATIENCE, Ranks
from geo_mvmf.progress import Progress

_SIGN_OF_LIFE_SECONDS = PATIENCE.total_seconds() / 30.0

_Job = Generator[Progress, None, FeatureCache]
_BeforeUnlocking = Callable[[FeatureCache], None]


def features_of_rank_0(ranks: Ranks, start: Callable[[_BeforeUnlocking | None], _Job]) -> _Job:
    """Let rank 0 do a job of `cache_features`, and give all ranks what it cached.

    The cache stays locked until all have mapped its file: another job that adds to it removes that file.

    Parameters
    ----------
    ranks : Ranks
        All have to call it at the same time.
    start : callable
        Gives the job for a `before_unlocking`; called on rank 0 only.

    Yields
    ------
    Progress
        Of the job; nothing on other ranks.

    Returns
    -------
    FeatureCache
        Of the same rows, on all ranks.

    Raises
    ------
    TrainingError
        The file of rank 0 is not to be seen from here.

    Examples
    --------
    >>> def start(before_unlocking):
    ...     yield Progress("features", 1, 1)
    ...     return FeatureCache(np.zeros((1, 2)), np.zeros(1, dtype=np.int64), ["ok"], [""])
    >>> len(list(features_of_rank_0(Ranks(), start)))
    1
    """
    if ranks.size == 1:
        return (yield from start(None))
    if ranks.rank == 0:
        return (yield from _with_signs_of_life(ranks, start(lambda cache: _show(ranks, cache))))
    while (told := ranks.tell(None))["busy"]:
        pass
    return _seen(ranks, told)


def _with_signs_of_life(ranks: Ranks, job: _Job) -> _Job:
    """Tell those who wait, now and then, that the job goes on: their patience is finite."""
    told = time.monotonic()
    while True:
        try:
            event = next(job)
        except StopIteration as end:
            cache: FeatureCache = end.value
            return cache
        if time.monotonic() - told > _SIGN_OF_LIFE_SECONDS:
            told = time.monotonic()
            ranks.tell({"busy": True})
        yield event


def _show(ranks: Ranks, cache: FeatureCache) -> None:
    """Tell the others where the features are, and wait until they have mapped them."""
    path = cache.features.filename if isinstance(cache.features, np.memmap) else None
    bad = [(row, cache.status[row], cache.message[row]) for row in np.flatnonzero(cache.index < 0).tolist()]
    ranks.tell({
        "busy": False,
        "path": None if path is None else str(Path(path).absolute()),
        "shape": list(cache.features.shape),
        "rows": len(cache.index),
        "bad": bad,
    })  # fmt: skip
    ranks.deal(torch.from_numpy(cache.index), cache.index.shape, torch.int64, shared=False)
    _meet(ranks)


def _seen(ranks: Ranks, told: dict[str, Any]) -> FeatureCache:
    index = ranks.deal(None, (told["rows"],), torch.int64, shared=False).numpy()
    status, message = ["ok"] * told["rows"], [""] * told["rows"]
    for row, what, why in told["bad"]:
        status[row], message[row] = what, why
    shape = tuple(told["shape"])
    if told["path"] is None:
        _meet(ranks)
        return FeatureCache(np.zeros(shape, dtype=np.float32), index, status, message)
    try:
        features = np.load(told["path"], mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise _unseen(ranks, told["path"], str(error)) from error
    finally:
        _meet(ranks)
    if features.shape != shape:
        raise _unseen(ranks, told["path"], f"it has shape {features.shape} here and {shape} there")
    return FeatureCache(features, index, status, message)


def _meet(ranks: Ranks) -> None:
    ranks.integers([0], torch.device("cpu"))


def _unseen(ranks: Ranks, path: str, why: str) -> TrainingError:
    return TrainingError(
        f"rank {ranks.rank} of {ranks.size}: the features that rank 0 cached cannot be read here: {path}: {why}; give "
        "a cache_dir that all machines share"
    )
