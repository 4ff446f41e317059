"""The loss of CascadePSP: coarse maps must say what is there, the finest one where exactly it ends.

Source: H. K. Cheng, J. Chung, Y.-W. Tai, C.-K. Tang 2020, arXiv 2005.02551, section 3.2, and the code released with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from geoseg.errors import ConfigError, LabelsError
from geoseg.losses.loss import mean_over


class Weights(NamedTuple):
    """What a map's cross-entropy, absolute error and squared error count for."""

    bce: float
    l1: float
    l2: float


# Of each map that the network gives, see geoseg.networks.cascadepsp.
WEIGHTS: Mapping[str, Weights] = {
    "out_224": Weights(0.0, 1.0, 1.0),
    "out_56": Weights(0.5, 0.25, 0.25),
    "out_56_2": Weights(0.5, 0.25, 0.25),
    "out_28": Weights(1.0, 0.0, 0.0),
    "out_28_2": Weights(1.0, 0.0, 0.0),
    "out_28_3": Weights(1.0, 0.0, 0.0),
}
FINEST = "out_224"
GRADIENT_WEIGHT = 5.0
# Under the root of a gradient's length, whose own gradient would else be infinite on a plain map.
_EPS = 1e-4
# Pixels round one on which its gradient depends: one of the mean and one of the difference.
_REACH = 2


class RefinementLoss(nn.Module):
    """Σ over six maps of weighted errors, and 5 times how much the edges of the finest differ in strength.

    Errors are of probabilities, cross-entropies of logits; all are means over the pixels whose truth is known.
    """

    takes_soft = False
    takes_pixels = False

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(
        self, maps: Mapping[str, torch.Tensor], target: torch.Tensor, pixels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the loss, a scalar, computed in float32 (float64 for such maps).

        Args:
            maps: logits (N, 1, H, W) of the six maps of a full run.
            target: (N, H, W) integers, 1 in the mask, 0 outside, ``ignore_index`` where it is not known.
            pixels: not needed.

        Raises:
            ConfigError: a map is missing, or of another size than the target.
            LabelsError: a target that is none of the three.
        """
        with torch.autocast(target.device.type, enabled=False):
            terms = self.terms(maps, target)
            gradient = GRADIENT_WEIGHT * terms.pop("gradient")[0]
            total = [weight * term for name in WEIGHTS for weight, term in zip(WEIGHTS[name], terms[name], strict=True)]
            return torch.stack([*total, gradient]).sum()

    def terms(self, maps: Mapping[str, torch.Tensor], target: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
        """Return cross-entropy, absolute and squared error of each map, and of ``gradient`` the one it has, unweighted.

        Args and raises: as for :meth:`forward`.
        """
        known, truth = self._checked(maps, target)
        found: dict[str, tuple[torch.Tensor, ...]] = {}
        for name in WEIGHTS:
            logits = maps[name] if maps[name].dtype == torch.float64 else maps[name].float()
            # What is not known must not matter, not even where it is NaN.
            logits = logits.where(known, 0)
            goal = truth.to(logits.dtype)
            apart = (logits.sigmoid() - goal).abs()
            entropy = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
            weights = known.to(logits.dtype)
            found[name] = tuple(mean_over(each, weights) for each in (entropy, apart, apart.square()))
            if name == FINEST:
                unknown = F.max_pool2d(1 - weights, 2 * _REACH + 1, stride=1, padding=_REACH)
                edges = (edge_strength(goal) - edge_strength(logits.sigmoid())).abs()
                found["gradient"] = (mean_over(edges, 1 - unknown),)
        return found

    def _checked(self, maps: Mapping[str, torch.Tensor], target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the target is known, and where it is the mask, (N, 1, H, W) bool."""
        expected = (len(target), 1, *target.shape[1:])
        for name in WEIGHTS:
            if name not in maps:
                raise ConfigError(
                    f"the network gives no {name}: this loss goes with cascadepsp, run without known masks."
                )
            if tuple(maps[name].shape) != expected:
                raise ConfigError(f"{name} is {tuple(maps[name].shape)} where the target asks for {expected}.")
        strange = (target != 0) & (target != 1) & (target != self.ignore_index)
        if bool(strange.any()):
            raise LabelsError(
                f"the target of a refined mask has the value {target[strange][0].item()}: give 0, 1, or "
                f"{self.ignore_index} for pixels that are not known."
            )
        return (target != self.ignore_index).unsqueeze(1), (target == 1).unsqueeze(1)


def edge_strength(values: torch.Tensor) -> torch.Tensor:
    """Return the length of the gradient of smoothed maps, (N, 1, H, W): by Sobel's differences of 3 × 3 means.

    Beyond the map is 0.  A plain map has a length of 0.01.
    """
    smooth = F.avg_pool2d(values, 3, stride=1, padding=1)
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(values) / 4
    kernels = torch.stack([across, across.T]).unsqueeze(1)
    length: torch.Tensor = (F.conv2d(smooth, kernels, padding=1).square().sum(1, keepdim=True) + _EPS).sqrt()
    return length
