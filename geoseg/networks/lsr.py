"""The networks that label super-resolution was released with: two U-Nets and a shallow one that sees little ground.

Source: the code released with Malkin et al. 2019, *Label Super-Resolution Networks*, ICLR (calebrob6/land-cover), whose
layers and widths these are; its output for pixels without data is left out.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError
from geoseg.networks.any_size import AnySize

# Widths from full resolution down.
_WIDTHS = {"lsr-unet": (64, 32, 32, 32, 32), "lsr-unet-large": (32, 64, 128, 256, 128)}
# Of batch norm: Keras' defaults, its momentum of 0.99 counted from the other side.
_EPS, _MOMENTUM = 1e-3, 0.01


class Level(nn.Module):
    """One level of the U-Net and all below it.

    Args:
        before: channels that come in.
        widths: of this level and those below.
    """

    def __init__(self, before: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        width, *_ = widths
        self.down = _convolutions([before, *[width] * 3])
        self.below = Level(width, widths[1:]) if len(widths) > 1 else None
        if len(widths) > 1:
            self.enlarge = nn.Conv2d(widths[1], width, 2)
            self.up = _convolutions([2 * width, *[width] * 3])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, width, H, W) for (N, before, H, W)."""
        features = self.down(features)
        if self.below is None:
            return features
        enlarged = self.below(F.max_pool2d(features, 2)).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        # A pixel and those right of it and below, as Keras pads kernels of even size.
        enlarged = F.relu(self.enlarge(F.pad(enlarged, (0, 1, 0, 1))))
        found: torch.Tensor = self.up(torch.cat([features, enlarged], 1))
        return found


def _convolutions(widths: list[int]) -> nn.Sequential:
    """Return 3 × 3 convolutions from each of ``widths`` to the next, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after, _EPS, _MOMENTUM), nn.ReLU()]
    return nn.Sequential(*layers)


def _drawn(network: nn.Module) -> nn.Module:
    """Draw first weights as Keras does (Glorot, Bengio 2010)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network


def build_lsr_unet(*, variant: str, in_channels: int, num_classes: int) -> AnySize:
    """Return a U-Net of five levels, taking any input size.

    Args:
        variant: ``lsr-unet`` or ``lsr-unet-large``.
        in_channels: number of bands.
        num_classes: number of classes.
    """
    widths = _WIDTHS[variant]
    network = nn.Sequential(Level(in_channels, widths), nn.Conv2d(widths[0], num_classes, 1))
    stride = 2 ** (len(widths) - 1)
    return AnySize(_drawn(network), stride=stride, min_size=stride)


def build_lsr_fcn(*, in_channels: int, num_classes: int, width: int = 64, depth: int = 16) -> AnySize:
    """Return 3 × 3 convolutions at full resolution, taking any input size.

    What sees little ground cannot learn the outlines of coarse cells by heart.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        width: channels of all layers.
        depth: number of 3 × 3 convolutions; a pixel's scores depend on so many pixels to either side.

    Raises:
        ConfigError: ``width`` or ``depth`` is not a positive whole number.
    """
    for what, value, most in (("width", width, 4096), ("depth", depth, 256)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(f"{what} of network lsr-fcn is {value!r}: give a whole number from 1 to {most}.")
    layers = _convolutions([in_channels, *[width] * depth])
    return AnySize(_drawn(nn.Sequential(layers, nn.Conv2d(width, num_classes, 1))), stride=1)
