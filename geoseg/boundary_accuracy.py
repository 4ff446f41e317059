"""Mean boundary accuracy (mBA): how many pixels are right close to where classes meet.

Source: H. K. Cheng, J. Chung, Y.-W. Tai, C.-K. Tang 2020, arXiv 2005.02551, section 4.1, and the code released with it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import LabelsError
from geoseg.metrics import IGNORED
from geoseg.morphology import dilated, ellipse, eroded

STEPS = 5


def boundary_radii(shape_yx: tuple[int, ...]) -> tuple[int, ...]:
    """Return the radii in pixels of the regions that are looked at: they grow with the image.

    >>> boundary_radii((300, 420))
    (1, 1, 1, 1, 2)
    """
    largest = sum(shape_yx) / 300
    return tuple(1 + int((largest - 1) / STEPS * step) for step in range(STEPS))


def mean_boundary_accuracy(
    reference: NDArray[np.uint8], prediction: NDArray[np.uint8], *, ignored_must_match: bool = False
) -> float:
    """Return the share of right pixels near boundaries of the reference, the mean over five radii; NaN without any.

    A region is where dilation and erosion of a class by an ellipse differ, for any class.

    Args:
        reference: class indices (H, W), 255 where there is none; these pixels are left out, but their edge is a
            boundary.
        prediction: likewise; 255 is wrong where the reference has a class.
        ignored_must_match: take for an error a class where the reference has none, as the authors' code comes to do
            for predictions of which such pixels were not taken away before.

    Raises:
        LabelsError: maps of different sizes.

    >>> truth = np.array([[0, 0, 0, 0, 1, 1, 1, 1]], np.uint8)
    >>> mean_boundary_accuracy(truth, np.array([[0, 0, 0, 1, 1, 1, 1, 1]], np.uint8))
    0.5
    """
    if reference.shape != prediction.shape:
        raise LabelsError(
            f"the maps to be compared have {reference.shape} and {prediction.shape} pixels: give two of one size."
        )
    known, right = reference != IGNORED, reference == prediction
    wrong_void = ~known & ~right if ignored_must_match else np.zeros_like(known)
    accuracies: dict[int, float] = {}
    radii = boundary_radii(reference.shape)
    for radius in set(radii):
        region = _near_boundaries(reference, radius)
        counted = np.count_nonzero(region & known)
        good = np.count_nonzero(region & known & right) - np.count_nonzero(region & wrong_void)
        accuracies[radius] = good / counted if counted else math.nan
    return float(np.mean([accuracies[radius] for radius in radii]))


def _near_boundaries(labels: NDArray[np.uint8], radius: int) -> NDArray[np.bool_]:
    shape = ellipse(2 * radius + 1, 2 * radius + 1)
    region = np.zeros(labels.shape, bool)
    for value in np.unique(labels):
        if value != IGNORED:
            mask = labels == value
            region |= dilated(mask, shape) & ~eroded(mask, shape)
    return region
