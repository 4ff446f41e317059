"""The losses of GLNet's three stages of training.

Source: Chen et al. 2019, arXiv 1905.06368, with the values of the code released with it (the paper
has a focal γ of 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from geoseg.errors import ConfigError
from geoseg.losses.standard import Focal

GAMMA = 3.0
COUPLING = 0.15


class GlobalLocalLoss(nn.Module):
    """Focal losses of the branches' scores, and the coupling of their maps.

    The second stage is called with all parts.  The others need :meth:`scores` alone: the first of the overview, the
    third of the further look at it and of all patches.  Batches of patches are added, not averaged.

    Args:
        num_classes: K.
        gamma: of the focal loss, see :class:`geoseg.losses.standard.Focal`.
        coupling: λ, weight of the mean squared difference of the branches' last maps.
        ignore_index: label of pixels without a class; where there are no others the loss of scores is 0.

    Raises:
        ConfigError: γ or λ outside its range.
    """

    def __init__(
        self, num_classes: int, *, gamma: float = GAMMA, coupling: float = COUPLING, ignore_index: int = 255
    ) -> None:
        super().__init__()
        if not 0 <= coupling < math.inf:
            raise ConfigError(f"the coupling of GLNet's branches is {coupling}: give a number of 0 or more.")
        self.coupling = coupling
        self._focal = Focal(num_classes, ignore_index, gamma=gamma)

    def forward(
        self,
        local: torch.Tensor,
        ensemble: torch.Tensor,
        labels: torch.Tensor,
        local_maps: torch.Tensor,
        global_maps: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of a batch of patches in the second stage, a scalar; :meth:`terms` takes the same."""
        of_local, of_ensemble, difference = self.terms(local, ensemble, labels, local_maps, global_maps)
        return of_local + of_ensemble + self.coupling * difference

    def terms(
        self,
        local: torch.Tensor,
        ensemble: torch.Tensor,
        labels: torch.Tensor,
        local_maps: torch.Tensor,
        global_maps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss of both scores, and the mean squared difference of the maps, without its weight.

        The coupling draws the local maps towards the global ones, never the other way.

        Args:
            local: scores (N, K, h, w) of the local branch alone.
            ensemble: scores (N, K, h, w) of both branches.
            labels: (N, h, w) integers, see :func:`labels_at`.
            local_maps: (N, C, h, w), the last of the local branch.
            global_maps: those of the global branch under the patches, (N, C, h, w).

        Raises:
            ConfigError: scores and labels, or both maps, do not fit each other.
            LabelsError: a label that is neither a class nor ignored.
        """
        if local_maps.shape != global_maps.shape:
            raise ConfigError(
                f"the maps of the branches are {tuple(local_maps.shape)} and {tuple(global_maps.shape)}: resize the "
                "global ones to the local ones."
            )
        difference = (local_maps.float() - global_maps.detach().float()).square().mean()
        return self._focal(local, labels), self._focal(ensemble, labels), difference

    def scores(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the focal loss of scores (N, K, h, w) against labels (N, h, w), a scalar."""
        loss: torch.Tensor = self._focal(scores, labels)
        return loss


def labels_at(labels: torch.Tensor, size_yx: Sequence[int]) -> torch.Tensor:
    """Return the labels (N, H, W) nearest to the middle of each of h × w cells, as Pillow does it: (N, h, w).

    >>> labels_at(torch.arange(8).view(1, 1, 8), (1, 2)).tolist()
    [[[2, 6]]]
    """
    for axis, size in enumerate(size_yx, start=1):
        places = (
            (torch.arange(size, device=labels.device, dtype=torch.float64) + 0.5) * labels.shape[axis] / size
        ).long()
        labels = labels.index_select(axis, places)
    return labels
