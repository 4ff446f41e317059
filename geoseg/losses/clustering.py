"""Losses of clustering without labels: a pixel agrees with its own label, with its neighbours, and with scribbles.

Source: W. Kim, A. Kanezaki, M. Tanaka, *Unsupervised Learning of Image Segmentation Based on Differentiable Feature
Clustering*, IEEE Transactions on Image Processing 29, 2020, section III (arXiv 2007.09990).  Targets come from the
scores themselves, so these losses train no network on labels and have no name in ``geoseg losses``.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

UNLABELLED = 255


def similarity_loss(response: torch.Tensor, target: torch.Tensor, counted: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean cross-entropy of ``response`` with ``target``; 0 where no pixel counts.

    With the response's own argmax as target this is the paper's feature similarity (section III-B1), between 0 and
    log q; with scribbles it is the scribble loss (section III-C).

    Args:
        response: (N, q, H, W) float.
        target: (N, H, W) int64 channels; any value where ``counted`` is False.
        counted: (N, H, W) bool, the pixels that count; None means all.
    """
    # Gathered by hand: PyTorch's own cross-entropy of maps has no deterministic form on GPUs.
    inside = target if counted is None else torch.where(counted, target, torch.zeros_like(target))
    loss = -F.log_softmax(response, dim=1).gather(1, inside.unsqueeze(1)).squeeze(1)
    if counted is None:
        return loss.mean()
    weight = counted.to(loss.dtype)
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)


def scribble_loss(
    response: torch.Tensor, scribbles: torch.Tensor, valid: torch.Tensor | None = None, unlabelled: int = UNLABELLED
) -> torch.Tensor:
    """Return the mean cross-entropy with ``scribbles`` (N, H, W) where these are not ``unlabelled``; 0 without any.

    Source: section III-C.  ``response`` is (N, q, H, W); a scribble's value is its channel.
    """
    counted = scribbles != unlabelled
    return similarity_loss(response, scribbles.long(), counted if valid is None else counted & valid)


def continuity_loss(response: torch.Tensor, valid: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean absolute difference of neighbours below each other, and of neighbours beside each other.

    Means run over channels too, so a weight does not depend on q (section III-B2 writes a sum).

    Args:
        response: (N, q, H, W) float.
        valid: (N, H, W) bool; pairs with a pixel that is not valid do not count.
    """
    return (_mean_difference(response, valid, 2), _mean_difference(response, valid, 3))


def _mean_difference(response: torch.Tensor, valid: torch.Tensor | None, axis: int) -> torch.Tensor:
    size = response.shape[axis]
    if size < 2:
        return response.new_zeros(())
    difference = (response.narrow(axis, 1, size - 1) - response.narrow(axis, 0, size - 1)).abs()
    if valid is None:
        return difference.mean()
    pairs = valid.narrow(axis - 1, 1, size - 1) & valid.narrow(axis - 1, 0, size - 1)
    weight = pairs.unsqueeze(1).to(difference.dtype)
    return (difference * weight).sum() / (weight.sum() * response.shape[1]).clamp(min=1.0)
