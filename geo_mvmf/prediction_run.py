"""What a prediction is of: images, bundle, options. Results of an earlier run are used where this is the same."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import geopandas
import pandas as pd

from geo_mvmf import __version__, sphere
from geo_mvmf.files import columns
from geo_mvmf.inputs import tables

if TYPE_CHECKING:
    from geo_mvmf.model.bundle import Bundle

_VERSION = 2  # of the part files; a change makes old parts useless
_ROWS = 256  # described at a time


def describe(bundle: Bundle, table: geopandas.GeoDataFrame, estimator: str, radius_km: float | None) -> dict[str, Any]:
    """Describe a prediction: equal descriptions have equal results.

    Parameters
    ----------
    bundle, table, estimator, radius_km
        As `predicting.predict`.

    Returns
    -------
    dict
        What the predictions file keeps as `run`.

    Examples
    --------
    >>> import pandas
    >>> from geo_mvmf.inputs.tables import read_image_table
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> table = read_image_table(pandas.DataFrame({"path": ["no.jpg"]}), root="/")
    >>> describe(untrained_bundle(), table, "component", None)["images"]
    1
    """
    digest = hashlib.sha256()
    for start in range(0, len(table), _ROWS):
        digest.update(_named(table.iloc[start : start + _ROWS]).encode("utf-8", "surrogateescape"))
    # claims and columns that pass through are part of the result, too, as they are written there: lists have no hash
    others = table.drop(columns=["image_id", "path", "status", "message", table.geometry.name])
    digest.update(pd.util.hash_pandas_object(columns.tidy_table(others), index=False).to_numpy().tobytes())
    digest.update("\0".join(map(str, others.columns)).encode("utf-8", "surrogateescape"))
    return {
        "geo_mvmf": __version__,
        "parts": _VERSION,
        "bundle": bundle.path.name if bundle.path else "",
        "bundle_sha256": bundle.digest,
        **({} if bundle.digest else {"bundle_content_sha256": bundle.content_sha256()}),
        "estimator": estimator,
        **({} if radius_km is None else {"radius_km": float(radius_km)}),
        "claims": str(table.attrs.get("claimed_from", "none")),
        "images": len(table),
        "images_sha256": digest.hexdigest(),
        "root": str(table.attrs.get("root", "")),
        "licence": str(bundle.metadata.get("licence", "")),
        "earth": f"sphere, R = {sphere.EARTH_RADIUS_KM} km",
    }


def _named(table: geopandas.GeoDataFrame) -> str:
    """Text that tells these images from all others."""
    files = map(_stamp, tables.absolute_paths(table))
    named = zip(table["image_id"], table["path"], table["status"], files, strict=True)
    return "".join("\t".join(map(str, each)) + "\0" for each in named)


def _stamp(image: Path) -> str:
    """Size and time of a file, by which another image of the same name is noticed without reading it."""
    try:
        found = image.stat()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return "none"
    return f"{found.st_size} {found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else "none"
