"""What predict writes and says of it: the files one --out stands for, what of them an interrupted run left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from geo_mvmf.commands import options
from geo_mvmf.errors import BadInputError, UsageError

if TYPE_CHECKING:
    import pandas as pd

_SUFFIXES = (".nc", ".gpkg", ".parquet", ".geoparquet", ".geojson", ".csv")
_FOLDER_LEVELS = (0.5, 0.9)
_SHOWN_KINDS = 5


class Outputs(NamedTuple):
    """What one --out stands for.

    Attributes
    ----------
    store : Path
        The predictions file: everything, for later maps.
    layers : Path or None
        Points, and regions where asked for.
    regions : Path or None
        Regions in a file of their own, and not with the points.
    page : Path or None
        The report.
    levels : tuple of float or None
        Of the credible regions.
    """

    store: Path
    layers: Path | None
    regions: Path | None
    page: Path | None
    levels: tuple[float, ...] | None

    @property
    def regions_file(self) -> Path | None:
        """Where the regions go, if into another file than the points."""
        if self.layers is None or not self.levels or self.regions is not None:
            return self.regions
        from geo_mvmf.files import vector

        return next(iter(vector.paths(self.layers, ("points", "regions"))[1:]), None)

    @property
    def after(self) -> list[Path]:
        """Files that are made from the predictions file."""
        return [path for path in (self.layers, self.regions_file, self.page) if path is not None]


def outputs_of(out: Path, levels: str | None, points: Path | None, regions: Path | None) -> Outputs:
    """Say which files are asked for.

    Parameters
    ----------
    out : path
    levels : str or None
    points, regions : path or None
        Options of the command.

    Returns
    -------
    Outputs

    Raises
    ------
    UsageError
        If they do not go together.

    Examples
    --------
    >>> outputs_of(Path("a.geojson"), "0.5", None, None).regions_file.name
    'a_regions.geojson'
    """
    wanted = options.levels(levels)
    if points is not None or regions is not None:
        return _named_outputs(out, wanted, points, regions)
    if not out.suffix or os.path.isdir(out):  # noqa: PTH112 (no error where a name is too long)
        levels_wanted = wanted or _FOLDER_LEVELS
        return Outputs(out / "predictions.nc", out / "predictions.gpkg", None, out / "report.html", levels_wanted)
    options.check_suffix(out, _SUFFIXES)
    if out.suffix.lower() == ".nc":
        if wanted:
            raise UsageError(f"--levels {levels} with --out {out}: regions go into layers; say --points FILE.gpkg, too")
        return Outputs(out, None, None, None, None)
    from geo_mvmf.files import vector

    vector.check_suffix(out)
    return Outputs(out.with_suffix(".nc"), out, None, None, wanted)


def _named_outputs(out: Path, levels: tuple[float, ...] | None, points: Path | None, regions: Path | None) -> Outputs:
    """What is said by naming files one by one."""
    from geo_mvmf.files import vector

    if out.suffix.lower() != ".nc":
        raise UsageError(f"{out}: with --points and --regions, --out is the predictions file and ends in .nc")
    for path in (points, regions):
        if path is not None:
            vector.check_suffix(path)
    if points is None:
        raise UsageError(f"--regions {regions} goes with --points: `geo-mvmf regions` makes them alone")
    if regions is not None and _is_same(points, regions):
        raise UsageError(f"--points and --regions are both {points}: leave --regions out, and give --levels")
    return Outputs(out, points, regions, None, levels or (_FOLDER_LEVELS if regions is not None else None))


def _is_same(path: Path, other: Path) -> bool:
    """Tell whether two names are of one file, by links or by folders that are left again, too."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def left_out(source: Path) -> str:
    """Say which files of a folder are not taken as images.

    Parameters
    ----------
    source : path

    Returns
    -------
    str
        One line; empty where it is no folder or every file is taken.

    Examples
    --------
    >>> left_out(Path("no/such/folder"))
    ''
    """
    from geo_mvmf.inputs.image_paths import other_files

    found = other_files(source)
    if not found:
        return ""
    kinds = [
        f"{number} {options.plain(suffix) or 'without extension'}" for suffix, number in found.most_common(_SHOWN_KINDS)
    ]
    more = ", ..." if len(found) > _SHOWN_KINDS else ""
    total = sum(found.values())
    files = "file is not taken as an image" if total == 1 else "files are not taken as images"
    return f"{total} other {files}: {', '.join(kinds)}{more}"


