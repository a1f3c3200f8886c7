"""What a command says beside its result, on stderr: progress, remarks, warnings and errors, for people or programs."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Generator, Iterator
from typing import TypeVar

import click

from geo_mvmf import progress
from geo_mvmf.progress import Progress

Result = TypeVar("Result")

STYLES = ("auto", "bar", "json", "none")


class Reporter:
    """Speaks on stderr: a bar and lines for people, one JSON object a line for programs, or only what matters.

    Parameters
    ----------
    style : {"bar", "json", "none"}

    Examples
    --------
    >>> def job():
    ...     yield Progress("read", 1, 1)
    ...     return "done"
    >>> Reporter("none").run(job())
    'done'
    """

    def __init__(self, style: str) -> None:
        self.style = style
        self._shown = 0.0
        self._stage = ""
        self._begun = (0.0, 0)  # when the first event of the stage came, and what was done by then
        self._open = False

    def __call__(self, event: Progress) -> None:
        """Show one event (bars at most five times a second)."""
        now = time.monotonic()
        if event.stage != self._stage:
            self._stage, self._begun = event.stage, (now, event.done)
        if self.style == "json":
            _line("progress", stage=event.stage, done=event.done, total=event.total, message=event.message)
        elif self.style == "bar" and (now - self._shown > 0.2 or event.done == event.total):
            self._shown = now
            self._draw(event, now - self._begun[0], event.done - self._begun[1])

    def run(self, job: Generator[Progress, None, Result]) -> Result:
        """Run a job to its end, show its progress and return its result; an interruption closes the job.

        Parameters
        ----------
        job : generator of Progress
        """
        with contextlib.closing(job):
            try:
                return progress.run(job, self)
            finally:
                self.close()

    def say(self, text: str) -> None:
        """Make a remark that is not part of the result, such as the device in use.

        Parameters
        ----------
        text : str
        """
        self.close()
        if self.style == "json":
            _line("log", message=text)
        else:
            click.echo(text, err=True)

    def fail(self, message: str, code: int) -> None:
        """Say why a command ends without a result.

        Parameters
        ----------
        message : str
        code : int
            What the process exits with.
        """
        self.close()
        if self.style == "json":
            _line("error", code=code, message=message)
        else:
            click.echo(f"geo-mvmf: {message}", err=True)

    @contextlib.contextmanager
    def showing_warnings(self) -> Iterator[None]:
        """Show Python's warnings as lines of their text, without file and line of the code that raised them."""

        def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
            if not issubclass(category, UserWarning):  # for developers
                return
            self.close()
            if self.style == "json":
                _line("warning", message=str(message))
            else:
                click.echo(f"warning: {message}", err=True)

        with warnings.catch_warnings():
            warnings.filterwarnings("default", category=UserWarning)
            warnings.showwarning = show
            yield

    def close(self) -> None:
        """End the bar's line."""
        if self._open:
            click.echo("", err=True)
            self._open = False

    def _draw(self, event: Progress, seconds: float, done: int) -> None:
        # by what was done in these seconds: a job that goes on has most of it behind it when it begins
        left = seconds * (event.total - event.done) / done if done > 0 else float("nan")
        times = f"{seconds:.0f} s" + (f", {left:.0f} s left" if left > 0.5 else "")
        bar = "#" * int(24 * event.fraction)
        line = f"{event.stage} [{bar:<24}] {event.done}/{event.total} {times}  {event.message}"
        click.echo("\r" + line[: shutil.get_terminal_size().columns - 1].ljust(60), nl=False, err=True)
        self._open = True


def _line(event: str, **values: object) -> None:
    click.echo(json.dumps({"event": event, **values}, ensure_ascii=False), err=True)
