"""The numerator of the MvMF loss: logsumexp of logits plus log densities, over the components that count.

Two forms. `NearComponents` works on pairs of targets and components that were found before (`near_pairs`), and knows
what it left out: components whose log density is below a stated value. All of them together hold at most the
denominator of the loss times that density, so once the denominator is known, the rows for which this is not negligible
are known, too, and are summed over all components. `EveryComponent` needs no such thing, for concentrations so small
that most components count.

In both, logit and log density are added relative to the greatest log density of the row, taken in float64, so that the
nearest of several components stays the nearest where log f is -10^9, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from geo_mvmf.model import near_pairs, streaming
from geo_mvmf.model.components import ComponentGradients, Components
from geo_mvmf.model.epilogues import Subtract
from geo_mvmf.model.output_layer import OutputLayer
from geo_mvmf.model.pair_sums import PairLogits

_MARGIN = {torch.float32: 20.0, torch.float64: 50.0}  # nats: what is left out is 2e-9 of the sum, or 2e-22
_REACH = 28.0  # nats beyond the margin that pairs go down: rows with likelier places than the true one by e^28 are rare
_SPARSE = 8  # pairs are worth finding where at most one in so many has to be evaluated
_KEPT = 32  # and at most one in so many is kept: they take memory
_ALWAYS = 1 << 17  # and where there are no more of them than this
_UNDERFLOW = -80.0  # exp of less is 0 for a float32 sum, and through denormals ten times slower on CPUs
_SINGLE_BELOW = 150.0  # kappa up to which float32 coordinates err by less than 5e-6 nat where it matters


def numerator_of(
    mean_directions: Tensor, log_concentrations: Tensor, y: Tensor, working: torch.dtype
) -> NearComponents | EveryComponent:
    """Choose the form of the numerator for some targets.

    Parameters
    ----------
    mean_directions : Tensor of float64, shape (C, 3)
        Unit vectors (others are allowed).
    log_concentrations : Tensor of float64, shape (C,)
        Natural logarithms of kappa.
    y : Tensor of float64, shape (N, 3)
        Targets.
    working : torch.dtype
        Of the logits.

    Returns
    -------
    NearComponents or EveryComponent
        Numerators of `streaming`.

    Examples
    --------
    >>> north = torch.tensor([[0.0, 0.0, 1.0]]).double()
    >>> near = numerator_of(north, torch.tensor([16.0]).double(), north, torch.float32)
    >>> layer = OutputLayer(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1))
    >>> sums = streaming.forward(layer, near, budget_bytes=0)
    >>> round(float(near.value() - sums.denominator), 4)
    14.1621
    """
    components = Components.of(mean_directions, log_concentrations)
    every = len(y) * len(mean_directions)
    most, most_kept = max(every // _SPARSE, _ALWAYS), max(every // _KEPT, _ALWAYS)
    depth = _MARGIN[working] + _REACH
    pairs = near_pairs.find(components, y, depth=depth, working=working, most=most, most_kept=most_kept)
    return EveryComponent(components, y, working) if pairs is None else NearComponents(components, y, pairs)


class NearComponents:
    """The numerator of the MvMF loss as a sum over pairs of targets and components.

    Parameters
    ----------
    components : Components
        C of them.
    y : Tensor of float64, shape (N, 3)
        Targets.
    pairs : near_pairs.Pairs
        Those that can count.

    Examples
    --------
    >>> north = torch.tensor([[0.0, 0.0, 1.0]]).double()
    >>> one = Components(north, torch.ones(1).double(), torch.zeros(1).double())
    >>> near = NearComponents(one, north, near_pairs.find(one, north, depth=60.0, working=torch.float32, most=1))
    >>> near.gather(0, slice(0, 1), torch.ones(1, 1), torch.ones(1))
    >>> near.complete(OutputLayer(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1)), torch.full((1,), 2.0))
    >>> near.value().tolist()
    [2.0]
    """

    whole_logits = False

    def __init__(self, components: Components, y: Tensor, pairs: near_pairs.Pairs) -> None:
        self._components, self._y, self._best, self._depth = components, y, pairs.best, pairs.depth
        self._pairs = PairLogits(pairs.rows, pairs.columns, len(y), len(components.mean_directions))
        self._relative = self._pairs.ordered(pairs.relative)
        self.rows, self.columns = self._pairs.rows, self._pairs.columns
        self.gather = self._pairs.gather

    def complete(self, layer: OutputLayer, denominator: Tensor) -> None:
        """Sum rows over all components where pairs may not do; parameters as `streaming.Numerator.complete`."""
        self._joint = self._pairs.logits.add_(self._relative)  # logit plus log density, less the best one of the row
        self._value = self._add_up()
        self._drop(self._value, _MARGIN[layer.working])
        left_out = self._best - self._depth + denominator  # a bound of the log of its sum
        enough = (left_out <= self._value - _MARGIN[layer.working]) | self._value.isnan()
        rows = enough.logical_not_().nonzero().squeeze(1)
        if len(rows):
            self._sum_all(layer, rows)

    def value(self) -> Tensor:
        """Give the numerator, float64, (N,); after `complete`."""
        return self._value

    def shares(self, value: Tensor) -> Tensor:
        """Give the shares of the pairs in a numerator.

        Parameters
        ----------
        value : Tensor of float64, shape (N,)
            The numerator; of all components, where these are only some of them.

        Returns
        -------
        Tensor of the working type, shape (P,)
            exp(logit + log density - numerator) of `rows`, `columns`.
        """
        relative = (value - self._best).to(self._joint.dtype)
        return _exp(self._joint - relative.index_select(0, self.rows))

    def _add_up(self) -> Tensor:
        top = torch.full_like(self._best, -math.inf, dtype=self._joint.dtype)
        top.scatter_reduce_(0, self.rows.long(), self._joint, "amax")
        terms = _exp(self._joint - top.index_select(0, self.rows)).double()
        total = torch.zeros_like(self._best).index_add_(0, self.rows, terms)
        value = self._best + top + total.log()
        return value.masked_fill_(top == -math.inf, -math.inf)  # where all pairs are impossible, others may not be

    def _drop(self, value: Tensor, margin: float) -> None:
        """Leave out the pairs that are negligible now that their logits are known."""
        least = (value - self._best - margin).to(self._joint.dtype)
        stays = (~(self._joint < least.index_select(0, self.rows))).nonzero().squeeze(1)
        self.rows, self.columns, self._joint = (
            each.index_select(0, stays) for each in (self.rows, self.columns, self._joint)
        )

    def _sum_all(self, layer: OutputLayer, rows: Tensor) -> None:
        """Sum some rows over all components, and put the pairs that count in place of theirs."""
        some = dataclasses.replace(layer, features=layer.features[rows])
        value, row, column, joint = _sum_of_all(some, self._components, self._y[rows])
        self._value[rows] = value
        joint = (joint - self._best[rows][row]).to(layer.working)
        stays = ~torch.isin(self.rows.long(), rows)
        self.rows = torch.cat([self.rows[stays], rows[row].int()])
        self.columns = torch.cat([self.columns[stays], column.int()])
        self._joint = torch.cat([self._joint[stays], joint])


class EveryComponent:
    """The numerator of the MvMF loss, and its derivative, over all components.

    Parameters
    ----------
    components : Components
        C of them.
    y : Tensor of float64, shape (N, 3)
        Targets.
    working : torch.dtype
        Of the logits.
    value : Tensor of float64, shape (N,), optional
        The numerator; in the backward pass.
    by_components : bool
        Whether the backward pass is asked for the gradients by the components, too.

    Examples
    --------
    >>> north = torch.tensor([[0.0, 0.0, 1.0]]).double()
    >>> every = EveryComponent(Components(north, torch.ones(1).double(), torch.zeros(1).double()), north, torch.float64)
    >>> every.gather(0, slice(0, 1), torch.ones(1, 1), torch.ones(1))
    >>> every.value().tolist()
    [2.0]
    """

    whole_logits = True

    def __init__(
        self,
        components: Components,
        y: Tensor,
        working: torch.dtype,
        *,
        value: Tensor | None = None,
        by_components: bool = False,
    ) -> None:
        self._y, self._value = y, torch.full_like(y[:, 0], -math.inf) if value is None else value
        self._gradients = ComponentGradients(components) if by_components else None
        single = working == torch.float32 and bool(components.concentrations.amax() < _SINGLE_BELOW)
        self._coordinates = torch.float32 if single else torch.float64
        self._components = components.to(self._coordinates)

    def gather(self, index: int, part: slice, logits: Tensor, shift: Tensor | None, bias: Tensor | None = None) -> None:
        """Take in a chunk; parameters as `streaming.Numerator.gather`."""
        if shift is None or bias is not None:
            raise ValueError("every component counts: the logits are needed whole, and with their bias")
        if index == 0:
            self._value = torch.full_like(self._value, -math.inf)
        for run in runs(logits):
            joint = self._log_density(run, part).add_(logits[run])
            top = joint.amax(dim=1)
            total = _exp(joint.sub_(top[:, None]).to(logits.dtype)).sum(dim=1)
            found = shift[run].double() + top + total.double().log()
            self._value[run] = torch.logaddexp(self._value[run], found)

    def complete(self, layer: OutputLayer, denominator: Tensor) -> None:
        """Nothing can be missing; parameters as `streaming.Numerator.complete`."""

    def value(self) -> Tensor:
        """Give the numerator, float64, (N,)."""
        return self._value

    def of_chunk(self, index: int, part: slice, shift: Tensor, scale: Tensor) -> Subtract:
        """Give what subtracts the shares; parameters as `streaming.Derivative.of_chunk`."""
        return lambda logits, d_logits: self.subtract(index, part, logits, shift, scale, d_logits)

    def subtract(
        self, index: int, part: slice, logits: Tensor | None, shift: Tensor, scale: Tensor, d_logits: Tensor
    ) -> None:
        """Subtract the shares of a chunk, (N, b), from `d_logits`; parameters as `streaming.Derivative.of_chunk`."""
        del index
        if logits is None:
            raise ValueError("every component counts: the logits are needed whole")
        relative = shift.double() - self._value
        for run in runs(logits):
            log_f = self._log_density(run, part)
            joint = (log_f + logits[run]).add_(relative[run, None].to(log_f.dtype))
            pull = _exp(joint.to(logits.dtype)).mul_(scale[run, None])
            d_logits[run] -= pull
            if self._gradients is not None:
                self._gradients.add_chunk(self._y[run], part, pull.double(), log_f)

    def by_components(self, components: Components, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Give the gradients that all chunks together left; as `PairShares.by_components`."""
        if self._gradients is None:
            raise ValueError("gradients by the components were not asked for")
        return self._gradients.mean_directions, self._gradients.log_concentrations

    def _log_density(self, run: slice, part: slice) -> Tensor:
        return self._components.log_density(self._y[run].to(self._coordinates), part)


