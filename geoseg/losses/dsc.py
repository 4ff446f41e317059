"""The DSC loss: 1 − the Dice similarity coefficient of each item, all its pixels and planes together.

Source: Yu et al. 2018, arXiv 1709.04518 (RSTN), and the code released with it.  ``dice`` is another: it pools the whole
batch and averages over the classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from geoseg.errors import ConfigError
from geoseg.losses.loss import Loss, Target, mean_over

# Added to both areas of the quotient, so that nothing compared with nothing costs nothing.
EPS = 1e-6
# The coarse network's share of the loss of a pair; the fine network has the rest.
COARSE_WEIGHT = 1 / 3


def dsc_per_item(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return 1 − (2 Σ p y + ε) / (Σ p + Σ y + ε) of each item: (N,).

    Where a target is empty the value is near 1 and its gradient near 0, unless Σ p is as small as ε: false alarms are
    not learned from it alone.

    Args:
        probabilities: p, (N, K, H, W), 0 where a pixel does not count.
        target: y, (N, K, H, W), 0 to 1, likewise.
    """
    target = target.to(probabilities.dtype)
    common = (probabilities * target).flatten(1).sum(1)
    areas = (probabilities + target).flatten(1).sum(1)
    return 1 - (2 * common + EPS) / (areas + EPS)


def dsc_loss(probabilities: torch.Tensor, target: torch.Tensor, *, whole_batch: bool = False) -> torch.Tensor:
    """Return the mean of :func:`dsc_per_item`, a scalar; of ``whole_batch`` the batch as a single item."""
    if whole_batch:
        probabilities, target = probabilities.unsqueeze(0), target.unsqueeze(0)
    return dsc_per_item(probabilities, target).mean()


def pair_loss(
    coarse: torch.Tensor, fine: torch.Tensor, target: torch.Tensor, *, coarse_weight: float = COARSE_WEIGHT
) -> torch.Tensor:
    """Return the loss of a pair of networks in training, a scalar, computed in float32 (float64 for such input).

    It is the weighted mean of both networks' DSC losses.  Items with an empty target add the binary cross-entropy,
    which is not in the paper: the DSC loss has no gradient there.

    Args:
        coarse: probabilities (N, K, H, W) of the coarse network.
        fine: of the fine one; 0 outside the box it saw.
        target: (N, K, H, W) bool or 0 and 1.
        coarse_weight: the coarse network's share, 0 to 1.

    Raises:
        ConfigError: a share outside its range, or shapes that differ.
    """
    if not 0 <= coarse_weight <= 1:
        raise ConfigError(f"the coarse network's share of the loss is {coarse_weight}: give a number from 0 to 1.")
    if not coarse.shape == fine.shape == target.shape:
        shapes = ", ".join(str(tuple(each.shape)) for each in (coarse, fine, target))
        raise ConfigError(f"coarse and fine probabilities and target are {shapes}: give them one shape.")
    return coarse_weight * target_loss(coarse, target) + (1 - coarse_weight) * target_loss(fine, target)


def target_loss(probabilities: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return one network's part of :func:`pair_loss`, a scalar.

    Args:
        probabilities: (N, K, H, W), 0 where a pixel does not count.
        target: (N, K, H, W) bool or 0 and 1, likewise.
    """
    empty = ~(target > 0).flatten(1).any(1)
    with torch.autocast(probabilities.device.type, enabled=False):
        given = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
        alarms = F.binary_cross_entropy(given, torch.zeros_like(given), reduction="none")
        return (dsc_per_item(given, target) + alarms.flatten(1).mean(1).where(empty, 0)).mean()


class Dsc(Loss):
    """:func:`dsc_loss` of the softmax of scores, over the valid pixels; items without one do not count.

    Classes exclude one another, so a softmax takes the place of the paper's sigmoids; of two classes it is the sigmoid
    of the difference.  The areas of all classes are added up, so a large class outweighs small ones: for a rare target
    name the class round it as ``background``.

    Args:
        background: the class that is left out of the areas; None counts all.  Items that hold nothing else add their
            cross-entropy, see :func:`pair_loss`.
        whole_batch: take the batch as a single item, as the authors' original in Caffe does.

    Raises:
        ConfigError: the background is no class.
    """

    takes_soft = True

    def __init__(
        self, num_classes: int, ignore_index: int = 255, *, background: int | None = None, whole_batch: bool = False
    ) -> None:
        super().__init__(num_classes, ignore_index)
        if background is not None and (
            isinstance(background, bool) or not isinstance(background, int) or not 0 <= background < num_classes
        ):
            raise ConfigError(f"the background of dsc is {background!r}: give a class from 0 to {num_classes - 1}.")
        if not isinstance(whole_batch, bool):
            raise ConfigError(f"whole_batch of dsc is {whole_batch!r}: give true or false.")
        self.background = background
        self.whole_batch = whole_batch

    def value(self, scores: torch.Tensor, target: Target) -> torch.Tensor:
        """Return the mean over the items."""
        shares, valid = target.shares(scores.dtype), target.valid.unsqueeze(1).to(scores.dtype)
        logarithms = torch.log_softmax(scores, dim=1)
        if self.whole_batch:
            # Items side by side in one plane.
            shares, valid, logarithms = (each.movedim(0, 1).flatten(1, 2)[None] for each in (shares, valid, logarithms))
        counted = [index for index in range(self.num_classes) if index != self.background]
        shares, probabilities = shares[:, counted], logarithms[:, counted].exp() * valid
        each = dsc_per_item(probabilities, shares)
        if self.background is not None:
            pixels = valid.flatten(1).sum(1)
            alarms = -(logarithms[:, [self.background]] * valid).flatten(1).sum(1) / pixels.clamp(min=1)
            each = each + alarms.where(~(shares > 0).flatten(1).any(1), 0)
        return mean_over(each, valid.flatten(1).any(1).to(each.dtype))
