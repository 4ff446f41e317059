"""Parts of ICNet that both of its graphs share: resizing and pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from geoseg.errors import ConfigError

Pool = Literal["adaptive", "authors"]
POOLS: tuple[Pool, ...] = ("adaptive", "authors")
BINS = (1, 2, 3, 6)
# The authors' kernels and strides, written down for the one map of 33 × 65 cells that their images give.
_AUTHORS_MAP = (33, 65)
_AUTHORS_KERNELS = {1: (33, 65), 2: (17, 33), 3: (13, 25), 6: (8, 15)}
_AUTHORS_STRIDES = {1: (33, 65), 2: (16, 32), 3: (10, 20), 6: (5, 10)}


def resized(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return maps (N, C, h, w) bilinearly resized to ``size``, corner cells on corner cells."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def lattice(size: Sequence[int], stride: int) -> tuple[int, ...]:
    """Return how many cells there are at every ``stride``-th pixel from the first on, along each axis.

    >>> lattice((257, 256), 32)
    (9, 8)
    """
    return tuple((length - 1) // stride + 1 for length in size)


class Pyramid(nn.Module):
    """Adds to a map its own means over 1, 2, 3 and 6 bins along each axis, enlarged; no parameters.

    A constant map c becomes 5 c.  Source: Zhao et al. 2018, arXiv 1704.08545, figure 2, as released by the authors
    (a sum where PSPNet concatenates).

    Args:
        pool: ``"adaptive"`` for maps of any size; ``"authors"`` for their kernels, which overlap, on 33 × 65 cells.
    """

    def __init__(self, pool: Pool = "adaptive") -> None:
        super().__init__()
        self.pool = pool

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, C, h, w) for (N, C, h, w).

        Raises:
            ConfigError: a map of another size than the authors' with their kernels.
        """
        size = features.shape[-2:]
        if self.pool == "authors" and tuple(size) != _AUTHORS_MAP:
            raise ConfigError(
                f"ICNet's pool 'authors' is made for inputs of 1025 × 2049 pixels ({_AUTHORS_MAP[0]} × "
                f"{_AUTHORS_MAP[1]} cells); this one has {size[0]} × {size[1]} cells: use pool 'adaptive'."
            )
        total = features
        for bins in BINS:
            total = total + resized(self._pooled(features, bins), size)
        return total

    def _pooled(self, features: torch.Tensor, bins: int) -> torch.Tensor:
        if self.pool == "adaptive":
            return F.adaptive_avg_pool2d(features, bins)
        return F.avg_pool2d(features, _AUTHORS_KERNELS[bins], _AUTHORS_STRIDES[bins])
