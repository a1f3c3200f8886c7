"""Where images really were taken: read from a table, checked, and joined to predictions by image_id."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pandas as pd
import pyproj

from geo_mvmf.errors import BadInputError
from geo_mvmf.inputs.table_sources import read_raw_table


def read_truth(
    source: str | os.PathLike[str] | pd.DataFrame, *, layer: str | None = None, crs: str | pyproj.CRS | None = None
) -> pd.DataFrame:
    """Read where images really were taken; no image is opened, so none need be there.

    Parameters
    ----------
    source : path, DataFrame or GeoDataFrame
        A table as `read_image_table` takes; its column ``image_id`` will do without ``path``.
    layer : str, optional
        For a GeoPackage with several.
    crs : str or pyproj.CRS, optional
        "EPSG:n" or "OGC:CRS84" where the source does not state it (x and y columns, a GeoPackage without SRS).

    Returns
    -------
    DataFrame
        Columns image_id, longitude, latitude (degrees in OGC:CRS84, NaN where the table has none that can be used),
        and all other columns of the table.

    Raises
    ------
    BadInputError
        If the source cannot be read as a whole, has no coordinates or they are of an unknown CRS, or it has longitude
        and latitude swapped: a fifth of its places, and 3, are out of range, and all would be in range the other way
        round.
    UsageError
        If `crs` contradicts the source or is no such code.

    Warns
    -----
    UserWarning
        If rows have coordinates that cannot be used: how many, and the first.

    Examples
    --------
    >>> read_truth(pd.DataFrame({"image_id": ["a", "b"], "lon": [7.0, None], "lat": [50.0, None]})).to_numpy().tolist()
    [['a', 7.0, 50.0], ['b', nan, nan]]
    """
    raw = read_raw_table(source, layer=layer, crs=crs, image_id_suffices=True)
    longitude, latitude, problems = raw.coordinates
    known, told = np.isfinite(longitude), ""
    if problems:
        row = min(problems)
        told = f"; the first is row {row + 1}: {problems[row]}"
    swapped, is_sure = raw.coordinates.swapped()
    if is_sure:
        raise BadInputError(f"{raw.name}: {swapped}")
    if not known.any():
        raise BadInputError(f"{raw.name}: no row has a longitude and latitude that can be used as the truth{told}")
    if problems:
        warnings.warn(
            f"{raw.name}: {len(problems)} of {len(known)} rows have no place that can be used and are not compared"
            f"{told}; mend them, or leave both coordinates empty",
            stacklevel=2,
        )
    table = pd.DataFrame({"image_id": pd.Series(raw.image_ids(), dtype="str")})
    table["longitude"], table["latitude"] = longitude, latitude
    others = raw.passthrough()
    return pd.concat([table, others[[name for name in others if name not in table]]], axis="columns")


def with_truth(rows: pd.DataFrame, truth: pd.DataFrame | None, *, outer: bool = False) -> pd.DataFrame:
    """Give predictions their true places.

    Parameters
    ----------
    rows : DataFrame
        With image_id.
    truth : DataFrame, optional
        As `evaluation.evaluate` takes it. Without it the rows keep the truth that they have.
    outer : bool
        Whether images that only the truth names become rows, too.

    Returns
    -------
    DataFrame
        The rows with true_longitude and true_latitude, NaN where these are not known, and the other columns of the
        truth.

    Raises
    ------
    BadInputError
        The truth lacks a column, names an image twice, holds what is no place, or (`outer`) names no image of the rows.

    Examples
    --------
    >>> truth = pd.DataFrame({"image_id": ["a"], "longitude": [7.0], "latitude": [50.0]})
    >>> with_truth(pd.DataFrame({"image_id": ["a", "b"]}), truth)["true_longitude"].tolist()
    [7.0, nan]
    """
    if truth is None:
        missing = {c: np.nan for c in ("true_longitude", "true_latitude") if c not in rows}
        return rows.assign(**missing)
    truth = pd.DataFrame(truth).drop(columns="geometry", errors="ignore")
    if "image_id" not in truth:
        raise BadInputError(f"the truth has no column image_id, only {', '.join(map(str, truth.columns))}")
    truth = truth.assign(image_id=truth["image_id"].astype(str))
    twice = truth["image_id"][truth["image_id"].duplicated()]
    if len(twice):
        raise BadInputError(f"the truth names image_id {twice.iloc[0]!r} more than once: keep one row per image")
    renamed = {"longitude": "true_longitude", "latitude": "true_latitude"}
    truth = truth.drop(columns=[new for old, new in renamed.items() if {old, new} <= set(truth)])
    truth = truth.rename(columns=renamed)
    _check_truth(truth)
    rows = rows.drop(columns=["true_longitude", "true_latitude"], errors="ignore")
    extra = [c for c in truth if c not in rows or c == "image_id"]
    merged = rows.merge(truth[extra], on="image_id", how="left", validate="many_to_one")
    if not outer:  # predictions name all their images themselves
        return merged
    if len(truth) and not rows["image_id"].isin(truth["image_id"]).any():
        raise BadInputError(none_known(rows, truth))
    # a system that lists its successes only has failed at the others
    return pd.concat([merged, truth[extra][~truth["image_id"].isin(rows["image_id"])]], ignore_index=True)


def none_known(rows: pd.DataFrame, truth: pd.DataFrame | None) -> str:
    """Say that no prediction has a truth, and what both name their images.

    Parameters
    ----------
    rows, truth
        As `with_truth`.

    Examples
    --------
    >>> none_known(pd.DataFrame({"image_id": ["a", "b"]}), None)
    'none of the 2 predictions has a truth: give a table with image_id, longitude, latitude'
    """
    if truth is None or not len(truth) or not len(rows):
        return f"none of the {len(rows)} predictions has a truth: give a table with image_id, longitude, latitude"
    return (
        f"none of the {len(rows)} predictions has a truth: their image_id are like {rows['image_id'].iloc[0]!r}, "
        f"those of the truth like {truth['image_id'].iloc[0]!r}; both must be the same text"
    )


def _check_truth(truth: pd.DataFrame) -> None:
    for name, limit in (("true_longitude", 360.0), ("true_latitude", 90.0)):
        if name not in truth:
            raise BadInputError(f"the truth has no column {name.removeprefix('true_')} (or {name})")
        value = pd.to_numeric(truth[name], errors="coerce")
        wrong = np.flatnonzero((truth[name].notna() & value.isna()) | (value.abs() > limit))
        if wrong.size:
            row = wrong[0]
            raise BadInputError(
                f"the truth of {truth['image_id'].iloc[row]!r}: {name} {truth[name].iloc[row]} is no place"
            )
