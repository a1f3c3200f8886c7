"""Which rows of an image table can be used, and what is wrong with the others."""

from __future__ import annotations

import warnings

import geopandas as gpd
import numpy as np
import numpy.typing as npt

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs import tables
from geo_mvmf.inputs.table_columns import SWAPPED

_NEAR_ZERO_DEGREES = 0.002  # metres labelled as degrees, and "no position" written as 0, fall within 200 m of (0, 0)


def training_rows(table: gpd.GeoDataFrame) -> npt.NDArray[np.bool_]:
    """Tell which rows can be trained on: status ok, a position, a positive weight.

    Parameters
    ----------
    table : GeoDataFrame
        From `read_image_table`.

    Returns
    -------
    ndarray of bool, shape (n,)

    Examples
    --------
    >>> import pandas as pd
    >>> training_rows(tables.read_image_table(pd.DataFrame({"path": ["no.jpg"]}), root="/tmp")).tolist()
    [False]
    """
    usable: npt.NDArray[np.bool_] = (table["status"].eq("ok") & table["weight"].gt(0.0)).to_numpy(bool)
    return usable & tables.has_place(table)


def require_not_swapped(table: gpd.GeoDataFrame) -> None:
    """Refuse a table whose places are to be believed, if all of it seems to have longitude and latitude swapped.

    Parameters
    ----------
    table : GeoDataFrame
        From `read_image_table`.

    Raises
    ------
    BadInputError
        If a fifth of its places, and 3, are out of range, and all would be in range the other way round.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = pd.DataFrame({"path": ["a.jpg"], "lon": [7.0], "lat": [50.0]})
    >>> require_not_swapped(tables.read_image_table(rows, root="/"))
    """
    if table.attrs.get("surely_swapped"):
        raise BadInputError(table.attrs["swapped"])


def warn_if_swapped(table: gpd.GeoDataFrame) -> None:
    """Warn of a table whose places are not needed, or not refused, if all of it seems to have them swapped.

    Parameters
    ----------
    table : GeoDataFrame
        From `read_image_table`.

    Warns
    -----
    UserWarning
        If several rows are out of range, and all would be in range the other way round.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = pd.DataFrame({"path": ["a.jpg"], "lon": [7.0], "lat": [50.0]})
    >>> warn_if_swapped(tables.read_image_table(rows, root="/"))
    """
    if told := table.attrs.get("swapped"):
        warnings.warn(told, stacklevel=2)


def left_out(table: gpd.GeoDataFrame, used: npt.NDArray[np.bool_]) -> str:
    """Say how many rows are used, and why others are not.

    Parameters
    ----------
    table : GeoDataFrame
        From `read_image_table`.
    used : ndarray of bool, shape (n,)
        Such as `training_rows` gives.

    Returns
    -------
    str
        One line, and another where the table may have longitude and latitude swapped; empty where all rows are used.

    Examples
    --------
    >>> import pandas as pd
    >>> table = tables.read_image_table(pd.DataFrame({"path": ["no.jpg"]}), root="/tmp")
    >>> left_out(table, training_rows(table))
    "the DataFrame: 0 of 1 rows are used: 1 missing; the first that is not: row 1: 'no.jpg': there is no such file in
    '/tmp'"
    """
    if used.all():
        return ""
    rest = table[~used]
    without = np.where(tables.has_place(rest), "without_weight", "without_coordinates")
    reasons = rest["status"].where(rest["status"] != "ok", without)
    name, path = table.attrs.get("source", "the table"), rest["path"].iloc[0]
    first = rest["message"].iloc[0] or f"row {np.argmin(used) + 1}: {path!r} is {reasons.iloc[0].replace('_', ' ')}"
    told = (
        f"{name}: {used.sum()} of {len(table)} rows are used: "
        f"{', '.join(f'{count} {reason}' for reason, count in reasons.value_counts().items())}; "
        f"the first that is not: {first.removeprefix(f'{name}: ')}"
    )
    return "\n".join(filter(None, [told, table.attrs.get("swapped")]))


def describe_problems(table: gpd.GeoDataFrame) -> dict[str, int]:
    """Count what is wrong or suspicious in a table.

    Parameters
    ----------
    table : GeoDataFrame
        From `read_image_table`.

    Returns
    -------
    dict of str to int
        ``rows``; one entry per status that occurs other than ok; ``without_coordinates``; ``near_zero_zero`` (a pile
        at (0, 0) means "no position", or metres labelled as degrees); ``suspected_swapped`` (out of range, in range
        the other way round); ``without_weight`` (weight 0 or not a number); ``trainable``.

    Examples
    --------
    >>> import pandas as pd
    >>> table = tables.read_image_table(pd.DataFrame({"path": ["no.jpg", "no.jpg"]}), root="/tmp")
    >>> describe_problems(table)["missing"]
    2
    """
    near_zero = (table["longitude"].abs() < _NEAR_ZERO_DEGREES) & (table["latitude"].abs() < _NEAR_ZERO_DEGREES)
    counts = {"rows": len(table)}
    counts |= {status: int(table["status"].eq(status).sum()) for status in tables.STATUSES[1:]}
    counts |= {
        "without_coordinates": int((~tables.has_place(table)).sum()),
        "near_zero_zero": int(near_zero.sum()),
        "suspected_swapped": int(table["message"].str.contains(SWAPPED, regex=False).sum()),
        "without_weight": int((~table["weight"].gt(0.0)).sum()),
        "trainable": int(training_rows(table).sum()),
    }
    return {name: count for name, count in counts.items() if count or name not in tables.STATUSES}
