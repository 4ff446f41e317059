"""Scribbles from a vector file: points, lines and polygons, each with a name, laid over the grid of a scene."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geoseg.engine.aoi import footprint
from geoseg.engine.burnt import BurntPolygons
from geoseg.errors import LabelsError, one_line, unknown_name
from geoseg.geodesy import projection
from geoseg.references import refuse_vector_elsewhere
from geoseg.scene import Scene
from geoseg.segmenters.scribbles import MOST_SCRIBBLED, Scribbles

UNMARKED = 255
# Places along a mark that sample tiles may be laid around.
_PLACES = 64


@dataclass(frozen=True)
class ScribbleFile:
    """Scribbles of a file, as a :data:`geoseg.segmenters.scribbles.ScribbleReader`.

    Attributes:
        path: of the vector file.
        field: the attribute that names the marks.
    """

    path: str
    field: str = "class"

    def __call__(self, scene: Scene) -> Scribbles:
        """Return the marks on the grid of ``scene``; every pixel that a mark touches is marked, later ones on top.

        Raises:
            LabelsError: unreadable, no CRS, no such attribute, too many names, or no mark on the scene.
        """
        names, shapes, values = self._read(scene)
        burnt = BurntPolygons(shapes, values, scene.shape, outside=UNMARKED, all_touched=True)
        places = tuple(_places(shapes[values == i], scene.shape) for i in range(len(names)))
        for name, found in zip(names, places, strict=True):
            if not found:
                raise LabelsError(
                    f"{self.path}: no mark of {name!r} is on the scene {scene.path}: add one, or drop it."
                )
        return Scribbles(names, burnt, places)

    def _read(self, scene: Scene) -> tuple[tuple[str, ...], NDArray[np.object_], NDArray[np.uint8]]:
        """Return the names in the order of their first marks, the marks in pixels of ``scene``, and their names."""
        import geopandas

        if "://" not in self.path and not os.path.exists(self.path):
            raise LabelsError(f"{self.path} does not exist: check the path of the scribbles.")
        refuse_vector_elsewhere(self.path)
        try:
            frame = geopandas.read_file(self.path)
        except Exception as error:  # pyogrio raises many kinds; the user needs one sentence
            raise LabelsError(f"{self.path} cannot be read as a vector file ({one_line(error)}).") from error
        if not isinstance(frame, geopandas.GeoDataFrame):
            raise LabelsError(f"{self.path} holds a table without shapes: scribbles are points, lines or polygons.")
        if self.field not in frame.columns:
            known = [str(name) for name in frame.columns if name != frame.geometry.name]
            raise LabelsError(f"{self.path}: {unknown_name('attribute', self.field, known)}")
        if frame.crs is None:
            raise LabelsError(f"{self.path} has no CRS: assign one, so that it can be laid over the scene.")
        frame = frame[~(frame.geometry.isna() | frame.geometry.is_empty | frame[self.field].isna())]
        called = [str(name).strip() for name in frame[self.field]]
        names = tuple(dict.fromkeys(called))
        if not 1 <= len(names) <= MOST_SCRIBBLED:
            raise LabelsError(
                f"{self.path} has {len(names)} names of marks in {self.field!r}: give 1 to {MOST_SCRIBBLED}."
            )
        turn = pyproj.Transformer.from_crs(frame.crs, projection(scene.geobox), always_xy=True)
        shapes = shapely.force_2d(frame.geometry.to_numpy())
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(turn.transform(xy[:, 0], xy[:, 1])))
        if not shapely.intersects(shapes, footprint(scene)).any():
            raise LabelsError(f"{self.path} does not meet the scene {scene.path}: check the CRS of both.")
        inverse = ~scene.geobox.affine
        shapes = shapely.transform(shapes, lambda xy: np.column_stack(inverse * (xy[:, 0], xy[:, 1])))
        return names, shapes, np.array([names.index(name) for name in called], np.uint8)


def _places(shapes: NDArray[np.object_], shape: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return pixels (row, column) inside a grid of ``shape`` that marks lie on, taking turns between the marks."""
    lists = []
    for each in shapes:
        line = each if shapely.get_dimensions(each) < 2 else shapely.point_on_surface(each)
        spread = np.linspace(0.0, 1.0, _PLACES + 2)[1:-1]
        simple = shapely.get_type_id(line) == shapely.GeometryType.LINESTRING
        points = shapely.line_interpolate_point(line, spread, normalized=True) if simple else line
        xy = shapely.get_coordinates(points)
        # The middle first, then both ends: one tile round the middle shows most of a short mark.
        order = np.argsort(np.abs(np.arange(len(xy)) - (len(xy) - 1) / 2), kind="stable")
        lists.append([(int(np.floor(y)), int(np.floor(x))) for x, y in xy[order]])
    turns = [found[i] for i in range(max(map(len, lists), default=0)) for found in lists if i < len(found)]
    inside = (place for place in turns if 0 <= place[0] < shape[0] and 0 <= place[1] < shape[1])
    return tuple(dict.fromkeys(inside))
