"""Pooling over a whole scene: means gathered tile by tile once, and read out for each tile.

A network that pools over its input gives a tile other scores than one pass over the scene would.  One with ``pooling``
set to ``"scene"`` can be given the scene's own means instead, and is then as local as its convolutions are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geoseg.errors import ConfigError
from geoseg.networks.icnet_blocks import BINS

# The part below the pooling takes less memory than a whole pass.  So the means are gathered over tiles so many times as
# large as those of a run, with as much more halo: what their edges add stays below what the edges of tiles cost anyway.
GATHERED = 2
# Side in pixels of what one tile of a picture adds to its means, at least.
_CORE = 512


class ScenePooling(Protocol):
    """A network that takes the pooled means of a scene in place of its input's.

    Attributes:
        stride: pixels from one cell of the pooled map to the next.
        coarse_channels: of that map, C'.
    """

    stride: int
    coarse_channels: int

    def cells(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of the pooled map of an input of ``shape`` pixels."""

    def coarse(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the map that is pooled, (N, C', h, w), one cell every ``stride`` pixels from the first on."""

    def __call__(self, pixels: torch.Tensor, context: torch.Tensor | None = None) -> Any:
        """Return scores, with ``context`` (N or 1, C', h or 1, w or 1) in place of the pooled maps."""


def pools_over_scene(network: object) -> TypeGuard[ScenePooling]:
    """Whether a network is meant to be given the means of the scene."""
    return getattr(network, "pooling", "tile") == "scene"


@dataclass(frozen=True)
class SceneMeans:
    """The pooled means of a scene, small enough to be sent anywhere.

    Attributes:
        shape: rows and columns of the scene's lattice of cells.
        values: (C, 50) float32: over 1, then 2 × 2, 3 × 3 and 6 × 6 bins, each row by row.
    """

    shape: tuple[int, int]
    values: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same numbers."""
        if not isinstance(other, SceneMeans):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.values, other.values)

    def __hash__(self) -> int:
        """Return a hash that agrees with equality."""
        return hash((self.shape, self.values.tobytes()))

    def crop(self, row: float, col: float, shape: tuple[int, int], device: torch.device | str = "cpu") -> torch.Tensor:
        """Return what the pyramid adds to ``shape`` cells from ``row`` and ``col`` on: (C, h, w) float32 on ``device``.

        Cells outside the scene have the values of its edge.
        """
        # Cell by cell and not as a product of matrices, whose rounding hangs on the library and on autocast.
        values = torch.from_numpy(self.values).to(device)
        total = torch.zeros((), device=device)
        first = 0
        for bins in BINS:
            means = values[:, first : first + bins**2].unflatten(1, (bins, bins))
            first += bins**2
            low, high, share = (part.to(device) for part in _between(self.shape[0], bins, row, shape[0]))
            means = torch.lerp(means[:, low], means[:, high], share[:, None])
            low, high, share = (part.to(device) for part in _between(self.shape[1], bins, col, shape[1]))
            total = total + torch.lerp(means[:, :, low], means[:, :, high], share)
        return total


class ScenePyramid:
    """Gathers the means of a scene from parts of its map, in a few numbers per channel.

    The bins are those of adaptive pooling on the scene's lattice.  Each cell counts by its weight; a bin that holds
    none that counts gets the mean over the scene.

    Args:
        channels: of the map.
        shape: rows and columns of the scene's lattice.
    """

    def __init__(self, channels: int, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._sums = {bins: torch.zeros(channels, bins, bins, dtype=torch.float64) for bins in BINS}
        self._weights = {bins: torch.zeros(bins, bins, dtype=torch.float64) for bins in BINS}
        self._left = shape[0] * shape[1]

    @property
    def weight(self) -> float:
        """How many cells count so far."""
        return float(self._weights[1])

    def add(self, features: torch.Tensor, row: int, col: int, weights: torch.Tensor | None = None) -> None:
        """Take in cells (C, h, w) that begin at ``row`` and ``col``; each cell of the scene belongs to one call.

        Args:
            features: the cells.
            row: of the first.
            col: of the first.
            weights: (h, w), how much each counts, from 0 to 1; 1 by default.

        Raises:
            ConfigError: cells beyond the scene, or more of them than the scene has.
        """
        size = (int(features.shape[-2]), int(features.shape[-1]))
        self._take(row, col, size)
        counted = torch.ones(size, dtype=torch.float64) if weights is None else weights.double().cpu()
        # What does not count must not spoil the rest, whatever it is.
        features = features.detach().double().cpu().masked_fill(counted == 0, 0.0) * counted
        for bins, sums in self._sums.items():
            down = _membership(self.shape[0], bins)[:, row : row + size[0]]
            across = _membership(self.shape[1], bins)[:, col : col + size[1]]
            sums += down @ features @ across.T
            self._weights[bins] += down @ counted @ across.T

    def skip(self, row: int, col: int, shape: tuple[int, int]) -> None:
        """Pass over ``shape`` cells none of which counts.

        Raises:
            ConfigError: as for :meth:`add`.
        """
        self._take(row, col, shape)

    def means(self) -> SceneMeans:
        """Return the means of the scene.

        Raises:
            ConfigError: some cells have not been given, or none counts.
        """
        if self._left:
            raise ConfigError(f"{self._left} cells of the scene are missing from its pyramid: add them first.")
        if not self.weight > 0:
            raise ConfigError("no cell of the scene counts: its pyramid needs at least one.")
        mean = self._sums[1] / self._weights[1]
        parts = [
            torch.where(self._weights[bins] > 0, sums / self._weights[bins].clamp(min=1e-300), mean).flatten(1)
            for bins, sums in self._sums.items()
        ]
        return SceneMeans(self.shape, torch.cat(parts, 1).float().numpy())

    def _take(self, row: int, col: int, size: tuple[int, int]) -> None:
        (height, width), (rows, cols) = size, self.shape
        if row < 0 or col < 0 or row + height > rows or col + width > cols or height * width > self._left:
            raise ConfigError(
                f"{height} × {width} cells at {row}, {col} do not belong to a scene of {rows} × {cols} cells, or were "
                "given before: give each cell once."
            )
        self._left -= height * width


def parts(shape: tuple[int, int], core: int) -> Iterator[tuple[tuple[int, int], int, int, tuple[int, int]]]:
    """Yield the tiles that share out a lattice of cells: position, first row and column, rows and columns.

    Args:
        shape: rows and columns of the lattice.
        core: cells a side that a tile answers for; the last tiles also take the cell beyond, if it is the lattice's
            last.

    >>> [(position, size) for position, _, _, size in parts((3, 5), 2)]
    [((0, 0), (3, 2)), ((0, 1), (3, 3))]
    """
    rows, cols = (max(1, -(-(count - 1) // core)) for count in shape)
    for place in range(rows):
        row = place * core
        height = shape[0] - row if place == rows - 1 else core
        for other in range(cols):
            col = other * core
            yield (place, other), row, col, (height, shape[1] - col if other == cols - 1 else core)


def means_of(network: ScenePooling, pixels: torch.Tensor, halo: int) -> SceneMeans:
    """Return the means of a picture as a run with a halo of ``halo`` pixels would gather them, tile by tile.

    Args:
        network: in evaluation mode.
        pixels: the picture, (1, C, H, W), which ends at its edges; H and W are multiples of the stride.
        halo: a multiple of the stride.
    """
    stride, halo = network.stride, GATHERED * halo
    height, width = int(pixels.shape[-2]), int(pixels.shape[-1])
    shape = network.cells((height, width))
    pyramid = ScenePyramid(network.coarse_channels, shape)
    # Tiles are at least half core, see `geoseg init`.
    for _, row, col, size in parts(shape, max(_CORE, 2 * halo) // stride):
        top, left = max(0, row * stride - halo), max(0, col * stride - halo)
        bottom, right = ((first + count) * stride + halo for first, count in zip((row, col), size, strict=True))
        coarse = network.coarse(pixels[..., top : min(bottom, height), left : min(right, width)])[0]
        row_in, col_in = row - top // stride, col - left // stride
        pyramid.add(coarse[:, row_in : row_in + size[0], col_in : col_in + size[1]], row, col)
    return pyramid.means()


def context_of(
    network: ScenePooling, means: SceneMeans, pixels: torch.Tensor, corners: list[tuple[int, int]]
) -> torch.Tensor:
    """Return what stands for the pooled maps of ``pixels`` (N, C, H, W): (N, C', h, w) float32.

    Args:
        network: what the pixels are for.
        means: of the scene.
        pixels: parts of the scene.
        corners: row and column of each part's first pixel in the scene.
    """
    shape = network.cells((int(pixels.shape[-2]), int(pixels.shape[-1])))
    stride = network.stride
    return torch.stack([means.crop(row / stride, col / stride, shape, pixels.device) for row, col in corners])


class _Held(nn.Module):
    """A network whose pooled maps are held at zero: what is left of its reach is that of its convolutions."""

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network
        self.channels = channels

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return what the network returns."""
        return self.network(pixels, pixels.new_zeros(1, self.channels, 1, 1))


def held(network: nn.Module) -> nn.Module:
    """Return the network as its tiles meet it: one that pools over the scene with maps that do not hang on the tile."""
    pooled: object = network
    return _Held(network, pooled.coarse_channels) if pools_over_scene(pooled) else network


def _membership(length: int, bins: int) -> torch.Tensor:
    """Return which of ``length`` cells lie in which bin of adaptive pooling: (bins, length) of 0 and 1."""
    cell = torch.arange(length)
    index = torch.arange(bins)[:, None]
    first = index * length // bins
    last = -((-(index + 1) * length) // bins)
    return ((cell >= first) & (cell < last)).double()


def _between(length: int, bins: int, start: float, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return between which bins each of ``count`` cells from ``start`` on lies, and the share of the second.

    The first and last of ``length`` cells stand on the first and last bin.  All are (count,): int64, int64, float32.
    """
    cell = (torch.arange(count, dtype=torch.float64) + start).clamp(0, length - 1)
    place = cell * (bins - 1) / max(length - 1, 1)
    low = place.floor().long()
    return low, (low + 1).clamp(max=bins - 1), (place - low).float()
