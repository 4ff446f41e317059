"""What ``geoseg predict`` costs beyond the forward passes of its own tiles, on one scene, in CPU seconds.

The bare side runs in this process: the same network on the same device runner, the same tiles, already in memory.
The whole side is a process of its own, from start to the last file: imports, reading, labels, polygons, GeoJSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from geoseg.bundle import file_digest
from geoseg.engine.allocator import keep_freed_memory
from geoseg.engine.assemble import Outputs
from geoseg.engine.cluster import Job
from geoseg.engine.device import share_cores
from geoseg.engine.plan import Recipe
from geoseg.engine.predict import Options, make_plan
from geoseg.grid import TileGrid
from tests.benchmarks.figures import tell
from tests.benchmarks.measuring import geoseg, run
from tests.benchmarks.models import write_model
from tests.benchmarks.scenes import write_scene

_WANTED = {"resnet18": 1.15, "resnet50": 1.10}


def main(folder: Path, side: int = 4096, encoders: tuple[str, ...] = ("resnet18", "resnet50"), rounds: int = 3) -> None:
    """Print, for each encoder of a U-Net, whole CPU seconds over bare ones (wanted: at most 1.10), interleaved."""
    scene = write_scene(folder / f"scene_{side}.tif", side)
    idle = write_scene(folder / "scene_256.tif", 256)
    for encoder in encoders:
        share_cores()
        keep_freed_memory()  # as the command line does
        model = write_model(folder, encoder)
        forward = _forward_passes(folder, scene, model)
        ratios = []
        for _ in range(rounds):
            bare = forward()
            whole = geoseg("predict", scene, folder / "out.geojson", "-m", model, "--overwrite", "--fresh", "-q")
            ratios.append(whole.cpu_s / bare)
            print(
                f"unet {encoder} {side}²: bare {bare:.1f} CPU s, whole {whole.cpu_s:.1f}, ratio {ratios[-1]:.3f}",
                flush=True,
            )
        loading = run(sys.executable, "-c", f"import geoseg; geoseg.load({str(model)!r})").cpu_s
        start = geoseg(
            "predict", idle, folder / "idle.geojson", "-m", model, "--tile", "256", "--halo", "32", "--overwrite", "-q"
        )
        print(f"unet {encoder}: a whole run on a scene of 256²: {start.cpu_s:.1f} CPU s", flush=True)
        median = sorted(ratios)[len(ratios) // 2]
        print(f"unet {encoder}: loading the network in Python, nothing else, {loading:.1f} CPU s", flush=True)
        tell("overhead", f"unet {encoder} {side}², whole over bare forward passes,", median, _WANTED.get(encoder))
        tell("overhead", f"unet {encoder} {side}², whole over loading and these,", median * bare / (bare + loading))


def _forward_passes(folder: Path, scene: Path, model: Path) -> Callable[[], float]:
    recipe = Recipe(((str(model), file_digest(str(model))),))
    options = Options(overwrite=True)
    plan, _ = make_plan(scene, Outputs.check(folder / "bare.geojson", options), recipe, recipe.build(), options)
    assert isinstance(plan.tiles, TileGrid)
    core = slice(plan.tiles.halo, -plan.tiles.halo)
    runner = Job(plan, 1).runner()
    tiles = []
    for window in plan.chunks:
        for position in plan.tiles.covering(window):
            pixels = plan.model_scene.read(plan.tiles.tile_window(position))
            if pixels.valid[core, core].any():
                tiles.append(runner.tiles([pixels]))
    runner.scores(tiles[0])

    def forward() -> float:
        started = time.process_time()
        with torch.inference_mode():
            for batch in tiles:
                runner.scores(batch)
        return time.process_time() - started

    return forward
