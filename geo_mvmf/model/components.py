"""The components' log densities: differentiable, and as the streamed MvMF loss evaluates them.

What keeps the digits: the distance in ``log f = log c(kappa) - (kappa/2) |y - mu|^2`` is taken from differences of
float64 coordinates (the dot product in float32 errs by 1.6 nats at log kappa 16).
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

_SERIES_BELOW = 1e-3  # kappa below which log c is its series


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


@dataclasses.dataclass(frozen=True)
class Components:
    """Mean directions and concentrations, with what the log density needs of them.

    Parameters
    ----------
    mean_directions : Tensor of float64, shape (C, 3)
        Unit vectors (others are allowed: bounds and gradients are right for any).
    concentrations : Tensor of float64, shape (C,)
        kappa.
    log_normalisers : Tensor of float64, shape (C,)
        log c(kappa).

    Examples
    --------
    >>> north = torch.tensor([[0.0, 0.0, 1.0]]).double()
    >>> one = Components(north, torch.ones(1).double(), torch.zeros(1).double())
    >>> float(one.log_density(north, slice(None))[0, 0])
    0.0
    """

    mean_directions: Tensor
    concentrations: Tensor
    log_normalisers: Tensor

    @classmethod
    def of(cls, mean_directions: Tensor, log_concentrations: Tensor) -> Components:
        """Make them of a head's tensors, for gradients that are formed by hand: none flows back through these.

        Parameters
        ----------
        mean_directions : Tensor of float64, shape (C, 3)
            Unit vectors.
        log_concentrations : Tensor of float64, shape (C,)
            Natural logarithms of kappa.

        Returns
        -------
        Components

        Examples
        --------
        >>> north = torch.tensor([[0.0, 0.0, 1.0]]).double()
        >>> round(float(Components.of(north, torch.tensor([16.0]).double()).log_normalisers), 4)
        14.1621
        """
        given = log_concentrations.detach()
        different = given if bool((given != given[:1]).any()) else given[:1]  # one value where all are the same
        kappa, log_c = different.exp(), log_normaliser(different)
        return cls(mean_directions.detach(), kappa.expand(given.shape), log_c.expand(given.shape))

    def to(self, dtype: torch.dtype) -> Components:
        """Round to another type; float32 is exact enough for small concentrations only.

        Parameters
        ----------
        dtype : torch.dtype
            Of the result.

        Returns
        -------
        Components
            The same object, where nothing is to be done.

        Examples
        --------
        >>> north = torch.tensor([[0.0, 0.0, 1.0]]).double()
        >>> Components(north, torch.ones(1).double(), torch.zeros(1).double()).to(torch.float32).concentrations.dtype
        torch.float32
        """
        if self.concentrations.dtype == dtype:
            return self
        return Components(self.mean_directions.to(dtype), self.concentrations.to(dtype), self.log_normalisers.to(dtype))

    def log_density(self, y: Tensor, part: slice) -> Tensor:
        """Log densities of some components at all targets, from differences of coordinates.

        Parameters
        ----------
        y : Tensor of float64, shape (R, 3)
            Targets.
        part : slice
            b components.

        Returns
        -------
        Tensor of float64, shape (R, b)
            Nats per steradian.

        Examples
        --------
        >>> y = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]).double()
        >>> Components(y, torch.ones(2).double(), torch.zeros(2).double()).log_density(y, slice(0, 1)).tolist()
        [[0.0], [-2.0]]
        """
        mu = self.mean_directions[part]
        chord_squared = (y[:, 0, None] - mu[:, 0]).square_()
        for axis in (1, 2):
            difference = y[:, axis, None] - mu[:, axis]
            chord_squared.addcmul_(difference, difference)
        return torch.addcmul(self.log_normalisers[part], chord_squared, self.concentrations[part], value=-0.5)


def d_log_normaliser(kappa: Tensor) -> Tensor:
    """Differentiate log c by log kappa: 1 - 2 kappa / expm1(2 kappa), by its series for small kappa.

    Parameters
    ----------
    kappa : Tensor, shape (C,)
        Concentrations.

    Returns
    -------
    Tensor, shape (C,)
        0 for the uniform density, 1 for narrow ones.

    Examples
    --------
    >>> d_log_normaliser(torch.tensor([0.0, 100.0])).tolist()
    [0.0, 1.0]
    """
    small = kappa < _SERIES_BELOW
    safe = torch.where(small, torch.ones_like(kappa), kappa.clamp(max=300.0))
    exact = 1.0 - 2.0 * safe / torch.expm1(2.0 * safe)
    return torch.where(small, kappa - kappa**2 / 3.0 + kappa**4 / 45.0, exact)


class ComponentGradients:
    """Gradients by mean directions (in space, not along the sphere) and log concentrations, as they add up.

    Parameters
    ----------
    components : Components
        C of them.

    Examples
    --------
    >>> north = torch.tensor([[0.0, 0.0, 1.0]]).double()
    >>> one = ComponentGradients(Components(north, torch.ones(1).double(), torch.zeros(1).double()))
    >>> one.add(-north, torch.tensor([0]), torch.ones(1).double())
    >>> one.mean_directions.tolist()
    [[0.0, 0.0, 2.0]]
    """

    def __init__(self, components: Components) -> None:
        self._components = components
        self._d_log_c = d_log_normaliser(components.concentrations)
        self.mean_directions = torch.zeros_like(components.mean_directions)
        self.log_concentrations = torch.zeros_like(components.concentrations)

    def add(self, y: Tensor, columns: Tensor, pull: Tensor) -> None:
        """Add pairs: targets (K, 3), components (K,), and the numerator's gradient times their shares (K,)."""
        toward, kappa = y - self._components.mean_directions[columns], self._components.concentrations[columns]
        self.mean_directions.index_add_(0, columns, toward * (kappa * pull)[:, None], alpha=-1)
        lost = 0.5 * kappa * toward.square().sum(dim=1)  # log c - log f
        self.log_concentrations.index_add_(0, columns, pull * (self._d_log_c[columns] - lost), alpha=-1)

    def add_chunk(self, y: Tensor, part: slice, pull: Tensor, log_f: Tensor) -> None:
        """Add a chunk at all its targets: (R, 3), b components, pull and log densities (R, b)."""
        total = pull.sum(dim=0)  # (b,)
        toward = pull.T @ y - total[:, None] * self._components.mean_directions[part]  # sum of pull (y - mu)
        self.mean_directions[part] -= self._components.concentrations[part, None] * toward
        gained = (self._d_log_c - self._components.log_normalisers)[part] * total + (pull * log_f).sum(dim=0)
        self.log_concentrations[part] -= gained
