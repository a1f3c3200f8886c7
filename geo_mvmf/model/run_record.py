"""What a run folder says of its run: the options, the log, what is finished; needs no torch and no image.

Logs of runs that were killed hold steps twice, logs of older versions lack fields: what is read here is one row per
step, of the run as it went on, with NaN for what was not written and infinity for what was no finite number.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geo_mvmf.errors import BadInputError, ImageError, UsageError
from geo_mvmf.inputs.regular_files import open_regular_file
from geo_mvmf.model.augmentation import Augmentation
from geo_mvmf.model.configuration import TrainingConfig, config_from_dict
from geo_mvmf.model.run_options import read_options

STEP_COLUMNS = ("step", "loss", "learning_rate")
VALIDATION_COLUMNS = ("step", "nll", "median_km", "accuracy")


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as its folder tells it.

    Parameters
    ----------
    folder : Path
    config : TrainingConfig
        Of this run; `out` is the folder, wherever the run was made.
    steps : DataFrame
        `STEP_COLUMNS`, float64; the loss is the mean since the row before.
    validations : DataFrame
        `VALIDATION_COLUMNS`, float64.
    result : Path or None
        Bundle or backbone; None while the run is not finished.
    resumed : int
        How often the run went on after a stop.
    stopped_early : int or None
        After which step the run ended because its validation NLL fell no more.
    remarks : tuple of str
        What could not be read.
    """

    folder: Path
    config: TrainingConfig
    steps: pd.DataFrame
    validations: pd.DataFrame
    result: Path | None
    resumed: int
    stopped_early: int | None = None
    remarks: tuple[str, ...] = ()

    @property
    def best(self) -> dict[str, float] | None:
        """The validation with the least NLL, by `VALIDATION_COLUMNS`; None where there is none."""
        known = self.validations[np.isfinite(self.validations["nll"])]
        if not len(known):
            return None
        row = known.iloc[int(known["nll"].to_numpy().argmin())]
        return {name: float(row[name]) for name in VALIDATION_COLUMNS}


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Read a run folder.

    Parameters
    ----------
    folder : path
        What `out` names in the configuration of `train`.

    Returns
    -------
    RunRecord

    Raises
    ------
    BadInputError
        It is no run folder, or its config.json cannot be read.

    Examples
    --------
    >>> read_run("/no/such/run")
    Traceback (most recent call last):
    geo_mvmf.errors.BadInputError: /no/such/run: no such folder; give the run folder of `geo-mvmf train`, which `out`
    names in its TOML file
    """
    folder = Path(folder)
    config, remarks = _config(folder)
    records, unread = _records(folder / "log.jsonl")
    if unread:
        remarks.append(unread)
    kept, resumed = _as_it_went_on(records)
    name = "backbone.safetensors" if config.stage == "backbone" else "bundle.safetensors"
    result = folder / name
    return RunRecord(
        folder=folder,
        config=config,
        steps=_frame(kept, "step", STEP_COLUMNS),
        validations=_frame(kept, "validation", VALIDATION_COLUMNS),
        result=result if result.exists() else None,
        resumed=resumed,
        stopped_early=_stop(kept),
        remarks=tuple(remarks),
    )


def _config(folder: Path) -> tuple[TrainingConfig, list[str]]:
    """Options of the run, and remarks about those that this version does not know."""
    wanted = "give the run folder of `geo-mvmf train`, which `out` names in its TOML file"
    if not folder.exists():
        raise BadInputError(f"{folder}: no such folder; {wanted}")
    if not folder.is_dir():
        raise BadInputError(f"{folder}: is a file and no folder; {wanted}")
    path = folder / "config.json"
    if not path.exists():
        raise BadInputError(f"{folder}: is no run folder, it has no config.json; {wanted}")
    options, unknown = _known(read_options(path))
    try:
        return config_from_dict(options | {"out": str(folder)}, where=str(path), base=folder), unknown
    except (ValueError, AttributeError, TypeError, OverflowError, UsageError) as error:
        raise BadInputError(f"{path}: cannot be read as the options of a run: {error}") from error


def _known(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    augments = {field.name for field in dataclasses.fields(Augmentation)}
    augment = values["augment"]
    unknown = sorted(
        [name for name in values if name not in names] + [name for name in augment if name not in augments]
    )
    options = {name: value for name, value in values.items() if name in names}
    options["augment"] = {name: value for name, value in augment.items() if name in augments}
    if not unknown:
        return options, []
    return options, [f"The run has options that this version does not know and leaves out: {', '.join(unknown)}."]


def _records(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Lines of the log that are whole, and what to say of the others."""
    try:
        with open_regular_file(path) as file:  # a pipe would be waited for
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except (OSError, ImageError) as error:
        return [], f"{path.name} cannot be read ({error}), so there are no curves."
    found, broken = [], 0
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            broken += 1
            continue
        if isinstance(record, dict):
            found.append(record)
    return found, f"{broken} of {len(lines)} lines of {path.name} are damaged and left out." if broken else ""


def _as_it_went_on(records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Leave out what a stopped run had done beyond its last checkpoint: it was done again."""
    kept: list[dict[str, Any]] = []
    resumed = 0
    for record in records:
        event = record.get("event")
        if event in ("start", "resume"):
            resumed += bool(kept)
            back = record.get("step", 0) if event == "resume" else 0
            kept = [each for each in kept if _number(each.get("step")) <= _number(back)]
        else:
            kept.append(record)
    return kept, resumed


def _stop(records: list[dict[str, Any]]) -> int | None:
    found = [_number(record.get("stopped_early")) for record in records if record.get("event") == "end"]
    return int(found[-1]) if found and math.isfinite(found[-1]) else None


def _number(value: object) -> float:
    """A finite number, or infinity."""
    try:
        number = float(value) if isinstance(value, int | float) else math.inf
    except OverflowError:  # of hundreds of digits
        return math.inf
    return number if math.isfinite(number) else math.inf


def _frame(records: list[dict[str, Any]], event: str, columns: tuple[str, ...]) -> pd.DataFrame:
    rows = [
        [_number(record[name]) if isinstance(record.get(name), int | float) else math.nan for name in columns]
        for record in records
        if record.get("event") == event
    ]
    frame = pd.DataFrame(rows, columns=list(columns), dtype=float)
    frame = frame[np.isfinite(frame["step"])].drop_duplicates("step", keep="last")
    ordered: pd.DataFrame = frame.sort_values("step").reset_index(drop=True)
    return ordered
