"""The worker: the door for QGIS and for other programs. docs/worker.md is its protocol.

One request in JSON comes on stdin, events in JSON go to a private copy of stdout; descriptor 1 points at stderr, so
nothing that anybody prints can break the stream. One thread writes the events and repeats the last one while nothing
else is said; one waits for the word `cancel`, or for the end of the input: then the command is stopped, and where it
does not stop in time - the parent may be dead - the process ends as it is. Files that have their name are whole.
A process of a few lines (`parent_watch`) ends the worker where native code lets none of its threads do so.
"""

from __future__ import annotations

import _thread
import json
import os
import platform
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator

import click

from geo_mvmf import __version__, cli, events, parent_watch
from geo_mvmf.environment import PROTOCOL
from geo_mvmf.errors import UsageError
from geo_mvmf.progress import CancelledError
from geo_mvmf.request import arguments as as_arguments
from geo_mvmf.request import read_request
from geo_mvmf.terminal import Reporter

HEARTBEAT_SECONDS = 1.0
"""So long nothing is said before the last progress is repeated."""

GRACE_SECONDS = 1.0
"""What a command has to stop in when the input ends unasked: the parent may be dead."""

GRACE_WITHOUT_PARENT_SECONDS = 0.3
"""The same, when the parent is dead indeed: there is nobody left whom a tidy end could help."""

GRACE_AFTER_CANCEL_SECONDS = 5.0
"""The same, when the input ends after the word `cancel`; while it is open there is no limit."""

ABOUT = (
    "geo_mvmf.worker runs one command for a program such as QGIS: one JSON request on its input, JSON lines on its "
    "output (docs/worker.md). For people there is the command geo-mvmf."
)

_LAST_WORD_SECONDS = 0.3  # for the last event, where nobody may be reading
_MOST_BYTES = 16 << 20  # of a request
_BLOCK = 1 << 16
_ENDS = ("result", "error", "cancelled")


