"""What a command says: progress, remarks, warnings, errors and its result, for people or for programs.

For people the result is text on stdout and all else goes to stderr. Programs are told events (docs/worker.md).
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from geo_mvmf import events, progress
from geo_mvmf.events import Explanation
from geo_mvmf.progress import CancelledError, Failure, Progress

Result = TypeVar("Result")

STYLES = ("auto", "bar", "json", "none")

_LINE_SECONDS = 5.0  # between two lines in place of a bar, but for the first and the last


class Reporter:
    """Speaks for a command: a bar and lines for people, events for programs, or only what matters.

    Parameters
    ----------
    style : {"bar", "lines", "json", "none"}
        Lines are of landmarks alone, for where no bar can be drawn.
    tell : callable, optional
        Takes the lines of events in place of stderr; the result is then said as an event only.
    check : callable, optional
        Called with every event of a job; raises `CancelledError` once somebody asked for it.

    Attributes
    ----------
    outputs : dict of str to Path
        What was written so far, by the names of docs/worker.md.
    done, total : int
        Of the last event of a job.

    Examples
    --------
    >>> def job():
    ...     yield Progress("read", 1, 1)
    ...     return "done"
    >>> Reporter("none").run(job())
    'done'
    """

    def __init__(
        self, style: str, tell: Callable[[str], None] | None = None, check: Callable[[], None] | None = None
    ) -> None:
        self.style = style
        self.outputs: dict[str, Path] = {}
        self.done = self.total = 0
        self._echoes = tell is None
        self._write = tell or _to_stderr
        self._check = check
        self._shown = 0.0
        self._stage = ""
        self._begun = (0.0, 0)  # when the first event of the stage came, and what was done by then
        self._open = False

    def __call__(self, event: Progress) -> None:
        """Show one event (bars at most five times a second)."""
        now = time.monotonic()
        if event.stage != self._stage:
            self._stage, self._begun = event.stage, (now, event.done)
        self.done, self.total = event.done, event.total
        self.failed(event.failures)
        if self.style == "json":
            self._tell("progress", stage=event.stage, done=event.done, total=event.total, message=event.message)
        elif self.style == "bar" and (now - self._shown > 0.2 or event.done == event.total):
            self._shown = now
            self._draw(event, now - self._begun[0], event.done - self._begun[1])
        elif self.style == "lines" and event.is_landmark:
            self._say_landmark(event, now)
        if self._check is not None:
            self._check()

    def stage(self, name: str, done: int = 0, total: int = 0) -> None:
        """Tell programs what a command does outside of jobs, such as loading a model.

        Parameters
        ----------
        name : str
            "load", "export".
        done, total : int
            0 of 0 where nothing can be counted.
        """
        if self.style == "json":
            self._tell("progress", stage=name, done=done, total=total, message="")

    def failed(self, items: Iterable[Failure]) -> None:
        """Tell programs which items could not be used; people read it in the rows.

        Parameters
        ----------
        items : iterable of Failure
        """
        if self.style == "json":
            for item in items:
                self._tell("item_error", path=item.path, code=item.status, message=item.message)

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
            self._tell("log", level="info", message=text)
        else:
            click.echo(text, err=True)

    def wrote(self, name: str, path: Path) -> None:
        """Remember a finished output, for the result, or for what is said when the command is cancelled after it.

        Parameters
        ----------
        name : str
            As in docs/worker.md.
        path : Path
        """
        self.outputs[name] = path.absolute()

    def result(
        self, message: str, *, counts: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Say what came of a command; nothing is said after it.

        Parameters
        ----------
        message : str
            For people, on stdout; one or more lines.
        counts : mapping of str to number, optional
            What was counted, for programs; None is left out.
        facts : mapping, optional
            The answer of a command that writes nothing.
        """
        self.close()
        if self._echoes:
            # of a pipe on Windows it knows a few hundred characters; a program without a window has no output
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            click.echo(message.encode(encoding, "backslashreplace").decode(encoding))
        if self.style == "json":
            found = {name: number for name, number in (counts or {}).items() if number is not None}
            said = {"outputs": self.outputs, "counts": found, "message": message}
            self._tell("result", **said, **({} if facts is None else {"facts": facts}))

    def fail(self, why: Explanation) -> None:
        """Say why a command ends without a result.

        Parameters
        ----------
        why : Explanation
        """
        self.close()
        if self.style == "json":
            self._tell("error", code=why.code, message=why.message, hint=why.hint, detail=why.detail)
        else:
            click.echo(f"geo-mvmf: {why.message}", err=True)

    def cancelled(self, by: CancelledError | None = None) -> None:
        """Tell programs that a command was stopped, what it had done and what it leaves.

        Parameters
        ----------
        by : CancelledError, optional
            May know better than the last event how much was done.
        """
        self.close()
        if self.style == "json":
            done, total = (self.done, self.total) if by is None or by.done is None else (by.done, by.total)
            self._tell("cancelled", done=done, total=total, outputs=self.outputs)

    @contextlib.contextmanager
    def showing_warnings(self) -> Iterator[None]:
        """Show Python's warnings as lines of their text, without file and line of the code that raised them."""

        def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
            if not issubclass(category, UserWarning):  # for developers
                return
            self.close()
            if self.style == "json":
                self._tell("log", level="warning", message=str(message))
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

    def _tell(self, event: str, **values: object) -> None:
        self._write(events.line(event, **values))

    def _say_landmark(self, event: Progress, now: float) -> None:
        if now - self._shown > _LINE_SECONDS or event.done in (self._begun[1], event.total):
            self._shown = now
            self.say(f"{event.stage} {event.done}/{event.total}: {event.message}")

    def _draw(self, event: Progress, seconds: float, done: int) -> None:
        # by what was done in these seconds: a job that goes on has most of it behind it when it begins
        left = seconds * (event.total - event.done) / done if done > 0 else float("nan")
        times = f"{seconds:.0f} s" + (f", {left:.0f} s left" if left > 0.5 else "")
        bar = "#" * int(24 * event.fraction)
        line = f"{event.stage} [{bar:<24}] {event.done}/{event.total} {times}  {event.message}"
        click.echo("\r" + line[: shutil.get_terminal_size().columns - 1].ljust(60), nl=False, err=True)
        self._open = True


def _to_stderr(line: str) -> None:
    click.echo(line, err=True)
