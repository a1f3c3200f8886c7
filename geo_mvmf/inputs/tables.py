"""Image tables: folder, image, CSV, GeoPackage, GeoParquet, GeoJSON or (Geo)DataFrame -> one validated GeoDataFrame.

Every row keeps its place; what is wrong with it becomes its status and message. Columns of coordinates may be named
longitude/latitude, lon/lat, lng/lat, long/lat, or x/y where a CRS is given, in any case; a geometry column of points
goes before them. Row numbers in messages count from 1, without the header.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyproj
import shapely

from geo_mvmf.errors import BadInputError, ImageError, UsageError
from geo_mvmf.inputs.coordinate_systems import CRS84
from geo_mvmf.inputs.image_paths import PathResolver, ResolvedPath
from geo_mvmf.inputs.photo_metadata import read_metadata
from geo_mvmf.inputs.table_columns import parse_numbers
from geo_mvmf.inputs.table_sources import RawTable, read_raw_table

STATUSES = (
    "ok",
    "missing",
    "unreadable",
    "unsupported",
    "too_large",
    "refused",
    "bad_coordinates",
    "duplicate_id",
    "failed",
    "cancelled",
)
"""Every value that the column `status` can have, here and in predictions."""

_OWN_COLUMNS = ("image_id", "path", "longitude", "latitude", "weight", "status", "message", "geometry")
_CLAIMS = ("claimed_longitude", "claimed_latitude")
_CLAIM_SOURCES = ("none", "columns", "exif", "raster")
_EXIF_THREADS = 4
_TEXTS = 1 << 13  # at a time: Arrow doubles the room of what it fills, and keeps what it outgrew


def read_image_table(
    source: str | os.PathLike[str] | pd.DataFrame,
    *,
    root: str | os.PathLike[str] | None = None,
    layer: str | None = None,
    crs: str | pyproj.CRS | None = None,
    exif: bool = False,
    claimed_from: str = "none",
    permitted_roots: Iterable[str | os.PathLike[str]] = (),
    recursive: bool = True,
) -> gpd.GeoDataFrame:
    """Read an image table.

    Parameters
    ----------
    source : path, DataFrame or GeoDataFrame
        A folder of images (natural order, hidden files skipped), one image, or a table with a column ``path`` and
        optionally ``image_id``, ``weight`` and coordinates: .csv, .gpkg, .parquet, .geoparquet, .geojson, .json.
    root : path, optional
        Folder that relative paths start from and that no path may leave; by default the folder itself, the folder
        of the image or table, what an image table carries, or the working folder for other frames.
    layer : str, optional
        For a GeoPackage with several.
    crs : str or pyproj.CRS, optional
        "EPSG:n" or "OGC:CRS84" where the source does not state it (x and y columns, a GeoPackage without SRS).
    exif : bool
        Take the coordinates of rows without any from their EXIF (for training).
    claimed_from : {"none", "columns", "exif", "raster"}
        Where a position to be judged after predicting comes from: "columns" moves the coordinates of the table to
        claimed_longitude and claimed_latitude, "exif" fills those from EXIF; "raster" leaves them to the prediction,
        which takes the middle of each georeferenced raster.
    permitted_roots : iterable of path
        Further folders that absolute paths and symbolic links may lead into.
    recursive : bool
        Whether folders of the folder are listed too.

    Returns
    -------
    GeoDataFrame
        RangeIndex in the order of the source, OGC:CRS84. Columns image_id, path (posix, relative to the root when
        inside), longitude, latitude (degrees, NaN for none), weight (1.0 by default), status, message, the claim
        where asked for, then all other columns of the source (one whose name is taken gets ``in_`` in front), and
        geometry (Point or None). ``attrs`` holds root, source, permitted_roots, claimed_from, swapped: a sentence
        where the whole table seems to have longitude and latitude swapped, else "", and surely_swapped: whether a fifth
        of its places show it.

    Raises
    ------
    BadInputError
        If the source cannot be read as a whole: no such file, damaged, no column ``path``, unknown CRS; or claims are
        to come from its columns, and it has none of coordinates.
    UsageError
        If options contradict each other or a folder does not exist.

    Examples
    --------
    >>> table = read_image_table(pd.DataFrame({"path": ["a.jpg"], "lon": [7.0], "lat": [95.0]}), root="/")
    >>> table.loc[0, ["image_id", "status"]].tolist()
    ['a.jpg', 'missing']
    """
    _check_options(claimed_from, exif=exif)
    raw = read_raw_table(source, root=root, layer=layer, crs=crs, permitted_roots=permitted_roots, recursive=recursive)
    claims = claimed_from == "columns"
    if claims and not raw.has_places:
        raise BadInputError(
            f"{raw.name}: claims are read from the columns longitude and latitude, or the points of a layer, and it "
            "has neither; name the columns of the claimed places so"
        )
    paths = raw.resolved
    image_ids = raw.image_ids()
    path = _texts(found.path for found in paths)
    is_path = image_ids == [found.path for found in paths]  # of most tables: the texts are in memory once then
    table = pd.DataFrame({"image_id": path if is_path else _texts(image_ids), "path": path})
    table["longitude"], table["latitude"] = raw.coordinates.longitude, raw.coordinates.latitude
    table["weight"], weight_problems = _weights(raw)
    status = np.array([found.status for found in paths], dtype=object)
    message = np.array([_located(raw.name, row, found) for row, found in enumerate(paths)], dtype=object)
    _mark(status, message, _bad_coordinates(raw, claims=claims), "ok" if claims else "bad_coordinates", raw.name)
    _mark(status, message, _duplicates(image_ids), "duplicate_id", raw.name)
    _mark(status, message, weight_problems, "ok", raw.name)
    table["status"], table["message"] = _texts(status), _texts(message)
    _add_exif(table, raw.resolver, exif=exif, claim=claimed_from == "exif")
    if claimed_from == "raster":
        table[list(_CLAIMS)] = np.nan
    if claims:
        table[_CLAIMS[0]], table[_CLAIMS[1]] = table["longitude"], table["latitude"]
        table["longitude"], table["latitude"] = np.nan, np.nan
    result = _assembled(table, raw)
    swapped, is_sure = raw.coordinates.swapped()
    told = swapped and f"{raw.name}: {swapped}"
    result.attrs |= {"claimed_from": claimed_from, "swapped": told, "surely_swapped": is_sure}
    return result


def permitted_folders(table: gpd.GeoDataFrame) -> list[Path]:
    """Give the folders that a table's images may lie in; readers ask again whenever they open one.

    Parameters
    ----------
    table : GeoDataFrame
        From `read_image_table`; of another there are none, and readers ask nothing.

    Examples
    --------
    >>> table = read_image_table(pd.DataFrame({"path": ["a.jpg"]}), root="/tmp")
    >>> [path.as_posix() for path in permitted_folders(table)]
    ['/tmp']
    """
    attrs = table.attrs
    return [Path(folder) for folder in (attrs["root"], *attrs.get("permitted_roots", ()))] if "root" in attrs else []


def require_root(table: pd.DataFrame) -> None:
    """Refuse what `read_image_table` did not make, or a frame that has lost what it says of all rows.

    Parameters
    ----------
    table : DataFrame

    Raises
    ------
    UsageError
        If it is no frame, or its ``attrs`` do not say what its paths are relative to.

    Examples
    --------
    >>> require_root(read_image_table(pd.DataFrame({"path": ["a.jpg"]}), root="/tmp"))
    """
    if not isinstance(table, pd.DataFrame):
        raise UsageError(f"table is {table!r:.80}: read_image_table makes a table of a file or folder")
    if "root" not in table.attrs:
        raise UsageError(
            "the table does not say which folder its paths begin in: read_image_table(table, root=FOLDER) makes one "
            "that does; a merge loses it"
        )


def has_place(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Tell which rows know where they are.

    Parameters
    ----------
    table : DataFrame
        With the columns longitude and latitude.

    Returns
    -------
    ndarray of bool, shape (n,)

    Examples
    --------
    >>> has_place(pd.DataFrame({"longitude": [7.0, 8.0], "latitude": [50.0, None]})).tolist()
    [True, False]
    """
    return (table["longitude"].notna() & table["latitude"].notna()).to_numpy(bool)


