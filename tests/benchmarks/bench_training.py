"""What training costs beside its steps: the whole loop against a bare one over the same batches."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

_STEPS, _WARM = 24, 4


def main(folder: Path, encoder: str = "resnet18", batch: int = 8, patch: int = 128) -> None:
    """Print seconds a step of the loop and of a bare loop over batches in memory, and their ratio (wanted: ≤ 1.15).

    The bare loop does the same forward and backward passes and optimiser steps, on batches read beforehand; the whole
    loop reads, warps, burns and varies them.  Both begin to count after a few steps.
    """
    import torch

    from geoseg.data import sample_scene
    from geoseg.training import fit

    labels = Path(__file__).parents[1] / "data" / "banepa" / "banepa_dev_buildings.geojson"
    settings: dict[str, Any] = {
        "data": {
            "scenes": [{"image": str(sample_scene()), "labels": str(labels)}],
            "classes": "background,building",
            "resolution": 0.26,
        },
        "network": {"name": "unet", "encoder": encoder},
        "training": {"steps": _STEPS, "batch": batch, "patch": patch, "schedule": "constant"},
    }
    ticks: list[tuple[float, float]] = []

    def tick(stage: str, done: int, total: int) -> None:
        if stage == "training":
            ticks.append(_now())

    config = fit.check(settings)
    run = fit._Run(config, folder / "model.safetensors", folder, tick, None)
    run.fit()
    whole = _each(ticks[_WARM - 1], ticks[-1])

    module = run.module
    device = run.trainer.strategy.root_device
    ready = []
    for made in run._batches(0, 0, 1):
        ready.append(made)
        if len(ready) == _STEPS:
            break
    network = module.network.to(device).train()
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    precision = run.trainer.precision_plugin
    started = _now()
    for i, made in enumerate(ready):
        if i == _WARM:
            started = _now()
        pixels, known = made["pixels"].to(device).float() / 64 - 2, made["labels"].to(device).long()
        with precision.forward_context():
            loss = module.loss(network(pixels), known, pixels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        float(loss.detach())
    bare = _each(started, _now())
    print(
        f"training unet/{encoder} on {device.type}, batches of {batch} × {patch}²: "
        f"{whole[0]:.3f} s a step, bare {bare[0]:.3f} s: {whole[0] / bare[0]:.2f} × (wanted: at most 1.15); "
        f"CPU {whole[1]:.3f} s, bare {bare[1]:.3f} s: {whole[1] / bare[1]:.2f} ×"
    )


def _now() -> tuple[float, float]:
    """Return wall and CPU seconds; the second hardly depends on what else the machine does."""
    return time.perf_counter(), time.process_time()


def _each(begin: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    wall, cpu = ((b - a) / (_STEPS - _WARM) for a, b in zip(begin, end, strict=True))
    return wall, cpu
