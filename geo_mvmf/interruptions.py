"""Ctrl-C and SIGTERM held back until work is where it can stop, so that it can keep what it has done."""

from __future__ import annotations

import contextlib
import signal
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from geo_mvmf.errors import GeoMvmfError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A signal that may have come; what it would have done is done once, by `pass_on`.

    Examples
    --------
    >>> Interruption().came
    False
    """

    def __init__(self) -> None:
        self._held: Callable[[], object] | None = None

    @property
    def came(self) -> bool:
        """Whether a signal is held back."""
        return self._held is not None

    def hold(self, answer: Callable[[], object]) -> None:
        """Hold back a signal; while one is held back, the next is not.

        Parameters
        ----------
        answer : callable
            What the signal would have done, such as raising KeyboardInterrupt.
        """
        if self.came:
            answer()
            return
        self._held = answer
        # Signals may come while stderr writes, which then refuses, and warnings may be errors: neither stops the work.
        with contextlib.suppress(RuntimeError, Warning):
            warnings.warn("stopping after the step in work; once more stops at once", stacklevel=2)

    def pass_on(self) -> None:
        """Do what the signal would have done when it came; afterwards none is held back."""
        answer, self._held = self._held, None
        if answer is not None:
            answer()

    def forget(self) -> None:
        """Drop what is held back, because the work ends by itself."""
        self._held = None


@contextlib.contextmanager
def held_back() -> Iterator[Interruption]:
    """Hold back the first Ctrl-C or SIGTERM that Python handles, and warn that it was heard.

    Nothing is held back outside the main thread. What is still held at the end is passed on, unless the work ends with
    an error of this package, which says more.

    Yields
    ------
    Interruption
        To be asked where the work can stop.

    Examples
    --------
    >>> with warnings.catch_warnings(action="ignore"), contextlib.suppress(KeyboardInterrupt):
    ...     with held_back() as interruption:
    ...         signal.raise_signal(signal.SIGINT)
    ...         print(interruption.came)
    True
    """
    found = Interruption()

    def holding(before: Callable[..., Any]) -> Callable[..., None]:
        return lambda number, frame: found.hold(lambda: before(number, frame))

    replaced: dict[signal.Signals, Any] = {}
    try:
        for each in _SIGNALS:
            before = signal.getsignal(each)
            if callable(before):  # else the system's own answer, which ends the process or does nothing
                with contextlib.suppress(ValueError):  # not the main thread
                    signal.signal(each, holding(before))
                    replaced[each] = before
        yield found
    except GeoMvmfError:
        found.forget()
        raise
    finally:
        for each, before in replaced.items():
            signal.signal(each, before)
        found.pass_on()
