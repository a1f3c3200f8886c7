# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms that predict: photos, and one raster layer of the project."""

from __future__ import annotations

import os

from qgis import core

from ..image_tables import files_of_folder, table_of_files, table_of_layer
from ..layers import Place
from ..protocol import WorkerFailed
from ..texts import tr
from . import base

_ESTIMATORS = ("component", "mode", "median", "best_within")


class PredictPhotos(base.LocatorAlgorithm):
    """Photos -> points, credible regions, and the file that every further map is made from.

    Predicts where images were taken: a probability density over the Earth for each. Give one of: a folder; files; or a
    layer with a field of paths, such as the table of invalid photos of <i>Import geotagged photos</i>.

    Points: the estimate of each image with the areas (km²) that hold 50 and 90 % of its probability; an image that
    cannot be used keeps its row, without a point, and says why in status and message. Regions: the smallest ones that
    hold the credible levels. Predictions: the file for density rasters, zones and fusing. Claims are places that the
    images are said to be of; they are read after predicting, only to judge them.
    """

    NAME = tr("Predict image locations")
    GROUP = base.PREDICT
    TAGS = ("image", "exif", "geotag", "locate")

    def parameters(self):
        return [
            base.file_in("FOLDER", tr("Folder of images"), folder=True, optional=True),
            base.flag("RECURSIVE", tr("Also folders inside the folder"), default=True),
            core.QgsProcessingParameterMultipleLayers(
                "FILES", tr("Or: image files"), core.QgsProcessing.SourceType.TypeFile, None, True
            ),
            base.layer_in("PHOTO_LAYER", tr("Or: layer with paths of images"), kind=base.VECTOR),
            core.QgsProcessingParameterField(
                "PHOTO_FIELD", tr("Field of the paths (empty: photo)"), None, "PHOTO_LAYER", optional=True
            ),
            *model_parameters(),
            base.choice("CLAIMS", tr("Claimed places, judged after predicting"), ("none", "columns", "exif", "raster")),
            base.layer_in("ZONE_LAYER", tr("Zones, such as countries: polygons to give probabilities")),
            base.text_in("ZONE_NAME", tr("Field of the zones' names (empty: name)")),
            *prediction_outputs(),
            base.vector_out("ZONES", tr("Points with their most probable zones"), optional=True, wanted=False),
            core.QgsProcessingOutputNumber("COUNT", tr("Images")),
            core.QgsProcessingOutputNumber("FAILED", tr("Images without prediction")),
            core.QgsProcessingOutputNumber("MEDIAN_AREA_90", tr("Median area that holds 90 % (km²)")),
        ]

    def work(self, job):
        source, root, title = self._source(job)
        zones, zones_file = job.layer_file("ZONE_LAYER"), job.target("ZONES")
        if zones and not zones_file:
            raise WorkerFailed(tr("there are zones, but no output for them"), tr("Choose where ZONES shall go."))
        return predict(job, source, root, job.choice("CLAIMS"), title, zones=zones, zones_file=zones_file)

    def _source(self, job):
        folder, field = job.file("FOLDER"), job.text("PHOTO_FIELD")
        files = self.parameterAsFileList(job.values, "FILES", job.context) if job.given("FILES") else []
        layer = self.parameterAsSource(job.values, "PHOTO_LAYER", job.context) if job.given("PHOTO_LAYER") else None
        if sum(map(bool, (folder, files, layer is not None))) != 1:
            raise WorkerFailed(tr("give a folder, or files, or a layer of photos: exactly one of them"))
        if folder and job.flag("RECURSIVE"):
            return folder, None, os.path.basename(folder)
        if folder:
            return (*table_of_files(files_of_folder(folder)), os.path.basename(folder))
        if files:
            return (*table_of_files(files), os.path.basename(os.path.dirname(os.path.abspath(files[0]))))
        loaded = self.parameterAsVectorLayer(job.values, "PHOTO_LAYER", job.context)
        path = loaded.source().split("|")[0] if loaded else ""
        base = os.path.dirname(path) if os.path.isfile(path) else core.QgsProject.instance().homePath()
        return (*table_of_layer(layer, field or "photo", base, job.context, job.feedback), layer.sourceName())


