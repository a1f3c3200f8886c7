"""Mixtures of von Mises-Fisher components that share their components over a batch of images.

Izbicki et al. 2019, eq. 2: the density of image i is the sum over components c of mixing weight Gamma[i, c] times the
component's density. Both forms of a density are here: `VmfMixture`, and `CellMixture` (uniform on S2 cells); both
answer `log_density`, `sample`, `probability_within` and `to_cells`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from geo_mvmf import sphere, tessellation, vmf
from geo_mvmf.cell_caps import caps
from geo_mvmf.cell_mixture import CellMixture, Seed, as_index
from geo_mvmf.errors import UsageError

__all__ = ["CellMixture", "VmfMixture", "require_mixture"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

NORM_TOLERANCE = 1e-6  # how far a mean direction may be from length 1 before it is refused
WEIGHT_TOLERANCE = 1e-3  # how far logsumexp of the log mixing weights may be from 0
PROVEN = 1e-12  # a component whose probability in a cap is within this of 0 or 1 is not integrated
_VALUES_AT_ONCE = 1 << 20  # values of the largest temporary array: 8 MB
_SAFE = 1e-280  # sums of scaled densities above this lose nothing to underflow


@dataclasses.dataclass(frozen=True, eq=False)
class VmfMixture:
    """A batch of N mixtures over the same C components.

    Parameters
    ----------
    mean_directions : array_like of float, shape (C, 3)
        Unit vectors (renormalised where within 1e-6).
    log_concentrations : array_like of float, shape (C,)
        Natural logarithms of kappa.
    log_mixing_weights : array_like of float, shape (N, C)
        Natural logarithms; minus infinity is a component that is not there. Each row's weights sum to 1 (made exact
        in float64 where the logarithm of the sum is within 1e-3 of 0).

    Raises
    ------
    ValueError
        Shapes do not fit, a value is not finite, a mean direction is not of length 1, weights do not sum to 1.

    Examples
    --------
    >>> mixture = VmfMixture(
    ...     mean_directions=sphere.to_directions([2.35, 13.4], [48.86, 52.52]),
    ...     log_concentrations=[16.0, 16.0],
    ...     log_mixing_weights=np.log([[0.7, 0.3]]),
    ... )
    >>> mixture.probability_within([2.35], [48.86], 50.0).round(3).tolist()
    [[0.7]]
    """

    mean_directions: FloatArray
    log_concentrations: FloatArray
    log_mixing_weights: FloatArray

    def __post_init__(self) -> None:
        mean_directions = np.asarray(self.mean_directions, dtype=np.float64)
        log_concentrations = np.asarray(self.log_concentrations, dtype=np.float64)
        log_mixing_weights = np.asarray(self.log_mixing_weights, dtype=np.float64)
        _check_shapes(mean_directions, log_concentrations, log_mixing_weights)
        self._set(_unit(mean_directions), _finite(log_concentrations), _normalised(log_mixing_weights))

    def _set(self, mean_directions: FloatArray, log_concentrations: FloatArray, log_mixing_weights: FloatArray) -> None:
        object.__setattr__(self, "mean_directions", mean_directions)
        object.__setattr__(self, "log_concentrations", log_concentrations)
        object.__setattr__(self, "log_mixing_weights", log_mixing_weights)

    def __len__(self) -> int:
        return int(self.log_mixing_weights.shape[0])

    def __getitem__(self, index: int | slice | npt.ArrayLike) -> VmfMixture:
        """Take some of the images, as a VmfMixture that shares the components."""
        rows = np.atleast_2d(self.log_mixing_weights[as_index(index)])
        taken = object.__new__(VmfMixture)
        taken._set(self.mean_directions, self.log_concentrations, rows)
        return taken

    def with_mixing_weights(self, log_mixing_weights: npt.ArrayLike) -> VmfMixture:
        """Make the mixture of other images over the same components, which are not checked again.

        Parameters
        ----------
        log_mixing_weights : array_like of float, shape (N, C)
            As of the class.

        Returns
        -------
        VmfMixture
            Shares the components.

        Raises
        ------
        ValueError
            As the class does for its mixing weights.

        Examples
        --------
        >>> shared = VmfMixture([[0.0, 0.0, 1.0]], [16.0], np.empty((0, 1)))
        >>> len(shared.with_mixing_weights([[0.0], [0.0]]))
        2
        """
        weights = np.asarray(log_mixing_weights, dtype=np.float64)
        _check_shapes(self.mean_directions, self.log_concentrations, weights)
        made = object.__new__(VmfMixture)
        made._set(self.mean_directions, self.log_concentrations, _normalised(weights))
        return made

    @property
    def num_components(self) -> int:
        """Number of components, C.

        Examples
        --------
        >>> VmfMixture([[0.0, 0.0, 1.0]], [16.0], [[0.0]]).num_components
        1
        """
        return int(self.log_concentrations.size)

    def log_density(self, directions: npt.ArrayLike) -> FloatArray:
        """Evaluate the log density of every image at directions.

        Parameters
        ----------
        directions : array_like of float, shape (M, 3)
            Unit vectors.

        Returns
        -------
        ndarray of float64, shape (N, M)
            Nats per steradian. Every component counts, in the chord form; memory is bounded, whatever N, C and M.

        Examples
        --------
        >>> uniform = VmfMixture([[0.0, 0.0, 1.0]], [-12.0], [[0.0]])
        >>> round(float(uniform.log_density([[1.0, 0.0, 0.0]])[0, 0]), 4)
        -2.531
        """
        points = np.asarray(directions, dtype=np.float64).reshape(-1, 3)
        result = np.empty((len(self), points.shape[0]))
        for images, components in _groups(self.log_mixing_weights):
            weights = self.log_mixing_weights[images][:, components]
            step = max(1, _VALUES_AT_ONCE // max(components.size, 1))
            for start in range(0, points.shape[0], step):
                block = slice(start, start + step)
                logs = self._component_log_densities(points[block], components)
                result[images, block] = _log_mix(weights, logs)
        return result

    def _component_log_densities(self, points: FloatArray, components: IntArray) -> FloatArray:
        """Log density of each component at each point, (M, C)."""
        log_kappa = self.log_concentrations[components]
        chord_squared = np.zeros((points.shape[0], components.size))
        for axis in range(3):
            difference = points[:, axis, None] - self.mean_directions[components, axis]
            chord_squared += np.square(difference, out=difference)
        chord_squared *= -0.5 * np.exp(log_kappa)
        chord_squared += vmf.log_normaliser(log_kappa)
        return chord_squared

    def sample(self, n: int, *, seed: Seed) -> FloatArray:
        """Draw directions from every image's density.

        Parameters
        ----------
        n : int
            How many per image.
        seed : int or numpy.random.Generator
            Where the randomness comes from.

        Returns
        -------
        ndarray of float64, shape (N, n, 3)
            Unit vectors.

        Examples
        --------
        >>> VmfMixture([[0.0, 0.0, 1.0]], [16.0], [[0.0]]).sample(5, seed=0).shape
        (1, 5, 3)
        """
        generator = np.random.default_rng(seed)
        chosen = np.empty((len(self), n), dtype=np.int64)
        for i, log_weights in enumerate(self.log_mixing_weights):
            chosen[i] = _draw(np.exp(log_weights), generator.random(n))
        return vmf.sample(self.mean_directions[chosen], self.log_concentrations[chosen], generator)

    def probability_within(
        self, longitude: npt.ArrayLike, latitude: npt.ArrayLike, radius_km: npt.ArrayLike
    ) -> FloatArray:
        """Give the probability within a distance of points.

        Parameters
        ----------
        longitude, latitude : array_like of float, shape (M,)
            Centres of the caps, degrees.
        radius_km : array_like of float, shape () or (M,)
            Great-circle radii, kilometres.

        Returns
        -------
        ndarray of float64, shape (N, M)
            Probabilities; absolute error below 1e-11.

        Examples
        --------
        >>> peak = VmfMixture(sphere.to_directions([180.0], [0.0]), [16.0], [[0.0]])
        >>> round(float(peak.probability_within([-180.0], [0.0], 2.52)[0, 0]), 2)
        0.5
        """
        centres, reach = caps(longitude, latitude, radius_km)
        weights = np.exp(self.log_mixing_weights)
        (present,) = np.nonzero(weights.max(axis=0, initial=0.0) > 0.0)
        weights = weights[:, present]
        result = np.empty((len(self), reach.size))
        step = max(1, _VALUES_AT_ONCE // max(present.size, 1))
        for start in range(0, reach.size, step):
            block = slice(start, start + step)
            result[:, block] = weights @ self._cap_probabilities(centres[block], reach[block], present)
        return np.clip(result, 0.0, 1.0)

    def _cap_probabilities(self, centres: FloatArray, reach: FloatArray, components: IntArray) -> FloatArray:
        """Probability of each component in each cap, (C, M)."""
        log_kappa = self.log_concentrations[components]
        offset = sphere.angle(self.mean_directions[components][:, None], centres)  # (C, M)
        nearly_all = vmf.cap_quantile(1.0 - PROVEN, log_kappa)[:, None]
        result = (reach - offset >= nearly_all).astype(np.float64)
        row, column = np.nonzero(np.abs(reach - offset) < nearly_all)
        result[row, column] = vmf.probability_within(offset[row, column], reach[column], log_kappa[row])
        return result

    def to_cells(self, max_mass_error: float = 1e-3, *, max_cells: int = 4_000_000) -> CellMixture:
        """Turn every image's density into one that is uniform on S2 cells, fine where the probability is.

        Parameters
        ----------
        max_mass_error : float
            Largest total variation distance to this density (half the integral of the difference), which is the
            largest error of the probability of any region.
        max_cells : int
            About how many cells one image may have; where that is not enough the error is larger, `mass_errors` of
            the result says how large, and a `coarse_cells.CoarseCellsWarning` is given.

        Returns
        -------
        CellMixture
            Its cells tile the sphere, so that its log density is finite everywhere.

        Raises
        ------
        ValueError
            `max_mass_error` is not in 1e-6..0.5.

        Examples
        --------
        >>> peak = VmfMixture(sphere.to_directions([10.0], [50.0]), [12.0], [[0.0]])
        >>> cells = peak.to_cells(max_mass_error=0.05)
        >>> bool(cells.mass_errors[0] <= 0.05), round(float(cells.probabilities.sum()), 12)
        (True, 1.0)
        """
        pieces = [
            tessellation.tessellate(
                self.mean_directions,
                self.log_concentrations,
                np.exp(log_weights),
                max_mass_error=max_mass_error,
                max_cells=max_cells,
            )
            for log_weights in self.log_mixing_weights
        ]
        return tessellation.assemble(pieces, max_mass_error)


def _draw(weights: FloatArray, uniform: FloatArray) -> IntArray:
    """Draw components by weight; a component of weight 0 is never drawn."""
    edges = np.cumsum(weights)
    last = int(np.flatnonzero(weights)[-1])
    return np.asarray(np.minimum(np.searchsorted(edges, uniform * edges[-1], side="right"), last))


def _groups(log_weights: FloatArray) -> Iterator[tuple[IntArray, IntArray]]:
    """Images to work on together and the components present in any of them: all at once, or one by one where sparse."""
    present = log_weights > -np.inf
    (union,) = np.nonzero(present.any(axis=0))
    images = np.arange(log_weights.shape[0])
    if 4 * np.count_nonzero(present) >= images.size * union.size:
        step = max(1, _VALUES_AT_ONCE // max(union.size, 1))
        for start in range(0, images.size, step):
            yield images[start : start + step], union
        return
    for image in images:
        yield images[image : image + 1], np.flatnonzero(present[image])


def _log_mix(log_weights: FloatArray, logs: FloatArray) -> FloatArray:
    """Logsumexp over components of weights (N, C) and log densities (M, C), as one product where that is exact."""
    top = logs.max(axis=1, keepdims=True)  # (M, 1)
    with np.errstate(divide="ignore", under="ignore"):
        sums = np.exp(log_weights) @ np.exp(logs - top).T  # (N, M)
        result = np.log(sums) + top.T
    # terms lost to underflow are below 1e-308 each: only small sums can feel them, and those are done term by term
    for image, point in zip(*np.nonzero(sums < _SAFE), strict=True):
        terms = log_weights[image] + logs[point]
        peak = terms.max()
        result[image, point] = peak + np.log(np.exp(terms - peak).sum())
    return np.asarray(result)


def _check_shapes(mean_directions: FloatArray, log_concentrations: FloatArray, log_weights: FloatArray) -> None:
    shapes = (mean_directions.shape, log_concentrations.shape, log_weights.shape)
    components = log_concentrations.size
    fit = shapes[:2] == ((components, 3), (components,)) and log_weights.ndim == 2 and shapes[2][1] == components
    if not fit or components == 0:
        raise ValueError(
            f"mean_directions {shapes[0]}, log_concentrations {shapes[1]}, log_mixing_weights {shapes[2]}:"
            " the shapes must be (C, 3), (C,), (N, C) with C >= 1"
        )


def _unit(mean_directions: FloatArray) -> FloatArray:
    norms = np.sqrt(np.square(mean_directions).sum(axis=1))
    wrong = ~(np.abs(norms - 1.0) <= NORM_TOLERANCE)
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise ValueError(
            f"mean direction {row} is {mean_directions[row].tolist()}, of length {norms[row]}, not 1; normalise them"
        )
    return np.asarray(mean_directions / norms[:, None])


def _finite(log_concentrations: FloatArray) -> FloatArray:
    wrong = ~(np.abs(log_concentrations) <= 60.0)  # narrower than an atom, wider than any rounding of 1
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise ValueError(f"log concentration {row} is {log_concentrations[row]}, not in -60..60")
    return log_concentrations.copy()


def _normalised(log_weights: FloatArray) -> FloatArray:
    top = log_weights.max(axis=1, keepdims=True, initial=-np.inf)
    if not np.all(np.isfinite(top)):
        row = int(np.argmin(np.isfinite(top[:, 0])))
        raise ValueError(f"image {row} has log mixing weights whose largest is {top[row, 0]}, not a finite number")
    total = top + np.log(np.exp(log_weights - top).sum(axis=1, keepdims=True))
    wrong = ~(np.abs(total[:, 0]) <= WEIGHT_TOLERANCE)
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise ValueError(f"the mixing weights of image {row} sum to exp({total[row, 0]}), not to 1")
    return np.asarray(log_weights - total)


def require_mixture(mixture: object) -> None:
    """Refuse what is no density, such as Predictions.

    Parameters
    ----------
    mixture : object
        What a function of densities was given.

    Raises
    ------
    UsageError
        It is neither a VmfMixture nor a CellMixture.

    Examples
    --------
    >>> require_mixture("a.nc")
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: a VmfMixture or CellMixture is wanted, not str; the `mixture` of Predictions is one
    """
    if not isinstance(mixture, VmfMixture | CellMixture):
        raise UsageError(
            f"a VmfMixture or CellMixture is wanted, not {type(mixture).__name__}; the `mixture` of Predictions is one"
        )
