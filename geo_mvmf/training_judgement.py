"""What held-out images say of a training run: errors, likelihood, coverage, and the blocks of land where it fails."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from geo_mvmf import baselines, metrics, resampling, s2, sphere
from geo_mvmf.evaluation import Evaluation
from geo_mvmf.maps import estimates, outlines, ranks
from geo_mvmf.metrics import Estimate
from geo_mvmf.progress import Progress

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle
    from geo_mvmf.model.held_out import HeldOut

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]

LEAST_BLOCKS = resampling.LEAST_CLUSTERS
"""Blocks from which on intervals count blocks; those of fewer would have hardly any width."""

LEAST_IMAGES = 20
"""Held-out images from which on a verdict is given, and an interval of a distance or a mean: fewer tell too little."""

_ENOUGH_OF_BLOCK = 5  # images, to say of a block that it fails
_LEAST_ON_MAP = 12  # blocks
_AT_ONCE = 1 << 22  # mixing weights whose densities are evaluated together: 32 MB of float64
_MOST_AT_ONCE = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Judgement:
    """Figures of the held-out images.

    Parameters
    ----------
    evaluation : Evaluation
        Its intervals count blocks, where there are 8 or more.
    block_ids : ndarray of uint64, (n,)
        S2 cell of each image.
    level : int
        Of these cells.
    """

    evaluation: Evaluation
    block_ids: IdArray
    level: int

    @property
    def clusters(self) -> IdArray:
        """What intervals count, (n,): blocks, or images where there are few blocks."""
        return clusters_of(self.block_ids)

    @property
    def too_few(self) -> str:
        """Why there is no verdict; empty where there are 20 images in 8 blocks."""
        return too_few(self.block_ids)

    @property
    def has_intervals(self) -> bool:
        """Whether there are images enough for intervals of distances and means."""
        return self.block_ids.size >= LEAST_IMAGES

    def within(self, share: float) -> Estimate:
        """Give the distance in km that a share of the images is within, with its interval over blocks.

        Parameters
        ----------
        share : float
            0..1.
        """
        if share == 0.5:  # as everywhere: between the two in the middle
            return resampling.median_of_clusters(self.evaluation.error_km, self.clusters)
        return resampling.quantile_of_clusters(self.evaluation.error_km, self.clusters, share)

    @property
    def gain(self) -> Estimate | None:
        """Nats over the density of the training images, with its interval; None where that is not known."""
        baseline = self.evaluation.nll_training
        if baseline is None:
            return None
        return resampling.mean_of_clusters(baseline - self.evaluation.nll, self.clusters)

    def blocks(self) -> tuple[pd.DataFrame, int]:
        """Give the figures of every block, the worst first.

        Returns
        -------
        DataFrame
            cell (S2 id), images, median_km, nll.
        level : int
            Of these blocks: a coarser one, where most would have a few images only.
        """
        cells, level = coarser_blocks(self.block_ids, self.level)
        frame = pd.DataFrame({"cell": cells, "error_km": self.evaluation.error_km, "nll": self.evaluation.nll})
        found = frame.groupby("cell").agg(images=("nll", "size"), median_km=("error_km", "median"), nll=("nll", "mean"))
        return found.sort_values("median_km", ascending=False, kind="stable").reset_index(), level


def coarser_blocks(block_ids: IdArray, level: int) -> tuple[IdArray, int]:
    """Join blocks until most of them tell something.

    Parameters
    ----------
    block_ids : ndarray of uint64, (n,)
        S2 cell of each image.
    level : int
        Of these cells.

    Returns
    -------
    block_ids : ndarray of uint64, (n,)
    level : int
        The finest one, from the given one up, whose blocks have 5 images in the middle; no coarser one than leaves 12
        blocks.

    Examples
    --------
    >>> cells = s2.cell_ids(sphere.random_directions(900, np.random.default_rng(0)), 4)
    >>> coarser_blocks(cells, 4)[1]
    2
    """
    while level > 0 and np.median(np.unique(block_ids, return_counts=True)[1]) < _ENOUGH_OF_BLOCK:
        joined = s2.parent(block_ids, level - 1)
        if np.unique(joined).size < _LEAST_ON_MAP:
            break
        block_ids, level = joined, level - 1
    return block_ids, level


def judge_job(
    bundle: Bundle, held_out: HeldOut, image_id: npt.NDArray[np.object_], blocks: tuple[IdArray, int]
) -> Generator[Progress, None, Judgement]:
    """Judge predictions of held-out images.

    Parameters
    ----------
    bundle : Bundle
    held_out : HeldOut
        Of n images.
    image_id : ndarray of str, (n,)
    blocks : ndarray of uint64, (n,), and int
        From `held_out.block_ids`.

    Yields
    ------
    Progress
        Stage "judge", in images.

    Returns
    -------
    Judgement

    Examples
    --------
    See `geo_mvmf.training_report.training_report_job`.
    """
    n = len(held_out)
    place = held_out.longitude, held_out.latitude
    uniform = np.random.default_rng(0).random(n)
    names = ("log_density", "searched_probability", "searched_area_km2")
    columns = {name: np.full(n, np.nan) for name in names}
    points = np.full((n, 2), np.nan)
    step = int(np.clip(_AT_ONCE // bundle.num_components, 1, _MOST_AT_ONCE))
    for begin in range(0, n, step):
        block = slice(begin, begin + step)
        mixture = bundle.mixture(held_out.log_mixing_weights[block])
        ranked = ranks.ranks(mixture, place[0][block], place[1][block], uniform[block])
        for name in names:
            columns[name][block] = ranked[name]
        points[block] = estimates.estimate(mixture)
        yield Progress("judge", min(begin + step, n), n)
    area = bundle.training_area
    training = baselines.training_nll(area.cell_ids, area.counts, *place)
    evaluation = Evaluation(
        image_id=image_id,
        error_km=np.asarray(sphere.great_circle_distance_km(points[:, 0], points[:, 1], *place)),
        nll=-columns["log_density"],
        searched_probability=columns["searched_probability"],
        searched_area_km2=columns["searched_area_km2"],
        groups=np.full(n, "", dtype=object),
        nll_training=None if np.isnan(training).all() else training,
        estimator="component",
        clusters=blocks[0] if np.unique(blocks[0]).size >= LEAST_BLOCKS else None,
    )
    return Judgement(evaluation, *blocks)


def clusters_of(block_ids: IdArray) -> IdArray:
    """Say what intervals count.

    Parameters
    ----------
    block_ids : ndarray of uint64, (n,)

    Returns
    -------
    ndarray of uint64, (n,)
        The blocks; numbers of the images, where there are fewer than 8 blocks.

    Examples
    --------
    >>> clusters_of(np.zeros(3, np.uint64)).tolist()
    [0, 1, 2]
    """
    if np.unique(block_ids).size >= LEAST_BLOCKS:
        return block_ids
    return np.arange(block_ids.size, dtype=np.uint64)


def too_few(block_ids: IdArray) -> str:
    """Say why held-out images are too few for a verdict.

    Parameters
    ----------
    block_ids : ndarray of uint64, (n,)

    Returns
    -------
    str
        Empty where they are enough: 20 images, in 8 blocks.

    Examples
    --------
    >>> too_few(np.arange(3, dtype=np.uint64))
    '3 held-out images, and 20 are needed'
    """
    n, blocks = block_ids.size, np.unique(block_ids).size
    if n < LEAST_IMAGES:
        return f"{n} held-out image{'s' if n > 1 else ''}, and {LEAST_IMAGES} are needed"
    if blocks < LEAST_BLOCKS:
        return (
            f"{n} held-out images in {blocks} block{'s' if blocks > 1 else ''} of land, and {LEAST_BLOCKS} are needed"
        )
    return ""


def share_by_block(block_ids: IdArray, hits: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Give the share of right images in every block, the worst first.

    Parameters
    ----------
    block_ids : ndarray of uint64, (n,)
    hits : ndarray of bool, (n,)

    Returns
    -------
    DataFrame
        cell, images, share, and low, high: the Wilson interval.

    Examples
    --------
    >>> share_by_block(np.array([3, 3, 7], np.uint64), np.array([True, True, False]))["share"].tolist()
    [0.0, 1.0]
    """
    frame = pd.DataFrame({"cell": block_ids, "hit": hits.astype(float)})
    found = frame.groupby("cell").agg(images=("hit", "size"), share=("hit", "mean")).reset_index()
    ends = [metrics.wilson_interval(share * n, n) for share, n in zip(found["share"], found["images"], strict=True)]
    found["low"], found["high"] = [float(low) for low, _ in ends], [float(high) for _, high in ends]
    return found.sort_values(["share", "images"], ascending=[True, False], kind="stable").reset_index(drop=True)


