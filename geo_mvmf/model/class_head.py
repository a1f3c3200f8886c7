"""CrossEntropyHead: the PlaNet baseline, classification of S2 cells, predicting a density uniform on each cell."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from geo_mvmf import s2
from geo_mvmf.mixture import CellMixture
from geo_mvmf.model.label_smoothing import EveryLabel, LabelSmoothing, NearLabels
from geo_mvmf.model.loss import cross_entropy_loss
from geo_mvmf.model.loss_arguments import check_targets
from geo_mvmf.model.output_layer import initial_layer, log_softmax
from geo_mvmf.model.streaming import WeightUpdate

FloatArray = npt.NDArray[np.float64]


class CrossEntropyHead(nn.Module):
    """The PlaNet baseline: classification of S2 cells (Weyand et al. 2016).

    Parameters
    ----------
    num_features : int
        D.
    cell_ids : array_like of uint64, shape (C,)
        Disjoint S2 cells, ascending. Those of `partition_sphere` tile the sphere.
    prior_counts : array_like of float, shape (C,), optional
        As in `MvmfHead`.
    seed : int
        As in `MvmfHead`.
    label_smoothing_km : float, optional
        The loss is then of PIGEON's smoothed labels, which fall by a factor of e on so many kilometres beyond the
        nearest cell centre (theirs: 75), here divided by their sum: see `label_smoothing`. As it goes to 0 the target
        becomes the cell with the nearest centre, which near a border may be another one than the cell around the
        place. None: that cell alone, PlaNet's loss.

    Attributes
    ----------
    weight_update : FusedAdam or None
        As in `MvmfHead`.

    Raises
    ------
    ValueError
        The cells are not ascending or overlap, or the smoothing's distance is not positive.

    Examples
    --------
    >>> head = CrossEntropyHead(2, s2.face_cells())
    >>> len(head.mixture(torch.zeros(1, 2)))
    1
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        cell_ids: npt.ArrayLike,
        *,
        prior_counts: npt.ArrayLike | None = None,
        seed: int = 0,
        label_smoothing_km: float | None = None,
    ) -> None:
        super().__init__()
        self.weight_update: WeightUpdate | None = None
        self.cell_ids = _disjoint(np.asarray(cell_ids, dtype=np.uint64))
        self.smooth_labels(label_smoothing_km)
        self.weight, self.bias = initial_layer(self.cell_ids.size, num_features, prior_counts=prior_counts, seed=seed)

    def smooth_labels(self, tau_km: float | None) -> None:
        """Choose the labels of the loss.

        Parameters
        ----------
        tau_km : float, optional
            `label_smoothing_km` of the class.

        Raises
        ------
        ValueError
            The distance is not positive.

        Examples
        --------
        >>> head = CrossEntropyHead(2, s2.face_cells())
        >>> head.smooth_labels(75.0)
        >>> head.smoothing.tau_km
        75.0
        """
        centres = s2.centre(self.cell_ids)
        self.smoothing = None if tau_km is None else LabelSmoothing(centres, tau_km)

    def log_mixing_weights(self, features: Tensor) -> Tensor:
        """Give the log probability of each cell.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Any floating type.

        Returns
        -------
        Tensor of float32 (float64 if the weights are), shape (N, C)
            Nats.

        Examples
        --------
        >>> CrossEntropyHead(2, s2.face_cells()).log_mixing_weights(torch.zeros(1, 2)).shape
        torch.Size([1, 6])
        """
        return log_softmax(features, self.weight, self.bias)

    def loss(
        self,
        features: Tensor,
        target_directions: Tensor,
        sample_weight: Tensor | None = None,
        *,
        reduction: str = "mean",
    ) -> Tensor:
        """Give the cross entropy of the cell that holds the target, or with smoothed labels of those near it, in nats.

        It is no negative log density: see `negative_log_density`.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Any floating type.
        target_directions : Tensor, shape (N, 3)
            Unit vectors, float64.
        sample_weight : Tensor, shape (N,), optional
            As in `mvmf_loss`.
        reduction : {"mean", "sum", "none"}
            As in `mvmf_loss`.

        Returns
        -------
        Tensor, shape () or (N,)
            Uniform = log C.

        Raises
        ------
        TypeError
            What should be a tensor is none.
        ValueError
            A target is no unit vector, or in none of the cells; with smoothed labels the latter is no matter. Or a
            sample weight is negative.

        Examples
        --------
        >>> head = CrossEntropyHead(2, s2.face_cells())
        >>> round(float(head.loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0, 0.0]])).detach().exp()), 3)
        6.0
        """
        check_targets(target_directions, len(features), sample_weight)
        return cross_entropy_loss(
            features,
            self.weight,
            self.bias,
            self._target(features, target_directions),
            sample_weight=sample_weight,
            reduction=reduction,
            weight_update=self.weight_update,
        )

    def negative_log_density(self, features: Tensor, target_directions: Tensor) -> Tensor:
        """Give minus the log of the predicted density at the targets, whatever the labels of the loss are.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Any floating type.
        target_directions : Tensor, shape (N, 3)
            Unit vectors, float64.

        Returns
        -------
        Tensor of float64, shape (N,)
            Nats per steradian, as the loss of `MvmfHead`: the cross entropy of the cell that holds the target, plus
            the log of its area. No gradient.

        Raises
        ------
        ValueError
            A target is no unit vector, or in none of the cells.

        Examples
        --------
        >>> head = CrossEntropyHead(2, s2.face_cells())
        >>> round(float(head.negative_log_density(torch.zeros(1, 2), torch.tensor([[1.0, 0.0, 0.0]]))), 3)
        2.531
        """
        check_targets(target_directions, len(features))
        classes = self.classes(_numpy(target_directions))
        target = torch.from_numpy(classes).to(features.device)
        with torch.inference_mode():
            losses = cross_entropy_loss(features, self.weight, self.bias, target, reduction="none")
            area = torch.from_numpy(s2.area_sr(self.cell_ids[classes])).to(losses.device)
            return losses.double() + area.log()

    def classes(self, directions: FloatArray) -> npt.NDArray[np.int64]:
        """Find the cell that holds each direction.

        Parameters
        ----------
        directions : ndarray of float64, shape (N, 3)
            Unit vectors.

        Returns
        -------
        ndarray of int64, shape (N,)
            Indices into `cell_ids`.

        Raises
        ------
        ValueError
            A direction is in none of the cells, or not finite.

        Examples
        --------
        >>> CrossEntropyHead(2, s2.face_cells()).classes(np.array([[0.0, 0.0, 1.0]])).tolist()
        [2]
        """
        leaves = s2.leaf_ids(directions)
        found = np.searchsorted(s2.range_max(self.cell_ids), leaves).clip(max=self.cell_ids.size - 1)
        outside = ~s2.contains(self.cell_ids[found], leaves)
        if np.any(outside):
            row = int(np.argmax(outside))
            raise ValueError(
                f"direction {row} is {directions[row].tolist()}, in none of the {self.cell_ids.size} cells"
            )
        return found.astype(np.int64)

    def mixture(self, features: Tensor) -> CellMixture:
        """Give the predicted densities, uniform on each cell.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Any floating type.

        Returns
        -------
        CellMixture
            Of N images, with all C cells each.

        Examples
        --------
        >>> CrossEntropyHead(2, s2.face_cells()).mixture(torch.zeros(1, 2)).probabilities.round(4).tolist()[0]
        0.1667
        """
        with torch.inference_mode():
            probabilities = self.log_mixing_weights(features).double().exp().cpu().numpy()
        return shared_cells(self.cell_ids, probabilities)

    def _target(self, features: Tensor, target_directions: Tensor) -> Tensor | NearLabels | EveryLabel:
        directions = _numpy(target_directions)
        if self.smoothing is None:
            return torch.from_numpy(self.classes(directions)).to(features.device)
        working = torch.float64 if torch.float64 in (features.dtype, self.weight.dtype) else torch.float32
        return self.smoothing.labels(directions, working, features.device)


