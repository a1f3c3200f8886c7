"""Whether a layer of points was made from a predictions file: what a run may replace without being asked.

No format has a mark that all of them could keep, so the layer is compared with what the predictions file gives.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from geo_mvmf import point_layer, progress, row_contract
from geo_mvmf.errors import BadInputError
from geo_mvmf.files import stores
from geo_mvmf.inputs import geopackages, layers, regular_files, table_sources
from geo_mvmf.temporary_folder import TemporaryFolder

Origin = Literal["plain", "unfinished", "same", "foreign"]
_NAMES = ("image_id", "path", "filename")  # cells that stay text


def origin(store: stores.StoredPredictions, path: str | os.PathLike[str], *, with_regions: bool = False) -> Origin:
    """Tell what a layer of points is to a predictions file.

    Parameters
    ----------
    store : StoredPredictions
    path : path
        An existing file with a suffix of `vector.write_layers`.
    with_regions : bool
        Whether a GeoPackage that is the "same" has to hold a layer of regions.

    Returns
    -------
    {"plain", "unfinished", "same", "foreign"}
        "plain": what its rows give, and nothing else. "unfinished": what a cancelled prediction of its images wrote,
        before that file or in its place. "same": its images with their statuses; areas, which regions refine, and
        whatever the user changed may differ. "foreign": anything else, also what cannot be read.

    Examples
    --------
    See `commands.prediction_outputs.earlier`.
    """
    holder = TemporaryFolder()
    expected = holder.path / f"points{Path(path).suffix}"
    progress.run(point_layer.write_job(store, expected))
    ours = _content(expected)
    try:
        theirs = _content(Path(path))
    except BadInputError:
        return "foreign"
    needed = ours.tables | ({"regions"} if with_regions else set())
    if not needed - {"regions"} <= theirs.tables or not _are_alike(ours.frame, theirs.frame):
        return "foreign"
    is_left = (theirs.frame["status"] == row_contract.CANCELLED).to_numpy()
    is_other = (theirs.frame["status"] != ours.frame["status"]).to_numpy()
    if ours.tables == theirs.tables and not is_other.any() and ours.equals(theirs):
        return "unfinished" if row_contract.CANCELLED in store.run else "plain"
    if (is_other & ~is_left).any():
        return "foreign"
    if is_other.any():  # a run was killed after it had replaced the predictions file, and before it did so here
        return "unfinished" if ours.tables == theirs.tables else "foreign"
    return "same" if needed <= theirs.tables else "foreign"


class _Content(NamedTuple):
    frame: pd.DataFrame
    geometries: np.ndarray[tuple[int], np.dtype[np.object_]]
    tables: set[str]  # of a GeoPackage, in which users keep layers of their own

    def equals(self, other: _Content) -> bool:
        return self.frame.equals(other.frame) and bool(np.array_equal(self.geometries, other.geometries))


def _content(path: Path) -> _Content:
    path, suffix = regular_files.check_regular_file(path), path.suffix.lower()
    if suffix == ".csv":
        frame = table_sources.read_csv(path, lambda names, _: [name for name in names if name in _NAMES])
        return _Content(frame, np.empty(0, object), set())
    tables = set(geopackages.table_names(path)) if suffix == ".gpkg" else set()
    found = layers.read_layer(path, layer="points" if tables else None)
    none = np.empty(0, object)
    return _Content(found.frame, none if found.geometries is None else found.geometries, tables)


def _are_alike(ours: pd.DataFrame, theirs: pd.DataFrame) -> bool:
    """Tell whether two layers have the same columns, and the same images in the same order."""
    return list(ours.columns) == list(theirs.columns) and ours["image_id"].equals(theirs["image_id"])
