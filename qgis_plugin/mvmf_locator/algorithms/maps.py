# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms that make something of a predictions file: density rasters, regions, zones, fused predictions."""

from __future__ import annotations

import math
import os
import re

from qgis import core

from ..layers import Place, stem
from ..protocol import WorkerFailed
from ..texts import tr
from . import base
from .prediction import raster_file

_CELLS = 500  # along the longer side of an extent, where no resolution is given


class DensityRaster(base.LocatorAlgorithm):
    """Predictions -> probability per square kilometre, as rasters that hold integrals.

    Writes the probability density (per km²) of one image, or the mean of several or all, as GeoTIFF, and beside it the
    credible level (0..1) of every raster cell: the probability of the smallest region that holds it. Values are
    integrals over the raster cell, so density times area sums to the probability inside (1 on the globe; metadata
    PROBABILITY_SUM). Without an extent one image chooses a window that shows 99 % of its probability, and so does the
    mean where a CRS is chosen; else the mean is on the globe. Mode <i>each</i> writes a pair of files for every image
    into the folder.
    """

    NAME = tr("Probability density raster")
    GROUP = base.MAPS
    TAGS = ("heatmap", "raster", "cog")

    def parameters(self):
        return [
            base.predictions_in(),
            base.image_ids(),
            base.choice("MODE", tr("Mean of the images, or each for itself"), ("mean", "each")),
            core.QgsProcessingParameterExtent("EXTENT", tr("Extent"), None, True),
            core.QgsProcessingParameterCrs(
                "CRS", tr("CRS (EPSG; empty: that of the extent, else EPSG:4326)"), None, True
            ),
            base.number("RESOLUTION", tr("Raster cell size in units of the CRS (empty: automatic)"), low=0.0),
            base.advanced(base.number("BANDWIDTH_KM", tr("Smoothing: standard deviation (km; empty: none)"), low=0.0)),
            base.raster_out("OUTPUT", tr("Density"), optional=True),
            core.QgsProcessingParameterFolderDestination("FOLDER", tr("Folder for mode each"), None, True, False),
            core.QgsProcessingOutputRasterLayer("LEVEL", tr("Credible level")),
            core.QgsProcessingOutputMultipleLayers("RASTERS", tr("All density rasters")),
        ]

    def work(self, job):
        grid = self._grid(job)
        store, wanted = job.file("PREDICTIONS"), job.lines("IMAGE_IDS")
        common = dict(grid, predictions=store, bandwidth_km=job.number("BANDWIDTH_KM"), overwrite=True)
        if job.choice("MODE") == "each":
            return self._each(job, common, wanted or all_images(job, store))
        out = job.target("OUTPUT") or core.QgsProcessingUtils.generateTempFilename("density.tif")
        found = job.ask("density", out=out, image_ids=wanted or None, **common)
        return self._loaded(job, out, base.outputs_of(found).get("level"), "; ".join(wanted[:3]) or tr("mean of all"))

    def _each(self, job, common, names):
        folder = self.parameterAsString(job.values, "FOLDER", job.context)
        if not folder:
            raise WorkerFailed(tr("the mode each needs a folder"), tr("Choose where FOLDER shall be."))
        os.makedirs(folder, exist_ok=True)
        outs = []
        for step in job.steps(len(names)):
            safe = re.sub(r"[^\w.-]+", "_", names[step])[-80:]
            outs.append(os.path.join(folder, f"{step + 1:04d}_{safe}.tif"))
            job.ask("density", out=outs[-1], image_ids=[names[step]], **common)
            if job.cancelled:
                outs.pop()
                break
        return {"FOLDER": folder, "RASTERS": outs}

    def _loaded(self, job, out, level, what):
        place = Place(stem(job.file("PREDICTIONS")))
        level = level or f"{os.path.splitext(out)[0]}_level{os.path.splitext(out)[1]}"
        if job.cancelled or not os.path.exists(level):
            return {"OUTPUT": out}
        place.load(job.context, out, tr("Density, {}").format(what), 11)
        load_too(job, out, level, "LEVEL")
        place.load(job.context, level, tr("Credible level, {}").format(what), 10)
        return {"OUTPUT": out, "LEVEL": level, "RASTERS": [out]}

    def _grid(self, job):
        crs = self.parameterAsCrs(job.values, "CRS", job.context) if job.given("CRS") else None
        has_extent = job.given("EXTENT")
        if has_extent and crs is None:
            crs = self.parameterAsExtentCrs(job.values, "EXTENT", job.context)
            if not epsg(crs):
                crs = core.QgsCoordinateReferenceSystem("EPSG:4326")
        if crs is not None and not epsg(crs):
            hint = tr("Choose one with an EPSG number; the raster can be warped afterwards.")
            raise WorkerFailed(tr("the CRS {!r} is not of EPSG").format(crs.authid() or crs.description()), hint)
        grid = {"resolution": job.number("RESOLUTION"), "crs": epsg(crs) if crs is not None else None}
        if has_extent:
            box = self.parameterAsExtent(job.values, "EXTENT", job.context, crs)
            edges = (box.xMinimum(), box.yMinimum(), box.xMaximum(), box.yMaximum())
            grid["bounds"] = ",".join(f"{edge:.12g}" for edge in edges)
            grid["resolution"] = grid["resolution"] or round_size(max(box.width(), box.height()) / _CELLS)
        return grid


