"""Mixing weights of the images of one pass: of all components, or where those are many of the heaviest."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from geo_mvmf.files import stores
from geo_mvmf.files.weights import prune_heaviest, spread_all, taken

if TYPE_CHECKING:
    from geo_mvmf.model.heaviest import Heaviest

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Piece = tuple[IntArray, stores.Pruned]
"""Numbers of some images within their part, and their mixing weights."""


@dataclasses.dataclass(frozen=True, eq=False)
class AllWeights:
    """Weights of all components.

    Parameters
    ----------
    logs : ndarray of float32, (N, C)
        Natural logarithms.

    Examples
    --------
    >>> AllWeights(np.log(np.array([[0.5, 0.5]], np.float32))).is_finite.tolist()
    [True]
    """

    logs: npt.NDArray[np.float32]

    @property
    def is_finite(self) -> npt.NDArray[np.bool_]:
        """Which images have weights at all, (N,)."""
        return np.asarray(np.isfinite(self.logs.max(axis=1)))  # of which one is NaN, that is the largest

    def pruned(self, images: IntArray) -> stores.Pruned:
        """Give what is kept of some images, in ascending order."""
        run = slice(int(images[0]), int(images[-1]) + 1)
        # no copy where images follow each other; they do not where one between them has no weights
        return stores.prune(self.logs[run if run.stop - run.start == images.size else images], is_softmax=True)

    def whole(self, images: IntArray, kept: stores.Pruned, training_counts: IntArray) -> npt.NDArray[np.float32]:  # noqa: ARG002 (as of the other)
        """Give the logarithms of all weights of some images, (k, C)."""
        return self.logs[images]


@dataclasses.dataclass(frozen=True, eq=False)
class HeaviestWeights:
    """Weights of the heaviest components alone: the others count as a predictions file has it, as a spread residual.

    Parameters
    ----------
    found : Heaviest
        Of N images.

    Examples
    --------
    See `prediction_parts.Predictor`.
    """

    found: Heaviest

    @property
    def is_finite(self) -> npt.NDArray[np.bool_]:
        """Which images have weights at all, (N,)."""
        return self.found.is_finite

    def pruned(self, images: IntArray) -> stores.Pruned:
        """Give what is kept of some images, in ascending order."""
        ends = self.found.offsets[images[0] : images[-1] + 2]
        own = slice(int(ends[0]), int(ends[-1]))
        kept = prune_heaviest(self.found.component[own], self.found.log_weight[own], ends - ends[0])
        return taken(kept, images - images[0])

    def whole(self, images: IntArray, kept: stores.Pruned, training_counts: IntArray) -> FloatArray:  # noqa: ARG002 (as of the other)
        """Give the logarithms of all weights of some images, (k, C), from what is kept of them."""
        return spread_all(kept, training_counts)


Weights = AllWeights | HeaviestWeights


def assembled(pieces: Sequence[Piece], size: int) -> stores.Pruned:
    """Put together the weights of all images of a part.

    Parameters
    ----------
    pieces : sequence of (images, weights)
        In ascending order of images.
    size : int
        Images of the part; those that are in no piece have no weights.

    Returns
    -------
    Pruned

    Examples
    --------
    >>> assembled([(np.array([1]), stores.prune(np.log([[0.5, 0.5]])))], 3).offsets.tolist()
    [0, 0, 2, 2]
    """
    counts, residual = np.zeros(size, dtype=np.int64), np.full(size, np.nan)
    for index, pruned in pieces:
        counts[index], residual[index] = np.diff(pruned.offsets), pruned.residual
    return stores.Pruned(
        np.concatenate([np.empty(0, np.uint32), *(pruned.component for _, pruned in pieces)]),
        np.concatenate([np.empty(0, np.float32), *(pruned.log_weight for _, pruned in pieces)]),
        np.concatenate([[0], np.cumsum(counts)]),
        residual,
    )
