"""An output layer W x + b and its softmax, streamed over components: no (N, C) array need ever exist.

A loss over C components here is ``logsumexp(z) - numerator`` with z = W x + b; the numerator is the target's logit
(cross entropy) or the logsumexp of z plus the components' log densities (MvMF). Both passes work on chunks of
components. The forward pass forms exp(z - shift) and adds it up; the shift of a row is the logarithm of the sum so far,
so that no pass looks for maxima. The backward pass scales these exponentials - kept within a budget of bytes, or formed
again in the same way, bit for bit - to the gradient by the logits.

All buffers are made once per pass: many short-lived ones would fragment the heap and hide what streaming saves.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Protocol

import torch
from torch import Tensor

from geo_mvmf.model import epilogue_choice, idle_memory
from geo_mvmf.model.epilogues import LEAST_SHIFT, Chunk, Pulls, Subtract
from geo_mvmf.model.output_layer import OutputLayer

CHUNK_ELEMENTS = 3 << 17  # (N, chunk) on a CPU: 1.5 MB of float32 a buffer, near the size of a core's cache,
_LARGE_CHUNK_ELEMENTS = 1 << 21  # or up to 8 MB, a 32nd of all logits
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24  # 64 MB: large enough to fill an accelerator,
_LARGE_ACCELERATOR_CHUNK_ELEMENTS = 1 << 26  # or up to four times that, a 16th of all logits: the host takes 0.2 ms to
# start the fifty kernels of a chunk, and products with few features are done sooner
_CHUNK_LIMITS = (256, 32768)  # narrower chunks waste the matrix product, wider ones the memory (twice that elsewhere)
_CHUNK_STEP = 64  # chunks are multiples of this where the limits allow it: whole cache lines, whole tiles
_LEAP = 40.0  # nats that a chunk may rise above its shift: much more, and scaling it down again would underflow


def chunks(n: int, num_components: int, device: torch.device) -> list[slice]:
    """Cut the components into runs; a function of sizes alone, so that a step can be repeated bit by bit.

    Parameters
    ----------
    n : int
        N, rows of the batch.
    num_components : int
        C.
    device : torch.device
        Where the work is done.

    Returns
    -------
    list of slice
        They cover 0..C in order.

    Examples
    --------
    >>> chunks(512, 2500, torch.device("cpu"))
    [slice(0, 768, None), slice(768, 1536, None), slice(1536, 2304, None), slice(2304, 2500, None)]
    >>> len(chunks(512, 1 << 20, torch.device("cuda")))
    16
    """
    least, most, share = CHUNK_ELEMENTS, _LARGE_CHUNK_ELEMENTS, 32
    low, high = _CHUNK_LIMITS
    if device.type != "cpu":
        least, most, share, high = ACCELERATOR_CHUNK_ELEMENTS, _LARGE_ACCELERATOR_CHUNK_ELEMENTS, 16, 2 * high
    elements = max(least, min(most, n * num_components // share))
    size = min(max(elements // max(n, 1) // _CHUNK_STEP * _CHUNK_STEP, low), high)
    return [slice(start, min(start + size, num_components)) for start in range(0, num_components, size)]


class Numerator(Protocol):
    """What is subtracted from logsumexp(z), gathered chunk by chunk."""

    @property
    def whole_logits(self) -> bool:
        """Whether its derivative needs the logits of a chunk."""

    def gather(self, index: int, part: slice, logits: Tensor, shift: Tensor | None, bias: Tensor | None = None) -> None:
        """Take in a chunk; chunk 0 starts anew.

        Its logits (N, b) lack the shift (N,) of each row that was subtracted, or the bias (b,) of each component that
        is not added yet: None is neither. Those that are needed whole lack no bias.
        """

    def complete(self, layer: OutputLayer, denominator: Tensor) -> None:
        """All chunks were given and the denominator, float64 (N,), is known: mend what that shows to be missing."""


class Derivative(Protocol):
    """The derivative of a numerator by the logits."""

    @property
    def whole_logits(self) -> bool:
        """Whether it needs the logits of a chunk."""

    def of_chunk(self, index: int, part: slice, shift: Tensor, scale: Tensor) -> Pulls | Subtract:
        """Give what is subtracted from the gradient (N, b): scale (N,) times the derivative by a chunk's logits.

        A callable, which is given the logits less the shift (N,) of each row, where they are needed whole.
        """


class WeightUpdate(Protocol):
    """What takes the gradient by the weight chunk by chunk and updates the weight, so that no such array is made."""

    @property
    def weight(self) -> Tensor:
        """What is updated."""

    @property
    def version(self) -> int:
        """Backward passes begun so far: a forward pass is of the weight of one version."""

    def begin(self, version: int) -> None:
        """Begin a backward pass, whose forward pass was of this version."""

    def update(self, part: slice, gradient: Tensor) -> None:
        """Update some rows of the weight, which nothing reads again; the gradient (b, D) may be overwritten."""

    def end(self) -> None:
        """The backward pass is done."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """What the forward pass leaves.

    Parameters
    ----------
    denominator : Tensor of float64, shape (N,)
        logsumexp(z).
    shifts : Tensor of the working type, shape (number of chunks, N)
        What was subtracted from the logits of each chunk before they were exponentiated.
    kept : Tensor, shape (N * components kept,)
        Exponentials of the first chunks (their shifted logits, where the numerator needs whole logits), one chunk after
        the other; of the working type, or rounded.
    late : bool
        Whether the shifts are the largest logits of each chunk, found after its product; those of chunk 0 always are.
    """

    denominator: Tensor
    shifts: Tensor
    kept: Tensor
    late: bool


def forward(
    layer: OutputLayer, numerator: Numerator, *, budget_bytes: int, kept_type: torch.dtype | None = None
) -> Sums:
    """Add up both terms of the loss.

    Parameters
    ----------
    layer : OutputLayer
        N features, C components.
    numerator : Numerator
        Is given every chunk in order.
    budget_bytes : int
        Exponentials up to this size are kept.
    kept_type : torch.dtype, optional
        What they are rounded to; None: the working type. Logits that a numerator needs whole are never rounded: where
        that is asked for, they are not kept.

    Returns
    -------
    Sums
        For `backward`.

    Examples
    --------
    >>> from geo_mvmf.model.pair_sums import TargetLogits
    >>> layer = OutputLayer(torch.zeros(1, 2), torch.zeros(4, 2), torch.zeros(4))
    >>> sums = forward(layer, TargetLogits(torch.tensor([0]), 4), budget_bytes=0)
    >>> round(float(sums.denominator.exp()), 6)
    4.0
    """
    rounded = kept_type not in (None, layer.working)
    work = _Buffers(layer, numerator, kept_type, 0 if rounded and numerator.whole_logits else budget_bytes)
    sums, leap = _add_up(layer, numerator, work, late=False)
    if not leap < _LEAP:  # a chunk far above all before it, or what is no number
        sums, _ = _add_up(layer, numerator, work, late=True)
    numerator.complete(layer, sums.denominator)
    return sums


def _add_up(layer: OutputLayer, numerator: Numerator, work: _Buffers, *, late: bool) -> tuple[Sums, float]:
    """Pass once over all chunks; also give how far one of them rises above its shifts, in nats."""
    n, device = layer.features.shape[0], layer.features.device
    running = torch.full((n,), -math.inf, dtype=torch.float64, device=device)
    shifts = torch.empty(len(work.parts), n, dtype=layer.working, device=device)
    highest = torch.full_like(running, -math.inf)
    epilogues = epilogue_choice.of(device, layer.working)
    for index, part in enumerate(work.parts):
        known = not late and index > 0
        shift = shifts[index].copy_(running)
        if known:
            shift.clamp_(min=LEAST_SHIFT)
        gather = functools.partial(numerator.gather, index, part)
        rise = epilogues.add_up(layer, work.chunk(part, shift, known=known), gather)
        highest = torch.maximum(highest, rise)
        running = torch.logaddexp(running, rise.add_(shift))
    return Sums(running, shifts, work.kept, late), float(highest.amax()) if n else -math.inf


def backward(
    layer: OutputLayer,
    derivative: Derivative,
    sums: Sums,
    scale: Tensor,
    needs: tuple[bool, bool, bool],
    update: WeightUpdate | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Send the gradient back through the layer.

    Parameters
    ----------
    layer : OutputLayer
        As in the forward pass.
    derivative : Derivative
        Of the numerator that was gathered there.
    sums : Sums
        What it left.
    scale : Tensor of the working type, shape (N,)
        Gradient by ``logsumexp(z) - numerator``.
    needs : tuple of bool
        Whether the gradient by features, by weight, by bias is wanted.
    update : WeightUpdate, optional
        Is given the gradient by the weight instead, each chunk when nothing needs its weight any more.

    Returns
    -------
    d_features, d_weight, d_bias : Tensor or None
        Of the shapes and types of the layer's own.

    Examples
    --------
    >>> from geo_mvmf.model.pair_sums import PairShares, TargetLogits
    >>> layer = OutputLayer(torch.ones(1, 1), torch.zeros(2, 1), torch.zeros(2))
    >>> sums = forward(layer, TargetLogits(torch.tensor([0]), 2), budget_bytes=0)
    >>> pairs = PairShares(torch.tensor([0]).int(), torch.tensor([0]).int(), torch.ones(1), 1, 2)
    >>> backward(layer, pairs, sums, torch.ones(1), (False, True, False))[1].tolist()
    [[-0.5], [0.5]]
    """
    work = _Buffers(layer, derivative, sums.kept.dtype, kept=sums.kept)
    d_features = torch.zeros_like(layer.features, dtype=layer.working) if needs[0] else None
    weight = layer.weight
    d_weight = idle_memory.empty(weight.shape, weight.dtype, weight.device) if needs[1] and update is None else None
    rows = torch.empty_like(layer.weight[work.parts[0]]) if needs[1] and update is not None else None
    d_bias = torch.empty_like(layer.bias) if needs[2] else None
    share_of_chunk = torch.exp(sums.shifts - sums.denominator).to(layer.working) * scale  # (chunks, N)
    epilogues = epilogue_choice.of(layer.features.device, layer.working)
    for index, part in enumerate(work.parts):
        shift = sums.shifts[index]
        chunk = work.chunk_again(part, shift, known=not sums.late and index > 0)
        minus = derivative.of_chunk(index, part, shift, scale)
        d_logits, summed = epilogues.gradient(layer, chunk, share_of_chunk[index], minus, sums=needs[2])
        if d_features is not None:
            layer.multiply(d_logits, layer.weight[part], d_features, add=True)
        if d_weight is not None:
            layer.multiply(d_logits.T, layer.features, d_weight[part])
        if rows is not None and update is not None:
            of_chunk = rows[: part.stop - part.start]
            layer.multiply(d_logits.T, layer.features, of_chunk)
            update.update(part, of_chunk)
        if d_bias is not None and summed is not None:
            d_bias[part] = summed
    return None if d_features is None else d_features.to(layer.features.dtype), d_weight, d_bias


