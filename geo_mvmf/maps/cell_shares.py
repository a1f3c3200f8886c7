"""Shares of S2 cells inside polygons: cells off every border by their centre, others cut into many pieces."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely
from scipy import sparse

from geo_mvmf import s2
from geo_mvmf.maps import borders
from geo_mvmf.maps.cell_boxes import cell_boxes

FloatArray = npt.NDArray[np.float64]
IdArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]

_DEPTH = 8  # halvings of a cell on a border, at most
_LEAST = 2e-6  # probability of a piece on a border that is not worth cutting any more
_CUT_AT_ONCE = 1 << 15  # pieces cut at each halving, the heaviest ones: so the work is bounded


def cell_shares(
    cell_ids: IdArray, weights: FloatArray, zones: npt.NDArray[np.object_], *, depth: int = _DEPTH
) -> sparse.csr_array:
    """Give the share of every cell's area that lies in every zone.

    Parameters
    ----------
    cell_ids : ndarray of uint64, shape (T,)
        Cells of any levels.
    weights : ndarray of float64, shape (T,)
        The largest probability that an image gives each cell: where it is worth while to be exact.
    zones : ndarray of Polygon or MultiPolygon, shape (Z,)
        Valid, in -180..180 and -90..90.
    depth : int
        How often a cell on a border is halved, at most.

    Returns
    -------
    csr_array of float64, shape (T, Z)
        In 0..1. A piece on a border counts whole for the side its centre is on. A cell of 0.001 or more is cut until
        its pieces hold less than 2e-6 or are 256 times smaller; lighter ones err by less in probability.

    Examples
    --------
    >>> half = np.array([shapely.box(0, -90, 180, 90)])
    >>> cell_shares(s2.face_cells(), np.ones(6), half, depth=4).toarray().ravel().round(3).tolist()
    [0.5, 1.0, 0.5, 0.5, 0.0, 0.5]
    """
    shape = (cell_ids.size, zones.size)
    tree = _border_tree(zones)
    owner, pieces = np.arange(cell_ids.size), cell_ids
    whole = s2.area_sr(cell_ids)
    total = sparse.csr_array(shape)
    for halvings in range(depth + 1):
        mass = weights[owner] * s2.area_sr(pieces) / whole[owner]
        cut = np.zeros(pieces.size, dtype=np.bool_)
        if halvings < depth:
            worth = np.flatnonzero((mass > _LEAST) & (s2.level(pieces) < s2.MAX_LEVEL))
            on_border = worth[_touching(tree, pieces[worth])]
            cut[on_border[np.argsort(-mass[on_border], kind="stable")[:_CUT_AT_ONCE]]] = True
        place, zone = borders.members(zones, borders.nudged(s2.centre(pieces[~cut])))
        part = owner[~cut][place]
        share = s2.area_sr(pieces[~cut][place]) / whole[part]
        total = total + sparse.csr_array((share, (part, zone)), shape=shape)
        owner, pieces = np.repeat(owner[cut], 4), s2.children(pieces[cut]).ravel()
    total.data = np.minimum(total.data, 1.0)
    return total


def _border_tree(zones: npt.NDArray[np.object_]) -> shapely.STRtree:
    """Edges that a cell may be cut by; the seams at +-180 are not among them: no piece has its centre there."""
    edges = borders.edges_of(zones)
    seam = (np.abs(edges.start[:, 0]) == 180.0) & (edges.start[:, 0] == edges.stop[:, 0])
    lines = shapely.linestrings(np.stack([edges.start[~seam], edges.stop[~seam]], axis=1))
    return shapely.STRtree(np.array(lines, dtype=object))


def _touching(tree: shapely.STRtree, cells: IdArray) -> npt.NDArray[np.bool_]:
    """Which cells may be cut by a border: those whose box on the map meets one, or that lie across the seam."""
    if not cells.size:
        return np.zeros(0, dtype=np.bool_)
    result = np.zeros(cells.size, dtype=np.bool_)
    boxes, rows = cell_boxes(cells)
    result[rows[tree.query(boxes, predicate="intersects")[0]]] = True
    return np.asarray(result | (s2.level(cells) == 0))  # a face may lie across the seam
