"""A label raster in, measured class polygons out, with memory bounded by the block."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from geoseg.classes import Classes
from geoseg.errors import ConfigError, LabelsError
from geoseg.geodesy import ground_lengths, pixel_size
from geoseg.vector.features import Features
from geoseg.vector.ground_frame import GroundFrame
from geoseg.vector.labels import LabelRaster, RasterBlocks, open_labels
from geoseg.vector.measures import measure
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.polygons import LabelSource, polygonize
from geoseg.vector.regularize import Regularizer
from geoseg.vector.spool import PolygonSpool
from geoseg.vector.zonal_spool import Statistic, ZonalSpool

Progress = Callable[[int, int], None]

# The column that says how well a regularised outline agrees with the raw one.
REGULARIZED_IOU = "regularized_iou"
_IOU_DECIMALS = 4


@dataclass(frozen=True)
class Shaping:
    """What is done to regions and outlines on the way from labels to polygons.

    Attributes:
        min_area_m2: regions with less area on the ground are not kept.
        small: what becomes of them: merged into the neighbour with the longest common border, or dropped.  A region
            without any neighbour is dropped in either case.
        fill_holes_m2: holes in the data with less area take the class around them.
        simplify_m: how far outlines may move, in ground metres; None leaves them along pixel edges.
        smooth: cut the corners of pixels, so that stairs become slopes.
        connectivity: 4, or 8 where pixels that touch in a corner belong to one feature, a MultiPolygon.
        regularize: label values of classes whose outlines become right-angled.  They are neither simplified nor
            smoothed, and cut against each other only: they may overlap other classes, or leave gaps beside them.
    """

    min_area_m2: float = 0.0
    small: Literal["merge", "drop"] = "merge"
    fill_holes_m2: float = 0.0
    simplify_m: float | None = None
    smooth: bool = False
    connectivity: int = 4
    regularize: frozenset[int] = frozenset()

    @property
    def needs_metres(self) -> bool:
        """Whether anything is done that takes sizes on the ground."""
        return self.changes_labels or self.simplify_m is not None or bool(self.regularize)

    @property
    def changes_labels(self) -> bool:
        """Whether regions change before they become polygons."""
        return self.min_area_m2 > 0 or self.fill_holes_m2 > 0

    @property
    def changes_outlines(self) -> bool:
        """Whether outlines leave the edges of pixels."""
        return self.simplify_m is not None or self.smooth


def extra_columns(shaping: Shaping, statistics: Sequence[Statistic] = ()) -> tuple[tuple[str, str], ...]:
    """Return names and numpy types of the further columns that features have."""
    agreement = ((REGULARIZED_IOU, "float64"),) if shaping.regularize else ()
    return (*agreement, *(column for statistic in statistics for column in statistic.columns))


def vectorize_raster(
    path: str | os.PathLike[str],
    *,
    classes: Classes,
    band: int = 1,
    confidence: tuple[str | os.PathLike[str], int] | None = None,
    drop: Collection[int] = (),
    shaping: Shaping | None = None,
    statistics: Sequence[Statistic] = (),
    pixel_coordinates: bool = False,
    block: int = 2048,
    workers: int = 1,
    workdir: Path,
    progress: Progress | None = None,
) -> Iterator[Features]:
    """Turn a label raster into seamless class polygons with their attributes.

    Files are opened and checked at once; the raster is read when the first batch is asked for.  The polygons do not
    depend on ``block`` or ``workers``.

    Args:
        path: a raster of integer labels that GDAL opens; its nodata value and ``classes.nodata`` give no polygons.
        classes: what the labels mean; every label must be among them.
        band: band of the labels, from 1.
        confidence: raster on the same grid and band (from 1) with the probability of each pixel's class: 0 to 1 in
            floats, or integers with a scale, or in 1/1000 if they have none.
        drop: label values that give no polygons; small regions may still be merged into theirs.
        shaping: what is done to regions and outlines; nothing by default.
        statistics: rasters whose values are summed up over each feature, into :attr:`Features.extra`.
        pixel_coordinates: take a raster without a CRS: its own coordinates (columns and rows if it has no transform)
            are then those of the polygons, and areas and lengths are not known.
        block: side of the squares that are read at a time, in pixels.
        workers: how many squares are worked on at a time, in threads.
        workdir: folder for temporary files, removed at the end: of the size of the result, and where regions or
            outlines are changed, one byte a pixel.
        progress: called with the number of blocks done and of all blocks; every block is looked at twice or thrice.

    Returns:
        Batches of polygons in the raster's CRS, shells counter-clockwise, ordered by ``id``.

    Raises:
        SceneError: a raster cannot be read, or it has no CRS.
        LabelsError: labels are not integers or belong to no class, or the confidence does not fit the labels.
        ConfigError: pixels are too oblong to be regularised, or something needs metres on the ground where there are
            none.
        OutputError: the temporary files cannot be written.
    """
    shaping = shaping or Shaping()
    labels = open_labels(path, band, confidence, pixel_coordinates=pixel_coordinates)
    _refuse_metres(labels, shaping, statistics)
    frame = None
    if shaping.regularize and labels.crs is not None:
        frame = GroundFrame.of(labels.shape, labels.affine, labels.crs)
    zonal = None
    if statistics and labels.crs is not None:
        zonal = ZonalSpool(statistics, GeoBox(labels.shape, labels.affine, CRS(labels.crs.to_wkt())), workdir)

    def batches() -> Iterator[Features]:
        with RasterBlocks(labels, block, classes) as source, zonal or nullcontext():
            yield from vectorize_source(
                source,
                labels.affine,
                labels.crs,
                drop=drop,
                shaping=shaping,
                frame=frame,
                zonal=zonal,
                workers=workers,
                workdir=workdir,
                progress=progress,
            )

    return batches()


def vectorize_source(
    source: LabelSource,
    affine: Affine,
    crs: pyproj.CRS | None,
    *,
    drop: Collection[int] = (),
    shaping: Shaping | None = None,
    frame: GroundFrame | None = None,
    zonal: ZonalSpool | None = None,
    workers: int = 1,
    workdir: Path,
    progress: Progress | None = None,
) -> Iterator[Features]:
    """Turn a source of labels into measured polygons; all blocks are read before the first batch comes.

    Args:
        source: the labels and their blocks.
        affine: from pixel corners (column, row) to the coordinates of ``crs``.
        crs: the raster's CRS, None where sizes on the ground are not known.
        drop: see :func:`vectorize_raster`, and so for all that follow.
        shaping: there.
        frame: square pixels on the ground, where outlines are regularised.
        zonal: takes in the statistics and gives them back.
        workers: there.
        workdir: there.
        progress: there.

    Yields:
        Batches of about 5000 polygons in the coordinates of ``crs``, shells counter-clockwise, ordered by ``id``.

    Raises:
        LabelsError: a block does not fit the raster.
        SceneError: ``crs`` has no geodetic base.
        OutputError: the temporary files cannot be written.
    """
    shaping = shaping or Shaping()
    shape = (source.cuts[0][-1], source.cuts[1][-1])
    number = 0
    with ExitStack() as stack:
        finish = None
        regular = None if frame is None else _Regular(shaping.regularize, frame, shape[1])
        if shaping.changes_labels or shaping.changes_outlines:
            source, finish = _shaped(stack, source, affine, crs, drop, shaping, workdir)
        spool = stack.enter_context(PolygonSpool(workdir, shape[1]))
        for polygons in polygonize(
            source,
            skip=drop,
            connectivity=shaping.connectivity,
            workers=workers,
            finish=finish,
            observe=None if zonal is None else zonal.observe,
            progress=progress,
        ):
            spool.add(polygons)
        for polygons in spool.ordered():
            geometry = _placed(polygons, affine)
            extra: dict[str, NDArray[Any]] = {}
            if regular is not None:
                geometry, agreement = regular.outlines(polygons, geometry, affine)
                extra = {REGULARIZED_IOU: agreement}
            features = _measured(polygons, geometry, crs)
            if zonal is not None:
                extra |= zonal.columns(features.id)
            ids = np.arange(number + 1, number + 1 + len(features), dtype=np.int64)
            yield replace(features, id=ids, extra=extra)
            number += len(features)


def _shaped(
    stack: ExitStack,
    source: LabelSource,
    affine: Affine,
    crs: pyproj.CRS | None,
    drop: Collection[int],
    shaping: Shaping,
    workdir: Path,
) -> tuple[LabelSource, Callable[[PixelPolygons], PixelPolygons] | None]:
    """Return the labels with small regions gone, and what is to be done to finished polygons."""
    from geoseg.vector.clean import PixelAreas, clean
    from geoseg.vector.label_map import LabelMap

    shape = (source.cuts[0][-1], source.cuts[1][-1])
    pixel_m = pixel_size(affine) if crs is None else ground_lengths(shape, affine, crs)
    labels = stack.enter_context(LabelMap(source, workdir))
    if shaping.changes_labels and crs is not None:
        areas = PixelAreas.of(shape, affine, crs, pixel_m)
        fill = shaping.fill_holes_m2
        clean(labels, areas, min_area_m2=shaping.min_area_m2, drop=shaping.small == "drop", fill_holes_m2=fill)
        if shaping.small == "merge":
            # What is still small has no neighbour that could take it.
            clean(labels, areas, min_area_m2=shaping.min_area_m2, drop=True)
    labels.forget(drop)
    if not shaping.changes_outlines:
        return labels, None
    from geoseg.vector.simplify import simplified

    tolerance = shaping.simplify_m or 0.0
    simpler = partial(simplified, labels=labels.labels, tolerance_m=tolerance, pixel_m=pixel_m, smooth=shaping.smooth)
    return labels, partial(_all_but, sorted(shaping.regularize), simpler) if shaping.regularize else simpler


def _all_but(
    class_ids: list[int], change: Callable[[PixelPolygons], PixelPolygons], polygons: PixelPolygons
) -> PixelPolygons:
    """Return polygons, those of other classes changed; the order is another one."""
    kept = np.isin(polygons.class_id, class_ids)
    others = change(polygons.taken(np.flatnonzero(~kept))) if not kept.all() else PixelPolygons.joined([])
    return PixelPolygons.joined([polygons.taken(np.flatnonzero(kept)), others])


class _Regular:
    """Right-angled outlines for some classes, batch after batch."""

    def __init__(self, class_ids: Collection[int], frame: GroundFrame, raster_width: int) -> None:
        self._class_ids, self._frame, self._width = sorted(class_ids), frame, raster_width
        self._regularizer = Regularizer(frame.pixel_m)

    def outlines(
        self, polygons: PixelPolygons, placed: NDArray[np.object_], affine: Affine
    ) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
        """Return the outlines on the ground, and by feature the IoU with the raw ones, NaN for other classes.

        Args:
            polygons: the next batch, in order.
            placed: their outlines on the ground.
            affine: from pixel corners to the ground.
        """
        chosen = np.flatnonzero(np.isin(polygons.class_id, self._class_ids))
        agreement = np.full(len(_first_parts(polygons)), np.nan)
        if not len(chosen):
            return placed, agreement
        some = polygons.taken(chosen)
        # No later polygon starts above the row of this batch's first feature.
        top = self._frame.y_of(int(some.feature[0]) // self._width)
        raw = shapely.transform(some.geometry, self._frame.into)
        found, ious = self._regularizer.add(raw, top)
        result = placed.copy()
        result[chosen] = shapely.orient_polygons(
            shapely.transform(found, lambda xy: _on_ground(self._frame.back(xy), affine)), exterior_cw=False
        )
        feature = np.searchsorted(polygons.feature[_first_parts(polygons)], some.feature)
        sizes = shapely.area(raw) + shapely.area(found)
        common = np.bincount(feature, ious / (1 + ious) * sizes, len(agreement))
        total = np.bincount(feature, sizes, len(agreement))
        has = total > 0
        agreement[has] = np.round(common[has] / (total[has] - common[has]), _IOU_DECIMALS)
        return result, agreement


def _first_parts(polygons: PixelPolygons) -> NDArray[np.int64]:
    """Return the indices at which features begin."""
    return np.flatnonzero(np.append(True, np.diff(polygons.feature) != 0))


def _measured(polygons: PixelPolygons, geometry: NDArray[np.object_], crs: pyproj.CRS | None) -> Features:
    """Return the features of a batch with their sizes; their ids are their first pixels."""
    area = perimeter = np.full(len(geometry), np.nan)
    if crs is not None:
        area, perimeter = measure(geometry, crs)
    first = _first_parts(polygons)
    parts = np.diff(np.append(first, len(polygons)))
    sums: tuple[NDArray[Any], ...] = (area, perimeter, polygons.confidence_sum, polygons.confidence_pixels)
    if len(first) < len(polygons):
        feature = np.repeat(np.arange(len(first)), parts)
        geometry = np.where(parts == 1, geometry[first], shapely.multipolygons(geometry, indices=feature))
        sums = tuple(np.add.reduceat(column, first) for column in sums)
    area, perimeter, confidence_sum, known = sums
    confidence = np.full(len(first), np.nan)
    np.divide(confidence_sum, 1000.0 * known, out=confidence, where=known > 0)
    return Features(geometry, polygons.feature[first], polygons.class_id[first], area, perimeter, confidence)


def _placed(polygons: PixelPolygons, affine: Affine) -> NDArray[np.object_]:
    """Bring polygons from pixel coordinates to the ground.

    Each corner's place depends on its column and row alone, so neighbours keep sharing it bit by bit.
    """
    corners = _on_ground(polygons.corners.astype(np.float64), affine)
    offsets = (polygons.ring_starts, polygons.polygon_starts)
    placed: NDArray[np.object_] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, corners, offsets)
    # Rows usually run south; where they do not, the affine keeps the orientation of pixel coordinates.
    return shapely.reverse(placed) if affine.determinant > 0 else placed


def _on_ground(points: NDArray[np.float64], affine: Affine) -> NDArray[np.float64]:
    """Return the places of points (P, 2) given as column and row."""
    col, row = points.T
    return np.stack([affine.a * col + affine.b * row + affine.c, affine.d * col + affine.e * row + affine.f], axis=1)


def _refuse_metres(labels: LabelRaster, shaping: Shaping, statistics: Sequence[Statistic]) -> None:
    if labels.crs is None and (shaping.needs_metres or statistics):
        raise ConfigError(
            f"{labels.path} has no CRS, so nothing is known in metres: with --pixel-coordinates leave out --min-area, "
            "--fill-holes, --simplify, --regularize and --statistics, or assign a CRS."
        )


def distinct_values(
    path: str | os.PathLike[str],
    *,
    band: int = 1,
    pixel_coordinates: bool = False,
    block: int = 2048,
    progress: Progress | None = None,
) -> list[int]:
    """Return the distinct labels of a raster without a class table, in ascending order, nodata aside.

    A value 255 that the raster does not declare as nodata is taken for it, with a warning, if there are two or more
    other labels; beside a single one (a mask of 0 and 255) it may well be the class, and is refused.

    Args:
        path: a raster of integer labels that GDAL opens.
        band: band of the labels, from 1.
        pixel_coordinates: take a raster without a CRS too.
        block: side of the squares that are read at a time, in pixels.
        progress: called with the number of blocks done and of all blocks.

    Raises:
        SceneError: the raster cannot be read, or it has no CRS.
        LabelsError: the labels are not integers, there are more than 255 or none, or one is not from 0 to 254.
    """
    labels = open_labels(path, band, pixel_coordinates=pixel_coordinates)
    found = labels.distinct(block, progress)
    if not found:
        raise LabelsError(f"{labels.path} has no labels: every pixel of band {band} is nodata.")
    return found
