"""Heads taken apart and put together again: for a bundle, for a checkpoint, and from the parts that ranks hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from geo_mvmf.model.heads import COORDINATES, CrossEntropyHead, MvmfHead
from geo_mvmf.model.ranks import Ranks

_TENSORS = {"mvmf": {"weight", "bias", *COORDINATES}, "cross_entropy": {"weight", "bias", "cell_ids"}}


def head_state(head: MvmfHead | CrossEntropyHead) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take a head apart for a bundle or a checkpoint.

    Parameters
    ----------
    head : MvmfHead or CrossEntropyHead
        It is not changed; the tensors are its own, not copies.

    Returns
    -------
    tensors : dict of str to Tensor
        weight, bias, and mean_directions and log_concentrations, or cell_ids (uint64).
    config : dict
        JSON-able: kind, and for "mvmf" floor, train_mean_directions, train_log_concentrations.

    Examples
    --------
    >>> head_state(MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0]))[1]["kind"]
    'mvmf'
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


def whole_head(head: MvmfHead) -> MvmfHead | None:
    """Put the parts of a head together on rank 0, in its main memory; all ranks have to call it at the same time.

    Parameters
    ----------
    head : MvmfHead
        One rank's part. A head that has all its components is returned as it is.

    Returns
    -------
    MvmfHead or None
        None on the other ranks.

    Examples
    --------
    >>> whole_head(MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0])).floor is None
    True
    """
    if head.ranks is None:
        return head
    tensors, config = head_state(head)
    found = {name: head.ranks.collect(tensor) for name, tensor in tensors.items()}
    whole = {name: tensor for name, tensor in found.items() if tensor is not None}
    rebuilt = head_from_state(whole, config) if whole else None
    return rebuilt if isinstance(rebuilt, MvmfHead) else None


def head_from_state(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, ranks: Ranks | None = None
) -> MvmfHead | CrossEntropyHead:
    """Put a head together again, equal to the last bit.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        As `head_state` returns them.
    config : mapping
        Likewise.
    ranks : Ranks, optional
        As in `MvmfHead`: only this rank's part of the tensors is copied.

    Returns
    -------
    MvmfHead or CrossEntropyHead
        With copies of the tensors, on the CPU.

    Raises
    ------
    ValueError
        The kind is unknown, a tensor is missing or one too many, or shapes do not fit.

    Examples
    --------
    >>> head = MvmfHead(2, [[0.0, 0.0, 1.0]], [4.0])
    >>> bool((head_from_state(*head_state(head)).weight == head.weight).all())
    True
    """
    kind = config.get("kind")
    if kind not in _TENSORS:
        raise ValueError(f"head kind {kind!r} is not one of {', '.join(_TENSORS)}")
    if set(tensors) != _TENSORS[kind] or tensors["weight"].ndim != 2:
        raise ValueError(f"a head of kind {kind} has tensors {sorted(_TENSORS[kind])}, not {sorted(tensors)}")
    held = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    head = _skeleton(kind, held, config, ranks)
    if isinstance(head, MvmfHead) and head.ranks is not None:
        part = head.ranks.part(len(held["weight"]))
        held = {name: tensor[part] for name, tensor in held.items()}
    with torch.no_grad():
        for name, own in head.state_dict(keep_vars=True).items():
            if own.shape != held[name].shape:
                raise ValueError(f"{name} has shape {tuple(held[name].shape)}, expected {tuple(own.shape)}")
            own.data = held[name].clone().to(torch.float64 if name in COORDINATES else held[name].dtype)
    return head


def _skeleton(
    kind: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], ranks: Ranks | None
) -> MvmfHead | CrossEntropyHead:
    columns = tensors["weight"].shape[1]
    if kind == "cross_entropy":
        return CrossEntropyHead(columns, tensors["cell_ids"].numpy())
    floor = config["floor"]
    return MvmfHead(
        columns,
        tensors["mean_directions"].double().numpy(),
        tensors["log_concentrations"].double().numpy(),
        train_mean_directions=bool(config["train_mean_directions"]),
        train_log_concentrations=bool(config["train_log_concentrations"]),
        floor=None if floor is None else float(floor),
        ranks=ranks,
    )
