"""Predictions: one row per image and its density, on disk until asked for; made into maps without torch."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import density_files, durable, fusing, point_layer, progress
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.files import stores, vector
from geo_mvmf.maps import density
from geo_mvmf.maps.combining import MASS_ERROR
from geo_mvmf.maps.zones import ZoneProbabilities, Zones
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.region_job import regions_job
from geo_mvmf.stored_mixtures import album_of_rows, mixture_of_rows, rows_named, training_prior
from geo_mvmf.temporary_folder import TemporaryFolder

if TYPE_CHECKING:
    import xarray as xr

    from geo_mvmf.maps.albums import Album
    from geo_mvmf.maps.frames import Frame
    from geo_mvmf.maps.grid import Grid

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Predictions:
    """Predicted densities of a table of images, on disk until asked for.

    Parameters
    ----------
    store : StoredPredictions
        The opened predictions file.
    holder : object
        Keeps a temporary folder alive where the file has no name yet.

    Examples
    --------
    >>> open_predictions("album.nc").to_geodataframe().explore("radius_90_km")  # doctest: +SKIP
    """

    store: stores.StoredPredictions
    holder: object = None

    def __len__(self) -> int:
        return len(self.store.rows)

    def __repr__(self) -> str:
        return f"Predictions({int(self.is_predicted.sum())} of {len(self)} images predicted, {self.store.path})"

    @property
    def rows(self) -> pd.DataFrame:
        """The row contract without geometry, one row per image."""
        return self.store.rows

    @property
    def run(self) -> dict[str, Any]:
        """What made the predictions: bundle, digests, versions, options."""
        return self.store.run

    @property
    def is_predicted(self) -> npt.NDArray[np.bool_]:
        """Which images have a prediction, (n,)."""
        return self.store.is_predicted

    @functools.cached_property
    def mixture(self) -> VmfMixture | CellMixture:
        """Densities of all images that have one, in row order."""
        return self.mixture_of(np.flatnonzero(self.is_predicted))

    def mixture_of(self, rows: npt.ArrayLike) -> VmfMixture | CellMixture:
        """Densities of some images.

        Parameters
        ----------
        rows : array_like of int, (k,)
            Row numbers of images that have a prediction.

        Returns
        -------
        VmfMixture or CellMixture
            Of k images.

        Raises
        ------
        BadInputError
            If an image has no prediction.
        """
        return mixture_of_rows(self.store, rows)

    @property
    def training_prior(self) -> VmfMixture | CellMixture:
        """Density of an image that says nothing, one image: what `geo_mvmf.fuse` takes as prior."""
        return training_prior(self.store)

    def fuse(
        self,
        by: str = "all",
        *,
        area: Any = None,
        prior: str | os.PathLike[str] | None = None,
        prior_mode: str = "replace",
        independence: float = 1.0,
        max_mass_error: float = MASS_ERROR,
        out: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
    ) -> Predictions:
        """Fuse images known to be of one place; areas and prior rasters are further evidence (docs/evidence.md).

        Parameters
        ----------
        by, area, prior, prior_mode, independence, max_mass_error
            As `fusing.Options`.
        out, overwrite
            Predictions file to write, and whether it may exist; by default one that goes away with the result.

        Returns
        -------
        Predictions
            One row per place, its density on S2 cells.

        Raises
        ------
        UsageError, BadInputError, OutputError
            As `fusing.fuse_job`.
        """
        options = fusing.Options(by, area, prior, prior_mode, independence, max_mass_error)
        holder = TemporaryFolder() if out is None else None
        path = holder.path / "fused.nc" if holder else Path(out or "")
        return Predictions(progress.run(fusing.fuse_job(self.store, path, options, overwrite=overwrite)), holder)

    def restrict(self, area: Any, *, out: str | os.PathLike[str] | None = None, overwrite: bool = False) -> Predictions:
        """Restrict every image to an area of interest: `fuse` with every image for itself.

        Parameters
        ----------
        area : path or GeoDataFrame
            Polygons in any CRS, or a raster mask.
        out, overwrite
            As `fuse`; an image with less than 1e-9 of its probability in the area has status "failed", which says so.
        """
        return self.fuse("image_id", area=area, out=out, overwrite=overwrite)

    def to_geodataframe(self) -> geopandas.GeoDataFrame:
        """Points of the row contract.

        Returns
        -------
        GeoDataFrame
            EPSG:4326; an image without prediction has no geometry, and says why in status and message.
        """
        return point_layer.with_points(self.rows)

    def credible_regions(
        self, levels: Sequence[float] = (0.5, 0.9), *, image_ids: Sequence[str] | None = None, workers: int = 1
    ) -> geopandas.GeoDataFrame:
        """Smallest regions that hold given probabilities.

        Parameters
        ----------
        levels : sequence of float
            Probabilities, greater than 0 and less than 1.
        image_ids : sequence of str, optional
            Default: all.
        workers : int
            Processes for large albums; a script that asks for several guards its own lines with
            ``if __name__ == "__main__":``, as `multiprocessing` wants it.

        Returns
        -------
        GeoDataFrame
            image_id, level, probability, area_km2, n_parts, MultiPolygon in EPSG:4326.

        Raises
        ------
        BadInputError
            If an image_id is unknown or has no prediction.
        UsageError
            If a level is not between 0 and 1, or there is not at least one worker.
        """
        return progress.run(regions_job(self.store, self._rows_of(image_ids), levels, workers=workers))

    def zones(self, polygons: Any, *, name_column: str | None = None) -> ZoneProbabilities:
        """Probability of every polygon of a layer for every image that has a prediction (docs/zones.md).

        Parameters
        ----------
        polygons, name_column
            As `zone_probabilities`; or Zones that were read.

        Returns
        -------
        ZoneProbabilities
            `.tidy()`, `.top(3)`, `.columns(3)` and `.expected()` make tables of it.

        Raises
        ------
        UsageError, BadInputError
        """
        ids, rows = self.rows["image_id"].to_numpy(object), self._rows_of(None)
        layer = Zones.read(polygons, name_column=name_column)
        return layer.of_all((self.mixture_of(block), list(ids[block])) for block in _blocks(rows))

    def density(
        self,
        grid: Grid | Frame | Literal["auto"],
        image_id: str | None = None,
        *,
        combine: Literal["mean"] | None = None,
        by: str | None = None,
        bandwidth_km: float | None = None,
    ) -> xr.DataArray:
        """Density rasters: each raster cell holds the mean density over it, so that mass is kept.

        Parameters
        ----------
        grid : Grid, Frame or "auto"
            A Frame: the window that shows most of the probability, of one image or of the album's map; "auto": 99 %.
        image_id : str, optional
            One image; default all that have a prediction.
        combine : {None, "mean"}
            "mean": one raster, the album's map; with `by`, a column, one for each of its values.
        bandwidth_km : float, optional
            Standard deviation of a kernel that smooths; nothing is smoothed without it.

        Returns
        -------
        DataArray
            (image, latitude|y, longitude|x), named density_per_km2.

        Raises
        ------
        BadInputError
            If the image or the column is unknown, or the image has no prediction.
        """
        return self._raster(grid, image_id, combine, by, bandwidth_km)[0]

    def write_density(
        self,
        path: str | os.PathLike[str],
        grid: Grid | Frame | Literal["auto"],
        image_id: str | None = None,
        *,
        combine: Literal["mean"] | None = None,
        by: str | None = None,
        bandwidth_km: float | None = None,
        overwrite: bool = False,
    ) -> xr.DataArray:
        """Write density rasters: .nc, or .tif with a second one of credible levels, both styled for QGIS.

        Parameters
        ----------
        path : path
            Ends in .nc, .tif or .tiff; the raster of levels is called <name>_level.tif.
        grid, image_id, combine, by, bandwidth_km
            As `density`. A GeoTIFF holds one image, or the mean of all.
        overwrite : bool
            Whether existing files may be replaced.

        Returns
        -------
        DataArray
            What was written, as `density` gives it.

        Raises
        ------
        UsageError, BadInputError, OutputError
            If the suffix is another, or a GeoTIFF would have to hold several images; as `density`, or no image has a
            prediction; if a file exists or cannot be written.
        """
        if image_id is None and not self.is_predicted.any():
            raise BadInputError(f"{self.store.path}: none of its {len(self)} images has a prediction to make a map of")
        several = bool(image_id is None and (by or not combine) and self.is_predicted.sum() > 1)
        density_files.check_files(Path(path), several=several, overwrite=overwrite)
        raster, album = self._raster(grid, image_id, combine, by, bandwidth_km)
        return density_files.write(Path(path), raster, album, self.run, overwrite=overwrite)

    def sample(self, n: int, *, seed: int = 0) -> geopandas.GeoDataFrame:
        """Draw possible places of each image.

        Parameters
        ----------
        n : int
            Per image.
        seed : int

        Returns
        -------
        GeoDataFrame
            image_id and a point in EPSG:4326, n rows per image that has a prediction.
        """
        chosen = self._rows_of(None)
        mixtures = (self.mixture_of(block) for block in _blocks(chosen))
        return point_layer.samples(mixtures, self.rows["image_id"].to_numpy(object)[chosen], n, seed=seed)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Save everything, so that `open_predictions` gives it back.

        Parameters
        ----------
        path : path
            Ends in .nc.
        overwrite : bool
            Whether an existing file may be replaced.

        Raises
        ------
        UsageError
            If the suffix is not .nc.
        OutputError
            If the file exists or cannot be written.
        """
        if Path(path).suffix.lower() != ".nc":
            raise UsageError(f"{path}: a predictions file ends in .nc; for layers use write()")
        if Path(path).exists() and Path(path).samefile(self.store.path):
            return
        with durable.replacing(path, overwrite=overwrite) as temporary:
            shutil.copyfile(self.store.path, temporary)

    def write(
        self, path: str | os.PathLike[str], *, levels: Sequence[float] | None = None, overwrite: bool = False
    ) -> None:
        """Write what the suffix says: .nc all, .gpkg / .parquet / .geojson / .csv the points as a layer.

        Parameters
        ----------
        path : path
        levels : sequence of float, optional
            Also write the credible regions of these levels (a second layer or file).
        overwrite : bool
            Whether existing files may be replaced.

        Raises
        ------
        UsageError
            If the suffix is unknown.
        OutputError
            If a file exists or cannot be written.
        """
        if Path(path).suffix.lower() == ".nc":
            self.save(path, overwrite=overwrite)
            return
        vector.check_suffix(path)
        progress.run(point_layer.write_job(self.store, path, levels, overwrite=overwrite))

    def _raster(
        self,
        grid: Grid | Frame | Literal["auto"],
        image_id: str | None,
        combine: Literal["mean"] | None,
        by: str | None,
        bandwidth_km: float | None,
    ) -> tuple[xr.DataArray, Album | CellMixture]:
        """Density rasters, and what they are made of."""
        chosen = self._rows_of(None if image_id is None else [image_id])
        ids, labels = (density_files.column(self.store, name, chosen) for name in ("image_id", by))
        album = album_of_rows(self.store, chosen, owner=self)
        made = density.density_raster(album, grid, image_ids=ids, combine=combine, by=labels, bandwidth_km=bandwidth_km)
        return made, album

    def _rows_of(self, image_ids: Sequence[str] | None) -> IntArray:
        return rows_named(self.store, image_ids)


def open_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Open a predictions file; neither torch nor the images are needed.

    Parameters
    ----------
    path : path
        Ends in .nc.

    Raises
    ------
    BadInputError
        If the file is missing, foreign, of another version or damaged.

    Examples
    --------
    >>> predictions = open_predictions("album/predictions.nc")  # doctest: +SKIP
    """
    return Predictions(stores.open_store(path))


def _blocks(rows: IntArray) -> list[IntArray]:
    return [rows[start : start + 64] for start in range(0, rows.size, 64)]
