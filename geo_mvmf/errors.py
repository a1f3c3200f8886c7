"""The exceptions of geo_mvmf: one tree, one exit code per branch.

::

    GeoMvmfError                    1
    ├── UsageError                  2   an option, or a combination of options, is wrong
    │   └── DeviceError             2   the device that was asked for is not there
    ├── BadInputError               3   a table, image, raster or polygon cannot be used
    │   ├── AmbiguousInputError     3   leaves open what an option can say: the layer, the CRS
    │   ├── ImageError              3   one image; carries the row status it leads to
    │   └── RowsFailedError         3   `--strict`: at least one row failed
    ├── BadBundleError              4   not a bundle, damaged, or of an unknown format
    ├── OutputError                 5   a result could not be written or exists already
    ├── LockedError                 6   another process works on the same folder
    └── TrainingError               7   training cannot go on (no usable row, not finite, wrong device)

Every message is one sentence that says what is wrong, shows the value, says where (file, row), and says what
is allowed or what to do.
"""

from __future__ import annotations

import os


class GeoMvmfError(Exception):
    """Base of every error that geo_mvmf raises on purpose.

    Attributes
    ----------
    exit_code : int
        What the command line exits with.
    code : str
        What programs are told (docs/worker.md).

    Examples
    --------
    >>> BadInputError("photos.csv: row 3: latitude 95.0 is not in -90..90").exit_code
    3
    """

    exit_code = 1
    code = "internal"


class UsageError(GeoMvmfError):
    """An option, or a combination of options, is wrong."""

    exit_code = 2
    code = "bad_input"


class DeviceError(UsageError):
    """The device to compute on is unknown or not there."""

    code = "device"


class BadInputError(GeoMvmfError):
    """A table, image, raster or polygon layer cannot be used."""

    exit_code = 3
    code = "bad_input"


class AmbiguousInputError(BadInputError):
    """A source leaves open what an option can say: which of its layers is meant, or which CRS its numbers are in.

    Its text is for callers from Python. Those who have the option by another name, or not at all, are told by `told`.

    Parameters
    ----------
    problem : str
        What is wrong with which source.
    option : str
        Parameter that settles it.
    advice : str
        What to do with the parameter.
    otherwise : str
        What to do without it.

    Examples
    --------
    >>> error = AmbiguousInputError("a.gpkg has 2 layers", "layer", "choose one by its name", "give a file of one")
    >>> str(error)
    'a.gpkg has 2 layers; choose one by its name (layer=)'
    >>> error.told("--layer"), error.told()
    ('a.gpkg has 2 layers; choose one by its name (--layer)', 'a.gpkg has 2 layers; give a file of one')
    """

    def __init__(self, problem: str, option: str, advice: str, otherwise: str) -> None:
        super().__init__(problem, option, advice, otherwise)
        self.problem, self.option, self.advice, self.otherwise = problem, option, advice, otherwise

    def __str__(self) -> str:
        """Say it to callers from Python."""
        return self.told(f"{self.option}=")

    def told(self, option: str = "") -> str:
        """Say what is wrong and what to do.

        Parameters
        ----------
        option : str
            What the option is called where this is read; empty where there is none.
        """
        return f"{self.problem}; {f'{self.advice} ({option})' if option else self.otherwise}"


class ImageError(BadInputError):
    """One image cannot be used; the batch goes on.

    Parameters
    ----------
    status : str
        The row status this leads to: missing, unreadable, unsupported, too_large or refused.
    message : str
        What is wrong with which file.

    Examples
    --------
    >>> ImageError("missing", "a.jpg: no such file").status
    'missing'
    """

    def __init__(self, status: str, message: str) -> None:
        super().__init__(status, message)  # both: so it can be copied, and comes out of another process
        self.status, self.message = status, message

    def __str__(self) -> str:
        """Say what is wrong."""
        return self.message


class RowsFailedError(BadInputError):
    """At least one row failed although every row was required (`strict`)."""


class BadBundleError(GeoMvmfError):
    """The file is not a bundle, is damaged, or is of a format this version does not know."""

    exit_code = 4
    code = "model_missing"


class OutputError(GeoMvmfError):
    """A result could not be written, or exists already and overwriting was not asked for."""

    exit_code = 5
    code = "output"


class LockedError(GeoMvmfError):
    """Another process works on the same folder."""

    exit_code = 6
    code = "locked"


class TrainingError(GeoMvmfError):
    """Training cannot start or go on."""

    exit_code = 7
    code = "bad_input"


def require_no_path(name: str, value: object, advice: str) -> None:
    """Refuse the path of a file where what is read of it is wanted.

    Parameters
    ----------
    name : str
        Of the argument.
    value : object
        The argument.
    advice : str
        What reads such a file.

    Raises
    ------
    UsageError
        It is a path.

    Examples
    --------
    >>> require_no_path("bundle", "a.safetensors", "load_bundle makes a bundle of a file")
    Traceback (most recent call last):
    geo_mvmf.errors.UsageError: bundle is 'a.safetensors': load_bundle makes a bundle of a file
    """
    if isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} is {value!r:.80}: {advice}")
