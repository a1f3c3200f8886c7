"""Which partition is wanted: the method and what it needs, checked before anything is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from geo_mvmf.errors import UsageError

METHODS = ("s2", "planet", "kmeans", "file")
"""Split the fullest S2 cell; PlaNet's two thresholds; k-means on the sphere; classes of a file."""

DEFAULT_CLASSES = 1024
DEFAULT_THRESHOLDS = 10_000, 50

_OF_METHODS = {
    "num_components": ("s2", "kmeans"),
    "split_above": ("planet",),
    "drop_below": ("planet",),
    "partition_column": ("file",),
    "mean_direction": ("s2", "planet", "file"),
    "seed": ("kmeans",),
}
_GIVEN_OR_NONE = ("num_components", "split_above", "drop_below", "partition_column")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartitionOptions:
    """Which partition is wanted.

    Parameters
    ----------
    method : {"s2", "planet", "kmeans", "file"}
        `partition_sphere`, `partition_by_thresholds`, `partition_by_kmeans` or `partition_by_file`.
    num_components : int, optional
        Of s2 at least so many (6 + 3 j come out), of kmeans so many; 1024 by default.
    split_above, drop_below : int, optional
        Of planet; 10000 and 50 by default.
    partition_file : str, optional
        Of file: a layer of polygons or a table of centres.
    partition_column : str, optional
        Of file: the column that names the classes.
    mean_direction : {"centre", "photos"}
        As `partition_sphere`; k-means has the mean of its photos in any case.
    max_level : int
        Of s2 and planet.
    seed : int
        Of kmeans.

    Raises
    ------
    UsageError
        An option does not go with the method.

    Examples
    --------
    >>> PartitionOptions(method="planet", num_components=12)
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: num_components 12 is of partition s2 or kmeans, not of 'planet'; leave it out
    """

    method: str = "s2"
    num_components: int | None = None
    split_above: int | None = None
    drop_below: int | None = None
    partition_file: str | None = None
    partition_column: str | None = None
    mean_direction: str = "centre"
    max_level: int = 22
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"partition is {self.method!r}; one of {', '.join(METHODS)} is allowed")
        # a training run has a seed and a mean_direction for any method
        check_given(self.method, {name: getattr(self, name) for name in _GIVEN_OR_NONE})
        if (self.method == "file") != (self.partition_file is not None):
            given = "missing" if self.partition_file is None else repr(self.partition_file)
            raise UsageError(
                f"partition {self.method!r}: partition_file is {given}; partition file needs one, others none"
            )


def check_given(method: str, given: Mapping[str, object]) -> None:
    """Make sure that the method uses every option that was given.

    Parameters
    ----------
    method : {"s2", "planet", "kmeans", "file"}
    given : mapping of str to object
        Values by the names of `PartitionOptions`; None where an option was not given.

    Raises
    ------
    UsageError
        It does not.

    Examples
    --------
    >>> check_given("s2", {"seed": 3})
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: seed 3 is of partition kmeans, not of 's2'; leave it out
    """
    for name, value in given.items():
        methods = _OF_METHODS[name]
        if value is not None and method not in methods:
            raise UsageError(f"{name} {value} is of partition {' or '.join(methods)}, not of {method!r}; leave it out")
