"""SAN, the scale-aware network: a fully convolutional decoder that re-reads its maps with scale-aware modules.

Source: J. Lin, W. Jing, H. Song, *SAN: Scale-Aware Network for Semantic Segmentation of High-Resolution Aerial
Images*, 2019 (arXiv 1907.03089), and the code the authors released with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError, unknown_name
from geoseg.networks.any_size import AnySize
from geoseg.networks.encoders import feature_pyramid
from geoseg.networks.scale_aware import Mode, ScaleAwareStage, scale_aware_stage

Variant = Literal["M", "S"]
_STRIDES = (8, 16, 32)


class _Sum(nn.Module):
    """The sum of one map or more."""

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        total = maps[0]
        for more in maps[1:]:
            total = total + more
        return total


class _ConvNormReLU(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(features)))


class _Head(nn.Module):
    """A 3 × 3 convolution to a quarter of the channels, then one of 1 × 1 to the classes."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        quarter = max(1, channels // 4)
        self.cbr = _ConvNormReLU(channels, quarter)
        self.conv1x1 = nn.Conv2d(quarter, num_classes, 1)
        for layer in (self.cbr.conv, self.conv1x1):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.conv1x1(self.cbr(features))
        return scores


class SAN(nn.Module):
    """Three encoder maps, summed from the coarsest up, with scale-aware modules on the way.

    In variant ``"M"`` a module stands behind each of the three sums (the paper's network), in ``"S"`` a single one
    behind the last 1 × 1 convolution.  Names of parameters follow the released code, see :func:`authors_name`.
    Height and width of the input are multiples of 32; :func:`build_san` takes care of others.

    Args:
        encoder: gives maps of stride 8, 16 and 32.
        channels: of these three maps.
        num_classes: K.
        modules: the variant.
        sam_channels: maps of more channels are first reduced to this many by a 1 × 1 convolution; None reduces none.
        options: of :func:`~geoseg.networks.scale_aware.scale_aware_stage`.

    Attributes:
        layers: ``offset_32``, ``offset_16`` and ``offset_8`` (only the last in variant S): how far from its own place
            each pixel was read at that stride, in pixels of the input.
        stride: 32.
    """

    stride = 32

    def __init__(
        self,
        encoder: nn.Module,
        channels: Sequence[int],
        num_classes: int,
        *,
        modules: Variant,
        sam_channels: int | None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        narrow = [min(count, sam_channels or count) for count in channels]
        self.reduce2, self.reduce3, self.reduce4 = (
            _pointwise(count, kept) if kept < count else nn.Identity()
            for count, kept in zip(channels, narrow, strict=True)
        )
        fine, middle, coarse = narrow
        self.ada_layer4: nn.Module = _pointwise(coarse, middle)
        self.ada_layer3: nn.Module = _pointwise(middle, fine)
        self.ada_layer2: nn.Module = _pointwise(fine, fine)
        self.sampling_conv1: nn.Module = _Sum()
        self.sampling_conv2: nn.Module = _Sum()
        self.sampling_conv3: nn.Module = _Sum()
        if modules == "M":
            self.sampling_conv1 = scale_aware_stage(self.sampling_conv1, fine, stride=8, **options)
            self.sampling_conv2 = scale_aware_stage(self.sampling_conv2, middle, stride=16, **options)
            self.sampling_conv3 = scale_aware_stage(self.sampling_conv3, coarse, stride=32, **options)
        else:
            self.ada_layer2 = scale_aware_stage(self.ada_layer2, fine, stride=8, **options)
        self.score_layer = _Head(fine, num_classes)
        self.layers: tuple[str, ...] = ("offset_32", "offset_16", "offset_8") if modules == "M" else ("offset_8",)
        # The released code enlarges from corner to corner, which depends on the size of the tile.
        self._align_corners = options.get("mode", "tile") != "tile"

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W)."""
        return self._run(pixels)[0]

    def with_layers(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (N, K, H, W) and the offset lengths (N, L, H, W) float32 in pixels that ``layers`` names."""
        scores, offsets = self._run(pixels)
        lengths = []
        for name, offset in zip(self.layers, offsets, strict=True):
            length = offset.norm(dim=1, keepdim=True).float() * int(name.removeprefix("offset_"))
            lengths.append(F.interpolate(length, size=pixels.shape[-2:]))
        return scores, torch.cat(lengths, dim=1)

    def _run(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the scores and the offsets (N, 2, h, w) of each module, coarsest first, in features."""
        offsets: list[torch.Tensor] = []
        x2, x3, x4 = self.encoder(pixels)
        x2, x3, x4 = self.reduce2(x2), self.reduce3(x3), self.reduce4(x4)
        a4 = self.ada_layer4(_through(self.sampling_conv3, offsets, x4))
        a3 = self.ada_layer3(_through(self.sampling_conv2, offsets, x3, self._enlarged(a4, x3)))
        b2 = _through(self.sampling_conv1, offsets, x2, self._enlarged(a3, x2))
        scores = self.score_layer(_through(self.ada_layer2, offsets, b2))
        return self._enlarged(scores, pixels), offsets

    def _enlarged(self, features: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=self._align_corners)


def _pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


def _through(stage: nn.Module, offsets: list[torch.Tensor], *maps: torch.Tensor) -> torch.Tensor:
    """Return what the stage makes of the maps; where it is scale-aware, its offsets are added to the list."""
    if isinstance(stage, ScaleAwareStage):
        weighted, offset = stage.with_offset(*maps)
        offsets.append(offset)
        return weighted
    output: torch.Tensor = stage(*maps)
    return output


def build_san(
    *,
    in_channels: int,
    num_classes: int,
    encoder: str = "resnet34",
    pretrained: bool = False,
    modules: Variant = "M",
    mode: Mode = "tile",
    sam_channels: int | None = None,
    reference_size: int | Sequence[int] = 512,
    bound: float | None = 4.0,
    offset_init: float = 0.0,
    freeze_encoder: bool = False,
) -> AnySize:
    """Return SAN with any encoder that has maps of stride 8, 16 and 32, for inputs of any size.

    Only ``mode="tile"`` with a bound gives tiles the scores of the whole scene.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: name in timm; the paper uses ``resnet34`` and ``resnet101``.
        pretrained: start the encoder from ImageNet weights, which are downloaded.
        modules: ``"M"``, a scale-aware module at each stride, or ``"S"``, one at stride 8, at a tenth of the cost.
        mode: how offsets are meant, see :class:`~geoseg.networks.scale_aware.ScaleAwareModule`.
        sam_channels: most channels a scale-aware module works on; None sets no limit.  A module's weights grow with
            the square of its channels, so 256 is good for encoders wider than ``resnet34``.
        reference_size: side of the training tiles in pixels, or height and width: the unit of the offsets.
        bound: largest offset in features along each axis; None sets no bound.
        offset_init: initial weight of the offsets; 0 starts without any, 1 as in the paper.
        freeze_encoder: train all but the encoder's convolutions, as the authors do.

    Raises:
        ConfigError: an encoder without these strides, or a value that is refused.
    """
    if modules not in get_args(Variant):
        raise ConfigError(unknown_name("variant of network san", str(modules), get_args(Variant)))
    if sam_channels is not None and (not isinstance(sam_channels, int) or sam_channels < 1):
        raise ConfigError(f"sam_channels of network san is {sam_channels!r}: give a whole number from 1 up, or none.")
    pyramid, channels = feature_pyramid(encoder, in_channels=in_channels, strides=_STRIDES, pretrained=pretrained)
    if freeze_encoder:
        for layer in pyramid.modules():
            if isinstance(layer, nn.Conv2d):
                layer.requires_grad_(False)
    options = {"mode": mode, "reference_size": reference_size, "bound": bound, "offset_init": offset_init}
    core = SAN(pyramid, channels, num_classes, modules=modules, sam_channels=sam_channels, **options)
    return AnySize(core, SAN.stride, SAN.stride)


def authors_name(name: str) -> str:
    """Return the name in the released code of a parameter of :class:`SAN` with a ResNet encoder.

    >>> authors_name("encoder.bn1.weight"), authors_name("sampling_conv3.scale_aware.sampling_conv.0.weight")
    ('bn0.weight', 'sampling_conv3.sampling_conv.0.weight')
    """
    for ours, theirs in (
        ("encoder.conv1.", "conv0."),
        ("encoder.bn1.", "bn0."),
        ("encoder.", ""),
        ("ada_layer2.stage.", "ada_layer2."),
        ("ada_layer2.scale_aware.", "sampling_conv1."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name.replace(".scale_aware.", ".", 1)
