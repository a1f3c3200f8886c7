"""ScalarLog: the numbers of a run's log for TensorBoard, too; a resumed run shows no step twice."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from geo_mvmf.errors import UsageError
from geo_mvmf.model.configuration import TrainingConfig

FOLDER = "tensorboard"
_SCALARS = {
    "step": {"loss": "training/loss", "learning_rate": "training/learning_rate"},
    "validation": {
        "nll": "validation/nll", "median_km": "validation/median_km", "accuracy": "validation/accuracy",
    },
}  # fmt: skip


class Log(Protocol):
    """Whatever takes the records of a run."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record.

        Parameters
        ----------
        record : mapping
            JSON-able values.
        """


class ScalarLog:
    """Passes records on, and their numbers to TensorBoard.

    Parameters
    ----------
    log : Log
        Takes every record.
    writer : SummaryWriter
        Of `torch.utils.tensorboard`.

    Examples
    --------
    >>> class Writer:
    ...     def add_scalar(self, name, value, step):
    ...         print(name, value, step)
    >>> class Nothing:
    ...     def write(self, record):
    ...         pass
    >>> ScalarLog(Nothing(), Writer()).write({"event": "step", "step": 50, "loss": 2.5})
    training/loss 2.5 50
    """

    def __init__(self, log: Log, writer: Any) -> None:
        self._log, self._writer = log, writer

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one record.

        Parameters
        ----------
        record : mapping
            With "event" and "step".
        """
        self._log.write(record)
        for key, name in _SCALARS.get(str(record.get("event")), {}).items():
            if key in record:
                self._writer.add_scalar(name, record[key], record["step"])


def check_installed(config: TrainingConfig) -> None:
    """Refuse a run for TensorBoard where it is not installed, before anything is read.

    Parameters
    ----------
    config : TrainingConfig

    Raises
    ------
    UsageError
        Saying how to install it.

    Examples
    --------
    >>> check_installed(TrainingConfig(stage="head", table="a.csv", out="run"))
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "tensorboard is true, but TensorBoard is not installed; pip install 'geo-mvmf[tensorboard]', or leave the "
            "option out"
        )


@contextlib.contextmanager
def with_scalars(config: TrainingConfig, log: Log, folder: Path, done: int, *, writes: bool) -> Iterator[Log]:
    """Give a log whose numbers go to TensorBoard as well, where the configuration wants it.

    Parameters
    ----------
    config : TrainingConfig
    log : Log
        Of the run.
    folder : Path
        Of the run; event files lie in the folder tensorboard there.
    done : int
        Steps that the run has done: what was shown of later ones, before a kill, is shown no more.
    writes : bool
        Whether this process writes at all (of several, rank 0).

    Examples
    --------
    >>> from geo_mvmf.model.run_folder import NoLog
    >>> plain = NoLog()
    >>> with with_scalars(TrainingConfig(stage="head", table="a", out="b"), plain, Path("b"), 0, writes=True) as log:
    ...     log is plain
    True
    """
    if not (config.tensorboard and writes):
        yield log
        return
    from torch.utils.tensorboard import SummaryWriter

    # purge_step is TensorBoard's own word for it: from this step on, what older files of the folder say is dropped
    writer = SummaryWriter(str(folder / FOLDER), purge_step=done + 1)
    try:
        yield ScalarLog(log, writer)
    finally:
        writer.close()
