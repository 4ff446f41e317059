"""FCN-8s: class scores at three strides, the coarser ones enlarged and added to the finer.

Source: J. Long, E. Shelhamer, T. Darrell, *Fully Convolutional Networks for Semantic Segmentation*, CVPR 2015 (arXiv
1411.4038), sections 3.3 and 4.2.  Different here, because tiles of a scene are its inputs: any timm encoder in place of
VGG16; mirrored edges instead of 100 pixels of zeros around the image; and scores that grow beyond the edge before they
are enlarged, so that the outermost ones do not fade.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError
from geoseg.networks.any_size import AnySize
from geoseg.networks.encoders import feature_pyramid

_STRIDES = (8, 16, 32)


def bilinear_weights(channels: int, size: int) -> torch.Tensor:
    """Return weights (C, C, size, size) of a transposed convolution of stride size / 2: bilinear, each map by itself.

    Args:
        channels: C.
        size: of the kernel, even.
    """
    ramp = 1 - (torch.arange(size) - (size - 1) / 2).abs() / (size / 2)
    return torch.eye(channels)[..., None, None] * (ramp[:, None] * ramp)


class DoubleScores(nn.ConvTranspose2d):
    """Enlarges scores twofold by a learnable transposed convolution that starts as bilinear interpolation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, num_classes, 4, stride=2, padding=3, bias=False)

    def reset_parameters(self) -> None:
        """Set the weights of bilinear interpolation, each class by itself."""
        with torch.no_grad():
            self.weight.copy_(bilinear_weights(self.in_channels, 4))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return ``scores`` (N, K, h, w) at twice the size: (N, K, 2h, 2w)."""
        # One more score on each side, cut away again by the padding of 3 in place of 1.
        return super().forward(F.pad(scores, (1, 1, 1, 1), mode="replicate"))


class FCN8s(nn.Module):
    """Scores from the features of strides 8, 16 and 32, summed from coarse to fine and enlarged eightfold at last.

    Args:
        encoder: gives the three feature maps.
        channels: of the three maps.
        num_classes: number of classes.
        hidden: width of the two hidden layers on the coarsest features, which the paper makes of VGG16's fully
            connected ones (4096: 7 × 7, then 1 × 1, with dropout); 0 leaves them out.
    """

    def __init__(self, encoder: nn.Module, channels: list[int], num_classes: int, hidden: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        fine, middle, coarse = channels
        self.hidden = nn.Sequential()
        if hidden:
            self.hidden = nn.Sequential(
                *(nn.Conv2d(coarse, hidden, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout2d()),
                *(nn.Conv2d(hidden, hidden, 1), nn.ReLU(inplace=True), nn.Dropout2d()),
            )
        self.score8 = nn.Conv2d(fine, num_classes, 1)
        self.score16 = nn.Conv2d(middle, num_classes, 1)
        self.score32 = nn.Conv2d(hidden or coarse, num_classes, 1)
        self.up32 = DoubleScores(num_classes)
        self.up16 = DoubleScores(num_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W) with sides that are multiples of 32."""
        fine, middle, coarse = self.encoder(pixels)
        scores = self.up32(self.score32(self.hidden(coarse))) + self.score16(middle)
        scores = self.up16(scores) + self.score8(fine)
        return F.interpolate(scores, scale_factor=8, mode="bilinear", align_corners=False)


def build_fcn8s(
    *, in_channels: int, num_classes: int, encoder: str = "resnet34", pretrained: bool = False, hidden: int = 0
) -> AnySize:
    """Return FCN-8s over any convolutional encoder of timm, taking any input size.

    ``encoder="vgg16", hidden=4096`` is the network of the paper, but that timm gives the features just before a
    pooling and the paper reads those behind it.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: one with features of strides 8, 16 and 32.
        pretrained: start the encoder from ImageNet weights, which are downloaded.
        hidden: see :class:`FCN8s`.

    Raises:
        ConfigError: ``hidden`` is no whole number from 0 to 16384, or the encoder is unknown or does not fit.
    """
    if isinstance(hidden, bool) or not isinstance(hidden, int) or not 0 <= hidden <= 16384:
        raise ConfigError(f"hidden of network fcn8s is {hidden!r}: give a whole number from 0 to 16384.")
    features, channels = feature_pyramid(encoder, in_channels=in_channels, strides=_STRIDES, pretrained=pretrained)
    return AnySize(FCN8s(features, channels, num_classes, hidden), stride=32, min_size=32)
