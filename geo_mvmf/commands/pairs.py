"""Options that hold pairs, NAME=SOURCE or NAME=SHARE -> mappings, or a UsageError that shows what was written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from geo_mvmf.errors import UsageError


def seasons(pairs: Iterable[str]) -> dict[str, Path] | None:
    """Read NAME=SOURCE pairs.

    Parameters
    ----------
    pairs : iterable of str

    Returns
    -------
    dict of str to Path, or None
        None where there is none.

    Raises
    ------
    UsageError
        If one has no name or no source, or a name comes twice.

    Examples
    --------
    >>> sorted(seasons(["june=a.tif", "july=b.tif"]))
    ['july', 'june']
    """
    found: dict[str, Path] = {}
    for pair in pairs:
        name, separator, source = pair.partition("=")
        if not (name and separator and source) or name in found:
            raise UsageError(f"--season {pair!r}: write NAME=SOURCE, each name once")
        found[name] = Path(source)
    return found or None


def parts(text: str | None) -> dict[str, float] | None:
    """Read NAME=SHARE pairs with commas between them.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    dict of str to float, or None

    Raises
    ------
    UsageError
        If one has no name or no number, or a name comes twice.

    Examples
    --------
    >>> parts("training=0.8,test=0.2")
    {'training': 0.8, 'test': 0.2}
    """
    if text is None:
        return None
    found: dict[str, float] = {}
    for pair in text.split(","):
        name, _, share = (each.strip() for each in pair.partition("="))
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not name or name in found or math.isnan(value):
            raise UsageError(f"--parts {text!r}: {pair!r} is not NAME=SHARE with a name of its own, such as test=0.2")
        found[name] = value
    return found
