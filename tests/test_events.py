"""What programs are told: lines that any reader can take, and a code for whatever can go wrong."""

import copy
import json
import math

import click
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geo_mvmf import errors, events

CODES = {"bad_input", "model_missing", "oom", "device", "output", "locked", "internal"}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_every_value_is_one_line_of_ascii_json(value):
    line = events.line("log", message=value)
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line, parse_constant=pytest.fail)["event"] == "log"


@pytest.mark.parametrize(
    "values",
    [
        {"message": "ä" * 10**6},
        {"detail": "\n" * 10**6, "message": "why"},
        {"facts": {f"key {i}": list(range(100)) for i in range(1000)}},
        {"facts": {"a" * 10**6: {"b": ["c" * 10**5] * 50}}},
    ],
)
def test_what_is_too_long_is_cut_and_still_json(values):
    line = events.line("result", **values)
    assert len(line) <= events.MOST_BYTES
    assert json.loads(line).keys() == {"event", *values}


def test_numbers_are_those_of_json():
    line = events.line("result", counts={"a": np.int64(3), "b": np.float32(0.5), "c": math.nan, "d": np.inf})
    assert json.loads(line)["counts"] == {"a": 3, "b": 0.5, "c": None, "d": None}


def test_every_branch_of_the_exception_tree_has_a_code():
    branches = [each for each in vars(errors).values() if isinstance(each, type) and each.__module__ == errors.__name__]
    assert {each.code for each in branches} == CODES - {"oom"}
    more = {errors.ImageError: ["missing", "why"], errors.AmbiguousInputError: ["why", "layer", "name it", "mend it"]}
    for each in branches:
        why = events.explain(each(*more.get(each, ["why"])))
        assert (why.code, why.message.split(";")[0], why.exit_code) == (each.code, "why", each.exit_code)


def test_advice_is_what_the_reader_can_follow():
    error = errors.AmbiguousInputError("a.gpkg has 2 layers", "truth_layer", "choose one", "give another")
    assert str(error) == "a.gpkg has 2 layers; choose one (truth_layer=)"
    assert events.explain(error).message == "a.gpkg has 2 layers; give another"
    assert events.explain(error, options=["layer"]).message == "a.gpkg has 2 layers; give another"
    assert events.explain(error, options=["truth_layer"]).message == "a.gpkg has 2 layers; choose one (--truth-layer)"
    again = copy.copy(error)  # as processes hand it over: by its arguments
    assert (str(again), again.told()) == (str(error), error.told())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MemoryError(), "oom"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"), "oom"),
        (RuntimeError("CUDA error: device-side assert triggered"), "device"),
        (torch.AcceleratorError("unspecified launch failure"), "device"),
        (click.UsageError("No such option: --frob"), "bad_input"),
        (KeyError("a"), "internal"),
        (RuntimeError("shapes do not fit"), "internal"),
    ],
)
def test_foreign_errors_have_the_code_of_their_kind(error, code):
    with pytest.raises(type(error)) as raised:  # so that it has a traceback
        raise error
    why = events.explain(raised.value)
    assert why.code == code
    assert why.message
    assert bool(why.detail) == (code == "internal")
    assert why.exit_code == (2 if code == "bad_input" else 1)
