"""What ``geoseg predict`` costs with each engine, over the forward passes that a scene cannot do without.

F is OpenVINO's forward pass, in float32, over the scene's own pixels in tiles that do not overlap, with nothing else;
each engine is held against such a floor of its own as well.  The whole side is a process of its own, from start to the
GeoJSON: imports, reading, deciding, polygons.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import rasterio
import torch

from geoseg.engine.allocator import keep_freed_memory
from geoseg.engine.device import share_cores
from geoseg.grid import ChunkGrid
from geoseg.scene import open_scene
from geoseg.segmenters.interface import Segmenter, State, Tiles
from geoseg.segmenters.loading import load
from tests.benchmarks.figures import tell
from tests.benchmarks.measuring import Cost, geoseg
from tests.benchmarks.models import write_model
from tests.benchmarks.scenes import write_scene

Seconds = tuple[float, float]

_FLOOR_TILE = 512
_LABELS_SIDE = 2048
_ENGINES = ("openvino", "torch")
_WANTED_OVER_F = {"openvino": 1.25}
_WANTED_OVER_OWN = {"torch": 1.15}


def main(folder: Path, sides: dict[int, int] | None = None, encoder: str = "resnet18") -> None:
    """Print wall and CPU seconds of both engines over F (wanted for OpenVINO: at most 1.25) and over their own floors.

    ``sides`` of scenes in pixels, with how often each is measured.
    """
    model = write_model(folder, encoder)
    for side, rounds in (sides or {4096: 3, 8192: 1}).items():
        _over_floors(folder, write_scene(folder / f"scene_{side}.tif", side), model, f"unet {encoder} {side}²", rounds)
    scene = write_scene(folder / f"scene_{_LABELS_SIDE}.tif", _LABELS_SIDE)
    labels = [folder / f"{engine}.tif" for engine in _ENGINES]
    for engine, path in zip(_ENGINES, labels, strict=True):
        geoseg("predict", scene, path, "-m", model, "--engine", engine, "--overwrite", "--fresh", "-q")
    one, other = (rasterio.open(path).read(1) for path in labels)
    tell("engines", "labels that differ between the engines,", 100 * float(np.mean(one != other)), 0.01, unit="%")


def _over_floors(folder: Path, scene: Path, model: Path, what: str, rounds: int) -> None:
    ratios: dict[tuple[str, str], list[Seconds]] = {}
    for _ in range(rounds):
        first: Seconds | None = None
        for engine in _ENGINES:
            own = _floor(scene, model, engine)
            first = first or own
            cost = _whole(scene, model, folder, engine)
            for name, floor in (("F", first), ("own", own)):
                ratios.setdefault((engine, name), []).append((cost.wall_s / floor[0], cost.cpu_s / floor[1]))
            print(
                f"{what}, {engine}: floor {own[0]:.1f} s ({own[1]:.1f} CPU s), whole {cost.wall_s:.1f} s "
                f"({cost.cpu_s:.1f} CPU s), {cost.peak_mb:.0f} MB",
                flush=True,
            )
    for (engine, name), values in ratios.items():
        if engine == "openvino" and name == "own":
            continue  # which is F
        over, wanted = ("F", _WANTED_OVER_F) if name == "F" else ("its own floor", _WANTED_OVER_OWN)
        wall, cpu = (statistics.median(each) for each in zip(*values, strict=True))
        tell("engines", f"{what}, {engine}, over {over} on the clock,", wall, wanted.get(engine))
        tell("engines", f"{what}, {engine}, over {over} in CPU seconds,", cpu)


def _whole(scene: Path, model: Path, folder: Path, engine: str) -> Cost:
    out = folder / "out.geojson"
    return geoseg("predict", scene, out, "-m", model, "--engine", engine, "--overwrite", "--fresh", "-q")


def _floor(path: Path, model: Path, engine: str) -> Seconds:
    """Return wall and CPU seconds of bare forward passes; what is read and scaled, is so before the clock starts."""
    share_cores()
    keep_freed_memory()  # as the command line does
    scene, segmenter = open_scene(path), load(model)
    segmenter.place(torch.device("cpu"))
    segmenter.accelerate(engine)
    tiles = [Tiles.of([scene.read(window)]) for window in ChunkGrid(scene.shape, _FLOOR_TILE)]
    state = segmenter.prepare(scene)
    _passes(segmenter, tiles[:1], state)  # recorded and compiled before the clock starts
    return _passes(segmenter, tiles, state)


def _passes(segmenter: Segmenter, tiles: list[Tiles], state: State) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        for tile in tiles:
            segmenter.segment(tile, state)
    return time.perf_counter() - wall, time.process_time() - cpu
