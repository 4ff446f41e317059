"""What a comparison of two maps found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoseg.classes import Classes
from geoseg.engine.structure import Structure
from geoseg.metrics import Calibration, Confusion, ObjectCounts, Overlap


@dataclass(frozen=True)
class Boundaries:
    """Boundary IoU: of the pixels of a class within a distance of its boundary, in either map.

    Attributes:
        overlap: their counts.
        distance: as it was asked for, such as ``3px`` or ``0.5m``.
    """

    overlap: Overlap
    distance: str


@dataclass(frozen=True)
class ObjectScores:
    """Objects matched at IoU 0.5.

    Attributes:
        counts: class by class.
        mean_iou: mean IoU of the pairs, NaN without any.
    """

    counts: ObjectCounts
    mean_iou: float


@dataclass(frozen=True)
class Pictures:
    """Small maps for a report.

    Attributes:
        reference: (h, w) uint8 class indices, 255 where ignored.
        prediction: likewise.
        wrong: (h, w) float64, share of the evaluated pixels under each that are wrong, NaN where there are none.
        factor: pixels of the grid under one of these, along each side.
    """

    reference: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    wrong: NDArray[np.float64]
    factor: int


@dataclass(frozen=True)
class Evaluation:
    """How a prediction agrees with its reference.

    Attributes:
        prediction: the file.
        reference: the file.
        classes: their order is the order of all figures by class.
        grid: CRS, shape and pixel size of the grid that was compared on.
        pixels: pixels in all, evaluated, and left out by cause.
        scores: of all evaluated pixels.
        eroded: of those that are not near a class boundary of the reference; None if not asked for.
        erode_px: how near is near, in pixels.
        boundaries: boundary IoU.
        objects: objects at IoU 0.5; None if not asked for.
        calibration: None without a confidence.
        structure: structural similarity of the classes that occur; None if not asked for.
        pictures: small maps; None if no report was asked for.
        notes: what a user should know.
    """

    prediction: str
    reference: str
    classes: Classes
    grid: dict[str, Any]
    pixels: dict[str, int]
    scores: Confusion
    eroded: Confusion | None
    erode_px: float
    boundaries: Boundaries
    objects: ObjectScores | None
    calibration: Calibration | None
    structure: Structure | None
    pictures: Pictures | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return all figures as a plain record, None where one is not defined; the pictures are left out."""
        record: dict[str, Any] = {
            "prediction": self.prediction,
            "reference": self.reference,
            "grid": self.grid,
            "pixels": self.pixels,
            "classes": [self._of_class(index) for index in range(len(self.classes))],
            **self.scores.as_dict(),
            "boundary": {"distance": self.boundaries.distance, "mean_iou": self.boundaries.overlap.mean_iou},
            "notes": list(self.notes),
        }
        # Said once, with its causes, under the name above.
        record["pixels"] = self.pixels
        if self.eroded is not None:
            record["eroded"] = {
                "distance": f"{self.erode_px:g}px",
                **self.eroded.as_dict(),
                "classes": [
                    {"name": item.name, **self.eroded.of_class(index)} for index, item in enumerate(self.classes)
                ],
            }
        if self.objects is not None:
            pooled = self.objects.counts.pooled()
            record["objects"] = {"iou": 0.5, **pooled.of_class(0), "mean_iou_of_pairs": self.objects.mean_iou}
        if self.calibration is not None:
            record["calibration"] = {
                "expected_error": self.calibration.expected_error,
                "largest_error": self.calibration.largest_error,
                "bins": self.calibration.rows(),
            }
        if self.structure is not None:
            record["structure"] = self.structure.as_dict()
        defined: dict[str, Any] = without_nan(record)
        return defined

    def _of_class(self, index: int) -> dict[str, Any]:
        item = self.classes[index]
        record = {
            "id": item.id,
            "name": item.name,
            "color": item.color,
            "background": item.background,
            **self.scores.of_class(index),
            "boundary_iou": float(self.boundaries.overlap.iou[index]),
        }
        if self.objects is not None and not item.background:
            record["objects"] = self.objects.counts.of_class(index)
        return record


def without_nan(value: Any) -> Any:
    """Return the record with None in place of NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
