"""The row columns of a predictions file: a table of text, numbers and truth values in a NetCDF group.

Text becomes characters of fixed width (the classic NetCDF way, which every reader knows), so that it is compressed and
carries checksums like any other array. Missing text, integers and truth values are marked in an array of their own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf.files import columns, netcdf

MISSING = "__missing"
"""Ends the name of the array that marks missing values."""

_PLAIN_NAME = re.compile(r"^(?!(image|width_\d+)$)[a-z][a-z0-9_]{0,62}(?<!__missing)$")
_BLOCK_BYTES = 1 << 21  # of text in memory beside its column
_OBJECT_BYTES = 64  # that Python takes for a text, beside its characters
_KNOWN_TEXTS = 1024
_KINDS = {"text": "S", "float": "f", "integer": "i", "boolean": "i"}


class Described(NamedTuple):
    """Where a column stands.

    Attributes
    ----------
    name : str
        Of the column.
    variable : str
        Of the array in the group.
    kind : str
        text, float, integer or boolean.
    """

    name: str
    variable: str
    kind: str


class Rows(Protocol):
    """A table to be written: a DataFrame, or columns that are made when they are asked for."""

    @property
    def columns(self) -> Collection[Any]:
        """Names."""

    def __getitem__(self, name: Any, /) -> Any:
        """Give a column as a Series."""


def write_rows(group: Any, rows: Rows) -> list[dict[str, str]]:
    """Write a table into a group whose file has a dimension `image`.

    Parameters
    ----------
    group : h5netcdf.Group
    rows : DataFrame or Rows
        Any columns; each is let go before the next is asked for. What is neither number nor truth value becomes text.

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
    ...     made = write_rows(file.create_group("rows"), pd.DataFrame({"image_id": ["a", None], "n": [1, 2]}))
    >>> with netcdf.opened(path) as file:
    ...     read_rows(file["rows"], columns_of(made), 2).to_dict("list")
    {'image_id': ['a', None], 'n': [1, 2]}
    """
    names = [str(name) for name in rows.columns]
    if len(set(names)) != len(names):
        raise ValueError(f"two columns have the same name: {min(n for n in names if names.count(n) > 1)!r}")
    made = []
    for number, (name, asked) in enumerate(zip(names, rows.columns, strict=True)):
        variable = name if _PLAIN_NAME.match(name) else f"column_{number:04d}"
        while variable != name and variable in names:
            variable += "_"
        kind = _write_column(group, variable, name, rows[asked])
        made.append(Described(name, variable, kind)._asdict())
    return made


def columns_of(header: Any) -> tuple[Described, ...]:
    """Understand what a file says of its columns.

    Parameters
    ----------
    header : list of dict
        As `write_rows` returned it, or whatever stands in its place.

    Returns
    -------
    tuple of Described

    Raises
    ------
    ValueError, KeyError, TypeError
        It is damaged.

    Examples
    --------
    >>> columns_of([{"name": "n", "variable": "n", "kind": "integer"}])
    (Described(name='n', variable='n', kind='integer'),)
    """
    found = tuple(Described(*(str(entry[key]) for key in Described._fields)) for entry in header)
    for column in found:
        if column.kind not in _KINDS:
            raise ValueError(f"column {column.name!r} is of unknown kind {column.kind!r}")
    return found


def read_rows(group: h5py.Group, described: Sequence[Described], size: int) -> pd.DataFrame:
    """Read a table back.

    Parameters
    ----------
    group : h5py.Group
    described : sequence of Described
    size : int
        Number of rows.

    Returns
    -------
    DataFrame
        Of columns as `read_column` gives them.

    Raises
    ------
    ValueError
        As `read_column`.

    Examples
    --------
    See `write_rows`.
    """
    read: dict[str, pd.Series[Any]] = {}
    before = None
    for column in described:
        read[column.name] = read_column(group, column, size, before)
        before = read[column.name] if column.kind == "text" else before
    # pandas would copy all columns, and with these copies a merge had its peak of memory
    return pd.DataFrame(read, index=pd.RangeIndex(size), copy=False)


def read_column(
    group: h5py.Group, column: Described, size: int, before: pd.Series[Any] | None = None
) -> pd.Series[Any]:
    """Read one column of a table back.

    Parameters
    ----------
    group : h5py.Group
    column : Described
    size : int
        Number of rows.
    before : Series, optional
        Another column of text; where a row has the same text in both, it is in memory once.

    Returns
    -------
    Series
        Text as Python strings with None; float64; int64 or, with missing values, Int64; bool or boolean.

    Raises
    ------
    ValueError
        The column is missing, has another length or type, or is no UTF-8.

    Examples
    --------
    See `write_rows`.
    """
    name, variable, kind = column
    found = netcdf.array(group, variable, _KINDS[kind], 2 if kind == "text" else 1)
    if found.shape[0] != size:
        raise ValueError(f"column {name!r} has {found.shape[0]} values for {size} rows")
    missing = _missing(group, variable, size)
    if kind == "text":
        texts = _texts(found, None if before is None else before.to_numpy())
        if missing is not None:
            texts[missing] = None
        return pd.Series(texts, dtype=object, copy=False)
    values = found[...]
    if kind == "float":
        return pd.Series(values.astype(np.float64, copy=False), copy=False)
    plain = pd.Series(values.astype(bool if kind == "boolean" else np.int64, copy=False), copy=False)
    if missing is None:
        return plain
    return plain.astype("boolean" if kind == "boolean" else "Int64").mask(pd.Series(missing))


def joined_column(pieces: Sequence[pd.Series[Any]]) -> pd.Series[Any]:
    """Put the pieces of a column below each other; where one is empty, it takes its type from the others.

    Parameters
    ----------
    pieces : sequence of Series
        At least one; as `read_column` gives them.

    Returns
    -------
    Series
        With a RangeIndex.

    Examples
    --------
    >>> joined_column([pd.Series([1]), pd.Series([None], dtype=object)]).tolist()
    [1, <NA>]
    """
    if len({piece.dtype for piece in pieces}) == 1:
        return pd.concat(pieces, ignore_index=True)
    values = [None if pd.isna(value) else value for piece in pieces for value in piece.tolist()]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pd.Series([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    return columns.plain_values(pd.Series(values, dtype=object))


def _write_column(group: Any, variable: str, name: str, column: pd.Series[Any]) -> str:
    kind, values, missing = _encoded(column)
    attributes = {"long_name": columns.writable(name)}
    if isinstance(values, list):
        _write_text(group, variable, values, attributes)
    else:
        # xarray takes int8 with this attribute for truth values
        attributes |= {"dtype": "bool"} if kind == "boolean" else {}
        netcdf.add_array(group, variable, ("image",), values, attributes=attributes)
    if missing is not None:
        netcdf.add_array(group, variable + MISSING, ("image",), missing.astype(np.int8))
    return kind


def _encoded(column: pd.Series[Any]) -> tuple[str, list[str] | npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Kind of a column, its texts or numbers, and which are missing, if any."""
    if pd.api.types.is_float_dtype(column):  # infinities are kept here, other than in GIS files
        return "float", column.to_numpy(np.float64, na_value=np.nan), None
    plain = columns.plain_values(column)
    is_missing = plain.isna().to_numpy()
    missing = is_missing if is_missing.any() else None
    if pd.api.types.is_bool_dtype(plain):
        return "boolean", plain.to_numpy(bool, na_value=False).astype(np.int8), missing
    if pd.api.types.is_integer_dtype(plain):
        return "integer", plain.to_numpy(np.int64, na_value=0), missing
    if pd.api.types.is_float_dtype(plain):
        return "float", plain.to_numpy(np.float64), None
    return "text", [columns.as_text(v) if not m else "" for v, m in zip(plain, is_missing, strict=True)], missing


