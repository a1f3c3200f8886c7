"""A log survives the death of its writer, and is kept in a file or not at all."""

import os
import signal

import pytest

from geo_mvmf import append_log
from geo_mvmf.errors import OutputError


def test_a_log_loses_its_torn_last_line_only(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"b":')
    with append_log.AppendLog(path) as log:
        log.write({"c": 3})
    assert path.read_text() == '{"a": 1}\n{"c": 3}\n'


@pytest.fixture
def patience():
    """Two seconds: whoever waits longer is ended by an error."""

    def end(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(2)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


KINDS = {
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "device": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, kind, patience):
    path = tmp_path / "log.jsonl"
    KINDS[kind](path)
    with pytest.raises(OutputError, match=f"log.jsonl' is a {kind}, not a regular file, and a log cannot be kept in"):
        append_log.AppendLog(path)


@pytest.mark.hard
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_log_that_waits_for_a_pipe_is_caught(tmp_path, monkeypatch, patience):
    """Broken twin: nobody looks before opening."""
    monkeypatch.setattr(append_log, "_check_kind", lambda _: None)
    monkeypatch.setattr(append_log, "_cut_half_line", lambda _: None)
    os.mkfifo(tmp_path / "log.jsonl")
    with pytest.raises(OutputError, match="it waits"):
        append_log.AppendLog(tmp_path / "log.jsonl")
