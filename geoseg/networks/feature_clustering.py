"""The network of differentiable feature clustering: pixels in, a normalised response map out.

Source: W. Kim, A. Kanezaki, M. Tanaka, *Unsupervised Learning of Image Segmentation Based on Differentiable Feature
Clustering*, IEEE Transactions on Image Processing 29, 2020, section III (arXiv 2007.09990).
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics can leave pixels out; without a mask it is :class:`torch.nn.BatchNorm2d`."""

    def forward(self, features: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise ``features`` (N, C, H, W); in training mode only pixels where ``valid`` (N, H, W) count."""
        if valid is None or not self.training:
            return super().forward(features)
        weight = valid.unsqueeze(1).to(features.dtype)
        count = weight.sum().clamp(min=1.0)
        mean = (features * weight).sum((0, 2, 3), keepdim=True) / count
        variance = ((features - mean).square() * weight).sum((0, 2, 3), keepdim=True) / count
        self._remember(mean.detach().flatten(), (variance.detach() * count / (count - 1).clamp(min=1.0)).flatten())
        scale = self.weight.view(1, -1, 1, 1) * torch.rsqrt(variance + self.eps)
        return (features - mean) * scale + self.bias.view(1, -1, 1, 1)

    def _remember(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class FeatureClusteringNet(nn.Module):
    """``convolutions`` 3×3 convolutions and one 1×1, each with a batch norm behind it; every channel is a cluster.

    The pixel's label is the channel of its largest response.  The last batch norm gives every channel mean 0 and
    variance 1 over the batch, so that no channel wins everywhere and many clusters start alive (section III-A).  A
    response depends on ``convolutions`` pixels to each side; the convolutions pad with zeros *behind* ReLU and batch
    norm, so the outermost ``convolutions`` pixels of a map know that they are at its edge.

    Parameter names are those of the authors' checkpoints (``conv1``, ``bn1``, ``conv2.0``, ``bn2.0``, …, ``conv3``,
    ``bn3``).

    Args:
        in_channels: bands.
        channels: q, the number of features and of initial clusters (the authors' 100).
        convolutions: M, the number of 3×3 convolutions (the authors' 2).

    Raises:
        ConfigError: one of the numbers is below 1.
    """

    def __init__(self, in_channels: int, channels: int = 100, convolutions: int = 2) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("channels", channels), ("convolutions", convolutions)):
            if value < 1:
                raise ConfigError(f"{name} is {value}: a feature clustering network needs at least 1.")
        more = range(convolutions - 1)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1)
        self.bn1 = MaskedBatchNorm2d(channels)
        self.conv2 = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in more)
        self.bn2 = nn.ModuleList(MaskedBatchNorm2d(channels) for _ in more)
        self.conv3 = nn.Conv2d(channels, channels, kernel_size=1)
        self.bn3 = MaskedBatchNorm2d(channels)

    def forward(self, pixels: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Return the responses (N, q, H, W) to ``pixels`` (N, C, H, W).

        Args:
            pixels: (N, C, H, W) float, about 0 to 1, finite everywhere.
            valid: (N, H, W) bool; False pixels are left out of the statistics of training mode. None means all count.
        """
        features = self.bn1(F.relu(self.conv1(pixels)), valid)
        for convolution, norm in zip(self.conv2, self.bn2, strict=True):
            features = norm(F.relu(convolution(features)), valid)
        response: torch.Tensor = self.bn3(self.conv3(features), valid)
        return response

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw new weights from ``generator``, with PyTorch's default distribution, and reset the batch norms."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # PyTorch's default for a convolution is uniform within 1/sqrt(fan-in), weights and biases alike.
                bound = 1.0 / math.sqrt(module.weight[0].numel())
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-bound, bound, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    @classmethod
    def seeded(cls, in_channels: int, channels: int, convolutions: int, seed: int) -> FeatureClusteringNet:
        """Return a network initialised from ``seed`` on the CPU; the global random state is neither used nor moved."""
        with torch.device("meta"):
            network = cls(in_channels, channels, convolutions)
        network.to_empty(device="cpu")
        network.initialise(torch.Generator().manual_seed(seed))
        return network
