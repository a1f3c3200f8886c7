"""Preparation: from a configuration and its images to a backbone, a head, targets and a source of batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf.errors import TrainingError, UsageError
from geo_mvmf.inputs.images import ImageSpec, spec_of_chips
from geo_mvmf.model import sources
from geo_mvmf.model.backbones import Backbone, build_backbone
from geo_mvmf.model.bundle import Bundle, load_bundle
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.country_head import CountryHead
from geo_mvmf.model.features import cache_features
from geo_mvmf.model.head_state import head_from_state, head_state
from geo_mvmf.model.heads import CrossEntropyHead, MvmfHead
from geo_mvmf.model.image_set import ImageSet, country_labels, sampling_weights
from geo_mvmf.model.learner import Learner
from geo_mvmf.model.measurement import AnyHead
from geo_mvmf.model.partition import Partition, initial_log_concentrations
from geo_mvmf.model.ranks import Ranks
from geo_mvmf.model.shared_features import features_of_rank_0
from geo_mvmf.model.starting_classes import StartingClasses, classes_of_bundle, classes_of_images, within_classes
from geo_mvmf.progress import Progress


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """Everything that a run needs before its first step.

    Parameters
    ----------
    config : TrainingConfig
    image_set : ImageSet
        Without the images that are known to be unreadable.
    backbone : Backbone
    head : MvmfHead, CrossEntropyHead or CountryHead
    partition : Partition
        S2 cells that tile the sphere, with the training images in each.
    classes : Partition
        What the head's components begin as, one each: often the same.
    weights : array, shape (len(image_set.training),), float64
        How often each is drawn.
    targets : Tensor
        Of all rows.
    source, evaluation_source : Source
        For training and for validation.
    spec : ImageSpec
        How images are prepared for prediction.
    device : torch.device
    ranks : Ranks
        Processes that train together.
    """

    config: TrainingConfig
    image_set: ImageSet
    backbone: Backbone
    head: AnyHead
    partition: Partition
    classes: Partition
    weights: npt.NDArray[np.float64]
    targets: Tensor
    source: sources.Source
    evaluation_source: sources.Source
    spec: ImageSpec
    device: torch.device
    ranks: Ranks

    def learner(self, steps: int) -> Learner:
        """Make the learner.

        Parameters
        ----------
        steps : int
            Of the whole run.
        """
        trained = None if self.config.stage == "head" else self.backbone
        pixel_km = math.nan if self.spec.ground_km is None else self.spec.ground_km / self.spec.resize
        return Learner(
            self.config, self.head, trained, self.targets, self.spec.crop, pixel_km, steps, self.device, self.ranks
        )


def prepare(
    config: TrainingConfig, image_set: ImageSet, device: torch.device, folder: Path, ranks: Ranks | None = None
) -> Generator[Progress, None, Prepared]:
    """Make everything that a run needs; the same configuration and images give the same.

    Parameters
    ----------
    config : TrainingConfig
    image_set : ImageSet
    device : torch.device
    folder : Path
        Run folder; features are cached in it unless the configuration names a cache.
    ranks : Ranks, optional
        Processes that train together; all have to call it at the same time.

    Yields
    ------
    Progress
        Stage "features" or "load".

    Returns
    -------
    Prepared
    """
    ranks = ranks or Ranks(alone=True)
    backbone, old_head, old_classes, spec = _start(config, ranks)
    released = _released_spec(config, spec)
    source: sources.Source
    evaluation_source: sources.Source
    if config.stage == "head":
        image_set, source = yield from _features(config, image_set, backbone, spec, device, folder, ranks)
        evaluation_source = source
    else:
        image_set, source, evaluation_source = yield from _pixels(config, image_set, spec, device)
    found = classes_of_images(config, image_set) if old_classes is None else old_classes.recounted(image_set)
    classes, partition = found
    if config.head == "cross_entropy" and config.stage != "backbone":
        image_set = within_classes(image_set, classes)
    if len(classes) < ranks.size:
        raise TrainingError(f"{len(classes)} components cannot be shared by {ranks.size} processes; start fewer")
    targets = torch.from_numpy(image_set.directions)
    head: AnyHead
    if config.stage == "backbone":
        labels, names = country_labels(config, image_set)
        targets = torch.from_numpy(labels)
        head = CountryHead(backbone.num_features, len(names), seed=config.seed)
    else:
        head = old_head or new_head(config, backbone.num_features, classes, ranks)
    return Prepared(
        config=config,
        image_set=image_set,
        backbone=backbone,
        head=head,
        partition=partition,
        classes=classes,
        weights=sampling_weights(config, image_set, partition),
        targets=targets,
        source=source,
        evaluation_source=evaluation_source,
        spec=released,
        device=device,
        ranks=ranks,
    )


def image_spec(config: TrainingConfig, backbone: Backbone) -> ImageSpec:
    """How images are prepared: what the configuration says, else how chips were cut, else the backbone's own size.

    Parameters
    ----------
    config : TrainingConfig
    backbone : Backbone

    Returns
    -------
    ImageSpec

    Raises
    ------
    UsageError
        If the crop is larger than what is left after scaling.

    Examples
    --------
    >>> config = TrainingConfig(stage="finetune", table="a.csv", out="run", crop=48)
    >>> image_spec(config, build_backbone("chip_resnet10", width=8)).resize
    48
    """
    chips = _chips_folder(config)
    if chips is not None:
        return _spec_of_chips(config, chips)
    own = backbone.image_spec
    crop = config.crop or own.crop
    # Chips are seen whole; of photos the network's usual margin is cut off.
    resize = config.resize or max(crop, round(crop * own.resize / own.crop))
    if config.ground_km is not None and config.resize is None:
        resize = crop
    if crop > resize:
        raise UsageError(f"crop {crop} is larger than resize {resize}: a square of {crop} pixels cannot be cut out")
    stretch = None if config.stretch is None else tuple((float(low), float(high)) for low, high in config.stretch)
    return ImageSpec(
        resize=resize,
        crop=crop,
        bands=None if config.bands is None else tuple(config.bands),
        stretch=stretch,
        ground_km=config.ground_km,
        channels=config.channels,
    )


def first_backbone(config: TrainingConfig) -> tuple[Backbone, ImageSpec]:
    """Make the backbone that a run begins with, and say how images are prepared for it.

    Parameters
    ----------
    config : TrainingConfig

    Returns
    -------
    Backbone, ImageSpec

    Examples
    --------
    >>> config = TrainingConfig(stage="head", table="a.csv", out="run", backbone="chip_resnet10", backbone_width=8)
    >>> first_backbone(config)[0].num_features
    64
    """
    backbone, _, _, spec = _start(config, Ranks(alone=True))
    return backbone, spec


def _chips_folder(config: TrainingConfig) -> Path | None:
    """Find the folder of chips that the table is of, where nothing else is said about how they were cut."""
    if any(value is not None for value in (config.resize, config.ground_km, config.bands, config.stretch)):
        return None
    table = Path(config.table)
    folder = table if table.is_dir() else table.parent
    return folder if (folder / "chips.json").is_file() else None


def _spec_of_chips(config: TrainingConfig, folder: Path) -> ImageSpec:
    spec = spec_of_chips(folder, crop=config.crop)
    if config.crop is None and 0 < 2 * config.augment.roam < spec.resize:
        spec = dataclasses.replace(spec, crop=spec.resize - 2 * config.augment.roam)
    if spec.channels != config.channels:
        raise UsageError(f"{folder}: the chips have {spec.channels} channels, channels is {config.channels}; change it")
    return spec


def _start(
    config: TrainingConfig, ranks: Ranks
) -> tuple[Backbone, MvmfHead | CrossEntropyHead | None, StartingClasses | None, ImageSpec]:
    """Backbone and, for stage finetune, head and classes of the bundle to start from."""
    if config.init_bundle is None:
        backbone = build_backbone(
            config.backbone,
            weights=config.weights,
            channels=config.channels,
            seed=config.seed,
            width=config.backbone_width,
            stem_stride=config.stem_stride,
            pool=config.pool,
            embedding=config.embedding,
            normalisation=config.normalisation,
        )
        return backbone, None, None, image_spec(config, backbone)
    bundle = load_bundle(config.init_bundle, device="cpu")
    _check_start(config, bundle)
    if config.stage != "finetune":
        return bundle.backbone, None, None, bundle.spec
    return bundle.backbone, _old_head(config, bundle, ranks), classes_of_bundle(bundle), bundle.spec


def _check_start(config: TrainingConfig, bundle: Bundle) -> None:
    """Refuse options that contradict the bundle to start from, instead of leaving them out without a word."""
    spec = bundle.spec.to_dict()
    for name in ("resize", "crop", "bands", "stretch", "ground_km"):
        value = getattr(config, name)
        if value is not None and value != spec[name]:
            raise UsageError(f"{name} is {value}, but {config.init_bundle} was trained with {spec[name]}; leave it out")
    normalised = bundle.backbone.config.normalisation
    if config.normalisation not in ("fixed", normalised):  # fixed is the default
        raise UsageError(
            f"normalisation is {config.normalisation!r}, but that of {config.init_bundle} is {normalised!r}; leave it "
            "out"
        )
    if config.stage == "finetune" and config.bias == "none" and bool(bundle.head.bias.count_nonzero()):
        raise UsageError(f"bias is 'none', but {config.init_bundle} was trained with one; leave it out")
    kind = "mvmf" if isinstance(bundle.head, MvmfHead) else "cross_entropy"
    if config.stage == "finetune" and config.head != kind:
        raise UsageError(
            f"head is {config.head}, but that of {config.init_bundle} is {kind}; train a new one by stage head"
        )


def _old_head(config: TrainingConfig, bundle: Bundle, ranks: Ranks) -> MvmfHead | CrossEntropyHead:
    """Take the head of a bundle, with what this run trains of it."""
    tensors, options = head_state(bundle.head)
    if options["kind"] == "mvmf":
        options |= {
            "floor": config.floor,
            "train_mean_directions": config.train_mean_directions,
            "train_log_concentrations": config.train_log_concentrations,
        }
    head = head_from_state(tensors, options, ranks=ranks)
    if isinstance(head, CrossEntropyHead):  # a bundle does not hold it: predictions do not depend on it
        head.smooth_labels(config.label_smoothing_km)
    return head


def new_head(
    config: TrainingConfig, num_features: int, classes: Partition, ranks: Ranks | None = None
) -> MvmfHead | CrossEntropyHead:
    """Make the head that training begins with.

    Parameters
    ----------
    config : TrainingConfig
    num_features : int
    classes : Partition
        One for each component.
    ranks : Ranks, optional
        Processes that share the components.
    """
    counts = classes.counts if config.bias == "counts" else None
    if config.head == "cross_entropy":
        return CrossEntropyHead(
            num_features,
            classes.cell_ids,
            prior_counts=counts,
            seed=config.seed,
            label_smoothing_km=config.label_smoothing_km,
        )
    return MvmfHead(
        num_features,
        classes.mean_directions,
        initial_log_concentrations(classes, config.initial_log_concentration),
        train_mean_directions=config.train_mean_directions,
        train_log_concentrations=config.train_log_concentrations,
        floor=config.floor,
        prior_counts=counts,
        seed=config.seed,
        ranks=ranks,
    )


def _features(
    config: TrainingConfig,
    image_set: ImageSet,
    backbone: Backbone,
    spec: ImageSpec,
    device: torch.device,
    folder: Path,
    ranks: Ranks,
) -> Generator[Progress, None, tuple[ImageSet, sources.FeatureSource]]:
    cache = yield from features_of_rank_0(
        ranks,
        lambda before_unlocking: cache_features(
            backbone,
            image_set.table,
            config.cache_dir or folder / "features",
            spec=spec,
            batch_size=64,
            device=device,
            workers=config.workers,
            dtype=config.features_dtype,
            paths=image_set.paths,
            before_unlocking=before_unlocking,
        ),
    )
    return image_set.without(cache.index < 0), sources.FeatureSource(cache, device)


def _pixels(
    config: TrainingConfig, image_set: ImageSet, spec: ImageSpec, device: torch.device
) -> Generator[Progress, None, tuple[ImageSet, sources.Source, sources.Source]]:
    read = _read_spec(config, spec)
    size = len(image_set) * read.channels * read.crop**2
    if size > config.cache_images_gigabytes * 1e9:
        files = sources.FileSource(image_set.paths, read, config.workers, device)
        return image_set, files, files
    memory = yield from sources.load_into_memory(image_set.paths, read, workers=config.workers, device=device)
    return image_set.without(~memory.readable), memory, memory


def _read_spec(config: TrainingConfig, spec: ImageSpec) -> ImageSpec:
    """Say what is read of each training image: with a margin where a crop moves; validation cuts the centre out."""
    if spec.ground_km is None:
        wide = config.augment.moves_pixels and spec.resize > spec.crop
        return dataclasses.replace(spec, crop=spec.resize) if wide else spec
    return dataclasses.replace(spec, crop=spec.crop + 2 * config.augment.roam)


def _released_spec(config: TrainingConfig, spec: ImageSpec) -> ImageSpec:
    """Say what the model will take: where the crop roams, images no larger than the crop."""
    if not config.augment.roam:
        return spec
    roam = config.augment.roam
    if spec.ground_km is None:
        raise UsageError(
            f"augment: roam is {roam}, but the ground size of these images is not known, so their places cannot move "
            "along; cut chips with `geo-mvmf chips`, or give ground_km"
        )
    if spec.crop + 2 * roam > spec.resize:
        raise UsageError(
            f"augment: roam {roam} about a crop of {spec.crop} pixels needs images of {spec.crop + 2 * roam} pixels; "
            f"they have {spec.resize}: cut larger chips, or lower roam or crop"
        )
    return dataclasses.replace(spec, resize=spec.crop, ground_km=spec.ground_km * spec.crop / spec.resize)
