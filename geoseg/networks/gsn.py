"""GSN, the gated segmentation network: a decoder that takes up detail where its coarser scores are uncertain.

Source: H. Wang, Y. Wang, Q. Zhang, S. Xiang, C. Pan, *Gated Convolutional Neural Network for Semantic Segmentation in
High-Resolution Images*, Remote Sensing 9(5) 446, 2017 (doi 10.3390/rs9050446).  The authors' code is not public, so
this is a reconstruction: the residual convolution modules, the four entropy control modules, the five scales and the
side of the gate are the paper's; channels, batch norms, auxiliary losses and the entropy's unit are chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError, unknown_name
from geoseg.networks.any_size import AnySize, Output
from geoseg.networks.encoders import feature_pyramid

Gate = Literal["entropy", "ones"]
_STRIDES = (2, 4, 8, 16, 32)
_MOST_CHANNELS = 4096


def entropy_gate(scores: torch.Tensor, num_classes: int | None = None) -> torch.Tensor:
    """Return how uncertain scores (N, K, H, W) are: (N, 1, H, W) from 0 (one class) to 1 (all alike), ≥ float32.

    It is the entropy of their softmax divided by ln K; for a single channel the entropy of its sigmoid divided by
    ln 2.  Neither value nor gradient is NaN, however large the scores.

    >>> entropy_gate(torch.zeros(1, 3, 1, 1)).item()
    1.0

    Args:
        scores: (N, K, H, W).
        num_classes: K, where it is known beforehand: a tracer cannot decide by the shape of a tensor.
    """
    count = scores.shape[1] if num_classes is None else num_classes
    # In half precision probabilities near 1 would round to it, so the gate would close too early.
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if count == 1:
        return (F.softplus(scores) - scores * torch.sigmoid(scores)) / math.log(2)
    logarithms = F.log_softmax(scores, dim=1)
    return -(logarithms.exp() * logarithms).sum(dim=1, keepdim=True) / math.log(count)


class ResidualConvolution(nn.Module):
    """Two 3 × 3 convolutions with batch norm around which the map is passed on: the residual convolution module.

    Args:
        channels: of the output.
        in_channels: of an input that is first brought to ``channels`` by a 1 × 1 convolution; None takes it as it is.
    """

    def __init__(self, channels: int, in_channels: int | None = None) -> None:
        super().__init__()
        self.projects = in_channels is not None
        if in_channels is not None:
            self.proj = nn.Conv2d(in_channels, channels, 1, bias=False)
            self.proj_bn = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return a map (N, ``channels``, H, W)."""
        if self.projects:
            features = F.relu(self.proj_bn(self.proj(features)))
        inner = F.relu(self.bn1(self.conv1(features)))
        return F.relu(features + self.bn2(self.conv2(inner)))


class Controlled(NamedTuple):
    """What an entropy control module gives.

    Attributes:
        features: the joined map (N, D, H, W).
        scores: those of the coarser map, at its size: (N, K, h, w).
        gate: what the finer map was multiplied by: (N, 1, H, W), at least float32.
    """

    features: torch.Tensor
    scores: torch.Tensor
    gate: torch.Tensor


class EntropyControl(nn.Module):
    """Adds a finer map to a coarser one where the coarser one's scores are uncertain: the entropy control module.

    The scores are enlarged before their softmax, so that the gate opens between neighbours that disagree.

    Args:
        channels: D, of both maps.
        num_classes: K.
        gate: ``"entropy"``, or ``"ones"`` for a plain sum with the same parameters.
        detach_gate: whether no gradient passes through the gate.
    """

    def __init__(self, channels: int, num_classes: int, *, gate: Gate = "entropy", detach_gate: bool = False) -> None:
        super().__init__()
        self.gate = gate
        self.detach_gate = detach_gate
        self.score = nn.Conv2d(channels, num_classes, 1)
        self.refine = ResidualConvolution(channels)

    def forward(self, upper: torch.Tensor, lower: torch.Tensor) -> Controlled:
        """Join the coarser map ``upper`` (N, D, h, w) and the finer map ``lower`` (N, D, H, W)."""
        scores = self.score(upper)
        enlarged = _resized(scores.to(torch.promote_types(scores.dtype, torch.float32)), lower)
        gate = entropy_gate(enlarged, self.score.out_channels)
        if self.gate == "ones":
            gate = torch.ones_like(gate)
        elif self.detach_gate:
            gate = gate.detach()
        features = self.refine(_resized(upper, lower) + gate.to(lower.dtype) * lower)
        return Controlled(features, scores, gate)


class Decoded(NamedTuple):
    """What the gated decoder gives.

    Attributes:
        scores: at the size of the finest map: (N, K, h, w).
        coarse: the scores by which the gates were set, coarsest first, each at its own size.
        gates: coarsest first, each (N, 1, h, w) at the size of the finer map.
    """

    scores: torch.Tensor
    coarse: list[torch.Tensor]
    gates: list[torch.Tensor]


