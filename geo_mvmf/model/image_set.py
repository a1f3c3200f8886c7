"""ImageSet: the images of a training run, their true places, who is held out, and in which order they are drawn.

Nothing here keeps a state: the split is a function of the seed and the row, the order of an epoch of the seed and
the epoch.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from geo_mvmf import s2, sphere
from geo_mvmf.errors import BadInputError, ImageError, TrainingError
from geo_mvmf.inputs import polygons, table_rows, tables
from geo_mvmf.inputs.regular_files import open_regular_file
from geo_mvmf.model.augmentation import uniform
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.partition import Partition
from geo_mvmf.progress import Progress

_LOOKED_INTO, _LOOKED_AT = 64, 1 << 18  # files, and bytes of each: read in a moment, whatever the number of images
_SIZES_AT_ONCE, _THREADS = 256, 16
_SPLIT_PURPOSE = 1001  # keeps the numbers of the split apart from those of the augmentation


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with true places.

    Parameters
    ----------
    table : GeoDataFrame
        The usable rows, RangeIndex.
    paths : list of Path, length N
    longitude, latitude : array, shape (N,), float64
        Degrees.
    directions : array, shape (N, 3), float64
    weight : array, shape (N,), float64
        From the table.
    training, validation : array of int64
        Rows, ascending; together all.
    left_out : str
        How many rows of the tables are not among them, and why: a line for each table with such rows.
    """

    table: gpd.GeoDataFrame
    paths: list[Path]
    longitude: npt.NDArray[np.float64]
    latitude: npt.NDArray[np.float64]
    directions: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float64]
    training: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def without(self, unreadable: npt.NDArray[np.bool_]) -> ImageSet:
        """Take rows out of training and validation; nothing is renumbered.

        Parameters
        ----------
        unreadable : array, shape (N,), bool

        Returns
        -------
        ImageSet

        Raises
        ------
        TrainingError
            If nothing is left to train on.
        """
        training = self.training[~unreadable[self.training]]
        validation = self.validation[~unreadable[self.validation]]
        return _not_empty(dataclasses.replace(self, training=training, validation=validation))

    def digest(self) -> str:
        """SHA-256 of what decides a run, but for the files themselves: names, places, weights, split.

        Returns
        -------
        str
            64 hexadecimal digits.
        """
        hasher = hashlib.sha256("\n".join(self.table["image_id"].astype(str)).encode())
        for array in (self.longitude, self.latitude, self.weight, self.training, self.validation):
            hasher.update(np.ascontiguousarray(array).tobytes())
        return hasher.hexdigest()

    def files_digest(self) -> str:
        """SHA-256 of what tells the image files from others: the sizes of all, and how 64 of them begin.

        Neither names nor times count: copies on another disk or machine are the same images.

        Returns
        -------
        str
            64 hexadecimal digits.
        """
        parts = [self.paths[begin : begin + _SIZES_AT_ONCE] for begin in range(0, len(self), _SIZES_AT_ONCE)]
        with ThreadPoolExecutor(_THREADS) as threads:  # a disk of the network answers many as fast as one
            hasher = hashlib.sha256(" ".join(threads.map(_sizes, parts)).encode())
        for row in np.linspace(0, len(self) - 1, min(len(self), _LOOKED_INTO)).astype(np.int64).tolist():
            hasher.update(_beginning(self.paths[row]))
        return hasher.hexdigest()


def load_image_set(config: TrainingConfig) -> Generator[Progress, None, ImageSet]:
    """Read the table of a run and split it.

    Parameters
    ----------
    config : TrainingConfig

    Yields
    ------
    Progress
        Stage "read".

    Returns
    -------
    ImageSet
    --------

    Raises
    ------
    BadInputError
        If a table or a column cannot be used, or a table seems to have longitude and latitude swapped.
    TrainingError
        If no row is left to train on.
    """
    yield Progress("read", 0, 1, f"reading {config.table}")
    table, left_out = _usable(_read(config, config.table))
    extra = None
    if config.validation_table is not None:
        extra, more = _usable(_read(config, config.validation_table))
        left_out = "\n".join(filter(None, [left_out, more]))
    joined = table if extra is None else _joined(table, extra)
    paths = tables.absolute_paths(table) + ([] if extra is None else tables.absolute_paths(extra))
    longitude = joined["longitude"].to_numpy(np.float64)
    latitude = joined["latitude"].to_numpy(np.float64)
    directions = sphere.to_directions(longitude, latitude)
    held_out = _held_out(config, joined, directions, len(table))
    yield Progress("read", 1, 1)
    return _not_empty(
        ImageSet(
            table=joined,
            paths=paths,
            longitude=longitude,
            latitude=latitude,
            directions=directions,
            weight=joined["weight"].to_numpy(np.float64),
            training=np.flatnonzero(~held_out),
            validation=np.flatnonzero(held_out),
            left_out=left_out,
        )
    )


def sampling_weights(config: TrainingConfig, image_set: ImageSet, partition: Partition) -> npt.NDArray[np.float64]:
    """How often every training image is drawn, relatively.

    Parameters
    ----------
    config : TrainingConfig
        `balance`: "none"; "cell": all populated S2 cells of the partition together equally often; "area":
        in proportion to their areas.
    image_set : ImageSet
    partition : Partition
        Of the training images.

    Returns
    -------
    array, shape (len(image_set.training),), float64
    """
    rows = image_set.training
    weight = image_set.weight[rows]
    if config.balance == "none":
        return weight
    cells = partition.assign(image_set.longitude[rows], image_set.latitude[rows])
    share = 1.0 / np.bincount(cells, weights=weight, minlength=len(partition))[cells]
    if config.balance == "area":
        share = share * s2.area_sr(partition.cell_ids)[cells]
    balanced: npt.NDArray[np.float64] = weight * share
    return balanced


