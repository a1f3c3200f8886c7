"""A part that is being predicted: rows that fill up, and the mixing weights of the images that are finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import row_contract
from geo_mvmf.errors import ImageError
from geo_mvmf.files import stores
from geo_mvmf.inputs import tables
from geo_mvmf.prediction_weights import Piece, assembled
from geo_mvmf.progress import Failure

IntArray = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]
Image = Pixels | ImageError


class PartRows(NamedTuple):
    """A part that was predicted.

    Attributes
    ----------
    start, stop : int
        Rows start..stop - 1 of the table.
    rows : DataFrame
        The row contract.
    pruned : Pruned
        The images' mixing weights.
    """

    start: int
    stop: int
    rows: pd.DataFrame
    pruned: stores.Pruned


@dataclasses.dataclass(frozen=True, eq=False)
class BegunPart:
    """Rows start..stop - 1 of a table.

    Parameters
    ----------
    start, stop : int
    rows : dict of str to ndarray
        The row contract, changed in place.
    pieces : list of (images, weights)
        Of the images that are finished.
    paths : list of path
        One per row.

    Examples
    --------
    See `prediction_parts.Predictor`.
    """

    start: int
    stop: int
    rows: row_contract.Rows
    pieces: list[Piece]
    paths: list[Path]

    @classmethod
    def of(cls, table: geopandas.GeoDataFrame, start: int, stop: int, *, has_truth: bool) -> BegunPart:
        """Begin a part of an image table."""
        frame = table.iloc[start:stop]
        rows = row_contract.empty_rows(frame, has_truth=has_truth)
        return cls(start, stop, rows, [], tables.absolute_paths(frame))

    def of_status(self, *, ok: bool) -> IntArray:
        """Images that can be used so far, or those that cannot."""
        return np.flatnonzero((self.rows["status"] == "ok") == ok)

    def readable(self, batch: Sequence[tuple[int, Image]]) -> list[tuple[int, Pixels]]:
        """Images that could be read; the others get their status."""
        good = []
        for i, image in batch:
            if isinstance(image, ImageError):
                self.rows["status"][i], self.rows["message"][i] = image.status, str(image)
            else:
                good.append((i, image))
        return good

    def refuse(self, images: IntArray) -> None:
        """Mark images that have no mixing weights; a network's NaN or infinity costs its own row and no other."""
        for i in images:
            self.rows["status"][i] = "failed"
            self.rows["message"][i] = (
                f"{self.rows['path'][i]}: the network's output is not finite (NaN or infinity); try another device, "
                "such as cpu: where it stays so, the bundle does not suit this image"
            )

    def failures(self, images: IntArray) -> tuple[Failure, ...]:
        """Those of some images that cannot be used, as progress tells of them."""
        failed = images[self.rows["status"][images] != "ok"]
        return tuple(Failure(*(str(self.rows[name][i]) for name in ("path", "status", "message"))) for i in failed)

    def cancel(self) -> None:
        """Mark the images that are not finished as not reached."""
        is_left = self.rows["status"] == "ok"
        for index, _ in self.pieces:
            is_left[index] = False
        row_contract.cancel(self.rows, np.flatnonzero(is_left))

    def finished(self) -> PartRows:
        """Give the part, all of whose images are finished, failed or cancelled."""
        size = self.stop - self.start
        rows = pd.DataFrame(self.rows, index=pd.RangeIndex(size))
        return PartRows(self.start, self.stop, rows, assembled(self.pieces, size))