class GatedDecoder(nn.Module):
    """Joins encoder maps from the coarsest to the finest with :class:`EntropyControl`.

    Level i holds the map of stride 2^i; ``rcm<i>`` brings it to D channels, ``ecm<i>`` joins it to the level above.

    Args:
        channels: of the encoder's maps, finest first, ending with stride 32.
        decoder_channels: D.
        num_classes: K.
        gate: see :class:`EntropyControl`.
        detach_gate: see :class:`EntropyControl`.
    """

    def __init__(
        self, channels: Sequence[int], decoder_channels: int, num_classes: int, *, gate: Gate, detach_gate: bool
    ) -> None:
        super().__init__()
        top = len(_STRIDES)
        self.levels = tuple(range(top, top - len(channels), -1))
        for level, count in zip(self.levels, reversed(channels), strict=True):
            self.add_module(f"rcm{level}", ResidualConvolution(decoder_channels, count))
            if level != top:
                control = EntropyControl(decoder_channels, num_classes, gate=gate, detach_gate=detach_gate)
                self.add_module(f"ecm{level}", control)
        self.head = nn.Conv2d(decoder_channels, num_classes, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> Decoded:
        """Decode the encoder's ``maps``, finest first."""
        coarse, gates = [], []
        features = self.get_submodule(f"rcm{self.levels[0]}")(maps[-1])
        for level, lower in zip(self.levels[1:], reversed(maps[:-1]), strict=True):
            joined = self.get_submodule(f"ecm{level}")(features, self.get_submodule(f"rcm{level}")(lower))
            features = joined.features
            coarse.append(joined.scores)
            gates.append(joined.gate)
        return Decoded(self.head(features), coarse, gates)


class GSN(nn.Module):
    """An encoder and :class:`GatedDecoder`, taking any height and width that the encoder takes.

    Attributes:
        layers: the gates, named by the stride of the detail they let in (``gate_16`` to ``gate_2``), and ``entropy``,
            how uncertain the final scores are; all between 0 and 1.
        auxiliary: names of the coarse scores in training mode, ``ecm4`` to ``ecm1``.
        stride: 32.
    """

    stride = 32

    def __init__(self, encoder: nn.Module, decoder: GatedDecoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.auxiliary = tuple(f"ecm{level}" for level in decoder.levels[1:])
        self.layers: tuple[str, ...] = (*(f"gate_{2**level}" for level in decoder.levels[1:]), "entropy")

    def forward(self, pixels: torch.Tensor) -> Output:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W).

        In training mode they come as ``"scores"`` in a dict, together with the scores of each entropy control module,
        enlarged to (N, K, H, W).  The cross-entropies of these, times 0.4, belong into the loss: without them the
        coarse scores learn through the gates alone, whose gradient vanishes where they are open or shut.
        """
        decoded: Decoded = self.decoder(self.encoder(pixels))
        scores = _resized(decoded.scores, pixels)
        if not self.training:
            return scores
        further = (_resized(coarse, pixels) for coarse in decoded.coarse)
        return {"scores": scores, **dict(zip(self.auxiliary, further, strict=True))}

    def with_layers(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (N, K, H, W) and the layers (N, L, H, W) float32 that ``layers`` names."""
        decoded: Decoded = self.decoder(self.encoder(pixels))
        scores = _resized(decoded.scores, pixels)
        layers = [*(_resized(gate, pixels) for gate in decoded.gates), entropy_gate(scores)]
        # Rounding alone can lead out of the range.
        return scores, torch.cat(layers, dim=1).float().clamp(0, 1)


def _resized(features: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)


def build_gsn(
    *,
    in_channels: int,
    num_classes: int,
    encoder: str = "resnet34",
    pretrained: bool = False,
    decoder_channels: int = 128,
    gate: Gate = "entropy",
    detach_gate: bool = False,
    skip_stride2: bool = False,
) -> AnySize:
    """Return GSN with any encoder that has maps of stride 4 to 32, for inputs of any size.

    Encoders without a map of stride 2 get one entropy control module less.

    Args:
        in_channels: number of bands.
        num_classes: number of classes; a single channel is taken for a sigmoid's.
        encoder: name in timm; the paper uses ``resnet101``.
        pretrained: start the encoder from ImageNet weights, which are downloaded.
        decoder_channels: D; 64 needs half of the memory and suits tiles of 2048 pixels.
        gate: ``"entropy"``, or ``"ones"``: the network without gates, with the same parameters.
        detach_gate: let no gradient pass through the gates.
        skip_stride2: leave out the finest level, which costs most; the paper has it.

    Raises:
        ConfigError: an encoder without these strides, or a value that is refused.
    """
    if gate not in get_args(Gate):
        raise ConfigError(unknown_name("gate of network gsn", str(gate), get_args(Gate)))
    whole = isinstance(decoder_channels, int) and not isinstance(decoder_channels, bool)
    if not whole or not 1 <= decoder_channels <= _MOST_CHANNELS:
        raise ConfigError(
            f"decoder_channels of network gsn is {decoder_channels!r}: give a whole number from 1 to {_MOST_CHANNELS}."
        )
    pyramid, channels = _pyramid(encoder, in_channels, pretrained, skip_stride2)
    decoder = GatedDecoder(channels, decoder_channels, num_classes, gate=gate, detach_gate=detach_gate)
    return AnySize(GSN(pyramid, decoder), GSN.stride, GSN.stride)


def _pyramid(encoder: str, in_channels: int, pretrained: bool, skip_stride2: bool) -> tuple[nn.Module, list[int]]:
    """Return the encoder with five maps, or with four where it has no more or no more are wanted."""
    if not skip_stride2:
        try:
            return feature_pyramid(encoder, in_channels=in_channels, strides=_STRIDES, pretrained=pretrained)
        except ConfigError:
            pass  # if it is not for the lack of stride 2, what follows fails for the same reason
    return feature_pyramid(encoder, in_channels=in_channels, strides=_STRIDES[1:], pretrained=pretrained)
