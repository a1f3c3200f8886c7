"""What an image table is read from, before its rows are judged: folder, one image, CSV, vector layer or frame."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import geopandas as gpd
import numpy as np
import pandas as pd
import pyproj
import shapely

from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.inputs.coordinate_systems import CRS84, parse_crs, resolve_crs
from geo_mvmf.inputs.image_paths import PathResolver, ResolvedPath, absolute_folder, find_images
from geo_mvmf.inputs.layers import Layer, read_layer
from geo_mvmf.inputs.photo_files import IMAGE_SUFFIXES
from geo_mvmf.inputs.regular_files import check_regular_file, open_regular_file, sniff
from geo_mvmf.inputs.table_columns import (
    NOT_DEGREES,
    Columns,
    Coordinates,
    FloatArray,
    as_text,
    check_coordinates,
    find_columns,
    parse_numbers,
)

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
"""Of tables that are text."""

_WANTED = "a folder of images, one image or a table of them (.csv .gpkg .parquet .geojson) is wanted"
_SET_CRS = "geo-mvmf table FILE --crs EPSG:n --out images.csv makes a table with longitude and latitude"
_SEPARATORS = ",;\t|"
_SAME_PLACE_DEGREES = 1e-6


class _Advice(NamedTuple):
    """What to do about degrees that look like metres, and about an unknown CRS without an option that sets it."""

    metres: str
    unknown: str


_OF_IMAGES = _Advice(f"{NOT_DEGREES}, or columns x and y: {_SET_CRS}", _SET_CRS)
_OF_PLACES = _Advice(f"{NOT_DEGREES}, or columns x and y and the option that says their CRS", NOT_DEGREES)


class RawTable(NamedTuple):
    """A table whose columns are known and whose paths and positions are looked up.

    Attributes
    ----------
    name : str
        The source, for messages.
    frame : DataFrame
        All attributes as given, RangeIndex.
    columns : Columns or None
        None for a folder or one image.
    resolver : PathResolver
        Of its root.
    resolved : list of ResolvedPath
        One per row.
    coordinates : Coordinates
        One per row.
    has_places : bool
        Whether there are columns of coordinates, or a geometry; not whether a row has any.
    """

    name: str
    frame: pd.DataFrame
    columns: Columns | None
    resolver: PathResolver
    resolved: list[ResolvedPath]
    coordinates: Coordinates
    has_places: bool

    def image_ids(self) -> list[str]:
        """Give the image_id of every row: the path where there is none.

        Returns
        -------
        list of str

        Examples
        --------
        >>> frame = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "image_id": [7.0, None]})
        >>> read_raw_table(frame, root="/").image_ids()
        ['7', 'b.jpg']
        """
        paths = [found.path for found in self.resolved]
        if self.columns is None or self.columns.image_id is None:
            return paths
        given = as_text(self.frame[self.columns.image_id])
        return [path if name is None else name for name, path in zip(given, paths, strict=True)]

    def passthrough(self) -> pd.DataFrame:
        """Give the columns that mean nothing here.

        Returns
        -------
        DataFrame
            Without path, image_id, weight, the coordinates used, and the columns that this reader wrote itself
            where the source is one of its own tables.

        Examples
        --------
        >>> frame = pd.DataFrame({"path": ["a.jpg"], "name": ["Essen"]})
        >>> read_raw_table(frame, root="/").passthrough().columns.tolist()
        ['name']
        """
        if self.columns is None:
            return self.frame
        used = {*self.columns[:3]}
        names = [name for name in self.frame.columns if name not in used and not self._says_the_same(name)]
        return self.frame[names]

    def _says_the_same(self, name: str) -> bool:
        """Tell whether a column only repeats the position or the status that the result has anyway."""
        if self.columns is not None and name in (self.columns.first, self.columns.second):
            ours = self.coordinates.longitude if name == self.columns.first else self.coordinates.latitude
            values, problems = parse_numbers(self.frame[name])
            same = np.isclose(values, ours, rtol=0.0, atol=_SAME_PLACE_DEGREES, equal_nan=True)
            same[list(self.coordinates.problems)] = True  # their values are in the messages
            return bool(same.all()) and not problems
        return name.strip().lower() in ("status", "message") and {"image_id", "path", "status", "message"} <= set(
            self.frame
        )


def read_raw_table(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    root: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    crs: str | pyproj.CRS | None = None,
    permitted_roots: Iterable[str | os.PathLike[str]] = (),
    recursive: bool = True,
    image_id_suffices: bool = False,
) -> RawTable:
    """Read the rows of an image table without judging them.

    Parameters
    ----------
    source, root, layer, crs, permitted_roots, recursive
        As `tables.read_image_table`.
    image_id_suffices : bool
        Whether the table may lack the column ``path`` if it has ``image_id``.

    Raises
    ------
    BadInputError
        If the source cannot be read as a whole.
    UsageError
        If options contradict each other or a folder does not exist.

    Examples
    --------
    >>> read_raw_table(pd.DataFrame({"path": []}), root="/").resolved
    []
    """
    if not isinstance(source, str | os.PathLike | pd.DataFrame):
        raise BadInputError(
            f"an image table is a path or a DataFrame, not {type(source).__name__}; of single images make "
            'pandas.DataFrame({"path": [...]})'
        )
    permitted = tuple(permitted_roots)
    if isinstance(source, str) and not source:  # which pathlib takes for the working folder
        raise BadInputError("'' is neither a folder nor a table")
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        if layer is not None or crs is not None:
            raise UsageError("a folder of images has neither layer nor crs")
        return _read_folder(Path(source), root, permitted, recursive=recursive)
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in IMAGE_SUFFIXES:
        if layer is not None or crs is not None:
            raise UsageError("one image has neither layer nor crs")
        return _read_image(source, root, permitted)
    if isinstance(source, pd.DataFrame) and not isinstance(source, gpd.GeoDataFrame):
        found = Layer(source.reset_index(drop=True), None, {}, None, "the DataFrame")
    elif isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in CSV_SUFFIXES:
        if layer is not None:
            raise UsageError(f"a CSV has no layers; leave out layer={layer!r}")
        keys = functools.partial(_keys, image_id_suffices=image_id_suffices)
        found = Layer(read_csv(source, keys), None, {}, None, str(check_regular_file(source)))
    else:
        found = read_layer(source, layer=layer, wanted=_WANTED)
    found = found._replace(frame=found.frame.rename(columns=str))
    columns = find_columns(list(found.frame.columns), found.name, image_id_suffices=image_id_suffices)
    resolver = PathResolver(_default_root(source) if root is None else root, permitted)
    resolved = [resolver.resolve(cell) for cell in found.frame[columns.path].tolist()]
    # geo-mvmf table refuses one that names no images
    coordinates = _coordinates(found, columns, crs, _OF_PLACES if image_id_suffices else _OF_IMAGES)
    has_places = found.geometries is not None or None not in (columns.first, columns.second)
    return RawTable(found.name, found.frame, columns, resolver, resolved, coordinates, has_places)


def _default_root(source: object) -> str | os.PathLike[str]:
    if isinstance(source, str | os.PathLike):
        return Path(os.path.abspath(source)).parent  # noqa: PTH100  symbolic links are not resolved here
    attrs = getattr(source, "attrs", {})
    return str(attrs.get("root", Path.cwd()))


def _read_folder(
    folder: Path,
    root: str | os.PathLike[str] | None,
    permitted: tuple[str | os.PathLike[str], ...],
    *,
    recursive: bool,
) -> RawTable:
    top = absolute_folder(folder, "folder")
    # the user chose the folder itself, so it may lie outside the root
    resolver = PathResolver(top if root is None else root, permitted if root is None else (*permitted, top))
    return _without_columns(str(top), resolver, find_images(top, resolver, recursive=recursive))


def _read_image(
    source: str | os.PathLike[str], root: str | os.PathLike[str] | None, permitted: tuple[str | os.PathLike[str], ...]
) -> RawTable:
    path = check_regular_file(source)
    # the user chose the image itself, so its folder may lie outside the root
    resolver = PathResolver(path.parent if root is None else root, (*permitted, path.parent))
    return _without_columns(str(path), resolver, [resolver.resolve(str(path))])


def _without_columns(name: str, resolver: PathResolver, found: list[ResolvedPath]) -> RawTable:
    nowhere = np.full(len(found), np.nan)
    frame = pd.DataFrame(index=pd.RangeIndex(len(found)))
    return RawTable(name, frame, None, resolver, found, Coordinates(nowhere, nowhere.copy(), {}), has_places=False)


def read_csv(source: str | os.PathLike[str], keys: Callable[[list[str], str], Iterable[str]]) -> pd.DataFrame:
    r"""Read a CSV whatever its separator, and nothing that only has the name of one.

    Parameters
    ----------
    source : path
    keys : callable
        Given the names of the columns and the file, gives those whose cells stay text (identifiers and positions).

    Returns
    -------
    DataFrame
        RangeIndex.

    Raises
    ------
    BadInputError
        If it cannot be read as a CSV in UTF-8.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.csv"
    >>> _ = path.write_text("code;n\n007;7")
    >>> read_csv(path, lambda names, where: ["code"]).to_numpy().tolist()
    [['007', 7]]
    """
    path = check_regular_file(source)
    kind = sniff(path)
    if kind not in ("text", "unknown"):  # unknown: a NUL byte, which is the trouble of a row
        raise BadInputError(f"{path} is named as a CSV but holds {kind} content")
    with open_regular_file(path) as file:
        text = _decoded(file.read(), path)
    if not text.strip():
        raise BadInputError(f"{path} is empty: a table begins with the names of its columns")
    try:
        frame = _parse_csv(text, path, keys)
    except (pd.errors.ParserError, csv.Error, ValueError, OverflowError) as error:
        raise BadInputError(f"{path} cannot be read as a CSV: {' '.join(str(error).split())}") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas takes surplus fields in front for row labels
        raise BadInputError(f"{path}: rows have more fields than the header; is a comma not quoted?")
    return frame


def _keys(names: list[str], where: str, *, image_id_suffices: bool) -> list[str]:
    """Names of the columns of an image table whose cells stay text: "007" is no 7, and "NA" is Namibia."""
    return [name for name in find_columns(names, where, image_id_suffices=image_id_suffices) if name is not None]


def _parse_csv(text: str, path: Path, keys: Callable[[list[str], str], Iterable[str]]) -> pd.DataFrame:
    separator = max(_SEPARATORS, key=text.lstrip("\r\n").split("\n", 1)[0].count)
    header = next(filter(None, csv.reader(io.StringIO(text), delimiter=separator)), [])
    names = [name.strip() or f"column_{number + 1}" for number, name in enumerate(header)]
    texts = set(keys(names, str(path)))
    # pandas 2 in C ends a cell at a NUL: another file's path, perhaps
    engine: dict[str, Any] = {"engine": "python"} if "\0" in text else {"engine": "c", "low_memory": False}
    frame: pd.DataFrame = pd.read_csv(
        io.StringIO(text),
        sep=separator,
        header=0,
        names=names,
        dtype=dict.fromkeys(texts, "str"),
        keep_default_na=False,
        na_values={name: [""] if name in texts else ["", "nan", "NaN"] for name in names},
        **engine,
    )
    return frame


def _decoded(data: bytes, path: Path) -> str:
    """Decode UTF-8; a guess at another encoding would turn names of files into others without a word."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BadInputError(f"{path} is in UTF-16; save it as UTF-8 (in Excel: CSV UTF-8)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = data[error.start : error.start + 1]
        hint = "save it as UTF-8 (in Excel: CSV UTF-8)"
        raise BadInputError(f"{path}: line {line} is not UTF-8 (byte {wrong!r}); {hint}") from error


