"""The optimiser: parameter groups, learning rates as a function of the step, the running mean of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.fused_optimiser import FusedAdam

_MOMENTS = {"float32": None, "bfloat16": torch.bfloat16}


def make_optimiser(config: TrainingConfig, backbone: nn.Module | None, head: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser with a group for each learning rate.

    Parameters
    ----------
    config : TrainingConfig
    backbone : nn.Module or None
        None where it is not trained.
    head : nn.Module
        Its parameters named mean_directions and log_concentrations get their own learning rates and no weight decay:
        decay would pull unit vectors to zero, and concentrations to one. With `fused_optimiser` its weight is left to
        `make_fused`.

    Returns
    -------
    Optimizer
        Every group has "base_lr", which `set_learning_rate` scales. With adamw scales and biases (whatever has one
        axis) do not decay either; with adam, as the authors train, they do.

    Examples
    --------
    >>> config = TrainingConfig(stage="head", table="a.csv", out="run", learning_rate=0.5)
    >>> [group["base_lr"] for group in make_optimiser(config, None, nn.Linear(2, 2)).param_groups]
    [0.5]
    """
    named = {name: value for name, value in head.named_parameters() if value.requires_grad}
    if config.fused_optimiser != "none":
        del named["weight"]
    directions, concentrations = named.pop("mean_directions", None), named.pop("log_concentrations", None)
    rate = config.learning_rate
    backbone_rate = rate if config.backbone_learning_rate is None else config.backbone_learning_rate
    concentration_rate = rate if config.concentration_learning_rate is None else config.concentration_learning_rate
    groups = [
        *_groups(named.values(), rate, config),
        *_groups(() if backbone is None else backbone.parameters(), backbone_rate, config),
        _group([] if directions is None else [directions], config.mean_direction_learning_rate, 0.0),
        _group([] if concentrations is None else [concentrations], concentration_rate, 0.0),
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:  # a head without a bias whose weight FusedAdam has; torch wants a parameter, be it of no number
        groups = [_group([nn.Parameter(torch.zeros(0))], rate, 0.0)]
    kind = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    return kind(groups, fused=True)


def make_fused(config: TrainingConfig, weight: nn.Parameter) -> FusedAdam | None:
    """Make what updates the output layer's weight within the backward pass, where that is wanted.

    Parameters
    ----------
    config : TrainingConfig
    weight : nn.Parameter, shape (C, D)
        Of the head.

    Returns
    -------
    FusedAdam or None

    Examples
    --------
    >>> config = TrainingConfig(stage="head", table="a.csv", out="run")
    >>> make_fused(config, nn.Parameter(torch.zeros(2, 3))) is None
    True
    """
    if config.fused_optimiser == "none":
        return None
    return FusedAdam(
        weight,
        weight_decay=config.weight_decay,
        decoupled=config.optimiser == "adamw",
        moment_type=_MOMENTS[config.fused_optimiser],
        seed=config.seed,
    )


def learning_rate_factor(config: TrainingConfig, step: int, steps: int) -> float:
    """Factor of all learning rates at a step.

    Parameters
    ----------
    config : TrainingConfig
    step : int
        From 0.
    steps : int
        Of the whole run.

    Returns
    -------
    float

    Examples
    --------
    >>> config = TrainingConfig(stage="head", table="a.csv", out="run")
    >>> [learning_rate_factor(config, step, 10**6) for step in (0, 100_000, 500_000)]
    [1.0, 0.1, 0.01]
    """
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "drops":
        return warm * config.drop_factor ** sum(step >= drop for drop in config.drop_steps)
    if config.schedule == "cosine":
        done = max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return warm * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return warm


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Scale the learning rate of every group.

    Parameters
    ----------
    optimiser : Optimizer
        From `make_optimiser`.
    factor : float

    Examples
    --------
    >>> config = TrainingConfig(stage="head", table="a.csv", out="run", learning_rate=0.5)
    >>> optimiser = make_optimiser(config, None, nn.Linear(2, 2))
    >>> set_learning_rate(optimiser, 0.1)
    >>> optimiser.param_groups[0]["lr"]
    0.05
    """
    for group in optimiser.param_groups:
        group["lr"] = group["base_lr"] * factor


def update_running_mean(mean: Mapping[str, Tensor], state: Mapping[str, Tensor], decay: float, step: int) -> None:
    """Move the running mean of the weights towards their present values, in place.

    Parameters
    ----------
    mean, state : mapping of str to Tensor
        The same names.
    decay : float
    step : int
        Steps done: the decay is at most (1 + step) / (10 + step), so that the start is soon forgotten.

    Examples
    --------
    >>> mean = {"a": torch.zeros(1)}
    >>> update_running_mean(mean, {"a": torch.ones(1)}, 0.5, 100)
    >>> mean["a"].tolist()
    [0.5]
    """
    decay = min(decay, (1 + step) / (10 + step))
    for name, value in mean.items():
        if value.is_floating_point():
            value.lerp_(state[name].to(value.dtype), 1.0 - decay)
        else:
            value.copy_(state[name])


def _groups(parameters: Iterable[Tensor], rate: float, config: TrainingConfig) -> list[dict[str, object]]:
    known = list(parameters)
    if config.optimiser == "adam":
        return [_group(known, rate, config.weight_decay)]
    matrices = [value for value in known if value.ndim > 1]
    others = [value for value in known if value.ndim <= 1]
    return [_group(matrices, rate, config.weight_decay), _group(others, rate, 0.0)]


def _group(parameters: Iterable[Tensor], rate: float, decay: float) -> dict[str, object]:
    return {"params": list(parameters), "lr": rate, "base_lr": rate, "weight_decay": decay}
