"""Macro-windows: the parts of a large scene that a method with an overview takes for scenes of their own.

They lie on a lattice of the scene, whatever the chunks of a run, and share a strip with each neighbour in which the
answers of both are blended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import ConfigError
from geoseg.grid import Window


@dataclass(frozen=True)
class MacroGrid:
    """Macro-windows of one size that cover a scene and never leave it.

    Window ``k`` of an axis begins at ``k · (extent - overlap)``; the last one is put against the scene's edge.  Where
    the scene is no longer than ``extent``, there is one of its length.  Cores, which partition the scene, end in the
    middle of the shared strips.

    Attributes:
        shape_yx: height and width of the scene in pixels.
        extent: side of a macro-window.
        overlap: pixels that neighbours share, even; the last two of an axis may share more.
    """

    shape_yx: tuple[int, int]
    extent: int
    overlap: int

    def __post_init__(self) -> None:
        """Refuse sizes that make no lattice.

        Raises:
            ConfigError: an overlap that is odd, negative or more than half the extent, or a scene without a pixel.
        """
        if self.overlap % 2 or not 0 <= 2 * self.overlap <= self.extent or self.extent < 1:
            raise ConfigError(
                f"macro-windows of {self.extent} pixels cannot share {self.overlap} with their neighbours: give an "
                "even number of at most half of them."
            )
        if min(self.shape_yx) < 1:
            raise ConfigError(f"a scene of {self.shape_yx[0]} × {self.shape_yx[1]} pixels has nothing to look at.")

    @property
    def step(self) -> int:
        """Pixels from one macro-window to the next, but for the last."""
        return self.extent - self.overlap

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a whole macro-window in pixels."""
        return self.extent, self.extent

    @property
    def record(self) -> list[int]:
        """What tells this lattice from another."""
        return [*self.shape_yx, self.extent, self.overlap]

    @property
    def reach(self) -> int:
        """How far beyond its core a macro-window has a say where they are blended, in pixels."""
        return self.overlap // 2

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Number of rows and columns of macro-windows."""
        rows, cols = (
            1 if side <= self.extent else -(-(side - self.overlap) // self.step) for side in self.shape_yx
        )  # fmt: skip
        return rows, cols

    def __len__(self) -> int:
        """Return the number of macro-windows."""
        return self.counts[0] * self.counts[1]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Iterate over the positions, row by row."""
        return ((row, col) for row in range(self.counts[0]) for col in range(self.counts[1]))

    def tile_window(self, position: tuple[int, int]) -> Window:
        """Return the macro-window at lattice ``position`` (row, column)."""
        height, width = (min(side, self.extent) for side in self.shape_yx)
        row, col = (
            min(place * self.step, side - size)
            for place, side, size in zip(position, self.shape_yx, (height, width), strict=True)
        )
        return Window(row, col, height, width)

    def core_window(self, position: tuple[int, int]) -> Window:
        """Return the part of the scene that the macro-window at ``position`` answers for."""
        (row, row_stop), (col, col_stop) = (self._core(axis, place) for axis, place in enumerate(position))
        return Window(row, col, row_stop - row, col_stop - col)

    def covering(self, window: Window, overlap: int = 0) -> list[tuple[int, int]]:
        """Return the positions, row by row, of those whose core grown by ``overlap`` pixels meets ``window``."""
        spans = ((window.row, window.row_stop), (window.col, window.col_stop))
        rows, cols = (
            [place for place in range(count) if _meets(self._core(axis, place), (start - overlap, stop + overlap))]
            for axis, (count, (start, stop)) in enumerate(zip(self.counts, spans, strict=True))
        )
        return [(row, col) for row in rows for col in cols]

    def weights(self, position: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the weight of each row and each column of the macro-window at ``position``, 0 to 1.

        A pixel's weight is the product of both; over all macro-windows they add up to 1.  In a shared strip they
        follow one flank of a Hann window each, as :func:`geoseg.grid.blend_weights` has it.
        """
        window = self.tile_window(position)
        rows, cols = (
            self._weights(axis, place, start, size)
            for axis, (place, start, size) in enumerate(
                zip(position, (window.row, window.col), window.shape, strict=True)
            )
        )
        return rows, cols

    def _core(self, axis: int, place: int) -> tuple[int, int]:
        """Return the first pixel of a core along an axis, and the one behind its last."""
        half = self.overlap // 2
        start = place * self.step + half if place else 0
        stop = (place + 1) * self.step + half if place < self.counts[axis] - 1 else self.shape_yx[axis]
        return start, stop

    def _weights(self, axis: int, place: int, start: int, size: int) -> NDArray[np.float32]:
        pixels = np.arange(start, start + size) + 0.5

        def risen(strip: int) -> NDArray[np.float64]:
            """How far the flank over the strip before window ``strip`` has risen at each pixel."""
            inside = pixels - strip * self.step
            share = inside / self.overlap if self.overlap else np.sign(inside)
            angle: NDArray[np.float64] = np.clip(share, 0, 1) * (np.pi / 2)
            return np.square(np.sin(angle))

        weights = np.ones(size)
        if place:
            weights *= risen(place)
        if place < self.counts[axis] - 1:
            weights *= 1 - risen(place + 1)
        return weights.astype(np.float32)


def _meets(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]
