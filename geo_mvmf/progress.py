"""The event that long jobs yield.

A long job is a generator: it yields `Progress` events and returns its result; closing it cancels the job, and
throwing `CancelledError` into it lets it return what it has done so far. So a terminal, a JSON stream and QGIS show
the same job without the job knowing any of them.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")


class CancelledError(BaseException):
    """Somebody asked a job to stop: not an error of anything, so nothing but doors and jobs that can stop catches it.

    Parameters
    ----------
    done, total : int, optional
        Units finished and units in all, where a job knows better than its last event.

    Examples
    --------
    >>> CancelledError(3, 10).done
    3
    """

    def __init__(self, done: int | None = None, total: int | None = None) -> None:
        super().__init__("cancelled")
        self.done, self.total = done, total


class Failure(NamedTuple):
    """One item that a job could not use, and went on without.

    Parameters
    ----------
    path : str
    status : str
        Of its row, such as "missing".
    message : str

    Examples
    --------
    >>> Failure("a.jpg", "missing", "a.jpg: there is no such file").status
    'missing'
    """

    path: str
    status: str
    message: str


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a job is.

    Parameters
    ----------
    stage : str
        What is being done, one word: "read", "load", "predict", "cut", "features", "train", "regions", "write".
    done, total : int
        Units finished and units in all (0 where unknown).
    message : str
        One line for a person; empty most of the time.
    failures : tuple of Failure
        Items that could not be used, since the last event.
    is_landmark : bool
        Whether its message is worth a line of its own where no bar is drawn.

    Examples
    --------
    >>> Progress("predict", 3, 10).fraction
    0.3
    """

    stage: str
    done: int
    total: int
    message: str = ""
    failures: tuple[Failure, ...] = ()
    is_landmark: bool = False

    @property
    def fraction(self) -> float:
        """Share of the stage that is done, 0..1 (0 where the total is unknown)."""
        return self.done / self.total if self.total else 0.0


def run(job: Generator[Progress, None, Result], report: Callable[[Progress], None] | None = None) -> Result:
    """Run a job to its end and return its result.

    Parameters
    ----------
    job : generator of Progress
        A long job.
    report : callable, optional
        Called with every event. It may raise `CancelledError`, as signals may at any moment: the job is then told,
        and one that can stop with what it has done returns that.

    Returns
    -------
    The job's result

    Raises
    ------
    CancelledError
        If the job was cancelled and has nothing to return.

    Examples
    --------
    >>> def job():
    ...     yield Progress("read", 1, 1)
    ...     return "done"
    >>> run(job())
    'done'
    """
    try:
        while True:
            try:
                event = next(job)
                if report is not None:
                    report(event)
            except CancelledError as cancelled:
                if inspect.getgeneratorstate(job) == inspect.GEN_CLOSED:  # it was raised inside, and ended the job
                    raise
                job.throw(cancelled)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        job.close()
