"""Random pictures that stand for scenes where a network is to be measured and no scene is at hand."""

from __future__ import annotations

import torch
from torch.nn import functional

_OCTAVES = 7


def scene_like(channels: int, side: int, *, seed: int = 0) -> torch.Tensor:
    """Return a random picture as network input: (1, ``channels``, ``side``, ``side``), mean 0 and deviation 1.

    Like aerial pictures it has structure at every scale (noise of seven octaves, the coarser the stronger) and straight
    edges (rectangles of one colour).
    """
    generator = torch.Generator().manual_seed(seed)
    picture = torch.zeros(1, channels, side, side)
    for octave in range(_OCTAVES):
        size = max(2, side >> octave)
        noise = torch.randn(1, channels, size, size, generator=generator)
        picture += 2 ** (octave / 2) * functional.interpolate(noise, size=(side, side), mode="bilinear")
    for _ in range(max(8, side * side // 4096)):
        row, col, height, width = (int(v) for v in torch.randint(0, side, (4,), generator=generator))
        rows, cols = slice(row, row + 4 + height // 16), slice(col, col + 4 + width // 16)
        picture[:, :, rows, cols] = 8 * torch.randn(1, channels, 1, 1, generator=generator)
    mean, deviation = picture.mean((0, 2, 3), keepdim=True), picture.std((0, 2, 3), keepdim=True)
    return (picture - mean) / deviation
