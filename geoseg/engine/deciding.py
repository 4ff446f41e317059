"""From scores to labels and confidence in one pass over the pixels, compiled on first use and kept on disk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geoseg.compiling import compiled
from geoseg.engine.plan import CONFIDENCE_SCALE

_SCALE = np.float32(CONFIDENCE_SCALE)


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
def _decide(
    scores: NDArray[np.float32], ids: NDArray[np.uint16], labels: NDArray[np.uint16], confidence: NDArray[np.uint16]
) -> None:
    count, classes, height, width = scores.shape
    for n in range(count):
        for row in range(height):
            for col in range(width):
                best, winner = scores[n, 0, row, col], 0
                for k in range(1, classes):
                    if scores[n, k, row, col] > best:
                        best, winner = scores[n, k, row, col], k
                total = np.float32(0)
                for k in range(classes):
                    total += np.exp(scores[n, k, row, col] - best)
                labels[n, row, col] = ids[winner]
                # Scores that are no numbers say nothing.
                confidence[n, row, col] = np.uint16(np.rint(_SCALE / total)) if total > 0 else 0
