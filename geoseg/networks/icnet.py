"""ICNet: deep layers see the image coarsely, a few shallow ones see it finely, and a cascade joins what they found.

Source: Zhao et al. 2018, "ICNet for Real-Time Semantic Segmentation on High-Resolution Images", arXiv 1704.08545,
section 3.  There are two graphs of it: the authors' own after pruning (``pruned``), whose coarsest branch starts from
halved features, and the widespread one on a ResNet of full width (``resnet``), whose branches start from the halved and
the quartered image.  The second costs about four times the first and takes pretrained encoders.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models import FeatureListNet
from torch import nn

from geoseg.errors import ConfigError, unknown_name
from geoseg.networks.any_size import AnySize, Output, mirrored
from geoseg.networks.encoders import feature_pyramid
from geoseg.networks.icnet_blocks import POOLS, Pool, Pyramid, lattice, resized

STRIDE = 32
MIN_SIZE = 32
PRUNED = "pruned"
DEFAULT_RESNET = "resnet50s"
Pooling = Literal["tile", "scene"]
POOLINGS: tuple[Pooling, ...] = ("tile", "scene")
AUXILIARY = {"scores_4": 4, "scores_8": 8, "scores_16": 16}
# What the 3 × 3 and 1 × 1 convolutions of the finest branch give.
_FINE = (32, 32, 64)
_FUSED = 128


class ImageCascade(nn.Module):
    """The part that both graphs share: pyramid pooling of the coarsest map, fusion, enlargement.

    Any input size is taken; where sides are multiples of 32 plus 1, every resize keeps to the pixels' lattice.

    Attributes:
        coarse_channels: of the map that is pooled.
    """

    coarse_channels: int

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pyramid = Pyramid(pool)

    @abstractmethod
    def coarse(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the maps at strides 16 (for fusion) and 32 (to be pooled) of ``pixels`` (N, C, H, W)."""

    def pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the map at stride 32 alone, as :meth:`coarse` gives it."""
        return self.coarse(pixels)[1]

    @abstractmethod
    def cascade(self, pixels: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``scores_4`` (N, K, h, w), in training with those at strides 8 and 16, of the pixels and both maps."""

    def forward(self, pixels: torch.Tensor, context: torch.Tensor | None = None) -> Output:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W); in training also those at strides 4, 8 and 16.

        Args:
            pixels: the image.
            context: what to add to the coarsest map in place of its own pooled means, see
                :mod:`geoseg.networks.scene_pooling`: (N or 1, ``coarse_channels``, h, w).
        """
        middle, coarse = self.coarse(pixels)
        coarse = self.pyramid(coarse) if context is None else coarse + context.to(coarse)
        maps = self.cascade(pixels, middle, coarse)
        scores = resized(maps["scores_4"], pixels.shape[-2:])
        return {"scores": scores, **maps} if self.training else scores


class PrunedICNet(ImageCascade):
    """The authors' deployed graph, a PSPNet50 of half width; layers bear the authors' names, batch norms ``_bn``.

    Args:
        in_channels: number of bands.
        num_classes: number of classes, K.
        pool: see :class:`geoseg.networks.icnet_blocks.Pyramid`.
        widening: 1 as released; 2 gives every layer but the classifiers the width before pruning.
    """

    def __init__(self, in_channels: int, num_classes: int, pool: Pool = "adaptive", widening: int = 1) -> None:
        super().__init__(pool)
        narrow, wide, fused = 32 * widening, 64 * widening, _FUSED * widening
        self._add("conv1_1_3x3_s2", in_channels, narrow, 3, stride=2)
        self._add("conv1_2_3x3", narrow, narrow, 3)
        self._add("conv1_3_3x3", narrow, wide, 3)
        channels = wide
        for group, blocks, middle, dilation in ((2, 3, 32, 1), (3, 4, 64, 1), (4, 6, 128, 2), (5, 3, 256, 4)):
            middle *= widening
            for block in range(1, blocks + 1):
                name = f"conv{group}_{block}"
                # The stride is on the first 1 × 1, not on the 3 × 3 as in other ResNets.
                stride = 2 if name == "conv3_1" else 1
                self._add(f"{name}_1x1_reduce", channels, middle, stride=stride)
                self._add(f"{name}_3x3", middle, middle, 3, dilation=dilation)
                self._add(f"{name}_1x1_increase", middle, 4 * middle)
                if block == 1:
                    self._add(f"{name}_1x1_proj", channels, 4 * middle, stride=stride)
                channels = 4 * middle
        self.coarse_channels = channels
        self._add("conv5_4_k1", channels, 2 * fused)
        self._add("conv_sub4", 2 * fused, fused, 3, dilation=2)
        self._add("conv3_1_sub2_proj", 256 * widening, fused)
        self._add("conv_sub2", fused, fused, 3, dilation=2)
        inputs = in_channels
        for index, outputs in enumerate(_FINE, start=1):
            self._add(f"conv{index}_sub1", inputs, outputs * widening, 3, stride=2)
            inputs = outputs * widening
        self._add("conv3_sub1_proj", inputs, fused)
        self.conv6_cls = nn.Conv2d(fused, num_classes, 1)
        self.conv6_sub4 = nn.Conv2d(2 * fused, num_classes, 1)
        self.conv6_sub2 = nn.Conv2d(fused, num_classes, 1)

    def coarse(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return conv3_1 at stride 16 and conv5_3 at stride 32."""
        features = resized(pixels, lattice(pixels.shape[-2:], 2))
        for name in ("conv1_1_3x3_s2", "conv1_2_3x3", "conv1_3_3x3"):
            features = self._run(name, features)
        features = F.max_pool2d(features, 3, stride=2, padding=1, ceil_mode=True)
        for name in ("conv2_1", "conv2_2", "conv2_3", "conv3_1"):
            features = self._bottleneck(name, features)
        middle = features
        features = resized(middle, lattice(middle.shape[-2:], 2))
        for group, blocks in ((3, (2, 3, 4)), (4, (1, 2, 3, 4, 5, 6)), (5, (1, 2, 3))):
            for block in blocks:
                features = self._bottleneck(f"conv{group}_{block}", features)
        return middle, features

    def cascade(self, pixels: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scores; the auxiliary ones are made of the enlarged maps before their dilated convolution."""
        low = resized(self._run("conv5_4_k1", coarse), middle.shape[-2:])
        sub24 = F.relu(self._run("conv_sub4", low, relu=False) + self._run("conv3_1_sub2_proj", middle, relu=False))
        fine = pixels
        for name in ("conv1_sub1", "conv2_sub1", "conv3_sub1"):
            fine = self._run(name, fine)
        sub24 = resized(sub24, fine.shape[-2:])
        sub12 = F.relu(self._run("conv_sub2", sub24, relu=False) + self._run("conv3_sub1_proj", fine, relu=False))
        scores = self.conv6_cls(resized(sub12, lattice(pixels.shape[-2:], 4)))
        if not self.training:
            return {"scores_4": scores}
        return {"scores_4": scores, "scores_8": self.conv6_sub2(sub24), "scores_16": self.conv6_sub4(low)}

    def _add(
        self, name: str, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel // 2)
        self.add_module(name, nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _run(self, name: str, features: torch.Tensor, *, relu: bool = True) -> torch.Tensor:
        features = getattr(self, f"{name}_bn")(getattr(self, name)(features))
        return F.relu(features) if relu else features

    def _bottleneck(self, name: str, features: torch.Tensor) -> torch.Tensor:
        found = self._run(f"{name}_3x3", self._run(f"{name}_1x1_reduce", features))
        found = self._run(f"{name}_1x1_increase", found, relu=False)
        if hasattr(self, f"{name}_1x1_proj"):
            features = self._run(f"{name}_1x1_proj", features, relu=False)
        return F.relu(found + features)


class ResNetICNet(ImageCascade):
    """The cascade on a ResNet of stride 8: the halved image goes to its second stage, the quartered to its end.

    Args:
        backbone: timm's ResNet as a list of layers, the coarse map last.
        middle: name of the layer whose output the halved image is taken to.
        channels: of that layer and of the last.
        in_channels: number of bands.
        num_classes: number of classes, K.
        pool: see :class:`geoseg.networks.icnet_blocks.Pyramid`.
    """

    def __init__(
        self,
        backbone: FeatureListNet,
        middle: str,
        channels: tuple[int, int],
        in_channels: int,
        num_classes: int,
        pool: Pool = "adaptive",
    ) -> None:
        super().__init__(pool)
        self.backbone = backbone
        self._middle = middle
        self.coarse_channels = channels[1]
        sizes = zip((in_channels, *_FINE), _FINE, strict=False)
        self.conv_sub1 = nn.Sequential(*(_StridedUnit(inputs, outputs) for inputs, outputs in sizes))
        self.head = _CascadeHead(channels[1], channels[0], _FINE[-1], num_classes)

    def coarse(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the second stage of the halved image and the last of the quartered."""
        middle = resized(pixels, lattice(pixels.shape[-2:], 2))
        for name, layer in self.backbone.items():
            middle = layer(middle)
            if name == self._middle:
                break
        return middle, self.pooled(pixels)

    def pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the last stage of the quartered image."""
        coarse = resized(pixels, lattice(pixels.shape[-2:], 4))
        for layer in self.backbone.values():
            coarse = layer(coarse)
        return coarse

    def cascade(self, pixels: torch.Tensor, middle: torch.Tensor, coarse: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the scores; the auxiliary ones are made of the coarser map after its dilated convolution."""
        sub24, low24 = self.head.cff_24(coarse, middle)
        sub12, low12 = self.head.cff_12(sub24, self.conv_sub1(pixels))
        scores = self.head.conv_cls(resized(sub12, lattice(pixels.shape[-2:], 4)))
        if not self.training:
            return {"scores_4": scores}
        return {
            "scores_4": scores,
            "scores_8": self.head.cff_12.conv_low_cls(low12),
            "scores_16": self.head.cff_24.conv_low_cls(low24),
        }


class _StridedUnit(nn.Module):
    """A 3 × 3 convolution of stride 2 with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, ``outputs``, ⌈h/2⌉, ⌈w/2⌉)."""
        return F.relu(self.bn(self.conv(features)))


class _CascadeFusion(nn.Module):
    """Cascade feature fusion (section 3.3): the coarse map, enlarged and widened by dilation, plus the fine one."""

    def __init__(self, low: int, high: int, num_classes: int) -> None:
        super().__init__()
        self.conv_low = nn.Sequential(
            nn.Conv2d(low, _FUSED, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(_FUSED)
        )
        self.conv_high = nn.Sequential(nn.Conv2d(high, _FUSED, 1, bias=False), nn.BatchNorm2d(_FUSED))
        self.conv_low_cls = nn.Conv2d(_FUSED, num_classes, 1, bias=False)

    def forward(self, low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the fused map and what the coarse one brought to it, both of the fine map's size."""
        low = self.conv_low(resized(low, high.shape[-2:]))
        return F.relu(low + self.conv_high(high)), low


class _CascadeHead(nn.Module):
    """Both fusions and the classifier, under the names of the port; run by :meth:`ResNetICNet.cascade`."""

    def __init__(self, coarse: int, middle: int, fine: int, num_classes: int) -> None:
        super().__init__()
        self.cff_12 = _CascadeFusion(_FUSED, fine, num_classes)
        self.cff_24 = _CascadeFusion(coarse, middle, num_classes)
        self.conv_cls = nn.Conv2d(_FUSED, num_classes, 1, bias=False)


class SizedICNet(AnySize):
    """An :class:`ImageCascade` whose inputs are mirrored to multiples of 32 plus 1 pixel.

    At these sizes halving is taking every second pixel and every enlargement is by a whole factor, so the lattices of
    all branches coincide, of this input and of one that begins 32 pixels on.

    Attributes:
        pooling: ``"scene"`` where tiles are to be given the means of their scene, see
            :mod:`geoseg.networks.scene_pooling`; without a context the input counts as the scene.
    """

    network: ImageCascade

    def __init__(self, network: ImageCascade, pooling: Pooling = "tile") -> None:
        super().__init__(network, STRIDE, MIN_SIZE)
        self.pooling = pooling

    @property
    def coarse_channels(self) -> int:
        """Channels of the map that is pooled."""
        return self.network.coarse_channels

    def forward(self, pixels: torch.Tensor, context: torch.Tensor | None = None) -> Output:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W).

        In training also ``scores_4``, ``scores_8`` and ``scores_16``: (N, K, ⌈H/s⌉, ⌈W/s⌉), cell (i, j) at pixel
        (s i, s j).

        Args:
            pixels: the image.
            context: (N or 1, C', h, w) in place of the means over this input, for the cells of :meth:`coarse`.
        """
        size = pixels.shape[-2:]
        output: Output = self.network(self._padded(pixels), context)
        if isinstance(output, torch.Tensor):
            return _within(output, size)
        return {name: _within(maps, lattice(size, AUXILIARY.get(name, 1))) for name, maps in output.items()}

    def coarse(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the map that is pooled, one cell every 32 pixels: (N, C', ⌈(H-1)/32⌉ + 1, ⌈(W-1)/32⌉ + 1)."""
        return self.network.pooled(self._padded(pixels))

    def cells(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return rows and columns of :meth:`coarse` for an input of ``shape`` pixels."""
        rows, cols = (-(-(max(size, self.min_size) - 1) // self.stride) + 1 for size in shape)
        return rows, cols

    def _padded(self, pixels: torch.Tensor) -> torch.Tensor:
        cells = self.cells((int(pixels.shape[2]), int(pixels.shape[3])))
        for axis, count in zip((2, 3), cells, strict=True):
            size, target = pixels.shape[axis], (count - 1) * self.stride + 1
            if target != size:
                pixels = pixels.index_select(axis, mirrored(size, target, pixels.device))
        return pixels


def _within(maps: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return maps[..., : size[0], : size[1]]


def build_icnet(
    *,
    in_channels: int,
    num_classes: int,
    encoder: str = PRUNED,
    pretrained: bool = False,
    graph: Literal["pruned", "resnet"] | None = None,
    pool: Pool = "adaptive",
    pooling: Pooling = "tile",
    widening: int = 1,
) -> SizedICNet:
    """Return ICNet, with scores enlarged to full resolution.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: ``"pruned"``, the authors' own trunk, or a ResNet of timm that takes an output stride (``resnet50s`` as
            in the widespread port, ``resnet18``).
        pretrained: start the ResNet from ImageNet weights, which are downloaded.
        graph: ``"pruned"`` or ``"resnet"`` (on ``resnet50s`` unless ``encoder`` names another); by default as
            ``encoder`` says.
        pool: ``"adaptive"``; ``"authors"`` uses their kernels and takes inputs of 1025 × 2049 pixels only.
        pooling: ``"tile"``, or ``"scene"`` to give every tile the means over the whole scene; the weights are the same.
        widening: of graph ``pruned``: 1 as released, 2 as before pruning.

    Raises:
        ConfigError: an option is refused or does not go with the graph, or weights cannot be had.
    """
    graph = graph or ("pruned" if encoder == PRUNED else "resnet")
    choices = (("graph", graph, ("pruned", "resnet")), ("pool", pool, POOLS), ("pooling", pooling, POOLINGS))
    for what, value, known in choices:
        if value not in known:
            raise ConfigError(unknown_name(f"{what} of network icnet", str(value), known))
    if pool == "authors" and pooling == "scene":
        raise ConfigError(
            "pool 'authors' of network icnet is made for one size of input, and a scene has any: leave pool or "
            "pooling out."
        )
    if widening not in (1, 2) or (widening == 2 and graph == "resnet"):
        raise ConfigError(
            f"widening of network icnet is {widening!r} in graph {graph}: give 1, or in graph pruned 1 or 2."
        )
    if graph == "pruned":
        if encoder != PRUNED or pretrained:
            raise ConfigError(
                "graph pruned of network icnet has a trunk of its own and no pretrained weights: leave encoder and "
                "pretrained out, or name an encoder such as resnet50s and leave graph out."
            )
        return SizedICNet(PrunedICNet(in_channels, num_classes, pool, widening), pooling)
    name = DEFAULT_RESNET if encoder == PRUNED else encoder
    backbone, middle, channels = _resnet(name, in_channels, pretrained)
    return SizedICNet(ResNetICNet(backbone, middle, channels, in_channels, num_classes, pool), pooling)


def _resnet(name: str, in_channels: int, pretrained: bool) -> tuple[FeatureListNet, str, tuple[int, int]]:
    """Return a ResNet of output stride 8, the name of its stage at stride 8, and the channels of that and of the last.

    Raises:
        ConfigError: unknown encoder, one that is no list of layers or has no such stage, or weights not to be had.
    """
    backbone: Any
    backbone, channels = feature_pyramid(
        name, in_channels=in_channels, strides=(8,), pretrained=pretrained, output_stride=8
    )
    stages = [stage for stage in backbone.feature_info.info if stage["reduction"] == 8]
    if not isinstance(backbone, FeatureListNet) or len(stages) < 2 or stages[0]["module"] not in backbone:
        raise ConfigError(f"encoder {name} cannot be run in part, as ICNet does: choose a ResNet such as resnet50s.")
    return backbone, stages[0]["module"], (stages[0]["num_chs"], channels[-1])
