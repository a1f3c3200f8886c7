"""Output layers on features: the mixture of von Mises-Fisher components, and the baselines it is compared with.

`MvmfHead` is Izbicki et al. 2019, section 2.1; `CrossEntropyHead` is PlaNet (classification of S2 cells, predicting
a density that is uniform on each cell); `NearestNeighbours` copies the places of the most similar training images.
The first two answer `loss`, `log_mixing_weights` and `mixture`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from geo_mvmf import s2, sphere
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.model.loss import mvmf_loss, reduce_losses

FloatArray = npt.NDArray[np.float64]

_WEIGHT_SD = 0.01  # as the authors initialise the output layer
_NEIGHBOUR_BLOCK = 1 << 24  # distances held at once by the exact search
_COORDINATES = ("mean_directions", "log_concentrations")


class MvmfHead(nn.Module):
    """Mixing weights from features; mean directions and concentrations shared by all images.

    Parameters
    ----------
    num_features : int
        D.
    mean_directions : array_like of float, (C, 3)
        Unit vectors; kept in float64 whatever the module is cast to.
    log_concentrations : array_like of float, (C,)
        Natural logarithms; float64 likewise.
    train_mean_directions, train_log_concentrations : bool
        Whether they are parameters or fixed (the paper's default is fixed).
    floor : float, optional
        As in `mvmf_loss`.
    prior_counts : array_like of int, (C,), optional
        Training images per component: the bias starts at the log of their share (plus one each).
    seed : int
        Of the initial weights.

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
    ) -> None:
        super().__init__()
        directions = torch.as_tensor(np.asarray(mean_directions, dtype=np.float64).copy())
        concentrations = torch.as_tensor(np.asarray(log_concentrations, dtype=np.float64).copy())
        if directions.ndim != 2 or directions.shape[1] != 3 or concentrations.shape != directions.shape[:1]:
            raise ValueError(
                f"mean_directions have shape {tuple(directions.shape)} and log_concentrations "
                f"{tuple(concentrations.shape)}, expected (C, 3) and (C,)"
            )
        self.floor = floor
        self.weight, self.bias = _initial(len(directions), num_features, prior_counts, seed)
        self._hold("mean_directions", directions / directions.norm(dim=1, keepdim=True), train_mean_directions)
        self._hold("log_concentrations", concentrations, train_log_concentrations)

    def log_mixing_weights(self, features: Tensor) -> Tensor:
        """Give log softmax(W x + b).

        Parameters
        ----------
        features : Tensor, (N, D)

        Returns
        -------
        Tensor of float32, (N, C)
        """
        return _log_softmax(features, self.weight, self.bias)

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
        features : Tensor, (N, D)
        target_directions : Tensor, (N, 3)
            Unit vectors, float64.
        sample_weight : Tensor, (N,), optional
        reduction : {"mean", "sum", "none"}

        Returns
        -------
        Tensor
        """
        return mvmf_loss(
            features,
            self.weight,
            self.bias,
            self.mean_directions,
            self.log_concentrations,
            target_directions,
            sample_weight=sample_weight,
            floor=self.floor,
            reduction=reduction,
        )

    def mixture(self, features: Tensor) -> VmfMixture:
        """Give the predicted densities.

        Parameters
        ----------
        features : Tensor, (N, D)

        Returns
        -------
        VmfMixture
            Of N images.
        """
        with torch.inference_mode():
            logs = self.log_mixing_weights(features).double().cpu().numpy()
        directions, concentrations = (getattr(self, name).detach().cpu().numpy() for name in _COORDINATES)
        return VmfMixture(directions, concentrations, logs)

    @torch.no_grad()
    def project(self) -> None:
        """Bring the mean directions back to length 1 after an optimiser's step."""
        self.mean_directions /= self.mean_directions.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Keep only the part of the mean directions' gradient along the sphere (a tangent step)."""
        gradient = self.mean_directions.grad
        if gradient is not None:
            gradient -= (gradient * self.mean_directions).sum(dim=1, keepdim=True) * self.mean_directions

    def _hold(self, name: str, value: Tensor, trained: bool) -> None:  # noqa: FBT001 (private)
        if trained:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MvmfHead:  # noqa: FBT001, FBT002 (torch's)
        # A cast of the module must not change the loss: coordinates follow moves between devices, not casts.
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.dtype == torch.float64 and moved.dtype != torch.float64:
                return tensor.to(moved.device)
            return moved

        super()._apply(keep_precision, recurse)
        return self


