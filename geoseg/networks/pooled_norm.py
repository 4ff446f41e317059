"""Batch norm behind whole-tile pooling, where a batch of one tile leaves one value a channel."""

from __future__ import annotations

import torch
from torch import nn


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that takes its running statistics where a channel has one value, which has no variance.

    :class:`torch.nn.BatchNorm2d` refuses such a batch in training mode; otherwise the two are the same.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W)."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def allow_single_values(module: nn.Module) -> None:
    """Put :class:`PooledBatchNorm2d` in the place of every plain batch norm in ``module``, with the same weights."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.BatchNorm2d:
                norm = PooledBatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
                norm.load_state_dict(child.state_dict(), assign=True)
                setattr(parent, name, norm)
