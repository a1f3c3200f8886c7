"""Credible regions of an album, block after block, with progress, and with several processes where that is asked for.

The work is made of many short steps of Python, so threads would wait for each other; processes read the predictions
file themselves and end with their parent, however that ends.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf.errors import UsageError
from geo_mvmf.files import stores
from geo_mvmf.maps import regions
from geo_mvmf.parent_watch import leave_with_parent
from geo_mvmf.progress import Progress
from geo_mvmf.stored_mixtures import mixture_of_rows

IntArray = npt.NDArray[np.int64]

_IMAGES_AT_ONCE = 8  # an interruption waits for so many, and a process gets so many
WORTH_PROCESSES = 32
"""Images from which the start of processes, a second or two, is made up for."""


def regions_job(
    store: stores.StoredPredictions, rows: IntArray, levels: Sequence[float], *, workers: int = 1
) -> Generator[Progress, None, geopandas.GeoDataFrame]:
    """Find the smallest regions that hold given probabilities, as a job that yields its progress.

    Parameters
    ----------
    store : StoredPredictions
    rows : ndarray of int64, (k,)
        Row numbers of images that have a prediction.
    levels : sequence of float
        Probabilities, greater than 0 and less than 1.
    workers : int
        Processes; of few images one does it all.

    Yields
    ------
    Progress
        Stage "regions", in images.

    Returns
    -------
    GeoDataFrame
        As `maps.regions.credible_regions` gives it, of all images in order.

    Raises
    ------
    UsageError
        If a level is not between 0 and 1, there is not at least one worker, or a process was ended from outside.
    BadInputError
        If what is stored is damaged.

    Examples
    --------
    See `Predictions.credible_regions`.
    """
    if workers < 1:
        raise UsageError(f"workers is {workers}; it must be at least 1")
    levels = regions.checked_levels(levels)
    blocks = [rows[start : start + _IMAGES_AT_ONCE] for start in range(0, rows.size, _IMAGES_AT_ONCE)]
    found = [regions.credible_regions(mixture_of_rows(store, rows[:0]), levels)] if not blocks else []
    done = 0
    for layer in _layers(store, blocks, levels, workers if rows.size >= WORTH_PROCESSES else 1):
        found.append(layer)
        done += blocks[len(found) - 1].size
        yield Progress("regions", done, rows.size)
    return geopandas.GeoDataFrame(pd.concat(found, ignore_index=True), crs="EPSG:4326")


def _layers(
    store: stores.StoredPredictions, blocks: list[IntArray], levels: Sequence[float], workers: int
) -> Iterator[geopandas.GeoDataFrame]:
    if workers == 1:
        for block in blocks:
            yield _layer(store, block, levels)
        return
    spawn = multiprocessing.get_context("spawn")  # a copy of this process might hold locks of threads it has not
    pool = ProcessPoolExecutor(workers, spawn, initializer=leave_with_parent)
    own: list[Any] = []
    try:
        path = str(store.path.resolve())
        waiting: list[Future[Any]] = [pool.submit(_layer_of_file, path, block, tuple(levels)) for block in blocks]
        own = list((getattr(pool, "_processes", None) or {}).values())  # Python 3.14 has terminate_workers for it
        for future in waiting:
            yield future.result()
        pool.shutdown()
        own = []
    except BrokenProcessPool as error:
        raise UsageError(
            f"{store.path}: one of {workers} processes was ended from outside, probably for want of memory; ask for "
            "1 worker, or close other programs"
        ) from error
    finally:  # interrupted: nobody waits for what was begun
        pool.shutdown(wait=False, cancel_futures=True)
        for child in own:
            child.terminate()


def _layer(store: stores.StoredPredictions, block: IntArray, levels: Sequence[float]) -> geopandas.GeoDataFrame:
    names = store.rows["image_id"].to_numpy(object)[block]
    return regions.credible_regions(mixture_of_rows(store, block), levels, image_ids=list(names))


def _layer_of_file(path: str, block: IntArray, levels: tuple[float, ...]) -> geopandas.GeoDataFrame:
    return _layer(_store(path), block, levels)


@functools.lru_cache(maxsize=1)
def _store(path: str) -> stores.StoredPredictions:
    return stores.open_store(Path(path))
