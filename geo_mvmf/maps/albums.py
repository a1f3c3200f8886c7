"""Albums: the images that rasters are made of, whose mixing weights are asked for one image at a time.

So a map of ten thousand images needs the memory of one: a predictions file gives weights as they are wanted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from geo_mvmf.mixture import VmfMixture

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Album:
    """N images over the same C components of which only some have weight.

    Parameters
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    log_concentrations : ndarray of float64, shape (C,)
        Natural logarithms of kappa.
    images : int
        N.
    weights : callable
        From the number of an image to its mixing weights (C,), which sum to 1; thread-safe.

    Examples
    --------
    >>> even = Album(np.eye(3), np.zeros(3), 2, lambda image: np.full(3, 1 / 3))
    >>> even.mean(np.array([0, 1])).round(3).tolist()
    [0.333, 0.333, 0.333]
    """

    mean_directions: FloatArray
    log_concentrations: FloatArray
    images: int
    weights: Callable[[int], FloatArray]

    def __len__(self) -> int:
        return self.images

    def mean(self, images: IntArray) -> FloatArray:
        """Give the mean mixing weights of some images.

        Parameters
        ----------
        images : ndarray of int64, shape (k,)
            At least one.

        Returns
        -------
        ndarray of float64, shape (C,)
        """
        total = np.zeros(self.log_concentrations.size)
        for image in images.tolist():  # one by one: an album's weights are larger than its map
            total += self.weights(image)
        return total / images.size

    def mean_mixture(self, images: IntArray) -> VmfMixture:
        """Give the mean of some images as a mixture of one.

        Parameters
        ----------
        images : ndarray of int64, shape (k,)
            At least one.
        """
        with np.errstate(divide="ignore"):
            logs = np.log(self.mean(images))
        return VmfMixture(self.mean_directions, self.log_concentrations, logs[None])


def album_of(mixture: VmfMixture) -> Album:
    """Take the images of a mixture, without the components that none of them has.

    Parameters
    ----------
    mixture : VmfMixture

    Examples
    --------
    >>> with np.errstate(divide="ignore"):
    ...     mixture = VmfMixture(np.eye(3), np.zeros(3), np.log([[0.5, 0.5, 0.0]]))
    >>> album_of(mixture).log_concentrations.size
    2
    """
    logs = mixture.log_mixing_weights
    (present,) = np.nonzero(np.exp(logs.max(axis=0, initial=-np.inf)) > 0.0)
    return Album(
        mixture.mean_directions[present],
        mixture.log_concentrations[present],
        len(mixture),
        lambda image: np.exp(logs[image, present]),
    )
