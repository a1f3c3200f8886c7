# SPDX-License-Identifier: GPL-2.0-or-later
"""Finding the user's Python, and the environment it is started with. Pure Python: no qgis.

Nothing is started and no disk is searched: a few known places are looked at, in this order: the setting
`geo_mvmf/python`, the variable GEO_MVMF_PYTHON, the command `geo-mvmf` on PATH or in the usual folders of a user's
programs, the folder of uv's tools, `~/geo-mvmf`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .texts import tr

RECIPE = "uv tool install --python 3.12 geo-mvmf"
"""The one line that makes what the plugin needs."""

_WINDOWS = os.name == "nt"
_INTERPRETERS = ("bin/python3", "bin/python", "Scripts/python.exe", "python.exe")
_COMMANDS = ("geo-mvmf", "geo-mvmf.exe")
_PROGRAM_FOLDERS = ("~/.local/bin", "~/bin", "/opt/homebrew/bin", "/usr/local/bin")
_TOOL_FOLDERS = ("~/.local/share/uv/tools", "~/AppData/Roaming/uv/data/tools", "~/AppData/Roaming/uv/tools")
_TRAMPOLINE = re.compile(r"^'''exec' (?P<quote>[\"']?)(?P<python>/.+?)(?P=quote) \"\$0\"")  # of long or spaced paths

# What QGIS, conda or a sandbox set for themselves: in another Python they load other people's libraries.
_DROPPED = ("PYTHON", "__PYVENV", "VIRTUAL_ENV", "PIP_", "PROJ_", "GDAL_", "OGR_", "QGIS", "QT_", "LD_", "DYLD_")
_OF_CONDA = ("CONDA", "_CE_")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class Found(NamedTuple):
    """A Python, where it was found, and why it cannot be used (empty: it can)."""

    python: str
    origin: str
    problem: str = ""


def find_python(setting: str, environ: Mapping[str, str]) -> Found:
    """Find the Python that has geo_mvmf, in the documented order; whoever names one is never overruled."""
    named = ((tr("the setting geo_mvmf/python"), setting), ("GEO_MVMF_PYTHON", environ.get("GEO_MVMF_PYTHON", "")))
    for origin, wish in named:
        if wish.strip():
            python = interpreter_of(wish)
            reason = tr("{} names {!r}: no Python and no environment is there").format(origin, wish.strip())
            return Found(python, origin, "" if python else reason)
    folders = [*environ.get("PATH", "").split(os.pathsep), *map(os.path.expanduser, _PROGRAM_FOLDERS)]
    # Not shutil.which: on Windows it looks in the current folder first, which may be anybody's.
    commands = [os.path.join(folder, name) for folder in filter(os.path.isabs, folders) for name in _COMMANDS]
    places = [(tr("the command {}").format(command), command) for command in filter(_is_program, commands)][:1]
    tools = [environ.get("UV_TOOL_DIR", ""), *_TOOL_FOLDERS]
    places += [(tr("the tools of uv"), os.path.join(folder, "geo-mvmf")) for folder in tools if folder]
    places.append((tr("the folder ~/geo-mvmf"), "~/geo-mvmf"))
    for origin, place in places:
        python = interpreter_of(place)
        if python:
            return Found(python, origin)
    return Found("", "", tr("no Python with geo_mvmf was found. In a terminal: {}").format(RECIPE))


def interpreter_of(place: str) -> str:
    """Give the interpreter that a path means: itself, that of an environment's folder, or that of geo-mvmf; or ''."""
    path = os.path.abspath(os.path.expanduser(place.strip().strip('"')))
    if os.path.isdir(path):
        candidates = [os.path.join(path, *name.split("/")) for name in _INTERPRETERS]
        return next(filter(_is_program, candidates), "")
    folder, name = os.path.split(path)
    if name.lower() == "pythonw.exe":  # has no standard streams
        path = os.path.join(folder, "python.exe")
    if not _is_program(path):
        return ""
    if name.lower() in _COMMANDS:
        return _interpreter_of_script(path)
    return path if re.match(r"python|pypy", name, re.IGNORECASE) else ""


def clean_environment(
    environ: Mapping[str, str], python: str, *, foreign: Iterable[str] = (), windows: bool = _WINDOWS
) -> dict[str, str]:
    """Give the variables that the user's Python is started with: nothing of QGIS, conda or a sandbox is left.

    `foreign` are folders of QGIS itself: certificates in them, and on Windows what PATH finds there, stay behind.
    """
    home = environment_folder(python)
    foreign = [folder for folder in foreign if folder]
    dropped = _DROPPED if _same(environ.get("CONDA_PREFIX", ""), home) else _DROPPED + _OF_CONDA
    kept = {}
    for name, value in environ.items():
        upper = name.upper()
        lost = upper in _CERTIFICATES and (not os.path.exists(value) or _inside(value, foreign))
        if not (upper.startswith(dropped) or lost):
            kept[name] = value
    path = next((name for name in kept if name.upper() == "PATH"), "PATH")
    found = [entry for entry in kept.get(path, "").split(os.pathsep) if entry]
    first = [os.path.dirname(python)]
    if windows:
        found = [entry for entry in found if not _inside(entry, foreign)]
        first = [home, os.path.join(home, "Library", "bin"), os.path.join(home, "Scripts")]
    kept[path] = os.pathsep.join(dict.fromkeys(first + found))
    return kept


def environment_folder(python: str) -> str:
    """Give the folder of the environment that an interpreter belongs to."""
    folder, name = os.path.split(os.path.dirname(os.path.abspath(python)))
    return folder if name.lower() in ("bin", "scripts") else os.path.join(folder, name)


def sandbox_problem(marker: str = "/.flatpak-info") -> str:
    """Say why no Python of the user's can be started at all, or ''."""
    if os.path.exists(marker):
        return tr(
            "this QGIS runs in Flatpak, which cannot start programs outside: use one from qgis.org or your system"
        )
    return ""


def _interpreter_of_script(script: str) -> str:
    real = os.path.realpath(script)  # of the script only: an environment's interpreter is a link that must stay one
    with open(real, "rb") as file:
        lines = file.read(4096).decode("utf-8", "replace").splitlines()
    named = lines[0][2:].strip() if lines and lines[0].startswith("#!/") else ""
    if named == "/bin/sh" and len(lines) > 1:
        match = _TRAMPOLINE.match(lines[1])
        named = match.group("python") if match else ""
    if named and re.match("python|pypy", os.path.basename(named)) and _is_program(named):
        return named
    if named:
        return ""
    # A program of Windows: the Python beside it is its own in an environment alone (uv puts others into ~/.local/bin).
    beside = os.path.join(os.path.dirname(real), "python.exe")
    is_environment = os.path.isfile(os.path.join(environment_folder(beside), "pyvenv.cfg"))
    return beside if is_environment and _is_program(beside) else ""


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _same(first: str, second: str) -> bool:
    return bool(first) and os.path.normcase(os.path.abspath(first)) == os.path.normcase(second)


def _inside(path: str, folders: Iterable[str]) -> bool:
    below = os.path.normcase(os.path.abspath(path)) + os.sep
    return any(below.startswith(os.path.normcase(os.path.abspath(folder)) + os.sep) for folder in folders)
