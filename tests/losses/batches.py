"""Batches of scores and labels on which losses are tried."""

from __future__ import annotations

import torch

IGNORED = 255


def batch(
    seed: int = 0, *, classes: int = 4, size: tuple[int, int] = (24, 27), ignored: bool = True, dtype=torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (3, K, H, W), and labels (3, H, W) in patches that the scores follow loosely; some pixels ignored."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, classes, (3, -(-size[0] // 5), -(-size[1] // 7)), generator=generator)
    labels = coarse.repeat_interleave(5, 1).repeat_interleave(7, 2)[:, : size[0], : size[1]].contiguous()
    scores = torch.randn(3, classes, *size, generator=generator, dtype=torch.float64)
    scores = (scores + one_hot(labels, classes)).to(dtype)
    if ignored:
        labels[0, :6] = IGNORED
        labels[1, 9:14, 20:] = IGNORED
        labels[torch.rand(labels.shape, generator=generator) < 0.02] = IGNORED
    return scores, labels


def one_hot(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Labels as shares (N, K, H, W) in float64, all 0 where ignored."""
    return torch.stack([labels == index for index in range(classes)], 1).double()
