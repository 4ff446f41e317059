"""Parts of ICNet that both of its graphs share: resizing, pyramid pooling, and the pyramid of a whole scene."""

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


class ScenePyramid:
    """The pyramid of a whole scene, gathered tile by tile in a few numbers per channel, and read out tile by tile.

    With it every tile is given the means over the scene in place of its own, so tiles with enough halo give the scores
    of one pass over the scene.  The bins are those of adaptive pooling on the scene's lattice, one cell every 32 pixels
    from its first pixel on.

    Args:
        channels: of the map.
        shape: rows and columns of the scene's lattice.
    """

    def __init__(self, channels: int, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._sums = {bins: torch.zeros(channels, bins, bins, dtype=torch.float64) for bins in BINS}
        self._left = shape[0] * shape[1]

    def add(self, features: torch.Tensor, row: int, col: int) -> None:
        """Take in cells (C, h, w) that begin at ``row`` and ``col``; each cell of the scene belongs to one call.

        Raises:
            ConfigError: cells beyond the scene, or more of them than the scene has.
        """
        height, width = features.shape[-2:]
        rows, cols = self.shape
        if row < 0 or col < 0 or row + height > rows or col + width > cols or height * width > self._left:
            raise ConfigError(
                f"{height} × {width} cells at {row}, {col} do not belong to a scene of {rows} × {cols} cells, or were "
                "given before: give each cell once."
            )
        self._left -= height * width
        features = features.detach().double().cpu()
        for bins, sums in self._sums.items():
            down = _membership(rows, bins)[:, row : row + height]
            across = _membership(cols, bins)[:, col : col + width]
            sums += down @ features @ across.T

    def crop(self, row: int, col: int, shape: tuple[int, int]) -> torch.Tensor:
        """Return what the pyramid adds to the ``shape`` cells from ``row`` and ``col`` on: (C, h, w) float32.

        Cells outside the scene have the values of its edge.

        Raises:
            ConfigError: some cells of the scene have not been given.
        """
        if self._left:
            raise ConfigError(f"{self._left} cells of the scene are missing from its pyramid: add them first.")
        total = torch.zeros((), dtype=torch.float64)
        for bins, sums in self._sums.items():
            counts = [_membership(length, bins).sum(1) for length in self.shape]
            means = sums / (counts[0][:, None] * counts[1])
            down = _enlargement(self.shape[0], bins, row, shape[0])
            across = _enlargement(self.shape[1], bins, col, shape[1])
            total = total + down @ means @ across.T
        return total.float()


def _membership(length: int, bins: int) -> torch.Tensor:
    """Return which of ``length`` cells lie in which bin of adaptive pooling: (bins, length) of 0 and 1."""
    cell = torch.arange(length)
    index = torch.arange(bins)[:, None]
    first = index * length // bins
    last = -((-(index + 1) * length) // bins)
    return ((cell >= first) & (cell < last)).double()


def _enlargement(length: int, bins: int, start: int, count: int) -> torch.Tensor:
    """Return the share of each bin in cells ``start`` to ``start + count`` of ``length``: (count, bins)."""
    cell = torch.arange(start, start + count).clamp(0, length - 1).double()
    place = cell * (bins - 1) / max(length - 1, 1)
    return (1 - (place[:, None] - torch.arange(bins)).abs()).clamp(min=0)
