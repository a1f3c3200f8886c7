"""The heaviest mixing weights of each image, streamed over components: of (N, C) logits a block exists at a time.

A softmax over a million components gives most of them nothing. One pass over blocks of components forms the logits,
adds up their exponentials, and notes the components that are heavy enough to count. How heavy that is, a sample of the
components tells beforehand; whether it told right is known in the end, when all exponentials are added up: what was not
noted has to hold less than the tail that may be left out. Images of which that is not so are done again, with a
threshold that cannot fail: a component lighter than its even share of the tail is never needed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf.model.epilogues import LEAST_SHIFT, UNDERFLOW
from geo_mvmf.model.output_layer import OutputLayer

IntArray = npt.NDArray[np.int64]

MOST_IMAGES = 1 << 14
"""Most images at a time."""

_BLOCK = 4096  # components at a time: of 128 images 2 MB of logits, which stay in a core's cache
_LARGE_BLOCK = 65536  # the same on an accelerator, which wants to be filled
_GROUP = 64  # components whose largest logit is looked at before each of them is
_FEW = 8  # so many groups must be passed over for each that is not, to gain anything by it
_SAMPLED = 4096  # components of the sample
_SAFETY = 0.5  # share of the tail that the sample may tell to be left out
_MOST_NOTED = 1 << 24  # components of all images together: half a gigabyte until they are sorted


class Heaviest(NamedTuple):
    """The heaviest mixing weights of N images, ragged.

    Attributes
    ----------
    component : ndarray of uint32, shape (T,)
        Indices, ascending within an image.
    log_weight : ndarray of float32, shape (T,)
        Natural logarithms of mixing weights.
    offsets : ndarray of int64, shape (N + 1,)
        Image i owns entries offsets[i]:offsets[i + 1].
    is_finite : ndarray of bool, shape (N,)
        Whether the image has mixing weights at all; one that has none owns no entry.
    """

    component: npt.NDArray[np.uint32]
    log_weight: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    is_finite: npt.NDArray[np.bool_]


def heaviest(features: Tensor, weight: Tensor, bias: Tensor, tail: float) -> Heaviest:
    """Give the heaviest mixing weights of softmax(W x + b): at least those that hold all but a tail of each image's.

    Parameters
    ----------
    features : Tensor, shape (N, D)
        Any floating type.
    weight : Tensor, shape (C, D)
        Any floating type.
    bias : Tensor, shape (C,)
        Any floating type.
    tail : float
        Greater than 0: weight that may be left out. What is left out is lighter than all that is given.

    Returns
    -------
    Heaviest

    Raises
    ------
    ValueError
        There are more than `MOST_IMAGES`.

    Examples
    --------
    >>> found = heaviest(torch.ones(1, 1), torch.tensor([[0.0], [9.0], [0.0]]), torch.zeros(3), 0.01)
    >>> found.component.tolist(), found.offsets.tolist()
    ([1], [0, 1])
    """
    if len(features) > MOST_IMAGES:
        raise ValueError(f"features of {len(features)} images; at most {MOST_IMAGES} are looked at together")
    with torch.inference_mode(), torch.autocast(features.device.type, enabled=False):
        working = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return _of_layer(OutputLayer(features.to(working), weight, bias), tail)


def _of_layer(layer: OutputLayer, tail: float) -> Heaviest:
    found = _noted(layer, _Thresholds.of_sample(layer, tail))
    if found is None:  # of flat images nearly all components count: fewer images at a time
        return _of_pieces(layer, tail, len(layer.features) // 2)
    missed = found.missed(tail)
    if missed.size:
        rows = torch.from_numpy(missed).to(layer.features.device)
        again = _noted(dataclasses.replace(layer, features=layer.features[rows]), _Thresholds.sure(layer, tail))
        if again is None:
            return _of_pieces(layer, tail, 1)
        found = found.replaced(missed, again)
    return found.sorted()


def _of_pieces(layer: OutputLayer, tail: float, images: int) -> Heaviest:
    """Do so many images at a time."""
    starts = range(0, len(layer.features), images)
    pieces = [
        _of_layer(dataclasses.replace(layer, features=layer.features[start : start + images]), tail) for start in starts
    ]
    counts = np.concatenate([np.diff(each.offsets) for each in pieces])
    return Heaviest(
        np.concatenate([each.component for each in pieces]),
        np.concatenate([each.log_weight for each in pieces]),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        np.concatenate([each.is_finite for each in pieces]),
    )


@dataclasses.dataclass(frozen=True)
class _Thresholds:
    """From the sum of exponentials so far to the logit from which on components are noted, of each image.

    The logits of a sample, ascending (N, S), and the logarithm of what all components not above each of them hold, as
    the sample tells. Without a sample, what is lighter than the tail's even share is left out.
    """

    logits: Tensor
    log_below: Tensor
    log_tail: float

    @classmethod
    def of_sample(cls, layer: OutputLayer, tail: float) -> _Thresholds:
        """Ask components that are spread evenly over all."""
        size = len(layer.weight)
        number = min(size, _SAMPLED)
        chosen = torch.arange(number, device=layer.features.device) * (size - 1) // max(number - 1, 1)
        sample = dataclasses.replace(layer, weight=layer.weight[chosen], bias=layer.bias[chosen])
        logits = torch.empty(len(layer.features), len(chosen), dtype=layer.working, device=layer.features.device)
        logits = _ascending(sample.logits(slice(0, len(chosen)), logits))
        most = torch.finfo(torch.float64).max
        top = logits[:, -1:].double().clamp_(min=-most, max=most)
        # what is so far below the top that its exponential is 0 holds nothing of the image's weight
        below = (logits.double() - top).exp_().cumsum_(dim=1).log_() + (top + math.log(size / len(chosen)))
        return cls(logits, below, math.log(tail * _SAFETY))

    @classmethod
    def sure(cls, layer: OutputLayer, tail: float) -> _Thresholds:
        """Leave out what is lighter than its even share of the tail: together that is less than the tail."""
        nothing = torch.zeros(0, 0, dtype=layer.working, device=layer.features.device)
        return cls(nothing, nothing.double(), math.log(tail / len(layer.weight)))

    def at(self, log_sum: Tensor) -> Tensor:
        """Give the threshold of each image, (N, 1), where the logarithm of its sum is so much, (N,)."""
        limit = (log_sum + self.log_tail)[:, None]
        if not self.logits.shape[1]:
            return limit.to(self.logits.dtype)
        # below a sampled logit that would be left out, all the same: those between it and the next are noted
        last = torch.searchsorted(self.log_below, limit, right=True) - 1
        found = self.logits.gather(1, last.clamp_(min=0))
        return torch.where(torch.gather(self.log_below, 1, last) <= limit, found, -math.inf)


@dataclasses.dataclass(frozen=True)
class _Noted:
    """Components that were noted, block by block: of which images, their logits; logsumexp of all components, (N,)."""

    row: npt.NDArray[np.int16]
    component: npt.NDArray[np.uint32]
    logit: npt.NDArray[np.floating]
    denominator: npt.NDArray[np.float64]

    def above(self, least: npt.NDArray[np.floating]) -> _Noted:
        """Forget what turned out to be light, by the logit (N,) from which on an image's components are noted."""
        least = np.where(np.isfinite(self.denominator), least, np.inf)  # an image without weights has none
        kept = self.logit > least[self.row]
        return _Noted(self.row[kept], self.component[kept], self.logit[kept], self.denominator)

    def missed(self, tail: float) -> npt.NDArray[np.int64]:
        """Images of which too much was not noted; those that have no weights at all are not among them."""
        weight = np.exp(self.logit - self.denominator[self.row])
        held = np.bincount(self.row, weight, minlength=self.denominator.size)
        return np.flatnonzero((1.0 - held > tail) & np.isfinite(self.denominator))

    def replaced(self, rows: npt.NDArray[np.int64], others: _Noted) -> _Noted:
        """Take some images from elsewhere."""
        is_old = ~np.isin(self.row, rows)
        denominator = self.denominator.copy()
        denominator[rows] = others.denominator
        return _Noted(
            np.concatenate([self.row[is_old], rows[others.row].astype(np.int16)]),
            np.concatenate([self.component[is_old], others.component]),
            np.concatenate([self.logit[is_old], others.logit]),
            denominator,
        )

    def sorted(self) -> Heaviest:
        """Put everything into the order of images and components."""
        order = np.argsort(self.row, kind="stable")  # blocks of components came in their order
        log_weight = (self.logit - self.denominator[self.row]).astype(np.float32)[order]
        counts = np.bincount(self.row, minlength=self.denominator.size)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # logits below -1e30, or above 1e16 and so even that rounding loses all of them: no weights either
        is_finite = np.isfinite(self.denominator) & (counts > 0)
        return Heaviest(self.component[order], log_weight, offsets, is_finite)


