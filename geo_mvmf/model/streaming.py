"""An output layer W x + b and its softmax, streamed over components: no (N, C) array need ever exist.

A loss over C components here is ``logsumexp(z) - numerator`` with z = W x + b; the numerator is the target's logit
(cross entropy) or the logsumexp of z plus the components' log densities (MvMF). Both passes work on chunks of
components: the forward pass adds up both terms, the backward pass forms the gradient by the logits chunk by chunk,
from logits that were kept within a budget of bytes or are computed again.

All buffers are made once per pass: many short-lived ones would fragment the heap and hide what streaming saves.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 19  # (N, chunk) on a CPU: 2 MB of float32 a buffer, near the size of a core's cache
ACCELERATOR_CHUNK_ELEMENTS = 1 << 24  # 64 MB: large enough to fill an accelerator
_CHUNK_LIMITS = (256, 32768)  # narrower chunks waste the matrix product, wider ones the memory


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
    [slice(0, 1024, None), slice(1024, 2048, None), slice(2048, 2500, None)]
    """
    elements = CHUNK_ELEMENTS if device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    low, high = _CHUNK_LIMITS
    size = min(max(elements // max(n, 1), low), high)
    return [slice(start, min(start + size, num_components)) for start in range(0, num_components, size)]


@dataclasses.dataclass(frozen=True)
class OutputLayer:
    """The layer's tensors and how they are multiplied.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        Any floating type.
    weight : Tensor, shape (C, D)
        Any floating type.
    bias : Tensor, shape (C,)
        Any floating type.
    product_type : torch.dtype, optional
        Half-precision type of the factors of the matrix products; the products themselves are always float32 (or
        float64), because logits rounded to half precision would move the loss by 1e-2 nat. None: no rounding.

    Examples
    --------
    >>> layer = OutputLayer(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(3))
    >>> layer.logits(slice(0, 2), torch.empty(1, 2)).tolist()
    [[2.0, 2.0]]
    """

    features: Tensor
    weight: Tensor
    bias: Tensor
    product_type: torch.dtype | None = None

    @property
    def working(self) -> torch.dtype:
        """float64 if any of the tensors is, else float32."""
        wide = torch.float64 in (self.features.dtype, self.weight.dtype, self.bias.dtype)
        return torch.float64 if wide else torch.float32

    def logits(self, part: slice, out: Tensor) -> Tensor:
        """Compute the logits of some components.

        Parameters
        ----------
        part : slice
            Which components, b of them.
        out : Tensor of the working type, shape (N, b)
            Overwritten and returned.

        Examples
        --------
        >>> layer = OutputLayer(torch.ones(1, 2), torch.ones(3, 2), torch.full((3,), 0.5))
        >>> layer.logits(slice(2, 3), torch.empty(1, 1)).tolist()
        [[2.5]]
        """
        self.multiply(self.features, self.weight[part].T, out)
        return out.add_(self.bias[part].to(out.dtype))

    def multiply(self, left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Multiply two matrices into a third, or add their product to it.

        Parameters
        ----------
        left, right : Tensor, shapes (i, j) and (j, k)
            Any floating types.
        out : Tensor of the working type, shape (i, k)
            Overwritten, or added to.
        add : bool
            Which of the two.

        Examples
        --------
        >>> layer, out = OutputLayer(torch.ones(1, 2), torch.ones(3, 2), torch.zeros(3)), torch.zeros(1, 1)
        >>> layer.multiply(torch.ones(1, 4), torch.ones(4, 1), out)
        >>> out.tolist()
        [[4.0]]
        """
        if self.product_type is not None:
            product = torch.mm(left.to(self.product_type), right.to(self.product_type), out_dtype=out.dtype)
            out.add_(product) if add else out.copy_(product)
        elif add:
            out.addmm_(left.to(out.dtype), right.to(out.dtype))
        elif out.dtype == self.working:
            torch.mm(left.to(out.dtype), right.to(out.dtype), out=out)
        else:
            out.copy_(left.to(self.working) @ right.to(self.working))


class Numerator(Protocol):
    """What is subtracted from logsumexp(z), gathered chunk by chunk."""

    def add(self, index: int, part: slice, logits: Tensor, log_sums: Tensor, scratch: Tensor) -> None:
        """Take in a chunk: its logits (N, b), their logsumexp by row (N,), and a free (N, b) array."""

    def value(self) -> Tensor:
        """Give the numerator, float64, (N,)."""

    def subtract(
        self, index: int, part: slice, logits: Tensor, log_sums: Tensor, scale: Tensor, d_logits: Tensor
    ) -> None:
        """Subtract scale (N,) times the derivative of the numerator by a chunk's logits from `d_logits` (N, b)."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """What the forward pass leaves.

    Parameters
    ----------
    denominator : Tensor of float64, shape (N,)
        logsumexp(z).
    by_chunk : Tensor, shape (number of chunks, N)
        logsumexp(z) over the components of each chunk.
    kept : Tensor, shape (N * components kept,)
        Logits of the first chunks, one chunk after the other.
    """

    denominator: Tensor
    by_chunk: Tensor
    kept: Tensor


def forward(layer: OutputLayer, numerator: Numerator, *, budget_bytes: int) -> Sums:
    """Add up both terms of the loss.

    Parameters
    ----------
    layer : OutputLayer
        N features, C components.
    numerator : Numerator
        Is given every chunk once.
    budget_bytes : int
        Logits up to this size are kept.

    Returns
    -------
    Sums
        For `backward`.

    Examples
    --------
    >>> layer = OutputLayer(torch.zeros(1, 2), torch.zeros(4, 2), torch.zeros(4))
    >>> sums = forward(layer, TargetLogits(torch.tensor([0]), torch.device("cpu")), budget_bytes=0)
    >>> round(float(sums.denominator.exp()), 6)
    4.0
    """
    n, parts = layer.features.shape[0], _parts(layer)
    work = _Buffers(layer, parts, budget_bytes)
    by_chunk = work.empty(len(parts), n)
    for index, part in enumerate(parts):
        logits = layer.logits(part, work.logits(part))
        share = torch.softmax(logits, dim=1, out=work.second(part))  # one pass, and no slow path for denormals
        # the largest share is 1 / sum(exp(z - max z)): the logsumexp without another exponential
        torch.sub(logits.amax(dim=1), share.amax(dim=1).log_(), out=by_chunk[index])
        numerator.add(index, part, logits, by_chunk[index], share)
    return Sums(torch.logsumexp(by_chunk.double(), dim=0), by_chunk, work.kept)


def backward(
    layer: OutputLayer, numerator: Numerator, sums: Sums, scale: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Send the gradient back through the layer.

    Parameters
    ----------
    layer, numerator
        As in the forward pass.
    sums : Sums
        What it left.
    scale : Tensor of the working type, shape (N,)
        Gradient by ``logsumexp(z) - numerator``.
    needs : tuple of bool
        Whether the gradient by features, by weight, by bias is wanted.

    Returns
    -------
    d_features, d_weight, d_bias : Tensor or None
        Of the shapes and types of the layer's own.

    Examples
    --------
    >>> layer = OutputLayer(torch.ones(1, 1), torch.zeros(2, 1), torch.zeros(2))
    >>> numerator = TargetLogits(torch.tensor([0]), torch.device("cpu"))
    >>> sums = forward(layer, numerator, budget_bytes=0)
    >>> backward(layer, numerator, sums, torch.ones(1), (False, True, False))[1].tolist()
    [[-0.5], [0.5]]
    """
    parts = _parts(layer)
    work = _Buffers(layer, parts, 0, kept=sums.kept)
    d_features = torch.zeros_like(layer.features, dtype=layer.working) if needs[0] else None
    d_weight = torch.empty_like(layer.weight) if needs[1] else None
    d_bias = torch.empty_like(layer.bias) if needs[2] else None
    share_of_chunk = torch.exp(sums.by_chunk - sums.denominator).to(layer.working) * scale  # (chunks, N)
    for index, part in enumerate(parts):
        logits = work.logits(part)
        if not work.has(part):
            layer.logits(part, logits)
        d_logits = torch.softmax(logits, dim=1, out=work.second(part)).mul_(share_of_chunk[index, :, None])
        numerator.subtract(index, part, logits, sums.by_chunk[index], scale, d_logits)
        if d_features is not None:
            layer.multiply(d_logits, layer.weight[part], d_features, add=True)
        if d_weight is not None:
            layer.multiply(d_logits.T, layer.features, d_weight[part])
        if d_bias is not None:
            d_bias[part] = d_logits.sum(dim=0)
    return None if d_features is None else d_features.to(layer.features.dtype), d_weight, d_bias


class TargetLogits:
    """The numerator of cross entropy: the logit of the class of each row.

    Parameters
    ----------
    target : Tensor of int64, shape (N,)
        Indices of classes.
    device : torch.device
        Where the logits are.

    Examples
    --------
    >>> numerator = TargetLogits(torch.tensor([1]), torch.device("cpu"))
    >>> numerator.add(0, slice(0, 2), torch.tensor([[3.0, 4.0]]), torch.zeros(1), torch.zeros(1, 2))
    >>> numerator.value().tolist()
    [4.0]
    """

    def __init__(self, target: Tensor, device: torch.device) -> None:
        self.target = target
        self._value = torch.full(target.shape, -torch.inf, dtype=torch.float64, device=device)

    def add(self, index: int, part: slice, logits: Tensor, log_sums: Tensor, scratch: Tensor) -> None:  # noqa: ARG002 (protocol)
        """Take the logits of the rows whose class is in this chunk; parameters as `Numerator.add`."""
        column, inside = self._column(part)
        taken = logits.gather(1, column).squeeze(1).double()
        self._value = torch.where(inside, taken, self._value)

    def value(self) -> Tensor:
        """Give the target's logit, float64, (N,)."""
        return self._value

    def subtract(
        self,
        index: int,  # noqa: ARG002 (protocol)
        part: slice,
        logits: Tensor,  # noqa: ARG002 (protocol)
        log_sums: Tensor,  # noqa: ARG002 (protocol)
        scale: Tensor,
        d_logits: Tensor,
    ) -> None:
        """Subtract the scale where the target is; parameters as `Numerator.subtract`."""
        column, inside = self._column(part)
        d_logits.scatter_add_(1, column, torch.where(inside, -scale, 0.0)[:, None])

    def _column(self, part: slice) -> tuple[Tensor, Tensor]:
        inside = (self.target >= part.start) & (self.target < part.stop)
        return (self.target - part.start).clamp(0, part.stop - part.start - 1)[:, None], inside


class _Buffers:
    """The arrays of one pass: the logits that are kept, one for those that are not, and a second one to work in."""

    def __init__(
        self, layer: OutputLayer, parts: list[slice], budget_bytes: int, *, kept: Tensor | None = None
    ) -> None:
        self._n, self._type, self._device = layer.features.shape[0], layer.working, layer.features.device
        widest = max(part.stop - part.start for part in parts)
        within = budget_bytes // max(self._n * self._type.itemsize, 1)  # components
        columns = max((part.stop for part in parts if part.stop <= within), default=0)
        self.kept = self.empty(columns * self._n) if kept is None else kept
        every = self.has(parts[-1])
        self._spare = self.empty(0 if every else widest * self._n)
        self._second = self.empty(widest * self._n)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=self._type, device=self._device)

    def has(self, part: slice) -> bool:
        """Whether the logits of this chunk are kept."""
        return bool(part.stop * self._n <= self.kept.numel())  # slice bounds are untyped

    def logits(self, part: slice) -> Tensor:
        if self.has(part):
            return self.kept[part.start * self._n : part.stop * self._n].view(self._n, part.stop - part.start)
        return self._view(self._spare, part)

    def second(self, part: slice) -> Tensor:
        return self._view(self._second, part)

    def _view(self, buffer: Tensor, part: slice) -> Tensor:
        width = part.stop - part.start
        return buffer[: width * self._n].view(self._n, width)


def _parts(layer: OutputLayer) -> list[slice]:
    return chunks(layer.features.shape[0], layer.weight.shape[0], layer.features.device)
