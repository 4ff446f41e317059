"""The prior of a run: labels of an earlier stage, on the grid of the model, whatever file and grid they come in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.classes import Classes
from geoseg.engine.burnt import BurntPolygons
from geoseg.engine.class_matching import Matched, Table, match
from geoseg.engine.label_sides import RasterSide, VectorSide, is_vector, open_raster_side, read_vector_side
from geoseg.engine.nearest import OnGrid, Place
from geoseg.errors import LabelsError
from geoseg.grid import Window, mirror, taken
from geoseg.metrics import IGNORED
from geoseg.source import OpenPerThread
from geoseg.vector.labels import RasterBlocks

_BLOCK = 2048


@dataclass(frozen=True)
class Prior(OpenPerThread):
    """Labels of an earlier stage.  Small and picklable: the file is opened on first use, once per thread.

    Attributes:
        path: label raster or vector file.
        grid: the grid they are wanted on.
        classes: what they mean, in the order of channels.
        scene: what lies under them, for messages.
        attribute: attribute of polygons that tells their class, None for the usual ones.
        one_class: class of all polygons of a file that tells none.
    """

    path: str
    grid: GeoBox
    classes: Classes
    scene: str
    attribute: str | None = None
    one_class: str | None = None
    _open: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this prior from another."""
        stat = os.stat(self.path) if os.path.isfile(self.path) else None
        return {
            "path": self.path,
            "size": stat.st_size if stat else None,
            "changed_ns": stat.st_mtime_ns if stat else None,
            "attribute": self.attribute,
            "one_class": self.one_class,
        }

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the channel of each pixel's class, 255 where none is known: (H, W); mirrored beyond the grid.

        Raises:
            SceneError: the file cannot be read.
        """
        reader: Callable[[Window], NDArray[np.uint8]] | None = getattr(self._open, "reader", None)
        if reader is None:
            reader = self._open.reader = self._reader()
        inner, rows, cols = mirror(window, Place.of(self.grid).shape)
        found = reader(inner)
        return found if rows is None or cols is None else taken(found, rows, cols)

    def _reader(self) -> Callable[[Window], NDArray[np.uint8]]:
        side = _side(self.path, self.grid, self.scene, self.classes, self.attribute, self.one_class)
        matched = _matched(side.table, self.classes)
        if isinstance(side, RasterSide):
            table = np.full(256, IGNORED, np.uint8)
            for value in side.classes.ids:
                index = matched.reference.get(value)
                table[value] = IGNORED if index is None else index
            blocks = self._open.blocks = RasterBlocks(side.raster, _BLOCK, side.classes).__enter__()
            return OnGrid(side.place, self.grid, lambda window: table[blocks.read(window).labels], IGNORED).read
        indices = [matched.reference.get(key) for key in side.keys]
        values = np.array([IGNORED if index is None else index for index in indices], np.uint8)
        outside = IGNORED if matched.background is None else matched.background
        return BurntPolygons(side.geometry, values, Place.of(self.grid).shape, outside=outside, all_touched=False).read


@dataclass(frozen=True)
class PriorFile:
    """Labels that are to be refined, as the user names them: in any CRS and on any grid.

    Attributes:
        path: label raster or vector file; pixels in no polygon are background.
        attribute: attribute of polygons that tells their class, None for the usual ones.
        one_class: class of all polygons of a file that tells none.
    """

    path: str
    attribute: str | None = None
    one_class: str | None = None

    def on(self, grid: GeoBox, scene: str, classes: Classes | None) -> Prior:
        """Look at the labels once, and return them as a prior on a grid.

        Args:
            grid: the grid of the model.
            scene: what lies under them, for messages.
            classes: what they must mean, in the order of channels; None if the file decides.

        Raises:
            SceneError: the file cannot be read, has no CRS or lies elsewhere.
            LabelsError: classes that are not those of the model, or no class at all.
        """
        name = os.path.abspath(self.path) if os.path.exists(self.path) else self.path
        # A raster that tells no classes is read once to find which there are; workers then know.
        side = _side(name, grid, scene, None, self.attribute, self.one_class)
        if not side.table.entries and classes is None:
            raise LabelsError(
                f"{name} does not tell the class of its polygons: name the attribute with --class-field, or give one "
                "class for all with --class."
            )
        return Prior(name, grid, _matched(side.table, classes).classes, scene, self.attribute, self.one_class)


def _side(
    path: str, grid: GeoBox, scene: str, numbered: Classes | None, attribute: str | None, one_class: str | None
) -> RasterSide | VectorSide:
    if not is_vector(path):
        return open_raster_side(path, numbered=numbered)
    side = read_vector_side(
        path, grid, attribute=attribute, one_class=one_class, class_first=False, fills=True, other=scene
    )
    if side.table.empty:
        raise LabelsError(f"{path} holds no polygon on {scene}: a prior must not be empty.")
    return side


def _matched(table: Table, classes: Classes | None) -> Matched:
    """Return the classes of a file, by those of the model where these are given."""
    return match(table, table, classes=classes, ignore=())
