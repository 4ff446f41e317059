"""How far a pixel's score depends on its neighbours, measured on the network itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from geoseg.errors import ConfigError
from geoseg.networks.scene_pooling import held

# Share of the summed |gradient| that must lie within the halo of a network that reaches too far to be held whole.
SHARE = 0.999
# Half the length of the strip on which a reach counts as bounded: deeper encoders than any in use stay within it.
_FAR = 4096
# A mark of this many offsets at once keeps the batch small.
_BATCH = 8


@dataclass(frozen=True)
class Reach:
    """How far scores depend on pixels.

    Attributes:
        radius: pixels, rounded up to a multiple of the stride: the halo to use.
        exact: whether no score depends on any pixel beyond ``radius``; otherwise ``SHARE`` of the influence is within.
        bounded: whether there is a distance at all beyond which pixels do not matter; False for networks that pool or
            attend over the whole tile.
        share: part of the influence within ``radius``: 1 where exact; below ``SHARE`` where ``maximum`` cut it short.
        limit: a halo that is certainly enough for no score to depend on a pixel beyond it, a multiple of the stride;
            None where there is no such distance.
    """

    radius: int
    exact: bool
    bounded: bool
    share: float
    limit: int | None


def measure_halo(network: nn.Module, in_channels: int, stride: int, *, maximum: int = 256, seed: int = 0) -> Reach:
    """Measure how far the scores of ``network`` depend on its input.

    First by structure: one pixel is set to NaN, which survives every sum, product, maximum and activation, so the
    scores that become NaN are all that could depend on it, whatever the weights.  Where that distance is at most
    ``maximum``, it is the answer and it is exact.  Otherwise by influence: the smallest radius whose square holds
    ``SHARE`` of the absolute gradient of a pixel's scores (random signs over classes, several positions of the stride
    lattice, random inputs), after the effective receptive field of Luo et al. 2016 (arXiv 1701.04128).

    The answer belongs to the weights as they are: training widens it (many encoders start with whole branches at zero),
    so measure again afterwards.  A network that pools over the scene is taken with means that are given to it.  It is
    left as it was found: mode, weights and statistics.

    Args:
        network: from (N, ``in_channels``, H, W) to (N, K, H, W); height and width are multiples of ``stride``.
        in_channels: number of bands.
        stride: the shift that the network follows exactly.
        maximum: largest radius in pixels to answer.
        seed: of the random inputs.

    Raises:
        ConfigError: ``in_channels``, ``stride`` or ``maximum`` is not positive.
    """
    for what, value in (("in_channels", in_channels), ("stride", stride), ("maximum", maximum)):
        if value < 1:
            raise ConfigError(f"{what} is {value}: it must be at least 1.")
    network = held(network)
    with evaluating(network):
        radius = _structural(network, in_channels, stride, maximum)
        if radius is not None:
            radius = _up(radius, stride)
            return Reach(radius, exact=True, bounded=True, share=1.0, limit=radius)
        limit = _limit(network, in_channels, stride)
        share = _influence(network, in_channels, stride, maximum, seed)
    radius = _up(min(int((share < SHARE).sum()), maximum), stride)
    return Reach(radius, exact=False, bounded=limit is not None, share=float(share[radius]), limit=limit)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode for a while; every module gets its own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        # Gradients are wanted whatever the caller is in, and plain floats: autocast would round influence away.
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def exact_halo(network: nn.Module, in_channels: int, stride: int) -> int | None:
    """Return a halo that certainly makes tiles exact, a multiple of ``stride``, or None where there is none.

    There is none (below 4096 pixels) where a network pools or attends over the whole tile.  The halo may be one stride
    larger than the least.  Arguments as in :func:`measure_halo`, at a small part of its cost.
    """
    network = held(network)
    with evaluating(network):
        return _limit(network, in_channels, stride)


def _structural(network: nn.Module, in_channels: int, stride: int, maximum: int) -> int | None:
    """Return the largest distance in pixels at which a score can depend on a pixel, or None beyond ``maximum``."""
    half = _up(maximum, stride) + stride
    # The first offset alone tells a network that reaches too far, which saves the others' price.
    batches = [[0], *(list(range(first, min(first + _BATCH, stride))) for first in range(1, stride, _BATCH))]
    worst = 0
    for offsets in batches:
        for axis in (2, 3):
            with _plain_kernels():
                reached = _reached(network, in_channels, stride, axis, half, offsets)
            for offset, places in zip(offsets, reached, strict=True):
                found = places.nonzero().flatten()
                if len(found):
                    worst = max(worst, half + offset - int(found[0]), int(found[-1]) - half - offset)
            if worst > maximum:
                return None
    return worst


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Do without oneDNN for a while: its Winograd kernels mix neighbouring outputs and would smear a NaN."""
    # Not `mkldnn.flags`: it touches TF32 as well, which warns where there is no Intel GPU.
    switch: Any = torch.backends.mkldnn
    before = switch.enabled
    switch.enabled = False
    try:
        yield
    finally:
        switch.enabled = before


