"""The folder in which geoseg keeps what can be made or fetched again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of downloaded bundles and of work in progress: ``$GEOSEG_CACHE``, or ``~/.cache/geoseg``."""
    given = os.environ.get("GEOSEG_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "geoseg"