class _Buffers:
    """The arrays of one pass: what is kept, one array for what is not, and a second one where two are needed."""

    def __init__(
        self,
        layer: OutputLayer,
        numerator: Numerator | Derivative,
        kept_type: torch.dtype | None,
        budget_bytes: int = 0,
        *,
        kept: Tensor | None = None,
    ) -> None:
        self._n, self._working, self._device = layer.features.shape[0], layer.working, layer.features.device
        self.parts = chunks(self._n, layer.weight.shape[0], self._device)
        widest = max(part.stop - part.start for part in self.parts)
        self._whole_logits = numerator.whole_logits
        again = kept is not None
        if kept is None:
            kept_type = kept_type or layer.working
            within = budget_bytes // max(self._n * kept_type.itemsize, 1)  # components
            columns = max((part.stop for part in self.parts if part.stop <= within), default=0)
            kept = idle_memory.empty((columns * self._n,), kept_type, self._device)
        self.kept = kept
        self._first = self._empty(widest * self._n)
        self._second = self._empty(widest * self._n if self._whole_logits else 0)
        self._narrow: Tensor | None = None
        if again and layer.product_type is not None:
            self._narrow = torch.empty_like(self._first, dtype=layer.product_type)

    def chunk(self, part: slice, shift: Tensor, *, known: bool) -> Chunk:
        """The arrays of a chunk in the forward pass."""
        free = self._view(self._first, part)
        kept = self._kept_chunk(part) if self._has(part) else None
        if not self._whole_logits:  # a product into memory that is in the cache is faster, also for what is kept
            return Chunk(part, free, shift, known=known, whole=False, spare=free, kept=kept)
        logits, spare = free if kept is None else kept, self._view(self._second, part)
        return Chunk(part, logits, shift, known=known, whole=True, spare=spare)

    def chunk_again(self, part: slice, shift: Tensor, *, known: bool) -> Chunk:
        """The arrays of a chunk in the backward pass: nothing is written over what is kept."""
        free = self._view(self._first, part)
        kept = self._kept_chunk(part) if self._has(part) else None
        narrow = None if self._narrow is None else self._view(self._narrow, part)
        if not self._whole_logits:
            return Chunk(part, free, shift, known=known, whole=False, spare=free, kept=kept, narrow=narrow)
        logits, spare, formed = free if kept is None else kept, self._view(self._second, part), kept is not None
        return Chunk(part, logits, shift, known=known, whole=True, spare=spare, formed=formed, narrow=narrow)

    def _has(self, part: slice) -> bool:
        """Whether this chunk is kept."""
        return bool(part.stop * self._n <= self.kept.numel())  # slice bounds are untyped

    def _kept_chunk(self, part: slice) -> Tensor:
        return self.kept[part.start * self._n : part.stop * self._n].view(self._n, part.stop - part.start)

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self._working, device=self._device)

    def _view(self, buffer: Tensor, part: slice) -> Tensor:
        width = part.stop - part.start
        return buffer[: width * self._n].view(self._n, width)