def _limit(network: nn.Module, in_channels: int, stride: int) -> int | None:
    """Return how far a pixel in the middle of a very long strip can matter at most, or None if everywhere.

    Only the first pixel of a cell of the lattice is tried.  The others reach no further than the first of this cell
    and of the next do, so that one stride more holds for them all.
    """
    half = _up(_FAR, stride)
    worst = 0
    for axis in (2, 3):
        found = _reached(network, in_channels, stride, axis, half, [0])[0].nonzero().flatten()
        if len(found) == 2 * half + stride:
            return None
        if len(found):
            worst = max(worst, half - int(found[0]) + stride - 1, int(found[-1]) - half + stride - 1)
    return _up(worst, stride)


def _reached(
    network: nn.Module, in_channels: int, stride: int, axis: int, half: int, offsets: list[int]
) -> torch.Tensor:
    """Return which places along ``axis`` a NaN at ``half + offset`` reaches: (offsets, 2 * half + stride) bool.

    The strip is one stride wide and the NaN spans its width: only the reach along ``axis`` is asked for.
    """
    shape = [len(offsets), in_channels, stride, stride]
    shape[axis] = 2 * half + stride
    pixels = torch.zeros(shape, device=_device(network))
    for sample, offset in zip(pixels, offsets, strict=True):
        sample.select(axis - 1, half + offset).fill_(math.nan)
    with torch.no_grad():
        scores = network(pixels)
    return torch.isnan(scores).any(dim=1).any(dim=4 - axis)


def _influence(network: nn.Module, in_channels: int, stride: int, maximum: int, seed: int) -> torch.Tensor:
    """Return which share of the absolute gradient lies within each radius from 0 up: (radii,) float64."""
    generator = torch.Generator().manual_seed(seed)
    half = _up(maximum, stride) + stride
    side = 2 * half + stride
    weight = torch.zeros(side, dtype=torch.float64)
    for row, col in _positions(stride, generator):
        pixels = torch.randn(1, in_channels, side, side, generator=generator).to(_device(network)).requires_grad_()
        with torch.enable_grad():
            scores = network(pixels)[0, :, half + row, half + col]
            # Random signs, so that classes do not cancel each other the same way each time.
            signs = torch.randint(0, 2, scores.shape, generator=generator).to(scores) * 2 - 1
            (gradient,) = torch.autograd.grad((scores * signs).sum(), pixels)
        size = gradient.abs().sum(dim=(0, 1)).double().cpu()
        rows = (torch.arange(side) - half - row).abs()
        cols = (torch.arange(side) - half - col).abs()
        distance = torch.maximum(rows[:, None], cols[None, :])
        total = size.sum()
        if total > 0:
            weight += torch.bincount(distance.flatten(), (size / total).flatten(), minlength=side)
    # No gradient at all (every unit at rest) tells nothing, so no radius is called enough.
    return weight.cumsum(0) / weight.sum() if weight.sum() > 0 else weight


def _positions(stride: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """Return places within one cell of the stride lattice: two opposite corners and one at random."""
    row, col = torch.randint(0, stride, (2,), generator=generator).tolist()
    return [(0, 0), (stride - 1, stride - 1), (row, col)]


def _device(network: nn.Module) -> torch.device:
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
