"""Methods behind one interface: whatever gives each image a density over the sphere can be compared and mapped.

`MvmfHead` and `CrossEntropyHead` (PlaNet) are trained; `NeighbourDensity` asks the training images; `TrainingDensity`
does not look at the image. All answer `mixture`, and everything behind that - estimates, regions, rasters, zones,
evidence - takes what it gives.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from geo_mvmf.mixture import CellMixture, VmfMixture


class Method(Protocol):
    """A way from features to densities.

    Examples
    --------
    >>> from geo_mvmf import s2
    >>> from geo_mvmf.baselines import TrainingDensity
    >>> import torch
    >>> method: Method = TrainingDensity(s2.face_cells(), [4, 0, 0, 0, 0, 0])
    >>> len(method.mixture(torch.zeros(2, 8)))
    2
    """

    def mixture(self, features: Tensor, /) -> VmfMixture | CellMixture:
        """Give the predicted densities.

        Parameters
        ----------
        features : Tensor, shape (N, D)
            Of the images to locate.

        Returns
        -------
        VmfMixture or CellMixture
            Of N images; each integrates to 1.
        """
