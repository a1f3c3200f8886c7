"""Any partition by its options: the one door for training and for the command line."""

from __future__ import annotations

import numpy.typing as npt

from geo_mvmf.errors import UsageError
from geo_mvmf.model.classes import Partition
from geo_mvmf.model.given_classes import partition_by_file
from geo_mvmf.model.kmeans import partition_by_kmeans
from geo_mvmf.model.partition import partition_by_thresholds, partition_sphere
from geo_mvmf.model.partition_options import DEFAULT_CLASSES, DEFAULT_THRESHOLDS, PartitionOptions


def make_partition(longitude: npt.ArrayLike, latitude: npt.ArrayLike, options: PartitionOptions) -> Partition:
    """Make the partition that is wanted.

    Parameters
    ----------
    longitude, latitude : array_like of float, shape (n,)
        Degrees, of the training locations.
    options : PartitionOptions

    Returns
    -------
    Partition

    Raises
    ------
    BadInputError
        No location or the file cannot be used.

    Examples
    --------
    >>> len(make_partition([2.3, 13.4], [48.8, 52.5], PartitionOptions(method="kmeans", num_components=2)))
    2
    """
    number = options.num_components or DEFAULT_CLASSES
    if options.method == "planet":
        above, below = DEFAULT_THRESHOLDS
        above = above if options.split_above is None else options.split_above
        below = below if options.drop_below is None else options.drop_below
        return partition_by_thresholds(
            longitude,
            latitude,
            split_above=above,
            drop_below=below,
            mean_direction=options.mean_direction,
            max_level=options.max_level,
        )
    if options.method == "kmeans":
        return partition_by_kmeans(longitude, latitude, number, seed=options.seed)
    if options.partition_file is not None:
        return partition_by_file(
            longitude,
            latitude,
            options.partition_file,
            column=options.partition_column,
            mean_direction=options.mean_direction,
        )
    return partition_sphere(
        longitude, latitude, number, mean_direction=options.mean_direction, max_level=options.max_level
    )


def check_head(partition: Partition, head: str) -> None:
    """Make sure that a head can be made of a partition.

    Parameters
    ----------
    partition : Partition
    head : {"mvmf", "cross_entropy"}

    Raises
    ------
    UsageError
        The head is a classifier whose density is uniform on each cell, and the classes are no cells.

    Examples
    --------
    >>> check_head(make_partition([2.3], [48.8], PartitionOptions(num_components=6)), "cross_entropy")
    """
    if head == "cross_entropy" and not partition.has_cells:
        raise UsageError(
            f"head cross_entropy: its density is uniform on each S2 cell, and the {len(partition)} classes of "
            f"partition {partition.method!r} are none; use head mvmf, or partition s2 or planet"
        )
