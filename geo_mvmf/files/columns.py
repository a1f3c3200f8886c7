"""Columns as every GIS file takes them: lower_snake names, plain values, one CRS, rings counter-clockwise."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import shapely

from geo_mvmf.errors import UsageError

CRS = "EPSG:4326"
"""What every vector layer is written in."""

MAX_NAME_LENGTH = 63
"""Characters of a column name: what PostgreSQL, the strictest of the common databases, keeps."""

# Names that GDAL, GeoPackage and GeoParquet use for themselves.
_RESERVED = frozenset(["fid", "geom", "geometry", "bbox", "ogc_fid", "rowid"])
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
# Control characters are not allowed in XML, SQLite text stops at NUL in many readers, lone surrogates are no UTF-8.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


def tidy_names(names: Iterable[object]) -> list[str]:
    """Turn column names into lower_snake ASCII of at most 63 characters, unlike each other.

    Parameters
    ----------
    names : iterable of object
        Any names; what is not text is turned into text.

    Returns
    -------
    list of str
        In the same order. A name that GIS formats reserve gets ``in_`` in front, a repeated one
        ``_2``, ``_3`` ... behind.

    Examples
    --------
    >>> tidy_names(["image_id", "Größe (km²)", "fid", "FID", "2020", ""])
    ['image_id', 'grosse_km2', 'in_fid', 'in_fid_2', 'in_2020', 'column']
    """
    taken: set[str] = set()
    result = []
    for name in names:
        plain = _plain_name(str(name))
        unlike, number = plain, 1
        while unlike in taken:
            number += 1
            unlike = f"{plain[: MAX_NAME_LENGTH - len(str(number)) - 1]}_{number}"
        taken.add(unlike)
        result.append(unlike)
    return result


def tidy_layer(name: str, layer: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Make a layer fit for any vector format.

    Parameters
    ----------
    name : str
        Of the layer, for messages.
    layer : GeoDataFrame
        Any CRS; rows may have no geometry.

    Returns
    -------
    GeoDataFrame
        A copy in EPSG:4326 (longitude, latitude) with tidy names, text, numbers, truth values and times only, rings
        counter-clockwise, a RangeIndex.

    Raises
    ------
    UsageError
        If the layer has no CRS or is no GeoDataFrame.

    Examples
    --------
    >>> layer = geopandas.GeoDataFrame({"A": [["x"]]}, geometry=geopandas.points_from_xy([1.0], [2.0]), crs="OGC:CRS84")
    >>> tidy = tidy_layer("points", layer)
    >>> tidy["a"].tolist(), tidy.crs.to_string()
    (['["x"]'], 'EPSG:4326')
    """
    if not isinstance(layer, geopandas.GeoDataFrame):
        raise UsageError(f"layer {name!r} is a {type(layer).__name__}, not a GeoDataFrame")
    geometry = _geometry_in_degrees(name, layer)
    table = tidy_table(layer.drop(columns=layer.geometry.name))
    return geopandas.GeoDataFrame(table, geometry=geometry, crs=CRS)


def tidy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Make a table without geometry fit for any format; see `tidy_layer`.

    Parameters
    ----------
    table : DataFrame

    Returns
    -------
    DataFrame
        A copy with a RangeIndex.

    Examples
    --------
    >>> tidy_table(pd.DataFrame({"Tags": [["a", "b"]], "n": [1]})).to_dict("records")
    [{'tags': '["a", "b"]', 'n': 1}]
    """
    plain = pd.DataFrame(table).reset_index(drop=True)
    columns = [plain_values(plain.iloc[:, i]) for i in range(plain.shape[1])]
    names = tidy_names(plain.columns)
    return pd.DataFrame(dict(zip(names, columns, strict=True)), index=plain.index)


def plain_values(column: pd.Series[Any]) -> pd.Series[Any]:
    """Turn a column into text with None, float64, int64, truth values or times.

    Parameters
    ----------
    column : Series
        Any dtype; lists and dicts become JSON.

    Returns
    -------
    Series
        Missing values are None in text, NaN in floats and NA in the nullable types of pandas. An integer that
        exceeds 64 bits with sign (an S2 id) turns its column into text, not into a rounded float.

    Examples
    --------
    >>> plain_values(pd.Series([2**64 - 1, 1], dtype="uint64")).tolist()
    ['18446744073709551615', '1']
    """
    types = pd.api.types
    if types.is_bool_dtype(column):
        return column.astype("boolean") if column.isna().any() else column.astype(bool)
    if types.is_integer_dtype(column) and not _exceeds_int64(column):
        return column.astype("Int64") if column.isna().any() else column.astype(np.int64)
    if types.is_float_dtype(column):
        numbers = column.to_numpy(np.float64, na_value=np.nan)
        return pd.Series(np.where(np.isfinite(numbers), numbers, np.nan), index=column.index)
    if types.is_datetime64_any_dtype(column):
        return column
    return _as_text_or_numbers(column)


def unescaped_formula(text: str) -> bool:
    """Tell whether a spreadsheet would take a text for a formula.

    Parameters
    ----------
    text : str

    Examples
    --------
    >>> unescaped_formula("=HYPERLINK(1)"), unescaped_formula("IMG_1.jpg")
    (True, False)
    """
    return text.startswith(_FORMULA_STARTS)


def without_formulas(table: pd.DataFrame) -> pd.DataFrame:
    """Put an apostrophe before text that a spreadsheet would run as a formula, in headings too.

    Parameters
    ----------
    table : DataFrame
        As `tidy_table` makes it.

    Returns
    -------
    DataFrame
        A copy; numbers stay numbers.

    Examples
    --------
    >>> without_formulas(pd.DataFrame({"a": ["=1+1", "b"], "n": [-1.0, 0.0]})).to_dict("list")
    {'a': ["'=1+1", 'b'], 'n': [-1.0, 0.0]}
    """
    safe = {str(name): column.map(_escaped).astype(object) for name, column in table.items() if _is_text(column)}
    return table.assign(**safe).rename(columns=_escaped)


def large_levels_first(layer: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Order credible regions so that small ones are drawn on top of those that contain them.

    Parameters
    ----------
    layer : GeoDataFrame
        With or without a column `level`.

    Examples
    --------
    >>> layer = geopandas.GeoDataFrame({"level": [0.5, 0.9, 0.5]}, geometry=[None] * 3, crs="EPSG:4326")
    >>> large_levels_first(layer)["level"].tolist()
    [0.9, 0.5, 0.5]
    """
    if "level" not in layer.columns:
        return layer
    return layer.sort_values("level", ascending=False, kind="stable", ignore_index=True)


