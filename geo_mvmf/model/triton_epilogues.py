"""The epilogues of the streamed losses as Triton kernels: every chunk is read once and written once in each pass.

For float32 logits on CUDA devices of compute capability 8.0 or more. What is not kept is never written: the forward
pass leaves nothing of it but sums of rows. Sums within a tile are float32, by a tree; sums over tiles are float64. A
logit is (product + bias) - shift in both passes, so that exponentials formed again have the same bits.

tl.exp is the hardware's exp2 after a multiplication in float32: its relative error of 2e-7 + 6e-8 |x| is what rounding
x does to exp(x) anyway.

Importing this module imports Triton: only `epilogue_choice` does, where it is used.
"""

from __future__ import annotations

import contextlib
import subprocess

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from geo_mvmf.model.epilogues import LEAST_SHIFT, LEAST_SUM, Chunk, Gather, Pulls, Subtract
from geo_mvmf.model.output_layer import OutputLayer

FORWARD_TILE = (8, 512)  # rows, components: a row's sum of a tile is worth its 4 bytes
BACKWARD_TILE = (32, 128)  # the same of a column's
_NOTHING, _LOGITS, _SHARES = 0, 1, 2  # what the forward pass writes


@triton.jit  # type: ignore[untyped-decorator]  # Triton ships no types
def _add_up_tile(
    products: tl.tensor,
    bias: tl.tensor,
    shift: tl.tensor,
    out: tl.tensor,
    tops: tl.tensor,
    sums: tl.tensor,
    n: int,
    width: int,
    LEAST: tl.constexpr,
    KNOWN: tl.constexpr,
    LOGITS: tl.constexpr,
    SHARES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Exponentiate a tile of products, and add up its rows; where no shift is known, relative to the tile's own top."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside, column_inside = rows < n, columns < width
    inside = row_inside[:, None] & column_inside[None, :]
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    value = tl.load(products + at, mask=inside, other=0.0)
    value += tl.load(bias + columns, mask=column_inside, other=0.0).to(tl.float32)[None, :]
    value = tl.where(inside, value, -float("inf"))
    of_tile = rows.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    if KNOWN:
        top = tl.load(shift + rows, mask=row_inside, other=0.0)
    else:
        top = tl.maximum(tl.max(value, axis=1), LEAST)
        tl.store(tops + of_tile, top, mask=row_inside)
    value -= top[:, None]
    share = tl.exp(value)
    if LOGITS:
        tl.store(out + at, value, mask=inside)
    if SHARES:
        tl.store(out + at, share.to(out.dtype.element_ty), mask=inside)
    tl.store(sums + of_tile, tl.sum(share, axis=1), mask=row_inside)


@triton.jit  # type: ignore[untyped-decorator]  # Triton ships no types
def _scale_tile(
    source: tl.tensor,
    bias: tl.tensor,
    shift: tl.tensor,
    factor: tl.tensor,
    out: tl.tensor,
    sums: tl.tensor,
    n: int,
    width: int,
    PRODUCTS: tl.constexpr,
    KEEP_LOGITS: tl.constexpr,
    EXPONENTIATE: tl.constexpr,
    SUM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Multiply a tile's exponentials, kept or formed again, by the factors of rows, and add up its columns."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_inside, column_inside = rows < n, columns < width
    inside = row_inside[:, None] & column_inside[None, :]
    at = rows.to(tl.int64)[:, None] * width + columns[None, :]
    value = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    if PRODUCTS:
        value += tl.load(bias + columns, mask=column_inside, other=0.0).to(tl.float32)[None, :]
        value -= tl.load(shift + rows, mask=row_inside, other=0.0)[:, None]
        if KEEP_LOGITS:
            tl.store(source + at, value, mask=inside)
    if EXPONENTIATE:
        value = tl.exp(value)
    value *= tl.load(factor + rows, mask=row_inside, other=0.0)[:, None]
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)
    if SUM:
        of_tile = tl.program_id(0).to(tl.int64) * width + columns
        tl.store(sums + of_tile, tl.sum(tl.where(inside, value, 0.0), axis=0), mask=column_inside)


class TritonEpilogues:
    """The epilogues by these kernels.

    Examples
    --------
    >>> layer, found = OutputLayer(torch.zeros(1, 1), torch.zeros(2, 1), torch.tensor([1.0, 3.0])), torch.empty(1, 2)
    >>> chunk = Chunk(slice(0, 2), found, torch.empty(1), known=False, whole=False, spare=found)
    >>> rise = TritonEpilogues().add_up(layer, chunk, lambda logits, shift, bias: None)  # in Triton's interpreter
    >>> rise.exp().sub(1.0).log().round(decimals=4).tolist(), chunk.shift.tolist()
    ([-2.0], [3.0])
    """

    name = "triton"

    def add_up(self, layer: OutputLayer, chunk: Chunk, gather: Gather) -> Tensor:
        """Form exponentials; as `Epilogues.add_up`."""
        bias = layer.bias[chunk.part].contiguous()
        layer.multiply(layer.features, layer.weight[chunk.part].T, chunk.logits)
        if not chunk.whole:
            gather(chunk.logits, None, bias)
        out, writes = (chunk.logits, _LOGITS) if chunk.whole else (chunk.kept, _SHARES)
        if out is None:
            out, writes = chunk.logits, _NOTHING
        rise = None
        if not chunk.known:
            tops, sums = _add_up(chunk, bias, chunk.logits, _NOTHING, known=False)
            torch.amax(tops, dim=1, out=chunk.shift)
            rise = (sums.double() * (tops - chunk.shift[:, None]).double().exp_()).sum(dim=1)
        if rise is None or writes != _NOTHING:
            rise = _add_up(chunk, bias, out, writes, known=True)[1].sum(dim=1, dtype=torch.float64)
        if chunk.whole:
            gather(chunk.logits, chunk.shift, None)
        return rise.clamp_(min=LEAST_SUM).log_()

    def gradient(
        self, layer: OutputLayer, chunk: Chunk, factor: Tensor, minus: Pulls | Subtract, *, sums: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Give the gradient by the logits; as `Epilogues.gradient`."""
        bias = layer.bias[chunk.part].contiguous()
        if chunk.kept is None and not chunk.formed:
            layer.multiply(layer.features, layer.weight[chunk.part].T, chunk.logits)
        if not isinstance(minus, Pulls):
            return self._of_whole_logits(chunk, bias, factor, minus, sums=sums)
        out = chunk.spare if chunk.narrow is None else chunk.narrow
        # numbers near each other must not be rounded before their difference is taken
        exact = None if chunk.narrow is None else _at(chunk, bias, factor, minus.places).sub_(minus.values)
        summed = _scale(chunk, bias, factor, out, sums=sums)
        if exact is None:
            out.view(-1).index_add_(0, minus.places, minus.values, alpha=-1)
        else:
            out.view(-1).index_copy_(0, minus.places, exact.to(out.dtype))
        if summed is not None:
            columns = minus.places.remainder(out.shape[1])
            summed.index_add_(0, columns, minus.values.double(), alpha=-1)
        return out, None if summed is None else summed.to(torch.float32)

    def _of_whole_logits(
        self, chunk: Chunk, bias: Tensor, factor: Tensor, subtract: Subtract, *, sums: bool
    ) -> tuple[Tensor, Tensor | None]:
        _scale(chunk, bias, factor, chunk.spare, sums=False)
        subtract(chunk.logits, chunk.spare)
        summed = chunk.spare.sum(dim=0) if sums else None
        return (chunk.spare if chunk.narrow is None else chunk.narrow.copy_(chunk.spare)), summed


def works(device: torch.device) -> bool:
    """Try the kernels on a small chunk.

    Parameters
    ----------
    device : torch.device
        A CUDA device; a CPU in Triton's interpreter.

    Returns
    -------
    bool
        False where Triton cannot compile or start them.

    Examples
    --------
    >>> works(torch.device("cpu"))  # in Triton's interpreter
    True
    """
    logits, shift = torch.zeros(1, 2, device=device), torch.zeros(1, device=device)
    chunk = Chunk(slice(0, 2), logits, shift, known=False, whole=False, spare=logits, kept=logits)
    layer = OutputLayer(torch.zeros(1, 1, device=device), torch.zeros(2, 1, device=device), logits.new_zeros(2))
    try:
        rise = TritonEpilogues().add_up(layer, chunk, lambda *_: None)
        return bool((rise.exp() - 2.0).abs() < 1e-6)
    except (TritonError, RuntimeError, OSError, ImportError, ValueError, subprocess.SubprocessError):
        return False


def _add_up(chunk: Chunk, bias: Tensor, out: Tensor, writes: int, *, known: bool) -> tuple[Tensor, Tensor]:
    """Give the tops (where no shift is known) and the sums of rows within tiles, float32 (N, number of tiles)."""
    (n, width), (rows, columns) = chunk.logits.shape, FORWARD_TILE
    grid = (triton.cdiv(n, rows), triton.cdiv(width, columns))
    sums = torch.empty(n, grid[1], dtype=torch.float32, device=chunk.logits.device)
    tops = sums if known else torch.empty_like(sums)
    with _on_its_device(chunk.logits):
        _add_up_tile[grid](
            chunk.logits, bias, chunk.shift, out, tops, sums, n, width, LEAST=LEAST_SHIFT, KNOWN=known,
            LOGITS=writes == _LOGITS, SHARES=writes == _SHARES, ROWS=rows, COLUMNS=columns,
            enable_fp_fusion=False,
        )  # fmt: skip
    return tops, sums


def _scale(chunk: Chunk, bias: Tensor, factor: Tensor, out: Tensor, *, sums: bool) -> Tensor | None:
    """Write the exponentials times the factors of rows; give their sums, float64 (b,), where they are wanted."""
    (n, width), (rows, columns) = chunk.logits.shape, BACKWARD_TILE
    grid = (triton.cdiv(n, rows), triton.cdiv(width, columns))
    source = chunk.logits if chunk.kept is None else chunk.kept
    found = torch.empty(grid[0] if sums else 0, width, dtype=torch.float32, device=out.device)
    products = chunk.kept is None and not chunk.formed
    with _on_its_device(out):
        _scale_tile[grid](
            source, bias, chunk.shift, factor, out, found if sums else factor, n, width, PRODUCTS=products,
            KEEP_LOGITS=chunk.whole, EXPONENTIATE=chunk.kept is None, SUM=sums, ROWS=rows, COLUMNS=columns,
            enable_fp_fusion=False,
        )  # fmt: skip
    return found.sum(dim=0, dtype=torch.float64) if sums else None


def _at(chunk: Chunk, bias: Tensor, factor: Tensor, places: Tensor) -> Tensor:
    """Give single exponentials times the factors of their rows, float32 (P,), as the kernel forms them."""
    rows = places.div(chunk.logits.shape[1], rounding_mode="floor")
    if chunk.kept is not None:
        share = chunk.kept.view(-1).index_select(0, places).float()
    else:
        value = chunk.logits.view(-1).index_select(0, places)
        value += bias.float().index_select(0, places.remainder(chunk.logits.shape[1]))
        share = value.sub_(chunk.shift.index_select(0, rows)).exp_()
    return share.mul_(factor.index_select(0, rows))


def _on_its_device(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
    """Triton starts kernels on the current device, whichever the tensors are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
