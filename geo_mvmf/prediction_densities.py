"""Densities of the images of one pass: over all components, or over those alone that an image keeps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2
from geo_mvmf.files import stores
from geo_mvmf.files.weights import taken
from geo_mvmf.maps import summaries
from geo_mvmf.mixture import CellMixture, VmfMixture
from geo_mvmf.prediction_weights import Weights

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle

IntArray = npt.NDArray[np.int64]

STREAMED_COMPONENTS = 1 << 18
"""From so many components on, only the heaviest mixing weights of an image are ever there, and what is not kept of them
counts as it does in the predictions file: spread in proportion to training counts."""

DENSITY_BYTES = 64 << 20
"""Most bytes of float64 weights that a thread summarises in one go."""

_MANY_COMPONENTS = 4096
"""From so many components on, images that keep few of them are summarised over those alone."""

_OWN_SHARE = 16
"""Where weights are streamed, few is up to one in so many: nodes of an image's own take a time that grows as their
number, and those that all images share are there already for the next."""


@dataclasses.dataclass(frozen=True, eq=False)
class Densities:
    """Densities of some images.

    Parameters
    ----------
    few : VmfMixture or None
        Of those components alone that the images keep; None where they keep many.
    whole : callable
        Gives those of all components.
    is_few_enough : bool
        Whether estimators may do with the few.

    Examples
    --------
    See `DensityMaker`.
    """

    few: VmfMixture | None
    whole: Callable[[], VmfMixture | CellMixture]
    is_few_enough: bool


@dataclasses.dataclass(frozen=True, eq=False)
class DensityMaker:
    """Makes densities of mixing weights.

    Parameters
    ----------
    bundle : Bundle
    estimator : str
        What they are for.

    Examples
    --------
    See `prediction_parts.Predictor`.
    """

    bundle: Bundle
    estimator: str

    @functools.cached_property
    def shared(self) -> stores.Components:
        """The components that all images share."""
        bundle = self.bundle
        if hasattr(bundle.head, "mean_directions"):
            kind, directions, concentrations = "vmf", bundle.mean_directions, bundle.log_concentrations
        else:
            kind, directions = "cell", s2.centre(bundle.cell_ids)
            concentrations = np.full(len(directions), np.nan)
        return stores.Components(kind, directions, concentrations, bundle.training_counts, bundle.cell_ids)

    @property
    def is_streamed(self) -> bool:
        """Whether there are so many components that all weights of an image are never there."""
        return self.bundle.num_components >= STREAMED_COMPONENTS

    def densities(self, weights: Weights, kept: stores.Pruned, images: IntArray, some: IntArray) -> Densities:
        """Give the densities of some images, all of one of the groups that `alike` gives.

        Parameters
        ----------
        weights : Weights
            Of one pass.
        kept : Pruned
            Of some images of it.
        images, some : ndarray of int64, (k,)
            Numbers of the images in the pass, and in what is kept.

        Examples
        --------
        See `prediction_parts.Predictor`.
        """

        def whole() -> VmfMixture | CellMixture:
            return self._mixture(weights.whole(images, taken(kept, some), self.bundle.training_counts))

        is_few = bool(self._keep_few(kept)[some[0]])
        # estimators but the simplest begin with tables of all components, which are not made where those are too many
        is_enough = self.estimator == "component" or self.is_streamed
        return Densities(self._of_kept(kept, some) if is_few else None, whole, is_enough)

    def alike(self, kept: stores.Pruned) -> list[IntArray]:
        """Group images to summarise together: those that keep few components, and those that keep many.

        Parameters
        ----------
        kept : Pruned

        Examples
        --------
        See `prediction_parts.Predictor`.
        """
        is_few, is_sparse = self._keep_few(kept), np.diff(kept.offsets) <= summaries.MANY
        many = np.flatnonzero(~is_few)
        most = max(1, DENSITY_BYTES // (32 * self.bundle.num_components)) if self.is_streamed else max(many.size, 1)
        alone = np.flatnonzero(is_few & ~is_sparse)[:, None]  # each of these has nodes of its own
        groups = [np.flatnonzero(is_few & is_sparse), *alone, *np.split(many, range(most, many.size, most))]
        return [some for some in groups if some.size]

    @functools.cached_property
    def _no_images(self) -> VmfMixture | None:
        """The components, checked once; None where a bundle has S2 cells in their place."""
        shared = self.shared
        if shared.kind != "vmf":
            return None
        nothing = np.empty((0, self.bundle.num_components))
        checked = VmfMixture(shared.mean_directions, shared.log_concentrations, nothing)
        for array in (checked.mean_directions, checked.log_concentrations):
            array.setflags(write=False)  # so that what is made of them once is found without reading them
        return checked

    def _mixture(self, log_weights: npt.NDArray[np.floating]) -> VmfMixture | CellMixture:
        """Densities of some images, of all components."""
        shared = self._no_images
        return self.bundle.mixture(log_weights) if shared is None else shared.with_mixing_weights(log_weights)

    def _of_kept(self, kept: stores.Pruned, images: IntArray) -> VmfMixture:
        """Densities of some images, of those components alone that each of them keeps."""
        entries = [slice(kept.offsets[i], kept.offsets[i + 1]) for i in images]
        few = np.unique(np.concatenate([kept.component[own] for own in entries]))
        logs = np.full((images.size, few.size), -np.inf)
        for row, own in zip(logs, entries, strict=True):
            row[np.searchsorted(few, kept.component[own])] = kept.log_weight[own]
        return VmfMixture(self.shared.mean_directions[few], self.shared.log_concentrations[few], logs)

    def _keep_few(self, kept: stores.Pruned) -> npt.NDArray[np.bool_]:
        """Tell which images are summarised over their own components, and not over nodes that all images share."""
        counts = np.diff(kept.offsets)
        if self.bundle.num_components < _MANY_COMPONENTS or self._no_images is None:
            return np.zeros(counts.shape, dtype=np.bool_)
        own_share = self.bundle.num_components // _OWN_SHARE if self.is_streamed else 0
        return np.asarray(counts <= max(summaries.MANY, own_share))
