"""Image table and bundle -> Predictions: one row per image, in input order, with a status.

A long prediction writes numbered part files and merges them at the end, so a killed run goes on where it was and
memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import __version__, durable, progress, s2, sphere
from geo_mvmf.errors import ImageError, OutputError, RowsFailedError, UsageError
from geo_mvmf.files import stores
from geo_mvmf.inputs import images, photos, tables
from geo_mvmf.maps import estimates, summaries
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.predictions import Predictions, mixture_of_components
from geo_mvmf.progress import Progress

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

PART_ROWS = 256  # images per part file: what a kill can lose, and what is in memory at once
_VERSION = 1  # of the part files; a change makes old parts useless

# The row contract (DESIGN section 7): computed columns in their order, with the value of an image that failed.
COMPUTED: dict[str, object] = {
    "captured_at": None,
    "longitude": np.nan,
    "latitude": np.nan,
    "estimator": None,
    "component_weight": np.nan,
    "density_max": np.nan,
    "probability_25_km": np.nan,
    "probability_200_km": np.nan,
    "area_50_km2": np.nan,
    "area_90_km2": np.nan,
    "radius_90_km": np.nan,
    "n_parts_90": np.nan,
    "expected_error_km": np.nan,
    "information_bits": np.nan,
    "in_training_area": None,
    "training_density_percentile": np.nan,
    "feature_distance": np.nan,
}
_CLAIM = ("claimed_longitude", "claimed_latitude", "claimed_level")
_TRUTH = ("true_longitude", "true_latitude", "error_km", "searched_probability", "searched_area_km2")
_OWN = ("image_id", "path", "filename", "status", "message", *COMPUTED, *_CLAIM, *_TRUTH)


def predict(
    bundle: Bundle,
    table: geopandas.GeoDataFrame,
    *,
    estimator: str = "component",
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
) -> Predictions:
    """Predict where images were taken.

    Parameters
    ----------
    bundle : Bundle
        From `load_bundle`.
    table : GeoDataFrame
        From `read_image_table`. Its longitude and latitude are never an input of the model: where present they
        are taken as the truth that predictions are compared with.
    estimator : {"component", "mode"}
        How a density becomes a point: eq. 7 or eq. 6 of the paper.
    out : path, optional
        Predictions file (.nc) to write; a killed run goes on where it was. Default: a temporary file.
    overwrite : bool
        Whether an existing `out` may be replaced.
    batch_size, workers : int
        Images per pass through the network, threads that read images.
    strict : bool
        Whether one failed row is an error (nothing is then written).

    Returns
    -------
    Predictions

    Raises
    ------
    RowsFailedError
        With `strict`, if a row failed.
    UsageError, OutputError, LockedError
        If an option is wrong, or `out` cannot be written.

    Examples
    --------
    >>> import geo_mvmf
    >>> bundle = geo_mvmf.load_bundle("relief.safetensors")  # doctest: +SKIP
    >>> geo_mvmf.predict(bundle, geo_mvmf.read_image_table("photos/"))  # doctest: +SKIP
    """
    job = predict_job(
        bundle,
        table,
        estimator=estimator,
        out=out,
        overwrite=overwrite,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
    )
    return progress.run(job)


def predict_job(
    bundle: Bundle,
    table: geopandas.GeoDataFrame,
    *,
    estimator: str = "component",
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
) -> Generator[Progress, None, Predictions]:
    """Predict as `predict` does, as a job that yields its progress; closing it cancels.

    Parameters
    ----------
    bundle, table, estimator, out, overwrite, batch_size, workers, strict
        As `predict`.

    Yields
    ------
    Progress
        Stage "predict", in images.

    Returns
    -------
    Predictions
    """
    if estimator not in ("component", "mode"):
        raise UsageError(f"estimator {estimator!r} is not 'component' or 'mode'")
    with contextlib.ExitStack() as stack:
        if out is None:
            holder = _TemporaryFolder()
            final = holder.path / "predictions.nc"
        else:
            holder, final = None, Path(out)
        if final.suffix.lower() != ".nc":
            raise UsageError(f"{final}: a predictions file ends in .nc")
        if final.exists() and not overwrite:
            raise OutputError(f"{final}: exists already; choose another name, or ask for overwriting")
        parts = final.with_name(f"{final.name}.parts")
        stack.enter_context(durable.lock(parts))
        run = _run_of(bundle, table, estimator)
        _check_parts(parts, run)
        yield from _predict_parts(_Predictor(bundle, table, estimator, batch_size, workers, run), parts)
        if strict:
            _check_strict(parts)
        store = stores.merge_parts(parts, final, run=run, overwrite=overwrite)
    shutil.rmtree(parts, ignore_errors=True)
    return Predictions(store, holder)


@dataclasses.dataclass(frozen=True)
class _Predictor:
    bundle: Bundle
    table: geopandas.GeoDataFrame
    estimator: str
    batch_size: int
    workers: int
    run: dict[str, Any]

    @functools.cached_property
    def components(self) -> stores.Components:
        bundle = self.bundle
        if hasattr(bundle.head, "mean_directions"):
            kind, directions, concentrations = "vmf", bundle.mean_directions, bundle.log_concentrations
        else:
            kind, directions = "cell", s2.centre(bundle.cell_ids)
            concentrations = np.full(len(directions), np.nan)
        return stores.Components(kind, directions, concentrations, bundle.training_counts, bundle.cell_ids)

    @functools.cached_property
    def _percentile(self) -> FloatArray:
        """Share of training images in cells no denser than each cell, per cent."""
        counts = self.bundle.training_counts.astype(np.float64)
        per_area = counts / s2.area_sr(self.bundle.cell_ids)
        order = np.argsort(per_area, kind="stable")
        percentile = np.empty(counts.size)
        percentile[order] = 100.0 * np.cumsum(counts[order]) / max(counts.sum(), 1.0)
        return percentile

    def part(self, start: int, stop: int) -> Generator[int, None, tuple[pd.DataFrame, stores.Pruned]]:
        """Rows and weights of one part; yields the number of images finished."""
        frame = self.table.iloc[start:stop]
        rows = _empty_rows(frame)
        paths = tables.absolute_paths(self.table.iloc[start:stop])
        usable = [i for i in range(len(frame)) if rows.at[i, "status"] == "ok"]
        weights = np.full((len(frame), self.bundle.num_components), np.nan, dtype=np.float32)
        stream = images.read_images([paths[i] for i in usable], self.bundle.spec, workers=self.workers)
        with contextlib.closing(stream):
            for batch in _batches(usable, stream, self.batch_size):
                good = [i for i, image in batch if not isinstance(image, ImageError)]
                for i, image in batch:
                    if isinstance(image, ImageError):
                        rows.loc[i, ["status", "message"]] = image.status, str(image)
                if good:
                    pixels = np.stack([image for _, image in batch if not isinstance(image, ImageError)])
                    weights[good], features = self.bundle.predict(pixels)
                    self._fill(rows, np.array(good), weights[good], features, [paths[i] for i in good])
                yield len(batch)
        return rows, stores.prune(weights)

    def _fill(
        self,
        rows: pd.DataFrame,
        good: IntArray,
        weights: npt.NDArray[np.float32],
        features: npt.NDArray[np.float32],
        paths: list[Path],
    ) -> None:
        mixture = mixture_of_components(self.components, weights.astype(np.float64))
        places = estimates.estimate(mixture, self.estimator)
        columns = summaries.summarise(mixture, places[:, 0], places[:, 1])
        columns = columns.assign(longitude=places[:, 0], latitude=places[:, 1], estimator=self.estimator)
        cell = self._cell_of(places)
        spread = np.maximum(np.asarray(self.bundle.feature_std, dtype=np.float64), 1e-6)
        offset = (features.astype(np.float64) - np.asarray(self.bundle.feature_mean)) / spread
        columns = columns.assign(
            in_training_area=np.where(self.bundle.training_counts[cell] > 0, "yes", "no"),
            training_density_percentile=self._percentile[cell],
            feature_distance=np.sqrt((offset * offset).mean(axis=1)),
            captured_at=np.array([_captured_at(path) for path in paths], dtype=object),
        )
        for name in columns:
            rows.loc[good, name] = np.asarray(columns[name])
        _judge(rows, good, mixture)

    def _cell_of(self, places: FloatArray) -> IntArray:
        leaves = s2.leaf_ids(sphere.to_directions(places[:, 0], places[:, 1]))
        return np.minimum(np.searchsorted(s2.range_max(self.bundle.cell_ids), leaves), self.bundle.num_components - 1)


def _judge(rows: pd.DataFrame, good: IntArray, mixture: VmfMixture | CellMixture) -> None:
    """Compare with the truth and with claims, where the table has them."""
    for prefix, names in (("true", _TRUTH), ("claimed", _CLAIM)):
        columns = [f"{prefix}_longitude", f"{prefix}_latitude"]
        if columns[0] not in rows:
            continue
        place = rows.loc[good, columns].to_numpy(float)
        known = np.flatnonzero(np.isfinite(place).all(axis=1))
        if not known.size:
            continue
        found = summaries.at_truth(mixture[known], place[known, 0], place[known, 1])
        index = good[known]
        if prefix == "claimed":
            rows.loc[index, names[2]] = np.asarray(found["searched_probability"])
            continue
        estimate = rows.loc[index, ["longitude", "latitude"]].to_numpy(float)
        rows.loc[index, "error_km"] = sphere.great_circle_distance_km(*estimate.T, *place[known].T)
        for name in names[3:]:
            rows.loc[index, name] = np.asarray(found[name])


def _empty_rows(frame: geopandas.GeoDataFrame) -> pd.DataFrame:
    """The row contract before anything is known, with the input's other columns behind it."""
    size = len(frame)
    rows = pd.DataFrame(index=pd.RangeIndex(size))
    for name in ("image_id", "path"):
        rows[name] = frame[name].astype(object).to_numpy()
    rows["filename"] = [str(path).rsplit("/", 1)[-1] for path in rows["path"]]
    for name in ("status", "message"):
        rows[name] = frame[name].astype(object).to_numpy()
    for name, value in COMPUTED.items():
        rows[name] = pd.Series([value] * size, dtype=object if value is None else np.float64)
    if frame["longitude"].notna().any() or frame.attrs.get("has_truth"):
        _add_places(rows, frame, "true", _TRUTH)
    if "claimed_longitude" in frame:
        _add_places(rows, frame, "claimed", _CLAIM)
    taken = {"longitude", "latitude", "weight", "geometry", *rows.columns, *_CLAIM[:2]}
    for name in frame.columns:
        if name not in ("image_id", "path", "status", "message", "longitude", "latitude", "weight", "geometry"):
            if name in _CLAIM[:2]:
                continue
            rows[f"in_{name}" if name in taken or name in _OWN else str(name)] = frame[name].to_numpy()
    return rows


