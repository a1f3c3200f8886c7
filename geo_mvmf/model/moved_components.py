"""How far training moved the components: their mean directions and concentrations before and after."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere
from geo_mvmf.errors import GeoMvmfError
from geo_mvmf.model.bundle import Bundle, load_bundle
from geo_mvmf.model.classes import Partition, initial_log_concentrations
from geo_mvmf.model.configuration import TrainingConfig
from geo_mvmf.model.heads import MvmfHead
from geo_mvmf.model.image_set import ImageSet
from geo_mvmf.model.starting_classes import classes_of_images

FloatArray = npt.NDArray[np.float64]


class MovedComponents(NamedTuple):
    """Components before and after training, in the same order.

    Attributes
    ----------
    start, end : ndarray of float64, (C, 3)
        Mean directions.
    start_log_concentrations, end_log_concentrations : ndarray of float64, (C,)
    images : ndarray of int64, (C,)
        Training images in the class of each.
    """

    start: FloatArray
    end: FloatArray
    start_log_concentrations: FloatArray
    end_log_concentrations: FloatArray
    images: npt.NDArray[np.int64]

    @property
    def shift_km(self) -> FloatArray:
        """Great-circle distance from start to end, (C,)."""
        return np.asarray(sphere.angle(self.start, self.end) * sphere.EARTH_RADIUS_KM)


def moved_components(config: TrainingConfig, bundle: Bundle, image_set: ImageSet) -> MovedComponents | str:
    """Compare the components of a finished run with those that it began with.

    Parameters
    ----------
    config : TrainingConfig
        Of the run.
    bundle : Bundle
        What it released.
    image_set : ImageSet
        From `load_image_set(config)`.

    Returns
    -------
    MovedComponents or str
        Or why that cannot be said.

    Examples
    --------
    >>> from geo_mvmf.model.untrained import untrained_bundle
    >>> moved_components(TrainingConfig(stage="head", table="a.csv", out="run"), untrained_bundle(), None)
    'Mean directions and concentrations were not trained: they are those of the partition.'
    """
    if not isinstance(bundle.head, MvmfHead):
        return "A cross-entropy head has S2 cells in place of components, and cells do not move."
    if not (config.train_mean_directions or config.train_log_concentrations):
        return "Mean directions and concentrations were not trained: they are those of the partition."
    found = _start(config, bundle, image_set)
    if isinstance(found, str):
        return found
    directions, concentrations = found
    return MovedComponents(
        directions, bundle.mean_directions, concentrations, bundle.log_concentrations, bundle.training_counts
    )


def _start(config: TrainingConfig, bundle: Bundle, image_set: ImageSet) -> tuple[FloatArray, FloatArray] | str:
    """Mean directions and log concentrations before the first step, or why they are not known."""
    if config.stage == "finetune" and config.init_bundle is not None:
        try:
            first = load_bundle(config.init_bundle, device="cpu")
        except GeoMvmfError as error:
            return f"The components that the run began with are not known: {error}."
        return first.mean_directions, first.log_concentrations
    classes = _classes(config, bundle, image_set)
    if isinstance(classes, str):
        return classes
    return classes.mean_directions, initial_log_concentrations(classes, config.initial_log_concentration)


def _classes(config: TrainingConfig, bundle: Bundle, image_set: ImageSet) -> Partition | str:
    if config.mean_direction == "centre" and bundle.cell_ids.all():  # the cells say it, whatever became of the images
        return Partition(bundle.cell_ids, bundle.counts, s2.centre(bundle.cell_ids))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said when the run made them
        try:
            classes = classes_of_images(config, image_set).classes
        except GeoMvmfError as error:
            return f"The components that the run began with are not known: {error}."
    if not np.array_equal(classes.counts, bundle.training_counts):
        return (
            "The components that the run began with are not known: the images that the table names now make other "
            "classes than those of the run (the table changed, or images could not be read)."
        )
    return classes
