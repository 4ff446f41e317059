"""Networks of torchvision, with any number of bands; its published state dicts fit them, under ``network.``."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model, segmentation

from geoseg.errors import ConfigError, one_line, unknown_name
from geoseg.networks.any_size import AnySize, Output
from geoseg.networks.pooled_norm import allow_single_values

# The encoders that each architecture comes with, and the stride of their features.
_STRIDES = {
    "fcn": {"resnet50": 8, "resnet101": 8},
    "deeplabv3": {"resnet50": 8, "resnet101": 8, "mobilenet_v3_large": 16},
    "lraspp": {"mobilenet_v3_large": 16},
}


class TorchvisionNetwork(nn.Module):
    """The parts of one of torchvision's segmentation networks, by the library's names, answering in our form.

    Args:
        network: what the library built.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = network.backbone
        self.classifier: nn.Module = network.classifier
        self.aux_classifier: nn.Module | None = getattr(network, "aux_classifier", None)

    def forward(self, pixels: torch.Tensor) -> Output:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W); in training mode with ``aux`` where it has a head."""
        features = self.backbone(pixels)
        size = pixels.shape[-2:]
        # LR-ASPP's classifier reads two maps, the others' one.
        scores = _enlarged(self.classifier(features.get("out", features)), size)
        if not self.training or self.aux_classifier is None:
            return scores
        return {"scores": scores, "aux": _enlarged(self.aux_classifier(features["aux"]), size)}


def _enlarged(scores: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


def build_torchvision(
    *,
    architecture: str,
    in_channels: int,
    num_classes: int,
    encoder: str,
    pretrained: bool = False,
    auxiliary: bool = False,
) -> AnySize:
    """Return a segmentation network of torchvision, taking any input size.

    Args:
        architecture: ``fcn``, ``deeplabv3`` or ``lraspp``.
        in_channels: number of bands.
        num_classes: number of classes.
        encoder: torchvision's name of one of the encoders that the architecture comes with.
        pretrained: load ImageNet weights into the encoder, its first convolution adapted to the bands.
        auxiliary: add the head on the features before the last stage, for deep supervision; not for ``lraspp``.

    Raises:
        ConfigError: another encoder, an auxiliary head where there is none, or weights that cannot be downloaded.
    """
    strides = _STRIDES[architecture]
    if encoder not in strides:
        raise ConfigError(unknown_name(f"encoder of torchvision's {architecture}", encoder, strides))
    options: dict[str, Any] = {"num_classes": num_classes}
    if architecture != "lraspp":
        options["aux_loss"] = auxiliary
    elif auxiliary:
        raise ConfigError("torchvision's lraspp has no auxiliary head: leave auxiliary out.")
    network = getattr(segmentation, f"{architecture}_{encoder}")(weights=None, weights_backbone=None, **options)
    _take_bands(network.backbone, in_channels)
    if pretrained:
        _load_backbone(network.backbone, encoder)
    allow_single_values(network.classifier)
    return AnySize(TorchvisionNetwork(network), strides[encoder], min_size=32)


def _first_convolution(module: nn.Module) -> tuple[str, nn.Conv2d]:
    return next((name, child) for name, child in module.named_modules() if isinstance(child, nn.Conv2d))


def _take_bands(backbone: nn.Module, in_channels: int) -> None:
    """Put a first convolution for ``in_channels`` bands in the place of the one for three."""
    name, old = _first_convolution(backbone)
    if old.in_channels == in_channels:
        return
    shape: dict[str, Any] = {"kernel_size": old.kernel_size, "stride": old.stride, "padding": old.padding}
    new = nn.Conv2d(in_channels, old.out_channels, **shape, bias=old.bias is not None)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    parent, _, last = name.rpartition(".")
    setattr(backbone.get_submodule(parent), last, new)


def _load_backbone(backbone: nn.Module, encoder: str) -> None:
    """Load the library's ImageNet weights of ``encoder``."""
    try:
        source = get_model(encoder, weights="DEFAULT")
    except Exception as error:  # any class a network stack may raise
        raise ConfigError(
            f"the ImageNet weights of encoder {encoder} cannot be had ({one_line(error, 120)}): without access to "
            "download.pytorch.org leave out pretrained and start from random weights or from a bundle."
        ) from error
    weights = dict(getattr(source, "features", source).state_dict())
    first = f"{_first_convolution(backbone)[0]}.weight"
    weights[first] = adapt_input_conv(_first_convolution(backbone)[1].in_channels, weights[first])
    own = backbone.state_dict()
    backbone.load_state_dict({name: weights[name] for name in own})
