"""Output layers on features: the mixture of von Mises-Fisher components, and the baselines it is compared with.

`MvmfHead` is Izbicki et al. 2019, section 2.1. `CrossEntropyHead` (in `class_head`) is PlaNet, which classifies S2
cells; `NearestNeighbours` (in `neighbours`) copies the places of the most similar training images. The first two answer
`loss`, `log_mixing_weights` and `mixture`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from geo_mvmf.mixture import VmfMixture
from geo_mvmf.model.bundle_format import MAX_LOG_CONCENTRATION
from geo_mvmf.model.class_head import CrossEntropyHead, shared_cells
from geo_mvmf.model.loss import mvmf_loss
from geo_mvmf.model.loss_arguments import check_floor
from geo_mvmf.model.neighbours import NearestNeighbours
from geo_mvmf.model.output_layer import initial_layer, log_softmax
from geo_mvmf.model.ranks import Ranks
from geo_mvmf.model.sharding import heaviest_directions, sharded_mvmf_loss
from geo_mvmf.model.streaming import WeightUpdate

__all__ = ["CrossEntropyHead", "MvmfHead", "NearestNeighbours", "shared_cells"]

COORDINATES = ("mean_directions", "log_concentrations")


class MvmfHead(nn.Module):
    """Mixing weights from features; mean directions and concentrations shared by all images.

    Parameters
    ----------
    num_features : int
        D.
    mean_directions : array_like of float, shape (C, 3)
        Vectors of any length but 0, made unit vectors; kept in float64 whatever the module is cast to.
    log_concentrations : array_like of float, shape (C,)
        Natural logarithms of kappa, -60..60; float64 likewise.
    train_mean_directions, train_log_concentrations : bool
        Whether they are parameters, or buffers that stay as they are (the paper's experiments).
    floor : float, optional
        Density per steradian; as in `mvmf_loss`.
    prior_counts : array_like of float, shape (C,), optional
        Training images per component: the bias starts at the log of their share, one image added to each, so that
        an untrained head predicts where photos are taken. None: the bias starts at 0.
    seed : int
        Of the initial weights, which are normal with standard deviation 0.01 (the authors cut their tails).
    ranks : Ranks, optional
        Processes that share the components: each then holds its part of the tensors, and their losses are those of the
        whole head. None: all components are here.

    Attributes
    ----------
    weight_update : FusedAdam or None
        Updates the weight within the backward pass, where training wants that.

    Raises
    ------
    ValueError
        Shapes do not fit, or a mean direction is not finite or of length 0, or a log concentration is out of range, or
        there are more ranks than components.

    Examples
    --------
    >>> head = MvmfHead(2, [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], [4.0, 4.0])
    >>> head.log_mixing_weights(torch.zeros(1, 2)).exp().tolist()
    [[0.5, 0.5]]
    """

    weight: nn.Parameter
    bias: nn.Parameter
    mean_directions: Tensor
    log_concentrations: Tensor

    def __init__(
        self,
        num_features: int,
        mean_directions: npt.ArrayLike,
        log_concentrations: npt.ArrayLike,
        *,
        train_mean_directions: bool = False,
        train_log_concentrations: bool = False,
        floor: float | None = None,
        prior_counts: npt.ArrayLike | None = None,
        seed: int = 0,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__()
        directions, concentrations = _components(mean_directions, log_concentrations)
        check_floor(floor)
        self.floor = floor
        self.weight_update: WeightUpdate | None = None
        self.ranks = None if ranks is None or ranks.size == 1 else ranks
        part = _part(len(directions), self.ranks)
        self.weight, self.bias = initial_layer(
            len(directions), num_features, prior_counts=prior_counts, seed=seed, part=part
        )
        self._hold("mean_directions", directions[part].clone(), trained=train_mean_directions)
        self._hold("log_concentrations", concentrations[part].clone(), trained=train_log_concentrations)

    def log_mixing_weights(self, features: Tensor) -> Tensor:
        """Give log softmax(W x + b), eq. 3.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Any floating type.

        Returns
        -------
        Tensor of float32 (float64 if the weights are), shape (N, C)
            Nats; computed in that precision under autocast and in a half-precision module, too.

        Examples
        --------
        >>> head = MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0]).half()
        >>> head.log_mixing_weights(torch.ones(1, 2)).dtype
        torch.float32
        """
        if self.ranks is not None:
            raise ValueError(
                f"this is the part of rank {self.ranks.rank} of {self.ranks.size}, {len(self.weight)} components of a "
                "larger head; put it together by `whole_head`"
            )
        return log_softmax(features, self.weight, self.bias)

    def heaviest_directions(self, features: Tensor) -> Tensor:
        """Give the mean direction of the heaviest component (eq. 7), of all ranks where there are several.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Any floating type.

        Returns
        -------
        Tensor of float64, shape (N, 3)
            Unit vectors.

        Examples
        --------
        >>> MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0]).heaviest_directions(torch.ones(1, 2)).tolist()
        [[0.0, 0.0, 1.0]]
        """
        return heaviest_directions(
            features, self.weight, self.bias, self.mean_directions, self.ranks or Ranks(alone=True)
        )

    def loss(
        self,
        features: Tensor,
        target_directions: Tensor,
        sample_weight: Tensor | None = None,
        *,
        reduction: str = "mean",
    ) -> Tensor:
        """Give the MvMF loss (eq. 4) in nats.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Any floating type.
        target_directions : Tensor, shape (N, 3)
            As in `mvmf_loss`.
        sample_weight : Tensor, shape (N,), optional
            As in `mvmf_loss`.
        reduction : {"mean", "sum", "none"}
            As in `mvmf_loss`.

        Returns
        -------
        Tensor, shape () or (N,)
            Uniform = log 4 pi.

        Raises
        ------
        TypeError, ValueError
            As `mvmf_loss`; for instance where what is trained was not brought back by `project` after every step.

        Examples
        --------
        >>> head = MvmfHead(2, [[0.0, 0.0, 1.0]], [-12.0])
        >>> round(float(head.loss(torch.ones(1, 2), torch.tensor([[1.0, 0.0, 0.0]]).double()).detach()), 3)
        2.531
        """
        tensors = self.weight, self.bias, self.mean_directions, self.log_concentrations, target_directions
        options: dict[str, Any] = {
            "sample_weight": sample_weight,
            "floor": self.floor,
            "reduction": reduction,
            "weight_update": self.weight_update,
        }
        if self.ranks is None:
            return mvmf_loss(features, *tensors, **options)
        return sharded_mvmf_loss(features, *tensors, ranks=self.ranks, **options)

    def mixture(self, features: Tensor) -> VmfMixture:
        """Give the predicted densities.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Any floating type.

        Returns
        -------
        VmfMixture
            Of N images.

        Examples
        --------
        >>> len(MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0]).mixture(torch.zeros(3, 2)))
        3
        """
        with torch.inference_mode():
            logs = self.log_mixing_weights(features).double().cpu().numpy()
        directions, concentrations = (getattr(self, name).detach().cpu().numpy() for name in COORDINATES)
        return VmfMixture(directions, concentrations, logs)

    @torch.no_grad()
    def project(self) -> None:
        """Bring what is trained back after an optimiser's step: mean directions to length 1, concentrations into range.

        Of a loop of your own it is the last line of every step, after ``optimiser.step()``.

        Examples
        --------
        >>> head = MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0], train_mean_directions=True)
        >>> _ = head.mean_directions.data.mul_(3.0)
        >>> head.project()
        >>> head.mean_directions.tolist()
        [[0.0, 0.0, 1.0]]
        """
        if isinstance(self.mean_directions, nn.Parameter):  # what is frozen keeps its last bits
            self.mean_directions.div_(self.mean_directions.norm(dim=1, keepdim=True))
        if isinstance(self.log_concentrations, nn.Parameter):
            self.log_concentrations.clamp_(-MAX_LOG_CONCENTRATION, MAX_LOG_CONCENTRATION)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Keep only the part of the mean directions' gradient along the sphere, so that a step is a tangent one.

        Examples
        --------
        >>> head = MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0], train_mean_directions=True)
        >>> head.mean_directions.grad = torch.tensor([[1.0, 2.0, 3.0]]).double()
        >>> head.project_gradient()
        >>> head.mean_directions.grad.tolist()
        [[1.0, 2.0, 0.0]]
        """
        gradient = self.mean_directions.grad
        if gradient is not None:
            gradient -= (gradient * self.mean_directions).sum(dim=1, keepdim=True) * self.mean_directions

    def _hold(self, name: str, value: Tensor, *, trained: bool) -> None:
        if trained:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MvmfHead:  # noqa: FBT001, FBT002 (torch's)
        # A cast of the module must not change the loss: coordinates follow moves between devices, not casts.
        held = [tensor for name in COORDINATES for tensor in (getattr(self, name), getattr(self, name).grad)]

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype != tensor.dtype and any(tensor is coordinates for coordinates in held):
                return tensor.to(moved.device)
            return moved

        super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self


