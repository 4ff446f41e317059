"""Tiles against one pass: how much a network's labels and scores change where it sees a tile instead of everything.

The receptive field says how far a score *can* depend on a pixel; how much that matters for the map is measured here,
on a picture and for several halos, and a halo is chosen for a stated share of labels that may differ.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from geoseg.errors import ConfigError
from geoseg.networks.pictures import scene_like
from geoseg.networks.receptive_field import evaluating, measure_halo
from geoseg.networks.scene_pooling import context_of, means_of, pools_over_scene

# Share of labels that may differ from those of one pass, unless told otherwise.
BOUND = 1e-4
# Relative error of scores up to which tiles are called exact: a few roundings of float32.
EXACT = 1e-5
# Of the largest score: more than this at a halo that leaves nothing out is no rounding but positions that depend on the
# size of the tile.
_ROUNDING = 64 * torch.finfo(torch.float32).eps
# Scores that vary less than this, of the largest, vary by rounding.
_ROUNDED_AWAY = 1e-6
# With a rarer second label than this, equal labels say little about the network.
_VARIED = 0.05
# Side in pixels of what is compared, and what one pass sees beyond the largest halo.
_CORE = 256
_MARGIN = 64
# Halos are tried in steps of at least so many pixels.
_STEP = 16
# Weights of a whole branch at most this large were put there to start training with the branch shut.
_SHUT = 1e-4

Decision = Literal["labels", "scores", "nothing"]


@dataclass(frozen=True)
class Difference:
    """What a halo of ``halo`` pixels costs.

    Attributes:
        halo: pixels.
        disagreement: share of the labels that differ from those of one pass.
        score_error: root mean square of the scores' differences, over the standard deviation of the scores of a class.
        worst: the largest difference of a score, on the same scale.
    """

    halo: int
    disagreement: float
    score_error: float
    worst: float

    def expected(self, decision: Decision) -> float:
        """Return the share of labels that ``decision`` takes the halo to cost.

        By scores it is the share that such an error turns over between two classes whose scores differ by a centred
        normal variable: ``arctan(score_error) / pi``.
        """
        if decision == "labels":
            return self.disagreement
        return math.atan(self.score_error) / math.pi if decision == "scores" else math.inf


@dataclass(frozen=True)
class Comparison:
    """Differences by halo, ascending, and what they can be judged by.

    ``decision`` is ``labels`` where the picture gives at least two labels their share, ``scores`` where nearly all of
    it is one label, which untrained networks often give, and ``nothing`` where the scores are the same everywhere.
    """

    differences: tuple[Difference, ...]
    decision: Decision

    def smallest(self, bound: float) -> Difference | None:
        """Return the smallest halo that, like all larger ones, keeps ``bound``; None where the largest does not."""
        kept = None
        for difference in reversed(self.differences):
            if difference.expected(self.decision) > bound:
                break
            kept = difference
        return kept


@dataclass(frozen=True)
class Measured:
    """The halo chosen for a network, and why.

    Attributes:
        halo: pixels, a multiple of the stride.
        limit: halo with which tiles are certainly exact; None where the network pools or attends over the whole tile.
        decision: ``structure`` where the halo is the limit, else see :class:`Comparison`.
        difference: from one pass, at the halo.
        exact: whether scores at the halo equal those of one pass to rounding: an error up to :data:`EXACT`, or
            what float32 allows for where the structure says so.
        picture: side in pixels of the picture that was seen at once.
    """

    halo: int
    limit: int | None
    decision: Literal["structure", "labels", "scores", "nothing"]
    difference: Difference
    exact: bool
    picture: int


def choose_halo(
    network: nn.Module,
    in_channels: int,
    stride: int,
    *,
    bound: float = BOUND,
    maximum: int = 256,
    tile: int = 512,
    seed: int = 0,
) -> Measured:
    """Choose the smallest halo at which no more than ``bound`` of the labels differ from those of one pass.

    A network that is exact within ``maximum`` gets the halo that makes it so.  One that reaches further is compared
    with itself on a random picture, from the radius that its gradients tell on; one that pools over the whole tile is
    compared in tiles of ``tile`` pixels, and where nothing keeps the bound gets a quarter of them.
    Branches that wait at zero for training to open them are opened first, in a copy: shut, they hide their reach.

    Args:
        network: from (N, ``in_channels``, H, W) to scores (N, K, H, W).
        in_channels: number of bands.
        stride: the shift in pixels that the network follows exactly.
        bound: share of labels.
        maximum: largest halo in pixels to answer.
        tile: side in pixels of the tiles of a network that depends on it.
        seed: of the random picture.

    Raises:
        ConfigError: ``bound`` is not between 0 and 1, or another number is not positive.
    """
    _check_bound(bound)
    network = opened(network)
    maximum = max(stride, maximum // stride * stride)
    reach = measure_halo(network, in_channels, stride, maximum=maximum, seed=seed)
    if reach.limit is None:
        return _fixed_tile(network, in_channels, stride, bound, min(maximum, tile // 4), tile, seed)
    if reach.exact:
        return measure_at(network, in_channels, stride, reach.radius, limit=reach.limit, seed=seed)
    pixels = scene_like(in_channels, _side(maximum, stride), seed=seed)
    whole = _Whole(network, pixels, stride)
    steps = halos(maximum, stride)
    at = min(range(len(steps)), key=lambda i: abs(steps[i] - reach.radius))
    found = {at: whole.difference(steps[at])}
    while found[at].expected(whole.decision) <= bound and at > 0:
        at -= 1
        found[at] = whole.difference(steps[at])
    while found[at].expected(whole.decision) > bound and at < len(steps) - 1:
        at += 1
        found.setdefault(at, whole.difference(steps[at]))
    return _measured(found[at], reach.limit, whole)


def measure_at(
    network: nn.Module,
    in_channels: int,
    stride: int,
    halo: int,
    *,
    limit: int | None,
    tile: int = 512,
    seed: int = 0,
) -> Measured:
    """Compare tiles of a given halo with one pass over a random picture.

    Args:
        network: from (N, ``in_channels``, H, W) to scores (N, K, H, W); branches shut by zeros stay so.
        in_channels: number of bands.
        stride: the shift in pixels that the network follows exactly.
        halo: pixels, a multiple of ``stride``.
        limit: from :func:`geoseg.networks.receptive_field.exact_halo`.
        tile: side in pixels of the tiles of a network that depends on it.
        seed: of the random picture.
    """
    if limit is None:
        whole = _Whole(network, scene_like(in_channels, 2 * tile, seed=seed), stride)
        difference = whole.tile_differences(tile, [min(halo, tile // 2 - 1)])[0]
        return _measured(difference, None, whole, halo=halo)
    whole = _Whole(network, scene_like(in_channels, _side(halo, stride), seed=seed), stride)
    return _measured(whole.difference(halo), limit, whole)


def compare(
    network: nn.Module, pixels: torch.Tensor, stride: int, steps: Sequence[int], tile: int | None
) -> Comparison:
    """Compare one pass over ``pixels`` (1, C, H, W) with tiles of each halo of ``steps``, cut from their middle.

    What is compared is what 64 pixels and the largest halo leave of the picture, or with ``tile`` the core of the tile.

    Args:
        network: from (1, C, H, W) to scores (1, K, H, W).
        pixels: the picture as network input; it must reach beyond the largest halo.
        stride: tiles begin at multiples of it.
        steps: halos in pixels, ascending multiples of ``stride``.
        tile: side in pixels of the tiles of a network that pools over them; None lets tiles grow with the halo.

    Raises:
        ConfigError: the picture is too small for the halos.
    """
    core = min(pixels.shape[-2:]) - 2 * (max(steps) + _MARGIN)
    whole = _Whole(network, pixels, stride, core=tile or core)
    if tile is not None:
        return Comparison(whole.tile_differences(tile, steps), whole.decision)
    return Comparison(tuple(whole.difference(halo) for halo in steps), whole.decision)


def halos(maximum: int, stride: int) -> list[int]:
    """Return the halos to try: 0 to ``maximum`` in multiples of ``stride``, at least 16 pixels apart but for the last.

    >>> halos(100, 32)
    [0, 32, 64, 96]
    """
    last = maximum // stride * stride
    return [*range(0, last, -(-_STEP // stride) * stride), last]


def opened(network: nn.Module) -> nn.Module:
    """Return a copy in which no branch is shut by zero scales, as training would have it.

    Encoders start whole residual branches with the scale of their last normalisation (or a scale of its own, called
    ``gamma``) at zero or nearly so; the copy has 1 there.  A network without such branches comes back as a plain copy.
    """
    network = copy.deepcopy(network)
    with torch.no_grad():
        for module in network.modules():
            for name, value in module.named_parameters(recurse=False):
                scale = name == "gamma" or (name == "weight" and value.ndim == 1)
                if scale and value.numel() and float(value.abs().max()) <= _SHUT:
                    value.fill_(1.0)
    return network


class _Whole:
    """One pass over a picture, to compare tiles of it with.

    For a network that pools over the scene, the picture is the scene.
    """

    def __init__(self, network: nn.Module, pixels: torch.Tensor, stride: int, core: int = _CORE) -> None:
        """Run the network once; ``core`` is the side in pixels of the middle that is compared.

        Raises:
            ConfigError: the picture has no such middle.
        """
        self.network = network
        self.pixels = pixels
        if not stride <= core <= min(pixels.shape[-2:]):
            raise ConfigError(
                f"a picture of {pixels.shape[-1]} × {pixels.shape[-2]} pixels leaves nothing to compare beside the "
                "halo: use a larger picture or smaller halos."
            )
        self.stride = stride
        self.middle = [_middle(size, core, stride) for size in pixels.shape[-2:]]
        self.scores = self._scores(pixels)
        rows, cols = self.middle
        core_scores = self.scores[..., rows, cols]
        # Of the middle, which is what the tiles are compared on.
        self.deviation = core_scores.double().std((0, 2, 3), keepdim=True)
        count = torch.bincount(core_scores.argmax(1).flatten())
        self.decision: Decision = "labels" if int(count.max()) <= (1 - _VARIED) * int(count.sum()) else "scores"
        if not float(self.deviation.max()) > _ROUNDED_AWAY * float(core_scores.abs().max()):
            self.decision = "nothing"
        # The scores' rounding on the scale of their deviation, which is small in networks that say little.
        largest = float(core_scores.abs().max())
        self.rounding = _ROUNDING * largest / float(self.deviation.max()) if self.decision != "nothing" else 0.0

    def difference(self, halo: int) -> Difference:
        """Compare the middle of the picture with a tile round it.

        Raises:
            ConfigError: the picture ends before the halo does.
        """
        rows, cols = self.middle
        outer = [slice(part.start - halo, part.stop + halo) for part in (rows, cols)]
        if min(part.start for part in outer) < 0 or any(
            part.stop > size for part, size in zip(outer, self.pixels.shape[-2:], strict=True)
        ):
            raise ConfigError(
                f"a picture of {self.pixels.shape[-1]} × {self.pixels.shape[-2]} pixels is too small for a halo of "
                f"{halo}: use a larger picture or smaller halos."
            )
        inner = [slice(halo, halo + part.stop - part.start) for part in (rows, cols)]
        scores = self._tile_scores(outer[0], outer[1], halo)[..., inner[0], inner[1]]
        return self._between(scores, self.scores[..., rows, cols], halo)

    def tile_differences(self, tile: int, steps: Sequence[int]) -> tuple[Difference, ...]:
        """Compare a tile of ``tile`` pixels in the middle with the whole, for several halos at once.

        Raises:
            ConfigError: the picture is smaller than the tile, or a halo leaves no core.
        """
        height, width = self.pixels.shape[-2:]
        top, left = ((size - tile) // 2 // self.stride * self.stride for size in (height, width))
        if min(height, width) < tile or 2 * max(steps) >= tile:
            raise ConfigError(
                f"a tile of {tile} pixels with a halo of {max(steps)} does not fit a picture of {width} × {height}: "
                "use a larger picture or smaller halos."
            )
        rows, cols = slice(top, top + tile), slice(left, left + tile)
        scores, whole = self._scores(self.pixels[..., rows, cols]), self.scores[..., rows, cols]
        cores = [slice(halo, tile - halo) for halo in steps]
        return tuple(
            self._between(scores[..., core, core], whole[..., core, core], halo)
            for halo, core in zip(steps, cores, strict=True)
        )

    @property
    def _device(self) -> torch.device:
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    def _tile_scores(self, rows: slice, cols: slice, halo: int) -> torch.Tensor:
        """Return the scores of a part of the picture, as a tile of a run with such a halo."""
        pixels = self.pixels[..., rows, cols]
        network: object = self.network
        if not pools_over_scene(network):
            return self._scores(pixels)
        pixels = pixels.to(self._device)
        with evaluating(self.network), torch.no_grad():
            means = means_of(network, self.pixels.to(self._device), halo)
        return self._scores(pixels, context_of(network, means, pixels, [(rows.start, cols.start)]))

    def _scores(self, pixels: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        with evaluating(self.network), torch.no_grad():
            output = self.network(pixels.to(self._device), *more)
        if isinstance(output, dict):
            output = next(iter(output.values()))
        return (output[0] if isinstance(output, tuple | list) else output).float().cpu()

    def _between(self, scores: torch.Tensor, whole: torch.Tensor, halo: int) -> Difference:
        gap = (scores.double() - whole.double()).abs()
        if float(gap.max()) == 0:
            return Difference(halo, 0.0, 0.0, 0.0)
        if self.decision == "nothing" or not bool(gap.isfinite().all()):
            return Difference(halo, 0.0, math.inf, math.inf)
        # A class whose score never moves is judged on the scale of the others.
        scale = self.deviation.masked_fill(self.deviation == 0, float(self.deviation.max()))
        gap = gap / scale
        changed = (scores.argmax(1) != whole.argmax(1)).double().mean()
        return Difference(halo, float(changed), float(gap.square().mean().sqrt()), float(gap.max()))


def _fixed_tile(
    network: nn.Module, in_channels: int, stride: int, bound: float, maximum: int, tile: int, seed: int
) -> Measured:
    """Choose the halo of a network whose scores depend on the size of the tile."""
    whole = _Whole(network, scene_like(in_channels, 2 * tile, seed=seed), stride)
    comparison = Comparison(whole.tile_differences(tile, halos(maximum, stride)), whole.decision)
    chosen = comparison.smallest(bound)
    return _measured(chosen or comparison.differences[-1], None, whole)


def _measured(difference: Difference, limit: int | None, whole: _Whole, *, halo: int | None = None) -> Measured:
    halo = difference.halo if halo is None else halo
    structure = limit is not None and halo >= limit
    return Measured(
        halo=halo,
        limit=limit,
        decision="structure" if structure else whole.decision,
        difference=difference,
        exact=limit is not None and difference.score_error <= (max(EXACT, whole.rounding) if structure else EXACT),
        picture=whole.pixels.shape[-1],
    )


def _side(halo: int, stride: int) -> int:
    """Return the side of a picture that goes beyond a halo round what is compared, a multiple of the stride."""
    return -(-(_CORE + 2 * halo + 2 * _MARGIN) // (2 * stride)) * 2 * stride


def _middle(size: int, core: int, stride: int) -> slice:
    """Return the middle ``core`` pixels of an axis, or rather less, in multiples of the stride."""
    core = core // stride * stride
    start = (size - core) // 2 // stride * stride
    return slice(start, start + core)


def _check_bound(bound: float) -> None:
    if not 0 < bound < 1:
        raise ConfigError(f"the bound on labels that differ is {bound}: give a share between 0 and 1, such as {BOUND}.")
