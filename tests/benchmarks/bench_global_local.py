"""Memory of GLNet, all three networks of the full method, above that of its weights.

A run over a scene of one macro-window is compared with one pass over the whole scene at full resolution (the encoder
and the pyramid of one branch alone, in the same program).  What is subtracted is what the program holds once the model
is loaded and placed.  Growth with the scene is measured with smaller macro-windows, so that scenes of several chunks,
each of several macro-windows, can be run in minutes: what is beside a chunk costs memory too.
"""

from __future__ import annotations

import sys
from pathlib import Path

from geoseg.bundle import write_bundle
from geoseg.classes import Classes
from tests.benchmarks.measuring import Cost, geoseg, run
from tests.benchmarks.scenes import write_scene

_SIDE = 2448
# Blending makes larger chunks by itself; the smaller scene would then be one small chunk, and no measure of the larger.
_CHUNK = 2448
_SMALL = {"extent": 1020, "patch": 252, "overview": 252}
_SMALL_CHUNK, _SMALL_SIDES = 1024, (1788, 3576)
_CLASSES = "unknown,urban,field,range,forest,water,barren"
# Loads the model as a run does, and tells what it holds then, or looks at the whole scene at once.
_PROGRAM = """
import ctypes, gc, sys, torch, geoseg
torch.set_num_threads(1)
model = geoseg.load(sys.argv[1])
model.place(torch.device("cpu"))
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
pages = int(open("/proc/self/statm").read().split()[1])
open(sys.argv[2], "w").write(str(pages * 4096 / 2**20))
if side := int(sys.argv[3]):
    with torch.inference_mode():
        model.network.fixed.overview(torch.zeros(1, 3, side, side).to(memory_format=torch.channels_last))
"""


def _written(folder: Path, encoder: str, **options: int) -> Path:
    from geoseg.segmenters.making import new_model

    path = folder / f"glnet_{encoder}_{options.get('extent', _SIDE)}.safetensors"
    if not path.exists():
        classes = Classes.parse(_CLASSES)
        made = new_model("glnet", bands=["red", "green", "blue"], classes=classes, encoder=encoder, options=options)
        write_bundle(path, *made)
    return path


def _predicted(folder: Path, model: Path, side: int, chunk: int) -> Cost:
    scene = write_scene(folder / f"scene_{side}.tif", side)
    output = folder / f"glnet_{side}.tif"
    return geoseg("predict", scene, output, "-m", model, "--chunk", str(chunk), "--overwrite", "--fresh", "-q")


def grown(folder: Path, encoder: str = "resnet50", sides: tuple[int, int] = _SMALL_SIDES) -> None:
    """Print peaks in MB for two scenes and their ratio (wanted: no growth)."""
    model = _written(folder, encoder, **_SMALL)
    peaks = []
    for side in sides:
        cost = _predicted(folder, model, side, _SMALL_CHUNK)
        peaks.append(cost.peak_mb)
        print(
            f"macro-windows of {_SMALL['extent']}, {side}²: {cost.peak_mb:.0f} MB, {cost.cpu_s:.0f} CPU s", flush=True
        )
    more = (sides[1] / sides[0]) ** 2
    print(f"glnet {encoder}: {peaks[1] / peaks[0]:.3f} times as much for {more:.0f} times the pixels", flush=True)


def main(folder: Path, encoder: str = "resnet50", side: int = _SIDE) -> None:
    """Print peaks in MB and their ratios (wanted: well under one pass, and no growth with the scene)."""
    model = _written(folder, encoder)
    held = folder / "held_mb.txt"
    naive = run(sys.executable, "-c", _PROGRAM, str(model), str(held), str(side))
    base = float(held.read_text())
    print(f"glnet {encoder}: program and weights {base:.0f} MB", flush=True)
    print(f"one pass over {side}²: {naive.peak_mb - base:.0f} MB above, {naive.cpu_s:.0f} CPU s", flush=True)
    loaded = run(sys.executable, "-c", _PROGRAM, str(model), str(held), "0")
    print(f"loading alone: {loaded.peak_mb - base:.0f} MB above", flush=True)
    cost = _predicted(folder, model, side, _CHUNK)
    above = cost.peak_mb - base
    print(f"run over {side}²: {above:.0f} MB above, {cost.cpu_s:.0f} CPU s", flush=True)
    print(f"glnet {encoder}: {above / (naive.peak_mb - base):.3f} of the memory of one pass", flush=True)
    grown(folder, encoder)
