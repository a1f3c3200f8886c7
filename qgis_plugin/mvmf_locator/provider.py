# SPDX-License-Identifier: GPL-2.0-or-later
"""The Processing provider: its algorithms, and what it can write."""

from __future__ import annotations

from qgis import core

from . import settings
from .algorithms import ALGORITHMS
from .texts import tr


class LocatorProvider(core.QgsProcessingProvider):
    """Geo MvMF in the toolbox, in models, in batches and in qgis_process."""

    def id(self):
        return "geomvmf"

    def name(self):
        return "Geo MvMF"

    def longName(self):
        return tr("Geo MvMF: where images were taken, as probability")

    def icon(self):
        return settings.icon()

    def svgIconPath(self):
        return settings.ICON

    def loadAlgorithms(self):
        for algorithm in ALGORITHMS:
            self.addAlgorithm(algorithm())

    def supportsNonFileBasedOutput(self):
        return False  # the worker writes files: "memory:" would reach it

    def supportedOutputVectorLayerExtensions(self):
        return ["gpkg", "geojson"]

    def supportedOutputRasterLayerExtensions(self):
        return ["tif"]

    def warningMessage(self):
        if settings.found().problem:  # whose text names paths, and this one may be shown as rich text
            return tr("No Python with geo_mvmf is set up: run Check environment, it says what to do.")
        return ""
