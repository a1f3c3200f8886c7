# SPDX-License-Identifier: GPL-2.0-or-later
"""Algorithms that check: predictions against the truth, and the environment itself."""

from __future__ import annotations

import math

from qgis import core
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtGui import QDesktopServices

from .. import diagnostics, settings
from ..environment import RECIPE
from ..layers import Place, stem
from ..protocol import WorkerFailed
from ..texts import tr
from . import base
from .learning import TABLE_FILTER

_ENDS = ("true_longitude", "true_latitude", "longitude", "latitude")


class Evaluate(base.LocatorAlgorithm):
    """Predictions and the truth -> a report, and lines from the truth to what was predicted.

    Compares predictions with the true places: the share within 1, 25, 200, 750 and 2500 km, the median error (km), the
    negative log-likelihood, whether the credible regions hold what they promise; each with an interval. The truth is
    what came with the images, or a table with image_id (or path), longitude, latitude. Error lines need the points
    layer, with true_longitude and true_latitude: great circles, split at ±180°.
    """

    NAME = tr("Evaluate predictions")
    GROUP = base.CHECK
    TAGS = ("accuracy", "error", "coverage", "report")

    def __init__(self):
        super().__init__()
        self._page = None

    def parameters(self):
        lines = core.QgsProcessing.SourceType.TypeVectorLine
        return [
            base.predictions_in(),
            base.file_in(
                "TRUTH", tr("Table of true places (empty: those of the images)"), filters=TABLE_FILTER, optional=True
            ),
            base.text_in("BY", tr("Column to group by")),
            base.layer_in("POINTS", tr("Predicted points, for the error lines"), kind=base.VECTOR),
            base.flag("OPEN", tr("Open the report in the browser"), default=True),
            base.file_out("REPORT", tr("Report"), "HTML (*.html)"),
            base.file_out("TABLE", tr("Table of the figures"), "CSV (*.csv)", optional=True, wanted=False),
            core.QgsProcessingParameterFeatureSink("ERROR_LINES", tr("Error lines"), lines, None, True, False),
            core.QgsProcessingOutputHtml("PAGE", tr("Report page")),
        ]

    def work(self, job):
        page, table = job.target("REPORT"), job.target("TABLE")
        outs = [path for path in (page, table) if path]
        common = {"predictions": job.file("PREDICTIONS"), "truth": job.file("TRUTH"), "by": job.text("BY")}
        for step in job.steps(len(outs)):
            job.ask("evaluate", out=outs[step], overwrite=True, **common)
            if job.cancelled:
                return {}
        result = {"REPORT": page, "PAGE": page, **({"TABLE": table} if table else {})}
        if job.given("ERROR_LINES"):
            result["ERROR_LINES"] = self._lines(job)
        self._page = page if job.flag("OPEN") else None
        return result

    def postProcessAlgorithm(self, context, feedback):
        from qgis.utils import iface  # None without a window; and only here are we in QGIS's main thread

        if self._page and iface is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(self._page))
        return {}

    def _lines(self, job):
        points = self.parameterAsSource(job.values, "POINTS", job.context)
        names = points.fields().names() if points is not None else []
        missing = [name for name in _ENDS if name not in names]
        if missing:
            hint = tr("Give the points that were predicted from images of known place.")
            raise WorkerFailed(tr("error lines need points with the columns {}").format(", ".join(missing)), hint)
        crs = core.QgsCoordinateReferenceSystem("EPSG:4326")
        kind = core.QgsWkbTypes.Type.MultiLineString
        sink, path = self.parameterAsSink(job.values, "ERROR_LINES", job.context, points.fields(), kind, crs)
        if sink is None:
            raise WorkerFailed(tr("the error lines cannot be written"), str(job.values["ERROR_LINES"]))
        sphere = core.QgsDistanceArea()
        sphere.setSourceCrs(crs, job.context.transformContext())
        sphere.setEllipsoid("PARAMETER:6371008.8:6371008.8")
        for row in points.getFeatures():
            ends = [row[name] for name in _ENDS]
            if any(end in (None, core.NULL) or not math.isfinite(float(end)) for end in ends):
                continue
            first, last = core.QgsPointXY(*map(float, ends[:2])), core.QgsPointXY(*map(float, ends[2:]))
            line = core.QgsFeature(points.fields())
            line.setAttributes(row.attributes())
            # the shortest way, with a point every 100 km, in two parts where it crosses ±180°
            parts = sphere.geodesicLine(first, last, 100_000.0, True)
            line.setGeometry(core.QgsGeometry.fromMultiPolylineXY(parts))
            sink.addFeature(line)
        del sink  # written when it goes
        Place(stem(job.file("PREDICTIONS"))).load(job.context, path, tr("Errors, from the true place"), 0)
        return path


class CheckEnvironment(base.LocatorAlgorithm):
    """Which Python is used, what it has, what is missing, and the one line that mends it.

    Says which Python is used and where it was found, the versions of geo_mvmf, PyTorch, GDAL and PROJ in it, and the
    devices to compute on; what is missing, and the one line that mends it. Nothing is installed from here. The
    diagnostics, without the names of home folders, are for reports of faults.
    """

    NAME = tr("Check environment")
    GROUP = base.CHECK
    TAGS = ("setup", "install", "diagnostics", "python")

    def canExecute(self):
        return True, ""  # that nothing is set up is what this algorithm is for

    def parameters(self):
        return [
            base.file_out("OUTPUT", tr("Diagnostics (Markdown)"), "Markdown (*.md)", optional=True, wanted=False),
            core.QgsProcessingOutputString("DIAGNOSTICS", tr("Diagnostics")),
            core.QgsProcessingOutputString("PYTHON", tr("Interpreter")),
        ]

    def work(self, job):
        settings.last_facts.clear()
        here = settings.found()
        if here.problem:
            raise WorkerFailed(here.problem, tr("In a terminal: {} - then run this again.").format(RECIPE))
        job.feedback.pushInfo(tr("Python: {} (by {})").format(here.python, here.origin))
        facts = job.ask("env").get("facts")
        settings.last_facts.update(facts if isinstance(facts, dict) else {})
        for name, value in settings.last_facts.items():
            job.feedback.pushInfo(f"{name}: {value}")
            if str(value).startswith(("not usable", "missing", "could not")) and name in ("torch", "gdal", "proj"):
                job.feedback.pushWarning(
                    tr("{} does not work there. In a terminal: {} --reinstall").format(name, RECIPE)
                )
        text = diagnostics.markdown(settings.facts())
        job.feedback.pushInfo(text)
        result = {"DIAGNOSTICS": text, "PYTHON": here.python}
        path = job.target("OUTPUT")
        if path:
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            result["OUTPUT"] = path
        return result
