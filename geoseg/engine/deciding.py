"""From scores to labels and confidence in one pass over the pixels, compiled on first use and kept on disk."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from geoseg.compiling import compiled
from geoseg.engine.plan import CONFIDENCE_SCALE

_SCALE = np.float32(CONFIDENCE_SCALE)
# Coefficients of the exponential function's Taylor series at -1/2.
_C0, _C1, _C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(math.exp(-0.5) / math.factorial(k)) for k in range(8))
_ZERO, _HALF, _PART, _LEAST = np.float32(0), np.float32(0.5), np.float32(1 / 32), np.float32(-32)


def decide(scores: NDArray[np.float32], ids: NDArray[np.uint16]) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return label values and thousandths of the winner's probability, both (N, H, W).

    Library calls need a pass over all classes for each step, and room for what they leave to the next.  Of equal scores
    the first class wins; sums are made class by class, so they do not depend on how many tiles come together.

    Args:
        scores: (N, K, H, W), laid out in any way.
        ids: (K,) values of the classes.
    """
    count, _, height, width = scores.shape
    labels, confidence = (np.empty((count, height, width), np.uint16) for _ in range(2))
    _decide(scores, ids, labels, confidence)
    return labels, confidence


@compiled
def _exponential(x: np.float32) -> np.float32:
    """Return the exponential of a number that is not positive, to five digits: 0 where it is below 1e-14.

    A library's function takes one number at a time; this is the 32nd power of a short series for a 32nd of ``x``.
    """
    t = x * _PART + _HALF
    power = ((((((_C7 * t + _C6) * t + _C5) * t + _C4) * t + _C3) * t + _C2) * t + _C1) * t + _C0
    power = power * power
    power = power * power
    power = power * power
    power = power * power
    power = power * power
    return _ZERO if x < _LEAST else power


@compiled
def _decide(
    scores: NDArray[np.float32], ids: NDArray[np.uint16], labels: NDArray[np.uint16], confidence: NDArray[np.uint16]
) -> None:
    count, classes, height, width = scores.shape
    # A row at a time, class by class, is what the compiler makes instructions of that take many pixels at once.
    line = np.empty((classes, width), np.float32)
    best, total = np.empty(width, np.float32), np.empty(width, np.float32)
    winner = np.empty(width, np.int32)
    for n in range(count):
        for row in range(height):
            for k in range(classes):
                for col in range(width):
                    line[k, col] = scores[n, k, row, col]
            for col in range(width):
                best[col], winner[col], total[col] = line[0, col], 0, _ZERO
            for k in range(1, classes):
                for col in range(width):
                    more = line[k, col] > best[col]
                    winner[col] = k if more else winner[col]
                    best[col] = line[k, col] if more else best[col]
            for k in range(classes):
                for col in range(width):
                    total[col] += _exponential(line[k, col] - best[col])
            for col in range(width):
                labels[n, row, col] = ids[winner[col]]
                # Scores that are no numbers say nothing.
                confidence[n, row, col] = np.uint16(np.rint(_SCALE / total[col])) if total[col] > 0 else 0
