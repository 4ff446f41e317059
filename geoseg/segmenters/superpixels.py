"""Superpixels of sample tiles, and the vote that makes labels follow them.

Source: A. Kanezaki, *Unsupervised Image Segmentation by Backpropagation*, ICASSP 2018, section 2; superpixels are
those of R. Achanta et al., *SLIC Superpixels Compared to State-of-the-art Superpixel Methods*, IEEE TPAMI 34(11), 2012.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

# A colour's distances in CIELAB are about this many times those of bands from 0 to 1.
_LAB_SCALE = 100.0


def slic(pixels: NDArray[np.float32], valid: NDArray[np.bool_], area: int, compactness: float) -> NDArray[np.int64]:
    """Return the superpixels of a tile: (H, W) int64 from 0, -1 where not valid.

    Three bands are taken for red, green and blue and compared in CIELAB; any other number is compared as it is, scaled
    so that ``compactness`` means about the same.

    Args:
        pixels: (C, H, W), 0 to 1.
        valid: (H, W).
        area: pixels a superpixel has about.
        compactness: weight of distance in pixels against distance in colour.
    """
    from skimage.color import rgb2lab
    from skimage.segmentation import slic as simple_linear_iterative_clustering

    if not valid.any():
        return np.full(valid.shape, -1, np.int64)
    bands = len(pixels)
    image = np.moveaxis(pixels, 0, -1).astype(np.float64)
    image = rgb2lab(image) if bands == 3 else image * (_LAB_SCALE / math.sqrt(bands / 3))
    # scikit-image stretches every image from 0 to 1, which would give distances another meaning in every tile.
    span = float(np.ptp(image[valid])) or 1.0
    found = simple_linear_iterative_clustering(
        image,
        n_segments=max(1, round(int(valid.sum()) / area)),
        compactness=compactness / span,
        convert2lab=False,
        enforce_connectivity=True,
        start_label=0,
        mask=None if valid.all() else valid,
        channel_axis=-1,
    )
    return np.where(valid, found, -1).astype(np.int64)


def superpixels_of(pixels: torch.Tensor, valid: torch.Tensor, area: int, compactness: float) -> torch.Tensor:
    """Return the superpixels of tiles (N, C, H, W): (N, H, W) int64, each tile's own, -1 where not valid."""
    found, first = [], 0
    for image, mask in zip(pixels.numpy(), valid.numpy(), strict=True):
        own = slic(image, mask, area, compactness)
        found.append(np.where(own < 0, -1, own + first))
        first += int(own.max()) + 1
    return torch.from_numpy(np.stack(found))


def vote(labels: torch.Tensor, superpixels: torch.Tensor, channels: int) -> torch.Tensor:
    """Return each pixel's most frequent label in its superpixel; of equally frequent ones the smallest.

    Args:
        labels: integers from 0 to ``channels`` - 1, of any shape.
        superpixels: int64 of that shape; any numbers, not necessarily all; below 0 a pixel keeps its label.
        channels: q.
    """
    counted = superpixels >= 0
    _, compact = torch.unique(superpixels[counted], return_inverse=True)
    if compact.numel() == 0:
        return labels.clone()
    number = int(compact.max()) + 1
    votes = torch.bincount(compact * channels + labels[counted], minlength=number * channels)
    # Of equal votes the first is wanted, which argmax on a GPU does not promise: smaller labels count a trifle more.
    rank = votes.view(number, channels) * channels + torch.arange(channels - 1, -1, -1, device=labels.device)
    refined = labels.clone()
    refined[counted] = rank.argmax(dim=1)[compact]
    return refined
