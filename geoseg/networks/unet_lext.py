"""The U-Net of six levels that adversarial adaptation was published with, and its auxiliary head.

Source: Panfilov, Tiulpin, Klein, Nieminen, Saarakkala 2019, arXiv 1908.04126v3; layers, widths and names of parameters
are those of the code released with it, so that its weights can be imported.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError
from geoseg.networks.any_size import AnySize

# Of the auxiliary head's convolutions, in pixels at half resolution (Tsai et al. 2018, arXiv 1802.10349).
_DILATIONS = (6, 12, 18, 24)


class Blocks(nn.Module):
    """Two 3 × 3 convolutions, with batch norm and ReLU: (N, ``before``, H, W) to (N, ``after``, H, W)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        pairs = ((before, after), (after, after))
        self.layers = nn.Sequential(
            OrderedDict((f"conv_3x3_{i}", nn.Sequential(_block(*pair))) for i, pair in enumerate(pairs))
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features, of the same size."""
        found: torch.Tensor = self.layers(features)
        return found


def _block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU())


class AuxiliaryHead(nn.Module):
    """Dilated convolutions side by side, summed: scores from the features of the last level but one.

    Args:
        before: channels that come in.
        num_classes: number of classes.
        used: how many of the four count.  The released code returns after the second, so that the others were never
            trained.
    """

    def __init__(self, before: int, num_classes: int, used: int) -> None:
        super().__init__()
        self.used = used
        self.layers = nn.ModuleList(
            nn.Conv2d(before, num_classes, 3, padding=dilation, dilation=dilation) for dilation in _DILATIONS
        )
        for layer in self.layers:
            nn.init.normal_(layer.weight, 0, 0.01)  # type: ignore[arg-type]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (N, K, H, W) scores."""
        return torch.stack([layer(features) for layer in self.layers[: self.used]]).sum(0)


class UNetLext(nn.Module):
    """The network as released; in training mode one with an auxiliary head gives ``scores`` and ``aux``.

    Args:
        in_channels: number of bands.
        num_classes: number of classes.
        width: channels at full resolution, doubled at every level.
        depth: levels, all of which halve the resolution.
        center_depth: convolutions below the last level.
        auxiliary: add the head.
        align_corners: how maps are enlarged; the released weights want True, with which scores depend on where a tile
            lies and how large it is.
        aux_dilations_used: see :class:`AuxiliaryHead`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        width: int = 24,
        depth: int = 6,
        center_depth: int = 1,
        auxiliary: bool = False,
        align_corners: bool = False,
        aux_dilations_used: int = 2,
    ) -> None:
        super().__init__()
        self.depth, self.align_corners = depth, align_corners
        widths = [width * 2**level for level in range(depth)]
        for level in range(depth):
            self.add_module(f"down{level + 1}", Blocks(([in_channels, *widths])[level], widths[level]))
        deepest = widths[-1]
        self.center = nn.Sequential(*(_block(deepest, deepest) for _ in range(center_depth)))
        for level in range(depth - 1, 0, -1):
            self.add_module(f"up{level + 1}", Blocks(2 * widths[level], widths[level - 1]))
        self.add_module("up1", Blocks(2 * width, 2 * width))
        self.mixer = nn.Conv2d(2 * width, num_classes, 1)
        self.aux = AuxiliaryHead(width, num_classes, aux_dilations_used) if auxiliary else None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W); the centre needs sides of 2 ** depth at least."""
        scores, aux = self.both(pixels, self.training)
        return scores if aux is None else {"scores": scores, "aux": aux}

    def both(self, pixels: torch.Tensor, wanted: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the scores of the network and, if ``wanted``, of its auxiliary head, both of the input's size."""
        features, skips, aux = pixels, [], None
        for level in range(1, self.depth + 1):
            skips.append(self.get_submodule(f"down{level}")(features))
            features = F.max_pool2d(skips[-1], 2)
        features = self.center(features)
        for level in range(self.depth, 0, -1):
            skip = skips.pop()
            features = self.get_submodule(f"up{level}")(torch.cat([self._enlarged(features, skip), skip], 1))
            if level == 2 and wanted and self.aux is not None:
                aux = self._enlarged(self.aux(features), pixels)
        return self.mixer(features), aux

    def _enlarged(self, features: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=self.align_corners)


class Discriminator(nn.Module):
    """Tells by a map of class probabilities from which of two regions it is; used in training alone.

    Args:
        num_classes: channels of the map.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        before = num_classes
        for number, width in enumerate((64, 128, 256, 512), start=1):
            layers = nn.Conv2d(before, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)
            self.add_module(f"conv{number}", nn.Sequential(*layers))
            before = width
        self.output = nn.Conv2d(before, 1, 4, stride=2, padding=1)

    def forward(self, shares: torch.Tensor) -> torch.Tensor:
        """Return logits (N, 1, H, W), high for the second region, for probabilities (N, K, H, W), sides from 32 on."""
        features = shares
        for number in range(1, 5):
            features = self.get_submodule(f"conv{number}")(features)
        return F.interpolate(self.output(features), shares.shape[-2:], mode="bilinear", align_corners=True)


def build_unet_lext(
    *,
    in_channels: int,
    num_classes: int,
    width: int = 24,
    depth: int = 6,
    center_depth: int = 1,
    auxiliary: bool = False,
    align_corners: bool = False,
    aux_dilations_used: int = 2,
) -> AnySize:
    """Return the U-Net that adversarial adaptation was published with, taking any input size.

    Args: as of :class:`UNetLext`.

    Raises:
        ConfigError: a number out of its range.
    """
    numbers = (("width", width, 512), ("depth", depth, 8), ("center_depth", center_depth, 16))
    for what, value, most in numbers:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(f"{what} of network unet-lext is {value!r}: give a whole number from 1 to {most}.")
    if auxiliary and depth < 2:
        raise ConfigError(
            "the auxiliary head of network unet-lext sits on the second level: give a depth of 2 or more."
        )
    if aux_dilations_used not in (2, 4):
        raise ConfigError(f"aux_dilations_used of network unet-lext is {aux_dilations_used!r}: give 2 or 4.")
    network = UNetLext(
        in_channels,
        num_classes,
        width=width,
        depth=depth,
        center_depth=center_depth,
        auxiliary=auxiliary,
        align_corners=align_corners,
        aux_dilations_used=aux_dilations_used,
    )
    return AnySize(network, stride=2**depth, min_size=2**depth)
