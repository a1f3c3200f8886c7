"""The event that long jobs yield.

A long job is a generator: it yields `Progress` events and returns its result; closing it cancels the job. So a
terminal, a JSON stream and QGIS show the same job without the job knowing any of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from typing import TypeVar

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a job is.

    Parameters
    ----------
    stage : str
        What is being done, one word: "read", "load", "predict", "cut", "features", "train", "write".
    done, total : int
        Units finished and units in all (0 where unknown).
    message : str
        One line for a person; empty most of the time.

    Examples
    --------
    >>> Progress("predict", 3, 10).fraction
    0.3
    """

    stage: str
    done: int
    total: int
    message: str = ""

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
        Called with every event.

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
            event = next(job)
            if report is not None:
                report(event)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    finally:
        job.close()
