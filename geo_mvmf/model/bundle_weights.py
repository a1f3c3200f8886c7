"""What a bundle says of images where components are many: features first, then the heaviest mixing weights.

The two steps are apart because they want batches of different sizes: an output layer of a gigabyte is read from memory
once per pass, so it is given more images at a time than the network.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf.model.bundle import Bundle
from geo_mvmf.model.heaviest import Heaviest, heaviest


def features_of(bundle: Bundle, images: npt.NDArray[np.uint8]) -> Tensor:
    """Compute the features of images.

    Parameters
    ----------
    bundle : Bundle
    images : array, shape (N, channels, H, W), uint8
        Prepared as the bundle's `spec` says.

    Returns
    -------
    Tensor, shape (N, D)
        On the bundle's device.

    Examples
    --------
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> features_of(untrained_bundle(), np.zeros((1, 3, 32, 32), np.uint8)).shape
    torch.Size([1, 64])
    """
    with torch.inference_mode():
        features: Tensor = bundle.backbone(torch.from_numpy(images).to(bundle.device))
        return features


def heaviest_weights(bundle: Bundle, features: list[Tensor], tail: float) -> tuple[Heaviest, npt.NDArray[np.float32]]:
    """Give the heaviest mixing weights of images: at least those that hold all but a tail of each.

    Parameters
    ----------
    bundle : Bundle
    features : list of Tensor, shapes (n, D)
        From `features_of`: N images together.
    tail : float
        Weight that may be left out.

    Returns
    -------
    weights : Heaviest
        Of N images.
    features : array, shape (N, D), float32

    Examples
    --------
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> bundle = untrained_bundle()
    >>> weights, features = heaviest_weights(bundle, [features_of(bundle, np.zeros((1, 3, 32, 32), np.uint8))], 1e-4)
    >>> weights.offsets.tolist(), features.shape
    ([0, 6], (1, 64))
    """
    with torch.inference_mode():
        joined = torch.cat(features)
        found = heaviest(joined, bundle.head.weight, bundle.head.bias, tail)
        return found, joined.float().cpu().numpy()