def _add_places(rows: pd.DataFrame, frame: geopandas.GeoDataFrame, prefix: str, names: Sequence[str]) -> None:
    source = "" if prefix == "true" else "claimed_"
    rows[f"{prefix}_longitude"] = frame[f"{source}longitude"].to_numpy(float)
    rows[f"{prefix}_latitude"] = frame[f"{source}latitude"].to_numpy(float)
    for name in names[2:]:
        rows[name] = np.nan


def _predict_parts(predictor: _Predictor, folder: Path) -> Generator[Progress, None, None]:
    table, total = predictor.table, len(predictor.table)
    table.attrs["has_truth"] = bool(table["longitude"].notna().any())
    done, finished = set(stores.existing_parts(folder)), 0
    for number, start in enumerate(range(0, max(total, 1), PART_ROWS)):
        stop = min(start + PART_ROWS, total)
        if number in done:
            finished = stop
            continue
        job = predictor.part(start, stop)
        while True:
            try:
                finished += next(job)
            except StopIteration as end:
                rows, pruned = end.value
                break
            yield Progress("predict", min(finished, stop), total)
        stores.write_part(folder, number, rows=rows, pruned=pruned, components=predictor.components, run=predictor.run)
        finished = stop
        yield Progress("predict", finished, total)


def _check_parts(folder: Path, run: dict[str, Any]) -> None:
    """Throw away the parts of another run: resuming is only for the same images, bundle and options."""
    durable.sweep(folder)
    manifest = folder / "manifest.json"
    text = json.dumps(run, sort_keys=True, indent=2) + "\n"
    if manifest.is_file() and manifest.read_text(encoding="utf-8") == text:
        return
    for part in folder.glob("part-*.nc"):
        part.unlink()
    durable.write_text(manifest, text, overwrite=True)


