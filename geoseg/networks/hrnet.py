"""HRNetV2: streams at strides 4 to 32 run side by side and exchange what they found, so detail is never lost.

Source: Wang et al. 2019, "Deep High-Resolution Representation Learning for Visual Recognition", arXiv 1908.07919,
section 3 and figure 2; the head first in Sun et al. 2019, arXiv 1904.04514.  The layers are timm's (they bear the
authors' names), the way through them is ours: timm enlarges by fixed factors with nearest neighbours, the segmentation
network bilinearly to the size of the finer stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from geoseg.errors import ConfigError, unknown_name
from geoseg.networks.any_size import AnySize, Output
from geoseg.networks.encoders import feature_pyramid
from geoseg.networks.ocr import ContextHead

STRIDE = 32
# Below this the coarsest stream is one pixel: it sees nothing around it, and batch norm cannot train on it.
MIN_SIZE = 64
DEFAULT_ENCODER = "hrnet_w18"
# With 1, each of some sixty sums doubles the variance of an untrained network, to scores of 1e7.
_START = 0.2
_ENCODERS = {
    "small-v1": "hrnet_w18_small",
    "small-v2": "hrnet_w18_small_v2",
    **{str(width): f"hrnet_w{width}" for width in (18, 30, 32, 40, 44, 48, 64)},
}
_RETRAINED = ("hrnet_w18_ssld", "hrnet_w48_ssld")  # the same networks with other ImageNet weights


class FusionHead(nn.Module):
    """The head of HRNetV2: two convolutions of 1 × 1 over all streams, from (N, ``channels``, h, w) to (N, K, h, w)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.last_layer = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, num_classes, 1)
        )

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``{"scores": (N, K, h, w)}``."""
        return {"scores": self.last_layer(features)}


class HRNet(nn.Module):
    """HRNetV2 for inputs of any size, each stream half as fine as the one before, rounded up.

    Args:
        backbone: timm's HRNet with its raw streams as features.
        channels: of the four streams.
        num_classes: number of classes, K.
        ocr: use the head of object-contextual representations (:class:`geoseg.networks.ocr.ContextHead`).
        align_corners: which rule all enlargements follow.  It belongs to the weights; only without it do tiles give
            the scores of the whole scene.
    """

    def __init__(
        self, backbone: nn.Module, channels: Sequence[int], num_classes: int, *, ocr: bool, align_corners: bool
    ) -> None:
        super().__init__()
        self.backbone: Any = backbone
        head = ContextHead if ocr else FusionHead
        self.head = head(sum(channels), num_classes)
        self.align_corners = align_corners

    def forward(self, pixels: torch.Tensor) -> Output:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W); in training with the head's auxiliary maps, if any.

        The auxiliary maps are (N, K, ⌈H/4⌉, ⌈W/4⌉).
        """
        output = self.coarse(pixels)
        output["scores"] = self._resized(output["scores"], pixels.shape[-2:])
        return output if self.training and len(output) > 1 else output["scores"]

    def coarse(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what the head says before enlargement, scores first: each (N, K, ⌈H/4⌉, ⌈W/4⌉)."""
        streams = self.streams(pixels)
        size = streams[0].shape[-2:]
        joined = torch.cat([streams[0], *(self._resized(stream, size) for stream in streams[1:])], dim=1)
        scores: dict[str, torch.Tensor] = self.head(joined)
        return scores

    def streams(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the four streams at strides 4, 8, 16 and 32, finest first."""
        net = self.backbone
        features = net.act1(net.bn1(net.conv1(pixels)))
        features = net.layer1(net.act2(net.bn2(net.conv2(features))))
        streams = [branch(features) for branch in net.transition1]
        streams = self._stage(net.stage2, streams)
        streams = self._stage(net.stage3, _with_coarser(net.transition2, streams))
        return self._stage(net.stage4, _with_coarser(net.transition3, streams))

    def _stage(self, stage: Any, streams: list[torch.Tensor]) -> list[torch.Tensor]:
        for module in stage:
            found = [branch(stream) for branch, stream in zip(module.branches, streams, strict=True)]
            streams = [
                module.fuse_act(self._fused(paths, found, target)) for target, paths in enumerate(module.fuse_layers)
            ]
        return streams

    def _fused(self, paths: Any, found: list[torch.Tensor], target: int) -> torch.Tensor:
        """Return the sum of all streams, each brought to the channels and the size of stream ``target``."""
        total: torch.Tensor | None = None
        for source, (path, stream) in enumerate(zip(paths, found, strict=True)):
            if source > target:
                # The third layer of the path enlarges by a fixed factor, which fits no odd size.
                part = self._resized(path[1](path[0](stream)), found[target].shape[-2:])
            else:
                part = path(stream)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _resized(self, maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=self.align_corners)


def _with_coarser(transition: Any, streams: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the streams and one more, half as fine, made of the last."""
    return [*streams, transition[-1](streams[-1])]


def build_hrnet(
    *,
    in_channels: int,
    num_classes: int,
    encoder: str = DEFAULT_ENCODER,
    pretrained: bool = False,
    width: int | str | None = None,
    ocr: bool = False,
    align_corners: bool = False,
) -> AnySize:
    """Return HRNetV2, with scores enlarged to full resolution.

    Inputs are mirrored to multiples of 32, so that every enlargement is by a whole factor.

    Args:
        in_channels: number of bands; timm adapts pretrained first convolutions to it.
        num_classes: number of classes.
        encoder: one of timm's HRNets, a pretrained tag allowed; ``width`` is the shorter way to say it.
        pretrained: start the backbone from ImageNet weights, which are downloaded.
        width: channels of the finest stream (18, 30, 32, 40, 44, 48, 64), or ``"small-v1"`` or ``"small-v2"``.
        ocr: use the head of object-contextual representations, which looks at the whole tile.  In training it gives
            the auxiliary map ``"regions"``.
        align_corners: rule of all enlargements, as the weights were trained with.  Authors' weights with the plain head
            for Cityscapes, LIP and PASCAL-Context want False, those for COCO-Stuff and ADE20K and all with OCR True.

    Raises:
        ConfigError: unknown width or encoder, both given and not the same, or weights that cannot be had.
    """
    name = encoder_name(encoder, width)
    backbone, channels = feature_pyramid(
        name, in_channels=in_channels, strides=(4, 8, 16, 32), pretrained=pretrained, feature_location=""
    )
    if not pretrained:
        _calm(backbone)
    network = HRNet(backbone, channels, num_classes, ocr=bool(ocr), align_corners=bool(align_corners))
    return AnySize(network, STRIDE, MIN_SIZE)


def _calm(backbone: Any) -> None:
    """Let what residual blocks and fusion paths add to their streams begin at a fifth (:data:`_START`)."""
    norms = [block.bn3 for block in backbone.layer1]
    for stage in (backbone.stage2, backbone.stage3, backbone.stage4):
        for module in stage:
            norms += [block.bn2 for branch in module.branches for block in branch]
            for path in (path for paths in module.fuse_layers for path in paths):
                norms += [layer for layer in path.modules() if isinstance(layer, nn.BatchNorm2d)][-1:]
    for norm in norms:
        nn.init.constant_(norm.weight, _START)


def encoder_name(encoder: str = DEFAULT_ENCODER, width: int | str | None = None) -> str:
    """Return timm's name of the HRNet that ``encoder`` or, where given, ``width`` names.

    >>> encoder_name(width=48), encoder_name("hrnet_w32.ms_in1k")
    ('hrnet_w48', 'hrnet_w32.ms_in1k')

    Raises:
        ConfigError: there is no such width or HRNet, or the two do not agree.
    """
    plain = encoder.partition(".")[0]
    known = [*_ENCODERS.values(), *_RETRAINED]
    if plain not in known:
        raise ConfigError(unknown_name("encoder of network hrnet", encoder, known))
    if width is None:
        return encoder
    if str(width) not in _ENCODERS:
        raise ConfigError(unknown_name("width of network hrnet", str(width), _ENCODERS))
    wanted = _ENCODERS[str(width)]
    if plain in (wanted, f"{wanted}_ssld"):
        return encoder
    if encoder != DEFAULT_ENCODER:
        raise ConfigError(f"network hrnet is given width {width} and encoder {encoder}: leave one of them out.")
    return wanted
