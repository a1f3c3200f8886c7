"""What is said of predicted images: places, summaries, distances, judgements of truth and claims."""

from __future__ import annotations

import copy
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas
import numpy as np
import numpy.typing as npt

from geo_mvmf import row_contract, s2, sphere
from geo_mvmf.errors import ImageError
from geo_mvmf.inputs import images, photos, tables
from geo_mvmf.maps import estimates, summaries
from geo_mvmf.prediction_densities import Densities

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(eq=False)
class RowMaker:
    """Fills the row contract of predicted images, in any thread.

    Parameters
    ----------
    bundle : Bundle
    table : GeoDataFrame
        The image table.
    estimator : str
        One of `estimates.ESTIMATORS`.
    radius_km : float, optional
        Of best_within.

    Examples
    --------
    See `prediction_parts.Predictor`.
    """

    bundle: Bundle
    table: geopandas.GeoDataFrame
    estimator: str
    radius_km: float | None = None

    def of(self, table: geopandas.GeoDataFrame) -> RowMaker:
        """Make rows of other images likewise, with what was made of the bundle already.

        Parameters
        ----------
        table : GeoDataFrame

        Returns
        -------
        RowMaker

        Examples
        --------
        See `prediction_parts.Predictor.of`.
        """
        other = copy.copy(self)
        shared = {"_spread": self._spread, "_percentile": self._percentile, "_last_leaves": self._last_leaves}
        vars(other).pop("inside", None)
        vars(other).update(table=table, **shared)
        return other

    def fill(
        self,
        rows: row_contract.Rows,
        good: IntArray,
        densities: Densities,
        features: npt.NDArray[np.float32],
        paths: list[Path],
    ) -> None:
        """Fill the rows of some images.

        Parameters
        ----------
        rows : dict of str to ndarray
            Changed in place.
        good : ndarray of int64, (k,)
            Numbers of the images' rows.
        densities : Densities
            Theirs.
        features : ndarray of float32, (k, D)
        paths : list of path, length k

        Examples
        --------
        See `prediction_parts.Predictor`.
        """
        few = densities.few
        mixture = densities.whole() if few is None else few
        known = mixture if densities.is_few_enough or few is None else densities.whole()
        places = estimates.estimate(known, self.estimator, self.radius_km)
        cell = self._cell_of(places)
        nodes = summaries.nodes_of(mixture, is_trimmed=few is not None)
        row_contract.fill(rows, good, summaries.summarise(mixture, places[:, 0], places[:, 1], nodes=nodes))
        offset = (features.astype(np.float64) - np.asarray(self.bundle.feature_mean)) / self._spread
        more = {
            "captured_at": np.array([_captured_at(path, self.inside) for path in paths], dtype=object),
            "longitude": places[:, 0],
            "latitude": places[:, 1],
            "estimator": self.estimator,
            "in_training_area": np.where(self.bundle.training_area.counts[cell] > 0, "yes", "no"),
            "training_density_percentile": self._percentile[cell],
            "feature_distance": np.sqrt((offset * offset).mean(axis=1)),
        }
        row_contract.fill(rows, good, more)
        if self.table.attrs.get("claimed_from") == "raster":
            row_contract.fill(rows, good, self._claims_of(paths))
        if any(name in rows for name in (row_contract.TRUTH[0], row_contract.CLAIM[0])):
            # a place may lie where no component is that is kept
            row_contract.judge(rows, good, mixture if few is None else densities.whole(), nodes=nodes)

    @functools.cached_property
    def inside(self) -> list[Path]:
        """Folders that images have to lie in."""
        return tables.permitted_folders(self.table)

    def _claims_of(self, paths: list[Path]) -> dict[str, FloatArray]:
        """Where georeferenced rasters say they lie; read only now, when everything has been predicted."""
        spec, nowhere = self.bundle.spec, (np.nan, np.nan)
        found = [images.claimed_position(path, spec, inside=self.inside) or nowhere for path in paths]
        return dict(zip(row_contract.CLAIM[:2], np.array(found, dtype=np.float64).T, strict=True))

    def _cell_of(self, places: FloatArray) -> IntArray:
        leaves = s2.leaf_ids(sphere.to_directions(places[:, 0], places[:, 1]))
        return np.minimum(np.searchsorted(self._last_leaves, leaves), len(self._last_leaves) - 1)

    @functools.cached_property
    def _last_leaves(self) -> npt.NDArray[np.uint64]:
        return s2.range_max(self.bundle.training_area.cell_ids)

    @functools.cached_property
    def _spread(self) -> FloatArray:
        return np.maximum(np.asarray(self.bundle.feature_std, dtype=np.float64), 1e-6)

    @functools.cached_property
    def _percentile(self) -> FloatArray:
        """Share of training images in cells no denser than each cell, per cent."""
        counts = self.bundle.training_area.counts.astype(np.float64)
        per_area = counts / s2.area_sr(self.bundle.training_area.cell_ids)
        order = np.argsort(per_area)
        ascending = per_area[order]
        last_as_dense = np.searchsorted(ascending, ascending, side="right") - 1  # equally dense cells count, too
        share = np.empty_like(counts)
        share[order] = np.cumsum(counts[order])[last_as_dense] / max(counts.sum(), 1.0)
        return np.asarray(100.0 * share)


def _captured_at(path: Path, inside: list[Path]) -> str | None:
    try:
        return photos.read_metadata(path, inside=inside).captured_at
    except ImageError:
        return None
