"""GLNet on one macro-window: an overview of it, its patches in turn, and what both say of every pixel.

Source: Chen et al. 2019, arXiv 1905.06368, and the evaluation in the code released with it: patches' scores are summed
where patches overlap.  What is ours: scenes smaller than a patch, pixels without data, any bands and pixel type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from geoseg.networks.antialias import antialiased
from geoseg.networks.any_size import mirrored
from geoseg.networks.glnet import CollaborativeNet, GlobalNet, GlobalToLocalNet
from geoseg.networks.glnet_exchange import Merging
from geoseg.networks.glnet_fpn import BranchMaps
from geoseg.networks.patch_grid import Corner, PatchGrid, patch_grid
from geoseg.normalisation import Normalisation
from geoseg.segmenters.global_local_settings import Enlarging, GlobalLocalSettings
from geoseg.segmenters.interface import Tiles, normalised


@dataclass(frozen=True)
class WindowScores:
    """What was found in a macro-window.

    Attributes:
        scores: (K, H, W) float32, summed over the patches of each pixel.
        count: (H, W) float32, how many these are, 1 or more.
        overview: scores (1, K, h, w) of the overview alone, at a quarter of its size.
        local: (K, H, W) float32 sums of the scores of the local branch alone; None where not asked for.
    """

    scores: torch.Tensor
    count: torch.Tensor
    overview: torch.Tensor
    local: torch.Tensor | None = None

    @property
    def mean(self) -> torch.Tensor:
        """Scores (K, H, W), the mean over the patches of each pixel."""
        return self.scores / self.count


class WindowInput:
    """A macro-window as network input: its overview, and its patches when they are asked for.

    A window with a side less than a patch is mirrored at its far edges to the size of one.

    Args:
        pixels: (C, H, W) scene values, uint8 or float32, 0 where not valid.
        valid: (H, W) bool.
        scaling: of the bands.
        settings: sizes and choices.

    Attributes:
        overview: (1, C, h, w).
        settings: as given.
    """

    def __init__(
        self, pixels: torch.Tensor, valid: torch.Tensor, scaling: Normalisation, settings: GlobalLocalSettings
    ) -> None:
        self.settings = settings
        self._scaling = scaling
        self._pixels = _at_least(pixels, settings.patch)
        self._valid = _at_least(valid, settings.patch)
        values, known = overview_of(self._pixels, self._valid, (settings.overview, settings.overview))
        self.overview = self._scaled(values[None], known[None])

    def grid(self, maps: BranchMaps) -> PatchGrid:
        """Return where the patches lie, for maps of the overview."""
        patch = self.settings.patch
        return patch_grid(
            (int(self._valid.shape[0]), int(self._valid.shape[1])),
            (patch, patch),
            [(int(each.shape[2]), int(each.shape[3])) for each in maps.stages[0]],
            min_overlap=self.settings.min_overlap,
        )

    def patches(self, corners: Sequence[Corner]) -> torch.Tensor:
        """Return patches, (N, C, h, w)."""
        side = self.settings.patch
        places = [(slice(top, top + side), slice(left, left + side)) for top, left in corners]
        pixels = torch.stack([self._pixels[:, rows, cols] for rows, cols in places])
        return self._scaled(pixels, torch.stack([self._valid[rows, cols] for rows, cols in places]))

    def sub_batches(self, corners: Sequence[Corner]) -> Iterator[Sequence[Corner]]:
        """Yield as many corners at a time as there are patches in one pass."""
        for start in range(0, len(corners), self.settings.sub_batch):
            yield corners[start : start + self.settings.sub_batch]

    def _scaled(self, pixels: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return normalised(Tiles(pixels, valid, ()), self._scaling)


class WindowLook:
    """A macro-window under the eyes of a network.  The overview is looked at once; patches one sub-batch at a time.

    Args:
        network: in evaluation mode.
        pixels: see :class:`WindowInput`, which takes the rest too.
        valid: likewise.
        scaling: likewise.
        settings: likewise.

    Attributes:
        grid: where the patches lie.
        overview_scores: (1, K, h, w), at a quarter of the overview's size.
    """

    def __init__(
        self,
        network: GlobalNet,
        pixels: torch.Tensor,
        valid: torch.Tensor,
        scaling: Normalisation,
        settings: GlobalLocalSettings,
    ) -> None:
        self._network = network
        self._settings = settings
        self._shape = (int(pixels.shape[1]), int(pixels.shape[2]))
        self._input = WindowInput(pixels, valid, scaling, settings)
        self._maps = network.overview(self._input.overview)
        self.overview_scores = network.overview_scores(self._maps).float()
        self.grid = self._input.grid(self._maps)

    def foreground(self, background: int, threshold: float) -> tuple[Corner, ...]:
        """Return the patches in or near which the overview finds foreground.

        Source: the coarse-to-fine variant of Chen et al. 2019, with patches in place of one box.

        Args:
            background: channel of the background in the scores.
            threshold: what the probability of all other classes together must exceed, in the patch or so near to it
                as its neighbours overlap it.
        """
        chance = 1 - self.overview_scores.softmax(1)[0, background]
        near = self._settings.min_overlap

        def cells(axis: int, start: int) -> slice:
            scene, patch, count = self.grid.scene_yx[axis], self.grid.patch_yx[axis], chance.shape[axis]
            first, stop = max(0, start - near), min(scene, start + patch + near)
            return slice(first * count // scene, math.ceil(stop * count / scene))

        return tuple(
            (top, left)
            for top, left in self.grid.corners
            if bool((chance[cells(0, top), cells(1, left)] > threshold).any())
        )

    def scores(self, corners: Sequence[Corner] | None = None, *, local: bool = False) -> WindowScores:
        """Return the scores of the whole macro-window.

        Args:
            corners: of the patches to look at, by default all; elsewhere the scores of the overview stand.  Their order
                matters by rounding alone.
            local: add the scores of the local branch alone.
        """
        network = self._network
        if not isinstance(network, GlobalToLocalNet):
            return self._painted(_Canvas(self, ()), self.overview_scores, None)
        corners = self.grid.corners if corners is None else corners
        canvas = _Canvas(self, corners)
        alone = _Canvas(self, corners) if local else None
        if isinstance(network, CollaborativeNet) and corners:
            return self._painted(canvas, self._both_ways(network, corners, canvas, alone), alone)
        for part in self._input.sub_batches(corners):
            maps = network.local(self._input.patches(part), self._maps, self.grid, part)
            share = network.local_share(maps)
            canvas.add(part, share + network.global_share(self._maps.joined, self.grid, part, share.shape[-2:]))
            if alone is not None:
                alone.add(part, network.local_scores(maps))
        return self._painted(canvas, self.overview_scores, alone)

    def _both_ways(
        self, network: CollaborativeNet, corners: Sequence[Corner], canvas: _Canvas, alone: _Canvas | None
    ) -> torch.Tensor:
        """Fill the canvas from all patches, then the further look at the overview; return the latter's scores."""
        merging = Merging(self._maps.stages, self.grid)
        shares = []
        for part in self._input.sub_batches(corners):
            maps = network.local(self._input.patches(part), self._maps, self.grid, part)
            merging.add(part, maps.stages)
            shares.append(network.local_share(maps))
            if alone is not None:
                alone.add(part, network.local_scores(maps))
            del maps
        further = network.extended(self._input.overview, merging.maps())
        for part, share in zip(self._input.sub_batches(corners), shares, strict=True):
            canvas.add(part, share + network.global_share(further.joined, self.grid, part, share.shape[-2:]))
        return network.extended_scores(further).float()

    def _painted(self, canvas: _Canvas, overview: torch.Tensor, alone: _Canvas | None) -> WindowScores:
        """Return what the canvas holds, with the scores of the overview where no patch was looked at."""
        height, width = self._shape
        empty = canvas.count == 0
        if bool(empty.any()):
            whole = enlarged(self.overview_scores, self.grid.scene_yx, self._settings.enlarging)[0]
            canvas.scores.add_(whole.mul_(empty))
            canvas.count.add_(empty)
        return WindowScores(
            canvas.scores[:, :height, :width],
            canvas.count[:height, :width],
            overview,
            None if alone is None else alone.scores[:, :height, :width],
        )


