"""Release: what a finished run leaves - a bundle, or after stage backbone the weights of a backbone."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from geo_mvmf.errors import TrainingError
from geo_mvmf.model import overlap, sealed
from geo_mvmf.model.bundle import Bundle, save_bundle
from geo_mvmf.model.bundle_content import TrainingArea
from geo_mvmf.model.bundle_format import RESPONSIBLE_USE
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.country_head import CountryHead, save_country_head
from geo_mvmf.model.head_state import whole_head
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.preparation import Prepared

_STATISTICS_ROWS = 4096


def released_path(config: TrainingConfig) -> Path:
    """Where a run leaves its result.

    Parameters
    ----------
    config : TrainingConfig

    Examples
    --------
    >>> released_path(TrainingConfig(stage="head", table="a.csv", out="run")).as_posix()
    'run/bundle.safetensors'
    """
    return Path(config.out) / ("backbone.safetensors" if config.stage == "backbone" else "bundle.safetensors")


def write_release(config: TrainingConfig, prepared: Prepared, learner: Learner, *, stopped: int | None = None) -> None:
    """Write the best model of a finished run; of several ranks rank 0 does it, with the components of all.

    Parameters
    ----------
    config : TrainingConfig
    prepared : Prepared
    learner : Learner
    stopped : int, optional
        After which step the run was ended early.

    Raises
    ------
    OutputError
        If the disk refuses.
    """
    learner.finish()
    path = released_path(config)
    if isinstance(learner.head, CountryHead):
        save_country_head(learner.head, path.parent)  # first, because what is written next says that all is there
        state = prepared.backbone.state_dict()
        arrays = {name: value.detach().cpu().contiguous().numpy() for name, value in state.items()}
        sealed.write_sealed(path, arrays, {"format": "geo_mvmf backbone", "backbone": prepared.backbone.name})
        return
    head = whole_head(learner.head) if isinstance(learner.head, MvmfHead) else learner.head
    if head is None:
        return
    mean, std = _feature_statistics(prepared, learner)
    bundle = Bundle(
        backbone=prepared.backbone.cpu(),
        head=head.cpu(),
        spec=prepared.spec,
        **_classes(prepared),
        feature_mean=mean,
        feature_std=std,
        metadata={
            "training": _summary(config, prepared, learner, stopped),
            "description": config.description,
            "licence": config.licence,
            "responsible_use": RESPONSIBLE_USE,
        },
    )
    save_bundle(bundle, path, half=config.half)


def _classes(prepared: Prepared) -> dict[str, Any]:
    """Cells and counts of the components' classes, and the training area where the classes do not tile the sphere."""
    classes, partition = prepared.classes, prepared.partition
    if classes is partition:
        return {"cell_ids": partition.cell_ids, "counts": partition.counts}
    cells = classes.cell_ids if classes.has_cells else np.zeros(len(classes), dtype=np.uint64)
    area = TrainingArea(partition.cell_ids, partition.counts)
    return {"cell_ids": cells, "counts": classes.counts, "area": area}


def _feature_statistics(
    prepared: Prepared, learner: Learner
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and standard deviation of the features of training images, evenly picked."""
    rows = prepared.image_set.training
    picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), _STATISTICS_ROWS)).astype(np.int64)]
    parts = [picked[begin : begin + 64] for begin in range(0, len(picked), 64)]
    blocks = []
    for batch in prepared.evaluation_source.batches(parts):
        blocks.append(learner.features(batch)[torch.from_numpy(batch.readable)].double().cpu().numpy())
    features = np.concatenate(blocks)
    if len(features) == 0:
        raise TrainingError(f"none of {len(picked)} training images can be read for the feature statistics")
    return features.mean(axis=0).astype(np.float32), features.std(axis=0).astype(np.float32)


def _summary(config: TrainingConfig, prepared: Prepared, learner: Learner, stopped: int | None) -> dict[str, Any]:
    """Tell about the making of a bundle; no time, so that the same run gives the same bytes."""
    rows = prepared.image_set.training
    return {
        "stage": config.stage,
        "num_training": len(prepared.image_set.training),
        "num_validation": len(prepared.image_set.validation),
        "validation": config.validation,
        "best": dict(learner.best),
        "steps": learner.steps,
        **({} if stopped is None else {"stopped_early": stopped}),
        "batch_size": config.batch_size,
        "seed": config.seed,
        "balance": config.balance,
        "device": learner.device.type,
        "data_sha256": prepared.image_set.digest(),
        "places_sketch": overlap.sketch(prepared.image_set.longitude[rows], prepared.image_set.latitude[rows]),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "torchvision", "numpy")},
        },
    }
