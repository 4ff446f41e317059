"""U-Net over a plain ResNet or EfficientNet-Lite0, in PyTorch alone; with any other encoder or option, the library's.

Source: O. Ronneberger, P. Fischer, T. Brox, *U-Net: Convolutional Networks for Biomedical Image Segmentation*, 2015
(arXiv 1505.04597); the encoders are those of K. He et al., *Deep Residual Learning for Image Recognition*, 2015 (arXiv
1512.03385), table 1, with the stride in the 3 × 3 convolution of a bottleneck.

Importing segmentation_models_pytorch costs as much processor time as importing PyTorch twice more, for it brings timm,
torchvision and PyTorch's compiler along.  So the default network does without.  Names of weights, weights drawn from
a seed, and scores are those of the library, bit by bit: bundles and checkpoints do not know the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.networks import strips
from geoseg.networks.any_size import AnySize
from geoseg.networks.efficientnet_lite import EfficientNetLite
from geoseg.networks.pooled_norm import PooledBatchNorm2d

_STRIDE = 32
_STEM = 64
_STAGES = (64, 128, 256, 512)
_DECODER = (256, 128, 64, 32, 16)
# Classes of the classifier that the library draws with an encoder and throws away.
_IMAGENET_CLASSES = 1000


class BasicBlock(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = PooledBatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = PooledBatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, width, H / stride, W / stride) for (N, C, H, W)."""
        result = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(features)))))
        result += features if self.downsample is None else self.downsample(features)
        return self.act2(result)


class Bottleneck(nn.Module):
    """A 3 × 3 convolution between two of 1 × 1, beside a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = PooledBatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = PooledBatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)
        self.bn3 = PooledBatchNorm2d(self.expansion * width)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, 4 width, H / stride, W / stride) for (N, C, H, W)."""
        result = self.act1(self.bn1(self.conv1(features)))
        result = self.bn3(self.conv3(self.act2(self.bn2(self.conv2(result)))))
        result += features if self.downsample is None else self.downsample(features)
        return self.act3(result)


# Blocks of each stage, by the encoder's name in timm.
_RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}
_LITE = "tf_efficientnet_lite0"
# Those that need no library.
ENCODERS = (*_RESNETS, _LITE)


