"""Runs inside QGIS's own Python: loads the plugin, runs algorithms, tells what was seen as JSON.

Usage: python3 plugin_probe.py REQUEST.json SEEN.json; the request names what to do and with what.
Importing it needs no QGIS, because the test runner imports every file of the tests.
"""

import json
import os
import pathlib
import sys
import time


def start():
    from qgis.core import QgsApplication

    application = QgsApplication([], True)
    application.initQgis()
    from processing.core.Processing import Processing

    Processing.initialize()
    from mvmf_locator import classFactory

    plugin = classFactory(None)
    plugin.initProcessing()
    return application, plugin


def make_feedback(cancel_after=None, cancel_on=None):
    from qgis.core import QgsProcessingFeedback

    class Feedback(QgsProcessingFeedback):
        """Keeps what it is told, by the way that it is told."""

        def __init__(self):
            super().__init__(False)
            self.said = []
            self.begun = time.monotonic()

        def isCanceled(self):  # noqa: N802
            late = cancel_after is not None and time.monotonic() - self.begun > cancel_after
            return late or super().isCanceled()

    def recorder(name):
        def record(self, text, *_):
            self.said.append([name, text])
            if text == cancel_on:
                self.cancel()  # as the button does: feedbacks of single steps hear of it, too

        return record

    for name in ("pushInfo", "pushWarning", "pushDebugInfo", "pushCommandInfo", "pushConsoleInfo", "setProgressText"):
        setattr(Feedback, name, recorder(name))
    Feedback.reportError = lambda self, error, fatalError=False: self.said.append(["reportError", error])
    return Feedback()


def run(request):
    """Run algorithms one after another, on the main thread or as QGIS's window does, as a task."""
    from qgis.core import QgsApplication, QgsProcessingContext, QgsProcessingException, QgsProject

    seen = []
    for step in request["steps"]:
        algorithm = QgsApplication.processingRegistry().createAlgorithmById(step["algorithm"])
        context, feedback = QgsProcessingContext(), make_feedback(step.get("cancel_after"), step.get("cancel_on"))
        context.setProject(QgsProject.instance())
        wish(context, step)
        began = time.monotonic()
        answer = {"results": {}, "error": "", "able": list(algorithm.canExecute())}
        ok, problem = algorithm.checkParameterValues(step["parameters"], context)
        if not ok:
            answer["error"] = problem
        else:
            try:
                results, _ = algorithm.run(step["parameters"], context, feedback, {}, False)
                answer["results"] = {
                    name: value for name, value in results.items() if isinstance(value, (str, int, float, list))
                }
            except QgsProcessingException as error:
                answer["error"] = str(error)
        if step.get("load"):
            answer["layers"] = load(algorithm, context, feedback)
        seen.append(dict(answer, said=feedback.said, seconds=time.monotonic() - began))
    return seen


def run_each(request):
    """Run each step with an interpreter of its own, which the setting names."""
    from mvmf_locator import settings

    seen = []
    for step in request["steps"]:
        settings.put("python", step["python"])
        seen += run({"steps": [step]})
    settings.put("python", "")
    return seen


def run_task(request):
    """Run one algorithm in the background while the window's own loop goes on."""
    from qgis.core import QgsApplication, QgsProcessingAlgRunnerTask, QgsProcessingContext

    step = request["steps"][0]
    algorithm = QgsApplication.processingRegistry().algorithmById(step["algorithm"])
    context, feedback, ended = QgsProcessingContext(), make_feedback(), []
    task = QgsProcessingAlgRunnerTask(algorithm, step["parameters"], context, feedback)
    task.executed.connect(
        lambda ok, results: ended.append([ok, {k: v for k, v in results.items() if isinstance(v, str)}])
    )
    QgsApplication.taskManager().addTask(task)
    turns, deadline = 0, time.monotonic() + 60
    while not ended and time.monotonic() < deadline:
        QgsApplication.processEvents()
        time.sleep(0.005)
        turns += 1
    return {"ended": ended, "turns": turns, "said": feedback.said}


def wish(context, step):
    """Ask for results to be loaded, as the dialog of an algorithm does."""
    from qgis.core import QgsProcessingContext, QgsProject

    for name in step.get("load", ()):
        details = QgsProcessingContext.LayerDetails(name, QgsProject.instance(), name)
        context.addLayerToLoadOnCompletion(step["parameters"][name], details)


