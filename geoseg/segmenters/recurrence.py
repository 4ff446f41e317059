"""The fine network's rounds over one candidate box, and the answers of many boxes put together.

Each round looks at the box of the last round's mask and takes its probabilities for weights, until two masks in a row
are nearly the same.  A box is a task of its own: no round waits for another box.

Source: Yu et al. 2018, arXiv 1709.04518, and the fixed-point model before it (Zhou et al. 2017, arXiv 1612.08230); with
one box for each candidate in place of one for each slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from geoseg.errors import ConfigError
from geoseg.grid import Window
from geoseg.networks.rstn import SALIENCY_REACH, THRESHOLD, SaliencyPair, crop_box
from geoseg.segmenters.saliency_settings import SaliencySettings

Probabilities = NDArray[np.floating]
# Called with the box to look at, the last probabilities (K, H, W), and the window these stand for, which holds the box
# and, within the scene, SALIENCY_REACH pixels round it.
# Returns probabilities (K, height, width) of the box.
Look = Callable[[Window, Probabilities, Window], Probabilities]
Clean = Callable[[NDArray[np.bool_]], NDArray[np.bool_]]
# Why the rounds ended: the mask stayed the same, it became empty, or there were no more rounds.
End = Literal["stable", "empty", "rounds"]


@dataclass(frozen=True)
class Round:
    """One look: the box, the pixels of the mask that came out, and its agreement with the mask before."""

    box: Window
    pixels: int
    dsc: float


@dataclass(frozen=True)
class Answer:
    """What the rounds over one box found.

    Attributes:
        window: the candidate.
        box: what the last round looked at.
        probabilities: (K, height, width) of ``box``.
        rounds: all looks, in order.
        end: why there were no more.
    """

    window: Window
    box: Window
    probabilities: Probabilities
    rounds: tuple[Round, ...]
    end: End


def reach(window: Window, shape_yx: tuple[int, int], settings: SaliencySettings) -> Window:
    """Return where probabilities must be known: all that the rounds may come to look at, and what weights it there."""
    grown = _growing(window, shape_yx, settings, settings.rounds - 1)
    return grown.padded(SALIENCY_REACH).intersect(Window(0, 0, *shape_yx))


def recur(
    look: Look,
    probabilities: Probabilities,
    window: Window,
    shape_yx: tuple[int, int],
    settings: SaliencySettings,
    clean: Clean = lambda mask: mask,
) -> Answer:
    """Look at a candidate again and again, and return what was found.

    Outside the box of a round its probabilities are 0.

    Args:
        look: one look of the fine network.
        probabilities: (K, H, W) of the stage before, of :func:`reach`.
        window: the first box.
        shape_yx: height and width of the scene in pixels.
        settings: how often.
        clean: applied to the mask (K, H, W) of each round, not to its probabilities.

    Raises:
        ConfigError: probabilities of another shape than the reach.
    """
    whole = reach(window, shape_yx, settings)
    if probabilities.shape[1:] != whole.shape:
        raise ConfigError(
            f"the probabilities of a box are {probabilities.shape[1:]}: give those of its reach, {whole.shape}."
        )
    # What lies beyond the box belongs to other candidates.
    mask = np.zeros(probabilities.shape, bool)
    inside = (slice(None), *window.within(whole))
    mask[inside] = probabilities[inside] >= THRESHOLD
    mask = clean(mask)
    box, looks = window, list[Round]()
    end: End = "rounds"
    for number in range(1, settings.rounds + 1):
        if number > 1:
            box = _next_box(mask, whole, settings.margin).intersect(_growing(window, shape_yx, settings, number - 1))
        found = look(box, probabilities, whole)
        probabilities = np.zeros_like(probabilities)
        probabilities[(slice(None), *box.within(whole))] = found
        before, mask = mask, clean(probabilities >= THRESHOLD)
        looks.append(Round(box, int(np.count_nonzero(mask)), agreement(before, mask)))
        if looks[-1].pixels == 0:
            end = "empty"
            break
        if looks[-1].dsc >= settings.stop_dsc:
            end = "stable"
            break
    return Answer(window, box, probabilities[(slice(None), *box.within(whole))], tuple(looks), end)


def agreement(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks, 0 to 1; 1 if both are empty.

    >>> agreement(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    areas = np.count_nonzero(one) + np.count_nonzero(other)
    return float(2 * np.count_nonzero(one & other) / areas) if areas else 1.0


def combined(answers: Iterable[Answer], window: Window, targets: int) -> NDArray[np.float32]:
    """Return the probabilities (K, height, width) of a window: the mean of the answers there, 0 where there is none.

    An answer holds for the box of its last round.  The order of the answers does not matter, bit by bit, and every
    window gives what the whole scene has there.
    """
    total = np.zeros((targets, *window.shape), np.float64)
    count = np.zeros(window.shape, np.int32)
    # Sums of three or more depend on their order.
    for answer in sorted(answers, key=lambda each: (each.window, each.box)):
        common = window.intersect(answer.box)
        if not common.empty:
            here = common.within(window)
            total[(slice(None), *here)] += answer.probabilities[(slice(None), *common.within(answer.box))]
            count[here] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)


class PairLook:
    """The fine network of a pair as :data:`Look`.

    Args:
        pair: in evaluation mode.
        read: from a window of the scene to its normalised pixels (B, height, width), and where they hold data, bool.
    """

    def __init__(self, pair: SaliencyPair, read: Callable[[Window], tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._pair = pair
        self._read = read

    def __call__(self, box: Window, probabilities: Probabilities, whole: Window) -> Probabilities:
        """Return the probabilities (K, height, width) float32 of a box, on the CPU; 0 where there are no data."""
        # The weights in the box depend on probabilities a little way round it.
        seen = box.padded(SALIENCY_REACH).intersect(whole)
        pixels, valid = self._read(seen)
        given = torch.from_numpy(np.ascontiguousarray(probabilities[(slice(None), *seen.within(whole))]))
        rows, cols = box.within(seen)
        with torch.inference_mode():
            found = self._pair.fine_pass(
                pixels[None], [(rows.start, rows.stop, cols.start, cols.stop)], given[None].to(pixels)
            )
        return found[0].where(valid, 0)[:, rows, cols].float().cpu().numpy()


def _growing(window: Window, shape_yx: tuple[int, int], settings: SaliencySettings, rounds: int) -> Window:
    """Return how far a box may have grown after so many rounds."""
    down, across = (min(rounds * settings.margin, max(0, settings.limit - side) // 2) for side in window.shape)
    grown = Window(window.row - down, window.col - across, window.height + 2 * down, window.width + 2 * across)
    return grown.intersect(Window(0, 0, *shape_yx))


def _next_box(mask: NDArray[np.bool_], whole: Window, margin: int) -> Window:
    """Return the box of a mask (K, H, W) of ``whole``, with a margin."""
    row, row_stop, col, col_stop = crop_box(torch.from_numpy(np.ascontiguousarray(mask)), (margin,) * 4)
    return Window(whole.row + row, whole.col + col, row_stop - row, col_stop - col)
