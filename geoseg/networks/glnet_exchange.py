"""What GLNet's branches hand each other: cells of the scene's maps to patches, and maps of patches to the scene's.

Source: Chen et al. 2019, arXiv 1905.06368, as released by the authors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
import torch.nn.functional as F

from geoseg.networks.glnet_fpn import Stages, resized
from geoseg.networks.patch_grid import Corner, PatchGrid, Shape


def crops(maps: torch.Tensor, grid: PatchGrid, corners: Sequence[Corner]) -> torch.Tensor:
    """Return the cells of a scene's map (1, C, h, w) under each patch: (N, C, rows, columns)."""
    places = [grid.cells(corner, _size(maps)) for corner in corners]
    return torch.cat([maps[..., rows, cols] for rows, cols in places])


def stage_crops(stages: Stages, grid: PatchGrid, corners: Sequence[Corner]) -> Stages:
    """Return the cells of all a scene's maps under each patch."""
    return cast(Stages, tuple(tuple(crops(maps, grid, corners) for maps in levels) for levels in stages))


def part_of(maps: torch.Tensor, grid: PatchGrid, corner: Corner, map_yx: Shape) -> torch.Tensor:
    """Return what the map (1, C, h, w) of a patch adds to a map of the scene: (1, C, rows, columns) float32."""
    rows, cols = grid.cells(corner, map_yx)
    return resized(maps.float(), (rows.stop - rows.start, cols.stop - cols.start))


def counts(grid: PatchGrid, corners: Iterable[Corner], map_yx: Shape) -> torch.Tensor:
    """Return how many patches each cell of a scene's map has: (h, w) float32, a fraction where a patch ends in it.

    It is the number of patches of each pixel, bilinearly resized.  A patch is a rectangle, so its rows and columns are
    resized by themselves, and no image of the scene's size is made.
    """
    total = torch.zeros(map_yx)
    for corner in corners:
        rows, cols = (
            _resized_span(*each) for each in zip(corner, grid.patch_yx, grid.scene_yx, map_yx, strict=True)
        )  # fmt: skip
        total += rows[:, None] * cols
    return total


class Merging:
    """Maps of patches, gathered to maps of the scene: a sum over the patches, divided by their number once at the end.

    The sums are float32, so their order matters by rounding alone.  A cell without a patch, where not all are added,
    stays 0.

    Args:
        like: the scene's maps, for their sizes and device: (1, C, h, w) each.
        grid: where the patches lie.
    """

    def __init__(self, like: Stages, grid: PatchGrid) -> None:
        self._grid = grid
        self._corners: list[Corner] = []
        self._sums = tuple(tuple(torch.zeros_like(maps, dtype=torch.float32) for maps in levels) for levels in like)

    def add(self, corners: Sequence[Corner], stages: Stages) -> None:
        """Add the maps (N, C, h, w) of N patches."""
        self._corners += corners
        for sums, levels in zip(self._sums, stages, strict=True):
            for total, maps in zip(sums, levels, strict=True):
                for corner, each in zip(corners, maps.split(1), strict=True):
                    rows, cols = self._grid.cells(corner, _size(total))
                    total[..., rows, cols] += part_of(each, self._grid, corner, _size(total))

    def maps(self) -> Stages:
        """Return the means over the patches added; nothing may be added after that."""
        sizes = {_size(total) for sums in self._sums for total in sums}
        # Only patches that were left out can make a count less than 1, at their neighbours' edges.
        number = {size: counts(self._grid, self._corners, size).clamp(min=1) for size in sizes}
        for sums in self._sums:
            for total in sums:
                total.div_(number[_size(total)].to(total.device))
        return cast(Stages, self._sums)


def _size(maps: torch.Tensor) -> Shape:
    return int(maps.shape[-2]), int(maps.shape[-1])


def _resized_span(start: int, patch: int, scene: int, cells: int) -> torch.Tensor:
    """Return the share of each of ``cells`` cells that a patch has along one axis: (cells,)."""
    pixels = torch.zeros(1, 1, scene)
    pixels[..., start : start + patch] = 1
    return F.interpolate(pixels, cells, mode="linear", align_corners=False)[0, 0]
