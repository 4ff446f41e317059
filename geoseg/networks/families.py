"""Networks of segmentation_models_pytorch, and the smallest of our own."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from geoseg.errors import ConfigError, one_line, unknown_name
from geoseg.networks.any_size import AnySize

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
        options: keyword arguments of the library's constructor, such as ``encoder_depth`` or ``decoder_channels``.

    Raises:
        ConfigError: unknown encoder or option, or weights that cannot be downloaded.
    """
    family = getattr(smp, architecture)
    known = [option for option in inspect.signature(family).parameters if option not in _NOT_OPTIONS]
    for option in options:
        if option not in known:
            raise ConfigError(unknown_name(f"option of {architecture}", option, known))
    name = encoder_name(encoder)
    arguments = {"encoder_name": name, "in_channels": in_channels, "classes": num_classes, **options}
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
    stride = _stride_of(network, encoder, in_channels, max(min_size, int(network.encoder.output_stride)))
    return AnySize(network, stride, max(min_size, stride))


def _stride_of(network: Any, encoder: str, in_channels: int, smallest: int) -> int:
    """Return the multiple that input sides must be of: what the library says, unless the encoder needs more.

    Some encoders (HRNet) go down to stride 32 even where the decoder asks for less, and fail on anything else.
    """
    declared = int(network.encoder.output_stride)
    network.eval()
    cause: Exception | None = None
    for stride in sorted({declared, 16, 32, 64}):
        if stride < declared:
            continue
        side = -(-smallest // stride) * stride
        odd = side + stride * (1 + side // stride % 2)  # an odd multiple, which a deeper encoder would not divide
        try:
            with torch.no_grad():
                network(torch.zeros(1, in_channels, side, odd))
        except Exception as error:  # libraries raise RuntimeError, AssertionError, ValueError
            cause = cause or error
        else:
            network.train()
            return stride
    reason = one_line(cause or ValueError(), 120).rstrip(".")
    raise ConfigError(
        f"encoder {encoder} does not take tiles of any size ({reason}): choose a convolutional one such as resnet18."
    ) from cause


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