def epoch_order(weights: npt.NDArray[np.float64], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Draw as many images as there are, in random order.

    Parameters
    ----------
    weights : array, shape (n,), float64
        Relative frequencies. Where all are equal, every image comes exactly once; otherwise n * share times, rounded
        up or down at random (systematic sampling, which has the least variance).
    seed, epoch : int

    Returns
    -------
    array, shape (n,), int64
        Indices into `weights`.

    Examples
    --------
    >>> sorted(epoch_order(np.ones(5), seed=0, epoch=3).tolist())
    [0, 1, 2, 3, 4]
    >>> sorted(epoch_order(np.array([3.0, 0.0, 1.0, 0.0]), seed=0, epoch=3).tolist())
    [0, 0, 0, 2]
    """
    generator = np.random.default_rng([seed, epoch])
    n = len(weights)
    if n and (weights == weights[0]).all():
        return generator.permutation(n)
    ends = np.cumsum(weights)
    ticks = (np.arange(n) + generator.random()) / n * ends[-1]
    drawn = np.minimum(np.searchsorted(ends, ticks, side="right"), n - 1)
    return generator.permutation(drawn)


def country_labels(config: TrainingConfig, image_set: ImageSet) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Class of every image for stage backbone: the polygon that contains it.

    Parameters
    ----------
    config : TrainingConfig
        `polygons` and `label_column`.
    image_set : ImageSet

    Returns
    -------
    labels : array, shape (N,), int64
        0 is "no country".
    names : list of str
        Of the classes.

    Raises
    ------
    BadInputError
        If the layer lacks the column.
    """
    layer = polygons.read_polygons(str(config.polygons))
    column = config.label_column
    if column is not None and column not in layer.columns:
        raise BadInputError(f"{config.polygons}: has no column {column!r}; it has {', '.join(map(str, layer.columns))}")
    named = layer[column].astype(str) if column is not None else pd.Series([str(row) for row in range(len(layer))])
    names = sorted(set(named))
    class_of = np.array([0] + [1 + names.index(name) for name in named], dtype=np.int64)
    found = polygons.containing(layer, image_set.longitude, image_set.latitude)
    return class_of[found + 1], ["no country", *names]


def _read(config: TrainingConfig, source: str) -> gpd.GeoDataFrame:
    return tables.read_image_table(source, root=config.root, layer=config.layer, crs=config.crs, exif=config.exif)


def _usable(table: gpd.GeoDataFrame) -> tuple[gpd.GeoDataFrame, str]:
    """The rows to train on, and what is said of the others."""
    table_rows.require_not_swapped(table)
    usable = table_rows.training_rows(table)
    kept = table[usable].reset_index(drop=True)
    kept.attrs = dict(table.attrs)
    if len(kept) == 0:
        raise TrainingError(
            f"{table.attrs.get('source', 'table')}: none of {len(table)} rows has an image, coordinates and a "
            f"positive weight; statuses: {table['status'].value_counts().to_dict()}"
        )
    return kept, table_rows.left_out(table, usable)


def _joined(table: gpd.GeoDataFrame, extra: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    columns = ["image_id", "path", "longitude", "latitude", "weight", "status", "message", "geometry"]
    return pd.concat([table[columns], extra[columns]], ignore_index=True)


def _held_out(
    config: TrainingConfig, table: gpd.GeoDataFrame, directions: npt.NDArray[np.float64], own: int
) -> npt.NDArray[np.bool_]:
    rows = np.arange(len(table), dtype=np.int64)
    if config.validation == "none":
        return np.zeros(len(rows), dtype=np.bool_)
    if config.validation == "table":
        return rows >= own
    if config.validation == "column":
        return _truth(table, str(config.validation_column))
    if config.validation == "blocks":
        blocks = s2.cell_ids(directions, config.block_level)
        rows = (blocks >> np.uint64(1)).astype(np.int64)  # an id has 64 bits; the lowest one says nothing here
    return uniform(config.seed, 0, rows, _SPLIT_PURPOSE) < config.validation_fraction


def _truth(table: gpd.GeoDataFrame, column: str) -> npt.NDArray[np.bool_]:
    if column not in table.columns:
        raise BadInputError(f"validation_column {column!r} is not in the table; it has {', '.join(table.columns)}")
    texts = table[column].astype(str).str.strip().str.lower()
    known = texts.isin(["true", "1", "1.0", "yes", "false", "0", "0.0", "no"])
    if not known.all():
        row = int(np.argmin(known.to_numpy()))
        raise BadInputError(f"validation_column {column!r}: row {row} holds {table[column].iloc[row]!r}; true or false")
    return np.asarray(texts.isin(["true", "1", "1.0", "yes"]), dtype=np.bool_)


def _sizes(paths: list[Path]) -> str:
    return " ".join(map(_size, paths))


def _size(path: Path) -> str:
    try:
        return str(path.stat().st_size)
    except OSError:
        return "none"


def _beginning(path: Path) -> bytes:
    try:
        with open_regular_file(path) as file:
            return hashlib.sha256(file.read(_LOOKED_AT)).digest()
    except (OSError, ImageError):
        return b"none"


def _not_empty(image_set: ImageSet) -> ImageSet:
    if len(image_set.training) == 0 or image_set.weight[image_set.training].sum() <= 0:
        raise TrainingError(
            f"no image is left to train on: {len(image_set)} usable rows, {len(image_set.validation)} held out"
        )
    return image_set
