"""Cross-entropy over the hard pixels alone (online hard example mining), as HRNet is trained.

Source: Shrivastava, Gupta, Girshick 2016, arXiv 1604.03540 (the idea); Wang et al. 2019, arXiv 1908.07919, section 5
(for segmentation: a threshold on the probability, and a least number of pixels to keep).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from geoseg.errors import ConfigError


class OhemCrossEntropy(nn.Module):
    """Softmax cross-entropy, averaged over the valid pixels or over the hard ones among them.

    With a threshold t the valid pixels of the whole batch are sorted by the probability p of their true class.  Hard
    are those with p < θ, where θ is the larger of t and of the ``keep``-th smallest p (counted from 0, the last one if
    there are fewer).  The comparison is strict: ``keep`` pixels stay, less those that share the p of the next, and a
    batch of no more than ``keep`` pixels loses its easiest if that lies above t.

    Where no pixel counts, because none is valid or none is hard, the loss is 0 and so is its gradient.

    Args:
        threshold: t, above 0 and at most 1; None averages over all valid pixels.
        keep: number of pixels of the batch to keep where fewer are below the threshold.
        ignore_index: label of pixels without a class.
        class_weights: (K,), or None.  Without a threshold the mean is weighted by them; with one they multiply the
            losses of single pixels, and the mean is over the number of hard pixels.
        align_corners: rule by which scores smaller than the target are enlarged to it.

    Raises:
        ConfigError: a threshold, number or weight outside its range.
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        threshold: float | None = 0.9,
        keep: int = 131072,
        *,
        ignore_index: int = 255,
        class_weights: torch.Tensor | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        if threshold is not None and not 0 < threshold <= 1:
            raise ConfigError(f"the threshold of ohem is {threshold}: give a probability above 0 and at most 1.")
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
            raise ConfigError(f"keep of ohem is {keep!r}: give a whole number of pixels, 0 or more.")
        if class_weights is not None:
            class_weights = torch.as_tensor(class_weights, dtype=torch.float32)
            if class_weights.ndim != 1 or not bool(((class_weights >= 0) & (class_weights < math.inf)).all()):
                raise ConfigError("the class weights of ohem must be one number of 0 or more for each class.")
        self.threshold = threshold
        self.keep = keep
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar, of scores (N, K, h, w) for a target (N, H, W) of integers.

        Scores of another size than the target's are resized to it bilinearly.  The arithmetic is in float32 at least.
        """
        scores = scores if scores.dtype == torch.float64 else scores.float()
        target = target.long()
        if scores.shape[-2:] != target.shape[-2:]:
            scores = F.interpolate(scores, target.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        weights = None if self.class_weights is None else self.class_weights.to(scores)
        losses = F.cross_entropy(scores, target, weights, ignore_index=self.ignore_index, reduction="none")
        counted = target != self.ignore_index
        shares = counted.to(losses)
        if self.threshold is not None:
            counted = self._hard(scores.detach(), target, counted)
            shares = counted.to(losses)
        elif weights is not None:
            shares = torch.where(counted, weights[target.where(counted, 0)], 0)
        total = shares.sum()
        # Without a pixel both sums are 0; the quotient must be, too, for the gradient as well.
        return losses.where(counted, 0).sum() / total.where(total > 0, 1)

    def _hard(self, scores: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """Return which pixels are hard: (N, H, W) bool."""
        assert self.threshold is not None
        chances = scores.softmax(1).gather(1, target.where(valid, 0).unsqueeze(1)).squeeze(1)
        found = chances[valid]
        if found.numel() == 0:
            return valid
        last = found.kthvalue(min(self.keep, found.numel() - 1) + 1).values
        return valid & (chances < last.clamp(min=self.threshold))
