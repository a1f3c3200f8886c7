# SPDX-License-Identifier: GPL-2.0-or-later
"""One request, one process: started from the algorithm's own thread, watched, cancelled, and never left behind."""

from __future__ import annotations

import os
import time

from qgis import core
from qgis.PyQt.QtCore import QProcess, QProcessEnvironment

from . import environment
from .protocol import Conversation, WorkerFailed, command_line, request_line, text_of
from .texts import tr

ARGUMENTS = ("-X", "utf8", "-I", "-u", "-m", "geo_mvmf.worker")
"""The whole argument list, always: what users write goes through standard input."""

_START_MS = 20_000
_POLL_MS = 100
_GRACE_S = 5.0
_SHOWN_ITEMS = 20
_STDERR_KEPT = 20_000  # bytes, for messages

# Where each stage of a job lies on its bar, in per cent; others have all of it.
_SPANS = {"read": (0, 3), "load": (3, 8), "predict": (8, 90), "write": (90, 100), "export": (90, 100)}


class WorkerRun:
    """One request to the worker; feedback is QGIS's."""

    def __init__(self, python, feedback):
        self.python, self.feedback = python, feedback
        self.item_errors = 0
        self._talk = Conversation()
        self._process = QProcess()
        self._stderr = ""
        self._stage = ("", "")
        self._percent = 0.0
        self._line = b""

    def run(self, task, params):
        """Send a request, show what comes, and give the result; raises WorkerFailed."""
        self.feedback.pushCommandInfo(command_line(task, params))
        process = self._process
        process.setProcessEnvironment(_process_environment(self.python))
        process.start(self.python, list(ARGUMENTS))
        if not process.waitForStarted(_START_MS):
            hint = tr(
                "Is it moved, blocked by a virus scanner, or not allowed to run? See the setting of the interpreter."
            )
            said = tr("{}: the interpreter did not start: {}").format(self.python, process.errorString())
            raise WorkerFailed(said, hint)
        try:
            process.write(request_line(task, params))
            stopped = self._watch()
        finally:
            _end(process)
        if stopped and (self._talk.ending is None or self._talk.ending["event"] == "error"):
            return {"event": "cancelled", "outputs": {}}
        code, crashed = process.exitCode(), process.exitStatus() == QProcess.ExitStatus.CrashExit
        return self._talk.finish(code, crashed=crashed, stderr=self._stderr)

    def _watch(self):
        """Show events until the process is gone or has had its time; say whether it was asked to stop."""
        process, deadline, asked = self._process, None, False
        while process.state() != QProcess.ProcessState.NotRunning:
            process.waitForReadyRead(_POLL_MS)
            self._show_output()
            if self.feedback.isCanceled() and not asked:
                asked = True
                self.feedback.pushInfo(tr("Stopping after the image in work ..."))
                process.write(b"cancel\n")
            if (asked or self._talk.ending) and deadline is None:
                process.closeWriteChannel()
                deadline = time.monotonic() + _GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                break  # what is left of it is killed
        self._show_output()
        if self._line:
            self._show_line(self._line)
        return asked

    def _show_output(self):
        errors = bytes(self._process.readAllStandardError())
        *lines, self._line = (self._line + errors).split(b"\n")
        for line in lines:
            self._show_line(line)
        for event in self._talk.feed(bytes(self._process.readAllStandardOutput())):
            show = getattr(self, f"_show_{event['event']}", None)  # one of protocol.KNOWN
            if show is not None:  # how it ended is the caller's to show
                show(event)

    def _show_line(self, line):
        text = line.decode("utf-8", "replace").rstrip()
        self._stderr = (self._stderr + text + "\n")[-_STDERR_KEPT:]
        if text:
            self.feedback.pushConsoleInfo(text)

    def _show_hello(self, event):
        version, python = text_of(event, "version"), text_of(event, "python")
        self.feedback.pushInfo(f"geo_mvmf {version}, Python {python}: {self.python}")

    def _show_log(self, event):
        warns = event.get("level") == "warning"
        (self.feedback.pushWarning if warns else self.feedback.pushInfo)(text_of(event, "message"))

    def _show_item_error(self, event):
        self.item_errors += 1
        if self.item_errors <= _SHOWN_ITEMS:
            self.feedback.pushWarning(f"{text_of(event, 'path')}: {text_of(event, 'message')}")
        elif self.item_errors == _SHOWN_ITEMS + 1:
            self.feedback.pushWarning(tr("More images could not be used: see the columns status and message."))

    def _show_progress(self, event):
        stage, done, total = text_of(event, "stage"), event.get("done"), event.get("total")
        if isinstance(done, int) and isinstance(total, int) and total > 0:
            first, last = _SPANS.get(stage, (0, 100))
            self._percent = max(self._percent, first + (last - first) * min(max(done / total, 0.0), 1.0))
            self.feedback.setProgress(self._percent)
        # A label that takes rich text shows this: nothing that a file or its name says may get there.
        word = stage if stage.isascii() and stage.isalpha() else "working"
        if word != self._stage[0]:
            self.feedback.setProgressText(f"{word} ...")
        message = text_of(event, "message")
        if message and message != self._stage[1]:
            self.feedback.pushInfo(message)
        self._stage = (word, message)


def qgis_folders():
    """Folders that hold QGIS's own libraries and programs, where they are not those of the whole system."""
    prefix = core.QgsApplication.prefixPath()
    own = [os.environ.get("OSGEO4W_ROOT", ""), os.environ.get("APPDIR", ""), os.environ.get("SNAP", "")]
    if os.name == "nt" or ".app/" in prefix:
        own.append(os.path.dirname(os.path.dirname(prefix)))
    return [folder for folder in own if folder]


def _process_environment(python):
    result = QProcessEnvironment()
    for name, value in environment.clean_environment(os.environ, python, foreign=qgis_folders()).items():
        result.insert(name, value)
    return result


def _end(process):
    if process.state() != QProcess.ProcessState.NotRunning:
        process.kill()  # console programs ignore terminate() on Windows
        process.waitForFinished(int(_GRACE_S * 1000))
