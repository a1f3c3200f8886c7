"""The MvMF loss, streamed over components, and cross entropy likewise.

Izbicki et al. 2019, eq. 4, in log space: ``L = logsumexp(z) - logsumexp(z + log f(y))`` with z = W x + b. The gradient
by the logits is softmax(z) - softmax(z + log f).

The sums are formed by `streaming`, chunk by chunk of components; `components` computes the log densities from
differences of float64 coordinates. Coordinates never enter autocast.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from geo_mvmf.model import streaming
from geo_mvmf.model.components import NearComponents, log_density, log_normaliser

__all__ = ["cross_entropy_loss", "log_density", "log_normaliser", "mvmf_loss", "reduce_losses"]

LOGIT_BUDGET_BYTES = 1 << 28
REDUCTIONS = ("mean", "sum", "none")


def mvmf_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean_directions: Tensor,
    log_concentrations: Tensor,
    target_directions: Tensor,
    *,
    sample_weight: Tensor | None = None,
    floor: float | None = None,
    reduction: str = "mean",
    logit_budget_bytes: int | None = None,
) -> Tensor:
    """Give the negative log density of the mixture at the true locations.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        What the backbone made of the images. All must be finite: a row that is not gives a loss of NaN.
    weight : Tensor, shape (C, D)
        Of the output layer.
    bias : Tensor, shape (C,)
        Of the output layer.
    mean_directions : Tensor, shape (C, 3)
        Unit vectors; float64.
    log_concentrations : Tensor, shape (C,)
        Natural logarithms of kappa; float64.
    target_directions : Tensor, shape (N, 3)
        Unit vectors; float64. No gradient is computed for them.
    sample_weight : Tensor, shape (N,), optional
        "mean" is then the weighted mean (NaN if all weights are 0); "sum" and "none" are multiplied.
    floor : float, optional
        Density per steradian added to the mixture's, as the authors' code does (it cuts the gradient of far targets;
        the paper's Figure 4 depends on it; their 1e-9 is 1e-9 kappa / (2 pi e^2) in this unit). None: the exact loss.
    reduction : {"mean", "sum", "none"}
        How the N losses become the result.
    logit_budget_bytes : int, optional
        Logits up to this size are kept for the backward pass, the rest is computed again; default 256 MiB. Beyond
        them and the gradients themselves, memory is a few chunks of components, whatever C is.

    Returns
    -------
    Tensor of float32 (float64 if the features or the weight are), shape () or (N,)
        Nats, against area on the unit sphere (uniform: log 4 pi = 2.531). Gradients reach features, weight, bias,
        mean_directions (in space, not along the sphere) and log_concentrations; no second derivatives.

    Raises
    ------
    ValueError
        Shapes do not fit or an option is unknown.

    Notes
    -----
    Source: Izbicki et al. 2019, eq. 4, with the 1/4pi that eq. 1 lacks. Under autocast on CUDA the factors of the
    matrix products are rounded to half precision, the logits are not; autocast of a CPU has no effect here.

    Examples
    --------
    >>> y = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> loss = mvmf_loss(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1), y, torch.tensor([-12.0]).double(), y)
    >>> round(float(loss), 3)
    2.531
    """
    shapes = {"mean_directions": (mean_directions, 3), "log_concentrations": (log_concentrations, None)}
    _check_layer(features, weight, bias, reduction)
    for name, (tensor, last) in shapes.items():
        _check_shape(name, tensor, (weight.shape[0],) if last is None else (weight.shape[0], last))
    _check_shape("target_directions", target_directions, (features.shape[0], 3))
    if floor is not None and not 0.0 < floor < math.inf:
        raise ValueError(f"floor {floor!r} must be a positive density per steradian, or None")
    with torch.autocast(features.device.type, enabled=False):
        losses: Tensor = _MvmfLoss.apply(
            features,
            weight,
            bias,
            mean_directions.double(),
            log_concentrations.double(),
            target_directions.detach().double(),
            -math.inf if floor is None else math.log(floor),
            LOGIT_BUDGET_BYTES if logit_budget_bytes is None else logit_budget_bytes,
            _product_type(features),
        )
        return reduce_losses(losses, sample_weight, reduction)


def cross_entropy_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    target: Tensor,
    *,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    logit_budget_bytes: int | None = None,
) -> Tensor:
    """Give the negative log probability of the true classes, streamed like `mvmf_loss`.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        What the backbone made of the images.
    weight : Tensor, shape (C, D)
        Of the output layer.
    bias : Tensor, shape (C,)
        Of the output layer.
    target : Tensor of int64, shape (N,)
        The true class of each row, 0..C - 1.
    sample_weight, reduction, logit_budget_bytes
        As in `mvmf_loss`.

    Returns
    -------
    Tensor of float32 (float64 if the features or the weight are), shape () or (N,)
        Nats.

    Raises
    ------
    ValueError
        Shapes do not fit, a class is out of range, or an option is unknown.

    Examples
    --------
    >>> loss = cross_entropy_loss(torch.ones(1, 2), torch.zeros(4, 2), torch.zeros(4), torch.tensor([3]))
    >>> round(float(loss.exp()), 6)
    4.0
    """
    _check_layer(features, weight, bias, reduction)
    _check_shape("target", target, (features.shape[0],))
    wrong = (target < 0) | (target >= weight.shape[0])
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"row {row} has class {int(target[row])}, not in 0..{weight.shape[0] - 1}")
    with torch.autocast(features.device.type, enabled=False):
        losses: Tensor = _CrossEntropyLoss.apply(
            features,
            weight,
            bias,
            target,
            LOGIT_BUDGET_BYTES if logit_budget_bytes is None else logit_budget_bytes,
            _product_type(features),
        )
        return reduce_losses(losses, sample_weight, reduction)


def reduce_losses(losses: Tensor, sample_weight: Tensor | None, reduction: str) -> Tensor:
    """Reduce the losses of single targets, with their weights.

    Parameters
    ----------
    losses : Tensor, shape (N,)
        Nats.
    sample_weight : Tensor, shape (N,), optional
        None counts every row once.
    reduction : {"mean", "sum", "none"}
        "mean" divides by the sum of the weights.

    Returns
    -------
    Tensor, shape () or (N,)
        Of the type of the losses.

    Raises
    ------
    ValueError
        The weights' shape is not that of the losses.

    Examples
    --------
    >>> float(reduce_losses(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]), "mean"))
    1.5
    """
    if sample_weight is None:
        return {"mean": losses.mean, "sum": losses.sum}[reduction]() if reduction != "none" else losses
    _check_shape("sample_weight", sample_weight, tuple(losses.shape))
    weights = sample_weight.to(losses)
    weighted = losses * weights
    if reduction == "none":
        return weighted
    return weighted.sum() / weights.sum() if reduction == "mean" else weighted.sum()


class _MvmfLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean_directions: Tensor,
        log_concentrations: Tensor,
        target_directions: Tensor,
        log_floor: float,
        budget_bytes: int,
        product_type: torch.dtype | None,
    ) -> Tensor:
        layer = streaming.OutputLayer(features, weight, bias, product_type)
        near = NearComponents(mean_directions, log_concentrations, target_directions, layer.working)
        sums = streaming.forward(layer, near, budget_bytes=budget_bytes)
        mixture = near.value() - sums.denominator
        floored = torch.logaddexp(mixture, torch.full_like(mixture, log_floor)) if log_floor > -math.inf else mixture
        ctx.product_type = product_type
        ctx.save_for_backward(
            features, weight, bias, mean_directions, log_concentrations, target_directions,
            sums.denominator, sums.by_chunk, sums.kept, near.value(), near.bounds(), torch.exp(mixture - floored),
        )  # fmt: skip
        return -floored.to(layer.working)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, mu, log_kappa, y, denominator, by_chunk, kept, value, bounds, share = ctx.saved_tensors
        layer = streaming.OutputLayer(features, weight, bias, ctx.product_type)
        near = NearComponents(mu, log_kappa, y, layer.working, value=value, bounds=bounds)
        near.collect(mean_directions=ctx.needs_input_grad[3], log_concentrations=ctx.needs_input_grad[4])
        scale = (gradients[0].double() * share).to(layer.working)  # a floor takes its share of the gradient away
        sums = streaming.Sums(denominator, by_chunk, kept)
        with torch.autocast(features.device.type, enabled=False):  # the caller's may still be on
            found = streaming.backward(layer, near, sums, scale, ctx.needs_input_grad[:3])
        return *found, near.d_mean_directions, near.d_log_concentrations, None, None, None, None


class _CrossEntropyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        target: Tensor,
        budget_bytes: int,
        product_type: torch.dtype | None,
    ) -> Tensor:
        layer = streaming.OutputLayer(features, weight, bias, product_type)
        logits = streaming.TargetLogits(target, features.device)
        sums = streaming.forward(layer, logits, budget_bytes=budget_bytes)
        ctx.product_type = product_type
        ctx.save_for_backward(features, weight, bias, target, sums.denominator, sums.by_chunk, sums.kept)
        return (sums.denominator - logits.value()).to(layer.working)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, target, denominator, by_chunk, kept = ctx.saved_tensors
        layer = streaming.OutputLayer(features, weight, bias, ctx.product_type)
        logits = streaming.TargetLogits(target, features.device)
        sums = streaming.Sums(denominator, by_chunk, kept)
        with torch.autocast(features.device.type, enabled=False):  # the caller's may still be on
            found = streaming.backward(layer, logits, sums, gradients[0].to(layer.working), ctx.needs_input_grad[:3])
        return *found, None, None, None


def _product_type(features: Tensor) -> torch.dtype | None:
    """Type of the factors under autocast, where products of them can come out in float32."""
    device = features.device.type
    if device != "cuda" or not torch.is_autocast_enabled(device) or features.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def _check_layer(features: Tensor, weight: Tensor, bias: Tensor, reduction: str) -> None:
    if features.ndim != 2 or weight.ndim != 2 or weight.shape[0] == 0:
        raise ValueError(
            f"features and weight have shapes {tuple(features.shape)}, {tuple(weight.shape)}; "
            "expected (N, D), (C, D) with C >= 1"
        )
    _check_shape("weight", weight, (weight.shape[0], features.shape[1]))
    _check_shape("bias", bias, (weight.shape[0],))
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