class CrossEntropyHead(nn.Module):
    """The PlaNet baseline: classification of S2 cells (Weyand et al. 2016).

    Parameters
    ----------
    num_features : int
        D.
    cell_ids : array_like of uint64, (C,)
        Disjoint cells that tile the sphere, ascending.
    prior_counts : array_like of int, (C,), optional
        As in `MvmfHead`.
    seed : int
        Of the initial weights.

    Examples
    --------
    >>> head = CrossEntropyHead(2, s2.face_cells())
    >>> len(head.mixture(torch.zeros(1, 2)))
    1
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self, num_features: int, cell_ids: npt.ArrayLike, *, prior_counts: npt.ArrayLike | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.cell_ids = np.asarray(cell_ids, dtype=np.uint64)
        if self.cell_ids.ndim != 1 or np.any(self.cell_ids[1:] <= self.cell_ids[:-1]):
            raise ValueError(f"cell_ids of shape {self.cell_ids.shape} must be one ascending row of S2 cells")
        self.weight, self.bias = _initial(self.cell_ids.size, num_features, prior_counts, seed)

    def log_mixing_weights(self, features: Tensor) -> Tensor:
        """Give the log probability of each cell.

        Parameters
        ----------
        features : Tensor, (N, D)

        Returns
        -------
        Tensor of float32, (N, C)
        """
        return _log_softmax(features, self.weight, self.bias)

    def loss(
        self,
        features: Tensor,
        target_directions: Tensor,
        sample_weight: Tensor | None = None,
        *,
        reduction: str = "mean",
    ) -> Tensor:
        """Give the cross entropy of the cell that holds the target, in nats.

        Parameters
        ----------
        features : Tensor, (N, D)
        target_directions : Tensor, (N, 3)
            Unit vectors, float64.
        sample_weight : Tensor, (N,), optional
        reduction : {"mean", "sum", "none"}

        Returns
        -------
        Tensor
        """
        leaves = s2.leaf_ids(target_directions.detach().double().cpu().numpy())
        classes = torch.from_numpy(np.searchsorted(s2.range_max(self.cell_ids), leaves)).to(features.device)
        logits = functional.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))
        losses = functional.cross_entropy(logits.to(self.weight.dtype), classes, reduction="none")
        return reduce_losses(losses, sample_weight, reduction)

    def mixture(self, features: Tensor) -> CellMixture:
        """Give the predicted densities, uniform on each cell.

        Parameters
        ----------
        features : Tensor, (N, D)

        Returns
        -------
        CellMixture
            Of N images.
        """
        with torch.inference_mode():
            probabilities = self.log_mixing_weights(features).double().exp().cpu().numpy()
        return shared_cells(self.cell_ids, probabilities)


class NearestNeighbours:
    """The place of the most similar training image (exact search by Euclidean distance of features).

    Parameters
    ----------
    features : array_like of float32, (M, D)
        Of the training images.
    longitude, latitude : array_like of float, (M,)
        Their places, degrees.
    k : int
        Neighbours; more than one are averaged on the sphere, weighted by 1 / squared distance.

    Examples
    --------
    >>> NearestNeighbours([[0.0], [1.0]], [10.0, 20.0], [50.0, 60.0]).predict([[0.9]]).tolist()
    [[20.0, 60.0]]
    """

    def __init__(
        self, features: npt.ArrayLike, longitude: npt.ArrayLike, latitude: npt.ArrayLike, *, k: int = 1
    ) -> None:
        self.features = torch.as_tensor(np.asarray(features, dtype=np.float32))
        self.longitude = np.asarray(longitude, dtype=np.float64)
        self.latitude = np.asarray(latitude, dtype=np.float64)
        self.k = k
        if not 1 <= k <= len(self.features) or self.longitude.shape != (len(self.features),):
            raise ValueError(f"k is {k} and places {self.longitude.shape}, for {len(self.features)} training images")

    def predict(self, features: npt.ArrayLike) -> FloatArray:
        """Estimate places.

        Parameters
        ----------
        features : array_like of float32, (N, D)

        Returns
        -------
        ndarray of float64, (N, 2)
            Longitude, latitude in degrees.
        """
        queries = torch.as_tensor(np.asarray(features, dtype=np.float32))
        step = max(1, _NEIGHBOUR_BLOCK // len(self.features))
        blocks = [self._block(queries[start : start + step]) for start in range(0, len(queries), step)]
        return np.concatenate(blocks) if blocks else np.empty((0, 2))

    def _block(self, queries: Tensor) -> FloatArray:
        # |x|^2 - 2 x.q is enough to rank; the distance itself only weighs the k that were found.
        score = (self.features * self.features).sum(dim=1) - 2.0 * queries @ self.features.T
        found = score.topk(self.k, dim=1, largest=False).indices
        if self.k == 1:
            nearest = found[:, 0].numpy()
            return np.stack([self.longitude[nearest], self.latitude[nearest]], axis=1)
        gap = (queries[:, None, :] - self.features[found]).square().sum(dim=2).double().numpy()
        share = 1.0 / np.maximum(gap, 1e-12)
        index = found.numpy()
        places = sphere.to_directions(self.longitude[index], self.latitude[index])
        return np.stack(sphere.to_longitude_latitude((share[..., None] * places).sum(axis=1)), axis=1)


def shared_cells(cell_ids: npt.NDArray[np.uint64], probabilities: FloatArray) -> CellMixture:
    """Make the densities of images that share their cells.

    Parameters
    ----------
    cell_ids : ndarray of uint64, (C,)
    probabilities : ndarray of float64, (N, C)

    Returns
    -------
    CellMixture

    Examples
    --------
    >>> len(shared_cells(s2.face_cells(), np.full((2, 6), 1 / 6)))
    2
    """
    n, c = probabilities.shape
    return CellMixture(np.tile(cell_ids, n), probabilities.ravel(), np.arange(n + 1, dtype=np.int64) * c)


def head_state(head: MvmfHead | CrossEntropyHead) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take a head apart for a bundle or a checkpoint.

    Parameters
    ----------
    head : MvmfHead or CrossEntropyHead

    Returns
    -------
    tensors : dict of str to Tensor
    config : dict
        JSON-able.

    Examples
    --------
    >>> head_state(CrossEntropyHead(2, s2.face_cells()))[1]["kind"]
    'cross_entropy'
    """
    tensors = {name: tensor.detach() for name, tensor in head.state_dict().items()}
    if isinstance(head, CrossEntropyHead):
        return tensors | {"cell_ids": torch.from_numpy(head.cell_ids.copy())}, {"kind": "cross_entropy"}
    trained = dict(head.named_parameters())
    return tensors, {
        "kind": "mvmf",
        "floor": head.floor,
        "train_mean_directions": "mean_directions" in trained,
        "train_log_concentrations": "log_concentrations" in trained,
    }


