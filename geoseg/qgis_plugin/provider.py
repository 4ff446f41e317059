"""The provider: which algorithms there are, and where the command is that they run."""

from __future__ import annotations

import os
from typing import List

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsProcessingProvider, QgsVectorFileWriter
from qgis.PyQt.QtGui import QIcon

from .algorithm import COMMAND_SETTING, PROVIDER
from .cluster import Cluster
from .evaluate import Evaluate
from .predict import Predict
from .vectorize import Vectorize


class GeosegProvider(QgsProcessingProvider):
    """The algorithms of geoseg."""

    def id(self) -> str:
        """Return what comes before the colon in the names of the algorithms."""
        return PROVIDER

    def name(self) -> str:
        """Return what the toolbox shows."""
        return "geoseg"

    def icon(self) -> QIcon:
        """Return the picture that the toolbox shows."""
        return QIcon(os.path.join(os.path.dirname(__file__), "icon.svg"))

    def load(self) -> bool:
        """Add the setting of the command to Processing's options, and read it."""
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        ProcessingConfig.addSetting(
            Setting(self.name(), COMMAND_SETTING, "The geoseg command (a path; empty: the one on PATH)", "")
        )
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self) -> None:
        """Take the setting away."""
        ProcessingConfig.removeSetting(COMMAND_SETTING)

    def loadAlgorithms(self) -> None:
        """Add the algorithms."""
        for kind in (Predict, Cluster, Vectorize, Evaluate):
            self.addAlgorithm(kind())

    def supportsNonFileBasedOutput(self) -> bool:
        """Say that outputs are files, not tables of a database."""
        return False

    def supportedOutputVectorLayerExtensions(self) -> List[str]:
        """Return the formats of polygons, without those that this QGIS could not open."""
        known = ["gpkg", "geojson", "fgb", "geojsonl"]
        return [*known, "parquet"] if "parquet" in QgsVectorFileWriter.supportedFormatExtensions() else known

    def supportedOutputRasterLayerExtensions(self) -> List[str]:
        """Return the formats of rasters."""
        return ["tif"]
