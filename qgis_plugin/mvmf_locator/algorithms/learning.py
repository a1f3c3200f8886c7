# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms that make models: cut chips, train, calibrate."""

from __future__ import annotations

import json
import os

from qgis import core

from ..protocol import WorkerFailed
from ..texts import tr
from . import base
from .prediction import raster_file

TABLE_FILTER = "Tables (*.csv *.gpkg *.geojson *.parquet)"


class CutChips(base.LocatorAlgorithm):
    """Georeferenced rasters -> small pictures of known place, to train on.

    Cuts small pictures (chips) of known place from georeferenced rasters: squares of the ground at true scale, at
    places drawn uniformly over the area. Give raster layers that are files, or a folder of GeoTIFF tiles. The table
    chips.csv names the chips with longitude and latitude; Train a model takes it.
    """

    NAME = tr("Cut training chips")
    GROUP = base.MODELS
    TAGS = ("training", "satellite", "sample")

    def parameters(self):
        kind = core.QgsProcessing.SourceType.TypeRaster
        return [
            core.QgsProcessingParameterMultipleLayers("RASTERS", tr("Raster layers (files)"), kind, None, True),
            base.file_in("TILES", tr("Or: folder of GeoTIFF tiles"), folder=True, optional=True),
            base.number("GROUND_KM", tr("Side of a chip on the ground (km)"), default=20.0, low=0.001),
            base.number("SIZE", tr("Side of a chip (pixels)"), default=64, low=8, whole=True),
            base.number("COUNT", tr("Chips to cut"), default=1000, low=1, whole=True),
            base.layer_in("AREA", tr("Only inside these polygons")),
            base.advanced(base.text_in("BANDS", tr("Bands, such as 4,3,2 (empty: all)"))),
            base.advanced(base.text_in("STRETCH", tr("Stretch: auto, or low,high (empty: 8-bit values as they are)"))),
            base.advanced(base.number("SEED", tr("Seed of the places"), default=0, low=0, whole=True)),
            base.advanced(base.choice("FORMAT", tr("Format of the chips"), ("png", "jpeg", "tif"))),
            core.QgsProcessingParameterFolderDestination("OUTPUT", tr("Folder for the chips (a new one)")),
            core.QgsProcessingOutputFile("TABLE", tr("Table of the chips")),
        ]

    def work(self, job):
        layers = self.parameterAsLayerList(job.values, "RASTERS", job.context) if job.given("RASTERS") else []
        tiles = job.file("TILES")
        if bool(layers) == bool(tiles):
            raise WorkerFailed(tr("give raster layers, or a folder of tiles: exactly one of them"))
        out = self.parameterAsString(job.values, "OUTPUT", job.context)
        if os.path.isdir(out) and not os.listdir(out):
            os.rmdir(out)  # Processing makes it before; the worker wants to make it
        result = job.ask(
            "chips",
            sources=[tiles] if tiles else [raster_file(layer) for layer in layers],
            out=out,
            ground_km=job.number("GROUND_KM"),
            size=job.whole("SIZE"),
            count=job.whole("COUNT"),
            area=job.layer_file("AREA"),
            bands=job.text("BANDS"),
            stretch=job.text("STRETCH"),
            seed=job.whole("SEED"),
            kind=job.choice("FORMAT"),
        )
        return {"OUTPUT": out, "TABLE": base.outputs_of(result).get("table", os.path.join(out, "chips.csv"))}


