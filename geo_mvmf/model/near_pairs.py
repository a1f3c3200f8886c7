"""Which components can count for which targets: pairs found once per batch, before any logit is known.

The components, in an order that keeps neighbours together, are cut into tiles of 128. For each tile and target an upper
bound of the tile's log densities follows from the tile's ball (its centre and the farthest of its mean directions) and
from its least and greatest concentration. Tiles whose bound is far below the density of some component are left
out, the components of the others are evaluated one by one.

What is left out is known to be below a stated log density, so that the sum over the pairs has a certificate: see
`numerators.NearComponents`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from geo_mvmf.model.components import Components

TILE = 128
_RUN_ELEMENTS = 1 << 16  # float64 values worked on at once, in some four arrays: 512 kB,
_LEAST_RUN_ELEMENTS = (
    1 << 14
)  # or less, down to this, where that is more than a 512th of all pairs: 1 % of float32 logits
_ACCELERATOR_RUN_ELEMENTS = 1 << 22
_ROUNDING = 1e-6  # of distances in float32, generously
_HALF = 0.5 * (1.0 - 1e-5)  # and of what follows from them
_SCATTERED = 4.0  # tiles wider than this many times those of an even order are made anew, along a curve,
_WIDE = 0.7  # and those wider than this


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Targets and components that can count.

    Parameters
    ----------
    rows, columns : Tensor of int32, shape (P,)
        Target and component.
    relative : Tensor, shape (P,)
        Log density less that of `best`.
    best : Tensor of float64, shape (N,)
        The greatest log density of any component at the target.
    depth : float
        Components without a pair have a log density below best - depth.
    """

    rows: Tensor
    columns: Tensor
    relative: Tensor
    best: Tensor
    depth: float


def find(
    components: Components, y: Tensor, *, depth: float, working: torch.dtype, most: int, most_kept: int | None = None
) -> Pairs | None:
    """Find all pairs whose log density is within some depth of the best one of the target.

    Parameters
    ----------
    components : Components
        C of them.
    y : Tensor of float64, shape (N, 3)
        Targets.
    depth : float
        Nats.
    working : torch.dtype
        Of `Pairs.relative`.
    most, most_kept : int
        Give up where more pairs than this would have to be evaluated, or kept (at 12 bytes each, and as many while they
        are put together); default: as many as are evaluated.

    Returns
    -------
    Pairs or None
        None: there are too many.

    Examples
    --------
    >>> y = torch.nn.functional.normalize(torch.eye(3)).double()
    >>> components = Components(y, torch.full((3,), 1e3).double(), torch.zeros(3).double())
    >>> find(components, y, depth=60.0, working=torch.float32, most=9).columns.tolist()
    [0, 1, 2]
    """
    tiles = _Tiles(components)
    candidates = tiles.candidates(y, depth, most)
    if candidates is None:
        return None
    return _evaluate(tiles, y, *candidates, depth, working, most if most_kept is None else most_kept)