class _Voice:
    """Writes events, one line each, from a thread of its own, so that no interruption can cut a line in two."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._beats = events.line("progress", stage="load", done=0, total=0, message="")
        self.has_ended = threading.Event()

    def start(self) -> None:
        """Begin to write."""
        threading.Thread(target=self._write, name="events", daemon=True).start()

    def tell(self, line: str) -> None:
        """Put a line behind the others; never waits, and may be called by any thread and from signal handlers."""
        self._lines.put(line)

    def _write(self) -> None:
        is_listening = True
        while not self.has_ended.is_set():
            try:
                line = self._lines.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                line = self._beats
            kind = json.loads(line)["event"]
            if kind == "progress":
                self._beats = line
            if is_listening:
                is_listening = self._written(line)
            if kind in _ENDS:
                self.has_ended.set()

    def _written(self, line: str) -> bool:
        """Write a line; False once nobody listens, which the end of the input tells, too."""
        rest = f"{line}\n".encode("ascii")
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            return False
        return True


class _Cancellation:
    """Stops the command in the main thread: at once where it runs Python, else when it comes back to it."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._is_raised = False
        self._is_over = False

    def install(self) -> None:
        """Let SIGTERM and Ctrl-C mean `cancel`, as the thread does that reads the word."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._interrupt)

    def ask(self) -> None:
        """Ask from any thread."""
        self._asked.set()
        if hasattr(signal, "pthread_kill"):  # wakes the main thread where it waits
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        else:
            _thread.interrupt_main(signal.SIGTERM)

    @property
    def is_asked(self) -> bool:
        """Whether somebody asked."""
        return self._asked.is_set()

    def check(self) -> None:
        """Raise where an interruption was lost, as in the deletion of an object, or in code of C."""
        if self._asked.is_set() and not self._is_over:
            raise CancelledError

    def finish(self) -> None:
        """Interrupt nothing any more: the last event is being said."""
        self._is_over = True

    def _interrupt(self, *_: object) -> None:
        self._asked.set()
        if not self._is_raised and not self._is_over:
            self._is_raised = True
            raise CancelledError


def main() -> int:
    """Answer one request.

    Returns
    -------
    int
        What the process exits with: 0 after a result or a cancellation, else that of the exception tree.
    """
    if len(sys.argv) > 1 or os.isatty(0):
        is_help = sys.argv[1:] in (["--help"], ["-h"])
        click.echo(ABOUT, err=not is_help)
        return 0 if is_help else UsageError.exit_code
    source, voice = _private_streams()
    parent = os.getppid()
    parent_watch.guard(source)  # before there are threads
    voice.start()
    voice.tell(
        events.line("hello", protocol=PROTOCOL, version=__version__, python=platform.python_version(), pid=os.getpid())
    )
    cancellation = _Cancellation()
    report = Reporter("json", voice.tell, cancellation.check)
    try:
        cancellation.install()
        line, rest = _received(source)
        command, arguments = understood(line)
        watched = (source, rest, parent, cancellation, voice, report)
        threading.Thread(target=_watch, args=watched, name="input", daemon=True).start()
        run(command, arguments, report)
        cancellation.finish()
        code = 0
    except CancelledError as cancelled:
        cancellation.finish()
        report.cancelled(cancelled)
        code = 0
    except Exception as error:  # noqa: BLE001 (a door: whatever it is, the program that asked is told)
        cancellation.finish()
        why = events.explain(error)
        if (
            cancellation.is_asked and why.code == "internal"
        ):  # code of C turned the interruption into an error of its own
            report.cancelled()
            code = 0
        else:
            report.fail(why)
            code = why.exit_code
    voice.has_ended.wait()
    return code


def _private_streams() -> tuple[int, _Voice]:
    """Give the input and the output for ourselves; processes that a command starts inherit neither."""
    source, output = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return source, _Voice(output)


def _received(source: int) -> tuple[bytes, bytes]:
    """Read the line of the request, and what came with it."""
    text = bytearray()
    while b"\n" not in text[-_BLOCK:]:
        block = os.read(source, _BLOCK)
        text += block
        if not block:
            what = f"in the middle of a request: {bytes(text[-80:])!r}" if text else "before a request came"
            raise UsageError(f"the input ended {what}; one line of JSON is wanted (docs/worker.md)")
        if len(text) > _MOST_BYTES:
            raise UsageError(f"the request has more than {_MOST_BYTES} bytes; name a file in place of so many values")
    line, _, rest = bytes(text).partition(b"\n")
    return line, rest


def understood(line: bytes) -> tuple[click.Command, list[str]]:
    """Find the command that a request asks for, and its arguments.

    Parameters
    ----------
    line : bytes
        The request.

    Returns
    -------
    command : click.Command
    arguments : list of str

    Raises
    ------
    UsageError
        If it is no request.

    Examples
    --------
    >>> understood(b'{"protocol": 1, "task": "info", "params": {"file": "--help"}}')
    (<Command info>, ['--', '--help'])
    """
    request = read_request(line, cli.COMMANDS)
    command = cli.main.get_command(click.Context(cli.main), request.task)
    if command is None:
        raise UsageError(f"the request's task {request.task!r} is no command")
    return command, as_arguments(command, request.params)


def run(command: click.Command, arguments: list[str], report: Reporter) -> None:
    """Run a command; it says its result itself.

    Parameters
    ----------
    command, arguments
        As `understood` gives them.
    report : Reporter

    Raises
    ------
    GeoMvmfError, click.UsageError
        If the command ends without a result.

    Examples
    --------
    >>> info = understood(b'{"protocol": 1, "task": "info", "params": {"file": "no.nc"}}')
    >>> run(*info, Reporter("json", print))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    geo_mvmf.errors.ImageError: '...no.nc': there is no such file
    """
    with report.showing_warnings(), command.make_context(command.name, arguments, obj=report) as context:
        command.invoke(context)


def _watch(source: int, rest: bytes, parent: int, cancellation: _Cancellation, voice: _Voice, report: Reporter) -> None:
    """Wait for the word, or for the end of the input; then make sure that the process ends."""
    is_asked = False
    for line in _lines(source, rest):
        if line == b"cancel":
            is_asked = True
            cancellation.ask()
        elif line:
            voice.tell(events.line("log", level="warning", message=f"this line was not understood: {line[:200]!r}"))
    cancellation.ask()
    _wait(parent, GRACE_AFTER_CANCEL_SECONDS if is_asked else GRACE_SECONDS)
    report.cancelled()
    voice.has_ended.wait(_LAST_WORD_SECONDS)
    os._exit(0)


def _wait(parent: int, seconds: float) -> None:
    """Wait as long as a command may take to stop; less where the parent is seen to be dead, as Windows never shows."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds:
        if waited >= GRACE_WITHOUT_PARENT_SECONDS and os.getppid() != parent:
            return
        time.sleep(0.05)


def _lines(source: int, rest: bytes) -> Iterator[bytes]:
    while True:
        *lines, rest = rest.split(b"\n")
        yield from map(bytes.strip, lines)
        block = os.read(source, _BLOCK)
        if not block:
            break
        rest = (rest + block)[-_MOST_BYTES:]
    yield rest.strip()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # taking torch and the rest apart takes seconds, in which no thread of ours could end it any more
