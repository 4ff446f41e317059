"""The carrier of polygons in pixel coordinates: flat arrays of lattice corners."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.vector import topology


@dataclass(frozen=True)
class PixelPolygons:
    """N finished polygons as flat arrays, with edges along pixel edges.

    A ring has a vertex at every turn, and where the neighbour across a straight stretch changes.  It is closed and
    starts at its topmost, then leftmost corner; shells run down from there (counter-clockwise once rows point down),
    holes run right; a polygon's holes follow its shell in the order of their starts.  Equal regions have equal arrays,
    however the raster was cut.

    Attributes:
        corners: (V, 2) int32 column and row; pixel (row, col) lies between corners (col, row) and (col + 1, row + 1).
        ring_starts: (R + 1,) int64 offsets into ``corners``.
        polygon_starts: (N + 1,) int64 offsets into ``ring_starts``.
        first_pixel: int64 row-major position, in the whole raster, of each polygon's first pixel.
        feature: int64 first pixel of the feature that the polygon is a part of: with 4-connectivity its own, with
            8-connectivity the smallest of all parts that hang together by corners.
        class_id: int64 label values.
        pixels: int64 pixel counts.
        confidence_sum: int64 sums of confidence in 1/1000 over the pixels that have one.
        confidence_pixels: int64 counts of these pixels.
    """

    corners: NDArray[np.int32]
    ring_starts: NDArray[np.int64]
    polygon_starts: NDArray[np.int64]
    first_pixel: NDArray[np.int64]
    feature: NDArray[np.int64]
    class_id: NDArray[np.int64]
    pixels: NDArray[np.int64]
    confidence_sum: NDArray[np.int64]
    confidence_pixels: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of polygons."""
        return len(self.polygon_starts) - 1

    @cached_property
    def geometry(self) -> NDArray[Any]:
        """The polygons as shapely objects, in pixel coordinates (column, row)."""
        offsets = (self.ring_starts, self.polygon_starts)
        polygons: NDArray[Any] = shapely.from_ragged_array(
            shapely.GeometryType.POLYGON, self.corners.astype(np.float64), offsets
        )
        return polygons

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(int(getattr(self, field.name).nbytes) for field in fields(self))

    def taken(self, polygons: NDArray[np.int64]) -> PixelPolygons:
        """Return the polygons with these indices, in this order."""
        rings = _ranges(self.polygon_starts, polygons)
        corners, ring_starts = topology.chosen_rings(self.corners, self.ring_starts, rings)
        counts = np.diff(self.polygon_starts)[polygons]
        columns = (getattr(self, name)[polygons] for name in _COLUMNS)
        return PixelPolygons(corners, ring_starts, offsets(counts), *columns)

    @staticmethod
    def joined(parts: Iterable[PixelPolygons]) -> PixelPolygons:
        """Return all polygons of ``parts``, one after the other."""
        parts = list(parts)
        corners = np.concatenate([np.empty((0, 2), np.int32), *(part.corners for part in parts)])
        rings = offsets(np.concatenate([np.empty(0, np.int64), *(np.diff(part.ring_starts) for part in parts)]))
        polygons = offsets(np.concatenate([np.empty(0, np.int64), *(np.diff(part.polygon_starts) for part in parts)]))
        columns = (
            np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)]) for name in _COLUMNS
        )
        return PixelPolygons(corners, rings, polygons, *columns)


_COLUMNS = ("first_pixel", "feature", "class_id", "pixels", "confidence_sum", "confidence_pixels")


def offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Return the offsets of pieces of these lengths, one more than pieces."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ranges(starts: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all indices that the chosen pieces span, piece after piece."""
    lengths = starts[chosen + 1] - starts[chosen]
    ends = np.cumsum(lengths)
    return np.repeat(starts[chosen] - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)
