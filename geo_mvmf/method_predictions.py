"""Predictions of any method that gives densities of features: of nearest neighbours, of the training images' density.

They are a predictions file like those of a bundle, so that regions, rasters, zones, evaluations and comparisons work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import __version__, row_contract, s2
from geo_mvmf.baselines import TrainingDensity
from geo_mvmf.errors import BadInputError
from geo_mvmf.files import stores
from geo_mvmf.maps import summaries
from geo_mvmf.maps.estimates import estimate
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.predictions import Predictions, open_predictions
from geo_mvmf.stored_mixtures import to_stored

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

BLOCK = 64
"""Images whose densities are made together."""


class Method(Protocol):
    """What `model.methods.Method` is to a module that knows no torch."""

    def mixture(self, features: Any, /) -> VmfMixture | CellMixture:
        """Give the densities of some images, (n, D)."""


def write_method_predictions(
    path: str | os.PathLike[str],
    method: Method,
    features: npt.NDArray[np.floating[Any]],
    table: geopandas.GeoDataFrame,
    *,
    run: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Predictions:
    """Write a predictions file of a method.

    Parameters
    ----------
    path : path
        Ends in .nc.
    method : Method
        Whose mixtures have few components for each image (`NeighbourDensity`), or are of S2 cells. Every component that
        weighs anything is stored: of a head, use `predict`.
    features : ndarray of float, shape (N, D)
        Of all rows of the table; what they hold where its status is not ok does not matter.
    table : GeoDataFrame
        N rows, as `read_image_table` returns them.
    run : mapping, optional
        What else is to stand in the file about how it was made.
    overwrite : bool
        Whether an existing file may be replaced.

    Returns
    -------
    Predictions
        Of the file: one row per image, in input order; estimates are those of the heaviest component.

    Raises
    ------
    BadInputError
        The features are not of as many images as the table.
    OutputError
        If the file exists or cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> table = geopandas.GeoDataFrame({"image_id": ["a"], "path": ["a.jpg"], "status": ["ok"], "message": [""]})
    >>> out = pathlib.Path(tempfile.mkdtemp()) / "training.nc"
    >>> method = TrainingDensity(s2.face_cells(), [4, 0, 0, 0, 0, 0])
    >>> found = write_method_predictions(out, method, np.zeros((1, 8)), table)
    >>> found.mixture_of([0]).log_density([[1.0, 0.0, 0.0]]).round(2).tolist()
    [[-1.43]]
    """
    if len(features) != len(table):
        raise BadInputError(f"features are of {len(features)} images, and the table of {len(table)}; both are needed")
    has_truth = {"longitude", "latitude"} <= set(table) and bool(table["longitude"].notna().any())
    rows = row_contract.empty_rows(table, has_truth=has_truth)
    good = np.flatnonzero(np.asarray(table["status"]) == "ok")
    parts: list[_Part] = []
    for start in range(0, good.size, BLOCK):
        some = good[start : start + BLOCK]
        mixture = method.mixture(features[some])
        _fill(rows, some, mixture, once=isinstance(method, TrainingDensity))
        if not isinstance(method, TrainingDensity):
            parts += _parts(mixture)
    if isinstance(method, TrainingDensity):
        components, pruned = _of_training(method, good.size)
    elif good.size and isinstance(parts[0], CellMixture):
        components, pruned = to_stored([part for part in parts if isinstance(part, CellMixture)])
    else:
        components, pruned = _of_kernels([part for part in parts if not isinstance(part, CellMixture)])
    stores.write_store(
        path,
        rows=pd.DataFrame(rows),
        pruned=_of_rows(pruned, good, len(table)),
        components=components,
        run={"version": __version__, "method": type(method).__name__, **(run or {})},
        overwrite=overwrite,
    )
    return open_predictions(path)


_Part = CellMixture | tuple[FloatArray, FloatArray]
"""One image: cells; or components (k, 4), direction and log concentration, with their log weights (k,)."""


def _fill(rows: row_contract.Rows, images: IntArray, mixture: VmfMixture | CellMixture, *, once: bool) -> None:
    """Say of some images what can be said; once for all of them, where they have the same density."""
    known = mixture[[0]] if once else mixture
    places = estimate(known)
    found = summaries.summarise(known, places[:, 0], places[:, 1])
    again = np.zeros(images.size, np.int64) if once else np.arange(images.size)
    row_contract.fill(rows, images, found.iloc[again])
    place = {"longitude": places[again, 0], "latitude": places[again, 1], "estimator": "component"}
    row_contract.fill(rows, images, place)
    row_contract.judge(rows, images, mixture)


def _parts(mixture: VmfMixture | CellMixture) -> list[_Part]:
    if isinstance(mixture, CellMixture):
        return [mixture[[image]] for image in range(len(mixture))]
    found: list[_Part] = []
    components = np.column_stack([mixture.mean_directions, mixture.log_concentrations])
    for logs in mixture.log_mixing_weights:
        held = np.flatnonzero(logs > -np.inf)
        found.append((components[held], logs[held]))
    return found


def _of_kernels(parts: list[tuple[FloatArray, FloatArray]]) -> tuple[stores.Components, stores.Pruned]:
    """Components that differ from image to image, each stored once; nothing is left out."""
    every = np.concatenate([np.empty((0, 4)), *(components for components, _ in parts)])
    shared, component = np.unique(every, axis=0, return_inverse=True)
    sizes = np.array([len(logs) for _, logs in parts], dtype=np.int64)
    owner, logs = np.repeat(np.arange(sizes.size), sizes), np.concatenate([np.empty(0), *(logs for _, logs in parts)])
    # two neighbours at one place are one component, with both weights
    pair, at = np.unique(np.stack([owner, component.ravel()]), axis=1, return_inverse=True)
    weight = np.bincount(at.ravel(), np.exp(logs), minlength=pair.shape[1])
    nothing = np.zeros(len(shared), np.int64)
    components = stores.Components(
        "vmf", shared[:, :3].copy(), shared[:, 3].copy(), nothing, s2.leaf_ids(shared[:, :3])
    )
    offsets = np.searchsorted(pair[0], np.arange(sizes.size + 1)).astype(np.int64)
    kept = pair[1].astype(np.uint32), np.log(weight).astype(np.float32)
    return components, stores.Pruned(*kept, offsets, np.zeros(sizes.size))


def _of_training(method: TrainingDensity, n: int) -> tuple[stores.Components, stores.Pruned]:
    """One cell for each image: what a file does not hold counts as spread in proportion to training images plus one."""
    share = (method.counts + 1.0) / (method.counts + 1.0).sum()
    nan = np.full(share.size, np.nan)
    components = stores.Components("cell", s2.centre(method.cell_ids), nan, method.counts, method.cell_ids)
    most = int(np.argmax(share))
    kept = np.full(n, most, np.uint32), np.full(n, np.log(share[most]), np.float32)
    return components, stores.Pruned(*kept, np.arange(n + 1), np.full(n, 1.0 - share[most]))


def _of_rows(pruned: stores.Pruned, good: IntArray, n: int) -> stores.Pruned:
    """Weights of all rows: those without a prediction have none."""
    sizes, residual = np.zeros(n, np.int64), np.full(n, np.nan)
    sizes[good], residual[good] = np.diff(pruned.offsets), pruned.residual
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return stores.Pruned(pruned.component, pruned.log_weight, offsets, residual)
