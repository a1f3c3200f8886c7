"""From a density to a point: the component estimate (eq. 7) and the mode (eq. 6) of Izbicki et al. 2019.

The paper calls eq. 6 prohibitive for a test set. With the fixed point y <- normalise(sum of r_i kappa_i mu_i), r the
responsibilities at y (which is expectation maximisation, so the density never falls), it takes milliseconds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere, vmf
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]

ESTIMATORS = ("component", "mode")
_STARTS = 8  # the promise is "the best of its starts"
_TAIL = 1e-6  # weight of the components that cannot make a mode and are left out of the climb
_STEPS, _STILL = 200, 1e-11  # at most so many steps, until no start moves further than this (0.06 mm)


def estimate(
    mixture: VmfMixture | CellMixture, estimator: str = "component", radius_km: float | None = None
) -> FloatArray:
    """Estimate one place per image.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    estimator : {"component", "mode"}
        "component": the mean direction of the heaviest component (eq. 7), for cells the centre of the most
        probable one. "mode": the densest point (eq. 6), the best of climbs from the components that are densest by
        themselves; never less dense than the component estimate. For cells the centre of the densest.
    radius_km : float, optional
        Belongs to estimators that need a distance; neither of these does.

    Returns
    -------
    ndarray of float64, (N, 2)
        Longitude, latitude in degrees.

    Raises
    ------
    ValueError
        If the estimator is unknown or does not take a radius.

    Examples
    --------
    >>> mixture = VmfMixture(sphere.to_directions([10.0, 20.0], [50.0, 60.0]), [9.0, 9.0], np.log([[0.4, 0.6]]))
    >>> estimate(mixture).round(6).tolist()
    [[20.0, 60.0]]
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    if radius_km is not None:
        raise ValueError(f"radius_km {radius_km} was given, but estimator {estimator!r} takes none")
    if isinstance(mixture, CellMixture):
        directions = _cell_centres(mixture, densest=estimator == "mode")
    else:
        directions = mixture.mean_directions[np.argmax(mixture.log_mixing_weights, axis=1)]
        if estimator == "mode":
            directions = np.array(
                [_mode(mixture, row, directions[i]) for i, row in enumerate(mixture.log_mixing_weights)]
            )
    return np.stack(sphere.to_longitude_latitude(directions.reshape(-1, 3)), axis=1)


def _cell_centres(mixture: CellMixture, *, densest: bool) -> FloatArray:
    centres = []
    for i in range(len(mixture)):
        ids, probabilities = mixture.of(i)
        value = probabilities / s2.area_sr(ids) if densest else probabilities
        centres.append(s2.centre(ids[np.argmax(value)]))
    return np.array(centres).reshape(-1, 3)


def _mode(mixture: VmfMixture, log_weights: FloatArray, component: FloatArray) -> FloatArray:
    """Climb from the components with the highest peaks and from the component estimate; (3,)."""
    held = np.flatnonzero(log_weights > np.log(_TAIL) - np.log(log_weights.size) + log_weights.max())
    mu, log_kappa = mixture.mean_directions[held], mixture.log_concentrations[held]
    peak = log_weights[held] + vmf.log_normaliser(log_kappa)
    first = np.argsort(peak)[::-1][:_STARTS]
    points = np.concatenate([mu[first], component[None]])
    for _ in range(_STEPS):
        moved = _climb(points, mu, log_kappa, peak)
        if np.abs(moved - points).max() < _STILL:
            break
        points = moved
    # rounding in the climb must not cost density: the starts themselves are candidates too
    points = np.concatenate([component[None], mu[first], points])
    return np.asarray(points[np.argmax(_log_density(points, mu, log_kappa, peak))])


def _climb(points: FloatArray, mu: FloatArray, log_kappa: FloatArray, peak: FloatArray) -> FloatArray:
    joint = _joint(points, mu, log_kappa, peak) + log_kappa
    pull = np.exp(joint - joint.max(axis=1, keepdims=True)) @ mu
    length = np.linalg.norm(pull, axis=1, keepdims=True)
    return np.where(length > 0.0, pull / np.where(length > 0.0, length, 1.0), points)


def _joint(points: FloatArray, mu: FloatArray, log_kappa: FloatArray, peak: FloatArray) -> FloatArray:
    """Log weight plus log density of each component, (points, components), in the exact chord form."""
    chord = np.zeros((len(points), len(mu)))
    for axis in range(3):
        chord += (points[:, axis, None] - mu[None, :, axis]) ** 2
    return peak - 0.5 * np.exp(log_kappa) * chord


def _log_density(points: FloatArray, mu: FloatArray, log_kappa: FloatArray, peak: FloatArray) -> FloatArray:
    joint = _joint(points, mu, log_kappa, peak)
    top = joint.max(axis=1)
    return np.asarray(top + np.log(np.exp(joint - top[:, None]).sum(axis=1)))
