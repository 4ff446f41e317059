"""``geoseg evaluate`` as an algorithm."""

from __future__ import annotations

import json
from typing import Any, Dict

from qgis.core import (
    QgsProcessing,
    QgsProcessingOutputNumber,
    QgsProcessingParameterFileDestination,
    QgsProcessingParameterMapLayer,
    QgsProcessingParameterVectorLayer,
    QgsProcessingUtils,
)

from .algorithm import GeosegAlgorithm
from .options import EXTRA, Option

_FIGURES = {
    "MEAN_IOU": ("mean_iou", "Mean IoU"),
    "MEAN_F1": ("mean_f1", "Mean F1"),
    "OVERALL_ACCURACY": ("overall_accuracy", "Overall accuracy"),
    "KAPPA": ("kappa", "Kappa"),
}


class Evaluate(GeosegAlgorithm):
    """A prediction against a reference."""

    command = "evaluate"
    title = "Compare a prediction with a reference"
    description = (
        "Compares label rasters or polygons, in any CRS and on any grid: IoU, F1, precision and recall by class, "
        "kappa, boundaries and objects. The figures are in the log; the page has maps too. Classes meet by name, else "
        "by number."
    )
    stages = (("pixels", 90), ("structure", 10))
    options = (
        Option("ATTRIBUTE", "--class-field", "Attribute of polygons that tells their class", "text", advanced=False),
        Option("CLASS", "--class", "One class for all polygons of the reference", "text", advanced=False),
        Option("RESOLUTION", "--resolution", "Compare at so many metres per pixel", "number"),
        Option("ERODE", "--erode", "Also score without pixels so near to another class (pixels)", "number", 0.0),
        EXTRA,
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Add the parameters."""
        kinds = [QgsProcessing.TypeRaster, QgsProcessing.TypeVectorPolygon]
        self.addParameter(QgsProcessingParameterMapLayer("PREDICTION", "Prediction", None, False, kinds))
        self.addParameter(QgsProcessingParameterMapLayer("REFERENCE", "Reference", None, False, kinds))
        self.addParameter(
            QgsProcessingParameterVectorLayer(
                "AOI", "Only inside these polygons", [QgsProcessing.TypeVectorPolygon], None, True
            )
        )
        self.add_options()
        self.add_raster("ERRORS", "Where the prediction is wrong")
        for name, label, kinds_of_file in (("HTML", "Page", "HTML (*.html)"), ("JSON", "All figures", "JSON (*.json)")):
            self.addParameter(QgsProcessingParameterFileDestination(name, label, kinds_of_file, None, True, False))
        for name, (_, label) in _FIGURES.items():
            self.addOutput(QgsProcessingOutputNumber(name, label))

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> Dict[str, Any]:
        """Run the command."""
        sides = [self.layer_in(parameters, name, context, feedback) for name in ("PREDICTION", "REFERENCE")]
        arguments = ["--overwrite", *self.option_arguments(parameters, context)]
        area = self.vector_in(parameters, "AOI", context, feedback)
        if area:
            arguments.append(f"--aoi={area}")
        paths: Dict[str, Any] = self.outputs(parameters, ("ERRORS",), context)
        if "ERRORS" in paths:
            arguments.append(f"--errors={paths['ERRORS']}")
        for name in ("HTML", "JSON"):
            path = self.parameterAsFileOutput(parameters, name, context)
            if path:
                paths[name] = path
        if "HTML" in paths:
            arguments.append(f"--html={paths['HTML']}")
        figures = paths.get("JSON") or QgsProcessingUtils.generateTempFilename("figures.json")
        done = self.run_geoseg([*arguments, f"--json={figures}"], sides, feedback)
        if done is None:
            return {}
        with open(figures, encoding="utf-8") as file:
            record = json.load(file)
        return {**paths, **{name: record[key] for name, (key, _) in _FIGURES.items()}}