def ending(outputs: Outputs, out: Path, rows: pd.DataFrame) -> str:
    """Say what came of a prediction: how many images of each status, the first that failed, what was written.

    Parameters
    ----------
    outputs : Outputs
    out : path
        As the user named it.
    rows : DataFrame
        Predictions.

    Returns
    -------
    str
        Lines.

    Examples
    --------
    >>> import pandas
    >>> rows = pandas.DataFrame({"path": ["a"], "status": ["missing"], "message": ["no file"], "feature_distance": [0]})
    >>> print(ending(outputs_of(Path("a.nc"), None, None, None), Path("a.nc"), rows))
    status: 1 missing
    1 image has no prediction; why is in the columns status and message of a.nc:
      a: no file
    wrote a.nc
    """
    from geo_mvmf.row_contract import unlike_training

    where = outputs.store if outputs.layers is None else outputs.layers
    lines = [f"status: {options.counts(rows['status'])}", *_failures(rows, where)]
    lines += filter(None, [unlike_training(rows)[1]])
    if outputs.page is not None:
        names = ", ".join(dict.fromkeys(path.name for path in outputs.after))
        lines.append(f"wrote into {out}: {names} and {outputs.store.name} (for further maps)")
    else:
        written = [*outputs.after, outputs.store]
        lines.append(f"wrote {' and '.join(map(str, written))}" + (" (for further maps)" if len(written) > 1 else ""))
    return "\n".join(lines)


def _failures(rows: pd.DataFrame, where: Path) -> list[str]:
    """Name the first images that failed, however many there are, and where all of them stand."""
    number = int((rows["status"] != "ok").sum())
    if not number:
        return []
    have = "image has" if number == 1 else "images have"
    which, first = options.first_failures(rows)
    return [f"{number} {have} no prediction; why is in the columns status and message of {where}{which}:", *first]


class Earlier(NamedTuple):
    """What there is of an earlier run's outputs.

    Attributes
    ----------
    missing : set of Path
        Not there: may be written.
    own : set of Path
        There, and to be made anew: what an interrupted run wrote, or was going to replace.
    """

    missing: set[Path]
    own: set[Path]

    @property
    def left(self) -> set[Path]:
        """What is to be made."""
        return self.missing | self.own


def earlier(outputs: Outputs, *, overwrite: bool) -> Earlier | None:
    """Look for what an interrupted run left, without the bundle and the images: whether it was this run is seen later.

    Parameters
    ----------
    outputs : Outputs
    overwrite : bool
        Whether existing files may be replaced.

    Returns
    -------
    Earlier or None
        None where there is nothing to go on with.

    Raises
    ------
    OutputError
        If a file would have to be replaced, or taken for one of ours, that no run of these predictions wrote.

    Examples
    --------
    >>> earlier(outputs_of(Path("no/such/a.gpkg"), None, None, None), overwrite=False) is None
    True
    """
    if not os.path.lexists(outputs.store):
        return None
    from geo_mvmf import predicting

    was_cancelled = predicting.was_cancelled(outputs.store)
    missing = {path for path in outputs.after if not os.path.lexists(path)}
    old = {path for path in outputs.after if path not in missing and not is_made_of(path, outputs.store)}
    if not (was_cancelled or missing or old or outputs.levels):
        return None
    own = old if overwrite else set()
    kept = {path for path in outputs.after if path not in missing | own}
    if outputs.layers in kept:
        relation = _relation(outputs, missing | own)
        if relation == "own":
            own = own | {outputs.layers}
        if relation == "foreign" and not overwrite:
            options.check_new(outputs.layers, overwrite=False)
    if not overwrite:  # what is older is of something else; only the layer was seen to be ours all the same
        options.check_new(*(path for path in outputs.after if path in old - own), overwrite=False)
    found = Earlier(missing, own)
    if not (found.left or was_cancelled):
        return None
    if outputs.layers in found.left and outputs.regions_file is not None and outputs.regions_file not in found.left:
        options.check_new(outputs.regions_file, overwrite=overwrite)  # both are written together
    return found


def is_made_of(path: Path, store: Path) -> bool:
    """Tell whether a file is there that may have been made of a predictions file: it is not older.

    Parameters
    ----------
    path, store : path
        `store` is there.

    Examples
    --------
    >>> is_made_of(Path("no/such/a.gpkg"), Path())
    False
    """
    return os.path.lexists(path) and path.lstat().st_mtime_ns >= store.stat().st_mtime_ns


def _relation(outputs: Outputs, left: set[Path]) -> str:
    """Tell whether the layer that is there is to be made anew ("own"), is what it shall be ("done"), or "foreign"."""
    from geo_mvmf import layer_origin
    from geo_mvmf.predictions import open_predictions

    if outputs.layers is None:
        return "done"
    try:
        store = open_predictions(outputs.store).store
    except BadInputError:
        return "foreign"
    is_one_file = bool(outputs.levels) and outputs.regions_file is None
    origin = layer_origin.origin(store, outputs.layers, with_regions=is_one_file)
    if origin == "unfinished":
        return "own"
    if origin == "plain" and outputs.levels and (is_one_file or outputs.regions_file in left):
        return "own"  # the run was stopped before the regions, or they are asked for now
    return "foreign" if origin == "foreign" or (origin == "plain" and is_one_file) else "done"