def head_from_state(tensors: dict[str, Tensor], config: dict[str, Any]) -> MvmfHead | CrossEntropyHead:
    """Put a head together again.

    Parameters
    ----------
    tensors, config
        As `head_state` returns them.

    Returns
    -------
    MvmfHead or CrossEntropyHead

    Raises
    ------
    ValueError
        If the kind is unknown or shapes do not fit.

    Examples
    --------
    >>> head = MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0])
    >>> bool((head_from_state(*head_state(head)).weight == head.weight).all())
    True
    """
    kind, weight = config.get("kind"), tensors["weight"]
    if kind == "cross_entropy":
        head: MvmfHead | CrossEntropyHead = CrossEntropyHead(weight.shape[1], tensors["cell_ids"].numpy())
        tensors = {name: tensor for name, tensor in tensors.items() if name != "cell_ids"}
    elif kind == "mvmf":
        options = {key: config[key] for key in ("floor", "train_mean_directions", "train_log_concentrations")}
        coordinates = (tensors[name].double().cpu().numpy() for name in _COORDINATES)
        head = MvmfHead(weight.shape[1], *coordinates, **options)
    else:
        raise ValueError(f"head kind {kind!r} is not 'mvmf' or 'cross_entropy'")
    with torch.no_grad():
        for name, own in head.state_dict(keep_vars=True).items():
            if own.shape != tensors[name].shape:
                raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(own.shape)}")
            own.copy_(tensors[name])
    return head


def _initial(
    components: int, num_features: int, prior_counts: npt.ArrayLike | None, seed: int
) -> tuple[nn.Parameter, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(components, num_features, generator=generator) * _WEIGHT_SD
    if prior_counts is None:
        return nn.Parameter(weight), nn.Parameter(torch.zeros(components))
    counts = torch.as_tensor(np.asarray(prior_counts, dtype=np.float64)) + 1.0
    return nn.Parameter(weight), nn.Parameter((counts / counts.sum()).log().float())


def _log_softmax(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    logits = functional.linear(features.to(weight.dtype), weight, bias)
    return functional.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, dim=1)
