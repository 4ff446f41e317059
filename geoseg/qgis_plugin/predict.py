"""``geoseg predict`` as an algorithm."""

from __future__ import annotations

from typing import Any, Dict

from qgis.core import (
    QgsProcessing,
    QgsProcessingParameterFile,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterVectorLayer,
)

from .algorithm import GeosegAlgorithm
from .options import EXTRA, RUN, SHAPES

# Of a run over a scene, by what they take of it.
SCENE_STAGES = (
    ("preparing", 3),
    ("overview", 5),
    ("candidates", 15),
    ("segmenting", 60),
    ("polygons", 12),
    ("writing labels", 3),
    ("writing confidence", 2),
    ("writing uncertainty", 2),
)
SCENE_OUTPUTS = {"LABELS": "--labels", "CONFIDENCE": "--confidence", "UNCERTAINTY": "--uncertainty"}


class SceneAlgorithm(GeosegAlgorithm):
    """A run over a scene: polygons, and rasters of labels, confidence and uncertainty if asked for."""

    def add_scene(self) -> None:
        """Add the scene."""
        self.addParameter(QgsProcessingParameterRasterLayer("SCENE", "Scene"))

    def add_rest(self) -> None:
        """Add the area, the options and the outputs."""
        self.addParameter(
            QgsProcessingParameterVectorLayer(
                "AOI", "Only inside these polygons", [QgsProcessing.TypeVectorPolygon], None, True
            )
        )
        self.add_options()
        self.add_polygons("OUTPUT", "Polygons")
        self.add_raster("LABELS", "Labels")
        self.add_raster("CONFIDENCE", "Confidence")
        self.add_raster("UNCERTAINTY", "Uncertainty")

    def run_scene(self, more: Any, parameters: Any, context: Any, feedback: Any) -> Dict[str, str]:
        """Run the command with ``more`` options; returns the outputs, none if it was cancelled."""
        scene = self.raster_in(parameters, "SCENE", context)
        arguments = ["--overwrite", *more, *self.option_arguments(parameters, context)]
        area = self.vector_in(parameters, "AOI", context, feedback)
        if area:
            arguments.append(f"--aoi={area}")
        paths = self.outputs(parameters, ("OUTPUT", *SCENE_OUTPUTS), context)
        arguments += [f"{flag}={paths[name]}" for name, flag in SCENE_OUTPUTS.items() if name in paths]
        done = self.run_geoseg(arguments, [scene, paths["OUTPUT"]], feedback)
        return {} if done is None else paths


class Predict(SceneAlgorithm):
    """A scene through a model."""

    command = "predict"
    title = "Segment a scene with a model"
    description = (
        "Segments a georeferenced raster with a model and writes class polygons, without a seam between tiles. Without "
        "a model it finds buildings, in images of 0.05 to 0.5 m with red, green and blue.\n\n"
        "A run that was stopped goes on where it was when it is started again with the same outputs and settings."
    )
    stages = SCENE_STAGES
    options = (*SHAPES, *RUN, EXTRA)

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Add the parameters."""
        self.add_scene()
        self.addParameter(
            QgsProcessingParameterFile(
                "MODEL",
                "Model (empty: buildings)",
                optional=True,
                fileFilter="Models (*.safetensors *.onnx);;All files (*)",
            )
        )
        self.add_rest()

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> Dict[str, str]:
        """Run the command."""
        model = self.parameterAsString(parameters, "MODEL", context).strip()
        return self.run_scene([f"--model={model}"] if model else [], parameters, context, feedback)
