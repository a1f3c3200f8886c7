"""The learning curve: heads trained on ever larger shares of a run's images, judged on the same held-out ones.

The features are those of the finished run, frozen. Where the run trained its backbone, too, that network has seen all
training images, so the curve shows what the head gains from more of them, and the whole model gains more.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from geo_mvmf import s2, sphere
from geo_mvmf.model import scaling
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.bundle import Bundle, Head
from geo_mvmf.model.class_head import CrossEntropyHead
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.country_head import CountryHead
from geo_mvmf.model.features import FeatureCache, cache_features
from geo_mvmf.model.held_out import densities_of, frozen_backbone
from geo_mvmf.model.image_set import ImageSet, epoch_order, sampling_weights
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.partition import PartitionWarning
from geo_mvmf.model.preparation import new_head
from geo_mvmf.model.sources import FeatureSource
from geo_mvmf.model.starting_classes import classes_of_images, within_classes
from geo_mvmf.progress import Progress

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SHARES = (0.125, 0.25, 0.5, 1.0)
STEPS = 400
"""Of each head, where the run had more: enough to tell the shares apart."""

_LEAST_RATE = 1e-3  # a rate for fine-tuning hardly moves a head that begins anew
_LEAST_IMAGES = 8  # of the smallest share
_LOOKS = 8  # how often the held-out images are looked at while a head is trained: the best state counts


class CurvePoint(NamedTuple):
    """What a head is worth that saw so many images.

    Attributes
    ----------
    images : int
        Training images.
    components : int
    rows : ndarray of int64, (n,)
        Held-out images, of the image set.
    nll : ndarray of float64, (n,)
        Nats per steradian; places outside the cells of a cross-entropy head are left out.
    error_km : ndarray of float64, (n,)
        From the heaviest component.
    """

    images: int
    components: int
    rows: IntArray
    nll: FloatArray
    error_km: FloatArray


def learning_curve_job(
    config: TrainingConfig, bundle: Bundle, image_set: ImageSet, held_out: IntArray, *, steps: int = STEPS
) -> Generator[Progress, None, list[CurvePoint]]:
    """Train heads on nested shares of the training images; closing the generator stops it.

    Parameters
    ----------
    config : TrainingConfig
        Of the run, whose recipe the heads follow.
    bundle : Bundle
        What it released: its backbone makes the features.
    image_set : ImageSet
        From `load_image_set(config)`.
    held_out : ndarray of int64, (n,)
        Rows that judge the heads.
    steps : int
        Of each head, at most.

    Yields
    ------
    Progress
        Stages "features" and "train", in steps of all heads.

    Returns
    -------
    list of CurvePoint
        From the smallest share on; shares of fewer than 8 images are left out.

    Examples
    --------
    See `geo_mvmf.training_report.training_report_job`.
    """
    recipe = recipe_of(config, bundle, steps)
    with tempfile.TemporaryDirectory(prefix="geo-mvmf-") as scratch:
        cache = yield from _features(config, bundle, image_set, held_out, Path(scratch))
        usable = image_set.without(cache.index < 0)
        judged = held_out[cache.index[held_out] >= 0]
        shares = nested(usable.training, config.seed)
        points = []
        for number, rows in enumerate(shares):
            own = dataclasses.replace(usable, training=rows, validation=judged)
            head = _Fit(recipe, own, cache, bundle)
            for done in head.steps():
                whole = number * head.total + done
                yield Progress("train", whole, len(shares) * head.total, f"a head of {len(rows)} images")
            points.append(head.point())
        del cache  # its file lies in the folder that goes
    return points


def recipe_of(config: TrainingConfig, bundle: Bundle, steps: int = STEPS) -> TrainingConfig:
    """Make the configuration of the heads from that of the run.

    Parameters
    ----------
    config : TrainingConfig
    bundle : Bundle
    steps : int

    Returns
    -------
    TrainingConfig
        Of stage head, with the run's partition and optimiser, fewer steps, and a learning rate of 1e-3 at least where
        the run fine-tuned. Whoever began with the components of a bundle gets as many of the S2 partition.

    Examples
    --------
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> config = TrainingConfig(stage="finetune", table="a.csv", out="run", learning_rate=1e-5, steps=9000)
    >>> recipe = recipe_of(config, untrained_bundle())
    >>> recipe.stage, recipe.steps, recipe.learning_rate
    ('head', 400, 0.001)
    """
    given_steps = int(bundle.metadata["training"].get("steps") or config.steps or steps)
    most = max(1, min(steps, given_steps))
    tuned = config.stage == "finetune"
    began = tuned and config.init_bundle is not None
    return dataclasses.replace(
        config,
        stage="head",
        init_bundle=None,
        epochs=None,
        steps=most,
        warmup_steps=min(config.warmup_steps, most // 10),
        learning_rate=max(config.learning_rate, _LEAST_RATE) if tuned else config.learning_rate,
        num_components=bundle.num_components if began else config.num_components,
        augment=Augmentation(),
    )


def nested(training: IntArray, seed: int) -> list[IntArray]:
    """Draw shares of the training images, each within the next.

    Parameters
    ----------
    training : ndarray of int64, (n,)
    seed : int

    Returns
    -------
    list of ndarray of int64
        Ascending rows.

    Examples
    --------
    >>> small, large = nested(np.arange(16), 0)
    >>> len(small), len(large), set(small.tolist()) < set(large.tolist())
    (8, 16, True)
    """
    order = np.random.default_rng(seed).permutation(training)
    sizes = sorted({math.ceil(share * len(order)) for share in SHARES})
    return [np.sort(order[:size]) for size in sizes if size >= min(_LEAST_IMAGES, len(order))]


def _features(
    config: TrainingConfig, bundle: Bundle, image_set: ImageSet, held_out: IntArray, scratch: Path
) -> Generator[Progress, None, FeatureCache]:
    """Features of training and held-out images, by rows of the image set; from the run's cache where it has one."""
    rows = np.sort(np.concatenate([image_set.training, held_out]))
    is_cached = config.stage == "head"
    found = yield from cache_features(
        frozen_backbone(config, bundle) if is_cached else bundle.backbone,
        image_set.table.iloc[rows].reset_index(drop=True),
        (config.cache_dir or Path(config.out) / "features") if is_cached else scratch,
        spec=bundle.spec,
        device=bundle.device,
        workers=config.workers,
        dtype=config.features_dtype,
        paths=[image_set.paths[row] for row in rows],
    )
    index = np.full(len(image_set), -1, dtype=np.int64)
    index[rows] = found.index
    return FeatureCache(found.features, index, ["ok"] * len(index), [""] * len(index))


