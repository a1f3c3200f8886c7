"""Errors as what they are: values that programs pass on."""

import copy

import pytest

from geo_mvmf import errors


@pytest.mark.parametrize(
    "error",
    [
        errors.UsageError("a"),
        errors.ImageError("missing", "a.jpg: no such file"),
        errors.AmbiguousInputError("a.gpkg has 2 layers", "layer", "choose one", "give a file of one"),
    ],
)
def test_errors_come_whole_out_of_other_processes(error):
    """A copy is made as pickle makes one. A pool of processes breaks where an error cannot be made anew."""
    found = copy.copy(error)
    assert type(found) is type(error)
    assert (str(found), vars(found)) == (str(error), vars(error))
