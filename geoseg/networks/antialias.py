"""Images made smaller as Pillow makes them, on any device, for any number of bands and any pixel type.

Networks that see an overview learned from Pillow's.  Bytes come out as its very bytes: the sums are integers, so
neither device nor number of threads can change them.  (Pillow 13 resizes some images along columns first, which moves
single bytes by a level; here, as in older ones, rows come first.)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

# Pillow's weights of bytes are integers with so many binary places.
_PLACES = 22


def antialiased(pixels: torch.Tensor, size_yx: tuple[int, int]) -> torch.Tensor:
    """Return an image bilinearly resized with antialiasing: (C, h, w), uint8 for uint8, else float32.

    A pixel is a mean over those of the image within its own width on either side, weighted less the further away.
    Where it makes an image larger, that is bilinear interpolation.

    Args:
        pixels: (C, H, W), uint8 or floating point.
        size_yx: h and w.
    """
    # Not PyTorch's own: that of 2.14 is wrong where there is a single column.
    if pixels.dtype != torch.uint8:
        pixels = pixels.float()
    for axis in (2, 1):
        if pixels.shape[axis] != size_yx[axis - 1]:
            pixels = _resampled(pixels, axis, size_yx[axis - 1])
    return pixels


def _resampled(pixels: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Return bytes or float32 (C, H, W) with ``size`` pixels along an axis."""
    places, shares = (torch.from_numpy(each).to(pixels.device) for each in _taps(int(pixels.shape[axis]), size))
    shape = [1, 1, 1]
    shape[axis] = -1
    if pixels.dtype != torch.uint8:
        return sum(  # type: ignore[return-value]
            pixels.index_select(axis, place) * share.float().view(shape)
            for place, share in zip(places.unbind(1), shares.unbind(1), strict=True)
        )
    weights = (shares * 2**_PLACES + 0.5).floor().to(torch.int32)
    total = torch.zeros((), dtype=torch.int32, device=pixels.device)
    # One tap of all pixels at a time: the sums are as small as the result.
    for place, weight in zip(places.unbind(1), weights.unbind(1), strict=True):
        total = total + pixels.index_select(axis, place).to(torch.int32).mul_(weight.view(shape))
    return total.add_(1 << (_PLACES - 1)).bitwise_right_shift_(_PLACES).clamp_(0, 255).to(torch.uint8)


def _taps(length: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return which of ``length`` pixels make each of ``size``, and their weights, whose sum is 1: (size, taps)."""
    scale = length / size
    reach = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    first = np.maximum(0, (centres - reach + 0.5).astype(np.int64))
    stop = np.minimum(length, (centres + reach + 0.5).astype(np.int64))
    places = first[:, None] + np.arange(int((stop - first).max()))
    weights = np.maximum(0.0, 1 - np.abs((places - centres[:, None] + 0.5) / reach))
    weights[places >= stop[:, None]] = 0
    weights /= weights.sum(1, keepdims=True)
    return np.minimum(places, length - 1), weights
