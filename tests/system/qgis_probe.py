"""Runs inside QGIS's own Python: opens files as a user would, reports what was seen as JSON, renders a picture.

Usage: python3 qgis_probe.py REQUEST.json; the request names layers, extent, picture and the places to look at.
Importing it needs no QGIS, because the test runner imports every file of the tests.
"""

import json
import os
import pathlib
import sys


def open_layer(source):
    from qgis.core import QgsProject, QgsRasterLayer, QgsVectorLayer

    layer = QgsRasterLayer(source, source) if source.endswith(".tif") else QgsVectorLayer(source, source, "ogr")
    QgsProject.instance().addMapLayer(layer)
    return layer


def legend(layer):
    from qgis.core import QgsLayerTree, QgsLayerTreeModel

    tree = QgsLayerTree()
    tree.addLayer(layer)
    model = QgsLayerTreeModel(tree)
    return [node.data(0) for node in model.layerLegendNodes(tree.children()[0])]


def map_tips(layer):
    from qgis.core import QgsExpression, QgsExpressionContext, QgsExpressionContextUtils

    context = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    tips = []
    for feature in layer.getFeatures():
        context.setFeature(feature)
        tips.append(QgsExpression.replaceExpressionText(layer.mapTipTemplate(), context))
    return tips


def describe(layer):
    from qgis.core import QgsRasterLayer

    seen = {"valid": layer.isValid(), "crs": layer.crs().authid(), "blend": int(layer.blendMode())}
    if isinstance(layer, QgsRasterLayer):
        return dict(seen, renderer=type(layer.renderer()).__name__, legend=legend(layer))
    aliases = {field.name(): field.alias() for field in layer.fields()}
    widgets = {field.name(): field.editorWidgetSetup().type() for field in layer.fields()}
    seen.update(count=layer.featureCount(), aliases=aliases, widgets=widgets)
    if layer.isSpatial():
        seen.update(renderer=type(layer.renderer()).__name__, legend=legend(layer), tips=map_tips(layer))
    return seen


def render(request, layers):
    from qgis.core import (
        QgsCoordinateReferenceSystem,
        QgsMapRendererParallelJob,
        QgsMapSettings,
        QgsPointXY,
        QgsRectangle,
    )
    from qgis.PyQt.QtCore import QSize
    from qgis.PyQt.QtGui import QColor

    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setBackgroundColor(QColor("#ece8dc"))
    settings.setDestinationCrs(QgsCoordinateReferenceSystem("EPSG:4326"))
    settings.setExtent(QgsRectangle(*request["extent"]))
    settings.setOutputSize(QSize(800, 600))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    image = job.renderedImage()
    image.save(request["picture"])
    colours = []
    for longitude, latitude in request["places"]:
        pixel = settings.mapToPixel().transform(QgsPointXY(longitude, latitude))
        colours.append(list(QColor(image.pixel(int(pixel.x()), int(pixel.y()))).getRgb()[:3]))
    return {"colours": colours, "errors": [error.message for error in job.errors()]}


def main():
    from qgis.core import QgsApplication

    request = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    application = QgsApplication([], True)
    application.initQgis()
    layers = [open_layer(source) for source in request["layers"]]
    seen = {"layers": [describe(layer) for layer in layers]}
    seen.update(render(request, [layer for layer in layers if layer.isSpatial()]))
    sys.stdout.write(json.dumps(seen))
    sys.stdout.flush()
    os._exit(0)  # QGIS 3.22 may crash while it takes itself apart without a window


if __name__ == "__main__":
    main()
