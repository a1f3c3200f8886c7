"""What values the options of a training configuration may have: types, choices and ranges."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from geo_mvmf.errors import UsageError
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.partition_options import METHODS

if TYPE_CHECKING:
    from geo_mvmf.model.configuration import TrainingConfig

STAGES = ("backbone", "head", "finetune")

# Ranges and choices are kept apart from the fields so that both can be read at a glance.
CHOICES: dict[str, tuple[str, ...]] = {
    "stage": STAGES,
    "head": ("mvmf", "cross_entropy"),
    "partition": METHODS,
    "mean_direction": ("centre", "photos"),
    "bias": ("counts", "zeros", "none"),
    "optimiser": ("adam", "adamw"),
    "fused_optimiser": ("none", "float32", "bfloat16"),
    "schedule": ("drops", "cosine", "constant"),
    "balance": ("none", "cell", "area"),
    "validation": ("random", "blocks", "column", "table", "none"),
    "normalisation": ("fixed", "image"),
    "precision": ("auto", "float32", "bfloat16"),
    "features_dtype": ("float16", "float32"),
}
RANGES: dict[str, tuple[float, float]] = {
    "backbone_width": (8, 256),
    "stem_stride": (1, 2),
    "pool": (1, 8),
    "embedding": (0, 4096),
    "channels": (1, 64),
    "resize": (8, 4096),
    "crop": (8, 4096),
    "ground_km": (1e-3, 2e4),
    "num_components": (6, 2**24),
    "split_above": (1, 1e12),
    "drop_below": (0, 1e12),
    "max_level": (1, 30),
    "floor": (0, 1e300),
    "label_smoothing_km": (1e-3, 2e4),
    "learning_rate": (0, 10),
    "backbone_learning_rate": (0, 10),
    "mean_direction_learning_rate": (0, 1),
    "concentration_learning_rate": (0, 10),
    "drop_factor": (1e-6, 1),
    "warmup_steps": (0, 1e9),
    "weight_decay": (0, 10),
    "gradient_clip": (1e-9, 1e9),
    "ema_decay": (0, 0.999999),
    "batch_size": (1, 2**20),
    "accumulate": (1, 2**20),
    "steps": (1, 1e12),
    "epochs": (1e-6, 1e9),
    "seed": (0, 2**31 - 1),
    "validation_fraction": (0, 0.9),
    "block_level": (0, 12),
    "validate_steps": (1, 1e12),
    "patience": (1, 1e9),
    "checkpoint_steps": (1, 1e12),
    "checkpoint_seconds": (0, 1e9),
    "log_steps": (1, 1e9),
    "threads": (1, 1024),
    "workers": (1, 256),
    "cache_images_gigabytes": (0, 1e5),
}


def check_values(config: TrainingConfig) -> None:
    """Check every option by itself.

    Parameters
    ----------
    config : TrainingConfig

    Raises
    ------
    UsageError
        Naming the option, its value and what is allowed.

    Examples
    --------
    See `configuration.TrainingConfig`.
    """
    for field in dataclasses.fields(config):
        _check_type(field, getattr(config, field.name))
    for name, choices in CHOICES.items():
        if getattr(config, name) not in choices:
            raise UsageError(f"{name} is {getattr(config, name)!r}; one of {', '.join(choices)} is allowed")
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name} is {value}; {low:g}..{high:.7g} is allowed")


def _check_type(field: dataclasses.Field[Any], value: object) -> None:
    kinds = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "list[int]": (list,),
        "list[list[float]]": (list,),
        "Augmentation": (Augmentation,),
        "None": (type(None),),
    }
    names = [name.strip() for name in str(field.type).split("|")]
    allowed = tuple(kind for name in names for kind in kinds[name])
    # True is an int to Python, and a mistake to everybody else.
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        words = ["true or false" if name == "bool" else name for name in names]
        raise UsageError(f"{field.name} is {value!r}; {' or '.join(words)} is needed")
