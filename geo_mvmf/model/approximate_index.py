"""An approximate index for nearest neighbours: most of them in a fraction of the time, by faiss (an extra).

Training images are put into lists by k-means of their features; a query looks through the lists whose centres are
nearest. What it misses lies in the others: `recall` measures how much that is, and `choose_probes` how many lists reach
a wanted recall. Whatever is found is measured again from float64 differences, as in the exact search.
"""

from __future__ import annotations

import math
import warnings
from types import ModuleType

import numpy as np
import numpy.typing as npt

from geo_mvmf.errors import UsageError
from geo_mvmf.model.neighbours import NearestNeighbours

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_LISTS_PER_ROOT = 4.0  # lists for each square root of the training images: faiss's own advice
_ROWS_PER_LIST = 40  # that k-means wants at least
_BLOCK = 16384


class ApproximateIndex:
    """Training images in lists of similar ones.

    Parameters
    ----------
    features : array_like of float, shape (M, D)
        Of the training images; read in blocks as float32, and held in memory once more.
    probes : int
        How many lists a query looks through.
    seed : int
        Of k-means.

    Raises
    ------
    UsageError
        faiss is not installed.
    ValueError
        There are no images, or the number of probes is not positive.

    Examples
    --------
    >>> index = ApproximateIndex(np.random.default_rng(0).normal(size=(500, 4)))  # doctest: +SKIP
    >>> NearestNeighbours(features, longitude, latitude, k=5, index=index).predict(unseen)  # doctest: +SKIP
    """

    def __init__(self, features: npt.ArrayLike, *, probes: int = 8, seed: int = 0) -> None:
        faiss = _faiss()
        self.features = np.asanyarray(features)
        if self.features.ndim != 2 or not len(self.features) or probes < 1:
            raise ValueError(f"features have shape {self.features.shape}, probes is {probes}; (M, D) and >= 1 needed")
        count, columns = self.features.shape
        self.num_lists = max(1, min(round(_LISTS_PER_ROOT * math.sqrt(count)), count // _ROWS_PER_LIST))
        self.probes = probes
        # the lists' centres: held here, because the index does not own them
        self._centres = faiss.IndexFlatL2(columns)
        self._index = faiss.IndexIVFFlat(self._centres, columns, self.num_lists)
        self._index.cp.seed = seed
        most = self._index.cp.max_points_per_centroid * self.num_lists
        some = np.sort(np.random.default_rng(seed).permutation(count)[:most])
        self._index.train(_rows(self.features[some]))
        for start in range(0, count, _BLOCK):
            self._index.add(_rows(self.features[start : start + _BLOCK]))

    def candidates(self, queries: npt.NDArray[np.float32], count: int) -> tuple[IntArray, FloatArray]:
        """Give the most similar training images that the lists near each query hold.

        Parameters
        ----------
        queries : ndarray of float32, shape (N, D)
            Features.
        count : int
            How many candidates.

        Returns
        -------
        index : ndarray of int64, shape (N, count)
            Rows of the training images.
        hidden : ndarray of float64, shape (N,)
            Infinite: nothing is known of what is missed. Minus infinity where the lists hold too few: such a query has
            to be searched exactly.
        """
        self._index.nprobe = self.probes
        found = np.asarray(self._index.search(np.ascontiguousarray(queries), count)[1], dtype=np.int64)
        few = np.asarray((found < 0).any(axis=1))
        return np.where(few[:, None], np.arange(count), found), np.where(few, -np.inf, np.inf)


def recall(search: NearestNeighbours, features: npt.ArrayLike) -> float:
    """Give the share of the true nearest neighbours that a search finds.

    Parameters
    ----------
    search : NearestNeighbours
        With an approximate index; an exact one has 1.
    features : array_like of float, shape (N, D)
        Of images to locate: those that it will be used for, or held-out ones.

    Returns
    -------
    float
        0..1, over all N k neighbours. A neighbour as near as the last true one counts as found.

    Examples
    --------
    >>> recall(NearestNeighbours([[0.0], [1.0]], [10.0, 20.0], [50.0, 60.0]), [[0.9]])
    1.0
    """
    places = search.longitude, search.latitude
    exact = NearestNeighbours(search.features, *places, k=search.k, weighting=search.weighting, device=search.device)
    last = exact.neighbours(features)[1][:, -1:]
    return float((search.neighbours(features)[1] <= last).mean())


def choose_probes(search: NearestNeighbours, *, wanted: float = 0.95, sample: int = 500, seed: int = 0) -> float:
    """Set the index's probes to the fewest, of 1, 2, 4, ..., that reach a recall on training images.

    Parameters
    ----------
    search : NearestNeighbours
        With an `ApproximateIndex`, whose probes are changed.
    wanted : float
        Share of the true neighbours to be found, 0..1.
    sample : int
        Training images that are looked up, drawn without replacement; each finds itself, so one more neighbour than k
        is asked for and the first is left out.
    seed : int
        Of the draw.

    Returns
    -------
    float
        The recall that is reached.

    Raises
    ------
    TypeError
        The search is exact.
    ValueError
        There are no more than k images.

    Examples
    --------
    >>> choose_probes(search, wanted=0.99)  # doctest: +SKIP
    0.993
    """
    index = search.index
    if not isinstance(index, ApproximateIndex):
        raise TypeError(f"the search is exact (index is {index!r}): it has no probes to choose")
    rows = np.sort(np.random.default_rng(seed).permutation(len(search.features))[:sample])
    more, reached = search.with_k(search.k + 1), 0.0
    exact = NearestNeighbours(search.features, search.longitude, search.latitude, k=more.k, device=search.device)
    last = exact.neighbours(search.features[rows])[1][:, -1:]
    probes = 1
    while True:
        index.probes = min(probes, index.num_lists)
        reached = float((more.neighbours(search.features[rows])[1][:, 1:] <= last).mean())
        if reached >= wanted or index.probes == index.num_lists:
            return reached
        probes *= 2


def _rows(features: npt.ArrayLike) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(features, dtype=np.float32)


def _faiss() -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its bindings, on newer Pythons
            import faiss
    except ImportError as error:
        raise UsageError("an approximate index needs faiss: pip install 'geo-mvmf[neighbours]'") from error
    module: ModuleType = faiss
    return module
