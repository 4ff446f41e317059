"""GLNet: one branch sees the whole scene coarsely, another sees patches of it, and each is given the other's maps.

There are three networks, which are also three stages of training: the global branch alone; with it a local branch that
is given the global maps under its patch; and a further global branch, which is given the local maps of all patches.
The memory they need is that of one overview and one patch, however large the scene.

Source: W. Chen, Z. Jiang, Z. Wang, K. Cui, X. Qian, *Collaborative Global-Local Networks for Memory-Efficient
Segmentation of Ultra-High Resolution Images*, CVPR 2019 (arXiv 1905.06368), and the code released with it, whose names
the weights bear.

A network of these needs an overview and patches, so it is not among those that :func:`geoseg.networks.create` knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from geoseg.errors import ConfigError, unknown_name
from geoseg.networks.encoders import feature_pyramid
from geoseg.networks.glnet_exchange import crops, stage_crops
from geoseg.networks.glnet_fpn import JOINED, BranchMaps, BranchPyramid, Stages, resized
from geoseg.networks.patch_grid import Corner, PatchGrid

Mode = Literal["global", "local", "collaborative"]
MODES: tuple[Mode, ...] = ("global", "local", "collaborative")
DEFAULT_ENCODER = "resnet50"
STRIDES = (4, 8, 16, 32)
# The authors' ending of the names of layers that take the other branch's maps in the global branch.
EXTENDED = "_ext"
_DEVIATION = 0.01


class GlobalNet(nn.Module):
    """The global branch: an overview of the scene, scores at a quarter of its size.

    Args:
        in_channels: number of bands.
        num_classes: number of classes, K.
        encoder: any of timm's with feature maps at strides 4, 8, 16 and 32.
        pretrained: start encoders from ImageNet weights, which are downloaded.
    """

    mode: ClassVar[Mode] = "global"

    def __init__(
        self, in_channels: int, num_classes: int, encoder: str = DEFAULT_ENCODER, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.encoder = encoder
        self.resnet_global, channels = feature_pyramid(
            encoder, in_channels=in_channels, strides=STRIDES, pretrained=pretrained
        )
        self.fpn_global = self._pyramid(channels)

    def _pyramid(self, channels: Sequence[int]) -> BranchPyramid:
        return BranchPyramid(channels, self.num_classes)

    def overview(self, pixels: torch.Tensor) -> BranchMaps:
        """Return the maps of overviews (N, C, h, w) that are network input; one, where patches are to follow."""
        found: BranchMaps = self.fpn_global(self.resnet_global(pixels))
        return found

    def overview_scores(self, maps: BranchMaps) -> torch.Tensor:
        """Return scores (N, K, h, w) of overviews, at a quarter of their size."""
        scores: torch.Tensor = self.fpn_global.classify(maps.joined)
        return scores


class GlobalToLocalNet(GlobalNet):
    """Global and local branch: each patch is seen beside the global maps under it.

    The last convolution, over the maps of both branches, is a sum of one over each.  So of a patch's own maps, once
    they have been merged, no more is kept than K numbers a cell: no patch is stored or looked at twice.
    """

    mode: ClassVar[Mode] = "local"

    def __init__(
        self, in_channels: int, num_classes: int, encoder: str = DEFAULT_ENCODER, pretrained: bool = False
    ) -> None:
        super().__init__(in_channels, num_classes, encoder, pretrained)
        self.resnet_local, channels = feature_pyramid(
            encoder, in_channels=in_channels, strides=STRIDES, pretrained=pretrained
        )
        self.fpn_local = BranchPyramid(channels, num_classes, beside=True)
        self.ensemble_conv = nn.Conv2d(2 * JOINED, num_classes, 3, padding=1)
        nn.init.normal_(self.ensemble_conv.weight, std=_DEVIATION)

    def local(
        self, patches: torch.Tensor, overview: BranchMaps, grid: PatchGrid, corners: Sequence[Corner]
    ) -> BranchMaps:
        """Return the maps of patches (N, C, h, w) that are network input.

        Args:
            patches: at ``corners``.
            overview: what :meth:`overview` gave for the scene.
            grid: where patches lie in the scene.
            corners: first pixels of these patches.
        """
        found: BranchMaps = self.fpn_local(self.resnet_local(patches), stage_crops(overview.stages, grid, corners))
        return found

    def local_scores(self, maps: BranchMaps) -> torch.Tensor:
        """Return scores (N, K, h, w) of patches, at a quarter of their size, by the local branch alone."""
        scores: torch.Tensor = self.fpn_local.classify(maps.joined)
        return scores

    def local_share(self, maps: BranchMaps) -> torch.Tensor:
        """Return the local branch's share of the scores of patches: (N, K, h, w) float32."""
        return F.conv2d(maps.joined, self.ensemble_conv.weight[:, :JOINED], padding=1).float()

    def global_share(
        self, joined: torch.Tensor, grid: PatchGrid, corners: Sequence[Corner], size: Sequence[int]
    ) -> torch.Tensor:
        """Return the global branch's share of the scores of patches, which added to the local one gives the scores.

        Args:
            joined: of the scene, (1, 512, h, w).
            grid: where patches lie in the scene.
            corners: of the N patches.
            size: of the local share.
        """
        under = resized(crops(joined, grid, corners), size)
        return F.conv2d(under, self.ensemble_conv.weight[:, JOINED:], self.ensemble_conv.bias, padding=1).float()


