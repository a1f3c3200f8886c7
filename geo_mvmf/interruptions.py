"""Ctrl-C and SIGTERM held back until work is where it can stop, so that it can keep what it has done."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A signal that may have come; what it would have done is done by `follow`.

    Examples
    --------
    >>> Interruption().came
    False
    """

    def __init__(self) -> None:
        self._follow: Callable[[], object] | None = None

    @property
    def came(self) -> bool:
        """Whether somebody asked to stop."""
        return self._follow is not None

    def note(self, follow: Callable[[], object]) -> None:
        """Keep the first signal; a second one is not held back.

        Parameters
        ----------
        follow : callable
            What the signal would have done, such as raising KeyboardInterrupt.
        """
        if self.came:
            follow()
        self._follow = follow

    def follow(self) -> None:
        """Do what the signal would have done when it came."""
        if self._follow is not None:
            self._follow()


@contextlib.contextmanager
def held_back() -> Iterator[Interruption]:
    """Hold back the first Ctrl-C or SIGTERM that Python handles; nothing is held back outside the main thread.

    Yields
    ------
    Interruption
        To be asked where the work can stop.

    Examples
    --------
    >>> import os
    >>> with held_back() as interruption:
    ...     signal.raise_signal(signal.SIGINT)
    ...     interruption.came
    True
    """
    found = Interruption()

    def holding(before: Callable[..., Any]) -> Callable[..., None]:
        return lambda number, frame: found.note(lambda: before(number, frame))

    replaced: dict[signal.Signals, Any] = {}
    try:
        for each in _SIGNALS:
            before = signal.getsignal(each)
            if callable(before):  # else the system's own answer, which ends the process or does nothing
                with contextlib.suppress(ValueError):  # not the main thread
                    signal.signal(each, holding(before))
                    replaced[each] = before
        yield found
    finally:
        for each, before in replaced.items():
            signal.signal(each, before)
