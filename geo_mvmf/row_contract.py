"""The row contract: which columns a prediction has, in which order, and what an image that failed has in them.

While a part is predicted its rows are plain arrays, one per column, into which each batch writes its images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import sphere
from geo_mvmf.files.styles import UNLIKE_ANY
from geo_mvmf.maps import summaries
from geo_mvmf.maps.sunflowers import Nodes
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Rows = dict[str, npt.NDArray[Any]]
"""Column name -> values of all rows; the columns in the order of the contract."""

COMPUTED: dict[str, object] = {
    "captured_at": None,
    "longitude": np.nan,
    "latitude": np.nan,
    "estimator": None,
    "component_weight": np.nan,
    "density_max": np.nan,
    "probability_25_km": np.nan,
    "probability_200_km": np.nan,
    "area_50_km2": np.nan,
    "area_90_km2": np.nan,
    "radius_90_km": np.nan,
    "n_parts_90": np.nan,
    "expected_error_km": np.nan,
    "information_bits": np.nan,
    "in_training_area": None,
    "training_density_percentile": np.nan,
    "feature_distance": np.nan,
}
"""Computed columns (docs/columns.md) in their order, with the value of an image that failed."""

CLAIM = ("claimed_longitude", "claimed_latitude", "claimed_level")
"""Columns of a table whose images come with a claim."""

TRUTH = ("true_longitude", "true_latitude", "error_km", "searched_probability", "searched_area_km2")
"""Columns of a table that knows the places of some of its images."""

CANCELLED = "cancelled"
"""Status of an image that was not reached before somebody stopped the run."""

_NAMES = ("image_id", "path", "filename", "status", "message")
_OWN = (*_NAMES, *COMPUTED, *CLAIM, *TRUTH)
_USED = ("image_id", "path", "status", "message", "longitude", "latitude", "weight", "geometry", *CLAIM[:2])


def is_of_contract(column: str) -> bool:
    """Tell whether a column of predictions is one of the contract, and not passed through from the image table.

    Parameters
    ----------
    column : str

    Examples
    --------
    >>> is_of_contract("area_90_km2"), is_of_contract("continent")
    (True, False)
    """
    return column in _OWN


def empty_rows(frame: geopandas.GeoDataFrame, *, has_truth: bool = False) -> Rows:
    """Give the rows of a table before anything is computed, with the input's other columns behind.

    Parameters
    ----------
    frame : GeoDataFrame
        n rows of an image table.
    has_truth : bool
        Whether the table knows the place of any image: these rows then have the columns of the truth, too.

    Returns
    -------
    dict of str to ndarray, each (n,)

    Examples
    --------
    >>> given = {"image_id": "a", "path": "x/a.jpg", "status": "ok", "message": "", "filename": "theirs"}
    >>> frame = geopandas.GeoDataFrame({name: [value] for name, value in given.items()})
    >>> rows = empty_rows(frame)
    >>> [rows[name][0] for name in ("filename", "estimator", "in_filename")]
    ['a.jpg', None, 'theirs']
    """
    rows: Rows = {name: _texts(frame, name) for name in ("image_id", "path")}
    rows["filename"] = np.array([str(path).rsplit("/", 1)[-1] for path in rows["path"]], dtype=object)
    rows |= {name: _texts(frame, name) for name in ("status", "message")}
    for name, value in COMPUTED.items():
        rows[name] = np.full(len(frame), value, dtype=object if value is None else np.float64)
    if has_truth:
        rows |= _places(frame, ("longitude", "latitude"), TRUTH)
    if CLAIM[0] in frame:
        rows |= _places(frame, CLAIM[:2], CLAIM)
    for name in frame.columns:
        if name not in _USED:
            free = f"in_{name}" if name in _OWN else str(name)
            while free in rows:  # the input has a column of that name, too
                free = f"in_{free}"
            rows[free] = frame[name].to_numpy()
    return rows


def fill(rows: Rows, images: IntArray, values: Mapping[str, Any] | pd.DataFrame) -> None:
    """Write what was computed of some images into their rows.

    Parameters
    ----------
    rows : dict of str to ndarray
        Changed in place.
    images : ndarray of int64, (k,)
        Their row numbers.
    values : DataFrame, or mapping of str to array_like, (k,)
        Columns of the contract.

    Examples
    --------
    >>> rows = {"latitude": np.full(3, np.nan)}
    >>> fill(rows, np.array([1]), {"latitude": [48.9]})
    >>> rows["latitude"].tolist()
    [nan, 48.9, nan]
    """
    for name, column in values.items():
        rows[str(name)][images] = np.asarray(column)


def cancel(rows: Rows, images: IntArray) -> None:
    """Mark images that were not reached, and take away what was computed of them already.

    Parameters
    ----------
    rows : dict of str to ndarray
        Changed in place.
    images : ndarray of int64, (k,)
        Their row numbers.

    Examples
    --------
    >>> names = {"status": ["ok", "ok"], "message": ["", ""], "path": ["a.jpg", "b.jpg"]}
    >>> rows = {name: np.array(values, dtype=object) for name, values in names.items()}
    >>> rows["latitude"] = np.array([1.0, 2.0])
    >>> cancel(rows, np.array([1]))
    >>> rows["status"].tolist(), rows["latitude"].tolist()
    (['ok', 'cancelled'], [1.0, nan])
    """
    nothing = {**COMPUTED, **dict.fromkeys((*CLAIM[2:], *TRUTH[2:]), np.nan)}
    fill(rows, images, {name: value for name, value in nothing.items() if name in rows})
    rows["status"][images] = CANCELLED
    for i in images:
        rows["message"][i] = f"{rows['path'][i]}: cancelled before it was reached; the same command goes on"


def judge(rows: Rows, images: IntArray, mixture: VmfMixture | CellMixture, *, nodes: list[Nodes] | None = None) -> None:
    """Compare predictions with the truth and with claims, where the table has them.

    Parameters
    ----------
    rows : dict of str to ndarray
        With estimates; changed in place.
    images : ndarray of int64, (k,)
        Row numbers of predicted images.
    mixture : VmfMixture or CellMixture
        Of these k images.
    nodes : list of Nodes, optional
        Theirs, from `summaries.nodes_of` where they are at hand.

    Examples
    --------
    >>> rows = {name: np.array([0.0]) for name in ("longitude", "latitude", *TRUTH)}
    >>> rows["true_latitude"][0] = 1.0
    >>> judge(rows, np.array([0]), VmfMixture([[1.0, 0.0, 0.0]], [8.0], [[0.0]]))
    >>> rows["error_km"].round(1).tolist()
    [111.2]
    """
    known, found = _at_places(rows, images, mixture, nodes, TRUTH)
    if known.size:
        estimate = [rows[name][known] for name in ("longitude", "latitude")]
        truth = [rows[name][known] for name in TRUTH[:2]]
        error = sphere.great_circle_distance_km(*estimate, *truth)
        fill(rows, known, {"error_km": error, **{name: found[name] for name in TRUTH[3:]}})
    known, found = _at_places(rows, images, mixture, nodes, CLAIM)
    if known.size:
        fill(rows, known, {"claimed_level": found["searched_probability"]})


def unlike_training(rows: pd.DataFrame) -> tuple[int, str]:
    """Count the images that are unlike those that the model was trained on, and say so.

    Parameters
    ----------
    rows : DataFrame
        Predictions; feature_distance is known where the bundle knows the features of its training images.

    Returns
    -------
    number : int
    line : str
        Empty where there is no such image.

    Examples
    --------
    >>> unlike_training(pd.DataFrame({"feature_distance": [0.9, 7.0, np.nan]}))[1]
    '1 of 2 images is unlike the training images (feature_distance > 2): its density means little'
    """
    distances = rows.get("feature_distance", pd.Series(dtype=float)).to_numpy(float)
    number, known = int((distances > UNLIKE_ANY).sum()), int((distances >= 0.0).sum())
    if not number:
        return 0, ""
    are, little = ("is", "its density means") if number == 1 else ("are", "their densities mean")
    return number, (
        f"{number} of {known} images {are} unlike the training images (feature_distance > {UNLIKE_ANY:g}): {little}"
        " little"
    )


def _at_places(
    rows: Rows,
    images: IntArray,
    mixture: VmfMixture | CellMixture,
    nodes: list[Nodes] | None,
    names: tuple[str, ...],
) -> tuple[IntArray, pd.DataFrame]:
    """Rows whose place is known, and what their densities say there."""
    if names[0] not in rows:
        return np.empty(0, np.int64), pd.DataFrame()
    place = np.stack([rows[name][images] for name in names[:2]])
    known = np.flatnonzero(np.isfinite(place).all(axis=0))
    if not known.size:
        return np.empty(0, np.int64), pd.DataFrame()
    own = None if nodes is None else [nodes[k] for k in known.tolist()]
    return images[known], summaries.at_truth(mixture[known], *place[:, known], nodes=own)


def _places(frame: geopandas.GeoDataFrame, source: tuple[str, ...], names: tuple[str, ...]) -> Rows:
    given = {name: frame[column].to_numpy(float).copy() for name, column in zip(names, source, strict=False)}
    return given | {name: np.full(len(frame), np.nan) for name in names[2:]}


def _texts(frame: geopandas.GeoDataFrame, name: str) -> npt.NDArray[Any]:
    return np.array(frame[name].astype(object), dtype=object)
