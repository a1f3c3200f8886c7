"""The classes that a head begins with, and the S2 cells that tile the sphere: of the images, or of an older bundle."""

from __future__ import annotations

import dataclasses
import warnings
from typing import NamedTuple

import numpy as np

from geo_mvmf import s2
from geo_mvmf.model.bundle import Bundle
from geo_mvmf.model.cleaning import Cleaning
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.heads import CrossEntropyHead
from geo_mvmf.model.image_set import ImageSet
from geo_mvmf.model.partition import Partition, PartitionWarning, partition_sphere
from geo_mvmf.model.partitions import check_head, make_partition


class StartingClasses(NamedTuple):
    """What training counts its images in.

    Attributes
    ----------
    classes : Partition
        One class for each component of the head.
    partition : Partition
        S2 cells that tile the sphere; the same object where the classes do.
    """

    classes: Partition
    partition: Partition

    def recounted(self, image_set: ImageSet) -> StartingClasses:
        """Count the training images of a run in the same classes.

        Parameters
        ----------
        image_set : ImageSet

        Returns
        -------
        StartingClasses
        """
        partition = _recounted(self.partition, image_set)
        same = self.classes is self.partition
        return StartingClasses(partition if same else _recounted(self.classes, image_set), partition)


def classes_of_bundle(bundle: Bundle) -> StartingClasses:
    """Take the classes of a bundle that training goes on with.

    Parameters
    ----------
    bundle : Bundle

    Returns
    -------
    StartingClasses
        Where the classes are no cells, an image belongs to the component whose mean direction is nearest.
    """
    cells, counts = bundle.training_area
    partition = Partition(cells, counts, s2.centre(cells))
    if bundle.area is None:
        return StartingClasses(partition, partition)
    if isinstance(bundle.head, CrossEntropyHead):
        return StartingClasses(Partition(bundle.cell_ids, bundle.counts, s2.centre(bundle.cell_ids)), partition)
    none = np.empty(0, dtype=np.uint64)
    return StartingClasses(Partition(none, bundle.counts, bundle.mean_directions, method="file"), partition)


def classes_of_images(config: TrainingConfig, image_set: ImageSet) -> StartingClasses:
    """Make the classes that the configuration wants, of the training images.

    Parameters
    ----------
    config : TrainingConfig
    image_set : ImageSet

    Returns
    -------
    StartingClasses
        Where the classes do not tile the sphere, the partition has at least as many cells, or as many as the places
        fill at the deepest level.

    Raises
    ------
    UsageError
        The head cannot be made of such classes.

    Warns
    -----
    PartitionWarning
        The places fill fewer cells than there are classes, or as the rule that makes the classes.
    """
    rows = image_set.training
    longitude, latitude = image_set.longitude[rows], image_set.latitude[rows]
    classes = make_partition(longitude, latitude, config.partition_options)
    check_head(classes, config.head)
    if classes.tiles_sphere:
        return StartingClasses(classes, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartitionWarning)  # of these places it was all said when the classes were made
        partition = partition_sphere(longitude, latitude, len(classes), max_level=config.max_level)
    if len(partition) < len(classes):
        warnings.warn(
            f"the training area has only {len(partition)} S2 cells, so it is coarser than the {len(classes)} classes: "
            f"the {len(rows)} locations fill no more down to max_level {config.max_level}",
            PartitionWarning,
            stacklevel=2,
        )
    return StartingClasses(classes, partition)


def within_classes(image_set: ImageSet, classes: Partition) -> ImageSet:
    """Leave out images in no class: PlaNet's density is nowhere but on its cells.

    Parameters
    ----------
    image_set : ImageSet
    classes : Partition

    Returns
    -------
    ImageSet

    Warns
    -----
    PartitionWarning
        If there are any.
    """
    outside = classes.assign(image_set.longitude, image_set.latitude) < 0
    if not outside.any():
        return image_set
    training, validation = (int(outside[rows].sum()) for rows in (image_set.training, image_set.validation))
    warnings.warn(
        f"head cross_entropy: {training} training and {validation} validation images are in none of the {len(classes)} "
        "cells and are left out; the model will give such places probability 0",
        PartitionWarning,
        stacklevel=3,
    )
    return image_set.without(outside)


def _recounted(partition: Partition, image_set: ImageSet) -> Partition:
    rows = image_set.training
    found = partition.assign(image_set.longitude[rows], image_set.latitude[rows])
    counts = np.bincount(found[found >= 0], minlength=len(partition))
    # what was said of other images is not true of these
    return dataclasses.replace(partition, counts=counts, outside=int((found < 0).sum()), cleaning=Cleaning())
