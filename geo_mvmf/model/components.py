"""The components' log densities, differentiable, and their part in the streamed MvMF loss.

Two things keep the digits. The distance in ``log f = log c(kappa) - (kappa/2) |y - mu|^2`` is taken from differences
of float64 coordinates (the dot product in float32 errs by 1.6 nats at log kappa 16). And z + log f is taken relative to
its largest value in float64 before it is rounded, so that the nearest of several components stays the nearest where
log f is -10^9, too.

One thing saves the time: a component counts in the sum only where its bound in float32 is within `NEGLIGIBLE` nats of
the sum found so far; what is left out is below C exp(-50) of the sum, which is less than float64 can show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

NEGLIGIBLE = 50.0  # nats below the sum; 2^20 components there hold 2e-16 of it
_SERIES_BELOW = 1e-3  # kappa below which log c is its series
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


class NearComponents:
    """The numerator of the MvMF loss: logsumexp of logits plus log densities, over the components that count.

    Parameters
    ----------
    mean_directions : Tensor of float64, shape (C, 3)
        Unit vectors (others are allowed: the bound and the gradient are right for any).
    log_concentrations : Tensor of float64, shape (C,)
        Natural logarithms of kappa.
    target_directions : Tensor of float64, shape (N, 3)
        Unit vectors.
    working : torch.dtype
        Type of the logits.
    value, bounds : Tensor, optional
        In the backward pass: what the forward pass found.

    Examples
    --------
    >>> north = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    >>> near = NearComponents(north, torch.tensor([16.0]).double(), north, torch.float32)
    >>> near.add(0, slice(0, 1), torch.zeros(1, 1), torch.zeros(1), torch.empty(1, 1))
    >>> round(float(near.value()), 4)
    14.1621
    """

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
        """Give the numerator, float64, (N,)."""
        return self._value

    def bounds(self) -> Tensor:
        """Upper bound of the log density of each chunk's components at each target, (chunks, N)."""
        return torch.stack(self._bounds)

    def collect(self, *, mean_directions: bool, log_concentrations: bool) -> None:
        """Ask for the gradients by the components' own parameters."""
        self.d_mean_directions = torch.zeros_like(self._mu) if mean_directions else None
        self.d_log_concentrations = torch.zeros_like(self._kappa) if log_concentrations else None

    def add(self, index: int, part: slice, logits: Tensor, log_sums: Tensor, scratch: Tensor) -> None:
        """Take in a chunk; parameters as `streaming.Numerator.add`."""
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
        """Subtract the responsibilities; parameters as `streaming.Numerator.subtract`."""
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
    """Differentiate log c by log kappa: 1 - 2 kappa / expm1(2 kappa), by its series for small kappa."""
    small = kappa < _SERIES_BELOW
    safe = torch.where(small, torch.ones_like(kappa), kappa.clamp(max=300.0))
    exact = 1.0 - 2.0 * safe / torch.expm1(2.0 * safe)
    return torch.where(small, kappa - kappa**2 / 3.0 + kappa**4 / 45.0, exact)


def _exp(values: Tensor) -> Tensor:
    return values.clamp_(min=_UNDERFLOW).exp_()
