"""The warning that cells are coarser than was asked for."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


class CoarseCellsWarning(UserWarning):
    """Some image would need more cells than allowed; `mass_errors` says what error it has.

    Examples
    --------
    >>> issubclass(CoarseCellsWarning, UserWarning)
    True
    """


def warn_if_coarse(errors: FloatArray, max_mass_error: float) -> None:
    """Warn of images whose cells err by more than was asked for.

    Parameters
    ----------
    errors : ndarray of float64, shape (N,)
    max_mass_error : float

    Warns
    -----
    CoarseCellsWarning

    Examples
    --------
    >>> warn_if_coarse(np.array([1e-4]), 1e-3)
    """
    coarse = errors > max_mass_error
    if np.any(coarse):
        warnings.warn(
            f"{int(coarse.sum())} of {errors.size} images reach a mass error of {errors.max():.2g} only, not"
            f" {max_mass_error:g}: their density has more detail than so many cells; raise max_cells or max_mass_error",
            CoarseCellsWarning,
            stacklevel=4,
        )
