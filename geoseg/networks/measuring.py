"""How large a network is and how much it computes, counted on the network itself."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from geoseg.errors import ConfigError
from geoseg.networks.receptive_field import evaluating
from geoseg.networks.registry import create


@dataclass(frozen=True)
class Size:
    """Size of a network.

    Attributes:
        parameters: numbers that training sets; running statistics are not among them.
        macs: multiply-adds of convolutions, linear layers and the products of attention for one input, in evaluation
            mode.  Normalisation, activation, pooling and interpolation are not counted, as is usual.
        stride: the shift in pixels that the network follows exactly.
    """

    parameters: int
    macs: int
    stride: int


def measure_size(name: str, *, in_channels: int, num_classes: int, side: int = 512, **options: Any) -> Size:
    """Build a network as :func:`geoseg.networks.create` does and count it; where the encoder allows it without weights.

    Args:
        name: one of :func:`geoseg.networks.names`.
        in_channels: number of bands.
        num_classes: number of classes.
        side: of the input in pixels.
        options: what else ``create`` takes.

    Raises:
        ConfigError: the network cannot be built.
    """
    arguments: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes, **options}
    try:
        with torch.device("meta"):
            network = create(name, **arguments)
    except ConfigError:  # some encoders compute while they are built
        network = create(name, **arguments)
    return Size(
        parameters=count_parameters(network),
        macs=count_macs(network, in_channels, side),
        stride=int(network.stride),  # type: ignore[arg-type]
    )


def count_parameters(network: nn.Module) -> int:
    """Return how many numbers training sets; one that several layers share counts once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, in_channels: int, side: int) -> int:
    """Return the multiply-adds of one pass in evaluation mode over an input of ``side`` pixels, see :class:`Size`.

    It is told by the shapes alone, in a copy on the ``meta`` device.  There attention is the products it stands for;
    the CPU's own kernel for it would go uncounted.
    """
    copied = copy.deepcopy(network).to("meta")
    pixels = torch.empty(1, in_channels, side, side, device="meta")
    counter = FlopCounterMode(display=False)
    with evaluating(copied), torch.no_grad(), counter:
        copied(pixels)
    # The counter takes a multiply-add for two operations.
    return counter.get_total_flops() // 2
