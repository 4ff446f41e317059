"""Where a map of labels is near a boundary between two classes, exactly and without a distance map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from geoseg.metrics import IGNORED

# So much nearer than the edge of the ellipse is on it.
_ON_THE_EDGE = 1e-9


def reach(distance_yx: tuple[float, float]) -> int:
    """Return how many pixels of context :func:`near_other_class` needs on each side."""
    return math.floor(max(distance_yx) + _ON_THE_EDGE)


def near_other_class(labels: NDArray[np.uint8], distance_yx: tuple[float, float]) -> NDArray[np.bool_]:
    """Tell which pixels have a pixel of another class within a distance, from centre to centre: (H, W).

    These are the pixels that erosion of every class by an ellipse (a disc, if both distances are equal) takes away.
    Ignored pixels and the edge of the array are no boundary, and ignored pixels are near none.

    Args:
        labels: (H, W) class indices, 255 where ignored.
        distance_yx: the distance in pixels down and across; pixels exactly that far count.

    >>> near_other_class(np.array([[0, 0, 0, 1, 1]], np.uint8), (1, 1)).tolist()
    [[False, False, True, True, False]]
    """
    known = labels != IGNORED
    highest = _extreme(np.where(known, labels, np.uint8(0)), distance_yx, np.maximum, 0)
    lowest = _extreme(labels, distance_yx, np.minimum, IGNORED)
    near: NDArray[np.bool_] = known & ((highest != labels) | (lowest != labels))
    return near


def _extreme(
    labels: NDArray[np.uint8],
    distance_yx: tuple[float, float],
    pick: Callable[..., NDArray[np.uint8]],
    neutral: int,
) -> NDArray[np.uint8]:
    """Return the highest or lowest label in the ellipse round each pixel, ``neutral`` being the one that never is."""
    height, width = labels.shape
    margin = reach((0.0, distance_yx[1]))
    padded = np.pad(labels, ((0, 0), (margin, margin)), constant_values=neutral)
    runs = _Runs(padded, pick)
    best = labels.copy()
    for row, half in _rows_of_ellipse(distance_yx):
        if abs(row) >= height:
            continue
        line = runs.of(2 * half + 1)[:, margin - half : margin - half + width]
        here = slice(max(0, -row), min(height, height - row))
        there = slice(max(0, row), min(height, height + row))
        pick(best[here], line[there], out=best[here])
    return best


def _rows_of_ellipse(distance_yx: tuple[float, float]) -> Iterator[tuple[int, int]]:
    """Yield the rows of an ellipse and how many pixels it reaches to either side there."""
    down, across = distance_yx
    tall = math.floor(down + _ON_THE_EDGE)
    for row in range(-tall, tall + 1):
        rest = max(0.0, 1 - (row / down) ** 2) if down > 0 else 1.0
        yield row, math.floor(across * math.sqrt(rest) + _ON_THE_EDGE)


class _Runs:
    """The extreme of every run of pixels along the rows, whatever the run's length, from runs of 1, 2, 4, … pixels."""

    def __init__(self, labels: NDArray[np.uint8], pick: Callable[..., NDArray[np.uint8]]) -> None:
        self._doubled = [labels]
        self._pick = pick
        self._length = -1
        self._last = labels

    def of(self, length: int) -> NDArray[np.uint8]:
        """Return the extreme of ``length`` pixels that begin at each place: (H, W - length + 1)."""
        if length != self._length:
            power = length.bit_length() - 1
            while len(self._doubled) <= power:
                last, step = self._doubled[-1], 2 ** (len(self._doubled) - 1)
                self._doubled.append(self._pick(last[:, :-step], last[:, step:]))
            run = self._doubled[power]
            places = self._doubled[0].shape[1] - length + 1
            self._last = self._pick(run[:, :places], run[:, length - 2**power : length - 2**power + places])
            self._length = length
        return self._last
