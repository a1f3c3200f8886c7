"""Calibration: make a bundle's probabilities true, by a temperature and a shift fitted on images it never saw.

Both are folded into the new bundle - weight and bias divided by the temperature, the log concentrations shifted - so
whoever reads the bundle need not know. What was fitted, on what, stands in its training summary.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import math
import tempfile
import warnings
from collections.abc import Generator
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import torch

from geo_mvmf import progress, s2, sphere
from geo_mvmf.errors import BadInputError, ImageError, UsageError, require_no_path
from geo_mvmf.inputs import images, table_rows, tables
from geo_mvmf.model import heads, overlap, scaling
from geo_mvmf.model.bundle import Bundle
from geo_mvmf.progress import Progress

MIN_IMAGES = 30
MIN_GROUPS = 8
"""Fewer images, or fewer independent groups of them, give no interval worth its name."""

_IN_MEMORY_BYTES = 1 << 28  # larger logits lie in a temporary file
_LEAST_TESTED, _FEW = 5, 0.05  # a share from fewer images says nothing; a few chance neighbours do no harm
_EXTREME = math.log(10.0)  # of temperature or concentration: the bundle does not suit the images


class _Cached(NamedTuple):
    """Logits (n, C) of the images that could be read, and which rows those are."""

    logits: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]


def calibrate(
    bundle: Bundle,
    table: gpd.GeoDataFrame,
    *,
    group_by: str | None = None,
    block_level: int = 4,
    batch_size: int = 32,
    workers: int = 2,
) -> Bundle:
    """Fit the temperature of the logits and the shift of the log concentrations on images with known places.

    Parameters
    ----------
    bundle : Bundle
        From `load_bundle`; not changed.
    table : GeoDataFrame
        From `read_image_table`, with longitude and latitude. None of its images may have been trained on: the
        bundle's validation images were used to choose the best step, so even these are too good.
    group_by : str, optional
        Column whose values name images that belong together (one photographer, one scene). Default: the S2 cells of
        level `block_level` that the places lie in. Intervals count groups, and no group is in two folds.
    block_level : int
        0..12; level 4 cells are about 600 km wide.
    batch_size, workers : int
        Images per pass through the network; threads that read images.

    Returns
    -------
    Bundle
        With the scaling folded in, not saved. ``metadata["training"]["calibration"]`` holds temperature,
        log_concentration_shift, their 95 % intervals, num_images, num_groups, grouped_by, num_failed,
        nll_before, nll_after and nll_change (low, high) in nats - of images whose group was left out of the fit -,
        share_at_training_places (None where the bundle cannot tell), data_sha256 and bundle_sha256, the digest of the
        bundle it was made from.

    Raises
    ------
    BadInputError
        If fewer than 30 images have a known place and can be read, they lie in fewer than 8 groups, the column is
        missing, or the whole table seems to have longitude and latitude swapped.
    UsageError
        If an option is out of range.

    Warns
    -----
    UserWarning
        If rows of the table are not used, images lie at places of the training, the loss of left-out groups does not
        fall, or the scaling is extreme.

    Notes
    -----
    The temperature is that of Guo et al. 2017, "On calibration of modern neural networks", on a mixture's weights.

    Examples
    --------
    >>> import geo_mvmf
    >>> bundle = geo_mvmf.load_bundle("model.safetensors")  # doctest: +SKIP
    >>> better = calibrate(bundle, geo_mvmf.read_image_table("held_out.csv"))  # doctest: +SKIP
    >>> better.metadata["training"]["calibration"]["temperature"]  # doctest: +SKIP
    1.3
    """
    return progress.run(
        calibrate_job(bundle, table, group_by=group_by, block_level=block_level, batch_size=batch_size, workers=workers)
    )


def calibrate_job(
    bundle: Bundle,
    table: gpd.GeoDataFrame,
    *,
    group_by: str | None = None,
    block_level: int = 4,
    batch_size: int = 32,
    workers: int = 2,
) -> Generator[Progress, None, Bundle]:
    """Calibrate as `calibrate` does, as a job that yields its progress; closing it cancels.

    Parameters
    ----------
    bundle, table, group_by, block_level, batch_size, workers
        As `calibrate`.

    Yields
    ------
    Progress
        Stages "predict", in images, and "calibrate".

    Returns
    -------
    Bundle

    Raises
    ------
    BadInputError, UsageError
        As `calibrate`.

    Examples
    --------
    >>> import pandas as pd
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> nothing = tables.read_image_table(pd.DataFrame({"path": ["no.jpg"]}), root="/")
    >>> list(calibrate_job(untrained_bundle(), nothing))
    Traceback (most recent call last):
    geo_mvmf.errors.BadInputError: 0 of 1 images can be read and have a longitude and latitude; at least 30 are needed
    """
    if not 0 <= block_level <= 12 or batch_size < 1 or workers < 0:
        raise UsageError(f"block_level {block_level} is 0..12, batch_size {batch_size} >= 1, workers {workers} >= 0")
    require_no_path("bundle", bundle, "load_bundle makes a bundle of a file")
    tables.require_root(table)
    table_rows.require_not_swapped(table)
    known = tables.has_place(table)
    is_usable = table["status"].eq("ok").to_numpy(bool) & known
    usable = np.flatnonzero(is_usable)
    _require_images(usable.size, len(table))
    groups = _groups(table, group_by, block_level)
    cached = yield from _cache(bundle, table, usable, batch_size, workers)
    _require_images(cached.rows.size, len(table))
    numbers = _numbered(groups[cached.rows], group_by, block_level)
    yield Progress("calibrate", 0, 1, "fitting temperature and concentrations")
    scaled = scaling.fit(cached.logits, _densities(bundle, table, cached.rows), numbers)
    result = _scaled(bundle, scaled)
    about = _summary(scaled, numbers) | {
        "grouped_by": group_by or f"S2 cells of level {block_level}",
        "num_failed": int(known.sum()) - int(cached.rows.size),
        "share_at_training_places": _share_known(bundle, table, cached.rows),
        "data_sha256": _digest(table, cached.rows),
        "bundle_sha256": bundle.digest,
    }
    result.metadata["training"] = {**result.metadata["training"], "calibration": about}
    if told := table_rows.left_out(table, is_usable):
        warnings.warn(told, stacklevel=2)
    _warn(about)
    yield Progress("calibrate", 1, 1)
    return result


def _require_images(found: int, rows: int) -> None:
    if found < MIN_IMAGES:
        raise BadInputError(
            f"{found} of {rows} images can be read and have a longitude and latitude; at least {MIN_IMAGES} are needed"
        )


def _groups(table: gpd.GeoDataFrame, group_by: str | None, block_level: int) -> npt.NDArray[Any]:
    """Name the group of every row."""
    if group_by is None:
        directions = sphere.to_directions(table["longitude"].fillna(0.0), table["latitude"].fillna(0.0))
        return s2.cell_ids(directions, block_level)
    if group_by not in table:
        raise BadInputError(f"cannot group by {group_by!r}: the columns are {', '.join(map(str, table.columns))}")
    names: npt.NDArray[Any] = table[group_by].astype(str).to_numpy(object)
    return names


def _numbered(groups: npt.NDArray[Any], group_by: str | None, block_level: int) -> npt.NDArray[np.int64]:
    names, numbers = np.unique(groups, return_inverse=True)
    if names.size < MIN_GROUPS:
        kind = f"values of {group_by!r}" if group_by else f"S2 cells of level {block_level}"
        raise BadInputError(
            f"the {groups.size} images lie in {names.size} {kind}; at least {MIN_GROUPS} independent groups are "
            "needed: take images from more places, or a higher block level"
        )
    return numbers.astype(np.int64)


def _cache(
    bundle: Bundle, table: gpd.GeoDataFrame, usable: npt.NDArray[np.int64], batch_size: int, workers: int
) -> Generator[Progress, None, _Cached]:
    """Compute the logits once; an image that cannot be read, or whose logits are not finite, is left out."""
    paths = tables.absolute_paths(table)
    inside = tables.permitted_folders(table)
    logits = _room(usable.size, bundle.num_components)
    rows: list[int] = []
    stream = images.read_images([paths[row] for row in usable], bundle.spec, workers=workers, inside=inside)
    done = 0
    try:
        while batch := list(itertools.islice(stream, batch_size)):
            good = {place: image for place, image in enumerate(batch) if not isinstance(image, ImageError)}
            # up to a constant per image the logits are the log mixing weights
            found = bundle.predict(np.stack(list(good.values())))[0] if good else ()
            for place, values in zip(good, found, strict=True):
                if np.isfinite(values).all():
                    logits[len(rows)] = values
                    rows.append(int(usable[done + place]))
            done += len(batch)
            yield Progress("predict", done, int(usable.size))
    finally:
        stream.close()
    return _Cached(logits[: len(rows)], np.array(rows, dtype=np.int64))


def _room(n: int, c: int) -> npt.NDArray[np.float32]:
    if 4 * n * c <= _IN_MEMORY_BYTES:
        return np.empty((n, c), dtype=np.float32)
    with tempfile.TemporaryFile() as file:  # the map keeps it alive, and it has no name to leave behind
        room: npt.NDArray[np.float32] = np.memmap(file, dtype=np.float32, mode="w+", shape=(n, c))
        return room


def _densities(bundle: Bundle, table: gpd.GeoDataFrame, rows: npt.NDArray[np.int64]) -> scaling.Densities:
    chosen = table.iloc[rows]
    places = sphere.to_directions(chosen["longitude"].to_numpy(float), chosen["latitude"].to_numpy(float))
    if isinstance(bundle.head, heads.MvmfHead):
        return scaling.VmfDensities(bundle.mean_directions, bundle.log_concentrations, places)
    return scaling.CellDensities(bundle.head.cell_ids, places)


def _scaled(bundle: Bundle, scaled: scaling.Scaling) -> Bundle:
    """Fold the scaling into a copy of the head."""
    head = copy.deepcopy(bundle.head)
    with torch.no_grad():
        for tensor in (head.weight, head.bias):
            tensor.mul_(math.exp(-scaled.log_temperature))
        if isinstance(head, heads.MvmfHead):
            head.log_concentrations.add_(scaled.shift)
    return dataclasses.replace(bundle, head=head, metadata=dict(bundle.metadata), digest="", path=None)


def _summary(scaled: scaling.Scaling, groups: npt.NDArray[np.int64]) -> dict[str, Any]:
    t, s = scaled.log_temperature, scaled.shift
    half_t, half_s = scaled.half_width.tolist()
    change = scaling.mean_with_groups(scaled.after - scaled.before, groups)
    return {
        "temperature": math.exp(t),
        "temperature_interval": [math.exp(t - half_t), math.exp(t + half_t)],
        "log_concentration_shift": s,
        "log_concentration_shift_interval": [s - half_s, s + half_s],
        "num_images": int(groups.size),
        "num_groups": int(np.unique(groups).size),
        "nll_before": float(scaled.before.mean()),
        "nll_after": float(scaled.after.mean()),
        "nll_change": change[0],
        "nll_change_interval": list(change[1:]),
    }


def _digest(table: gpd.GeoDataFrame, rows: npt.NDArray[np.int64]) -> str:
    """SHA-256 of the names and places of the images that were used."""
    chosen = table.iloc[rows]
    hasher = hashlib.sha256("\n".join(chosen["image_id"].astype(str)).encode("utf-8", "surrogateescape"))
    for name in ("longitude", "latitude"):
        hasher.update(np.ascontiguousarray(chosen[name].to_numpy(np.float64)).tobytes())
    return hasher.hexdigest()


def _share_known(bundle: Bundle, table: gpd.GeoDataFrame, rows: npt.NDArray[np.int64]) -> float | None:
    """Share of the images at places of the training, as far as the bundle tells."""
    known = bundle.metadata["training"].get("places_sketch", "")
    chosen = table.iloc[rows]
    try:
        found = overlap.measure(known, chosen["longitude"].to_numpy(float), chosen["latitude"].to_numpy(float))
    except (TypeError, ValueError):  # a bundle of others may hold anything under this name
        return None
    return found.share if known and found.tested >= _LEAST_TESTED else None


def _warn(about: dict[str, Any]) -> None:
    if (about["share_at_training_places"] or 0.0) > _FEW:
        warnings.warn(
            f"about {about['share_at_training_places']:.0%} of the images lie at places the bundle was trained on, "
            "where it is surer than elsewhere: a calibration by them makes it too sure; take held-out images",
            stacklevel=3,
        )
    if about["nll_change"] >= 0.0:
        warnings.warn(
            f"calibration does not help: the loss of left-out groups goes from {about['nll_before']:.3f} to "
            f"{about['nll_after']:.3f} nats; keep the bundle as it was",
            stacklevel=3,
        )
    if abs(math.log(about["temperature"])) > _EXTREME or abs(about["log_concentration_shift"]) > 2.0 * _EXTREME:
        warnings.warn(
            f"temperature {about['temperature']:.3g} and shift {about['log_concentration_shift']:.3g} are extreme: "
            "the bundle does not suit these images, and scaling its densities cannot mend that",
            stacklevel=3,
        )
