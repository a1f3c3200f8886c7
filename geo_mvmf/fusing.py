"""Stored predictions and further evidence -> a predictions file of what is known then, one row per place.

Images of one group are known to be of one place; an image may be a group of its own, of which an area or a prior
then leaves a part.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import __version__, durable, row_contract
from geo_mvmf.errors import BadInputError, UsageError
from geo_mvmf.files import stores
from geo_mvmf.inputs.scenes import open_scene
from geo_mvmf.maps import evidence, summaries
from geo_mvmf.maps.combining import MASS_ERROR, combine
from geo_mvmf.maps.estimates import estimate
from geo_mvmf.maps.grid import Grid
from geo_mvmf.maps.multipliers import Multiplier
from geo_mvmf.mixture import CellMixture
from geo_mvmf.progress import Progress
from geo_mvmf.stored_mixtures import mixture_of_rows, to_stored, training_prior
from geo_mvmf.suggestions import suggestion

IntArray = npt.NDArray[np.int64]
Source = str | os.PathLike[str]

_MOST_NAMED = 12  # columns in a message
PRIOR_MODES = ("replace", "multiply")
COLUMNS = (
    "n_images",
    "n_left_out",
    "independence",
    "agreement_bits",
    "probability_in_area",
    "gained_bits",
    "saved_area_90_km2",
)
"""Columns of fused predictions beside those of the row contract (docs/evidence.md)."""


class Options(NamedTuple):
    """How evidence is combined.

    Parameters
    ----------
    by : str
        Column whose equal values are one place; "all": all images are of one place; "image_id": each for itself.
    area : path, GeoDataFrame or None
        Polygons, or a raster whose values above 0 are the area.
    prior : path or None
        Raster of a density per area.
    prior_mode : {"replace", "multiply"}
        Whether the raster takes the place of the training prior or multiplies it.
    independence : float
        0..1, see `evidence.fuse`.
    max_mass_error : float
        Largest total variation distance to the exact result.
    layer : str or None
        Of an area that is a GeoPackage with several.

    Examples
    --------
    >>> Options(by="place").independence
    1.0
    """

    by: str = "all"
    area: Any = None
    prior: Source | None = None
    prior_mode: str = "replace"
    independence: float = 1.0
    max_mass_error: float = MASS_ERROR
    layer: str | None = None


class _Group(NamedTuple):
    name: str
    rows: IntArray  # all images of it
    usable: IntArray  # those with a prediction


def fuse_job(
    store: stores.StoredPredictions, out: Source, options: Options, *, overwrite: bool = False
) -> Generator[Progress, None, stores.StoredPredictions]:
    """Fuse the images of each group, with an area and a prior where given, as a job that yields its progress.

    Parameters
    ----------
    store : StoredPredictions
        Opened predictions.
    out : path
        Predictions file to write; ends in .nc.
    options : Options
    overwrite : bool
        Whether an existing file may be replaced.

    Yields
    ------
    Progress
        Stage "fuse", in groups.

    Returns
    -------
    StoredPredictions
        One row per group: a group without any prediction, or of which nothing is left, has status "failed".

    Raises
    ------
    UsageError
        If an option is out of range, or `out` does not end in .nc.
    BadInputError
        If there is no such column, the area or the prior cannot be used, or nothing is left of any group.
    OutputError
        If the file exists or cannot be written.

    Examples
    --------
    >>> from geo_mvmf import progress
    >>> store = stores.open_store("album.nc")  # doctest: +SKIP
    >>> progress.run(fuse_job(store, "places.nc", Options(by="place")))  # doctest: +SKIP
    """
    _check(Path(out), options)
    if not overwrite:
        durable.require_new(out)
    multipliers = _multipliers(options)
    groups = _groups(store, options.by)
    rows, mixtures = [], []
    yield Progress("fuse", 0, len(groups))
    for done, group in enumerate(groups, 1):
        row, mixture = _fused(store, group, options, multipliers)
        rows.append(row)
        mixtures.append(mixture)
        yield Progress("fuse", done, len(groups))
    if not any(mixture is not None for mixture in mixtures):
        raise BadInputError(f"{store.path}: {rows[0]['status'].iloc[0]}: {rows[0]['message'].iloc[0]}")
    components, pruned = to_stored(mixtures)
    frame = pd.concat(rows, ignore_index=True)
    stores.write_store(
        out,
        rows=frame,
        pruned=pruned,
        components=components,
        run=_run(store, options, len(groups)),
        overwrite=overwrite,
    )
    return stores.open_store(out)


def _check(out: Path, options: Options) -> None:
    if out.suffix.lower() != ".nc":
        raise UsageError(f"{out}: a predictions file ends in .nc")
    if not 0.0 <= options.independence <= 1.0:
        raise UsageError(f"independence {options.independence} is not in 0..1: 1 is independent, 0 is copies")
    if options.prior_mode not in PRIOR_MODES:
        raise UsageError(f"prior_mode {options.prior_mode!r} is not one of {', '.join(PRIOR_MODES)}")
    if not 1e-4 <= options.max_mass_error <= 0.1:
        raise UsageError(f"max_mass_error {options.max_mass_error} is not in 0.0001..0.1")


def _multipliers(options: Options) -> list[Multiplier]:
    found: list[Multiplier] = []
    if options.area is not None:
        found.append(read_area(options.area, layer=options.layer))
    if options.prior is not None:
        found.append(read_prior(options.prior))
    return found


def read_prior(path: Source) -> Multiplier:
    """Read a prior raster: one band of densities per area, in any CRS; nodata is 0.

    Parameters
    ----------
    path : path

    Returns
    -------
    Multiplier

    Raises
    ------
    BadInputError
        If it is no georeferenced raster of one band, a value is negative, or none is above 0.

    Examples
    --------
    >>> read_prior("population.tif")  # doctest: +SKIP
    """
    values, grid = _raster(path)
    return evidence.prior_multiplier(values, grid, name=str(path))


def _raster(path: Source) -> tuple[npt.NDArray[np.float64], Grid]:
    with open_scene(path) as scene:
        values = scene.only_band()
        try:
            return values, Grid((scene.height, scene.width), scene.transform, scene.crs)
        except ValueError as error:
            raise BadInputError(f"{path}: {error}") from error


def read_area(area: Any, *, layer: str | None = None) -> Multiplier:
    """Read an area of interest: a layer of polygons, or a raster mask whose values above 0 are the area.

    Parameters
    ----------
    area : path, GeoDataFrame, shape or Multiplier
        A path that ends in .tif or .tiff is a mask.
    layer : str, optional
        Of a GeoPackage with several.

    Returns
    -------
    Multiplier

    Raises
    ------
    BadInputError
        If it cannot be read, or is empty.

    Examples
    --------
    >>> read_area("aoi.geojson")  # doctest: +SKIP
    """
    if not isinstance(area, (str, os.PathLike)) or Path(area).suffix.lower() not in (".tif", ".tiff"):
        return evidence.area_multiplier(area, layer=layer)
    values, grid = _raster(area)
    return evidence.prior_multiplier(np.nan_to_num(values, nan=0.0) > 0.0, grid, name=str(area))


def _groups(store: stores.StoredPredictions, by: str) -> list[_Group]:
    if by == "all":
        every = np.arange(len(store))
        name = "all" if len(store) != 1 else str(store.rows["image_id"].iloc[0])  # one image keeps its name
        return [_Group(name, every, every[store.is_predicted])]
    if by not in store.rows:
        own = [str(name) for name in store.rows if not row_contract.is_of_contract(str(name))][:_MOST_NAMED]
        raise BadInputError(
            f"{store.path}: no column {by!r} to group by; choose {', '.join([*own, 'image_id'])}; or all: one group"
            f"{suggestion(by, store.rows)}"
        )
    values = store.rows[by]
    known = values.notna().to_numpy()
    codes, names = pd.factorize(values[known].astype(str))
    rows = np.flatnonzero(known)
    groups = []
    for code, name in enumerate(names):
        own = rows[codes == code]
        groups.append(_Group(str(name), own, own[store.is_predicted[own]]))
    if not groups:
        raise BadInputError(f"{store.path}: none of its {len(store)} rows has a value in column {by!r}")
    return groups


def _fused(
    store: stores.StoredPredictions, group: _Group, options: Options, multipliers: Sequence[Multiplier]
) -> tuple[pd.DataFrame, CellMixture | None]:
    """One row, and the density it tells of."""
    if not group.usable.size:
        return _failed(store, group, options, "no image of it has a prediction"), None
    batch = mixture_of_rows(store, group.usable)
    images = [batch[i : i + 1] for i in range(len(batch))]
    keep = options.prior is None or options.prior_mode == "multiply"
    needed = not keep or (len(images) > 1 and options.independence > 0.0)
    found = combine(
        images,
        prior=training_prior(store) if needed else None,
        keep_prior=keep,
        independence=options.independence,
        multipliers=multipliers,
        max_mass_error=options.max_mass_error,
        least=evidence.LEAST_PROBABILITY if _is_alone(group, options) else 0.0,
    )
    if found.mixture is None:
        what = evidence.too_little(found) if multipliers else "nowhere is the density of each of its images above 0"
        return _failed(store, group, options, what), None
    return _described(store, group, options, found.mixture, found.log_mass), found.mixture


def _is_alone(group: _Group, options: Options) -> bool:
    """Whether one image is restricted at most: then the integral of the product is a probability."""
    return options.prior is None and group.usable.size == 1


def _failed(store: stores.StoredPredictions, group: _Group, options: Options, message: str) -> pd.DataFrame:
    row = _row(store, group, options)
    return pd.DataFrame(row | {"status": ["failed"], "message": [f"{group.name}: {message}"]})


def _described(
    store: stores.StoredPredictions, group: _Group, options: Options, mixture: CellMixture, log_mass: float
) -> pd.DataFrame:
    place = estimate(mixture, "mode")
    rows: row_contract.Rows = {name: np.asarray(values) for name, values in _row(store, group, options).items()}
    row_contract.fill(rows, np.array([0]), summaries.summarise(mixture, place[:, 0], place[:, 1]))
    used = store.rows.iloc[group.usable]
    compared = group.usable.size > 1 and options.prior is None and options.area is None
    own: dict[str, Any] = {
        "longitude": place[:, 0],
        "latitude": place[:, 1],
        "estimator": "mode",
        "agreement_bits": log_mass / np.log(2.0) if compared else np.nan,
        "probability_in_area": np.exp(log_mass) if options.area is not None and _is_alone(group, options) else np.nan,
        "gained_bits": rows["information_bits"] - used["information_bits"].astype(float).max(),
        "saved_area_90_km2": used["area_90_km2"].astype(float).min() - rows["area_90_km2"],
    }
    row_contract.fill(rows, np.array([0]), own)
    row_contract.judge(rows, np.array([0]), mixture)
    return pd.DataFrame(rows)


def _row(store: stores.StoredPredictions, group: _Group, options: Options) -> dict[str, Any]:
    """What is known of a group before anything is computed: names, and what its images have in common."""
    common = {str(name): _common(store.rows[name].iloc[group.rows]) for name in store.rows}
    row: dict[str, Any] = {"image_id": np.array([group.name], dtype=object)}
    row |= {name: common.get(name, np.array([None], dtype=object)) for name in ("path", "filename")}
    row |= {"status": np.array(["ok"], dtype=object), "message": np.array([""], dtype=object)}
    for name, value in row_contract.COMPUTED.items():
        row[name] = np.array([value], dtype=object if value is None else np.float64)
    row["captured_at"] = common.get("captured_at", row["captured_at"])
    for names in (row_contract.TRUTH, row_contract.CLAIM):
        if names[0] in common:
            row |= {name: common[name].astype(np.float64) for name in names[:2]}
            row |= {name: np.full(1, np.nan) for name in names[2:]}
    row |= {name: np.full(1, np.nan) for name in COLUMNS}
    row["n_images"], row["n_left_out"] = np.array([group.usable.size]), np.array([group.rows.size - group.usable.size])
    row["independence"] = np.array([options.independence])
    return row | {name: values for name, values in common.items() if name not in row}


def _common(values: pd.Series[Any]) -> npt.NDArray[Any]:
    """The value of all images, or a missing one."""
    same = values.nunique(dropna=False) == 1
    if pd.api.types.is_bool_dtype(values.dtype) or pd.api.types.is_integer_dtype(values.dtype):
        first = values.iloc[:1].astype(object)
        return np.array([first.iloc[0] if same else None], dtype=object)
    if pd.api.types.is_float_dtype(values.dtype):
        return np.array([values.iloc[0] if same else np.nan], dtype=np.float64)
    return np.array([values.iloc[0] if same else None], dtype=object)


def _run(store: stores.StoredPredictions, options: Options, places: int) -> dict[str, Any]:
    named = {
        "geo_mvmf": __version__,
        "source": store.path.name,
        "by": options.by,
        "area": _name(options.area),
        "prior": _name(options.prior),
        "prior_mode": options.prior_mode if options.prior is not None else "",
        "independence": options.independence,
        "max_mass_error": options.max_mass_error,
        "earlier": store.run.get("evidence"),
    }
    return {**store.run, "estimator": "mode", "images": places, "evidence": named}


def _name(source: Any) -> str:
    if source is None:
        return ""
    return Path(source).name if isinstance(source, (str, os.PathLike)) else "given in memory"
