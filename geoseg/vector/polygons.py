"""From blocks of labels to seamless polygons in integer pixel coordinates."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import LabelsError
from geoseg.grid import Window
from geoseg.vector import labelling
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.seams import Border, Seams
from geoseg.vector.stitch import Pieces, Stitcher, stitched
from geoseg.vector.tracing import Columns, Labelled, traced

# The label of pixels that belong to no polygon; class ids end below it.
NOTHING = 255
# The confidence of pixels that have none.
UNKNOWN = 65535
# Blocks of the first pass are kept for the second while they are no larger than this, all together.
_KEPT_BYTES = 64 * 2**20
# Of how many blocks a worker may have the outcomes waiting, so that it goes on while the caller takes a batch in.
_AHEAD = 3

Progress = Callable[[int, int], None]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class LabelBlock:
    """A rectangle of a label raster.

    Attributes:
        window: its place in the raster, in pixels.
        labels: (h, w) uint8, :data:`NOTHING` where there is no label.
        confidence: (h, w) uint16 probability of each pixel's class in 1/1000, :data:`UNKNOWN` where there is none;
            None where there is none at all.
    """

    window: Window
    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint16] | None = None


class LabelSource(Protocol):
    """A label raster cut by straight lines into a lattice of blocks, any of which can be read at any time.

    ``cuts`` are the rows and the columns at which blocks begin, and the raster's height and width at their ends.
    """

    @property
    def cuts(self) -> tuple[tuple[int, ...], tuple[int, ...]]: ...  # noqa: D102 - said above

    def read(self, window: Window) -> LabelBlock | None:
        """Return one block, None where there is nothing in it.  Called from several threads at a time."""


def polygonize(
    source: LabelSource,
    *,
    skip: Collection[int] = (),
    connectivity: int = 4,
    workers: int = 1,
    finish: Callable[[PixelPolygons], PixelPolygons] | None = None,
    observe: Callable[[Window, NDArray[np.int32], NDArray[np.int64]], None] | None = None,
    progress: Progress | None = None,
) -> Iterator[PixelPolygons]:
    """Turn the connected regions of equal label of a raster into polygons, block by block.

    Every block is looked at twice: first its border, to know which regions are one across the seams, then its rings.
    The polygons are the same, coordinate by coordinate, whatever the blocks: they only come in another order and in
    other batches.  Memory holds a block for each worker, what lies along seams, and what crosses seams and is not
    complete yet.

    Args:
        source: the raster and its blocks.
        skip: label values that give no polygons.
        connectivity: 4, or 8 where pixels that touch in a corner belong to one feature: its parts have the same
            :attr:`PixelPolygons.feature`.
        workers: how many blocks are worked on at a time, in threads.
        finish: what is done to every batch of finished polygons, in the thread that finished it.
        observe: called once for every block that has regions, in the thread that works on it: with its window, its
            region map (h, w), and by region number the :attr:`PixelPolygons.feature` that the region belongs to;
            number 0 is no region.
        progress: called with the number of looks taken and of all looks.

    Raises:
        LabelsError: a block does not have the shape of its window.
        ValueError: ``connectivity`` is neither 4 nor 8.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity}: it is 4 or 8")
    rows, cols = source.cuts
    if rows[-1] == 0 or cols[-1] == 0:
        return
    work = _Work(source, sorted({NOTHING, *skip}), connectivity, finish or (lambda polygons: polygons), observe)
    with ThreadPoolExecutor(workers) as pool:
        done = 0
        for block, borders in _in_order(pool, workers, work.survey, work.blocks):
            work.learn(block, borders)
            done += 1
            if progress:
                progress(done, 2 * len(work.blocks))
        work.close()
        stitcher = Stitcher(work.seams.spread())
        rows_ended: deque[Future[PixelPolygons]] = deque()
        for block, (finished, pieces) in _in_order(pool, workers, work.trace, work.blocks):
            stitcher.add(pieces)
            if len(finished):
                yield finished
            # What a row of blocks has completed is put together at once, in fewer and larger batches, while the blocks
            # of the next row are worked on.
            if block[1] == len(cols) - 2:
                rows_ended.append(_started(pool, workers, work.stitch, stitcher.take()))
                if (len(rows_ended) > 1 or workers == 1) and len(polygons := rows_ended.popleft().result()):
                    yield polygons
            done += 1
            if progress:
                progress(done, 2 * len(work.blocks))
        for future in rows_ended:
            if len(polygons := future.result()):
                yield polygons


def _started(pool: ThreadPoolExecutor, workers: int, task: Callable[[T], R], item: T) -> Future[R]:
    """Return what ``task`` will give, or has given where there is one worker: it is the thread that asks."""
    if workers > 1:
        return pool.submit(task, item)
    done: Future[R] = Future()
    done.set_result(task(item))
    return done


