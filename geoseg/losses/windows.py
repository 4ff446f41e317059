"""Weighted means over windows of an image, the windows of structural measures."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gaussian(size: int, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """Return the weights (size,) of one axis, exp(−r² / 2σ²), their sum 1, in the type and place of ``like``."""
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    return (weights / weights.sum()).to(like)


def window_means(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted means of all windows that lie fully inside.

    Args:
        values: (N, C, H, W).
        weights: (k,) of one axis, k ≤ H, W; a window's weights are the products of rows' and columns'.

    Returns:
        (N, C, H − k + 1, W − k + 1), the window at the upper left first.
    """
    # All planes as channels of one image, each a group of its own: on a CPU depthwise kernels are some twenty times
    # faster than those for many images of one channel.
    planes = values.flatten(0, 1).unsqueeze(0)
    count = planes.shape[1]
    for kernel in (weights[:, None], weights[None, :]):
        planes = F.conv2d(planes, kernel.expand(count, 1, -1, -1), groups=count)
    return planes.squeeze(0).unflatten(0, values.shape[:2])


def reflected(values: torch.Tensor, margin: int) -> torch.Tensor:
    """Return ``values`` (..., H, W) with ``margin`` pixels mirrored at each side, without repeating the outermost.

    Unlike PyTorch's padding it takes images smaller than the margin, which are mirrored to and fro.
    """
    for axis in (-2, -1):
        length = values.shape[axis]
        if margin < length:
            # Flipped pieces have a gradient that is quick and, on a GPU, the same in every run.
            before, after = (values.narrow(axis, start, margin).flip(axis) for start in (1, length - 1 - margin))
            values = torch.cat([before, values, after], axis)
            continue
        period = max(2 * (length - 1), 1)
        places = torch.arange(-margin, length + margin, device=values.device) % period
        values = values.index_select(axis, torch.minimum(places, period - places))
    return values