def shared_cells(cell_ids: npt.NDArray[np.uint64], probabilities: FloatArray) -> CellMixture:
    """Make the densities of images that share their cells.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (C,)
        Ascending, disjoint.
    probabilities : ndarray of float64, shape (N, C)
        Sum to 1 in each row.

    Returns
    -------
    CellMixture
        Of N images.

    Examples
    --------
    >>> len(shared_cells(s2.face_cells(), np.full((2, 6), 1 / 6)))
    2
    """
    n, c = probabilities.shape
    return CellMixture(np.tile(cell_ids, n), probabilities.ravel(), np.arange(n + 1, dtype=np.int64) * c)


def _numpy(directions: Tensor) -> FloatArray:
    return np.asarray(directions.detach().double().cpu().numpy())


def _disjoint(cell_ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    if cell_ids.ndim != 1 or cell_ids.size == 0 or not s2.is_valid(cell_ids).all():
        raise ValueError(f"cell_ids of shape {cell_ids.shape} must be one row of S2 cells")
    wrong = s2.range_min(cell_ids[1:]) <= s2.range_max(cell_ids[:-1])
    if wrong.any():
        pair = cell_ids[int(np.argmax(wrong)) :][:2]
        raise ValueError(f"cells {', '.join(s2.to_token(pair))} overlap or are not in ascending order")
    return cell_ids
