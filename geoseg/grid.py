"""Rectangles of a raster: chunks that partition it, tiles with a halo that cover it.

Everything here is pixel arithmetic on half-open rectangles; nothing reads a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import ConfigError

# Side in pixels below which tiles are not made smaller to fit a scene: deep networks need some.
_LEAST_TILE = 256


@dataclass(frozen=True, order=True)
class Window:
    """Rows ``row`` to ``row + height`` and columns ``col`` to ``col + width`` of a raster, in pixels, half-open.

    A window may reach beyond the raster (a tile at the edge does).
    """

    row: int
    col: int
    height: int
    width: int

    @property
    def row_stop(self) -> int:
        """First row below the window."""
        return self.row + self.height

    @property
    def col_stop(self) -> int:
        """First column right of the window."""
        return self.col + self.width

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return (self.height, self.width)

    @property
    def empty(self) -> bool:
        """Whether the window holds no pixel."""
        return self.height <= 0 or self.width <= 0

    def intersect(self, other: Window) -> Window:
        """Return what it has in common with ``other``; it is empty (height or width 0) where there is nothing."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = max(0, min(self.row_stop, other.row_stop) - row)
        width = max(0, min(self.col_stop, other.col_stop) - col)
        return Window(row, col, height, width)

    def within(self, other: Window) -> tuple[slice, slice]:
        """Return the slices that cut this window out of an array that holds ``other``."""
        row, col = self.row - other.row, self.col - other.col
        return (slice(row, row + self.height), slice(col, col + self.width))

    def padded(self, pixels: int) -> Window:
        """Return the window grown by ``pixels`` on every side."""
        return Window(self.row - pixels, self.col - pixels, self.height + 2 * pixels, self.width + 2 * pixels)

    def __str__(self) -> str:
        """Return the form that messages use."""
        return f"rows {self.row}-{self.row_stop - 1}, columns {self.col}-{self.col_stop - 1}"


