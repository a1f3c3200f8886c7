"""A request's values are values: none becomes an option, whatever stands in it."""

import json
import random
from pathlib import Path

import click
import pytest

from geo_mvmf import cli
from geo_mvmf.errors import UsageError
from geo_mvmf.request import arguments, read_request

HOSTILE = ["--overwrite", "--out=/etc/passwd", "-h", "--", "-", "@file", "a\nb", "'; rm -rf /", '"', "$(x)", "%s", "\\"]
HOSTILE += [
    "\t",
    "a\0b",
    "\ud800",
    "Ægir",
    "\u202e",
    "💥" * 50,
    "x" * 5000,
    "{}",
    "*",
    "~",
    "--progress",
    "=",
    "C:\\x",
    "//h/s",
]


def command(name):
    return cli.main.get_command(click.Context(cli.main), name)


def understood(name, params):
    """What a command is given of params: the values after click's parsing."""
    found = command(name)
    return found.make_context(name, arguments(found, params)).params


def hostile_texts(count, seed=0):
    chance = random.Random(seed)
    for i in range(count):
        yield HOSTILE[i] if i < len(HOSTILE) else "".join(chance.choices(HOSTILE, k=chance.randint(1, 4)))


def misread(write):
    """Of 500 hostile texts in six params, those refused, and those understood as anything but themselves."""
    refused, wrong = set(), []
    found = command("predict")
    for text in hostile_texts(500):
        for name in ("source", "bundle", "out", "root", "levels", "device"):
            params = {"source": "a", "bundle": "b", "out": "c", name: text}
            try:
                got = found.make_context("predict", write(found, params)).params
            except (UsageError, ValueError, click.UsageError, click.exceptions.Exit):
                refused.add(text)
                continue
            given = {key: str(value) for key, value in got.items() if value is not None}
            meant = {key: params.get(key, given[key]) for key in given}
            if name in ("source", "bundle", "out", "root"):  # a path is spelt in one way: a//b is a/b
                meant[name] = str(Path(text))
            if given != meant or got["overwrite"] or got["strict"]:
                wrong.append((name, text))
    return refused, wrong


def test_500_hostile_texts_are_refused_or_taken_literally():
    refused, wrong = misread(arguments)
    assert wrong == []
    assert len(refused) > 10
    assert all("\0" in text or "\ud800" in text for text in refused)


def test_values_as_words_of_their_own_are_noticed(capsys):
    """The broken twin; it refuses what looks like an option, and takes --overwrite for one."""

    def write(_, params):
        options = [word for name in ("bundle", "out", "root", "levels", "device") if name in params
                   for word in (f"--{name}", params[name])]  # fmt: skip
        return [*options, params["source"], "a"][: len(options) + 1 + params["source"].startswith("--")]

    refused, wrong = misread(write)
    assert ("source", "--overwrite") in wrong
    assert "-h" in refused


def test_params_are_those_of_the_command_line():
    got = understood("regions", {"predictions": "a.nc", "out": "b.gpkg", "image_ids": ["-x", "--y"], "levels": 0.5})
    assert (got["image_ids"], got["levels"], got["overwrite"]) == (("-x", "--y"), "0.5", False)
    got = understood("chips", {"sources": ["-a.tif", "b.tif"], "out": "o", "ground_km": 3, "format": "tif", "count": 5})
    assert ([str(path) for path in got["sources"]], got["kind"], got["ground_km"]) == (["-a.tif", "b.tif"], "tif", 3.0)
    got = understood("evaluate", {"predictions": "a.nc", "truth": None, "overwrite": True, "out": None})
    assert (got["truth"], got["overwrite"], got["out"]) == (None, True, None)


@pytest.mark.parametrize(
    ("task", "params", "message"),
    [
        ("predict", {"frob": 1}, "params: 'frob' is unknown; predict takes batch_size"),
        ("predict", {"progress": "json"}, "'progress' is unknown"),
        ("predict", {"help": True}, "'help' is unknown"),
        ("predict", {"--out": "a"}, "'--out' is unknown"),
        ("predict", {}, "params: source is not given"),
        ("predict", {"source": "a", "overwrite": "yes"}, "overwrite is 'yes'; true or false"),
        ("predict", {"source": ["a"]}, r"source is \['a'\]; one text or number"),
        ("predict", {"source": {"a": 1}}, "source is {'a': 1}; text or a number"),
        ("predict", {"source": True}, "source is True; text or a number"),
        ("predict", {"source": ""}, "source is '', which no text or path can be"),
        ("predict", {"source": "a\0b"}, "which no text or path can be"),
        ("regions", {"predictions": "a", "image_ids": "b"}, "image_ids is 'b'; a list is wanted"),
        ("regions", {"predictions": "a", "image_ids": ["b"], "image_id": ["c"]}, "image_id is given twice"),
        ("evaluate", {"truth": "a.csv"}, "predictions is not given"),
    ],
)
def test_wrong_params_are_named(task, params, message):
    with pytest.raises(UsageError, match=message):
        arguments(command(task), params)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "is not JSON"),
        (b"cancel", "is not JSON"),
        (b"\xff\xfe", "is not JSON in UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "is no JSON object"),
        (b'{"task": "info"}', "protocol is None; this geo_mvmf speaks protocol 1"),
        (b'{"protocol": 2, "task": "info"}', "protocol is 2; .*update it"),
        (b'{"protocol": true, "task": "info"}', "protocol is True"),
        (b'{"protocol": 1, "task": "fly"}', "task is 'fly'; known are chips, table"),
        (b'{"protocol": 1, "task": ["info"]}', r"task is \['info'\]"),
        (b'{"protocol": 1, "task": "info", "params": [1]}', r"params are \[1\]"),
        (b'{"protocol": 1, "task": "info", "argv": []}', "unknown field 'argv'"),
        (b'{"protocol": 1, "task": "info", "params": {"file": NaN}}', "NaN is no number of JSON"),
    ],
)
def test_what_is_no_request_is_named(line, message):
    with pytest.raises(UsageError, match=message):
        read_request(line, cli.COMMANDS)


def test_every_task_takes_what_its_help_shows():
    for name in cli.COMMANDS:
        request = read_request(json.dumps({"protocol": 1, "task": name}).encode(), cli.COMMANDS)
        assert request.params == {}
        for param in command(name).params:
            if param.name != "progress":
                value = [] if getattr(param, "multiple", False) or param.nargs == -1 else None
                assert "unknown" not in str(arguments_or_error(name, {param.name: value}))


def arguments_or_error(name, params):
    try:
        return arguments(command(name), params)
    except UsageError as error:
        return error
