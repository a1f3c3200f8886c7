"""Replicas: the same backbone on several ranks, each for its rows of a batch, kept the same.

The loss is that of the rows of all ranks, so that gradients are summed. Batch normalisation sees the rows of one rank
only; its running statistics are averaged after every step. Dropout draws from a seed of its own on each rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geo_mvmf.model.ranks import Ranks


def sum_gradients(module: nn.Module, ranks: Ranks) -> None:
    """Sum the gradients of all ranks, where each has those of its rows.

    Parameters
    ----------
    module : nn.Module
        With the same weights on all.
    ranks : Ranks
        All have to call it at the same time.

    Examples
    --------
    >>> sum_gradients(nn.Linear(1, 1), Ranks())
    """
    if ranks.size == 1:
        return
    for weight in module.parameters():
        if weight.requires_grad and weight.grad is None:
            weight.grad = torch.zeros_like(weight)
    _replace([weight.grad for weight in module.parameters() if weight.grad is not None], ranks, divide=False)


def average_statistics(module: nn.Module, ranks: Ranks) -> None:
    """Average what layers such as batch normalisation noted of their inputs.

    Parameters
    ----------
    module : nn.Module
        The same on all ranks but for these buffers.
    ranks : Ranks
        All have to call it at the same time.

    Examples
    --------
    >>> average_statistics(nn.BatchNorm2d(2), Ranks())
    """
    if ranks.size > 1:
        _replace([buffer for buffer in module.buffers() if buffer.is_floating_point()], ranks, divide=True)


@torch.no_grad()
def _replace(tensors: Sequence[Tensor], ranks: Ranks, *, divide: bool) -> None:
    """Replace tensors by their sum or mean over the ranks: one message for all of a type."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        some = [tensor for tensor in tensors if tensor.dtype == dtype]
        total = ranks.sum(torch.cat([tensor.reshape(-1) for tensor in some]))
        if divide:
            total /= ranks.size
        for tensor, values in zip(some, torch.split(total, [tensor.numel() for tensor in some]), strict=True):
            tensor.copy_(values.view(tensor.shape))
