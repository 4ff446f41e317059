"""What ``geoseg predict`` costs with each engine, over the forward passes that a scene cannot do without.

F is OpenVINO's forward pass, in float32, over the scene's own pixels in tiles that do not overlap, with nothing else.
The whole side is a process of its own, from start to the GeoJSON: imports, reading, labels, polygons.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import rasterio
import torch

from geoseg.engine.device import share_cores
from geoseg.grid import ChunkGrid
from geoseg.scene import open_scene
from geoseg.segmenters.interface import Tiles
from geoseg.segmenters.loading import load
from tests.benchmarks.figures import tell
from tests.benchmarks.measuring import geoseg
from tests.benchmarks.models import write_model
from tests.benchmarks.scenes import write_scene

Seconds = tuple[float, float]

_FLOOR_TILE = 512
_WANTED = {"openvino": 1.25}


def main(folder: Path, side: int = 4096, encoder: str = "resnet18", rounds: int = 3) -> None:
    """Print wall and CPU seconds of both engines over F (wanted for OpenVINO: at most 1.25), interleaved."""
    scene, model = write_scene(folder / f"scene_{side}.tif", side), write_model(folder, encoder)
    found: dict[str, list[Seconds]] = {"torch": [], "openvino": []}
    for _ in range(rounds):
        floor = _floor(scene, model)
        for engine, ratios in found.items():
            labels = folder / f"{engine}.tif"
            given = ("-m", model, "--engine", engine, "--labels", labels, "--overwrite", "--fresh", "-q")
            cost = geoseg("predict", scene, folder / "out.geojson", *given)
            ratios.append((cost.wall_s / floor[0], cost.cpu_s / floor[1]))
            print(
                f"unet {encoder} {side}²: F {floor[0]:.1f} s ({floor[1]:.1f} CPU s); {engine} {cost.wall_s:.1f} s "
                f"({cost.cpu_s:.1f} CPU s), {ratios[-1][0]:.2f} F ({ratios[-1][1]:.2f}); {cost.peak_mb:.0f} MB",
                flush=True,
            )
    for engine, ratios in found.items():
        wall, cpu = (statistics.median(each) for each in zip(*ratios, strict=True))
        tell("engines", f"unet {encoder} {side}², {engine}, over F on the clock,", wall, _WANTED.get(engine))
        tell("engines", f"unet {encoder} {side}², {engine}, over F in CPU seconds,", cpu)
    one, other = (rasterio.open(folder / f"{engine}.tif").read(1) for engine in found)
    tell("engines", "labels that differ between the engines,", 100 * float(np.mean(one != other)), 0.01, unit="%")


def _floor(path: Path, model: Path) -> Seconds:
    """Return wall and CPU seconds of bare forward passes; what is read and scaled, is so before the clock starts."""
    share_cores()
    scene, segmenter = open_scene(path), load(model)
    segmenter.place(torch.device("cpu"))
    segmenter.accelerate("openvino")
    tiles = [Tiles.of([scene.read(window)]) for window in ChunkGrid(scene.shape, _FLOOR_TILE)]
    state = segmenter.prepare(scene)
    segmenter.segment(tiles[0], state)  # recorded and compiled before the clock starts
    wall, cpu = time.perf_counter(), time.process_time()
    for tile in tiles:
        segmenter.segment(tile, state)
    return time.perf_counter() - wall, time.process_time() - cpu
