"""k-means on the sphere: classes of training places by their nearest mean direction.

The distance is the chord, so a class's best mean direction is the normalised sum of its places, at the poles and at
180 degrees as anywhere. The nearest mean direction is found in a tree, exactly, so there is no matrix of all distances:
a round costs n log C. The first mean directions cost one pass over the places each (2.3 ms at 200,000) up to
`DRAWN_SINGLY` classes; more are drawn in batches, each one search of the tree.
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

SEEDING_PLACES = 200_000
"""Of more different places than these (or four a class) so many, drawn at random, give the first mean directions."""

DRAWN_SINGLY = 4096
"""First mean directions that are drawn one after the other; the others in batches."""

_BATCH = 4  # a batch is a fourth of the mean directions drawn before it, so their number grows by powers of 1.25

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

    Notes
    -----
    Time: up to 4096 classes one pass over the different places each (2.3 ms at 200,000; of more, 200,000 or four a
    class are drawn for this), above that a search of all of them for every fourth more classes; then the rounds.

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
        Of the draw of the first mean directions.
    max_rounds : int
        Most rounds of assigning and averaging.

    Returns
    -------
    KMeans
        Memory is that of some arrays of n rows and of C.

    Notes
    -----
    A class that has lost all its places is moved to the place farthest from its mean direction, which can only lower
    the inertia. Source of the seeding: k-means++, Arthur and Vassilvitskii 2007, for the first `DRAWN_SINGLY`; then
    batches drawn by the same squared distances, as in k-means||, Bahmani et al. 2012.

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
    """Draw different places, each with a probability that grows with the squared distance from those drawn before."""
    places, weights = _different(directions)
    most = max(SEEDING_PLACES, 4 * num_classes)
    if len(places) > most:  # of different places, so that there are enough for all classes
        rows = np.sort(generator.choice(len(places), most, replace=False))
        places, weights = places[rows], weights[rows]
    chosen, squares = _drawn_singly(places, weights, min(num_classes, DRAWN_SINGLY), generator)
    while len(chosen) < num_classes and squares.any():
        batch = min(num_classes - len(chosen), max(len(chosen) // _BATCH, 1))
        drawn = _drawn_together(weights * squares, batch, generator)
        np.minimum(squares, nearest(places[drawn], places)[1] ** 2, out=squares)
        chosen = np.append(chosen, drawn)
    return places[chosen]


def _different(directions: FloatArray) -> tuple[FloatArray, IntArray]:
    """Give each place once, in the order of the first rows, and its number of rows."""
    _, first, counts = np.unique(directions, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    return directions[first[order]], counts[order].astype(np.int64)


def _drawn_singly(
    places: FloatArray, weights: IntArray, number: int, generator: np.random.Generator
) -> tuple[IntArray, FloatArray]:
    """k-means++: rows of places, (at most number,), and the squared chord from each place to the nearest of them."""
    columns = np.ascontiguousarray(places.T)  # (3, n): a column at a time
    ends = np.cumsum(weights)
    chosen = [int(np.searchsorted(ends, generator.integers(ends[-1]), side="right"))]
    squares = _squared_chords(columns, chosen[0])
    while len(chosen) < number and squares.any():  # else every place is chosen already
        ends = np.cumsum(weights * squares)
        chosen.append(int(np.searchsorted(ends, generator.random() * ends[-1], side="right")))
        np.minimum(squares, _squared_chords(columns, chosen[-1]), out=squares)
    return np.array(chosen, dtype=np.int64), squares


def _drawn_together(shares: FloatArray, number: int, generator: np.random.Generator) -> IntArray:
    """Draw at most number rows without replacement, with probabilities in proportion to the shares.

    The first arrivals of exponential clocks of these rates: Efraimidis and Spirakis 2006.
    """
    (left,) = np.nonzero(shares)
    if left.size <= number:
        return left
    arrivals = generator.standard_exponential(left.size) / shares[left]
    return np.sort(left[np.argpartition(arrivals, number)[:number]])


def _squared_chords(columns: FloatArray, row: int) -> FloatArray:
    x, y, z = columns - columns[:, row : row + 1]
    return np.asarray(x * x + y * y + z * z)  # of differences: exactly 0 at the place itself
