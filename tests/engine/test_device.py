"""The device runner: choices of device and precision, batches, labels and confidence."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from geoseg.classes import Classes
from geoseg.engine.chunk import read_ahead
from geoseg.engine.device import Runner, choose_device, choose_precision, default_batch, share_cores
from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.scene import Pixels, open_scene
from geoseg.segmenters.interface import Segmenter, Spec, State, Tiles
from geoseg.segmenters.loading import load

CPU = torch.device("cpu")


class _Given(Segmenter):
    """Scores that are the pixels themselves."""

    def __init__(self, classes: Classes) -> None:
        self.spec = Spec(tuple(c.name for c in classes), None, classes, 16, 2)

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        return tiles.pixels.float()


def _pixels(count: int, bands: int, side: int = 16) -> list[Pixels]:
    rng = np.random.default_rng(0)
    valid = np.ones((side, side), bool)
    return [
        Pixels(rng.normal(0, 2, (bands, side, side)).astype("float32"), valid, Window(0, side * i, side, side))
        for i in range(count)
    ]


def _runner(batch: int) -> Runner:
    classes = Classes.from_dicts([{"id": i, "name": f"c{i}"} for i in (0, 7, 254)])
    return Runner(_Given(classes), State(), classes, device=CPU, dtype=torch.float32, batch=batch)


def test_labels_and_confidence_are_those_of_a_plain_softmax() -> None:
    runner = _runner(3)
    pixels = _pixels(3, 3)
    (scores,) = runner.run([runner.tiles(pixels)], probabilities=False)
    values = np.stack([p.data for p in pixels]).astype(np.float64)
    probability = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    assert scores.labels is not None
    assert scores.confidence is not None
    np.testing.assert_array_equal(scores.labels, np.array([0, 7, 254])[probability.argmax(1)])
    assert np.abs(scores.confidence - 1000 * probability.max(1)).max() <= 0.501


def test_a_short_batch_filled_up_gives_the_same(plain: Path, town: Path) -> None:
    segmenter = load(plain)
    scene = open_scene(town)
    state = segmenter.prepare(scene)
    assert segmenter.spec.classes is not None
    runner = Runner(segmenter, state, segmenter.spec.classes, device=CPU, dtype=torch.float32, batch=4)
    tiles = runner.tiles([scene.read(Window(0, 90 * i, 64, 64)) for i in range(3)])
    alone = runner.scores(tiles)
    runner.one_by_one = False  # as on a GPU
    together = runner.scores(tiles)
    assert together.shape == alone.shape == (3, 5, 64, 64)
    torch.testing.assert_close(together, alone)


class _Watched(_Given):
    """Notes which thread computes, how many threads torch has there, and whether passes ever overlap."""

    def __init__(self, classes: Classes) -> None:
        super().__init__(classes)
        self.under_way, self.most, self.seen = 0, 0, set[tuple[int, int]]()

    def segment(self, tiles: Tiles, state: State) -> torch.Tensor:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.seen.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.01)
        self.under_way -= 1
        return super().segment(tiles, state)


def test_passes_asked_for_by_many_threads_take_turns_in_one() -> None:
    classes = Classes.from_dicts([{"id": i, "name": f"c{i}"} for i in (0, 7, 254)])
    segmenter = _Watched(classes)
    share_cores()
    runner = Runner(segmenter, State(), classes, device=CPU, dtype=torch.float32, batch=1)
    pixels = _pixels(6, 3)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda one: runner.scores(runner.tiles([one])), pixels))
    for scores, one in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(scores[0].numpy(), one.data)
    assert segmenter.most == 1
    ((thread, threads),) = segmenter.seen
    assert thread != threading.get_ident()
    assert threads == torch.get_num_threads()


def test_eight_bit_pixels_stay_eight_bit_on_the_way_to_the_device() -> None:
    runner = _runner(1)
    for dtype, kept in (("uint8", torch.uint8), ("uint16", torch.float32), ("int32", torch.float32)):
        pixels = Pixels(np.ones((3, 4, 4), dtype), np.ones((4, 4), bool), Window(0, 0, 4, 4))
        assert runner.tiles([pixels]).pixels.dtype == kept


def test_the_device_is_a_gpu_where_there_is_one() -> None:
    assert choose_device("cpu") == CPU
    if torch.cuda.is_available():
        assert choose_device("auto").type == "cuda"
        assert choose_device("cuda", torch.cuda.device_count()).index == 0
    else:
        assert choose_device("auto") == CPU
        with pytest.raises(ConfigError, match="no GPU here"):
            choose_device("cuda")
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        choose_device("gpu")


def test_precision_is_full_on_a_cpu_unless_asked_for() -> None:
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16


def test_batches_fill_a_gpu_and_not_a_cpu() -> None:
    gpu = torch.device("cuda")
    assert default_batch((1024, 1024), CPU) == 1
    assert default_batch((1024, 1024), gpu) == 8
    assert default_batch((128, 128), gpu) == 32
    assert default_batch((8192, 8192), gpu) == 1


def test_there_are_always_two_threads() -> None:
    before = torch.get_num_threads()
    try:
        share_cores(1000)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_reading_ahead_keeps_order_and_passes_errors_on() -> None:
    assert list(read_ahead(iter(range(50)), 3)) == list(range(50))

    def broken():
        yield 1
        raise OSError("no such block")

    ahead = read_ahead(broken(), 2)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="no such block"):
        next(ahead)


def test_reading_ahead_stops_when_nobody_listens() -> None:
    made = []

    def endless():
        while True:
            made.append(1)
            yield 1

    ahead = read_ahead(endless(), 2)
    next(ahead)
    ahead.close()
    count = len(made)
    assert count <= 6
    assert len(made) == count
