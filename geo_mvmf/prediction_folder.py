"""The folder of a prediction's numbered parts: what of it a later run can go on with, and what becomes of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from geo_mvmf import durable, row_contract
from geo_mvmf.errors import BadInputError, RowsFailedError
from geo_mvmf.files import stores
from geo_mvmf.prediction_parts import Predictor
from geo_mvmf.progress import Failure, Progress


class Part(NamedTuple):
    """Some rows of an image table that are predicted together.

    Attributes
    ----------
    number : int
        From 0.
    start, stop : int
        Rows start..stop - 1.
    """

    number: int
    start: int
    stop: int


Made = tuple[Part, pd.DataFrame, stores.Pruned]
"""A part that was predicted: its rows of the row contract, and the mixing weights of its images."""

Make = Callable[[Predictor, Sequence[Part]], Generator[Progress | Made, None, None]]
"""Makes parts in any order; the progress it yields counts the images of the part that is under way."""


def parts_of(total: int, part_rows: int) -> Iterator[Part]:
    """Cut a table into parts.

    Parameters
    ----------
    total : int
        Rows of the table.
    part_rows : int
        Rows of a part.

    Yields
    ------
    Part
        At least one, which is empty where the table is.

    Examples
    --------
    >>> [tuple(part) for part in parts_of(5, 2)]
    [(0, 0, 2), (1, 2, 4), (2, 4, 5)]
    """
    for number, start in enumerate(range(0, max(total, 1), part_rows)):
        yield Part(number, start, min(start + part_rows, total))


def failures(rows: pd.DataFrame) -> tuple[Failure, ...]:
    """Images that could not be used, by their rows.

    Parameters
    ----------
    rows : DataFrame

    Examples
    --------
    >>> rows = pd.DataFrame({"path": ["a.jpg", "b.jpg"], "status": ["ok", "missing"], "message": ["", "b.jpg: ..."]})
    >>> [failure.path for failure in failures(rows)]
    ['b.jpg']
    """
    bad = rows.loc[rows["status"] != "ok", ["path", "status", "message"]]
    return tuple(Failure(*map(str, row)) for row in bad.itertuples(index=False))


def require_all(rows: pd.DataFrame) -> None:
    """Refuse rows of which one failed, as `strict` asks.

    Parameters
    ----------
    rows : DataFrame

    Raises
    ------
    RowsFailedError

    Examples
    --------
    >>> require_all(pd.DataFrame({"status": ["ok"]}))
    """
    bad = rows[rows["status"] != "ok"]
    if len(bad):
        first = bad.iloc[0]
        raise RowsFailedError(
            f"{len(bad)} of {len(rows)} rows failed, and every row was required; the first is "
            f"{first['path']}: {first['status']}: {first['message']}; mend or leave out such rows, or do without "
            "strict (on the command line --strict)"
        )


def check(folder: Path, run: dict[str, Any], components: stores.Components, part_rows: int) -> None:
    """Throw away what cannot be gone on with: parts of other images, of another bundle or options, damaged parts.

    Parameters
    ----------
    folder : path
        Held by this process.
    run : dict
        From `prediction_run.describe`.
    components : Components
        Of the bundle.
    part_rows : int
        Rows of a part.

    Examples
    --------
    See `predicting.predict_job`.
    """
    durable.sweep(folder)
    manifest = folder / "manifest.json"
    text = json.dumps(run, sort_keys=True, indent=2) + "\n"
    same = manifest.is_file() and manifest.read_bytes() == text.encode()
    for number in stores.existing_parts(folder):
        part = stores.part_path(folder, number)
        rows = min(part_rows, run["images"] - number * part_rows)
        if not (same and _is_whole(part, rows, components)):
            part.unlink()
    stores.keep_components(folder, components)
    if not same:
        durable.write_text(manifest, text, overwrite=True)


def _is_whole(part: Path, rows: int, components: stores.Components) -> bool:
    try:
        found = stores.open_part(part, components)
        found.pruned()
    except BadInputError:
        return False
    is_finished = not (found.rows["status"] == row_contract.CANCELLED).any()
    return len(found) == rows and is_finished


def merge_unfinished(
    predictor: Predictor, folder: Path, out: Path, run: dict[str, Any], part_rows: int, *, overwrite: bool
) -> stores.StoredPredictions:
    """Merge the parts that are there, the rows of those that were begun, and rows that say they were not reached.

    Parameters
    ----------
    predictor : Predictor
        Which was stopped.
    folder, out : path
        Of the parts, which stay; of the predictions file.
    run : dict
        From `prediction_run.describe`; the file's says how many rows were not reached, too.
    part_rows : int
        Rows of a part.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    StoredPredictions

    Examples
    --------
    See `predicting.predict_job`.
    """
    total = len(predictor.table)
    whole = set(stores.existing_parts(folder))
    begun = {start // part_rows for start, _ in predictor.begun_spans()}
    begun.add(next(number for number in itertools.count() if number not in whole))
    behind = max(whole | begun) + 1
    bounds = {n: (n * part_rows, (n + 1) * part_rows) for n in range(behind) if n not in whole}
    bounds[behind] = (behind * part_rows, total)  # all at once, however many parts they would have become
    missing = {number: (start, min(stop, total)) for number, (start, stop) in bounds.items() if start < total}
    left = 0
    try:
        for number, (start, stop) in missing.items():
            rows, pruned = predictor.left(start, stop)
            left += int((rows["status"] == row_contract.CANCELLED).sum())
            stores.write_part(folder, number, rows=rows, pruned=pruned, components=predictor.components, run=run)
        known = {**run, row_contract.CANCELLED: left} if left else run
        return stores.merge_parts(folder, out, run=known, overwrite=overwrite)
    finally:
        for number in missing:
            stores.part_path(folder, number).unlink(missing_ok=True)


def leave_as_found(folder: Path, earlier: set[int], *, is_new_folder: bool) -> None:
    """Take away the parts of this run; those that an earlier run left are of use to the next one.

    Parameters
    ----------
    folder : path
    earlier : set of int
        Numbers of the parts that were there before.
    is_new_folder : bool
        Whether the folder around it was made by this run.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()) / "new" / "a.nc.parts"
    >>> folder.mkdir(parents=True)
    >>> leave_as_found(folder, set(), is_new_folder=True)
    >>> folder.parent.exists()
    False
    """
    if earlier:
        for number in set(stores.existing_parts(folder)) - earlier:
            stores.part_path(folder, number).unlink()
        return
    shutil.rmtree(folder, ignore_errors=True)
    if is_new_folder:
        with contextlib.suppress(OSError):  # others may have written there meanwhile
            folder.parent.rmdir()
