"""Recurrent saliency transformation: a coarse network says roughly where, a fine one looks there again.

The coarse probabilities become weights of the image by two small convolutions; the fine network sees only a crop of
the weighted image.  The weights are differentiable in the probabilities, so both networks learn together, and in use
the fine probabilities take the place of the coarse ones until the answer is stable.

Source: Q. Yu, L. Xie, Y. Wang, Y. Zhou, E. K. Fishman, A. L. Yuille, *Recurrent Saliency Transformation Network:
Incorporating Multi-Stage Visual Cues for Small Organ Segmentation*, CVPR 2018 (arXiv 1709.04518), and the code released
with it.  There a volume is cut into slices and the three channels are neighbouring slices of one target; here channels
are bands, targets are classes, and the coarse network may look at a smaller image.

A pair needs two passes over a scene, so it is not among the networks that :func:`geoseg.networks.create` knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from geoseg.errors import ConfigError, unknown_name
from geoseg.networks import registry
from geoseg.networks.any_size import Output

# First row, row behind the last, first column, column behind the last.
Box = tuple[int, int, int, int]
# Pixels added above, below, to the left and to the right.
Margins = tuple[int, int, int, int]
Mode = Literal["separate", "individual", "joint"]
MODES: tuple[Mode, ...] = ("separate", "individual", "joint")
# A probability from which on a pixel belongs to the target.
THRESHOLD = 0.5
# How far a weight depends on the probabilities round it: one pixel of the first convolution and two of the second.
SALIENCY_REACH = 3


class Saliency(nn.Module):
    """The saliency transformation g: probabilities of K targets to a weight for every band of every pixel.

    A 3 × 3 convolution, ReLU and a 5 × 5 convolution, without a function at the end, so weights may be negative.  It
    starts neutral (all weights 1).  The authors' PyTorch code starts its three channels at 1, 1.5 and 2, which nothing
    explains; their original starts at 1.

    Args:
        targets: K.
        bands: of the image.
    """

    def __init__(self, targets: int, bands: int) -> None:
        super().__init__()
        self.saliency1 = nn.Conv2d(targets, targets, 3, padding=1)
        self.saliency2 = nn.Conv2d(targets, bands, 5, padding=2)
        nn.init.zeros_(self.saliency2.weight)
        assert self.saliency2.bias is not None
        nn.init.ones_(self.saliency2.bias)

    def weights(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Return g, (N, B, H, W), of probabilities (N, K, H, W)."""
        weights: torch.Tensor = self.saliency2(F.relu(self.saliency1(probabilities)))
        return weights

    def forward(self, pixels: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """Return normalised pixels (N, B, H, W) times g of probabilities (N, K, H, W)."""
        return pixels * self.weights(probabilities)


@dataclass(frozen=True)
class Passes:
    """What a pair says in training.

    Attributes:
        coarse_logits: (N, K, h, w), on the coarse network's own grid.
        coarse: probabilities (N, K, H, W) of the coarse network.
        fine: probabilities (N, K, H, W) of the fine network; exactly 0 outside an item's box.
        boxes: of each item.
    """

    coarse_logits: torch.Tensor
    coarse: torch.Tensor
    fine: torch.Tensor
    boxes: tuple[Box, ...]


class SaliencyPair(Saliency):
    """Two networks and the saliency transformation between them; the names of its weights are the authors'.

    Args:
        coarse: from (N, B, h, w) to logits (N, K, h, w), each target by itself; a dict of outputs gives ``scores``.
        fine: likewise.
        targets: K.
        bands: B.
        factor: the coarse network sees the image so many times smaller.

    Raises:
        ConfigError: the factor is no whole number of 1 or more.
    """

    def __init__(self, coarse: nn.Module, fine: nn.Module, *, targets: int, bands: int, factor: int = 1) -> None:
        super().__init__(targets, bands)
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
            raise ConfigError(f"the factor of a saliency pair is {factor!r}: give a whole number of 1 or more.")
        self.coarse_model = coarse
        self.fine_model = fine
        self.targets = targets
        self.bands = bands
        self.factor = factor

    def overview(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return coarse logits (N, K, h, w) of an image (N, B, h, w) that is small already."""
        return _scores(self.coarse_model(pixels))

    def fine_pass(
        self, pixels: torch.Tensor, boxes: Sequence[Box], probabilities: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the fine network's probabilities (N, K, H, W), exactly 0 outside each item's box.

        All items are cropped to one box that holds theirs; each is 0 there outside its own.

        Args:
            pixels: (N, B, H, W), normalised.
            boxes: of each item.
            probabilities: (N, K, H, W), what g makes weights of; without any the image stays as it is.

        Raises:
            ConfigError: not one box for each item, or one that is empty or reaches beyond the image.
        """
        inside = _inside(boxes, pixels)
        weighted = pixels if probabilities is None else self(pixels, probabilities)
        if len(boxes) > 1:
            weighted = weighted.where(inside, 0)
        row, row_stop, col, col_stop = _hull(boxes)
        logits = _scores(self.fine_model(weighted[..., row:row_stop, col:col_stop]))
        height, width = pixels.shape[-2:]
        # The authors paste logits into a canvas of -9,999,999, whose sigmoid is 0 too.
        pasted = F.pad(logits.sigmoid(), (col, width - col_stop, row, height - row_stop))
        return pasted.where(inside, 0)

    def passes(self, pixels: torch.Tensor, target: torch.Tensor, mode: Mode, margins: Margins) -> Passes:
        """Return both networks' probabilities for training, the fine ones in a box round the target.

        In the order of training: ``separate`` (S), the fine network sees the plain image, cropped to the target;
        ``individual`` (I), it sees the weighted image; ``joint`` (J), the crop follows the coarse answer, and the
        target only where that is empty.  An item where both are empty is looked at whole.

        Args:
            pixels: (N, B, H, W), normalised.
            target: (N, K, H, W) bool or 0 and 1.
            mode: see above.
            margins: round the box, see :func:`drawn_margins`.

        Raises:
            ConfigError: unknown mode, or a target of another shape than the probabilities.
        """
        if mode not in MODES:
            raise ConfigError(unknown_name("mode of a saliency pair", mode, MODES))
        expected = (len(pixels), self.targets, *pixels.shape[-2:])
        if tuple(target.shape) != expected:
            raise ConfigError(f"the target of a saliency pair is {tuple(target.shape)}: give {expected}.")
        logits = self.overview(shrunk(pixels, self.factor))
        coarse = enlarged(logits.sigmoid(), self.factor, expected[-2:])
        masks = target > 0
        if mode == "joint":
            found = coarse.detach() >= THRESHOLD
            masks = found.where(found.flatten(1).any(1)[:, None, None, None], masks)
        boxes = tuple(crop_box(mask, margins) for mask in masks)
        fine = self.fine_pass(pixels, boxes, None if mode == "separate" else coarse)
        return Passes(logits, coarse, fine, boxes)


def shrunk(pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """Return means (N, B, ⌈H/f⌉, ⌈W/f⌉) of ``factor`` × ``factor`` pixels, of fewer at the far edges."""
    return F.avg_pool2d(pixels, factor, ceil_mode=True, count_include_pad=False) if factor > 1 else pixels


def enlarged(probabilities: torch.Tensor, factor: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Return what :func:`shrunk` made small at full size again, bilinearly: (N, K, *``shape``)."""
    if factor > 1:
        probabilities = F.interpolate(probabilities, scale_factor=factor, mode="bilinear", align_corners=False)
    return probabilities[..., : shape[0], : shape[1]]


def crop_box(mask: torch.Tensor, margins: Margins) -> Box:
    """Return the box of a mask (…, H, W), grown by margins and cut at the edge; the whole image for an empty mask.

    >>> mask = torch.zeros(1, 40, 56, dtype=torch.bool)
    >>> mask[0, 18:20, 10:15] = True
    >>> crop_box(mask, (5, 5, 5, 5))
    (13, 25, 5, 20)
    """
    height, width = mask.shape[-2:]
    flat = mask.reshape(-1, height, width).any(0)
    rows, cols = (flat.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
    if not rows:
        return (0, height, 0, width)
    above, below, left, right = margins
    return (
        max(rows[0] - above, 0),
        min(rows[-1] + below + 1, height),
        max(cols[0] - left, 0),
        min(cols[-1] + right + 1, width),
    )


def drawn_margins(margin: int, probability: float, generator: torch.Generator) -> Margins:
    """Return margins for one step of training: all ``margin``, or by chance four from 0 to 2 · ``margin``.

    Args:
        margin: in pixels, the authors' 20.
        probability: of the second case, the authors' 0.5.
        generator: where chance comes from.
    """
    if torch.rand((), generator=generator).item() >= probability:
        return (margin, margin, margin, margin)
    above, below, left, right = torch.randint(0, 2 * margin + 1, (4,), generator=generator).tolist()
    return (above, below, left, right)


def build_pair(
    *,
    in_channels: int,
    targets: int,
    coarse: str = "unet",
    fine: str = "unet",
    coarse_options: Mapping[str, Any] | None = None,
    fine_options: Mapping[str, Any] | None = None,
    factor: int = 4,
) -> SaliencyPair:
    """Return a pair of any two networks.

    Args:
        in_channels: B, number of bands.
        targets: K, each with a sigmoid of its own; most often 1.
        coarse: one of :func:`geoseg.networks.names`.
        fine: likewise.
        coarse_options: what else :func:`geoseg.networks.create` takes for the coarse network, its encoder too.
        fine_options: likewise for the fine one.
        factor: how many times smaller the coarse network's image is.

    Raises:
        ConfigError: unknown network or option, or a value that is refused.
    """
    networks = [
        registry.create(name, in_channels=in_channels, num_classes=targets, **dict(options or {}))
        for name, options in ((coarse, coarse_options), (fine, fine_options))
    ]
    return SaliencyPair(*networks, targets=targets, bands=in_channels, factor=factor)


def build_rstn(*, in_channels: int, num_classes: int, **options: Any) -> SaliencyPair:
    """Return a pair for :func:`geoseg.networks.create`: of the classes one is the background, the others are targets.

    Args:
        in_channels: number of bands.
        num_classes: of targets, and one more.
        options: see :func:`build_pair`; encoders are among the options of the two networks.

    Raises:
        ConfigError: no target, an unknown network or option, or a value that is refused.
    """
    if num_classes < 2:
        raise ConfigError(f"a saliency pair was asked for {num_classes} class: give the background and a target.")
    return build_pair(in_channels=in_channels, targets=num_classes - 1, **options)


def _scores(output: Output) -> torch.Tensor:
    """Return the scores of what a network gives in training or in use."""
    return output if isinstance(output, torch.Tensor) else output["scores"]


def _hull(boxes: Sequence[Box]) -> Box:
    rows, row_stops, cols, col_stops = zip(*boxes, strict=True)
    return (min(rows), max(row_stops), min(cols), max(col_stops))


def _inside(boxes: Sequence[Box], pixels: torch.Tensor) -> torch.Tensor:
    """Return where each item's box is: (N, 1, H, W) bool."""
    count, _, height, width = pixels.shape
    if len(boxes) != count:
        raise ConfigError(f"there are {len(boxes)} boxes for {count} images: give one for each.")
    inside = torch.zeros((count, 1, height, width), dtype=torch.bool, device=pixels.device)
    for item, (row, row_stop, col, col_stop) in enumerate(boxes):
        if not (0 <= row < row_stop <= height and 0 <= col < col_stop <= width):
            raise ConfigError(
                f"the box of rows {row} to {row_stop} and columns {col} to {col_stop} (behind the last) holds no pixel "
                f"or leaves the image of {height} × {width}: cut it at the edge."
            )
        inside[item, :, row:row_stop, col:col_stop] = True
    return inside
