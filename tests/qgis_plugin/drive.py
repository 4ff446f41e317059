"""Run an algorithm of the plugin in a headless QGIS, as its toolbox would, and say what came of it.

Runs under the system's ``python3``, to which QGIS belongs.  Reads a JSON record on stdin: ``plugins`` (a folder that
holds the plugin's), ``command`` (its setting, None leaves it empty), ``algorithm``, ``parameters``, ``load`` (the names
of outputs that go into the project) and ``cancel_at`` (a word of the progress, at which it is cancelled; None lets it
run).  Prints a JSON record on stdout.
"""

import json
import os
import sys

from qgis.core import (
    QgsApplication,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProcessingOutputLayerDefinition,
    QgsProject,
)


class Recorder(QgsProcessingFeedback):
    """Keeps what a dialog would show, and presses its button when a word comes up."""

    def __init__(self, cancel_at):
        super().__init__(False)
        self.cancel_at = cancel_at
        self.told = {name: [] for name in ("texts", "infos", "warnings", "errors", "console", "commands")}
        self.percents = []
        self.progressChanged.connect(self.percents.append)

    def setProgressText(self, text):
        self.told["texts"].append(text)
        if self.cancel_at and self.cancel_at in text:
            self.cancel()

    def pushInfo(self, text):
        self.told["infos"].append(text)

    def pushWarning(self, text):
        self.told["warnings"].append(text)

    def reportError(self, text, fatalError=False):
        self.told["errors"].append(text)

    def pushConsoleInfo(self, text):
        self.told["console"].append(text)

    def pushCommandInfo(self, text):
        self.told["commands"].append(text)


def legend(layer):
    renderer = layer.renderer()
    if renderer.type() == "categorizedSymbol":
        return [category.label() for category in renderer.categories()]
    if renderer.type() == "paletted":
        return [item.label for item in renderer.classes()]
    return []


def run(record):
    sys.path[:0] = ["/usr/share/qgis/python/plugins", record["plugins"]]
    from processing.core.Processing import Processing
    from processing.core.ProcessingConfig import ProcessingConfig
    from processing.gui.Postprocessing import handleAlgorithmResults

    Processing.initialize()
    import geoseg_qgis

    plugin = geoseg_qgis.classFactory(None)
    plugin.initProcessing()
    registry = QgsApplication.processingRegistry()
    provider = registry.providerById("geoseg")
    said = {"algorithms": sorted(each.name() for each in provider.algorithms()), "foreign": "geoseg" in sys.modules}
    said["outputs"] = provider.supportedOutputVectorLayerExtensions()
    if record["command"] is not None:
        ProcessingConfig.settings["GEOSEG_COMMAND"].value = record["command"]
    algorithm = registry.createAlgorithmById("geoseg:" + record["algorithm"])
    said["parameters"] = [each.name() for each in algorithm.parameterDefinitions()]
    if record["parameters"] is not None:
        context = QgsProcessingContext()
        context.setProject(QgsProject.instance())
        feedback = Recorder(record["cancel_at"])
        parameters = dict(record["parameters"])
        for name in record["load"]:
            parameters[name] = QgsProcessingOutputLayerDefinition(parameters[name], context.project())
        accepted, why = algorithm.checkParameterValues(parameters, context)
        # Processing prints what an algorithm raises; the toolbox shows it in red.
        results, done = algorithm.run(parameters, context, feedback) if accepted else ({}, False)
        said.update(done=done, why=why, results=results, percents=[*feedback.percents], **feedback.told)
        if done:
            handleAlgorithmResults(algorithm, context, feedback, parameters=parameters)
        said["layers"] = {
            name: {"valid": each.isValid(), "renderer": each.renderer().type(), "legend": legend(each)}
            for each in QgsProject.instance().mapLayers().values()
            for name in [os.path.basename(each.source().split("|")[0])]
        }
    plugin.unload()
    said["left"] = registry.providerById("geoseg") is not None
    return said


def main():
    record = json.load(sys.stdin)
    application = QgsApplication([], False)
    application.initQgis()
    print(json.dumps(run(record)))
    sys.stdout.flush()
    # Qt's tear-down at the end of the interpreter can crash.
    os._exit(0)


if __name__ == "__main__":
    main()
