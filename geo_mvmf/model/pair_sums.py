"""Sums over pairs of rows and components: what the streamed losses need of single logits, and give back to them.

The numerator of cross entropy is one pair a row; that of the MvMF loss is a few, mostly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from geo_mvmf.model import streaming
from geo_mvmf.model.components import ComponentGradients, Components
from geo_mvmf.model.epilogues import Pulls
from geo_mvmf.model.output_layer import OutputLayer

_RUN = 1 << 14  # pairs worked on at once in float64


class PairLogits:
    """The logits of chosen pairs of rows and components, picked out of the chunks as they pass.

    Parameters
    ----------
    rows, columns : Tensor of int32, shape (P,)
        Row and component of each pair, in any order.
    n, num_components : int
        N and C.

    Examples
    --------
    >>> pairs = PairLogits(torch.tensor([0, 1]).int(), torch.tensor([1, 0]).int(), 2, 2)
    >>> pairs.gather(0, slice(0, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2))
    >>> pairs.logits.tolist()
    [2.0, 3.0]
    """

    def __init__(self, rows: Tensor, columns: Tensor, n: int, num_components: int) -> None:
        self.rows, self.columns = rows, columns
        self._parts = streaming.chunks(n, num_components, rows.device)
        chunk = columns // self._parts[0].stop
        self.order: Tensor | None = None  # that brought the pairs chunk by chunk
        if bool((chunk[1:] < chunk[:-1]).any()):
            self.order = torch.argsort(chunk, stable=True)
            self.rows, self.columns, chunk = rows[self.order], columns[self.order], chunk[self.order]
        ends = torch.bincount(chunk, minlength=len(self._parts)).cumsum(0).tolist()
        self.spans = [slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
        self.logits = torch.empty(0)

    def ordered(self, values: Tensor) -> Tensor:
        """Bring what belongs to the pairs, (P,), into the order of `rows` and `columns` here."""
        return values if self.order is None else values[self.order]

    def gather(self, index: int, part: slice, logits: Tensor, shift: Tensor | None, bias: Tensor | None = None) -> None:
        """Take those of a chunk; parameters as `streaming.Numerator.gather`."""
        if index == 0:
            self.logits = torch.empty(len(self.rows), dtype=logits.dtype, device=logits.device)
        span = self.spans[index]
        taken = logits.view(-1).index_select(0, self.places(index, part))
        if shift is not None:
            taken.add_(shift.index_select(0, self.rows[span]))
        if bias is not None:
            taken.add_(bias.index_select(0, self.columns[span] - part.start))
        self.logits[span] = taken

    def places(self, index: int, part: slice) -> Tensor:
        """Where the pairs of a chunk stand in its (N, b) array, as one row."""
        span = self.spans[index]
        columns = self.columns[span] - part.start
        return torch.add(columns, self.rows[span].long(), alpha=part.stop - part.start)


class TargetLogits:
    """The numerator of cross entropy: the logit of the class of each row.

    Parameters
    ----------
    target : Tensor of int64, shape (N,)
        Indices of classes.
    num_components : int
        C, the number of classes.

    Examples
    --------
    >>> numerator = TargetLogits(torch.tensor([1]), 2)
    >>> numerator.gather(0, slice(0, 2), torch.tensor([[3.0, 4.0]]), torch.zeros(1))
    >>> numerator.value().tolist()
    [4.0]
    """

    whole_logits = False

    def __init__(self, target: Tensor, num_components: int) -> None:
        rows = torch.arange(len(target), dtype=torch.int32, device=target.device)
        self._shape = len(target), num_components
        self._pairs = PairLogits(rows, target.int(), len(target), num_components)
        self.gather = self._pairs.gather

    def complete(self, layer: OutputLayer, denominator: Tensor) -> None:
        """Nothing can be missing; parameters as `streaming.Numerator.complete`."""

    def value(self) -> Tensor:
        """Give the target's logit, float64, (N,)."""
        value = torch.empty(len(self._pairs.rows), dtype=torch.float64, device=self._pairs.rows.device)
        value[self._pairs.rows.long()] = self._pairs.logits.double()
        return value

    def derivative(self, working: torch.dtype) -> PairShares:
        """Give the derivative of the value by the logits.

        Parameters
        ----------
        working : torch.dtype
            Of the logits.
        """
        rows, columns = self._pairs.rows, self._pairs.columns
        return PairShares(rows, columns, torch.ones_like(rows, dtype=working), *self._shape)


class PairShares:
    """The derivative of a numerator that is a sum over pairs.

    Parameters
    ----------
    rows, columns : Tensor of int32, shape (P,)
        Row and component of each pair.
    shares : Tensor of the working type, shape (P,)
        Of the pair in the numerator of its row.
    n, num_components : int
        N and C.

    Examples
    --------
    >>> pairs = PairShares(torch.tensor([0]).int(), torch.tensor([1]).int(), torch.ones(1), 1, 2)
    >>> pulls = pairs.of_chunk(0, slice(0, 2), torch.zeros(1), torch.full((1,), 0.5))
    >>> pulls.places.tolist(), pulls.values.tolist()
    ([1], [0.5])
    """

    whole_logits = False

    def __init__(self, rows: Tensor, columns: Tensor, shares: Tensor, n: int, num_components: int) -> None:
        self._pairs = PairLogits(rows, columns, n, num_components)
        self._shares = self._pairs.ordered(shares)

    def of_chunk(
        self,
        index: int,
        part: slice,
        shift: Tensor,  # noqa: ARG002 (protocol)
        scale: Tensor,
    ) -> Pulls:
        """Give the shares of a chunk; parameters as `streaming.Derivative.of_chunk`."""
        span = self._pairs.spans[index]
        pull = self._shares[span] * scale.index_select(0, self._pairs.rows[span])
        return Pulls(self._pairs.places(index, part), pull)

    def by_components(self, components: Components, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Give the gradients by mean directions (C, 3), in space and not along the sphere, and log concentrations (C,).

        Parameters
        ----------
        components : Components
            C of them.
        y : Tensor of float64, shape (N, 3)
            Targets.
        scale : Tensor of the working type, shape (N,)
            Minus the gradient by the numerator.
        """
        gradients = ComponentGradients(components)
        for start in range(0, len(self._shares), _RUN):
            run = slice(start, start + _RUN)
            rows, columns = self._pairs.rows[run].long(), self._pairs.columns[run].long()
            gradients.add(y[rows], columns, (self._shares[run] * scale[rows]).double())
        return gradients.mean_directions, gradients.log_concentrations
