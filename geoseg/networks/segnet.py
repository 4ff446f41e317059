"""SegNet: an encoder that remembers where its maxima stood, and a decoder that puts them back there.

Source: V. Badrinarayanan, A. Kendall, R. Cipolla, *SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
Segmentation*, IEEE TPAMI 39(12), 2017 (arXiv 1511.00561), section 3 and figure 2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError
from geoseg.networks.any_size import AnySize

# The thirteen convolutions of VGG16: how many in each stage, and their width in units of the first stage's.
_DEPTHS = (2, 2, 3, 3, 3)
_WIDTHS = (1, 2, 4, 8, 8)


class SegNet(nn.Module):
    """The thirteen convolutions of VGG16 with batch norm, and thirteen that mirror them.

    The last convolution of the decoder gives the scores, without batch norm and ReLU.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        width: channels of the first stage; the paper's 64.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        widths = [width * factor for factor in _WIDTHS]
        before = [in_channels, *widths[:-1]]
        self.encoder = nn.ModuleList(
            _convolutions([first] + [stage] * depth)
            for first, stage, depth in zip(before, widths, _DEPTHS, strict=True)
        )
        # Each stage ends in the width of the finer one, the finest in the scores, which have neither norm nor ReLU.
        decoder = [
            _convolutions([stage] * depth + [finer])
            for finer, stage, depth in zip([num_classes, *widths[:-1]], widths, _DEPTHS, strict=True)
        ]
        self.decoder = nn.ModuleList([decoder[0][:-2], *decoder[1:]])

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W) with sides that are multiples of 32."""
        features = pixels
        places = []
        for stage in self.encoder:
            features, place = F.max_pool2d(stage(features), 2, return_indices=True)
            places.append(place)
        for stage, place in zip(reversed(self.decoder), reversed(places), strict=True):
            features = stage(unpooled(features, place))
        return features


def unpooled(features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return ``features`` (N, C, h, w) at twice the size, each where its maximum stood and zeros around it.

    What :func:`torch.nn.functional.max_unpool2d` gives, by a product: that is deterministic on GPUs and can be
    exported, and a NaN reaches all four places that its maximum could have stood at, as
    :func:`geoseg.networks.receptive_field.measure_halo` needs.

    Args:
        features: (N, C, h, w).
        places: (N, C, h, w) int64, the indices into (2h · 2w) pixels that max pooling returned.
    """
    height, width = 2 * features.shape[-2], 2 * features.shape[-1]
    here = torch.arange(height * width, device=features.device).view(height, width)
    return _doubled(features) * (_doubled(places) == here)


def _doubled(values: torch.Tensor) -> torch.Tensor:
    """Return each of ``values`` (N, C, h, w) four times: (N, C, 2h, 2w)."""
    return values.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def _convolutions(widths: list[int]) -> nn.Sequential:
    """Return 3 × 3 convolutions from each of ``widths`` to the next, each with batch norm and ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)


def build_segnet(*, in_channels: int, num_classes: int, width: int = 64) -> AnySize:
    """Return SegNet, taking any input size; weights are random (He et al. 2015, as in the paper).

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        width: channels of the first stage; the deepest has eight times as many.

    Raises:
        ConfigError: ``width`` is no whole number from 1 to 512.
    """
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= 512:
        raise ConfigError(f"width of network segnet is {width!r}: give a whole number from 1 to 512.")
    return AnySize(SegNet(in_channels, num_classes, width), stride=32, min_size=32)
