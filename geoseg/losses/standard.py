"""The usual losses of single pixels: cross-entropy in several forms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from geoseg.errors import ConfigError
from geoseg.losses.loss import Loss, Target, checked_weights, mean_over
from geoseg.losses.ohem import OhemCrossEntropy

Weights = Sequence[float] | torch.Tensor | None


class _Weighted(Loss):
    """A loss with a weight for each class: ``class_weights`` (K,) or None."""

    class_weights: torch.Tensor | None

    def __init__(self, num_classes: int, ignore_index: int = 255, *, class_weights: Weights = None) -> None:
        super().__init__(num_classes, ignore_index)
        self.register_buffer("class_weights", checked_weights(class_weights, num_classes), persistent=False)

    def _weights(self, like: torch.Tensor) -> torch.Tensor:
        """Return the weights as (K,) in the type and on the device of ``like``, 1 each where none were given."""
        return like.new_ones(self.num_classes) if self.class_weights is None else self.class_weights.to(like)


class CrossEntropy(_Weighted):
    """Softmax cross-entropy, −Σ w y log p / Σ w y over the valid pixels; for labels it is PyTorch's.

    Args:
        class_weights: w, (K,).
        label_smoothing: share ε of every label that is spread evenly over all classes, below 1.

    Raises:
        ConfigError: a weight or share outside its range.
    """

    takes_soft = True

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        *,
        class_weights: Weights = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_classes, ignore_index, class_weights=class_weights)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing is {label_smoothing}: give a share of 0 or more and below 1.")
        self.label_smoothing = label_smoothing

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the mean over the valid pixels."""
        weights = self._weights(scores)
        if target.labels is None:
            return self._of_shares(scores, target, weights)
        losses = F.cross_entropy(scores, target.labels, weights, reduction="none", label_smoothing=self.label_smoothing)
        total = (weights[target.labels] * target.valid).sum()
        return losses.where(target.valid, 0).sum() / total.where(total > 0, 1)

    def _of_shares(self, scores: torch.Tensor, target: Target, weights: torch.Tensor) -> torch.Tensor:
        # PyTorch's own form for shares knows no ignored pixels, so the mask is applied here.
        shares = target.shares(scores.dtype)
        smooth = self.label_smoothing / self.num_classes * target.valid.unsqueeze(1).to(shares)
        columns = weights[:, None, None]
        losses = ((1 - self.label_smoothing) * shares + smooth) * F.log_softmax(scores, dim=1) * columns
        total = (shares * columns).sum()
        return -losses.sum() / total.where(total > 0, 1)


class BinaryCrossEntropy(_Weighted):
    """Cross-entropy of one sigmoid a class against the rest, averaged over valid pixels and classes.

    Args:
        class_weights: of each class's plane, (K,).

    Raises:
        ConfigError: a weight outside its range.
    """

    takes_soft = True

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the mean over the valid pixels and the classes."""
        losses = F.binary_cross_entropy_with_logits(scores, target.shares(scores.dtype), reduction="none")
        return mean_over(losses, target.valid.unsqueeze(1) * self._weights(scores)[:, None, None])


class Focal(_Weighted):
    """(1 − p)^γ · cross-entropy, p the probability of the true class, averaged over the valid pixels.

    Source: Lin et al. 2017, arXiv 1708.02002, equation 4, with softmax in place of sigmoids.

    Args:
        gamma: γ, 0 (plain cross-entropy) or at least 1: between, the gradient has no bound at p = 1.
        class_weights: the paper's α for each class, (K,); the mean is weighted by it.

    Raises:
        ConfigError: a weight or γ outside its range.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, *, gamma: float = 2.0, class_weights: Weights = None
    ) -> None:
        super().__init__(num_classes, ignore_index, class_weights=class_weights)
        if gamma != 0 and not 1 <= gamma <= 100:
            raise ConfigError(f"gamma of focal is {gamma}: give 0, or a number from 1 to 100.")
        self.gamma = gamma

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the mean over the valid pixels."""
        assert target.labels is not None
        losses = F.cross_entropy(scores, target.labels, reduction="none")
        if self.gamma:
            losses = (-torch.expm1(-losses)).pow(self.gamma) * losses
        return mean_over(losses, self._weights(scores)[target.labels] * target.valid)


class Ohem(Loss):
    """:class:`geoseg.losses.ohem.OhemCrossEntropy` by name.

    Args:
        threshold: probability of the true class below which a pixel is hard, above 0 and at most 1.
        keep: number of pixels of the batch to keep where fewer are hard.
        class_weights: (K,), multiplied with the losses of single pixels.

    Raises:
        ConfigError: a threshold, number or weight outside its range.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        *,
        threshold: float = 0.9,
        keep: int = 131072,
        class_weights: Weights = None,
    ) -> None:
        super().__init__(num_classes, ignore_index)
        weights = checked_weights(class_weights, num_classes)
        self._loss = OhemCrossEntropy(threshold, keep, ignore_index=ignore_index, class_weights=weights)

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the mean over the hard pixels."""
        assert target.labels is not None
        return self._loss(scores, target.labels.where(target.valid, self.ignore_index))