class PredictRaster(base.LocatorAlgorithm):
    """A raster layer of the project -> where it shows, and whether it lies where its file says.

    Predicts where a scanned map, an aerial photo or a satellite scene of the project lies, georeferenced or not. The
    layer has to be a file (GeoTIFF, TIFF, JPEG, PNG, WebP), not a service or a virtual raster. Where it is
    georeferenced, the level of its declared place tells how plausible that is: the level of the smallest region that
    reaches it, so 0.3 is well inside and 0.999 outside of the 99.8 % region.
    """

    NAME = tr("Predict location of a raster layer")
    GROUP = base.PREDICT
    TAGS = ("scan", "aerial", "satellite", "georeference", "plausibility")

    def parameters(self):
        return [
            core.QgsProcessingParameterRasterLayer("RASTER", tr("Raster layer (a file)")),
            *model_parameters(),
            *prediction_outputs(),
            core.QgsProcessingOutputNumber("LONGITUDE", tr("Longitude (°)")),
            core.QgsProcessingOutputNumber("LATITUDE", tr("Latitude (°)")),
            core.QgsProcessingOutputNumber("AREA_90", tr("Area that holds 90 % (km²)")),
            core.QgsProcessingOutputNumber("CLAIMED_LEVEL", tr("Credible level of the declared place (0..1)")),
        ]

    def work(self, job):
        layer = self.parameterAsRasterLayer(job.values, "RASTER", job.context)
        path = raster_file(layer)
        claims = "raster" if layer.crs().isValid() else "none"
        result = predict(job, path, None, claims, layer.name())
        points = core.QgsVectorLayer(result.get("POINTS", ""), "points", "ogr")
        row = next(points.getFeatures(), None) if points.isValid() else None
        if row is None or job.cancelled:
            return result
        if row["status"] != "ok":
            raise WorkerFailed(f"{row['status']}: {row['message']}")
        for name in ("LONGITUDE", "LATITUDE", "AREA_90", "CLAIMED_LEVEL"):
            column = "area_90_km2" if name == "AREA_90" else name.lower()
            if column in row.fields().names() and row[column] not in (None, core.NULL):
                result[name] = row[column]
        if "CLAIMED_LEVEL" in result:
            job.feedback.pushInfo(
                tr("The declared place has the credible level {:.4g}.").format(result["CLAIMED_LEVEL"])
            )
        return result


def model_parameters():
    """Describe what every prediction needs: the model, and how its density becomes points and regions."""
    return [
        base.bundle_in(),
        base.choice("ESTIMATOR", tr("Estimator: how a density becomes a point"), _ESTIMATORS),
        base.advanced(base.number("RADIUS_KM", tr("Radius for best_within (km)"), low=0.0)),
        base.text_in("LEVELS", tr("Credible levels of the regions (0..1, with commas)"), default="0.5,0.9"),
        base.device(),
        base.advanced(base.number("BATCH_SIZE", tr("Images at a time"), default=32, low=1, whole=True)),
    ]


def prediction_outputs():
    """Describe what every prediction writes."""
    return [
        base.vector_out("POINTS", tr("Predicted locations")),
        base.vector_out("REGIONS", tr("Credible regions"), optional=True),
        base.file_out(
            "PREDICTIONS", tr("Predictions file (for density rasters, zones, fusing)"), base.PREDICTIONS_FILTER
        ),
    ]


def predict(job, source, root, claims, title, *, zones=None, zones_file=None):
    """Predict into three files at once, so that a cancelled run has its points, too; then make the zones."""
    store, points, levels = job.target("PREDICTIONS"), job.target("POINTS"), job.text("LEVELS")
    regions = job.target("REGIONS") if levels else None
    params = {
        "source": source,
        "bundle": job.bundle(),
        "out": store,
        "points": points,
        "regions": regions,
        "root": root,
        "claims": claims,
        "estimator": job.choice("ESTIMATOR"),
        "radius_km": job.number("RADIUS_KM"),
        "levels": levels if regions else None,
        "device": job.text("DEVICE") or "auto",
        "batch_size": job.whole("BATCH_SIZE"),
    }
    outs, answer = {}, {}
    for step in job.steps(1 + bool(zones)):
        if step == 0:
            answer = job.ask("predict", overwrite=True, **params)
            made = base.outputs_of(answer)
            keys = {"PREDICTIONS": "predictions", "POINTS": "layers", "REGIONS": "regions"}
            outs = {name: made[key] for name, key in keys.items() if key in made}
        else:
            names = job.text("ZONE_NAME")
            job.ask("zones", predictions=store, out=zones_file, polygons=zones, name_column=names, overwrite=True)
            outs["ZONES"] = zones_file
    if job.cancelled and outs:
        job.feedback.pushInfo(tr("{} holds what is done: the same run given again goes on there").format(store))
    place = Place(title)
    place.load(job.context, outs.get("POINTS"), tr("Predicted locations"), 0)
    place.load(job.context, outs.get("ZONES"), tr("Most probable zones"), 1)
    place.load(job.context, outs.get("REGIONS"), tr("Credible regions"), 2)
    return {**outs, **_numbers(job, answer)}


def _numbers(job, result):
    ok, failed = base.count_of(result, "ok") or 0, base.count_of(result, "failed") or 0
    area = base.count_of(result, "median_area_90_km2")
    total = ok + failed
    if failed:
        job.feedback.pushWarning(
            tr("{} of {} images have no prediction: see the columns status and message").format(failed, total)
        )
    return {"COUNT": total, "FAILED": failed, **({} if area is None else {"MEDIAN_AREA_90": area})}


def raster_file(layer):
    """Give the file of a raster layer, or raise WorkerFailed saying what to do with what is none."""
    hint = tr("Save it as GeoTIFF (right-click the layer, Export, Save As) and use that layer.")
    if layer is None:
        raise WorkerFailed(tr("the raster layer cannot be loaded"), hint)
    path = layer.source()
    if layer.providerType() != "gdal" or not os.path.isfile(path):
        raise WorkerFailed(tr("{}: the layer is no file ({})").format(layer.name(), layer.providerType()), hint)
    with open(path, "rb") as file:
        begin = file.read(256).lstrip()
    if path.lower().endswith(".vrt") or begin.startswith(b"<"):
        raise WorkerFailed(tr("{}: the layer is a virtual raster or a service").format(path), hint)
    return os.path.abspath(path)
