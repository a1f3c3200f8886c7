"""The linear output layer that the heads have in common: how it begins, and its log softmax."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

_WEIGHT_SD = 0.01  # as the authors initialise the output layer (PRIOR_ART 3.1)


def initial_layer(
    components: int, num_features: int, *, prior_counts: npt.ArrayLike | None, seed: int
) -> tuple[nn.Parameter, nn.Parameter]:
    """Make the initial weight and bias.

    Parameters
    ----------
    components : int
        C.
    num_features : int
        D.
    prior_counts : array_like of float, shape (C,), optional
        Training images per component: the bias starts at the log of their share, one image added to each. None: 0.
    seed : int
        Of the weights, which are normal with standard deviation 0.01 (the authors' truncated normal, not truncated).

    Returns
    -------
    weight, bias : nn.Parameter of float32, shapes (C, D) and (C,)
        On the CPU.

    Raises
    ------
    ValueError
        The counts are of another shape or negative.

    Examples
    --------
    >>> initial_layer(2, 3, prior_counts=[0, 2], seed=0)[1].exp().detach().tolist()
    [0.25, 0.75]
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(components, num_features, generator=generator) * _WEIGHT_SD
    if prior_counts is None:
        return nn.Parameter(weight), nn.Parameter(torch.zeros(components))
    counts = np.asarray(prior_counts, dtype=np.float64)
    if counts.shape != (components,) or not np.all(counts >= 0.0):
        raise ValueError(f"prior_counts have shape {counts.shape}, expected ({components},), all of them >= 0")
    share = torch.from_numpy((counts + 1.0) / (counts + 1.0).sum())
    return nn.Parameter(weight), nn.Parameter(share.log().float())


def log_softmax(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Give log softmax(W x + b), never in half precision.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        Any floating type.
    weight : Tensor, shape (C, D)
        Any floating type.
    bias : Tensor, shape (C,)
        Any floating type.

    Returns
    -------
    Tensor of float32 (float64 if the weight is), shape (N, C)
        Nats.

    Examples
    --------
    >>> log_softmax(torch.zeros(1, 3), torch.zeros(2, 3), torch.zeros(2)).exp().tolist()
    [[0.5, 0.5]]
    """
    # under autocast, or in half precision, the logits would be rounded to two or three digits
    with torch.autocast(features.device.type, enabled=False):
        working = torch.float64 if weight.dtype == torch.float64 else torch.float32
        logits = functional.linear(features.to(working), weight.to(working), bias.to(working))
        return functional.log_softmax(logits, dim=1)
