# SPDX-License-Identifier: GPL-2.0-or-later
"""The page "Geo MvMF" in QGIS's options."""

from __future__ import annotations

import os

from qgis import core
from qgis.gui import QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtWidgets import QComboBox, QFormLayout, QLabel, QLineEdit, QPushButton

from . import diagnostics, environment, settings
from .settings import DEVICES, get, put
from .texts import tr


class OptionsFactory(QgsOptionsWidgetFactory):
    """The page "Geo MvMF" in QGIS's options."""

    def __init__(self):
        super().__init__()
        self.setTitle("Geo MvMF")

    def icon(self):
        return settings.icon()

    def createWidget(self, parent):
        return OptionsPage(parent)


class OptionsPage(QgsOptionsPageWidget):
    """Three settings, what they lead to, and two lines to copy."""

    def __init__(self, parent):
        super().__init__(parent)
        form = QFormLayout(self)
        self.python = _file_widget(get("python"), QgsFileWidget.StorageMode.GetFile)
        self.bundles = _file_widget(get("bundles"), QgsFileWidget.StorageMode.GetDirectory)
        self.device = QComboBox()
        self.device.setEditable(True)
        self.device.addItems(DEVICES)
        self.device.setCurrentText(get("device") or DEVICES[0])
        self.state = QLabel()
        self.state.setTextFormat(Qt.TextFormat.PlainText)  # it shows paths
        self.state.setWordWrap(True)
        recipe = QLineEdit(environment.RECIPE)
        recipe.setReadOnly(True)
        form.addRow(tr("Python with geo_mvmf (empty: found by itself)"), self.python)
        form.addRow(tr("In use"), self.state)
        form.addRow(tr("To make one, in a terminal"), recipe)
        form.addRow(tr("Default folder of bundles"), self.bundles)
        form.addRow(tr("Default device (auto, cpu, cuda:N, mps)"), self.device)
        form.addRow(_button(tr("Copy the line"), lambda: _copy(environment.RECIPE)))
        form.addRow(_button(tr("Copy diagnostics"), lambda: _copy(diagnostics.markdown(settings.facts()))))
        self.python.fileChanged.connect(self.show_state)
        self.show_state(get("python"))

    def show_state(self, python):
        """Say which interpreter this setting would lead to."""
        here = environment.find_python(python, os.environ)
        self.state.setText(f"{here.python} ({here.origin})" if not here.problem else here.problem)

    def apply(self):
        """Keep what is chosen; QGIS calls this on OK."""
        put("python", self.python.filePath().strip())
        put("bundles", self.bundles.filePath().strip())
        put("device", self.device.currentText().strip())


def _file_widget(path, mode):
    widget = QgsFileWidget()
    widget.setStorageMode(mode)
    widget.setFilePath(path)
    return widget


def _button(text, action):
    button = QPushButton(text)
    button.clicked.connect(action)
    return button


def _copy(text):
    core.QgsApplication.clipboard().setText(text)
