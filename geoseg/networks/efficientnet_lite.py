"""EfficientNet-Lite0 in PyTorch alone: the encoder of the model that ships with geoseg.

Source: M. Tan, Q. Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*, 2019 (arXiv
1905.11946), table 1, without squeeze-and-excitation and with ReLU6, as its authors released it under the name Lite.
Names of weights, weights drawn from a seed, and maps are those of timm's ``tf_efficientnet_lite0``, bit by bit.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.networks import strips
from geoseg.networks.pooled_norm import PooledBatchNorm2d

_STEM = 32
# Of each stage: blocks, kernel, stride of the first block, factor of expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The stages that end in one of the maps: the last ones of their strides.
_ENDS = (0, 1, 2, 4, 6)
_EPSILON = 1e-3


class HalvingConv2d(nn.Conv2d):
    """A convolution of stride 2 over maps of even sides, padded as TensorFlow does: one row and column more at the end.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        kernel: odd.
        groups: of channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, 2, 0, groups=groups, bias=False)
        self._before, self._after = (kernel - 2) // 2, (kernel - 1) // 2

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (N, K, H / 2, W / 2) for (N, C, H, W)."""
        return super().forward(F.pad(input, (self._before, self._after, self._before, self._after)))


class DepthwiseSeparable(nn.Module):
    """A convolution of each channel by itself, and one of 1 × 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(in_channels, kernel, stride)
        self.bn1, self.act1 = _norm(in_channels), nn.ReLU6(inplace=True)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = _norm(out_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, K, H / stride, W / stride) for (N, C, H, W)."""
        result: torch.Tensor = self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(features)))))
        return result


class InvertedResidual(nn.Module):
    """Expands the channels, convolves each by itself and brings them together, beside a shortcut where that fits."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.shortcut = stride == 1 and in_channels == out_channels
        wide = in_channels * expansion
        self.conv_pw = nn.Conv2d(in_channels, wide, 1, bias=False)
        self.bn1, self.act1 = _norm(wide), nn.ReLU6(inplace=True)
        self.conv_dw = _depthwise(wide, kernel, stride)
        self.bn2, self.act2 = _norm(wide), nn.ReLU6(inplace=True)
        self.conv_pwl = nn.Conv2d(wide, out_channels, 1, bias=False)
        self.bn3 = _norm(out_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, K, H / stride, W / stride) for (N, C, H, W)."""
        result: torch.Tensor = self.act1(self.bn1(self.conv_pw(features)))
        result = self.bn3(self.conv_pwl(self.act2(self.bn2(self.conv_dw(result)))))
        return result + features if self.shortcut else result


class EfficientNetLite(nn.Module):
    """The stem and the seven stages of EfficientNet-Lite0.

    Args:
        in_channels: number of bands.

    Attributes:
        out_channels: of the feature maps, finest first.
        narrow: whether the finest maps take most of the memory.
        made_of: modules that do nothing but call those they hold, and add.
    """

    narrow = True
    made_of = (DepthwiseSeparable, InvertedResidual)

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv_stem = HalvingConv2d(in_channels, _STEM, 3)
        self.bn1, self.act1 = _norm(_STEM), nn.ReLU6(inplace=True)
        for _ in range(2):  # timm draws these on trial, and throws them away
            nn.Conv2d(8, 8, 1)
        stages, channels = [], _STEM
        for depth, kernel, stride, expansion, width in _STAGES:
            blocks: list[nn.Module] = []
            for nth in range(depth):
                step = 1 if nth else stride
                if expansion == 1:
                    blocks.append(DepthwiseSeparable(channels, width, kernel, step))
                else:
                    blocks.append(InvertedResidual(channels, width, kernel, step, expansion))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.out_channels = tuple(_STAGES[end][-1] for end in _ENDS)
        self._draw()

    def _draw(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                outputs = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / outputs))

    def stages(self) -> list[strips.Stage]:
        """Return the layers that lead to each map."""
        starts = (0, *(end + 1 for end in _ENDS[:-1]))
        parts = [list(self.blocks[start : end + 1]) for start, end in zip(starts, _ENDS, strict=True)]
        return [[self.conv_stem, self.bn1, self.act1, *parts[0]], *parts[1:]]

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return feature maps of strides 2, 4, 8, 16 and 32 for (N, C, H, W); H and W are multiples of 32."""
        return strips.passed(self.stages(), pixels)


def _depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    if stride == 2:
        return HalvingConv2d(channels, channels, kernel, groups=channels)
    return nn.Conv2d(channels, channels, kernel, 1, kernel // 2, groups=channels, bias=False)


def _norm(channels: int) -> PooledBatchNorm2d:
    return PooledBatchNorm2d(channels, eps=_EPSILON)
