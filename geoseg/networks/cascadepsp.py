"""CascadePSP: one module that snaps a rough mask to the edges of an image, applied to its own answers again.

The module sees an image and three masks: the rough one, and what is known of the mask at strides 8 and 4.  A first pass
gives the mask at stride 8, a second one, told of it, the mask at stride 4, and a third one, told of both, the mask at
full resolution.  It knows nothing of classes: what is refined is one mask.

Source: H. K. Cheng, J. Chung, Y.-W. Tai, C.-K. Tang, *CascadePSP: Toward Class-Agnostic and Very High-Resolution
Segmentation via Global and Local Refinement*, CVPR 2020 (arXiv 2005.02551), section 3.1, and the code released with it,
whose parameter names these are.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from geoseg.errors import ConfigError
from geoseg.networks.encoders import feature_pyramid

STRIDE = 8
# Cells a side to which features are pooled.
CELLS = (1, 2, 3, 6)
# The rough mask and what is known at strides 8 and 4.
MASKS = 3
# The maps of a full run, in the order in which they are computed; numbers are their sides for an image of 224 pixels.
MAPS = ("out_28", "out_28_2", "out_56", "out_28_3", "out_56_2", "out_224")
# Channels at full width: of the pyramid, of the three blocks on the way up, and of the heads' hidden layer.
_PYRAMID, _UP, _HIDDEN = 1024, (512, 256, 32), 32
_LEAST = 8
# The layers of a ResNet whose outputs the authors use, at strides 2, 4 and 8.
_STAGES = ("conv1", "layer1", "layer4")

Maps = dict[str, torch.Tensor]


class PyramidPooling(nn.Module):
    """Means of the whole map and of its parts, beside the map: they tell every pixel what is there elsewhere.

    Args:
        channels: C of the features.
        pooled: channels of each mean.
        out: of what comes out.
    """

    def __init__(self, channels: int, pooled: int, out: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [nn.Sequential(nn.AdaptiveAvgPool2d(cells), nn.Conv2d(channels, pooled, 1, bias=False)) for cells in CELLS]
        )
        self.bottleneck = nn.Conv2d(len(CELLS) * pooled + channels, out, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, ``out``, h, w) of features (N, C, h, w)."""
        size = features.shape[-2:]
        means = [F.interpolate(stage(features), size, mode="bilinear", align_corners=False) for stage in self.stages]
        return F.relu(self.bottleneck(torch.cat([*means, features], 1)))


class UpBlock(nn.Module):
    """Doubles the resolution of a map with the help of finer features.

    Args:
        channels: of the map.
        joined: channels of the map and of the features together.
        out: of what comes out.
    """

    def __init__(self, channels: int, joined: int, out: int) -> None:
        super().__init__()
        self.conv = _two_convolutions(joined, out)
        self.conv2 = _two_convolutions(out, out)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
        """Return (N, ``out``, 2h, 2w) of a map (N, C, h, w) and features (N, F, 2h, 2w)."""
        coarse = _enlarged(coarse, 2)
        joined = self.conv(torch.cat([coarse, fine], 1)) + self.shortcut(coarse)
        found: torch.Tensor = joined + self.conv2(joined)
        return found


