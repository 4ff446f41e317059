"""Which decoder, which loss: trainings of one budget on the Banepa scene, judged on its validation column."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from geoseg.training.config import read_config, set_value

_ROOT = Path(__file__).parents[2]
_RECIPE = _ROOT / "notebooks" / "buildings.yaml"
# A thirtieth of the pixels that the shipped model is trained on, so that all of it fits into an hour.
_BUDGET: dict[str, Any] = {
    "training.steps": 80,
    "training.batch": 8,
    "training.patch": 128,
    "training.warmup": 8,
    "training.validate_every": 0,
    "training.checkpoint_every": 0,
    "training.keep": "last",
    "data.resolution": 0.4,
}
_LIGHT = {"decoder_channels": [128, 64, 48, 32, 16]}
_DECODERS: dict[str, dict[str, Any]] = {
    "U-Net": {"network.name": "unet", "network.options": {}},
    "U-Net narrow": {"network.name": "unet", "network.options": _LIGHT},
    "SAN": {"network.name": "san", "network.options": {}},
    "GSN": {"network.name": "gsn", "network.options": {}},
    "HRNet-W18": {"network.name": "hrnet", "network.encoder": "hrnet_w18", "network.encoder_weights": None,
                  "network.options": {}},
}  # fmt: skip
_MIX = {"mixing.alpha": 0.4}
_LOSSES: dict[str, dict[str, Any]] = {
    "ce": {"loss": "ce"},
    "ce + 0.5 aaf": {"loss": "ce+0.5*aaf[label_stride=4]"},
    "ce + 0.5 ssl": {"loss": "ce+0.5*ssl"},
    "ce + 0.5 d2": {"loss": "ce+0.5*d2"},
    "ce + mixup": {"loss": "ce", **_MIX},
    "ce + mixmatch": {"loss": "ce", **_MIX, "mixing.pairing": "foreground"},
}


def decoders(folder: Path) -> None:
    """Print the validation figures of decoders on one encoder."""
    _compare(folder, "decoder", _DECODERS, range(1))


def losses(folder: Path) -> None:
    """Print the validation figures of cross-entropy alone and with what may be added to it, three seeds each."""
    _compare(folder, "loss", _LOSSES, range(3))


def _compare(folder: Path, what: str, variants: Mapping[str, Mapping[str, Any]], seeds: Iterable[int]) -> None:
    """Train every variant with every seed, and print mean and spread of its building IoU as lines of a table."""
    weights = os.environ.get("GEOSEG_ENCODER_WEIGHTS")
    if weights is None:
        print(f"{what}s: set GEOSEG_ENCODER_WEIGHTS to the file that notebooks/buildings.yaml names")
        return
    print(f"| {what} | building IoU | each seed | accuracy | CPU s a step |\n|---|--:|---|--:|--:|", flush=True)
    for name, changes in variants.items():
        found = [_trained(folder, {"network.encoder_weights": weights, **changes}, seed) for seed in seeds]
        iou = [figures["iou"]["building"] for figures, _ in found]
        spread = statistics.stdev(iou) if len(iou) > 1 else math.nan
        each = " ".join(f"{value:.3f}" for value in iou)
        accuracy = statistics.mean(figures["accuracy"] for figures, _ in found)
        cost = statistics.mean(seconds for _, seconds in found)
        print(
            f"| {name} | {statistics.mean(iou):.3f} ± {spread:.3f} | {each} | {accuracy:.3f} | {cost:.2f} |", flush=True
        )


def _trained(folder: Path, changes: Mapping[str, Any], seed: int) -> tuple[dict[str, Any], float]:
    """Return the validation figures of one training, and its CPU seconds a step."""
    from geoseg.training import fit

    given = read_config(_RECIPE)
    for key, value in {**_BUDGET, **changes, "training.seed": seed}.items():
        set_value(given, key, value)
    ticks: list[float] = []

    def tick(stage: str, done: int, total: int) -> None:
        if stage == "training":
            ticks.append(time.process_time())

    run = fit.LoopRun(fit.check(given), folder / "model.safetensors", folder, tick, None)
    run.fit()
    return run.figures, (ticks[-1] - ticks[0]) / (len(ticks) - 1)