class CollaborativeNet(GlobalToLocalNet):
    """The full method: what the local branch sees in all patches goes into a further look at the overview.

    That look has weights of its own, ``resnet_global`` and ``fpn_global`` as in the authors' files of the third stage.
    The local branch is given the maps of the first stage's, ``fixed``, which it learned with.
    """

    mode: ClassVar[Mode] = "collaborative"

    def __init__(
        self, in_channels: int, num_classes: int, encoder: str = DEFAULT_ENCODER, pretrained: bool = False
    ) -> None:
        super().__init__(in_channels, num_classes, encoder, pretrained)
        self.fixed = GlobalNet(in_channels, num_classes, encoder, pretrained)

    def _pyramid(self, channels: Sequence[int]) -> BranchPyramid:
        return BranchPyramid(channels, self.num_classes, beside=True, ending=EXTENDED)

    def overview(self, pixels: torch.Tensor) -> BranchMaps:
        """Return the maps of the first stage's branch for overviews (N, C, h, w) that are network input."""
        return self.fixed.overview(pixels)

    def overview_scores(self, maps: BranchMaps) -> torch.Tensor:
        """Return scores (N, K, h, w) of the first stage's branch."""
        return self.fixed.overview_scores(maps)

    def extended(self, pixels: torch.Tensor, merged: Stages) -> BranchMaps:
        """Return the maps of overviews (N, C, h, w) that are network input, beside those merged from all patches."""
        found: BranchMaps = self.fpn_global(self.resnet_global(pixels), merged)
        return found

    def extended_scores(self, maps: BranchMaps) -> torch.Tensor:
        """Return scores (N, K, h, w) of overviews, at a quarter of their size, by the further look alone."""
        scores: torch.Tensor = self.fpn_global.classify(maps.joined)
        return scores


_NETWORKS: dict[Mode, type[GlobalNet]] = {each.mode: each for each in (GlobalNet, GlobalToLocalNet, CollaborativeNet)}


def build_glnet(
    *,
    in_channels: int,
    num_classes: int,
    mode: Mode = "collaborative",
    encoder: str = DEFAULT_ENCODER,
    pretrained: bool = False,
) -> GlobalNet:
    """Return an untrained network of a mode.

    Args:
        in_channels: number of bands.
        num_classes: K.
        mode: ``global``, the overview alone; ``local``, patches beside it; ``collaborative``, both ways.
        encoder: of each branch, any of timm's with feature maps at strides 4, 8, 16 and 32.
        pretrained: start encoders from ImageNet weights, which are downloaded.

    Raises:
        ConfigError: an unknown mode or encoder, or weights that cannot be had.
    """
    if mode not in _NETWORKS:
        raise ConfigError(unknown_name("mode of GLNet", mode, MODES))
    return _NETWORKS[mode](in_channels, num_classes, encoder, pretrained)
