"""Scores that are moved, block by block, until their mean shares are what is known of the block.

Within a block every pixel's scores move alike, so that pixels keep their order: what is known of the block says how
many are of a class, and the scores say which (posterior regularisation: Ganchev et al. 2010, JMLR 11, 2001; for shares
of groups: Quadrianto et al. 2009, JMLR 10, 2349).
"""

from __future__ import annotations

import torch

from geoseg.losses.coarse_labels import block_shares

# No pixel is surer than these odds, so that the shares of a block can be moved at all.
_SUREST = 8.0
# Steps of Newton's method, none longer than this; they end where shares are right to within _EXACT.
_STEPS, _LONGEST = 40, 2.0
_EXACT = 1e-5


def wanted_shares(found: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    """Return the shares (N, B, K) within a deviation of ``means`` (N, B, K) that are nearest to those ``found``."""
    nearest = found.clamp(min=means - deviations, max=means + deviations).clamp(1e-3, 1)
    return nearest / nearest.sum(-1, keepdim=True)


def agreeing(
    scores: torch.Tensor,
    blocks: torch.Tensor,
    block_classes: torch.Tensor,
    means: torch.Tensor,
    deviations: torch.Tensor,
) -> torch.Tensor:
    """Return log-probabilities (N, K, H, W), float64, whose mean shares in each block agree with its coarse class.

    A block whose shares are within a deviation of the class's already stays as it is; others are moved just so far.
    Pixels of no block stay as they are too.

    Args:
        scores: (N, K, H, W) logits.
        blocks: (N, H, W) integers, the number of each pixel's block in its image, -1 for none.
        block_classes: (N, B) integers, row of each block's coarse class in the tables, -1 for no such block.
        means: (Z, K), mean shares of the coarse classes.
        deviations: (Z, K), their standard deviations.
    """
    images, classes = scores.shape[:2]
    count = block_classes.shape[1]
    logs = scores.double().log_softmax(1)
    odds = (logs - logs.amax(1, keepdim=True)).clamp(min=-_SUREST)
    told = block_classes.clamp(min=0)
    shares = block_shares(odds, blocks, count)
    filled = (shares.pixels > 0).unsqueeze(-1)
    wanted = wanted_shares(shares.mean, means.to(logs)[told], deviations.to(logs)[told])
    # A last block of every image has the pixels of none, and never moves.
    own = torch.where(blocks >= 0, blocks, count).long().flatten(1)
    moves = torch.zeros(images, count + 1, classes, dtype=torch.float64, device=scores.device)
    for _ in range(_STEPS):
        moved = odds + _spread(moves, own, odds)
        short = torch.where(filled, wanted - _means_of(moved, blocks, count), 0)
        if float(short.abs().max()) < _EXACT:
            break
        step = _newton(moved.softmax(1), own, short, shares.pixels)
        longest = step.abs().amax(-1, keepdim=True)
        moves[:, :count] += step * (_LONGEST / longest.clamp(min=_LONGEST))
    settled = filled.new_zeros(images, count + 1, 1)
    settled[:, :count] = filled & ((wanted - shares.mean).abs().amax(-1, keepdim=True) > _EXACT)
    touched = _spread(settled.double(), own, odds[:, :1]) > 0
    return torch.where(touched, (odds + _spread(moves, own, odds)).log_softmax(1), logs)


def _means_of(scores: torch.Tensor, blocks: torch.Tensor, count: int) -> torch.Tensor:
    return block_shares(scores, blocks, count).mean


def _spread(values: torch.Tensor, own: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return (N, K, H, W): of each pixel the value (N, B + 1, K) of its block."""
    found = values.gather(1, own.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
    return found.transpose(1, 2).reshape(len(values), values.shape[-1], *like.shape[-2:])


def _newton(shares: torch.Tensor, own: torch.Tensor, short: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return the step (N, B, K) that would mend what is short, were shares linear in it."""
    images, count, classes = short.shape
    flat = shares.flatten(2).transpose(1, 2)  # (N, H W, K)
    products = (flat.unsqueeze(-1) * flat.unsqueeze(-2)).flatten(2)
    sums = torch.zeros(images, count + 1, classes * (classes + 1), dtype=shares.dtype, device=shares.device)
    both = torch.cat([flat, products], -1)
    sums.scatter_add_(1, own.unsqueeze(-1).expand(-1, -1, both.shape[-1]), both)
    among = sums[:, :count] / pixels.clamp(min=1).unsqueeze(-1)
    slope = torch.diag_embed(among[..., :classes]) - among[..., classes:].unflatten(-1, (classes, classes))
    # Moving all classes alike moves nothing: that direction is given a slope, so that there is one answer.
    slope = slope + 1.0 / classes + 1e-9 * torch.eye(classes, dtype=slope.dtype, device=slope.device)
    return torch.linalg.solve(slope, short)
