"""A weighted sum of losses, itself a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from geoseg.errors import ConfigError
from geoseg.losses.loss import Loss


class WeightedSum(nn.Module):
    """Σ weight · loss.  What :func:`geoseg.losses.create` returns, also for a single loss.

    Parameters, where a loss has any (the adversary of ``aaf``), belong into the optimizer without weight decay.

    Args:
        terms: name, weight and loss of each term.

    Attributes:
        takes_soft: whether all terms take shares of classes as targets.
        takes_pixels: whether any term needs the network's input.
    """

    def __init__(self, terms: Sequence[tuple[str, float, Loss]]) -> None:
        super().__init__()
        self.names = tuple(name for name, _, _ in terms)
        self.weights = tuple(weight for _, weight, _ in terms)
        self.losses = nn.ModuleList([loss for _, _, loss in terms])
        self.takes_soft = all(loss.takes_soft for _, _, loss in terms)
        self.takes_pixels = any(loss.takes_pixels for _, _, loss in terms)

    def forward(self, scores: torch.Tensor, target: torch.Tensor, pixels: torch.Tensor | None = None) -> torch.Tensor:
        """Return the sum, a scalar.  ``pixels`` (N, C, H, W) go to those terms that take them, and to no other.

        Raises:
            ConfigError: scores, target or pixels are missing or do not fit a loss.
            LabelsError: a label that is neither a class nor ignored.
        """
        weighted = [
            weight * value for weight, value in zip(self.weights, self.terms(scores, target, pixels), strict=True)
        ]
        return torch.stack(weighted).sum()

    def terms(
        self, scores: torch.Tensor, target: torch.Tensor, pixels: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Return the value of each loss of ``names``, without its weight."""
        if self.takes_pixels and pixels is None:
            raise ConfigError(
                f"the loss {'+'.join(self.names)} needs the pixels as well: call loss(scores, target, pixels)."
            )
        return [loss(scores, target, pixels) if loss.takes_pixels else loss(scores, target) for loss in self.losses]

    def set_progress(self, progress: float) -> None:
        """Tell losses that change in the course of training how far it is, from 0 to 1."""
        for loss in self.losses:
            if hasattr(loss, "progress"):
                setattr(loss, "progress", progress)  # noqa: B010 - nn.Module types its attributes as modules
