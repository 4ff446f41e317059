"""Scenes made of arrays, for methods that are fitted to them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

from geoseg.scene import Scene, open_scene
from tests.conftest import write_raster


@pytest.fixture(scope="module")
def scene_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Scene]:
    """Return a function that writes an array (C, H, W) as a GeoTIFF of its own, north up, and opens it."""
    folder, numbers = tmp_path_factory.mktemp("scenes"), count()

    def write(array: np.ndarray, name: str = "scene.tif", **profile: Any) -> Scene:
        own = folder / str(next(numbers))
        own.mkdir()
        return open_scene(write_raster(own / name, array, **profile))

    return write
