"""Matrix products in float32 on a CPU by the library that is fastest there, and on everything else by torch.

On AMD processors with AVX-512 MKL, which torch calls, does not take its fast path: oneDNN, which torch has inside,
multiplies more than twice as fast. On AMD processors without it, and on Intel's, MKL is ahead. torch has no public door
to oneDNN's product in float32; the one operator used here is looked up by name, and where it is missing torch.mm is
used. The processor decides, not a trial: on a busy machine trials end now this way, now that, and with them the last
bits of every result.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geo_mvmf.errors import UsageError
from geo_mvmf.model.provider_choice import Choice

PROVIDERS = ("mm", "onednn")
VARIABLE = "GEO_MVMF_PRODUCTS"


@functools.cache
def chosen() -> str:
    """Choose what multiplies float32 matrices on this CPU.

    The environment's GEO_MVMF_PRODUCTS (mm or onednn) decides where it is set; a training run that goes on uses what it
    began with (`using`).

    Returns
    -------
    str
        "mm" or "onednn".

    Raises
    ------
    UsageError
        The variable names no provider, or one that this torch lacks.

    Examples
    --------
    >>> chosen() in PROVIDERS
    True
    """
    wanted = os.environ.get(VARIABLE)
    if wanted:
        return _checked(wanted)
    has_mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    slow_mkl = has_mkl and "AuthenticAMD" in _processor() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return "onednn" if slow_mkl and "onednn" in available() else "mm"


# `chosen` is looked up when it is asked: tests put another in its place
_choice = Choice(lambda: chosen(), lambda provider: _checked(provider))  # noqa: PLW0108
using, current = _choice.using, _choice.current


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
    if by_onednn(out) and left.numel() and right.numel():  # oneDNN has no product of nothing
        product = _linear(left, right.T)
        out.add_(product) if add else out.copy_(product)
    elif add:
        out.addmm_(left, right)
    else:
        torch.mm(left, right, out=out)


def multiply_rounded(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
    """Multiply two matrices in half precision, or add their product to a third, rounding nothing else.

    Parameters
    ----------
    left, right : Tensor of float16 or bfloat16, shapes (i, j) and (j, k)
        Of one type.
    out : Tensor, shape (i, k)
        Overwritten, or added to; sums are formed in its type, or in float32 where that is narrower.
    add : bool
        Which of the two.

    Examples
    --------
    >>> out = torch.zeros(1, 1)
    >>> multiply_rounded(torch.ones(1, 512).bfloat16(), torch.ones(512, 1).bfloat16(), out, add=True)
    >>> out.tolist()
    [[512.0]]
    """
    if not out.is_cuda:  # torch has such products for CUDA alone; wider factors give the same
        wide = torch.promote_types(out.dtype, torch.float32)
        product = left.to(wide) @ right.to(wide)
    elif add or out.dtype != torch.float32:
        product = torch.mm(left, right, out_dtype=torch.float32)
    else:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
        return
    out.add_(product) if add else out.copy_(product)


def _linear(left: Tensor, right: Tensor) -> Tensor:
    operator = _onednn()
    if operator is None:
        raise ValueError("this torch has no oneDNN product; use mm")
    product: Tensor = operator(left, right, None, "none", [], "")
    return product


def _onednn() -> Callable[..., Any] | None:
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def _checked(provider: str) -> str:
    if provider not in PROVIDERS:
        raise UsageError(f"{provider!r} ({VARIABLE}) is no provider of products; use {' or '.join(PROVIDERS)}")
    if provider not in available():
        raise UsageError(f"this torch has no oneDNN product; use mm ({VARIABLE})")
    return provider


def _processor() -> str:
    """The maker's name and more, as the system tells it: "" where it does not."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            return next((line for line in file if line.startswith("vendor_id")), "")
    except OSError:
        return platform.processor()  # Windows: "AMD64 Family 25 Model 80 Stepping 0, AuthenticAMD"
