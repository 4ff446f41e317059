"""What QGIS loads and unloads."""

from __future__ import annotations

from typing import Optional

from qgis.core import QgsApplication

from .provider import GeosegProvider


class GeosegPlugin:
    """Adds the algorithms to the Processing toolbox, and takes them away."""

    def __init__(self) -> None:
        """Add nothing yet."""
        self.provider: Optional[GeosegProvider] = None

    def initProcessing(self) -> None:
        """Add the algorithms; ``qgis_process`` calls only this."""
        self.provider = GeosegProvider()
        QgsApplication.processingRegistry().addProvider(self.provider)

    def initGui(self) -> None:
        """Add the algorithms; there is nothing else in the windows."""
        self.initProcessing()

    def unload(self) -> None:
        """Take the algorithms away."""
        if self.provider is not None:
            QgsApplication.processingRegistry().removeProvider(self.provider)
            self.provider = None
