"""What a finished run of stage backbone says of the images that it held out: the class of each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from geo_mvmf.errors import BadBundleError, ImageError
from geo_mvmf.inputs import images
from geo_mvmf.inputs.images import ImageSpec
from geo_mvmf.model import sealed
from geo_mvmf.model.backbones import Backbone, fill
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.country_head import HEAD_FILE, CountryHead, load_country_head
from geo_mvmf.model.held_out import MOST_IMAGES, evenly
from geo_mvmf.model.image_set import ImageSet, country_labels
from geo_mvmf.model.preparation import first_backbone
from geo_mvmf.progress import Progress

_BATCH = 32


class CountryResults(NamedTuple):
    """Predicted and true classes of held-out images.

    Attributes
    ----------
    rows : ndarray of int64, (n,)
        Of the image set.
    truth, predicted : ndarray of int64, (n,)
        Indices into the names.
    names : list of str
        Of the classes; the first is "no country".
    training_counts : ndarray of int64, (K,)
        Training images of each class.
    num_validation : int
        Images held out in all.
    num_unreadable : int
    """

    rows: npt.NDArray[np.int64]
    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    names: list[str]
    training_counts: npt.NDArray[np.int64]
    num_validation: int
    num_unreadable: int


def country_results_job(
    config: TrainingConfig,
    image_set: ImageSet,
    device: torch.device,
    *,
    most: int = MOST_IMAGES,
    workers: int = 2,
) -> Generator[Progress, None, CountryResults | str]:
    """Classify the images that a run of stage backbone held out.

    Parameters
    ----------
    config : TrainingConfig
        Of the run.
    image_set : ImageSet
        From `load_image_set(config)`.
    device : torch.device
    most : int
        Images looked at, evenly picked.
    workers : int
        Threads that read images.

    Yields
    ------
    Progress
        Stage "predict".

    Returns
    -------
    CountryResults or str
        Or why there are none.

    Examples
    --------
    See `geo_mvmf.training_report.training_report_job`.
    """
    labels, names = country_labels(config, image_set)
    model = _model(config, len(names))
    if isinstance(model, str):
        return model
    backbone, head, spec = model[0].to(device).eval(), model[1].to(device).eval(), model[2]
    rows = evenly(image_set.validation, most)
    readable = np.zeros(len(rows), dtype=np.bool_)
    blocks, done = [np.empty(0, dtype=np.int64)], 0
    stream = images.read_images([image_set.paths[row] for row in rows], spec, workers=workers)
    try:
        while batch := list(itertools.islice(stream, _BATCH)):
            good = [image for image in batch if not isinstance(image, ImageError)]
            readable[done : done + len(batch)] = [not isinstance(image, ImageError) for image in batch]
            if good:
                with torch.inference_mode():
                    features = backbone(torch.from_numpy(np.stack(good)).to(device))
                    blocks.append(head.log_mixing_weights(features).argmax(dim=1).cpu().numpy())
            done += len(batch)
            yield Progress("predict", done, len(rows))
    finally:
        stream.close()
    counts = np.bincount(labels[image_set.training], minlength=len(names))
    kept = rows[readable]
    unreadable = int((~readable).sum())
    predicted = np.concatenate(blocks)
    return CountryResults(kept, labels[kept], predicted, names, counts, len(image_set.validation), unreadable)


def _model(config: TrainingConfig, classes: int) -> tuple[Backbone, CountryHead, ImageSpec] | str:
    """The trained network and its classifier, or why there is none."""
    folder = Path(config.out)
    if not (folder / HEAD_FILE).is_file():
        return f"The run kept no {HEAD_FILE}, as versions from this one on do, so single classes cannot be judged."
    head = load_country_head(folder)
    if len(head.bias) != classes:
        return f"The run had {len(head.bias)} classes, {config.polygons} makes {classes} now: the layer has changed."
    # its own weights follow, so nothing need be downloaded for the first ones
    backbone, spec = first_backbone(dataclasses.replace(config, weights=None))
    _, state = sealed.read_sealed(folder / "backbone.safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    fill(backbone, tensors, where=str(folder / "backbone.safetensors"), error=BadBundleError)
    return backbone, head, spec
