"""The run folder: held, compared with what is asked for, looked into - by rank 0, which tells the others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from geo_mvmf import append_log, durable, folder_lock
from geo_mvmf.errors import BadInputError, ImageError, OutputError, UsageError
from geo_mvmf.inputs.regular_files import open_regular_file
from geo_mvmf.model import checkpoint, devices, epilogue_choice, idle_options, products
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.country_head import HEAD_FILE
from geo_mvmf.model.ranks import Ranks
from geo_mvmf.model.run_options import read_options

# What may differ when a run goes on: it changes nothing in the result, but for the last bits on another kind of device.
_FREE = (
    "out", "workers", "log_steps", "checkpoint_steps", "checkpoint_seconds", "cache_images_gigabytes", "device",
    "threads", "cache_dir", "tensorboard",
)  # fmt: skip
_OTHERWISE = f"name another folder as out, or {checkpoint.ANEW}"
_PROVIDED = {"products": products, "epilogues": epilogue_choice}  # both decide the last bits of a result


@contextlib.contextmanager
def holding(folder: Path, ranks: Ranks) -> Iterator[None]:
    """Hold a run folder, on rank 0: the others never write.

    Parameters
    ----------
    folder : Path
        Made when missing.
    ranks : Ranks
        Who trains.

    Raises
    ------
    LockedError
        Another process trains in this folder.

    Examples
    --------
    >>> import tempfile
    >>> with holding(Path(tempfile.mkdtemp()), Ranks()):
    ...     pass
    """
    if ranks.rank:
        yield
        return
    with folder_lock.holding(folder):
        durable.sweep(folder, held=True)
        yield


def begin(
    config: TrainingConfig, result: Path, ranks: Ranks, *, overwrite: bool, where: str = ""
) -> tuple[dict[str, Any], checkpoint.Checkpoint | None, list[str]]:
    """Look at the run folder, on rank 0, and tell the others what is there.

    Parameters
    ----------
    config : TrainingConfig
        It must be what the run was started with.
    result : Path
        What a finished run has left there.
    ranks : Ranks
        Who trains; all have to call it at the same time.
    overwrite : bool
        Whether to throw away what is there.
    where : str
        What messages about options begin with: the TOML file.

    Returns
    -------
    begun : dict
        On all ranks: "finished"; "facts" of the newest checkpoint, with its "step", or None; "products" and
        "epilogues", by name.
    newest : Checkpoint or None
        On rank 0.
    damaged : list of str
        What was wrong with newer ones.

    Raises
    ------
    UsageError
        The run was started with other options, or a new one was given some that do nothing.
    OutputError
        The folder holds something else.
    TrainingError
        There are checkpoints and none is whole.

    Examples
    --------
    >>> import tempfile
    >>> config = TrainingConfig(stage="head", table="a.csv", out=tempfile.mkdtemp())
    >>> begin(config, Path(config.out) / "bundle.safetensors", Ranks(), overwrite=False)[0]["finished"]
    False
    """
    newest: checkpoint.Checkpoint | None = None
    damaged: list[str] = []
    finished, folder = False, Path(config.out)
    if ranks.rank == 0:
        _open_folder(config, folder, overwrite=overwrite, where=where)
        finished = result.exists()
        newest, damaged = (None, []) if finished else checkpoint.read_newest(folder)
    facts = None if newest is None else newest.facts | {"step": newest.step}
    wanted = {what: former(what, newest) or here.current() for what, here in _PROVIDED.items()}
    begun: dict[str, Any] = ranks.tell({"finished": finished, "facts": facts, **wanted})
    for what, here in _PROVIDED.items():
        if begun[what] not in here.available():
            begun[what] = None
    return begun, newest, damaged


def former(what: str, newest: checkpoint.Checkpoint | None) -> str | None:
    """Name the provider that a run used so far, where it can work here.

    Parameters
    ----------
    what : {"products", "epilogues"}
        What it provides.
    newest : Checkpoint or None
        Of the run.

    Examples
    --------
    >>> former("products", checkpoint.Checkpoint(1, {}, {"products": "mm"}))
    'mm'
    """
    used = None if newest is None else newest.facts.get(what)
    return used if used in _PROVIDED[what].available() else None


class NoLog:
    """The log of ranks that keep none.

    Examples
    --------
    >>> NoLog().write({"step": 1})
    """

    def write(self, record: Mapping[str, Any]) -> None:
        """Do nothing with a record."""


def open_log(folder: Path, ranks: Ranks) -> contextlib.AbstractContextManager[append_log.AppendLog | NoLog]:
    """Open the log of a run, on rank 0.

    Parameters
    ----------
    folder : Path
        Of the run.
    ranks : Ranks
        Who trains.

    Examples
    --------
    >>> import tempfile
    >>> with open_log(Path(tempfile.mkdtemp()), Ranks()) as log:
    ...     log.write({"step": 1})
    """
    return contextlib.nullcontext(NoLog()) if ranks.rank else append_log.AppendLog(folder / "log.jsonl")


def end_record(folder: Path) -> dict[str, Any]:
    """Read what a finished run's log says of its end.

    Parameters
    ----------
    folder : Path
        Of the run.

    Returns
    -------
    dict
        The record of event "end": the best validation, and "stopped_early" (after which step) where patience ended the
        run; empty where there is none.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with open_log(folder, Ranks()) as log:
    ...     log.write({"event": "end", "step": 40, "stopped_early": 70})
    >>> end_record(folder)["stopped_early"], end_record(folder / "none")
    (70, {})
    """
    try:
        with open_regular_file(folder / "log.jsonl") as file:
            lines = file.read().splitlines()
        found = json.loads(lines[-1]) if lines else {}
    except (OSError, ValueError, RecursionError, ImageError):
        return {}
    return found if isinstance(found, dict) and found.get("event") == "end" else {}


def start_record(
    config: TrainingConfig,
    device: torch.device,
    threads: int,
    newest: checkpoint.Checkpoint | None,
    damaged: list[str],
    ranks: Ranks,
) -> dict[str, Any]:
    """Make the first record of a log: what computes here, and whether it can give the bits of before.

    Parameters
    ----------
    config : TrainingConfig
    device : torch.device
    threads : int
    newest : Checkpoint or None
        That the run goes on from.
    damaged : list of str
        What was wrong with newer ones.
    ranks : Ranks
        Who trains.

    Examples
    --------
    >>> config = TrainingConfig(stage="head", table="a.csv", out="run")
    >>> start_record(config, torch.device("cpu"), 1, None, [], Ranks())["event"]
    'start'
    """
    record: dict[str, Any] = {
        "event": "start" if newest is None else "resume",
        "device": str(device),
        "torch": torch.__version__,
        "threads": threads,
        "provider": devices.provider(device),
        "stage": config.stage,
        "seed": config.seed,
        "ranks": ranks.size,
    }
    if newest is not None:
        former = newest.facts["provider"], newest.facts.get("ranks", 1)
        same = former == (record["provider"], ranks.size)
        record |= {"step": newest.step, "damaged_checkpoints": damaged, "bit_identical": same}
    return record


def _open_folder(config: TrainingConfig, folder: Path, *, overwrite: bool, where: str) -> None:
    path = folder / "config.json"
    results = (folder / "bundle.safetensors", folder / "backbone.safetensors")
    begun = bool(checkpoint.checkpoint_paths(folder)) or any(result.exists() for result in results)
    wanted = json.loads(json.dumps(config.to_dict()))
    if overwrite or not begun:
        idle_options.check_idle(config, where=where)  # before anything is thrown away
        if overwrite:
            _clear(folder)
        durable.write_json(path, wanted, overwrite=True)  # nothing is lost yet
    elif path.exists():
        _compare(path, wanted)
        idle_options.check_idle(config, where=where, begun=True)
    else:
        raise OutputError(f"{folder}: holds a run without config.json; {_OTHERWISE}")


def _clear(folder: Path) -> None:
    for name in ("config.json", "log.jsonl", "bundle.safetensors", "backbone.safetensors", HEAD_FILE):
        (folder / name).unlink(missing_ok=True)
    for old in (folder / "tensorboard").glob("events.out.tfevents.*"):
        old.unlink()
    for old in checkpoint.checkpoint_paths(folder):
        old.unlink()


def _compare(path: Path, wanted: dict[str, Any]) -> None:
    try:
        former = read_options(path)
    except BadInputError as error:
        raise OutputError(f"{error}; {_OTHERWISE}") from error
    # what says most of a run goes first: another stage has other values of much else
    for name in sorted(wanted.keys() | former.keys(), key=lambda name: (name != "stage", name != "table", name)):
        if name not in _FREE and wanted.get(name) != former.get(name):
            raise UsageError(
                f"{path.parent}: this run was started with {name} = {former.get(name)!r}, now it is "
                f"{wanted.get(name)!r}; {_OTHERWISE}"
            )
