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
from geoseg.vector import labelling, topology
from geoseg.vector.pixel_polygons import PixelPolygons
from geoseg.vector.seams import Border, Open, Seams
from geoseg.vector.stitch import Pieces, Stitcher

# The label of pixels that belong to no polygon; class ids end below it.
NOTHING = 255
# The confidence of pixels that have none.
UNKNOWN = 65535
# Region maps of the first pass are kept for the second while they are no larger than this, all together.
_KEPT_BYTES = 96 * 2**20

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
        for block, (finished, pieces) in _in_order(pool, workers, work.trace, work.blocks):
            stitcher.add(pieces)
            if len(finished):
                yield finished
            # What a row of blocks has completed is put together at once: fewer, larger batches.
            if block[1] == len(cols) - 2 and len(stitched := stitcher.take(cols[-1])):
                yield work.finish(stitched)
            done += 1
            if progress:
                progress(done, 2 * len(work.blocks))


def _in_order(
    pool: ThreadPoolExecutor, workers: int, task: Callable[[T], R], items: Iterable[T]
) -> Iterator[tuple[T, R]]:
    """Yield each item with what ``task`` gives for it, in order; never more than ``workers`` + 1 at a time."""
    if workers == 1:
        for item in items:
            yield item, task(item)
        return
    running: deque[tuple[T, Future[R]]] = deque()
    try:
        for item in items:
            running.append((item, pool.submit(task, item)))
            if len(running) > workers:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()
    finally:
        for _, future in running:
            future.cancel()


@dataclass(frozen=True)
class _Labelled:
    """The regions of one block: see :func:`geoseg.vector.labelling.label_regions`."""

    window: Window
    codes: NDArray[np.uint8]
    confidence: NDArray[np.uint16] | None
    regions: NDArray[np.int32]
    first: NDArray[np.int32]
    pixels: NDArray[np.int64]
    runs: NDArray[np.int32]
    groups: NDArray[np.int32] | None

    @property
    def stride(self) -> int:
        return self.window.width + 2

    def inner(self) -> NDArray[np.int32]:
        """The region map without its frame, (h, w)."""
        return self.regions.reshape(-1, self.stride)[1:-1, 1:-1]

    def first_pixels(self, raster_width: int) -> NDArray[np.int64]:
        """Each region's first pixel in the raster."""
        row, col = np.divmod(self.first.astype(np.int64), self.stride)
        return (row - 1 + self.window.row) * raster_width + col - 1 + self.window.col


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
        self._kept: dict[tuple[int, int], _Labelled] = {}
        self._kept_bytes = 0

    def survey(self, block: tuple[int, int]) -> tuple[Border, Border | None, _Labelled] | None:
        """Take the first look."""
        labelled = self._label(block)
        if labelled is None:
            return None
        inner, first = labelled.inner(), labelled.first_pixels(self._source.cuts[1][-1])
        groups = None
        if labelled.groups is not None:
            groups = Border.of(labelled.groups[inner], labelled.codes, first)
        return Border.of(inner, labelled.codes, first), groups, labelled

    def learn(self, block: tuple[int, int], surveyed: tuple[Border, Border | None, _Labelled] | None) -> None:
        """Take in what a first look saw, in the order of the blocks."""
        if surveyed is None:
            return
        border, groups, labelled = surveyed
        self.seams.add(block, border)
        if self._group_seams is not None and groups is not None:
            self._group_seams.add(block, groups)
        if self._kept_bytes + labelled.regions.nbytes <= _KEPT_BYTES:
            self._kept[block] = labelled
            self._kept_bytes += labelled.regions.nbytes

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
        feature = labelled.first_pixels(raster_width)
        feature[open_features.numbers] = open_features.first_pixel
        if labelled.groups is not None:
            feature = feature[labelled.groups]
        if self._observe is not None:
            self._observe(labelled.window, labelled.inner(), feature)
        finished, pieces = _traced(labelled, open_, feature, raster_width)
        return self.finish(finished) if len(finished) else finished, pieces

    def _label(self, block: tuple[int, int]) -> _Labelled | None:
        rows, cols = self._source.cuts
        row, col = block
        window = Window(rows[row], cols[col], rows[row + 1] - rows[row], cols[col + 1] - cols[col])
        given = self._source.read(window)
        if given is None:
            return None
        for array in (given.labels, given.confidence):
            if array is not None and array.shape != window.shape:
                raise LabelsError(f"the block at {window} has arrays of shape {array.shape}, not {window.shape}.")
        codes = given.labels if self._plain else self._lut[given.labels]
        regions, first, pixels, runs = labelling.label_regions(np.ascontiguousarray(codes), NOTHING)
        groups = None
        if self._corners:
            groups = np.arange(len(first), dtype=np.int32)
            labelling.join_corners(regions, window.width + 2, codes, groups)
        return _Labelled(window, codes, given.confidence, regions, first, pixels, runs, groups)


