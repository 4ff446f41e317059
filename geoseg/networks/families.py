"""Networks of segmentation_models_pytorch, and the smallest of our own."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.modules import Activation, Attention, Conv2dReLU
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder, UnetDecoderBlock
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from timm.models.efficientnet import EfficientNetFeatures
from torch import nn

from geoseg.errors import ConfigError, one_line, unknown_name
from geoseg.networks import strips
from geoseg.networks.any_size import AnySize
from geoseg.networks.pooled_norm import allow_single_values
from geoseg.networks.scale_aware import scale_aware_stage

# What a reader is shown where no name comes close; there are over a thousand.
_COMMON_ENCODERS = (
    "convnext_tiny",
    "hrnet_w18",
    "mit_b0",
    "mobilenetv2_100",
    "resnet18",
    "resnet34",
    "resnet50",
    "tf_efficientnet_lite0",
)
# Arguments of the library's constructors that `create` sets itself, or that would change what comes out.
_NOT_OPTIONS = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params", "kwargs")


# What calls the layers it holds and adds, of the library and of timm.
_DECODER_PARTS = (UnetDecoderBlock, Conv2dReLU, Attention, SegmentationHead, Activation)
_ENCODER_PARTS = (nn.ModuleList, InvertedResidual, DepthwiseSeparableConv)


class PlainConv(nn.Sequential):
    """``depth`` convolutions of 3 × 3 with ReLU, then one of 1 × 1 to the classes; all at full resolution.

    A score depends on exactly the pixels up to ``depth`` rows and columns away.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, depth: int) -> None:
        layers: list[nn.Module] = []
        channels = in_channels
        for _ in range(depth):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        super().__init__(*layers, nn.Conv2d(channels, num_classes, 1))


