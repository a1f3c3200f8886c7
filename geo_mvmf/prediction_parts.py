"""One part of a long prediction: some rows of an image table -> their row contract and their mixing weights."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import row_contract, s2, sphere
from geo_mvmf.errors import ImageError
from geo_mvmf.files import stores
from geo_mvmf.inputs import images, photos, tables
from geo_mvmf.maps import estimates, summaries
from geo_mvmf.predictions import mixture_of_components

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What is the same for all parts of a prediction.

    Parameters
    ----------
    bundle : Bundle
    table : GeoDataFrame
        The whole image table.
    estimator : {"component", "mode"}
    batch_size, workers : int
        Images per pass through the network, threads that read images.

    Examples
    --------
    See `predicting.predict`.
    """

    bundle: Bundle
    table: geopandas.GeoDataFrame
    estimator: str
    batch_size: int
    workers: int

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

    def part(self, start: int, stop: int) -> Generator[int, None, tuple[pd.DataFrame, stores.Pruned]]:
        """Predict the images of rows start..stop - 1.

        Parameters
        ----------
        start, stop : int

        Yields
        ------
        int
            Number of images finished since the last.

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
        rows, paths = row_contract.empty_rows(frame, has_truth=self._has_truth), tables.absolute_paths(frame)
        usable = np.flatnonzero(rows["status"] == "ok").tolist()
        weights = np.full((len(frame), self.bundle.num_components), np.nan, dtype=np.float32)
        stream = images.read_images([paths[i] for i in usable], self.bundle.spec, workers=self.workers)
        with contextlib.closing(stream):
            for batch in _batches(usable, stream, self.batch_size):
                good = [i for i, image in batch if not isinstance(image, ImageError)]
                for i, image in batch:
                    if isinstance(image, ImageError):
                        rows["status"][i], rows["message"][i] = image.status, str(image)
                if good:
                    pixels = np.stack([image for _, image in batch if not isinstance(image, ImageError)])
                    weights[good], features = self.bundle.predict(pixels)
                    self._fill(rows, np.array(good), weights[good], features, [paths[i] for i in good])
                yield len(batch)
        return pd.DataFrame(rows, index=pd.RangeIndex(len(frame))), stores.prune(weights)

    @functools.cached_property
    def _has_truth(self) -> bool:
        return bool(self.table["longitude"].notna().any())

    @functools.cached_property
    def _percentile(self) -> FloatArray:
        """Share of training images in cells no denser than each cell, per cent."""
        counts = self.bundle.training_counts.astype(np.float64)
        per_area = counts / s2.area_sr(self.bundle.cell_ids)
        order = np.argsort(per_area, kind="stable")
        percentile = np.empty(counts.size)
        percentile[order] = 100.0 * np.cumsum(counts[order]) / max(counts.sum(), 1.0)
        return percentile

    def _fill(
        self,
        rows: row_contract.Rows,
        good: IntArray,
        weights: npt.NDArray[np.float32],
        features: npt.NDArray[np.float32],
        paths: list[Path],
    ) -> None:
        mixture = mixture_of_components(self.components, weights.astype(np.float64))
        places = estimates.estimate(mixture, self.estimator)
        cell = self._cell_of(places)
        spread = np.maximum(np.asarray(self.bundle.feature_std, dtype=np.float64), 1e-6)
        offset = (features.astype(np.float64) - np.asarray(self.bundle.feature_mean)) / spread
        row_contract.fill(rows, good, summaries.summarise(mixture, places[:, 0], places[:, 1]))
        own = {
            "captured_at": np.array([_captured_at(path) for path in paths], dtype=object),
            "longitude": places[:, 0],
            "latitude": places[:, 1],
            "estimator": self.estimator,
            "in_training_area": np.where(self.bundle.training_counts[cell] > 0, "yes", "no"),
            "training_density_percentile": self._percentile[cell],
            "feature_distance": np.sqrt((offset * offset).mean(axis=1)),
        }
        row_contract.fill(rows, good, own)
        row_contract.judge(rows, good, mixture)

    def _cell_of(self, places: FloatArray) -> IntArray:
        leaves = s2.leaf_ids(sphere.to_directions(places[:, 0], places[:, 1]))
        return np.minimum(np.searchsorted(s2.range_max(self.bundle.cell_ids), leaves), self.bundle.num_components - 1)


def _captured_at(path: Path) -> str | None:
    try:
        return photos.read_metadata(path).captured_at
    except ImageError:
        return None


def _batches(
    usable: list[int], stream: Iterator[Any], size: int
) -> Iterator[list[tuple[int, npt.NDArray[np.uint8] | ImageError]]]:
    batch = []
    for i, image in zip(usable, stream, strict=True):
        batch.append((i, image))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
