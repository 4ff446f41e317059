"""Label super-resolution: scores of pixels against what a coarse class is made of.

Source: Malkin et al. 2019, *Label Super-Resolution Networks*, ICLR (OpenReview rkxwShA9Ym), and the code released with
it (calebrob6/land-cover), whose two forms are here beside the overlap of Gaussians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from geoseg.errors import ConfigError, unknown_name

Form = Literal["gaussian", "interval", "interval_mean_pq"]
Grouping = Literal["block", "class"]

# Of the released code: what keeps its logarithm from running off where all pixels are sure.
_SURE = 0.03


@dataclass(frozen=True)
class BlockShares:
    """What scores say of blocks; of an empty block all is 0.

    Attributes:
        pixels: (N, B), how many pixels of each block count.
        mean: (N, B, K), the mean share of each class.
        variance: (N, B, K), of that share, were every pixel's class drawn by its probabilities.
    """

    pixels: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor


class CoarseLabelLoss(nn.Module):
    """How far the shares of classes in blocks are from what is known of each block's coarse class.

    Per image Σ_b ω n_b D_b / Σ_b n_b over its blocks, then the mean over images that have a block.  The value has no
    lower bound at 0.

    Args:
        means: (Z, K), mean share of each class in blocks of each coarse class.
        deviations: (Z, K), their standard deviations; half-widths for the interval forms.
        weights: (Z,), ω; all 1 by default.
        form: ``"gaussian"``, the overlap of two normal distributions; ``"interval"``, as in the released Keras code;
            ``"interval_mean_pq"``, the older one, which makes pixels sure of themselves.
        grouping: ``"block"``, every block by itself; ``"class"``, all pixels of an image with one coarse class
            together, as the released code does.
        least_deviation: what smaller deviations are raised to.
        eps: added to every variance that is divided by.
        max_block_grad: largest norm over classes of ∂D_b/∂(mean shares); blocks beyond pull no stronger.  0 for any.
        outliers: blocks further than so many standard deviations from their class, in any class, do not count, once
            a fifth of the training is over.  0 for none.

    Raises:
        ConfigError: an unknown form or grouping, tables of other shapes, or a number that makes no sense.
    """

    means: torch.Tensor
    deviations: torch.Tensor
    weights: torch.Tensor

    def __init__(
        self,
        means: torch.Tensor,
        deviations: torch.Tensor,
        weights: torch.Tensor | None = None,
        *,
        form: Form = "gaussian",
        grouping: Grouping = "block",
        least_deviation: float = 0.01,
        eps: float = 1e-6,
        max_block_grad: float = 0.0,
        outliers: float = 0.0,
    ) -> None:
        super().__init__()
        for what, value, known in (("form", form, get_args(Form)), ("grouping", grouping, get_args(Grouping))):
            if value not in known:
                raise ConfigError(unknown_name(f"{what} of a coarse-label loss", str(value), known))
        numbers = {"least_deviation": least_deviation, "eps": eps}
        numbers |= {"max_block_grad": max_block_grad, "outliers": outliers}
        for what, number in numbers.items():
            if not 0 <= number < math.inf:
                raise ConfigError(f"{what} of a coarse-label loss is {number}: give a number of 0 or more.")
        weights = torch.ones(len(means)) if weights is None else weights
        if means.ndim != 2 or means.shape != deviations.shape or weights.shape != means.shape[:1]:
            raise ConfigError(
                f"the tables of a coarse-label loss are {tuple(means.shape)}, {tuple(deviations.shape)} and "
                f"{tuple(weights.shape)}: give means and deviations (Z, K) and weights (Z,)."
            )
        self.register_buffer("means", means.double(), persistent=False)
        self.register_buffer("deviations", deviations.double().clamp(min=least_deviation), persistent=False)
        self.register_buffer("weights", weights.double(), persistent=False)
        self.form, self.grouping, self.eps = form, grouping, eps
        self.max_block_grad, self.outliers = max_block_grad, outliers
        self.progress = 0.0

    def forward(self, scores: torch.Tensor, blocks: torch.Tensor, block_classes: torch.Tensor) -> torch.Tensor:
        """Return the loss, a scalar, in float32 (in float64 for such scores); 0, without gradient, without a block.

        Args:
            scores: (N, K, H, W) logits.
            blocks: (N, H, W) integers, the number of each pixel's block in its image, -1 for none.
            block_classes: (N, B) integers, row of each block's coarse class in the tables, -1 for no such block.

        Raises:
            ConfigError: shapes that do not fit each other or the tables.
        """
        with torch.autocast(scores.device.type, enabled=False):
            blocks, block_classes = self.grouped(scores, blocks, block_classes)
            shares = block_shares(scores, blocks, block_classes.shape[1])
            return self._reduced(shares, block_classes).to(_precise(scores).dtype)

    def grouped(
        self, scores: torch.Tensor, blocks: torch.Tensor, block_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return checked groups of pixels and the coarse class of each group, in the form of blocks."""
        classes, found = self.means.shape[1], tuple(blocks.shape)
        fits = scores.ndim == 4 and found == (len(scores), *scores.shape[-2:]) and scores.shape[1] == classes
        if not fits or block_classes.ndim != 2 or len(block_classes) != len(scores):
            raise ConfigError(
                f"scores are {tuple(scores.shape)}, blocks {found} and their classes {tuple(block_classes.shape)}: "
                f"give (N, {classes}, H, W), (N, H, W) and (N, B)."
            )
        # A last column stands for no block, which -1 picks.
        told = torch.cat([block_classes.long(), block_classes.new_full((len(blocks), 1), -1).long()], 1)
        of_pixels = told.gather(1, blocks.flatten(1).long() % told.shape[1]).view(blocks.shape)
        if self.grouping == "class":
            every = torch.arange(len(self.means), device=blocks.device).expand(len(blocks), -1)
            return of_pixels, every
        return torch.where(of_pixels >= 0, blocks.long(), -1), block_classes.long()

    def divergence(self, shares: BlockShares, block_classes: torch.Tensor) -> torch.Tensor:
        """Return D, (N, B), for shares and the coarse classes (N, B) of blocks; of empty blocks it says nothing."""
        mean, radius = (table[block_classes.clamp(min=0)] for table in (self.means, self.deviations))
        mean, radius = mean.to(shares.mean.dtype), radius.to(shares.mean.dtype)
        apart, spread = shares.mean - mean, shares.variance + radius**2 + self.eps
        if self.form == "gaussian":
            logs = spread.log()
            return (apart**2 * (-logs).exp() / 2 + 0.5 * (math.log(2 * math.pi) + logs)).sum(-1)
        beyond = (apart.abs() - radius).clamp(min=0)
        scale = shares.pixels.unsqueeze(-1) if self.form == "interval_mean_pq" else 1
        return (beyond**2 / spread + (scale * shares.variance + _SURE).log()).sum(-1)

    def residuals(self, shares: BlockShares, block_classes: torch.Tensor) -> torch.Tensor:
        """Return (mean − η) / √s, (N, B, K): how many standard deviations blocks are off their coarse class."""
        mean, radius = (table[block_classes.clamp(min=0)] for table in (self.means, self.deviations))
        return (shares.mean - mean) / (shares.variance + radius**2 + self.eps).sqrt()

    def _reduced(self, shares: BlockShares, block_classes: torch.Tensor) -> torch.Tensor:
        pixels = shares.pixels
        divergence = self._bounded(self.divergence(shares, block_classes), shares, block_classes)
        if self.outliers and self.progress >= 0.2:
            off = self.residuals(shares, block_classes).detach().abs().amax(-1)
            pixels = pixels.where(off <= self.outliers, 0)
        weights = self.weights[block_classes.clamp(min=0)].to(pixels.dtype)
        total = pixels.sum(1)
        of_images = (weights * pixels * divergence).sum(1) / total.clamp(min=1)
        return of_images.sum() / (total > 0).sum().clamp(min=1)

    def _bounded(self, divergence: torch.Tensor, shares: BlockShares, block_classes: torch.Tensor) -> torch.Tensor:
        """Return the same values with gradients that are scaled down where they are too long."""
        if not self.max_block_grad:
            return divergence
        with torch.enable_grad():
            mean = shares.mean.detach().requires_grad_()
            alone = self.divergence(BlockShares(shares.pixels, mean, shares.variance.detach()), block_classes)
            (slope,) = torch.autograd.grad(alone.sum(), mean)
        part = (self.max_block_grad / slope.norm(dim=-1).clamp(min=1e-12)).clamp(max=1)
        return part * divergence + (1 - part) * divergence.detach()


