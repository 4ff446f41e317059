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
    ticks: list[float] = []

    def tick(stage: str, done: int, total: int) -> None:
        if stage == "training":
            ticks.append(time.perf_counter())

    config = fit.check(settings)
    run = fit._Run(config, folder / "model.safetensors", folder, tick, None)
    run.fit()
    whole = (ticks[-1] - ticks[_WARM - 1]) / (_STEPS - _WARM)

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
    started = 0.0
    for i, made in enumerate(ready):
        if i == _WARM:
            started = time.perf_counter()
        pixels, known = made["pixels"].to(device).float() / 64 - 2, made["labels"].to(device).long()
        with precision.forward_context():
            loss = module.loss(network(pixels), known, pixels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        float(loss)
    bare = (time.perf_counter() - started) / (_STEPS - _WARM)
    print(
        f"training unet/{encoder} on {device.type}, batches of {batch} × {patch}²: {whole:.3f} s a step, bare "
        f"{bare:.3f} s: {whole / bare:.2f} × (wanted: at most 1.15)"
    )
