"""Some images of a predictions file, as predictions of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from geo_mvmf.files import stores
from geo_mvmf.files.weights import Pruned
from geo_mvmf.predictions import Predictions, open_predictions
from geo_mvmf.stored_mixtures import rows_named
from geo_mvmf.temporary_folder import TemporaryFolder


def open_some(path: str | os.PathLike[str], image_ids: Sequence[str] = ()) -> Predictions:
    """Open a predictions file, or only some of its images: means, zones and fusing then know of no others.

    Parameters
    ----------
    path : path
        Ends in .nc.
    image_ids : sequence of str
        Those wanted; all if there are none. Each counts once, in the order of the file.

    Returns
    -------
    Predictions
        Of the chosen images, in a file that goes away with them; or the file itself.

    Raises
    ------
    BadInputError
        If the file cannot be read, or an image is unknown or has no prediction.

    Examples
    --------
    >>> open_some("album.nc", ["a.jpg", "b.jpg"]).zones("countries.geojson")  # doctest: +SKIP
    """
    found = open_predictions(path)
    if not image_ids:
        return found
    store = found.store
    rows = np.unique(rows_named(store, image_ids))
    holder = TemporaryFolder()
    file = holder.path / store.path.name  # the name is kept with whatever is made of it
    stores.write_store(
        file,
        rows=store.rows.iloc[rows].reset_index(drop=True),
        pruned=_joined([store.pruned(row, row + 1) for row in rows.tolist()]),
        components=store.components,
        run={**store.run, "images": int(rows.size), "chosen_of": len(store)},
    )
    return Predictions(stores.open_store(file), holder)


def _joined(parts: Sequence[Pruned]) -> Pruned:
    return Pruned(
        np.concatenate([part.component for part in parts]),
        np.concatenate([part.log_weight for part in parts]),
        np.cumsum([0, *(part.component.size for part in parts)], dtype=np.int64),
        np.concatenate([part.residual for part in parts]),
    )
