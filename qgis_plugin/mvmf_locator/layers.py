# SPDX-License-Identifier: GPL-2.0-or-later
"""Result layers as they arrive: named, grouped by run, with photos, times and metadata. Styles are in the files."""

from __future__ import annotations

import collections
import html
import os
from datetime import datetime

from qgis import core

from .texts import tr

_ORDER = "geo_mvmf/order"
_kept = collections.deque(maxlen=256)  # QGIS holds no reference to a post-processor
_LICENCE_KEYS = ("licence", "bundle_licence", "license")


class Place:
    """Where the layers of one run go: a group of its own, points above regions above rasters."""

    def __init__(self, title):
        self.group = f"Geo MvMF / {title} {datetime.now():%Y-%m-%d %H:%M}"

    def load(self, context, path, name, order):
        """Have QGIS name and place the layer it will load from a path; nothing happens if it will load none."""
        if not path or not context.willLoadLayerOnCompletion(path):
            return
        details = context.layerToLoadOnCompletionDetails(path)
        details.name = name
        if hasattr(details, "groupName"):  # from QGIS 3.32 on
            details.groupName = self.group
        if hasattr(details, "layerSortKey"):
            details.layerSortKey = -order
        processor = Arrival(self.group, name, order)
        _kept.append(processor)
        details.setPostProcessor(processor)


class Arrival(core.QgsProcessingLayerPostProcessorInterface):
    """What is done to a layer in QGIS's main thread once it is loaded."""

    def __init__(self, group, name, order):
        super().__init__()
        self.group, self.name, self.order = group, name, order

    def postProcessLayer(self, layer, context, feedback):
        layer.loadDefaultStyle()  # the one in or beside the file: Processing loads results without
        layer.setName(self.name)
        layer.setCustomProperty(_ORDER, self.order)
        if isinstance(layer, core.QgsVectorLayer):
            run = read_run(layer)
            show_photos(layer, run.get("root", ""))
            show_times(layer)
            layer.setMetadata(metadata(layer, self.name, run))
        self._move(layer, context.project() or core.QgsProject.instance())

    def _move(self, layer, project):
        root = project.layerTreeRoot()
        node = root.findLayer(layer.id())
        if node is None:
            return
        group = root.findGroup(self.group) or root.insertGroup(0, self.group)
        # a window puts new layers on top of the group that the current layer is in, which may be this one
        place = 0
        for number, other in enumerate(group.children()):
            known = core.QgsLayerTree.isLayer(other) and other.layer() and other.layerId() != layer.id()
            if known and int(other.layer().customProperty(_ORDER, 0)) <= self.order:
                place = number + 1
        group.insertChildNode(place, node.clone())
        node.parent().removeChildNode(node)


def read_run(layer):
    """Read the table `run` beside a layer of a GeoPackage: how it was made."""
    path = layer.source().split("|")[0]
    if not path.lower().endswith(".gpkg"):
        return {}
    table = core.QgsVectorLayer(f"{path}|layername=run", "run", "ogr")
    if not table.isValid() or table.fields().lookupField("key") < 0:
        return {}
    return {str(row["key"]): str(row["value"]) for row in table.getFeatures()}


def show_photos(layer, root):
    """Show the photo in the form, from the folder that the run began in (the map tip does so already)."""
    field = layer.fields().lookupField("path")
    if field < 0:
        return
    config = {"DocumentViewer": 1, "FileWidget": True, "FileWidgetButton": False, "StorageMode": 0}
    if root:
        config.update(RelativeStorage=2, DefaultRoot=root)
    layer.setEditorWidgetSetup(field, core.QgsEditorWidgetSetup("ExternalResource", config))


def show_times(layer):
    """Give the temporal controller the time of capture, where any photo says it."""
    field = layer.fields().lookupField("captured_at")
    if field < 0 or not [value for value in layer.uniqueValues(field, 2) if value]:
        return
    properties = layer.temporalProperties()
    mode = core.Qgis.VectorTemporalMode.FeatureDateTimeStartAndEndFromExpressions
    properties.setMode(mode)
    for give in (properties.setStartExpression, properties.setEndExpression):
        give('to_datetime("captured_at")')
    properties.setIsActive(True)


def metadata(layer, name, run):
    """Say with the layer which model made it, when, and what it must not be taken for."""
    result = core.QgsLayerMetadata(layer.metadata())
    # QGIS shows these texts as HTML, and a bundle is written by others
    said = [f"{key}: {value}" for key, value in sorted(run.items()) if len(value) < 2000]
    result.setTitle(html.escape(name))
    result.setAbstract(html.escape("\n".join([tr("A region, not a proof of where an image was taken."), *said])))
    result.setLicenses([html.escape(run[key]) for key in _LICENCE_KEYS if run.get(key)])
    result.setHistory([html.escape(f"Made with geo_mvmf {run.get('geo_mvmf', '')}; loaded {datetime.now():%Y-%m-%d}")])
    result.setCrs(layer.crs())
    return result


def stem(path):
    """Give a file's name without folder and suffix."""
    return os.path.splitext(os.path.basename(path))[0]
