"""The MvMF loss, streamed over components, and cross entropy likewise.

Izbicki et al. 2019, eq. 4, in log space: ``L = logsumexp(z) - logsumexp(z + log f(y))`` with z = W x + b. The gradient
by the logits is softmax(z) - softmax(z + log f).

The sums are formed by `streaming`, chunk by chunk of components; `numerators` adds the log densities, from differences
of float64 coordinates, to the few logits where they count. Coordinates never enter autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from geo_mvmf.model import loss_passes, streaming
from geo_mvmf.model.components import log_density, log_normaliser
from geo_mvmf.model.label_smoothing import EveryLabel, NearLabels
from geo_mvmf.model.loss_arguments import check_layer, check_mvmf_arguments, check_shape
from geo_mvmf.model.output_layer import OutputLayer
from geo_mvmf.model.pair_sums import TargetLogits

__all__ = ["cross_entropy_loss", "log_density", "log_normaliser", "mvmf_loss", "reduce_losses"]


def mvmf_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean_directions: Tensor,
    log_concentrations: Tensor,
    target_directions: Tensor,
    *,
    sample_weight: Tensor | None = None,
    floor: float | None = None,
    reduction: str = "mean",
    logit_budget_bytes: int | None = None,
    kept_type: str | None = None,
    weight_update: streaming.WeightUpdate | None = None,
) -> Tensor:
    """Give the negative log density of the mixture at the true locations.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        What the backbone made of the images. All must be finite: a row that is not gives a loss of NaN.
    weight : Tensor, shape (C, D)
        Of the output layer.
    bias : Tensor, shape (C,), optional
        Of the output layer. None: zeros.
    mean_directions : Tensor, shape (C, 3)
        Unit vectors, within 10 %; float64. A step of an optimiser takes them off the sphere: normalise them after
        every step, as `MvmfHead.project` does (docs/own_training_loop.md).
    log_concentrations : Tensor, shape (C,)
        Natural logarithms of kappa, -60..60; float64.
    target_directions : Tensor, shape (N, 3)
        Unit vectors, within 1e-4; float64. No gradient is computed for them.
    sample_weight : Tensor, shape (N,), optional
        0 or more. "mean" is then the weighted mean (NaN if all weights are 0); "sum" and "none" are multiplied.
    floor : float, optional
        Density per steradian added to the mixture's, as the authors' code does (it cuts the gradient of far targets;
        the paper's Figure 4 depends on it; their 1e-9 is 1e-9 kappa / (2 pi e^2) in this unit). None: the exact loss.
    reduction : {"mean", "sum", "none"}
        How the N losses become the result. The mean of an empty batch is NaN.
    logit_budget_bytes : int, optional
        exp(logits) up to this size are kept for the backward pass, the rest is computed again, with the same bits;
        default 256 MiB. Beyond them and the gradients, memory is a few chunks of components, whatever C is.
    kept_type : {None, "bfloat16"}
        What is kept can be rounded to half the bytes, for gradients that are right to 3e-3; the loss does not change.
    weight_update : FusedAdam, optional
        Updates the weight within the backward pass, chunk by chunk; then the weight gets no gradient.

    Returns
    -------
    Tensor of float32 (float64 if the features or the weight are), shape () or (N,)
        Nats, against area on the unit sphere (uniform: log 4 pi = 2.531). Gradients reach features, weight, bias,
        mean_directions (in space, not along the sphere) and log_concentrations; no second derivatives. Wherever an
        argument is NaN, so is the loss.

    Raises
    ------
    TypeError
        What should be a tensor is none.
    ValueError
        Shapes do not fit, directions are no unit vectors, a log concentration is out of range, a sample weight is
        negative, or an option is unknown.

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
    check_mvmf_arguments(
        features, weight, bias, mean_directions, log_concentrations, target_directions,
        sample_weight=sample_weight, floor=floor, reduction=reduction, kept_type=kept_type, weight_update=weight_update,
    )  # fmt: skip
    how = loss_passes.options(features, floor, logit_budget_bytes, kept_type, weight_update)
    with torch.autocast(features.device.type, enabled=False):
        losses: Tensor = _MvmfLoss.apply(
            features,
            weight,
            weight.new_zeros(len(weight)) if bias is None else bias,
            mean_directions.double(),
            log_concentrations.double(),
            target_directions.detach().double(),
            how,
        )
        return reduce_losses(losses, sample_weight, reduction)


def cross_entropy_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | NearLabels | EveryLabel,
    *,
    sample_weight: Tensor | None = None,
    reduction: str = "mean",
    logit_budget_bytes: int | None = None,
    kept_type: str | None = None,
    weight_update: streaming.WeightUpdate | None = None,
) -> Tensor:
    """Give the negative log probability of the true classes, streamed like `mvmf_loss`.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        What the backbone made of the images.
    weight : Tensor, shape (C, D)
        Of the output layer.
    bias : Tensor, shape (C,), optional
        Of the output layer. None: zeros.
    target : Tensor of int64, shape (N,); or NearLabels, or EveryLabel
        The true class of each row, 0..C - 1; or shares of classes in it (`label_smoothing`), whose cross entropy is the
        labelled mean of what it would be with each class.
    sample_weight, reduction, logit_budget_bytes, kept_type, weight_update
        As in `mvmf_loss`.

    Returns
    -------
    Tensor of float32 (float64 if the features or the weight are), shape () or (N,)
        Nats.

    Raises
    ------
    TypeError
        What should be a tensor is none.
    ValueError
        Shapes do not fit, a class is out of range, or an option is unknown.

    Examples
    --------
    >>> loss = cross_entropy_loss(torch.ones(1, 2), torch.zeros(4, 2), torch.zeros(4), torch.tensor([3]))
    >>> round(float(loss.exp()), 6)
    4.0
    """
    check_layer(features, weight, bias, sample_weight, reduction, kept_type, weight_update)
    labels = _labels(target, features.shape[0], weight.shape[0])
    how = loss_passes.options(features, None, logit_budget_bytes, kept_type, weight_update)
    with torch.autocast(features.device.type, enabled=False):
        losses: Tensor = _CrossEntropyLoss.apply(
            features,
            weight,
            weight.new_zeros(len(weight)) if bias is None else bias,
            labels,
            how,
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
    check_shape("sample_weight", sample_weight, tuple(losses.shape))
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
        how: loss_passes.Options,
    ) -> Tensor:
        layer = OutputLayer(features, weight, bias, how.product_type)
        return loss_passes.mvmf_forward(ctx, layer, mean_directions, log_concentrations, target_directions, how)

    @staticmethod
    @loss_passes.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *loss_passes.mvmf_backward(ctx, gradients[0], ctx.needs_input_grad[:5]), None, None


class _CrossEntropyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, labels: loss_passes.Labels, how: loss_passes.Options
    ) -> Tensor:
        return loss_passes.class_forward(ctx, OutputLayer(features, weight, bias, how.product_type), labels, how)

    @staticmethod
    @loss_passes.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *loss_passes.class_backward(ctx, gradients[0], ctx.needs_input_grad[:3]), None, None


def _labels(target: Tensor | NearLabels | EveryLabel, n: int, num_classes: int) -> loss_passes.Labels:
    if not isinstance(target, Tensor):
        if target.shape != (n, num_classes):
            raise ValueError(f"labels are of {target.shape} rows and classes, expected {(n, num_classes)}")
        return target
    check_shape("target", target, (n,))
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(f"target has dtype {target.dtype}, expected whole numbers of classes (int64)")
    wrong = (target < 0) | (target >= num_classes)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(f"row {row} has class {int(target[row])}, not in 0..{num_classes - 1}")
    return TargetLogits(target, num_classes)
