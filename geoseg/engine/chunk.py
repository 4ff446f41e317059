"""The chunk task: read the tiles of one chunk, segment them, keep what belongs to the chunk."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import rasterio.features
import shapely
from numpy.typing import NDArray

from geoseg.engine.device import Runner, Scores
from geoseg.engine.plan import CONFIDENCE_NODATA, CONFIDENCE_SCALE, UNCERTAINTY_NODATA, Plan
from geoseg.errors import RunError
from geoseg.geodesy import pixel_size
from geoseg.grid import Window
from geoseg.scene import Pixels, Scene
from geoseg.segmenters.interface import Tiles
from geoseg.source import placeless

T = TypeVar("T")
_READ_AHEAD = 2
# Threads that live as long as the process: each keeps its files open from chunk to chunk.
_READERS = ThreadPoolExecutor(16, thread_name_prefix="geoseg-reader")


@dataclass(frozen=True)
class Outcome:
    """What a chunk task tells the client: which chunk, how many pixels got a label, how many tiles were computed."""

    number: int
    labelled: int
    tiles: int


def segment_chunk(
    plan: Plan, runner: Runner, number: int, stopped: Callable[[], bool] = lambda: False
) -> tuple[Filled, Outcome]:
    """Compute chunk ``number``: what its pixels hold, and what to report.

    Raises:
        SceneError: the scene cannot be read there.
        RunError: ``stopped`` became true on the way.
    """
    window = plan.chunks.window(number)
    chunk = _Chunk(
        plan,
        runner,
        stopped,
        window,
        wanted=_wanted(plan, window),
        labels=np.full(window.shape, plan.classes.nodata, np.uint16),
        confidence=np.full(window.shape, CONFIDENCE_NODATA, np.uint16),
        uncertainty=np.full((len(plan.uncertainty), *window.shape), UNCERTAINTY_NODATA, np.float32),
    )
    computed = 0
    if chunk.wanted.any():
        computed = _crop(chunk) if plan.same_grid and plan.blend == "crop" else _blend(chunk)
    if not plan.probabilistic:
        chunk.confidence[:] = CONFIDENCE_NODATA
    labelled = int(np.count_nonzero(chunk.labels != plan.classes.nodata))
    uncertainty = chunk.uncertainty if plan.uncertainty else None
    return Filled(np.stack([chunk.labels, chunk.confidence]), uncertainty), Outcome(number, labelled, computed)


@dataclass(frozen=True)
class Filled:
    """What the pixels of a chunk hold.

    ``layers`` (2, H, W) uint16, labels and confidence; ``uncertainty`` (L, H, W) float32, or None if not asked for.
    """

    layers: NDArray[np.uint16]
    uncertainty: NDArray[np.float32] | None


@dataclass(frozen=True)
class _Chunk:
    """A chunk at work: how it is computed, which of its pixels are wanted, and the arrays (H, W) to be filled.

    ``uncertainty`` is (L, H, W), with L = 0 where it is not asked for.
    """

    plan: Plan
    runner: Runner
    stopped: Callable[[], bool]
    window: Window
    wanted: NDArray[np.bool_]
    labels: NDArray[np.uint16]
    confidence: NDArray[np.uint16]
    uncertainty: NDArray[np.float32]


def _wanted(plan: Plan, window: Window) -> NDArray[np.bool_]:
    """Return which pixels of the chunk (H, W) lie in the area of interest; validity comes with the tiles."""
    if plan.aoi is None:
        return np.ones(window.shape, bool)
    transform = plan.source.geobox.affine * rasterio.Affine.translation(window.col, window.row)
    shape = shapely.from_wkb(plan.aoi)
    if not shapely.intersects(shape, shapely.Polygon([transform * xy for xy in _corners(window)])):
        return np.zeros(window.shape, bool)
    with placeless():
        return rasterio.features.geometry_mask([shape], window.shape, transform, invert=True)


def _corners(window: Window) -> list[tuple[int, int]]:
    return [(0, 0), (window.width, 0), (window.width, window.height), (0, window.height)]


def _crop(chunk: _Chunk) -> int:
    """Fill the chunk from the cores of its tiles; return the number of tiles computed."""
    grid, window, wanted = chunk.plan.tiles, chunk.window, chunk.wanted
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
            for target, values in ((chunk.labels, scores.labels), (chunk.confidence, scores.confidence)):
                target[part.within(window)][mask] = values[index][part.within(tile)][mask]
            if scores.layers is not None:
                layers = scores.layers[index][:, *part.within(tile)]
                chunk.uncertainty[:, *part.within(window)][:, mask] = layers[:, mask]
            computed += 1
    return computed


def _blend(chunk: _Chunk) -> int:
    """Fill the chunk from weighted, and if need be interpolated, probabilities; return the number of tiles computed."""
    plan, window, wanted = chunk.plan, chunk.window, chunk.wanted
    grid = plan.tiles
    inner = window if plan.same_grid else _model_window(plan, window)
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
    if not plan.same_grid:
        total, weight = _interpolated(plan, total, weight, inner, window)
        wanted = wanted & plan.source.read(window).valid
    known = wanted & (weight > 1e-6)
    total, further = total[: len(plan.classes)], total[len(plan.classes) :]
    ids = np.array(plan.classes.ids, np.uint16)
    channel = total.argmax(0)
    best = np.take_along_axis(total, channel[None], 0)[0] / np.where(known, weight, 1)
    chunk.labels[known] = ids[channel[known]]
    chunk.confidence[known] = np.clip(np.rint(best[known] * CONFIDENCE_SCALE), 0, CONFIDENCE_SCALE).astype(np.uint16)
    if plan.uncertainty:
        chunk.uncertainty[0, known] = _entropy(total[:, known] / weight[known])
        chunk.uncertainty[1:, known] = further[:, known] / weight[known]
    return computed


def _entropy(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the entropy of probabilities (K, N) over that of all classes being equal: (N,) from 0 to 1."""
    total = np.zeros(probabilities.shape[1:], np.float32)
    for one in probabilities:
        total -= one * np.log(np.maximum(one, np.finfo(np.float32).tiny))
    return np.clip(total / np.float32(max(np.log(len(probabilities)), 1e-12)), 0, 1)


