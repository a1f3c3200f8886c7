# SPDX-License-Identifier: GPL-2.0-or-later
"""What all algorithms share: from parameters to a request, from a result to outputs, from a failure to a message."""

from __future__ import annotations

import html
import inspect
import os
import sys

from qgis import core

from .. import settings
from ..protocol import WorkerFailed, text_of
from ..runner import WorkerRun
from ..texts import tr

VECTOR = core.QgsProcessing.SourceType.TypeVector
POLYGONS = core.QgsProcessing.SourceType.TypeVectorPolygon
PREDICT, MAPS, MODELS, CHECK = tr("Predict"), tr("Maps of predictions"), tr("Models"), tr("Check")
_MOST = sys.float_info.max
BUNDLE_FILTER = "Bundle (*.safetensors)"
PREDICTIONS_FILTER = "Predictions (*.nc)"


class LocatorAlgorithm(core.QgsProcessingAlgorithm):
    """One algorithm: its docstring is its help, `parameters` what it takes, `work` what it does."""

    NAME = GROUP = ""
    TAGS = ()

    def createInstance(self):
        return type(self)()

    def name(self):
        return type(self).__name__.lower()  # stands in people's models and scripts: no class is renamed

    def displayName(self):
        return self.NAME

    def group(self):
        return self.GROUP

    def groupId(self):
        return self.GROUP.lower().replace(" ", "")

    def icon(self):
        return settings.icon()

    def tags(self):
        return ["geolocation", "photo", "probability", "mvmf", *self.TAGS]

    def shortHelpString(self):
        # lines are joined: QGIS would show each of their ends
        said = [tr(" ".join(part.split())) for part in inspect.getdoc(type(self)).split("\n\n")]
        return "".join(f"<p>{part}</p>" for part in [*said, COMMON_HELP]).replace("->", "→")

    def canExecute(self):
        problem = settings.found().problem
        # shown as rich text, and the problem may name a path
        return not problem, html.escape(problem) and tr("Settings, Options, Geo MvMF: {}").format(html.escape(problem))

    def initAlgorithm(self, configuration=None):
        for parameter in self.parameters():
            (self.addParameter if isinstance(parameter, core.QgsProcessingParameterDefinition) else self.addOutput)(
                parameter
            )

    def processAlgorithm(self, parameters, context, feedback):
        try:
            return self.work(Job(self, parameters, context, feedback))
        except WorkerFailed as error:
            if error.detail:
                feedback.pushDebugInfo(error.detail)
            raise core.QgsProcessingException(str(error)) from error

    def parameters(self):
        """List parameters and outputs."""
        raise NotImplementedError(self.name())

    def work(self, job):
        """Do it and give the outputs; raises WorkerFailed."""
        raise NotImplementedError(self.name())


class Job:
    """One run of an algorithm: reads its parameters, asks the worker."""

    def __init__(self, algorithm, parameters, context, feedback):
        self.algorithm, self.values, self.context = algorithm, parameters, context
        self._all, self.feedback = feedback, feedback
        self.cancelled = False

    def given(self, name):
        """Tell whether a parameter has a value, its own or its default."""
        definition = self.algorithm.parameterDefinition(name)
        value = self.values[name] if name in self.values or definition is None else definition.defaultValue()
        return value is not None and value != core.NULL and value != ""

    def text(self, name):
        """Give a text, or None where there is none."""
        value = self.algorithm.parameterAsString(self.values, name, self.context).strip()
        return value or None

    def number(self, name):
        """Give a number, or None; numbers may come as text."""
        return self.algorithm.parameterAsDouble(self.values, name, self.context) if self.given(name) else None

    def whole(self, name):
        """Give a whole number, or None."""
        return self.algorithm.parameterAsInt(self.values, name, self.context) if self.given(name) else None

    def flag(self, name):
        """Give a truth value."""
        return self.algorithm.parameterAsBoolean(self.values, name, self.context)

    def choice(self, name):
        """Give the word that was chosen."""
        return self.algorithm.parameterAsEnumString(self.values, name, self.context)

    def file(self, name):
        """Give the absolute path of an input, or None."""
        path = self.algorithm.parameterAsFile(self.values, name, self.context).strip()
        return os.path.abspath(path) if path else None

    def bundle(self):
        """Give the path of the bundle; a name alone is one of the default folder's."""
        path = self.algorithm.parameterAsFile(self.values, "BUNDLE", self.context).strip()
        inside = os.path.join(settings.get("bundles"), path)
        if path and os.sep not in path and not os.path.exists(path) and os.path.exists(inside):
            return inside
        return os.path.abspath(path)

    def lines(self, name):
        """Give texts that stand one a line, or have ; between them."""
        text = self.algorithm.parameterAsString(self.values, name, self.context)
        return [part.strip() for part in (text.splitlines() if "\n" in text else text.split(";")) if part.strip()]

    def target(self, name):
        """Give the absolute path that an output shall have, or None where it is not wanted; its folder is made."""
        if not self.given(name):
            return None
        if isinstance(self.algorithm.parameterDefinition(name), core.QgsProcessingParameterFileDestination):
            path = self.algorithm.parameterAsFileOutput(self.values, name, self.context)
        else:
            path = self.algorithm.parameterAsOutputLayer(self.values, name, self.context)
        if not path:
            return None
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        return path

    def layer_file(self, name):
        """Write the features of an input (its filter and selection kept) to a file for the worker; None without."""
        if not self.given(name):
            return None
        return self.algorithm.parameterAsCompatibleSourceLayerPath(
            self.values, name, self.context, [], "gpkg", self.feedback
        )

    def steps(self, number):
        """Share the bar out among several requests; a cancellation ends them."""
        steps = core.QgsProcessingMultiStepFeedback(number, self._all)
        for index in range(number):
            if self._all.isCanceled():
                return
            steps.setCurrentStep(index)
            self.feedback = steps
            yield index

    def ask(self, task, **params):
        """Send one request and give its result; what came before a cancellation is a result, too."""
        here = settings.found()
        if here.problem:
            raise WorkerFailed(here.problem, tr("Point Settings, Options, Geo MvMF at a Python that has geo_mvmf."))
        result = WorkerRun(here.python, self.feedback).run(task, params)
        cancelled = result["event"] == "cancelled"
        self.cancelled = self.cancelled or cancelled
        for name, path in outputs_of(result).items():
            self.feedback.pushInfo(f"{name}: {path}")
        if text_of(result, "message"):
            self.feedback.pushInfo(text_of(result, "message"))
        if not cancelled and not os.path.exists(params.get("out") or "."):
            raise WorkerFailed(tr("{}: the worker says that it wrote this, and it is not there").format(params["out"]))
        return result


