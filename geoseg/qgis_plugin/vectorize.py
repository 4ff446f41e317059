"""``geoseg vectorize`` as an algorithm."""

from __future__ import annotations

from typing import Any, Dict

from qgis.core import QgsProcessingParameterFile, QgsProcessingParameterRasterLayer

from .algorithm import GeosegAlgorithm
from .options import EXTRA, SHAPES, Option


class Vectorize(GeosegAlgorithm):
    """A class raster into polygons."""

    command = "vectorize"
    title = "Turn a class raster into polygons"
    description = (
        "Turns a raster of classes into polygons that fit together without gaps or overlaps. Names and colours of the "
        "classes come from the raster where it has them, or from a file: lines of value,name,#rrggbb."
    )
    stages = (("polygons", 1),)
    options = (
        Option("BAND", "--band", "Band", "whole", 1, least=1),
        *SHAPES,
        Option("DROP", "--drop", "Class that is not written", "text"),
        Option("WORKERS", "--workers", "Threads to work with", "whole", 1, least=1),
        EXTRA,
    )

    def initAlgorithm(self, configuration: Any = None) -> None:
        """Add the parameters."""
        self.addParameter(QgsProcessingParameterRasterLayer("LABELS", "Class raster"))
        self.addParameter(
            QgsProcessingParameterFile(
                "NAMES", "What the values mean", optional=True, fileFilter="Tables (*.csv *.json);;All files (*)"
            )
        )
        self.addParameter(QgsProcessingParameterRasterLayer("CONFIDENCE", "Confidence of the classes", None, True))
        self.add_options()
        self.add_polygons("OUTPUT", "Polygons")

    def processAlgorithm(self, parameters: Any, context: Any, feedback: Any) -> Dict[str, str]:
        """Run the command."""
        labels = self.raster_in(parameters, "LABELS", context)
        arguments = ["--overwrite", *self.option_arguments(parameters, context)]
        names = self.parameterAsString(parameters, "NAMES", context).strip()
        if names:
            arguments.append(f"--names={names}")
        if parameters.get("CONFIDENCE") not in (None, ""):
            arguments.append(f"--confidence={self.raster_in(parameters, 'CONFIDENCE', context)}")
        paths = self.outputs(parameters, ("OUTPUT",), context)
        done = self.run_geoseg(arguments, [labels, paths["OUTPUT"]], feedback)
        return {} if done is None else paths
