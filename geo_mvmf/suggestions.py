"""What somebody may have meant who wrote a name that does not exist."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

_MOST_COMPARED = 5000  # names; more would take seconds


def suggestion(name: str, known: Iterable[object]) -> str:
    """Ask whether a name that is known was meant.

    Parameters
    ----------
    name : str
        What was written.
    known : iterable
        Names there are.

    Returns
    -------
    str
        The end of a message, empty where nothing is like it.

    Examples
    --------
    >>> suggestion("contient", ["image_id", "continent"])
    "; did you mean 'continent'?"
    >>> suggestion("x", ["image_id", "continent"])
    ''
    """
    by_lower = {str(each).lower(): str(each) for each in itertools.islice(known, _MOST_COMPARED)}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
