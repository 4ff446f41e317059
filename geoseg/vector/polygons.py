"""From blocks of labels to seamless polygons in integer pixel coordinates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from geoseg.errors import LabelsError
from geoseg.grid import Window
from geoseg.vector.rings import Rings, Seam, canonical, rings_of
from geoseg.vector.seams import Front, Region, Stitcher

# Shapes taken from GDAL at a time.  They come as Python tuples: few enough of these never meet the garbage collector's
# older generations, which makes it three times as fast, and in memory they are ten times the arrays they become.
_SHAPES = 100


@dataclass(frozen=True)
class LabelBlock:
    """A rectangle of a label raster.

    Attributes:
        window: its place in the raster, in pixels.
        labels: (h, w) uint8 or uint16.
        confidence: (h, w) uint16 probability of each pixel's class in 1/1000, None where there is none.
    """

    window: Window
    labels: NDArray[Any]
    confidence: NDArray[np.uint16] | None = None


@dataclass(frozen=True)
class PixelPolygons:
    """A batch of N finished polygons, in no order.

    Attributes:
        geometry: shapely polygons, object array, in pixel coordinates (column, row), in the canonical form of
            :class:`geoseg.vector.rings.Rings`.
        first_pixel: int64 row-major position, in the whole raster, of each polygon's first pixel.
        class_id: int64 label values.
        pixels: int64 pixel counts.
        confidence_sum: int64 sums of confidence over the pixels in 1/1000, -1 where a block had none.
    """

    geometry: NDArray[Any]
    first_pixel: NDArray[np.int64]
    class_id: NDArray[np.int64]
    pixels: NDArray[np.int64]
    confidence_sum: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of polygons."""
        return len(self.geometry)


def polygonize(
    blocks: Iterable[LabelBlock], shape: tuple[int, int], *, nodata: int, skip: Collection[int] = ()
) -> Iterator[PixelPolygons]:
    """Turn the 4-connected regions of equal label of a raster into polygons, block by block.

    The polygons are the same, coordinate by coordinate, whatever the blocks and their order: they only come in another
    order and in other batches.  A polygon comes as soon as every block around it has been seen, so memory holds one
    block and what crosses seams that are still open.

    >>> labels = np.array([[1, 1, 2]], np.uint8)
    >>> parts = [LabelBlock(Window(0, col, 1, 1), labels[:, col : col + 1]) for col in range(3)]
    >>> for batch in polygonize(parts, (1, 3), nodata=0):
    ...     print(batch.class_id, *batch.geometry)
    [1 2] POLYGON ((0 0, 0 1, 2 1, 2 0, 0 0)) POLYGON ((2 0, 2 1, 3 1, 3 0, 2 0))

    Args:
        blocks: parts of the raster that do not overlap, of any size and in any order; missing ones count as nodata.
        shape: height and width of the whole raster in pixels.
        nodata: label value of pixels without an answer.
        skip: further label values that give no polygons.

    Raises:
        LabelsError: a block does not lie in the raster, or its arrays do not have its shape.
    """
    stitcher = Stitcher()
    ignored = sorted({nodata, *skip})
    for block in blocks:
        pieces = _pieces(block, shape, ignored)
        finished, regions, fronts = _split(pieces, block.window, shape, stitcher)
        if len(finished):
            yield finished
        united = _united(stitcher.add(regions, fronts), shape)
        if len(united):
            yield united
    rest = _united(stitcher.close(), shape)
    if len(rest):
        yield rest


@dataclass(frozen=True)
class _Pieces:
    """The regions of one block as if it were alone: (N,) each, rings in the raster's pixel coordinates."""

    rings: Rings
    labels: NDArray[np.int64]
    pixels: NDArray[np.int64]
    confidence_sum: NDArray[np.int64]


def _pieces(block: LabelBlock, shape: tuple[int, int], ignored: list[int]) -> _Pieces:
    window, labels, confidence = block.window, block.labels, block.confidence
    if window.empty or window.intersect(Window(0, 0, *shape)) != window:
        raise LabelsError(f"a block at {window} does not lie in a raster of {shape[0]} rows and {shape[1]} columns.")
    if labels.shape != window.shape or (confidence is not None and confidence.shape != window.shape):
        raise LabelsError(f"the labels or the confidence of the block at {window} have another shape than the block.")
    counted = ~np.isin(labels, ignored)
    rings, values = _regions(labels, counted)
    sums = np.full(len(rings), -1, np.int64) if confidence is None else rings.sums(_integral(confidence))
    return _Pieces(rings.moved(window.col, window.row), values, rings.pixel_counts(), sums)


