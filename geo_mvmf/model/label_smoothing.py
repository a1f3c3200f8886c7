"""Smoothed labels of classes: each class has a share of the target that falls off with its distance from the place.

PIGEON (Haas et al. 2024, eq. 2) gives class i, whose centre is g_i, of an image taken at x the label
``y_i ~ exp(-(d(g_i, x) - min_j d(g_j, x)) / tau)``. PIGEON leaves these as they are; here they are divided by their
sum, as a distribution is: else the loss, and with it the size of a step, would be larger where classes are small and
many of them are near, and the loss's least value would not belong to predicting the labels.

Cross entropy is then ``logsumexp(z) - sum_i y_i z_i``: a sum over pairs of images and classes. Two forms, as of the
numerator of the MvMF loss: `NearLabels` are pairs found by a tree, with a bound of what they leave out; `EveryLabel`
forms the labels of all classes chunk by chunk, for distances tau so great that most classes count.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from scipy import spatial
from torch import Tensor

from geo_mvmf import sphere
from geo_mvmf.model import streaming
from geo_mvmf.model.epilogues import Subtract
from geo_mvmf.model.numerators import runs
from geo_mvmf.model.output_layer import OutputLayer
from geo_mvmf.model.pair_sums import PairLogits, PairShares

FloatArray = npt.NDArray[np.float64]

MARGIN = {torch.float32: 17.0, torch.float64: 37.0}
"""Pairs leave out labels that together are less than exp(-margin) of the whole: 4e-8, or 9e-17."""

_SPARSE = 8  # pairs (16 bytes each) are taken where they are at most one in so many,
_ALWAYS = 1 << 17  # or no more than this


class LabelSmoothing:
    """Labels of places among classes that have centres.

    Parameters
    ----------
    centres : array_like of float, shape (C, 3)
        Unit vectors.
    tau_km : float
        Great-circle kilometres on which a label falls by a factor of e; positive (PIGEON: 75).

    Raises
    ------
    ValueError
        The distance is not positive and finite.

    Examples
    --------
    >>> smoothing = LabelSmoothing([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 75.0)
    >>> smoothing.labels(np.array([[0.8, 0.6, 0.0]]), torch.float32).columns.tolist()  # 1800 km nearer the first one
    [0]
    """

    def __init__(self, centres: npt.ArrayLike, tau_km: float) -> None:
        if not 0.0 < tau_km < math.inf:
            raise ValueError(f"label_smoothing_km is {tau_km}; a positive number of kilometres is needed, or None")
        self.centres = np.asarray(centres, dtype=np.float64)
        self.tau_km = float(tau_km)
        self._tree = spatial.cKDTree(self.centres)

    def labels(
        self, directions: FloatArray, working: torch.dtype, device: torch.device | str = "cpu"
    ) -> NearLabels | EveryLabel:
        """Give the labels of some places, in the form that takes less memory.

        Parameters
        ----------
        directions : ndarray of float64, shape (N, 3)
            Unit vectors.
        working : torch.dtype
            Of the logits: what is negligible follows from it.
        device : torch.device
            Where the logits are.

        Returns
        -------
        NearLabels or EveryLabel
            For `loss.cross_entropy_loss`.

        Raises
        ------
        ValueError
            A direction is not finite.

        Examples
        --------
        >>> smoothing = LabelSmoothing([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 1e4)
        >>> smoothing.labels(np.array([[0.8, 0.6, 0.0]]), torch.float64).shares.round(decimals=3).tolist()
        [0.545, 0.455]
        """
        if not np.isfinite(directions).all():
            row = int(np.argmin(np.isfinite(directions).all(axis=1)))
            raise ValueError(f"direction {row} is {directions[row].tolist()}, not finite")
        tau = self.tau_km / sphere.EARTH_RADIUS_KM
        nearest = 2.0 * np.arcsin(np.minimum(self._tree.query(directions)[0] / 2.0, 1.0))
        # C classes beyond this depth have less than exp(-margin) of the nearest one's label together.
        depth = MARGIN[working] + math.log(len(self.centres))
        reach = 2.0 * np.sin(np.minimum(nearest + depth * tau, np.pi) / 2.0) * (1.0 + 1e-12) + 1e-15  # as a chord
        counts = np.asarray(self._tree.query_ball_point(directions, reach, return_length=True))
        if counts.sum() > max(len(directions) * len(self.centres) // _SPARSE, _ALWAYS):
            y, centres = torch.from_numpy(directions).to(device), torch.from_numpy(self.centres).to(device)
            return EveryLabel(y, centres, tau)
        found = self._tree.query_ball_point(directions, reach, return_sorted=True)
        columns = np.concatenate([np.empty(0, np.int64), *(np.asarray(each, np.int64) for each in found)])
        rows = np.repeat(np.arange(len(directions)), counts)
        chord = np.linalg.norm(directions[rows] - self.centres[columns], axis=1)
        farther = 2.0 * np.arcsin(np.minimum(chord / 2.0, 1.0)) - nearest[rows]
        shares = np.exp(-farther / tau)
        shares /= np.bincount(rows, shares, minlength=len(directions))[rows]
        pairs = [torch.from_numpy(each.astype(np.int32)).to(device) for each in (rows, columns)]
        share = torch.from_numpy(shares).to(device)
        return NearLabels(pairs[0], pairs[1], share, len(directions), len(self.centres))


class NearLabels:
    """Labels as pairs of rows and classes; also the numerator of cross entropy with them.

    Parameters
    ----------
    rows, columns : Tensor of int32, shape (P,)
        Row and class of each pair.
    shares : Tensor of float64, shape (P,)
        Labels; they sum to 1 in each row.
    n, num_classes : int
        N and C.

    Examples
    --------
    >>> pairs = torch.tensor([0, 0]).int(), torch.tensor([0, 1]).int(), torch.tensor([0.25, 0.75]).double()
    >>> labels = NearLabels(*pairs, 1, 2)
    >>> labels.gather(0, slice(0, 2), torch.tensor([[4.0, 8.0]]), torch.zeros(1))
    >>> labels.value().tolist()
    [7.0]
    """

    whole_logits = False

    def __init__(self, rows: Tensor, columns: Tensor, shares: Tensor, n: int, num_classes: int) -> None:
        self.rows, self.columns, self.shares = rows, columns, shares
        self.shape = n, num_classes
        self._pairs = PairLogits(rows, columns, n, num_classes)
        self.gather = self._pairs.gather

    def complete(self, layer: OutputLayer, denominator: Tensor) -> None:
        """Nothing can be missing; parameters as `streaming.Numerator.complete`."""

    def value(self) -> Tensor:
        """Give the labelled mean of the logits, float64, (N,)."""
        terms = self._pairs.logits.double() * self._pairs.ordered(self.shares)
        value = torch.zeros(self.shape[0], dtype=torch.float64, device=terms.device)
        return value.index_add_(0, self._pairs.rows.long(), terms)

    def derivative(self, working: torch.dtype) -> PairShares:
        """Give the derivative of the value by the logits.

        Parameters
        ----------
        working : torch.dtype
            Of the logits.
        """
        return PairShares(self.rows, self.columns, self.shares.to(working), *self.shape)


class EveryLabel:
    """Labels of all classes, formed chunk by chunk; the numerator of cross entropy with them, and its derivative.

    Parameters
    ----------
    y : Tensor of float64, shape (N, 3)
        Unit vectors: the places.
    centres : Tensor of float64, shape (C, 3)
        Unit vectors: the classes.
    tau : float
        Radians on which a label falls by a factor of e.

    Examples
    --------
    >>> ends = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]).double()
    >>> labels = EveryLabel(torch.tensor([[1.0, 0.0, 0.0]]).double(), ends, 1.0)
    >>> labels.gather(0, slice(0, 2), torch.tensor([[4.0, 8.0]]), torch.zeros(1))
    >>> labels.value().tolist()
    [6.0]
    """

    whole_logits = True

    def __init__(self, y: Tensor, centres: Tensor, tau: float) -> None:
        self._y, self._centres, self._tau = y, centres, tau
        self.shape = len(y), len(centres)
        self._value = torch.zeros_like(y[:, 0])
        self._log_total = torch.full_like(y[:, 0], -math.inf)
        for part in streaming.chunks(*self.shape, y.device):
            for run in runs(y[:, :1].expand(-1, part.stop - part.start)):
                found = torch.logsumexp(self._log_labels(run, part), dim=1)
                self._log_total[run] = torch.logaddexp(self._log_total[run], found)

    def of(self, run: slice, part: slice) -> Tensor:
        """Give the labels of some rows and classes.

        Parameters
        ----------
        run, part : slice
            R rows, b classes.

        Returns
        -------
        Tensor of float64, shape (R, b)
            Those of all classes sum to 1.
        """
        return self._log_labels(run, part).sub_(self._log_total[run, None]).exp_()

    def gather(self, index: int, part: slice, logits: Tensor, shift: Tensor | None, bias: Tensor | None = None) -> None:
        """Take in a chunk; parameters as `streaming.Numerator.gather`."""
        if shift is None or bias is not None:
            raise ValueError("every class counts: the logits are needed whole, and with their bias")
        if index == 0:
            self._value = torch.zeros_like(self._value)
        for run in runs(logits):
            labels = self.of(run, part)
            self._value[run] += torch.linalg.vecdot(labels, logits[run].double()) + labels.sum(1) * shift[run].double()

    def complete(self, layer: OutputLayer, denominator: Tensor) -> None:
        """Nothing can be missing; parameters as `streaming.Numerator.complete`."""

    def value(self) -> Tensor:
        """Give the labelled mean of the logits, float64, (N,)."""
        return self._value

    def derivative(self, working: torch.dtype) -> EveryLabel:  # noqa: ARG002 (as `NearLabels.derivative`)
        """Give the derivative of the value by the logits: itself."""
        return self

    def of_chunk(self, index: int, part: slice, shift: Tensor, scale: Tensor) -> Subtract:  # noqa: ARG002 (protocol)
        """Give what subtracts the labels; parameters as `streaming.Derivative.of_chunk`."""

        def subtract(logits: Tensor, d_logits: Tensor) -> None:
            for run in runs(logits):
                d_logits[run] -= self.of(run, part).mul_(scale[run, None]).to(d_logits.dtype)

        return subtract

    def _log_labels(self, run: slice, part: slice) -> Tensor:
        # Differences of coordinates one by one: a product would lose the small ones.
        chord_squared = (self._y[run, 0, None] - self._centres[part, 0]).square_()
        for axis in (1, 2):
            difference = self._y[run, axis, None] - self._centres[part, axis]
            chord_squared.addcmul_(difference, difference)
        return chord_squared.sqrt_().mul_(0.5).clamp_(max=1.0).asin_().mul_(-2.0 / self._tau)
