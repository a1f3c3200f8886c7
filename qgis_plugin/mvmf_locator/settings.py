# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user has chosen once: the interpreter, the folder of bundles, the device."""

from __future__ import annotations

import os

from qgis import core
from qgis.PyQt.QtCore import QT_VERSION_STR
from qgis.PyQt.QtGui import QIcon

from . import environment

DEVICES = ("auto", "cpu", "cuda", "mps")

ICON = os.path.join(os.path.dirname(__file__), "icon.svg")

last_facts = {}
"""What the worker said of its environment when it was last checked."""


def icon():
    """Give the icon of the provider and its algorithms."""
    return QIcon(ICON)


def get(name):
    """Give a setting: python, bundles or device; '' where it is not set."""
    return str(core.QgsSettings().value(f"geo_mvmf/{name}", "") or "")


def put(name, value):
    """Keep a setting."""
    core.QgsSettings().setValue(f"geo_mvmf/{name}", value)


def found():
    """Find the user's Python; nothing is started."""
    problem = environment.sandbox_problem()
    if problem:
        return environment.Found("", "", problem)
    return environment.find_python(get("python"), os.environ)


def bundles():
    """List the bundles of the default folder."""
    folder = get("bundles")
    if not os.path.isdir(folder):
        return []
    return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".safetensors"))


def facts():
    """Gather what a report of a fault needs; nothing is started."""
    here = found()
    return {
        "QGIS": core.Qgis.QGIS_VERSION,
        "Qt": QT_VERSION_STR,
        "system": core.QgsApplication.osName(),
        "interpreter": here.python or here.problem,
        "found by": here.origin,
        "device": get("device") or "auto",
        **{f"worker {name}": value for name, value in last_facts.items()},
    }
