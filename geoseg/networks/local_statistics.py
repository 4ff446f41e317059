"""A network of few weights: local means and deviations of the bands, which are not learned, and a few layers on them.

What a score is made of is fixed, and it sees only so much ground: such a network cannot learn the cells of a coarse map
by heart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError
from geoseg.networks.any_size import AnySize

# A Gaussian is cut off at so many deviations.
_CUT = 3
# Deviations are of bands scaled to a deviation of 1; below this they say nothing, and their square root is steep.
_LEAST_VARIANCE = 1e-6
_LARGEST_SCALE = 128


class Surroundings(nn.Module):
    """The bands, and their means and standard deviations under Gaussians: (N, C, H, W) → (N, C · (1 + 2 S), H, W).

    Each is scaled to mean 0 and deviation 1, as batch norm does.  Beyond the edges of the input nothing is known, and
    what is within counts for more instead.

    Args:
        bands: C.
        scales: the S deviations of the Gaussians, in pixels.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, bands: int, scales: Sequence[float]) -> None:
        super().__init__()
        count = bands * (1 + 2 * len(scales))
        self.register_buffer("running_mean", torch.zeros(count))
        self.register_buffer("running_var", torch.ones(count))
        for number, scale in enumerate(scales):
            offsets = torch.arange(-math.ceil(_CUT * scale), math.ceil(_CUT * scale) + 1, dtype=torch.float64)
            kernel = (-0.5 * (offsets / scale) ** 2).exp()
            self.register_buffer(f"kernel_{number}", (kernel / kernel.sum()).float(), persistent=False)
        self._count = len(scales)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the statistics, computed in float32 at least: variances are small differences of large numbers."""
        with _exactly(pixels.device.type):
            bands = pixels if pixels.dtype == torch.float64 else pixels.float()
            both, found = torch.cat([bands, bands**2], 1), [bands]
            for number in range(self._count):
                mean, square = _blurred(both, getattr(self, f"kernel_{number}").to(both)).chunk(2, 1)
                found += [mean, (square - mean**2).clamp(min=_LEAST_VARIANCE).sqrt()]
            mean, variance = (each.to(both) for each in (self.running_mean, self.running_var))
            scaled = F.batch_norm(torch.cat(found, 1), mean, variance, training=self.training)
        if self.training:
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)
        return scaled.to(pixels.dtype)


def _exactly(device: str) -> AbstractContextManager[Any]:
    """Switch autocast off, where a device has it: one that only counts (``meta``) has not."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _blurred(values: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Return weighted means of ``values`` along both axes, of what lies inside."""
    channels, radius = values.shape[1], len(kernel) // 2
    for axis in (2, 3):
        shape = [1, 1, 1, 1]
        shape[axis] = len(kernel)
        padding = [radius if each == axis else 0 for each in (2, 3)]
        size = [1, 1, 1, 1]
        size[axis] = values.shape[axis]
        inside = F.conv2d(values.new_ones(size), kernel.view(shape), padding=padding)
        values = F.conv2d(values, kernel.view(shape).expand(channels, *shape[1:]), padding=padding, groups=channels)
        values = values / inside
    return values


def build_local_statistics(
    *, in_channels: int, num_classes: int, scales: Sequence[float] = (1, 2, 4, 8), hidden: Sequence[int] = ()
) -> AnySize:
    """Return a network on local statistics, taking any input size.

    Without a hidden layer it is a linear model with (1 + 2 S) C + 1 weights for each class.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        scales: deviations of the Gaussians in pixels; a pixel's scores depend on so many pixels to either side as three
            times the largest.
        hidden: widths of layers between the statistics and the classes, each with ReLU.

    Raises:
        ConfigError: ``scales`` are not from 0.3 to 128 pixels, or ``hidden`` are no widths.
    """
    for what, given, least, most in (("scales", scales, 0.3, _LARGEST_SCALE), ("hidden", hidden, 1, 4096)):
        whole = what == "hidden"
        fits = isinstance(given, list | tuple) and all(_number(each, whole) and least <= each <= most for each in given)
        if not fits or (not whole and not given):
            kind = "a list of whole numbers" if whole else "a list of one or more numbers"
            raise ConfigError(f"{what} of network local-statistics is {given!r}: give {kind} from {least} to {most}.")
    widths = [in_channels * (1 + 2 * len(scales)), *hidden]
    layers: list[nn.Module] = [Surroundings(in_channels, scales)]
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
    return AnySize(nn.Sequential(*layers, nn.Conv2d(widths[-1], num_classes, 1)), stride=1)


def _number(value: object, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
