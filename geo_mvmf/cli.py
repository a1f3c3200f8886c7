"""The command line: one of the two doors (the other is the QGIS worker); only doors print.

A command's module is imported when the command is asked for, and what the command needs when it runs, so `--help`
answers at once, also where torch cannot be imported. Errors of the exception tree become one line on stderr and the
exit code of their branch; an interruption leaves what can be resumed, and exits with 130 (Ctrl-C) or 143 (SIGTERM).
With `--progress json` stderr holds the events that the worker says on its output (docs/worker.md).
"""

from __future__ import annotations

import contextlib
import importlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

import click

from geo_mvmf import __version__, events
from geo_mvmf.suggestions import suggestion
from geo_mvmf.terminal import STYLES, Reporter

COMMANDS = {
    "chips": "images",
    "table": "images",
    "features": "learning",
    "partition": "partition",
    "train": "learning",
    "report": "training_report",
    "calibrate": "learning",
    "predict": "prediction",
    "baselines": "baselines",
    "points": "results",
    "density": "results",
    "regions": "results",
    "zones": "zones",
    "fuse": "evidence",
    "evaluate": "evaluation",
    "compare": "comparison",
    "info": "about",
    "env": "about",
}
"""Every command with its module in `geo_mvmf.commands`, in the order of a job."""

RESUMED = ("features", "train", "predict")
"""Commands that go on where they were when they are given again."""


class _TerminatedError(BaseException):
    """SIGTERM came: not an error of anything, so nothing catches it on the way but the closing of files."""


class _Group(click.Group):
    """Finds commands, and turns the exception tree into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(f"geo_mvmf.commands.{COMMANDS[cmd_name]}"), cmd_name)
        if not any(option.name == "progress" for option in found.params):
            found.params.append(_progress_option())
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is named first; where there is none, say which may be meant."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"No such command {args[0]!r}{suggestion(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; whatever ends it early is said in one line."""
        ctx.obj = report = Reporter(_style(ctx.params["style"]))
        try:
            with report.showing_warnings(), _terminable():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            _interrupted(ctx, report, 130)
        except _TerminatedError:
            _interrupted(ctx, report, 143)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            command = self.get_command(ctx, ctx.invoked_subcommand or "")
            names = [] if command is None else [str(option.name) for option in command.params]
            why = events.explain(error, options=names)
            if report.style != "json" and (why.code == "internal" or isinstance(error, click.ClickException)):
                raise  # click shows the usage; a fault of our own shows where it is
            report.fail(why)
            ctx.exit(why.exit_code)


@click.group("geo-mvmf", cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="geo-mvmf")
@click.option(
    "--progress",
    "style",
    type=click.Choice(STYLES),
    default="auto",
    help="Bar on a terminal, few lines elsewhere (auto), one JSON object a line on stderr for programs, or none.",
)
def main(*, style: str) -> None:
    """Predict where images were taken, as probability over the Earth's surface.

    A picture goes in; a normalised density comes out, as GIS layers. A prediction is a region, not a proof.
    """
    del style  # read by the group, before any command


def _progress_option() -> click.Option:
    """Make the option of the group understood behind a command, too."""

    def choose(ctx: click.Context, _: click.Parameter, style: str | None) -> None:
        if style is not None:
            ctx.obj.style = _style(style)

    return click.Option(
        ["--progress"], type=click.Choice(STYLES), expose_value=False, is_eager=True, hidden=True, callback=choose
    )


def _style(wish: str) -> str:
    return ("bar" if sys.stderr.isatty() else "lines") if wish == "auto" else wish


def _interrupted(ctx: click.Context, report: Reporter, code: int) -> NoReturn:
    goes_on = ctx.invoked_subcommand in RESUMED
    hint = f"; {ctx.invoked_subcommand} goes on when given again" if goes_on else ""
    report.say(f"geo-mvmf: interrupted, nothing is half-written{hint}")
    report.cancelled()
    ctx.exit(code)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind the command, so that locks and temporary files go, instead of cutting it off."""

    def terminate(*_: object) -> NoReturn:
        raise _TerminatedError

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not the main thread: someone else's process, whose signals are not ours
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
