"""A label raster in, measured class polygons out, with memory bounded by the block."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from geoseg.classes import Classes
from geoseg.errors import LabelsError
from geoseg.vector.features import Features
from geoseg.vector.labels import NODATA, open_labels
from geoseg.vector.measures import measure
from geoseg.vector.polygons import LabelBlock, PixelPolygons, polygonize
from geoseg.vector.spool import PolygonSpool

Progress = Callable[[int, int], None]


def vectorize_raster(
    path: str | os.PathLike[str],
    *,
    classes: Classes,
    band: int = 1,
    confidence: tuple[str | os.PathLike[str], int] | None = None,
    drop: Collection[int] = (),
    min_area_m2: float = 0.0,
    block: int = 2048,
    workdir: Path,
    progress: Progress | None = None,
) -> Iterator[Features]:
    """Turn a label raster into seamless class polygons with their attributes.

    Files are opened and checked at once; the raster is read when the first batch is asked for.  The polygons do not
    depend on ``block``.

    Args:
        path: a raster of integer labels that GDAL opens; its nodata value and ``classes.nodata`` give no polygons.
        classes: what the labels mean; every label must be among them.
        band: band of the labels, from 1.
        confidence: raster on the same grid and band (from 1) with the probability of each pixel's class: 0 to 1 in
            floats, or integers with a scale, or in 1/1000 if they have none.
        drop: label values that give no polygons.
        min_area_m2: polygons with less area on the ground are left out.
        block: side of the squares that are read at a time, in pixels.
        workdir: folder for a temporary file of the size of the result, removed at the end.
        progress: called with the number of blocks done and of all blocks.

    Returns:
        Batches of polygons in the raster's CRS, shells counter-clockwise, ordered by ``id``.

    Raises:
        SceneError: a raster cannot be read, or it has no CRS.
        LabelsError: labels are not integers or belong to no class, or the confidence does not fit the labels.
        OutputError: the temporary file cannot be written.
    """
    labels = open_labels(path, band, confidence)
    blocks = labels.blocks(block, classes, progress)
    return vectorize_blocks(
        blocks,
        labels.shape,
        labels.affine,
        labels.crs,
        nodata=NODATA,
        drop=drop,
        min_area_m2=min_area_m2,
        workdir=workdir,
    )


def vectorize_blocks(
    blocks: Iterable[LabelBlock],
    shape: tuple[int, int],
    affine: Affine,
    crs: pyproj.CRS,
    *,
    nodata: int,
    drop: Collection[int] = (),
    min_area_m2: float = 0.0,
    workdir: Path,
) -> Iterator[Features]:
    """Turn blocks of labels, in any order, into measured polygons; all blocks are taken before the first batch comes.

    Args:
        blocks: parts of the raster that do not overlap; missing ones count as nodata.
        shape: height and width of the whole raster in pixels.
        affine: from pixel corners (column, row) to the coordinates of ``crs``.
        crs: the raster's CRS.
        nodata: label value of pixels without an answer.
        drop: further label values that give no polygons.
        min_area_m2: polygons with less area on the ground are left out.
        workdir: folder for a temporary file of the size of the result, removed at the end.

    Yields:
        Batches of about 5000 polygons in the coordinates of ``crs``, shells counter-clockwise, ordered by ``id``.

    Raises:
        LabelsError: a block does not fit the raster.
        SceneError: ``crs`` has no geodetic base.
        OutputError: the temporary file cannot be written.
    """
    number = 0
    with PolygonSpool(workdir) as spool:
        for batch in polygonize(blocks, shape, nodata=nodata, skip=drop):
            spool.add(batch)
        for batch in spool.ordered():
            features = _measured(batch, affine, crs, min_area_m2, number)
            number += len(features)
            if len(features):
                yield features


def _measured(batch: PixelPolygons, affine: Affine, crs: pyproj.CRS, min_area_m2: float, number: int) -> Features:
    """Place a batch on the ground, measure it, and number what is large enough from ``number + 1`` on."""
    geometry = _placed(batch.geometry, affine)
    area, perimeter = measure(geometry, crs)
    kept = ~(area < min_area_m2)
    known = batch.confidence_sum >= 0
    confidence = np.where(known, batch.confidence_sum / (1000.0 * batch.pixels), np.nan)
    return Features(
        geometry=geometry[kept],
        id=np.arange(number + 1, number + 1 + int(kept.sum()), dtype=np.int64),
        class_id=batch.class_id[kept],
        area_m2=area[kept],
        perimeter_m=perimeter[kept],
        confidence=confidence[kept],
    )


def _placed(geometry: NDArray[np.object_], affine: Affine) -> NDArray[np.object_]:
    """Bring polygons from pixel coordinates to the ground.

    Each corner's place depends on its column and row alone, so neighbours keep sharing it bit by bit.
    """

    def place(corners: NDArray[np.float64]) -> NDArray[np.float64]:
        col, row = corners.T
        return np.stack(
            [affine.a * col + affine.b * row + affine.c, affine.d * col + affine.e * row + affine.f], axis=1
        )

    placed = shapely.transform(geometry, place)
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