def _model_coordinates(plan: Plan, start: int, stop: int, axis: int) -> NDArray[np.float64]:
    """Return where the centres of output pixels fall among the model grid's, along axis 0 (rows) or 1 (columns)."""
    outer, inner = (pixel_size(scene.geobox.affine)[1 - axis] for scene in (plan.source, plan.model_scene))
    return np.asarray((np.arange(start, stop) + 0.5) * (outer / inner) - 0.5, np.float64)


def _model_window(plan: Plan, window: Window) -> Window:
    """Return the part of the model's grid from which a chunk of the outputs' grid is interpolated."""
    ends = []
    for axis, (start, stop) in enumerate(((window.row, window.row_stop), (window.col, window.col_stop))):
        place = _model_coordinates(plan, start, stop, axis)
        size = plan.model_scene.shape[axis]
        ends.append((max(0, int(np.floor(place[0]))), min(size, int(np.floor(place[-1])) + 2)))
    (top, bottom), (left, right) = ends
    return Window(min(top, bottom - 1), min(left, right - 1), max(1, bottom - top), max(1, right - left))


def _interpolated(
    plan: Plan, total: NDArray[np.float32], weight: NDArray[np.float32], inner: Window, window: Window
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return scores and weights interpolated bilinearly from the model's grid to the outputs'."""
    stack = np.concatenate([total, weight[None]])
    for axis, (start, stop, low) in enumerate(
        ((window.row, window.row_stop, inner.row), (window.col, window.col_stop, inner.col))
    ):
        place = _model_coordinates(plan, start, stop, axis) - low
        size = stack.shape[axis + 1]
        before = np.clip(np.floor(place), 0, size - 1).astype(np.intp)
        after = np.minimum(before + 1, size - 1)
        share = np.clip(place - before, 0, 1).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        stack = np.take(stack, before, axis + 1) * (1 - share) + np.take(stack, after, axis + 1) * share
    return stack[:-1], stack[-1]


def _scored(
    chunk: _Chunk, windows: list[Window], needed: Callable[[Pixels], bool], *, probabilities: bool
) -> Iterator[Scores]:
    """Read the tiles ahead of the network and yield their scores, batch by batch."""
    runner, layers = chunk.runner, bool(chunk.plan.uncertainty)

    def batches() -> Iterator[Tiles]:
        waiting: list[Pixels] = []
        for pixels in _tile_pixels(chunk.plan.model_scene, windows):
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
