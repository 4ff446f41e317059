"""Which coarse cell, or which polygon, each pixel of a grid lies in, whatever CRS the two are in.

Cells are told apart by their place in the coarse raster, never by their size in pixels: seen from another CRS they are
sheared, and hold now more and now fewer pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
from affine import Affine
from numpy.typing import NDArray

# Pixels between the points that are transformed exactly; between them positions are interpolated, or on a lattice half
# as wide where that is not good enough.
_SPACING = 64
# Of a cell: pixels nearer to an edge are transformed themselves.  An interpolation must be several times better.
_NEAR, _GOOD = 1e-3, 2.5e-4
# The cell of what cannot be transformed.
_NOWHERE = -(1 << 40)

Places = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Blocks:
    """Blocks of a tile.

    Attributes:
        numbers: (H, W) int32, the block of each pixel, counted from 0 in the tile; -1 for none.
        ids: (B,) int64, what the blocks are called outside of the tile.
        classes: (B,) int16, row of each block's coarse class in its table.
    """

    numbers: NDArray[np.int32]
    ids: NDArray[np.int64]
    classes: NDArray[np.int16]

    def turned(self, turn: int) -> Blocks:
        """Return them flipped from left to right (``turn`` has 4 in it), then turned by quarters (its lower bits)."""
        flipped = self.numbers[:, ::-1] if turn & 4 else self.numbers
        return Blocks(np.ascontiguousarray(np.rot90(flipped, turn & 3)), self.ids, self.classes)

    def where(self, kept: NDArray[np.bool_]) -> Blocks:
        """Return them without the pixels that are not kept, (H, W)."""
        return Blocks(np.where(kept, self.numbers, -1).astype(np.int32), self.ids, self.classes)

    def whole(self, expected: NDArray[np.float64], least: float) -> Blocks:
        """Return them without those of which the tile holds less than a share ``least`` of ``expected`` pixels (B,)."""
        held = np.bincount(self.numbers[self.numbers >= 0], minlength=len(self.ids))
        kept = np.append(held >= least * expected, False)
        return self.where(kept[self.numbers])

    def eroded(self, reach: int) -> Blocks:
        """Return them without pixels that see another block, or none, at most ``reach`` rows and columns away."""
        kept = np.ones(self.numbers.shape, bool)
        for axis in (0, 1):
            kept &= _alike(self.numbers, reach, axis)
        # Two straight looks do not see around a corner: what is kept of the rows must also agree across the columns.
        across = np.where(_alike(self.numbers, reach, 1), self.numbers, -2)
        return self.where(kept & _alike(across, reach, 0))


def _alike(numbers: NDArray[Any], reach: int, axis: int) -> NDArray[np.bool_]:
    """Return where the pixels up to ``reach`` steps either way along an axis, within the tile, have the same number."""
    along = np.moveaxis(numbers, axis, 0)
    kept = np.ones(along.shape, bool)
    for step in range(1, min(reach, len(along) - 1) + 1):
        same = along[step:] == along[:-step]
        kept[step:] &= same
        kept[:-step] &= same
    return np.moveaxis(kept, 0, axis)


@dataclass(frozen=True)
class CellGrid:
    """The cells of a coarse raster: its CRS, affine (from corners of cells), and ``shape`` (rows, columns)."""

    crs: pyproj.CRS
    affine: Affine
    shape: tuple[int, int]

    def cells(
        self, crs: pyproj.CRS, affine: Affine, shape: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column, (H, W) each, of the cell that the centre of each pixel of a grid lies in.

        An edge belongs to the cell right of it or below.  Cells beyond the raster have numbers too.

        Args:
            crs: of the grid.
            affine: from corners of its pixels to its CRS; it may turn and flip.
            shape: its height and width.
        """
        found = self._interpolated(crs, affine, shape)
        if found is None:
            rows, cols = np.indices(shape) + 0.5
            row, col = self.places(crs, affine, rows, cols)
        else:
            row, col = found
            near = (np.abs(row - np.rint(row)) < _NEAR) | (np.abs(col - np.rint(col)) < _NEAR)
            at_row, at_col = np.nonzero(near)
            row[near], col[near] = self.places(crs, affine, at_row + 0.5, at_col + 0.5)
        return _whole(row), _whole(col)

    def places(self, crs: pyproj.CRS, affine: Affine, rows: NDArray[Any], cols: NDArray[Any]) -> Places:
        """Return rows and columns, in cells, of points that are given in pixels of a grid; not finite for nowhere."""
        there: Any = affine
        x, y = _turn(crs, self.crs).transform(*(there * (cols, rows)))
        with np.errstate(invalid="ignore"):
            back: Any = ~self.affine
            col, row = back * (np.asarray(x), np.asarray(y))
        return row, col

    def ids(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return row · width + column of cells, -1 beyond the raster; in int64, which maps of a country need."""
        inside = (rows >= 0) & (rows < self.shape[0]) & (cols >= 0) & (cols < self.shape[1])
        return np.where(inside, rows * self.shape[1] + cols, -1)

    def areas(self, ids: NDArray[np.int64], crs: pyproj.CRS, affine: Affine) -> NDArray[np.float64]:
        """Return the areas (B,) of cells in pixels of a grid."""
        rows, cols = (each[:, None] for each in np.divmod(ids, self.shape[1]))
        x, y = self.affine * (cols + np.array([0, 1, 1, 0]), rows + np.array([0, 0, 1, 1]))
        x, y = _turn(self.crs, crs).transform(x, y)
        col, row = ~affine * (np.asarray(x), np.asarray(y))
        # The shoelace formula, about the first corner.
        col, row = col - col[:, :1], row - row[:, :1]
        twice = (col * np.roll(row, -1, axis=1) - np.roll(col, -1, axis=1) * row).sum(1)
        result: NDArray[np.float64] = np.abs(twice) / 2
        return result

    def _interpolated(self, crs: pyproj.CRS, affine: Affine, shape: tuple[int, int]) -> Places | None:
        """Return where all pixels lie, from few exact places; None where that does not pay."""
        step = _SPACING
        while step >= 8 and min(shape) > step // 2:
            rows, cols = (np.arange(-(-length // step) + 1) * step for length in shape)
            nodes = np.stack(self.places(crs, affine, *np.meshgrid(rows, cols, indexing="ij")))
            middles = np.stack(self.places(crs, affine, *np.meshgrid(_middles(rows), _middles(cols), indexing="ij")))
            if not np.isfinite(nodes).all() or not np.isfinite(middles).all():
                return None
            means = (nodes[:, 1:, 1:] + nodes[:, 1:, :-1] + nodes[:, :-1, 1:] + nodes[:, :-1, :-1]) / 4
            if np.abs(means - middles).max() < _GOOD:
                row, col = _between(nodes, step, shape)
                return row, col
            step //= 2
        return None


def _middles(nodes: NDArray[Any]) -> NDArray[np.float64]:
    return (nodes[1:] + nodes[:-1]) / 2


def _between(nodes: NDArray[np.float64], step: int, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Return values at the centres of pixels, (2, H, W), bilinearly from those at every ``step``-th corner."""
    for axis, length in ((1, shape[0]), (2, shape[1])):
        at = (np.arange(length) + 0.5) / step
        before = at.astype(np.int64)
        share = (at - before).reshape((-1, 1) if axis == 1 else (1, -1))
        nodes = nodes.take(before, axis) * (1 - share) + nodes.take(before + 1, axis) * share
    return nodes


def _whole(place: NDArray[np.float64]) -> NDArray[np.int64]:
    known = np.isfinite(place) & (np.abs(place) < -_NOWHERE)
    return np.where(known, np.floor(np.where(known, place, 0)), _NOWHERE).astype(np.int64)


@lru_cache(maxsize=64)
def _turn(first: pyproj.CRS, second: pyproj.CRS) -> pyproj.Transformer:
    """Return the transformer, which costs more than a tile to make."""
    return pyproj.Transformer.from_crs(first, second, always_xy=True)
