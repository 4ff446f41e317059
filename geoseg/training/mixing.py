"""Mixup and mixmatch: training batches whose tiles and labels are blends of two.

Source: Eaton-Rosen, Bragman, Ourselin, Cardoso 2018, "Improving Data Augmentation for Medical Image Segmentation", MIDL
(the pairing by foreground); Zhang, Cisse, Dauphin, Lopez-Paz 2018, arXiv 1710.09412.  This mixmatch is not the
semi-supervised method of that name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from geoseg.errors import ConfigError, unknown_name

Pairing = Literal["random", "foreground"]
Mode = Literal["auto", "soft", "two_term"]
Outputs = torch.Tensor | Mapping[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Mixed:
    """A mixed batch.

    Attributes:
        pixels: (N, C, H, W), blends.
        first: (N, H, W) int64 labels of the first tiles, ``ignore_index`` wherever either tile has none.
        second: the same of the second tiles.
        share: (N,) of the first tiles, from 0 to 1.
        order: (N,) which tiles of the batch came first.
        partners: (N,) which tiles of the batch, or of the second batch, came second.
        ignore_index: label of pixels without a class.
    """

    pixels: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    share: torch.Tensor
    order: torch.Tensor
    partners: torch.Tensor
    ignore_index: int

    def blend(self, values: torch.Tensor, partner: torch.Tensor | None = None) -> torch.Tensor:
        """Return further rasters (N, ...) of the same tiles, such as overviews, mixed like the pixels."""
        return _blended(values[self.order], (values if partner is None else partner)[self.partners], self.share)

    def soft(self, num_classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return shares of the classes (N, ``num_classes``, H, W); all 0 where a pixel does not count."""
        valid = self.first != self.ignore_index
        share = _columns(self.share.to(dtype), self.first).expand(self.first.shape)
        found = torch.zeros((len(share), num_classes, *share.shape[1:]), dtype=dtype, device=share.device)
        for labels, part in ((self.first, share), (self.second, 1 - share)):
            found.scatter_add_(1, labels.where(valid, 0).unsqueeze(1), (part * valid).unsqueeze(1))
        return found

    def loss(self, loss: Callable[..., torch.Tensor], outputs: Outputs, *, mode: Mode = "auto") -> torch.Tensor:
        """Return the loss of what the network gave for the mixed pixels.

        ``"soft"`` compares with shares of classes, ``"two_term"`` blends the losses for both labels; for cross-entropy
        without class weights they are equal.  Shares that differ within the batch blend tile by tile, which averages
        over tiles.

        Args:
            loss: called as ``loss(outputs, target)``; its ``takes_soft`` says whether shares may be given.
            outputs: scores (N, K, H, W), or a dict of maps whose entry ``"scores"`` they are.
            mode: ``"auto"`` is soft where the loss takes it.

        Raises:
            ConfigError: unknown mode, or a loss that takes no shares in mode soft.
        """
        if mode not in get_args(Mode):
            raise ConfigError(unknown_name("mode of a mixed loss", str(mode), get_args(Mode)))
        scores = outputs if isinstance(outputs, torch.Tensor) else outputs["scores"]
        takes_soft = bool(getattr(loss, "takes_soft", False))
        if mode == "soft" and not takes_soft:
            raise ConfigError("this loss takes labels alone: leave the mode of mixing at auto or two_term.")
        if takes_soft and mode != "two_term":
            dtype = scores.dtype if scores.dtype == torch.float64 else torch.float32
            return loss(outputs, self.soft(scores.shape[1], dtype))
        if bool((self.share == self.share[0]).all()):
            return self._two_terms(loss, outputs, slice(None))
        each = [self._two_terms(loss, _part(outputs, slice(i, i + 1)), slice(i, i + 1)) for i in range(len(scores))]
        return torch.stack(each).mean()

    def _two_terms(self, loss: Callable[..., torch.Tensor], outputs: Outputs, part: slice) -> torch.Tensor:
        share = self.share[part][0]
        return share * loss(outputs, self.first[part]) + (1 - share) * loss(outputs, self.second[part])


