# SPDX-License-Identifier: GPL-2.0-or-later
"""Texts in the user's language inside QGIS, and as they are written elsewhere."""

try:
    from qgis.PyQt.QtCore import QCoreApplication
except ImportError:
    QCoreApplication = None


def tr(text: str) -> str:
    """Translate a text of the plugin; values are put into it afterwards."""
    return text if QCoreApplication is None else QCoreApplication.translate("mvmf_locator", text)
