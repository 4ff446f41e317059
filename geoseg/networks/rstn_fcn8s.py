"""The two FCN-8s of the RSTN authors, so that their checkpoints can be used as they are.

Layers, names and arithmetic are those of the code released with arXiv 1709.04518, which follows the FCN of
J. Long, E. Shelhamer, T. Darrell (CVPR 2015, arXiv 1411.4038): 100 pixels of zeros round the image, poolings that round
up, and crops that bring the maps together again.  :mod:`geoseg.networks.fcn8s` is the one for maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import BundleError
from geoseg.networks.fcn8s import bilinear_weights
from geoseg.networks.rstn import SaliencyPair

# VGG16: channels and number of convolutions of the five blocks.
_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_HIDDEN = 4096
# Zeros round the image, and where the maps of strides 16, 8 and 1 begin that belong to it (or to the coarser map).
_PADDING = 100
_FROM_POOL4, _FROM_POOL3, _FROM_IMAGE = 5, 9, 31


class AuthorsFCN8s(nn.Module):
    """FCN-8s over VGG16 as the RSTN authors use it: as many scores as input channels, 134 million parameters.

    The enlarging convolutions are bilinear interpolation of each map by itself, and training leaves them so, as the
    authors do.  PyTorch's defaults stand for the rest, which the authors' code leaves at 0 (and then learns nothing)
    unless a checkpoint is loaded.

    Args:
        channels: of the input and of the scores, the authors' three slices.
    """

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        previous = channels
        for block, (width, count) in enumerate(_BLOCKS, 1):
            for number in range(1, count + 1):
                padding = _PADDING if (block, number) == (1, 1) else 1
                self.add_module(f"conv{block}_{number}", nn.Conv2d(previous, width, 3, padding=padding))
                previous = width
        self.fc6 = nn.Conv2d(previous, _HIDDEN, 7)
        self.fc7 = nn.Conv2d(_HIDDEN, _HIDDEN, 1)
        self.score_fr = nn.Conv2d(_HIDDEN, channels, 1)
        self.score_pool3 = nn.Conv2d(_BLOCKS[2][0], channels, 1)
        self.score_pool4 = nn.Conv2d(_BLOCKS[3][0], channels, 1)
        self.upscore2 = enlarging(channels, 4)
        self.upscore8 = enlarging(channels, 16)
        self.upscore_pool4 = enlarging(channels, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (N, C, H, W) for an image (N, C, H, W) of any size."""
        features, pools = pixels, []
        for block, (_, count) in enumerate(_BLOCKS, 1):
            for number in range(1, count + 1):
                features = F.relu(self.get_submodule(f"conv{block}_{number}")(features), inplace=True)
            features = F.max_pool2d(features, 2, ceil_mode=True)
            pools.append(features)
        hidden = F.dropout2d(F.relu(self.fc6(features)), training=self.training)
        hidden = F.dropout2d(F.relu(self.fc7(hidden)), training=self.training)
        scores = self.upscore2(self.score_fr(hidden))
        scores = scores + _cut(self.score_pool4(pools[3]), _FROM_POOL4, scores.shape[-2:])
        scores = self.upscore_pool4(scores)
        scores = scores + _cut(self.score_pool3(pools[2]), _FROM_POOL3, scores.shape[-2:])
        return _cut(self.upscore8(scores), _FROM_IMAGE, pixels.shape[-2:])


def authors_pair(channels: int = 3) -> SaliencyPair:
    """Return the pair whose weights have the names and shapes of the authors' files."""
    return SaliencyPair(AuthorsFCN8s(channels), AuthorsFCN8s(channels), targets=channels, bands=channels)


def from_authors(state: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    """Return the weights of an authors' file for :func:`authors_pair`, and the number of channels it needs.

    Args:
        state: names and tensors, possibly behind ``module.``, which training on several GPUs leaves.

    Raises:
        BundleError: these are not the weights of such a pair.
    """
    found = {name.removeprefix("module."): value for name, value in state.items()}
    if "saliency1.weight" not in found:
        raise BundleError("the checkpoint has no saliency1.weight: it does not hold a saliency pair.")
    channels = len(found["saliency1.weight"])
    with torch.device("meta"):
        expected = authors_pair(channels).state_dict()
    for name, value in expected.items():
        if name not in found or found[name].shape != value.shape:
            has = f"{name} of shape {tuple(found[name].shape)}" if name in found else f"no {name}"
            raise BundleError(
                f"the checkpoint has {has} where {tuple(value.shape)} belongs: it holds no pair of FCN-8s."
            )
    if more := sorted(found.keys() - expected.keys()):
        raise BundleError(f"the checkpoint has {more[0]}, which no pair of FCN-8s has: give the weights alone.")
    return found, channels


def enlarging(channels: int, size: int) -> nn.ConvTranspose2d:
    """Return a frozen convolution that enlarges scores (N, C, h, w) bilinearly by half its size, each map by itself.

    The outermost rows and columns fade, since nothing is known beyond: FCN-8s crops them away.

    Args:
        channels: C.
        size: of its kernel, even.
    """
    layer = nn.ConvTranspose2d(channels, channels, size, stride=size // 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(bilinear_weights(channels, size))
    return layer.requires_grad_(False)


def _cut(scores: torch.Tensor, start: int, shape: torch.Size) -> torch.Tensor:
    """Return ``shape`` rows and columns of scores from ``start`` on."""
    return scores[..., start : start + shape[0], start : start + shape[1]]
