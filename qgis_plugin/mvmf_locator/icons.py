# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin's icon."""

import os

from qgis.PyQt.QtGui import QIcon

PATH = os.path.join(os.path.dirname(__file__), "icon.svg")


def icon():
    """Give the icon of the provider and its algorithms."""
    return QIcon(PATH)
