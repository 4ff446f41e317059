"""The QGIS plugin: commands of geoseg as algorithms of QGIS's Processing toolbox.

QGIS runs it with a Python of its own, in which there is no geoseg: only the standard library and QGIS are imported
here, by Python 3.9 or newer, and the work is done by the ``geoseg`` command, as another process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .plugin import GeosegPlugin


def classFactory(iface: Any) -> GeosegPlugin:
    """Return the plugin; QGIS calls it by this name.

    Args:
        iface: QGIS's windows, None where there are none.
    """
    from .plugin import GeosegPlugin

    return GeosegPlugin()
