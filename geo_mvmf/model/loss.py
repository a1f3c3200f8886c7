"""The MvMF loss, streamed over components, and cross entropy likewise.

Izbicki et al. 2019, eq. 4, in log space: ``L = logsumexp(z) - logsumexp(z + log f(y))`` with z = W x + b. The gradient
by the logits is softmax(z) - softmax(z + log f).

Two things keep the digits. The distance in ``log f = log c(kappa) - (kappa/2) |y - mu|^2`` is taken from differences of
float64 coordinates (the dot product in float32 errs by 1.6 nats at log kappa 16), and coordinates never enter
autocast. And z + log f is taken relative to its largest value in float64 before it is rounded, so that the nearest of
several components stays the nearest where log f is -10^9, too.

One thing saves the time: a component counts in the second sum only where its bound in float32 is within `NEGLIGIBLE`
nats of the sum found so far; what is left out is below C exp(-50) of the sum, which is less than float64 can show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from geo_mvmf.model import streaming

LOGIT_BUDGET_BYTES = 1 << 28
NEGLIGIBLE = 50.0  # nats below the sum; 2^20 components there hold 2e-16 of it
REDUCTIONS = ("mean", "sum", "none")
_SERIES_BELOW = 1e-3  # kappa below which log c is its series (DESIGN section 4)
_UNDERFLOW = -80.0  # exp of less is 0 for a float32 sum, and through denormals ten times slower on CPUs
_BOUND_ERROR = 2e-6  # relative to the largest kappa: three products and four sums in float32 err by less than 1e-6
_NEAR_ELEMENTS = 1 << 17  # float64 values worked on at once: 1 MB
_ACCELERATOR_NEAR_ELEMENTS = 1 << 22


def log_normaliser(log_concentrations: Tensor) -> Tensor:
    """Give log c(kappa) per steradian, differentiable, also as kappa goes to 0.

    Parameters
    ----------
    log_concentrations : Tensor, shape (C,)
        Natural logarithms of kappa.

    Returns
    -------
    Tensor, shape (C,)
        Nats per steradian; equals `vmf.log_normaliser`.

    Examples
    --------
    >>> round(float(log_normaliser(torch.tensor([-12.0], dtype=torch.float64))), 4)
    -2.531
    """
    kappa = log_concentrations.exp()
    small = kappa < _SERIES_BELOW
    # `where` would let a NaN of the branch not taken into the gradient: give that branch a harmless argument
    safe = torch.where(small, torch.zeros_like(log_concentrations), log_concentrations)
    exact = safe - math.log(2.0 * math.pi) - torch.log(-torch.expm1(-2.0 * safe.exp()))
    bounded = torch.where(small, kappa, torch.zeros_like(kappa))
    series = -math.log(4.0 * math.pi) + bounded - bounded**2 / 6.0 + bounded**4 / 180.0
    return torch.where(small, series, exact)


def log_density(target_directions: Tensor, mean_directions: Tensor, log_concentrations: Tensor) -> Tensor:
    """Evaluate the log density of every component at every target; the differentiable form of `vmf.log_density`.

    Parameters
    ----------
    target_directions : Tensor, shape (N, 3)
        Unit vectors; float64 for exactness.
    mean_directions : Tensor, shape (C, 3)
        Unit vectors.
    log_concentrations : Tensor, shape (C,)
        Natural logarithms of kappa.

    Returns
    -------
    Tensor of float64, shape (N, C)
        Nats per steradian.

    Examples
    --------
    >>> y = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> round(float(log_density(y, y, torch.tensor([16.0], dtype=torch.float64))), 4)
    14.1621
    """
    y, mu, log_kappa = target_directions.double(), mean_directions.double(), log_concentrations.double()
    chord_squared = sum((y[:, axis, None] - mu[:, axis]).square() for axis in range(3))  # (N, C), never (N, C, 3)
    return log_normaliser(log_kappa) - 0.5 * log_kappa.exp() * chord_squared


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
    Source: Izbicki et al. 2019, eq. 4, with the 1/4pi that eq. 1 lacks. Under autocast on CUDA the factors of the matrix
    products are rounded to half precision, the logits are not; autocast of a CPU has no effect here.

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
        losses: Tensor = _MvmfLoss.apply(  # type: ignore[no-untyped-call]  # torch declares apply untyped
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
        return reduce(losses, sample_weight, reduction)


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
        losses: Tensor = _CrossEntropyLoss.apply(  # type: ignore[no-untyped-call]  # torch declares apply untyped
            features,
            weight,
            bias,
            target,
            LOGIT_BUDGET_BYTES if logit_budget_bytes is None else logit_budget_bytes,
            _product_type(features),
        )
        return reduce(losses, sample_weight, reduction)


def reduce(losses: Tensor, sample_weight: Tensor | None, reduction: str) -> Tensor:
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
    >>> float(reduce(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]), "mean"))
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
    def forward(  # type: ignore[override]  # torch's own signature is variadic
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
        near = _NearComponents(mean_directions, log_concentrations, target_directions, layer.working)
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
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        layer = streaming.OutputLayer(*saved[:3], ctx.product_type)
        near = _NearComponents(*saved[3:6], layer.working, value=saved[9], bounds=saved[10])
        near.collect(mean_directions=ctx.needs_input_grad[3], log_concentrations=ctx.needs_input_grad[4])
        scale = (gradients[0].double() * saved[11]).to(layer.working)  # a floor takes its share of the gradient away
        with torch.autocast(layer.features.device.type, enabled=False):  # the caller's may still be on
            found = streaming.backward(
                layer, near, streaming.Sums(*saved[6:9]), scale, tuple(ctx.needs_input_grad[:3])
            )
        return *found, near.d_mean_directions, near.d_log_concentrations, None, None, None, None


class _CrossEntropyLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]  # torch's own signature is variadic
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
    @torch.autograd.function.once_differentiable  # type: ignore[untyped-decorator]  # torch leaves it untyped
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        layer = streaming.OutputLayer(*saved[:3], ctx.product_type)
        logits = streaming.TargetLogits(saved[3], layer.features.device)
        scale = gradients[0].to(layer.working)
        with torch.autocast(layer.features.device.type, enabled=False):  # the caller's may still be on
            found = streaming.backward(
                layer, logits, streaming.Sums(*saved[4:7]), scale, tuple(ctx.needs_input_grad[:3])
            )
        return *found, None, None, None


class _NearComponents:
    """The numerator of the MvMF loss: logsumexp of logits plus log densities, over the components that count."""

    def __init__(
        self,
        mean_directions: Tensor,
        log_concentrations: Tensor,
        target_directions: Tensor,
        working: torch.dtype,
        *,
        value: Tensor | None = None,
        bounds: Tensor | None = None,
    ) -> None:
        self._mu, self._y, self._working = mean_directions, target_directions, working
        self._kappa = log_concentrations.exp()
        self._log_c, self._d_log_c = log_normaliser(log_concentrations), _d_log_normaliser(self._kappa)
        norm_squared = mean_directions.square().sum(dim=1)
        self._at_zero = self._log_c - 0.5 * self._kappa * (1.0 + norm_squared)  # log f = this + kappa y.mu, |y| = 1
        self._short = 0.5 * (1.0 - target_directions.square().sum(dim=1)).clamp(min=0.0)
        self._value = torch.full_like(self._y[:, 0], -math.inf) if value is None else value
        self._bounds: list[Tensor] = [] if bounds is None else list(bounds)
        self.d_mean_directions: Tensor | None = None
        self.d_log_concentrations: Tensor | None = None

    def value(self) -> Tensor:
        return self._value

    def bounds(self) -> Tensor:
        """Upper bound of the log density of each chunk's components at each target, (chunks, N)."""
        return torch.stack(self._bounds)

    def collect(self, *, mean_directions: bool, log_concentrations: bool) -> None:
        """Ask for the gradients by the components' own parameters."""
        self.d_mean_directions = torch.zeros_like(self._mu) if mean_directions else None
        self.d_log_concentrations = torch.zeros_like(self._kappa) if log_concentrations else None

    def add(self, index: int, part: slice, logits: Tensor, log_sums: Tensor, scratch: Tensor) -> None:
        self._bounds.append(self._bound(part, scratch))
        for rows in self._near(index, log_sums, part):
            log_f = self._log_f(part, rows)
            joint = log_f.add_(logits[rows])
            top = joint.amax(dim=1)
            total = _exp(joint.sub_(top[:, None]).to(self._working)).sum(dim=1)
            self._value[rows] = torch.logaddexp(self._value[rows], top + total.double().log())

    def subtract(
        self, index: int, part: slice, logits: Tensor, log_sums: Tensor, scale: Tensor, d_logits: Tensor
    ) -> None:
        for rows in self._near(index, log_sums, part):
            log_f = self._log_f(part, rows)
            joint = log_f + logits[rows]
            pull = _exp(joint.sub_(self._value[rows, None]).to(self._working)).mul_(scale[rows, None])
            d_logits[rows] -= pull
            self._collect(part, rows, pull, log_f)

    def _collect(self, part: slice, rows: slice | Tensor, pull: Tensor, log_f: Tensor) -> None:
        """Add the gradients by mean directions and log concentrations; `pull` (R, b) is responsibility times scale."""
        if self.d_mean_directions is None and self.d_log_concentrations is None:
            return
        wide = pull.double()
        total = wide.sum(dim=0)  # (b,)
        if self.d_mean_directions is not None:
            toward = wide.T @ self._y[rows] - total[:, None] * self._mu[part]  # sum of pull (y - mu)
            self.d_mean_directions[part] -= self._kappa[part, None] * toward
        if self.d_log_concentrations is not None:
            # (kappa/2) |y - mu|^2 is log c - log f
            self.d_log_concentrations[part] -= total * (self._d_log_c - self._log_c)[part] + (wide * log_f).sum(dim=0)

    def _bound(self, part: slice, scratch: Tensor) -> Tensor:
        """Bound the log densities of a chunk from above at each target, (N,), in cheap float32 arithmetic."""
        y, toward = self._y.float(), (self._kappa[part, None] * self._mu[part]).float()
        estimate = scratch if scratch.dtype == torch.float32 else scratch.float()
        torch.addcmul(self._at_zero[part].float(), y[:, 0, None], toward[:, 0], out=estimate)
        for axis in (1, 2):
            estimate.addcmul_(y[:, axis, None], toward[:, axis])
        widest = self._kappa[part].amax()
        slack = _BOUND_ERROR * (widest + self._log_c[part].abs().amax()) + widest * self._short
        return estimate.amax(dim=1).double() + slack

    def _near(self, index: int, log_sums: Tensor, part: slice) -> Iterator[slice | Tensor]:
        """Give the rows for which a chunk can count, in runs that bound the memory of float64 work."""
        negligible = self._bounds[index] + log_sums.double() < self._value - NEGLIGIBLE
        rows = (~negligible).nonzero().squeeze(1)  # NaN is not negligible: it must show
        limit = _NEAR_ELEMENTS if rows.device.type == "cpu" else _ACCELERATOR_NEAR_ELEMENTS
        step = max(1, limit // (part.stop - part.start))
        for start in range(0, rows.numel(), step):
            stop = min(start + step, rows.numel())
            yield slice(start, stop) if rows.numel() == negligible.numel() else rows[start:stop]

    def _log_f(self, part: slice, rows: slice | Tensor) -> Tensor:
        """Log densities from differences of float64 coordinates, (R, b)."""
        y, mu = self._y[rows], self._mu[part]
        chord_squared = (y[:, 0, None] - mu[:, 0]).square_()
        for axis in (1, 2):
            difference = y[:, axis, None] - mu[:, axis]
            chord_squared.addcmul_(difference, difference)
        return torch.addcmul(self._log_c[part], chord_squared, self._kappa[part], value=-0.5, out=chord_squared)


def _d_log_normaliser(kappa: Tensor) -> Tensor:
    """Derivative of log c by log kappa: 1 - 2 kappa / expm1(2 kappa), by its series for small kappa."""
    small = kappa < _SERIES_BELOW
    safe = torch.where(small, torch.ones_like(kappa), kappa.clamp(max=300.0))
    exact = 1.0 - 2.0 * safe / torch.expm1(2.0 * safe)
    return torch.where(small, kappa - kappa**2 / 3.0 + kappa**4 / 45.0, exact)


def _exp(values: Tensor) -> Tensor:
    return values.clamp_(min=_UNDERFLOW).exp_()


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