class Mixing:
    """Blends a batch with itself or with a second one, after augmentation and normalisation.  Never for validation.

    Args:
        alpha: α; the share of the first tile is drawn from Beta(α, α).  0 leaves batches as they are.
        probability: part of the batches that are mixed.
        pairing: ``"random"`` (mixup), or ``"foreground"`` (mixmatch), where the tile with least foreground meets that
            with most.
        per_sample: draw a share for each tile, not for the batch.
        foreground_classes: classes that count as foreground; all above 0 where None.
        ignore_index: label of pixels without a class.

    Raises:
        ConfigError: a value outside its range.
    """

    def __init__(
        self,
        alpha: float = 0.4,
        *,
        probability: float = 1.0,
        pairing: Pairing = "random",
        per_sample: bool = False,
        foreground_classes: Sequence[int] | None = None,
        ignore_index: int = 255,
    ) -> None:
        if not 0 <= alpha < math.inf:
            raise ConfigError(f"alpha of mixing is {alpha}: give 0 (off) or a number above.")
        if not 0 <= probability <= 1:
            raise ConfigError(f"the probability of mixing is {probability}: give a number from 0 to 1.")
        if pairing not in get_args(Pairing):
            raise ConfigError(unknown_name("pairing", str(pairing), get_args(Pairing)))
        self.alpha = alpha
        self.probability = probability
        self.pairing = pairing
        self.per_sample = per_sample
        self.foreground_classes = None if foreground_classes is None else tuple(foreground_classes)
        self.ignore_index = ignore_index

    def __call__(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        rng: np.random.Generator,
        *,
        partner: Batch | None = None,
        valid: torch.Tensor | None = None,
    ) -> Mixed:
        """Mix a batch with shares and partners drawn by ``rng``; one made of (seed, step) makes a run repeatable.

        Args:
            pixels: (N, C, H, W) float.
            labels: (N, H, W) integers.
            rng: what chance is drawn from.
            partner: pixels and labels of a second batch of the same size; by default the batch itself, in random order.
            valid: (N, H, W) bool, where tiles have data, if labels do not say it by ``ignore_index`` already.

        Raises:
            ConfigError: the batches differ in size.
        """
        if partner is not None and (partner[0].shape != pixels.shape or partner[1].shape != labels.shape):
            raise ConfigError(
                f"a batch of {tuple(pixels.shape)} cannot be mixed with one of {tuple(partner[0].shape)}: "
                "give two of one size."
            )
        if valid is not None:
            labels = labels.where(valid, self.ignore_index)
        share = self.shares(len(pixels), rng)
        order, partners = self.pairs(labels, rng, None if partner is None else partner[1])
        if (share == 1).all():
            order = np.arange(len(pixels))
        return self.mix(pixels, labels, share, order, partners, partner=partner)

    def mix(
        self,
        pixels: torch.Tensor,
        labels: torch.Tensor,
        share: Any,
        order: Any,
        partners: Any,
        *,
        partner: Batch | None = None,
    ) -> Mixed:
        """Mix with given shares (N,), tiles ``order`` (N,) of the batch and ``partners`` (N,) of the second batch."""
        device = pixels.device
        share = torch.as_tensor(share, device=device)
        order, partners = (torch.as_tensor(each, device=device) for each in (order, partners))
        other_pixels, other_labels = (pixels, labels) if partner is None else partner
        first, second = labels[order].long(), other_labels[partners].long()
        # A tile that has no part in the blend does not say what counts in it either.
        alone = _columns(share, first)
        first = first.where(alone > 0, second)
        second = second.where(alone < 1, first)
        ignored = (first == self.ignore_index) | (second == self.ignore_index)
        first, second = (each.masked_fill(ignored, self.ignore_index) for each in (first, second))
        mixed = _blended(pixels[order], other_pixels[partners], share)
        return Mixed(mixed, first, second, share, order, partners, self.ignore_index)

    def shares(self, count: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
        """Draw the shares (``count``,) of the first tiles of one batch; 1 where the batch stays as it is."""
        if self.alpha == 0 or rng.random() >= self.probability:
            return np.ones(count)
        drawn = rng.beta(self.alpha, self.alpha, count if self.per_sample else None)
        return np.broadcast_to(drawn, count).copy()

    def pairs(
        self, labels: torch.Tensor, rng: np.random.Generator, partner_labels: torch.Tensor | None = None
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return which tiles of the batch (N,) meet which of the second batch, or of the same, (N,)."""
        every = np.arange(len(labels))
        if self.pairing == "random":
            return every, rng.permutation(len(labels)) if partner_labels is None else every
        other = labels if partner_labels is None else partner_labels
        ascending, descending = (np.argsort(self.foreground(each), kind="stable") for each in (labels, other))
        return ascending, descending[::-1].copy()

    def foreground(self, labels: torch.Tensor) -> np.ndarray[Any, Any]:
        """Return the number of foreground pixels of each tile: (N,)."""
        if self.foreground_classes is None:
            chosen = labels > 0
        else:
            chosen = torch.isin(labels, torch.tensor(self.foreground_classes, device=labels.device, dtype=labels.dtype))
        counts: np.ndarray[Any, Any] = (chosen & (labels != self.ignore_index)).sum((1, 2)).cpu().numpy()
        return counts


def _columns(share: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return shares (N,) in as many dimensions as ``like`` has."""
    return share.reshape(-1, *[1] * (like.ndim - 1))


def _blended(first: torch.Tensor, second: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    share = _columns(share, first).to(first.dtype)
    # What has no part must not matter, not even where it is NaN.
    blended = share * first + (1 - share) * second
    return blended.where(share < 1, first).where(share > 0, second)


def _part(outputs: Outputs, part: slice) -> Outputs:
    if isinstance(outputs, torch.Tensor):
        return outputs[part]
    return {name: values[part] for name, values in outputs.items()}
