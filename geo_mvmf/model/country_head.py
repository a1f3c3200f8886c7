"""CountryHead: the classifier of stage backbone, thrown away when the backbone is trained (paper, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from geo_mvmf.model.loss import reduce_losses


class CountryHead(nn.Module):
    """Linear classification of countries.

    Parameters
    ----------
    num_features : int
    num_classes : int
        With "no country", which is class 0.
    seed : int
        Of the initial weights.

    Examples
    --------
    >>> head = CountryHead(2, 4, seed=0)
    >>> float(head.loss(torch.zeros(1, 2), torch.tensor([3])).detach().exp().round())
    4.0
    """

    def __init__(self, num_features: int, num_classes: int, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(num_classes, num_features, generator=generator) * 0.01)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def log_mixing_weights(self, features: Tensor) -> Tensor:
        """Log probabilities of the classes, shape (N, K).

        Parameters
        ----------
        features : Tensor, shape (N, D)
        """
        return functional.log_softmax(functional.linear(features.float(), self.weight, self.bias), dim=1)

    def loss(
        self, features: Tensor, labels: Tensor, sample_weight: Tensor | None = None, *, reduction: str = "mean"
    ) -> Tensor:
        """Cross entropy in nats.

        Parameters
        ----------
        features : Tensor, shape (N, D)
        labels : Tensor, shape (N,), int64
        sample_weight : Tensor, shape (N,), optional
        reduction : {"mean", "sum", "none"}
        """
        losses = functional.nll_loss(self.log_mixing_weights(features), labels, reduction="none")
        return reduce_losses(losses, sample_weight, reduction)
