# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said between the plugin and the worker: one JSON object a line. Pure Python: no qgis."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from .texts import tr

PROTOCOL = 1
PROTOCOLS = (0, 1)
"""What is asked for, and what is understood."""

KNOWN = ("hello", "log", "progress", "item_error", "result", "error", "cancelled")
_ENDINGS = ("result", "error", "cancelled")
_LONGEST_LINE = 1 << 20  # the worker's lines are below 64 kB: more is not the worker
_SHOWN = 200

_ARGUMENTS = ("source", "sources", "predictions", "truth", "config", "file")  # and calibrate's bundle
_OPTIONS = {"image_ids": "image-id", "seasons": "season", "kind": "format", "as_json": "json"}

_HINTS = {
    "model_missing": tr("Check the path of the bundle (.safetensors)."),
    "oom": tr("Lower the batch size, or choose the device cpu."),
    "device": tr("Choose the device auto or cpu; Check environment lists what there is."),
    "output": tr("Close layers that show an earlier result, and see whether the disk is full or write-protected."),
    "locked": tr("Another run writes to the same place: wait for it, or choose another output."),
    "internal": tr("Run Check environment, and send its diagnostics with this message to the developers."),
}
_DLL_HINT = tr("Install the Microsoft Visual C++ Redistributable, then run Check environment.")
_EXITS = {
    9: (tr("was killed, most likely because memory ran out"), tr("Lower the batch size or the number of workers.")),
    126: (tr("could not be started"), tr("It is no program, or it is blocked: see the setting of the interpreter.")),
    127: (tr("lacks a library"), tr("Run Check environment, and install geo-mvmf again.")),
    0xC0000135: (tr("lacks a DLL"), _DLL_HINT),
    0xC0000005: (tr("crashed in a DLL"), _DLL_HINT),
}


class WorkerFailed(Exception):  # noqa: N818  (it says what happened)
    """The worker could not do what was asked: why, and what to do."""

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message, self.hint, self.detail = message, hint, detail

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


def request_line(task: str, params: Mapping[str, Any]) -> bytes:
    """Write a request; what is not given is left out."""
    given = {name: value for name, value in params.items() if value is not None}
    return (json.dumps({"protocol": PROTOCOL, "task": task, "params": given}) + "\n").encode("ascii")


def command_line(task: str, params: Mapping[str, Any]) -> str:
    """Write the command that does the same in a terminal, for people to copy."""
    words, last = ["geo-mvmf", task], []
    for name, value in params.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        if name in _ARGUMENTS or (task, name) == ("calibrate", "bundle"):
            last += [str(each) for each in values if each is not None]
        elif isinstance(value, bool):
            words += [f"--{_option(name)}"] * value
        else:
            words += [f"--{_option(name)}={each}" for each in values if each is not None]
    return " ".join(map(shlex.quote, words + ["--"] * any(word.startswith("-") for word in last) + last))


class Conversation:
    """Bytes of a worker's answer -> events; knows what was said, and what the end of it means."""

    def __init__(self) -> None:
        self.hello: dict[str, Any] | None = None
        self.ending: dict[str, Any] | None = None
        self._rest = b""
        self._unknown: set[str] = set()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Take the next bytes and give the events to show; half lines wait for their other half.

        Raises WorkerFailed if they are not the protocol. An unknown event is given once, as a remark.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            raise _not_the_protocol(self._rest)
        events = []
        for line in lines:
            if self.ending is None and line.strip():
                events += self._take(line)
        return events

    def finish(self, code: int, *, crashed: bool, stderr: str) -> dict[str, Any]:
        """Give the result (or what was cancelled) of a worker that is gone, or raise WorkerFailed saying why not."""
        last = stderr.strip().splitlines()[-1][:_SHOWN] if stderr.strip() else ""
        if self.ending is None:
            raise self._without_ending(code, last, stderr, crashed=crashed)
        if self.ending["event"] == "error":
            kind = text_of(self.ending, "code")
            hint = text_of(self.ending, "hint") or _HINTS.get(kind, "")
            message = text_of(self.ending, "message") or tr("the worker failed ({})").format(kind)
            raise WorkerFailed(message, hint, text_of(self.ending, "detail"))
        return self.ending

    def _take(self, line: bytes) -> list[dict[str, Any]]:
        try:
            event = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise _not_the_protocol(line) from error
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise _not_the_protocol(line)
        name = event["event"]
        if self.hello is None:
            if name != "hello":
                raise _not_the_protocol(line)
            _check_protocol(event)
            self.hello = event
        if name in _ENDINGS:
            self.ending = event
        if name in KNOWN:
            return [event]
        if name in self._unknown:
            return []
        self._unknown.add(name)
        said = tr("the worker's event {!r} is not known here").format(name[:_SHOWN])
        return [{"event": "log", "level": "info", "message": said}]

    def _without_ending(self, code: int, last: str, stderr: str, *, crashed: bool) -> WorkerFailed:
        said = tr("; its last words: {}").format(last) if last else ""
        if "No module named geo_mvmf" in stderr or "No module named 'geo_mvmf" in stderr:
            return WorkerFailed(tr("this Python has no geo_mvmf (or one that is too old)"), _MEND)
        known = _EXITS.get(code & 0xFFFFFFFF) or (_EXITS[9] if code == 137 else None)
        if known and (crashed or code != 9):
            return WorkerFailed(tr("the worker {} (exit code {})").format(known[0], code) + said, known[1])
        how = tr("crashed (signal or code {})") if crashed else tr("ended with exit code {}")
        where = tr(" in the middle of a line") if self._rest.strip() else ""
        message = tr("the worker {}{} and gave no result").format(how.format(code), where)
        return WorkerFailed(message + said, tr("Run Check environment."), stderr)


_MEND = tr("Install it there: python -m pip install --upgrade geo-mvmf (or point the setting at another Python).")


def text_of(event: Mapping[str, Any], name: str) -> str:
    """Give a text of an event; '' where there is none."""
    value = event.get(name)
    return value if isinstance(value, str) else "" if value is None else str(value)


def _option(name: str) -> str:
    return _OPTIONS.get(name, name.replace("_", "-"))


def _check_protocol(hello: Mapping[str, Any]) -> None:
    theirs = hello.get("protocol")
    if theirs in PROTOCOLS and not isinstance(theirs, bool):
        return
    newer = isinstance(theirs, int) and theirs > max(PROTOCOLS)
    hint = tr("Update this plugin.") if newer else _MEND
    said = tr("geo_mvmf {} speaks protocol {!r}; this plugin understands {}")
    raise WorkerFailed(said.format(text_of(hello, "version")[:_SHOWN], theirs, PROTOCOLS), hint)


def _not_the_protocol(line: bytes) -> WorkerFailed:
    shown = line[:_SHOWN].decode("utf-8", "replace")
    said = tr("the worker's answer is not the protocol: {!r}").format(shown)
    return WorkerFailed(said, tr("Is this Python the one with geo_mvmf?"))