def _run_elements(y: Tensor, count: int) -> int:
    """How many values to work on at once for targets and so many components."""
    few = max(len(y) * count // 512, _LEAST_RUN_ELEMENTS)
    return min(run_elements(y), few) if y.device.type == "cpu" else run_elements(y)


class _Tiles:
    """Components in tiles: T of them, of W components each, with balls around their mean directions."""

    def __init__(self, components: Components) -> None:
        count = len(components.mean_directions)
        self.width = min(TILE, count)
        self.missing = -count % self.width
        self.count = count
        self._components = components
        self._order: Tensor | None = None
        self._scratch = components.mean_directions.new_empty(2, 0, self.width)
        self._cut()
        even = math.sqrt(4.0 * self.width / count)  # the radius of a cap of a tile's share of the sphere, as a chord
        if bool(self.radius.mean() > min(_SCATTERED * even, _WIDE)):
            self._order = _along_a_curve(components.mean_directions)
            self._cut()

    def _cut(self) -> None:
        coordinates = self._components.mean_directions.T
        self.mean_directions = torch.stack([self._tiled(along) for along in coordinates])  # (3, T, W)
        self.concentrations = self._tiled(self._components.concentrations)  # (T, W)
        self.log_normalisers = self._tiled(self._components.log_normalisers)
        centre = self.mean_directions.mean(dim=2)  # (3, T)
        offsets = torch.zeros_like(self.mean_directions[0])
        for along, at in zip(self.mean_directions, centre, strict=True):
            offsets += (along - at[:, None]).square_()
        self.radius = offsets.amax(dim=1).sqrt_().float() + _ROUNDING
        self.centre = centre.T.float().contiguous()  # (T, 3)
        self._least, self._greatest = (k(self.concentrations, dim=1).float() for k in (torch.amin, torch.amax))
        self._same = bool((self.concentrations == self.concentrations[0, 0]).all())

    def _tiled(self, values: Tensor) -> Tensor:
        ordered = values if self._order is None else values[self._order]
        if self.missing:
            ordered = torch.cat([ordered, ordered[-1:].expand(self.missing)])  # the last one repeated
        return ordered.view(-1, self.width)

    def columns(self, tile: Tensor, place: Tensor) -> Tensor:
        """Give the components at places of tiles."""
        at = tile * self.width + place
        return at if self._order is None else self._order[at]

    def bound(self, distance: Tensor) -> Tensor:
        """Bound the log densities of each tile from above, (R, T) in float32, by the distances from its centre."""
        half = (distance - self.radius).clamp_(min=0.0).square_().mul_(_HALF)  # at least kappa times this is lost
        kappa = torch.maximum(torch.minimum(half.reciprocal().sub_(0.5), self._greatest), self._least)
        return _log_normaliser_bound(kappa).sub_(half.mul_(kappa))

    def _reach(self, least: Tensor) -> Tensor:
        """Distance from a tile's ball beyond which it is less dense than a log density (R,); of one concentration."""
        lost = (_log_normaliser_bound(self._greatest[:1]) - least).clamp_(min=0.0)
        return (lost / (_HALF * self._greatest[0])).sqrt_()

    def log_density(self, y: Tensor, tile: Tensor) -> Tensor:
        """Log densities of the components of a tile for each target: (K, 3), (K,) -> (K, W); until the next call."""
        if len(tile) > self._scratch.shape[1]:  # made once: arrays that come and go among kept ones fragment the heap
            self._scratch = self.mean_directions.new_empty(2, len(tile), self.width)
        found, other = self._scratch[0, : len(tile)], self._scratch[1, : len(tile)]
        found.zero_()
        for axis, along in enumerate(self.mean_directions):
            torch.index_select(along, 0, tile, out=other).sub_(y[:, axis, None])
            found.addcmul_(other, other)
        if self._same:
            return found.mul_(-0.5 * self.concentrations[0, 0]).add_(self.log_normalisers[0, 0])
        found.mul_(torch.index_select(self.concentrations, 0, tile, out=other)).mul_(-0.5)
        return found.add_(torch.index_select(self.log_normalisers, 0, tile, out=other))

    def candidates(self, y: Tensor, depth: float, most: int) -> tuple[Tensor, Tensor] | None:
        """Give targets and tiles (K,), (K,) whose components may be within the depth of the best; None: too many."""
        rows, tiles, found = [], [], 0
        # of each target one tile is evaluated, in float64, and the distances from all tiles are formed, in float32
        step = max(1, _run_elements(y, self.count) // max(self.width, len(self.centre) // 2))
        for start in range(0, max(len(y), 1), step):  # one run, of nothing, also where there are no targets
            some = y[start : start + step]
            distance = torch.cdist(some.float(), self.centre, compute_mode="donot_use_mm_for_euclid_dist")
            best = self.log_density(some, distance.argmin(dim=1)).amax(dim=1)
            if self._same:
                reach = self._reach((best - depth).float())
                beyond = distance.sub_(reach[:, None]) > self.radius  # not of what is no number: that must show
            else:  # a wide component may be better than the nearest ones
                bound = self.bound(distance)
                best = torch.maximum(best, self.log_density(some, bound.argmax(dim=1)).amax(dim=1))
                beyond = bound < (best - depth).float()[:, None]
            row, tile = beyond.logical_not_().nonzero(as_tuple=True)
            rows.append(row + start)
            tiles.append(tile)
            found += len(row)
            if found * self.width > most:
                return None
        return torch.cat(rows), torch.cat(tiles)


def _evaluate(
    tiles: _Tiles, y: Tensor, rows: Tensor, tile: Tensor, depth: float, working: torch.dtype, most: int
) -> Pairs | None:
    """Evaluate the components of candidate tiles, and keep those within the depth of the best; None: too many."""
    best = torch.full_like(y[:, 0], -math.inf)
    found, kept = [(rows[:0].int(), rows[:0].int(), best[:0].to(working))], 0
    for run in _runs_of_whole_rows(rows, len(y), max(1, _run_elements(y, tiles.count) // tiles.width)):
        row, some = rows[run], tile[run]
        log_f = tiles.log_density(y[row], some)
        best.scatter_reduce_(0, row, log_f.amax(dim=1), "amax")
        relative = log_f.sub_(best.index_select(0, row)[:, None])
        keep = (relative < -depth).logical_not_()  # what is no number is kept: it must show
        if tiles.missing:
            keep[some == len(tiles.centre) - 1, -tiles.missing :] = False
        at = keep.view(-1).nonzero().squeeze(1)
        which = at.div(tiles.width, rounding_mode="floor")
        column = tiles.columns(some.index_select(0, which), at - which * tiles.width)
        taken = relative.view(-1).index_select(0, at).to(working)
        found.append((row.index_select(0, which).int(), column.int(), taken))
        kept += len(at)
        if kept > most:
            return None
    row, column, taken = (torch.cat(each) for each in zip(*found, strict=True))
    return Pairs(row, column, taken, best, depth)


def _runs_of_whole_rows(rows: Tensor, n: int, step: int) -> Iterator[slice]:
    """Cut candidates, which come row by row, into runs of about a length that no row is spread over."""
    ends = torch.bincount(rows, minlength=n).cumsum(0).tolist()
    start = stop = 0
    for end in ends:
        if end - start > step and stop > start:
            yield slice(start, stop)
            start = stop
        stop = end
    if stop > start:
        yield slice(start, stop)


def _log_normaliser_bound(kappa: Tensor) -> Tensor:
    """Bound log c(kappa) from above: kappa / (1 - exp(-2 kappa)) is at most kappa + 1/2."""
    return kappa.add(0.5).log_().sub_(math.log(2.0 * math.pi) - 1e-4)  # and rounding in float32


def _along_a_curve(directions: Tensor) -> Tensor:
    """Order directions along a space-filling curve (Morton's, of 2^30 cubes)."""
    cells = ((directions.clamp(-1.0, 1.0) + 1.0) * 511.5).long()
    code = torch.zeros_like(cells[:, 0])
    for bit in range(10):
        for axis in range(3):
            code |= ((cells[:, axis] >> bit) & 1) << (3 * bit + axis)
    return torch.argsort(code, stable=True)


def run_elements(tensor: Tensor) -> int:
    """Give how many float64 values are worked on at once, so that memory stays bounded and a CPU's cache is used.

    Parameters
    ----------
    tensor : Tensor
        On the device of the work.

    Returns
    -------
    int
        512 kB of them on a CPU.

    Examples
    --------
    >>> 8 * run_elements(torch.empty(1)) == 1 << 19
    True
    """
    return _RUN_ELEMENTS if tensor.device.type == "cpu" else _ACCELERATOR_RUN_ELEMENTS