def _write_text(group: Any, variable: str, texts: list[str], attributes: dict[str, str]) -> None:
    width = max(1, *(len(text.encode("utf-8")) for text in texts), 1)
    dimension = f"width_{width}"
    if dimension not in group.dimensions:
        group.dimensions[dimension] = width
    attributes = {**attributes, "_Encoding": "utf-8"}
    found = netcdf.add_array(group, variable, ("image", dimension), dtype="S1", attributes=attributes)
    for rows in _blocks(len(texts), width):
        block = np.array([text.encode("utf-8") for text in texts[rows]], dtype=f"S{width}")
        found[rows] = block.view("S1").reshape(-1, width)


def _texts(found: h5py.Dataset, before: npt.NDArray[np.object_] | None) -> npt.NDArray[np.object_]:
    """Texts, of which equal ones are in memory once where rows share a few, or a row has them twice."""
    size, width = found.shape
    texts = np.empty(size, dtype=object)
    known: dict[bytes, str] = {}
    for rows in _blocks(size, width):
        block = np.ascontiguousarray(found[rows]).view(f"S{width}")[:, 0]
        for row, value in enumerate(block.tolist(), rows.start):
            text = known.get(value)
            if text is None:
                text = value.decode("utf-8")
                if before is not None and before[row] == text:  # a path that is the image_id, too
                    text = before[row]
                if len(known) < _KNOWN_TEXTS:
                    known[value] = text
            texts[row] = text
    return texts


def _missing(group: h5py.Group, variable: str, size: int) -> npt.NDArray[np.bool_] | None:
    if variable + MISSING not in group:
        return None
    found = netcdf.array(group, variable + MISSING, "i", 1)
    if found.shape[0] != size:
        raise ValueError(f"{variable}{MISSING} has {found.shape[0]} values for {size} rows")
    return np.asarray(found[...], dtype=bool)


def _blocks(size: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK_BYTES // (width + _OBJECT_BYTES))
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