def absolute_paths(table: gpd.GeoDataFrame) -> list[Path]:
    """Give the file of every row.

    Parameters
    ----------
    table : GeoDataFrame
        From `read_image_table`.

    Returns
    -------
    list of Path
        One per row; for a row that is refused or has no path the null device, which no reader opens, so that no
        loop over all rows can leave the root by accident.

    Raises
    ------
    UsageError
        As `require_root`.

    Examples
    --------
    >>> table = read_image_table(pd.DataFrame({"path": ["a.jpg", "../b.jpg"]}), root="/tmp")
    >>> [path.as_posix() for path in absolute_paths(table)]
    ['/tmp/a.jpg', '/dev/null']
    """
    require_root(table)
    root = Path(table.attrs["root"])
    nowhere = Path(os.devnull)
    return [
        nowhere if status == "refused" or not path else root / path
        for path, status in zip(table["path"], table["status"], strict=True)
    ]


def as_written_in(folder: str | os.PathLike[str], table: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """Give a table the paths by which it names the same files once it is a file in a folder.

    Parameters
    ----------
    folder : path
        Where the file will be.
    table : GeoDataFrame
        From `read_image_table`.

    Returns
    -------
    GeoDataFrame
        A copy: where all files lie in the folder, paths are relative to it, else all are absolute, so that one root
        serves all of them; those of rows that are refused or have no path are as they were.

    Examples
    --------
    >>> table = read_image_table(pd.DataFrame({"path": ["photos/a.jpg", "b.jpg"]}), root="/tmp")
    >>> as_written_in("/tmp", table)["path"].tolist(), as_written_in("/tmp/photos", table)["path"].tolist()
    (['photos/a.jpg', 'b.jpg'], ['/tmp/photos/a.jpg', '/tmp/b.jpg'])
    """
    top = Path(os.path.abspath(folder))  # noqa: PTH100  symbolic links are not resolved here
    files, nowhere = absolute_paths(table), Path(os.devnull)
    is_inside = all(file.is_relative_to(top) for file in files if file != nowhere)
    paths = [
        path if file == nowhere else (file.relative_to(top) if is_inside else file).as_posix()
        for path, file in zip(table["path"], files, strict=True)
    ]
    return table.assign(path=_texts(paths).to_numpy())


def _check_options(claimed_from: str, *, exif: bool) -> None:
    if claimed_from not in _CLAIM_SOURCES:
        raise UsageError(f"claimed_from must be one of {', '.join(_CLAIM_SOURCES)}, not {claimed_from!r}")
    if exif and claimed_from == "exif":
        raise UsageError("exif=True takes EXIF for the truth and claimed_from='exif' for a claim: choose one")


def _weights(raw: RawTable) -> tuple[npt.NDArray[np.float64], dict[int, str]]:
    """Read the weights; an empty cell is 1, what is no number >= 0 is 0 and told."""
    if raw.columns is None or raw.columns.weight is None:
        return np.ones(len(raw.resolved)), {}
    column = raw.frame[raw.columns.weight]
    weights, problems = parse_numbers(column)
    problems = {row: f"weight {problem}; taken as 0" for row, problem in problems.items()}
    weights[np.isnan(weights)] = 1.0
    wrong = np.flatnonzero(~((weights >= 0.0) & np.isfinite(weights)))
    problems |= {int(row): f"weight {weights[row]} is not a number >= 0; taken as 0" for row in wrong}
    weights[list(problems)] = 0.0
    return weights, problems


def _located(name: str, row: int, found: ResolvedPath) -> str:
    return f"{name}: row {row + 1}: {found.message}" if found.message else ""


def _bad_coordinates(raw: RawTable, *, claims: bool) -> dict[int, str]:
    prefix = "the claim is ignored: " if claims else ""
    return {row: prefix + problem for row, problem in raw.coordinates.problems.items()}


def _duplicates(image_ids: list[str]) -> dict[int, str]:
    if len(set(image_ids)) == len(image_ids):  # most tables have none, and which row has which takes more memory
        return {}
    first_row: dict[str, int] = {}
    found = {}
    for row, image_id in enumerate(image_ids):
        first = first_row.setdefault(image_id, row)
        if first != row and image_id:
            found[row] = f"image_id {image_id!r} is that of row {first + 1} already"
    return found


def _mark(
    status: npt.NDArray[np.object_], message: npt.NDArray[np.object_], problems: dict[int, str], to: str, name: str
) -> None:
    """Give rows their status; the first problem of a row decides it, the messages are joined."""
    for row, problem in problems.items():
        status[row] = to if status[row] == "ok" else status[row]
        and_ = " " if message[row].endswith("?") else "; "
        message[row] = f"{message[row]}{and_}{problem}" if message[row] else f"{name}: row {row + 1}: {problem}"


def _texts(values: Iterable[object]) -> pd.Series[Any]:
    texts = list(values)
    pieces = [pd.Series(texts[at : at + _TEXTS], dtype="str") for at in range(0, max(len(texts), 1), _TEXTS)]
    return pd.concat(pieces, ignore_index=True)


def _add_exif(table: pd.DataFrame, resolver: PathResolver, *, exif: bool, claim: bool) -> None:
    """Read EXIF where asked for; a file that cannot even be opened gets its status now."""
    if not exif and not claim:
        return
    wanted = table["status"].eq("ok")
    if exif:
        wanted &= table["longitude"].isna() & table["latitude"].isna()
    rows = np.flatnonzero(wanted.to_numpy())
    inside = (resolver.root, *resolver.permitted_roots)
    with ThreadPoolExecutor(_EXIF_THREADS) as threads:
        found = list(threads.map(lambda row: _exif_position(resolver.root / table["path"].iloc[row], inside), rows))
    places = np.full((len(table), 2), np.nan)
    for row, answer in zip(rows, found, strict=True):
        if isinstance(answer, ImageError):
            table.loc[row, ["status", "message"]] = [answer.status, str(answer)]
        else:
            places[row] = answer
    names = list(_CLAIMS) if claim else ["longitude", "latitude"]
    if claim:
        table[names] = places
    else:
        table.loc[rows, names] = places[rows]


def _exif_position(path: Path, inside: tuple[Path, ...]) -> tuple[float, float] | ImageError:
    try:
        metadata = read_metadata(path, inside=inside)
    except ImageError as error:
        return error
    return metadata.longitude, metadata.latitude


def _assembled(table: pd.DataFrame, raw: RawTable) -> gpd.GeoDataFrame:
    others = raw.passthrough()
    taken = {*_OWN_COLUMNS, *table.columns}
    others = others.rename(columns={name: f"in_{name}" for name in others.columns if name in taken})
    table = pd.concat([table, others], axis="columns")
    known = has_place(table)
    points = np.full(len(table), None, dtype=object)
    points[known] = shapely.points(table.loc[known, "longitude"], table.loc[known, "latitude"])
    result = gpd.GeoDataFrame(table, geometry=gpd.array.GeometryArray(points, crs=CRS84))
    result.attrs = {
        "root": str(raw.resolver.root),
        "source": raw.name,
        "permitted_roots": [str(folder) for folder in raw.resolver.permitted_roots],
    }
    return result
