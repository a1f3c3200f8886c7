"""Checkpoints: the whole resumable state of a training run as one sealed file, the last two kept.

A checkpoint is written under another name, flushed and renamed, and its digest covers every bit. So after a kill or a
power cut the newest whole one is found; a damaged one is passed over and the one before it used.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf.errors import BadBundleError, TrainingError
from geo_mvmf.model import sealed

FORMAT = "geo_mvmf checkpoint"
FORMAT_VERSION = "1"
KEPT = 2
ANEW = "start again with overwrite (on the command line --overwrite)"
"""What to do, in messages, where a run cannot go on."""

_NAME = re.compile(r"checkpoint-(\d{10})\.safetensors")
# safetensors knows no true/false and numpy no bfloat16; nothing of a training state needs them.


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run after a number of steps.

    Parameters
    ----------
    step : int
        Steps done.
    tensors : dict of str to Tensor
        Model, optimiser, running mean, best state, partition: whatever must survive, by dotted names.
    facts : dict
        JSON values: what must be the same when the run goes on (threads, provider, digest of the data), and
        what is known so far (best step and NLL).
    """

    step: int
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def write_checkpoint(folder: str | os.PathLike[str], checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and remove all but the last two.

    Parameters
    ----------
    folder : path
        Run folder.
    checkpoint : Checkpoint

    Returns
    -------
    Path

    Raises
    ------
    OutputError
        If the disk refuses; the former checkpoints stay.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for step in (1, 2, 3):
    ...     _ = write_checkpoint(folder, Checkpoint(step, {"x": torch.ones(2)}, {}))
    >>> [path.name for path in checkpoint_paths(folder)]
    ['checkpoint-0000000003.safetensors', 'checkpoint-0000000002.safetensors']
    """
    path = Path(folder) / f"checkpoint-{checkpoint.step:010d}.safetensors"
    arrays = {name: _to_numpy(tensor) for name, tensor in checkpoint.tensors.items()}
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "step": str(checkpoint.step),
        "facts": json.dumps(checkpoint.facts, sort_keys=True),
    }
    sealed.write_sealed(path, arrays, metadata, overwrite=True)
    for old in checkpoint_paths(folder)[KEPT:]:
        old.unlink()
    return path


def checkpoint_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """List a run's checkpoints, the newest first.

    Parameters
    ----------
    folder : path

    Examples
    --------
    >>> import tempfile
    >>> checkpoint_paths(tempfile.mkdtemp())
    []
    """
    return sorted((path for path in Path(folder).iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def read_newest(folder: str | os.PathLike[str]) -> tuple[Checkpoint | None, list[str]]:
    """Read the newest checkpoint that is whole.

    Parameters
    ----------
    folder : path

    Returns
    -------
    checkpoint : Checkpoint or None
        None where there is none at all.
    damaged : list of str
        What was wrong with newer ones.

    Raises
    ------
    TrainingError
        If there are checkpoints and all are damaged: starting again unasked would waste a run.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_checkpoint(folder, Checkpoint(1, {"x": torch.ones(2)}, {"threads": 1}))
    >>> checkpoint, damaged = read_newest(folder)
    >>> checkpoint.step, checkpoint.facts, damaged
    (1, {'threads': 1}, [])
    """
    damaged: list[str] = []
    for path in checkpoint_paths(folder):
        try:
            return read_checkpoint(path), damaged
        except BadBundleError as error:
            damaged.append(str(error))
    if damaged:
        raise TrainingError(f"{folder}: no checkpoint is whole: {'; '.join(damaged)}; {ANEW}")
    return None, damaged


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read one checkpoint and check its digest.

    Parameters
    ----------
    path : path

    Raises
    ------
    BadBundleError
        If it is damaged or no checkpoint.

    Examples
    --------
    >>> import tempfile
    >>> path = write_checkpoint(tempfile.mkdtemp(), Checkpoint(1, {"x": torch.ones(2)}, {}))
    >>> read_checkpoint(path).tensors["x"]
    tensor([1., 1.])
    """

    def check(header: sealed.SealedHeader) -> None:
        form = (header.metadata.get("format"), header.metadata.get("format_version"))
        if form != (FORMAT, FORMAT_VERSION):
            raise BadBundleError(f"{header.path}: format {form} is not {(FORMAT, FORMAT_VERSION)}")

    header, arrays = sealed.read_sealed(path, check=check)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return Checkpoint(int(header.metadata["step"]), tensors, sealed.loads_strict(header.metadata["facts"]))


def select(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Take the tensors of one part, without the part's name.

    Parameters
    ----------
    tensors : mapping
    prefix : str
        Ends with a dot.

    Examples
    --------
    >>> sorted(select({"model.a": torch.ones(1), "best.a": torch.ones(1)}, "best."))
    ['a']
    """
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def flatten_optimiser(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name an optimiser's state, one tensor each; the options come from the configuration.

    Parameters
    ----------
    optimiser : Optimizer

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimiser = torch.optim.Adam([weight])
    >>> weight.grad = torch.ones(1)
    >>> optimiser.step()
    >>> sorted(flatten_optimiser(optimiser))
    ['0.exp_avg', '0.exp_avg_sq', '0.step']
    """
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Undo `flatten_optimiser`.

    Parameters
    ----------
    optimiser : Optimizer
        Made with the same parameters in the same order.
    tensors : mapping of str to Tensor

    Examples
    --------
    >>> weight = torch.nn.Parameter(torch.ones(1))
    >>> optimiser = torch.optim.Adam([weight])
    >>> restore_optimiser(optimiser, {"0.step": torch.tensor(3.0), "0.exp_avg": torch.ones(1)})
    >>> float(optimiser.state[weight]["step"])
    3.0
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for weight, values in optimiser.state.items():
        for name, value in values.items():
            if value.shape == weight.shape:  # fused kernels need the memory layout of the weight (channels last)
                values[name] = torch.empty_like(weight, requires_grad=False).copy_(value)


def _to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    return np.asarray(tensor.detach().cpu().contiguous().numpy())