def _regions(labels: NDArray[Any], counted: NDArray[np.bool_]) -> tuple[Rings, NDArray[np.int64]]:
    """Return the 4-connected regions of equal label among the counted pixels of an array, and their labels."""
    none = np.empty(0, np.int64)
    values, ring_counts, sizes, flat = [none], [none], [none], [none]
    if counted.any():
        shapes = rasterio.features.shapes(labels, mask=counted, connectivity=4)
        while some := list(islice(shapes, _SHAPES)):
            rings = [ring for geometry, _ in some for ring in geometry["coordinates"]]
            values.append(np.array([value for _, value in some], np.int64))
            ring_counts.append(np.array([len(geometry["coordinates"]) for geometry, _ in some], np.int64))
            sizes.append(np.array([len(ring) for ring in rings], np.int64))
            numbers = chain.from_iterable(chain.from_iterable(rings))
            flat.append(np.fromiter(numbers, np.int64, 2 * int(sizes[-1].sum())))
    corners = np.concatenate(flat).reshape(-1, 2)
    starts = [np.concatenate([[0], *counts]).cumsum(dtype=np.int64) for counts in (sizes, ring_counts)]
    return canonical(corners, *starts), np.concatenate(values)


def _integral(confidence: NDArray[Any]) -> NDArray[np.int64]:
    """Return the sums over all rows above and columns left of each corner, (h + 1, w + 1)."""
    height, width = confidence.shape
    sums = np.zeros((height + 1, width + 1), np.int64)
    np.cumsum(confidence, axis=0, dtype=np.int64, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    return sums


def _split(
    pieces: _Pieces, window: Window, shape: tuple[int, int], stitcher: Stitcher
) -> tuple[PixelPolygons, list[Region], list[Front]]:
    """Return the pieces that are polygons already, those that meet a seam, and the sides along the seams."""
    sides = _inner_sides(window, shape)
    along = [_pieces_along(pieces.rings, seam, window) for seam, _ in sides]
    touching = np.zeros(len(pieces.rings), bool)
    for local in along:
        touching[local[local >= 0]] = True

    where = np.flatnonzero(touching)
    numbers = np.full(len(touching) + 1, -1, np.int64)  # the last one stands for "no piece", index -1
    numbers[where] = stitcher.number(len(where))
    labels = np.append(pieces.labels, -1)
    fronts = [
        Front(seam, before, window.row if seam[0] == 0 else window.col, numbers[local], labels[local])
        for (seam, before), local in zip(sides, along, strict=True)
    ]
    parts = pieces.rings.chosen(touching).noded_geometries(seam for seam, _ in sides)
    regions = [
        Region(
            int(pieces.labels[i]), [part], int(pieces.pixels[i]), int(pieces.confidence_sum[i]), 0, [int(numbers[i])]
        )
        for i, part in zip(where, parts, strict=True)
    ]
    rings = pieces.rings.chosen(~touching)
    finished = PixelPolygons(
        rings.geometries(),
        _first_pixel(rings, shape),
        pieces.labels[~touching],
        pieces.pixels[~touching],
        pieces.confidence_sum[~touching],
    )
    return finished, regions, fronts


def _inner_sides(window: Window, shape: tuple[int, int]) -> list[tuple[Seam, bool]]:
    """Return the sides of a block that are not the raster's edge, and whether the block lies before them."""
    sides = [
        ((0, window.col), False, window.col > 0),
        ((0, window.col_stop), True, window.col_stop < shape[1]),
        ((1, window.row), False, window.row > 0),
        ((1, window.row_stop), True, window.row_stop < shape[0]),
    ]
    return [(seam, before) for seam, before, inner in sides if inner]


def _pieces_along(rings: Rings, seam: Seam, window: Window) -> NDArray[np.int64]:
    """Return the index of the piece at each of a block's pixels along one of its sides, -1 where there is none.

    A block's side bounds its pieces, so their edges on that line say it all.
    """
    axis, position = seam
    origin, length = (window.row, window.height) if axis == 0 else (window.col, window.width)
    start, end, polygon = rings.edges()
    on_seam = (start[:, axis] == position) & (end[:, axis] == position)
    one, other = start[on_seam, 1 - axis], end[on_seam, 1 - axis]
    low, runs = np.minimum(one, other) - origin, np.abs(one - other)
    inside_run = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)
    local = np.full(length, -1, np.int64)
    local[np.repeat(low, runs) + inside_run] = np.repeat(polygon[on_seam], runs)
    return local


def _united(regions: list[Region], shape: tuple[int, int]) -> PixelPolygons:
    """Return complete regions as polygons.  The parts share their vertices: no coordinate is ever computed."""
    geometry = np.empty(len(regions), object)
    for i, region in enumerate(regions):
        parts = region.parts
        geometry[i] = parts[0] if len(parts) == 1 else shapely.coverage_union_all(parts)
    rings = rings_of(geometry)
    return PixelPolygons(
        rings.geometries(),
        _first_pixel(rings, shape),
        np.array([region.label for region in regions], np.int64),
        np.array([region.pixels for region in regions], np.int64),
        np.array([region.confidence_sum for region in regions], np.int64),
    )


def _first_pixel(rings: Rings, shape: tuple[int, int]) -> NDArray[np.int64]:
    corner = rings.first_corners
    return corner[:, 1] * shape[1] + corner[:, 0]
