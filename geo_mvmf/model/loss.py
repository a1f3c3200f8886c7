"""The MvMF loss, streamed over components: no (batch, components) array need ever exist.

Izbicki et al. 2019, eq. 4, in log space: L = logsumexp(z) - logsumexp(z + log f(y)), z = W x + b. Both sums run over
chunks of components. The gradient by the logits is softmax(z) - softmax(z + log f), so it too is formed chunk by
chunk, either from logits kept within a budget of bytes or from logits computed again.

Exactness: log f uses |y - mu|^2 with the difference taken in float64 and rounded afterwards (the dot product in
float32 errs by 1.6 nats at log kappa 16); coordinates never enter autocast.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

CHUNK = 4096  # components at once: a (512, 4096) float32 block is 8 MB, so it stays in the second-level cache
LOGIT_BUDGET_BYTES = 1 << 28
_SERIES_BELOW = 1e-3  # kappa below which log c is its series (DESIGN section 4)
# exp of anything further below the maximum is 0 in float32 and, on CPUs, ten times slower (denormals).
_UNDERFLOW = -80.0


def log_normaliser(log_concentrations: Tensor) -> Tensor:
    """Log c(kappa) per steradian, differentiable, also as kappa goes to 0.

    Parameters
    ----------
    log_concentrations : Tensor, (C,)
        Natural logarithms.

    Returns
    -------
    Tensor, (C,)

    Examples
    --------
    >>> round(float(log_normaliser(torch.tensor([-12.0], dtype=torch.float64))), 4)
    -2.531
    """
    log_kappa = log_concentrations
    kappa = log_kappa.exp()
    small = kappa < _SERIES_BELOW
    # `where` would let a NaN of the branch not taken into the gradient: give that branch a harmless argument.
    safe_log = torch.where(small, torch.zeros_like(log_kappa), log_kappa)
    exact = safe_log - math.log(2.0 * math.pi) - torch.log(-torch.expm1(-2.0 * safe_log.exp()))
    series = -math.log(4.0 * math.pi) + kappa - kappa * kappa / 6.0
    return torch.where(small, series, exact)


def log_density(target_directions: Tensor, mean_directions: Tensor, log_concentrations: Tensor) -> Tensor:
    """Log density of every component at every target, in nats per steradian.

    Parameters
    ----------
    target_directions : Tensor, (N, 3)
        Unit vectors; float64 for exactness.
    mean_directions : Tensor, (C, 3)
    log_concentrations : Tensor, (C,)

    Returns
    -------
    Tensor of float64, (N, C)

    Examples
    --------
    >>> y = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> round(float(log_density(y, y, torch.tensor([16.0], dtype=torch.float64))), 4)
    14.1621
    """
    y, mu, log_kappa = target_directions.double(), mean_directions.double(), log_concentrations.double()
    # log c already holds exp(kappa) below the series limit as well: there log c + kappa cos = (log c - kappa) + ...
    return log_normaliser(log_kappa) - 0.5 * log_kappa.exp() * _chord_squared(y, mu)


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
    """Negative log density of the mixture at the true locations.

    Parameters
    ----------
    features : Tensor, (N, D)
    weight : Tensor, (C, D)
    bias : Tensor, (C,)
    mean_directions : Tensor, (C, 3)
        Unit vectors; float64.
    log_concentrations : Tensor, (C,)
        Natural logarithms; float64.
    target_directions : Tensor, (N, 3)
        Unit vectors; float64.
    sample_weight : Tensor, (N,), optional
        "mean" is then the weighted mean, "sum" and "none" are multiplied.
    floor : float, optional
        Density per steradian added to the mixture's, as the authors' code does (it cuts the gradient of far
        targets; their Figure 4 depends on it). None: the exact loss.
    reduction : {"mean", "sum", "none"}
    logit_budget_bytes : int, optional
        Logits up to this size are kept for the backward pass, the rest is computed again. Default 256 MiB.

    Returns
    -------
    Tensor
        A scalar, or (N,) for "none"; nats.

    Raises
    ------
    ValueError
        If shapes do not fit or an option is unknown.

    Examples
    --------
    >>> y = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> loss = mvmf_loss(torch.ones(1, 2), torch.zeros(1, 2), torch.zeros(1), y, torch.tensor([-12.0]).double(), y)
    >>> round(float(loss), 3)
    2.531
    """
    _check(features, weight, bias, mean_directions, log_concentrations, target_directions, reduction, floor)
    budget = LOGIT_BUDGET_BYTES if logit_budget_bytes is None else logit_budget_bytes
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight = features.to(dtype), weight.to(dtype)
    with torch.autocast(features.device.type, enabled=False):
        losses: Tensor = _MvmfLoss.apply(  # type: ignore[no-untyped-call]  # torch declares apply untyped
            features,
            weight,
            bias,
            mean_directions.double(),
            log_concentrations.double(),
            target_directions.detach().double(),
            -math.inf if floor is None else math.log(floor),
            budget,
        )
        return reduce(losses, sample_weight, reduction)


def reduce(losses: Tensor, sample_weight: Tensor | None, reduction: str) -> Tensor:
    """Reduce losses of single targets, with their weights.

    Parameters
    ----------
    losses : Tensor, (N,)
    sample_weight : Tensor, (N,), optional
    reduction : {"mean", "sum", "none"}

    Examples
    --------
    >>> float(reduce(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]), "mean"))
    1.5
    """
    if sample_weight is not None:
        weighted = losses * sample_weight.to(losses)
        if reduction == "mean":
            return weighted.sum() / sample_weight.to(losses).sum()
        return weighted.sum() if reduction == "sum" else weighted
    if reduction == "mean":
        return losses.mean()
    return losses.sum() if reduction == "sum" else losses


@dataclasses.dataclass(frozen=True)
class _Sums:
    """The two running logsumexps of a batch, (N,) each, in the accumulation type."""

    denominator: Tensor
    numerator: Tensor


class _MvmfLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]  # torch's own signature is variadic
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean_directions: Tensor,
        log_concentrations: Tensor,
        target_directions: Tensor,
        log_floor: float,
        budget: int,
    ) -> Tensor:
        working = torch.float64 if features.dtype == torch.float64 else torch.float32
        n, kept, kept_bytes = features.shape[0], [], 0
        sums = _Sums(*(torch.full((n,), -math.inf, dtype=working, device=features.device) for _ in range(2)))
        for part in _chunks(weight.shape[0]):
            logits = _logits(features, weight, bias, part, working)
            joint = logits + log_density(target_directions, mean_directions[part], log_concentrations[part]).to(working)
            sums = _Sums(_accumulate(sums.denominator, logits), _accumulate(sums.numerator, joint))
            kept_bytes += logits.numel() * logits.element_size()
            kept.append(logits if kept_bytes <= budget else None)
        mixture = sums.numerator - sums.denominator
        floored = torch.logaddexp(mixture, torch.full_like(mixture, log_floor)) if log_floor > -math.inf else mixture
        ctx.save_for_backward(
            features, weight, bias, mean_directions, log_concentrations, target_directions,
            sums.denominator, sums.numerator, torch.exp(mixture - floored),
        )  # fmt: skip
        ctx.kept = kept
        return -floored

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, bias, mu, log_kappa, y, denominator, numerator, share = ctx.saved_tensors
        scale = (gradients[0].to(share) * share)[:, None]  # the floor takes its share of the gradient away
        needs = ctx.needs_input_grad
        d_features = torch.zeros_like(features, dtype=share.dtype) if needs[0] else None
        d_weight = torch.empty_like(weight) if needs[1] else None
        d_bias = torch.empty_like(bias) if needs[2] else None
        d_mu = torch.empty_like(mu) if needs[3] else None
        d_log_kappa = torch.empty_like(log_kappa) if needs[4] else None
        for kept, part in zip(ctx.kept, _chunks(weight.shape[0]), strict=True):
            logits = _logits(features, weight, bias, part, share.dtype) if kept is None else kept
            log_f = log_density(y, mu[part], log_kappa[part])
            near = _exp(logits + log_f.to(share.dtype) - numerator[:, None])  # responsibilities q, (N, chunk)
            d_logits = (_exp(logits - denominator[:, None]) - near) * scale
            if d_features is not None:
                d_features += (d_logits.to(weight.dtype) @ weight[part]).to(share.dtype)
            if d_weight is not None:
                d_weight[part] = d_logits.to(features.dtype).T @ features
            if d_bias is not None:
                d_bias[part] = d_logits.sum(dim=0)
            _component_gradients(d_mu, d_log_kappa, part, (near * scale).double(), y, mu, log_kappa)
        d_features = None if d_features is None else d_features.to(features.dtype)
        return d_features, d_weight, d_bias, d_mu, d_log_kappa, None, None, None


def _component_gradients(
    d_mu: Tensor | None,
    d_log_kappa: Tensor | None,
    part: slice,
    pull: Tensor,
    y: Tensor,
    mu: Tensor,
    log_kappa: Tensor,
) -> None:
    """Gradients of one chunk's mean directions and log concentrations; `pull` is q times the outer gradient."""
    kappa = log_kappa[part].exp()
    if d_mu is not None:
        # d(-L)/d mu = kappa sum q (y - mu): the differences are formed before they are multiplied by a large kappa.
        d_mu[part] = -kappa[:, None] * (pull.T @ y - pull.sum(dim=0)[:, None] * mu[part])
    if d_log_kappa is not None:
        chord = (pull * _chord_squared(y, mu[part])).sum(dim=0)
        d_log_kappa[part] = -(pull.sum(dim=0) * _d_log_normaliser(log_kappa[part]) - 0.5 * kappa * chord)