def _in_order(
    pool: ThreadPoolExecutor, workers: int, task: Callable[[T], R], items: Iterable[T]
) -> Iterator[tuple[T, R]]:
    """Yield each item with what ``task`` gives for it, in order; never more than ``_AHEAD`` × ``workers`` at a time."""
    running: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            running.append((item, _started(pool, workers, task, item)))
            if workers == 1 or len(running) >= _AHEAD * workers:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()
    finally:
        for _, future in running:
            future.cancel()


class _Work:
    """The two looks at each block, and what is known between them."""

    def __init__(
        self,
        source: LabelSource,
        ignored: list[int],
        connectivity: int,
        finish: Callable[[PixelPolygons], PixelPolygons],
        observe: Callable[[Window, NDArray[np.int32], NDArray[np.int64]], None] | None = None,
    ) -> None:
        rows, cols = source.cuts
        self.blocks = [(row, col) for row in range(len(rows) - 1) for col in range(len(cols) - 1)]
        self.finish = finish
        self._observe = observe
        self._source = source
        self._lut = np.arange(256, dtype=np.uint8)
        self._lut[ignored] = NOTHING
        self._plain = ignored == [NOTHING]
        self._corners = connectivity == 8
        lattice = (len(rows) - 1, len(cols) - 1)
        self.seams = Seams(lattice, corners=False)
        self._group_seams = Seams(lattice, corners=True) if self._corners else None
        self._kept: dict[tuple[int, int], Labelled] = {}
        self._kept_bytes = 0

    def survey(self, block: tuple[int, int]) -> tuple[Border, Border | None, Labelled] | None:
        """Take the first look."""
        labelled = self._label(block)
        if labelled is None:
            return None
        sides, first = labelled.regions.sides(), labelled.first_pixel
        groups = None
        if labelled.groups is not None:
            groups = Border.of([labelled.groups[side] for side in sides], labelled.codes, first)
        return Border.of(sides, labelled.codes, first), groups, labelled

    def learn(self, block: tuple[int, int], surveyed: tuple[Border, Border | None, Labelled] | None) -> None:
        """Take in what a first look saw, in the order of the blocks."""
        if surveyed is None:
            return
        border, groups, labelled = surveyed
        self.seams.add(block, border)
        if self._group_seams is not None and groups is not None:
            self._group_seams.add(block, groups)
        if self._kept_bytes + labelled.nbytes <= _KEPT_BYTES:
            self._kept[block] = labelled
            self._kept_bytes += labelled.nbytes

    def close(self) -> None:
        """Join what touches across seams; second looks may start."""
        self.seams.close()
        if self._group_seams is not None:
            self._group_seams.close()

    def trace(self, block: tuple[int, int]) -> tuple[PixelPolygons, Pieces | None]:
        """Take the second look."""
        labelled = self._kept.pop(block, None) or self._label(block)
        if labelled is None:
            return PixelPolygons.joined([]), None
        raster_width = self._source.cuts[1][-1]
        open_ = self.seams.of(block)
        open_features = open_ if self._group_seams is None else self._group_seams.of(block)
        feature = labelled.first_pixel.copy()
        feature[open_features.numbers] = open_features.first_pixel
        if labelled.groups is not None:
            feature = feature[labelled.groups]
        if self._observe is not None:
            inner = labelled.regions.framed().reshape(-1, labelled.window.width + 2)[1:-1, 1:-1]
            self._observe(labelled.window, inner, feature)
        finished, pieces = traced(labelled, open_, _columns(labelled, feature), raster_width)
        return self.finish(finished) if len(finished) else finished, pieces

    def stitch(self, parts: list[Pieces]) -> PixelPolygons:
        """Put complete regions together."""
        polygons = stitched(parts, self._source.cuts[1][-1])
        return self.finish(polygons) if len(polygons) else polygons

    def _label(self, block: tuple[int, int]) -> Labelled | None:
        rows, cols = self._source.cuts
        row, col = block
        window = Window(rows[row], cols[col], rows[row + 1] - rows[row], cols[col + 1] - cols[col])
        given = self._source.read(window)
        if given is None:
            return None
        for array in (given.labels, given.confidence):
            if array is not None and array.shape != window.shape:
                raise LabelsError(f"the block at {window} has arrays of shape {array.shape}, not {window.shape}.")
        codes = np.ascontiguousarray(given.labels) if self._plain else self._lut[given.labels]
        regions = labelling.label_regions(codes, NOTHING)
        groups = regions.joined_corners(codes) if self._corners else None
        first = regions.first_pixels(window, cols[-1])
        return Labelled(window, codes, given.confidence, regions, first, groups)


def _columns(block: Labelled, feature: NDArray[np.int64]) -> Columns:
    """Return what is known of the regions of a block, by number: the columns of polygons from ``feature`` on."""
    regions = block.regions
    class_id = block.codes.reshape(-1)[regions.first].astype(np.int64)
    sums = known = np.zeros(len(class_id), np.int64)
    if block.confidence is not None:
        sums, known = regions.sums(block.confidence, UNKNOWN)
    return feature, class_id, regions.pixels, sums, known
