"""One part of a long prediction: some rows of an image table -> their row contract and their mixing weights."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import row_contract, s2, sphere
from geo_mvmf.errors import ImageError
from geo_mvmf.files import stores
from geo_mvmf.inputs import images, photos, tables
from geo_mvmf.maps import estimates, summaries
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.progress import Failure, Progress

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Image = Pixels | ImageError
_Piece = tuple[IntArray, stores.Pruned]  # numbers of some images within their part, and their mixing weights

AHEAD = 4
"""Images read ahead per thread, beyond the next batch."""

_SHARE = 8
"""Most images whose densities a thread summarises in one go: so long an interruption waits."""

WEIGHTS_BYTES = 256 << 20
"""Most bytes of mixing weights of all components, (N, C) in float32, that a pass through the network may give."""

_DENSITY_BYTES = 64 << 20  # the same of the float64 weights that a thread summarises in one go
_MANY_COMPONENTS = 4096
"""From so many components on, images that keep few of them are summarised over those alone."""

_SLOW = ("median", "best_within")
"""Estimators that look for one image at a time, up to a second each: a share is one image."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Begun:
    """The part being predicted: rows that fill up, and the mixing weights of the images that are finished."""

    start: int
    stop: int
    rows: row_contract.Rows
    pieces: list[_Piece]


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
    _is_warm: bool = dataclasses.field(default=False, init=False)
    _begun: _Begun | None = dataclasses.field(default=None, init=False)

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
        vars(other).pop("_inside", None)
        vars(other).update(table=table, _begun=None, has_truth=has_truth)
        return other

    @functools.cached_property
    def components(self) -> stores.Components:
        """The components that all images share."""
        bundle = self.bundle
        if hasattr(bundle.head, "mean_directions"):
            kind, directions, concentrations = "vmf", bundle.mean_directions, bundle.log_concentrations
        else:
            kind, directions = "cell", s2.centre(bundle.cell_ids)
            concentrations = np.full(len(directions), np.nan)
        return stores.Components(kind, directions, concentrations, bundle.training_counts, bundle.cell_ids)

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
        frame = self.table.iloc[start:stop]
        rows, paths = row_contract.empty_rows(frame, has_truth=self.has_truth), tables.absolute_paths(frame)
        usable = np.flatnonzero(rows["status"] == "ok")
        pieces: list[_Piece] = []
        self._begun = _Begun(start, stop, rows, pieces)
        done, total = len(frame) - usable.size, len(frame)
        if usable.size < len(frame):  # what is missing is known before any image is read
            yield Progress("predict", done, total, failures=_failures(rows, np.flatnonzero(rows["status"] != "ok")))
        ahead = self.batch_size + AHEAD * self.workers  # the next batch is read while one is in the network
        chosen = [paths[i] for i in usable]
        stream = images.read_images(chosen, self.bundle.spec, workers=self.workers, ahead=ahead, inside=self._inside)
        behind: collections.deque[tuple[list[tuple[int, Image]], list[Future[_Piece]]]] = collections.deque()
        with contextlib.closing(stream), _ending_early(max(1, self.workers)) as threads:
            at_once = min(self.batch_size, _most(WEIGHTS_BYTES, 4 * self.bundle.num_components))
            for batch in itertools.chain(_batches(usable, stream, at_once), [[]]):
                if batch:  # the network has this one while the densities of the one before are made
                    good = _without_failed(rows, batch)
                    behind.append((batch, self._predicted(rows, good, paths, threads) if good else []))
                while behind and (len(behind) > 1 or not batch):
                    ready, shares = behind.popleft()
                    pieces.extend(share.result() for share in shares)
                    done += len(ready)
                    own = np.array([i for i, _ in ready])
                    yield Progress("predict", done, total, failures=_failures(rows, own[rows["status"][own] != "ok"]))
        return pd.DataFrame(rows, index=pd.RangeIndex(len(frame))), _assembled(pieces, len(frame))

    def _predicted(
        self, rows: row_contract.Rows, good: list[tuple[int, Pixels]], paths: list[Path], threads: ThreadPoolExecutor
    ) -> list[Future[_Piece]]:
        """Predict one batch: the network here, then the densities in threads, which it does not wait for."""
        index = np.array([i for i, _ in good])
        weights, features = self.bundle.predict(np.stack([pixels for _, pixels in good]))
        finite = _finite(rows, index, weights)
        if not finite.all():
            index, weights, features = index[finite], weights[finite], features[finite]

        def finish(chosen: IntArray) -> _Piece:
            kept = stores.prune(weights[chosen[0] : chosen[-1] + 1], is_softmax=True)
            is_few = self._keep_few(kept)
            for some in (np.flatnonzero(is_few), np.flatnonzero(~is_few)):
                if some.size:
                    its = chosen[some]
                    few = self._of_kept(kept, some) if is_few[some[0]] else None
                    whole = functools.partial(self._mixture, weights, its)
                    self._fill(rows, index[its], few, whole, features[its], [paths[i] for i in index[its]])
            return index[chosen], kept

        if not index.size:
            return []
        # small shares: an interruption waits for those begun
        most = 1 if self.estimator in _SLOW else min(_SHARE, _most(_DENSITY_BYTES, 8 * self.bundle.num_components))
        shares = np.array_split(np.arange(index.size), max(min(self.workers, index.size), -(-index.size // most)))
        begun = [threads.submit(finish, shares[0])]
        if not self._is_warm:
            wait(begun)  # what all images share is made once
            self._is_warm = True
        return begun + [threads.submit(finish, chosen) for chosen in shares[1:]]

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
        begun = self._begun
        if begun is None or (begun.start, begun.stop) != (start, stop):
            begun = _Begun(
                start, stop, row_contract.empty_rows(self.table.iloc[start:stop], has_truth=self.has_truth), []
            )
        is_left = begun.rows["status"] == "ok"
        for index, _ in begun.pieces:
            is_left[index] = False
        row_contract.cancel(begun.rows, np.flatnonzero(is_left))
        return pd.DataFrame(begun.rows, index=pd.RangeIndex(stop - start)), _assembled(begun.pieces, stop - start)

    @functools.cached_property
    def _no_images(self) -> VmfMixture | None:
        """The components, checked once; None where a bundle has S2 cells in their place."""
        shared = self.components
        if shared.kind != "vmf":
            return None
        nothing = np.empty((0, self.bundle.num_components))
        checked = VmfMixture(shared.mean_directions, shared.log_concentrations, nothing)
        for array in (checked.mean_directions, checked.log_concentrations):
            array.setflags(write=False)  # so that what is made of them once is found without reading them
        return checked

    def _mixture(self, weights: npt.NDArray[np.float32], images: IntArray) -> VmfMixture | CellMixture:
        """Densities of some images, of all components."""
        shared, own = self._no_images, weights[images]
        return self.bundle.mixture(own) if shared is None else shared.with_mixing_weights(own)

    def _of_kept(self, kept: stores.Pruned, images: IntArray) -> VmfMixture:
        """Densities of some images, of those components alone that each of them keeps."""
        entries = [slice(kept.offsets[i], kept.offsets[i + 1]) for i in images]
        few = np.unique(np.concatenate([kept.component[own] for own in entries]))
        logs = np.full((images.size, few.size), -np.inf)
        for row, own in zip(logs, entries, strict=True):
            row[np.searchsorted(few, kept.component[own])] = kept.log_weight[own]
        return VmfMixture(self.components.mean_directions[few], self.components.log_concentrations[few], logs)

    def _keep_few(self, kept: stores.Pruned) -> npt.NDArray[np.bool_]:
        """Tell which images are summarised over their own components, and not over nodes that all images share."""
        counts = np.diff(kept.offsets)
        if self.bundle.num_components < _MANY_COMPONENTS or self._no_images is None:
            return np.zeros(counts.shape, dtype=np.bool_)
        return np.asarray(counts <= summaries.MANY)

    @functools.cached_property
    def _inside(self) -> list[Path]:
        return tables.permitted_folders(self.table)

    @functools.cached_property
    def has_truth(self) -> bool:
        """Whether the table knows the place of any image: then rows have the columns of the truth."""
        return bool(self.table["longitude"].notna().any())

    @functools.cached_property
    def _percentile(self) -> FloatArray:
        """Share of training images in cells no denser than each cell, per cent."""
        counts = self.bundle.training_counts.astype(np.float64)
        per_area = counts / s2.area_sr(self.bundle.cell_ids)
        order = np.argsort(per_area)
        no_denser = np.searchsorted(per_area[order], per_area, side="right")  # cells that are equally dense count too
        share = np.concatenate([[0.0], np.cumsum(counts[order])])[no_denser] / max(counts.sum(), 1.0)
        return np.asarray(100.0 * share)

    def _fill(
        self,
        rows: row_contract.Rows,
        good: IntArray,
        few: VmfMixture | None,
        whole: Callable[[], VmfMixture | CellMixture],
        features: npt.NDArray[np.float32],
        paths: list[Path],
    ) -> None:
        mixture = whole() if few is None else few
        is_few = few is not None and self.estimator == "component"  # others begin with tables of all components
        places = estimates.estimate(mixture if is_few or few is None else whole(), self.estimator, self.radius_km)
        cell = self._cell_of(places)
        spread = np.maximum(np.asarray(self.bundle.feature_std, dtype=np.float64), 1e-6)
        offset = (features.astype(np.float64) - np.asarray(self.bundle.feature_mean)) / spread
        nodes = summaries.nodes_of(mixture, is_trimmed=few is not None)
        row_contract.fill(rows, good, summaries.summarise(mixture, places[:, 0], places[:, 1], nodes=nodes))
        more = {
            "captured_at": np.array([_captured_at(path, self._inside) for path in paths], dtype=object),
            "longitude": places[:, 0],
            "latitude": places[:, 1],
            "estimator": self.estimator,
            "in_training_area": np.where(self.bundle.training_counts[cell] > 0, "yes", "no"),
            "training_density_percentile": self._percentile[cell],
            "feature_distance": np.sqrt((offset * offset).mean(axis=1)),
        }
        row_contract.fill(rows, good, more)
        if self.table.attrs.get("claimed_from") == "raster":
            row_contract.fill(rows, good, self._claims_of(paths))
        if any(name in rows for name in (row_contract.TRUTH[0], row_contract.CLAIM[0])):
            # a place may lie where no component is that is kept
            row_contract.judge(rows, good, mixture if few is None else whole(), nodes=nodes)

    def _claims_of(self, paths: list[Path]) -> dict[str, FloatArray]:
        """Where georeferenced rasters say they lie; read only now, when everything has been predicted."""
        spec, nowhere = self.bundle.spec, (np.nan, np.nan)
        found = [images.claimed_position(path, spec, inside=self._inside) or nowhere for path in paths]
        return dict(zip(row_contract.CLAIM[:2], np.array(found, dtype=np.float64).T, strict=True))

    def _cell_of(self, places: FloatArray) -> IntArray:
        leaves = s2.leaf_ids(sphere.to_directions(places[:, 0], places[:, 1]))
        return np.minimum(np.searchsorted(self._last_leaves, leaves), self.bundle.num_components - 1)

    @functools.cached_property
    def _last_leaves(self) -> npt.NDArray[np.uint64]:
        return s2.range_max(self.bundle.cell_ids)


def _most(budget: int, image_bytes: int) -> int:
    """Images that a budget of bytes is enough for."""
    return max(1, budget // image_bytes)


def _failures(rows: row_contract.Rows, images: IntArray) -> tuple[Failure, ...]:
    return tuple(Failure(*(str(rows[name][i]) for name in ("path", "status", "message"))) for i in images)


def _finite(rows: row_contract.Rows, images: IntArray, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Tell which images have mixing weights at all; a network's NaN or infinity costs its own row and no other."""
    finite: npt.NDArray[np.bool_] = np.isfinite(weights.max(axis=1))  # of which one is NaN, that is the largest
    for i in images[~finite]:
        rows["status"][i] = "failed"
        rows["message"][i] = (
            f"{rows['path'][i]}: the network's output is not finite (NaN or infinity); try another device, such as "
            "cpu: where it stays so, the bundle does not suit this image"
        )
    return finite


def _captured_at(path: Path, inside: list[Path]) -> str | None:
    try:
        return photos.read_metadata(path, inside=inside).captured_at
    except ImageError:
        return None


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


def _without_failed(rows: row_contract.Rows, batch: list[tuple[int, Image]]) -> list[tuple[int, Pixels]]:
    """Images that could be read; the others get their status."""
    good = []
    for i, image in batch:
        if isinstance(image, ImageError):
            rows["status"][i], rows["message"][i] = image.status, str(image)
        else:
            good.append((i, image))
    return good


def _assembled(pieces: list[_Piece], size: int) -> stores.Pruned:
    """Weights of all images of a part, from those of images in ascending order; the others have none."""
    counts, residual = np.zeros(size, dtype=np.int64), np.full(size, np.nan)
    for index, pruned in pieces:
        counts[index], residual[index] = np.diff(pruned.offsets), pruned.residual
    return stores.Pruned(
        np.concatenate([np.empty(0, np.uint32), *(pruned.component for _, pruned in pieces)]),
        np.concatenate([np.empty(0, np.float32), *(pruned.log_weight for _, pruned in pieces)]),
        np.concatenate([[0], np.cumsum(counts)]),
        residual,
    )
