"""Options that a run never looks at: a new run refuses them, one that goes on says that they do nothing.

An option that has its default counts as one that was not given (`check_given` knows the one exception). What changes
no result, such as `workers` or `cache_dir`, may stand where it is of no use.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from geo_mvmf.errors import BadBundleError, UsageError
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.bundle_format import read_header

if TYPE_CHECKING:
    from geo_mvmf.model.configuration import TrainingConfig

_BACKBONE = ("backbone", "backbone_width", "stem_stride", "pool", "embedding", "channels")
_PARTITION = ("partition", "num_components", "split_above", "drop_below", "partition_file", "partition_column",
              "max_level")  # fmt: skip
_MEANS, _CONCENTRATIONS = "mean_direction_learning_rate", "concentration_learning_rate"
_COMPONENTS = ("mean_direction", "initial_log_concentration", "train_mean_directions", "train_log_concentrations",
               "floor", _MEANS, _CONCENTRATIONS)  # fmt: skip
_K_MEANS = "k-means has the mean of the photos of each class in any case"


class IdleOptionWarning(UserWarning):
    """An option of a run that goes on does nothing."""


class _Rule(NamedTuple):
    """Options that do nothing in some runs, why, and what to do instead of leaving them out, where there is such."""

    names: tuple[str, ...]
    why: str
    instead: str = ""
    values: tuple[Any, ...] | None = None  # those that do nothing; None: all but the default


def check_idle(config: TrainingConfig, *, where: str = "", begun: bool = False) -> None:
    """Make sure that the run looks at every option that was given.

    Parameters
    ----------
    config : TrainingConfig
    where : str
        What messages begin with: the TOML file.
    begun : bool
        Whether the run goes on: it was begun with these options, so it can only be told.

    Raises
    ------
    UsageError
        An option of a new run does nothing: which, its value, why, and what to do.

    Warns
    -----
    IdleOptionWarning
        The same of a run that goes on.

    Examples
    --------
    >>> from geo_mvmf.model.configuration import TrainingConfig
    >>> check_idle(TrainingConfig(stage="head", table="a.csv", out="run", schedule="cosine", drop_factor=0.5))
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: drop_factor 0.5 does nothing: schedule 'cosine' has no drops; leave it out, or use
    schedule drops
    """
    begins = f"{where}: " if where else ""
    for text in _idle(config):
        if not begun:
            raise UsageError(f"{begins}{text}")
        warnings.warn(f"{begins}{text}; this run was begun with it, so it stays", IdleOptionWarning, stacklevel=2)


def check_given(values: Mapping[str, Any], *, where: str) -> None:
    """Refuse a default that is given and is not what the run does; that it was given a configuration cannot tell.

    Parameters
    ----------
    values : mapping
        As a TOML file holds them.
    where : str
        As `check_idle`.

    Raises
    ------
    UsageError
        k-means is given centres.

    Examples
    --------
    >>> check_given({"partition": "kmeans", "mean_direction": "centre"}, where="a.toml")
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: a.toml: mean_direction 'centre' does nothing: k-means has the mean of the photos of each
    class in any case; leave it out
    """
    if values.get("partition") == "kmeans" and values.get("mean_direction") == "centre":
        raise UsageError(f"{where}: mean_direction 'centre' does nothing: {_K_MEANS}; leave it out")


def _idle(config: TrainingConfig) -> Iterator[str]:
    """Say of every option that does nothing so, once."""
    given = _given(config)
    told: set[str] = set()
    for rule in _rules(config):
        for name in rule.names:
            if name not in given or name in told or (rule.values is not None and given[name] not in rule.values):
                continue
            told.add(name)
            instead = f", or {rule.instead}" if rule.instead else ""
            yield f"{_shown(name, given[name])} does nothing: {rule.why}; leave it out{instead}"


def _given(config: TrainingConfig) -> dict[str, Any]:
    """Options with another value than the default, those of [augment] by a name of their own."""
    fields = [(field.name, field, getattr(config, field.name)) for field in dataclasses.fields(config)]
    fields += [(f"augment.{f.name}", f, getattr(config.augment, f.name)) for f in dataclasses.fields(Augmentation)]
    return {name: value for name, field, value in fields if value != _default(field)}


def _default(field: dataclasses.Field[Any]) -> object:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _shown(name: str, value: object) -> str:
    if isinstance(value, Augmentation):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        changed = [f"{key} {each}" for key, each in own.items() if each != getattr(Augmentation(), key)]
        return f"[augment] ({', '.join(changed)})"
    within = "[augment] " if name.startswith("augment.") else ""
    return f"{within}{name.removeprefix('augment.')} {value!r}"


def _rules(config: TrainingConfig) -> Iterator[_Rule]:
    """Rules that hold for a run, the one that says most of an option first."""
    yield from _rules_of_stage(config)
    yield from _rules_of_start(config)
    if config.stage != "backbone":
        yield from _rules_of_head(config)
    if config.schedule != "drops":
        names = ("drop_steps", "drop_factor") if config.drop_steps else ("drop_factor",)  # no drops are said so: true
        yield _Rule(names, f"schedule {config.schedule!r} has no drops", "use schedule drops")
    yield from _rules_of_validation(config)
    if config.augment.saturation and (channels := _channels(config)) != 3:
        yield _Rule(("augment.saturation",), f"images of {channels} channels have no grey", "use channel_gain")


def _rules_of_stage(config: TrainingConfig) -> Iterator[_Rule]:
    if config.stage == "head":
        cached = "stage head trains on features, which are computed once of images as they are"
        yield _Rule(("augment",), cached, "use stage finetune")
        yield _Rule(("backbone_learning_rate",), "stage head trains no backbone", "use stage finetune")
        yield _Rule(("precision",), "it is that of a backbone in training", "use stage finetune", ("bfloat16",))
        return
    yield _Rule(("features_dtype",), f"stage {config.stage} caches no features", "use stage head")
    if config.stage == "finetune":
        return
    what = "stage backbone classifies countries: its head is thrown away and it makes no bundle"
    yield _Rule(
        ("head", "bias", *_COMPONENTS, "half", "description", "licence"), what, "give it to the stages that follow"
    )
    if config.balance == "none":
        yield _Rule(_PARTITION, "stage backbone makes cells for balance alone, which is 'none'", "set balance")


def _rules_of_start(config: TrainingConfig) -> Iterator[_Rule]:
    if config.stage != "backbone":
        yield _Rule(("polygons", "label_column"), f"stage {config.stage} has no countries", "use stage backbone")
    if config.init_bundle is not None:
        yield _Rule(_BACKBONE, f"the backbone is that of init_bundle {config.init_bundle}", "leave init_bundle out")
        if config.stage == "finetune":
            head = f"the head is that of init_bundle {config.init_bundle}"
            yield _Rule(("mean_direction", "initial_log_concentration", "max_level"), head)
            yield _Rule(("bias",), head, values=("zeros",))
    elif config.ground_km is None:
        yield _Rule(("bands", "stretch"), "they are of rasters of known ground size", "give ground_km")


def _rules_of_head(config: TrainingConfig) -> Iterator[_Rule]:
    if config.head == "cross_entropy":
        yield _Rule(_COMPONENTS, "head cross_entropy has S2 cells and no components", "use head mvmf")
    if config.partition == "kmeans":
        yield _Rule(("mean_direction",), _K_MEANS)
    if not config.train_mean_directions:
        yield _Rule((_MEANS,), "mean directions stay as they are", "set train_mean_directions = true")
    if not config.train_log_concentrations:
        yield _Rule((_CONCENTRATIONS,), "concentrations stay as they are", "set train_log_concentrations = true")


def _rules_of_validation(config: TrainingConfig) -> Iterator[_Rule]:
    drawn = config.validation in ("random", "blocks")
    if not drawn and config.validation_fraction:
        how = f"validation {config.validation!r} draws no images"
        yield _Rule(("validation_fraction",), how, "use validation random or blocks")
    if config.validation == "none" or (drawn and not config.validation_fraction):
        yield _Rule(("validate_steps", "block_level"), "no images are held out", "hold some out")


def _channels(config: TrainingConfig) -> int:
    """Channels of the images; a bundle that cannot be read is told of where it is loaded."""
    if config.init_bundle is not None:
        with contextlib.suppress(BadBundleError):
            return int(read_header(config.init_bundle)["image"]["channels"])
    return config.channels
