"""Losses of areas rather than pixels, from segmentation_models_pytorch, over the valid pixels alone."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch

from geoseg.errors import ConfigError
from geoseg.losses.loss import Loss, Target, checked_weights


class OverlapLoss(Loss):
    """Dice, Jaccard or Tversky loss of the whole batch's valid pixels, averaged over the classes.

    The library's own masks leave ignored pixels in some of the sums; here only valid pixels reach it.  A class
    without any pixel in the batch counts as loss 0.

    Args:
        of: the class in ``segmentation_models_pytorch.losses``.
        class_weights: (K,).
        smooth: added to both areas of the quotient, 0 or more.
        alpha: Tversky's weight of false alarms, 0 or more.
        beta: Tversky's weight of misses, 0 or more.
        gamma: Tversky's exponent, at least 1: below, the gradient has no bound where the loss is 0.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        *,
        of: str,
        class_weights: Sequence[float] | torch.Tensor | None = None,
        smooth: float | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        gamma: float | None = None,
    ) -> None:
        super().__init__(num_classes, ignore_index)
        numbers = {"smooth": smooth, "alpha": alpha, "beta": beta, "gamma": gamma}
        given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
        for name, value in given.items():
            least = 1 if name == "gamma" else 0
            if not least <= value < inf:
                raise ConfigError(f"{name} of an area loss is {value}: give a number of {least} or more.")
        if class_weights is not None:
            given["class_weights"] = checked_weights(class_weights, num_classes)
        # Imported late: it loads every encoder it has.
        from segmentation_models_pytorch import losses

        self._loss = getattr(losses, of)(mode="multiclass", **given)

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the mean over the classes."""
        assert target.labels is not None
        chosen = scores.movedim(1, -1)[target.valid]
        if len(chosen) == 0:
            return chosen.sum()
        loss: torch.Tensor = self._loss(chosen.T.unsqueeze(0).unsqueeze(2), target.labels[target.valid][None, None])
        return loss