def key_values(run: Mapping[str, object]) -> pd.DataFrame:
    """Turn the description of a run into a table of text.

    Parameters
    ----------
    run : mapping
        JSON-able values.

    Returns
    -------
    DataFrame
        Columns `key` and `value`; text as it is, anything else as JSON.

    Examples
    --------
    >>> key_values({"version": "1", "levels": [0.5, 0.9]})["value"].tolist()
    ['1', '[0.5, 0.9]']
    """
    return pd.DataFrame(
        {
            "key": pd.Series([writable(str(key)) for key in run], dtype=object),
            "value": pd.Series([writable(as_text(value)) for value in run.values()], dtype=object),
        }
    )


def as_text(value: object) -> str:
    """Write any value as text: text as it is, times as ISO 8601, lists and dicts as JSON.

    Parameters
    ----------
    value : object

    Examples
    --------
    >>> as_text("a"), as_text({"b": (1, 2)}), as_text(2.5)
    ('a', '{"b": [1, 2]}', '2.5')
    """
    if isinstance(value, str):
        return value
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    if isinstance(value, Mapping | Sequence | np.ndarray) and not isinstance(value, bytes):
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        return json.dumps(plain, ensure_ascii=False, default=str)
    return str(value)


def writable(text: str) -> str:
    r"""Replace characters that XML, SQLite or UTF-8 cannot hold by U+FFFD.

    Parameters
    ----------
    text : str

    Examples
    --------
    >>> writable("a\0b") == "a\N{REPLACEMENT CHARACTER}b"
    True
    """
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _plain_name(name: str) -> str:
    # NFKD parts letters from their accents, so that dropping what is not ASCII keeps the letters.
    ascii_name = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode("ascii")
    plain = re.sub(r"[^a-z0-9]+", "_", ascii_name.lower()).strip("_")
    if not plain:
        return "column"
    if plain in _RESERVED or plain[0].isdigit():
        plain = f"in_{plain}"
    return plain[:MAX_NAME_LENGTH]


def _geometry_in_degrees(name: str, layer: geopandas.GeoDataFrame) -> Any:
    if layer.crs is None:
        raise UsageError(f"layer {name!r} has no CRS; set one, for example layer.set_crs('EPSG:4326')")
    series = layer.geometry.reset_index(drop=True)
    # CRS84 and EPSG:4326 hold the same numbers here: geopandas keeps longitude first in both.
    in_degrees = series if layer.crs.equals("OGC:CRS84") or layer.crs.equals(CRS) else series.to_crs(CRS)
    return shapely.orient_polygons(in_degrees.to_numpy(), exterior_cw=False)


def _exceeds_int64(column: pd.Series[Any]) -> bool:
    return bool(len(column) and column.notna().any() and column.max() > np.iinfo(np.int64).max)


def _as_text_or_numbers(column: pd.Series[Any]) -> pd.Series[Any]:
    # An object column of numbers or truth values with None comes from joins of tables.
    kind = pd.api.types.infer_dtype(column, skipna=True) if column.dtype == object else "string"
    if kind == "boolean":
        return plain_values(column.astype("boolean"))
    if kind == "integer" and all(abs(value) < 2**63 for value in column[column.notna()]):
        return plain_values(column.astype("Int64"))
    if kind in ("floating", "mixed-integer-float"):
        return plain_values(column.astype(np.float64))
    return _texts(column)


def _texts(column: pd.Series[Any]) -> pd.Series[Any]:
    missing = column.isna().to_numpy()
    values = [None if gone else writable(as_text(v)) for v, gone in zip(column, missing, strict=True)]
    return pd.Series(values, index=column.index, dtype=object)


def _is_text(column: pd.Series[Any]) -> bool:
    return bool(column.dtype == object or isinstance(column.dtype, pd.StringDtype))


def _escaped(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and unescaped_formula(value) else value
