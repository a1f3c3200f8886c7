"""The two passes of the streamed losses: what their autograd functions do, whoever holds the components.

The components may be all here, or this process's part of them: then sums are combined with those of others in between.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from geo_mvmf.model import streaming
from geo_mvmf.model.components import Components
from geo_mvmf.model.label_smoothing import EveryLabel, NearLabels
from geo_mvmf.model.numerators import EveryComponent, numerator_of
from geo_mvmf.model.output_layer import OutputLayer
from geo_mvmf.model.pair_sums import PairShares, TargetLogits

LOGIT_BUDGET_BYTES = 1 << 28
KEPT_TYPES = {None: None, "bfloat16": torch.bfloat16}
Labels = TargetLogits | NearLabels | EveryLabel


@dataclasses.dataclass(frozen=True)
class Options:
    """How a loss is computed.

    Parameters
    ----------
    log_floor : float
        Log of a density that is added to the mixture's; -inf: none.
    budget_bytes : int
        Exponentials up to this size are kept.
    kept_type : torch.dtype, optional
        What they are rounded to.
    product_type : torch.dtype, optional
        What the factors of products are rounded to.
    update : streaming.WeightUpdate, optional
        Takes the gradient by the weight within the backward pass.

    Examples
    --------
    >>> Options().budget_bytes == LOGIT_BUDGET_BYTES
    True
    """

    log_floor: float = -math.inf
    budget_bytes: int = LOGIT_BUDGET_BYTES
    kept_type: torch.dtype | None = None
    product_type: torch.dtype | None = None
    update: streaming.WeightUpdate | None = None


def options(
    features: Tensor,
    floor: float | None,
    logit_budget_bytes: int | None,
    kept_type: str | None,
    update: streaming.WeightUpdate | None,
) -> Options:
    """Make them of what users give; parameters as `loss.mvmf_loss`.

    Examples
    --------
    >>> options(torch.ones(1, 1), 1.0, None, None, None).log_floor
    0.0
    """
    budget = LOGIT_BUDGET_BYTES if logit_budget_bytes is None else logit_budget_bytes
    if not torch.is_grad_enabled():
        budget = 0  # nobody will go backward
    log_floor = -math.inf if floor is None else math.log(floor)
    return Options(log_floor, budget, KEPT_TYPES[kept_type], _product_type(features), update)


class _Final(torch.autograd.Function):
    """Gradients of which there are none: they say so when somebody goes backward through them, and not before."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, depends: Tensor) -> Tensor:  # noqa: ARG004 (torch's)
        return gradient.clone()  # no view: hooks may change gradients in place

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            "these losses have no second derivatives; leave out of what is differentiated whatever is made of their "
            "gradients (a penalty on gradients, for instance)"
        )


