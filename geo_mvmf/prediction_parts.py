"""Parts of a long prediction: some rows of an image table each -> their row contract and their mixing weights.

Reading, network, densities and writing overlap, over the borders of parts: while a batch is in the network, the next
images are read and the densities of the batch before are made, be it of the part before. No batch is of two parts, so
that a part is the same wherever and in whatever company it is made.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import itertools
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import prediction_densities
from geo_mvmf.begun_part import BegunPart, Image, PartRows, Pixels
from geo_mvmf.files import stores
from geo_mvmf.inputs import images, tables
from geo_mvmf.prediction_densities import DensityMaker
from geo_mvmf.prediction_rows import RowMaker
from geo_mvmf.prediction_weights import AllWeights, HeaviestWeights, Piece, Weights
from geo_mvmf.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from geo_mvmf.model.bundle import Bundle

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

AHEAD = 4
"""Images read ahead per thread, beyond the next batch."""

_SHARE = 8
"""Most images whose densities a thread summarises in one go: so long an interruption waits."""

WEIGHTS_BYTES = 256 << 20
"""Most bytes of mixing weights of all components, (N, C) in float32, that a pass through the network may give."""

HEAD_IMAGES = 128
"""Images that go through such an output layer together: it is read from memory once for all of them."""

_SLOW = ("median", "best_within")
"""Estimators that look for one image at a time, up to a second each: a share is one image."""


class _Work(NamedTuple):
    """Images whose rows are finished once their shares are; `is_awaited`: before anything else is begun."""

    begun: BegunPart
    images: IntArray
    shares: list[Future[Piece]]
    is_last: bool
    is_awaited: bool = False


@dataclasses.dataclass(eq=False)
class Predictor:
    """What is the same for all parts of a prediction.

    Parameters
    ----------
    bundle : Bundle
    table : GeoDataFrame
        The whole image table.
    estimator : str
        One of `estimates.ESTIMATORS`.
    batch_size, workers : int
        Images per pass through the network; threads that read images and summarise densities.
    radius_km : float, optional
        Of best_within.
    strict : bool
        Whether no part is begun behind one in which a row failed.

    Examples
    --------
    See `predicting.predict`.
    """

    bundle: Bundle
    table: geopandas.GeoDataFrame
    estimator: str
    batch_size: int
    workers: int
    radius_km: float | None = None
    strict: bool = False
    _is_warm: threading.Event = dataclasses.field(default_factory=threading.Event, init=False)
    _begun: dict[tuple[int, int], BegunPart] = dataclasses.field(default_factory=dict, init=False)

    def of(self, table: geopandas.GeoDataFrame, *, has_truth: bool) -> Predictor:
        """Predict other images likewise, with what was made of the bundle already.

        Parameters
        ----------
        table : GeoDataFrame
            Rows of an image table.
        has_truth : bool
            Whether their rows have the columns of the truth, which those of a table have all or none.

        Returns
        -------
        Predictor

        Examples
        --------
        See `distributed`.
        """
        other = copy.copy(self)
        shared = {"densities": self.densities, "_maker": self._maker.of(table)}
        vars(other).update(table=table, _begun={}, has_truth=has_truth, **shared)
        return other

    def part(self, start: int, stop: int) -> Generator[Progress, None, tuple[pd.DataFrame, stores.Pruned]]:
        """Predict the images of rows start..stop - 1.

        Parameters
        ----------
        start, stop : int

        Yields
        ------
        Progress
            Stage "predict", in images of these rows.

        Returns
        -------
        rows : DataFrame
            The row contract.
        pruned : Pruned
            The images' mixing weights.

        Examples
        --------
        See `predicting.predict`.
        """
        for event in self.parts([(start, stop)]):
            if isinstance(event, Progress):
                yield event
            else:
                found = event.rows, event.pruned
        return found

    def parts(self, spans: Sequence[tuple[int, int]]) -> Generator[Progress | PartRows, None, None]:
        """Predict several parts, one after another without a pause.

        Parameters
        ----------
        spans : sequence of (start, stop)
            Rows start..stop - 1 each.

        Yields
        ------
        Progress
            Stage "predict", in images of parts that were not given yet.
        PartRows
            In the order of the spans.

        Examples
        --------
        See `predicting.predict`.
        """
        self._begun.clear()
        done, total = 0, sum(stop - start for start, stop in spans)
        ahead = self.batch_size + AHEAD * self.workers  # the next batch is read while one is in the network
        stream = images.read_images(
            self._paths(spans), self.bundle.spec, workers=self.workers, ahead=ahead, inside=self._maker.inside
        )
        behind: collections.deque[_Work] = collections.deque()
        with contextlib.closing(stream), _ending_early(max(1, self.workers)) as threads:
            for work in itertools.chain(self._works(spans, stream, threads), [None]):
                if work is not None:  # the network has this one while the densities of the one before are made
                    behind.append(work)
                at_once = work is None or work.is_awaited
                while behind and (at_once or _busy(behind) > 1 or not behind[0].shares):
                    ready = behind.popleft()
                    begun = ready.begun
                    begun.pieces.extend(share.result() for share in ready.shares)
                    if ready.images.size:
                        done += ready.images.size
                        yield Progress("predict", done, total, failures=begun.failures(ready.images))
                    if ready.is_last:
                        del self._begun[begun.start, begun.stop]
                        done -= begun.stop - begun.start
                        yield begun.finished()

    def _paths(self, spans: Sequence[tuple[int, int]]) -> Iterator[Path]:
        """Images to read, when the reader wants them: so far ahead, no part has rows yet."""
        for start, stop in spans:
            frame = self.table.iloc[start:stop]
            paths = tables.absolute_paths(frame)
            yield from (paths[i] for i in np.flatnonzero(frame["status"] == "ok"))

    def _works(
        self, spans: Sequence[tuple[int, int]], stream: Iterator[Image], threads: ThreadPoolExecutor
    ) -> Iterator[_Work]:
        """Put all images through the network, batch by batch."""
        for span in spans:
            begun = self._begun[span] = self._rows_of(*span)
            failed, usable = begun.of_status(ok=False), begun.of_status(ok=True)
            if failed.size or not usable.size:  # what is missing is known before any image is read
                yield _Work(begun, failed, [], is_last=not usable.size)
            yield from self._passes(begun, usable, stream, threads)

    def _rows_of(self, start: int, stop: int) -> BegunPart:
        return BegunPart.of(self.table, start, stop, has_truth=self.has_truth)

    def _passes(
        self, begun: BegunPart, usable: IntArray, stream: Iterator[Image], threads: ThreadPoolExecutor
    ) -> Iterator[_Work]:
        """Put a part through the network, and through the output layer as many images at a time as suit it."""
        own: list[int] = []
        index: list[int] = []
        features: list[Tensor] = []
        for batch in _batches(usable, itertools.islice(stream, usable.size), self._images_at_once):
            own += [i for i, _ in batch]
            good = begun.readable(batch)
            index += [i for i, _ in good]
            is_last = own[-1] == usable[-1]
            if not self.densities.is_streamed:
                shares = self._predicted(begun, good, threads) if good else []
            else:
                features += [self._features(good)] if good else []
                if len(own) < HEAD_IMAGES and not is_last:
                    continue
                shares = self._weighed(begun, index, features, threads) if index else []
            is_awaited = is_last and self.strict and begun.of_status(ok=False).size > 0
            yield _Work(begun, np.array(own), shares, is_last, is_awaited)
            own, index, features = [], [], []

    def _predicted(
        self, begun: BegunPart, good: list[tuple[int, Pixels]], threads: ThreadPoolExecutor
    ) -> list[Future[Piece]]:
        """Predict one batch: the network here, then the densities in threads, which it does not wait for."""
        logs, features = self.bundle.predict(np.stack([pixels for _, pixels in good]))
        return self._summarised(begun, np.array([i for i, _ in good]), AllWeights(logs), features, threads)

    def _features(self, good: list[tuple[int, Pixels]]) -> Tensor:
        from geo_mvmf.model import bundle_weights  # of torch, which nothing else here needs

        return bundle_weights.features_of(self.bundle, np.stack([pixels for _, pixels in good]))

    def _weighed(
        self, begun: BegunPart, index: list[int], features: list[Tensor], threads: ThreadPoolExecutor
    ) -> list[Future[Piece]]:
        """Predict some batches together, of whose weights only the heaviest are ever there."""
        from geo_mvmf.model import bundle_weights

        found, joined = bundle_weights.heaviest_weights(self.bundle, features, stores.TAIL)
        return self._summarised(begun, np.array(index), HeaviestWeights(found), joined, threads)

    def _summarised(
        self,
        begun: BegunPart,
        index: IntArray,
        weights: Weights,
        features: npt.NDArray[np.float32],
        threads: ThreadPoolExecutor,
    ) -> list[Future[Piece]]:
        """Let threads make the rows of some images."""
        good = np.flatnonzero(weights.is_finite)
        begun.refuse(index[~weights.is_finite])

        def finish(chosen: IntArray) -> Piece:
            kept = weights.pruned(chosen)
            for some in self.densities.alike(kept):
                its = chosen[some]
                densities = self.densities.densities(weights, kept, its, some)
                self._maker.fill(begun.rows, index[its], densities, features[its], [begun.paths[i] for i in index[its]])
            return index[chosen], kept

        if not good.size:
            return []
        shares = np.array_split(good, max(min(self.workers, good.size), -(-good.size // self._images_of_a_share)))
        begun_shares = [threads.submit(finish, shares[0])]
        if not self._is_warm.is_set():
            wait(begun_shares)  # what all images share is made once
            self._is_warm.set()
        return begun_shares + [threads.submit(finish, chosen) for chosen in shares[1:]]

    @functools.cached_property
    def densities(self) -> DensityMaker:
        """Makes densities of mixing weights; it lasts as long as the bundle's components do."""
        return DensityMaker(self.bundle, self.estimator)

    @functools.cached_property
    def components(self) -> stores.Components:
        """The components that all images share."""
        return self.densities.shared

    @functools.cached_property
    def _maker(self) -> RowMaker:
        return RowMaker(self.bundle, self.table, self.estimator, self.radius_km)

    @property
    def _images_at_once(self) -> int:
        """Images of a pass through the network."""
        bytes_of_weights = 0 if self.densities.is_streamed else 4 * self.bundle.num_components
        return min(self.batch_size, _most(WEIGHTS_BYTES, bytes_of_weights))

    @property
    def _images_of_a_share(self) -> int:
        """Most images whose densities a thread makes in one go: an interruption waits for those begun."""
        within = _most(prediction_densities.DENSITY_BYTES, 8 * self.bundle.num_components)
        return 1 if self.estimator in _SLOW else min(_SHARE, within)

    def begun_spans(self) -> list[tuple[int, int]]:
        """Give the parts that were begun and not given: (start, stop) each.

        Examples
        --------
        See `prediction_folder.merge_unfinished`.
        """
        return list(self._begun)

    def left(self, start: int, stop: int) -> tuple[pd.DataFrame, stores.Pruned]:
        """Rows of a cancelled prediction: those that were not reached have status "cancelled".

        Parameters
        ----------
        start, stop : int
            A part that was begun, or rows of which none was.

        Returns
        -------
        rows, pruned
            As `part`.
        """
        begun = self._begun.get((start, stop)) or self._rows_of(start, stop)
        begun.cancel()
        found = begun.finished()
        return found.rows, found.pruned

    @functools.cached_property
    def has_truth(self) -> bool:
        """Whether the table knows the place of any image: then rows have the columns of the truth."""
        return bool(self.table["longitude"].notna().any())


def _busy(works: Iterable[_Work]) -> int:
    return sum(1 for work in works if work.shares)


def _most(budget: int, image_bytes: int) -> int:
    """Images that a budget of bytes is enough for."""
    return max(1, budget // max(image_bytes, 1))


@contextlib.contextmanager
def _ending_early(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that begin nothing any more once something goes wrong, or somebody interrupts."""
    with ThreadPoolExecutor(workers) as threads:
        try:
            yield threads
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _batches(usable: IntArray, stream: Iterator[Image], size: int) -> Iterator[list[tuple[int, Image]]]:
    numbered = zip(usable.tolist(), stream, strict=True)
    while batch := list(itertools.islice(numbered, size)):
        yield batch
