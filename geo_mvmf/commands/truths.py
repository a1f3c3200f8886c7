"""The table of true places that evaluate and compare take, read with the options that are its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from geo_mvmf.errors import AmbiguousInputError, UsageError

if TYPE_CHECKING:
    import pandas as pd


def read(source: Path | None, layer: str | None, crs: str | None) -> pd.DataFrame | None:
    """Read the table of true places, if there is one.

    Parameters
    ----------
    source : Path or None
    layer, crs : str or None
        The options --truth-layer and --truth-crs.

    Returns
    -------
    DataFrame or None
        As `truth_tables.read_truth` gives it.

    Raises
    ------
    UsageError
        If one of its options is given without a table, or as `truth_tables.read_truth`.
    BadInputError
        As `truth_tables.read_truth`.

    Examples
    --------
    >>> read(None, None, None) is None
    True
    """
    if source is None:
        for option, value in (("--truth-layer", layer), ("--truth-crs", crs)):
            if value is not None:
                raise UsageError(f"{option} {value!r}: no table of true places is given; give one, or leave it out")
        return None
    from geo_mvmf.inputs import truth_tables

    try:
        return truth_tables.read_truth(source, layer=layer, crs=crs)
    except AmbiguousInputError as error:
        option = f"truth_{error.option}"  # as it is called here
        raise AmbiguousInputError(error.problem, option, error.advice, error.otherwise) from error
