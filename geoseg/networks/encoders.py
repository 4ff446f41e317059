"""Encoders: the feature pyramids of timm, for networks that bring a decoder of their own."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

from geoseg.errors import ConfigError, one_line, unknown_name

# What a reader is shown where no name comes close; there are over a thousand.
_COMMON = ("convnext_tiny", "mobilenetv2_100", "resnet18", "resnet34", "resnet50", "tf_efficientnet_lite0")


def feature_pyramid(
    name: str, *, in_channels: int, strides: tuple[int, ...], pretrained: bool = False, **options: Any
) -> tuple[nn.Module, list[int]]:
    """Return an encoder that gives one feature map for each of ``strides``, and the channels of these maps.

    Where timm has several maps of one stride, the last and deepest is taken.  Pretrained first convolutions are
    adapted to the number of bands by timm.

    Args:
        name: any convolutional encoder that timm gives ``features_only``; its pretrained tag is kept.
        in_channels: number of bands.
        strides: pixels per feature, ascending, such as (8, 16, 32).
        pretrained: start from ImageNet weights, which are downloaded.
        options: what else ``timm.create_model`` takes.

    Raises:
        ConfigError: unknown encoder, one without these strides, or weights that cannot be had.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        raise ConfigError(unknown_name("encoder", name, close or _COMMON))
    arguments: dict[str, Any] = {"features_only": True, "in_chans": in_channels, **options}
    try:
        probe: Any = timm.create_model(name, pretrained=False, **arguments)
        reductions = probe.feature_info.reduction()
    except Exception as error:  # libraries raise RuntimeError, AttributeError, AssertionError
        raise ConfigError(
            f"encoder {name} gives no feature maps ({one_line(error, 120)}): choose a convolutional one such as "
            "resnet34."
        ) from error
    if missing := [stride for stride in strides if stride not in reductions]:
        raise ConfigError(
            f"encoder {name} has feature maps of stride {', '.join(map(str, reductions))} and none of stride "
            f"{missing[0]}: choose one such as resnet34."
        )
    indices = tuple(max(i for i, stride in enumerate(reductions) if stride == wanted) for wanted in strides)
    try:
        encoder: Any = timm.create_model(name, pretrained=pretrained, out_indices=indices, **arguments)
    except Exception as error:  # any class a network stack may raise
        raise ConfigError(
            f"the ImageNet weights of encoder {name} cannot be had ({one_line(error, 120)}): without access to the "
            "Hugging Face hub leave out pretrained and start from random weights or from a bundle."
        ) from error
    return encoder, list(encoder.feature_info.channels())
