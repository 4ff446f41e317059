"""Lovász-softmax: the convex extension of 1 − IoU.

Source: Berman, Triki, Blaschko 2018, arXiv 1705.08790, equations 8 to 11.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from geoseg.losses.loss import Loss, Target


class Lovasz(Loss):
    """1 − IoU of each class's errors, sorted by size, averaged over the classes that the batch's labels have.

    All valid pixels of the batch are one set.  (The form in segmentation_models_pytorch knows float32 alone.)
    """

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the mean over the classes present, 0 without any."""
        assert target.labels is not None
        chances, labels = torch.softmax(scores, 1).movedim(1, -1)[target.valid], target.labels[target.valid]
        found = [self._of_class(chances[:, index], labels == index) for index in labels.unique().tolist()]
        return torch.stack(found).mean() if found else chances.sum()

    def _of_class(self, chances: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Return the extension for one class: its probabilities (P,), and which pixels are of it (P,)."""
        errors, order = (truth.to(chances) - chances).abs().sort(descending=True)
        truth = truth[order]
        # Were the n largest errors mistakes and all others none: so many pixels would be common, so many in the union.
        common = truth.sum() - truth.cumsum(0)
        union = truth.sum() + (~truth).cumsum(0)
        lost = 1 - common.to(chances) / union.to(chances)
        return errors @ (lost - F.pad(lost[:-1], (1, 0)))
