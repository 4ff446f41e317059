"""What all losses share: which pixels count, float32 under autocast, targets as labels or as shares of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import nn

from geoseg.errors import ConfigError, LabelsError


@dataclass(frozen=True)
class Target:
    """What scores are compared with.

    Attributes:
        labels: (N, H, W) int64, 0 where no class is known; None where the target came as shares.
        valid: (N, H, W) bool, the pixels that count.
        given: shares of the classes (N, K, H, W), all 0 where a pixel does not count; None where labels came.
        num_classes: K.
    """

    labels: torch.Tensor | None
    valid: torch.Tensor
    given: torch.Tensor | None
    num_classes: int

    def shares(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the shares of the classes (N, K, H, W), of type ``dtype``.

        They are one-hot for labels, and all 0 where a pixel does not count.
        """
        if self.given is not None:
            return self.given.to(dtype)
        assert self.labels is not None
        shares = torch.zeros((len(self.labels), self.num_classes, *self.labels.shape[1:]), dtype=dtype)
        return shares.to(self.labels.device).scatter_(1, self.labels.unsqueeze(1), self.valid.unsqueeze(1).to(dtype))


class Loss(nn.Module):
    """A loss of scores (N, K, H, W) against labels (N, H, W), or against shares of classes (N, K, H, W).

    Scores of pixels that do not count are replaced before anything is computed, so not even a NaN there matters.

    Args:
        num_classes: K.
        ignore_index: label of pixels without a class.  Shares that are all 0 say the same.

    Attributes:
        takes_soft: whether shares may be given.
        takes_pixels: whether :meth:`forward` needs the input (N, C, H, W) as well; a sum passes it on.
    """

    takes_soft = False
    takes_pixels = False

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def forward(self, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar, computed in float32 (in float64 for such scores).

        Raises:
            ConfigError: scores and target do not fit each other or this loss.
            LabelsError: a label that is neither a class nor ignored.
        """
        with torch.autocast(scores.device.type, enabled=False):
            return self.value(*self.prepared(scores, target))

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the loss, a scalar, of what :meth:`prepared` returned.

        Args:
            scores: (N, K, H, W) float32 or float64, 0 where a pixel does not count.
            target: what they are compared with.
        """
        raise NotImplementedError

    def prepared(self, scores: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, Target]:
        """Return scores (N, K, H, W) with 0 where a pixel does not count, and the checked target.

        Args:
            scores: (N, K, H, W) of any float type.
            target: labels (N, H, W), integers, or shares of the classes (N, K, H, W).
        """
        classes = self.num_classes
        if scores.ndim != 4 or scores.shape[1] != classes:
            raise ConfigError(f"scores are {tuple(scores.shape)}: this loss was made for (N, {classes}, H, W).")
        soft = target.ndim == 4
        expected = (len(scores), *((classes,) if soft else ()), *scores.shape[-2:])
        if tuple(target.shape) != expected:
            raise ConfigError(
                f"the target is {tuple(target.shape)}, scores are {tuple(scores.shape)}: give {expected}."
            )
        found = self._soft(target) if soft else self._hard(target)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        return scores.where(found.valid.unsqueeze(1), 0), found

    def _soft(self, target: torch.Tensor) -> Target:
        if not self.takes_soft:
            raise ConfigError(f"{type(self).__name__} takes labels alone: mix its losses, not its labels.")
        return Target(None, target.sum(1) > 0, target, self.num_classes)

    def _hard(self, target: torch.Tensor) -> Target:
        if target.is_floating_point():
            raise ConfigError(f"labels are {target.dtype}: give integers (N, H, W), or shares (N, K, H, W).")
        labels = target.long()
        valid = labels != self.ignore_index
        labels = labels.where(valid, 0)
        if bool(((labels < 0) | (labels >= self.num_classes)).any()):
            wrong = labels[(labels < 0) | (labels >= self.num_classes)][0].item()
            raise LabelsError(
                f"a label is {wrong}, but there are {self.num_classes} classes (0 to {self.num_classes - 1}) and "
                f"{self.ignore_index} for none: map the labels to these."
            )
        return Target(labels, valid, None, self.num_classes)


def mean_over(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return Σ ``values`` · ``weights`` / Σ ``weights``, both of one shape; 0, with zero gradient, for weights of 0."""
    total = weights.sum()
    return (values * weights).sum() / total.where(total > 0, 1)


def checked_weights(weights: Sequence[float] | torch.Tensor | None, num_classes: int) -> torch.Tensor | None:
    """Return ``weights`` of classes as float32 (K,), of which there are ``num_classes``; None for none.

    Raises:
        ConfigError: not one number of 0 or more for each class, or all are 0.
    """
    if weights is None:
        return None
    found = torch.as_tensor(weights, dtype=torch.float32)
    if found.shape != (num_classes,) or not bool(((found >= 0) & (found < inf)).all()) or not bool(found.any()):
        given = found.tolist()
        raise ConfigError(f"class_weights are {given}: give one number of 0 or more for each of {num_classes} classes.")
    return found
