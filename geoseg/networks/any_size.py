"""Inputs of any size for networks that take only some, and the form in which every network answers.

In evaluation mode a network returns its scores (N, K, H, W) and nothing else.  In training mode one with auxiliary
heads returns a dict of tensors whose first entry is ``"scores"``; a loss reads the others by their names.  A network
that can say more about its pixels (gates, entropies, offsets) names these layers in an attribute ``layers`` and
computes them in ``with_layers``.
"""

from __future__ import annotations

import torch
from torch import nn

Output = torch.Tensor | dict[str, torch.Tensor]


class AnySize(nn.Module):
    """Lets a network of a given stride take any height and width: mirror-pads, runs, and crops what comes out.

    The padding is below and right, so that the network's lattice starts at the input's first pixel.  Only maps of the
    padded size are cropped; coarser auxiliary maps stay as they are.  The weights of the network stand under
    ``network.`` in the state dict.

    Attributes:
        layers: names of the network's further layers, see :meth:`with_layers`; empty where it has none.
    """

    def __init__(self, network: nn.Module, stride: int, min_size: int = 1) -> None:
        super().__init__()
        self.network = network
        self.stride = stride
        self.min_size = min_size
        self.layers: tuple[str, ...] = tuple(getattr(network, "layers", ()))

    def forward(self, pixels: torch.Tensor) -> Output:
        """Return scores (N, K, H, W) for ``pixels`` (N, C, H, W); with auxiliary maps where training gives any."""
        padded = self._padded(pixels)
        output: Output = self.network(padded)
        if isinstance(output, torch.Tensor):
            return _cropped(output, padded, pixels)
        return {name: _cropped(value, padded, pixels) for name, value in output.items()}

    def with_layers(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (N, K, H, W) and the layers (N, L, H, W) that ``layers`` names."""
        padded = self._padded(pixels)
        scores, layers = self.network.with_layers(padded)  # type: ignore[operator]
        return _cropped(scores, padded, pixels), _cropped(layers, padded, pixels)

    def _padded(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        for axis, size in ((2, height), (3, width)):
            target = -(-max(size, self.min_size) // self.stride) * self.stride
            if target != size:
                pixels = pixels.index_select(axis, mirrored(size, target, pixels.device))
        return pixels


def _cropped(output: torch.Tensor, padded: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    if output.shape[-2:] != padded.shape[-2:]:
        return output
    return output[..., : pixels.shape[-2], : pixels.shape[-1]]


def mirrored(size: int, target: int, device: torch.device) -> torch.Tensor:
    """Return the index, along an axis of ``size`` pixels, of each of ``target`` ≥ ``size`` pixels: (target,) int64.

    Pixels beyond the end are mirrored about the last and the first pixel as often as needed, which
    ``torch.nn.functional.pad`` refuses for padding as wide as the input.
    """
    if size == 1:
        return torch.zeros(target, dtype=torch.int64, device=device)
    place = torch.arange(target, device=device) % (2 * size - 2)
    return torch.minimum(place, 2 * size - 2 - place)
