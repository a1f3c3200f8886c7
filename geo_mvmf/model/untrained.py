"""A small bundle with random weights, for examples and tests."""

from __future__ import annotations

import numpy as np

from geo_mvmf import s2
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.model import bundle_format, heads
from geo_mvmf.model.backbones import build_backbone
from geo_mvmf.model.bundle import Bundle


def untrained_bundle(*, width: int = 8, crop: int = 32, seed: int = 0) -> Bundle:
    """Make a small bundle with random weights, for examples and tests.

    Parameters
    ----------
    width : int
        Of the network "chip_resnet10".
    crop : int
        Pixels of its images.
    seed : int

    Returns
    -------
    Bundle
        With six components, one per face of the S2 cube.

    Examples
    --------
    >>> untrained_bundle().num_components
    6
    """
    backbone = build_backbone("chip_resnet10", width=width, seed=seed)
    cells = np.sort(s2.face_cells())
    head = heads.MvmfHead(backbone.num_features, s2.centre(cells), np.full(6, 2.0), seed=seed)
    return Bundle(
        backbone=backbone,
        head=head.eval(),
        spec=ImageSpec(resize=crop, crop=crop),
        cell_ids=cells,
        counts=np.ones(6, np.int64),
        feature_mean=np.zeros(backbone.num_features, np.float32),
        feature_std=np.ones(backbone.num_features, np.float32),
        metadata={
            "training": {},
            "description": "Random weights: an example.",
            "licence": "MIT",
            "responsible_use": bundle_format.RESPONSIBLE_USE,
        },
    )
