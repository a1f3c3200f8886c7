"""The row columns of a predictions file: a table of text, numbers and truth values in a NetCDF group.

Text becomes characters of fixed width (the classic NetCDF way, which every reader knows), so that it is compressed and
carries checksums like any other array. Missing text, integers and truth values are marked in an array of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf.files import columns, netcdf

MISSING = "__missing"
"""Ends the name of the array that marks missing values."""

_PLAIN_NAME = re.compile(r"^(?!(image|width_\d+)$)[a-z][a-z0-9_]{0,62}(?<!__missing)$")
_BLOCK_BYTES = 1 << 24
_KNOWN_TEXTS = 1024
_KINDS = {"text": "S", "float": "f", "integer": "i", "boolean": "i"}


def write_rows(group: Any, rows: pd.DataFrame) -> list[dict[str, str]]:
    """Write a table into a group whose file has a dimension `image`.

    Parameters
    ----------
    group : h5netcdf.Group
    rows : DataFrame
        Any columns; what is neither number nor truth value becomes text.

    Returns
    -------
    list of dict
        Per column its `name`, `variable` and `kind`, to be kept with the file.

    Raises
    ------
    ValueError
        Two columns have the same name.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.nc"
    >>> with netcdf.created(path) as file:
    ...     file.dimensions = {"image": 2}
    ...     described = write_rows(file.create_group("rows"), pd.DataFrame({"image_id": ["a", None], "n": [1, 2]}))
    >>> with netcdf.opened(path) as file:
    ...     read_rows(file["rows"], described, 2).to_dict("list")
    {'image_id': ['a', None], 'n': [1, 2]}
    """
    names = [str(name) for name in rows.columns]
    if len(set(names)) != len(names):
        raise ValueError(f"two columns have the same name: {min(n for n in names if names.count(n) > 1)!r}")
    described = []
    for number, name in enumerate(names):
        variable = name if _PLAIN_NAME.match(name) else f"column_{number:04d}"
        while variable != name and variable in names:
            variable += "_"
        kind = _write_column(group, variable, name, rows.iloc[:, number])
        described.append({"name": name, "variable": variable, "kind": kind})
    return described


def read_rows(group: h5py.Group, described: Sequence[dict[str, str]], size: int) -> pd.DataFrame:
    """Read a table back.

    Parameters
    ----------
    group : h5py.Group
    described : sequence of dict
        As `write_rows` returned it.
    size : int
        Number of rows.

    Returns
    -------
    DataFrame
        Text as Python strings with None; float64; int64 or, with missing values, Int64; bool or boolean.

    Raises
    ------
    ValueError
        A column is missing, has another length or type, or is no UTF-8.

    Examples
    --------
    See `write_rows`.
    """
    read = {}
    for entry in described:
        name, variable, kind = (str(entry[key]) for key in ("name", "variable", "kind"))
        if kind not in _KINDS:
            raise ValueError(f"column {name!r} is of unknown kind {kind!r}")
        found = netcdf.array(group, variable, _KINDS[kind], 2 if kind == "text" else 1)
        if found.shape[0] != size:
            raise ValueError(f"column {name!r} has {found.shape[0]} values for {size} rows")
        read[name] = _decoded(found, kind, _missing(group, variable, size))
    return _frame(read, size)


def joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Put tables below each other; a column that is empty in one of them takes its type from the others.

    Parameters
    ----------
    tables : sequence of DataFrame
        At least one; columns as `read_rows` gives them.

    Returns
    -------
    DataFrame
        With a RangeIndex; a column that a table lacks is missing there.

    Examples
    --------
    >>> a, b = pd.DataFrame({"n": [1]}), pd.DataFrame({"n": pd.Series([None], dtype=object)})
    >>> joined([a, b])["n"].dtype.name
    'Int64'
    """
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    total = sum(len(table) for table in tables)
    pieces = {name: [_piece(table, name) for table in tables] for name in names}
    return _frame({name: _joined_column(pieces[name]) for name in names}, total)


def _frame(made: dict[str, pd.Series[Any]], size: int) -> pd.DataFrame:
    """Make a table of new columns; pandas would copy them all, and with these copies a merge had its peak of memory."""
    return pd.DataFrame(made, index=pd.RangeIndex(size), copy=False)


