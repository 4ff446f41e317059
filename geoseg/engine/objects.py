"""Objects of a prediction and of its reference: polygons of one class, matched where they overlap enough."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray

from geoseg.engine.label_sides import RasterSide
from geoseg.engine.nearest import Place
from geoseg.grid import Window
from geoseg.metrics import IGNORED, ObjectCounts
from geoseg.vector.vectorize import vectorize_raster

# Pairs whose intersection is computed at a time.
_PAIRS = 100_000


@dataclass(frozen=True)
class Objects:
    """Polygons with their class.

    Attributes:
        geometry: (N,) valid polygons and multipolygons in pixel coordinates of a grid.
        index: (N,) class indices.
    """

    geometry: NDArray[np.object_]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.geometry)

    @classmethod
    def of(cls, geometry: NDArray[np.object_], index: NDArray[np.uint8], shape: tuple[int, int]) -> Objects:
        """Return the parts inside a grid of ``shape`` of those polygons whose class is not :data:`IGNORED`."""
        kept = index != IGNORED
        geometry, index = geometry[kept], index[kept].astype(np.int64)
        frame = shapely.box(0, 0, shape[1], shape[0])
        beyond = ~shapely.covered_by(geometry, frame)
        if beyond.any():
            geometry = geometry.copy()
            geometry[beyond] = shapely.intersection(geometry[beyond], frame)
        some = shapely.area(geometry) > 0
        return cls(geometry[some], index[some])


def objects_of_raster(side: RasterSide, lookup: NDArray[np.uint8], place: Place) -> Objects:
    """Return the connected regions of equal label of a raster, as it is on its own grid, brought to another.

    Args:
        side: the raster.
        lookup: (256,) class index of each label value; :data:`IGNORED` for values that are no objects.
        place: the grid in whose pixel coordinates the polygons are wanted.

    Raises:
        SceneError: the raster cannot be read.
        OutputError: temporary files cannot be written.
    """
    own = side.place
    back = ~place.affine
    turn = None
    if not own.crs.equals(place.crs, ignore_axis_order=True):
        turn = pyproj.Transformer.from_crs(own.crs, place.crs, always_xy=True)

    def placed(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = xy.T if turn is None else turn.transform(xy[:, 0], xy[:, 1])
        pixels: NDArray[np.float64] = np.column_stack(back * (x, y))
        return np.where(np.isfinite(pixels), pixels, 1e9)

    dropped = [value for value in side.classes.ids if lookup[value] == IGNORED]
    geometry, index = [np.empty(0, object)], [np.empty(0, np.uint8)]
    with tempfile.TemporaryDirectory(prefix="geoseg-") as folder:
        for batch in vectorize_raster(side.raster.path, classes=side.classes, drop=dropped, workdir=Path(folder)):
            geometry.append(shapely.transform(batch.geometry, placed))
            index.append(lookup[batch.class_id])
    return Objects.of(np.concatenate(geometry), np.concatenate(index), place.shape)


class InnerPoints:
    """Which objects lie where both maps have a label: looked up at a point inside of each, block by block."""

    def __init__(self, objects: Objects) -> None:
        points = shapely.point_on_surface(objects.geometry)
        self._row, self._col = (np.floor(get(points)).astype(np.int64) for get in (shapely.get_y, shapely.get_x))
        self._order = np.argsort(self._row, kind="stable")
        self._rows = self._row[self._order]
        self.counted = np.zeros(len(objects), bool)

    def look(self, window: Window, evaluated: NDArray[np.bool_]) -> None:
        """Note the objects whose inner point lies in ``window``, given which of its pixels are evaluated (h, w)."""
        first, last = np.searchsorted(self._rows, [window.row, window.row_stop])
        which = self._order[first:last]
        which = which[(self._col[which] >= window.col) & (self._col[which] < window.col_stop)]
        self.counted[which] = evaluated[self._row[which] - window.row, self._col[which] - window.col]


def match_objects(
    reference: Objects,
    prediction: Objects,
    counted: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    classes: int,
    least_iou: float = 0.5,
) -> tuple[ObjectCounts, NDArray[np.float64]]:
    """Pair objects of one class whose IoU is at least ``least_iou``, best pairs first, each object once.

    Args:
        reference: objects to be found.
        prediction: objects found.
        counted: which of each count; a pair counts if either of it does.
        classes: K.
        least_iou: intersection over union that makes a pair.

    Returns:
        The counts, and the IoU of every pair that counts.
    """
    mine, theirs, iou = _candidates(reference, prediction, least_iou)
    partner = np.full(len(reference), -1)
    taken = np.zeros(len(prediction), bool)
    best = np.zeros(len(reference))
    for pair in np.lexsort((theirs, mine, -iou)):
        i, j = mine[pair], theirs[pair]
        if partner[i] < 0 and not taken[j]:
            partner[i], taken[j], best[i] = j, True, iou[pair]
    matched = np.flatnonzero(partner >= 0)
    pairs = matched[counted[0][matched] | counted[1][partner[matched]]]
    numbers = (
        reference.index[pairs],
        prediction.index[~taken & counted[1]],
        reference.index[(partner < 0) & counted[0]],
    )
    return ObjectCounts(*(np.bincount(n, minlength=classes).astype(np.int64) for n in numbers)), best[pairs]


def _candidates(
    reference: Objects, prediction: Objects, least_iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return pairs of one class that overlap enough: index in the reference, in the prediction, IoU."""
    mine, theirs = shapely.STRtree(prediction.geometry).query(reference.geometry, predicate="intersects")
    same = reference.index[mine] == prediction.index[theirs]
    mine, theirs = mine[same], theirs[same]
    areas = shapely.area(reference.geometry), shapely.area(prediction.geometry)
    # The areas alone rule most pairs out.
    enough = np.minimum(areas[0][mine], areas[1][theirs]) >= least_iou * np.maximum(areas[0][mine], areas[1][theirs])
    mine, theirs = mine[enough], theirs[enough]
    parts = [np.empty(0)]
    for start in range(0, len(mine), _PAIRS):
        these = slice(start, start + _PAIRS)
        common = shapely.intersection(reference.geometry[mine[these]], prediction.geometry[theirs[these]])
        parts.append(shapely.area(common))
    common_area = np.concatenate(parts)
    iou = common_area / (areas[0][mine] + areas[1][theirs] - common_area)
    kept = iou >= least_iou
    return mine[kept], theirs[kept], iou[kept]