def block_shares(scores: torch.Tensor, blocks: torch.Tensor, count: int) -> BlockShares:
    """Return what ``scores`` (N, K, H, W) say of ``count`` blocks of each image, (N, H, W) with -1 for none."""
    images, classes = scores.shape[:2]
    inside = blocks >= 0
    # A last block of every image takes the pixels of none, so that no pixel need be picked out.
    own = torch.where(inside, blocks, count) + (count + 1) * torch.arange(images, device=blocks.device).view(-1, 1, 1)
    precise = _precise(scores).where(inside.unsqueeze(1), 0)
    logs = precise.log_softmax(1)
    shares, others = logs.exp(), -torch.expm1(logs)
    # On a CPU sums in double precision cost next to nothing.
    kind = torch.float64 if scores.device.type == "cpu" else precise.dtype
    both = torch.cat([shares, shares * others], 1).permute(0, 2, 3, 1).reshape(-1, 2 * classes).to(kind)
    sums = torch.zeros(images * (count + 1), 2 * classes, dtype=kind, device=scores.device)
    sums = sums.index_add(0, own.flatten(), both).view(images, count + 1, 2 * classes)[:, :count]
    pixels = torch.bincount(own.flatten(), minlength=images * (count + 1)).view(images, count + 1)[:, :count].to(kind)
    among = pixels.clamp(min=1).unsqueeze(-1)
    return BlockShares(pixels, sums[..., :classes] / among, sums[..., classes:] / among**2)


def _precise(scores: torch.Tensor) -> torch.Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()
