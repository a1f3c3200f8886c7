"""Runs inside a QGIS window (`qgis --code`): predicts the sample album and takes pictures. See screenshots.py."""

import os
import sys
import traceback

import processing
from qgis import core
from qgis.PyQt.QtCore import QSize, Qt, QTimer
from qgis.PyQt.QtGui import QColor
from qgis.PyQt.QtWidgets import QApplication, QDockWidget, QToolBar
from qgis.utils import iface

WORK = os.environ["GEO_MVMF_SCREENSHOTS"]
SAMPLE = os.path.join(WORK, "sample_data")
SHOWN = "/home/you/geo_mvmf/sample_data"  # in the dialog, which nobody runs
BUNDLE = os.path.join(SAMPLE, "relief.safetensors")
ONE_IMAGE = "chip_24.jpg"  # its density reaches far, and over a coast
LAND, SEA, BORDER = "#e9e6de", "#f7fafc", "#b9b4a6"
WORLD = core.QgsRectangle(-13_300_000, -6_400_000, 15_500_000, 8_500_000)  # without what lies south of 56°
WORLD_CRS, DEGREES = "EPSG:8857", "EPSG:4326"  # Equal Earth for the globe
LOW_WINDOW, WINDOW, DIALOG = QSize(1400, 560), QSize(1400, 700), QSize(1060, 872)
PANELS = {"Layers": 350, "ProcessingToolbox": 310}  # their widths
TOOLBARS = ("mFileToolBar", "mMapNavToolBar", "mAttributesToolBar")
WAIT_MS = 1500


def prepare():
    """Put land below everything, and the panels as the pictures want them."""
    window = iface.mainWindow()
    window.resize(LOW_WINDOW)  # the world is flat
    docks = {dock.objectName(): dock for dock in window.findChildren(QDockWidget)}
    for name, dock in docks.items():
        dock.setVisible(name in PANELS)
    for bar in window.findChildren(QToolBar):
        if bar.parent() is window:
            bar.setVisible(bar.objectName() in TOOLBARS)
    docks["ProcessingToolbox"].searchBox.setText("mvmf")
    select(docks["ProcessingToolbox"].algorithmTree, "Predict image locations")
    window.resizeDocks([docks[name] for name in PANELS], list(PANELS.values()), Qt.Orientation.Horizontal)
    land = core.QgsVectorLayer(os.path.join(SAMPLE, "countries.geojson"), "Land", "ogr")
    symbol = core.QgsFillSymbol.createSimple({"color": LAND, "outline_color": BORDER, "outline_width": "0.1"})
    land.setRenderer(core.QgsSingleSymbolRenderer(symbol))
    core.QgsProject.instance().addMapLayer(land)
    iface.mapCanvas().setCanvasColor(QColor(SEA))


def select(tree, text):
    """Select an entry of the toolbox."""
    model, exactly = tree.model(), Qt.MatchFlag.MatchExactly | Qt.MatchFlag.MatchRecursive
    found = model.match(model.index(0, 0), Qt.ItemDataRole.DisplayRole, text, 1, exactly)
    tree.setCurrentIndex(found[0])


def predict():
    """Predict the album as a user does; its layers arrive by themselves."""
    wanted = {"FOLDER": os.path.join(SAMPLE, "chips"), "BUNDLE": BUNDLE, "DEVICE": "cpu"}
    wanted.update(POINTS=of("points.gpkg"), REGIONS=of("regions.gpkg"), PREDICTIONS=of("album.nc"))
    processing.runAndLoadResults("geomvmf:predictphotos", wanted)
    iface.layerTreeView().expandAll()  # for the legends
    show(WORLD, WORLD_CRS)


def open_dialog():
    """Open the dialog of the first algorithm, filled in."""
    values = {"FOLDER": f"{SHOWN}/chips", "BUNDLE": f"{SHOWN}/relief.safetensors"}
    shown = processing.createAlgorithmDialog("geomvmf:predictphotos", values)
    shown.resize(DIALOG)
    shown.show()
    return shown


def map_one():
    """Draw one image's density and regions, where they are; the album's own layers are folded away."""
    iface.mainWindow().resize(WINDOW)
    tree = core.QgsProject.instance().layerTreeRoot()
    for node in tree.findGroups() + [layer for group in tree.findGroups() for layer in group.findLayers()]:
        node.setExpanded(False)
        node.setItemVisibilityChecked(False)
    common = {"PREDICTIONS": of("album.nc"), "IMAGE_IDS": ONE_IMAGE}
    processing.runAndLoadResults("geomvmf:densityraster", dict(common, OUTPUT=of("density.tif")))
    processing.runAndLoadResults("geomvmf:credibleregions", dict(common, OUTPUT=of("one.gpkg")))
    for node in tree.findLayers():
        if node.name().startswith("Credible level"):  # it lies on the density, which is to be seen
            node.setItemVisibilityChecked(False)
    box = core.QgsRasterLayer(of("density.tif"), "density").extent()
    box.scale(1.3)
    show(box, DEGREES)


def of(name):
    return os.path.join(WORK, name)


def show(box, crs):
    core.QgsProject.instance().setCrs(core.QgsCoordinateReferenceSystem(crs))
    iface.mapCanvas().setExtent(box)
    iface.mapCanvas().refreshAllLayers()


def settle():
    """Let QGIS draw all there is."""
    QApplication.processEvents()
    iface.mapCanvas().waitWhileRendering()
    iface.messageBar().clearWidgets()
    QApplication.processEvents()


def take(name, widget=None):
    settle()
    if not (widget or iface.mainWindow()).grab().save(of(name), "PNG", 0):
        raise OSError(f"{of(name)}: cannot be written")


def steps():
    prepare()
    yield
    predict()
    yield
    take("qgis_predicted.png")
    shown = open_dialog()
    yield
    take("qgis_dialog.png", shown)
    shown.close()
    map_one()
    yield
    take("qgis_density.png")


def go_on(work):
    """Do the next step, wait until QGIS has drawn it, and so on; leave at the end, or saying what went wrong."""
    try:
        next(work)
    except StopIteration:
        leave(0)
    except Exception:  # noqa: BLE001 (whatever it was: the window has to end)
        traceback.print_exc()
        leave(1)
    else:
        QTimer.singleShot(WAIT_MS, lambda: go_on(work))


def leave(code):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a window that asks whether to save the project would never end


QTimer.singleShot(WAIT_MS, lambda: go_on(steps()))
