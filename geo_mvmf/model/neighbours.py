"""NearestNeighbours: copy the places of the training images whose features are nearest.

The search is exact. Candidates are ranked by a matrix product, whose rounding could swap near ones; so a few more than
needed are taken, measured again from float64 differences, and where even the last of them could hide a nearer one
within the product's error bound, the whole row is measured in float64.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf import sphere

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_QUERIES = 512  # rows at once; with `_ROWS` training rows a block of scores is 32 MB
_ROWS = 16384
_SPARE = 8  # candidates beyond k
_MEASURED_VALUES = 1 << 22  # float64 features held at once while candidates are measured: 32 MB


class Index(Protocol):
    """What finds candidates among the training images without looking at all of them."""

    def candidates(self, queries: npt.NDArray[np.float32], count: int) -> tuple[IntArray, FloatArray]:
        """Give candidates (N, count), and how near (squared, (N,)) one that was left out is taken to be at least."""


class NearestNeighbours:
    """The place of the most similar training images (exact search by Euclidean distance of features).

    Parameters
    ----------
    features : array_like of float, shape (M, D)
        Of the training images; kept as it is (a memory-mapped array stays on the disk) and read in blocks as float32.
    longitude, latitude : array_like of float, shape (M,)
        Their places, degrees.
    k : int
        How many neighbours.
    weighting : {"distance", "equal"}
        More than one are averaged on the sphere, weighted by 1 / squared distance, or equally. A neighbour at
        distance 0 leaves no weight to the others.
    device : str or torch.device
        Where the products are computed.
    index : ApproximateIndex, optional
        Of the same features: finds most of the neighbours in less time. None: all of them, exactly.

    Raises
    ------
    ValueError
        k is not in 1..M, shapes do not fit, a place is not finite, or an option is unknown.

    Examples
    --------
    >>> NearestNeighbours([[0.0], [1.0]], [10.0, 20.0], [50.0, 60.0]).predict([[0.9]]).round(9).tolist()
    [[20.0, 60.0]]
    """

    def __init__(
        self,
        features: npt.ArrayLike,
        longitude: npt.ArrayLike,
        latitude: npt.ArrayLike,
        *,
        k: int = 1,
        weighting: str = "distance",
        device: str | torch.device = "cpu",
        index: Index | None = None,
    ) -> None:
        self.index = index
        self.features = np.asanyarray(features)
        self.longitude = np.asarray(longitude, dtype=np.float64)
        self.latitude = np.asarray(latitude, dtype=np.float64)
        self.k, self.weighting, self.device = k, weighting, torch.device(device)
        shapes = (self.features.shape, self.longitude.shape, self.latitude.shape)
        if self.features.ndim != 2 or shapes[1:] != (shapes[0][:1],) * 2:
            raise ValueError(f"features, longitude, latitude have shapes {shapes}; expected (M, D), (M,), (M,)")
        if not 1 <= k <= len(self.features) or weighting not in ("distance", "equal"):
            raise ValueError(
                f"k is {k}, not in 1..{len(self.features)}, or weighting {weighting!r} is not 'distance' or 'equal'"
            )
        if not np.isfinite(self.longitude + self.latitude).all():
            raise ValueError(
                f"place of row {int(np.argmin(np.isfinite(self.longitude + self.latitude)))} is not finite"
            )

    def predict(self, features: npt.ArrayLike) -> FloatArray:
        """Estimate places.

        Parameters
        ----------
        features : array_like of float, shape (N, D)
            Of the images to locate.

        Returns
        -------
        ndarray of float64, shape (N, 2)
            Longitude, latitude in degrees.

        Raises
        ------
        ValueError
            The features have another number of columns, or are not finite.

        Examples
        --------
        >>> pair = NearestNeighbours([[0.0], [1.0]], [10.0, 20.0], [0.0, 0.0], k=2, weighting="equal")
        >>> pair.predict([[0.1]]).round(9).tolist()
        [[15.0, 0.0]]
        """
        index, distance = self.neighbours(features)
        if self.k == 1:
            return np.stack([self.longitude[index[:, 0]], self.latitude[index[:, 0]]], axis=1)
        places = sphere.to_directions(self.longitude[index], self.latitude[index])  # (N, k, 3)
        total = (shares(distance, self.weighting)[..., None] * places).sum(axis=1)
        opposite = np.linalg.norm(total, axis=1, keepdims=True) < 1e-9  # places that cancel have no mean
        return np.stack(sphere.to_longitude_latitude(np.where(opposite, places[:, 0], total)), axis=1)

    def neighbours(self, features: npt.ArrayLike) -> tuple[IntArray, FloatArray]:
        """Find the nearest training images.

        Parameters
        ----------
        features : array_like of float, shape (N, D)
            Of the images to locate.

        Returns
        -------
        index : ndarray of int64, shape (N, k)
            Rows of the training images, nearest first; of equally near ones the earlier row.
        distance : ndarray of float64, shape (N, k)
            Euclidean distances of features.

        Raises
        ------
        ValueError
            The features have another number of columns, or are not finite.

        Examples
        --------
        >>> search = NearestNeighbours([[0.0], [1.0], [3.0]], [0.0] * 3, [0.0] * 3, k=2)
        >>> [found.tolist() for found in search.neighbours([[0.75]])]
        [[[1, 0]], [[0.25, 0.75]]]
        """
        queries = np.asarray(features, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.features.shape[1] or not np.isfinite(queries).all():
            raise ValueError(
                f"features have shape {queries.shape}, expected (N, {self.features.shape[1]}), all of them finite"
            )
        found = [self._block(queries[start : start + _QUERIES]) for start in range(0, len(queries), _QUERIES)]
        index = np.concatenate([np.empty((0, self.k), dtype=np.int64), *(index for index, _ in found)])
        return index, np.concatenate([np.empty((0, self.k)), *(distance for _, distance in found)])

    def with_k(self, k: int) -> NearestNeighbours:
        """Give the same search for another number of neighbours.

        Parameters
        ----------
        k : int
            As in the class.

        Returns
        -------
        NearestNeighbours
            Shares the features.

        Examples
        --------
        >>> NearestNeighbours([[0.0], [1.0]], [10.0, 20.0], [50.0, 60.0]).with_k(2).k
        2
        """
        options = {"weighting": self.weighting, "device": self.device, "index": self.index}
        return NearestNeighbours(self.features, self.longitude, self.latitude, k=k, **options)  # type: ignore[arg-type]  # options of several kinds

    def _block(self, queries: npt.NDArray[np.float32]) -> tuple[IntArray, FloatArray]:
        if self.index is None:
            candidates, hidden = self._candidates(queries)
        else:
            candidates, hidden = self.index.candidates(queries, min(self.k + _SPARE, len(self.features)))
        index, squared = self._measured(queries, candidates)
        for row in np.flatnonzero(squared[:, -1] >= hidden):  # a row left out could be as near as the last one
            index[row], squared[row] = self._whole_row(queries[row])
        return index, np.sqrt(squared)

    def _candidates(self, queries: npt.NDArray[np.float32]) -> tuple[IntArray, FloatArray]:
        """Rank by products: k + some rows each, and how near (squared) a row that was left out can be at least."""
        x = torch.from_numpy(queries).to(self.device)
        best = torch.full((len(queries), 0), torch.inf, device=self.device)
        index = torch.zeros((len(queries), 0), dtype=torch.int64, device=self.device)
        longest = 0.0
        for start in range(0, len(self.features), _ROWS):
            rows = torch.from_numpy(self._rows(slice(start, start + _ROWS))).to(self.device)
            norm_squared = rows.square().sum(dim=1)
            longest = max(longest, _finite(norm_squared, start))
            score = torch.addmm(norm_squared, x, rows.T, alpha=-2.0)  # |row|^2 - 2 x.row ranks as the distance does
            pool = torch.cat([best, score], dim=1)
            best, chosen = pool.topk(min(self.k + _SPARE, pool.shape[1]), dim=1, largest=False)
            numbers = torch.arange(start, start + len(rows), device=self.device).expand(len(x), -1)
            index = torch.cat([index, numbers], dim=1).gather(1, chosen)
        own = np.square(queries.astype(np.float64)).sum(axis=1)
        if index.shape[1] == len(self.features):
            return _int64(index), np.full(len(queries), np.inf)  # nothing was left out
        error = _product_error(queries.shape[1]) * (2.0 * np.sqrt(longest * own) + longest)
        return _int64(index), best.amax(dim=1).double().cpu().numpy() + own - error

    def _measured(self, queries: npt.NDArray[np.float32], candidates: IntArray) -> tuple[IntArray, FloatArray]:
        """Order candidates by their true squared distances and keep k."""
        candidates = np.sort(candidates, axis=1)
        squared = np.empty(candidates.shape)
        step = max(1, _MEASURED_VALUES // (candidates.shape[1] * queries.shape[1]))
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            rows = self._rows(candidates[block]).astype(np.float64)  # (n, k + some, D)
            squared[block] = np.square(rows - queries[block, None].astype(np.float64)).sum(axis=2)
        order = np.argsort(squared, axis=1, kind="stable")[:, : self.k]
        return np.take_along_axis(candidates, order, axis=1), np.take_along_axis(squared, order, axis=1)

    def _whole_row(self, query: npt.NDArray[np.float32]) -> tuple[IntArray, FloatArray]:
        squared = np.empty(len(self.features))
        step = max(1, _MEASURED_VALUES // len(query))
        for start in range(0, len(self.features), step):
            block = slice(start, start + step)
            squared[block] = np.square(self._rows(block).astype(np.float64) - query.astype(np.float64)).sum(axis=1)
        order = np.argsort(squared, kind="stable")[: self.k]
        return order, squared[order]

    def _rows(self, rows: slice | IntArray) -> npt.NDArray[np.float32]:
        return np.array(self.features[rows], dtype=np.float32)


def shares(distance: FloatArray, weighting: str) -> FloatArray:
    """Give the weights of neighbours, relative to the nearest's, so that no distance overflows.

    Parameters
    ----------
    distance : ndarray of float64, shape (N, k)
        Of features, ascending.
    weighting : {"distance", "equal"}
        As in `NearestNeighbours`.

    Returns
    -------
    ndarray of float64, shape (N, k)
        The first of each row is 1; they do not sum to 1.

    Examples
    --------
    >>> shares(np.array([[1.0, 2.0]]), "distance").tolist()
    [[1.0, 0.25]]
    """
    if weighting == "equal":
        return np.ones_like(distance)
    nearest = distance[:, :1]
    same = distance == nearest
    return np.where(same, 1.0, np.square(nearest / np.where(same, 1.0, distance)))


def _product_error(columns: int) -> float:
    """Bound the error of a sum of D products by this times the lengths of both vectors."""
    exact = (columns + 4) * 2.0**-24
    return exact if torch.get_float32_matmul_precision() == "highest" else exact + 2.0**-8  # factors cut to bfloat16


def _finite(norm_squared: Tensor, start: int) -> float:
    """Give the largest squared length of a block of training rows."""
    largest = float(norm_squared.max())
    if not np.isfinite(largest):
        row = start + int((~norm_squared.isfinite()).nonzero()[0, 0])
        raise ValueError(f"features of training row {row} are not finite")
    return largest


def _int64(index: Tensor) -> IntArray:
    return index.cpu().numpy()
