"""The state of a run that several ranks share: put together on rank 0 for a checkpoint, and dealt out again.

A checkpoint has the tensors of the whole model, so that it opens on any number of ranks. Rank 0 needs main memory for
all of them while it writes or reads one; the others need that of their part once more, while they read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from geo_mvmf.model.ranks import Ranks

IsPart = Callable[[str, Tensor], bool]


def gather_state(state: Mapping[str, Tensor], is_part: IsPart, ranks: Ranks) -> dict[str, Tensor]:
    """Put the state of all ranks together; all have to call it at the same time.

    Parameters
    ----------
    state : mapping of str to Tensor
        This rank's; the same names on all.
    is_part : callable
        Whether each rank has its rows of a tensor; else all have the same.
    ranks : Ranks
        Who shares the state.

    Returns
    -------
    dict of str to Tensor
        Of the whole model, on rank 0; nothing on the others.

    Examples
    --------
    >>> gather_state({"weight": torch.ones(2)}, lambda name, value: True, Ranks())["weight"].tolist()
    [1.0, 1.0]
    """
    if ranks.size == 1:
        return dict(state)
    found = {}
    for name, value in sorted(state.items()):
        whole = ranks.collect(value) if is_part(name, value) else value
        if whole is not None and ranks.rank == 0:
            found[name] = whole
    return found


def deal_state(state: Mapping[str, Tensor], is_part: IsPart, ranks: Ranks) -> dict[str, Tensor]:
    """Undo `gather_state`, on as many ranks as there are now.

    Parameters
    ----------
    state : mapping of str to Tensor
        Of the whole model, in main memory; that of rank 0 counts.
    is_part : callable
        As `gather_state`.
    ranks : Ranks
        Who shares the state.

    Returns
    -------
    dict of str to Tensor
        This rank's, in main memory.

    Examples
    --------
    >>> deal_state({"weight": torch.ones(2)}, lambda name, value: True, Ranks())["weight"].tolist()
    [1.0, 1.0]
    """
    if ranks.size == 1:
        return dict(state)
    described = [
        [name, str(value.dtype).removeprefix("torch."), list(value.shape), is_part(name, value)]
        for name, value in sorted(state.items())
    ]
    found = {}
    for name, dtype, shape, shared in ranks.tell(described):
        found[name] = ranks.deal(state.get(name), shape, getattr(torch, dtype), shared=shared)
    return found


def part_rule(head: nn.Module, optimiser: torch.optim.Optimizer) -> IsPart:
    """Make the rule that tells which tensors of a learner's state have a row for each component.

    Parameters
    ----------
    head : nn.Module
        Whose components are shared.
    optimiser : Optimizer
        Of its parameters and others.

    Returns
    -------
    callable
        For `gather_state`, by names such as "model.head.weight", "optimiser.0.exp_avg", "fused.exp_avg".

    Examples
    --------
    >>> head = nn.Linear(2, 3)
    >>> rule = part_rule(head, torch.optim.Adam(head.parameters()))
    >>> rule("optimiser.0.exp_avg", torch.ones(3, 2)), rule("optimiser.0.step", torch.tensor(1.0))
    (True, False)
    """
    own = {id(weight) for weight in head.parameters()}
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    numbers = {str(number) for number, weight in enumerate(weights) if id(weight) in own}

    def is_part(name: str, value: Tensor) -> bool:
        kind, rest = name.split(".", 1)
        if value.ndim == 0:
            return False
        if kind == "optimiser":
            return rest.split(".", 1)[0] in numbers
        return kind == "fused" or rest.startswith("head.")

    return is_part


def clip_gradients(weights: Iterable[Tensor], head: nn.Module, most: float, ranks: Ranks) -> None:
    """Scale all gradients down so that their common norm, over all ranks, is no more than a limit.

    Parameters
    ----------
    weights : iterable of Tensor
        Whose gradients are clipped: a part of the head's on each rank, the same others on all.
    head : nn.Module
        Whose components are shared.
    most : float
        The limit.
    ranks : Ranks
        Who shares the components.

    Examples
    --------
    >>> head = nn.Linear(1, 1, bias=False)
    >>> head.weight.grad = torch.tensor([[8.0]])
    >>> clip_gradients(head.parameters(), head, 2.0, Ranks())
    >>> round(float(head.weight.grad), 4)
    2.0
    """
    clipped = list(weights)
    if ranks.size == 1:
        nn.utils.clip_grad_norm_(clipped, most)
        return
    own = {id(weight) for weight in head.parameters()}
    squares = torch.zeros(2, dtype=torch.float64, device=next(head.parameters()).device)
    for weight in clipped:
        if weight.grad is not None:
            squares[int(id(weight) in own)] += weight.grad.norm().double().square()
    norm = (squares[0] + ranks.sum(squares[1:]).squeeze()).sqrt()
    nn.utils.clip_grads_with_norm_(clipped, most, norm)
