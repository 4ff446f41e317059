"""Two maps of class indices on one grid, compared block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoseg.boundaries import near_other_class, reach
from geoseg.engine.evaluation import Pictures
from geoseg.engine.objects import InnerPoints
from geoseg.errors import LabelsError
from geoseg.grid import ChunkGrid, Window
from geoseg.metrics import IGNORED, Calibration, Confusion, Overlap, confusion_matrix

RIGHT, WRONG, LEFT_OUT = 0, 1, 2
BINS = 10

Read = Callable[[Window], NDArray[np.uint8]]


@dataclass(frozen=True)
class Maps:
    """What is compared.

    Attributes:
        shape: height and width of the grid.
        classes: how many.
        reference: reads class indices, 255 where ignored.
        prediction: likewise.
        area: reads where to compare, 1 or 0; None for everywhere.
        confidence: reads confidences, below 0 where there is none; None without any.
        confidence_path: its file, for messages.
    """

    shape: tuple[int, int]
    classes: int
    reference: Read
    prediction: Read
    area: Read | None = None
    confidence: Callable[[Window], NDArray[np.floating]] | None = None
    confidence_path: str = ""


@dataclass(frozen=True)
class Counts:
    """What was counted; see :class:`geoseg.engine.evaluation.Evaluation`."""

    pixels: dict[str, int]
    matrix: Confusion
    eroded: Confusion
    boundaries: Overlap
    calibration: Calibration
    pictures: Pictures | None


def compare(
    maps: Maps,
    *,
    chunk: int,
    erode_px: float,
    boundary_yx: tuple[float, float],
    points: Sequence[InnerPoints] = (),
    picture_side: int = 0,
    write: Callable[[Window, NDArray[np.uint8]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Counts:
    """Compare two maps; nothing depends on ``chunk``, and no more than a block is in memory.

    Args:
        maps: what is compared.
        chunk: side of the blocks in pixels.
        erode_px: reference pixels this near a class boundary are left out of :attr:`Counts.eroded`; 0 for none.
        boundary_yx: distance of boundary IoU in pixels, down and across.
        points: told which pixels are evaluated.
        picture_side: longest side of the small maps in pixels; 0 for none.
        write: called with each block's right, wrong and left-out pixels.
        progress: called with blocks done and blocks in all.

    Raises:
        LabelsError: a confidence is not from 0 to 1.
    """
    k = maps.classes
    matrix, eroded = np.zeros((k, k), np.int64), np.zeros((k, k), np.int64)
    nothing = np.zeros(k, np.int64)
    boundaries = Overlap(nothing, nothing, nothing)
    no_pixels = np.zeros(BINS, np.int64)
    calibration = Calibration(no_pixels, no_pixels, no_pixels)
    left_out = {"outside_area": 0, "reference_ignored": 0, "prediction_ignored": 0}
    painter = _Painter(maps.shape, picture_side) if picture_side else None
    grid = ChunkGrid(maps.shape, chunk)
    for done, window in enumerate(grid, 1):
        block = _Block(maps, window, erode_px, boundary_yx)
        matrix += confusion_matrix(block.reference, block.prediction, k)
        boundaries += Overlap.of_boundaries(
            block.reference, block.prediction, block.near_reference, block.near_prediction, k
        )
        if block.eroded is not None:
            eroded += confusion_matrix(np.where(block.eroded, IGNORED, block.reference), block.prediction, k)
        for name, number in block.left_out().items():
            left_out[name] += number
        if maps.confidence is not None:
            calibration += _calibration(maps.confidence(block.window), block, maps.confidence_path)
        for inner in points:
            inner.look(window, block.evaluated)
        if painter is not None:
            painter.add(block)
        if write is not None:
            write(window, np.where(block.evaluated, block.wrong, LEFT_OUT).astype(np.uint8))
        if progress is not None:
            progress(done, len(grid))
    pixels = {"all": maps.shape[0] * maps.shape[1], "evaluated": int(matrix.sum()), **left_out}
    pictures = painter.finished() if painter is not None else None
    return Counts(pixels, Confusion(matrix), Confusion(eroded), boundaries, calibration, pictures)


class _Block:
    """A window of both maps, read with as much around it as boundaries need."""

    def __init__(self, maps: Maps, window: Window, erode_px: float, boundary_yx: tuple[float, float]) -> None:
        self.window = window
        halo = max(reach((erode_px, erode_px)), reach(boundary_yx))
        wide = window.padded(halo).intersect(Window(0, 0, *maps.shape))
        core = window.within(wide)
        reference, prediction = maps.reference(wide), maps.prediction(wide)
        self.near_reference = near_other_class(reference, boundary_yx)[core]
        self.near_prediction = near_other_class(prediction, boundary_yx)[core]
        self.eroded = near_other_class(reference, (erode_px, erode_px))[core] if erode_px > 0 else None
        self.reference, self.prediction = reference[core], prediction[core]
        self.outside = np.zeros(window.shape, bool)
        if maps.area is not None:
            self.outside = maps.area(window) == 0
            self.reference = np.where(self.outside, np.uint8(IGNORED), self.reference)
        self.evaluated = (self.reference != IGNORED) & (self.prediction != IGNORED)
        self.wrong = self.evaluated & (self.reference != self.prediction)

    def left_out(self) -> dict[str, int]:
        """Return how many pixels are left out for each cause; the first that holds counts."""
        unknown = ~self.outside & (self.reference == IGNORED)
        return {
            "outside_area": int(self.outside.sum()),
            "reference_ignored": int(unknown.sum()),
            "prediction_ignored": int((~self.outside & ~unknown & (self.prediction == IGNORED)).sum()),
        }


def _calibration(values: NDArray[np.floating], block: _Block, path: str) -> Calibration:
    if (values > 1).any():
        raise LabelsError(
            f"{path} has the value {values.max():g} and is no confidence: give floats from 0 to 1, or "
            "integers in 1/1000."
        )
    known = block.evaluated & (values >= 0)
    return Calibration.of(values[known], ~block.wrong[known], BINS)


class _Painter:
    """Small maps, put together block by block: labels at the middle of each cell, errors as their share of it."""

    def __init__(self, shape: tuple[int, int], side: int) -> None:
        self._factor = max(1, -(-max(shape) // side))
        small = tuple(-(-length // self._factor) for length in shape)
        self._middles = [
            np.minimum(np.arange(n) * self._factor + self._factor // 2, length - 1)
            for n, length in zip(small, shape, strict=True)
        ]
        self._labels = [np.full(small, IGNORED, np.uint8) for _ in range(2)]
        self._sums = [np.zeros(small, np.int64) for _ in range(2)]

    def add(self, block: _Block) -> None:
        """Paint one block."""
        window = block.window
        spans = ((window.row, window.row_stop), (window.col, window.col_stop))
        ranges = [np.searchsorted(m, span) for m, span in zip(self._middles, spans, strict=True)]
        place = tuple(slice(first, last) for first, last in ranges)
        rows, cols = (m[p] - span[0] for m, p, span in zip(self._middles, place, spans, strict=True))
        for small, labels in zip(self._labels, (block.reference, block.prediction), strict=True):
            small[place] = labels[rows[:, None], cols]
        cells = [np.arange(first, last) // self._factor for first, last in spans]
        starts = [np.flatnonzero(np.append(True, np.diff(cell) > 0)) for cell in cells]
        target = tuple(slice(cell[0], cell[-1] + 1) for cell in cells)
        for sums, what in zip(self._sums, (block.wrong, block.evaluated), strict=True):
            by_row = np.add.reduceat(what, starts[0], axis=0, dtype=np.int64)
            sums[target] += np.add.reduceat(by_row, starts[1], axis=1)

    def finished(self) -> Pictures:
        """Return the maps."""
        wrong, evaluated = self._sums
        share = np.divide(wrong, evaluated, out=np.full(wrong.shape, np.nan), where=evaluated > 0)
        return Pictures(self._labels[0], self._labels[1], share, self._factor)