def outputs_of(result):
    """Give the files of a result, by their names in the protocol."""
    outputs = result.get("outputs")
    found = outputs.items() if isinstance(outputs, dict) else ()
    return {str(name): path for name, path in found if isinstance(path, str) and path}


def count_of(result, name):
    """Give one of a result's counts, or None."""
    counts = result.get("counts")
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def file_in(name, text, *, extension="", optional=False, folder=False, filters="", default=None):
    """Describe an input that is a file or a folder."""
    behaviour = core.QgsProcessingParameterFile.Behavior
    kind = behaviour.Folder if folder else behaviour.File
    extension = "" if filters else extension
    return core.QgsProcessingParameterFile(name, text, kind, extension, default, optional, filters)


def bundle_in():
    """Describe the input for a trained model; one alone in the default folder is chosen."""
    found = settings.bundles()
    text = tr("Bundle: the trained model (.safetensors)")
    return file_in("BUNDLE", text, filters=BUNDLE_FILTER, default=found[0] if len(found) == 1 else None)


def predictions_in():
    """Describe the input for a predictions file."""
    return file_in("PREDICTIONS", tr("Predictions file (.nc)"), filters=PREDICTIONS_FILTER)


def image_ids():
    """Describe the input for a choice of images."""
    text = tr("Images: identifiers (image_id), one a line or with ; between them (empty: all)")
    return core.QgsProcessingParameterString("IMAGE_IDS", text, "", True, True)


def text_in(name, text, *, default=None, optional=True):
    """Describe an input that is one line of text."""
    return core.QgsProcessingParameterString(name, text, default, False, optional)


def flag(name, text, *, default=False):
    """Describe a switch."""
    return core.QgsProcessingParameterBoolean(name, text, default)


def choice(name, text, words):
    """Describe a choice among words, the first by default; the words themselves are the values, also in scripts."""
    return core.QgsProcessingParameterEnum(name, text, list(words), False, words[0], False, True)


def number(name, text, *, default=None, low=-_MOST, high=_MOST, whole=False):
    """Describe a number; without a default it may be left out."""
    kinds = core.QgsProcessingParameterNumber.Type
    kind = kinds.Integer if whole else kinds.Double
    return core.QgsProcessingParameterNumber(name, text, kind, default, default is None, low, high)


def layer_in(name, text, *, kind=POLYGONS, optional=True):
    """Describe an input that is a vector layer, of polygons if nothing else is said."""
    return core.QgsProcessingParameterFeatureSource(name, text, [kind], None, optional)


def device():
    """Describe the choice of a device."""
    return advanced(
        text_in("DEVICE", tr("Device (auto, cpu, cuda, cuda:N, mps)"), default=settings.get("device") or "auto")
    )


def advanced(parameter):
    """Put a parameter below the fold."""
    parameter.setFlags(parameter.flags() | core.QgsProcessingParameterDefinition.Flag.FlagAdvanced)
    return parameter


def vector_out(name, text, *, optional=False, wanted=True):
    """Describe an output that is a vector layer."""
    any_vector = core.QgsProcessing.SourceType.TypeVectorAnyGeometry
    return core.QgsProcessingParameterVectorDestination(name, text, any_vector, None, optional, wanted)


def raster_out(name, text, *, optional=False, wanted=True):
    """Describe an output that is a raster."""
    return core.QgsProcessingParameterRasterDestination(name, text, None, optional, wanted)


def file_out(name, text, filters, *, optional=False, wanted=True):
    """Describe an output that is a file."""
    return core.QgsProcessingParameterFileDestination(name, text, filters, None, optional, wanted)


COMMON_HELP = tr(
    "Longitude and latitude are in degrees (EPSG:4326), distances in km and areas in km² on a sphere of 6371.0088 km."
    " A prediction is a region, not a proof: read the areas beside the points, and do not point this at people. It"
    " runs in the Python that Settings, Options, Geo MvMF names; Cancel stops it after the image in work, and what was"
    " finished until then is kept."
)
