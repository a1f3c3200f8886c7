"""The MvMF loss of a layer whose components are spread over ranks, each with its slice of the weight.

Features and targets of all rows go to every rank; four float64 numbers a row are summed over the ranks (numerator and
denominator, and their scales); the gradient by the features is summed and scattered. Nothing of the size of the weight
is ever sent: its gradient, mean directions, concentrations and the optimiser's state stay where they are.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from typing import Any

import torch
from torch import Tensor

from geo_mvmf.model import loss_passes, streaming
from geo_mvmf.model.loss import reduce_losses
from geo_mvmf.model.loss_arguments import REDUCTIONS, check_mvmf_arguments
from geo_mvmf.model.output_layer import OutputLayer
from geo_mvmf.model.ranks import Ranks

_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def sharded_mvmf_loss(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean_directions: Tensor,
    log_concentrations: Tensor,
    target_directions: Tensor,
    *,
    ranks: Ranks,
    sample_weight: Tensor | None = None,
    floor: float | None = None,
    reduction: str = "mean",
    logit_budget_bytes: int | None = None,
    kept_type: str | None = None,
    weight_update: streaming.WeightUpdate | None = None,
) -> Tensor:
    """Give the loss of `mvmf_loss`, of components and rows that are spread over ranks.

    All ranks have to call it at the same time, and then to go backward at the same time, also those without a row.

    Parameters
    ----------
    features : Tensor, shape (n, D)
        Of this rank's rows, any number of them.
    weight : Tensor, shape (c, D)
        Of this rank's components, at least one.
    bias : Tensor, shape (c,), optional
        Likewise. None: zeros.
    mean_directions : Tensor, shape (c, 3)
        As in `mvmf_loss`.
    log_concentrations : Tensor, shape (c,)
        As in `mvmf_loss`.
    target_directions : Tensor, shape (n, 3)
        Of this rank's rows; as in `mvmf_loss`.
    ranks : Ranks
        Who shares the components.
    sample_weight : Tensor, shape (n,), optional
        Of this rank's rows; as in `mvmf_loss`. Where other ranks give one, None stands for ones.
    floor : float, optional
        As in `mvmf_loss`; the same on all ranks.
    reduction : {"mean", "sum", "none"}
        Over the rows of all ranks, the same value on each; "none": this rank's rows.
    logit_budget_bytes, kept_type, weight_update
        As in `mvmf_loss`; of this rank.

    Returns
    -------
    Tensor of float32 (float64 if the features or the weight are), shape () or (n,)
        Nats. A backward pass gives every rank the gradient of the whole loss by its features and its components; after
        "mean" or "sum" all ranks have to go backward from the same gradient.

    Raises
    ------
    TypeError
        As `mvmf_loss`, on this rank.
    ValueError
        As `mvmf_loss`, or ranks disagree about what has to be the same; on all ranks.
    TrainingError
        Another rank ended or is silent.

    Examples
    --------
    >>> y = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> parts = torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1), y, torch.tensor([-12.0]).double(), y
    >>> round(float(sharded_mvmf_loss(*parts, ranks=Ranks())), 3)
    2.531
    """
    problem = None
    try:
        check_mvmf_arguments(
            features, weight, bias, mean_directions, log_concentrations, target_directions,
            sample_weight=sample_weight, floor=floor, reduction=reduction, kept_type=kept_type,
            weight_update=weight_update,
        )  # fmt: skip
    except ValueError as error:  # the others have to know before this is raised
        problem = str(error)
    options = (floor, reduction, sample_weight is not None)
    call = _agreed(ranks, features, problem, options)
    how = loss_passes.options(features, floor, logit_budget_bytes, kept_type, weight_update)
    with torch.autocast(features.device.type, enabled=False):
        losses: Tensor = _ShardedLoss.apply(
            features,
            weight,
            weight.new_zeros(len(weight)) if bias is None else bias,
            mean_directions.double(),
            log_concentrations.double(),
            target_directions.detach().double(),
            how,
            call,
        )
        if call.weighted and sample_weight is None:
            sample_weight = torch.ones_like(losses)
        if reduction == "none":
            return reduce_losses(losses, sample_weight, reduction)
        return _reduced(losses, sample_weight, call, reduction)


def heaviest_directions(
    features: Tensor, weight: Tensor, bias: Tensor, mean_directions: Tensor, ranks: Ranks
) -> Tensor:
    """Give the mean direction of the component with the greatest mixing weight (eq. 7), among those of all ranks.

    Parameters
    ----------
    features : Tensor, shape (n, D)
        Of this rank's rows.
    weight, bias, mean_directions : Tensor, shapes (c, D), (c,), (c, 3)
        Of this rank's components.
    ranks : Ranks
        Who shares the components; all have to call it at the same time.

    Returns
    -------
    Tensor of float64, shape (n, 3)
        Of equal ones the first, as everywhere; NaN where a logit is.

    Examples
    --------
    >>> parts = torch.ones(1, 1), torch.tensor([[0.0], [2.0]]), torch.zeros(2), torch.eye(3)[:2].double()
    >>> heaviest_directions(*parts, Ranks()).tolist()
    [[0.0, 1.0, 0.0]]
    """
    counts = [count for (count,) in ranks.integers([len(features)], features.device)]
    layer = OutputLayer(ranks.gather(features.detach(), counts), weight.detach(), bias.detach())
    best = torch.full_like(layer.features[:, 0], -math.inf, dtype=layer.working)
    place = torch.zeros_like(best, dtype=torch.int64)
    for part in streaming.chunks(len(best), len(weight), best.device):
        buffer = torch.empty(len(best), part.stop - part.start, dtype=layer.working, device=best.device)
        top, at = layer.logits(part, buffer).max(dim=1)
        better = (top > best) | top.isnan()  # what is no number wins, and shows
        best, place = torch.where(better, top, best), torch.where(better, at + part.start, place)
    winner = ranks.gather(best[None], [1] * ranks.size).argmax(dim=0)
    own = (winner == ranks.rank)[:, None]
    found = mean_directions.detach().double()[place].masked_fill_(best.isnan()[:, None], math.nan)
    chosen = torch.where(own, found, 0.0)
    return ranks.scatter_sum(chosen, counts)


@dataclasses.dataclass(frozen=True)
class _Call:
    """What the ranks agreed on: rows of each, and whether any of them wants gradients by features, or has weights."""

    ranks: Ranks
    counts: list[int]
    by_features: bool
    weighted: bool

    @property
    def own(self) -> slice:
        start = sum(self.counts[: self.ranks.rank])
        return slice(start, start + self.counts[self.ranks.rank])


class _ShardedLoss(torch.autograd.Function):
    """The losses of this rank's rows. What is saved is of the rows of all ranks, and of this rank's components."""

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
        call: _Call,
    ) -> Tensor:
        ctx.call, ranks = call, call.ranks
        y = ranks.gather(target_directions, call.counts)
        layer = OutputLayer(ranks.gather(features, call.counts), weight, bias, how.product_type)
        losses = loss_passes.mvmf_forward(
            ctx, layer, mean_directions, log_concentrations, y, how, combine=ranks.logsumexp
        )
        return losses[call.own]

    @staticmethod
    @loss_passes.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        call = ctx.call
        needs = (call.by_features, *ctx.needs_input_grad[1:5])  # of features: the others may want this rank's share
        gradient = call.ranks.gather(gradients[0].double(), call.counts)
        d_features, *others = loss_passes.mvmf_backward(ctx, gradient, needs)
        if d_features is not None:
            d_features = call.ranks.scatter_sum(d_features, call.counts)
        return d_features if ctx.needs_input_grad[0] else None, *others, None, None, None


class _SumOverRanks(torch.autograd.Function):
    """A sum that every rank has, and goes backward from: each summand gets the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, ranks: Ranks) -> Tensor:  # noqa: ARG004 (torch's)
        return ranks.sum(own.double()).to(own.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ARG004 (torch's)
        return gradients[0], None


def _reduced(losses: Tensor, sample_weight: Tensor | None, call: _Call, reduction: str) -> Tensor:
    """Sum or mean over the rows of all ranks."""
    own = reduce_losses(losses, sample_weight, "sum")
    if reduction == "mean":
        total = torch.tensor(float(sum(call.counts)), dtype=torch.float64, device=losses.device)
        if sample_weight is not None:
            total = call.ranks.sum(sample_weight.to(losses).double().sum())
        own = own / total.to(own.dtype)
    value: Tensor = _SumOverRanks.apply(own, call.ranks)
    return value


def _agreed(ranks: Ranks, features: Tensor, problem: str | None, options: tuple[float | None, str, bool]) -> _Call:
    """Exchange what the ranks have to know of each other; what one of them has to refuse, all refuse: none waits."""
    floor, reduction, weighted = options
    width = features.shape[1] if features.ndim == 2 else -1
    same = [width, _number(features.dtype, _TYPES), _bits(floor), _number(reduction, REDUCTIONS)]
    own = [problem is not None, len(features), features.requires_grad, weighted, *same]
    found = ranks.integers([int(value) for value in own], features.device)
    if problem is not None:
        raise ValueError(problem)
    wrong = [rank for rank, of_rank in enumerate(found) if of_rank[0]]
    if wrong:
        raise ValueError(f"rank {wrong[0]} of {ranks.size} was given wrong arguments; its own message says which")
    for name, value, at in zip(("D", "type of features", "floor", "reduction"), same, range(4, 8), strict=True):
        other = [rank for rank, of_rank in enumerate(found) if of_rank[at] != value]
        if other:
            mine = {"D": width, "type of features": features.dtype, "floor": floor, "reduction": reduction}[name]
            raise ValueError(f"{name} is {mine} on rank {ranks.rank} and differs on rank {other[0]}; give all the same")
    counts = [of_rank[1] for of_rank in found]
    if not sum(counts):
        raise ValueError(f"none of {ranks.size} ranks has a row; give at least one of them some")
    return _Call(ranks, counts, any(of_rank[2] for of_rank in found), any(of_rank[3] for of_rank in found))


def _number(value: object, among: tuple[object, ...]) -> int:
    return among.index(value) if value in among else -1


def _bits(floor: float | None) -> int:
    bits: int = struct.unpack("<q", struct.pack("<d", 0.0 if floor is None else floor))[0]
    return bits