class ResNet(nn.Module):
    """The stem and the four stages of a ResNet.

    Args:
        in_channels: number of bands.
        block: what the stages are made of.
        depths: blocks in each stage.

    Attributes:
        out_channels: of the feature maps, finest first.
        narrow: whether the finest maps take most of the memory.
        made_of: modules that do nothing but call those they hold, and add.
    """

    made_of = (BasicBlock,)

    def __init__(
        self, in_channels: int, block: type[BasicBlock | Bottleneck], depths: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 7, 2, 3, bias=False)
        self.bn1 = PooledBatchNorm2d(_STEM)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = _STEM
        for number, (width, depth) in enumerate(zip(_STAGES, depths, strict=True)):
            blocks = []
            for nth in range(depth):
                stride = 2 if number and not nth else 1
                wide = block.expansion * width
                downsample = None
                if stride > 1 or channels != wide:
                    downsample = nn.Sequential(
                        nn.Conv2d(channels, wide, 1, stride, bias=False), PooledBatchNorm2d(wide)
                    )
                blocks.append(block(channels, width, stride, downsample))
                channels = wide
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        # The maps of bottlenecks are wide at every stride: nothing is gained where only the finest come in strips.
        self.narrow = block is BasicBlock
        self.out_channels = (_STEM, *(block.expansion * width for width in _STAGES))
        self._draw(channels)

    def _draw(self, channels: int) -> None:
        """Draw the weights as the library does, which begins with the classifier that is not needed here."""
        nn.Linear(channels, _IMAGENET_CLASSES)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            # A block begins as its shortcut.
            if isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def stages(self) -> list[strips.Stage]:
        """Return the layers that lead to each map."""
        layers = [[self.get_submodule(f"layer{number}")] for number in range(1, len(_STAGES) + 1)]
        return [[self.conv1, self.bn1, self.act1], [self.maxpool, *layers[0]], *layers[1:]]

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return feature maps of strides 2, 4, 8, 16 and 32 for (N, C, H, W)."""
        return strips.passed(self.stages(), pixels)


class Encoder(nn.Module):
    """An encoder under the name ``model``, whose maps come behind the pixels themselves."""

    def __init__(self, model: ResNet | EfficientNetLite) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the pixels and the feature maps, finest first."""
        return [pixels, *self.model(pixels)]

    def in_strips(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the feature maps alone, for inference on large tiles."""
        return strips.encoded(self.model.stages(), pixels, self.model.made_of)


class DecoderBlock(nn.Module):
    """Enlarges a map to the next finer one, sets that beside it, and convolves both twice."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels + skip_channels, out_channels)
        self.conv2 = _convolution(out_channels, out_channels)

    def forward(self, features: torch.Tensor, height: int, width: int, joined: torch.Tensor | None) -> torch.Tensor:
        """Return (N, K, height, width) for features (N, C, H, W), and a map (N, S, height, width) if there is one."""
        features = F.interpolate(features, size=(height, width), mode="nearest")
        if joined is not None:
            features = torch.cat([features, joined], dim=1)
        # The enlarged map is the largest of all: under this name it is gone before the second convolution.
        features = self.conv1(features)
        return self.conv2(features)


class Decoder(nn.Module):
    """From the coarsest map up to the size of the pixels, which lend their size alone."""

    def __init__(self, encoder_channels: Sequence[int], decoder_channels: Sequence[int]) -> None:
        super().__init__()
        coarsest, *skips = reversed(encoder_channels)
        self.blocks = nn.ModuleList(
            DecoderBlock(inner, skip, outer)
            for inner, skip, outer in zip(
                (coarsest, *decoder_channels[:-1]), (*skips, 0), decoder_channels, strict=True
            )
        )

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return (N, K, H, W) for the pixels (N, C, H, W) and their feature maps, finest first.

        The list is emptied: each map is given up once it is joined, and what a tile takes at most is a third less.
        """
        features = maps.pop()
        for block in self.blocks:
            finer = maps.pop()
            features = block(features, *finer.shape[2:], finer if maps else None)
        return features


class PlainUnet(nn.Module):
    """From pixels (N, C, H, W) to scores (N, K, H, W); H and W are multiples of 32.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: one of :data:`ENCODERS`.
        decoder_channels: of the five blocks of the decoder, coarsest first.
    """

    def __init__(
        self, in_channels: int, num_classes: int, encoder: str, decoder_channels: Sequence[int] = _DECODER
    ) -> None:
        super().__init__()
        if encoder == _LITE:
            model: ResNet | EfficientNetLite = EfficientNetLite(in_channels)
        else:
            model = ResNet(in_channels, *_RESNETS[encoder])
        self.encoder = Encoder(model)
        self.decoder = Decoder(model.out_channels, decoder_channels)
        head = nn.Conv2d(decoder_channels[-1], num_classes, 3, padding=1)
        self.segmentation_head = nn.Sequential(head)
        for module in self.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.xavier_uniform_(head.weight)
        if head.bias is not None:
            nn.init.zeros_(head.bias)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the scores."""
        scores = None
        if self.encoder.model.narrow and type(self.decoder) is Decoder:
            scores = strips.unet_scores(
                self, self.encoder.in_strips, list(self.decoder.blocks), self.segmentation_head, pixels, (DecoderBlock,)
            )
        if scores is None:
            scores = self.segmentation_head(self.decoder(self.encoder(pixels)))
        return scores


def build_unet(
    *, in_channels: int, num_classes: int, encoder: str, pretrained: bool = False, **options: Any
) -> AnySize:
    """Return a U-Net with any encoder, taking any input size.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: see :func:`geoseg.networks.families.encoder_name`.
        pretrained: load ImageNet weights into the encoder.
        options: see :func:`geoseg.networks.families.build_family`.

    Raises:
        ConfigError: unknown encoder or option, or weights that cannot be downloaded.
    """
    plain = encoder.removeprefix("tu-")
    channels = options.get("decoder_channels", _DECODER)
    if plain in ENCODERS and not pretrained and options.keys() <= {"decoder_channels"} and _are_channels(channels):
        return AnySize(PlainUnet(in_channels, num_classes, plain, channels), _STRIDE, _STRIDE)
    from geoseg.networks.families import build_family

    return build_family(
        architecture="Unet",
        in_channels=in_channels,
        num_classes=num_classes,
        encoder=encoder,
        pretrained=pretrained,
        min_size=_STRIDE,
        **options,
    )


def _are_channels(given: Any) -> bool:
    """Whether these can be the channels of a decoder; what cannot, the library refuses in its own words."""
    return (
        isinstance(given, list | tuple)
        and len(given) == len(_DECODER)
        and all(type(each) is int and each > 0 for each in given)
    )


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        PooledBatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
