"""What a finished run's model says of the images that the run held out, and how near to training images they lie."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import spatial

from geo_mvmf import s2, sphere
from geo_mvmf.errors import GeoMvmfError, ImageError
from geo_mvmf.inputs import images
from geo_mvmf.model import calibration, preparation, scaling
from geo_mvmf.model.backbones import Backbone
from geo_mvmf.model.bundle import Bundle, Head
from geo_mvmf.model.class_head import CrossEntropyHead
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.features import cache_features
from geo_mvmf.model.image_set import ImageSet
from geo_mvmf.progress import Progress

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOST_IMAGES = 1000
"""Held-out images that a report looks at unless more are asked for: their intervals are narrow enough."""

_MOST_LOGITS = 1 << 27  # 512 MB of float32
_MOST_FITTED = 1 << 23  # logits that the temperature is fitted on: seconds, and it needs no more
_LEAST = 200  # images, whatever the number of components
_BATCH = 32


@dataclasses.dataclass(frozen=True, eq=False)
class HeldOut:
    """Predictions of images that the run held out.

    Parameters
    ----------
    rows : ndarray of int64, (n,)
        Of the image set.
    longitude, latitude : ndarray of float64, (n,)
        True places, degrees.
    log_mixing_weights : ndarray of float32, (n, C)
    nearest_km : ndarray of float64, (n,)
        To the nearest training image; NaN where there is none.
    num_validation : int
        Images held out in all.
    num_unreadable, num_outside : int
        Of those looked at: not to be read; in none of the cells of a cross-entropy head.
    scaling : Scaling or None
        The temperature that fits these images best; None where there are too few.
    nll_change : (value, low, high) or None
        What it does to the NLL of images of blocks that it was not fitted on, in nats, with the 95 % interval over
        blocks.
    """

    rows: IntArray
    longitude: FloatArray
    latitude: FloatArray
    log_mixing_weights: npt.NDArray[np.float32]
    nearest_km: FloatArray
    num_validation: int
    num_unreadable: int
    num_outside: int
    scaling: scaling.Scaling | None
    nll_change: tuple[float, float, float] | None

    def __len__(self) -> int:
        return len(self.rows)


def held_out_job(
    config: TrainingConfig, bundle: Bundle, image_set: ImageSet, *, most: int = MOST_IMAGES, workers: int = 2
) -> Generator[Progress, None, HeldOut]:
    """Predict the images that a run held out.

    Parameters
    ----------
    config : TrainingConfig
        Of the run.
    bundle : Bundle
        What it released, on the device to be used.
    image_set : ImageSet
        From `load_image_set(config)`.
    most : int
        Images looked at, evenly picked; fewer where components are very many.
    workers : int
        Threads that read images.

    Yields
    ------
    Progress
        Stages "predict" or "features", and "calibrate".

    Returns
    -------
    HeldOut

    Examples
    --------
    See `geo_mvmf.training_report.training_report_job`.
    """
    most = min(most, max(_LEAST, _MOST_LOGITS // bundle.num_components))
    picked = evenly(image_set.validation, most)
    inside = picked[_inside(bundle.head, image_set.directions[picked])]
    logits, readable = yield from _logits(config, bundle, image_set, inside, workers)
    rows = inside[readable]
    places = image_set.directions[rows]
    yield Progress("calibrate", 0, 1, "would a temperature mend the densities?")
    scaled, change = _fitted(bundle.head, logits, places, config.block_level)
    found = HeldOut(
        rows=rows,
        longitude=image_set.longitude[rows],
        latitude=image_set.latitude[rows],
        log_mixing_weights=logits,
        nearest_km=_nearest_km(image_set.directions[image_set.training], places),
        num_validation=len(image_set.validation),
        num_unreadable=len(inside) - len(rows),
        num_outside=len(picked) - len(inside),
        scaling=scaled,
        nll_change=change,
    )
    yield Progress("calibrate", 1, 1)
    return found


def evenly(rows: IntArray, most: int) -> IntArray:
    """Pick so many rows, evenly.

    Parameters
    ----------
    rows : ndarray of int64, (n,)
    most : int
        1 or more.

    Returns
    -------
    ndarray of int64, (min(n, most),)

    Examples
    --------
    >>> evenly(np.arange(10), 4).tolist()
    [0, 3, 6, 9]
    """
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def block_ids(directions: FloatArray, level: int) -> tuple[npt.NDArray[np.uint64], int]:
    """Name the block of every image: S2 cells of a level, or finer ones where all images lie in few of these.

    Parameters
    ----------
    directions : ndarray of float64, (n, 3)
    level : int
        The coarsest.

    Returns
    -------
    blocks : ndarray of uint64, (n,)
    level : int
        The first at which the images lie in 12 blocks or more (in as many as a third of the images, where these are
        few).

    Examples
    --------
    >>> level = block_ids(sphere.to_directions(np.linspace(7.0, 7.5, 60), np.full(60, 51.0)), 4)[1]
    >>> level > 4
    True
    """
    wanted = min(12, len(directions) // 3)
    for finer in range(level, s2.MAX_LEVEL):
        blocks = s2.cell_ids(directions, finer)
        if np.unique(blocks).size >= wanted:
            return blocks, finer
    return s2.cell_ids(directions, level), level


def densities_of(head: Head, directions: FloatArray) -> scaling.Densities:
    """Give the densities of a head's components at places.

    Parameters
    ----------
    head : MvmfHead or CrossEntropyHead
    directions : ndarray of float64, (n, 3)

    Examples
    --------
    >>> densities_of(CrossEntropyHead(2, s2.face_cells()), np.eye(3)).has_shift
    False
    """
    if isinstance(head, CrossEntropyHead):
        return scaling.CellDensities(head.cell_ids, directions)
    concentrations = head.log_concentrations.detach().cpu().double().numpy()
    return scaling.VmfDensities(head.mean_directions.detach().cpu().double().numpy(), concentrations, directions)


def _inside(head: Head, directions: FloatArray) -> npt.NDArray[np.bool_]:
    """Tell which places have a density at all: PlaNet's is nowhere but on its cells."""
    if not isinstance(head, CrossEntropyHead):
        return np.ones(len(directions), dtype=np.bool_)
    cells, leaves = head.cell_ids, s2.leaf_ids(directions)
    found = np.searchsorted(s2.range_max(cells), leaves).clip(max=cells.size - 1)
    return np.asarray(s2.contains(cells[found], leaves), dtype=np.bool_)


