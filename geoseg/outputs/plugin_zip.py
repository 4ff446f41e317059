"""The QGIS plugin as a ZIP file, which is how QGIS installs one."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from geoseg.outputs.staging import check_place, staged, writing

# Of the plugin within QGIS; not that of the package, which QGIS's own Python might know too.
FOLDER = "geoseg_qgis"
_SOURCE = Path(__file__).parents[1] / "qgis_plugin"
_OTHERS = ("metadata.txt", "icon.svg", "LICENSE")
# The earliest that the format knows: the bytes depend on what is in it alone.
_TIME = (1980, 1, 1, 0, 0, 0)


def write_plugin(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write the plugin to ``path``.

    Raises:
        OutputError: the file exists and ``overwrite`` is False, or it cannot be written.
    """
    check_place(path, overwrite)
    files = sorted([*_SOURCE.glob("*.py"), *(_SOURCE / name for name in _OTHERS)])
    with staged(path) as temporary, writing(path), zipfile.ZipFile(temporary, "w") as archive:
        for file in files:
            entry = zipfile.ZipInfo(f"{FOLDER}/{file.name}", _TIME)
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
