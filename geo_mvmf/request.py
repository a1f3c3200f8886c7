"""A worker's request -> the arguments of a command, as click reads them: nothing in a request can become an option.

A value stands behind its option's name and an equals sign, and what has no name behind `--`; so click converts and
checks what programs ask for as it does for people, and takes no value for anything but a value.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, NoReturn

import click

from geo_mvmf.environment import PROTOCOL
from geo_mvmf.errors import UsageError

_FIELDS = ("protocol", "task", "params")


class Request(NamedTuple):
    """What a program asks for.

    Parameters
    ----------
    task : str
        Name of a command.
    params : dict
        Its options and arguments by their Python names.

    Examples
    --------
    >>> Request("info", {"file": "a.nc"}).task
    'info'
    """

    task: str
    params: dict[str, Any]


def read_request(line: bytes, tasks: Collection[str]) -> Request:
    """Read a request.

    Parameters
    ----------
    line : bytes
        One JSON object: protocol, task, params.
    tasks : collection of str
        Those there are.

    Returns
    -------
    Request

    Raises
    ------
    UsageError
        If it is none, of another protocol, or its task is unknown.

    Examples
    --------
    >>> read_request(b'{"protocol": 1, "task": "info", "params": {"file": "a.nc"}}', ["info"])
    Request(task='info', params={'file': 'a.nc'})
    """
    try:
        found = json.loads(line.decode("utf-8"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the request {_shown(line)} is not JSON in UTF-8: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"the request {_shown(found)} is no JSON object with {', '.join(_FIELDS)}")
    if found.get("protocol") != PROTOCOL or isinstance(found["protocol"], bool):
        raise UsageError(
            f"the request's protocol is {_shown(found.get('protocol'))}; this geo_mvmf speaks protocol {PROTOCOL}: "
            "update it, or the program that asks"
        )
    unknown = [name for name in found if name not in _FIELDS]
    if unknown:
        raise UsageError(f"the request has an unknown field {_shown(unknown[0])}; known are {', '.join(_FIELDS)}")
    task, params = found.get("task"), found.get("params", {})
    if not isinstance(task, str) or task not in tasks:
        raise UsageError(f"the request's task is {_shown(task)}; known are {', '.join(tasks)}")
    if not isinstance(params, dict):
        raise UsageError(f"the request's params are {_shown(params)}; an object of names and values is wanted")
    return Request(task, params)


def arguments(command: click.Command, params: Mapping[str, Any]) -> list[str]:
    """Write params as the arguments of a command.

    Parameters
    ----------
    command : click.Command
    params : mapping of str to value
        None is not given; a flag is true or false; what may be given several times is a list.

    Returns
    -------
    list of str
        Options as --name=value, then --, then what has no name.

    Raises
    ------
    UsageError
        If a param is unknown, or its value is of a kind that it does not take.

    Examples
    --------
    >>> command = click.Command("a", params=[click.Argument(["source"]), click.Option(["--out"])])
    >>> arguments(command, {"source": "--out", "out": "-x"})
    ['--out=-x', '--', '--out']
    """
    given = _by_python_names(command, params)
    options, places = [], []
    missing = None
    for param in command.params:
        value = given.get(str(param.name))
        if isinstance(param, click.Option) and value is not None:
            options += _option(param, value)
        elif isinstance(param, click.Argument) and value is not None:
            if missing is not None:  # its value would stand in the place of the other
                raise UsageError(f"params: {param.name} is {_shown(value)}, and {missing} is not given")
            places += _texts(param, value, several=param.nargs != 1)
        elif isinstance(param, click.Argument):
            missing = param.name
            if param.required:
                raise UsageError(f"params: {param.name} is not given")
    return [*options, "--", *places]


def _by_python_names(command: click.Command, params: Mapping[str, Any]) -> dict[str, Any]:
    """Values by Python names; the name of an option with _ for - is understood, too."""
    names = {str(param.name): str(param.name) for param in command.params if param.expose_value}
    for param in command.params:
        if isinstance(param, click.Option) and param.expose_value:
            names.setdefault(_long(param).removeprefix("--").replace("-", "_"), str(param.name))
    found: dict[str, Any] = {}
    for name, value in params.items():
        if name not in names:
            raise UsageError(f"params: {_shown(name)} is unknown; {command.name} takes {', '.join(sorted(names))}")
        if names[name] in found:
            raise UsageError(f"params: {name} is given twice, as {names[name]}, too")
        found[names[name]] = value
    return found


def _option(param: click.Option, value: Any) -> list[str]:
    if not param.is_flag:
        return [f"{_long(param)}={text}" for text in _texts(param, value, several=param.multiple)]
    if not isinstance(value, bool):
        raise UsageError(f"params: {param.name} is {_shown(value)}; true or false is wanted")
    return [_long(param)] if value else []


def _long(param: click.Option) -> str:
    return next(name for name in param.opts if name.startswith("--"))


def _texts(param: click.Parameter, value: Any, *, several: bool) -> list[str]:
    if isinstance(value, list) != several:
        wanted = "a list" if several else "one text or number"
        raise UsageError(f"params: {param.name} is {_shown(value)}; {wanted} is wanted")
    return [_text(param, each) for each in (value if several else [value])]


def _text(param: click.Parameter, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"params: {param.name} is {_shown(value)}; text or a number is wanted")
    text = str(value)
    try:
        is_possible = "\0" not in text and bool(os.fsencode(text) or not isinstance(param.type, click.Path))
    except UnicodeEncodeError:  # half a character
        is_possible = False
    if not is_possible:
        raise UsageError(f"params: {param.name} is {_shown(value)}, which no text or path can be")
    return text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _shown(value: Any) -> str:
    """A value for a message, however long it is."""
    return f"{value!r:.200}"
