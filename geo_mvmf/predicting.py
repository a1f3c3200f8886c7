"""Image table and bundle -> Predictions: one row per image, in input order, with a status.

A long prediction writes numbered part files and merges them at the end, so a killed run goes on where it was and
memory does not grow with the number of images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import pandas as pd

from geo_mvmf import __version__, durable, folder_lock, progress, sphere
from geo_mvmf.errors import BadInputError, RowsFailedError, UsageError
from geo_mvmf.files import stores
from geo_mvmf.inputs import tables
from geo_mvmf.maps import estimates
from geo_mvmf.prediction_parts import Predictor
from geo_mvmf.predictions import Predictions, open_predictions
from geo_mvmf.progress import Progress
from geo_mvmf.temporary_folder import TemporaryFolder

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle

PART_ROWS = 256  # images per part file: what a kill can lose, and what is in memory at once
_VERSION = 1  # of the part files; a change makes old parts useless


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
        radius_km=radius_km,
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
    radius_km: float | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
) -> Generator[Progress, None, Predictions]:
    """Predict as `predict` does, as a job that yields its progress; closing it cancels.

    Parameters
    ----------
    bundle, table, estimator, radius_km, out, overwrite, batch_size, workers, strict
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
    RowsFailedError, UsageError, OutputError, LockedError
        As `predict`.

    Examples
    --------
    >>> from geo_mvmf.inputs.tables import read_image_table
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> table = read_image_table(pd.DataFrame({"path": ["no.jpg"]}), root="/")
    >>> job = predict_job(untrained_bundle(), table)
    >>> [(event.done, event.total) for event in job]
    [(1, 1)]
    """
    estimates.check_estimator(estimator, radius_km)
    if not isinstance(table, pd.DataFrame):
        raise UsageError(f"table is {table!r:.80}: read_image_table makes a table of a file or folder")
    if batch_size < 1 or workers < 0:
        raise UsageError(f"batch_size {batch_size} must be at least 1, workers {workers} must be at least 0")
    if strict:
        _require_all(table)  # a missing file, a name that is there twice: no image need be read for these
    with contextlib.ExitStack() as stack:
        if out is None:
            holder = TemporaryFolder()
            final = holder.path / "predictions.nc"
        else:
            holder, final = None, Path(out)
        if final.suffix.lower() != ".nc":
            raise UsageError(f"{final}: a predictions file ends in .nc")
        if not overwrite:
            durable.require_new(final)
        is_new_folder = not final.parent.exists()
        parts = final.with_name(f"{final.name}.parts")
        stack.enter_context(folder_lock.holding(parts))
        run = _run_of(bundle, table, estimator, radius_km)
        predictor = Predictor(bundle, table, estimator, batch_size, workers, radius_km)
        _check_parts(parts, run, predictor.components)
        earlier = stores.existing_parts(parts)
        try:
            yield from _predict_parts(predictor, parts, run, strict=strict)
        except RowsFailedError:
            _leave_as_found(parts, set(earlier), is_new_folder=is_new_folder)
            raise
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
    return found if found.run == _run_of(bundle, table, estimator, radius_km) else None


def _predict_parts(
    predictor: Predictor, folder: Path, run: dict[str, Any], *, strict: bool
) -> Generator[Progress, None, None]:
    total = len(predictor.table)
    done, finished = set(stores.existing_parts(folder)), 0
    for number in sorted(done) if strict else ():
        _require_all(stores.open_store(folder / f"part-{number:06d}.nc").rows)
    for number, start in enumerate(range(0, max(total, 1), PART_ROWS)):
        stop = min(start + PART_ROWS, total)
        if number in done:
            finished = stop
            continue
        with contextlib.closing(predictor.part(start, stop)) as job:  # its threads end with it, cancelled or not
            rows, pruned = yield from _reported(job, start, total)
        if strict:
            _require_all(rows)
        stores.write_part(folder, number, rows=rows, pruned=pruned, components=predictor.components, run=run)
        finished = stop
        yield Progress("predict", finished, total)


def _reported(
    job: Generator[int, None, tuple[pd.DataFrame, stores.Pruned]], finished: int, total: int
) -> Generator[Progress, None, tuple[pd.DataFrame, stores.Pruned]]:
    while True:
        try:
            finished += next(job)
        except StopIteration as end:
            result: tuple[pd.DataFrame, stores.Pruned] = end.value
            return result
        yield Progress("predict", finished, total)


def _check_parts(folder: Path, run: dict[str, Any], components: stores.Components) -> None:
    """Throw away what cannot be gone on with: parts of other images, of another bundle or options, damaged parts."""
    durable.sweep(folder)
    manifest = folder / "manifest.json"
    text = json.dumps(run, sort_keys=True, indent=2) + "\n"
    same = manifest.is_file() and manifest.read_bytes() == text.encode()
    for number in stores.existing_parts(folder):
        part = folder / f"part-{number:06d}.nc"
        if not (same and _is_whole(part, number, run["images"], components)):
            part.unlink()
    if not same:
        durable.write_text(manifest, text, overwrite=True)


def _is_whole(part: Path, number: int, images: int, components: stores.Components) -> bool:
    try:
        found = stores.open_store(part)
        found.pruned()
    except BadInputError:
        return False
    rows = min(PART_ROWS, images - number * PART_ROWS)
    return len(found) == rows and found.components.same_as(components)


def _require_all(rows: pd.DataFrame) -> None:
    """Refuse rows of which one failed, as `strict` asks."""
    bad = rows[rows["status"] != "ok"]
    if len(bad):
        first = bad.iloc[0]
        raise RowsFailedError(
            f"{len(bad)} of {len(rows)} rows failed, and every row was required; the first is "
            f"{first['path']}: {first['status']}: {first['message']}; mend or leave out such rows, or do without strict"
        )


def _leave_as_found(folder: Path, earlier: set[int], *, is_new_folder: bool) -> None:
    """Take away the parts of this run; those that an earlier run left are of use to the next one."""
    if earlier:
        for number in set(stores.existing_parts(folder)) - earlier:
            (folder / f"part-{number:06d}.nc").unlink()
        return
    shutil.rmtree(folder, ignore_errors=True)
    if is_new_folder:
        with contextlib.suppress(OSError):  # others may have written there meanwhile
            folder.parent.rmdir()


def _run_of(bundle: Bundle, table: geopandas.GeoDataFrame, estimator: str, radius_km: float | None) -> dict[str, Any]:
    digest = hashlib.sha256()
    for start in range(0, len(table), PART_ROWS):
        digest.update(_named(table.iloc[start : start + PART_ROWS]).encode("utf-8", "surrogateescape"))
    # claims and columns that pass through are part of the result, too
    others = table.drop(columns=["image_id", "path", "status", "message", table.geometry.name])
    digest.update(pd.util.hash_pandas_object(pd.DataFrame(others), index=False).to_numpy().tobytes())
    digest.update("\0".join(map(str, others.columns)).encode("utf-8", "surrogateescape"))
    return {
        "geo_mvmf": __version__,
        "parts": _VERSION,
        "bundle": bundle.path.name if bundle.path else "",
        "bundle_sha256": bundle.digest,
        **({} if bundle.digest else {"bundle_content_sha256": bundle.content_sha256()}),
        "estimator": estimator,
        **({} if radius_km is None else {"radius_km": float(radius_km)}),
        "claims": str(table.attrs.get("claimed_from", "none")),
        "images": len(table),
        "images_sha256": digest.hexdigest(),
        "root": str(table.attrs.get("root", "")),
        "licence": str(bundle.metadata.get("licence", "")),
        "earth": f"sphere, R = {sphere.EARTH_RADIUS_KM} km",
    }


def _named(table: geopandas.GeoDataFrame) -> str:
    """Text that tells these images from all others."""
    files = map(_stamp, tables.absolute_paths(table))
    named = zip(table["image_id"], table["path"], table["status"], files, strict=True)
    return "".join("\t".join(map(str, each)) + "\0" for each in named)


def _stamp(image: Path) -> str:
    """Size and time of a file, by which another image of the same name is noticed without reading it."""
    try:
        found = image.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return "none"
    return f"{found.st_size} {found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else "none"
