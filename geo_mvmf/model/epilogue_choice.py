"""Which epilogues the streamed losses use: Triton's kernels where they can work, on CUDA, else torch's functions.

Which of the two decides the last bits of a result, so a training run that goes on uses what it began with.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from geo_mvmf.errors import UsageError
from geo_mvmf.model.epilogues import Eager, Epilogues
from geo_mvmf.model.provider_choice import Choice

PROVIDERS = ("eager", "triton")
VARIABLE = "GEO_MVMF_EPILOGUES"
_OLDEST = (8, 0)  # compute capability that has bfloat16


def of(device: torch.device, working: torch.dtype) -> Epilogues:
    """Give the epilogues that are used for some tensors.

    Parameters
    ----------
    device : torch.device
        Theirs.
    working : torch.dtype
        Theirs: Triton's are for float32.

    Returns
    -------
    Epilogues
        `Eager`, wherever Triton cannot do it.

    Raises
    ------
    UsageError
        The environment asks for what is not here.

    Examples
    --------
    >>> of(torch.device("cpu"), torch.float64).name
    'eager'
    """
    if working == torch.float32 and (device.type == "cuda" or _interpreted()) and current() == "triton":
        from geo_mvmf.model import triton_epilogues

        return triton_epilogues.TritonEpilogues()
    return Eager()


@functools.cache
def chosen() -> str:
    """Choose what does the element-wise work where there is a choice, which is on CUDA.

    The environment's GEO_MVMF_EPILOGUES (eager or triton) decides where it is set; a training run that goes on uses
    what it began with (`using`).

    Returns
    -------
    str
        "eager" or "triton".

    Raises
    ------
    UsageError
        The variable names no provider, or one that cannot work here.

    Examples
    --------
    >>> chosen() in PROVIDERS
    True
    """
    wanted = os.environ.get(VARIABLE)
    return _checked(wanted) if wanted else available()[-1]


# `chosen` is looked up when it is asked: tests put another in its place
_choice = Choice(lambda: chosen(), lambda provider: _checked(provider))  # noqa: PLW0108
using, current = _choice.using, _choice.current


@functools.cache
def available() -> tuple[str, ...]:
    """Name the providers that can work here, the better one last.

    Triton needs its package, which torch brings along on Linux, a CUDA device with bfloat16 and, the first time, a C
    compiler: a small chunk is tried.

    Examples
    --------
    >>> "eager" in available()
    True
    """
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    able = devices and min(torch.cuda.get_device_capability(index) for index in range(devices)) >= _OLDEST
    if importlib.util.find_spec("triton") is None or not (able or _interpreted()):
        return ("eager",)
    from geo_mvmf.model import triton_epilogues

    works = triton_epilogues.works(torch.device("cuda" if able else "cpu"))
    return PROVIDERS if works else ("eager",)


def _interpreted() -> bool:
    """Whether Triton's kernels are run by its interpreter, which takes tensors of a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _checked(provider: str) -> str:
    if provider not in PROVIDERS:
        raise UsageError(f"{provider!r} ({VARIABLE}) is no provider of epilogues; use {' or '.join(PROVIDERS)}")
    if provider not in available():
        raise UsageError(
            "triton cannot work here, for want of a CUDA device of compute capability 8.0, of the package triton or "
            f"of a C compiler; use eager ({VARIABLE})"
        )
    return provider
