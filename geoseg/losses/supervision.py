"""Deep supervision: the loss of a network's scores and of its auxiliary maps, which it gives in training mode."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from geoseg.errors import ConfigError
from geoseg.losses.cascade import WEIGHTS as CASCADE
from geoseg.losses.cascade import shrunk

# By network.  gsn: chosen here, the paper gives none.  icnet: nothing at full size, Zhao et al. 2018, arXiv 1704.08545,
# section 3.4, with the ports' weights.  hrnet (with ocr=True): Yuan, Chen, Wang 2020, arXiv 1909.11065, section 4.
# torchvision: its training reference.  unet-lext (with auxiliary=True): Panfilov et al. 2019, arXiv 1908.04126.
DEFAULT_WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "gsn": {"scores": 1.0, "ecm4": 0.4, "ecm3": 0.4, "ecm2": 0.4, "ecm1": 0.4},
    "icnet": {"scores": 0.0, **{f"scores_{stride}": weight for stride, weight in CASCADE.items()}},
    "hrnet": {"scores": 1.0, "regions": 0.4},
    "torchvision-fcn": {"scores": 1.0, "aux": 0.5},
    "torchvision-deeplabv3": {"scores": 1.0, "aux": 0.5},
    "unet-lext": {"scores": 1.0, "aux": 0.1},
}
_MAIN = {"scores": 1.0}
_AT_STRIDE = re.compile(r"scores_(\d+)")


class Supervision(nn.Module):
    """Σ weight · loss over the maps that a network gives in training mode.

    A map called ``scores_<stride>`` is compared with the labels at every stride-th pixel (never with a blend of two
    labels); other maps are enlarged bilinearly to the labels' size.

    Args:
        loss: called as ``loss(scores, target)``; if its ``takes_pixels`` is true it gets the pixels as well.
        weights: of the maps by name, or the name of a network in :data:`DEFAULT_WEIGHTS`; any other network has
            ``scores`` alone.  Maps without a weight, and those with 0, are left out.
        auxiliary: the loss of all maps but ``scores``, by default ``loss`` too.

    Raises:
        ConfigError: a weight that is negative or not finite, or none above 0.
    """

    def __init__(
        self, loss: nn.Module, weights: Mapping[str, float] | str = _MAIN, *, auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        found = DEFAULT_WEIGHTS.get(weights, _MAIN) if isinstance(weights, str) else weights
        if not any(found.values()) or any(not 0 <= weight < math.inf for weight in found.values()):
            raise ConfigError(
                f"the weights of a network's maps are {dict(found)}: give 0 or more, one of them above 0."
            )
        self.loss = loss
        self.auxiliary = auxiliary
        self.weights = dict(found)
        self.takes_soft = all(getattr(each, "takes_soft", False) for each in (loss, auxiliary) if each is not None)

    def forward(
        self,
        outputs: torch.Tensor | Mapping[str, torch.Tensor],
        target: torch.Tensor,
        pixels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss, a scalar, of scores (N, K, H, W), or of maps by name, for a target (N, H, W) of integers.

        Scores alone, as a network gives in evaluation mode, have weight 1, and so has ``scores`` of a network that was
        built without the maps of positive weight.  The target may be shares (N, K, H, W) if the losses take them.

        Raises:
            ConfigError: none of the maps has a weight, or a map does not fit the target.
        """
        if isinstance(outputs, torch.Tensor):
            return self._of(self.loss, outputs, target, pixels)
        weighted = {name: self.weights.get(name, 0.0) for name in outputs if self.weights.get(name, 0.0) > 0}
        if not weighted:
            raise ConfigError(
                f"the network gives {', '.join(outputs)}: give one of these a weight, not {self.weights}."
            )
        total = [weight * self._of_map(name, outputs[name], target, pixels) for name, weight in weighted.items()]
        return torch.stack(total).sum()

    def _of_map(
        self, name: str, scores: torch.Tensor, target: torch.Tensor, pixels: torch.Tensor | None
    ) -> torch.Tensor:
        loss = self.loss if name == "scores" or self.auxiliary is None else self.auxiliary
        at_stride = _AT_STRIDE.fullmatch(name)
        if at_stride is not None:
            stride = int(at_stride[1])
            return self._of(loss, scores, shrunk(target, stride), None if pixels is None else shrunk(pixels, stride))
        if scores.shape[-2:] != target.shape[-2:]:
            scores = F.interpolate(
                scores if scores.dtype == torch.float64 else scores.float(),
                target.shape[-2:],
                mode="bilinear",
                align_corners=False,
            )
        return self._of(loss, scores, target, pixels)

    def _of(
        self, loss: nn.Module, scores: torch.Tensor, target: torch.Tensor, pixels: torch.Tensor | None
    ) -> torch.Tensor:
        found: torch.Tensor = (
            loss(scores, target, pixels) if getattr(loss, "takes_pixels", False) else loss(scores, target)
        )
        return found
