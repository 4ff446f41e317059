"""Object-contextual representations: a head that tells every pixel what the classes look like in this image.

Source: Yuan, Chen, Wang 2020, "Object-Contextual Representations for Semantic Segmentation", arXiv 1909.11065,
section 3.2.  Layers bear the names of the authors' HRNet with this head.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

_PIXEL = 512  # channels of pixel and object features
_KEY = 256  # channels in which they are compared
_DROPOUT = 0.05


class ContextHead(nn.Module):
    """From features (N, ``channels``, h, w) to scores, by way of first scores that gather one vector for each class.

    The gathering is over the whole input, so scores depend on the tile's extent.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv3x3_ocr = nn.Sequential(nn.Conv2d(channels, _PIXEL, 3, padding=1), nn.BatchNorm2d(_PIXEL), nn.ReLU())
        self.ocr_distri_head = ObjectContext()
        self.cls_head = nn.Conv2d(_PIXEL, num_classes, 1)
        self.aux_head = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, num_classes, 1)
        )

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``{"scores": (N, K, h, w), "regions": (N, K, h, w)}``: final scores, and those the regions come of."""
        regions = self.aux_head(features)
        pixels = self.conv3x3_ocr(features)
        # Equation 3: every class is the mean of the pixels, weighted by how much they are of it.
        weights = torch.softmax(regions.flatten(2), dim=2)
        objects = (weights @ pixels.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(3)
        return {"scores": self.cls_head(self.ocr_distri_head(pixels, objects)), "regions": regions}


class ObjectContext(nn.Module):
    """Joins to each pixel the objects that resemble it."""

    def __init__(self) -> None:
        super().__init__()
        self.object_context_block = ObjectAttention()
        self.conv_bn_dropout = nn.Sequential(*_unit(2 * _PIXEL, _PIXEL), nn.Dropout2d(_DROPOUT))

    def forward(self, pixels: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
        """Return (N, 512, h, w) for pixels (N, 512, h, w) and objects (N, 512, K, 1)."""
        context = self.object_context_block(pixels, objects)
        return cast(torch.Tensor, self.conv_bn_dropout(torch.cat([context, pixels], dim=1)))


class ObjectAttention(nn.Module):
    """Attention of pixels to objects (equations 4 and 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.f_pixel = nn.Sequential(*_unit(_PIXEL, _KEY), *_unit(_KEY, _KEY))
        self.f_object = nn.Sequential(*_unit(_PIXEL, _KEY), *_unit(_KEY, _KEY))
        self.f_down = nn.Sequential(*_unit(_PIXEL, _KEY))
        self.f_up = nn.Sequential(*_unit(_KEY, _PIXEL))

    def forward(self, pixels: torch.Tensor, objects: torch.Tensor) -> torch.Tensor:
        """Return the context (N, 512, h, w) of pixels (N, 512, h, w) among objects (N, 512, K, 1)."""
        query = self.f_pixel(pixels).flatten(2).transpose(1, 2)
        key = self.f_object(objects).flatten(2)
        value = self.f_down(objects).flatten(2).transpose(1, 2)
        alike = torch.softmax(query @ key / math.sqrt(_KEY), dim=2)
        context = (alike @ value).transpose(1, 2).unflatten(2, pixels.shape[-2:])
        return cast(torch.Tensor, self.f_up(context))


def _unit(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    """Return a convolution of 1 × 1 without bias, and its batch norm with ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    return convolution, nn.Sequential(nn.BatchNorm2d(outputs), nn.ReLU())