@dataclass(frozen=True)
class ChunkGrid:
    """A partition of a raster of ``shape`` (height, width) into squares of ``size`` pixels, cut at the far edges.

    ``offset`` moves the lines between chunks by so many pixels to the right and down; the first chunks are then larger.
    ``across`` is the size and the offset of the columns where they are not those of the rows.
    """

    shape: tuple[int, int]
    size: int
    offset: int = 0
    across: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse a size that makes no chunks.

        Raises:
            ConfigError: ``size`` is not positive.
        """
        for size, offset in self._axes:
            if size < 1:
                raise ConfigError(f"the chunk size is {size}: it must be at least 1 pixel.")
            if not 0 <= offset < size:
                raise ConfigError(f"the offset of chunks is {offset}: it must be 0 or more, and less than their size.")

    @property
    def _axes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size and offset of the rows, and of the columns."""
        down = (self.size, self.offset)
        return down, self.across or down

    @property
    def record(self) -> list[int]:
        """What tells this partition of a raster from another."""
        return [self.size, self.offset, *(self.across or ())]

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Number of chunk rows and chunk columns."""
        rows, cols = (
            max(1, -(-(length - offset) // size)) for length, (size, offset) in zip(self.shape, self._axes, strict=True)
        )
        return (rows, cols)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return self.counts[0] * self.counts[1]

    def __iter__(self) -> Iterator[Window]:
        """Iterate over the chunks, row by row."""
        return (self.window(number) for number in range(len(self)))

    def window(self, number: int) -> Window:
        """Return chunk ``number``; chunks are numbered row by row from 0."""
        (row, row_stop), (col, col_stop) = (
            (place * size + offset if place else 0, min((place + 1) * size + offset, length))
            for place, length, (size, offset) in zip(
                divmod(number, self.counts[1]), self.shape, self._axes, strict=True
            )
        )
        return Window(row, col, row_stop - row, col_stop - col)


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one fixed shape whose cores lie on a lattice that starts at pixel (0, 0) of the scene.

    A tile is ``tile`` pixels square, or ``tile`` high and ``columns`` wide: a core, and ``halo`` pixels on each side.
    The lattice belongs to the scene and not to a chunk, so a tile sees the same pixels whichever chunk asks for it.
    """

    tile: int
    halo: int
    columns: int | None = None

    def __post_init__(self) -> None:
        """Refuse a tile that is all halo.

        Raises:
            ConfigError: no core is left, or the halo is negative.
        """
        if self.halo < 0:
            raise ConfigError(f"the halo is {self.halo} pixels: it cannot be negative.")
        if min(self.core_shape) < 1:
            raise ConfigError(
                f"a tile of {min(self.shape)} pixels has no core left inside a halo of {self.halo}: "
                f"use --tile {2 * self.halo + max(64, 2 * self.halo)} or more, or a smaller --halo."
            )

    def fitted(self, shape: tuple[int, int], stride: int) -> TileGrid:
        """Return the lattice, of tiles no larger than these, that covers a scene of ``shape`` with the fewest pixels.

        Of the last tiles of a row little more than their halo may lie on the scene; somewhat smaller ones then come out
        even.  Height and width shrink, each by itself, by multiples of ``stride``, to no less than 256 pixels; of equal
        lattices the largest wins.

        >>> TileGrid(1024, 64).fitted((4096, 4096), 32)
        TileGrid(tile=960, halo=64, columns=None)
        """
        height, width = (self._fitted_side(length, stride) for length in shape)
        return TileGrid(height, self.halo, None if width == height else width)

    def _fitted_side(self, length: int, stride: int) -> int:
        least = max(min(self.tile, _LEAST_TILE), 2 * self.halo + stride)
        sides = range(self.tile, least - 1, -stride)
        return min(sides, key=lambda side: -(-length // (side - 2 * self.halo)) * side, default=self.tile)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a whole tile in pixels."""
        return self.tile, self.columns or self.tile

    @property
    def core_shape(self) -> tuple[int, int]:
        """Height and width of the part a tile answers for, in pixels."""
        height, width = self.shape
        return height - 2 * self.halo, width - 2 * self.halo

    @property
    def record(self) -> list[int]:
        """What tells this lattice from another."""
        return [self.tile, self.halo] if self.columns is None else [self.tile, self.halo, self.columns]

    @property
    def reach(self) -> int:
        """How far beyond its core a tile has a say where tiles are blended, in pixels."""
        return self.halo

    def weights(self, position: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the weights of the rows and of the columns of the tile at ``position`` where tiles are blended.

        They are (H,) and (W,) float32, 0 to 1, for tiles of H × W pixels (:func:`blend_weights`), the same for all.
        """
        down, across = (blend_weights(side, self.halo) for side in self.shape)
        return down, across

    def core_window(self, position: tuple[int, int]) -> Window:
        """Return the core of the tile at lattice ``position`` (row, column)."""
        height, width = self.core_shape
        return Window(position[0] * height, position[1] * width, height, width)

    def tile_window(self, position: tuple[int, int]) -> Window:
        """Return the whole tile at lattice ``position``: its core and its halo."""
        return self.core_window(position).padded(self.halo)

    def covering(self, window: Window, overlap: int = 0) -> list[tuple[int, int]]:
        """Return the positions, row by row, of the tiles whose core grown by ``overlap`` pixels meets ``window``."""
        rows, cols = (
            range((start - overlap) // core, -(-(stop + overlap) // core))
            for core, start, stop in zip(
                self.core_shape, (window.row, window.col), (window.row_stop, window.col_stop), strict=True
            )
        )
        return [(row, col) for row in rows for col in cols]


@dataclass(frozen=True)
class ViewGrid:
    """Squares of ``extent`` pixels, each the surroundings of a block of tiles, on a lattice of the scene's own.

    Neighbouring tiles share a square, which holds them whole, halo included.
    """

    tiles: TileGrid
    extent: int

    def __post_init__(self) -> None:
        """Refuse a square that does not hold a tile.

        Raises:
            ConfigError: it is smaller than a tile.
        """
        if self.extent < max(self.tiles.shape):
            raise ConfigError(
                f"the model looks at {self.extent} pixels round a tile, which has {max(self.tiles.shape)}: use --tile "
                f"{self.extent} or less."
            )

    def window(self, tile: Window) -> Window:
        """Return the square round the tile whose window, halo included, is ``tile``."""
        row, col = (
            self._start(start + self.tiles.halo, core)
            for start, core in zip((tile.row, tile.col), self.tiles.core_shape, strict=True)
        )
        return Window(row, col, self.extent, self.extent)

    def _start(self, place: int, core: int) -> int:
        """Return where the square begins, along an axis, that holds the tile whose core begins at ``place``."""
        block = (self.extent - 2 * self.tiles.halo) // core * core
        return place // block * block - (self.extent - block) // 2


def mirror(window: Window, shape: tuple[int, int]) -> tuple[Window, NDArray[np.intp] | None, NDArray[np.intp] | None]:
    """Return where a raster of ``shape``, mirrored at its edges, must be read to fill ``window``.

    Beside the part of the raster come the rows of that part to take, in order, one-dimensional of shape (H,), and its
    columns, (W,), for a window of H × W pixels; None twice where the part is the window itself.
    """
    rows = reflected(window.row, window.row_stop, shape[0])
    cols = reflected(window.col, window.col_stop, shape[1])
    row, col = int(rows.min()), int(cols.min())
    part = Window(row, col, int(rows.max()) + 1 - row, int(cols.max()) + 1 - col)
    return (part, None, None) if part == window else (part, rows - row, cols - col)


def taken(raster: NDArray[Any], rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[Any]:
    """Return the pixels of a raster (…, h, w) at every one of ``rows`` (H,) and ``cols`` (W,): (…, H, W).

    Most of a mirrored window is one stretch of the raster, which is copied as it is: several times as quick as to look
    every pixel up.
    """
    return _along(_along(raster, cols, -1), rows, -2)


def _along(raster: NDArray[Any], places: NDArray[np.intp], axis: int) -> NDArray[Any]:
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    ends = np.concatenate([[0], breaks, [len(places)]])
    longest = int(np.argmax(np.diff(ends)))
    start, stop = int(ends[longest]), int(ends[longest + 1])
    stretch = slice(int(places[start]), int(places[start]) + stop - start)
    middle = raster[..., stretch] if axis == -1 else raster[..., stretch, :]
    if stop - start == len(places):
        return middle
    return np.concatenate([raster.take(places[:start], axis), middle, raster.take(places[stop:], axis)], axis)


def coarse_span(start: int, step: float, size: int, length: int) -> tuple[int, int, NDArray[np.intp]]:
    """Return which of ``size`` coarse pixels from ``start`` on have their centre on an axis of ``length`` pixels.

    A coarse pixel has ``step`` pixels of the axis.  Where none has its centre there, although they reach it, it is the
    nearest.  As first, stop, and for each of the coarse pixels, (``size``,) of shape (N,), the one of those that
    stands for it, counted from the first.
    """
    centre = start + (np.arange(size) + 0.5) * step
    inside = np.flatnonzero((centre >= 0) & (centre < length))
    if len(inside) == 0:
        if start >= length or start + size * step <= 0:
            return 0, 0, inside
        inside = np.array([0 if centre[0] >= length else size - 1])
    first, stop = int(inside[0]), int(inside[-1]) + 1
    folded = centre % (2 * length)
    folded = np.minimum(folded, 2 * length - folded)
    place = np.floor((folded - start) / step).astype(np.intp).clip(first, stop - 1)
    return first, stop, place - first


def coarse_stretches(start: float, step: float, count: int, length: int) -> list[tuple[float, float, int]]:
    """Return the stretches of an axis of ``length`` pixels to be read for ``count`` coarse pixels from ``start`` on.

    A coarse pixel has ``step`` pixels of the axis.  Those that an end of the axis cuts are read by themselves, from
    what of them lies inside, so that the others keep their places.  Each stretch is its start, its stop, and the number
    of coarse pixels.

    >>> coarse_stretches(-1, 4, 3, 10)
    [(0.0, 3.0, 1), (3.0, 7.0, 1), (7.0, 10.0, 1)]
    """
    edges = start + np.arange(count + 1) * step
    whole = [bool(low >= 0 and high <= length) for low, high in itertools.pairwise(edges.tolist())]
    stretches = []
    place = 0
    for inside, group in itertools.groupby(whole):
        own = len(list(group))
        # At most one is cut at either end, and where both are, both by themselves.
        for first, number in [(place, own)] if inside else [(place + i, 1) for i in range(own)]:
            low, high = edges[first], edges[first + number]
            stretches.append((float(max(0.0, low)), float(min(length, high)), number))
        place += own
    return stretches


def reflected(start: int, stop: int, size: int) -> NDArray[np.intp]:
    """Return the pixel of an axis of ``size`` pixels that stands at each place from ``start`` to ``stop``: (N,).

    Places outside the axis are mirrored about its first and last pixel, which are not repeated
    (``numpy.pad(mode="reflect")``), as often as needed.

    >>> reflected(-2, 5, 3).tolist()
    [2, 1, 0, 1, 2, 1, 0]
    """
    if size == 1:
        return np.zeros(stop - start, np.intp)
    place = np.arange(start, stop, dtype=np.intp) % (2 * size - 2)
    return np.minimum(place, 2 * size - 2 - place)


def blend_weights(tile: int, halo: int) -> NDArray[np.float32]:
    """Return the weight, along one axis, of each of a tile's pixels: (N,) for ``tile`` of N, float32, 0 to 1.

    Neighbouring tiles share ``2 * halo`` pixels.  There the weights follow one flank of a Hann window each, and the
    two add up to 1; elsewhere the weight is 1.
    """
    weights = np.ones(tile, np.float32)
    ramp = 2 * halo
    if ramp:
        rise = np.sin(np.pi / 2 * (np.arange(ramp) + 0.5) / ramp) ** 2
        weights[:ramp] = rise
        weights[tile - ramp :] = 1 - rise
    return weights
