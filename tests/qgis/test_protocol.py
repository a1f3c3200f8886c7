"""The plugin's side of the conversation with the worker, without QGIS."""

import contextlib
import json
import shlex
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mvmf_locator import protocol
from mvmf_locator.protocol import Conversation, WorkerFailed

HELLO = b'{"event": "hello", "protocol": 1, "version": "0.1", "python": "3.12", "pid": 1}\n'
RESULT = b'{"event": "result", "outputs": {"table": "/a.csv"}, "counts": {}, "message": ""}\n'


def talk(data, code=0, *, crashed=False, stderr=""):
    conversation = Conversation()
    conversation.feed(data)
    return conversation.finish(code, crashed=crashed, stderr=stderr)


def reason(*arguments, **options):
    with pytest.raises(WorkerFailed) as caught:
        talk(*arguments, **options)
    return caught.value


@given(st.lists(st.integers(1, 40)))
def test_lines_come_whole_however_the_bytes_are_cut(cuts):
    said = HELLO + '{"event": "log", "level": "info", "message": "Žabljak"}\n\n'.encode() + RESULT
    conversation, events, rest = Conversation(), [], said
    for cut in cuts:
        events += conversation.feed(rest[:cut])
        rest = rest[cut:]
    events += conversation.feed(rest)
    assert [event["event"] for event in events] == ["hello", "log", "result"]
    assert events[1]["message"] == "Žabljak"
    assert conversation.finish(0, crashed=False, stderr="")["outputs"] == {"table": "/a.csv"}


@pytest.mark.parametrize(
    "garbage",
    [b"Welcome!\n", b"[1]\n", b"1\n", b'{"no": "event"}\n', b'{"event": 3}\n', b"\xff\xfe\x00\n", b"x" * 2_000_000],
)
@pytest.mark.parametrize("before", [b"", HELLO])
def test_garbage_is_one_clear_message_that_shows_it(garbage, before):
    failure = reason(before + garbage)
    assert "not the protocol" in failure.message
    assert len(failure.message) < 1000


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_message_or_wait_for_more(data):
    with contextlib.suppress(WorkerFailed):  # and nothing else
        Conversation().feed(HELLO + data)


def test_hello_comes_first():
    assert "not the protocol" in reason(RESULT).message


def test_an_unknown_event_is_told_once_and_ignored():
    gossip = b'{"event": "gossip"}\n'
    conversation = Conversation()
    events = conversation.feed(HELLO + gossip * 5 + RESULT)
    assert [event["event"] for event in events] == ["hello", "log", "result"]
    assert "gossip" in events[1]["message"]
    assert conversation.finish(0, crashed=False, stderr="")["event"] == "result"


@pytest.mark.parametrize("number", [0, 1])
def test_protocols_that_are_understood(number):
    assert talk(HELLO.replace(b'"protocol": 1', b'"protocol": %d' % number) + RESULT)["event"] == "result"


@pytest.mark.parametrize(("said", "hint"), [(b"2", "this plugin"), (b"true", "geo-mvmf"), (b"null", "geo-mvmf")])
def test_other_protocols_say_what_to_update(said, hint):
    failure = reason(HELLO.replace(b'"protocol": 1', b'"protocol": ' + said))
    assert "speaks protocol" in failure.message
    assert hint in failure.hint


def test_ends_without_a_result_say_how():
    assert "in the middle of a line" in reason(HELLO + b'{"event": "resu').message
    assert "exit code 0" in reason(HELLO).message
    assert "its last words: boom" in reason(HELLO, 3, stderr="a\nboom\n").message
    assert "memory" in reason(HELLO, 9, crashed=True).message
    assert "memory" in reason(HELLO, 137).message
    assert "memory" not in reason(HELLO, 9).message
    assert "Visual C++" in reason(HELLO, 0xC0000135 - 2**32).hint
    assert "has no geo_mvmf" in reason(b"", 1, stderr="python: No module named geo_mvmf.worker").message


def test_errors_carry_their_hint_and_detail():
    line = b'{"event": "error", "code": "%s", "message": "m", "hint": "%s", "detail": "d"}\n'
    assert str(reason(HELLO + line % (b"oom", b"h"), 1)) == "m\nh"
    assert "batch size" in reason(HELLO + line % (b"oom", b""), 1).hint
    assert reason(HELLO + line % (b"new_code", b""), 1).hint == ""
    assert reason(HELLO + line % (b"internal", b""), 1).detail == "d"


def test_nothing_after_the_end_counts():
    assert talk(HELLO + RESULT + b"garbage\n" + b'{"event": "error"}\n')["event"] == "result"


HOSTILE = st.text(max_size=60) | st.sampled_from(
    ["--strict", "-x", "@file", "a\nb", '"', "'; rm -rf /", "\0", "=", "--"]
)


@given(st.dictionaries(st.sampled_from(["source", "out", "levels"]), HOSTILE, min_size=1))
def test_a_request_is_one_ascii_line_that_reads_back_the_same(params):
    line = protocol.request_line("predict", {**params, "root": None})
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert json.loads(line) == {"protocol": 1, "task": "predict", "params": params}


@given(st.dictionaries(st.sampled_from(["source", "out", "levels"]), HOSTILE.filter(lambda text: "\0" not in text)))
def test_the_command_for_people_gives_every_value_back(params):
    words = shlex.split(protocol.command_line("predict", {**params, "overwrite": True, "strict": False}))
    assert words[:2] == ["geo-mvmf", "predict"]
    assert "--overwrite" in words
    assert ("--strict" in words) == (params.get("source") == "--strict")
    for name, value in params.items():
        assert (value if name == "source" else f"--{name}={value}") in words


def test_the_command_for_people_is_one_that_the_command_line_understands():
    click = pytest.importorskip("click")
    from geo_mvmf.cli import main

    for task, params in {
        "regions": {"predictions": "-p.nc", "out": "r.gpkg", "image_ids": ["a", "b"], "levels": "0.5"},
        "chips": {"sources": ["a.tif", "b.tif"], "out": "c", "ground_km": 2.0, "kind": "png", "seasons": ["a=b"]},
        "predict": {"source": "a", "bundle": "b", "out": "c.nc", "overwrite": True, "radius_km": None},
    }.items():
        words = shlex.split(protocol.command_line(task, params))[2:]
        command = main.get_command(click.Context(main), task)
        read = command.make_context(task, words, resilient_parsing=False).params
        for name, value in params.items():
            found = read[name]
            assert (list(map(str, found)) if isinstance(found, tuple) else found) == value or str(found) == str(value)


def test_it_runs_without_qgis():
    assert not any(name.split(".")[0] in ("qgis", "PyQt5", "PyQt6") for name in sys.modules)
