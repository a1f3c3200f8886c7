"""Signals that are held back: heard, kept while work goes on, and passed on once, however the work ends."""

import signal
import warnings

import pytest

from geo_mvmf import interruptions
from geo_mvmf.errors import OutputError


@pytest.fixture
def passed_on():
    """Signals that came through."""
    found, before = [], signal.signal(signal.SIGTERM, lambda *_: found.append("SIGTERM"))
    yield found
    signal.signal(signal.SIGTERM, before)


def job():
    with interruptions.held_back() as interruption:
        yield interruption
        yield interruption


@pytest.mark.filterwarnings("ignore:stopping")
def test_closing_a_job_loses_no_signal():
    held = job()
    assert not next(held).came
    signal.raise_signal(signal.SIGINT)
    assert next(held).came
    with pytest.raises(KeyboardInterrupt):
        held.close()


@pytest.mark.filterwarnings("ignore:stopping")
def test_what_is_still_held_at_the_end_is_passed_on(passed_on):
    for interruption in job():
        if not interruption.came:
            signal.raise_signal(signal.SIGTERM)
        assert not passed_on
    assert passed_on == ["SIGTERM"]


@pytest.mark.filterwarnings("ignore:stopping")
def test_after_one_was_passed_on_the_next_is_held_back(passed_on):
    with interruptions.held_back() as interruption:
        for number in (1, 2):
            signal.raise_signal(signal.SIGTERM)
            assert len(passed_on) == number - 1
            interruption.pass_on()
            interruption.pass_on()
            assert len(passed_on) == number


@pytest.mark.filterwarnings("ignore:stopping")
def test_an_error_of_the_work_says_more_than_the_signal():
    held = job()
    next(held)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(OutputError, match="disk"):
        held.throw(OutputError("the disk is full"))


def refuse(*_, **__):
    raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")


def test_a_warning_that_cannot_be_given_does_not_stop_the_work(passed_on, monkeypatch):
    with warnings.catch_warnings(action="error"), interruptions.held_back() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption.came
    monkeypatch.setattr(warnings, "warn", refuse)
    with interruptions.held_back() as interruption:
        signal.raise_signal(signal.SIGTERM)
        assert interruption.came
    assert passed_on == ["SIGTERM"] * 2