def once_differentiable(backward: Callable[..., tuple[Tensor | None, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Keep the gradients of a loss from being taken for constants where they are differentiated again.

    torch's own decorator says so only where the incoming gradient needs a gradient itself, which that of a mean does
    not: a penalty on gradients would be left out without a word.

    Parameters
    ----------
    backward : callable
        Backward pass of an autograd function.

    Returns
    -------
    callable
        Takes and gives the same; what it gives under ``create_graph=True`` raises NotImplementedError when somebody
        goes backward through it.

    Examples
    --------
    >>> square = once_differentiable(lambda ctx, gradient: (gradient**2,))
    >>> square(None, torch.ones(1))[0].requires_grad  # differentiable in name: going backward through it raises
    True
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return found
        depends = torch.zeros((), requires_grad=True)
        return tuple(None if each is None else _Final.apply(each, depends) for each in found)

    return once


def mvmf_forward(
    ctx: Any,
    layer: OutputLayer,
    mean_directions: Tensor,
    log_concentrations: Tensor,
    y: Tensor,
    how: Options,
    combine: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """Give the losses of all rows, and save what the backward pass needs.

    Parameters
    ----------
    ctx : context of an autograd function
        Takes what is saved.
    layer : OutputLayer
        N features, C components.
    mean_directions, log_concentrations : Tensor of float64, shapes (C, 3) and (C,)
        Of the components.
    y : Tensor of float64, shape (N, 3)
        Targets.
    how : Options
    combine : callable
        Gives the logsumexp over all processes of (2, N) sums in float64.

    Returns
    -------
    Tensor of the working type, shape (N,)
        Nats.
    """
    # The numerator's certificate is of the components here alone: what its pairs leave out is negligible beside their
    # own sum, which is a summand of the sum of all. So no process has to know of the others' pairs.
    numerator = numerator_of(mean_directions, log_concentrations, y, layer.working)
    sums = streaming.forward(layer, numerator, budget_bytes=how.budget_bytes, kept_type=how.kept_type)
    denominator, value = combine(torch.stack([sums.denominator, numerator.value()]))
    mixture = value - denominator
    floored = mixture
    if how.log_floor > -math.inf:
        floored = torch.logaddexp(mixture, torch.full_like(mixture, how.log_floor))
    pairs: tuple[Tensor | None, ...] = (None, None, None)
    if not isinstance(numerator, EveryComponent):
        pairs = (numerator.rows, numerator.columns, numerator.shares(value))
    _keep(ctx, how, sums)
    ctx.save_for_backward(
        layer.features, layer.weight, layer.bias, mean_directions, log_concentrations, y,
        denominator, sums.shifts, value, torch.exp(mixture - floored), *pairs,
    )  # fmt: skip
    losses: Tensor = -floored.to(layer.working)
    return losses


def mvmf_backward(ctx: Any, gradient: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Give the gradients by features, weight, bias, mean directions and log concentrations.

    Parameters
    ----------
    ctx : context of an autograd function
        Of `mvmf_forward`.
    gradient : Tensor, shape (N,)
        By the losses of all rows.
    needs : tuple of bool
        Which of the five are wanted.

    Returns
    -------
    tuple of Tensor or None
        Five of them.
    """
    _begin_update(ctx)
    features, weight, bias, mu, log_kappa, y, denominator, shifts, value, unfloored = ctx.saved_tensors[:10]
    rows, columns, shares = ctx.saved_tensors[10:]
    layer = OutputLayer(features, weight, bias, ctx.how.product_type)
    scale = (gradient.double() * unfloored).to(layer.working)  # a floor takes its share of the gradient away
    by_components = any(needs[3:])
    derivative: EveryComponent | PairShares
    if rows is None:
        components = Components.of(mu, log_kappa)
        derivative = EveryComponent(components, y, layer.working, value=value, by_components=by_components)
    else:
        derivative = PairShares(rows, columns, shares, len(features), len(weight))
    with torch.autocast(features.device.type, enabled=False):  # the caller's may still be on
        found = _backward(ctx, layer, derivative, denominator, shifts, scale, needs)
        of_components: tuple[Tensor | None, Tensor | None] = (None, None)
        if by_components:  # else pairs have what they need, and log normalisers would be computed in vain
            of_components = derivative.by_components(Components.of(mu, log_kappa), y, scale)
    return *found, *(each if need else None for each, need in zip(of_components, needs[3:], strict=True))


def class_forward(ctx: Any, layer: OutputLayer, labels: Labels, how: Options) -> Tensor:
    """Give the cross entropies of all rows; parameters as `mvmf_forward`, and the labels of the classes."""
    sums = streaming.forward(layer, labels, budget_bytes=how.budget_bytes, kept_type=how.kept_type)
    _keep(ctx, how, sums)
    ctx.labels = labels
    ctx.save_for_backward(layer.features, layer.weight, layer.bias, sums.denominator, sums.shifts)
    return (sums.denominator - labels.value()).to(layer.working)


def class_backward(ctx: Any, gradient: Tensor, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Give the gradients by features, weight and bias; parameters as `mvmf_backward`, of three needs."""
    _begin_update(ctx)
    features, weight, bias, denominator, shifts = ctx.saved_tensors
    layer = OutputLayer(features, weight, bias, ctx.how.product_type)
    derivative = ctx.labels.derivative(layer.working)
    with torch.autocast(features.device.type, enabled=False):  # the caller's may still be on
        return _backward(ctx, layer, derivative, denominator, shifts, gradient.to(layer.working), needs)


def _keep(ctx: Any, how: Options, sums: streaming.Sums) -> None:
    ctx.how, ctx.late, ctx.kept = how, sums.late, sums.kept
    ctx.version = None if how.update is None else how.update.version


def _begin_update(ctx: Any) -> None:
    """Ask before torch does, who would only say that some tensor has been modified."""
    if ctx.how.update is not None:
        ctx.how.update.begin(ctx.version)


def _backward(
    ctx: Any,
    layer: OutputLayer,
    derivative: streaming.Derivative,
    denominator: Tensor,
    shifts: Tensor,
    scale: Tensor,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Go backward through the layer, and let go of the exponentials."""
    sums = streaming.Sums(denominator, shifts, ctx.kept, ctx.late)
    found = streaming.backward(layer, derivative, sums, scale, (needs[0], needs[1], needs[2]), ctx.how.update)
    if ctx.how.update is not None:
        ctx.how.update.end()
    ctx.kept = ctx.kept[:0].clone()  # a second pass through a retained graph would form them again
    return found


def _product_type(features: Tensor) -> torch.dtype | None:
    """Type of the factors under autocast, where products of them can come out in float32."""
    device = features.device.type
    if device != "cuda" or not torch.is_autocast_enabled(device) or features.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)