def _traced(
    block: _Labelled, open_: Open, feature: NDArray[np.int64], raster_width: int
) -> tuple[PixelPolygons, Pieces]:
    """Walk the rings of a block whose open regions are known."""
    regions, representative = _with_frame(block, open_)
    stride, count = block.stride, len(block.first)
    marks = topology.framed_marks(regions, stride)
    chains = topology.trace_chains(regions, stride, marks)
    vertices, starts, owners, holes = topology.trace_rings(regions, stride, marks, block.runs)
    codes = block.codes.reshape(-1)
    row, col = np.divmod(block.first[1:], stride)
    class_id = np.zeros(count, np.int64)
    class_id[1:] = codes[(row - 1) * block.window.width + col - 1]
    sums = known = np.zeros(count, np.int64)
    if block.confidence is not None:
        sums, known = labelling.sums_by_region(block.regions, stride, block.confidence, UNKNOWN, count)
    columns = (feature, class_id, block.pixels, sums, known)

    is_open = np.zeros(count, bool)
    is_open[open_.numbers] = True
    rings = topology.grouped_rings(owners, is_open)
    place = (block.window.row, block.window.col)
    corners, ring_starts = topology.corners_of(vertices, starts, rings, stride, *place, True)
    shells = np.flatnonzero(~holes[rings])
    numbers = owners[rings[shells]]
    first = corners[ring_starts[shells]]
    finished = PixelPolygons(
        corners,
        ring_starts,
        np.append(shells, len(rings)).astype(np.int64),
        first[:, 1].astype(np.int64) * raster_width + first[:, 0],
        *(column[numbers] for column in columns),
    )

    key_of = np.full(count, -1, np.int64)
    key_of[representative] = open_.keys
    rest = np.flatnonzero(is_open[owners])
    ring_corners, ring_offsets = topology.corners_of(vertices, starts, rest, stride, *place, False)
    chain_vertices, chain_starts, chain_owners, heads, tails = chains
    every = np.arange(len(chain_owners))
    chain_corners, chain_offsets = topology.corners_of(chain_vertices, chain_starts, every, stride, *place, False)
    closed = np.full(len(rest), -1, np.int64)
    region_keys, sums_of = _by_key(open_, columns)
    return finished, Pieces(
        np.concatenate([ring_corners, chain_corners]),
        np.concatenate([ring_offsets, ring_offsets[-1] + chain_offsets[1:]]),
        key_of[np.concatenate([owners[rest], chain_owners])],
        np.concatenate([closed, _in_raster(heads, stride, place, raster_width)]),
        np.concatenate([closed, _in_raster(tails, stride, place, raster_width)]),
        region_keys,
        *sums_of,
    )


def _with_frame(block: _Labelled, open_: Open) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the region map with one number for what is one region, and with the neighbours' regions in its frame.

    Beside it, the number that each of ``open_.numbers`` now goes by.
    """
    count = len(block.first)
    keys, first, inverse = np.unique(open_.keys, return_index=True, return_inverse=True)
    representative = open_.numbers[first][inverse]
    regions = block.regions
    if len(keys) < len(open_.keys):
        table = np.arange(count, dtype=np.int32)
        table[open_.numbers] = representative
        labelling.renumber(regions, block.stride, block.runs, table)
    frame = np.concatenate(open_.frame)
    around, position = np.unique(frame, return_inverse=True)
    numbers = count + np.arange(len(around))
    where = np.searchsorted(keys, around)
    here = np.flatnonzero(where < len(keys))
    here = here[keys[where[here]] == around[here]]
    numbers[here] = open_.numbers[first][where[here]]
    numbers[around < 0] = 0
    framed = numbers[position].astype(np.int32)
    grid = regions.reshape(-1, block.stride)
    width, height = block.stride, block.window.height
    grid[0], grid[-1] = framed[:width], framed[width : 2 * width]
    grid[1:-1, 0], grid[1:-1, -1] = framed[2 * width : 2 * width + height], framed[2 * width + height :]
    return regions, representative


def _by_key(
    open_: Open, columns: tuple[NDArray[np.int64], ...]
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
    """Return the keys of the open regions, each once, and what the block knows of each of them."""
    feature, class_id, *counts = columns
    keys, first, inverse = np.unique(open_.keys, return_index=True, return_inverse=True)
    sums = []
    for column in counts:
        total = np.zeros(len(keys), np.int64)
        np.add.at(total, inverse, column[open_.numbers])
        sums.append(total)
    one = open_.numbers[first]
    return keys, (feature[one], class_id[one], *sums)


def _in_raster(cracks: NDArray[np.int32], stride: int, place: tuple[int, int], raster_width: int) -> NDArray[np.int64]:
    """Return the cracks of a block's region map as numbers that hold for the whole raster."""
    pixel, heading = np.divmod(cracks.astype(np.int64), 4)
    row, col = np.divmod(pixel, stride)
    return ((row - 1 + place[0]) * raster_width + col - 1 + place[1]) * 4 + heading
