"""A bundle as what its file holds: a configuration and named arrays; and where its training images were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from geo_mvmf.model import head_state

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle

Arrays = dict[str, npt.NDArray[Any]]


class TrainingArea(NamedTuple):
    """S2 cells that tile the sphere, and the training images in each.

    Attributes
    ----------
    cell_ids : ndarray of uint64, shape (P,)
        Ascending.
    counts : ndarray of int64, shape (P,)
    """

    cell_ids: npt.NDArray[np.uint64]
    counts: npt.NDArray[np.int64]


def content(bundle: Bundle) -> tuple[dict[str, Any], Arrays]:
    """Give the configuration and the arrays of a bundle.

    Parameters
    ----------
    bundle : Bundle

    Returns
    -------
    config : dict
        As `bundle_format.check_config` wants it.
    arrays : dict of str to ndarray

    Examples
    --------
    See `bundle.save_bundle`.
    """
    state, head_config = head_state.head_state(bundle.head)
    area = bundle.training_area
    arrays = {f"backbone.{name}": _array(value) for name, value in bundle.backbone.state_dict().items()}
    arrays |= {f"head.{name}": _array(value) for name, value in state.items()}
    arrays |= {
        "cell_ids": area.cell_ids.astype(np.uint64),
        "counts": area.counts.astype(np.int64),
        "feature_mean": bundle.feature_mean.astype(np.float32),
        "feature_std": bundle.feature_std.astype(np.float32),
    }
    config = {
        "backbone": bundle.backbone.config.to_dict(),
        "num_features": bundle.backbone.num_features,
        "num_components": bundle.num_components,
        "head": head_config,
        "image": bundle.spec.to_dict(),
        **{key: bundle.metadata[key] for key in ("training", "description", "licence", "responsible_use")},
    }
    if bundle.area is not None:
        config["num_cells"] = len(area.cell_ids)
        arrays["component_counts"] = bundle.counts.astype(np.int64)
    return config, arrays


def classes_of(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    """Give the cells and counts of the components, and the training area where that is another.

    Parameters
    ----------
    arrays : mapping of str to ndarray
        What `content` gives.

    Returns
    -------
    dict
        The arguments cell_ids, counts and area of a `Bundle`. Components that are no S2 cells have the id 0.

    Examples
    --------
    >>> classes_of({"cell_ids": np.array([1], np.uint64), "counts": np.array([9])})["area"] is None
    True
    """
    own = TrainingArea(arrays["cell_ids"], arrays["counts"])
    if "component_counts" not in arrays:
        return {"cell_ids": own.cell_ids, "counts": own.counts, "area": None}
    counts = arrays["component_counts"]
    cells = arrays.get("head.cell_ids", np.zeros(len(counts), dtype=np.uint64))
    return {"cell_ids": cells, "counts": counts, "area": own}


def halved(name: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Store the weights of backbone and head in half the bytes, everything else as it is.

    Parameters
    ----------
    name : str
    array : ndarray

    Examples
    --------
    >>> halved("head.weight", np.ones((2, 2), np.float32)).dtype, halved("head.bias", np.ones(2, np.float32)).dtype
    (dtype('float16'), dtype('float32'))
    """
    halve = array.dtype == np.float32 and array.ndim > 1 and name.startswith(("backbone.", "head.weight"))
    return array.astype(np.float16) if halve else array


def _array(value: Tensor | npt.NDArray[Any]) -> npt.NDArray[Any]:
    if isinstance(value, Tensor):
        # Scalars (the batch counter of batch normalisation) keep their shape ().
        return value.detach().cpu().contiguous().numpy()
    return np.asarray(value)