def _coordinates(found: Layer, columns: Columns, crs: str | pyproj.CRS | None, advice: _Advice) -> Coordinates:
    """Take positions from the geometry where the table has any, otherwise from columns."""
    if found.geometries is not None and not (shapely.is_missing(found.geometries).all() and not found.broken):
        own = resolve_crs(found.crs, crs, found.name, otherwise=advice.unknown)
        x, y, problems = points_of(found)
    elif columns.first is None or columns.second is None:
        nowhere = np.full(len(found.frame), np.nan)
        return Coordinates(nowhere, nowhere.copy(), {})
    else:
        own = _columns_crs(columns, crs, found.name, advice)
        x, problems = parse_numbers(found.frame[columns.first])
        y, more = parse_numbers(found.frame[columns.second])
        problems = _joined(problems, more)
    checked = check_coordinates(x, y, own, metres=advice.metres)
    return checked._replace(problems={**checked.problems, **problems})


def _columns_crs(columns: Columns, crs: str | pyproj.CRS | None, name: str, advice: _Advice) -> pyproj.CRS:
    if str(columns.first).strip().lower() == "x":
        where = f"{name}: columns {columns.first!r} and {columns.second!r}"
        return resolve_crs(None, crs, where, otherwise=advice.unknown)
    own = parse_crs(CRS84 if crs is None else crs)
    if not own.is_geographic:
        hint = "rename the columns to x and y"
        raise UsageError(f"{name}: longitude and latitude are degrees, but crs is {own.name!r}; {hint}")
    return own