def _logits(
    config: TrainingConfig, bundle: Bundle, image_set: ImageSet, rows: IntArray, workers: int
) -> Generator[Progress, None, tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """Log mixing weights of the images that can be read, and which those are."""
    cache = Path(config.cache_dir or Path(config.out) / "features")
    if config.stage == "head" and cache.is_dir():
        return (yield from _from_cache(config, bundle, image_set, rows, cache))
    blocks: list[npt.NDArray[np.float32]] = []
    readable = np.zeros(len(rows), dtype=np.bool_)
    done = 0
    with _reading([image_set.paths[row] for row in rows], bundle, workers) as stream:
        while batch := list(itertools.islice(stream, _BATCH)):
            good = [image for image in batch if not isinstance(image, ImageError)]
            readable[done : done + len(batch)] = [not isinstance(image, ImageError) for image in batch]
            if good:
                blocks.append(bundle.predict(np.stack(good))[0])
            done += len(batch)
            yield Progress("predict", done, len(rows))
    return _joined(blocks, bundle), readable


def _from_cache(
    config: TrainingConfig, bundle: Bundle, image_set: ImageSet, rows: IntArray, cache: Path
) -> Generator[Progress, None, tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """Log mixing weights from the features that the run cached: no network need run."""
    found = yield from cache_features(
        frozen_backbone(config, bundle),
        image_set.table.iloc[rows].reset_index(drop=True),
        cache,
        spec=bundle.spec,
        device=bundle.device,
        workers=config.workers,
        dtype=config.features_dtype,
        paths=[image_set.paths[row] for row in rows],
    )
    readable = found.index >= 0
    usable = np.flatnonzero(readable)
    blocks = []
    for begin in range(0, len(usable), _BATCH):
        features = torch.from_numpy(found.rows(usable[begin : begin + _BATCH])).to(bundle.device)
        with torch.inference_mode():
            blocks.append(bundle.head.log_mixing_weights(features).float().cpu().numpy())
    return _joined(blocks, bundle), np.asarray(readable, dtype=np.bool_)


def frozen_backbone(config: TrainingConfig, bundle: Bundle) -> Backbone:
    """Find the backbone that a run of stage head cached its features with.

    Parameters
    ----------
    config : TrainingConfig
        Of the run.
    bundle : Bundle
        Its weights may be rounded (`half`), and the cache would then not know them.

    Returns
    -------
    Backbone

    Examples
    --------
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> bundle, config = untrained_bundle(), TrainingConfig(stage="head", table="a.csv", out="run")
    >>> frozen_backbone(config, bundle) is bundle.backbone
    True
    """
    if not config.half:
        return bundle.backbone
    with contextlib.suppress(GeoMvmfError):  # what it was made from may be gone: the rounded one is as good
        return preparation.first_backbone(config)[0]
    return bundle.backbone


@contextlib.contextmanager
def _reading(paths: list[Path], bundle: Bundle, workers: int) -> Iterator[Iterator[npt.NDArray[np.uint8] | ImageError]]:
    stream = images.read_images(paths, bundle.spec, workers=workers)
    with contextlib.closing(stream):
        yield stream


def _joined(blocks: list[npt.NDArray[np.float32]], bundle: Bundle) -> npt.NDArray[np.float32]:
    return np.concatenate([np.empty((0, bundle.num_components), dtype=np.float32), *blocks])


def _nearest_km(training: FloatArray, places: FloatArray) -> FloatArray:
    if not len(training):
        return np.full(len(places), math.nan)
    chords = np.asarray(spatial.cKDTree(training).query(places)[0], dtype=np.float64)
    return np.asarray(2.0 * np.arcsin(np.minimum(chords / 2.0, 1.0)) * sphere.EARTH_RADIUS_KM)


def _fitted(
    head: Head, logits: npt.NDArray[np.float32], places: FloatArray, block_level: int
) -> tuple[scaling.Scaling, tuple[float, float, float]] | tuple[None, None]:
    rows = evenly(np.arange(len(logits)), max(_LEAST, _MOST_FITTED // logits.shape[1]))
    blocks, _ = block_ids(places[rows], block_level)
    groups = np.unique(blocks, return_inverse=True)[1].astype(np.int64).ravel()
    if len(rows) < calibration.MIN_IMAGES or groups.max(initial=-1) + 1 < calibration.MIN_GROUPS:
        return None, None
    found = scaling.fit(logits[rows], densities_of(head, places[rows]), groups)
    return found, scaling.mean_with_groups(found.after - found.before, groups)