def _noted(layer: OutputLayer, thresholds: _Thresholds) -> _Noted | None:
    """Pass once over all components; None where more would be noted of several images than memory is meant for."""
    n, components, device = len(layer.features), len(layer.weight), layer.features.device
    size = min(_BLOCK if device.type == "cpu" else _LARGE_BLOCK, components)
    buffer = torch.empty(n * size, dtype=layer.working, device=device)
    top = torch.full((n,), LEAST_SHIFT, dtype=layer.working, device=device)
    total = torch.zeros(n, dtype=torch.float64, device=device)
    row, component, logit = [], [], []
    count = 0
    for start in range(0, components, size):
        part = slice(start, min(start + size, components))
        logits = layer.logits(part, buffer[: n * (part.stop - start)].view(n, part.stop - start))
        groups = _group_tops(logits)
        former, top = top, torch.maximum(top, groups.amax(dim=1))
        # the largest logit is a part of the sum that is not added yet
        so_far = torch.maximum(total.log() + former.double(), top.double())
        rows, columns, values = _above(logits, groups, thresholds.at(so_far))
        count += rows.size
        if count > _MOST_NOTED and n > 1:
            return None
        row.append(rows.astype(np.int16))
        component.append((columns + start).astype(np.uint32))
        logit.append(values)
        rise = logits.sub_(top[:, None]).clamp_(min=UNDERFLOW).exp_().sum(dim=1)
        total = total * (former.double() - top.double()).exp_() + rise.double()
    denominator = total.log_() + top.double()
    found = _Noted(np.concatenate(row), np.concatenate(component), np.concatenate(logit), denominator.cpu().numpy())
    return found.above(thresholds.at(denominator).cpu().numpy()[:, 0])


