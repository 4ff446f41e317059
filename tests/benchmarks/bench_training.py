"""What training costs beside its steps: the whole loop against a bare one over the same batches."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

# The whole loop is counted from the end of step _WARM to the end of step _STEPS, and goes on for _AHEAD steps, so that
# its threads read as many batches between the two as are trained on.
_STEPS, _WARM, _AHEAD, _ROUNDS = 12, 2, 3, 3

Seconds = tuple[float, float]


def main(folder: Path, encoder: str = "resnet18", batch: int = 8, patch: int = 128) -> None:
    """Print what a step of the loop and of a bare loop cost, and their ratio (wanted: ≤ 1.15), in rounds by turns.

    The bare loop does the same forward and backward passes and optimiser steps, on the batches of the same numbers,
    read and scaled before it is counted; the whole loop reads, warps, burns, scales and varies them while it is
    counted.  On a CPU both get one thread of PyTorch: more of them spin while they wait for each other, which counts as
    CPU time and on a busy machine exceeds the work.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rounds = [_round(folder / f"{i}.safetensors", encoder, batch, patch) for i in range(_ROUNDS)]
    finally:
        torch.set_num_threads(before)
    for kind, i in (("wall", 0), ("CPU", 1)):
        told = ", ".join(f"{whole[i]:.3f} / {bare[i]:.3f}" for whole, bare in rounds)
        ratio = statistics.median(whole[i] / bare[i] for whole, bare in rounds)
        print(
            f"training unet/{encoder}, batches of {batch} × {patch}², {kind} s a step, whole / bare: {told}; "
            f"median ratio {ratio:.2f} (wanted: at most 1.15)"
        )


def _round(target: Path, encoder: str, batch: int, patch: int) -> tuple[Seconds, Seconds]:
    """Return wall and CPU seconds a step of the whole loop, and of the bare one."""
    import torch

    from geoseg.data import sample_scene
    from geoseg.segmenters.interface import Tiles, normalised
    from geoseg.training import fit

    labels = Path(__file__).parents[1] / "data" / "banepa" / "banepa_dev_buildings.geojson"
    settings: dict[str, Any] = {
        "data": {
            "scenes": [{"image": str(sample_scene()), "labels": str(labels)}],
            "classes": "background,building",
            "resolution": 0.26,
        },
        "network": {"name": "unet", "encoder": encoder},
        "training": {"steps": _STEPS + _AHEAD, "batch": batch, "patch": patch, "schedule": "constant"},
    }
    ticks: list[Seconds] = []

    def tick(stage: str, done: int, total: int) -> None:
        if stage == "training":
            ticks.append(_now())

    run = fit.LoopRun(fit.check(settings), target, target.parent, tick, None)
    run.fit()
    whole = _each(ticks[_WARM - 1], ticks[_STEPS - 1])

    scaling = run.scaling
    assert scaling is not None
    module, device = run.module, run.trainer.strategy.root_device
    made = [each for _, each in zip(range(_STEPS), run._batches(0, 0, 1), strict=False)]
    tiles = (Tiles(each["pixels"].to(device), each["valid"].to(device), ()) for each in made)
    pixels = [normalised(each, scaling) for each in tiles]
    known = [each["labels"].to(device).long() for each in made]
    network = module.network.to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    precision = run.trainer.precision_plugin
    started = _now()
    for i in range(_STEPS):
        if i == _WARM:
            started = _now()
        with precision.forward_context():
            loss = module.loss(network(pixels[i]), known[i], pixels[i])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        float(loss.detach())
    return whole, _each(started, _now())


def _now() -> Seconds:
    """Return wall and CPU seconds; the second hardly depends on what else the machine does."""
    return time.perf_counter(), time.process_time()


def _each(begin: Seconds, end: Seconds) -> Seconds:
    wall, cpu = ((b - a) / (_STEPS - _WARM) for a, b in zip(begin, end, strict=True))
    return wall, cpu
