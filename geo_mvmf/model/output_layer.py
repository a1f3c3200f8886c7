"""The linear output layer W x + b that the heads have in common: how it begins, its products, and its log softmax."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from geo_mvmf.model import products

_DRAWN_ROWS = 4096
_WEIGHT_SD = 0.01  # as the authors initialise the output layer (PRIOR_ART 3.1)


def initial_layer(
    components: int, num_features: int, *, prior_counts: npt.ArrayLike | None, seed: int, part: slice | None = None
) -> tuple[nn.Parameter, nn.Parameter]:
    """Make the initial weight and bias.

    Parameters
    ----------
    components : int
        C.
    num_features : int
        D.
    prior_counts : array_like of float, shape (C,), optional
        Training images per component: the bias starts at the log of their share, one image added to each. None: 0.
    seed : int
        Of the weights, which are normal with standard deviation 0.01 (the authors' truncated normal, not truncated).
    part : slice, optional
        Only these components, c of them: the same values without the memory of all. None: all.

    Returns
    -------
    weight, bias : nn.Parameter of float32, shapes (c, D) and (c,)
        On the CPU.

    Raises
    ------
    ValueError
        The counts are of another shape, negative or not finite.

    Examples
    --------
    >>> initial_layer(2, 3, prior_counts=[0, 2], seed=0)[1].exp().detach().tolist()
    [0.25, 0.75]
    """
    part = slice(0, components) if part is None else part
    weight = _normal_rows(components, num_features, part, seed).mul_(_WEIGHT_SD)
    if prior_counts is None:
        return nn.Parameter(weight), nn.Parameter(torch.zeros(len(weight)))
    counts = np.asarray(prior_counts, dtype=np.float64)
    if counts.shape != (components,) or not np.all((counts >= 0.0) & np.isfinite(counts)):
        raise ValueError(f"prior_counts have shape {counts.shape}, expected ({components},), all finite and >= 0")
    share = torch.from_numpy((counts + 1.0) / (counts + 1.0).sum())
    return nn.Parameter(weight), nn.Parameter(share.log().float()[part].clone())


def _normal_rows(rows: int, columns: int, part: slice, seed: int) -> Tensor:
    """Draw some rows of a normal matrix: all before them are drawn, too, block by block, and thrown away.

    torch draws 16 numbers at a time, and the last ones of an array in another way. So blocks have a multiple of 16
    rows, and the last block has what is left besides: their numbers are those of the whole matrix.
    """
    generator, found = torch.Generator().manual_seed(seed), torch.empty(part.stop - part.start, columns)
    for start in range(0, max(rows - _DRAWN_ROWS + 1, 1), _DRAWN_ROWS):
        stop = start + _DRAWN_ROWS if start + 2 * _DRAWN_ROWS <= rows else rows
        block = torch.randn(stop - start, columns, generator=generator)
        first, last = max(start, part.start), min(stop, part.stop)
        if first < last:
            found[first - part.start : last - part.start] = block[first - start : last - start]
        if stop >= part.stop:
            break
    return found


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

    def logits(self, part: slice, out: Tensor, shift: Tensor | None = None) -> Tensor:
        """Compute the logits of some components.

        Parameters
        ----------
        part : slice
            Which components, b of them.
        out : Tensor of the working type, shape (N, b)
            Overwritten and returned.
        shift : Tensor of the working type, shape (N,), optional
            Subtracted from the logits of each row.

        Examples
        --------
        >>> layer = OutputLayer(torch.ones(1, 2), torch.ones(3, 2), torch.full((3,), 0.5))
        >>> layer.logits(slice(2, 3), torch.empty(1, 1)).tolist()
        [[2.5]]
        """
        bias = self.bias[part].to(out.dtype)
        if self.product_type is None and not products.by_onednn(out):
            # the product is added to what stands there: bias and shift cost one pass that only writes
            out.copy_(bias) if shift is None else torch.sub(bias, shift[:, None], out=out)
            return out.addmm_(self.features.to(out.dtype), self.weight[part].T.to(out.dtype))
        self.multiply(self.features, self.weight[part].T, out)
        out.add_(bias)
        return out if shift is None else out.sub_(shift[:, None])

    def multiply(self, left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> None:
        """Multiply two matrices into a third, or add their product to it.

        Parameters
        ----------
        left, right : Tensor, shapes (i, j) and (j, k)
            Any floating types.
        out : Tensor, shape (i, k)
            Overwritten, or added to; of the working type, or of a narrower one that the product is rounded to.
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
            products.multiply_rounded(left.to(self.product_type), right.to(self.product_type), out, add=add)
        elif out.dtype == self.working:
            products.multiply(left.to(out.dtype), right.to(out.dtype), out, add=add)
        else:
            out.copy_(left.to(self.working) @ right.to(self.working))


def log_softmax(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Give log softmax(W x + b), never in half precision.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        Any floating type.
    weight : Tensor, shape (C, D)
        Any floating type.
    bias : Tensor, shape (C,)
        Any floating type.

    Returns
    -------
    Tensor of float32 (float64 if the weight is), shape (N, C)
        Nats.

    Examples
    --------
    >>> log_softmax(torch.zeros(1, 3), torch.zeros(2, 3), torch.zeros(2)).exp().tolist()
    [[0.5, 0.5]]
    """
    # under autocast, or in half precision, the logits would be rounded to two or three digits
    with torch.autocast(features.device.type, enabled=False):
        working = torch.float64 if weight.dtype == torch.float64 else torch.float32
        wide = OutputLayer(features.to(working), weight.to(working), bias.to(working))
        if torch.is_grad_enabled():
            return functional.log_softmax(functional.linear(wide.features, wide.weight, wide.bias), dim=1)
        logits = torch.empty(len(features), len(weight), dtype=working, device=features.device)
        return functional.log_softmax(wide.logits(slice(0, len(weight)), logits), dim=1)