def _part(components: int, ranks: Ranks | None) -> slice:
    """Components that are here."""
    if ranks is None:
        return slice(0, components)
    if components < ranks.size:
        raise ValueError(f"{components} components cannot be shared by {ranks.size} ranks; use no more ranks than that")
    return ranks.part(components)


def _components(mean_directions: npt.ArrayLike, log_concentrations: npt.ArrayLike) -> tuple[Tensor, Tensor]:
    """Check and copy the components' parameters, with mean directions of length 1."""
    directions = np.array(mean_directions, dtype=np.float64)
    concentrations = np.array(log_concentrations, dtype=np.float64)
    if directions.ndim != 2 or directions.shape[1] != 3 or concentrations.shape != directions.shape[:1]:
        raise ValueError(
            f"mean_directions and log_concentrations have shapes {directions.shape}, {concentrations.shape}; "
            "expected (C, 3), (C,)"
        )
    length = np.linalg.norm(directions, axis=1)
    wrong = ~(np.isfinite(length) & (length > 0.0) & (np.abs(concentrations) <= MAX_LOG_CONCENTRATION))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"component {row} has mean direction {directions[row].tolist()} and log concentration "
            f"{concentrations[row]}; directions must be finite and longer than 0, log concentrations in "
            f"+-{MAX_LOG_CONCENTRATION:g}"
        )
    return torch.from_numpy(directions / length[:, None]), torch.from_numpy(concentrations)
