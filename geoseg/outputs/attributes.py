"""The attributes of every polygon, the same columns in every format."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from geoseg.classes import Classes
from geoseg.vector.features import Features

# Column name and numpy type, in the order of the file.
COLUMNS = (
    ("id", "int64"),
    ("class_id", "int32"),
    ("class_name", "object"),
    ("area_m2", "float64"),
    ("perimeter_m", "float64"),
    ("confidence", "float64"),
)
CONFIDENCE_DECIMALS = 4
# Polygons are written in groups that depend on the polygons alone, so that the bytes of a file do not depend on how
# the producer cut its work; a group ends at so many polygons or so many points.
GROUP_POLYGONS = 16_384
GROUP_POINTS = 1_000_000


@dataclass(frozen=True)
class Attributes:
    """How the attributes of polygons are written.

    Attributes:
        classes: their names.
        pixel_m: ground length of a pixel in metres, which decides the decimals.
        has_confidence: whether the method has one; if not, the column holds nothing but nulls.
        extra: names and numpy types of further columns, see :attr:`geoseg.vector.features.Features.extra`.
        multipart: whether some polygons may be multipolygons.
    """

    classes: Classes
    pixel_m: float
    has_confidence: bool
    extra: tuple[tuple[str, str], ...] = ()
    multipart: bool = False

    @property
    def schema(self) -> tuple[tuple[str, str], ...]:
        """Names and numpy types of all columns, in the order of the file."""
        return COLUMNS + self.extra

    @property
    def area_decimals(self) -> int:
        """Decimals of areas in m²: two, or enough for a hundredth of a pixel."""
        return _decimals(self.pixel_m**2)

    @property
    def length_decimals(self) -> int:
        """Decimals of lengths in m: two, or enough for a hundredth of a pixel's side."""
        return _decimals(self.pixel_m)

    def columns(self, features: Features) -> dict[str, NDArray[Any]]:
        """Return one array per name in :attr:`schema`; what is missing is NaN.

        Raises:
            LabelsError: a label value that belongs to no class.
        """
        values, inverse = np.unique(features.class_id, return_inverse=True)
        names = np.array([self.classes.by_id(int(value)).name for value in values], dtype=object)
        confidence = np.round(features.confidence.astype(float), CONFIDENCE_DECIMALS)
        return {
            "id": features.id.astype(np.int64),
            "class_id": features.class_id.astype(np.int32),
            "class_name": names[inverse] if len(names) else np.empty(0, object),
            "area_m2": np.round(features.area_m2.astype(float), self.area_decimals),
            "perimeter_m": np.round(features.perimeter_m.astype(float), self.length_decimals),
            "confidence": confidence if self.has_confidence else np.full(len(features), np.nan),
            **{name: features.extra[name] for name, _ in self.extra},
        }


def grouped(batches: Iterable[Features]) -> Iterator[Features]:
    """Yield the same polygons in groups whose borders depend on the polygons alone; none is empty."""
    waiting: list[Features] = []
    polygons = points = 0
    for batch in batches:
        sizes = np.cumsum(shapely.get_num_coordinates(batch.geometry))
        start = 0
        while start < len(batch):
            passed = int(sizes[start - 1]) if start else 0
            # The polygon that reaches the limit still belongs to the group.
            by_points = int(np.searchsorted(sizes, passed + GROUP_POINTS - points)) + 1
            stop = min(len(batch), start + GROUP_POLYGONS - polygons, by_points)
            waiting.append(part(batch, start, stop))
            polygons += stop - start
            points += int(sizes[stop - 1]) - passed
            if polygons >= GROUP_POLYGONS or points >= GROUP_POINTS:
                yield _joined(waiting)
                waiting, polygons, points = [], 0, 0
            start = stop
    if waiting:
        yield _joined(waiting)


def _decimals(unit: float) -> int:
    return 2 if unit >= 1 or unit <= 0 else max(2, 2 + math.ceil(-math.log10(unit) - 1e-9))


def part(batch: Features, start: int, stop: int) -> Features:
    """Return the polygons from ``start`` to before ``stop``."""
    if (start, stop) == (0, len(batch)):
        return batch
    return batch.chosen(slice(start, stop))


def _joined(parts: list[Features]) -> Features:
    if len(parts) == 1:
        return parts[0]
    return Features.joined(parts)
