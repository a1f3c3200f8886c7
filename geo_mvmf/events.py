"""Events: what programs are told of a run, one JSON object a line. docs/worker.md is the specification.

The worker says them on its output, the command line with `--progress json` on stderr.
"""

from __future__ import annotations

import json
import math
import os
import traceback
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import click

from geo_mvmf.errors import AmbiguousInputError, GeoMvmfError, UsageError

MOST_BYTES = 64_000
"""A line is never longer, so that a reader may keep it in a small buffer."""

_HINTS = {
    "bad_input": "",  # the message says what is wrong with which value
    "model_missing": "choose a bundle (.safetensors) that train or calibrate wrote",
    "oom": "choose a smaller batch size, or device cpu, or close other programs",
    "device": "choose device cpu or auto; the command env says which devices there are",
    "output": "choose another name or folder, or allow overwriting",
    "locked": "wait until the other run has ended, or choose another output",
    "internal": "this is a fault of geo_mvmf: please report it with the detail",
}
_DEVICE_WORDS = ("cuda error", "cudnn", "cublas", "nvidia driver")
_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory")


class Explanation(NamedTuple):
    """Why a run ended without a result.

    Parameters
    ----------
    code : str
        One of bad_input, model_missing, oom, device, output, locked, internal.
    message : str
        What is wrong, in a sentence.
    hint : str
        What to do, where the message does not say it.
    detail : str
        The traceback of a fault of our own; empty otherwise.
    exit_code : int
        What the process exits with.

    Examples
    --------
    >>> explain(MemoryError()).code
    'oom'
    """

    code: str
    message: str
    hint: str
    detail: str
    exit_code: int


def explain(error: Exception, *, options: Collection[str] = ()) -> Explanation:
    """Say why a run ended without a result.

    Parameters
    ----------
    error : Exception
        Of our tree, click's, or any other.
    options : collection of str
        Python names of the command's options that the message may advise, as they are written on the command line.

    Returns
    -------
    Explanation

    Examples
    --------
    >>> explain(UsageError("--levels '2': probabilities are wanted"))[:2]
    ('bad_input', "--levels '2': probabilities are wanted")
    >>> explain(KeyError("a")).code
    'internal'
    """
    if isinstance(error, GeoMvmfError):
        message = str(error)
        if isinstance(error, AmbiguousInputError):
            message = error.told(f"--{error.option.replace('_', '-')}" if error.option in options else "")
        return Explanation(error.code, message, _HINTS[error.code], "", error.exit_code)
    if isinstance(error, click.ClickException):
        return Explanation("bad_input", error.format_message(), "", "", UsageError.exit_code)
    code = _code_of_foreign(error)
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    detail = "".join(traceback.format_exception(error)) if code == "internal" else ""
    return Explanation(code, message.splitlines()[0], _HINTS[code], detail, GeoMvmfError.exit_code)


def _code_of_foreign(error: Exception) -> str:
    """Tell memory and devices by names and words: torch's own classes are not known without importing it."""
    text = str(error).lower()
    names = {each.__name__ for each in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"} or any(words in text for words in _MEMORY_WORDS):
        return "oom"
    if "AcceleratorError" in names or any(words in text for words in _DEVICE_WORDS):
        return "device"
    return "internal"


def line(event: str, **values: Any) -> str:
    r"""Write one event.

    Parameters
    ----------
    event : str
        Its kind.
    **values
        Texts, numbers, paths, and mappings and lists of them; what is not finite becomes null.

    Returns
    -------
    str
        JSON in ASCII, of at most `MOST_BYTES`, without a line end: what is too long is shortened.

    Examples
    --------
    >>> line("log", level="info", message="Ægir")
    '{"event": "log", "level": "info", "message": "\\u00c6gir"}'
    >>> len(line("log", message="a" * 100_000)) <= MOST_BYTES
    True
    """
    content = {"event": event, **{name: _plain(value) for name, value in values.items()}}
    text = json.dumps(content, allow_nan=False)
    most = MOST_BYTES
    while len(text) > MOST_BYTES:
        most //= 2
        text = json.dumps(_shortened(content, most), allow_nan=False)
    return text


def _plain(value: Any) -> Any:
    """JSON's own types, whatever stood for them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    return _plain(value.item()) if hasattr(value, "item") else str(value)  # numpy's numbers


def _shortened(value: Any, most: int) -> Any:
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]}…"
    if isinstance(value, dict):
        return {_shortened(key, most): _shortened(each, most) for key, each in list(value.items())[:most]}
    if isinstance(value, list):
        return [_shortened(each, most) for each in value[:most]]
    return value