class _Fit:
    """One head in training."""

    def __init__(self, recipe: TrainingConfig, image_set: ImageSet, cache: FeatureCache, bundle: Bundle) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PartitionWarning)  # a small share fills fewer cells: that is the point
            classes, partition = classes_of_images(recipe, image_set)
            if recipe.head == "cross_entropy":
                image_set = within_classes(image_set, classes)
        self.image_set, self.recipe, self.components = image_set, recipe, len(classes)
        self.total = recipe.steps or 1
        self.source = FeatureSource(cache, bundle.device)
        self.weights = sampling_weights(recipe, image_set, partition)
        self.batch_size = min(recipe.batch_size, len(image_set.training))
        head = new_head(recipe, bundle.backbone.num_features, classes)
        targets = torch.from_numpy(image_set.directions)
        self.learner = Learner(recipe, head, None, targets, 1, math.nan, self.total, bundle.device)

    def steps(self) -> Iterator[int]:
        """Do all steps; keep the state that is best on the held-out images, as a run does."""
        often = max(1, self.total // _LOOKS)
        for step, batch in zip(range(self.total), self.source.batches(self._orders()), strict=False):
            self.learner.train_step(step, batch)
            done = step + 1
            if len(self.image_set.validation) and (done % often == 0 or done == self.total):
                measured = self.learner.evaluate(self.source.batches(self._held_out()), self.image_set.weight)
                self.learner.keep_if_best(done, measured)
            yield done
        self.learner.finish()

    def point(self) -> CurvePoint:
        """Judge the head on every held-out image."""
        head = self.learner.head
        if isinstance(head, CountryHead):
            raise TypeError(f"a head of {head.weight.shape[0]} countries has no places")
        head = head.cpu()
        rows = self.image_set.validation
        batches = self.source.batches(self._held_out())
        blocks = [head.log_mixing_weights(batch.inputs.float().cpu()).detach().numpy() for batch in batches]
        logits = np.concatenate([np.empty((0, self.components), dtype=np.float32), *blocks])
        truth = self.image_set.directions[rows]
        losses = scaling.losses(logits, densities_of(head, truth), np.arange(len(rows)), np.zeros(2)).value
        error_km = sphere.angle(_places(head)[logits.argmax(axis=1)], truth) * sphere.EARTH_RADIUS_KM
        return CurvePoint(len(self.image_set.training), self.components, rows, losses, np.asarray(error_km))

    def _held_out(self) -> list[IntArray]:
        rows = self.image_set.validation
        return [rows[begin : begin + 256] for begin in range(0, len(rows), 256)]

    def _orders(self) -> Iterator[IntArray]:
        """Rows of every step: epochs as those of a run."""
        epoch = 0
        while True:
            order = self.image_set.training[epoch_order(self.weights, self.recipe.seed, epoch)]
            for begin in range(0, len(order) - self.batch_size + 1, self.batch_size):
                yield order[begin : begin + self.batch_size]
            epoch += 1


def _places(head: Head) -> FloatArray:
    """Where each component's estimate lies."""
    if isinstance(head, CrossEntropyHead):
        return s2.centre(head.cell_ids)
    return np.asarray(head.mean_directions.detach().cpu().double().numpy())
