"""One pass of a network over a picture, and how tiles of the picture differ from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geoseg.errors import ConfigError
from geoseg.networks.receptive_field import evaluating
from geoseg.networks.scene_pooling import context_of, means_of, pools_over_scene

# Of the largest score: more than this at a halo that leaves nothing out is no rounding but positions that depend on the
# size of the tile.
_ROUNDING = 64 * torch.finfo(torch.float32).eps
# Scores that vary less than this, of the largest, vary by rounding.
_ROUNDED_AWAY = 1e-6
# With a rarer second label than this, equal labels say little about the network.
_VARIED = 0.05
# Side in pixels of what is compared.
CORE = 256

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
class Profile:
    """How a tile without a halo differs from one pass, by the distance of pixels from the tile's edge, from 0 on.

    Attributes:
        pixels: (D,) at each distance in pixels.
        changed: (D,) of them, those with another label.
        squares: (D,) sum over them of the scores' squared differences, on the scale of :class:`Difference`.
        worst: (D,) the largest difference of a score.
    """

    pixels: NDArray[np.float64]
    changed: NDArray[np.float64]
    squares: NDArray[np.float64]
    worst: NDArray[np.float64]

    def with_(self, other: Profile) -> Profile:
        """Return the profile of both together."""
        return Profile(
            self.pixels + other.pixels,
            self.changed + other.changed,
            self.squares + other.squares,
            np.maximum(self.worst, other.worst),
        )

    def difference(self, halo: int, core: int) -> Difference:
        """Return what is to be expected of tiles with such a halo round a core of ``core`` pixels, an even number.

        Deeper inside than was seen, pixels are taken to differ ever less, as they do from the third quarter of what was
        seen to the last.
        """
        inside = np.arange(core // 2)
        rings = 4.0 * (core - 2 * inside - 1)
        quarter = len(self.pixels) // 4
        beyond = np.maximum(0, halo + inside - len(self.pixels) + quarter / 2) / quarter

        def share(counts: NDArray[np.float64]) -> float:
            third, last = (
                counts[part].sum() / self.pixels[part].sum()
                for part in (slice(-2 * quarter, -quarter), slice(-quarter, None))
            )
            rates = last * (min(1.0, last / third) if third > 0 else 1.0) ** beyond
            seen = (counts / self.pixels)[halo : halo + len(rates)]
            rates[: len(seen)] = seen
            return float(rates @ rings / core**2)

        return Difference(halo, share(self.changed), math.sqrt(share(self.squares)), float(self.worst[halo:].max()))


class OnePass:
    """One pass over a picture, to compare tiles of it with.

    For a network that pools over the scene, the picture is the scene.
    """

    def __init__(self, network: nn.Module, pixels: torch.Tensor, stride: int, core: int = CORE) -> None:
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

    def by_distance(self) -> Profile:
        """Compare the middle of the picture, as a tile without a halo, with the pass."""
        rows, cols = self.middle
        scores, whole = self._scores(self.pixels[..., rows, cols]), self.scores[..., rows, cols]
        gap = ((scores.double() - whole.double()).abs() / self._scale).nan_to_num(math.inf, math.inf).numpy()
        changed = (scores.argmax(1) != whole.argmax(1)).numpy()
        height, width = scores.shape[-2:]
        down, along = (np.minimum(np.arange(size), size - 1 - np.arange(size)) for size in (height, width))
        distance = np.minimum(down[:, None], along[None]).ravel()
        worst = np.zeros(distance.max() + 1)
        np.maximum.at(worst, distance, gap.max((0, 1)).ravel())
        rings = (np.ones(distance.shape), changed[0], (gap**2).mean((0, 1)))
        pixels, changed_at, squares = (
            np.asarray(np.bincount(distance, ring.astype(float).ravel()), np.float64) for ring in rings
        )
        return Profile(pixels, changed_at, squares, worst)

    @property
    def _scale(self) -> torch.Tensor:
        """The deviation of each class's scores; a class whose score never moves is judged on that of the others."""
        largest = float(self.deviation.max())
        return self.deviation.masked_fill(self.deviation == 0, largest or 1.0)

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
        gap = gap / self._scale
        changed = (scores.argmax(1) != whole.argmax(1)).double().mean()
        return Difference(halo, float(changed), float(gap.square().mean().sqrt()), float(gap.max()))


def _middle(size: int, core: int, stride: int) -> slice:
    """Return the middle ``core`` pixels of an axis, or rather less, in multiples of the stride."""
    core = core // stride * stride
    start = (size - core) // 2 // stride * stride
    return slice(start, start + core)