def _write_column(group: Any, variable: str, name: str, column: pd.Series[Any]) -> str:
    if pd.api.types.is_float_dtype(column):
        # infinities are kept here, other than in GIS files
        values = column.to_numpy(np.float64, na_value=np.nan)
        netcdf.add_array(group, variable, ("image",), values, attributes={"long_name": columns.writable(name)})
        return "float"
    plain = columns.plain_values(column)
    missing = plain.isna().to_numpy()
    if pd.api.types.is_bool_dtype(plain):
        values = plain.to_numpy(bool, na_value=False).astype(np.int8)
        # xarray takes int8 with this attribute for truth values
        netcdf.add_array(
            group, variable, ("image",), values, attributes={"long_name": columns.writable(name), "dtype": "bool"}
        )
        kind = "boolean"
    elif pd.api.types.is_integer_dtype(plain):
        netcdf.add_array(
            group,
            variable,
            ("image",),
            plain.to_numpy(np.int64, na_value=0),
            attributes={"long_name": columns.writable(name)},
        )
        kind = "integer"
    elif pd.api.types.is_float_dtype(plain):
        netcdf.add_array(
            group, variable, ("image",), plain.to_numpy(np.float64), attributes={"long_name": columns.writable(name)}
        )
        return "float"
    else:
        _write_text(
            group, variable, name, [columns.as_text(v) if not m else "" for v, m in zip(plain, missing, strict=True)]
        )
        kind = "text"
    if missing.any():
        netcdf.add_array(group, variable + MISSING, ("image",), missing.astype(np.int8))
    return kind


def _write_text(group: Any, variable: str, name: str, texts: Sequence[str]) -> None:
    coded = [text.encode("utf-8") for text in texts]
    width = max(1, *(len(text) for text in coded), 1)
    dimension = f"width_{width}"
    if dimension not in group.dimensions:
        group.dimensions[dimension] = width
    netcdf.add_array(
        group,
        variable,
        ("image", dimension),
        dtype="S1",
        attributes={"long_name": columns.writable(name), "_Encoding": "utf-8"},
    )
    for rows in _blocks(len(coded), width):
        block = np.array(coded[rows], dtype=f"S{width}")
        group[variable][rows] = block.view("S1").reshape(-1, width)


def _decoded(found: h5py.Dataset, kind: str, missing: npt.NDArray[np.bool_] | None) -> pd.Series[Any]:
    if kind == "text":
        return pd.Series(_texts(found, missing), dtype=object)
    values = found[...]
    if kind == "float":
        return pd.Series(values.astype(np.float64))
    plain = pd.Series(values.astype(bool) if kind == "boolean" else values.astype(np.int64))
    if missing is None:
        return plain
    return plain.astype("boolean" if kind == "boolean" else "Int64").mask(pd.Series(missing))


def _texts(found: h5py.Dataset, missing: npt.NDArray[np.bool_] | None) -> list[str | None]:
    texts: list[str | None] = []
    known: dict[bytes, str] = {}  # of most columns, rows have one of a few texts: each is in memory once
    size, width = found.shape
    for rows in _blocks(size, width):
        block = np.ascontiguousarray(found[rows]).view(f"S{width}")[:, 0]
        for value in block.tolist():
            text = known.get(value)
            if text is None:
                text = value.decode("utf-8")
                if len(known) < _KNOWN_TEXTS:
                    known[value] = text
            texts.append(text)
    for row in [] if missing is None else np.flatnonzero(missing):
        texts[row] = None
    return texts


def _missing(group: h5py.Group, variable: str, size: int) -> npt.NDArray[np.bool_] | None:
    if variable + MISSING not in group:
        return None
    found = netcdf.array(group, variable + MISSING, "i", 1)
    if found.shape[0] != size:
        raise ValueError(f"{variable}{MISSING} has {found.shape[0]} values for {size} rows")
    return np.asarray(found[...], dtype=bool)


def _piece(table: pd.DataFrame, name: str) -> pd.Series[Any]:
    return table[name] if name in table.columns else pd.Series([None] * len(table), dtype=object)


def _joined_column(pieces: Sequence[pd.Series[Any]]) -> pd.Series[Any]:
    dtypes = {piece.dtype for piece in pieces}
    if len(dtypes) == 1:
        return pd.concat(pieces, ignore_index=True)
    values = [None if pd.isna(value) else value for piece in pieces for value in piece.tolist()]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pd.Series([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    return columns.plain_values(pd.Series(values, dtype=object))


def _blocks(size: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // max(width, 1))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
