"""Polygons burnt onto a grid, window by window, the same whatever the windows."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from geoseg.grid import Window
from geoseg.source import placeless

# Polygons are burnt in squares that belong to the grid, so that rounding cannot depend on the window; some are kept.
_SQUARE = 512
_KEPT = 192


class BurntPolygons:
    """Polygons as a raster of uint8.

    Args:
        geometry: (N,) polygons in pixel coordinates (column, row) of the grid.
        values: (N,) uint8; where polygons overlap, the last one counts.
        shape: height and width of the grid.
        outside: the value of pixels in no polygon.
        all_touched: burn every pixel that a polygon touches, not only those whose centre it holds.
    """

    def __init__(
        self,
        geometry: NDArray[np.object_],
        values: NDArray[np.uint8],
        shape: tuple[int, int],
        *,
        outside: int,
        all_touched: bool,
    ) -> None:
        self._geometry, self._values, self._shape = geometry, values, shape
        self._outside, self._all_touched = outside, all_touched
        self._tree = shapely.STRtree(geometry)
        self._squares: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Return the values in a window of the grid: (h, w)."""
        found = np.empty(window.shape, np.uint8)
        for i in range(window.row // _SQUARE, -(-window.row_stop // _SQUARE)):
            for j in range(window.col // _SQUARE, -(-window.col_stop // _SQUARE)):
                square = Window(i * _SQUARE, j * _SQUARE, _SQUARE, _SQUARE)
                common = square.intersect(window)
                found[common.within(window)] = self._square(i, j, square)[common.within(square)]
        return found

    def _square(self, i: int, j: int, square: Window) -> NDArray[np.uint8]:
        burnt = self._squares.pop((i, j), None)
        if burnt is None:
            burnt = self._burn(square)
        self._squares[i, j] = burnt
        if len(self._squares) > _KEPT:
            self._squares.popitem(last=False)
        return burnt

    def _burn(self, square: Window) -> NDArray[np.uint8]:
        area = shapely.box(square.col, square.row, square.col_stop, square.row_stop)
        which = np.sort(self._tree.query(area))
        if len(which) == 0:
            return np.full(square.shape, self._outside, np.uint8)
        with placeless():
            burnt: NDArray[np.uint8] = rasterize(
                zip(self._geometry[which], self._values[which].tolist(), strict=True),
                out_shape=square.shape,
                transform=Affine.translation(square.col, square.row),
                fill=self._outside,
                all_touched=self._all_touched,
                dtype="uint8",
            )
        return burnt
