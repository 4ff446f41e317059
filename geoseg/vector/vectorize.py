"""A label raster in, measured class polygons out, with memory bounded by the block."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from geoseg.classes import Classes
from geoseg.errors import LabelsError
from geoseg.geodesy import ground_lengths
from geoseg.vector.features import Features
from geoseg.vector.labels import RasterBlocks, open_labels
from geoseg.vector.measures import measure
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.polygons import LabelSource, polygonize
from geoseg.vector.spool import PolygonSpool

Progress = Callable[[int, int], None]


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
    """

    min_area_m2: float = 0.0
    small: Literal["merge", "drop"] = "merge"
    fill_holes_m2: float = 0.0
    simplify_m: float | None = None
    smooth: bool = False
    connectivity: int = 4

    @property
    def changes_labels(self) -> bool:
        """Whether regions change before they become polygons."""
        return self.min_area_m2 > 0 or self.fill_holes_m2 > 0

    @property
    def changes_outlines(self) -> bool:
        """Whether outlines leave the edges of pixels."""
        return self.simplify_m is not None or self.smooth


def vectorize_raster(
    path: str | os.PathLike[str],
    *,
    classes: Classes,
    band: int = 1,
    confidence: tuple[str | os.PathLike[str], int] | None = None,
    drop: Collection[int] = (),
    shaping: Shaping | None = None,
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
        OutputError: the temporary files cannot be written.
    """
    labels = open_labels(path, band, confidence)

    def batches() -> Iterator[Features]:
        with RasterBlocks(labels, block, classes) as source:
            yield from vectorize_source(
                source,
                labels.affine,
                labels.crs,
                drop=drop,
                shaping=shaping,
                workers=workers,
                workdir=workdir,
                progress=progress,
            )

    return batches()


def vectorize_source(
    source: LabelSource,
    affine: Affine,
    crs: pyproj.CRS,
    *,
    drop: Collection[int] = (),
    shaping: Shaping | None = None,
    workers: int = 1,
    workdir: Path,
    progress: Progress | None = None,
) -> Iterator[Features]:
    """Turn a source of labels into measured polygons; all blocks are read before the first batch comes.

    Args:
        source: the labels and their blocks.
        affine: from pixel corners (column, row) to the coordinates of ``crs``.
        crs: the raster's CRS.
        drop: see :func:`vectorize_raster`, and so for all that follow.
        shaping: there.
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
        if shaping.changes_labels or shaping.changes_outlines:
            source, finish = _shaped(stack, source, affine, crs, drop, shaping, workdir)
        spool = stack.enter_context(PolygonSpool(workdir, shape[1]))
        for polygons in polygonize(
            source, skip=drop, connectivity=shaping.connectivity, workers=workers, finish=finish, progress=progress
        ):
            spool.add(polygons)
        for polygons in spool.ordered():
            features = _measured(polygons, affine, crs, shaping.min_area_m2, number)
            number += len(features)
            if len(features):
                yield features


def _shaped(
    stack: ExitStack,
    source: LabelSource,
    affine: Affine,
    crs: pyproj.CRS,
    drop: Collection[int],
    shaping: Shaping,
    workdir: Path,
) -> tuple[LabelSource, Callable[[PixelPolygons], PixelPolygons] | None]:
    """Return the labels with small regions gone, and what is to be done to finished polygons."""
    from geoseg.vector.clean import PixelAreas, clean
    from geoseg.vector.label_map import LabelMap

    shape = (source.cuts[0][-1], source.cuts[1][-1])
    pixel_m = ground_lengths(shape, affine, crs)
    labels = stack.enter_context(LabelMap(source, workdir))
    if shaping.changes_labels:
        clean(
            labels,
            PixelAreas.of(shape, affine, crs, pixel_m),
            min_area_m2=shaping.min_area_m2,
            drop=shaping.small == "drop",
            fill_holes_m2=shaping.fill_holes_m2,
        )
    labels.forget(drop)
    if not shaping.changes_outlines:
        return labels, None
    from geoseg.vector.simplify import simplified

    tolerance = shaping.simplify_m or 0.0
    return labels, partial(
        simplified, labels=labels.labels, tolerance_m=tolerance, pixel_m=pixel_m, smooth=shaping.smooth
    )


def _measured(polygons: PixelPolygons, affine: Affine, crs: pyproj.CRS, min_area_m2: float, number: int) -> Features:
    """Place a batch on the ground, measure it, and number what is large enough from ``number + 1`` on."""
    geometry = _placed(polygons, affine)
    area, perimeter = measure(geometry, crs)
    first = np.flatnonzero(np.append(True, np.diff(polygons.feature) != 0))
    parts = np.diff(np.append(first, len(polygons)))
    sums: tuple[NDArray[Any], ...] = (area, perimeter, polygons.confidence_sum, polygons.confidence_pixels)
    if len(first) < len(polygons):
        feature = np.repeat(np.arange(len(first)), parts)
        geometry = np.where(parts == 1, geometry[first], shapely.multipolygons(geometry, indices=feature))
        sums = tuple(np.add.reduceat(column, first) for column in sums)
    area, perimeter, confidence_sum, known = sums
    kept = ~(area < min_area_m2)
    confidence = np.full(len(first), np.nan)
    np.divide(confidence_sum, 1000.0 * known, out=confidence, where=known > 0)
    return Features(
        geometry=geometry[kept],
        id=np.arange(number + 1, number + 1 + int(kept.sum()), dtype=np.int64),
        class_id=polygons.class_id[first][kept],
        area_m2=area[kept],
        perimeter_m=perimeter[kept],
        confidence=confidence[kept],
    )


def _placed(polygons: PixelPolygons, affine: Affine) -> NDArray[np.object_]:
    """Bring polygons from pixel coordinates to the ground.

    Each corner's place depends on its column and row alone, so neighbours keep sharing it bit by bit.
    """
    col, row = polygons.corners.T.astype(np.float64)
    corners = np.stack([affine.a * col + affine.b * row + affine.c, affine.d * col + affine.e * row + affine.f], axis=1)
    offsets = (polygons.ring_starts, polygons.polygon_starts)
    placed: NDArray[np.object_] = shapely.from_ragged_array(shapely.GeometryType.POLYGON, corners, offsets)
    # Rows usually run south; where they do not, the affine keeps the orientation of pixel coordinates.
    return shapely.reverse(placed) if affine.determinant > 0 else placed


def distinct_values(
    path: str | os.PathLike[str], *, band: int = 1, block: int = 2048, progress: Progress | None = None
) -> list[int]:
    """Return the distinct labels of a raster without a class table, in ascending order, nodata aside.

    A value 255 that the raster does not declare as nodata is taken for it, with a warning, if there are two or more
    other labels; beside a single one (a mask of 0 and 255) it may well be the class, and is refused.

    Args:
        path: a raster of integer labels that GDAL opens.
        band: band of the labels, from 1.
        block: side of the squares that are read at a time, in pixels.
        progress: called with the number of blocks done and of all blocks.

    Raises:
        SceneError: the raster cannot be read, or it has no CRS.
        LabelsError: the labels are not integers, there are more than 255 or none, or one is not from 0 to 254.
    """
    labels = open_labels(path, band)
    found = labels.distinct(block, progress)
    if not found:
        raise LabelsError(f"{labels.path} has no labels: every pixel of band {band} is nodata.")
    return found
