"""Cascade label guidance: cross-entropy at several strides, each against the labels found at that stride.

Source: Zhao et al. 2018, arXiv 1704.08545, section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from geoseg.errors import ConfigError
from geoseg.losses.ohem import OhemCrossEntropy

# Strides 16 and 8 alike, as in the widespread ports; another port has 0.16 at stride 16.
WEIGHTS = {4: 1.0, 8: 0.4, 16: 0.4}


class CascadeLoss(nn.Module):
    """The weighted sum of mean cross-entropies of the maps ``scores_<stride>`` that ICNet gives in training.

    Labels are picked at every stride-th pixel, never interpolated: a blend of two labels is a third.

    Args:
        weights: of each stride; scores of other strides are left out.
        ignore_index: label of pixels without a class.  A stride without any pixel that has one adds 0.

    Raises:
        ConfigError: no stride, or a weight that is negative or not finite.
    """

    def __init__(self, weights: Mapping[int, float] = WEIGHTS, *, ignore_index: int = 255) -> None:
        super().__init__()
        if not weights or any(stride < 1 or not 0 <= weight < math.inf for stride, weight in weights.items()):
            raise ConfigError(
                f"the weights of the cascade loss are {dict(weights)}: give numbers of 0 or more by stride."
            )
        self.weights = dict(weights)
        self._mean = OhemCrossEntropy(None, ignore_index=ignore_index)

    def forward(self, outputs: Mapping[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar, of the maps (N, K, ⌈H/s⌉, ⌈W/s⌉) for labels (N, H, W) of integers.

        Raises:
            ConfigError: a map is missing or of another size.
        """
        total = torch.zeros((), device=labels.device)
        for stride, weight in self.weights.items():
            name = f"scores_{stride}"
            if name not in outputs:
                raise ConfigError(f"the network gives no {name}: the cascade loss goes with ICNet in training mode.")
            scores, picked = outputs[name], shrunk(labels, stride)
            if scores.shape[-2:] != picked.shape[-2:]:
                raise ConfigError(
                    f"{name} has {tuple(scores.shape[-2:])} cells where labels of {tuple(labels.shape[-2:])} pixels "
                    f"ask for {tuple(picked.shape[-2:])}: scores and labels belong to different inputs."
                )
            total = total + weight * self._mean(scores, picked)
        return total


def shrunk(labels: torch.Tensor, stride: int) -> torch.Tensor:
    """Return the labels (N, H, W) at every ``stride``-th pixel from the first on: (N, ⌈H/stride⌉, ⌈W/stride⌉)."""
    return labels[..., ::stride, ::stride]
