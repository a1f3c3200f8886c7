"""A choice between providers of one piece of work, of which a run that goes on uses the one it began with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class Choice:
    """Which provider is in use: the one that a block asks for, else the one that is chosen for this machine.

    Parameters
    ----------
    chosen : callable
        Names the one for this machine.
    checked : callable
        Gives a name back, or raises UsageError where no such provider can work here.

    Examples
    --------
    >>> choice = Choice(lambda: "plain", lambda name: name)
    >>> with choice.using("fast"):
    ...     choice.current()
    'fast'
    >>> choice.current()
    'plain'
    """

    def __init__(self, chosen: Callable[[], str], checked: Callable[[str], str]) -> None:
        self._chosen, self._checked = chosen, checked
        self._forced: list[str] = []

    @contextlib.contextmanager
    def using(self, provider: str | None) -> Iterator[str]:
        """Work with a provider inside the block.

        Parameters
        ----------
        provider : str or None
            As `current` named it in an earlier run; None keeps the present one.

        Yields
        ------
        str
            The provider in use.

        Raises
        ------
        UsageError
            It cannot work here.
        """
        former = list(self._forced)
        self._forced[:] = former if provider is None else [self._checked(provider)]
        try:
            yield self.current()
        finally:
            self._forced[:] = former

    def current(self) -> str:
        """Name the provider in use."""
        return self._forced[0] if self._forced else self._chosen()
