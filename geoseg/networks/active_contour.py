"""The small recurrent network of the active contour CNN: pixels in, one score of being inside out.

Source: J. Chen, E. Frey, *Medical Image Segmentation via Unsupervised Convolutional Neural Network*, MIDL 2020 (arXiv
2001.10155), figure 1.
"""

from __future__ import annotations

import torch
from torch import nn

from geoseg.errors import ConfigError
from geoseg.networks.feature_clustering import MaskedBatchNorm2d

_STEPS = 3


class RecurrentBlock(nn.Module):
    """A 3×3 convolution whose output enters three more steps: each adds it to a convolution of the step before.

    The authors call the steps recurrent; in their code the convolutions start alike and then learn apart.

    Args:
        in_channels: of the input.
        channels: of everything else.
        tied: one convolution for all three steps, as the name says.
    """

    def __init__(self, in_channels: int, channels: int, *, tied: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
        count = 1 if tied else _STEPS
        self.steps = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in range(count))
        # Keras' defaults: its momentum is the share of the old value, PyTorch's that of the new.
        norms = (MaskedBatchNorm2d(channels, eps=1e-3, momentum=0.01) for _ in range(_STEPS + 1))
        self.norms = nn.ModuleList(norms)
        self.slopes = nn.ModuleList(nn.PReLU(channels, init=0.0) for _ in range(_STEPS + 1))

    def forward(self, features: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return features (N, channels, H, W); see :class:`ActiveContourNet` for ``valid``."""
        entered = self.first(features)
        current: torch.Tensor = self.slopes[0](self.norms[0](entered, valid))
        for step in range(_STEPS):
            added = entered + self.steps[step % len(self.steps)](current)
            current = self.slopes[step + 1](self.norms[step + 1](added, valid))
        return current


class ActiveContourNet(nn.Module):
    """Recurrent blocks and a 1×1 convolution to one score: above 0 a pixel is inside the contour.

    A score depends on ``halo`` pixels to each side.  Unlike the released network, slopes belong to channels, not to
    pixels (which would fix the size of tiles), and the head's weights are not forced to ±1.

    Args:
        in_channels: bands.
        channels: features.
        blocks: recurrent blocks.
        tied: see :class:`RecurrentBlock`.
        clipped: end in a PReLU, for outputs that are clipped to 0 … 1, as released; otherwise outputs are logits.

    Raises:
        ConfigError: one of the numbers is below 1.
    """

    def __init__(
        self, in_channels: int, channels: int = 16, blocks: int = 3, *, tied: bool = False, clipped: bool = False
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("channels", channels), ("blocks", blocks)):
            if value < 1:
                raise ConfigError(f"{name} is {value}: an active contour network needs at least 1.")
        sizes = [in_channels, *[channels] * (blocks - 1)]
        self.blocks = nn.ModuleList(RecurrentBlock(size, channels, tied=tied) for size in sizes)
        self.head = nn.Conv2d(channels, 1, kernel_size=1)
        self.last = nn.PReLU(1, init=0.0) if clipped else nn.Identity()

    @property
    def halo(self) -> int:
        """Pixels to each side that a score depends on."""
        return (_STEPS + 1) * len(self.blocks)

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return scores (N, 1, H, W) of ``pixels`` (N, C, H, W).

        Args:
            pixels: (N, C, H, W) float, about 0 to 1, finite everywhere.
            valid: (N, H, W) bool; False pixels are left out of the statistics of training mode.  None means all count.
        """
        for block in self.blocks:
            pixels = block(pixels, valid)
        scores: torch.Tensor = self.last(self.head(pixels))
        return scores

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw new weights from ``generator`` (He's normal distribution), the steps of a block alike; biases are 0."""
        for block in self.blocks:
            assert isinstance(block, RecurrentBlock)
            for convolution in (block.first, *block.steps):
                assert isinstance(convolution, nn.Conv2d)
                nn.init.kaiming_normal_(convolution.weight, generator=generator)
                assert convolution.bias is not None
                convolution.bias.zero_()
            for step in block.steps:
                step.load_state_dict(block.steps[0].state_dict())
            for norm in block.norms:
                assert isinstance(norm, nn.BatchNorm2d)
                norm.reset_parameters()
        nn.init.kaiming_normal_(self.head.weight, generator=generator)
        assert self.head.bias is not None
        self.head.bias.zero_()
        for module in self.modules():
            if isinstance(module, nn.PReLU):
                module.weight.zero_()

    @classmethod
    def seeded(
        cls, in_channels: int, channels: int, blocks: int, seed: int, *, tied: bool = False, clipped: bool = False
    ) -> ActiveContourNet:
        """Return a network initialised from ``seed`` on the CPU; the global random state is neither used nor moved."""
        with torch.device("meta"):
            network = cls(in_channels, channels, blocks, tied=tied, clipped=clipped)
        network.to_empty(device="cpu")
        network.initialise(torch.Generator().manual_seed(seed))
        return network