def points_of(found: Layer) -> tuple[FloatArray, FloatArray, dict[int, str]]:
    """Give the coordinates of a layer of points.

    Parameters
    ----------
    found : Layer
        With geometries.

    Returns
    -------
    x, y : ndarray of float64, shape (n,)
        In the CRS of the layer; NaN where there is no point.
    problems : dict of int to str
        Of rows whose geometry is something else, or broken.

    Examples
    --------
    >>> places = gpd.points_from_xy([7.0], [51.0], crs="EPSG:4326")
    >>> x, y, problems = points_of(read_layer(gpd.GeoDataFrame(geometry=places)))
    >>> x.tolist(), y.tolist(), problems
    ([7.0], [51.0], {})
    """
    geometries: Any = found.geometries
    kinds = shapely.get_type_id(geometries)
    single = (kinds == 4) & (shapely.get_num_geometries(geometries) == 1)  # a MultiPoint of one
    points = np.where(single, shapely.get_geometry(geometries, 0), geometries)
    points[shapely.is_empty(points)] = None
    wrong = np.flatnonzero((kinds > 0) & ~single)
    problems = {int(row): f"the geometry is a {geometries[row].geom_type}, not a point" for row in wrong}
    return shapely.get_x(points), shapely.get_y(points), {**problems, **found.broken}


def _joined(first: dict[int, str], second: dict[int, str]) -> dict[int, str]:
    both = {row: f"{first[row]}; {second[row]}" for row in first.keys() & second.keys()}
    return {**first, **second, **both}
