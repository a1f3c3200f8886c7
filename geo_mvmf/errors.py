"""The exceptions of geo_mvmf: one tree, one exit code per branch.

::

    GeoMvmfError                    1
    ├── UsageError                  2   an option, or a combination of options, is wrong
    │   └── DeviceError             2   the device that was asked for is not there
    ├── BadInputError               3   a table, image, raster or polygon cannot be used
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

CHOOSE_LAYER = "choose one by its name (layer=), or "
"""Part of the message about a file of several layers: doors say there how theirs is chosen, or leave it out."""


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
        super().__init__(message)
        self.status = status


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
