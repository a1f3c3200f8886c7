"""Large arrays of a CPU whose memory goes from step to step.

The system hands out large arrays page by page, each time anew: a gradient by a weight of 128 MB costs a tenth of a step
by that alone. torch keeps the memory of accelerators for the next step; for CPUs this does. An array is given back when
the last tensor that shares its memory is gone, whoever held it, so nobody has to say so.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LEAST_BYTES = 1 << 22  # smaller arrays come from the heap, whose memory stays; numpy takes huge pages from here on
MOST_IDLE_BYTES = 1 << 30
"""So much memory is kept for later; what was idle longest goes first. A larger array is never kept."""

_WASTE = 2  # an idle array is taken for one that needs at least half of it
_Bytes = npt.NDArray[np.uint8]
_idle: dict[int, _Bytes] = {}  # by identity; each step on it is one that no thread can interrupt


def empty(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make a tensor whose values are undefined, of memory that an earlier one left.

    Parameters
    ----------
    shape : sequence of int
    dtype : torch.dtype
    device : torch.device
        Anywhere but on a CPU the tensor is one of torch's own.

    Returns
    -------
    Tensor
        Contiguous. Its memory cannot be resized in place.

    Examples
    --------
    >>> empty((2, 3), torch.float32, torch.device("cpu")).shape
    torch.Size([2, 3])
    """
    needed = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or needed < LEAST_BYTES:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = _taken(needed)
    seen = memory[:needed]
    weakref.finalize(seen, _give_back, memory).atexit = False  # the tensor holds `seen`, and nothing else does
    return torch.from_numpy(seen).view(dtype).view(*shape)


def idle_bytes() -> int:
    """Tell how much memory waits for the next array.

    Examples
    --------
    >>> idle_bytes() <= MOST_IDLE_BYTES
    True
    """
    return sum(each.nbytes for each in list(_idle.values()))


def release() -> None:
    """Give all idle memory back to the system: a program that trained, and goes on with something else, may want that.

    Examples
    --------
    >>> release()
    >>> idle_bytes()
    0
    """
    _idle.clear()


def _taken(needed: int) -> _Bytes:
    latest_first = list(_idle.values())[::-1]  # of equal ones the last that was in use
    for memory in sorted(latest_first, key=len):
        if needed <= len(memory) <= _WASTE * needed and _idle.pop(id(memory), None) is not None:
            return memory  # no other thread had it first
    return np.empty(needed, np.uint8)


def _give_back(memory: _Bytes) -> None:
    if memory.nbytes > MOST_IDLE_BYTES:
        return
    _idle[id(memory)] = memory
    for longest in list(_idle):
        if idle_bytes() <= MOST_IDLE_BYTES:
            break
        _idle.pop(longest, None)
