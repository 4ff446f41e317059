"""Structural similarity loss (SSL): cross-entropy where the local pattern correlates worst with the labels' pattern.

Source: Zhao, Wu, Chu, Hu, Cai 2019, arXiv 1910.08711.  No code of the authors is public.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
import torch.nn.functional as F

from geoseg.errors import ConfigError, unknown_name
from geoseg.losses.loss import Loss, Target, mean_over
from geoseg.losses.windows import gaussian, reflected, window_means

Border = Literal["reflect", "zero", "renormalised"]
Scope = Literal["batch", "image", "class"]
Probability = Literal["sigmoid", "softmax"]
_SCOPES: dict[str, tuple[int, ...]] = {"batch": (0, 1, 2, 3), "image": (1, 2, 3), "class": (0, 2, 3)}


@dataclass(frozen=True)
class StructuralParts:
    """What the loss is made of.

    Attributes:
        total: λ · ``bce`` + (1 − λ) · ``structural``.
        bce: binary cross-entropy, the mean over valid pixels and classes.
        structural: the same weighted by the error, the mean over hard places.
        hard_count: number of hard places.
        error: how far the normalised patterns are apart, (N, K, H, W); 0 where a pixel does not count.
    """

    total: torch.Tensor
    bce: torch.Tensor
    structural: torch.Tensor
    hard_count: torch.Tensor
    error: torch.Tensor


class StructuralSimilarityLoss(Loss):
    """λ · BCE + (1 − λ) · SSL, every class against the rest.

    Probabilities and labels are normalised by mean and deviation of a small window.  Where the two differ by more than
    β of the largest difference, a place is hard; there the cross-entropy, times the difference, is averaged.

    The difference is blind to errors that are flat in a window, which is what λ > 0 is for.

    Args:
        window: side of the window in pixels, odd.
        sigma: of its Gaussian weights, in pixels.
        c4: added to numerator and denominator of the normalised values, so that flat windows agree.
        beta: β, from 0 up to below 1.
        lam: λ, from 0 to 1.
        border: what lies outside the image: its mirror image, zeros, or nothing (weights are then renormalised).
            Ignored pixels never belong to a window, whatever the border.
        scope: where the largest difference is sought: the batch, each image or each class.
        detach_weight: take the difference as a constant, without a gradient through it.
        prob: ``"sigmoid"`` for each class by itself, or ``"softmax"``.

    Raises:
        ConfigError: a value outside its range.
    """

    takes_soft = True

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        *,
        window: int = 3,
        sigma: float = 1.5,
        c4: float = 0.01,
        beta: float = 0.1,
        lam: float = 0.5,
        border: Border = "reflect",
        scope: Scope = "batch",
        detach_weight: bool = False,
        prob: Probability = "sigmoid",
    ) -> None:
        super().__init__(num_classes, ignore_index)
        if isinstance(window, bool) or not isinstance(window, int) or window < 1 or window % 2 == 0:
            raise ConfigError(f"the window of ssl is {window!r}: give an odd number of pixels.")
        for name, value in (("sigma", sigma), ("c4", c4)):
            if not 0 < value < inf:
                raise ConfigError(f"{name} of ssl is {value}: give a number above 0.")
        if not 0 <= beta < 1:
            raise ConfigError(f"beta of ssl is {beta}: give a share of 0 or more and below 1.")
        if not 0 <= lam <= 1:
            raise ConfigError(f"lam of ssl is {lam}: give a share from 0 to 1.")
        for kind, given, known in (("border", border, Border), ("scope", scope, Scope), ("prob", prob, Probability)):
            if given not in get_args(known):
                raise ConfigError(unknown_name(f"{kind} of ssl", str(given), get_args(known)))
        self.window = window
        self.sigma = sigma
        self.c4 = c4
        self.beta = beta
        self.lam = lam
        self.border = border
        self.scope = scope
        self.detach_weight = detach_weight
        self.prob = prob

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the total."""
        return self.parts(scores, target).total

    def parts(self, scores: torch.Tensor, target: Target) -> StructuralParts:
        """Return the total and what it is made of, of what :meth:`prepared` returned."""
        shares, valid = target.shares(scores.dtype), target.valid.unsqueeze(1)
        losses = F.binary_cross_entropy_with_logits(scores, shares, reduction="none")
        bce = mean_over(losses, valid.expand_as(losses))
        chances = torch.sigmoid(scores) if self.prob == "sigmoid" else torch.softmax(scores, dim=1)
        mass = self._mass(valid, scores)
        error = (self._normalised(shares, valid, mass) - self._normalised(chances, valid, mass)).abs().where(valid, 0)
        found = error.detach()
        hard = found > self.beta * found.amax(_SCOPES[self.scope], keepdim=True) if found.numel() else found > 0
        count = hard.sum()
        structural = ((found if self.detach_weight else error) * losses * hard).sum() / count.clamp(min=1)
        return StructuralParts(self.lam * bce + (1 - self.lam) * structural, bce, structural, count, error)

    def _mass(self, valid: torch.Tensor, like: torch.Tensor) -> torch.Tensor | None:
        """Return the weight of each window's valid part (N or 1, 1, H, W), above 0; None where it is 1 everywhere."""
        if bool(valid.all()):
            if self.border != "renormalised":
                return None
            valid = valid[:1]
        outside = 1.0 if self.border == "zero" else 0.0
        mass = window_means(self._padded(valid.to(like), outside), gaussian(self.window, self.sigma, like))
        return mass.where(mass > 0, 1)

    def _normalised(self, values: torch.Tensor, valid: torch.Tensor, mass: torch.Tensor | None) -> torch.Tensor:
        """Return (x − μ + C4) / (σ + C4), where μ and σ are of the window's valid part: (N, K, H, W)."""
        maps = torch.cat([values, values * values], 1)
        if mass is not None:
            maps = maps.where(valid, 0)
        means = window_means(self._padded(maps), gaussian(self.window, self.sigma, values))
        if mass is not None:
            means = means / mass
        mean, square = means.chunk(2, 1)
        deviation = torch.sqrt((square - mean * mean).clamp(min=0) + 1e-8)
        return (values - mean + self.c4) / (deviation + self.c4)

    def _padded(self, values: torch.Tensor, outside: float = 0.0) -> torch.Tensor:
        """Return maps with the surroundings that the border says: their mirror image, or the value ``outside``."""
        margin = self.window // 2
        if self.border == "reflect":
            return reflected(values, margin)
        return F.pad(values, (margin, margin, margin, margin), value=outside)
