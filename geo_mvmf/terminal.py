"""Progress for people and for programs: a bar on a terminal, or one JSON object a line."""

from __future__ import annotations

import json
import shutil
import time

import click

from geo_mvmf.progress import Progress


class Reporter:
    """Shows progress events on stderr: a bar, JSON lines, or nothing.

    Parameters
    ----------
    style : {"bar", "json", "none"}
    """

    def __init__(self, style: str) -> None:
        self.style = style
        self._shown = 0.0
        self._begun = time.monotonic()
        self._open = False

    def __call__(self, event: Progress) -> None:
        """Show one event (bars at most five times a second)."""
        now = time.monotonic()
        if self.style == "json":
            record = {"event": "progress", "stage": event.stage, "done": event.done, "total": event.total}
            click.echo(json.dumps({**record, "message": event.message}), err=True)
        elif self.style == "bar" and (now - self._shown > 0.2 or event.done == event.total):
            self._shown = now
            self._draw(event, now - self._begun)

    def close(self) -> None:
        """End the bar's line."""
        if self._open:
            click.echo("", err=True)
            self._open = False

    def _draw(self, event: Progress, seconds: float) -> None:
        left = seconds * (1.0 / event.fraction - 1.0) if event.fraction else float("nan")
        times = f"{seconds:.0f} s" + (f", {left:.0f} s left" if left > 0.5 else "")
        bar = "#" * int(24 * event.fraction)
        line = f"{event.stage} [{bar:<24}] {event.done}/{event.total} {times}  {event.message}"
        click.echo("\r" + line[: shutil.get_terminal_size().columns - 1].ljust(60), nl=False, err=True)
        self._open = True
