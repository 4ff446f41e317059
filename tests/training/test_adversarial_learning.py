"""Two regions that differ in light alone: what adversarial adaptation does to maps of the one without labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from geoseg.metrics import Confusion
from geoseg.training.adaptation import AdversarialModule
from geoseg.training.module import TrainingModule, confusion_of
from tests.training.test_adaptation import made, shares_of

SIDE, PATCHES = 48, 4
ALONE, TOGETHER = 60, 120
# Each channel of the second region has a gain of its own, and all a gamma.
GAMMA, GAINS = 1.4, np.array([0.85, 1.0, 1.15])[:, None, None]


def patches(number: int, target: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy squares on a plain ground, pixels (N, 3, H, W) and labels (N, H, W), in the light of a region."""
    random = np.random.default_rng((number, target))
    labels = np.zeros((PATCHES, SIDE, SIDE), np.int64)
    for one in labels:
        for row, col in random.integers(0, SIDE - 10, (6, 2)):
            one[row : row + 10, col : col + 10] = 1
    colours = np.array([0.3, 0.2, -0.2])[:, None, None]
    pixels = (0.5 + 0.12 * random.normal(size=(PATCHES, 3, SIDE, SIDE)) + labels[:, None] * colours).clip(0.01, 1)
    pixels = pixels**GAMMA * GAINS if target else pixels
    return torch.from_numpy((pixels - 0.5) / 0.2).float(), torch.from_numpy(labels)


def adapted(weight: float) -> tuple[float, list[float]]:
    """Return mean IoU on the target, and every tenth step the share of places that the discriminator gets right."""
    module = made(AdversarialModule, method="outputs", adv_weight=weight, lr_discriminator=2e-4, warm_up=0)
    module.oppose(["scores"])
    optimiser = torch.optim.Adam(module.network.parameters(), 4e-3)
    right = []
    for step in range(ALONE + TOGETHER):
        if step == ALONE:
            optimiser = torch.optim.Adam(module.network.parameters(), 1e-3)
        batch = both(step)
        loss = module._loss_of(batch) if step >= ALONE else TrainingModule._loss_of(module, batch)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step >= ALONE and step % 10 == 9:
            right.append(told_apart(module, batch))
    module.network.eval()
    counted = torch.zeros(3, 3, dtype=torch.int64)
    for number in range(1000, 1008):
        pixels, labels = patches(number, target=True)
        with torch.no_grad():
            counted += confusion_of(module.network(pixels).argmax(1), labels, 3)
    return float(Confusion(counted.numpy()).mean_iou), right


def both(number: int) -> dict[str, Any]:
    pixels, labels = patches(number, target=False)
    aims, _ = patches(number, target=True)
    seen = torch.ones(labels.shape, dtype=torch.bool)
    told = {"labels": labels, "valid": seen, "numbers": torch.tensor([4 * number])}
    return {"pixels": pixels, **told, "target": {"pixels": aims, "seen": seen}}


def told_apart(module: Any, batch: dict[str, Any]) -> float:
    judge = module.discriminators["scores"]
    with torch.no_grad():
        known = judge(shares_of(module, batch["pixels"])["scores"])
        shown = judge(shares_of(module, batch["target"]["pixels"])["scores"])
    return float(torch.cat([known < 0, shown >= 0]).float().mean())


@pytest.mark.slow
def test_the_discriminator_is_deceived_and_the_target_is_mapped_better() -> None:
    # A weight next to nothing lets the discriminator learn against a network that learns from the sources alone.
    alone, seen_through = adapted(1e-9)
    moved, deceived = adapted(0.003)
    assert np.mean(seen_through[-6:]) > 0.9
    assert np.mean(deceived[-6:]) < 0.8
    assert moved >= alone
