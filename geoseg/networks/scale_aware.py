"""The scale-aware module: read a feature map again at learned positions and weight it by what is read there.

Source: J. Lin, W. Jing, H. Song, *SAN: Scale-Aware Network for Semantic Segmentation of High-Resolution Aerial
Images*, 2019 (arXiv 1907.03089), the scale-aware module.  Where a roof is large its features are better read from
further out, where a car is small from nearby: a small convolution says, pixel by pixel, where.

The module takes any map (N, C, H, W) and returns one of the same shape, so it fits behind any stage of any decoder:
:func:`scale_aware_stage` puts it there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError, unknown_name

Mode = Literal["tile", "xy", "authors"]
# The two convolutions behind an offset see so many features to each side.
_OFFSET_REACH = 2
# Smallest tile whose offsets mean something at stride 32: two features.
_SMALLEST_REFERENCE = 64
_LARGEST_REFERENCE = 65536


class ScaleAwareModule(nn.Module):
    """Returns X · (1 + sigmoid(S)) for a map X, where S is X read bilinearly at learned positions.

    The positions are those of the pixels plus two-channel offsets (x, y), which two 3 × 3 convolutions compute from X.
    How the offsets are meant depends on ``mode``:

    - ``"tile"``: in feature pixels, at most ``bound`` along each axis.  The output depends on nothing farther away
      than max(2, ⌈bound⌉) features and not on the size of the map, so it is the same in a tile as in the whole scene.
    - ``"xy"``: as the released code means them, in halves of the map.  A feature may come from anywhere in the tile,
      and the output changes with the tile's size.
    - ``"authors"``: as the released code does it, which exchanges rows and columns: where the offsets are zero it
      reads the transposed map.  For comparison with its checkpoints only.

    In half precision the positions are computed and read in float32, because a coarser coordinate would move by
    whole features near the far edge of a large map.

    Args:
        channels: C of the map.
        mode: see above.
        reference_size: rows and columns, in features, of the map of a training tile: what an offset of 2 means in
            ``"tile"`` mode.  The other modes take the map's own size.
        bound: largest offset in features along each axis, only in ``"tile"`` mode; None sets no bound.
        offset_init: initial weight of the batch norm of the offsets.  At 0 the module starts by reading every pixel
            at its own place; at 1, as in the paper, it starts at random places all over the tile.

    Raises:
        ConfigError: a value is refused.
    """

    def __init__(
        self,
        channels: int,
        *,
        mode: Mode = "tile",
        reference_size: Sequence[int] = (64, 64),
        bound: float | None = 4.0,
        offset_init: float = 0.0,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ConfigError(f"channels of a scale-aware module are {channels}: give at least 1.")
        if mode not in get_args(Mode):
            raise ConfigError(unknown_name("mode of the scale-aware module", str(mode), get_args(Mode)))
        if len(reference_size) != 2 or min(reference_size) < 1:
            raise ConfigError(f"the reference size is {reference_size!r}: give rows and columns, each at least 1.")
        if bound is not None and not 0 <= bound < float("inf"):
            raise ConfigError(f"the bound of the offsets is {bound!r}: give features from 0 up, or None for no bound.")
        half = max(1, channels // 2)
        self.mode: Mode = mode
        self.reference_size = (int(reference_size[0]), int(reference_size[1]))
        self.bound = bound
        first = nn.Conv2d(channels, half, 3, padding=1, bias=False)
        second = nn.Conv2d(half, 2, 3, padding=1, bias=False)
        last = nn.BatchNorm2d(2)
        for layer in (first, second):
            nn.init.normal_(layer.weight, std=0.001)
        nn.init.constant_(last.weight, offset_init)
        self.sampling_conv = nn.Sequential(first, nn.BatchNorm2d(half), nn.ReLU(), second, last)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the weighted map (N, C, H, W) of ``features`` (N, C, H, W)."""
        return self.with_offset(features)[0]

    def with_offset(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted map (N, C, H, W), and how far away each pixel was read: (N, 2, H, W), at least float32.

        The second holds x and y in features, as they are after the bound and the edge of the map.
        """
        columns, rows = self.positions(features)
        read = read_at(features, columns, rows)
        if not self.training:
            read = read + self._marks(features, read.dtype)
        weighted = features * (1 + torch.sigmoid(read)).to(features.dtype)
        own_columns, own_rows = _lattice(features, columns.dtype)
        return weighted, torch.stack([columns - own_columns, rows - own_rows], dim=1)

    def positions(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return column and row, counted from 0, at which each pixel is read: both (N, H, W), inside the map."""
        height, width = features.shape[-2:]
        dtype = torch.promote_types(features.dtype, torch.float32)
        offsets = self.sampling_conv(features).to(dtype)
        columns, rows = _lattice(features, dtype)
        across, down = offsets[:, 0], offsets[:, 1]
        if self.mode == "tile":
            reference_rows, reference_columns = self.reference_size
            columns = columns + self._bounded(across * ((reference_columns - 1) / 2))
            rows = rows + self._bounded(down * ((reference_rows - 1) / 2))
        else:
            if self.mode == "authors":
                # The released code stacks its grid as (row, column); the sampler takes the first for the column.
                columns, rows = _stretched(rows, height, width), _stretched(columns, width, height)
            columns = columns + across * ((width - 1) / 2)
            rows = rows + down * ((height - 1) / 2)
        return columns.clamp(0, width - 1), rows.clamp(0, height - 1)

    def _bounded(self, offset: torch.Tensor) -> torch.Tensor:
        return offset if self.bound is None else offset.clamp(-self.bound, self.bound)

    def _marks(self, features: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return zeros, but NaN wherever a NaN of ``features`` lies within reach: (N, 1, H, W) or (N, 1, 1, 1).

        Which pixels are read depends on the values of others, so a NaN, by which the reach of networks is measured
        (:mod:`geoseg.networks.receptive_field`), would show only where it happens to be read.
        """
        marks = 0 * features.detach().sum(dim=1, keepdim=True, dtype=dtype)
        if self.mode != "tile" or self.bound is None:
            return marks.sum(dim=(2, 3), keepdim=True)
        reach = max(_OFFSET_REACH, math.ceil(self.bound))
        marks = F.max_pool2d(marks, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
        return F.max_pool2d(marks, (1, 2 * reach + 1), stride=1, padding=(0, reach))

    def extra_repr(self) -> str:
        """Say what does not show in the layers."""
        return f"mode={self.mode!r}, reference_size={self.reference_size}, bound={self.bound}"


class ScaleAwareStage(nn.Module):
    """A stage of a decoder with a scale-aware module behind it.

    Attributes:
        stage: what was wrapped.
        scale_aware: the module behind it.
    """

    def __init__(self, stage: nn.Module, scale_aware: ScaleAwareModule) -> None:
        super().__init__()
        self.stage = stage
        self.scale_aware = scale_aware

    def forward(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Return the weighted map (N, C, H, W) of what the stage makes of its inputs."""
        return self.with_offset(*inputs, **named)[0]

    def with_offset(self, *inputs: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weighted map, and how far away each pixel was read: (N, 2, H, W), x and y in features."""
        return self.scale_aware.with_offset(self.stage(*inputs, **named))


def scale_aware_stage(
    stage: nn.Module, channels: int, *, stride: int, reference_size: int | Sequence[int] = 512, **options: Any
) -> ScaleAwareStage:
    """Return ``stage`` with a scale-aware module behind it, to take its place in a decoder.

    The stage may take any inputs; it must return one map (N, ``channels``, H, W).  What else it has is under
    ``.stage`` of the result.

    >>> stage = scale_aware_stage(nn.Conv2d(16, 32, 3, padding=1), 32, stride=4, reference_size=256)
    >>> stage.scale_aware.reference_size
    (64, 64)

    Args:
        stage: any module of a decoder.
        channels: of the map it returns.
        stride: pixels of the network's input per feature of that map.
        reference_size: side of the training tiles in pixels, or their height and width.
        options: ``mode``, ``bound`` and ``offset_init`` of :class:`ScaleAwareModule`.

    Raises:
        ConfigError: a value is refused.
    """
    rows, columns = (max(1, side // stride) for side in reference_pixels(reference_size))
    return ScaleAwareStage(stage, ScaleAwareModule(channels, reference_size=(rows, columns), **options))


def reference_pixels(reference_size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width in pixels, multiples of 32, that a network sees of a training tile of this size.

    Raises:
        ConfigError: not one or two whole numbers from 64 to 65536.
    """
    sides = list(reference_size) if isinstance(reference_size, Sequence) else [reference_size] * 2
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not all(_SMALLEST_REFERENCE <= side <= _LARGEST_REFERENCE for side in sides):
        raise ConfigError(
            f"the reference size is {reference_size!r}: give the side of the training tiles in pixels, or height and "
            f"width, from {_SMALLEST_REFERENCE} to {_LARGEST_REFERENCE}."
        )
    return -(-sides[0] // 32) * 32, -(-sides[1] // 32) * 32


def _lattice(features: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return column (1, 1, W) and row (1, H, 1) of each pixel."""
    height, width = features.shape[-2:]
    columns = torch.arange(width, device=features.device, dtype=dtype).view(1, 1, -1)
    rows = torch.arange(height, device=features.device, dtype=dtype).view(1, -1, 1)
    return columns, rows


def _stretched(places: torch.Tensor, length: int, onto: int) -> torch.Tensor:
    """Return places 0 to ``length`` - 1 as 0 to ``onto`` - 1, the ends on the ends; a single one is the middle."""
    return places * ((onto - 1) / (length - 1)) if length > 1 else torch.full_like(places, (onto - 1) / 2)


def read_at(features: torch.Tensor, columns: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return ``features`` (N, C, H, W) read bilinearly at ``columns`` and ``rows`` (N, H, W), in their dtype."""
    height, width = features.shape[-2:]
    # As the sampler counts, -1 and 1 are the outer edges of the first and the last pixel.  Positions are inside the
    # map; the border mode only catches the rounding on the way.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(features.to(grid.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False)
