"""The options that a run was started with, as its config.json tells them, whatever version began it; needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from geo_mvmf.errors import BadInputError, ImageError
from geo_mvmf.inputs.regular_files import open_regular_file

# What runs did before an option existed. A default that is changed later must not reach them: never change a line.
ADDED: dict[str, Any] = {
    "pool": 1, "embedding": 0, "normalisation": "fixed",
    "partition": "s2", "split_above": None, "drop_below": None, "partition_file": None, "partition_column": None,
    "bias": "counts", "label_smoothing_km": None, "fused_optimiser": "none", "accumulate": 1, "patience": None,
    "tensorboard": False,
}  # fmt: skip
"""Options added since runs are written, with what runs without them did."""

ADDED_TO_AUGMENT: dict[str, Any] = {"roam": 0, "scale": 0.0, "gamma": 0.0}
"""As `ADDED`, of [augment]."""


def read_options(path: Path) -> dict[str, Any]:
    """Read what a run wrote of its options, with those that did not exist when it began.

    Parameters
    ----------
    path : Path
        config.json of a run folder.

    Returns
    -------
    dict
        Name and value; "augment" is a dict. Options that this version does not know are in it, too.

    Raises
    ------
    BadInputError
        It is no regular file, no JSON, or holds no options.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "config.json"
    >>> _ = path.write_text('{"stage": "head"}')
    >>> read_options(path)["accumulate"]
    1
    """
    wrong = f"{path}: cannot be read as the options of a run"
    try:
        with open_regular_file(path) as file:
            values = json.loads(file.read())
    except RecursionError as error:
        raise BadInputError(f"{wrong}: its JSON is nested too deeply") from error
    except (OSError, ValueError, ImageError) as error:
        raise BadInputError(f"{wrong}: {error}") from error
    if not isinstance(values, dict):
        raise BadInputError(f"{wrong}: it holds {_short(values)} where names and values are needed")
    augment = values.get("augment")
    if not isinstance(augment, dict | None):
        raise BadInputError(f"{wrong}: augment is {_short(augment)} where names and values are needed")
    return ADDED | values | {"augment": ADDED_TO_AUGMENT | (augment or {})}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