def load(algorithm, context, feedback):
    """Load the results as QGIS's window does, and describe the tree from top to bottom."""
    from processing.gui.Postprocessing import handleAlgorithmResults
    from qgis.core import QgsLayerTreeRegistryBridge, QgsProject, QgsVectorLayer

    bridge = QgsProject.instance().layerTreeRegistryBridge()

    def follow(node, *_):
        """Put new layers on top of the group of the current layer, as a window does."""
        if node.name().startswith("Geo MvMF / "):
            bridge.setLayerInsertionPoint(QgsLayerTreeRegistryBridge.InsertionPoint(node, 0))

    QgsProject.instance().layerTreeRoot().addedChildren.connect(follow)
    handleAlgorithmResults(algorithm, context, feedback, False)
    found = []
    for node in QgsProject.instance().layerTreeRoot().findLayers():
        layer = node.layer()
        about = {
            "name": layer.name(),
            "group": node.parent().name(),
            "source": layer.source(),
            "valid": layer.isValid(),
        }
        about["abstract"] = layer.metadata().abstract()
        about["title"] = layer.metadata().title()
        about["licences"] = layer.metadata().licenses()
        about["renderer"] = type(layer.renderer()).__name__
        about["tip"] = layer.mapTipTemplate() if hasattr(layer, "mapTipTemplate") else ""
        if isinstance(layer, QgsVectorLayer):
            about["count"] = layer.featureCount()
            about["temporal"] = layer.temporalProperties().isActive()
            about["widgets"] = {
                f.name(): [f.editorWidgetSetup().type(), f.editorWidgetSetup().config()] for f in layer.fields()
            }
            about["aliases"] = {f.name(): f.alias() for f in layer.fields() if f.alias()}
        found.append(about)
    return found


def count_leftovers():
    from qgis.core import QgsApplication
    from qgis.PyQt.QtCore import QProcess, QThread

    providers = [each.id() for each in QgsApplication.processingRegistry().providers()]
    return [
        providers.count("geomvmf"),
        len(QgsApplication.instance().findChildren(QProcess)),
        QThread.idealThreadCount(),
    ]


def chain(request):
    """Build a model as the designer does - predict, then density and zones of its predictions - and run it."""
    from qgis.core import (
        QgsProcessingContext,
        QgsProcessingException,
        QgsProcessingModelAlgorithm,
        QgsProcessingModelChildAlgorithm,
        QgsProcessingModelChildParameterSource,
        QgsProcessingModelOutput,
    )

    source = QgsProcessingModelChildParameterSource
    model = QgsProcessingModelAlgorithm("chain", "tests")
    predictions = [source.fromChildOutput("predict", "PREDICTIONS")]
    children = {
        "predict": ("predictphotos", {"FOLDER": request["folder"], "BUNDLE": request["bundle"]}, None),
        "density": ("densityraster", {"PREDICTIONS": predictions, "RESOLUTION": 1.0}, ("OUTPUT", "density")),
        "zones": ("zoneprobabilities", {"PREDICTIONS": predictions, "ZONES": request["zones"]}, ("OUTPUT", "zones")),
    }
    for name, (algorithm, parameters, output) in children.items():
        child = QgsProcessingModelChildAlgorithm(f"geomvmf:{algorithm}")
        child.setChildId(name)
        for key, value in parameters.items():
            child.addParameterSources(key, value if isinstance(value, list) else [source.fromStaticValue(value)])
        if output:
            wanted = QgsProcessingModelOutput(output[1], output[1])
            wanted.setChildId(name)
            wanted.setChildOutputName(output[0])
            child.setModelOutputs({output[1]: wanted})
        model.addChildAlgorithm(child)
    model.updateDestinationParameters()
    outs = {
        f"{name}:{name}": f"{request['out']}/{name}.{kind}" for name, kind in (("density", "tif"), ("zones", "gpkg"))
    }
    feedback = make_feedback()
    try:
        results, _ = model.create().run(outs, QgsProcessingContext(), feedback, {}, False)
    except QgsProcessingException as error:
        return {"error": str(error), "said": feedback.said}
    return {"error": "", "results": results, "said": feedback.said}


