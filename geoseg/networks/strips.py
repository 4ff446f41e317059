"""A U-Net whose largest maps are computed in strips of rows, so that what lies between two maps is never held whole.

The first layers of an encoder and the last blocks of a decoder make maps many times as large as what goes into them and
what comes out.  Each strip is computed with so many rows more on either side that the rows kept are those that the
whole map has there.  Only layers that look no farther than their kernels can be between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import nn

# Rows of pixels in a strip: enough that those computed twice cost next to nothing.
_ROWS = 512
# What a value depends on lies within the kernel; batch norms use the statistics that they have learned.
_LOCAL = (nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Dropout, nn.Identity)
# Blocks of a decoder that are computed in strips.
_LAST = 3
# The layers up to a map of an encoder.
Stage = Sequence[nn.Module]
# How many pixels away the results of two parts of a decoder may depend on.
Reaches = tuple[int, int]


def unet_scores(
    network: nn.Module,
    encode: Callable[[torch.Tensor], list[torch.Tensor]],
    blocks: Sequence[nn.Module],
    head: nn.Module,
    pixels: torch.Tensor,
    made_of: tuple[type[nn.Module], ...],
) -> torch.Tensor | None:
    """Return the scores (N, K, H, W) of a U-Net for pixels (N, C, H, W), None where strips are of no use or not known.

    Args:
        network: the U-Net.
        encode: from the pixels to maps of strides 2, 4, 8 and so on.
        blocks: of the decoder, one for each map, see :func:`decoded`.
        head: from the finest map to scores.
        pixels: of a tile.
        made_of: see :func:`reach_of`.
    """
    if not worthwhile(network, pixels) or len(blocks) <= _LAST:
        return None
    third, second, first = blocks[-_LAST:]
    coarse = reach_of([third], (4, 4), made_of)
    middle, fine = reach_of([second], (2, 2), made_of), reach_of([first, head], (1, 1), made_of)
    if coarse is None or middle is None or fine is None:
        return None
    return decoded(blocks, head, encode(pixels), (coarse, middle + fine))


def worthwhile(network: nn.Module, pixels: torch.Tensor) -> bool:
    """Whether a tile is to be computed in strips: it is high enough, and nobody learns from it or records it."""
    return (
        pixels.shape[2] >= 2 * _ROWS
        and not network.training
        and not torch.is_grad_enabled()
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


def reach_of(
    layers: Iterable[nn.Module], strides: tuple[int, int], made_of: tuple[type[nn.Module], ...] = ()
) -> int | None:
    """Return how many pixels away what layers give may depend on, at most; None where that is not known.

    Args:
        layers: one behind the other.
        strides: of what goes in and of what comes out, in pixels.
        made_of: modules that do nothing but call those they hold, in their order or side by side, and add, beside
            ``nn.Sequential``.
    """
    stride, coarsest = strides
    reach = 0
    for layer in (part for each in layers for part in each.modules()):
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            size, dilation, step = (_one(value) for value in (layer.kernel_size, layer.dilation, layer.stride))
            reach += size // 2 * dilation * stride
            # What stands beside a layer that has halved the map already does not halve it once more.
            stride = min(coarsest, stride * step)
        elif isinstance(layer, nn.BatchNorm2d) and layer.running_mean is None:
            return None  # it takes the mean of what it is given
        elif not isinstance(layer, _LOCAL) and type(layer) not in (nn.Sequential, *made_of):
            return None
    return reach


def _one(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def in_strips(
    compute: Callable[..., Sequence[torch.Tensor]], maps: Sequence[torch.Tensor], height: int, stride: int, reach: int
) -> list[torch.Tensor]:
    """Return what ``compute`` gives for maps, having given it strips of them.

    Args:
        compute: from maps (N, C, H / s, W / s) to others, of any strides s; where it pads, it pads alike whatever the
            height is, as long as that is a multiple of the coarsest stride.
        maps: what it is given.
        height: H, a multiple of ``stride``.
        stride: of the coarsest map, given or computed.
        reach: how many pixels away a result may depend on.
    """
    rows, margin = height // stride, -(-reach // stride)
    step = -(-rows // max(1, height // _ROWS))
    # All strips are of one height, so that each finds the memory that the one before it has freed.
    length = min(rows, step + 2 * margin)
    scales = [each.shape[2] // rows for each in maps]
    whole: list[torch.Tensor] = []
    for top in range(0, rows, step):
        first, bottom = min(max(0, top - margin), rows - length), min(top + step, rows)
        last = first + length
        parts = compute(*(each[:, :, scale * first : scale * last] for each, scale in zip(maps, scales, strict=True)))
        finer = [part.shape[2] // length for part in parts]
        if not whole:
            whole = [_empty(part, scale * rows) for part, scale in zip(parts, finer, strict=True)]
        for target, part, scale in zip(whole, parts, finer, strict=True):
            target[:, :, scale * top : scale * bottom] = part[:, :, scale * (top - first) : scale * (bottom - first)]
        del parts, part
    return whole


def encoded(stages: Sequence[Stage], pixels: torch.Tensor, made_of: tuple[type[nn.Module], ...]) -> list[torch.Tensor]:
    """Return the maps of an encoder, finest first, at strides 2, 4, 8 and so on; the first two come in strips.

    Args:
        stages: what leads from the pixels to the first map, from there to the second one, and so on.
        pixels: (N, C, H, W).
        made_of: see :func:`reach_of`.
    """
    fine, coarse = stages[:2], stages[2:]
    reach = reach_of((layer for stage in fine for layer in stage), (1, 4), made_of)
    if reach is None:
        return passed(stages, pixels)
    maps = in_strips(partial(passed, fine), [pixels], pixels.shape[2], 4, reach)
    return [*maps, *passed(coarse, maps[-1])]


def passed(stages: Sequence[Stage], features: torch.Tensor) -> list[torch.Tensor]:
    """Return the map behind each of some stages."""
    maps = []
    for stage in stages:
        for layer in stage:
            features = layer(features)
        maps.append(features)
    return maps


def decoded(blocks: Sequence[nn.Module], head: nn.Module, maps: list[torch.Tensor], reaches: Reaches) -> torch.Tensor:
    """Return the scores (N, K, H, W) of a decoder that enlarges by nearest neighbours.

    Args:
        blocks: from a map, the height and width to enlarge it to, and the map beside it or None, to the next finer map.
        head: from the finest map to scores.
        maps: of the encoder, at strides 2, 4, 8 and so on, one for each block.  The list is emptied: each map is given
            up once it is joined.
        reaches: of the blocks that are computed in strips.
    """
    features = maps.pop()
    for block in blocks[:-_LAST]:
        features = block(features, *maps[-1].shape[2:], maps.pop())
    third, second, first = blocks[-_LAST:]

    def joined(part: torch.Tensor, beside: torch.Tensor) -> list[torch.Tensor]:
        return [third(part, *beside.shape[2:], beside)]

    def finished(part: torch.Tensor, beside: torch.Tensor) -> list[torch.Tensor]:
        height, width = beside.shape[2:]
        return [head(first(second(part, height, width, beside), 2 * height, 2 * width, None))]

    height = 2 * maps[0].shape[2]
    (features,) = in_strips(joined, [features, maps.pop()], height, 8, reaches[0])
    (scores,) = in_strips(finished, [features, maps.pop()], height, 4, reaches[1])
    return scores


def _empty(like: torch.Tensor, height: int) -> torch.Tensor:
    count, channels, _, width = like.shape
    layout = torch.channels_last if like.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    return torch.empty((count, channels, height, width), dtype=like.dtype, device=like.device, memory_format=layout)
