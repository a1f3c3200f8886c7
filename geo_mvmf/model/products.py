"""Matrix products in float32 on a CPU by the library that is fastest there, and on everything else by torch.

On AMD processors MKL, which torch calls, does not take its fast path: oneDNN, which torch has inside, multiplies more
than twice as fast. On Intel processors MKL is a little ahead. torch has no public door to oneDNN's product in float32;
the one operator used here is looked up by name, and where it is missing torch.mm is used.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

PROVIDERS = ("mm", "onednn")
VARIABLE = "GEO_MVMF_PRODUCTS"
_AHEAD = 1.3  # oneDNN must be this much faster than torch.mm: a busy machine must not tip the choice
_PROBE = (512, 256, 1024)  # rows, features, components: a few milliseconds


@functools.cache
def chosen() -> str:
    """Choose what multiplies float32 matrices on this CPU: once per process, by trying.

    The environment's GEO_MVMF_PRODUCTS (mm or onednn) decides without trying; a training run that goes on uses what it
    began with (`using`).

    Returns
    -------
    str
        "mm" or "onednn".

    Raises
    ------
    ValueError
        The variable names no provider, or one that this torch lacks.

    Examples
    --------
    >>> chosen() in PROVIDERS
    True
    """
    wanted = os.environ.get(VARIABLE)
    if wanted:
        return _checked(wanted)
    if _onednn() is None:
        return "mm"
    left, right = torch.ones(_PROBE[0], _PROBE[1]), torch.ones(_PROBE[2], _PROBE[1])
    ways = {"mm": lambda: left @ right.T, "onednn": lambda: _linear(left, right, None)}
    with torch.inference_mode():
        seconds = {way: min(_seconds(ways[way]) for _ in range(4)) for way in PROVIDERS}
    return "onednn" if seconds["mm"] > _AHEAD * seconds["onednn"] else "mm"


_forced: list[str] = []


@contextlib.contextmanager
def using(provider: str | None) -> Iterator[str]:
    """Multiply with a provider inside the block; None keeps the present one.

    Parameters
    ----------
    provider : {"mm", "onednn"} or None
        As `current` named it in an earlier run.

    Yields
    ------
    str
        The provider in use.

    Raises
    ------
    ValueError
        There is no such provider here.

    Examples
    --------
    >>> with using("mm"):
    ...     current()
    'mm'
    """
    former = list(_forced)
    _forced[:] = former if provider is None else [_checked(provider)]
    try:
        yield current()
    finally:
        _forced[:] = former


def current() -> str:
    """Name the provider in use.

    Examples
    --------
    >>> current() in PROVIDERS
    True
    """
    return _forced[0] if _forced else chosen()


def available() -> tuple[str, ...]:
    """Name the providers that this torch has.

    Examples
    --------
    >>> "mm" in available()
    True
    """
    return PROVIDERS if _onednn() is not None else ("mm",)


def by_onednn(tensor: Tensor) -> bool:
    """Whether products of this tensor are oneDNN's: float32 on a CPU, where that is chosen.

    Parameters
    ----------
    tensor : Tensor
        The result, or a factor.

    Examples
    --------
    >>> by_onednn(torch.ones(1, dtype=torch.float64))
    False
    """
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and current() == "onednn"


def multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """Multiply two matrices into a third, or add their product to it.

    Parameters
    ----------
    left, right : Tensor, shapes (i, j) and (j, k)
        Of the type of `out`.
    out : Tensor, shape (i, k)
        Overwritten, or added to.
    add : bool
        Which of the two.

    Examples
    --------
    >>> out = torch.zeros(1, 1)
    >>> multiply(torch.ones(1, 4), torch.ones(4, 1), out)
    >>> out.tolist()
    [[4.0]]
    """
    if by_onednn(out):
        product = _linear(left, right.T, None)
        out.add_(product) if add else out.copy_(product)
    elif add:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)


def _linear(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    operator = _onednn()
    if operator is None:
        raise ValueError("this torch has no oneDNN product; use mm")
    product: Tensor = operator(left, right, bias, "none", [], "")
    return product


def _onednn() -> Callable[..., Any] | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _checked(provider: str) -> str:
    if provider not in PROVIDERS:
        raise ValueError(f"{provider!r} ({VARIABLE}) is no provider of products; use {' or '.join(PROVIDERS)}")
    if provider not in available():
        raise ValueError("this torch has no oneDNN product; use mm")
    return provider


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
