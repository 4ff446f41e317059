"""What a forward pass holds in memory, counted on the network itself."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from geoseg.networks.receptive_field import evaluating
from geoseg.networks.scene_pooling import held

# Side in pixels of the picture that a network is counted on that cannot be counted without computing.
_COMPUTED = 256


def bytes_per_pixel(network: nn.Module, in_channels: int, stride: int, side: int = 512) -> float:
    """Return the most bytes that tensors take at once during a forward pass, for each pixel of the input.

    Weights are not counted, nor is what kernels take for themselves and what the allocator keeps: a pass adds about as
    much to a process on a CPU, a whole run some three times as much.  The network is left as it was.

    Args:
        network: from (N, ``in_channels``, H, W) to scores.
        in_channels: number of bands.
        stride: height and width are multiples of it.
        side: of the tile in pixels, rounded up to such a multiple; of large ones some networks hold less for a pixel.
    """
    try:
        # Tensors without values: it is counted in no time, and takes no memory.
        return _counted(copy.deepcopy(network).to("meta"), in_channels, stride, side, torch.device("meta"))
    except (RuntimeError, NotImplementedError):  # what it does depends on values
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        return _counted(network, in_channels, stride, _COMPUTED, device)


def _counted(network: nn.Module, in_channels: int, stride: int, side: int, device: torch.device) -> float:
    side = math.ceil(side / stride) * stride
    network = held(network)
    with evaluating(network), torch.no_grad():
        pixels = torch.zeros(1, in_channels, side, side, device=device)
        with _Living() as living:
            network(pixels)
    return living.peak / side**2


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors that are made in the block, while they live.

    Attributes:
        peak: the most at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*arguments, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size
