"""Radiometric augmentation: whole batches of normalised patches on their device, each patch with amounts of its own.

Written out here because kornia's colour operations expect three bands from 0 to 1, and neither they nor its filters
leave out pixels without data: as many lines would go into wrapping them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from geoseg.training.variation_config import AugmentConfig

# Pixels on either side that sharpening compares a pixel with.
_SURROUNDINGS = 2


def vary(pixels: torch.Tensor, valid: torch.Tensor, augment: AugmentConfig, seed: int) -> torch.Tensor:
    """Return the patches with other light, colours, noise and sharpness.

    Equal seeds vary equal batches alike; what a patch gets depends on its place in the batch and on the batch's size.

    Args:
        pixels: (N, C, H, W) float, bands of mean 0 and deviation 1 over the scenes, 0 where invalid.
        valid: (N, H, W) bool.
        augment: the largest amounts.
        seed: of what is drawn.
    """
    random = torch.Generator().manual_seed(seed)
    mask = valid.unsqueeze(1)
    steps = (
        (augment.gamma, _gamma),
        (augment.contrast, _contrast),
        (augment.brightness, _brightness),
        (augment.mixing, _mixing),
        (augment.blur, _blur),
        (augment.noise, _noise),
        (augment.sharpen, _sharpen),
    )
    for most, step in steps:
        # Drawn whether it is used or not, so that an amount does not change what the others draw.
        chosen = torch.rand(len(pixels), generator=random) < augment.share
        own = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=random)))
        if most and chosen.any():
            varied = step(pixels, mask, most, own)
            pixels = torch.where(_each(chosen, pixels), varied, pixels)
    return pixels.masked_fill(~mask, 0.0)


def _each(values: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Return one value a patch, (N, 1, 1, 1), on the device of the pixels."""
    return values.to(pixels.device).view(-1, 1, 1, 1)


def _amount(pixels: torch.Tensor, most: float, random: torch.Generator, bands: int = 1) -> torch.Tensor:
    """Return amounts between ``-most`` and ``most`` for each patch and, of so many, band: (N, ``bands``, 1, 1)."""
    drawn = (torch.rand(len(pixels), bands, generator=random) * 2 - 1) * most
    return drawn.to(pixels.device, pixels.dtype).view(len(pixels), bands, 1, 1)


def _gamma(pixels: torch.Tensor, mask: torch.Tensor, most: float, random: torch.Generator) -> torch.Tensor:
    """Bend the values between the least and the most of a patch, which stay."""
    infinite = torch.finfo(pixels.dtype).max
    low = pixels.masked_fill(~mask, infinite).amin((1, 2, 3), keepdim=True)
    span = pixels.masked_fill(~mask, -infinite).amax((1, 2, 3), keepdim=True) - low
    usable = (span > 0) & torch.isfinite(span)
    exponent = (_amount(pixels, math.log1p(most), random)).exp()
    share = ((pixels - low) / torch.where(usable, span, 1.0)).clamp(0, 1)
    return torch.where(usable, low + span * share**exponent, pixels)


def _contrast(pixels: torch.Tensor, mask: torch.Tensor, most: float, random: torch.Generator) -> torch.Tensor:
    """Spread or press the values about the mean of each band."""
    mean = (pixels * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp(min=1)
    return mean + (pixels - mean) * (1 + _amount(pixels, most, random))


def _brightness(pixels: torch.Tensor, mask: torch.Tensor, most: float, random: torch.Generator) -> torch.Tensor:
    """Add the same to every band, and a third as much to each alone: light, and a cast of colour."""
    return pixels + _amount(pixels, most, random) + _amount(pixels, most / 3, random, pixels.shape[1])


def _mixing(pixels: torch.Tensor, mask: torch.Tensor, most: float, random: torch.Generator) -> torch.Tensor:
    """Take a share of each band from all bands, in proportions of its own; the shares sum to 1."""
    count, bands = pixels.shape[:2]
    share = torch.rand(count, 1, 1, generator=random) * most
    others = torch.rand(count, bands, bands, generator=random) + 1e-6
    others = others / others.sum(2, keepdim=True)
    matrix = (1 - share) * torch.eye(bands) + share * others
    return torch.einsum("nij,njhw->nihw", matrix.to(pixels.device, pixels.dtype), pixels)


def _noise(pixels: torch.Tensor, mask: torch.Tensor, most: float, random: torch.Generator) -> torch.Tensor:
    """Add independent noise to every value."""
    if pixels.device.type != "cpu":
        seed = int(torch.randint(2**62, (1,), generator=random))
        random_there = torch.Generator(pixels.device).manual_seed(seed)
        noise = torch.randn(pixels.shape, generator=random_there, device=pixels.device, dtype=pixels.dtype)
    else:
        noise = torch.randn(pixels.shape, generator=random, dtype=pixels.dtype)
    return pixels + noise * _amount(pixels, most, random).abs()


def _blur(pixels: torch.Tensor, mask: torch.Tensor, most: float, random: torch.Generator) -> torch.Tensor:
    """Blur with a Gaussian; invalid pixels take no part."""
    radius = min(math.ceil(2 * most), *(side - 1 for side in pixels.shape[-2:]))
    if radius < 1:
        return pixels
    deviation = _amount(pixels, most, random).abs().clamp(min=min(0.3, most))
    return _blurred(pixels, mask, deviation.view(len(pixels), 1), radius)


def _sharpen(pixels: torch.Tensor, mask: torch.Tensor, most: float, random: torch.Generator) -> torch.Tensor:
    """Add to every value so many times what sets it apart from its surroundings of a pixel's deviation."""
    if min(pixels.shape[-2:]) <= _SURROUNDINGS:
        return pixels
    deviation = pixels.new_ones(len(pixels), 1)
    return pixels + (pixels - _blurred(pixels, mask, deviation, _SURROUNDINGS)) * _amount(pixels, most, random).abs()


def _blurred(pixels: torch.Tensor, mask: torch.Tensor, deviation: torch.Tensor, radius: int) -> torch.Tensor:
    """Return the patches under Gaussians of (N, 1) deviations, cut off at a radius, from valid pixels alone."""
    count, bands = pixels.shape[:2]
    offsets = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = (-0.5 * (offsets / deviation) ** 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(bands, 0)

    def smooth(values: torch.Tensor) -> torch.Tensor:
        values = values.reshape(1, -1, *values.shape[-2:])
        values = F.conv2d(_padded(values, (0, 0, radius, radius)), kernel[:, None, :, None], groups=count * bands)
        values = F.conv2d(_padded(values, (radius, radius, 0, 0)), kernel[:, None, None, :], groups=count * bands)
        return values.view(count, bands, *values.shape[-2:])

    weight = smooth(mask.expand_as(pixels).to(pixels.dtype))
    return smooth(pixels * mask) / weight.clamp(min=1e-3)


def _padded(values: torch.Tensor, sides: tuple[int, int, int, int]) -> torch.Tensor:
    return F.pad(values, sides, mode="reflect")
