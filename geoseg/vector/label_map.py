"""A whole label raster under random access: in memory while it is small, else in a temporary file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import OutputError, one_line
from geoseg.grid import Window
from geoseg.vector.polygons import NOTHING, UNKNOWN, LabelBlock, LabelSource

# Rasters up to this many pixels stay in memory.
_MEMORY_PIXELS = 64 * 2**20


class LabelArray:
    """An array of labels as a source of polygons, cut into squares.

    >>> from geoseg.vector.polygons import polygonize
    >>> for polygons in polygonize(LabelArray(np.array([[1, 1, 2]], np.uint8), size=1)):
    ...     print(polygons.class_id, *polygons.geometry)
    [1 2] POLYGON ((0 0, 0 1, 2 1, 2 0, 0 0)) POLYGON ((2 0, 2 1, 3 1, 3 0, 2 0))

    Args:
        labels: (H, W) uint8, 255 where there is no label.
        confidence: (H, W) uint16 in 1/1000, None where there is none.
        size: side of the squares in pixels.
        cuts: other lines to cut along: the rows and the columns at which blocks begin, with the ends of the raster.
    """

    def __init__(
        self,
        labels: NDArray[np.uint8],
        confidence: NDArray[np.uint16] | None = None,
        *,
        size: int = 2048,
        cuts: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
    ) -> None:
        height, width = labels.shape
        self._labels, self._confidence = labels, confidence
        self.cuts = cuts or ((*range(0, height, size), height), (*range(0, width, size), width))

    def read(self, window: Window) -> LabelBlock:
        """Return one block."""
        place = _place(window)
        return LabelBlock(window, self._labels[place], None if self._confidence is None else self._confidence[place])


class LabelMap:
    """A copy of a label source that can be changed and looked at anywhere; itself a source with the same blocks.

    Pixels whose label has been changed have no confidence any more: what is known of them speaks of another class.
    Use it as a context manager: the file goes when it is left.

    Args:
        source: what is copied.
        workdir: folder for the file.
        progress: called with blocks copied and blocks in all.
    """

    def __init__(
        self,
        source: LabelSource,
        workdir: str | os.PathLike[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._source = source
        self._workdir = Path(workdir)
        self._progress = progress
        self._stack = ExitStack()
        self.labels: NDArray[np.uint8] = np.empty((0, 0), np.uint8)

    def __enter__(self) -> LabelMap:
        """Copy the source.

        Raises:
            OutputError: the folder cannot be written, or the disk is full.
        """
        rows, cols = self.cuts
        shape = (rows[-1], cols[-1])
        windows = self.windows()
        with ExitStack() as stack:
            if shape[0] * shape[1] <= _MEMORY_PIXELS:
                self.labels = np.full(shape, NOTHING, np.uint8)
            else:
                self.labels = self._in_file(stack, shape)
            for done, window in enumerate(windows, 1):
                block = self._source.read(window)
                if block is not None:
                    self.labels[_place(window)] = block.labels
                if self._progress:
                    self._progress(done, len(windows))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file."""
        self.labels = np.empty((0, 0), np.uint8)
        self._stack.close()

    @property
    def cuts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Where blocks begin, and the raster's end: rows and columns."""
        return self._source.cuts

    def windows(self) -> list[Window]:
        """Return the blocks, row by row."""
        rows, cols = self.cuts
        return [
            Window(row, col, row_stop - row, col_stop - col)
            for row, row_stop in pairwise(rows)
            for col, col_stop in pairwise(cols)
        ]

    def read(self, window: Window) -> LabelBlock:
        """Return one block with the labels as they are now."""
        labels = np.array(self.labels[_place(window)])
        given = self._source.read(window)
        if given is None or given.confidence is None:
            return LabelBlock(window, labels)
        return LabelBlock(window, labels, np.where(given.labels == labels, given.confidence, np.uint16(UNKNOWN)))

    def forget(self, values: Collection[int]) -> None:
        """Turn all pixels of these labels into nothing."""
        table = np.arange(256, dtype=np.uint8)
        table[list(values)] = NOTHING
        for window in self.windows():
            place = _place(window)
            self.labels[place] = table[self.labels[place]]

    def _in_file(self, stack: ExitStack, shape: tuple[int, int]) -> NDArray[Any]:
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="labels-", dir=self._workdir))
            path = Path(folder) / "labels.u8"
            # Written, not only sized: a disk that is too small says so here rather than kill the process later.
            with open(path, "wb") as file:
                row = bytes([NOTHING]) * shape[1]
                for _ in range(shape[0]):
                    file.write(row)
            return np.memmap(path, np.uint8, "r+", shape=shape)
        except OSError as error:
            raise OutputError(
                f"the temporary file of labels in {self._workdir} failed ({one_line(error)}): free some disk space, "
                "or choose another --workdir."
            ) from error


def _place(window: Window) -> tuple[slice, slice]:
    return (slice(window.row, window.row_stop), slice(window.col, window.col_stop))
