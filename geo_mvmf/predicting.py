"""Image table and bundle -> Predictions: one row per image, in input order, with a status.

A long prediction writes numbered part files and merges them at the end, so a killed run goes on where it was and
memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import pandas as pd

from geo_mvmf import distributed, durable, folder_lock, prediction_folder, prediction_run, progress, row_contract
from geo_mvmf.errors import BadInputError, RowsFailedError, UsageError, require_no_path
from geo_mvmf.files import stores
from geo_mvmf.inputs import table_rows, tables
from geo_mvmf.maps import estimates
from geo_mvmf.prediction_folder import Made, Make, Part
from geo_mvmf.prediction_parts import Predictor
from geo_mvmf.predictions import Predictions, open_predictions
from geo_mvmf.progress import CancelledError, Progress
from geo_mvmf.temporary_folder import TemporaryFolder

if TYPE_CHECKING:
    from distributed import Client

    from geo_mvmf.model.bundle import Bundle

PART_ROWS = 256  # images per part file: what a kill can lose, and what is in memory at once


def predict(
    bundle: Bundle,
    table: geopandas.GeoDataFrame,
    *,
    estimator: str = "component",
    radius_km: float | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
    dask: str | Client | None = None,
    dask_device: str = "auto",
) -> Predictions:
    """Predict where images were taken.

    Parameters
    ----------
    bundle : Bundle
        From `load_bundle`.
    table : GeoDataFrame
        From `read_image_table`. Its longitude and latitude are never an input of the model: where present they
        are taken as the truth that predictions are compared with.
    estimator : {"component", "mode", "median", "best_within"}
        How a density becomes a point; see `estimate`.
    radius_km : float, optional
        For best_within, and for no other estimator: kilometres.
    out : path, optional
        Predictions file (.nc) to write; a killed run goes on where it was. Default: a temporary file.
    overwrite : bool
        Whether an existing `out` may be replaced.
    batch_size, workers : int
        Images per pass through the network; threads that read images and summarise densities.
    strict : bool
        Whether one failed row is an error, raised as soon as it is known; nothing is then written.
    dask : str or distributed.Client, optional
        Scheduler of a Dask cluster, such as "tcp://host:8786", whose workers predict in this process's place
        (docs/distributed.md).
    dask_device : str
        Where each of its workers computes, as `load_bundle` takes it.

    Returns
    -------
    Predictions

    Raises
    ------
    RowsFailedError
        With `strict`, if a row failed.
    UsageError, OutputError, LockedError
        If an option is wrong, or `out` cannot be written.
    DeviceError
        If the cluster does not answer, or its workers cannot compute what this process would.

    Warns
    -----
    UserWarning
        If the whole table seems to have longitude and latitude swapped.

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
        radius_km=radius_km,
        out=out,
        overwrite=overwrite,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
        dask=dask,
        dask_device=dask_device,
    )
    return progress.run(job)


def predict_job(
    bundle: Bundle,
    table: geopandas.GeoDataFrame,
    *,
    estimator: str = "component",
    radius_km: float | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
    dask: str | Client | None = None,
    dask_device: str = "auto",
) -> Generator[Progress, None, Predictions]:
    """Predict as `predict` does, as a job that yields its progress; closing it stops it, to go on another time.

    When `CancelledError` is thrown into it, it writes what it has: images that were not reached have status
    "cancelled", and `Predictions.run` says how many under "cancelled". Given again it goes on from the parts, which
    stay, and replaces that file.

    Parameters
    ----------
    bundle, table, estimator, radius_km, out, overwrite, batch_size, workers, strict, dask, dask_device
        As `predict`.

    Yields
    ------
    Progress
        Stage "predict", in images.

    Returns
    -------
    Predictions

    Raises
    ------
    RowsFailedError, UsageError, OutputError, LockedError, DeviceError
        As `predict`.

    Examples
    --------
    >>> from geo_mvmf.inputs.tables import read_image_table
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> table = read_image_table(pd.DataFrame({"path": ["no.jpg"]}), root="/")
    >>> job = predict_job(untrained_bundle(), table)
    >>> [(event.done, event.total) for event in job]
    [(1, 1), (1, 1)]
    """
    estimates.check_estimator(estimator, radius_km)
    require_no_path("bundle", bundle, "load_bundle makes a bundle of a file")
    tables.require_root(table)
    if batch_size < 1 or workers < 0:
        raise UsageError(f"batch_size {batch_size} must be at least 1, workers {workers} must be at least 0")
    table_rows.warn_if_swapped(table)
    if strict:
        prediction_folder.require_all(
            table
        )  # a missing file, a name that is there twice: no image need be read for these
    with contextlib.ExitStack() as stack:
        make = _make_here if dask is None else stack.enter_context(distributed.cluster(dask, dask_device))
        if out is None:
            holder = TemporaryFolder()
            final = holder.path / "predictions.nc"
        else:
            holder, final = None, Path(out)
        if final.suffix.lower() != ".nc":
            raise UsageError(f"{final}: a predictions file ends in .nc")
        run = prediction_run.describe(bundle, table, estimator, radius_km)
        overwrite = overwrite or _is_rest_of(run, final)
        if not overwrite:
            durable.require_new(final)
        is_new_folder = not final.parent.exists()
        parts = final.with_name(f"{final.name}.parts")
        stack.enter_context(folder_lock.holding(parts))
        predictor = Predictor(bundle, table, estimator, batch_size, workers, radius_km, strict)
        prediction_folder.check(parts, run, predictor.components, PART_ROWS)
        earlier = stores.existing_parts(parts)
        try:
            yield from _predict_parts(predictor, make, parts, run, strict=strict)
        except RowsFailedError:
            prediction_folder.leave_as_found(parts, set(earlier), is_new_folder=is_new_folder)
            raise
        except CancelledError:
            if strict:  # a row that was not reached is one that failed
                raise
            store = prediction_folder.merge_unfinished(predictor, parts, final, run, PART_ROWS, overwrite=overwrite)
            if row_contract.CANCELLED in store.run:
                return Predictions(store, holder)
        else:
            store = stores.merge_parts(parts, final, run=run, overwrite=overwrite)
        shutil.rmtree(parts, ignore_errors=True)  # while they are held: the next holder's must stay
    return Predictions(store, holder)


