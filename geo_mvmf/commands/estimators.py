"""Names and distances of estimators, as options give them, checked before anything is read."""

from __future__ import annotations

import math

from geo_mvmf.commands import options
from geo_mvmf.errors import UsageError

ESTIMATORS = ("component", "mode", "median", "best_within")
"""Those of `maps.estimates`, which is not imported: --help answers at once."""


def estimators(text: str | None) -> tuple[str, ...]:
    """Read names of estimators, one with a distance as best_within@200.

    Parameters
    ----------
    text : str or None

    Returns
    -------
    tuple of str

    Raises
    ------
    UsageError
        If one is unknown, or has no distance where it needs one.

    Examples
    --------
    >>> estimators("mode,best_within@200")
    ('mode', 'best_within@200')
    """
    found = tuple(filter(None, map(str.strip, (text or "").split(","))))
    for name in found:
        estimator, at, distance = name.partition("@")
        if estimator not in ESTIMATORS:
            raise UsageError(f"--estimators {name}: not one of {', '.join(ESTIMATORS[:-1])}, best_within@KILOMETRES")
        if estimator != "best_within" and at:
            raise UsageError(f"--estimators {name}: {estimator} takes no distance; write {estimator}")
        if estimator == "best_within":
            try:
                options.positive("--estimators best_within@", float(distance))
            except (ValueError, UsageError) as error:
                message = f"--estimators {name}: say within how many kilometres, such as best_within@200"
                raise UsageError(message) from error
    return found


def radius(estimator: str, radius_km: float | None) -> None:
    """Refuse a radius that its estimator has no use for, and an estimator without the radius it needs.

    Parameters
    ----------
    estimator : str
    radius_km : float or None

    Raises
    ------
    UsageError
        If they do not fit, by the names that the user wrote.

    Examples
    --------
    >>> radius("mode", 25.0)
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: --radius-km 25 goes with --estimator best_within; --estimator mode takes none
    """
    if estimator != "best_within" and radius_km is not None:
        raise UsageError(
            f"--radius-km {radius_km:g} goes with --estimator best_within; --estimator {estimator} takes none"
        )
    if estimator == "best_within" and (radius_km is None or not (math.isfinite(radius_km) and radius_km > 0.0)):
        given = "" if radius_km is None else f", not {radius_km:g}"
        raise UsageError(f"--estimator best_within needs --radius-km, kilometres above 0{given}")
