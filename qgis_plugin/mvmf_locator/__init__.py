# SPDX-License-Identifier: GPL-2.0-or-later
"""Geo MvMF in QGIS: tells where images were taken.

The plugin imports only the standard library and qgis.*. All computing happens in a Python of the user's own, in which
geo_mvmf is installed; nothing is installed from here, and nothing is put on QGIS's path.
"""


def classFactory(iface):
    """Make the plugin; QGIS calls this when it loads the package."""
    from .plugin import LocatorPlugin

    return LocatorPlugin(iface)
