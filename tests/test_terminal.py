"""What a command says beside its result."""

import io
import sys

from geo_mvmf import terminal
from geo_mvmf.progress import Progress


def shown(events, monkeypatch, capsys):
    """The bar's last line after events (seconds, stage, done, total)."""
    report = terminal.Reporter("bar")
    for seconds, *event in events:
        monkeypatch.setattr(terminal.time, "monotonic", lambda seconds=seconds: seconds)
        report(Progress(*event))
    return capsys.readouterr().err.split("\r")[-1]


def test_the_time_left_is_that_of_the_work_left(monkeypatch, capsys):
    assert "100/200 50 s, 50 s left" in shown(
        [(1000.0, "predict", 0, 200), (1050.0, "predict", 100, 200)], monkeypatch, capsys
    )


def test_a_job_that_goes_on_counts_what_it_did_itself(monkeypatch, capsys):
    events = [(1000.0, "train", 900, 1000), (1010.0, "train", 910, 1000)]
    assert "910/1000 10 s, 90 s left" in shown(events, monkeypatch, capsys)


def test_every_stage_has_its_own_time(monkeypatch, capsys):
    events = [(1000.0, "load", 0, 10), (1600.0, "load", 10, 10), (1600.0, "train", 0, 100), (1602.0, "train", 10, 100)]
    assert "10/100 2 s, 18 s left" in shown(events, monkeypatch, capsys)


def test_where_no_bar_is_landmarks_are_lines_and_not_too_many(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 2.0, 7.0, 8.0, 9.0])
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    report = terminal.Reporter("lines")
    for done, is_landmark in [(3, True), (4, False), (5, True), (6, True), (7, True), (9, True)]:
        report(Progress("train", done, 9, "loss 1", is_landmark=is_landmark))
    assert capsys.readouterr().err.splitlines() == [f"train {done}/9: loss 1" for done in (3, 6, 9)]


def test_a_result_is_said_to_a_pipe_that_knows_few_characters(monkeypatch):
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, encoding="cp1252", newline="\n"))
    terminal.Reporter("none").result("wrote Ægir/写真.nc")
    sys.stdout.flush()
    assert pipe.getvalue().decode("cp1252") == "wrote Ægir/\\u5199\\u771f.nc\n"


def test_a_program_without_any_output_is_told_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    terminal.Reporter("none").result("wrote a.nc")