def reload(request):
    """Load and unload a hundred times, with a window that only counts."""
    from mvmf_locator import classFactory

    class Window:
        def __init__(self):
            self.pages = []

        def registerOptionsWidgetFactory(self, factory):  # noqa: N802
            self.pages.append(factory)

        def unregisterOptionsWidgetFactory(self, factory):  # noqa: N802
            self.pages.remove(factory)

    window, seen = Window(), []
    for _ in range(request["times"]):
        plugin = classFactory(window)
        plugin.initGui()
        plugin.initGui()  # twice does not add twice
        during = [count_leftovers()[0], len(window.pages)]
        plugin.unload()
        plugin.unload()
        seen.append([*during, count_leftovers()[0], len(window.pages)])
    return seen


def options(request):
    """Open the page of options, write into it, and keep what was written."""
    from mvmf_locator import settings
    from mvmf_locator.options import OptionsFactory

    page = OptionsFactory().createWidget(None)
    page.python.setFilePath(request["python"])
    page.device.setCurrentText("cuda:1")
    page.apply()
    shown = page.state.text(), int(page.state.textFormat())
    kept = {name: settings.get(name) for name in ("python", "bundles", "device")}
    settings.put("python", "")
    return {"shown": shown, "kept": kept}


def registry(request):
    """Describe every algorithm."""
    from qgis.core import QgsApplication

    del request
    provider = QgsApplication.processingRegistry().providerById("geomvmf")
    seen = {}
    for algorithm in provider.algorithms():
        seen[algorithm.name()] = {
            "name": algorithm.displayName(),
            "group": algorithm.group(),
            "help": algorithm.shortHelpString(),
            "tags": algorithm.tags(),
            "icon": not algorithm.icon().isNull(),
            "able": list(algorithm.canExecute()),
            "parameters": {p.name(): p.description() for p in algorithm.parameterDefinitions()},
            "outputs": [output.name() for output in algorithm.outputDefinitions()],
        }
    return {
        "algorithms": seen,
        "memory": provider.supportsNonFileBasedOutput(),
        "vector": provider.supportedOutputVectorLayerExtensions(),
        "raster": provider.supportedOutputRasterLayerExtensions(),
        "warning": provider.warningMessage(),
    }


def translate(request):
    """Install a translation that marks its texts, and say what modules without QGIS say then."""
    from mvmf_locator import environment, protocol
    from qgis.PyQt.QtCore import QCoreApplication, QTranslator

    class Marking(QTranslator):
        def translate(self, context, text, *_):
            return f"«{text}»" if context == "mvmf_locator" else ""

        def isEmpty(self):  # noqa: N802
            return False

    del request
    translator = Marking()
    QCoreApplication.installTranslator(translator)
    talk = protocol.Conversation()
    try:
        talk.finish(3, crashed=False, stderr="boom")
    except protocol.WorkerFailed as error:
        return [environment.find_python("/no", {}).problem, error.message, error.hint]


def table(request):
    """Make a layer of one photo with dates and times, and give the table made of it, and its root."""
    from mvmf_locator import image_tables
    from qgis.core import QgsFeature, QgsProcessingContext, QgsVectorLayer
    from qgis.PyQt.QtCore import QDate, QDateTime, Qt, QTime

    day, time_of_day = QDate(2026, 1, 2), QTime(3, 4, 5)
    utc = QDateTime(day, time_of_day, Qt.TimeSpec.UTC)
    del request
    layer = QgsVectorLayer(
        "Point?field=photo:string&field=day:date&field=at:time&field=local:datetime&field=utc:datetime&field=no:date",
        "photos",
        "memory",
    )
    feature = QgsFeature(layer.fields())
    feature.setAttributes(["sub/a.jpg", day, time_of_day, QDateTime(day, time_of_day), utc, None])
    layer.dataProvider().addFeatures([feature])
    path, root = image_tables.table_of_layer(layer, "photo", "/photos", QgsProcessingContext(), make_feedback())
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))["features"], root


DOINGS = {
    "translate": translate,
    "run": run,
    "run_each": run_each,
    "task": run_task,
    "chain": chain,
    "reload": reload,
    "options": options,
    "registry": registry,
    "table": table,
}


def main():
    request = json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8"))
    started = start()
    os.environ.update(request.get("environment", {}))
    seen = DOINGS[request["do"]](request)
    pathlib.Path(sys.argv[2]).write_text(json.dumps(seen, default=str), encoding="utf-8")
    sys.stdout.flush()
    del started
    os._exit(0)  # QGIS 3.22 may crash while it takes itself apart without a window


if __name__ == "__main__":
    main()
