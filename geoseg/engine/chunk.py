"""The chunk task: read the tiles of one chunk, segment them, keep what belongs to the chunk."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from geoseg.engine.canvas import Canvas, Filled, Outcome
from geoseg.engine.device import Runner, Scores
from geoseg.errors import RunError
from geoseg.grid import Window
from geoseg.scene import Pixels, Scene
from geoseg.segmenters.interface import Tiles

if TYPE_CHECKING:
    from geoseg.engine.plan import Plan

T = TypeVar("T")
_READ_AHEAD = 2
# Threads that live as long as the process: each keeps its files open from chunk to chunk.
_READERS = ThreadPoolExecutor(16, thread_name_prefix="geoseg-reader")


def segment_chunk(
    plan: Plan, runner: Runner, number: int, stopped: Callable[[], bool] = lambda: False
) -> tuple[Filled, Outcome]:
    """Compute chunk ``number``: what its pixels hold, and what to report.

    Raises:
        SceneError: the scene cannot be read there.
        RunError: ``stopped`` became true on the way.
    """
    canvas = Canvas.begun(plan, number)
    chunk = _Chunk(canvas, runner, stopped)
    computed = 0
    if canvas.wanted.any():
        computed = _crop(chunk) if plan.same_grid and plan.blend == "crop" else _blend(chunk)
    return canvas.finished(computed)


@dataclass(frozen=True)
class _Chunk:
    """A chunk at work: what is filled, and how it is computed."""

    canvas: Canvas
    runner: Runner
    stopped: Callable[[], bool]


def _crop(chunk: _Chunk) -> int:
    """Fill the chunk from the cores of its tiles; return the number of tiles computed."""
    canvas = chunk.canvas
    grid, window, wanted = canvas.plan.tiles, canvas.window, canvas.wanted
    positions = grid.covering(window)
    cores = {grid.tile_window(position): grid.core_window(position) for position in positions}
    valid: dict[Window, NDArray[np.bool_]] = {}

    def needed(pixels: Pixels) -> bool:
        part = cores[pixels.window].intersect(window)
        mask = pixels.valid[part.within(pixels.window)] & wanted[part.within(window)]
        if mask.any():
            valid[pixels.window] = mask
            return True
        return False

    computed = 0
    for scores in _scored(chunk, list(cores), needed, probabilities=False):
        assert scores.labels is not None
        assert scores.confidence is not None
        for index, tile in enumerate(scores.windows):
            part = cores[tile].intersect(window)
            mask = valid.pop(tile)
            for target, values in ((canvas.labels, scores.labels), (canvas.confidence, scores.confidence)):
                target[part.within(window)][mask] = values[index][part.within(tile)][mask]
            if scores.layers is not None:
                layers = scores.layers[index][:, *part.within(tile)]
                canvas.uncertainty[:, *part.within(window)][:, mask] = layers[:, mask]
            computed += 1
    return computed


def _blend(chunk: _Chunk) -> int:
    """Fill the chunk from weighted, and if need be interpolated, probabilities; return the number of tiles computed."""
    canvas = chunk.canvas
    plan, window, wanted, inner = canvas.plan, canvas.window, canvas.wanted, canvas.inner
    grid = plan.tiles
    overlap = grid.reach if plan.blend == "hann" else 0
    # The segmenter's layers, which stand behind the entropy, are weighted like one more class each.
    total = np.zeros((len(plan.classes) + len(plan.uncertainty[1:]), *inner.shape), np.float32)
    weight = np.zeros(inner.shape, np.float32)
    valid: dict[Window, NDArray[np.bool_]] = {}
    places = {grid.tile_window(p): p for p in grid.covering(inner, overlap)}
    reach = {tile: grid.core_window(p).padded(overlap).intersect(tile) for tile, p in places.items()}

    def needed(pixels: Pixels) -> bool:
        part = reach[pixels.window].intersect(inner)
        mask = pixels.valid[part.within(pixels.window)]
        if not (mask & wanted[part.within(window)] if plan.same_grid else mask).any():
            return False  # it could give nothing to this chunk: its weights are 0 wherever pixels are invalid
        valid[pixels.window] = pixels.valid
        return True

    computed = 0
    for scores in _scored(chunk, list(reach), needed, probabilities=True):
        assert scores.probabilities is not None
        for index, tile in enumerate(scores.windows):
            part = reach[tile].intersect(inner)
            rows, cols = part.within(tile)
            factor = valid.pop(tile)[rows, cols].astype(np.float32)
            if overlap:
                down, across = grid.weights(places[tile])
                factor *= down[rows, None] * across[cols]
            values = scores.probabilities[index][:, rows, cols]
            if scores.layers is not None:
                values = np.concatenate([values, scores.layers[index][:, rows, cols]])
            total[:, *part.within(inner)] += values * factor
            weight[part.within(inner)] += factor
            computed += 1
    canvas.settle(total, weight)
    return computed


def _scored(
    chunk: _Chunk, windows: list[Window], needed: Callable[[Pixels], bool], *, probabilities: bool
) -> Iterator[Scores]:
    """Read the tiles ahead of the network and yield their scores, batch by batch."""
    runner, layers = chunk.runner, bool(chunk.canvas.plan.uncertainty)

    def batches() -> Iterator[Tiles]:
        waiting: list[Pixels] = []
        for pixels in _tile_pixels(chunk.canvas.plan.model_scene, windows):
            if needed(pixels):
                waiting.append(pixels)
            if len(waiting) == runner.batch:
                yield runner.tiles(waiting)
                waiting = []
        if waiting:
            yield runner.tiles(waiting)

    for scores in runner.run(read_ahead(batches(), _READ_AHEAD), probabilities=probabilities, layers=layers):
        if chunk.stopped():
            raise RunError("the run was stopped.")
        yield scores


def _tile_pixels(scene: Scene, windows: list[Window]) -> Iterator[Pixels]:
    """Yield the pixels of tiles that come row by row; a row is read at once, for tiles share most of its blocks."""
    for _, group in itertools.groupby(windows, key=lambda window: window.row):
        row = list(group)
        first, last = row[0], row[-1]
        strip = scene.read(Window(first.row, first.col, first.height, last.col_stop - first.col))
        for window in row:
            rows, cols = window.within(strip.window)
            yield Pixels(strip.data[:, rows, cols], strip.valid[rows, cols], window)


def read_ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield ``items``, made by another thread that is at most ``depth`` ahead; its exceptions are raised here."""
    buffer: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    closed = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                buffer.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def fill() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(None)
        except BaseException as error:
            put(None, error)

    task = _READERS.submit(fill)
    try:
        while True:
            item, error = buffer.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        closed.set()
        wait([task])
