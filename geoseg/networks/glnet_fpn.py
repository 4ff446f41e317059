"""GLNet's feature pyramid in its two forms: on the maps of one branch alone, and beside those of the other branch.

Unlike most pyramids it has neither normalisation nor activation, and is built once: what is smoothed does not go back
into it.  Source: Chen et al. 2019, arXiv 1905.06368, as released by the authors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 256
SMOOTHED = 128
JOINED = 512
_LATERAL = ("toplayer", "latlayer1", "latlayer2", "latlayer3")
_LEVELS = len(_LATERAL)
_DEVIATION = 0.01

# Maps of one stage at the strides 32, 16, 8 and 4, the coarsest first: (N, C, h, w) each.
Levels = tuple[torch.Tensor, ...]
# What the branches exchange: maps of the encoder, of the pyramid, and once and twice smoothed.
Stages = tuple[Levels, Levels, Levels, Levels]


@dataclass(frozen=True)
class BranchMaps:
    """What a branch sees in an image.

    Attributes:
        stages: of the encoder, of the pyramid, and once and twice smoothed.
        joined: the last of them at stride 4, side by side: (N, 512, h, w).
    """

    stages: Stages
    joined: torch.Tensor


class BranchPyramid(nn.Module):
    """A pyramid of one of the two forms; its layers bear the authors' names.

    Args:
        channels: of the encoder's maps at strides 4, 8, 16 and 32.
        num_classes: number of classes, K.
        beside: whether it takes the other branch's maps.
        ending: what stands behind the names of most layers.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, beside: bool = False, ending: str = "") -> None:
        super().__init__()
        self._beside = beside
        self._ending = ending
        times = 2 if beside else 1
        for name, inputs in zip(_LATERAL, reversed(channels), strict=True):
            self.add_module(name + ending, nn.Conv2d(times * inputs, WIDTH, 1))
        for level in range(1, _LEVELS + 1):
            self.add_module(f"smooth{level}_1{ending}", nn.Conv2d(times * WIDTH, WIDTH, 3, padding=1))
            self.add_module(f"smooth{level}_2{ending}", nn.Conv2d(times * WIDTH, SMOOTHED, 3, padding=1))
        if beside:
            self.smooth = nn.Conv2d(2 * _LEVELS * SMOOTHED, JOINED, 3, padding=1)
        self.classify = nn.Conv2d(JOINED, num_classes, 3, padding=1)
        for layer in self.children():
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.normal_(layer.weight, std=_DEVIATION)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[torch.Tensor], other: Stages | None = None) -> BranchMaps:
        """Return the maps of a branch.

        Args:
            features: of the encoder at strides 4, 8, 16 and 32.
            other: of the other branch, of any size; needed by the form that takes them, and not by the other.
        """
        assert self._beside == (other is not None)
        encoded = tuple(reversed(features))
        lateral = self._applied(_LATERAL, encoded, other and other[0])
        built = [lateral[0]]
        for each in lateral[1:]:
            built.append(resized(built[-1], each.shape[-2:]) + each)
        pyramid = tuple(built)
        once, twice = ([f"smooth{level}_{step}" for level in range(1, _LEVELS + 1)] for step in (1, 2))
        smoothed = self._applied(once, pyramid, other and other[1])
        smoother = self._applied(twice, smoothed, other and other[2])
        joined = smoother if other is None else tuple(map(_side_by_side, smoother, other[3]))
        found = torch.cat([resized(each, smoother[-1].shape[-2:]) for each in joined], 1)
        if other is not None:
            found = self.smooth(found)
        return BranchMaps((encoded, pyramid, smoothed, smoother), found)

    def _applied(self, names: Sequence[str], own: Levels, other: Levels | None) -> Levels:
        """Return what the layers make of the maps of each level, and of the other branch's behind them."""
        levels = own if other is None else map(_side_by_side, own, other)
        layers = (self.get_submodule(name + self._ending) for name in names)
        return tuple(layer(each) for layer, each in zip(layers, levels, strict=True))


def resized(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return maps (N, C, h, w) bilinearly resized to ``size``, edges on edges; as they are where they have it."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def _side_by_side(own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the channels of both maps, at the size of the first."""
    return torch.cat([own, resized(other, own.shape[-2:]).to(own.dtype)], 1)