class CredibleRegions(base.LocatorAlgorithm):
    """Predictions -> the smallest regions that hold given probabilities.

    Writes for each image the smallest regions that hold given probabilities, as polygons (EPSG:4326, split at ±180°)
    with the probability inside and the area in km². Large levels are drawn below small ones.
    """

    NAME = tr("Credible regions")
    GROUP = base.MAPS
    TAGS = ("contour", "confidence", "polygon")

    def parameters(self):
        return [
            base.predictions_in(),
            base.image_ids(),
            base.text_in("LEVELS", tr("Credible levels (0..1, with commas)"), default="0.5,0.9", optional=False),
            base.vector_out("OUTPUT", tr("Credible regions")),
        ]

    def work(self, job):
        out, store, wanted = job.target("OUTPUT"), job.file("PREDICTIONS"), job.lines("IMAGE_IDS")
        levels = job.text("LEVELS")
        job.ask("regions", predictions=store, out=out, levels=levels, image_ids=wanted or None, overwrite=True)
        Place(stem(store)).load(job.context, out, self.NAME, 2)
        return {"OUTPUT": out}


class ZoneProbabilities(base.LocatorAlgorithm):
    """Predictions and polygons -> the probability of every polygon for every image.

    Gives every polygon of a layer (countries, districts, an area of interest; any CRS) its probability for every
    image. The points get the names and probabilities of their most probable zones; the layer <i>zones</i> of the same
    file has the number of images expected in each polygon; the table has one row per image and zone. Zones may
    overlap: each counts by itself.
    """

    NAME = tr("Zone probabilities")
    GROUP = base.MAPS
    TAGS = ("country", "district", "polygon", "statistics")

    def parameters(self):
        return [
            base.predictions_in(),
            base.image_ids(),
            base.layer_in("ZONES", tr("Zones: polygons"), optional=False),
            base.text_in("NAME_FIELD", tr("Field of the names (empty: name)")),
            base.number(
                "TOP",
                tr("Most probable zones of each image (empty: 3 beside points, all in the table)"),
                whole=True,
                low=1,
            ),
            base.vector_out("OUTPUT", tr("Points with their most probable zones")),
            base.file_out("TABLE", tr("Table"), "CSV (*.csv)", optional=True, wanted=False),
        ]

    def work(self, job):
        store, out, table = job.file("PREDICTIONS"), job.target("OUTPUT"), job.target("TABLE")
        zones = job.layer_file("ZONES")
        common = {"predictions": store, "polygons": zones, "name_column": job.text("NAME_FIELD"), "overwrite": True}
        common["image_ids"] = job.lines("IMAGE_IDS") or None
        outs = [path for path in (out, table) if path]
        for step in job.steps(len(outs)):
            job.ask("zones", out=outs[step], top=job.whole("TOP"), **common)
        place = Place(stem(store))
        place.load(job.context, out, tr("Most probable zones"), 1)
        if out.endswith(".gpkg"):
            layer = f"{out}|layername=zones"
            load_too(job, out, layer, "OUTPUT")
            place.load(job.context, layer, tr("Images expected in zones"), 3)
        return {"OUTPUT": out, **({"TABLE": table} if table else {})}


