"""Where to compute, and what has to be the same for a computation to give the same bits again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from geo_mvmf.errors import DeviceError
from geo_mvmf.model import epilogue_choice, products, streaming


def choose_device(name: str = "auto") -> torch.device:
    """Choose where to compute.

    Parameters
    ----------
    name : str
        "auto" (the first CUDA device if there is one), "cpu", "cuda" or "cuda:N".

    Returns
    -------
    torch.device

    Raises
    ------
    DeviceError
        If the name is unknown or the device is not there.
    UsageError
        If the environment names a provider of products that is unknown.

    Examples
    --------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto" and count:
        return torch.device("cuda:0")
    if name in ("auto", "cpu"):
        products.current()  # a wrong choice of it shows before anything is read
        return torch.device("cpu")
    kind, colon, number = name.partition(":")
    if kind != "cuda" or (colon and not number.isdecimal()):
        raise DeviceError(f"device {name!r} is not auto, cpu, cuda or cuda:N")
    if int(number or 0) >= count:
        raise DeviceError(f"device {name}: this machine has {count} CUDA devices; use auto or cpu")
    return torch.device("cuda", int(number or 0))


def provider(device: torch.device) -> str:
    """Name what multiplies matrices, and in chunks of which size: results of another one differ in their last bits.

    Parameters
    ----------
    device : torch.device

    Examples
    --------
    >>> provider(torch.device("cpu")).startswith("torch ")
    True
    """
    if device.type == "cuda":
        name, chunks = torch.cuda.get_device_name(device), f"chunks of {streaming.ACCELERATOR_CHUNK_ELEMENTS}"
        return f"torch {torch.__version__}, {name}, epilogues by {epilogue_choice.current()}, {chunks}"
    parts = [
        name for name, here in (("mkl", torch.backends.mkl), ("onednn", torch.backends.mkldnn)) if here.is_available()
    ]
    capability, chunks = torch.backends.cpu.get_cpu_capability(), f"chunks of {streaming.CHUNK_ELEMENTS}"
    return f"torch {torch.__version__}, {' '.join(parts)} {capability}, products by {products.current()}, {chunks}"


@contextlib.contextmanager
def threads(number: int | None) -> Iterator[int]:
    """Use a number of CPU threads inside the block, and the former number after it.

    Parameters
    ----------
    number : int or None
        None keeps the present number.

    Yields
    ------
    int
        The number in use.

    Examples
    --------
    >>> with threads(1) as number:
    ...     number, torch.get_num_threads()
    (1, 1)
    """
    former = torch.get_num_threads()
    torch.set_num_threads(number or former)
    try:
        yield number or former
    finally:
        torch.set_num_threads(former)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's generators inside the block only (dropout has no other source of randomness).

    Parameters
    ----------
    seed : int
        0..2**63 - 1.
    device : torch.device

    Examples
    --------
    >>> with seeded(1, torch.device("cpu")):
    ...     a = torch.rand(1)
    >>> with seeded(1, torch.device("cpu")):
    ...     torch.equal(a, torch.rand(1))
    True
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
