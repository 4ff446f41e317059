"""Pixels that outlines of polygons pass through, exactly: GDAL leaves some out where an edge begins near a corner."""

from __future__ import annotations

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from geoseg.compiling import compiled

# Pixels.  What comes no farther into one is not in it: coordinates are moved as much on their way through another CRS.
_ROUNDING = 1e-6


def mark_touched(index: NDArray[np.int32], shapes: NDArray[np.object_], affine: Affine) -> None:
    """Raise ``index`` (H, W) to the number of a polygon, from 1 on, wherever its outline passes through a pixel.

    Args:
        index: changed in place.
        shapes: polygons in the CRS that ``affine`` leads to from corners of pixels.
        affine: may turn and flip.
    """
    turn = ~affine
    pixels = shapely.transform(shapes, lambda xy: np.column_stack(turn * (xy[:, 0], xy[:, 1])))
    lines, polygon = shapely.get_parts(shapely.boundary(pixels), return_index=True)
    points, line = shapely.get_coordinates(lines, return_index=True)
    joined = np.flatnonzero(line[:-1] == line[1:])
    _mark(index, points[joined], points[joined + 1], (polygon[line[joined]] + 1).astype(np.int32))


@compiled
def _within(place: float, size: int) -> int:
    """Return a place along an axis of ``size`` pixels, the end of the axis where it lies beyond."""
    return int(max(0.0, min(float(size), place)))


@compiled
def _mark(
    index: NDArray[np.int32], starts: NDArray[np.float64], ends: NDArray[np.float64], numbers: NDArray[np.int32]
) -> None:
    height, width = index.shape
    for edge in range(len(numbers)):
        (x0, y0), (x1, y1) = starts[edge], ends[edge]
        if y0 > y1:
            x0, y0, x1, y1 = x1, y1, x0, y0
        for row in range(_within(np.floor(y0 + _ROUNDING), height), _within(np.ceil(y1 - _ROUNDING), height)):
            left, right = x0, x1
            if y1 - y0 > _ROUNDING:
                slope = (x1 - x0) / (y1 - y0)
                left, right = x0 + slope * (max(y0, row) - y0), x0 + slope * (min(y1, row + 1) - y0)
            if left > right:
                left, right = right, left
            for col in range(_within(np.floor(left + _ROUNDING), width), _within(np.ceil(right - _ROUNDING), width)):
                index[row, col] = max(index[row, col], numbers[edge])