class FusePredictions(base.LocatorAlgorithm):
    """Several images of one place, an area, a prior -> one density.

    Combines what is known: images of one place (a column whose equal values are one place, <i>all</i>, or
    <i>image_id</i> for every image by itself), an area outside which nothing is possible, and a raster of prior
    density per area. The training prior is counted once. Photos of one scene are not independent: the factor 0..1
    tempers the product (0: copies). The result is a predictions file as any other.
    """

    NAME = tr("Fuse predictions")
    GROUP = base.MAPS
    TAGS = ("evidence", "prior", "area of interest", "bayes")

    def parameters(self):
        return [
            base.predictions_in(),
            base.image_ids(),
            base.text_in("BY", tr("One place is: all, image_id, or a column"), default="all", optional=False),
            base.layer_in("AREA", tr("Area of interest: only there")),
            core.QgsProcessingParameterRasterLayer("PRIOR", tr("Prior: density per area (a file)"), None, True),
            base.choice(
                "PRIOR_MODE", tr("The prior replaces that of training, or multiplies it"), ("replace", "multiply")
            ),
            base.number("INDEPENDENCE", tr("Independence of the images (0..1)"), default=1.0, low=0.0, high=1.0),
            base.advanced(base.number("MAX_MASS_ERROR", tr("Most error of any region's probability"), default=0.005)),
            base.text_in("LEVELS", tr("Credible levels of the regions (0..1, with commas)"), default="0.5,0.9"),
            base.file_out("OUTPUT", tr("Fused predictions"), base.PREDICTIONS_FILTER),
            base.vector_out("REGIONS", tr("Credible regions"), optional=True),
        ]

    def work(self, job):
        out, regions, levels = job.target("OUTPUT"), job.target("REGIONS"), job.text("LEVELS")
        prior = self.parameterAsRasterLayer(job.values, "PRIOR", job.context) if job.given("PRIOR") else None
        params = {
            "predictions": job.file("PREDICTIONS"),
            "out": out,
            "by": job.text("BY"),
            "image_ids": job.lines("IMAGE_IDS") or None,
            "area": job.layer_file("AREA"),
            "prior": raster_file(prior) if prior is not None else None,
            "prior_mode": job.choice("PRIOR_MODE"),
            "independence": job.number("INDEPENDENCE"),
            "max_mass_error": job.number("MAX_MASS_ERROR"),
            "overwrite": True,
        }
        result = {"OUTPUT": out}
        for step in job.steps(1 + bool(regions and levels)):
            if step == 0:
                job.ask("fuse", **params)
            else:
                job.ask("regions", predictions=out, out=regions, levels=levels, overwrite=True)
                result["REGIONS"] = regions
                Place(stem(out)).load(job.context, regions, tr("Credible regions, fused"), 2)
            if job.cancelled:
                break
        return result


def all_images(job, store):
    """List the images that have a prediction: the regions know them."""
    path = core.QgsProcessingUtils.generateTempFilename("images.gpkg")
    job.ask("regions", predictions=store, out=path, levels="0.5", overwrite=True)
    layer = core.QgsVectorLayer(path, "images", "ogr")
    return list(dict.fromkeys(str(feature["image_id"]) for feature in layer.getFeatures()))


def load_too(job, main, path, output):
    """Have QGIS load another layer of the same run, if it will load the main one."""
    if job.context.willLoadLayerOnCompletion(main):
        project = job.context.layerToLoadOnCompletionDetails(main).project
        details = core.QgsProcessingContext.LayerDetails(output, project, output)
        job.context.addLayerToLoadOnCompletion(path, details)


def epsg(crs):
    """Give "EPSG:n", or '' for a CRS of another authority."""
    name = crs.authid() if crs is not None else ""
    return name if re.match(r"EPSG:\d+$", name) else ""


def round_size(size):
    """Give 1, 2 or 5 times a power of ten, at least as large."""
    power = 10.0 ** math.floor(math.log10(size)) if size > 0 else 1.0
    return next(step * power for step in (1, 2, 5, 10) if step * power >= size * (1 - 1e-9))
