"""Which options of a training configuration need or exclude each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from geo_mvmf.errors import UsageError
from geo_mvmf.model.bundle_format import MAX_LOG_CONCENTRATION

if TYPE_CHECKING:
    from geo_mvmf.model.configuration import TrainingConfig


def check_combinations(config: TrainingConfig) -> None:
    """Check which options go together.

    Parameters
    ----------
    config : TrainingConfig
        Each value is allowed by itself.

    Raises
    ------
    UsageError
        Naming both options, their values and what to do.

    Examples
    --------
    See `configuration.TrainingConfig`.
    """
    if config.steps is not None and config.epochs is not None:
        raise UsageError(f"steps {config.steps} and epochs {config.epochs} exclude each other; give one")
    initial, most = config.initial_log_concentration, MAX_LOG_CONCENTRATION
    if initial != "auto" and (isinstance(initial, str) or not abs(initial) <= most):
        raise UsageError(f"initial_log_concentration is {initial!r}; auto or a number in {-most:g}..{most:g}")
    if any(type(step) is not int for step in config.drop_steps):
        raise UsageError(f"drop_steps is {config.drop_steps}; a list of integers is needed")
    for kind, option in (("column", "validation_column"), ("table", "validation_table")):
        if (config.validation == kind) != (getattr(config, option) is not None):
            raise UsageError(
                f"validation {config.validation!r}: {option} is {getattr(config, option)!r}; give both or none"
            )
    if config.stage == "backbone" and config.polygons is None:
        raise UsageError("stage backbone classifies countries: polygons is missing, the layer of countries")
    if config.fused_optimiser != "none":
        _check_fused(config)
    _check_partition(config)
    _check_smoothing(config)
    if config.accumulate > config.batch_size:
        raise UsageError(
            f"accumulate is {config.accumulate}: a batch of {config.batch_size} images has no so many parts; raise "
            "batch_size, which counts the images of all parts together"
        )
    drawn = config.validation in ("random", "blocks")
    if config.patience is not None and (config.validation == "none" or (drawn and not config.validation_fraction)):
        raise UsageError(
            f"patience is {config.patience}, but nothing is validated (validation {config.validation!r}, "
            f"validation_fraction {config.validation_fraction:g}); hold images out, or leave patience out"
        )
    if config.augment.roam and config.stage != "finetune":
        raise UsageError(
            f"augment: roam is {config.augment.roam}: only stage finetune sees pixels and places; leave it out of "
            f"stage {config.stage}"
        )
    _check_start(config)


def _check_smoothing(config: TrainingConfig) -> None:
    if config.label_smoothing_km is not None and (config.stage == "backbone" or config.head != "cross_entropy"):
        what = "stage backbone" if config.stage == "backbone" else f"head {config.head}"
        raise UsageError(
            f"label_smoothing_km is {config.label_smoothing_km:g}, but {what} has no S2 cells as labels; use head "
            "cross_entropy, or leave it out"
        )


def _check_fused(config: TrainingConfig) -> None:
    what = f"fused_optimiser is {config.fused_optimiser!r}, which"
    if config.stage == "backbone":
        raise UsageError(f"{what} is for the heads of stages head and finetune; leave it out of stage backbone")
    if config.gradient_clip is not None:
        raise UsageError(
            f"{what} applies gradients before their norm is known: gradient_clip {config.gradient_clip:g} is "
            "impossible; leave one out"
        )
    if config.accumulate > 1:
        raise UsageError(
            f"{what} updates the weight in the one backward pass of a step: accumulate {config.accumulate} needs as "
            "many; leave one out"
        )


def _check_partition(config: TrainingConfig) -> None:
    _ = config.partition_options  # which checks itself
    if config.head == "cross_entropy" and config.partition == "kmeans":
        raise UsageError(
            "head cross_entropy: its density is uniform on S2 cells, and the classes of partition 'kmeans' are none; "
            "use head mvmf, or partition s2 or planet"
        )


def _check_start(config: TrainingConfig) -> None:
    if config.init_bundle is None:
        return
    if config.weights is not None:
        raise UsageError(f"weights {config.weights} and init_bundle {config.init_bundle} exclude each other; give one")
    for name, default in (("num_components", None), ("partition", "s2")):
        value = getattr(config, name)
        if config.stage == "finetune" and value != default:
            raise UsageError(f"{name} {value}: stage finetune takes the head of init_bundle; leave one out")