def runs(array: Tensor) -> Iterator[slice]:
    """Cut rows into runs that bound the memory of float64 work.

    Parameters
    ----------
    array : Tensor, shape (R, b)
        What is worked on.

    Yields
    ------
    slice
        They cover 0..R in order.

    Examples
    --------
    >>> list(runs(torch.empty(5, 1 << 15)))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, near_pairs.run_elements(array) // max(array.shape[1], 1))
    for start in range(0, array.shape[0], step):
        yield slice(start, min(start + step, array.shape[0]))


def _sum_of_all(layer: OutputLayer, components: Components, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum logits and log densities over all components: sums (R,), and rows, columns, terms of what counts."""
    margin, found = _MARGIN[layer.working], []
    value = torch.full_like(y[:, 0], -math.inf)
    for part in streaming.chunks(len(y), len(layer.weight), y.device):
        buffer = torch.empty(len(y), part.stop - part.start, dtype=layer.working, device=y.device)
        logits = layer.logits(part, buffer)
        for run in runs(logits):
            joint = components.log_density(y[run], part).add_(logits[run])
            value[run] = torch.logaddexp(value[run], torch.logsumexp(joint, dim=1))
            row, column = (joint > (value[run] - margin)[:, None]).nonzero(as_tuple=True)
            found.append((row + run.start, column + part.start, joint[row, column]))
    row, column, joint = (torch.cat(each) for each in zip(*found, strict=True))
    keep = joint > value[row] - margin
    return value, row[keep], column[keep], joint[keep]


def _exp(values: Tensor) -> Tensor:
    return values.clamp_(min=_UNDERFLOW).exp_()
