"""From what a predictions file stores to densities, and from densities on cells back to what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2
from geo_mvmf.errors import BadInputError
from geo_mvmf.files import stores
from geo_mvmf.maps.albums import Album
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.suggestions import suggestion

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def mixture_of_rows(store: stores.StoredPredictions, rows: npt.ArrayLike) -> VmfMixture | CellMixture:
    """Give the densities of some images.

    Parameters
    ----------
    store : StoredPredictions
    rows : array_like of int, (k,)
        Row numbers of images that have a prediction.

    Returns
    -------
    VmfMixture or CellMixture
        Of k images.

    Raises
    ------
    BadInputError
        If an image has no prediction, or what is stored is damaged.

    Examples
    --------
    See `stores.write_store`.
    """
    chosen = np.atleast_1d(np.asarray(rows, dtype=np.int64))
    predicted = store.is_predicted[chosen]
    if store.components.kind == "cell" and predicted.all() and not np.any(store.residual[chosen] > 0.0):
        return _own_cells(store, chosen)
    return mixture_of_components(store.components, store.log_mixing_weights(chosen))


def album_of_rows(store: stores.StoredPredictions, rows: npt.ArrayLike, *, owner: object = None) -> Album | CellMixture:
    """Give the densities of some images to be drawn: those of components one at a time, when they are asked for.

    Parameters
    ----------
    store : StoredPredictions
    rows : array_like of int, (k,)
        Row numbers of images that have a prediction.
    owner : object
        Kept as long as weights may be asked for: a temporary file goes with it.

    Returns
    -------
    Album or CellMixture
        Of k images.

    Raises
    ------
    BadInputError
        If an image has no prediction; when weights are asked for, if what is stored is damaged.

    Examples
    --------
    See `stores.write_store`.
    """
    chosen = np.atleast_1d(np.asarray(rows, dtype=np.int64))
    shared = store.components
    if shared.kind == "cell":
        return cast("CellMixture", mixture_of_rows(store, chosen))
    store.require_predicted(chosen)

    def weights(image: int, _: object = owner) -> FloatArray:
        found: FloatArray = np.exp(store.log_mixing_weights(chosen[image : image + 1])[0])
        found /= found.sum()
        return found

    return Album(shared.mean_directions, shared.log_concentrations, chosen.size, weights)


def _own_cells(store: stores.StoredPredictions, rows: IntArray) -> CellMixture:
    """Densities on the cells that each image lists, which may overlap those of other images."""
    parts = [store.pruned(row, row + 1) for row in rows.tolist()]
    cells = [store.components.cell_ids[part.component] for part in parts]
    weights = [np.exp(part.log_weight.astype(np.float64)) for part in parts]
    offsets = np.cumsum([0, *(each.size for each in cells)])
    probabilities = [each / each.sum() for each in weights]
    try:
        return CellMixture(
            np.concatenate([np.empty(0, np.uint64), *cells]), np.concatenate([np.empty(0), *probabilities]), offsets
        )
    except ValueError as error:
        raise BadInputError(f"{store.path}: its cells are damaged: {error}; make the file again") from error


def rows_named(store: stores.StoredPredictions, image_ids: Sequence[str] | None) -> IntArray:
    """Find the rows of images that have a prediction.

    Parameters
    ----------
    store : StoredPredictions
    image_ids : sequence of str or None
        None: all that have one.

    Returns
    -------
    ndarray of int64, (k,)
        In the order asked for; of rows with the same name the first.

    Raises
    ------
    BadInputError
        If an image is unknown or has no prediction.

    Examples
    --------
    See `predictions.Predictions.density`.
    """
    if image_ids is None:
        return np.flatnonzero(store.is_predicted)
    known = {str(name): row for row, name in reversed(list(enumerate(store.rows["image_id"])))}
    unknown = [name for name in image_ids if name not in known]
    if unknown:
        meant = suggestion(unknown[0], known)
        raise BadInputError(f"no image {unknown[0]!r} in {store.path}; it holds {len(known)} images{meant}")
    chosen = np.array([known[name] for name in image_ids], dtype=np.int64)
    for row in chosen[~store.is_predicted[chosen]]:
        status, message = store.rows.loc[row, ["status", "message"]]
        raise BadInputError(f"image {store.rows.loc[row, 'image_id']!r} has no prediction: {status}: {message}")
    return chosen


def mixture_of_components(components: stores.Components, log_mixing_weights: FloatArray) -> VmfMixture | CellMixture:
    """Make the densities of images that share their components.

    Parameters
    ----------
    components : Components
    log_mixing_weights : ndarray of float64, (N, C)
        Natural logarithms; rows are normalised.

    Returns
    -------
    VmfMixture or CellMixture

    Examples
    --------
    >>> faces = stores.Components("vmf", np.eye(3), np.zeros(3), np.ones(3, int), np.zeros(3, np.uint64))
    >>> len(mixture_of_components(faces, np.zeros((2, 3))))
    2
    """
    if components.kind == "vmf":
        logs = log_mixing_weights - np.logaddexp.reduce(log_mixing_weights, axis=1, keepdims=True)
        return VmfMixture(components.mean_directions, components.log_concentrations, logs)
    n, c = log_mixing_weights.shape
    probabilities = np.exp(log_mixing_weights)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return CellMixture(np.tile(components.cell_ids, n), probabilities.ravel(), np.arange(n + 1, dtype=np.int64) * c)


def training_prior(store: stores.StoredPredictions) -> VmfMixture | CellMixture:
    """Give the training prior: the density of an image that says nothing.

    Every component weighs as its training images plus one, which is also how the weight that a predictions file does
    not store is spread. So the density of any image over this one is bounded, and an image whose mixing weights are
    those of the training images adds nothing to others that it is fused with.

    Parameters
    ----------
    store : StoredPredictions

    Returns
    -------
    VmfMixture or CellMixture
        One image, of the same components as the predictions.

    Raises
    ------
    BadInputError
        If the file knows no training images: it holds densities that were fused or restricted.

    Examples
    --------
    See `fusing.fuse_job`.
    """
    counts = store.components.training_counts.astype(np.float64)
    if store.run.get("evidence"):
        raise BadInputError(
            f"{store.path}: holds densities that were fused or restricted, and no training prior: start from the"
            " predictions file they were made of"
        )
    return mixture_of_components(store.components, np.log((counts + 1.0) / (counts + 1.0).sum())[None])


def to_stored(mixtures: Sequence[CellMixture | None]) -> tuple[stores.Components, stores.Pruned]:
    """Bring densities on cells, which differ from image to image, into the form that is stored.

    Parameters
    ----------
    mixtures : sequence of CellMixture or None
        One image each; None is an image without prediction.

    Returns
    -------
    components : Components
        Kind "cell": all cells of all images, which need not be disjoint.
    pruned : Pruned
        Nothing is left out: every residual is 0, so that no image has any cell but its own.

    Examples
    --------
    >>> one = CellMixture(s2.face_cells(), np.full(6, 1 / 6), [0, 6])
    >>> components, pruned = to_stored([one, None])
    >>> len(components), pruned.offsets.tolist(), pruned.residual.tolist()
    (6, [0, 6, 6], [0.0, nan])
    """
    cells, weights = [], []
    for mixture in mixtures:
        ids, probabilities = (np.empty(0, np.uint64), np.empty(0)) if mixture is None else mixture.of(0)
        held = probabilities > 0.0
        cells.append(ids[held])
        weights.append(np.log(probabilities[held]))
    sizes = [each.size for each in cells]
    every, component = np.unique(np.concatenate([np.empty(0, np.uint64), *cells]), return_inverse=True)
    nothing = np.zeros(every.size)
    shared = stores.Components("cell", s2.centre(every), nothing + np.nan, nothing.astype(np.int64), every)
    return shared, stores.Pruned(
        component.astype(np.uint32),
        np.concatenate([np.empty(0), *weights]).astype(np.float32),
        np.cumsum([0, *sizes]).astype(np.int64),
        np.where(np.array(sizes) > 0, 0.0, np.nan),
    )
