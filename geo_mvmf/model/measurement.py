"""Measurement: what a model in training is worth on held-out images - its losses, and how far or how often it errs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geo_mvmf import s2, sphere
from geo_mvmf.errors import TrainingError
from geo_mvmf.model.country_head import CountryHead
from geo_mvmf.model.heads import CrossEntropyHead, MvmfHead

AnyHead = MvmfHead | CrossEntropyHead | CountryHead
FloatArray = npt.NDArray[np.float64]


def losses_of(head: AnyHead, features: Tensor, targets: Tensor) -> FloatArray:
    """Measure how improbable a model finds the truth.

    Parameters
    ----------
    head : MvmfHead, CrossEntropyHead or CountryHead
    features : Tensor, shape (B, D), float32
    targets : Tensor, shape (B, 3) float64 or (B,) int64
        True directions, or countries.

    Returns
    -------
    array, shape (B,), float64
        Negative log-likelihood of the predicted density, nats per steradian; of countries their cross entropy.

    Examples
    --------
    >>> round(float(losses_of(CountryHead(2, 4, seed=0), torch.zeros(1, 2), torch.tensor([3]))[0]), 4)
    1.3863
    """
    with torch.inference_mode():
        if isinstance(head, CrossEntropyHead):  # not its loss, so that methods can be compared
            losses = head.negative_log_density(features, targets)
        else:
            losses = head.loss(features, targets, reduction="none")
    return np.asarray(losses.double().cpu().numpy())


def errors_of(head: AnyHead, features: Tensor, targets: Tensor) -> FloatArray:
    """Measure how far the heaviest component lies from the truth, or tell whether the country is right.

    Parameters
    ----------
    head : MvmfHead, CrossEntropyHead or CountryHead
    features : Tensor, shape (B, D), float32
    targets : Tensor
        As `losses_of`.

    Returns
    -------
    array, shape (B,), float64
        Great-circle distances in km (eq. 7); of countries 1 where it is right and 0 where it is not.

    Examples
    --------
    >>> errors_of(CountryHead(2, 4, seed=0), torch.zeros(1, 2), torch.tensor([3])).tolist()
    [0.0]
    """
    truth = targets.cpu().numpy()
    with torch.inference_mode():
        if isinstance(head, MvmfHead):
            places = head.heaviest_directions(features).cpu().numpy()
        else:
            heaviest = head.log_mixing_weights(features).argmax(dim=1).cpu().numpy()
    if isinstance(head, CountryHead):
        return np.asarray(heaviest == truth, dtype=np.float64)
    if isinstance(head, CrossEntropyHead):
        places = s2.centre(head.cell_ids[heaviest])
    return np.asarray(sphere.angle(places, truth) * sphere.EARTH_RADIUS_KM, dtype=np.float64)


def summary(head: AnyHead, losses: FloatArray, errors: FloatArray, weight: FloatArray) -> dict[str, float]:
    """Sum a measurement up.

    Parameters
    ----------
    head : MvmfHead, CrossEntropyHead or CountryHead
    losses, errors : array, shape (N,), float64
        From `losses_of` and `errors_of`.
    weight : array, shape (N,), float64
        How much each image counts.

    Returns
    -------
    dict
        "nll", and "median_km" or "accuracy" of countries.

    Raises
    ------
    TrainingError
        If no image counts.

    Examples
    --------
    >>> summary(CountryHead(2, 4, seed=0), np.array([1.0, 2.0]), np.array([1.0, 0.0]), np.array([1.0, 3.0]))
    {'nll': 1.75, 'accuracy': 0.25}
    """
    if weight.sum() == 0:
        raise TrainingError(f"none of {len(weight)} validation images can be read or weighs anything")
    nll = float(np.average(losses, weights=weight))
    if isinstance(head, CountryHead):
        return {"nll": nll, "accuracy": float(np.average(errors, weights=weight))}
    return {"nll": nll, "median_km": float(np.median(errors[weight > 0]))}
