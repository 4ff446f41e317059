"""A raster seen on another grid by nearest neighbour, window by window, the same whatever the windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from geoseg.geodesy import projection
from geoseg.grid import Window

# Between two CRS, places are computed at every so many pixels and interpolated: wrong by less than 0.01 pixels even
# where a pixel is a kilometre.
_STEP = 16
# A centre that falls on the line between two pixels belongs to the right or lower one, in spite of rounding.
_ON_THE_LINE = 1e-6
# Source pixels that are read at a time; a window that needs more is cut in two.
_MOST_PIXELS = 32 * 2**20


@dataclass(frozen=True)
class Place:
    """A raster's place: height and width, affine from pixel corners (column, row), CRS."""

    shape: tuple[int, int]
    affine: Affine
    crs: pyproj.CRS

    @classmethod
    def of(cls, grid: GeoBox) -> Place:
        """Return the place of a grid.

        Raises:
            SceneError: it has no CRS.
        """
        return cls((int(grid.shape[0]), int(grid.shape[1])), grid.affine, projection(grid))


class OnGrid:
    """A raster on another grid.

    Args:
        own: where the raster lies.
        grid: where it is wanted.
        read: reads a window of the raster: (h, w).
        fill: the value outside of the raster.
    """

    def __init__(self, own: Place, grid: GeoBox, read: Callable[[Window], NDArray[Any]], fill: int | float) -> None:
        wanted = Place.of(grid)
        self._own, self._read, self._fill = own, read, fill
        self._affine = wanted.affine
        self._back = ~own.affine
        self._turn: pyproj.Transformer | None = None
        if not wanted.crs.equals(own.crs, ignore_axis_order=True):
            self._turn = pyproj.Transformer.from_crs(wanted.crs, own.crs, always_xy=True)
        ends = [(0, 0), (own.shape[1], 0), (0, own.shape[0])]
        there = self._back * wanted.affine
        self._same = (
            self._turn is None
            and wanted.shape == own.shape
            and all(abs(a - b) < _ON_THE_LINE for end in ends for a, b in zip(there * end, end, strict=True))
        )

    def read(self, window: Window) -> NDArray[Any]:
        """Return the pixels of the other grid in ``window``: (h, w)."""
        if self._same:
            return self._read(window)
        row, col = self._places(window)
        inside = (row >= 0) & (row < self._own.shape[0]) & (col >= 0) & (col < self._own.shape[1])
        if not inside.any():
            return np.full(window.shape, self._fill, self._empty.dtype)
        top, left = int(row[inside].min()), int(col[inside].min())
        needed = Window(top, left, int(row[inside].max()) + 1 - top, int(col[inside].max()) + 1 - left)
        if needed.height * needed.width > _MOST_PIXELS and window.height * window.width > 1:
            return self._halved(window)
        source = self._read(needed)
        values = source[np.where(inside, row - top, 0), np.where(inside, col - left, 0)]
        return np.where(inside, values, np.asarray(self._fill, source.dtype))

    @property
    def _empty(self) -> NDArray[Any]:
        """A pixel, for its type."""
        return self._read(Window(0, 0, 1, 1))

    def _halved(self, window: Window) -> NDArray[Any]:
        if window.height >= window.width:
            half = window.height // 2
            first = Window(window.row, window.col, half, window.width)
            second = Window(window.row + half, window.col, window.height - half, window.width)
            return np.concatenate([self.read(first), self.read(second)], axis=0)
        half = window.width // 2
        first = Window(window.row, window.col, window.height, half)
        second = Window(window.row, window.col + half, window.height, window.width - half)
        return np.concatenate([self.read(first), self.read(second)], axis=1)

    def _places(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column of the raster under each pixel's centre, -1 where there is none: twice (h, w)."""
        rows = np.arange(window.row, window.row_stop) + 0.5
        cols = np.arange(window.col, window.col_stop) + 0.5
        if self._turn is None:
            x, y = _applied(self._back * self._affine, cols[None, :], rows[:, None])
        else:
            x, y = self._between_nodes(self._turn, rows, cols)
        places = (np.floor(np.where(np.isfinite(v), v, -1.0) + _ON_THE_LINE) for v in (y, x))
        row, col = (np.clip(v, -1, 2**31).astype(np.int64) for v in places)
        return row, col

    def _between_nodes(
        self, turn: pyproj.Transformer, rows: NDArray[np.floating], cols: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Interpolate between nodes that belong to the grid, not to the window."""
        i, j = (np.floor(v / _STEP).astype(np.int64) for v in (rows, cols))
        node_rows, node_cols = (np.arange(v[0], v[-1] + 2) for v in (i, j))
        x, y = _applied(self._affine, node_cols[None, :] * float(_STEP), node_rows[:, None] * float(_STEP))
        x, y = np.broadcast_arrays(x, y)
        found = _applied(self._back, *turn.transform(x, y))
        down, across = rows / _STEP - i, cols / _STEP - j
        i, j = i - i[0], j - j[0]
        with np.errstate(invalid="ignore"):
            lines = [v[:, j] * (1 - across) + v[:, j + 1] * across for v in found]
            x, y = (v[i] * (1 - down)[:, None] + v[i + 1] * down[:, None] for v in lines)
        return x, y


def _applied(
    affine: Affine, x: NDArray[np.floating], y: NDArray[np.floating]
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return places after an affine transform."""
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f
