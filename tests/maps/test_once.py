"""Made once: equal components share one result, threads wait for it, and what was not asked for longest goes."""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from geo_mvmf.maps.once import OncePerComponents

MU = np.eye(3)


def made_by_threads(wrap):
    """How often something is made when four threads ask at the same time."""
    calls, barrier, others = [], threading.Barrier(4), threading.Event()

    def make(*_):
        calls.append(1)
        others.wait(0.05)  # time for the others to come
        return object()

    function = wrap(make)

    def ask(_):
        barrier.wait()
        return function(MU, np.zeros(3))

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, range(4)))
    return len(calls), len(set(map(id, found)))


def test_threads_that_ask_together_get_the_same_made_once():
    assert made_by_threads(OncePerComponents) == (1, 1)


def test_the_twin_without_a_lock_makes_it_in_every_thread():
    def wrap(make):
        cached = functools.lru_cache(2)(lambda _: make())
        return lambda mu, log_kappa: cached(mu.tobytes() + log_kappa.tobytes())

    assert made_by_threads(wrap)[0] > 1


def test_equal_content_is_the_same_and_any_difference_another():
    once = OncePerComponents(lambda *_: object(), kept=9)
    first = once(MU, np.zeros(3))
    assert once(MU.copy(), np.zeros(3)) is first
    turned = once(MU[::-1].copy(), np.zeros(3))
    wider = once(MU, np.array([0.0, 0.0, 1e-9]))
    assert len({id(each) for each in (first, turned, wider)}) == 3


def test_no_more_is_kept_than_was_asked_for_and_the_oldest_goes_first():
    calls = []
    once = OncePerComponents(lambda _, log_kappa: calls.append(log_kappa[0]), kept=2)
    for value in (0.0, 1.0, 0.0, 2.0, 0.0, 1.0):
        once(MU, np.full(3, value))
    assert calls == [0.0, 1.0, 2.0, 1.0]


def test_a_failure_is_not_remembered_and_leaves_no_lock():
    answers = iter([ValueError("no"), None])

    def make(*_):
        if (answer := next(answers)) is not None:
            raise answer
        return "made"

    once = OncePerComponents(make)
    for expected in ("no", "made"):
        try:
            found = once(MU, np.zeros(3))
        except ValueError as error:
            found = str(error)
        assert found == expected


def test_what_all_images_share_outlasts_what_a_few_have():
    """Components that nobody can change are a bundle's; others come and go, and would take its place each time."""
    calls = []
    once = OncePerComponents(lambda _, log_kappa: calls.append(log_kappa[0]), kept=1)
    shared, concentrations = np.eye(3), np.zeros(3)
    for array in (shared, concentrations):
        array.setflags(write=False)
    for few in (1.0, 2.0, 3.0):
        once(shared, concentrations)
        once(np.eye(3), np.full(3, few))
    assert calls == [0.0, 1.0, 2.0, 3.0]
    writeable = np.zeros(3)  # the broken twin: nobody says that they last
    for few in (1.0, 2.0):
        once(np.eye(3) * 2.0, writeable)
        once(np.eye(3), np.full(3, few))
    assert calls.count(0.0) == 3
    other = np.eye(3) * 3.0
    other.setflags(write=False)
    once(other, concentrations)
    once(shared, concentrations)  # of two that last, the one not asked for longest went
    assert len(calls) == 10
