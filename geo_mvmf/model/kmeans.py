"""k-means on the sphere: classes of training places by their nearest mean direction.

The distance is the chord, so a class's best mean direction is the normalised sum of its places, at the poles and at
180 degrees as anywhere. The nearest mean direction is found in a tree, exactly, so that neither a matrix of all
distances nor any limit on the number of classes is needed.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere
from geo_mvmf.model.classes import Partition, means_of_locations, nearest
from geo_mvmf.model.cleaning import PartitionWarning, clean_places

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SEEDING_ROWS = 200_000
"""Of more places than these (or four a class) so many, drawn at random, give the first mean directions."""

_CONVERGED = 1e-6  # relative fall of the inertia in one round


class KMeans(NamedTuple):
    """The result of k-means.

    Attributes
    ----------
    mean_directions : ndarray of float64, shape (C, 3)
        Unit vectors.
    classes : ndarray of int64, shape (n,)
        The nearest mean direction of each place.
    inertias : list of float
        Sum over the places of 1 - cos of the angle to their mean direction, at each round; never rising.
    """

    mean_directions: FloatArray
    classes: IntArray
    inertias: list[float]


def partition_by_kmeans(
    longitude: npt.ArrayLike, latitude: npt.ArrayLike, num_classes: int, *, seed: int = 0, max_rounds: int = 50
) -> Partition:
    """Make classes of locations by k-means on the sphere.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Degrees. Rows that are not finite or out of range are dropped and counted.
    num_classes : int
        So many, or as many as there are different places.
    seed : int
        Of the first mean directions; the same seed and places give the same classes.
    max_rounds : int
        At most so many rounds; fewer where the inertia falls by less than a millionth.

    Returns
    -------
    Partition
        Without cells: such classes have no areas, so they can initialise a mixture but are none of PlaNet's. In the
        order of the S2 curve, so that neighbours stand together.

    Raises
    ------
    BadInputError
        No location can be used.
    ValueError
        An option is out of range.

    Warns
    -----
    PartitionWarning
        There are fewer different places than classes, or as `partition_sphere`.

    Examples
    --------
    >>> partition_by_kmeans([2.3, 2.4, 13.4, 13.5], [48.8, 48.9, 52.5, 52.4], 2).counts.tolist()
    [2, 2]
    """
    if num_classes < 1 or max_rounds < 1 or seed < 0:
        raise ValueError(f"num_classes {num_classes} and max_rounds {max_rounds} must be >= 1, seed {seed} >= 0")
    used, cleaning = clean_places(longitude, latitude, stacklevel=3)
    directions = sphere.to_directions(used[:, 0], used[:, 1])
    found = spherical_kmeans(directions, num_classes, seed=seed, max_rounds=max_rounds)
    if len(found.mean_directions) < num_classes:
        warnings.warn(
            f"only {len(found.mean_directions)} of {num_classes} classes: there are no more different places",
            PartitionWarning,
            stacklevel=2,
        )
    order = np.argsort(s2.leaf_ids(found.mean_directions), kind="stable")
    counts = np.bincount(found.classes, minlength=order.size)[order].astype(np.int64)
    return Partition(np.empty(0, dtype=np.uint64), counts, found.mean_directions[order], cleaning, "kmeans")


def spherical_kmeans(directions: FloatArray, num_classes: int, *, seed: int = 0, max_rounds: int = 50) -> KMeans:
    """Find mean directions that lie near to all directions.

    Parameters
    ----------
    directions : ndarray of float64, shape (n, 3)
        Unit vectors.
    num_classes : int
        C.
    seed : int
        Of k-means++, which draws the first mean directions.
    max_rounds : int
        Most rounds of assigning and averaging.

    Returns
    -------
    KMeans
        Memory is that of some arrays of n rows and of C.

    Notes
    -----
    A class that has lost all its places is moved to the place farthest from its mean direction, which can only lower
    the inertia. Source of the seeding: Arthur and Vassilvitskii 2007.

    Examples
    --------
    >>> found = spherical_kmeans(np.eye(3), 3)
    >>> sorted(found.classes.tolist()), round(found.inertias[-1], 12)
    ([0, 1, 2], 0.0)
    """
    generator = np.random.default_rng(seed)
    means = _first_means(directions, num_classes, generator)
    inertias: list[float] = []
    while True:
        classes, chords = nearest(means, directions)
        inertias.append(float((chords * chords).sum() / 2.0))
        settled = len(inertias) > 1 and inertias[-2] - inertias[-1] <= _CONVERGED * inertias[-2]
        if len(inertias) > max_rounds or settled:
            return KMeans(means, classes, inertias)
        means, counts = means_of_locations(directions, classes, means)
        (empty,) = np.nonzero(counts == 0)
        if empty.size:
            farthest = np.argsort(-chords, kind="stable")[: empty.size]
            means[empty[: farthest.size]] = directions[farthest]


def _first_means(directions: FloatArray, num_classes: int, generator: np.random.Generator) -> FloatArray:
    """Draw places, each with a probability that grows with the squared distance from those drawn before."""
    most = max(SEEDING_ROWS, 4 * num_classes)
    rows = np.arange(len(directions))
    if len(directions) > most:
        rows = np.sort(generator.choice(len(directions), most, replace=False))
    places = np.ascontiguousarray(directions[rows].T)  # (3, n): a column at a time
    chosen = [int(generator.integers(rows.size))]
    squares = _squared_chords(places, chosen[0])
    while len(chosen) < num_classes:
        ends = np.cumsum(squares)
        if not ends[-1] > 0.0:  # every place is chosen already
            break
        chosen.append(int(np.searchsorted(ends, generator.random() * ends[-1], side="right")))
        np.minimum(squares, _squared_chords(places, chosen[-1]), out=squares)
    return np.ascontiguousarray(places[:, chosen].T)


def _squared_chords(places: FloatArray, row: int) -> FloatArray:
    x, y, z = places - places[:, row : row + 1]
    return np.asarray(x * x + y * y + z * z)  # of differences: exactly 0 at the place itself
