"""What a command says beside its result."""

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