class CascadePSP(nn.Module):
    """The refinement module.

    Args:
        in_channels: B, bands of the image.
        encoder: any convolutional one of timm; ``resnet50`` is the authors'.
        pretrained: start the encoder from ImageNet weights, which are downloaded.
        width: of all layers but the encoder's, as a share of the authors'.
        dilated: keep the encoder's last stages at stride 8 by dilation, as the authors do.  Without it they stay at
            strides 16 and 32 and are enlarged, which makes light encoders several times cheaper.

    Attributes:
        stride: sides of the image must be multiples of it.

    Raises:
        ConfigError: an encoder that cannot be used, or a width that leaves nothing or far too much.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        encoder: str = "resnet50",
        pretrained: bool = False,
        width: float = 1.0,
        dilated: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 4:
            raise ConfigError(f"the width of cascadepsp is {width!r}: give a number above 0 and at most 4.")
        self.stride = STRIDE
        self.bands = in_channels
        strides, options = ((2, 4, 8), {"output_stride": STRIDE}) if dilated else ((2, 4, 8, 16, 32), {})
        self.feats, (stem, quarter, *others) = feature_pyramid(
            encoder, in_channels=in_channels, strides=strides, pretrained=pretrained, **options
        )
        _take_masks(self.feats, in_channels, encoder)
        # Of a ResNet the authors take the stem before its norm, and do not dilate the first blocks of dilated stages.
        self._as_authors = False
        if dilated and isinstance(self.feats, nn.ModuleDict) and self.feats.keys() >= set(_STAGES):
            self._as_authors = True
            _undilate_first_blocks(self.feats)
        deep = sum(others)
        pyramid, up_1, up_2, up_3, hidden = (_scaled(each, width) for each in (_PYRAMID, *_UP, _HIDDEN))
        self.psp = PyramidPooling(deep, _scaled(deep, width), pyramid)
        self.up_1 = UpBlock(pyramid, pyramid + quarter, up_1)
        self.up_2 = UpBlock(up_1, up_1 + stem, up_2)
        self.up_3 = UpBlock(up_2, up_2 + in_channels, up_3)
        self.final_28 = _head(pyramid, hidden)
        self.final_56 = _head(up_1, hidden)
        self.final_11 = nn.Conv2d(up_3 + in_channels, hidden, 1)
        self.final_21 = nn.Conv2d(hidden, 1, 1)

    def forward(
        self,
        image: torch.Tensor,
        mask: torch.Tensor,
        mask_8: torch.Tensor | None = None,
        mask_4: torch.Tensor | None = None,
    ) -> Maps:
        """Return logits of the refined mask by name, each (N, 1, H, W), coarser ones enlarged.

        ``out_224`` is the answer; the others are what :data:`MAPS` lists of the passes that were made.

        Args:
            image: (N, B, H, W), normalised, sides multiples of 8.
            mask: (N, 1, H, W), −1 (outside) to 1, the rough mask.
            mask_8: what is known of the mask at stride 8, likewise and enlarged; the first pass is then left out.
            mask_4: at stride 4; the second pass is then left out too.

        Raises:
            ConfigError: sides that are no multiples of 8, another number of bands, or ``mask_4`` without ``mask_8``.
        """
        self._check(image, mask_8, mask_4)
        maps: Maps = {}
        if mask_8 is None:
            maps["out_28"] = _enlarged(self.final_28(self._pooled(image, mask, mask, mask)[0]), 8)
            mask_8 = torch.tanh(maps["out_28"])
        if mask_4 is None:
            pooled, quarter, _ = self._pooled(image, mask, mask_8, mask_8)
            maps["out_28_2"] = _enlarged(self.final_28(pooled), 8)
            maps["out_56"] = _enlarged(self.final_56(self.up_1(pooled, quarter)), 4)
            mask_8, mask_4 = torch.tanh(maps["out_28_2"]), torch.tanh(maps["out_56"])
        pooled, quarter, stem = self._pooled(image, mask, mask_8, mask_4)
        maps["out_28_3"] = _enlarged(self.final_28(pooled), 8)
        up = self.up_1(pooled, quarter)
        maps["out_56_2"] = _enlarged(self.final_56(up), 4)
        up = self.up_3(self.up_2(up, stem), image)
        maps["out_224"] = self.final_21(F.relu(self.final_11(torch.cat([up, image], 1))))
        return maps

    def _check(self, image: torch.Tensor, mask_8: torch.Tensor | None, mask_4: torch.Tensor | None) -> None:
        height, width = image.shape[-2:]
        if height % STRIDE or width % STRIDE:
            to = " × ".join(str(-(-side // STRIDE) * STRIDE) for side in (height, width))
            raise ConfigError(f"an image of {height} × {width} pixels cannot be refined: pad it to {to}.")
        if image.shape[1] != self.bands:
            raise ConfigError(f"the image has {image.shape[1]} bands: this network was made for {self.bands}.")
        if mask_8 is None and mask_4 is not None:
            raise ConfigError("cascadepsp was given the mask at stride 4 alone: give that at stride 8 as well.")

    def _pooled(self, image: torch.Tensor, *masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the pooled features at stride 8, and the encoder's at strides 4 and 2."""
        stem, quarter, deep = self.features(torch.cat([image, *masks], 1))
        return self.psp(deep), quarter, stem

    def features(self, joined: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the encoder's maps at strides 2, 4 and 8 of image and masks (N, B + 3, H, W)."""
        if self._as_authors and isinstance(self.feats, nn.ModuleDict):
            values, maps = joined, {}
            for name, layer in self.feats.items():
                values = maps[name] = layer(values)
            stem, quarter, deep = (maps[name] for name in _STAGES)
            return stem, quarter, deep
        stem, quarter, eighth, *coarser = self.feats(joined)
        size = eighth.shape[-2:]
        enlarged = [F.interpolate(each, size, mode="bilinear", align_corners=False) for each in coarser]
        return stem, quarter, torch.cat([eighth, *enlarged], 1) if enlarged else eighth


def build_cascadepsp(
    *,
    in_channels: int,
    num_classes: int,
    encoder: str,
    pretrained: bool = False,
    width: float = 1.0,
    dilated: bool = True,
) -> CascadePSP:
    """Return the refinement module; how many classes a map has does not matter, since masks are refined one by one."""
    return CascadePSP(in_channels, encoder=encoder, pretrained=pretrained, width=width, dilated=dilated)


def _two_convolutions(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, out, 3, padding=1)),
        *(nn.BatchNorm2d(out), nn.ReLU(), nn.Conv2d(out, out, 3, padding=1)),
    )


def _head(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, 1, 1))


def _enlarged(values: torch.Tensor, times: int) -> torch.Tensor:
    return F.interpolate(values, scale_factor=times, mode="bilinear", align_corners=False)


def _scaled(channels: int, width: float) -> int:
    return channels if width == 1 else max(_LEAST, math.ceil(channels * width))


def _take_masks(feats: nn.Module, bands: int, encoder: str) -> None:
    """Let an encoder of images see the masks too; the weights of the masks begin at zero, as the authors' do."""
    first = next((layer for layer in feats.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or first.in_channels != bands or first.groups != 1:
        raise ConfigError(
            f"encoder {encoder} does not begin with a convolution over all bands: choose one such as resnet50."
        )
    zeros = first.weight.new_zeros(first.out_channels, MASKS, *first.kernel_size)
    first.weight = nn.Parameter(torch.cat([first.weight.detach(), zeros], 1))
    first.in_channels = bands + MASKS


def _undilate_first_blocks(feats: nn.ModuleDict) -> None:
    """Give the first blocks of dilated stages plain convolutions; timm dilates that of the last stage."""
    for name in ("layer3", "layer4"):
        blocks = feats[name]
        assert isinstance(blocks, nn.Sequential)
        spatial = (
            layer for layer in blocks[0].modules() if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
        )
        first = next(spatial)
        first.dilation, first.padding = (1, 1), (first.kernel_size[0] // 2, first.kernel_size[1] // 2)