def box_text(cell: int) -> str:
    """Say where an S2 cell lies: the longitudes and latitudes around it.

    Parameters
    ----------
    cell : int
        S2 id.

    Returns
    -------
    str
        "west to east, south to north" with the side of each.

    Examples
    --------
    >>> box_text(int(s2.cell_ids([[1.0, 0.0, 0.0]], 2)[0]))
    '0° to 23° E, 0° to 23° N'
    """
    shape = outlines.outline([cell])
    west, south, east, north = shape.bounds
    if east - west > 180.0 and not (south <= -89.0 or north >= 89.0):  # two pieces on both sides of 180
        bounds = [part.bounds for part in shape.geoms]
        west = min(box[0] for box in bounds if box[0] >= 0.0)
        east = max(box[2] for box in bounds if box[0] < 0.0)
    level = int(s2.level(np.array([cell], dtype=np.uint64))[0])
    digits = max(0, math.ceil(-math.log10(math.degrees(float(s2.edge_length(level))))) + 1)
    across = " to ".join(_sided(value, "EW", digits) for value in (west, east))
    along = " to ".join(_sided(value, "NS", digits) for value in (south, north))
    return f"{across}, {along}"


def _sided(value: float, sides: str, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    side = "" if float(text) == 0.0 else f" {sides[0] if value > 0.0 else sides[1]}"
    return f"{text}°{side}"


def polygons_of(cells: npt.ArrayLike) -> list[shapely.MultiPolygon]:
    """Give the outlines of S2 cells.

    Parameters
    ----------
    cells : array_like of uint64, (n,)

    Examples
    --------
    >>> len(polygons_of(s2.face_cells()[:2]))
    2
    """
    return outlines.cell_polygons(cells)