def build_plainconv(*, in_channels: int, num_classes: int, width: int = 16, depth: int = 3) -> AnySize:
    """Return the smallest network: see :class:`PlainConv`.

    Raises:
        ConfigError: ``width`` or ``depth`` is not a positive whole number.
    """
    for what, value, most in (("width", width, 4096), ("depth", depth, 256)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(f"{what} of network plainconv is {value!r}: give a whole number from 1 to {most}.")
    return AnySize(PlainConv(in_channels, num_classes, width, depth), stride=1)


def build_family(
    *,
    architecture: str,
    in_channels: int,
    num_classes: int,
    encoder: str,
    pretrained: bool = False,
    min_size: int = 1,
    scale_aware: bool | Mapping[str, Any] = False,
    **options: Any,
) -> AnySize:
    """Return an architecture of segmentation_models_pytorch with any encoder, taking any input size.

    Args:
        architecture: class name in the library.
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: see :func:`encoder_name`.
        pretrained: load ImageNet weights into the encoder.
        min_size: smallest side in pixels that the architecture takes.
        scale_aware: put the scale-aware module of SAN behind the decoder; a mapping gives its options, see
            :func:`geoseg.networks.scale_aware.scale_aware_stage`.
        options: keyword arguments of the library's constructor, such as ``encoder_depth`` or ``decoder_channels``.

    Raises:
        ConfigError: unknown encoder or option, or weights that cannot be downloaded.
    """
    network = _built(architecture, encoder, pretrained, {"in_channels": in_channels, "classes": num_classes}, options)
    if scale_aware is not False:
        last, enlarging, *_ = network.segmentation_head
        network.decoder = scale_aware_stage(
            network.decoder,
            last.in_channels,
            stride=round(getattr(enlarging, "scale_factor", 1)),
            **({} if scale_aware is True else dict(scale_aware)),
        )
    stride = _stride_of(network, encoder, in_channels, max(min_size, int(network.encoder.output_stride)))
    return AnySize(network, stride, max(min_size, stride))


class LargeTileUnet(smp.Unet):
    """The library's U-Net, whose largest maps are computed in strips in inference: :mod:`geoseg.networks.strips`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores (N, K, H, W) for pixels (N, C, H, W)."""
        scores = None
        if self._known():
            scores = strips.unet_scores(
                self, self._encoded, list(self.decoder.blocks), self.segmentation_head, x, _DECODER_PARTS
            )
        return super().forward(x) if scores is None else scores

    def _known(self) -> bool:
        """Whether the options are such that the blocks of the decoder are all there is to it."""
        return (
            type(self.decoder) is UnetDecoder
            and isinstance(self.decoder.center, nn.Identity)
            and self.classification_head is None
            and self.encoder.output_stride == 2 ** len(self.decoder.blocks)
            and all(block.interpolation_mode == "nearest" for block in self.decoder.blocks)
        )

    def _encoded(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        model = getattr(self.encoder, "model", None)
        if type(model) is EfficientNetFeatures and model.feature_hooks is None:
            ends = sorted(model._stage_out_idx)
            if ends[0] and len(ends) == len(self.decoder.blocks):  # the stem's own map is none of them
                layers = [model.conv_stem, model.bn1, *model.blocks]
                # Block n ends at place n + 1 of the layers, behind the two of the stem.
                places = [0, *(end + 2 for end in ends)]
                stages = [layers[start:end] for start, end in itertools.pairwise(places)]
                return strips.encoded(stages, pixels, _ENCODER_PARTS)
        return list(self.encoder(pixels)[1:])


class Patches(nn.Conv2d):
    """A convolution whose kernel is as large as its stride, as the matrix product that it is.

    oneDNN's kernels for CPUs with AMX give wrong numbers in bfloat16 where the kernel is 16 × 16 and there are 4 bands
    (seen in PyTorch 2.14).  Vision transformers begin with just that.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return one feature for each patch: (N, D, H / kernel, W / kernel) for (N, C, H, W)."""
        patches = nn.functional.pixel_unshuffle(input, self.kernel_size[0])
        return nn.functional.conv2d(patches, self.weight.flatten(1)[..., None, None], self.bias)

    @classmethod
    def replace_in(cls, network: nn.Module) -> None:
        """Put one in the place of every such convolution with square patches, with the same weights."""
        for parent in list(network.modules()):
            for name, old in parent.named_children():
                if not isinstance(old, nn.Conv2d) or old.groups != 1 or old.padding != (0, 0):
                    continue
                side = old.kernel_size[0]
                if side > 1 and old.kernel_size == old.stride == (side, side):
                    new = cls(old.in_channels, old.out_channels, side, side, bias=old.bias is not None)
                    new.load_state_dict(old.state_dict(), assign=True)
                    setattr(parent, name, new)


class OneSize(AnySize):
    """Lets a network that takes squares of one size only take smaller inputs too, mirrored up to that size.

    Attributes:
        fixed_size: the side in pixels.
    """

    def __init__(self, network: nn.Module, stride: int, size: int) -> None:
        super().__init__(network, stride, size)
        self.fixed_size = size

    def _padded(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        if max(height, width) > self.fixed_size:
            raise ConfigError(
                f"the network takes tiles of {self.fixed_size} pixels and was given {width} × {height}: set the tile "
                f"to {self.fixed_size}, or build the network with another tile_size."
            )
        return super()._padded(pixels)


def build_dpt(
    *,
    in_channels: int,
    num_classes: int,
    encoder: str,
    pretrained: bool = False,
    tile_size: int | None = None,
    **options: Any,
) -> AnySize:
    """Return DPT of segmentation_models_pytorch over a vision transformer of timm.

    A vision transformer learns one vector for each place of its grid.  By default these are interpolated to the size
    of each input, which then may have any; tiles should all have the size that the network was trained with.  With
    ``tile_size`` they are interpolated once, when the network is built, and it takes tiles of that size alone.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: a vision transformer that timm knows by name.
        pretrained: load ImageNet weights into the encoder.
        tile_size: side in pixels of the only tiles that it takes; None for any where the encoder allows it, which
            otherwise gives its own.
        options: see :func:`build_family`.

    Raises:
        ConfigError: unknown encoder or option, an encoder that is no vision transformer, a tile size that it does not
            divide, or weights that cannot be downloaded.
    """
    name = encoder_name(encoder).removeprefix("tu-")
    about = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if about is None or "patch_embed" not in str(about.first_conv):
        raise ConfigError(f"encoder {encoder} is no vision transformer of timm: use one such as vit_small_patch16_224.")
    arguments: dict[str, Any] = {"in_channels": in_channels, "classes": num_classes}
    if tile_size is None:
        try:
            network = _built("DPT", encoder, pretrained, arguments | {"dynamic_img_size": True}, options)
        except TypeError:  # an encoder without that argument has one size
            network = _built("DPT", encoder, pretrained, arguments, options)
            tile_size = int(network.encoder.input_size[-1])
        else:
            Patches.replace_in(network.encoder)
            stride = _stride_of(network, encoder, in_channels, int(network.encoder.output_stride))
            return AnySize(network, stride, stride)
    else:
        network = _built("DPT", encoder, pretrained, arguments | {"img_size": tile_size}, options)
    Patches.replace_in(network.encoder)
    stride = int(network.encoder.output_stride)
    cause = _refusal(network, in_channels, tile_size, tile_size)
    if cause or tile_size % stride:
        raise ConfigError(
            f"network dpt with encoder {encoder} does not take tiles of {tile_size} pixels: give a multiple of "
            f"{2 * stride} as tile_size."
        ) from cause
    return OneSize(network, stride, tile_size)


def _built(
    architecture: str, encoder: str, pretrained: bool, arguments: dict[str, Any], options: dict[str, Any]
) -> Any:
    """Return what the library builds, able to train on one tile; see :func:`build_family`."""
    family = LargeTileUnet if architecture == "Unet" else getattr(smp, architecture)
    known = [option for option in inspect.signature(family).parameters if option not in _NOT_OPTIONS]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of {architecture}", option, known))
    name = encoder_name(encoder)
    arguments = {"encoder_name": name, **arguments, **options}
    network = family(encoder_weights=None, **arguments)
    if pretrained:
        # The encoder is known to build, so what fails now is the weights.
        weights: Any = True if name.startswith("tu-") else "imagenet"
        try:
            network = family(encoder_weights=weights, **arguments)
        except Exception as error:  # any class a network stack may raise
            raise ConfigError(
                f"the ImageNet weights of encoder {encoder} cannot be had ({one_line(error, 120)}): without access to "
                "the Hugging Face hub leave out pretrained and start from random weights or from a bundle."
            ) from error
    allow_single_values(network.decoder)
    return network


def _stride_of(network: Any, encoder: str, in_channels: int, smallest: int) -> int:
    """Return the multiple that input sides must be of: what the library says, unless the encoder needs more.

    Some encoders (HRNet) go down to stride 32 even where the decoder asks for less, and fail on anything else; a
    decoder may halve what comes from a transformer once more.
    """
    declared = int(network.encoder.output_stride)
    cause: Exception | None = None
    for stride in sorted({declared, 2 * declared, 16, 32, 64}):
        if stride < declared:
            continue
        side = -(-smallest // stride) * stride
        odd = side + stride * (1 + side // stride % 2)  # an odd multiple, which a deeper encoder would not divide
        refusal = _refusal(network, in_channels, side, odd)
        if refusal is None:
            return stride
        cause = cause or refusal
    reason = one_line(cause or ValueError(), 120).rstrip(".")
    raise ConfigError(
        f"encoder {encoder} does not take tiles of any size ({reason}): choose a convolutional one such as resnet18."
    ) from cause


def _refusal(network: nn.Module, in_channels: int, height: int, width: int) -> Exception | None:
    """Return why the network gives no scores for inputs of this size, or None where it does."""
    network.eval()
    try:
        with torch.no_grad():
            size = tuple(network(torch.zeros(1, in_channels, height, width)).shape[-2:])
    except Exception as error:  # libraries raise RuntimeError, AssertionError, ValueError
        return error
    finally:
        network.train()
    return None if size == (height, width) else ValueError(f"scores of {size} for an input of {(height, width)}")


def encoder_name(name: str) -> str:
    """Return the library's name for an encoder: timm's where timm has it, else the library's own.

    A pretrained tag (``resnet18.a1_in1k``) is kept, and so is the library's prefix ``tu-`` for timm.

    >>> encoder_name("resnet18"), encoder_name("mit_b0")
    ('tu-resnet18', 'mit_b0')

    Raises:
        ConfigError: neither has it.
    """
    plain = name.removeprefix("tu-")
    if plain and timm.is_model(plain):
        return f"tu-{plain}"
    if name in smp.encoders.encoders:
        return name
    close = difflib.get_close_matches(plain, {*timm.list_models(), *smp.encoders.encoders}, n=3)
    if close:
        raise ConfigError(unknown_name("encoder", name, close))
    raise ConfigError(f"{unknown_name('encoder', name, _COMMON_ENCODERS)[:-1]}, and all others of timm.list_models().")