def finished(
    bundle: Bundle,
    table: geopandas.GeoDataFrame,
    out: str | os.PathLike[str],
    *,
    estimator: str = "component",
    radius_km: float | None = None,
    strict: bool = False,
) -> Predictions | None:
    """Open a prediction that ended before: of the same images, by the same bundle and options.

    Parameters
    ----------
    bundle, table, estimator, radius_km, strict
        As `predict`.
    out : path
        Predictions file.

    Returns
    -------
    Predictions or None
        None where there is no file, or one of another run, or, with `strict`, one in which a row failed.

    Examples
    --------
    >>> import pandas
    >>> from geo_mvmf.inputs.tables import read_image_table
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> table = read_image_table(pandas.DataFrame({"path": ["no.jpg"]}), root="/")
    >>> finished(untrained_bundle(), table, "no/such/file.nc") is None
    True
    """
    if not Path(out).exists():
        return None
    try:
        found = open_predictions(out)
    except BadInputError:
        return None
    if strict and (found.rows["status"] != "ok").any():
        return None
    return found if found.run == prediction_run.describe(bundle, table, estimator, radius_km) else None


def was_cancelled(
    out: str | os.PathLike[str],
    bundle: Bundle | None = None,
    table: geopandas.GeoDataFrame | None = None,
    *,
    estimator: str = "component",
    radius_km: float | None = None,
) -> bool:
    """Tell whether a predictions file is what a cancelled prediction left, of any images or of these.

    Parameters
    ----------
    out : path
        Predictions file; need not exist.
    bundle, table : Bundle and GeoDataFrame, optional
        Ask for a prediction of these images by this bundle.
    estimator, radius_km
        As `predict`; looked at where there are a bundle and a table.

    Examples
    --------
    >>> was_cancelled("no/such/file.nc")
    False
    """
    if bundle is None or table is None:
        return _unfinished_run(Path(out)) is not None
    return _is_rest_of(prediction_run.describe(bundle, table, estimator, radius_km), Path(out))


def _is_rest_of(run: dict[str, Any], out: Path) -> bool:
    return _unfinished_run(out) == run


def _unfinished_run(out: Path) -> dict[str, Any] | None:
    """What made a predictions file that was cancelled; None for any other file."""
    if not os.path.lexists(out):
        return None
    try:
        run = dict(open_predictions(out).run)
    except BadInputError:
        return None
    return run if run.pop(row_contract.CANCELLED, None) else None


def _predict_parts(
    predictor: Predictor, make: Make, folder: Path, run: dict[str, Any], *, strict: bool
) -> Generator[Progress, None, None]:
    """Make the parts that are missing, in whatever order they are finished, and put them into the folder."""
    total = len(predictor.table)
    done, finished, missing = set(stores.existing_parts(folder)), 0, []
    for part in prediction_folder.parts_of(total, PART_ROWS):
        if part.number not in done:
            missing.append(part)
            continue
        rows = stores.open_part(stores.part_path(folder, part.number), predictor.components).rows
        if strict:
            prediction_folder.require_all(rows)
        finished += part.stop - part.start
        yield Progress("predict", finished, total, failures=prediction_folder.failures(rows))
    with _Writer(predictor.components, folder, run) as writer, contextlib.closing(make(predictor, missing)) as job:
        for event in itertools.chain(job, [None]):  # the next part is under way while the one before is written
            written = writer.wait()
            if written:
                finished += written
                yield Progress("predict", finished, total)
            if isinstance(event, Progress):
                yield dataclasses.replace(event, done=finished + event.done, total=total)
            elif event is not None:
                part, rows, pruned = event
                if strict:
                    prediction_folder.require_all(rows)
                writer.begin(part, rows, pruned)


class _Writer:
    """Writes one part at a time, in a thread; nothing is said to be done that a kill could still take away."""

    def __init__(self, components: stores.Components, folder: Path, run: dict[str, Any]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="write_part")
        self._write = functools.partial(stores.write_part, folder, components=components, run=run)
        self._begun: tuple[Future[None], int] | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)  # a part that is being written is there afterwards, whatever else happened

    def begin(self, part: Part, rows: pd.DataFrame, pruned: stores.Pruned) -> None:
        """Begin to write a part, after `wait`."""
        self._begun = self._thread.submit(self._write, part.number, rows=rows, pruned=pruned), part.stop - part.start

    def wait(self) -> int:
        """Wait until the part that was begun is there, and give its number of images."""
        if self._begun is None:
            return 0
        (future, images), self._begun = self._begun, None
        future.result()
        return images


def _make_here(predictor: Predictor, missing: Sequence[Part]) -> Generator[Progress | Made, None, None]:
    """Make parts in this process, one after another."""
    known = {(part.start, part.stop): part for part in missing}
    with contextlib.closing(predictor.parts(list(known))) as job:
        for event in job:
            if isinstance(event, Progress):
                yield event
            else:
                yield known[event.start, event.stop], event.rows, event.pruned
