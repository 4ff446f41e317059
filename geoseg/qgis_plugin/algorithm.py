"""What all algorithms share: the command that they run, their layers in and out, and their errors."""

from __future__ import annotations

import shlex
from typing import Any, ClassVar, Dict, List, Optional, Tuple

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsMapLayerType,
    QgsProcessing,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingLayerPostProcessorInterface,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterVectorDestination,
)

from .command import CommandError, Stages, find_command, run_command
from .options import Option, arguments_of

PROVIDER = "geoseg"
COMMAND_SETTING = "GEOSEG_COMMAND"
# What geoseg reads without a choice of layers; other vector layers are exported first.
_SINGLE_LAYER = ["geojson", "geojsonl", "fgb", "shp", "parquet"]


class _OwnStyle(QgsProcessingLayerPostProcessorInterface):
    """Gives a layer the class names and colours that geoseg wrote with it."""

    def postProcessLayer(self, layer: Any, context: Any, feedback: Any) -> None:
        """Load the style from the layer's file, or from beside it."""
        layer.loadDefaultStyle()
        layer.triggerRepaint()


# By path of the layer.  QGIS owns and deletes each, so one cannot serve two layers, but it does not keep alive the part
# of it that is Python's.
_STYLES: Dict[str, _OwnStyle] = {}


class GeosegAlgorithm(QgsProcessingAlgorithm):
    """A command of geoseg.

    Attributes:
        command: its name.
        title: what the toolbox shows.
        description: what the dialog shows at its side.
        stages: what a run passes through, with what each takes of the whole.
        options: parameters that are plain options of the command line.
    """

    command: ClassVar[str]
    title: ClassVar[str]
    description: ClassVar[str]
    stages: ClassVar[Tuple[Tuple[str, float], ...]]
    options: ClassVar[Tuple[Option, ...]]

    def createInstance(self) -> GeosegAlgorithm:
        """Return a new one, which QGIS runs."""
        return type(self)()

    def name(self) -> str:
        """Return the name after the provider's."""
        return self.command

    def displayName(self) -> str:
        """Return what the toolbox shows."""
        return self.title

    def shortHelpString(self) -> str:
        """Return what the dialog shows at its side."""
        return self.description

    def add_options(self) -> None:
        """Add the parameters of ``options``."""
        for option in self.options:
            self.addParameter(option.parameter())

    def add_polygons(self, name: str, label: str, optional: bool = False) -> None:
        """Add an output of polygons."""
        kind = QgsProcessing.TypeVectorPolygon
        self.addParameter(QgsProcessingParameterVectorDestination(name, label, kind, None, optional, not optional))

    def add_raster(self, name: str, label: str) -> None:
        """Add an output raster that is not written unless it is asked for."""
        self.addParameter(QgsProcessingParameterRasterDestination(name, label, None, True, False))

    def option_arguments(self, parameters: Any, context: Any) -> List[str]:
        """Return the options of the command line."""
        return arguments_of(self.options, self, parameters, context)

    def raster_in(self, parameters: Any, name: str, context: Any) -> str:
        """Return what GDAL calls the raster of a parameter.

        Raises:
            QgsProcessingException: it is none, or none that GDAL reads.
        """
        layer = self.parameterAsRasterLayer(parameters, name, context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, name))
        return self._gdal_name(layer)

    def vector_in(self, parameters: Any, name: str, context: Any, feedback: Any) -> str:
        """Return the path of the features of a parameter, of those selected if only they are asked for; empty without.

        Raises:
            QgsProcessingException: it is no vector layer.
        """
        if parameters.get(name) in (None, ""):
            return ""
        path = self.parameterAsCompatibleSourceLayerPath(parameters, name, context, _SINGLE_LAYER, "gpkg", feedback)
        if not path:
            raise QgsProcessingException(f"{parameters[name]} is no vector layer that can be read: choose another.")
        return str(path)

    def layer_in(self, parameters: Any, name: str, context: Any, feedback: Any) -> str:
        """Return the path of a raster or vector layer.

        Raises:
            QgsProcessingException: it is neither.
        """
        layer = self.parameterAsLayer(parameters, name, context)
        if layer is None:
            raise QgsProcessingException(f"{parameters.get(name)} is no layer that can be read: choose another.")
        if layer.type() == QgsMapLayerType.VectorLayer:
            return self.vector_in(parameters, name, context, feedback)
        return self._gdal_name(layer)

    def outputs(self, parameters: Any, names: Tuple[str, ...], context: Any) -> Dict[str, str]:
        """Return the paths of the outputs that are asked for; QGIS loads them with their styles at the end."""
        paths = {}
        for name in names:
            path = self.parameterAsOutputLayer(parameters, name, context)
            if not path:
                continue
            paths[name] = str(path)
            if context.willLoadLayerOnCompletion(path):
                style = _STYLES[path] = _OwnStyle()
                context.layerToLoadOnCompletionDetails(path).setPostProcessor(style)
        return paths

    def run_geoseg(self, arguments: List[str], files: List[str], feedback: Any) -> Optional[List[str]]:
        """Run the command.

        Args:
            arguments: its options.
            files: its arguments.
            feedback: of the algorithm.

        Returns:
            The lines that it printed; None if it was cancelled.

        Raises:
            QgsProcessingException: it failed, with its sentence.
        """
        try:
            program = find_command(ProcessingConfig.getSetting(COMMAND_SETTING))
            line = [program, self.command, *arguments, "--", *files]
            feedback.pushCommandInfo(shlex.join(line))
            return run_command(line, feedback, Stages(self.stages))
        except CommandError as error:
            raise QgsProcessingException(str(error)) from error

    def _gdal_name(self, layer: Any) -> str:
        if layer.type() != QgsMapLayerType.RasterLayer or layer.providerType() != "gdal":
            raise QgsProcessingException(
                f"{layer.name()} is no raster that GDAL reads: save it as a GeoTIFF, and choose that."
            )
        # QGIS may add options of its own to the name.
        return str(layer.source()).split("|option:")[0]