def _ascending(logits: Tensor) -> Tensor:
    """Sort each row."""
    if logits.device.type != "cpu":
        return logits.sort(dim=1).values
    # torch says where each was, too, and takes ten times as long
    return torch.from_numpy(np.sort(logits.numpy(), axis=1))


def _group_tops(logits: Tensor) -> Tensor:
    """Largest logit of every group of neighbours, (N, groups); of a whole row where groups are not all of one size."""
    n, width = logits.shape
    return logits.view(n, -1, _GROUP).amax(dim=2) if width % _GROUP == 0 else logits.amax(dim=1, keepdim=True)


def _above(logits: Tensor, groups: Tensor, least: Tensor) -> tuple[IntArray, IntArray, npt.NDArray[np.floating]]:
    """Find what is above a threshold (N, 1): rows, columns in ascending order within a row, and the logits there."""
    if logits.device.type != "cpu":
        found = torch.nonzero(logits > least, as_tuple=True)
        row, column, value = (each.cpu().numpy() for each in (*found, logits[found]))
        return row, column, value
    values, tops, limit = logits.numpy(), groups.numpy(), least.numpy()  # numpy finds them several times as fast
    (hit,) = np.nonzero((tops > limit).ravel())
    width, count = values.shape[1], tops.shape[1]
    if hit.size * _FEW > tops.size or count * _GROUP != width:
        (place,) = np.nonzero((values > limit).ravel())
    else:
        inside = values.reshape(-1, _GROUP)[hit] > limit[hit // count]  # (hits, group)
        group, within = np.divmod(np.flatnonzero(inside), _GROUP)
        place = hit[group] * _GROUP + within
    row, column = np.divmod(place, width)
    return row, column, values.ravel()[place]