class TrainModel(base.LocatorAlgorithm):
    """Images of known place -> a bundle.

    Trains a model on images of known place and writes it as a bundle. Give a table with path, longitude and latitude
    (Cut training chips writes one), or a training file (.toml) that decides everything. After a crash or Cancel the
    same run, given again with the same folder, goes on from its last checkpoint. Small networks for chips train in
    minutes on a processor; photos of the whole world need graphics processors and days.
    """

    NAME = tr("Train a model")
    GROUP = base.MODELS
    TAGS = ("training", "deep learning", "fine-tune")

    def parameters(self):
        networks = ("chip_resnet10", "chip_convnet", "resnet18", "resnet50", "wide_resnet50_2")
        return [
            base.file_in("TABLE", tr("Table of images of known place"), filters=TABLE_FILTER, optional=True),
            base.file_in("CONFIG", tr("Or: training file (.toml)"), extension="toml", optional=True),
            base.choice("BACKBONE", tr("Network"), networks),
            base.number("COMPONENTS", tr("Components of the density, at least"), default=512, low=6, whole=True),
            base.number("EPOCHS", tr("Times that every image is seen"), default=20.0, low=0.000001),
            base.number("LEARNING_RATE", tr("Learning rate"), default=0.002, low=0.0, high=10.0),
            base.number("BATCH_SIZE", tr("Images at a time"), default=64, low=1, whole=True),
            base.advanced(base.text_in("OPTIONS", tr("More lines of the training file, with ; between them"))),
            core.QgsProcessingParameterFolderDestination(
                "OUTPUT", tr("Folder of the run (not used with a training file)")
            ),
            core.QgsProcessingOutputFile("BUNDLE", tr("Bundle")),
        ]

    def work(self, job):
        config, table = job.file("CONFIG"), job.file("TABLE")
        if bool(config) == bool(table):
            raise WorkerFailed(tr("give a table of images, or a training file: exactly one of them"))
        out = self.parameterAsString(job.values, "OUTPUT", job.context)
        result = job.ask("train", config=config or self._config(job, table, out))
        bundle = base.outputs_of(result).get("bundle")
        return {"OUTPUT": out, **({"BUNDLE": bundle} if bundle else {})}

    def _config(self, job, table, out):
        values = {
            "stage": "finetune",
            "table": table,
            "out": os.path.abspath(out),
            "backbone": job.choice("BACKBONE"),
            "num_components": job.whole("COMPONENTS"),
            "epochs": job.number("EPOCHS"),
            "learning_rate": job.number("LEARNING_RATE"),
            "batch_size": job.whole("BATCH_SIZE"),
        }
        # a JSON text with ASCII escapes is a TOML text
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()] + job.lines("OPTIONS")
        path = core.QgsProcessingUtils.generateTempFilename("train.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        return path


class Calibrate(base.LocatorAlgorithm):
    """A bundle and images of known place that it never saw -> a bundle whose probabilities are true.

    Makes a bundle's probabilities true, so that the 90 % regions hold 90 % of the places, by images of known place
    that it was never trained on: one temperature and one shift of all concentrations are fitted and written into a new
    bundle. Some hundred images from many places are wanted.
    """

    NAME = tr("Calibrate a model")
    GROUP = base.MODELS
    TAGS = ("calibration", "temperature", "coverage")

    def parameters(self):
        return [
            base.bundle_in(),
            base.file_in("TABLE", tr("Table of images of known place"), filters=TABLE_FILTER, optional=True),
            base.file_in("FOLDER", tr("Or: folder of photos"), folder=True, optional=True),
            base.flag("EXIF", tr("Take positions from EXIF")),
            base.advanced(base.text_in("GROUP_BY", tr("Column of images that belong together (empty: by place)"))),
            base.device(),
            base.advanced(base.number("BATCH_SIZE", tr("Images at a time"), default=32, low=1, whole=True)),
            base.file_out("OUTPUT", tr("Calibrated bundle"), base.BUNDLE_FILTER),
        ]

    def work(self, job):
        table, folder, out = job.file("TABLE"), job.file("FOLDER"), job.target("OUTPUT")
        if bool(table) == bool(folder):
            raise WorkerFailed(tr("give a table of images, or a folder: exactly one of them"))
        job.ask(
            "calibrate",
            bundle=job.bundle(),
            source=table or folder,
            out=out,
            exif=job.flag("EXIF"),
            group_by=job.text("GROUP_BY"),
            device=job.text("DEVICE") or "auto",
            batch_size=job.whole("BATCH_SIZE"),
            overwrite=True,
        )
        return {"OUTPUT": out}
