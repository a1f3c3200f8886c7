"""What is done to a chunk of logits, element by element, between the matrix products of the streamed losses.

Forward: bias, shift, exponential, the sum of each row, rounding to what is kept. Backward: from exponentials to the
gradient by the logits in the type of the next product, and its sum over rows. `Eager` does it with torch's own
functions, everywhere; on CUDA `triton_epilogues` reads and writes every chunk once. `epilogue_choice` decides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from geo_mvmf.model.output_layer import OutputLayer

LEAST_SHIFT = -1e30  # of rows whose logits so far are all -inf
UNDERFLOW = -87.0  # exp of less is denormal or 0, and takes MKL a hundred times as long
LEAST_SUM = math.exp(UNDERFLOW)  # of a row of a chunk, so that its logarithm is a number
_SAMPLED = 8  # one row in so many is looked at for that


@dataclasses.dataclass(frozen=True)
class Chunk:
    """The arrays of a chunk of b components.

    Parameters
    ----------
    part : slice
        Which components.
    logits : Tensor of the working type, shape (N, b)
        Where logits come to stand.
    shift : Tensor of the working type, shape (N,)
        What is subtracted from the logits of each row before they are exponentiated; at least `LEAST_SHIFT`.
    known : bool
        Whether it is; else the forward pass finds it: the largest logit of each row.
    whole : bool
        Whether the logits less their shifts are needed, too.
    spare : Tensor of the working type, shape (N, b)
        For what comes of the logits; may be their own array where they are not needed.
    kept : Tensor, shape (N, b), optional
        Where the forward pass leaves the exponentials, rounded to its type, and the backward pass finds them. None:
        they are formed again.
    formed : bool
        In the backward pass: whether the logits less their shifts are there from the forward pass.
    narrow : Tensor of the type of the products' factors, shape (N, b), optional
        In the backward pass: for the gradient, where that is not the working type.
    """

    part: slice
    logits: Tensor
    shift: Tensor
    known: bool
    whole: bool
    spare: Tensor
    kept: Tensor | None = None
    formed: bool = False
    narrow: Tensor | None = None


class Pulls(NamedTuple):
    """What is subtracted from single elements of a chunk.

    Parameters
    ----------
    places : Tensor of int64, shape (P,)
        In the (N, b) array, as one row; no place twice.
    values : Tensor of the working type, shape (P,)
        One for each.
    """

    places: Tensor
    values: Tensor


Gather = Callable[[Tensor, Tensor | None, Tensor | None], None]
"""Takes in logits (N, b), the shifts (N,) that were subtracted and the bias (b,) that is still to be added, if any."""

Subtract = Callable[[Tensor, Tensor], None]
"""Subtracts from the gradient (N, b), given second, a function of the logits less their shifts, given first."""


class Epilogues(Protocol):
    """One way to do it."""

    @property
    def name(self) -> str:
        """What `epilogue_choice` calls it."""

    def add_up(self, layer: OutputLayer, chunk: Chunk, gather: Gather) -> Tensor:
        """Form the exponentials of a chunk, and keep them where that is asked for.

        Parameters
        ----------
        layer : OutputLayer
            N features, C components.
        chunk : Chunk
            Its shift is overwritten where it is not known.
        gather : callable
            Is given the logits once.

        Returns
        -------
        Tensor of float64, shape (N,)
            Logarithms of their sums: how far each row rises above its shift.
        """

    def gradient(
        self, layer: OutputLayer, chunk: Chunk, factor: Tensor, minus: Pulls | Subtract, *, sums: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Give the gradient by the logits of a chunk.

        Parameters
        ----------
        layer : OutputLayer
            As in the forward pass.
        chunk : Chunk
            With the shifts of the forward pass.
        factor : Tensor of the working type, shape (N,)
            What the exponentials of each row are multiplied by.
        minus : Pulls or callable
            What is subtracted then; a callable where logits are needed whole.
        sums : bool
            Whether the sums are wanted.

        Returns
        -------
        gradient : Tensor, shape (N, b)
            Of the type of the products' factors.
        sums : Tensor or None, shape (b,)
            Of its unrounded values over the rows.
        """


class Eager:
    """The epilogues by torch's own functions, on any device.

    Examples
    --------
    >>> layer, found = OutputLayer(torch.zeros(1, 1), torch.zeros(2, 1), torch.tensor([1.0, 3.0])), torch.empty(1, 2)
    >>> chunk = Chunk(slice(0, 2), found, torch.empty(1), known=False, whole=False, spare=found)
    >>> rise = Eager().add_up(layer, chunk, lambda logits, shift, bias: None)
    >>> rise.exp().sub(1.0).log().tolist(), chunk.shift.tolist()
    ([-2.0], [3.0])
    """

    name = "eager"

    def add_up(self, layer: OutputLayer, chunk: Chunk, gather: Gather) -> Tensor:
        """Form exponentials; as `Epilogues.add_up`."""
        logits = chunk.logits
        if chunk.known:
            layer.logits(chunk.part, logits, chunk.shift)
        else:
            layer.logits(chunk.part, logits)
            torch.amax(logits, dim=1, out=chunk.shift).clamp_(min=LEAST_SHIFT)
            logits.sub_(chunk.shift[:, None])
        gather(logits, chunk.shift, None)
        is_rounded = chunk.kept is not None and chunk.kept.dtype != logits.dtype
        shares = _exp(logits, chunk.spare if chunk.kept is None or is_rounded else chunk.kept)
        if chunk.kept is not None and is_rounded:
            chunk.kept.copy_(shares)
        return shares.sum(dim=1).double().clamp_(min=LEAST_SUM).log_()

    def gradient(
        self, layer: OutputLayer, chunk: Chunk, factor: Tensor, minus: Pulls | Subtract, *, sums: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Give the gradient by the logits; as `Epilogues.gradient`."""
        shares = self._shares_again(layer, chunk) if chunk.kept is None else chunk.kept
        if shares.dtype == chunk.spare.dtype:
            gradient = torch.mul(shares, factor[:, None], out=chunk.spare)
        else:  # torch multiplies two types in a third of the speed
            gradient = chunk.spare.copy_(shares).mul_(factor[:, None])
        if isinstance(minus, Pulls):
            gradient.view(-1).index_add_(0, minus.places, minus.values, alpha=-1)
        else:
            minus(chunk.logits, gradient)
        summed = gradient.sum(dim=0) if sums else None
        return (gradient if chunk.narrow is None else chunk.narrow.copy_(gradient)), summed

    def _shares_again(self, layer: OutputLayer, chunk: Chunk) -> Tensor:
        """The same operations in the same order: the same bits as in the forward pass."""
        if not chunk.formed:
            layer.logits(chunk.part, chunk.logits, chunk.shift if chunk.known else None)
            if not chunk.known:
                chunk.logits.sub_(chunk.shift[:, None])
        return _exp(chunk.logits, chunk.spare)


def _exp(values: Tensor, out: Tensor) -> Tensor:
    """Exponentiate, without the slow path of denormals on CPUs: exp(-87) = 1.6e-38 stands for all that is less.

    Where that is needed is seen from some of the rows: others would cost time alone.
    """
    some = values[::_SAMPLED]
    if values.device.type == "cpu" and some.numel() and float(some.amin()) < UNDERFLOW + 5.0:
        return torch.clamp(values, min=UNDERFLOW, out=out).exp_()
    return torch.exp(values, out=out)
