"""A scene with coloured blocks and outputs whose classes lie exactly on them, and a browser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine

import geoseg
from geoseg.classes import Classes, LabelClass
from geoseg.outputs.cog import write_confidence_cog, write_label_cog
from tests.conftest import write_raster
from tests.looking.browser import program

HOSTILE = "</script><script>document.title='owned'</script>"
GREY, RED, BLUE = (120, 120, 120), (200, 40, 40), (40, 60, 210)


@dataclass(frozen=True)
class Run:
    """Outputs of one scene: files by what they are, and the classes."""

    folder: Path
    scene: Path
    labels: Path
    confidence: Path
    polygons: Path
    classes: Classes
    values: np.ndarray


def write_run(folder: Path, *, transform: Affine, crs: Any = "EPSG:32645", suffix: str = ".gpkg") -> Run:
    """Write a scene of 240 x 320 pixels with an L of red and a block of blue, and labels of just these.

    The L (class 1, confidence 0.9) lies left of the middle with its foot below, the block (class 7, confidence 0.4)
    above its foot; rows and columns count from the upper left corner.
    """
    values = np.zeros((240, 320), np.uint8)
    values[40:200, 40:90] = 1
    values[160:200, 40:260] = 1
    values[60:120, 180:280] = 7
    values[:10] = 255
    picture = np.empty((3, *values.shape), np.uint8)
    for value, color in ((0, GREY), (255, GREY), (1, RED), (7, BLUE)):
        picture[:, values == value] = np.array(color, np.uint8)[:, None]
    classes = Classes(
        (
            LabelClass(0, "background", "#d9d9d9", background=True),
            LabelClass(1, HOSTILE, "#00c800"),
            LabelClass(7, "Wäldchen & 森", "#ffdc00"),
        )
    )
    place = {"transform": transform, "crs": crs}
    scene = write_raster(folder / "scene.tif", picture, **place)
    stored = np.choose(np.searchsorted([0, 1, 7, 255], values), [800, 900, 400, 65535]).astype(np.uint16)
    write_raster(folder / "values.tif", values, nodata=255, **place)
    write_raster(folder / "stored.tif", stored, nodata=65535, **place)
    write_label_cog(folder / "values.tif", folder / "labels.tif", classes)
    write_confidence_cog(folder / "stored.tif", folder / "confidence.tif")
    for name in ("values.tif", "stored.tif"):
        (folder / name).unlink()
    polygons = folder / f"map{suffix}"
    geoseg.vectorize(folder / "labels.tif", polygons, confidence=str(folder / "confidence.tif"))
    return Run(folder, scene, folder / "labels.tif", folder / "confidence.tif", polygons, classes, values)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Return a function that writes a run into a folder of its own, see :func:`write_run`."""

    def make(**options: Any) -> Run:
        return write_run(tmp_path_factory.mktemp("run"), **options)

    return make


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Run]) -> Run:
    """A run on a grid that is turned by 20 degrees, in UTM 45N, with pixels of 0.5 m."""
    return make_run(transform=Affine(0.5, 0, 350_000, 0, -0.5, 3_060_000) * Affine.rotation(20))


@pytest.fixture
def chromium() -> str:
    """The browser; tests that want it are skipped where there is none."""
    found = program()
    if found is None:
        pytest.skip("no Chromium is installed (on Debian and Ubuntu: apt-get install chromium)")
    return found