def _d_log_normaliser(log_kappa: Tensor) -> Tensor:
    """D log c / d log kappa = 1 - 2 kappa / expm1(2 kappa), and the derivative of the series for small kappa."""
    kappa = log_kappa.exp()
    small = kappa < _SERIES_BELOW
    safe = torch.where(small, torch.ones_like(kappa), kappa)
    exact = 1.0 - torch.where(safe < 300.0, 2.0 * safe / torch.expm1(2.0 * safe.clamp(max=300.0)), 0.0)
    return torch.where(small, kappa - kappa * kappa / 3.0, exact)


def _chord_squared(y: Tensor, mu: Tensor) -> Tensor:
    """|y - mu|^2 in float64, (N, C); axis by axis, so that no (N, C, 3) array exists."""
    total = torch.zeros(y.shape[0], mu.shape[0], dtype=y.dtype, device=y.device)
    for axis in range(3):
        difference = y[:, axis, None] - mu[None, :, axis]
        total = torch.addcmul(total, difference, difference)
    return total


def _logits(features: Tensor, weight: Tensor, bias: Tensor, part: slice, dtype: torch.dtype) -> Tensor:
    return (features @ weight[part].T.to(features.dtype)).to(dtype) + bias[part].to(dtype)


def _exp(values: Tensor) -> Tensor:
    return torch.where(values > _UNDERFLOW, values.clamp(min=_UNDERFLOW).exp(), 0.0)


def _accumulate(running: Tensor, values: Tensor) -> Tensor:
    top = torch.maximum(running, values.max(dim=1).values)
    total = _exp(values - top[:, None]).sum(dim=1) + torch.exp(running - top)
    return top + total.log()


def _chunks(components: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, components)) for start in range(0, components, CHUNK)]


def _check(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean_directions: Tensor,
    log_concentrations: Tensor,
    target_directions: Tensor,
    reduction: str,
    floor: float | None,
) -> None:
    n, d, c = features.shape[0], features.shape[-1], weight.shape[0]
    wanted = {
        "features": (features, (n, d)),
        "weight": (weight, (c, d)),
        "bias": (bias, (c,)),
        "mean_directions": (mean_directions, (c, 3)),
        "log_concentrations": (log_concentrations, (c,)),
        "target_directions": (target_directions, (n, 3)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction {reduction!r} is not 'mean', 'sum' or 'none'")
    if floor is not None and not floor > 0.0:
        raise ValueError(f"floor {floor!r} must be a positive density per steradian, or None")
