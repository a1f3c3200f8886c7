"""From a density to a point: the component estimate (eq. 7) and the mode (eq. 6) of Izbicki et al. 2019.

The paper calls eq. 6 prohibitive for a test set. With the fixed point y <- normalise(sum of r_i kappa_i mu_i), r the
responsibilities at y (which is expectation maximisation, so the density never falls), for all images together and
with the components near each climb only, it takes a millisecond an image.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from geo_mvmf import s2, sphere
from geo_mvmf.maps import climbs
from geo_mvmf.mixture import CellMixture, VmfMixture

FloatArray = npt.NDArray[np.float64]

ESTIMATORS = ("component", "mode")


def estimate(
    mixture: VmfMixture | CellMixture, estimator: str = "component", radius_km: float | None = None
) -> FloatArray:
    """Estimate one place per image.

    Parameters
    ----------
    mixture : VmfMixture or CellMixture
        N images.
    estimator : {"component", "mode"}
        "component": the mean direction of the heaviest component (eq. 7; of equal ones the first), for cells the
        centre of the most probable one. "mode": the densest point (eq. 6), the best of climbs from the components
        that are densest; never less dense than the component estimate. For cells the centre of the densest.
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
    elif estimator == "mode":
        directions = climbs.modes(mixture)
    else:
        directions = mixture.mean_directions[np.argmax(mixture.log_mixing_weights, axis=1)]
    return np.stack(sphere.to_longitude_latitude(directions.reshape(-1, 3)), axis=1)


def _cell_centres(mixture: CellMixture, *, densest: bool) -> FloatArray:
    value = mixture.densities_per_sr() if densest else mixture.probabilities
    ends = mixture.offsets
    best = [int(start + np.argmax(value[start:stop])) for start, stop in itertools.pairwise(ends)]
    return s2.centre(mixture.cell_ids[best])