class _Canvas:
    """Sums of scores over the patches of each pixel, and the number of patches."""

    def __init__(self, look: WindowLook, corners: Sequence[Corner]) -> None:
        self._grid, self._enlarging = look.grid, look._settings.enlarging
        classes, device = look.overview_scores.shape[1], look.overview_scores.device
        self.scores = torch.zeros((classes, *self._grid.scene_yx), device=device)
        self.count = torch.zeros(self._grid.scene_yx, device=device)
        height, width = self._grid.patch_yx
        for top, left in corners:
            self.count[top : top + height, left : left + width] += 1

    def add(self, corners: Sequence[Corner], scores: torch.Tensor) -> None:
        """Add the scores (N, K, h, w) of patches at a quarter of their size."""
        height, width = self._grid.patch_yx
        for (top, left), own in zip(corners, scores.split(1), strict=True):
            place = self.scores[:, top : top + height, left : left + width]
            place += enlarged(own, self._grid.patch_yx, self._enlarging)[0]


def overview_of(
    pixels: torch.Tensor, valid: torch.Tensor, size_yx: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an image made smaller, bilinearly with antialiasing: values (C, h, w) float32, and where there are any.

    Where all pixels are valid it is what Pillow gives; else only those that are count.

    Args:
        pixels: (C, H, W), 0 where not valid.
        valid: (H, W) bool.
        size_yx: h and w.
    """
    if bool(valid.all()):
        known = torch.ones(size_yx, dtype=torch.bool, device=pixels.device)
        return antialiased(pixels, size_yx).float(), known
    share = antialiased(valid.float()[None], size_yx)
    values = torch.cat([antialiased(band[None].float(), size_yx) for band in pixels])
    values = (values / share).where(share > 0, 0)
    return values.round_() if pixels.dtype == torch.uint8 else values, share[0] > 0


def enlarged(scores: torch.Tensor, size_yx: tuple[int, int], how: Enlarging) -> torch.Tensor:
    """Return scores (N, K, h, w) at another size, float32."""
    return F.interpolate(scores.float(), size_yx, mode=how, align_corners=False if how == "bilinear" else None)


def _at_least(values: torch.Tensor, side: int) -> torch.Tensor:
    """Return values (…, H, W) whose last two axes are mirrored to ``side`` at least."""
    for axis in (-2, -1):
        size = int(values.shape[axis])
        if size < side:
            values = values.index_select(axis, mirrored(size, side, values.device))
    return values
