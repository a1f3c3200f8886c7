"""Mixing weights without their tails: the fewest components that hold all but a residual.

A softmax gives every component some weight, most of it nothing: of 32 769 components a few hundred hold
0.9999 of a typical image. The residual is not forgotten; it counts as spread over the other components in proportion to
their training counts plus one, so densities still integrate to one and every likelihood stays finite.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TAIL = 1e-4
"""Weight that may be left out of an image."""


@dataclasses.dataclass(frozen=True)
class Pruned:
    """Mixing weights of n images without their tails, ragged.

    Parameters
    ----------
    component : ndarray of uint32, (T,)
        Indices, ascending within an image.
    log_weight : ndarray of float32, (T,)
        Natural logarithms of mixing weights.
    offsets : ndarray of int64, (n + 1,)
        Image i owns entries offsets[i]:offsets[i + 1]; none where it has no prediction.
    residual : ndarray of float64, (n,)
        Weight that was left out; NaN where there is no prediction.
    """

    component: npt.NDArray[np.uint32]
    log_weight: npt.NDArray[np.float32]
    offsets: IntArray
    residual: FloatArray

    def __len__(self) -> int:
        return self.residual.size


def prune(log_mixing_weights: npt.ArrayLike, *, tail: float = TAIL, is_softmax: bool = False) -> Pruned:
    """Keep the fewest components that hold all but `tail` of each image's weight.

    Parameters
    ----------
    log_mixing_weights : array_like of float, (n, C)
        Natural logarithms, each row of weights summing to 1. A row of NaN is an image without prediction.
    tail : float
        Largest weight that may be left out; 0 keeps every component that has any.
    is_softmax : bool
        Whether the rows are known to sum to 1, so that components too light to be kept need not be added up.

    Returns
    -------
    Pruned

    Raises
    ------
    ValueError
        A row is neither NaN throughout nor free of NaN, or its weights do not sum to 1 within 1e-3.

    Examples
    --------
    >>> kept = prune(np.log([[0.7, 0.29999, 0.00001]]))
    >>> kept.component.tolist(), round(float(kept.residual[0]), 6)
    ([0, 1], 1e-05)
    """
    logs = np.asarray(log_mixing_weights, dtype=np.float32)
    if logs.ndim != 2:
        raise ValueError(f"log_mixing_weights have shape {logs.shape}, not (images, components)")
    residual = np.full(len(logs), np.nan)
    components = []
    for i, row in enumerate(logs):
        kept, residual[i] = _heaviest_of_softmax(row, tail) if is_softmax else _heaviest(row, tail, i)
        components.append(kept)
    offsets = np.concatenate([[0], np.cumsum([kept.size for kept in components], dtype=np.int64)])
    weights = [row[kept] for row, kept in zip(logs, components, strict=True)]
    return Pruned(
        np.concatenate([*components, np.empty(0, np.int64)]).astype(np.uint32),
        np.concatenate([*weights, np.empty(0, np.float32)]),
        offsets.astype(np.int64),
        residual,
    )


def prune_heaviest(
    component: npt.NDArray[np.uint32], log_weight: npt.NDArray[np.float32], offsets: IntArray, *, tail: float = TAIL
) -> Pruned:
    """Prune images of which the lightest components are gone already.

    Parameters
    ----------
    component : ndarray of uint32, (T,)
        Indices, ascending within an image.
    log_weight : ndarray of float32, (T,)
        Natural logarithms of mixing weights; what is not here is lighter than all that is.
    offsets : ndarray of int64, (n + 1,)
        Image i owns entries offsets[i]:offsets[i + 1].
    tail : float
        As `prune`.

    Returns
    -------
    Pruned
        What `prune` would give of all weights.

    Examples
    --------
    >>> logs = np.log(np.array([0.7, 0.29999], np.float32))
    >>> prune_heaviest(np.array([0, 5], np.uint32), logs, np.array([0, 2])).component.tolist()
    [0, 5]
    """
    residual, entries = np.full(offsets.size - 1, np.nan), []
    for i in np.flatnonzero(np.diff(offsets)):
        weights = np.exp(log_weight[offsets[i] : offsets[i + 1]])
        kept = _at_the_top(weights, tail - max(0.0, 1.0 - float(weights.sum(dtype=np.float64))))
        residual[i] = max(0.0, 1.0 - float(weights[kept].sum(dtype=np.float64)))
        entries.append(kept + offsets[i])
    chosen = np.concatenate([np.empty(0, np.int64), *entries])
    return Pruned(component[chosen], log_weight[chosen], np.searchsorted(chosen, offsets).astype(np.int64), residual)


def taken(pruned: Pruned, images: IntArray) -> Pruned:
    """Take some images.

    Parameters
    ----------
    pruned : Pruned
    images : ndarray of int64, (k,)

    Returns
    -------
    Pruned
        Of k images.

    Examples
    --------
    >>> taken(prune(np.log([[0.5, 0.5], [0.2, 0.8]])), np.array([1])).offsets.tolist()
    [0, 2]
    """
    counts = np.diff(pruned.offsets)[images]
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    entries = np.repeat(pruned.offsets[images] - ends[:-1], counts) + np.arange(ends[-1])
    return Pruned(pruned.component[entries], pruned.log_weight[entries], ends, pruned.residual[images])


def spread_all(pruned: Pruned, training_counts: npt.ArrayLike, *, out: FloatArray | None = None) -> FloatArray:
    """Give the weights of all components back, the residual spread over those that are not stored.

    Parameters
    ----------
    pruned : Pruned
        Of n images that all have a prediction.
    training_counts : array_like of int, (C,)
        The share of a component is its count plus one: one that saw no training image still gets some.
    out : ndarray of float64, (n, C), optional
        Where the result goes.

    Returns
    -------
    ndarray of float64, (n, C)
        Natural logarithms; the weights of an image sum to 1.

    Examples
    --------
    >>> one = Pruned(np.array([1], np.uint32), np.log(np.array([0.9], np.float32)), np.array([0, 1]), np.array([0.1]))
    >>> np.exp(spread_all(one, [0, 7, 3])).round(6).tolist()
    [[0.02, 0.9, 0.08]]
    """
    counts = np.asarray(training_counts, dtype=np.float64) + 1.0
    result = np.empty((len(pruned), counts.size)) if out is None else out
    with np.errstate(divide="ignore"):  # without residual the others have weight 0
        shares = np.log(counts)
        for i, row in enumerate(result):
            entries = slice(int(pruned.offsets[i]), int(pruned.offsets[i + 1]))
            component = pruned.component[entries]
            weights = np.exp(pruned.log_weight[entries].astype(np.float64))
            others = max(counts.sum() - counts[component].sum(), 0.0) if component.size < counts.size else 0.0
            residual = pruned.residual[i] if others else 0.0
            total = np.log(weights.sum() + residual)
            row[:] = shares + (np.log(residual / others) - total if residual else -np.inf)
            row[component] = np.log(weights) - total
    return result


def _heaviest(row: npt.NDArray[np.float32], tail: float, image: int) -> tuple[IntArray, float]:
    """Components to keep, ascending, and the weight of the others."""
    weights = np.exp(row)
    total = float(weights.sum(dtype=np.float64))
    if not abs(total - 1.0) <= 1e-3:
        if np.isnan(row).all():
            return np.empty(0, dtype=np.int64), np.nan
        raise ValueError(f"image {image}: its mixing weights sum to {total}, not to 1")
    # What is lighter than its even share of the tail goes whatever the rest is: only the others need sorting,
    # and sorting values alone is several times faster than sorting indices.
    light = weights <= tail * total / weights.size
    left = tail * total - float(weights[light].sum(dtype=np.float64))
    kept = np.flatnonzero(~light)
    kept = kept[_at_the_top(weights[kept], left)]
    return kept, max(0.0, 1.0 - float(weights[kept].sum(dtype=np.float64)) / total)


def _heaviest_of_softmax(row: npt.NDArray[np.float32], tail: float) -> tuple[IntArray, float]:
    """The same by one look at each logarithm: the exponential and the sum of most of them are nobody's."""
    with np.errstate(divide="ignore"):
        heavy = np.flatnonzero(row > np.log(np.float32(tail) / row.size))
    weights = np.exp(row[heavy])
    left = tail - max(0.0, 1.0 - float(weights.sum(dtype=np.float64)))
    kept = _at_the_top(weights, left)
    return heavy[kept], max(0.0, 1.0 - float(weights[kept].sum(dtype=np.float64)))


def _at_the_top(weights: npt.NDArray[np.float32], left: float) -> IntArray:
    """Give the fewest weights, by index, that hold all but so much of these."""
    ordered = np.sort(weights)
    below = np.cumsum(ordered, dtype=np.float64)
    first = int(np.searchsorted(below, left, side="right"))
    first = min(first, ordered.size - 1)
    kept = np.flatnonzero(weights >= ordered[first])
    spare = kept.size - (ordered.size - first)
    if spare:  # of components with the weight at the cut, the last ones are left out
        kept = np.delete(kept, np.flatnonzero(weights[kept] == ordered[first])[-spare:])
    return kept