def _check_strict(folder: Path) -> None:
    failed = []
    for number in stores.existing_parts(folder):
        rows = stores.open_store(folder / f"part-{number:06d}.nc").rows
        bad = rows[rows["status"] != "ok"]
        failed += [f"{row.path}: {row.status}: {row.message}" for row in bad.itertuples()]
    if failed:
        shutil.rmtree(folder, ignore_errors=True)
        raise RowsFailedError(f"{len(failed)} rows failed, and every row was required; the first is {failed[0]}")


def _run_of(bundle: Bundle, table: geopandas.GeoDataFrame, estimator: str) -> dict[str, Any]:
    names = "\0".join(
        f"{i}\t{p}\t{s}" for i, p, s in zip(table["image_id"], table["path"], table["status"], strict=True)
    )
    places = table[["longitude", "latitude"]].to_numpy(float).tobytes()
    return {
        "geo_mvmf": __version__,
        "parts": _VERSION,
        "bundle": bundle.path.name if bundle.path else "",
        "bundle_sha256": bundle.digest,
        "estimator": estimator,
        "images": len(table),
        "images_sha256": hashlib.sha256(names.encode("utf-8", "surrogateescape") + places).hexdigest(),
        "root": str(table.attrs.get("root", "")),
        "licence": str(bundle.metadata.get("licence", "")),
        "earth": f"sphere, R = {sphere.EARTH_RADIUS_KM} km",
    }


class _TemporaryFolder:
    """A folder that goes away, silently, with the last predictions that need it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="geo-mvmf-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


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
