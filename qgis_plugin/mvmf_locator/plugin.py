# SPDX-License-Identifier: GPL-2.0-or-later
"""What QGIS loads: the provider, and with a window the page of options; all of it goes when the plugin goes."""

from __future__ import annotations

import os

from qgis import core
from qgis.PyQt.QtCore import QCoreApplication, QLocale, QTranslator


class LocatorPlugin:
    """The plugin; iface is None without a window."""

    def __init__(self, iface):
        self.iface = iface
        self.provider = self.options = self.translator = None

    def initProcessing(self):
        """Add the provider; qgis_process calls only this."""
        self._translate()
        from .provider import LocatorProvider

        if self.provider is None:
            self.provider = LocatorProvider()
            core.QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self):
        """Add the provider and the page of options."""
        self.initProcessing()
        if self.iface is not None and self.options is None:
            from .options import OptionsFactory

            self.options = OptionsFactory()
            self.iface.registerOptionsWidgetFactory(self.options)

    def unload(self):
        """Take everything away again."""
        if self.options is not None:
            self.iface.unregisterOptionsWidgetFactory(self.options)
        if self.provider is not None:
            core.QgsApplication.processingRegistry().removeProvider(self.provider.id())
        if self.translator is not None:
            QCoreApplication.removeTranslator(self.translator)
        self.provider = self.options = self.translator = None

    def _translate(self):
        name = f"mvmf_locator_{QLocale().name()[:2]}.qm"
        path = os.path.join(os.path.dirname(__file__), "i18n", name)
        if self.translator is None and os.path.exists(path):
            self.translator = QTranslator()
            self.translator.load(path)
            QCoreApplication.installTranslator(self.translator)
