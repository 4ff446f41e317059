"""How well labels agree: everything that follows from counts of pixels and objects, pooled over a whole scene.

Counts are integers and are added block by block, so a figure depends neither on the blocks nor on their order, and no
figure is ever a mean over blocks.  A figure that is not defined (the precision of a class that is never predicted) is
NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The class index of pixels that are left out, on either side.
IGNORED = 255
# Confidences are added as integers in units of 2^-24, which is exact for float32 from 0.5 to 1: order cannot matter.
_CONFIDENCE_UNIT = 2**24


def confusion_matrix(reference: NDArray[np.uint8], prediction: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Return how many pixels of each reference class (rows) were given each class (columns): (K, K).

    Args:
        reference: class indices 0 to K - 1 of any shape; :data:`IGNORED` is left out.
        prediction: likewise, of the same shape.
        classes: K.

    >>> confusion_matrix(np.array([0, 1, 1, 255], np.uint8), np.array([0, 0, 1, 1], np.uint8), 2).tolist()
    [[1, 0], [1, 1]]
    """
    counted = (reference != IGNORED) & (prediction != IGNORED)
    pairs = reference[counted].astype(np.int64) * classes + prediction[counted]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int64)


@dataclass(frozen=True)
class Confusion:
    """A pooled confusion matrix and the scores that follow from it.

    Attributes:
        matrix: (K, K) int64, rows the reference, columns the prediction.
    """

    matrix: NDArray[np.int64]

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.matrix.sum())

    @property
    def correct(self) -> NDArray[np.int64]:
        """Pixels of each class (K,) that were given it."""
        return np.diagonal(self.matrix)

    @property
    def in_reference(self) -> NDArray[np.int64]:
        """Pixels of each class (K,) in the reference."""
        return self.matrix.sum(axis=1)

    @property
    def in_prediction(self) -> NDArray[np.int64]:
        """Pixels of each class (K,) in the prediction."""
        return self.matrix.sum(axis=0)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which classes (K,) occur at all, in the reference or in the prediction."""
        return (self.in_reference + self.in_prediction) > 0

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class (K,), NaN where it does not occur."""
        return _share(self.correct, self.in_reference + self.in_prediction - self.correct)

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of precision and recall of each class (K,), NaN where it does not occur."""
        return _share(2 * self.correct, self.in_reference + self.in_prediction)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of what was given each class (K,) that is of it, NaN where it is never predicted."""
        return _share(self.correct, self.in_prediction)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of each class (K,) that was found, NaN where the reference has none of it."""
        return _share(self.correct, self.in_reference)

    @property
    def overall_accuracy(self) -> float:
        """Share of all pixels that are right."""
        return float(_share(self.correct.sum(), self.matrix.sum()))

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that are :attr:`present`."""
        return _mean(self.iou)

    @property
    def mean_f1(self) -> float:
        """Mean F1 over the classes that are :attr:`present`."""
        return _mean(self.f1)

    @property
    def kappa(self) -> float:
        """Agreement beyond what the class shares alone would give (Cohen 1960), NaN where those give all of it."""
        total = self.matrix.sum()
        if total == 0:
            return math.nan
        # As shares: products of counts of a large scene do not fit 64 bits.
        by_chance = float((self.in_reference / total) @ (self.in_prediction / total))
        return (self.overall_accuracy - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Return the scores of the whole as a plain record."""
        return {
            "pixels": self.pixels,
            "overall_accuracy": self.overall_accuracy,
            "kappa": self.kappa,
            "mean_iou": self.mean_iou,
            "mean_f1": self.mean_f1,
            "matrix": self.matrix.tolist(),
        }

    def of_class(self, index: int) -> dict[str, Any]:
        """Return the scores of class ``index`` as a plain record."""
        return {
            "reference_pixels": int(self.in_reference[index]),
            "prediction_pixels": int(self.in_prediction[index]),
            **{name: float(getattr(self, name)[index]) for name in ("iou", "f1", "precision", "recall")},
        }


@dataclass(frozen=True)
class Overlap:
    """What two sets have in common, class by class: pixels near a boundary, for one.

    Attributes:
        both: (K,) int64, how many are in both sets.
        reference: (K,) int64, how many are in the reference's.
        prediction: (K,) int64, how many are in the prediction's.
    """

    both: NDArray[np.int64]
    reference: NDArray[np.int64]
    prediction: NDArray[np.int64]

    @classmethod
    def of_boundaries(
        cls,
        reference: NDArray[np.uint8],
        prediction: NDArray[np.uint8],
        near_reference: NDArray[np.bool_],
        near_prediction: NDArray[np.bool_],
        classes: int,
    ) -> Overlap:
        """Count the pixels of each class that lie near its boundary: in one map, in the other, in both.

        Args:
            reference: class indices (H, W); :data:`IGNORED` on either side is left out.
            prediction: likewise.
            near_reference: where the reference has another class near by (:func:`geoseg.boundaries.near_other_class`).
            near_prediction: likewise for the prediction.
            classes: K.
        """
        counted = (reference != IGNORED) & (prediction != IGNORED)
        both = counted & near_reference & near_prediction & (reference == prediction)
        return cls(
            *(
                np.bincount(labels[where], minlength=classes).astype(np.int64)
                for labels, where in (
                    (reference, both),
                    (reference, counted & near_reference),
                    (prediction, counted & near_prediction),
                )
            )
        )

    def __add__(self, other: Overlap) -> Overlap:
        """Pool two counts."""
        return Overlap(self.both + other.both, self.reference + other.reference, self.prediction + other.prediction)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class (K,), NaN where neither set has anything."""
        return _share(self.both, self.reference + self.prediction - self.both)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes for which it is defined."""
        return _mean(self.iou)


@dataclass(frozen=True)
class ObjectCounts:
    """Objects found, found where there is none, and missed, class by class.

    Attributes:
        found: (K,) int64, pairs of a predicted and a reference object that match.
        wrong: (K,) int64, predicted objects without a partner.
        missed: (K,) int64, reference objects without a partner.
    """

    found: NDArray[np.int64]
    wrong: NDArray[np.int64]
    missed: NDArray[np.int64]

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the predicted objects that match, (K,)."""
        return _share(self.found, self.found + self.wrong)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the reference objects that were found, (K,)."""
        return _share(self.found, self.found + self.missed)

    @property
    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of both, (K,)."""
        return _share(2 * self.found, 2 * self.found + self.wrong + self.missed)

    def pooled(self) -> ObjectCounts:
        """Return the counts of all classes together, arrays of length 1."""
        return ObjectCounts(*(np.array([n.sum()]) for n in (self.found, self.wrong, self.missed)))

    def of_class(self, index: int) -> dict[str, Any]:
        """Return the counts and scores of class ``index`` as a plain record."""
        return {
            **{name: int(getattr(self, name)[index]) for name in ("found", "wrong", "missed")},
            **{name: float(getattr(self, name)[index]) for name in ("precision", "recall", "f1")},
        }


@dataclass(frozen=True)
class Calibration:
    """Whether a confidence of so much is right so often: pixels in bins of equal width from 0 to 1.

    A value on the line between two bins belongs to the upper one, 1 to the last.

    Attributes:
        pixels: (B,) int64.
        correct: (B,) int64, those of them that are right.
        confidence: (B,) int64, the sum of their confidences in units of 2^-24.
    """

    pixels: NDArray[np.int64]
    correct: NDArray[np.int64]
    confidence: NDArray[np.int64]

    @classmethod
    def of(cls, confidence: NDArray[Any], right: NDArray[np.bool_], bins: int) -> Calibration:
        """Count pixels.

        Args:
            confidence: (N,) from 0 to 1.
            right: (N,) whether they are.
            bins: B.
        """
        exact = confidence.astype(np.float64)
        place = np.minimum((exact * bins).astype(np.int64), bins - 1)
        units = np.rint(exact * _CONFIDENCE_UNIT).astype(np.int64)
        sums = np.zeros(bins, np.int64)
        # Not bincount with weights, which adds in floating point.
        np.add.at(sums, place, units)
        return cls(
            np.bincount(place, minlength=bins).astype(np.int64),
            np.bincount(place[right], minlength=bins).astype(np.int64),
            sums,
        )

    def __add__(self, other: Calibration) -> Calibration:
        """Pool two counts."""
        return Calibration(self.pixels + other.pixels, self.correct + other.correct, self.confidence + other.confidence)

    @property
    def mean_confidence(self) -> NDArray[np.float64]:
        """Mean confidence of each bin (B,), NaN where it is empty."""
        return _share(self.confidence / _CONFIDENCE_UNIT, self.pixels)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of right pixels in each bin (B,), NaN where it is empty."""
        return _share(self.correct, self.pixels)

    @property
    def expected_error(self) -> float:
        """Mean over pixels of the gap between confidence and accuracy of their bin (ECE; Guo et al. 2017, §2)."""
        total = self.pixels.sum()
        if total == 0:
            return math.nan
        return float(np.nansum(self.pixels / total * np.abs(self.accuracy - self.mean_confidence)))

    @property
    def largest_error(self) -> float:
        """The largest of these gaps (MCE)."""
        gaps = np.abs(self.accuracy - self.mean_confidence)
        return float(np.nanmax(gaps)) if self.pixels.any() else math.nan

    def rows(self) -> list[dict[str, Any]]:
        """Return the reliability table, a record a bin."""
        edges = np.linspace(0, 1, len(self.pixels) + 1)
        return [
            {
                "from": float(edges[i]),
                "to": float(edges[i + 1]),
                "pixels": int(self.pixels[i]),
                "confidence": float(self.mean_confidence[i]),
                "accuracy": float(self.accuracy[i]),
            }
            for i in range(len(self.pixels))
        ]


def _share(part: Any, whole: Any) -> NDArray[np.float64]:
    """Return ``part / whole``, NaN where there is no whole."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are defined."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan
